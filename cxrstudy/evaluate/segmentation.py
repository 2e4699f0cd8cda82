"""Lines and tubes drawn from a frozen encoder's feature maps.

A small decoder (about 100,000 weights, coarse to fine with skip connections) is trained on the maps. The training step
and each device's threshold are chosen on validation patients. Test patients are scored once.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from cxrstudy import study
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import nested_subset, patients_hash
from cxrstudy.data.vocabulary import DEVICES
from cxrstudy.evaluate import masks as measures
from cxrstudy.evaluate.features import device as the_device
from cxrstudy.evaluate.heads import fit, shuffled_batches
from cxrstudy.evaluate.maps import (
    CHUNK,
    SegmentationData,
    Subset,
    encode_maps,
    known_devices,
    with_masks,
)
from cxrstudy.evaluate.metrics import bootstrap, interval
from cxrstudy.evaluate.protocol import (
    SUPERVISED,
    labelled_rows,
    open_subject,
    refuse_leak,
    refuse_overlap,
)
from cxrstudy.evaluate.small_samples import FLAT, LEAST, TOO_FEW, exact_interval, mark_rare
from cxrstudy.progress import Progress

BINS = 32  # thresholds tried: 1/32 ... 31/32
CHECKS = 8  # looks at validation in a training
WIDTH = 48  # channels of the decoder
MEANS = ("dice", "iou", "cl_dice", "pieces", "missed", "false_alarm")
BOUNDED = ("dice", "iou", "cl_dice", "missed", "false_alarm")  # in [0, 1]
MEDIANS = ("tip_error_mm", "tip_floor_mm")  # one tip taken for the other end would rule a mean


# ---- heads ---------------------------------------------------------------------------------------------------------
class Head(nn.Module):
    """What both heads share: maps (N,C,h,w) are brought to mean 0 and spread 1 a channel, as measured in training."""

    def __init__(self, maps: Sequence[np.ndarray | Subset], devices: int, size: int):
        super().__init__()
        self.size, self.channels = size, [kept.shape[1] for kept in maps]
        self.sides, self.devices = [kept.shape[2] for kept in maps], devices
        for k, kept in enumerate(maps):
            sums = [(c.sum((0, 2, 3)), (c**2).sum((0, 2, 3))) for c in _chunks(kept)]
            pixels = len(kept) * kept.shape[2] * kept.shape[3]
            first, second = (np.sum(part, axis=0) / pixels for part in zip(*sums, strict=True))
            spread = np.sqrt(np.maximum(second - first**2, 0))
            gain = np.where(
                spread > 1e-4 * np.abs(first) + 1e-6, 1 / np.maximum(spread, 1e-12), 0.0
            )  # else constant
            self.register_buffer(f"mean{k}", torch.from_numpy(first).float()[:, None, None])
            self.register_buffer(f"gain{k}", torch.from_numpy(gain).float()[:, None, None])

    def standard(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps at mean 0 and spread 1."""
        return [
            (m - getattr(self, f"mean{k}")) * getattr(self, f"gain{k}") for k, m in enumerate(maps)
        ]


def _chunks(kept: np.ndarray | Subset) -> Iterator[np.ndarray]:
    """One after the other: maps of all images would not fit in memory."""
    return (kept[start : start + CHUNK].astype(np.float64) for start in range(0, len(kept), CHUNK))


