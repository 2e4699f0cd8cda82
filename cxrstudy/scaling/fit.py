"""How error falls with data: scaling laws with intervals that hold, and the joint law of model size and data.

Forms, n the number of images, all of a, b, c at least 0:

    power        error = a n^-b
    power_floor  error = c + a n^-b
    m4           (error - c) / (plateau - error) = a n^-b, so error = c + (plateau - c) r / (1 + r) with r = a n^-b

m4 is the fourth estimator of Alabdulmohsin et al. 2022 (a random guess at one end, a floor at the other) with the
exponent of its denominator held at 1: five or six sizes cannot tell a fourth parameter.

Fits are variable projections: on a grid of the nonlinear parameters (b; in m4 also a) the rest is linear and solved in
closed form within its bounds; the grid then zooms in. Intervals are profile likelihoods with a Student threshold (Bates
and Watts 1988): they span every curve whose weighted residual sum of squares exceeds the least by at most t^2 s^2, over
that grid. They need no simulation, keep the bounds, and are skewed where the likelihood is.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]
_FORMS = ("power", "power_floor", "m4")
_SEARCHED = np.log([[0.005, 3.0], [1e-5, 1e3]])  # of the exponent and, for m4, of r at the middle of the data


@dataclass(frozen=True)
class ScalingFit:
    """A fitted law: ``exponent`` b, ``floor`` c, ``scale`` a. A run's standard deviation is ``noise`` times sigma where
    that was given, else times the curve to the power ``growth``; ``noise`` rests on ``dof`` degrees of freedom
    (infinite: sigma stands)."""

    exponent: float
    scale: float
    floor: float
    noise: float
    dof: float
    growth: float
    runs: "_Runs" = field(repr=False)
    node: Floats = field(repr=False)
    least: float = field(repr=False)
    resamples: int = 0
    seed: int = 0
    rivals: "tuple[ScalingFit, ...]" = field(default=(), repr=False)  # the same with a lower and a higher growth

    def predict(self, n: ArrayLike) -> Floats:
        """The fitted curve at n, of any shape; infinity gives the floor. ValueError: n not positive."""
        return self.runs.curve((self.exponent, self.scale, self.floor), _positive(n, "n", finite=False))

    def interval(self, n: ArrayLike, level: float = 0.95, noise: bool = False) -> tuple[Floats, Floats]:
        """(lo, hi), each in n's shape: of the noise-free curve or, with ``noise``, of one new run's value.

        Beyond the ladder a run's noise is that of the ladder's end. ``interval(np.inf)`` is the floor's.
        ValueError: n not positive, level outside (0, 1).
        """
        at, best = _positive(n, "n", finite=False), self.predict(n)
        node, _, reach = self._region(level)
        ends = self.runs.extremes(node, at.ravel(), self.least + reach**2)
        lo, hi = np.fmin(ends[0].reshape(at.shape), best), np.fmax(ends[1].reshape(at.shape), best)
        if noise:  # adding squares is exact where the curve is linear in its parameters
            order = np.argsort(self.runs.n)
            extra = reach * np.interp(np.log(at), np.log(self.runs.n[order]), self.runs.spread[order])
            lo, hi = best - np.hypot(best - lo, extra), best + np.hypot(hi - best, extra)
        every = [(lo, hi), *(rival.interval(at, level, noise) for rival in self.rivals)]
        return np.min([lo for lo, _ in every], axis=0), np.max([hi for _, hi in every], axis=0)

    def exponent_interval(self, level: float = 0.95) -> tuple[float, float]:
        """(lo, hi) of the exponent; an end at 0.005 or 3, the range searched, means that the data set none."""
        node, rss, reach = self._region(level)
        inside = np.exp(node[rss <= self.least + reach**2, 0])
        every = np.concatenate([[self.exponent], inside, *(rival.exponent_interval(level) for rival in self.rivals)])
        return float(every.min()), float(every.max())

    def samples(self, n: ArrayLike) -> Floats:
        """Curves refitted to simulated data, (resamples, *n.shape), to carry uncertainty into derived quantities.

        A parametric bootstrap whose noise level is drawn too (s^2 dof / chi^2). For the curve itself use `interval`.
        """
        rng, at, runs = np.random.default_rng(self.seed), _positive(n, "n", finite=False), self.runs
        node, dof = self._region(0.9999, fine=24)[0], min(self.dof, 1e12)
        noise = self.noise * np.sqrt(dof / rng.chisquare(dof, (self.resamples, 1))) * runs.spread
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
        reach = self.noise * float(stats.t.ppf((1 + level) / 2, self.dof))
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
) -> ScalingFit:
    """Fit ``error`` (K,) measured at ``n`` (K,) images: one entry a run, so that seeds repeat an n.

    ``sigma``, scalar or (K,): the standard deviation of each error between runs; where the residuals exceed it (chi^2
    at 5%) it is scaled up to them. Without it the noise is estimated from the residuals, which one run an n allows but
    leaves wide. It may be the same everywhere (growth 0) or proportional to the curve (1): the growth is estimated too,
    and intervals span fits with 0.75 of its deviation less and more. ``plateau`` (m4): the error of a random guess.
    ``resamples`` and ``seed`` serve `ScalingFit.samples` alone.

    ValueError, with the reason: an unknown form; shapes that differ; a value not finite or not positive; fewer than 3
    distinct n (4 for power_floor and m4 without sigma); errors that do not fall beyond their noise; in m4, errors all
    at the plateau.
    """
    if form not in _FORMS:
        raise ValueError(f"form must be one of {', '.join(_FORMS)}, got {form!r}")
    size, y = _positive(n, "n"), _positive(error, "error")
    if size.ndim != 1 or size.shape != y.shape:
        raise ValueError(f"n has shape {size.shape}, error {y.shape}: both must be (K,)")
    need, distinct = 3 if form == "power" or sigma is not None else 4, len(np.unique(size))
    if distinct < need:
        raise ValueError(f"{form} needs at least {need} distinct n, got {distinct}")
    if form == "m4" and y.min() >= plateau:
        raise ValueError(f"every error is at the ceiling: {y.min():g} or more, and a random guess has {plateau:g}")
    spread = np.sqrt(y) if sigma is None else np.broadcast_to(_positive(sigma, "sigma"), y.shape)
    runs = _Runs(form, plateau, size, y, spread)
    fit = _fit(runs, np.nan if sigma is not None else 0.5)
    if sigma is None:  # the curve sets the noise, the noise the weights of the curve
        fit = _fit(replace(runs, spread=fit.predict(size) ** 0.5), 0.5)
    _refuse_flat(fit, sigma is not None)
    if sigma is None:
        (middle, deviation), curve = _growth(fit), fit.predict(size)
        growths = (middle, middle - 0.75 * deviation, middle + 0.75 * deviation)
        fit, *rivals = (_fit(replace(runs, spread=curve**growth), growth) for growth in growths)
        fit = replace(fit, rivals=tuple(rivals))
    return replace(fit, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class JointFit:
    """loss = E + A / n^alpha + B / d^beta."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def predict(self, n: ArrayLike, d: ArrayLike) -> Floats:
        """The fitted loss at model sizes n and data sizes d (broadcast). ValueError: one is not positive."""
        size, data = _positive(n, "n", finite=False), _positive(d, "d", finite=False)
        return np.asarray(self.E + self.A * size**-self.alpha + self.B * data**-self.beta)


