"""Segment lines and tubes from the feature maps of a frozen encoder.

A small decoder (about 100,000 weights) is trained on the maps. The training step and the threshold
of each device are chosen on validation patients. Test patients are scored once.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data.images import Prepared
from cxrstudy.data.vocabulary import DEVICES
from cxrstudy.evaluate import masks
from cxrstudy.evaluate.cohort import Split, cap_split, select_rows, split_rows
from cxrstudy.evaluate.decoder import Decoder, fit_decoder, predict
from cxrstudy.evaluate.maps import CHUNK, SegmentationData, encode_maps, known_devices, with_masks
from cxrstudy.evaluate.metrics import bootstrap, interval
from cxrstudy.evaluate.protocol import open_frozen_encoder
from cxrstudy.evaluate.small_samples import FLAT, LEAST, TOO_FEW, exact_interval, mark_rare
from cxrstudy.progress import Progress

MEANS = ("dice", "iou", "cl_dice", "pieces", "missed", "false_alarm")
BOUNDED = ("dice", "iou", "cl_dice", "missed", "false_alarm")  # in [0, 1]
MEDIANS = ("tip_error_mm", "tip_floor_mm")  # one tip at the wrong end would dominate a mean


# ---- scoring -------------------------------------------------------------------------------------
def score(
    decoder: Decoder,
    thresholds: np.ndarray,
    data: SegmentationData,
    manifest: pd.DataFrame,
    devices: Sequence[int],
) -> pd.DataFrame:
    """Return the metrics of each image and device whose mask is known, a row each.

    Columns: image_id, patient_id, place (index in ``data``), device, present. Where it is present:
    dice, iou, cl_dice, pieces (number of components more than the truth has), tip_error_mm,
    tip_floor_mm (that of the true mask, whose tip the same rule has to find) and missed (1 = the
    predicted mask is empty). Where it is absent: false_alarm (1 = the predicted mask is not empty).
    """
    rows: list[dict[str, Any]] = []
    for start in range(0, len(data), CHUNK):
        index = np.arange(start, min(start + CHUNK, len(data)))
        predicted = predict(decoder, thresholds, data, index)
        truth, known = data.truth.masks[index][:, devices], data.truth.known[index][:, devices]
        for n, k in zip(*np.nonzero(known), strict=True):
            p, t, place, device = predicted[n, k], truth[n, k], int(index[n]), devices[k]
            row = {"place": place, "device": DEVICES[device], "present": bool(t.any())}
            if t.any():
                row |= _compare(p, t, data.truth.tips[place, device], data.truth.spacing[place])
            else:
                row["false_alarm"] = float(p.any())
            rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=["place", "device", "present", *MEANS, *MEDIANS])
    images = manifest.iloc[table["place"]].reset_index(drop=True)
    return pd.concat([images[["image_id", "patient_id"]], table], axis=1)


def _compare(p: np.ndarray, t: np.ndarray, tip: np.ndarray, spacing: float) -> dict[str, Any]:
    """Return the metrics of a predicted mask and a true one (H,W), as `score` says."""
    both = np.stack([p, t])
    lines = masks.skeletons(both)
    errors = masks.tip_error(both, np.stack([tip, tip]), spacing, skeletons=lines)
    return {
        "dice": masks.dice(p, t),
        "iou": masks.iou(p, t),
        "cl_dice": masks.cl_dice(p, t, skeletons=(lines[:1], lines[1:])),
        "pieces": masks.num_components(p, t),
        "missed": float(not p.any()),
        "tip_error_mm": errors[0],
        "tip_floor_mm": errors[1],
    }


def summarise(
    scores: pd.DataFrame, *, resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the metrics of `score`'s table by device and as ``macro``, the mean over devices.

    They are means over images, and medians over the tips that were found (to be read with
    ``missed``), with 95% patient-bootstrap intervals. If all resamples are equal, metrics in [0, 1]
    get an exact interval (`small_samples`), counts and distances an unbounded one.

    Returns:
        Dicts of task "segmentation", label, metric, value, low, high, n (images with a value),
        positives (images that show the device), n_patients and, if any, note. A device that too few
        test images show has a note.
    """
    groups = ((MEANS, np.nanmean), (MEDIANS, np.nanmedian))
    return [
        row
        for metrics, statistic in groups
        for row in _summarise(scores, metrics, statistic, resamples=resamples, seed=seed)
    ]