class Decoder(Head):
    """Coarse to fine: each map through a 1x1 convolution is added to what was drawn so far, then a residual 3x3
    convolution; where maps stay coarse (a ViT's), doublings until half the mask's size; the rest by interpolation."""

    def __init__(self, maps: Sequence[np.ndarray | Subset], devices: int, size: int):
        super().__init__(maps, devices, size)
        self.skips = nn.ModuleList(nn.Conv2d(c, WIDTH, 1) for c in self.channels)
        self.doublings = 0
        while max(self.sides) * 2 ** (self.doublings + 1) < size:
            self.doublings += 1
        blocks = len(maps) + self.doublings
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(8, WIDTH), nn.ReLU())
            for _ in range(blocks)
        )
        self.out = nn.Conv2d(WIDTH, devices, 1)
        nn.init.constant_(self.out.bias, -4.0)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (N,D,size,size)."""
        x: Any = None
        for k, m in reversed(list(enumerate(self.standard(maps)))):
            skip = self.skips[k](m)
            x = skip if x is None else skip + _resize(x, m.shape[-1])
            x = x + self.blocks[k](x)
        for block in list(self.blocks)[len(self.skips) :]:
            x = _resize(x, 2 * x.shape[-1])
            x = x + block(x)
        return _resize(self.out(x), self.size)


def _resize(x: Tensor, side: int) -> Tensor:
    return (
        x if x.shape[-1] == side else functional.interpolate(x, size=(side, side), mode="bilinear")
    )


def mask_loss(logits: Tensor, masks: Tensor, known: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice (Milletari et al. 2016) of logits and masks (N,D,H,W). Dice is taken over the
    batch, for each device that it shows: on a device that no image shows it would only reward drawing nothing. Devices
    not ``known`` (N,D) of an image are left out of both."""
    weight = known[:, :, None, None].float()
    target = masks.float() * weight
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight
    drawn = torch.sigmoid(logits) * weight
    both, all_, there = (
        (drawn * target).sum((0, 2, 3)),
        (drawn + target).sum((0, 2, 3)),
        target.any((0, 2, 3)),
    )
    apart = (1 - 2 * both / all_.clamp(min=1e-6)) * there
    pixels = weight.sum() * masks.shape[-1] ** 2
    return entropy.sum() / pixels.clamp(min=1) + apart.sum() / there.sum().clamp(min=1)


