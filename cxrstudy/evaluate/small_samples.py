"""Small samples: when a number is not given, and exact intervals where a bootstrap has no width.

**Minimum.** A label is evaluated from ``LEAST`` test images of either class on, from ``LEAST_PATIENTS`` patients of
either class. Below it there is no value and no interval: the row of the metric keeps n and positives, and says why.

**No interval of zero width.** Where all resamples are equal (AUROC 1, sensitivity 0), the percentile interval has no
width, however few patients there are. The exact interval of a proportion (Clopper and Pearson 1934) takes its place.
For an AUROC of 1: had a random pair of a positive and a negative patient the chance A of being ordered correctly, then
all of n pairs that share no patient are so with probability A^n. So A is at least (alpha/2)^(1/n), which is the bound
of Clopper and Pearson for n successes of n. As many such pairs exist as there are patients of the rarer class. The same
bound stands for AUPRC, F1 and other scores in [0, 1], as an approximation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

Floats = NDArray[np.float64]
LEAST = 10  # test images of either class, below which a label is too few to evaluate
LEAST_PATIENTS = 5  # the patients of either class that they must come from
TOO_FEW = "too few to evaluate"  # how the note of every such row begins
FLAT = 1e-12  # an interval no wider than this has no width, up to rounding


def exact_interval(value: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Clopper and Pearson's interval of proportions ``value`` in [0, 1] on ``n`` independent patients: (low, high).

    ``value * n`` need not be whole. It holds the value, has a width for every finite n and is narrower for larger n.
    NaN where the value is NaN or n below 1. ValueError: a value outside [0, 1], ``level`` outside (0, 1).
    """
    share, count = np.broadcast_arrays(
        np.asarray(value, dtype=np.float64), np.asarray(n, dtype=np.float64)
    )
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if ((share < -FLAT) | (share > 1 + FLAT)).any():
        raise ValueError(
            f"an exact interval is of values in [0, 1], got {share[(share < 0) | (share > 1)].flat[0]}"
        )
    share = np.clip(share, 0.0, 1.0)
    hits, alpha = share * count, 1 - level
    some, others = (
        hits > FLAT,
        count - hits > FLAT,
    )  # beta's quantiles overflow where next to nothing is left
    with np.errstate(invalid="ignore", divide="ignore"):
        low = np.where(some, beta.ppf(alpha / 2, np.where(some, hits, 1.0), count - hits + 1), 0.0)
        high = np.where(
            others, beta.ppf(1 - alpha / 2, hits + 1, np.where(others, count - hits, 1.0)), 1.0
        )
    known = ~np.isnan(share) & (count >= 1)
    ends = (
        np.fmin(low, share),
        np.fmax(high, share),
    )  # of a tiny share beta's quantile may underflow
    return np.where(known, ends[0], np.nan), np.where(known, ends[1], np.nan)


def with_width(
    low: ArrayLike, high: ArrayLike, value: ArrayLike, n: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """(low, high, whether it was flat): intervals without a width become exact ones, of ``value`` on n patients; every
    other one stays as it is."""
    low, high, value, n = np.broadcast_arrays(
        *(np.asarray(a, dtype=np.float64) for a in (low, high, value, n))
    )
    flat = (high - low <= FLAT) & ~np.isnan(value)
    out_low, out_high = low.copy(), high.copy()
    if flat.any():
        out_low[flat], out_high[flat] = exact_interval(value[flat], n[flat], level)
    return out_low, out_high, flat


def exact_width(n: float, level: float = 0.95) -> float:
    """How far below 1 the exact interval of an AUROC of 1 on n patients reaches: what a difference of two such may
    hide."""
    return float(1 - ((1 - level) / 2) ** (1 / max(n, 1)))


def is_flat(draws: ArrayLike) -> NDArray[np.bool_]:
    """Whether the resamples (R, ...) of a metric are all alike, up to rounding; those that are NaN do not count."""
    values = np.asarray(draws, dtype=np.float64)
    span = np.fmax.reduce(values, axis=0) - np.fmin.reduce(values, axis=0)
    return np.asarray(span <= FLAT)


def class_counts(y: ArrayLike, groups: ArrayLike) -> dict[str, NDArray[np.int64]]:
    """Of labels ``y`` (N,L) in {0, 1, NaN} of the patients ``groups`` (N,): counts (L,) of images and of patients.

    Keys: positives, negatives (images); patients, positive_patients, negative_patients; pairs: how many pairs of a
    positive and a negative patient share no patient, at least 1.
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
    """Of each label of ``y`` (N,L) in {0, 1, NaN}: why it is too few to evaluate; "" where it is enough."""
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
    return f"{TOO_FEW}: {told[0]} with it, {told[1]} without; needed: {least} images of {few} patients of either class"


def set_aside(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metric ``rows`` (with n and n_patients) without values where these are too few, and why in ``note``."""
    out = []
    for row in rows:
        if row["value"] == row["value"] and (
            row["n"] < LEAST or row["n_patients"] < LEAST_PATIENTS
        ):
            told = f"{row['n']} test cases of {row['n_patients']} patients"
            note = f"{TOO_FEW}: {told}; needed: {LEAST}, from {LEAST_PATIENTS} patients"
            row = row | dict.fromkeys(("value", "low", "high"), np.nan) | {"note": note}
        out.append(row)
    return out


def mark_rare(row: dict[str, Any], shown: int, what: str) -> dict[str, Any]:
    """``row`` with a note where fewer than ``LEAST`` test images or reports bear ``what`` it counts: its value is kept,
    and pages show the note in its place."""
    if shown >= LEAST:
        return row
    return row | {"note": f"{TOO_FEW}: {shown} {what}; needed: {LEAST}"}
