"""Pool one contrast over several institutions: random effects, with an interval for few of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import norm, t


@dataclass(frozen=True)
class Pooled:
    """The mean effect over institutions with its 95% interval, and how far these differ."""

    effect: float
    low: float
    high: float
    tau: float  # standard deviation of true effects between institutions
    sites: int


def between_variance(effects: ArrayLike, variances: ArrayLike) -> float:
    """Return the variance between institutions after Paule and Mandel (1982); 0 if none is seen."""
    y, v = np.asarray(effects, float), np.asarray(variances, float)

    def excess(tau2: float) -> float:
        w = 1 / (v + tau2)
        return float(w @ (y - w @ y / w.sum()) ** 2) - (len(y) - 1)

    if excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, len(y) * float(np.var(y)) + 1e-12, xtol=1e-14))


def pool(
    effects: ArrayLike,
    variances: ArrayLike,
    *,
    tau2: float | None = None,
    never_narrower: bool = True,
) -> Pooled:
    """Return the mean over institutions with the Hartung-Knapp-Sidik-Jonkman interval.

    Its factor is Student's t with one degree of freedom fewer than there are institutions: 12.7
    for two, 4.3 for three. Intervals of the normal distribution are far too narrow there (IntHout
    et al. 2014).

    Args:
        effects: (K,) of the institutions.
        variances: (K,) squared standard errors.
        tau2: variance between institutions; None: ``between_variance``.
        never_narrower: keep the standard error at least that of the usual random-effects mean,
            because a few effects may be close by chance (Röver et al. 2015).

    Raises:
        ValueError: fewer than two institutions, or a variance that is not positive and finite.
    """
    y, v = np.asarray(effects, float), np.asarray(variances, float)
    if len(y) < 2:
        raise ValueError("a mean over institutions needs at least two of them")
    if not (np.isfinite(y).all() and np.isfinite(v).all() and (v > 0).all()):
        raise ValueError("effects must be finite, and their variances positive")
    tau2 = between_variance(y, v) if tau2 is None else tau2
    w = 1 / (v + tau2)
    effect = float(w @ y / w.sum())
    scale = float(w @ (y - effect) ** 2) / (len(y) - 1)
    error = np.sqrt(max(scale, 1.0 if never_narrower else 0.0) / w.sum())
    half = float(t.ppf(0.975, len(y) - 1) * error)
    return Pooled(effect, effect - half, effect + half, float(np.sqrt(tau2)), len(y))


def standard_error(low: ArrayLike, high: ArrayLike) -> np.ndarray:
    """Return standard errors from 95% intervals, as if normal: never below the true ones."""
    return (np.asarray(high, float) - np.asarray(low, float)) / (2 * norm.ppf(0.975))
