"""The mask decoder: feature maps of a frozen encoder to masks of lines and tubes."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from cxrstudy import study
from cxrstudy.data.vocabulary import DEVICES
from cxrstudy.evaluate.features import device as torch_device
from cxrstudy.evaluate.heads import fit, shuffled_batches
from cxrstudy.evaluate.maps import CHUNK, SegmentationData, Subset
from cxrstudy.progress import Progress

BINS = 32  # thresholds tried: 1/32 ... 31/32
CHECKS = 8  # validations in a training
WIDTH = 48  # channels of the decoder


# ---- the decoder ---------------------------------------------------------------------------------
class Decoder(nn.Module):
    """Feature maps, coarse to fine, to mask logits.

    Each map is standardised by its training mean and standard deviation a channel, and added
    through a 1x1 convolution; a residual 3x3 convolution follows. Where maps stay coarse (a ViT's),
    the grid is doubled up to half the mask's size. The rest is interpolation.
    """

    def __init__(self, maps: Sequence[np.ndarray | Subset], devices: int, size: int):
        """Build a decoder for ``maps``, the training maps (N,C,h,w) from fine to coarse."""
        super().__init__()
        self.size, self.channels = size, [one.shape[1] for one in maps]
        self.sides, self.devices = [one.shape[2] for one in maps], devices
        for k, one in enumerate(maps):
            mean, inverse_std = _channel_statistics(one)
            self.register_buffer(f"mean{k}", torch.from_numpy(mean).float()[:, None, None])
            self.register_buffer(f"gain{k}", torch.from_numpy(inverse_std).float()[:, None, None])
        self.skips = nn.ModuleList(nn.Conv2d(c, WIDTH, 1) for c in self.channels)
        self.doublings = 0
        while max(self.sides) * 2 ** (self.doublings + 1) < size:
            self.doublings += 1
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(8, WIDTH), nn.ReLU())
            for _ in range(len(maps) + self.doublings)
        )
        self.out = nn.Conv2d(WIDTH, devices, 1)
        nn.init.constant_(self.out.bias, -4.0)  # type: ignore[arg-type]  # few pixels are a device

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (N,D,size,size)."""
        x: Any = None
        for k, one in reversed(list(enumerate(maps))):  # coarse to fine
            standardised = (one - getattr(self, f"mean{k}")) * getattr(self, f"gain{k}")
            skip = self.skips[k](standardised)  # (N,WIDTH,h,w)
            x = skip if x is None else skip + _resize(x, one.shape[-1])
            x = x + self.blocks[k](x)
        for block in list(self.blocks)[len(self.skips) :]:
            x = _resize(x, 2 * x.shape[-1])
            x = x + block(x)
        return _resize(self.out(x), self.size)


def _channel_statistics(maps: np.ndarray | Subset) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and 1 / standard deviation (C,) of maps (N,C,h,w); 0 for constant channels."""
    sums = [(chunk.sum((0, 2, 3)), (chunk**2).sum((0, 2, 3))) for chunk in _chunks(maps)]
    pixels = len(maps) * maps.shape[2] * maps.shape[3]
    mean, square = (np.sum(part, axis=0) / pixels for part in zip(*sums, strict=True))
    std = np.sqrt(np.maximum(square - mean**2, 0))
    varies = std > 1e-4 * np.abs(mean) + 1e-6
    return mean, np.where(varies, 1 / np.maximum(std, 1e-12), 0.0)


def _chunks(maps: np.ndarray | Subset) -> Iterator[np.ndarray]:
    """Yield maps chunk by chunk, because those of all images would not fit in memory."""
    return (maps[start : start + CHUNK].astype(np.float64) for start in range(0, len(maps), CHUNK))


def _resize(x: Tensor, side: int) -> Tensor:
    if x.shape[-1] == side:
        return x
    return functional.interpolate(x, size=(side, side), mode="bilinear")


def mask_loss(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Return binary cross-entropy plus soft Dice (Milletari et al. 2016), a scalar.

    Dice is taken over the batch, for each device that the batch shows: for a device that no image
    shows it would only reward an empty mask.

    Args:
        logits: Logits (N,D,H,W).
        truth: True masks (N,D,H,W), bool.
        known: Whether each device's mask is known, (N,D) bool. Unknown ones are left out.
    """
    weight = known[:, :, None, None].float()
    target = truth.float() * weight
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight
    predicted = torch.sigmoid(logits) * weight
    overlap, total = (
        (predicted * target).sum((0, 2, 3)),
        (predicted + target).sum((0, 2, 3)),
    )  # (D,)
    shown = target.any((0, 2, 3))
    dice_loss = (1 - 2 * overlap / total.clamp(min=1e-6)) * shown
    pixels = weight.sum() * truth.shape[-1] ** 2
    return entropy.sum() / pixels.clamp(min=1) + dice_loss.sum() / shown.sum().clamp(min=1)


# ---- training ------------------------------------------------------------------------------------
def fit_decoder(
    p: study.Segment,
    train: SegmentationData,
    validation: SegmentationData,
    devices: Sequence[int],
    *,
    progress: Progress = iter,
) -> tuple[Decoder, np.ndarray, pd.DataFrame]:
    """Train a decoder for ``p.steps`` steps and keep the state with the best validation Dice.

    Validation Dice is `pooled_dice` at each device's best threshold, the mean over devices.

    Returns:
        The decoder, the thresholds (D',), and a curve with the columns step, loss (mean since the
        step before) and dice. A device that no validation image shows gets 0.5, with a warning.
    """
    rng = np.random.default_rng(p.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(p.seed)
        decoder = Decoder(train.maps, len(devices), train.truth.masks.shape[-1]).to(torch_device())
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=p.lr, weight_decay=p.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, p.steps)
    by_threshold: list[np.ndarray] = []  # (BINS-1,D') of each validation

    def batch_loss(index: np.ndarray) -> Tensor:
        index = np.sort(index)  # memory-mapped files are read in order
        return mask_loss(decoder(train.batch(index)), *train.target(index, devices))

    def validation_dice() -> float:
        by_threshold.append(pooled_dice(decoder, validation, devices))
        best = by_threshold[-1].max(0)  # (D',)
        return float(best[~np.isnan(best)].mean()) if not np.isnan(best).all() else 0.0

    history = fit(
        decoder,
        shuffled_batches(len(train), p.batch_size, rng),
        batch_loss,
        optimizer,
        scheduler,
        steps=p.steps,
        validate=validation_dice,
        checks={*range(0, p.steps, max(1, p.steps // CHECKS)), p.steps},
        progress=progress,
    )
    checked = history["score"].notna()
    best = by_threshold[int(history.loc[checked, "score"].argmax())]
    shown = ~np.isnan(best).all(0)
    if not shown.all():
        names = ", ".join(DEVICES[d] for d, there in zip(devices, shown, strict=True) if not there)
        warnings.warn(
            f"no validation image shows {names}: its threshold stays at 0.5", stacklevel=2
        )
    thresholds = np.full(len(devices), 0.5)
    thresholds[shown] = (best[:, shown].argmax(0) + 1) / BINS
    losses = np.split(history["loss"].to_numpy(), np.flatnonzero(checked) + 1)[:-1]
    curve = history.loc[checked, ["step", "score"]].rename(columns={"score": "dice"})
    curve.insert(1, "loss", [part.mean() for part in losses])
    return decoder.eval().requires_grad_(False), thresholds, curve.reset_index(drop=True)


@torch.inference_mode()
def pooled_dice(decoder: Decoder, data: SegmentationData, devices: Sequence[int]) -> np.ndarray:
    """Return Dice over the pixels of all images at the thresholds 1/BINS, 2/BINS ..., (BINS-1,D').

    Images without the device count by what is segmented on them. NaN if no image shows the device.
    """
    counts = torch.zeros(len(devices) * 2 * BINS, dtype=torch.int64, device=torch_device())
    for start in range(0, len(data), CHUNK):
        index = np.arange(start, min(start + CHUNK, len(data)))
        truth, known = data.target(index, devices)
        level = (torch.sigmoid(decoder(data.batch(index))) * BINS).long().clamp(max=BINS - 1)
        device = torch.arange(len(devices), device=level.device)[:, None, None]
        cell = ((device * 2 + truth) * BINS + level)[known]
        counts += torch.bincount(cell.flatten(), minlength=len(counts))
    off, on = counts.double().view(len(devices), 2, BINS).cpu().numpy().swapaxes(0, 1)
    true, false = (part[:, ::-1].cumsum(1)[:, ::-1][:, 1:] for part in (on, off))
    total = on.sum(1, keepdims=True)
    return np.where(total > 0, 2 * true / np.maximum(true + false + total, 1), np.nan).T


@torch.inference_mode()
def predict(
    decoder: Decoder, thresholds: np.ndarray, data: SegmentationData, index: np.ndarray
) -> np.ndarray:
    """Return predicted masks (n,D',H,W) of some images, bool."""
    level = torch.as_tensor(thresholds, dtype=torch.float32, device=torch_device())[:, None, None]
    return (torch.sigmoid(decoder(data.batch(index))) >= level).cpu().numpy()
