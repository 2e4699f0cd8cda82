"""Small samples: the minimum for a number, and exact intervals where a bootstrap has no width.

**Minimum.** A label is evaluated if both classes have at least ``LEAST`` test images, of at least
``LEAST_PATIENTS`` patients. Otherwise there is no value and no interval. The row of the metric
keeps n and positives, and its note gives the reason.

**No interval of zero width.** If all resamples are equal (AUROC 1, sensitivity 0), the percentile
interval has no width, however few the patients are. The exact interval of a proportion replaces it
(Clopper and Pearson 1934). For an AUROC of 1: let A be the probability that a random pair of a
positive and a negative patient is ordered correctly. Then all of n pairs that share no patient are
ordered correctly with probability A^n. So A is at least (alpha/2)^(1/n), which is Clopper and
Pearson's bound for n successes of n. The number of such pairs is the number of patients of the
rarer class. For AUPRC, F1 and other scores in [0, 1] the same bound is an approximation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

Floats = NDArray[np.float64]
LEAST = 10  # test images of either class, below which a label is too few to evaluate
LEAST_PATIENTS = 5  # patients of either class that they must come from
TOO_FEW = "too few to evaluate"  # the note of every such row starts with it
FLAT = 1e-12  # an interval no wider than this has no width, except for rounding


def exact_interval(value: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return (low, high) of Clopper and Pearson's interval of proportions.

    The interval includes the value, has a width for every finite n, and is narrower for larger n.

    Args:
        value: proportions in [0, 1]; ``value * n`` need not be an integer.
        n: number of independent patients; broadcast with ``value``.
        level: of the interval.

    Returns:
        Two arrays in the broadcast shape; NaN where the value is NaN or n is below 1.

    Raises:
        ValueError: a value is outside [0, 1], or ``level`` is outside (0, 1).
    """
    share, count = np.broadcast_arrays(*(np.asarray(a, dtype=np.float64) for a in (value, n)))
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if ((share < -FLAT) | (share > 1 + FLAT)).any():
        wrong = share[(share < 0) | (share > 1)].flat[0]
        raise ValueError(f"an exact interval needs values in [0, 1], got {wrong}")
    share = np.clip(share, 0.0, 1.0)
    hits, alpha = share * count, 1 - level
    misses = count - hits
    some, others = hits > FLAT, misses > FLAT  # beta.ppf overflows for parameters near 0
    with np.errstate(invalid="ignore", divide="ignore"):
        low = np.where(some, beta.ppf(alpha / 2, np.where(some, hits, 1.0), misses + 1), 0.0)
        above = beta.ppf(1 - alpha / 2, hits + 1, np.where(others, misses, 1.0))
        high = np.where(others, above, 1.0)
    known = ~np.isnan(share) & (count >= 1)
    low, high = np.fmin(low, share), np.fmax(high, share)  # beta.ppf may underflow
    return np.where(known, low, np.nan), np.where(known, high, np.nan)