# ---- training ------------------------------------------------------------------------------------------------------
def fit_head(
    p: study.Segment,
    train: SegmentationData,
    validation: SegmentationData,
    devices: Sequence[int],
    *,
    progress: Progress = iter,
) -> tuple[Head, np.ndarray, pd.DataFrame]:
    """Train a decoder for ``p.steps`` steps; keep the state with the best validation Dice (`pooled_dice`, each device
    at its best threshold, the mean over devices).

    Returns the head, thresholds (D',) and the curve (step, loss since the last look, dice). A device that no validation
    image shows gets 0.5, with a warning.
    """
    rng = np.random.default_rng(p.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(p.seed)
        head = Decoder(train.maps, len(devices), train.truth.masks.shape[-1]).to(the_device())
    optimizer = torch.optim.AdamW(head.parameters(), lr=p.lr, weight_decay=p.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, p.steps)
    by_threshold: list[np.ndarray] = []  # (BINS - 1, D') of each check

    def batch_loss(index: np.ndarray) -> Tensor:
        index = np.sort(index)  # memory-mapped files are read in order
        return mask_loss(head(train.batch(index)), *train.target(index, devices))

    def validation_dice() -> float:
        by_threshold.append(pooled_dice(head, validation, devices))
        best = by_threshold[-1].max(0)  # (D',) at each device's best threshold
        return float(best[~np.isnan(best)].mean()) if not np.isnan(best).all() else 0.0

    history = fit(
        head,
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
        unseen = ", ".join(DEVICES[d] for d, there in zip(devices, shown, strict=True) if not there)
        warnings.warn(
            f"no validation image shows {unseen}: its threshold stays at 0.5", stacklevel=2
        )
    thresholds = np.full(len(devices), 0.5)
    thresholds[shown] = (best[:, shown].argmax(0) + 1) / BINS
    losses = np.split(history["loss"].to_numpy(), np.flatnonzero(checked) + 1)[:-1]
    curve = pd.DataFrame(
        {
            "step": history.loc[checked, "step"].to_numpy(),
            "loss": [part.mean() for part in losses],
            "dice": history.loc[checked, "score"].to_numpy(),
        }
    )
    return head.eval().requires_grad_(False), thresholds, curve


@torch.inference_mode()
def pooled_dice(head: Head, store: SegmentationData, devices: Sequence[int]) -> np.ndarray:
    """Dice of all pixels of all images together, (BINS - 1, D') at the thresholds 1/BINS ... ; NaN where no image shows
    the device. Images without it count by what is drawn on them."""
    counts = torch.zeros(len(devices) * 2 * BINS, dtype=torch.int64, device=the_device())
    for start in range(0, len(store), CHUNK):
        index = np.arange(start, min(start + CHUNK, len(store)))
        masks, known = store.target(index, devices)
        level = (torch.sigmoid(head(store.batch(index))) * BINS).long().clamp(max=BINS - 1)
        device = torch.arange(len(devices), device=level.device)[:, None, None]
        place = ((device * 2 + masks) * BINS + level)[known]
        counts += torch.bincount(place.flatten(), minlength=len(counts))
    off, on = counts.double().view(len(devices), 2, BINS).cpu().numpy().swapaxes(0, 1)
    true, false = (part[:, ::-1].cumsum(1)[:, ::-1][:, 1:] for part in (on, off))
    total = on.sum(1, keepdims=True)
    return np.where(total > 0, 2 * true / np.maximum(true + false + total, 1), np.nan).T


# ---- scoring -------------------------------------------------------------------------------------------------------
@torch.inference_mode()
def predict(
    head: Head, thresholds: np.ndarray, store: SegmentationData, index: np.ndarray
) -> np.ndarray:
    """Predicted masks (n,D',H,W), bool."""
    level = torch.as_tensor(thresholds, dtype=torch.float32, device=the_device())[:, None, None]
    return (torch.sigmoid(head(store.batch(index))) >= level).cpu().numpy()


def score(
    head: Head,
    thresholds: np.ndarray,
    store: SegmentationData,
    manifest: pd.DataFrame,
    devices: Sequence[int],
) -> pd.DataFrame:
    """One row an image and device that is known: image_id, patient_id, place (in ``store``), device, present, and

    where it is present: dice, iou, cl_dice, pieces (more than the truth's), tip_error_mm, tip_floor_mm (of the true
    mask by the same rule: what no prediction can be asked to beat) and missed (1: nothing was drawn);
    where it is absent: false_alarm (1: something was drawn).
    """
    rows: list[dict[str, Any]] = []
    for start in range(0, len(store), CHUNK):
        index = np.arange(start, min(start + CHUNK, len(store)))
        drawn, truth = predict(head, thresholds, store, index), store.truth.masks[index][:, devices]
        for n, k in zip(*np.nonzero(store.truth.known[index][:, devices]), strict=True):
            p, t, place, device = drawn[n, k], truth[n, k], int(index[n]), devices[k]
            rows.append({"place": place, "device": DEVICES[device], "present": bool(t.any())})
            if not t.any():
                rows[-1] |= {"false_alarm": float(p.any())}
                continue
            lines = measures.skeletons(np.stack([p, t]))
            tip, mm = store.truth.tips[place, device], store.truth.spacing[place]
            errors = measures.tip_error(np.stack([p, t]), np.stack([tip, tip]), mm, skeletons=lines)
            rows[-1] |= {"dice": measures.dice(p, t), "iou": measures.iou(p, t)}
            rows[-1] |= {"cl_dice": measures.cl_dice(p, t, skeletons=(lines[:1], lines[1:]))}
            rows[-1] |= {"pieces": measures.pieces(p, t), "missed": float(not p.any())}
            rows[-1] |= {"tip_error_mm": errors[0], "tip_floor_mm": errors[1]}
    table = pd.DataFrame(rows).reindex(columns=["place", "device", "present", *MEANS, *MEDIANS])
    who = manifest.iloc[table["place"]].reset_index(drop=True)
    return pd.concat([who[["image_id", "patient_id"]], table], axis=1)


def summarise(
    scores: pd.DataFrame, *, resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Metrics of `score`'s table by device, and ``macro`` (their mean), with 95% patient-bootstrap intervals.

    Dicts of task "segmentation", label, metric, value, low, high, n (images with a value), positives (those that show
    the device), n_patients (of the images with a value), ``note`` where there is something to say. Means over images,
    tip errors as medians over the tips that were drawn: read them with ``missed``. A device that too few test images
    show (``false_alarm``: do not show) has a note that says so. Where all resamples are alike, shares and overlaps get
    an exact interval (`small_samples`), counts and distances an unbounded one.
    """
    names, records = list(dict.fromkeys(scores["device"])), []
    for metrics, middle in ((MEANS, np.nanmean), (MEDIANS, np.nanmedian)):
        wide = scores.pivot(
            index=["image_id", "patient_id"], columns="device", values=[*metrics, "present"]
        )
        shape = (len(wide), len(metrics), len(names))
        values = (
            wide[[(metric, name) for metric in metrics for name in names]]
            .to_numpy(np.float64)
            .reshape(shape)
            .copy()
        )
        present = wide["present"][names].to_numpy(np.float64)
        shown = {metric: (present == (metric != "false_alarm")).sum(axis=0) for metric in metrics}
        summary = partial(middles, middle=middle, shape=shape[1:])
        patients = wide.index.get_level_values("patient_id").to_numpy()
        drawn = bootstrap(summary, values, values, groups=patients, resamples=resamples, seed=seed)
        every = zip(summary(values, values), *interval(drawn), strict=True)
        for k, ends in enumerate(every):
            metric, j = divmod(k, len(names) + 1)
            some = slice(None) if j == len(names) else slice(j, j + 1)
            has = (~np.isnan(values.reshape(shape)[:, metric, some])).any(axis=1)
            counts = {"n": int(has.sum()), "positives": int((present[:, some] == 1).sum())}
            counts["n_patients"] = len(np.unique(patients[has]))
            record = {
                "task": "segmentation",
                "label": [*names, "macro"][j],
                "metric": metrics[metric],
            }
            record |= _ends(metrics[metric], ends, counts["n_patients"]) | counts
            if j < len(names):
                what = (
                    "test images do not show it"
                    if metrics[metric] == "false_alarm"
                    else "test images show it"
                )
                record = mark_rare(record, int(shown[metrics[metric]][j]), what)
            elif rare := int((shown[metrics[metric]] < LEAST).sum()):
                record["note"] = f"the mean over {len(names)} devices, {rare} of them {TOO_FEW}"
            records.append(record)
    return records


def _ends(metric: str, ends: tuple[Any, ...], patients: int) -> dict[str, Any]:
    """Value, low, high and, where no interval can be given, ``note`` of a metric's row."""
    value, low, high = map(float, ends)
    if not (value == value and high - low <= FLAT):
        return {"value": value, "low": low, "high": high}
    if metric in BOUNDED:
        low, high = (end.item() for end in exact_interval(value, patients))
        return {"value": value, "low": low, "high": high}
    return {
        "value": value,
        "low": -np.inf,
        "high": np.inf,
        "note": "all resamples alike: no interval can be given",
    }


def middles(
    _: Any, table: np.ndarray, middle: Callable[..., np.ndarray], shape: tuple[int, int]
) -> np.ndarray:
    """Of images x (metrics x devices): each column's middle, a metric's devices and then their mean."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample without the device: NaN
        one = middle(table, axis=0).reshape(shape)
        return np.concatenate([one, np.nanmean(one, axis=1, keepdims=True)], axis=1).ravel()


def run(p: study.Segment, prepared: Prepared, *, progress: Progress = iter) -> dict[str, Any]:
    """Train a head on one frozen encoder and score the test patients.

    Returns ``devices``, ``thresholds`` (by device), ``scores`` (see `score`; ``row`` is that of the prepared data),
    ``metrics`` (see `summarise`), ``curve``, ``cases`` (best, median and worst test image of each device: row, device,
    which, dice, truth and predicted (H,W)), ``test`` (a manifest), ``encoder``, ``maps`` (`maps.FeatureMaps`, of all rows),
    ``head``, ``subject`` and ``info``. Maps are kept below the run's folder while it
    runs. LeakError when a patient of any split was in the encoder's
    pretraining, or a test patient is one of training or validation too, before anything is computed; ValueError for a
    split without masks, a device that training does not show, or what is no frozen encoder with feature maps.
    """
    table: Any = labelled_rows(prepared, p)  # type: ignore[arg-type]
    table = table[known_devices(table).any(1)]
    if table.empty:
        raise ValueError(
            f"no image has a mask: lines and tubes cannot be segmented on {p.data or 'this data'}. Synthetic data has "
            "masks; in a data card `masks` names the column of their paths, a device each (columns mask:DEVICE of the "
            "manifest). Without masks leave `segment` out of the preset"
        )
    parts = []
    for splits, most in ((p.train, p.n_train), (p.validation, p.n_test), (p.test, p.n_test)):
        part = table[table["split"].isin(splits)]
        if part.empty:
            raise ValueError(
                f"no image with masks in splits {splits}; there are some in {sorted(set(table['split']))}"
            )
        parts.append(nested_subset(part, min(most, len(part)), seed=p.seed))
    refuse_overlap(*parts)
    encoder, subject, pretrained = open_subject(p.encoder, prepared.info["size"], p.seed)
    if p.encoder.startswith(SUPERVISED) or not hasattr(encoder, "forward_features"):
        raise ValueError(
            f"encoder: {p.encoder!r} is no frozen encoder of images with feature maps; name one"
        )
    refuse_leak(pretrained, pd.concat(parts), p.encoder)
    home = (
        study.resolve(p.out) if p.out else study.runs_root()
    )  # the system's own place may be small, or in memory
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="maps-", dir=home) as scratch:
        here, rows = Path(scratch), [part["row"].to_numpy() for part in parts]
        how: dict[str, Any] = {"home": here, "progress": progress}
        seen = encode_maps(encoder, prepared, np.concatenate(rows), p.layers, **how)
        stores = [
            with_masks(seen, prepared, some, here / f"{k}", progress=progress)
            for k, some in enumerate(rows)
        ]
        shown = [DEVICES[k] for k in np.flatnonzero(stores[0].truth.masks.any((0, 2, 3)))]
        wrong = sorted(set(p.devices) - set(shown))
        if wrong or not shown:
            one = repr(wrong[0]) if wrong else "any"
            raise ValueError(
                f"devices: no training image shows {one}; they show {', '.join(shown) or 'none'}"
            )
        names = [name for name in shown if name in (p.devices or shown)]
        devices = [DEVICES.index(name) for name in names]
        head, thresholds, curve = fit_head(p, stores[0], stores[1], devices, progress=progress)
        scores = score(head, thresholds, stores[2], parts[2], devices)
        cases = _cases(head, thresholds, stores[2], scores, devices)
    subject = subject | {"trained_on": subject.get("institution")}
    subject = subject | {
        key: prepared.info.get(key) for key in ("kind", "institution", "generator")
    }
    subject |= {"data": Path(p.data).name, "patients": patients_hash(pd.concat(parts))}
    info: dict[str, Any] = {
        f"{name}_images": len(part)
        for name, part in zip(("train", "validation", "test"), parts, strict=True)
    }
    info |= {"weights": sum(w.numel() for w in head.parameters())}
    info |= {
        "maps": [
            f"{c} x {side} x {side}" for c, side in zip(head.channels, head.sides, strict=True)
        ]
    }
    return {
        "devices": names,
        "thresholds": dict(zip(names, thresholds.tolist(), strict=True)),
        "scores": scores.assign(row=rows[2][scores["place"]]).drop(columns="place"),
        "metrics": summarise(scores, resamples=p.resamples, seed=p.seed),
        "curve": curve,
        "cases": [case | {"row": int(rows[2][case.pop("place")])} for case in cases],
        "test": parts[2],
        "encoder": encoder,
        "maps": seen,
        "head": head,
        "subject": subject,
        "info": info,
    }


def _cases(
    head: Head,
    thresholds: np.ndarray,
    store: SegmentationData,
    scores: pd.DataFrame,
    devices: Sequence[int],
) -> list[dict[str, Any]]:
    """The best, the median and the worst test image of each device by Dice."""
    cases = []
    for k, device in enumerate(devices):
        ranked = scores[(scores["device"] == DEVICES[device]) & scores["present"]]
        ranked = ranked.sort_values("dice", ascending=False, kind="stable")
        for which, at in (
            (("best", 0), ("median", len(ranked) // 2), ("worst", -1)) if len(ranked) else ()
        ):
            place, dice = int(ranked["place"].iloc[at]), float(ranked["dice"].iloc[at])
            drawn = predict(head, thresholds, store, np.array([place]))[0, k]
            case = {
                "place": place,
                "device": DEVICES[device],
                "which": which,
                "dice": dice,
                "predicted": drawn,
            }
            cases.append(case | {"truth": np.array(store.truth.masks[place, device])})
    return cases
