"""AUROC and AUPRC of many labels at once, and their patient bootstrap.

Arrays are (N,L): N images, L labels, ``y`` in {0, 1, NaN}. NaN is an unknown label: the image is
left out of that label alone. 1-D arrays count as one label. A label whose known images are of one
class has no AUROC: its value is NaN, never 0 or 0.5.

Why the bootstrap is fast: a resample of whole patients is a vector of counts, and both metrics are
sums over pairs of images weighted by these counts. Each label is sorted once, into two sparse
matrices that bin the images between the distinct scores of one class (the *pivots*). A block of
resamples then costs two sparse products and one cumulative sum. AUROC is Mann-Whitney's U, where
ties count half. AUPRC is average precision, where tied scores enter together. Both are as in
scikit-learn.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from cxrstudy.evaluate.masks import cl_dice, dice, tip_error  # noqa: F401  (callers import them here)

Floats = NDArray[np.float64]
Metric = Callable[[Any, Any], Any]
_CACHED = 2**22  # resample counts that are cached: 32 MB
_BLOCK = 2**18  # resample counts of one block: 2 MB, so that it stays in the processor's cache


def auroc(y: ArrayLike, s: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return the area under the ROC curve, (L,): the share of (positive, negative) pairs in order.

    Args:
        y: Labels (N,L) in {0, 1, NaN}.
        s: Scores (N,L).
        weights: Count of each image (N,); by default 1.

    Raises:
        ValueError: Shapes differ, a label is outside {0, 1, NaN}, a known image's score is NaN, or
            a weight is negative or not finite.
    """
    return _weighted(_auroc_plan, y, s, weights)


