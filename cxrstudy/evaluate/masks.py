"""Metrics of masks of lines and tubes: overlap, centre lines, components, and tip position.

Masks are bool arrays (N,H,W), or (H,W) for one. Each function returns (N,) numbers, or one. What is
not defined is NaN, never 0 or 1, so that it is not averaged by mistake:

| truth | prediction | dice, iou, cl_dice | num_components | tip_error |
|---|---|---|---|---|
| empty | empty | NaN: nothing to find, nothing found | 0 | NaN |
| empty | not empty | 0 | those of the prediction | NaN |
| not empty | empty | 0 | NaN: nothing that could be broken | NaN: a miss, counted apart |

Skeletons are scikit-image's (Zhang and Suen 1984), computed once a mask and within its bounding
box. A line fills a small part of its image, so this is faster, and the skeleton is the same to the
pixel.
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
    """Return 2 |P and T| / (|P| + |T|) of predicted and true masks.

    Raises:
        ValueError: Masks are not bool, or shapes differ.
    """
    return _each(_overlap, pred, truth, 2.0, 0.0)


def iou(pred: ArrayLike, truth: ArrayLike) -> Any:
    """Return |P and T| / |P or T| (Jaccard); dice = 2 iou / (1 + iou). Otherwise as `dice`."""
    return _each(_overlap, pred, truth, 1.0, 1.0)


def cl_dice(
    pred: ArrayLike,
    truth: ArrayLike,
    *,
    skeletons: tuple[Sequence[Points], Sequence[Points]] | None = None,
) -> Any:
    """Return the centre-line Dice (Shit et al., CVPR 2021). Otherwise as `dice`.

    It is the harmonic mean of the shares of P's skeleton within T, and of T's within P. A gap or a
    detour costs by its length, whatever the tube's width. Thinning removes one side first: where
    lines are some pixels wide, a mirrored pair may differ by a few pixels.

    Args:
        skeletons: Those of P and T, if `skeletons` has computed them already.
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
    """Return the number of 8-connected components of a mask, or how many more than the truth has.

    With ``truth``, 0 is as whole as the truth, 2 is broken twice (or has false spots), and below 0
    is joined where the truth is not.
    """
    if truth is None:
        masks, single = _masks(pred, "pred")
        counts = np.array([_num_components(mask) for mask in masks], dtype=np.float64)
        return counts[0] if single else counts
    return _each(
        lambda p, t: np.nan if t.any() and not p.any() else _num_components(p) - _num_components(t),
        pred,
        truth,
    )


def tips(masks: ArrayLike, *, skeletons: Sequence[Points] | None = None) -> Floats:
    """Return the tip of each mask's device, (N,2): column and row in px; NaN for an empty mask.

    The rule needs no truth. The ends are the skeleton's pixels with at most one neighbour (all its
    pixels, if it is closed). Devices enter at the neck, arm or chest wall, never from below: the
    end nearest to the upper, left or right edge of the image is the entry. The tip is the end
    farthest from it.

    On 1,062 frontal devices of the synthetic institution at 64 px the result is within 20 mm of the
    true tip for 97 to 100%, median 2.5 to 3.9 mm (a skeleton ends before its mask does). Swan-Ganz
    catheters are the exception: they cross themselves, and the rule misses 60% (21% at 256 px). So
    a tip error has to be compared with that of the true mask (`segmentation` reports both).
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
    """Return the distance in mm from the tip of the predicted mask (`tips`) to the true tip.

    It is NaN where the prediction is empty (a miss, to be counted apart) or no true tip is known.

    Args:
        pred: Predicted masks.
        truth: True masks, bool, whose tips are found by the same rule; or true tips (N,2), column
            and row in px.
        spacing: mm a pixel, one number or (N,).

    Raises:
        ValueError: Shapes do not fit.
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
    """Return row and column of each skeleton pixel, (K,2), for each mask; (0,2) if it is empty."""
    return list(_skeletons(_masks(masks, "masks")[0]))


def _skeletons(masks: Bools) -> Iterator[Points]:
    """Yield skeletons one after the other."""
    from skimage.morphology import skeletonize  # takes half a second to import

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
    """Return ``measure`` of each pair, one at a time, so that many large masks are not copied."""
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
            f"{name} must be bool, got {array.dtype}: compare probabilities with a threshold first"
        )
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} must be (N,H,W) or (H,W), got shape {array.shape}")
    return (array[None], True) if array.ndim == 2 else (array, False)