def fit_joint(n: ArrayLike, d: ArrayLike, loss: ArrayLike, *, delta: float = 1e-3) -> JointFit:
    """Fit E + A/n^alpha + B/d^beta by the Huber loss (summed) of log loss: model sizes n, data sizes d, all (K,).

    Chinchilla's third approach (Hoffmann et al. 2022): log prediction = logsumexp of three terms, from a grid of
    starts. The published fit stopped early, its averaged loss having gradients below the optimiser's tolerance
    (Besiroglu et al. 2024): here the sum is divided by ``delta`` and the best starts run until their gradients vanish.
    ValueError: shapes differ, a value not finite or not positive, fewer than 6 runs or 3 distinct n or d.
    """
    size, data, y = _positive(n, "n"), _positive(d, "d"), _positive(loss, "loss")
    if size.ndim != 1 or not size.shape == data.shape == y.shape:
        raise ValueError(f"n {size.shape}, d {data.shape} and loss {y.shape} must be (K,)")
    if len(y) < 6 or min(len(np.unique(size)), len(np.unique(data))) < 3:
        raise ValueError("the joint law needs at least 6 runs with 3 distinct n and 3 distinct d")
    x, target = -np.log([size, data]), np.log(y)
    middle = x.mean(axis=1)
    x = x - middle[:, None]

    def objective(p: Floats) -> tuple[Floats, Floats]:
        """Values (S,) and gradients (S, 5) at p (S, 5): log of the three terms at the middle, then the exponents."""
        terms = p[:, :3, None] + np.pad(p[:, 3:, None] * x, ((0, 0), (1, 0), (0, 0)))  # (S, 3, K)
        total = special.logsumexp(terms, axis=1, keepdims=True)
        pull = np.exp(terms - total) * np.clip((total - target) / delta, -1, 1)
        gradient = np.concatenate([pull.sum(axis=-1), (pull[:, 1:] * x).sum(axis=-1)], axis=1)
        return special.huber(delta, total[:, 0] - target).sum(axis=-1) / delta, gradient

    shares, exponents = target.min() + np.log([0.02, 0.1, 0.3, 0.6, 0.9]), [0.1, 0.3, 0.5, 0.8, 1.2]
    starts = np.stack(np.meshgrid(*[shares] * 3, *[exponents] * 2), axis=-1).reshape(-1, 5)
    starts = starts[np.argsort(objective(starts)[0])[:24]]
    fits = [
        optimize.minimize(lambda p: [v[0] for v in objective(p[None])], start, jac=True, options={"gtol": 1e-6})
        for start in starts
    ]
    best = min(fits, key=lambda fit: fit.fun)
    if np.abs(best.jac).max() > 1e-2:
        warnings.warn(f"fit_joint stopped at a gradient of {np.abs(best.jac).max():.1g}, not at 0", stacklevel=2)
    e, a, b, alpha, beta = best.x
    A, B = np.exp([a - alpha * middle[0], b - beta * middle[1]])
    return JointFit(float(np.exp(e)), float(A), float(alpha), float(B), float(beta))