def _summarise(
    scores: pd.DataFrame,
    metrics: Sequence[str],
    statistic: Callable[..., np.ndarray],
    *,
    resamples: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of some metrics; ``statistic`` is taken over images."""
    names = list(dict.fromkeys(scores["device"]))
    keys = ["image_id", "patient_id"]
    wide = scores.pivot(index=keys, columns="device", values=[*metrics, "present"])
    shape = (len(wide), len(metrics), len(names))
    columns = [(metric, name) for metric in metrics for name in names]
    values = wide[columns].to_numpy(np.float64).reshape(shape).copy()
    present = wide["present"][names].to_numpy(np.float64)
    patients = wide.index.get_level_values("patient_id").to_numpy()
    summary = partial(macro_statistics, statistic=statistic, shape=shape[1:])
    draws = bootstrap(summary, values, values, groups=patients, resamples=resamples, seed=seed)
    for k, ends in enumerate(zip(summary(values, values), *interval(draws), strict=True)):
        m, j = divmod(k, len(names) + 1)
        metric, index = metrics[m], slice(None) if j == len(names) else slice(j, j + 1)
        known = (~np.isnan(values[:, m, index])).any(axis=1)
        counts = {"n": int(known.sum()), "positives": int((present[:, index] == 1).sum())}
        counts["n_patients"] = len(np.unique(patients[known]))
        row = {"task": "segmentation", "label": [*names, "macro"][j], "metric": metric}
        row |= _ends(metric, ends, counts["n_patients"]) | counts
        shown = (present == (metric != "false_alarm")).sum(
            axis=0
        )  # images that the metric rests on
        if j < len(names):
            does = "do not show" if metric == "false_alarm" else "show"
            row = mark_rare(row, int(shown[j]), f"test images {does} it")
        elif rare := int((shown < LEAST).sum()):
            row["note"] = f"the mean over {len(names)} devices, {rare} of them {TOO_FEW}"
        yield row


def _ends(metric: str, ends: tuple[Any, ...], patients: int) -> dict[str, Any]:
    """Return value, low and high of a metric's row and, if no interval can be given, a note."""
    value, low, high = map(float, ends)
    if not (value == value and high - low <= FLAT):
        return {"value": value, "low": low, "high": high}
    if metric in BOUNDED:
        low, high = (end.item() for end in exact_interval(value, patients))
        return {"value": value, "low": low, "high": high}
    note = "all resamples alike: no interval can be given"
    return {"value": value, "low": -np.inf, "high": np.inf, "note": note}


def macro_statistics(
    _: Any, values: np.ndarray, statistic: Callable[..., np.ndarray], shape: tuple[int, int]
) -> np.ndarray:
    """Return a statistic over images by metric and device, and each metric's mean over devices.

    Args:
        values: Values (N,M,D), or (N,M*D), of N images, M metrics and D devices.
        statistic: Taken over the images, as ``np.nanmean``.
        shape: (M,D).

    Returns:
        (M*(D+1),): of each metric its D devices, then their mean.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample without the device: NaN
        one = statistic(values, axis=0).reshape(shape)
        return np.concatenate([one, np.nanmean(one, axis=1, keepdims=True)], axis=1).ravel()


# ---- the run -------------------------------------------------------------------------------------
def run(p: study.Segment, prepared: Prepared, *, progress: Progress = iter) -> dict[str, Any]:
    """Train a decoder on one frozen encoder and score the test patients.

    Feature maps are kept below the run's folder while it runs.

    Returns:
        ``devices``; ``thresholds`` by device; ``scores`` (see `score`; ``row`` in the data set);
        ``metrics`` (see `summarise`); ``curve`` (see `fit_decoder`); ``cases``: the best, median
        and worst test image of each device (row, device, which, dice, truth and predicted (H,W));
        ``test`` (a manifest); ``encoder``; ``maps`` (`maps.FeatureMaps` of all rows); ``head`` (the
        decoder); ``subject``; ``info``.

    Raises:
        LeakError: A patient was in the encoder's pretraining, or a test patient is in another part
            too.
        ValueError: A split has no masks, training does not show a device, or the encoder is not a
            frozen one with feature maps.
    """
    split = _select(p, prepared)
    encoder, subject = open_frozen_encoder(p, prepared, split, "feature maps")
    # the system's own temporary folder may be small, or in memory
    home = study.resolve(p.out) if p.out else study.runs_root()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="maps-", dir=home) as folder:
        here, rows = Path(folder), [part["row"].to_numpy() for part in split]
        how: dict[str, Any] = {"home": here, "progress": progress}
        maps = encode_maps(encoder, prepared, np.concatenate(rows), p.layers, **how)
        train, validation, test = (
            with_masks(maps, prepared, some, here / f"{k}", progress=progress)
            for k, some in enumerate(rows)
        )
        names = _devices(p, train)
        devices = [DEVICES.index(name) for name in names]
        decoder, thresholds, curve = fit_decoder(p, train, validation, devices, progress=progress)
        scores = score(decoder, thresholds, test, split.test, devices)
        cases = _cases(decoder, thresholds, test, scores, devices)
    shapes = zip(decoder.channels, decoder.sides, strict=True)
    info: dict[str, Any] = {
        **{f"{name}_images": len(part) for name, part in split._asdict().items()},
        "weights": sum(weight.numel() for weight in decoder.parameters()),
        "maps": [f"{channels} x {side} x {side}" for channels, side in shapes],
    }
    return {
        "devices": names,
        "thresholds": dict(zip(names, thresholds.tolist(), strict=True)),
        "scores": scores.assign(row=rows[2][scores["place"]]).drop(columns="place"),
        "metrics": summarise(scores, resamples=p.resamples, seed=p.seed),
        "curve": curve,
        "cases": [case | {"row": int(rows[2][case.pop("place")])} for case in cases],
        "test": split.test,
        "encoder": encoder,
        "maps": maps,
        "head": decoder,
        "subject": subject,
        "info": info,
    }


def _select(p: study.Segment, prepared: Prepared) -> Split:
    """Return the rows with masks, capped."""
    table = select_rows(prepared, p.within, source=p.data)
    table = table[known_devices(table).any(1)]
    if table.empty:
        raise ValueError(
            f"no image has a mask: lines and tubes cannot be segmented on {p.data or 'this data'}. "
            "Synthetic data has masks; in a data card `masks` names the column of their paths, a "
            "device each (columns mask:DEVICE of the manifest). Without masks leave `segment` out "
            "of the preset"
        )
    split = split_rows(table, (p.train, p.validation, p.test), "image with masks")
    return cap_split(split, (p.n_train, p.n_test, p.n_test), p.seed)


def _devices(p: study.Segment, train: SegmentationData) -> list[str]:
    """Return the devices to segment: those asked for, or all that the training images show."""
    shown = [DEVICES[k] for k in np.flatnonzero(train.truth.masks.any((0, 2, 3)))]
    wrong = sorted(set(p.devices) - set(shown))
    if wrong or not shown:
        one = repr(wrong[0]) if wrong else "any"
        raise ValueError(
            f"devices: no training image shows {one}; they show {', '.join(shown) or 'none'}"
        )
    return [name for name in shown if name in (p.devices or shown)]


def _cases(
    decoder: Decoder,
    thresholds: np.ndarray,
    data: SegmentationData,
    scores: pd.DataFrame,
    devices: Sequence[int],
) -> list[dict[str, Any]]:
    """Return the best, the median and the worst test image of each device by Dice."""
    cases = []
    for k, device in enumerate(devices):
        ranked = scores[(scores["device"] == DEVICES[device]) & scores["present"]]
        ranked = ranked.sort_values("dice", ascending=False, kind="stable")
        if ranked.empty:
            continue
        for which, at in (("best", 0), ("median", len(ranked) // 2), ("worst", -1)):
            row = ranked.iloc[at]
            place = int(row["place"])
            case = {"place": place, "device": DEVICES[device], "which": which}
            case |= {
                "dice": float(row["dice"]),
                "predicted": predict(decoder, thresholds, data, np.array([place]))[0, k],
                "truth": np.array(data.truth.masks[place, device]),
            }
            cases.append(case)
    return cases
