"""Features of a frozen encoder: one forward pass, pooled in the ways an evaluation asks for."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from cxrstudy.data.images import Prepared
from cxrstudy.encoders import ImageEncoder, Pixels
from cxrstudy.progress import Progress

BATCH = 256  # images encoded at a time


def device() -> torch.device:
    """Return where encoders run: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# ---- one forward pass ----------------------------------------------------------------------------
def inputs(encoder: ImageEncoder, prepared: Prepared, rows: np.ndarray) -> Tensor:
    """Return normalised images (n,1,H,W) of some rows, resized to the encoder's input size.

    The baseline ``pixels`` takes them at their own size.
    """
    images = torch.from_numpy(np.array(prepared.images[rows]))
    x = encoder.normalise(images.to(device(), non_blocking=True))
    if x.shape[-1] != encoder.input_size and not isinstance(encoder, Pixels):
        size = (encoder.input_size,) * 2
        x = functional.interpolate(x, size=size, mode="bilinear", antialias=True)
    return x


def extract(encoder: ImageEncoder, x: Tensor, layers: int = 1) -> tuple[Tensor, Tensor]:
    """Return patch tokens and class tokens of the last layers, joined, the last layer first.

    Several blocks of a ViT are joined as in DINOv2's linear evaluation. Several stages of another
    trunk are averaged onto the grid of the last one.

    Args:
        encoder: An image encoder.
        x: Normalised images (N,1,H,W).
        layers: Number of layers, as `Encoder.intermediates` counts them.

    Returns:
        Patch tokens (N,T,C) and class tokens (N,K); K is 0 where the encoder has none.

    Raises:
        ValueError: More than one layer of an encoder that gives its last only.
    """
    last_first = encoder.intermediates(x, layers)[::-1]
    patch_tokens = [tokens for tokens, _ in last_first]
    count = patch_tokens[0].shape[1]
    for k, tokens in enumerate(patch_tokens):
        if tokens.shape[1] != count:
            pooled = functional.adaptive_avg_pool2d(as_map(tokens), int(count**0.5))
            patch_tokens[k] = pooled.flatten(2).transpose(1, 2)
    return torch.cat(patch_tokens, 2), torch.cat([cls_token for _, cls_token in last_first], 1)


def as_map(tokens: Tensor) -> Tensor:
    """Return patch tokens (N,T,C) of a square grid as a feature map (N,C,h,w)."""
    side = int(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def _forward(
    encoder: ImageEncoder, prepared: Prepared, rows: np.ndarray, layers: int = 1
) -> tuple[Tensor, Tensor]:
    """Return what `extract` gives for some rows of a data set, float32, on the encoder's device."""
    order = np.sort(rows)
    patch_tokens, cls_tokens = extract(encoder, inputs(encoder, prepared, order), layers)
    if (np.diff(rows) < 0).any():
        back = torch.from_numpy(np.searchsorted(order, rows)).to(patch_tokens.device)
        patch_tokens, cls_tokens = patch_tokens[back], cls_tokens[back]
    return patch_tokens.float().contiguous(), cls_tokens.float()  # contiguous: pools twice as fast


@torch.inference_mode()
def encode_batches(
    encoder: ImageEncoder,
    prepared: Prepared,
    rows: np.ndarray,
    *,
    layers: int = 1,
    batch: int = BATCH,
    progress: Progress = iter,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield patch tokens (n,T,C) and class tokens (n,K) of some rows, in their order, float32."""
    rows, encoder = np.asarray(rows), encoder.to(device())
    for start in progress(range(0, len(rows), batch)):
        yield _forward(encoder, prepared, rows[start : start + batch], layers)


# ---- pooling -------------------------------------------------------------------------------------
def encode(
    encoder: ImageEncoder, prepared: Prepared, rows: np.ndarray, *, pooling: str, **how: Any
) -> np.ndarray:
    """Return pooled features (len(rows), F) float32; ``how`` as `encode_batches`."""
    return encode_each(encoder, prepared, rows, [pooling], **how)[0]


@torch.inference_mode()
def encode_each(
    encoder: ImageEncoder, prepared: Prepared, rows: np.ndarray, poolings: Sequence[str], **how: Any
) -> list[np.ndarray]:
    """Return what `encode` gives for each pooling, from one forward pass."""
    pooled = [
        [pool_tokens(patch_tokens, one, cls_tokens).cpu().numpy() for one in poolings]
        for patch_tokens, cls_tokens in encode_batches(encoder, prepared, rows, **how)
    ]
    return [np.concatenate(found) for found in zip(*pooled, strict=True)]


def pool_tokens(tokens: Tensor, pooling: str, cls_tokens: Tensor | None = None) -> Tensor:
    """Return patch tokens (N,T,C) of a square grid pooled to (N,F).

    Args:
        tokens: Patch tokens. A single one (T = 1) is returned as it is.
        pooling: Parts joined by '+', put side by side: ``mean``; ``max``; ``gridK``, the mean in
            each cell of a K x K grid, which keeps positions and helps with thin tubes; ``class``.
        cls_tokens: The class tokens (N,K) of ``class``.

    Raises:
        ValueError: An unknown part, ``class`` without class tokens, or a grid that is not square.
    """
    if tokens.shape[1] == 1:
        return tokens[:, 0]
    parts = []
    for part in pooling.split("+"):
        if part == "mean":
            parts.append(tokens.mean(1))
        elif part == "max":
            parts.append(tokens.amax(1))
        elif part == "class":
            if cls_tokens is None or not cls_tokens.shape[1]:
                raise ValueError(
                    "pooling 'class' needs an encoder with a class token; this one has none"
                )
            parts.append(cls_tokens)
        elif part.startswith("grid") and part[4:].isdigit():
            if int(tokens.shape[1] ** 0.5) ** 2 != tokens.shape[1]:
                raise ValueError(
                    f"pooling {part!r} needs a square grid of patches, not {tokens.shape[1]}"
                )
            parts.append(functional.adaptive_avg_pool2d(as_map(tokens), int(part[4:])).flatten(1))
        else:
            raise ValueError(
                f"pooling: unknown part {part!r}; parts are mean, max, class and gridK, joined by "
                "'+'"
            )
    return torch.cat(parts, 1)


def covariates(manifest: pd.DataFrame) -> np.ndarray:
    """Return view, age and sex as features (N,5): what could be predicted without the image."""
    missing = pd.Series("", manifest.index)
    age = pd.to_numeric(manifest.get("age", pd.Series(np.nan, manifest.index))).astype(float)
    age = age.fillna(age.median() if age.notna().any() else 0.0) / 50
    view, sex = manifest.get("view", missing), manifest.get("sex", missing)
    columns = [view == "AP", view == "LATERAL", sex == "M", age, age**2]
    return np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)