# ---- the parts -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Runs:
    """K runs to fit. A node of the grid (M, 1 or 2) is log b and, for m4, log r at the middle of the data."""

    form: str
    plateau: float
    n: Floats  # (K,)
    error: Floats  # (K,)
    spread: Floats  # (K,) standard deviation of each error, up to a factor where none was given

    def curve(self, law: Sequence[Floats | float], n: Floats) -> Floats:
        """The law (b, a, c) at n; infinity gives c."""
        b, a, c = (np.asarray(v) for v in law)
        power = a * n**-b
        return c + (self.plateau - c) * power / (1 + power) if self.form == "m4" else c + power

    def parameters(self, node: Floats, best: list[Floats]) -> tuple[Floats, Floats, Floats]:
        """b, a and c of nodes (M, .) and their coefficients (M,)."""
        b = np.exp(node[:, 0])
        unit = np.exp(b * np.log(self.n).mean())
        if self.form == "m4":
            return b, unit * np.exp(node[:, 1]), best[0]
        return b, unit * best[0], best[1] if self.form == "power_floor" else np.zeros_like(b)

    def columns(self, node: Floats, n: Floats) -> tuple[Floats | float, list[Floats]]:
        """The curve at n (X,): an offset and the columns (M, X) of its coefficients: a; a and c; for m4 c."""
        fall = np.exp(node[:, :1]) * (np.log(self.n).mean() - np.log(n))
        if self.form == "m4":
            share = special.expit(node[:, 1:] + fall)
            return self.plateau * share, [1 - share]
        return 0.0, [np.exp(fall), np.ones_like(fall)][: 1 if self.form == "power" else 2]

    def project(self, node: Floats, error: Floats) -> tuple[Floats, list[Floats]]:
        """Least residual sums (R, M) of errors (R, K) at every node, and the coefficients (R, M) that give them."""
        weight = self.spread**-2
        offset, columns = self.columns(node, self.n)
        rest = error[:, None] - offset
        pull = [(rest * p) @ weight for p in columns]
        best = [np.clip(f / ((p * p) @ weight), 0, self.cap) for f, p in zip(pull, columns, strict=True)]
        if len(columns) == 2:
            (aa, ac), cc = ((columns[0] * p) @ weight for p in columns), weight.sum()
            a, c = (v / (aa * cc - ac**2) for v in (cc * pull[0] - ac * pull[1], aa * pull[1] - ac * pull[0]))
            best = [np.where(c < 0, best[0], np.maximum(a, 0)), np.where(a < 0, best[1], np.maximum(c, 0))]
        left = rest - sum(k[..., None] * p for k, p in zip(best, columns, strict=True))
        return left**2 @ weight, best

    def extremes(self, node: Floats, n: Floats, threshold: float) -> tuple[Floats, Floats]:
        """Lowest and highest curve at n (X,) over all nodes with a residual sum within the threshold.

        At a node the coefficients fill an ellipse cut by their bounds, on which a linear function is extreme at the
        ends of a bounding edge (one coefficient alone) or where it touches the ellipse.
        """
        weight = self.spread**-2
        offset, columns = self.columns(node, self.n)
        base, targets = self.columns(node, n)
        rest, found = self.error - offset, []
        for p, target in zip(columns, targets, strict=True):
            gram = (p * p) @ weight
            centre = (rest * p) @ weight / gram
            room = threshold - (rest - centre[:, None] * p) ** 2 @ weight
            half = np.sqrt(np.maximum(room, 0) / gram)
            good = (room >= 0) & (centre + half >= 0) & (centre - half <= self.cap)
            ends = (np.clip(centre + side * half, 0, self.cap) for side in (-1, 1))
            found += [np.where(good[:, None], base + end[:, None] * target, np.nan) for end in ends]
        if len(columns) == 2:
            p, u = columns[0], targets[0].T  # (X, M)
            aa, ac, cc, ay, cy = p * p @ weight, p @ weight, weight.sum(), rest * p @ weight, rest @ weight
            det = aa * cc - ac**2
            a, c = (cc * ay - ac * cy) / det, (aa * cy - ac * ay) / det
            to_a, to_c = (cc * u - ac) / det, (aa - ac * u) / det  # the inverse Gram matrix times the target
            room = threshold - (rest - a[:, None] * p - c[:, None]) ** 2 @ weight
            for half in (side * np.sqrt(np.maximum(room, 0) / (to_a * u + to_c)) for side in (-1, 1)):
                at_a, at_c = a + half * to_a, c + half * to_c
                good = (room >= 0) & (at_a >= 0) & (at_c >= 0)
                found.append(np.where(good, at_a * u + at_c, np.nan).T)
        return np.fmin.reduce(np.concatenate(found)), np.fmax.reduce(np.concatenate(found))

    def zoom(
        self, rounds: int, fine: int, within: float | None = None, start: Floats | None = None
    ) -> tuple[Floats, Floats]:
        """Nodes and their residual sums (M,) after shrinking the box around the least, or around all ``within``.

        In two dimensions that region is a narrow ridge, so the box turns with it.
        """
        full = _SEARCHED[: 2 if self.form == "m4" else 1].T
        (low, high), turn = full, np.eye(len(full[0]))
        count, node, rss = fine if self.form == "m4" else 4 * fine, full[:0], full[:0, 0]
        for _ in range(rounds):
            if np.max(high - low) < 1e-8:
                break
            axes = np.linspace(low, high, count).T
            node = np.clip(np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, len(axes)) @ turn.T, *full)
            node = node if start is None else np.concatenate([node, start])
            rss = self.project(node, self.error[None])[0][0]
            kept = node[[rss.argmin()]] if within is None else node[rss <= max(within, rss.min())]
            before, turn = turn, np.linalg.eigh(np.cov(kept.T))[1] if len(axes) == 2 < len(kept) else turn
            margin = np.abs(turn.T @ before) @ (high - low) / (count - 1) * (4 if within is None else 1)
            low, high = (kept @ turn).min(axis=0) - margin, (kept @ turn).max(axis=0) + margin
        return node, rss

    @property
    def cap(self) -> float:
        return self.plateau if self.form == "m4" else np.inf


