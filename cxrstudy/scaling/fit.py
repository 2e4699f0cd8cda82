"""Scaling laws: how error falls with the number of images, with intervals that keep their level.

Fits are variable projections on a grid (``forms``). Intervals are profile likelihoods with a
threshold of Student's t (Bates and Watts 1988): they span every curve whose weighted residual sum
of squares exceeds the least one by at most t^2 s^2. They need no simulation, respect the bounds of
the parameters, and are as skewed as the likelihood. Their measured coverage is in
``book/recorded/coverage.csv``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import scipy  # its stats where they are used: they take long to import
from numpy.typing import ArrayLike

from cxrstudy.scaling.forms import (
    FORMS,
    MIN_SIZES,
    N_PARAMETERS,
    CurveData,
    Floats,
    Noise,
    positive,
)
from cxrstudy.scaling.joint import JointFit, fit_joint

__all__ = ["JointFit", "ScalingFit", "fit_joint", "fit_scaling"]
_HUBER = 1.345  # larger residuals, in standard deviations, are cut: 95% efficient on normal noise


@dataclass(frozen=True)
class ScalingFit:
    """A fitted law, as ``forms`` writes it."""

    exponent: float  # b
    scale: float  # a
    floor: float  # c
    sigma_hat: float  # a run's standard deviation over that of ``data``
    dof: float  # degrees of freedom of sigma_hat; infinite where sigma was given and fits
    sigma_floor: float  # lower bound of sigma_hat: 1 where sigma is a part of the noise, else 0
    weights: Floats = field(repr=False)  # (K,), below 1 for what a robust fit takes for outliers
    data: CurveData = field(repr=False)
    grid_point: Floats = field(repr=False)  # (1, .)
    rss_min: float = field(repr=False)  # the least weighted residual sum of squares
    noise_exponent: float | None = None  # noise is the curve to this power; None: sigma was given
    alternative_fits: "tuple[ScalingFit, ...]" = field(default=(), repr=False)  # other exponents
    resamples: int = 0
    seed: int = 0

    @property
    def form(self) -> str:
        """The form of the law: one of ``forms.FORMS``."""
        return self.data.form

    @property
    def law(self) -> tuple[float, float, float]:
        """The parameters (b, a, c)."""
        return self.exponent, self.scale, self.floor

    def predict(self, n: ArrayLike) -> Floats:
        """Return the fitted curve at n, of any shape; infinity gives the floor.

        Raises:
            ValueError: n is not positive.
        """
        return self.data.curve(self.law, positive(n, "n", finite=False))

    def interval(
        self, n: ArrayLike, level: float = 0.95, noise: bool = False
    ) -> tuple[Floats, Floats]:
        """Return the interval of the curve, or of one new run.

        Args:
            n: images, of any shape; infinity for the interval of the floor.
            level: confidence level.
            noise: whether to include a new run's noise. Outside the sizes measured, it is that of
                the nearest one.

        Returns:
            The lower and the upper ends, each in n's shape.

        Raises:
            ValueError: n is not positive, or level is outside (0, 1).
        """
        at, best = positive(n, "n", finite=False), self.predict(n)
        grid, _, reach = self._region(level)
        ends = self.data.profile_bounds(grid, at.ravel(), self.rss_min + reach**2)
        low = np.fmin(ends[0].reshape(at.shape), best)
        high = np.fmax(ends[1].reshape(at.shape), best)
        if noise:  # adding squares is exact where the curve is linear in its parameters
            order, sigma = np.argsort(self.data.n), self.data.sigma * np.sqrt(self.weights)
            extra = reach * np.interp(np.log(at), np.log(self.data.n[order]), sigma[order])
            low, high = best - np.hypot(best - low, extra), best + np.hypot(high - best, extra)
        every = [(low, high), *(f.interval(at, level, noise) for f in self.alternative_fits)]
        return np.min([pair[0] for pair in every], axis=0), np.max([p[1] for p in every], axis=0)

    def exponent_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return (low, high) of the exponent.

        An end at 0.0005 or 3, the range searched, means that the data set no bound.

        Raises:
            ValueError: level is outside (0, 1).
        """
        grid, rss, reach = self._region(level)
        inside = np.exp(grid[rss <= self.rss_min + reach**2, 0])
        others = [f.exponent_interval(level) for f in self.alternative_fits]
        every = np.concatenate([[self.exponent], inside, *others])
        return float(every.min()), float(every.max())

    def samples(self, n: ArrayLike) -> Floats:
        """Return curves refitted to simulated data, to carry uncertainty into derived quantities.

        This is a parametric bootstrap that draws the noise level too (s^2 dof / chi^2). For the
        curve itself use ``interval``.

        Args:
            n: images, of any shape.

        Returns:
            (resamples, *n.shape).

        Raises:
            ValueError: n is not positive.
        """
        at, data = positive(n, "n", finite=False), self.data
        rng, dof = np.random.default_rng(self.seed), min(self.dof, 1e12)
        grid = self._region(0.9999, fine=24)[0]
        drawn = self.sigma_hat * np.sqrt(dof / rng.chisquare(dof, (self.resamples, 1)))
        sigma = np.maximum(drawn, self.sigma_floor) * data.sigma  # (resamples, K)
        y, curves = self.predict(data.n) + sigma * rng.normal(size=sigma.shape), []
        for some in np.array_split(y, 1 + y.size * len(grid) // 10**6):
            rss, coefficients = data.project(grid, some)
            row, best = np.arange(len(some)), rss.argmin(axis=1)
            law = data.law(grid[best], [k[row, best] for k in coefficients])
            curves.append(data.curve([v[:, None] for v in law], at.ravel()))
        return np.concatenate(curves).reshape(self.resamples, *at.shape)

    def _region(self, level: float, fine: int = 100) -> tuple[Floats, Floats, float]:
        """Return a grid around a level's region, its residual sums, and the root of the threshold.

        The region has residual sums up to ``rss_min`` plus that root's square.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        tail = (1 + level) / 2
        estimated = self.sigma_hat * scipy.stats.t.ppf(tail, self.dof)
        reach = float(max(estimated, self.sigma_floor * scipy.stats.norm.ppf(tail)))
        limit = self.rss_min + reach**2
        return *self.data.refine_grid(4, fine, within=limit, start=self.grid_point), reach


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
    """Fit a scaling law to the errors of runs.

    Without ``sigma`` the residuals give the noise, as a power of the curve: exponent 0 is constant
    noise, 1 is proportional noise. That exponent is estimated too. Intervals span fits with 0.6 of
    its standard deviation less and more.

    Args:
        n: (K,) images of each run; an n is repeated for its seeds.
        error: (K,) errors, such as 1 - AUROC.
        sigma: standard deviation of each error between runs, one for all or (K,). It is scaled up
            where the residuals exceed it (chi^2 test at 5%). None: the residuals estimate it. One
            run an n is then enough, with a wide interval.
        form: ``power``, ``power_floor`` or ``m4`` (``forms``).
        resamples: curves that ``ScalingFit.samples`` returns.
        seed: of these curves.
        plateau: m4: the error of a random guess.
        robust: whether outlying runs lose weight, by Huber's loss (1964). Intervals then use his
            asymptotic variance (Huber and Ronchetti 2009, section 7.6). On clean runs coverage and
            width stay the same. With one of fourteen runs 20% off, intervals are 1.3 to 1.6 times
            as wide as without that run, those of least squares three times. With less than four
            degrees of freedom it changes nothing.
        partial: whether sigma is a part of the noise alone, such as that of sampled patients. The
            noise is then that of the residuals with Student's quantile, or sigma with the normal
            quantile where that is wider.

    Returns:
        The fit.

    Raises:
        ValueError: an unknown form; shapes that differ; a value that is not finite or not positive;
            an error of 0, where the metric is at its ceiling; too few distinct n
            (``forms.MIN_SIZES``, or 3 where sigma is all of the noise); errors that do not fall
            beyond their noise; m4 with all errors at the plateau.
    """
    noise = Noise.ESTIMATED if sigma is None else Noise.PARTIAL if partial else Noise.GIVEN
    data = _checked(n, error, sigma, form, plateau, noise)
    find = _huber if robust else _least_squares
    fit = find(data)
    if sigma is None:  # the curve sets the noise, the noise sets the weights of the curve
        fit = find(replace(data, sigma=fit.predict(data.n) ** 0.5))
    _require_fall(fit)
    if sigma is None:
        fit = _with_noise_exponent(fit, find)
    return replace(fit, resamples=resamples, seed=seed)


# ---- steps of a fit ------------------------------------------------------------------------------
def _checked(
    n: ArrayLike, error: ArrayLike, sigma: ArrayLike | None, form: str, plateau: float, noise: Noise
) -> CurveData:
    """The runs to fit, or the ValueError of ``fit_scaling``."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    size, values = positive(n, "n"), np.asarray(error, dtype=np.float64)
    if size.ndim != 1 or size.shape != values.shape:
        raise ValueError(f"n has shape {size.shape}, error {values.shape}: both must be (K,)")
    if (values == 0).any():
        at = f"n = {size[values == 0][0]:g}"
        raise ValueError(f"error is 0 at {at}: the metric is at its ceiling, where no law fits")
    y, distinct = positive(values, "error"), len(np.unique(size))
    need = 3 if noise is Noise.GIVEN else MIN_SIZES[form]
    if distinct < need:
        raise ValueError(f"{form} needs at least {need} distinct n, got {distinct}")
    if form == "m4" and y.min() >= plateau:
        least = f"{y.min():g} or more, and a random guess has {plateau:g}"
        raise ValueError(f"every error is at the ceiling: {least}")
    sd = np.sqrt(y) if sigma is None else np.broadcast_to(positive(sigma, "sigma"), y.shape)
    return CurveData(form, plateau, size, y, sd, noise)


def _least_squares(data: CurveData, weights: Floats | None = None) -> ScalingFit:
    """Fit by least squares; ``weights`` (K,) are those of Huber's loss, None for ones."""
    w = np.ones(len(data.n)) if weights is None else weights
    data = replace(data, sigma=data.sigma / np.sqrt(w))
    point = data.best()
    sums, coefficients = data.project(point, data.error[None])
    b, a, c = (float(v[0]) for v in data.law(point, [k[0] for k in coefficients]))
    rss, free = float(sums[0, 0]), N_PARAMETERS[data.form]
    dof = len(data.n) - free
    refuted = dof >= 1 and rss > scipy.stats.chi2.ppf(0.95, dof)
    sigma_hat, its_dof = 1.0, np.inf
    if refuted or data.noise is not Noise.GIVEN:
        whole = (w == 1).mean()  # Huber's variance, which is the usual one where w = 1
        cut = w * ((data.error - data.curve((b, a, c), data.n)) / data.sigma) ** 2
        correction = w.mean() * ((1 + free / len(w) * (1 - whole) / whole) / whole) ** 2
        sigma_hat, its_dof = float(np.sqrt(correction * cut.sum() / dof)), float(dof)
    return ScalingFit(
        exponent=b,
        scale=a,
        floor=c,
        sigma_hat=sigma_hat,
        dof=its_dof,
        sigma_floor=float(data.noise is Noise.PARTIAL),
        weights=w,
        data=data,
        grid_point=point,
        rss_min=rss,
    )


def _huber(data: CurveData) -> ScalingFit:
    """Fit by Huber's loss, with iteratively reweighted least squares.

    Its scale comes from the median residual; where sigma was given, that is its lower bound.
    """
    fit, dof = _least_squares(data), len(data.n) - N_PARAMETERS[data.form]
    least = 1e-300 if data.noise is Noise.ESTIMATED else 1.0
    for _ in range(30 if dof >= 4 else 0):
        off = np.abs(data.error - fit.predict(data.n)) / data.sigma
        scale = np.median(off) / scipy.stats.norm.ppf(0.75) * np.sqrt(len(off) / dof)
        weights = np.minimum(1, _HUBER * max(float(scale), least) / np.maximum(off, 1e-300))
        if np.abs(weights - fit.weights).max() < 1e-3:
            break
        fit = _least_squares(data, weights)
    return fit


def _with_noise_exponent(fit: ScalingFit, find: Callable[[CurveData], ScalingFit]) -> ScalingFit:
    """Fit again with the estimated exponent of the noise, and with a lower and a higher one."""
    (mean, sd), curve, data = _noise_exponent(fit), fit.predict(fit.data.n), fit.data
    fits = []
    for exponent in (mean, mean - 0.6 * sd, mean + 0.6 * sd):
        found = find(replace(data, sigma=curve**exponent))
        fits.append(replace(found, noise_exponent=exponent))
    return replace(fits[0], alternative_fits=tuple(fits[1:]))


def _noise_exponent(fit: ScalingFit) -> tuple[float, float]:
    """Return the posterior mean and SD of the noise's exponent, with a flat prior on [-1, 2].

    The restricted likelihood (Patterson and Thompson 1971) about the fit's tangent plane allows for
    the residuals that a fit takes up.
    """
    data, curve, exponents = fit.data, fit.predict(fit.data.n), np.linspace(-1, 2, 61)  # (T,)
    slopes = []
    for k in range(N_PARAMETERS[data.form]):
        law = list(fit.law)
        law[k] += 1e-5 * max(law[k], curve.mean() if k == 2 else 1e-300)
        slope = data.curve(law, data.n) - curve
        slopes.append(slope / max(np.abs(slope).max(), 1e-300))
    plane, rest = np.stack(slopes, axis=1), data.error - curve  # (K, P), (K,)
    weight = fit.weights * curve ** (-2 * exponents[:, None])  # (T, K)
    gram = np.einsum("ki,tk,kj->tij", plane, weight, plane)
    # Columns of one length: otherwise the ridge would depend on the unit of n.
    scale = np.sqrt(np.maximum(np.einsum("tii->ti", gram), 1e-300))
    gram = gram / (scale[:, :, None] * scale[:, None, :]) + 1e-9 * np.eye(len(slopes))
    pull = np.einsum("ki,tk->ti", plane, weight * rest) / scale
    taken = (pull * np.linalg.solve(gram, pull[..., None])[..., 0]).sum(axis=1)
    left = (weight * rest**2).sum(axis=1) - taken
    log_odds = -2 * exponents * np.log(curve).sum() - np.linalg.slogdet(gram)[1]
    log_odds = log_odds - 2 * np.log(scale).sum(axis=1)
    log_odds -= (len(rest) - len(slopes)) * np.log(np.maximum(left, 1e-300))
    odds = scipy.special.softmax(log_odds / 2)
    mean = float(odds @ exponents)
    return mean, float(np.sqrt(odds @ (exponents - mean) ** 2))


def _require_fall(fit: ScalingFit) -> None:
    """Raise ValueError unless the errors fall beyond their noise (5%).

    Two tests: the slope of log error on log n, and the fit against a constant. Noise that was given
    and noise that the residuals show are tested apart: the errors must fall beyond both.
    """
    data, n, error = fit.data, fit.data.n, fit.data.error
    weight = (error / data.sigma) ** 2
    x, y = (v - np.average(v, weights=weight) for v in (np.log(n), np.log(error)))
    gram = (weight * x * x).sum()
    slope = (weight * x * y).sum() / gram
    constant = np.average(error, weights=data.sigma**-2)
    gain = float(((error - constant) ** 2 / data.sigma**2).sum()) - fit.rss_min
    free = N_PARAMETERS[data.form] - 1  # parameters beyond a constant
    dof = len(error) - free - 1
    tests = []  # p that the slope is not negative, p that a constant fits
    if data.noise is not Noise.ESTIMATED:
        p_slope = scipy.stats.norm.cdf(slope * np.sqrt(gram))
        tests.append((p_slope, scipy.stats.chi2.sf(gain, free)))
    if data.noise is not Noise.GIVEN:
        left = (weight * (y - slope * x) ** 2).sum() / (len(y) - 2)
        p_slope = scipy.stats.t.cdf(slope / np.sqrt(max(left, 1e-300) / gram), len(y) - 2)
        pure = max(fit.rss_min / dof, 1e-300)
        tests.append((p_slope, scipy.stats.f.sf(gain / free / pure, free, dof)))
    flat = float(np.ptp(y) <= 1e-9)
    better = gain > 1e-12 * weight.sum()
    # Twice the smaller p, since either test is enough.
    p_falls = max(flat, *(min(1.0, 2 * min(test)) if better else 1.0 for test in tests))
    p_rises = max(flat, *(2 * (1 - p_slope) for p_slope, _ in tests))
    if p_falls < 0.05:
        return
    ends = " and ".join(f"{error[n == m].mean():.4g} at n = {m:g}" for m in (n.min(), n.max()))
    if p_rises < 0.05:
        raise ValueError(f"error rises with n beyond its noise (p = {p_rises:.2g}; {ends})")
    why = "it may be at its floor or ceiling, or more sizes and seeds are needed"
    raise ValueError(
        f"error does not fall with n beyond its noise (p = {p_falls:.2f}; {ends}): {why}"
    )