def with_width(
    low: ArrayLike, high: ArrayLike, value: ArrayLike, n: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Replace intervals without width by exact ones.

    Args:
        low: lower ends; broadcast with ``high``, ``value`` and ``n``.
        high: upper ends.
        value: proportions in [0, 1].
        n: number of independent patients.
        level: of the exact intervals.

    Returns:
        (low, high, flat) in the broadcast shape; flat: whether the interval had no width.
    """
    low, high, value, n = np.broadcast_arrays(
        *(np.asarray(a, dtype=np.float64) for a in (low, high, value, n))
    )
    flat = (high - low <= FLAT) & ~np.isnan(value)
    out_low, out_high = low.copy(), high.copy()
    if flat.any():
        out_low[flat], out_high[flat] = exact_interval(value[flat], n[flat], level)
    return out_low, out_high, flat


def exact_width(n: float, level: float = 0.95) -> float:
    """Return 1 minus the lower end of the exact interval of an AUROC of 1 on n patients.

    A difference of two such values may be as large.
    """
    return float(1 - ((1 - level) / 2) ** (1 / max(n, 1)))


def is_flat(draws: ArrayLike) -> NDArray[np.bool_]:
    """Return whether the resamples (R, ...) of a metric are equal, except for rounding and NaN."""
    values = np.asarray(draws, dtype=np.float64)
    span = np.fmax.reduce(values, axis=0) - np.fmin.reduce(values, axis=0)
    return np.asarray(span <= FLAT)


def class_counts(y: ArrayLike, groups: ArrayLike) -> dict[str, NDArray[np.int64]]:
    """Count images and patients of each label.

    Args:
        y: (N, L) labels in {0, 1, NaN}; NaN is unknown.
        groups: (N,) patient of each image.

    Returns:
        Arrays (L,): positives, negatives, known (images); positive_patients, negative_patients,
        patients; and pairs: the number of pairs of a positive and a negative patient that share no
        patient, at least 1.
    """
    truth = np.asarray(y, dtype=np.float64)
    _, unit = np.unique(np.asarray(groups), return_inverse=True)
    patients = int(unit.max()) + 1 if len(unit) else 0
    images: dict[str, NDArray[np.int64]] = {}
    for name, which in (("positive", truth == 1), ("negative", truth == 0), ("", ~np.isnan(truth))):
        held = np.zeros((patients, truth.shape[1]), dtype=bool)
        np.logical_or.at(held, unit, which)
        images[f"{name}s" if name else "known"] = which.sum(axis=0)
        images[f"{name}_patients".removeprefix("_")] = held.sum(axis=0)
    either = np.minimum(images["positive_patients"], images["negative_patients"])
    images["pairs"] = np.maximum(np.minimum(either, images["patients"] // 2), 1)
    return images


def too_few(y: ArrayLike, groups: ArrayLike, least: int | None = None) -> list[str]:
    """Return for each label why it has too few images or patients to be evaluated; "" if enough.

    ``y`` (N, L) and ``groups`` (N,) as in ``class_counts``; ``least`` replaces ``LEAST``.
    """
    found, least = class_counts(y, groups), LEAST if least is None else least
    few = min(LEAST_PATIENTS, least)
    notes = []
    for k in range(len(found["positives"])):
        images = [int(found[name][k]) for name in ("positives", "negatives")]
        patients = [int(found[f"{name}_patients"][k]) for name in ("positive", "negative")]
        enough = min(images) >= least and min(patients) >= few
        notes.append("" if enough else _few(images, patients, least, few))
    return notes


def _few(images: list[int], patients: list[int], least: int, few: int) -> str:
    told = [f"{n} test images of {who} patients" for n, who in zip(images, patients, strict=True)]
    needed = f"{least} images of {few} patients of either class"
    return f"{TOO_FEW}: {told[0]} with it, {told[1]} without; needed: {needed}"


def set_aside(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return metric rows without values where n or n_patients is too small; ``note`` says why."""
    out = []
    for row in rows:
        few = row["n"] < LEAST or row["n_patients"] < LEAST_PATIENTS
        if few and row["value"] == row["value"]:
            told = f"{row['n']} test cases of {row['n_patients']} patients"
            note = f"{TOO_FEW}: {told}; needed: {LEAST}, from {LEAST_PATIENTS} patients"
            row = row | dict.fromkeys(("value", "low", "high"), np.nan) | {"note": note}
        out.append(row)
    return out


def mark_rare(row: dict[str, Any], shown: int, what: str) -> dict[str, Any]:
    """Add a note to a metric row if ``shown``, its number of ``what``, is below ``LEAST``.

    The value stays, but pages show the note instead.
    """
    if shown >= LEAST:
        return row
    return row | {"note": f"{TOO_FEW}: {shown} {what}; needed: {LEAST}"}