def _fit(runs: _Runs, growth: float) -> ScalingFit:
    """Weighted least squares. ``growth`` tells what the spread is: the curve to that power; NaN: a given sigma."""
    node, rss = runs.zoom(8, 60)
    node = node[[rss.argmin()]]
    sums, coefficients = runs.project(node, runs.error[None])
    law = [float(v[0]) for v in runs.parameters(node, [k[0] for k in coefficients])]
    least, dof = float(sums[0, 0]), len(runs.n) - (2 if runs.form == "power" else 3)
    stands = np.isnan(growth) and (dof < 1 or least <= stats.chi2.ppf(0.95, dof))
    noise, rests_on = (1.0, np.inf) if stands else (float(np.sqrt(least / dof)), float(dof))
    return ScalingFit(law[0], law[1], law[2], noise, rests_on, growth, runs, node, least)


def _growth(fit: ScalingFit) -> tuple[float, float]:
    """Posterior mean and deviation of the noise's growth, flat on [-0.5, 1.5] beforehand, from a fit's residuals."""
    curve, power = fit.predict(fit.runs.n), np.linspace(-0.5, 1.5, 41)
    square = ((fit.runs.error - curve) / curve ** power[:, None]) ** 2
    log_odds = -fit.dof * (np.log(square.mean(axis=1) + 1e-300) / 2 + power * np.log(curve).mean())
    weight = special.softmax(log_odds)
    return float(weight @ power), float(np.sqrt(weight @ (power - weight @ power) ** 2))