def auprc(y: ArrayLike, s: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return the average precision, (L,): sum of recall step x precision. Otherwise as `auroc`."""
    return _weighted(_auprc_plan, y, s, weights)


def bootstrap(
    metric: Metric, y: ArrayLike, s: ArrayLike, *, groups: ArrayLike, resamples: int, seed: int = 0
) -> Floats:
    """Return ``metric`` on resamples of whole groups (patients) with replacement: (resamples,L).

    Resample r takes the r-th ``default_rng(seed).integers(G, size=G)`` as positions in the sorted
    list of the G distinct groups. One draw serves all labels, and two encoders that are scored on
    the same groups with the same seed share their resamples. So macro averages and differences can
    be taken row by row. The value is NaN where a resample has one class of a label only.

    Args:
        metric: `auroc` and `auprc` are computed from counts. Any other ``metric(y, s)`` is called
            on the rows, arrays of any shape (N,...), each row repeated as often as its group was
            drawn.
        groups: Patient (N,) of each image.

    Raises:
        ValueError: As `auroc`; ``groups`` has another length or missing names; ``resamples`` < 1.
    """
    y, s = np.asarray(y), np.asarray(s)
    unit, n_units = units(groups, len(y))
    make = _FAST.get(metric)
    if make is None:
        rows, values = np.arange(len(y)), []
        for drawn in counts(n_units, resamples, seed):
            for draw in drawn[unit].T:  # (N,)
                pick = np.repeat(rows, draw.astype(np.int64))
                values.append(np.atleast_1d(np.asarray(metric(y[pick], s[pick]), np.float64)))
        return np.stack(values)
    plans = _plans(make, y, s, unit, n_units)
    blocks = [[plan(drawn) for plan in plans] for drawn in counts(n_units, resamples, seed)]
    return np.concatenate([np.stack(block, axis=1) for block in blocks])


def known_mean(values: Floats, weights: Floats | None = None) -> Floats:
    """Return the (weighted) mean over the last axis of what is not NaN; NaN if nothing is left."""
    share = np.where(np.isnan(values), 0.0, 1.0 if weights is None else weights)
    return divide(np.nansum(values * share, axis=-1), share.sum(axis=-1))


def knn_auroc(x: ArrayLike, y: ArrayLike, k: int = 20) -> float:
    """Return the macro AUROC of a k-nearest-neighbour score by cosine: a check without any fit.

    Args:
        x: Features (N,C).
        y: Labels (N,L) in {0, 1, NaN}. The score is the share of positives among the known labels
            of each image's ``k`` nearest other images.
    """
    rows, labels = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    rows = rows - rows.mean(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-12
    near = rows @ rows.T
    np.fill_diagonal(near, -np.inf)
    nearest = labels[np.argpartition(-near, min(k, len(rows) - 1) - 1, axis=1)[:, :k]]
    known = ~np.isnan(nearest)
    share = np.where(known, nearest, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    both = ((labels == 1).sum(0) > 1) & ((labels == 0).sum(0) > 1)
    return float(np.mean(auroc(labels[:, both], share[:, both]))) if both.any() else 0.5


def interval(samples: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return the percentile interval over the first axis, (low, high), each ``samples.shape[1:]``.

    NaN samples are ignored; the interval is NaN if none is left.

    Raises:
        ValueError: ``level`` is outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    values = np.asarray(samples, dtype=np.float64)
    flat = values.reshape(len(values), -1)
    ends = np.full((2, flat.shape[1]), np.nan)
    for j, column in enumerate(flat.T):
        known = column[~np.isnan(column)]
        if known.size:
            ends[:, j] = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    low, high = ends.reshape(2, *values.shape[1:])
    return low, high


def sums_by_group(cells: ArrayLike, groups: ArrayLike) -> Floats:
    """Return the sums (G,K) of ``cells`` (N,K) over the images of each group, in sorted order."""
    cells = np.asarray(cells, dtype=np.float64)
    unit, n_units = units(groups, len(cells))
    sums = np.zeros((n_units, cells.shape[1]))
    np.add.at(sums, unit, cells)
    return sums


def resampled_sums(cells: ArrayLike, *, groups: ArrayLike, resamples: int, seed: int = 0) -> Floats:
    """Return the sums (resamples,K) of ``cells`` (N,K) over each of `bootstrap`'s resamples."""
    sums = sums_by_group(cells, groups)
    return np.concatenate([draw.T @ sums for draw in counts(len(sums), resamples, seed)])


# ---- one label, many weightings ------------------------------------------------------------------
# A plan takes counts (G,B), the weights of G units in each of B weightings, and returns (B,).
Plan = Callable[[Floats], Floats]


def _auroc_plan(y: Floats, s: Floats, unit: NDArray[np.int64], n_units: int) -> Plan:
    """Return the plan of AUROC; the pivots are the scores of the rarer class.

    An image of the other class counts for every pivot above it, and half where equal.
    """
    few = y == (1 if 2 * y.sum() <= len(y) else 0)
    pivots, place = np.unique(s[few], return_inverse=True)
    left, right = (np.searchsorted(pivots, s[~few], side) for side in ("left", "right"))
    # half an image at `left` and half at `right`: summed over pivots, strictly below + half equal
    below = _bins(np.concatenate([left, right]), np.tile(unit[~few], 2), 0.5, len(pivots), n_units)
    at = _bins(place, unit[few], 1.0, len(pivots), n_units)
    rest = np.bincount(unit[~few], minlength=n_units).astype(np.float64)
    flip = bool(y[few][0] == 0)

    def plan(counts: Floats) -> Floats:
        weight, lower = at @ counts, below @ counts
        np.cumsum(lower, axis=0, out=lower)
        pairs = weight.sum(axis=0) * (rest @ counts)
        share = divide(np.einsum("kb,kb->b", weight, lower), pairs)
        return 1 - share if flip else share

    return plan


def _auprc_plan(y: Floats, s: Floats, unit: NDArray[np.int64], n_units: int) -> Plan:
    """Return the plan of AUPRC; the pivots are the positives' scores, falling.

    At each pivot, precision is the positives among all images that are not below it.
    """
    pos = y == 1
    pivots, place = np.unique(-s[pos], return_inverse=True)
    at = _bins(place, unit[pos], 1.0, len(pivots), n_units)
    above = _bins(np.searchsorted(pivots, -s[~pos], "left"), unit[~pos], 1.0, len(pivots), n_units)
    rest = np.bincount(unit[~pos], minlength=n_units).astype(np.float64)

    def plan(counts: Floats) -> Floats:
        weight, false = at @ counts, above @ counts
        np.cumsum(false, axis=0, out=false)
        true = np.cumsum(weight, axis=0)
        precision = np.divide(true, true + false, out=np.zeros_like(true), where=true > 0)
        total = np.where(rest @ counts > 0, true[-1], 0.0)  # no negatives: no value
        return divide(np.einsum("kb,kb->b", weight, precision), total)

    return plan


def _bins(
    rows: NDArray[Any], cols: NDArray[Any], each: float, n_bins: int, n_units: int
) -> csr_array:
    """Return the part of each unit in each bin, sparse (bins, units); later bins are cut."""
    inside = rows < n_bins
    values = np.full(int(inside.sum()), each)
    return csr_array((values, (rows[inside], cols[inside])), shape=(n_bins, n_units))


def divide(above: Floats, below: Floats) -> Floats:
    """Return ``above`` / ``below``, of one shape; NaN where ``below`` is not positive."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


_FAST: dict[Any, Callable[..., Plan]] = {auroc: _auroc_plan, auprc: _auprc_plan}


# ---- inputs and resamples ------------------------------------------------------------------------
def _plans(
    make: Callable[..., Plan], y: ArrayLike, s: ArrayLike, unit: NDArray[np.int64], n_units: int
) -> list[Plan]:
    """Return one plan a label, from checked arrays; a label with one class gets a plan of NaN."""
    y, s = _columns(y, "y"), _columns(s, "s")
    if y.shape != s.shape:
        raise ValueError(f"y has shape {y.shape}, s has {s.shape}: they must be equal")
    known = ~np.isnan(y)
    _refuse(known & (y != 0) & (y != 1), y, "y must be 0, 1 or NaN")
    _refuse(known & np.isnan(s), s, "a known image's score must be a number")
    plans: list[Plan] = []
    for j in range(y.shape[1]):
        rows = np.flatnonzero(known[:, j])
        label = y[rows, j]
        if 0 < label.sum() < len(label):
            plans.append(make(label, s[rows, j], unit[rows], n_units))
        else:
            plans.append(lambda counts: np.full(counts.shape[1], np.nan))
    return plans


def _weighted(
    make: Callable[..., Plan], y: ArrayLike, s: ArrayLike, weights: ArrayLike | None
) -> Floats:
    y = np.asarray(y)
    n = len(np.atleast_1d(y))
    weight = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != (n,):
        raise ValueError(f"weights have shape {weight.shape}, expected ({n},): one an image")
    if not (np.isfinite(weight) & (weight >= 0)).all():
        raise ValueError("weights must be finite and not negative")
    return np.array([plan(weight[:, None])[0] for plan in _plans(make, y, s, np.arange(n), n)])


def _columns(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise ValueError(f"{name} must be (N, L) or (N,), got shape {array.shape}")
    return array


def _refuse(bad: NDArray[np.bool_], values: Floats, why: str) -> None:
    if bad.any():
        i, j = np.argwhere(bad)[0]
        raise ValueError(f"{why}: found {values[i, j]} in row {i}, label {j}")


def units(groups: ArrayLike, n: int) -> tuple[NDArray[np.int64], int]:
    """Return each image's index (N,) in the sorted list of distinct groups, and their number.

    Raises:
        ValueError: ``groups`` has another length than ``n``, or missing names.
    """
    names = np.asarray(groups)
    if names.shape != (n,):
        raise ValueError(f"groups have shape {names.shape}, expected ({n},): one an image")
    missing = [(i, name) for i, name in enumerate(names.tolist()) if name is None or name != name]
    if missing:
        raise ValueError(
            f"groups must name every image's patient: row {missing[0][0]} has {missing[0][1]!r}"
        )
    distinct, unit = np.unique(names, return_inverse=True)
    return unit.astype(np.int64), len(distinct)


def counts(n_units: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Return `bootstrap`'s resamples in blocks (G,B): how often each unit was drawn in each of B.

    The size of the blocks does not change the draws.

    Raises:
        ValueError: ``resamples`` < 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    draw = _cached_counts if n_units * resamples <= _CACHED else _draw_counts
    return iter(draw(n_units, resamples, seed))


def _draw_counts(n_units: int, resamples: int, seed: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    block = int(np.clip(_BLOCK // max(n_units, 1), 8, 256))
    for start in range(0, resamples, block):
        b = min(block, resamples - start)
        draw = rng.integers(n_units, size=(b, n_units))
        flat = (draw * b + np.arange(b)[:, None]).ravel()
        drawn = np.bincount(flat, minlength=n_units * b).reshape(n_units, b).astype(np.float64)
        drawn.flags.writeable = False
        yield drawn


@functools.lru_cache(2)
def _cached_counts(n_units: int, resamples: int, seed: int) -> list[Floats]:
    """Return all blocks, for the next encoder that is evaluated on these patients."""
    return list(_draw_counts(n_units, resamples, seed))
