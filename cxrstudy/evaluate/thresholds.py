"""Scores to decisions and to probabilities: both rules are fitted on validation patients and judged on test patients.

Decision: an image is called positive from the score on that gives the largest F1 on validation, label by label.
Probability: Platt's sigmoid (1999) fitted on validation. Calibration: ECE (Guo et al. 2017), 15 bins of equal width.

All that is measured here is a function of sums over images, so a resample of patients costs one matrix product.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from cxrstudy.evaluate.metrics import counts, divide, units

Floats = NDArray[np.float64]
BINS = 15
DECIDED = ("f1", "sensitivity", "specificity", "ppv", "ece")


def best_threshold(y: ArrayLike, s: ArrayLike) -> Floats:
    """The score (L,) from which on calling an image positive gives the largest F1; equal ones: the highest.

    ``y`` (N,L) in {0,1,NaN}, ``s`` (N,L). NaN for a label without a positive.
    """
    y, s = np.asarray(y, dtype=np.float64), np.asarray(s, dtype=np.float64)
    out = np.full(y.shape[1], np.nan)
    for j in range(y.shape[1]):
        known = ~np.isnan(y[:, j])
        order = np.argsort(-s[known, j], kind="stable")
        score, truth = s[known, j][order], y[known, j][order]
        if not truth.sum():
            continue
        last = np.append(np.diff(score) != 0, True)  # equal scores are called together
        f1 = 2 * np.cumsum(truth) / (np.arange(1, len(truth) + 1) + truth.sum())
        out[j] = score[last][np.argmax(f1[last])]
    return out


def platt(y: ArrayLike, s: ArrayLike, steps: int = 50) -> Floats:
    """(L,2) slope and intercept of the sigmoid that turns scores (N,L) into probabilities (Platt 1999).

    Newton's method on the log loss against Platt's softened targets (n+ + 1)/(n+ + 2) and 1/(n- + 2), which keep it
    finite where scores separate the classes. Where scores do not vary the slope is 0. Unknown labels have no say.
    """
    y, s = np.asarray(y, dtype=np.float64), np.asarray(s, dtype=np.float64)
    out = np.zeros((y.shape[1], 2))
    for j in range(y.shape[1]):
        known = ~np.isnan(y[:, j])
        truth, score = y[known, j], s[known, j]
        centre, spread = (score.mean(), score.std()) if known.any() else (0.0, 0.0)
        spread = spread if spread > 1e-9 * (1 + abs(centre)) else np.inf
        x = np.stack([(score - centre) / spread, np.ones(len(score))], axis=1)
        n = truth.sum()
        target = np.where(truth == 1, (n + 1) / (n + 2), 1 / (len(truth) - n + 2))
        w = np.array([0.0, np.log((n + 1) / (len(truth) - n + 1))])
        for _ in range(steps):
            p = expit(x @ w)
            gradient = x.T @ (p - target)
            bend = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2)
            step = np.linalg.solve(bend, gradient)
            step /= max(1.0, np.abs(step).max())  # far from the optimum Newton's step overshoots
            w = w - step
            if np.abs(step).max() < 1e-10:
                break
        out[j] = w[0] / spread, w[1] - w[0] * centre / spread
    return out


def reliability(y: ArrayLike, p: ArrayLike, bins: int = BINS) -> pd.DataFrame:
    """What a reliability plot shows of one label (N,): a row a bin that holds images, with ``said`` (their mean
    probability), ``seen`` (their share of positives) and ``n``."""
    y, p = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    known = ~np.isnan(y) & ~np.isnan(p)
    table = pd.DataFrame({"bin": _bin(p[known], bins), "said": p[known], "seen": y[known], "n": 1})
    return table.groupby("bin", as_index=False).agg({"said": "mean", "seen": "mean", "n": "sum"})


def decided(
    y: ArrayLike,
    calls: ArrayLike,
    p: ArrayLike,
    *,
    groups: ArrayLike,
    resamples: int,
    seed: int = 0,
) -> dict[str, tuple[Floats, Floats]]:
    """F1, sensitivity, specificity, PPV and ECE: each its value (L,) and that of resamples of patients (resamples, L).

    ``y``, ``calls`` (N,L) in {0,1,NaN}, ``p`` (N,L) probabilities; the draws are those of ``metrics.bootstrap``. NaN
    where nothing is there to divide by (F1, sensitivity: no positive; specificity: no negative; PPV: none called).
    Resampling adds noise to every bin, and ECE takes its absolute value: its resamples are moved so that their mean is
    the value, else the interval would lie above it.
    """
    y, calls, p = (np.asarray(a, dtype=np.float64) for a in (y, calls, p))
    known, labels = ~(np.isnan(y) | np.isnan(calls)), y.shape[1]
    yes, called = (y == 1) & known, (calls == 1) & known
    cells = [yes & called, ~yes & called, yes & ~called, ~yes & ~called & known]
    sure = known & ~np.isnan(p)
    gaps = np.where(sure, y - p, 0.0)
    where = _bin(np.nan_to_num(p), BINS)
    cells += [np.where(where == k, gaps, 0.0) for k in range(BINS)] + [sure]
    flat = np.concatenate(cells, axis=1).astype(np.float64)
    values = _decide(flat.sum(axis=0, keepdims=True), labels)
    draws = _decide(resampled_sums(flat, groups=groups, resamples=resamples, seed=seed), labels)
    drawn = ~np.isnan(draws["ece"])  # a resample may hold nobody of whom a label is known
    centre = divide(np.nansum(draws["ece"], axis=0), drawn.sum(axis=0).astype(np.float64))
    with np.errstate(invalid="ignore"):
        moved = np.clip(draws["ece"] - centre + values["ece"][0], 0.0, 1.0)
    return {name: (values[name][0], moved if name == "ece" else draws[name]) for name in DECIDED}


def resampled_sums(cells: ArrayLike, *, groups: ArrayLike, resamples: int, seed: int = 0) -> Floats:
    """Sums over the images of each resample of whole groups, (resamples, K), of ``cells`` (N,K); draws as
    ``metrics.bootstrap``'s."""
    cells = np.asarray(cells, dtype=np.float64)
    unit, n_units = units(groups, len(cells))
    sums = np.zeros((n_units, cells.shape[1]))
    np.add.at(sums, unit, cells)
    return np.concatenate([draw.T @ sums for draw in counts(n_units, resamples, seed)])


def _decide(sums: Floats, labels: int) -> dict[str, Floats]:
    tp, fp, fn, tn, *gaps, n = sums.reshape(len(sums), -1, labels).transpose(1, 0, 2)
    some = np.where(tp + fn > 0, 1.0, np.nan)
    return {
        "f1": divide(2 * tp, 2 * tp + fp + fn) * some,
        "sensitivity": divide(tp, tp + fn),
        "specificity": divide(tn, tn + fp),
        "ppv": divide(tp, tp + fp),
        "ece": divide(np.abs(gaps).sum(axis=0), n),
    }


def _bin(p: Floats, bins: int) -> NDArray[np.int64]:
    return np.clip((p * bins).astype(np.int64), 0, bins - 1)
