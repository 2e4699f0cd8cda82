"""AUROC and AUPRC of many labels at once, and their patient bootstrap.

Arrays are (N, L): N images, L labels, ``y`` in {0, 1, NaN} (NaN: not known, left out of that label alone). A 1-D pair
counts as one label. A label whose known images are of one class has no AUROC: NaN, never 0 or 0.5.

How a bootstrap is made fast: a resample of whole patients is a vector of counts, and both metrics are sums over pairs
of images weighted by these counts. Each label is sorted once, into two sparse matrices that bin the images between the
distinct scores of one class (the *pivots*); a block of resamples then costs two sparse products and one cumulative sum.
AUROC is Mann-Whitney's U with ties at half; AUPRC is average precision, tied scores entering together (both as in
scikit-learn).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from cxrstudy.evaluate.masks import cl_dice, dice, tip_error  # noqa: F401  metrics too, found here by others

Floats = NDArray[np.float64]
Metric = Callable[[Any, Any], Any]
_KEPT = 2**22  # resample counts that are kept: 32 MB
_BLOCK = 2**18  # resample counts held at once: 2 MB, so that a block stays in the processor's cache


def auroc(y: ArrayLike, s: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Area under the ROC curve, (L,): the share of (positive, negative) pairs that ``s`` (N, L) orders rightly.

    ``weights`` (N,) counts every image that many times. ValueError: shapes differ, ``y`` outside {0, 1, NaN}, a known
    image's score is NaN, a weight is negative or not finite.
    """
    return _plain(_auroc_plan, y, s, weights)


def auprc(y: ArrayLike, s: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Average precision, (L,): sum of (recall step x precision) over falling thresholds. Otherwise as `auroc`."""
    return _plain(_auprc_plan, y, s, weights)


def bootstrap(
    metric: Metric, y: ArrayLike, s: ArrayLike, *, groups: ArrayLike, resamples: int, seed: int = 0
) -> Floats:
    """``metric`` on resamples of whole groups (patients) drawn with replacement: (resamples, L).

    ``groups`` (N,) names each image's patient. Resample r takes the r-th ``default_rng(seed).integers(G, size=G)`` as
    places in the sorted list of the G distinct groups: one draw serves all labels, and two encoders scored on the same
    groups and seed meet the same resamples, so macro averages and differences may be taken row by row. NaN where a
    resample holds one class of a label only.

    `auroc` and `auprc` are computed from counts; any other ``metric(y, s)`` is called on the rows themselves, arrays of
    any shape (N, ...), each row as often as its group was drawn.
    ValueError: as `auroc`; ``groups`` of another length or with missing names; ``resamples`` < 1.
    """
    y, s = np.asarray(y), np.asarray(s)
    unit, n_units = units(groups, len(y))
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    make = _FAST.get(metric)
    if make is None:
        rows = np.arange(len(y))
        draws = (
            drawn[unit, j]
            for drawn in counts(n_units, resamples, seed)
            for j in range(drawn.shape[1])
        )
        picks = (np.repeat(rows, draw.astype(np.int64)) for draw in draws)
        return np.stack(
            [
                np.atleast_1d(np.asarray(metric(y[pick], s[pick]), dtype=np.float64))
                for pick in picks
            ]
        )
    plans = _plans(make, y, s, unit, n_units)
    blocks = [[plan(drawn) for plan in plans] for drawn in counts(n_units, resamples, seed)]
    return np.concatenate([np.stack(block, axis=1) for block in blocks])


def known_mean(values: Floats, weights: Floats | None = None) -> Floats:
    """Mean over the last axis of what is not NaN, weighted where ``weights`` are given; NaN where nothing is left."""
    share = np.where(np.isnan(values), 0.0, 1.0 if weights is None else weights)
    total = share.sum(axis=-1)
    return np.where(
        total > 0, np.nansum(values * share, axis=-1) / np.where(total > 0, total, 1.0), np.nan
    )


def knn_auroc(x: ArrayLike, y: ArrayLike, k: int = 20) -> float:
    """How well features tell labels apart without any fit: macro AUROC of the share of positives among each image's
    ``k`` nearest others by cosine, labels in {0, 1, NaN} (unknown ones have no say). ``x`` (N,C), ``y`` (N,L)."""
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
    """Percentile interval over the first axis, ignoring NaN: (lo, hi), each ``samples.shape[1:]``; NaN if none is left.

    ValueError: ``level`` outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    values = np.asarray(samples, dtype=np.float64)
    flat = values.reshape(len(values), -1)
    ends = np.full((2, flat.shape[1]), np.nan)
    for j, column in enumerate(flat.T):
        kept = column[~np.isnan(column)]
        if kept.size:
            ends[:, j] = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    lo, hi = ends.reshape(2, *values.shape[1:])
    return lo, hi


# ---- one label, many weightings ------------------------------------------------------------------------------------
# A plan takes counts (G, B), the weight of each of G units in each of B weightings, and gives (B,) values.
Plan = Callable[[Floats], Floats]


def _auroc_plan(y: Floats, s: Floats, unit: NDArray[np.int64], n_units: int) -> Plan:
    """Pivots are the rarer class. An image of the other class counts for every pivot above it, and half where equal."""
    few = y == (1 if 2 * y.sum() <= len(y) else 0)
    pivots, place = np.unique(s[few], return_inverse=True)
    left, right = (
        np.searchsorted(pivots, s[~few], "left"),
        np.searchsorted(pivots, s[~few], "right"),
    )
    # cumulative sums over pivots turn half an image at `left` and half at `right` into (strictly below + half equal)
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
    """Pivots are the positives' scores, falling; at each, precision is positives over all images not below it."""
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
    """Sparse (bins, units): how much of each unit falls into each bin; what lies past the last bin is left out."""
    kept = rows < n_bins
    values = np.full(int(kept.sum()), each)
    return csr_array((values, (rows[kept], cols[kept])), shape=(n_bins, n_units))


def divide(above: Floats, below: Floats) -> Floats:
    """``above`` over ``below``, of one shape; NaN where ``below`` is not positive."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


_FAST: dict[Any, Callable[[Floats, Floats, NDArray[np.int64], int], Plan]] = {
    auroc: _auroc_plan,
    auprc: _auprc_plan,
}


# ---- shared --------------------------------------------------------------------------------------------------------
def _plans(
    make: Callable[..., Plan], y: ArrayLike, s: ArrayLike, unit: NDArray[np.int64], n_units: int
) -> list[Plan]:
    """One plan a label, from checked arrays; a label with one class gets a plan of NaN."""
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


def _plain(
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
    """Each image's place (N,) in the sorted list of distinct groups, and how many there are; ValueError: ``groups`` of
    another length than ``n``, or with missing names."""
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
    """`bootstrap`'s resamples in blocks (G, B): how often each of G units was drawn in each of B of them; the size of
    the blocks does not change the draws."""
    return iter((_kept if n_units * resamples <= _KEPT else _drawn)(n_units, resamples, seed))


def _drawn(n_units: int, resamples: int, seed: int) -> Iterator[Floats]:
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
def _kept(n_units: int, resamples: int, seed: int) -> list[Floats]:
    """The same for the next encoder that is judged on these patients."""
    return list(_drawn(n_units, resamples, seed))
