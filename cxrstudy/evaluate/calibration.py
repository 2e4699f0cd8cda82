"""From scores to decisions and probabilities. Both rules are fitted on validation patients.

Decision: per label, the threshold with the largest F1 on validation. Probability: Platt's sigmoid
(1999), fitted on validation. Calibration: expected calibration error (ECE; Guo et al. 2017) over 15
bins of equal width.

Every metric here is a function of sums over images, so a resample of patients costs one matrix
product.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from cxrstudy.evaluate.metrics import divide, resampled_sums

Floats = NDArray[np.float64]
BINS = 15
THRESHOLD_METRICS = ("f1", "sensitivity", "specificity", "ppv", "ece")


def best_threshold(y: ArrayLike, s: ArrayLike) -> Floats:
    """Return the threshold (L,) with the largest F1 (ties: the highest); NaN without a positive.

    Args:
        y: Labels (N,L) in {0, 1, NaN}.
        s: Scores (N,L). An image is called positive where its score is at least the threshold.
    """
    y, s = np.asarray(y, dtype=np.float64), np.asarray(s, dtype=np.float64)
    out = np.full(y.shape[1], np.nan)
    for j in range(y.shape[1]):
        known = ~np.isnan(y[:, j])
        order = np.argsort(-s[known, j], kind="stable")
        score, truth = s[known, j][order], y[known, j][order]
        if not truth.sum():
            continue
        last = np.append(np.diff(score) != 0, True)  # equal scores get the same decision
        f1 = 2 * np.cumsum(truth) / (np.arange(1, len(truth) + 1) + truth.sum())
        out[j] = score[last][np.argmax(f1[last])]
    return out


def fit_platt(y: ArrayLike, s: ArrayLike, steps: int = 50) -> Floats:
    """Return slope and intercept (L,2) of the sigmoid from scores (N,L) to probabilities.

    Newton's method on the log loss against Platt's smoothed targets (n+ + 1)/(n+ + 2) and 1/(n- +
    2), which keep the fit finite where scores separate the classes. The slope is 0 where scores are
    constant. Unknown labels (NaN) are ignored.
    """
    y, s = np.asarray(y, dtype=np.float64), np.asarray(s, dtype=np.float64)
    out = np.zeros((y.shape[1], 2))
    for j in range(y.shape[1]):
        known = ~np.isnan(y[:, j])
        truth, score = y[known, j], s[known, j]
        mean, std = (score.mean(), score.std()) if known.any() else (0.0, 0.0)
        std = std if std > 1e-9 * (1 + abs(mean)) else np.inf
        x = np.stack([(score - mean) / std, np.ones(len(score))], axis=1)
        n = truth.sum()
        target = np.where(truth == 1, (n + 1) / (n + 2), 1 / (len(truth) - n + 2))
        w = np.array([0.0, np.log((n + 1) / (len(truth) - n + 1))])
        for _ in range(steps):
            p = expit(x @ w)
            gradient = x.T @ (p - target)
            hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2)
            step = np.linalg.solve(hessian, gradient)
            step /= max(1.0, np.abs(step).max())  # far from the optimum Newton's step overshoots
            w = w - step
            if np.abs(step).max() < 1e-10:
                break
        out[j] = w[0] / std, w[1] - w[0] * mean / std
    return out


def reliability(y: ArrayLike, p: ArrayLike, bins: int = BINS) -> pd.DataFrame:
    """Return the points of a reliability plot of one label (N,), a row a bin that has images.

    Columns: ``bin``, ``mean_predicted`` (mean probability), ``fraction_positive`` and ``n``.
    """
    y, p = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    known = ~np.isnan(y) & ~np.isnan(p)
    columns = {"mean_predicted": p[known], "fraction_positive": y[known], "n": 1}
    table = pd.DataFrame({"bin": _bin(p[known], bins)} | columns)
    how = {"mean_predicted": "mean", "fraction_positive": "mean", "n": "sum"}
    return table.groupby("bin", as_index=False).agg(how)


def threshold_metrics(
    y: ArrayLike,
    predictions: ArrayLike,
    p: ArrayLike,
    *,
    groups: ArrayLike,
    resamples: int,
    seed: int = 0,
) -> dict[str, tuple[Floats, Floats]]:
    """Return F1, sensitivity, specificity, PPV and ECE, each as values (L,) and resamples (R,L).

    The resamples are those of `metrics.bootstrap`. A value is NaN where it is not defined (F1 and
    sensitivity: no positive; specificity: no negative; PPV: no positive prediction). Resampling
        adds
    noise to every bin, and ECE takes its absolute value: so the resamples of ECE are shifted to
    have the value as their mean. Otherwise the interval would be above the value.

    Args:
        y: Labels (N,L) in {0, 1, NaN}.
        predictions: Predicted labels (N,L) in {0, 1, NaN}.
        p: Predicted probabilities (N,L).
        groups: Patient (N,) of each image.
    """
    y, predictions, p = (np.asarray(a, dtype=np.float64) for a in (y, predictions, p))
    known, labels = ~(np.isnan(y) | np.isnan(predictions)), y.shape[1]
    positive, called = (y == 1) & known, (predictions == 1) & known
    cells = [positive & called, ~positive & called, positive & ~called, ~positive & ~called & known]
    with_probability = known & ~np.isnan(p)
    gaps, bins = np.where(with_probability, y - p, 0.0), _bin(np.nan_to_num(p), BINS)
    cells += [np.where(bins == k, gaps, 0.0) for k in range(BINS)] + [with_probability]
    flat = np.concatenate(cells, axis=1).astype(np.float64)
    values = _from_sums(flat.sum(axis=0, keepdims=True), labels)
    draws = _from_sums(resampled_sums(flat, groups=groups, resamples=resamples, seed=seed), labels)
    known_draws = (~np.isnan(draws["ece"])).sum(axis=0)  # a resample may have no known image
    mean = divide(np.nansum(draws["ece"], axis=0), known_draws.astype(np.float64))
    with np.errstate(invalid="ignore"):
        draws["ece"] = np.clip(draws["ece"] - mean + values["ece"][0], 0.0, 1.0)
    return {name: (values[name][0], draws[name]) for name in THRESHOLD_METRICS}


def _from_sums(sums: Floats, labels: int) -> dict[str, Floats]:
    tp, fp, fn, tn, *gaps, n = sums.reshape(len(sums), -1, labels).transpose(1, 0, 2)
    has_positive = np.where(tp + fn > 0, 1.0, np.nan)
    return {
        "f1": divide(2 * tp, 2 * tp + fp + fn) * has_positive,
        "sensitivity": divide(tp, tp + fn),
        "specificity": divide(tn, tn + fp),
        "ppv": divide(tp, tp + fp),
        "ece": divide(np.abs(gaps).sum(axis=0), n),
    }


def _bin(p: Floats, bins: int) -> NDArray[np.int64]:
    return np.clip((p * bins).astype(np.int64), 0, bins - 1)
