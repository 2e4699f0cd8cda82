"""How error falls with data: scaling laws (their forms: `forms`) with intervals that hold.

Fits are variable projections: on a grid of the nonlinear parameters the rest is linear and solved in closed form within
its bounds; the grid then zooms in. Intervals are profile likelihoods with a Student threshold (Bates and Watts 1988):
they span every curve whose weighted residual sum of squares exceeds the least by at most t^2 s^2, over that grid. They
need no simulation, keep the bounds, and are skewed where the likelihood is. How often they hold is measured in
``book/recorded/coverage.csv``.
"""

import functools
from dataclasses import dataclass, field, replace

import numpy as np
import scipy  # its stats when they are used: they take long to import
from numpy.typing import ArrayLike

from cxrstudy.scaling.forms import FORMS, FREE, SIZES, Floats, Runs, positive
from cxrstudy.scaling.joint import JointFit, fit_joint

__all__ = ["JointFit", "ScalingFit", "fit_joint", "fit_scaling"]
_HUBER = 1.345  # residuals beyond so many deviations are cut: 95% efficient where noise is normal


@dataclass(frozen=True)
class ScalingFit:
    """A fitted law: ``exponent`` b, ``scale`` a, ``floor`` c; of a broken law b is the slope after the break at
    ``bend``, and ``early`` that before it. A run's standard deviation is ``noise`` times sigma where that was given,
    else times the curve to the power ``growth``; ``noise`` rests on ``dof`` degrees of freedom (infinite: sigma
    stands), and is surely not below ``sure`` (1 where sigma is a part of it, else 0). ``weights`` (K,) are below 1 for
    runs that a robust fit took for outliers."""

    exponent: float
    scale: float
    floor: float
    early: float
    bend: float
    noise: float
    dof: float
    sure: float
    growth: float
    weights: Floats
    runs: Runs = field(repr=False)
    node: Floats = field(repr=False)
    least: float = field(repr=False)
    resamples: int = 0
    seed: int = 0
    rivals: "tuple[ScalingFit, ...]" = field(
        default=(), repr=False
    )  # the same with a lower and a higher growth

    @property
    def law(self) -> tuple[float, ...]:
        """(b, a, c, b0, d), as `forms.Runs.curve` takes them."""
        return self.exponent, self.scale, self.floor, self.early, self.bend

    def predict(self, n: ArrayLike) -> Floats:
        """The fitted curve at n, of any shape; infinity gives the floor. ValueError: n not positive."""
        return self.runs.curve(self.law, positive(n, "n", finite=False))

    def interval(
        self, n: ArrayLike, level: float = 0.95, noise: bool = False
    ) -> tuple[Floats, Floats]:
        """(lo, hi), each in n's shape: of the noise-free curve or, with ``noise``, of one new run's value.

        Beyond the ladder a run's noise is that of the ladder's end. ``interval(np.inf)`` is the floor's.
        ValueError: n not positive, level outside (0, 1).
        """
        at, best = positive(n, "n", finite=False), self.predict(n)
        node, _, reach = self._region(level)
        ends = self.runs.extremes(node, at.ravel(), self.least + reach**2)
        lo, hi = np.fmin(ends[0].reshape(at.shape), best), np.fmax(ends[1].reshape(at.shape), best)
        if noise:  # adding squares is exact where the curve is linear in its parameters
            order, spread = np.argsort(self.runs.n), self.runs.spread * np.sqrt(self.weights)
            extra = reach * np.interp(np.log(at), np.log(self.runs.n[order]), spread[order])
            lo, hi = best - np.hypot(best - lo, extra), best + np.hypot(hi - best, extra)
        every = [(lo, hi), *(rival.interval(at, level, noise) for rival in self.rivals)]
        return np.min([lo for lo, _ in every], axis=0), np.max([hi for _, hi in every], axis=0)

    def exponent_interval(self, level: float = 0.95) -> tuple[float, float]:
        """(lo, hi) of the exponent; an end at 0.0005 or 3, the range searched, means that the data set none."""
        node, rss, reach = self._region(level)
        inside = np.exp(node[rss <= self.least + reach**2, 0])
        every = np.concatenate(
            [[self.exponent], inside, *(rival.exponent_interval(level) for rival in self.rivals)]
        )
        return float(every.min()), float(every.max())

    def samples(self, n: ArrayLike) -> Floats:
        """Curves refitted to simulated data, (resamples, *n.shape), to carry uncertainty into derived quantities.

        A parametric bootstrap whose noise level is drawn too (s^2 dof / chi^2). For the curve itself use `interval`.
        """
        rng, at, runs = np.random.default_rng(self.seed), positive(n, "n", finite=False), self.runs
        node, dof = self._region(0.9999, fine=24)[0], min(self.dof, 1e12)
        noise = (
            np.maximum(
                self.noise * np.sqrt(dof / rng.chisquare(dof, (self.resamples, 1))), self.sure
            )
            * runs.spread
        )
        y, curves = self.predict(runs.n) + noise * rng.normal(size=noise.shape), []
        for some in np.array_split(y, 1 + y.size * len(node) // 10**6):
            rss, coefficients = runs.project(node, some)
            row, best = np.arange(len(some)), rss.argmin(axis=1)
            law = runs.parameters(node[best], [k[row, best] for k in coefficients])
            curves.append(runs.curve([v[:, None] for v in law], at.ravel()))
        return np.concatenate(curves).reshape(self.resamples, *at.shape)

    def _region(self, level: float, fine: int = 100) -> tuple[Floats, Floats, float]:
        """Nodes in a box that just holds the level's region, their residual sums, and the root of the rise allowed."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        tail = (1 + level) / 2
        reach = float(
            max(
                self.noise * scipy.stats.t.ppf(tail, self.dof),
                self.sure * scipy.stats.norm.ppf(tail),
            )
        )
        return *self.runs.zoom(4, fine, within=self.least + reach**2, start=self.node), reach


def fit_scaling(
    n: ArrayLike,
    error: ArrayLike,
    *,
    sigma: ArrayLike | None = None,
    form: str = "power_floor",
    resamples: int = 1000,
    seed: int = 0,
    plateau: float = 0.5,
    robust: bool = False,
    partial: bool = False,
) -> ScalingFit:
    """Fit ``error`` (K,) measured at ``n`` (K,) images: one entry a run, so that seeds repeat an n.

    ``sigma``, scalar or (K,): the standard deviation of each error between runs; where the residuals exceed it (chi^2
    at 5%) it is scaled up to them. Without it the noise is estimated from the residuals, which one run an n allows but
    leaves wide. It may be the same everywhere (growth 0) or proportional to the curve (1): the growth is estimated too,
    and intervals span fits with 0.6 of its deviation less and more. ``plateau`` (m4): the error of a random guess.
    ``resamples`` and ``seed`` serve `ScalingFit.samples` alone.

    ``partial``: sigma is but a part of what sets runs apart (sampled patients, where each n has one seed). The noise is
    then what the residuals show, with Student's quantile, or sigma with the normal one where that reaches further; the
    curve must fall beyond both.

    ``robust`` cuts the pull of an outlying run: Huber's loss (1964) of residuals over their own deviation, by
    iteratively reweighted least squares, its scale from their median. Intervals take Huber's asymptotic variance
    (Huber and Ronchetti 2009, section 7.6). Measured, it holds as often and is as wide as least squares where runs are
    clean; with one of fourteen runs 20% off it is 1.3 to 1.6 times as wide as without that run, least squares three
    times. The book asks for it; it is off by default, being slower and not the least squares that one expects. Too few
    runs tell no outlier: with less than four degrees of freedom it changes nothing.

    ValueError, with the reason: an unknown form; shapes that differ; a value not finite or not positive; an error of 0,
    where the metric is at its ceiling; too few distinct n (3 for power, 4 for power_floor and m4 or 3 with a whole
    sigma, 5 for broken); errors that do not fall beyond their noise; in m4, errors all at the plateau.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    size, values = positive(n, "n"), np.asarray(error, dtype=np.float64)
    if size.ndim != 1 or size.shape != values.shape:
        raise ValueError(f"n has shape {size.shape}, error {values.shape}: both must be (K,)")
    if (values == 0).any():
        raise ValueError(
            f"error is 0 at n = {size[values == 0][0]:g}: the metric is at its ceiling, which no law fits"
        )
    y = positive(values, "error")
    known = sigma is not None and not partial
    need, distinct = 3 if known and form != "broken" else SIZES[form], len(np.unique(size))
    if distinct < need:
        raise ValueError(f"{form} needs at least {need} distinct n, got {distinct}")
    if form == "m4" and y.min() >= plateau:
        raise ValueError(
            f"every error is at the ceiling: {y.min():g} or more, and a random guess has {plateau:g}"
        )
    spread = np.sqrt(y) if sigma is None else np.broadcast_to(positive(sigma, "sigma"), y.shape)
    runs, find = (
        Runs(form, plateau, size, y, spread),
        functools.partial(_robust if robust else _fit, partial=partial),
    )
    fit = find(runs, np.nan if sigma is not None else 0.5)
    if sigma is None:  # the curve sets the noise, the noise the weights of the curve
        fit = find(replace(runs, spread=fit.predict(size) ** 0.5), 0.5)
    _refuse_flat(fit, {sigma is not None, known})
    if sigma is None:
        (middle, deviation), curve = _growth(fit), fit.predict(size)
        growths = (middle, middle - 0.6 * deviation, middle + 0.6 * deviation)
        fit, *rivals = (find(replace(runs, spread=curve**growth), growth) for growth in growths)
        fit = replace(fit, rivals=tuple(rivals))
    return replace(fit, resamples=resamples, seed=seed)


# ---- the parts -----------------------------------------------------------------------------------------------------
def _fit(
    runs: Runs, growth: float, weights: Floats | None = None, *, partial: bool = False
) -> ScalingFit:
    """Weighted least squares. ``growth`` tells what the spread is: the curve to that power; NaN: a given sigma, of all
    the noise or ``partial``. ``weights`` (K,): Huber's, which multiply those of the spread."""
    w = np.ones(len(runs.n)) if weights is None else weights
    runs = replace(runs, spread=runs.spread / np.sqrt(w))
    node = runs.best()
    sums, coefficients = runs.project(node, runs.error[None])
    b, a, c, early, bend = law = [
        float(v[0]) for v in runs.parameters(node, [k[0] for k in coefficients])
    ]
    least, free = float(sums[0, 0]), FREE[runs.form]
    dof = len(runs.n) - free
    noise, rests_on, given = 1.0, np.inf, bool(np.isnan(growth))
    if not given or partial or (dof >= 1 and least > scipy.stats.chi2.ppf(0.95, dof)):
        whole = (w == 1).mean()  # Huber's variance, which at w = 1 is the usual one
        cut = w * ((runs.error - runs.curve(law, runs.n)) / runs.spread) ** 2
        correction = w.mean() * ((1 + free / len(w) * (1 - whole) / whole) / whole) ** 2
        noise, rests_on = float(np.sqrt(correction * cut.sum() / dof)), float(dof)
    sure = float(given and partial)
    return ScalingFit(b, a, c, early, bend, noise, rests_on, sure, growth, w, runs, node, least)


def _robust(runs: Runs, growth: float, *, partial: bool = False) -> ScalingFit:
    """As `_fit` by Huber's loss; a given sigma (growth NaN) is the least that its scale can be."""
    fit, dof = _fit(runs, growth, partial=partial), len(runs.n) - FREE[runs.form]
    for _ in range(30 if dof >= 4 else 0):
        off = np.abs(runs.error - fit.predict(runs.n)) / runs.spread
        scale = np.median(off) / scipy.stats.norm.ppf(0.75) * np.sqrt(len(off) / dof)
        allowed = _HUBER * max(float(scale), 1.0 if np.isnan(growth) else 1e-300)
        weights = np.minimum(1, allowed / np.maximum(off, 1e-300))
        if np.abs(weights - fit.weights).max() < 1e-3:
            break
        fit = _fit(runs, growth, weights, partial=partial)
    return fit


def _growth(fit: ScalingFit) -> tuple[float, float]:
    """Posterior mean and deviation of the noise's growth, flat on [-1, 2] beforehand, by restricted likelihood
    (Patterson and Thompson 1971) about the fit's tangent plane, which allows for the residuals that a fit takes up."""
    runs, curve, power = fit.runs, fit.predict(fit.runs.n), np.linspace(-1, 2, 61)
    slopes = []
    for k in {"power": (0, 1), "broken": (0, 1, 3, 4)}.get(runs.form, (0, 1, 2)):
        law = list(fit.law)
        step = 1e-5 * max(law[k], curve.mean() if k == 2 else 1e-300)
        law[k] += step
        slope = runs.curve(law, runs.n) - curve
        slopes.append(slope / max(np.abs(slope).max(), 1e-300))
    plane, rest = np.stack(slopes, axis=1), runs.error - curve
    weight = fit.weights * curve ** (-2 * power[:, None])
    gram = np.einsum("ki,tk,kj->tij", plane, weight, plane)
    scale = np.sqrt(
        np.maximum(np.einsum("tii->ti", gram), 1e-300)
    )  # columns of one length: else the ridge would hang on the unit of n
    gram = gram / (scale[:, :, None] * scale[:, None, :]) + 1e-9 * np.eye(len(slopes))
    pull = np.einsum("ki,tk->ti", plane, weight * rest) / scale
    left = (weight * rest**2).sum(axis=1) - (
        pull * np.linalg.solve(gram, pull[..., None])[..., 0]
    ).sum(axis=1)
    log_odds = (
        -2 * power * np.log(curve).sum()
        - np.linalg.slogdet(gram)[1]
        - 2 * np.log(scale).sum(axis=1)
    )
    log_odds -= (len(rest) - len(slopes)) * np.log(np.maximum(left, 1e-300))
    odds = scipy.special.softmax(log_odds / 2)
    return float(odds @ power), float(np.sqrt(odds @ (power - odds @ power) ** 2))


def _refuse_flat(fit: ScalingFit, given: set[bool]) -> None:
    """ValueError unless the errors fall, with the noise ``given`` and as the residuals show it, where both are asked:
    by the slope of log error on log n, or by the fit against a constant (5%). That they rise (5%) is said."""
    n, error, spread, least = fit.runs.n, fit.runs.error, fit.runs.spread, fit.least
    free = FREE[fit.runs.form] - 1  # parameters beyond a constant
    weight, dof = (error / spread) ** 2, len(error) - free - 1
    x, y = (v - np.average(v, weights=weight) for v in (np.log(n), np.log(error)))
    gram = (weight * x * x).sum()
    slope = (weight * x * y).sum() / gram
    gain = float(((error - np.average(error, weights=spread**-2)) ** 2 / spread**2).sum()) - least
    falls = rises = float(np.ptp(y) <= 1e-9)
    better = gain > 1e-12 * weight.sum()
    for known in given:
        if known:
            slopes, curve = (
                scipy.stats.norm.cdf(slope * np.sqrt(gram)),
                scipy.stats.chi2.sf(gain, free),
            )
        else:
            left, pure = (
                (weight * (y - slope * x) ** 2).sum() / (len(y) - 2),
                max(least / dof, 1e-300),
            )
            slopes = scipy.stats.t.cdf(slope / np.sqrt(max(left, 1e-300) / gram), len(y) - 2)
            curve = scipy.stats.f.sf(gain / free / pure, free, dof)
        falls = max(
            falls, min(1.0, 2 * min(slopes, curve)) if better else 1.0
        )  # two chances were given
        rises = max(rises, 2 * (1 - slopes))
    if falls >= 0.05:
        ends = " and ".join(f"{error[n == m].mean():.4g} at n = {m:g}" for m in (n.min(), n.max()))
        if rises < 0.05:
            raise ValueError(f"error rises with n beyond its noise (p = {rises:.2g}; {ends})")
        why = "it may lie at its floor or ceiling already, or more sizes and seeds are needed"
        raise ValueError(
            f"error does not fall with n beyond its noise (p = {falls:.2f}; {ends}): {why}"
        )
