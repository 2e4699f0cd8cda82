"""Do an encoder's patches hold together along a tube? (The paper's picture of continuity, with a number beside it.)"""

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
    """Cosine similarity of the patch at a tip (column, row in px of an image of ``size``) to every patch: (h,w) for
    each map (1,C,h,w)."""
    out = []
    for found in maps:
        flat = functional.normalize(found[0].double(), dim=0)
        row, column = _patch(tip, size, flat.shape[1])
        out.append(torch.einsum("chw,c->hw", flat, flat[:, row, column]).cpu().numpy())
    return out


def _patch(tip: np.ndarray, size: int, side: int) -> tuple[int, int]:
    """Row and column of the patch that holds a tip (column, row)."""
    column, row = np.minimum((np.asarray(tip) + 0.5) / size * side, side - 1).astype(int).tolist()
    return row, column


def _nearness(tip: np.ndarray, size: int, side: int) -> np.ndarray:
    """How near each patch (side,side) is to that of the tip: 0, or below."""
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
    """Do patches along a tube resemble each other? For every tube of the rows whose tip lies in the image, by layer:
    the AUROC with which the cosine similarity to the patch at the tip tells other patches that hold some of the tube
    from those that hold none. (The paper shows such maps of chest tubes; the number beside them is ours.)

    Returns ``tubes`` (a row a tube: image_id, patient_id, row, device, tip_column, tip_row, and its AUROC in a column a
    layer: "layer-1" is the last; "nearness-16", one for each grid that a layer has, is a control that sees no image:
    patches of 16 x 16 ranked by their distance to the tip; compare a layer with that of its own grid), ``metrics``
    (dicts of task "continuity", label: the layer, metric "auroc": the mean over tubes with its 95% patient-bootstrap
    interval, n: tubes, positives: patches on them, grid: patches a side) and ``example`` (the tube of median AUROC over
    layers: device, row, tip, mask, and ``maps``, the similarity (h,w) by layer). A grid too coarse for a tube (no
    second patch on it, or none beside it) counts as NaN. ValueError: no tip in any image.
    """
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
            tip, mask = truth.tips[n, k], torch.from_numpy(truth.masks[n, k])[None, None].float()
            tube: dict[str, Any] = {
                key: prepared.manifest[key].iloc[few[n]] for key in ("image_id", "patient_id")
            }
            tube |= {
                "row": int(few[n]),
                "device": DEVICES[k],
                "tip_column": tip[0],
                "tip_row": tip[1],
            }
            alike, near = (
                similarity([m[n : n + 1] for m in maps], tip, size),
                [_nearness(tip, size, s) for s in sides],
            )
            for label, values in zip(grids, alike + near, strict=True):
                on = functional.adaptive_max_pool2d(mask, len(values))[0, 0].numpy() > 0
                other = np.ones(on.shape, bool)
                other[_patch(tip, size, len(on))] = False
                tube[label] = float(auroc(on[other], values[other])[0])
                positives[label] = positives.get(label, 0) + int(on[other].sum())
            tubes.append(tube)
    if not tubes:
        raise ValueError(
            f"none of {len(rows)} images shows the tip of a tube ({', '.join(devices)})"
        )
    table = pd.DataFrame(tubes)
    values, patients = table[list(grids)].to_numpy(np.float64), table["patient_id"].to_numpy()
    mean = partial(
        macro_statistics, statistic=np.nanmean, shape=(len(grids), 1)
    )  # each twice: alone, and as a mean of one
    ends = interval(
        bootstrap(mean, values, values, groups=patients, resamples=resamples, seed=seed)
    )
    metrics = []
    for k, (label, grid) in enumerate(grids.items()):
        value, low, high = (float(part[2 * k]) for part in (mean(values, values), *ends))
        known = ~np.isnan(values[:, k])
        held = len(np.unique(patients[known]))
        low, high, _ = (end.item() for end in with_width(low, high, value, held))
        counts = {
            "n": int(known.sum()),
            "positives": positives[label],
            "n_patients": held,
            "grid": grid,
        }
        record = {
            "task": "continuity",
            "label": label,
            "metric": "auroc",
            "value": value,
            "low": low,
            "high": high,
        }
        metrics.append(record | counts)
    metrics = set_aside(metrics)
    layered = (
        table[[label for label in grids if label.startswith("layer")]]
        .mean(axis=1)
        .sort_values(kind="stable")
    )
    tube = table.loc[layered.index[layered.notna().sum() // 2]].to_dict()
    tip = np.array([tube["tip_column"], tube["tip_row"]])
    only = np.array([tube["row"]])
    found = similarity(maps_of(encoder, prepared, only, layers), tip, size)
    example = {
        "device": tube["device"],
        "row": tube["row"],
        "tip": tip,
        "maps": dict(zip(grids, found, strict=False)),
    }
    example["mask"] = load_masks(prepared, only).masks[0, DEVICES.index(tube["device"])]
    return {"tubes": table, "metrics": metrics, "example": example}
