"""Continuity: how much the patches along a tube resemble the patch at its tip."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from cxrstudy.data.images import Prepared
from cxrstudy.data.vocabulary import DEVICES
from cxrstudy.evaluate.maps import CHUNK, load_masks, maps_of
from cxrstudy.evaluate.metrics import auroc, bootstrap, interval
from cxrstudy.evaluate.segmentation import macro_statistics
from cxrstudy.evaluate.small_samples import set_aside, with_width
from cxrstudy.progress import Progress


def similarity(maps: Sequence[Tensor], tip: np.ndarray, size: int) -> list[np.ndarray]:
    """Return the cosine similarity (h,w) of every patch to the one at a tip, a map (1,C,h,w) each.

    Args:
        tip: Column and row in px of an image of ``size``.
    """
    out = []
    for one in maps:
        flat = functional.normalize(one[0].double(), dim=0)  # (C,h,w)
        row, column = _patch(tip, size, flat.shape[1])
        out.append(torch.einsum("chw,c->hw", flat, flat[:, row, column]).cpu().numpy())
    return out


def _patch(tip: np.ndarray, size: int, side: int) -> tuple[int, int]:
    """Return row and column of the patch that contains a tip (column, row)."""
    column, row = np.minimum((np.asarray(tip) + 0.5) / size * side, side - 1).astype(int).tolist()
    return row, column


def _nearness(tip: np.ndarray, size: int, side: int) -> np.ndarray:
    """Return minus the distance of each patch (side,side) to that of the tip."""
    row, column = _patch(tip, size, side)
    return -np.hypot(*np.ogrid[-row : side - row, -column : side - column])


def continuity(
    encoder: Any,
    prepared: Prepared,
    rows: np.ndarray,
    layers: int,
    *,
    devices: Sequence[str] = DEVICES,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = iter,
) -> dict[str, Any]:
    """Measure by layer whether patches along a tube resemble the patch at its tip.

    For every tube whose tip is in the image: the AUROC with which the cosine similarity to the
    patch at the tip separates other patches that contain some of the tube from those that contain
    none. The paper shows such maps of chest tubes; the metric is ours. A grid that is too coarse
    for a tube (no second patch on it, or none beside it) gives NaN.

    Args:
        encoder: An encoder, or `maps.FeatureMaps`.
        rows: Rows of the data set.
        layers: Number of layers.

    Returns:
        ``tubes``: a row a tube: image_id, patient_id, row, device, tip_column, tip_row, and its
        AUROC by layer ("layer-1" is the last). "nearness-16" is a baseline without the image:
        patches of a 16 x 16 grid ranked by their distance to the tip, one for each grid of a layer.
        ``metrics``: dicts of task "continuity", label (the layer), metric "auroc" (mean over tubes,
        95% patient-bootstrap interval), n (tubes), positives (patches on them), n_patients, grid
        (patches a side). ``example``: the tube of median AUROC over layers: device, row, tip, mask,
        and ``maps``, the similarity (h,w) by layer.

    Raises:
        ValueError: No tip is in any image.
    """
    table, grids, positives = _measure(encoder, prepared, rows, layers, devices, progress)
    if table.empty:
        raise ValueError(
            f"none of {len(rows)} images shows the tip of a tube ({', '.join(devices)})"
        )
    metrics = _metrics(table, grids, positives, resamples, seed)
    layered = table[[label for label in grids if label.startswith("layer")]].mean(axis=1)
    layered = layered.sort_values(kind="stable")
    tube = table.loc[layered.index[layered.notna().sum() // 2]].to_dict()
    tip, row = np.array([tube["tip_column"], tube["tip_row"]]), np.array([tube["row"]])
    maps = maps_of(encoder, prepared, row, layers)
    found = similarity(maps, tip, int(prepared.info["size"]))
    example = {
        "device": tube["device"],
        "row": tube["row"],
        "tip": tip,
        "maps": dict(zip(grids, found, strict=False)),
        "mask": load_masks(prepared, row).masks[0, DEVICES.index(tube["device"])],
    }
    return {"tubes": table, "metrics": metrics, "example": example}


def _measure(
    encoder: Any,
    prepared: Prepared,
    rows: np.ndarray,
    layers: int,
    devices: Sequence[str],
    progress: Progress,
) -> tuple[pd.DataFrame, dict[str, int], dict[str, int]]:
    """Return the table of tubes, and the grid and the number of positive patches by label."""
    size, tubes = int(prepared.info["size"]), []
    grids: dict[str, int] = {}
    positives: dict[str, int] = {}
    for start in progress(range(0, len(rows), CHUNK)):
        few = np.asarray(rows)[start : start + CHUNK]
        truth, maps = load_masks(prepared, few), maps_of(encoder, prepared, few, layers)
        sides = dict.fromkeys(m.shape[-1] for m in maps)
        grids = {f"layer{k - len(maps)}": m.shape[-1] for k, m in enumerate(maps)}
        grids |= {f"nearness-{side}": side for side in sides}
        for n, k in np.argwhere(truth.masks.any((2, 3)) & ~np.isnan(truth.tips).any(2)):
            if DEVICES[k] not in devices:
                continue
            tip, image = truth.tips[n, k], prepared.manifest.iloc[few[n]]
            mask = torch.from_numpy(truth.masks[n, k])[None, None].float()
            tube: dict[str, Any] = {key: image[key] for key in ("image_id", "patient_id")}
            tube |= {"row": int(few[n]), "device": DEVICES[k]}
            tube |= {"tip_column": tip[0], "tip_row": tip[1]}
            values = similarity([m[n : n + 1] for m in maps], tip, size)
            values += [_nearness(tip, size, side) for side in sides]
            for label, scores in zip(grids, values, strict=True):
                on = functional.adaptive_max_pool2d(mask, len(scores))[0, 0].numpy() > 0
                other = np.ones(on.shape, bool)
                other[_patch(tip, size, len(on))] = False
                tube[label] = float(auroc(on[other], scores[other])[0])
                positives[label] = positives.get(label, 0) + int(on[other].sum())
            tubes.append(tube)
    return pd.DataFrame(tubes), grids, positives


def _metrics(
    table: pd.DataFrame,
    grids: dict[str, int],
    positives: dict[str, int],
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the metric rows of `continuity`."""
    values, patients = table[list(grids)].to_numpy(np.float64), table["patient_id"].to_numpy()
    # each column twice: alone, and as a mean of one
    mean = partial(macro_statistics, statistic=np.nanmean, shape=(len(grids), 1))
    draws = bootstrap(mean, values, values, groups=patients, resamples=resamples, seed=seed)
    ends, metrics = interval(draws), []
    for k, (label, grid) in enumerate(grids.items()):
        value, low, high = (float(part[2 * k]) for part in (mean(values, values), *ends))
        known = ~np.isnan(values[:, k])
        count = len(np.unique(patients[known]))
        low, high, _ = (end.item() for end in with_width(low, high, value, count))
        row: dict[str, Any] = {"task": "continuity", "label": label, "metric": "auroc"}
        row |= {"value": value, "low": low, "high": high, "n": int(known.sum())}
        metrics.append(row | {"positives": positives[label], "n_patients": count, "grid": grid})
    return set_aside(metrics)
