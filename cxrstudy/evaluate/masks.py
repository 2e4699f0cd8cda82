"""How well masks of lines and tubes agree: overlap, centre lines, broken pieces, and where the tip lies.

Masks are bool arrays (N,H,W), or (H,W) for one; each function gives (N,) numbers, or one. What is not defined is NaN,
never 0 or 1, so that nobody averages it in by mistake:

| truth | prediction | dice, iou, cl_dice | pieces | tip_error |
|---|---|---|---|---|
| empty | empty | NaN: nothing to find, nothing found | 0 | NaN |
| empty | not | 0 | those of the prediction | NaN |
| not | empty | 0 | NaN: nothing that could be broken | NaN: a miss, to be counted beside the errors |

Skeletons are scikit-image's (Zhang and Suen 1984), but thinned within the bounding box of a mask and once a mask: a
line fills a small part of its image, what lies outside the box is empty, and so the skeleton is the same to the pixel.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Points = NDArray[np.int64]  # (K,2): row and column of each pixel of a skeleton
_AROUND = [(down, right) for down in (0, 1, 2) for right in (0, 1, 2) if (down, right) != (1, 1)]


def dice(pred: ArrayLike, truth: ArrayLike) -> Any:
    """2 |P and T| / (|P| + |T|). ValueError: masks that are not bool, or of other shapes."""
    return _each(_overlap, pred, truth, 2.0, 0.0)


def iou(pred: ArrayLike, truth: ArrayLike) -> Any:
    """|P and T| / |P or T| (Jaccard); dice = 2 iou / (1 + iou). Otherwise as `dice`."""
    return _each(_overlap, pred, truth, 1.0, 1.0)


def cl_dice(
    pred: ArrayLike,
    truth: ArrayLike,
    *,
    skeletons: tuple[Sequence[Points], Sequence[Points]] | None = None,
) -> Any:
    """Centre-line Dice (Shit et al., CVPR 2021): the harmonic mean of the shares of P's skeleton within T, and of T's
    within P. A gap or a detour costs by its length, whatever the tube's width. Otherwise as `dice`.

    ``skeletons``: of P and T, where `skeletons` has made them already. Thinning peels one side first: where lines are
    some pixels wide, a mirrored pair may differ by what a few pixels weigh.
    """
    p, t, single = _pair(pred, truth)
    lines_p, lines_t = skeletons or (_skeletons(p), _skeletons(t))
    values = np.full(len(p), np.nan)
    for n, (line_p, line_t) in enumerate(zip(lines_p, lines_t, strict=True)):
        if len(line_p) and len(line_t):
            precision, recall = t[n][tuple(line_p.T)].mean(), p[n][tuple(line_t.T)].mean()
            values[n] = 2 * precision * recall / max(precision + recall, 1e-300)
        elif len(line_p) or len(line_t):
            values[n] = 0.0
    return values[0] if single else values


def num_components(pred: ArrayLike, truth: ArrayLike | None = None) -> Any:
    """The number of a mask's 8-connected pieces; with ``truth`` how many more than the truth has: 0 = as whole as the
    truth, 2 = broken twice (or with stray spots), below 0 = joined where the truth is not."""
    if truth is None:
        masks, single = _masks(pred, "pred")
        counts = np.array([_num_components(mask) for mask in masks], dtype=np.float64)
        return counts[0] if single else counts
    return _each(
        lambda p, t: np.nan if t.any() and not p.any() else _num_components(p) - _num_components(t), pred, truth
    )


def tips(masks: ArrayLike, *, skeletons: Sequence[Points] | None = None) -> Floats:
    """Where the tip of each mask's device lies, (N,2): column and row in px; NaN for an empty mask.

    The rule needs no truth. The ends are the skeleton's pixels with at most one neighbour (all its pixels, if it is
    closed). Devices enter over neck, arm or chest wall, never from below: the end nearest to the upper, left or right
    edge of the image is the entry; the tip is the end farthest from it. On 1,062 frontal devices of the synthetic
    institution at 64 px this is within 20 mm of the true tip for 97 to 100%, median 2.5 to 3.9 mm (a skeleton stops
    short of its mask's end), but for Swan-Ganz catheters: they cross themselves, and the rule misses 60% (at 256 px
    21%). So judge a tip error beside that of the true mask (`segmentation` reports both).
    """
    array, single = _masks(masks, "masks")
    found = np.array(
        [_tip(line, array.shape[1:]) for line in skeletons or _skeletons(array)]
    ).reshape(-1, 2)
    return found[0] if single else found


def tip_error(
    pred: ArrayLike,
    truth: ArrayLike,
    spacing: ArrayLike = 1.0,
    *,
    skeletons: Sequence[Points] | None = None,
) -> Any:
    """Distance in mm from the tip of the predicted mask (`tips`) to the true tip.

    ``truth``: true masks, bool as ``pred``, whose tips are found by the same rule, or the tips themselves (N,2), column
    and row in px. ``spacing``: mm a pixel, one number or (N,). NaN where the prediction is empty (a miss: count it, it
    is no error of 0) or no true tip is known. ValueError: shapes that do not fit.
    """
    p, single = _masks(pred, "pred")
    true = np.asarray(truth)
    true = tips(true) if true.dtype == bool else true.astype(np.float64)
    true = true[None] if true.ndim == 1 else true
    mm = np.asarray(spacing, dtype=np.float64)
    if true.shape != (len(p), 2) or mm.shape not in ((), (len(p),)):
        raise ValueError(
            f"{len(p)} masks need as many tips and spacings, got shapes {true.shape} and {mm.shape}"
        )
    found = tips(p, skeletons=skeletons)
    errors = np.hypot(*(found - true).T) * mm
    return errors[0] if single else errors


def skeletons(masks: ArrayLike) -> list[Points]:
    """The skeleton of each mask as the rows and columns of its pixels, (K,2), in the order of ``argwhere``; (0,2) for
    an empty one."""
    return list(_skeletons(_masks(masks, "masks")[0]))


def _skeletons(masks: Bools) -> Iterator[Points]:
    """One after the other: whoever needs each but once holds one at a time."""
    from skimage.morphology import (
        skeletonize,
    )  # half a second to import, which not everyone who scores needs

    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            yield np.argwhere(skeletonize(box)) + np.array([rows[0], columns[0]])
        else:
            yield np.zeros((0, 2), np.int64)


def _tip(line: Points, shape: tuple[int, ...]) -> Floats:
    if not len(line):
        return np.full(2, np.nan)
    first = line.min(0)
    around = np.zeros(line.max(0) - first + 3, dtype=np.int64)
    rows, columns = (line - first).T
    around[rows + 1, columns + 1] = 1
    neighbours = sum(around[rows + down, columns + right] for down, right in _AROUND)
    ends = line[neighbours <= 1]
    ends = ends if len(ends) else line
    entry = ends[np.minimum(ends.min(1), shape[1] - 1 - ends[:, 1]).argmin()]
    return ends[((ends - entry) ** 2).sum(1).argmax()][::-1].astype(np.float64)


def _overlap(p: Bools, t: Bools, both_weight: float, less: float) -> float:
    both, all_ = np.count_nonzero(p & t), np.count_nonzero(p) + np.count_nonzero(t)
    return both_weight * both / (all_ - less * both) if all_ else np.nan


def _num_components(mask: Bools) -> int:
    return ndimage.label(mask, np.ones((3, 3)))[1]


def _each(measure: Any, pred: ArrayLike, truth: ArrayLike, *more: float) -> Any:
    """``measure`` of each pair; one at a time, so that a thousand large masks need no copy of themselves."""
    p, t, single = _pair(pred, truth)
    values = np.array([measure(a, b, *more) for a, b in zip(p, t, strict=True)], dtype=np.float64)
    return values[0] if single else values


def _pair(pred: ArrayLike, truth: ArrayLike) -> tuple[Bools, Bools, bool]:
    (p, single), (t, _) = _masks(pred, "pred"), _masks(truth, "truth")
    if np.shape(pred) != np.shape(truth):
        raise ValueError(
            f"pred has shape {np.shape(pred)}, truth has {np.shape(truth)}: they must be equal"
        )
    return p, t, single


def _masks(values: ArrayLike, name: str) -> tuple[Bools, bool]:
    array = np.asarray(values)
    if array.dtype != bool:
        raise ValueError(
            f"{name} must be bool, got {array.dtype}; compare a probability with its threshold first"
        )
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} must be (N,H,W) or (H,W), got shape {array.shape}")
    return (array[None], True) if array.ndim == 2 else (array, False)