def _refuse_flat(fit: ScalingFit, given: bool) -> None:
    """ValueError unless the errors fall: by the slope of log error on log n, or by the fit against a constant (5%)."""
    n, error, spread, least = fit.runs.n, fit.runs.error, fit.runs.spread, fit.least
    free = 1 if fit.runs.form == "power" else 2  # parameters beyond a constant
    weight, dof = (error / spread) ** 2, len(error) - free - 1
    x, y = (v - np.average(v, weights=weight) for v in (np.log(n), np.log(error)))
    gram = (weight * x * x).sum()
    slope = (weight * x * y).sum() / gram
    gain = float(((error - np.average(error, weights=spread**-2)) ** 2 / spread**2).sum()) - least
    p = [1.0, 1.0]
    if np.ptp(y) > 1e-9 and gain > 1e-12 * weight.sum():
        if given:
            p = [stats.norm.cdf(slope * np.sqrt(gram)), stats.chi2.sf(gain, free)]
        else:
            left, pure = (weight * (y - slope * x) ** 2).sum() / (len(y) - 2), max(least / dof, 1e-300)
            p = [
                stats.t.cdf(slope / np.sqrt(max(left, 1e-300) / gram), len(y) - 2),
                stats.f.sf(gain / free / pure, free, dof),
            ]
    both = min(1.0, 2 * min(p))  # two chances were given
    if both >= 0.05:
        ends = " and ".join(f"{error[n == m].mean():.4g} at n = {m:g}" for m in (n.min(), n.max()))
        why = "it may lie at its floor or ceiling already, or more sizes and seeds are needed"
        raise ValueError(f"error does not fall with n beyond its noise (p = {both:.2f}; {ends}): {why}")


def _positive(values: ArrayLike, name: str, finite: bool = True) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    bad = ~(array > 0) | (np.isinf(array) & finite)
    if bad.any():
        raise ValueError(f"{name} must be positive{' and finite' if finite else ''}, got {array[bad].flat[0]}")
    return array
