"""The forms of a scaling law, and least squares over them by variable projection.

With n the number of images, and a, b, c at least 0:

    power        error = a n^-b
    power_floor  error = c + a n^-b
    m4           (error - c) / (plateau - error) = a n^-b,
                 so error = c + (plateau - c) r / (1 + r) with r = a n^-b

m4 is the fourth estimator of Alabdulmohsin et al. 2022, with a random guess at one end and a floor
at the other. The exponent of its denominator is fixed at 1: five or six sizes cannot identify a
fourth parameter.

The nonlinear parameters are searched on a grid. At each grid point the other parameters enter
linearly and are solved in closed form within their bounds (Golub and Pereyra 1973).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
Law = Sequence[Floats | float]  # (b, a, c)
FORMS = ("power", "power_floor", "m4")  # the simpler first
MIN_SIZES = {"power": 3, "power_floor": 4, "m4": 4}  # distinct n that a fit needs
N_PARAMETERS = {"power": 2, "power_floor": 3, "m4": 3}
EXPONENTS = (0.0005, 3.0)  # searched; at the lower one 20 doublings cut an error by under 1%
_RATIOS = (1e-5, 1e3)  # searched, of m4's r at the geometric mean of n


class Noise(Enum):
    """What the standard deviations of the errors are."""

    GIVEN = "given"  # all of the noise
    PARTIAL = "partial"  # a part of the noise, and so its lower bound
    ESTIMATED = "estimated"  # known up to a factor, which the residuals estimate


@dataclass(frozen=True)
class CurveData:
    """The K runs of one scaling curve, and the form to fit to them.

    A grid point is one row (log b,) of a grid, for m4 (log b, log r at the geometric mean of n).
    """

    form: str
    plateau: float  # m4: the error of a random guess
    n: Floats  # (K,) images
    error: Floats  # (K,)
    sigma: Floats  # (K,) standard deviation of each error
    noise: Noise

    @property
    def searched(self) -> Floats:
        """The lowest and the highest grid point, (2, 1) or for m4 (2, 2)."""
        ranges = [np.log(EXPONENTS)] + ([np.log(_RATIOS)] if self.form == "m4" else [])
        return np.stack(ranges, axis=1)

    @property
    def _highest(self) -> float:
        """The largest value of a linear coefficient."""
        return self.plateau if self.form == "m4" else np.inf

    def curve(self, law: Law, n: Floats) -> Floats:
        """Return the law (b, a, c) at n; infinity gives c."""
        b, a, c = (np.asarray(v) for v in law)
        power = a * n**-b
        return c + (self.plateau - c) * power / (1 + power) if self.form == "m4" else c + power

    def law(self, grid: Floats, coefficients: list[Floats]) -> tuple[Floats, Floats, Floats]:
        """Return (b, a, c), each (M,), of grid points (M, .) and their coefficients (M,)."""
        b, zero = np.exp(grid[:, 0]), np.zeros(len(grid))
        scale = np.exp(b * np.log(self.n).mean())
        if self.form == "m4":
            return b, scale * np.exp(grid[:, 1]), coefficients[0]
        return b, scale * coefficients[0], coefficients[1] if len(coefficients) == 2 else zero

    def _columns(self, grid: Floats, n: Floats) -> tuple[Floats | float, list[Floats]]:
        """Return the curve at n (X,) as an offset plus coefficients times columns (M, X).

        The coefficients are a for power, a and c for power_floor, c for m4.
        """
        fall = np.exp(grid[:, :1]) * (np.log(self.n).mean() - np.log(n))
        if self.form == "m4":
            share = special.expit(grid[:, 1:] + fall)
            return self.plateau * share, [1 - share]
        return 0.0, [np.exp(fall), np.ones_like(fall)][: 1 if self.form == "power" else 2]

    def project(self, grid: Floats, error: Floats) -> tuple[Floats, list[Floats]]:
        """Return the least weighted residual sums of squares at every grid point.

        Args:
            grid: (M, .) grid points.
            error: (R, K), R sets of errors.

        Returns:
            The residual sums (R, M), and the coefficients, each (R, M), that give them.
        """
        weight = self.sigma**-2
        offset, columns = self._columns(grid, self.n)
        rest = error[:, None] - offset  # (R, M, K)
        pull = [(rest * p) @ weight for p in columns]
        best = [
            np.clip(f / ((p * p) @ weight), 0, self._highest)
            for f, p in zip(pull, columns, strict=True)
        ]
        if len(columns) == 2:
            (aa, ac), cc = ((columns[0] * p) @ weight for p in columns), weight.sum()
            best = _bounded(best, (aa, ac, cc), pull)
        left = rest - sum(k[..., None] * p for k, p in zip(best, columns, strict=True))
        return left**2 @ weight, best

    def profile_bounds(self, grid: Floats, n: Floats, rss_limit: float) -> tuple[Floats, Floats]:
        """Return the lowest and the highest curve at n (X,) with a residual sum up to the limit.

        At a grid point those coefficients fill an ellipse that is cut by their bounds. A linear
        function has its extremes on the edges (one coefficient alone) or where it touches the
        ellipse.
        """
        weight = self.sigma**-2
        offset, columns = self._columns(grid, self.n)
        offset_at, targets = self._columns(grid, n)
        rest, found = self.error - offset, []
        for p, target in zip(columns, targets, strict=True):
            gram = (p * p) @ weight
            centre = (rest * p) @ weight / gram
            room = rss_limit - (rest - centre[:, None] * p) ** 2 @ weight
            half = np.sqrt(np.maximum(room, 0) / gram)
            good = (room >= 0) & (centre + half >= 0) & (centre - half <= self._highest)
            for side in (-1, 1):
                end = np.clip(centre + side * half, 0, self._highest)[:, None]
                found.append(np.where(good[:, None], offset_at + end * target, np.nan))
        if len(columns) == 2:
            found += self._tangents(columns[0], targets[0].T, rss_limit)
        values = np.concatenate(found)
        return np.fmin.reduce(values), np.fmax.reduce(values)

    def _tangents(self, p: Floats, u: Floats, rss_limit: float) -> list[Floats]:
        """Return curves (M, X) of power_floor that touch the ellipse; NaN outside the bounds.

        ``p`` (M, K) and ``u`` (X, M) are the column of a at the data and where the curve is read.
        """
        weight, y = self.sigma**-2, self.error
        aa, ac, cc = p * p @ weight, p @ weight, weight.sum()
        ay, cy = y * p @ weight, y @ weight
        det = aa * cc - ac**2
        a, c = (cc * ay - ac * cy) / det, (aa * cy - ac * ay) / det
        to_a, to_c = (cc * u - ac) / det, (aa - ac * u) / det  # inverse Gram matrix times target
        room = rss_limit - (y - a[:, None] * p - c[:, None]) ** 2 @ weight
        touching = []
        for side in (-1, 1):
            half = side * np.sqrt(np.maximum(room, 0) / (to_a * u + to_c))
            at_a, at_c = a + half * to_a, c + half * to_c
            good = (room >= 0) & (at_a >= 0) & (at_c >= 0)
            touching.append(np.where(good, at_a * u + at_c, np.nan).T)
        return touching

    def best(self) -> Floats:
        """Return the grid point (1, .) with the least residual sum."""
        grid, rss = self.refine_grid(8, 60)
        return grid[[rss.argmin()]]

    def refine_grid(
        self, rounds: int, fine: int, within: float | None = None, start: Floats | None = None
    ) -> tuple[Floats, Floats]:
        """Shrink the searched box around the least residual sum, or around all up to ``within``.

        For m4 that region is a narrow ridge, so the box turns with it.

        Args:
            rounds: how often to shrink.
            fine: grid points an axis; four times as many where there is one axis.
            within: the residual sums to keep in the box; None for the least alone.
            start: a grid point (1, .) to add to every grid.

        Returns:
            The last grid (M, .) and its residual sums (M,).
        """
        full = self.searched
        axes = full.shape[1]
        (low, high), turn = full, np.eye(axes)
        count, grid, rss = fine if axes == 2 else 4 * fine, full[:0], full[:0, 0]
        for _ in range(rounds):
            if np.max(high - low) < 1e-6:
                break
            ticks = np.linspace(low, high, count).T
            grid = np.clip(np.stack(np.meshgrid(*ticks), axis=-1).reshape(-1, axes) @ turn.T, *full)
            grid = grid if start is None else np.concatenate([grid, start])
            rss = self.project(grid, self.error[None])[0][0]
            kept = grid[[rss.argmin()]] if within is None else grid[rss <= max(within, rss.min())]
            before = turn
            if 1 < axes < len(kept):
                turn = np.linalg.eigh(np.cov(kept.T))[1]
            margin = np.abs(turn.T @ before) @ (high - low) / (count - 1)
            margin *= 4 if within is None else 1
            low, high = (kept @ turn).min(axis=0) - margin, (kept @ turn).max(axis=0) + margin
        return grid, rss


def _bounded(
    alone: list[Floats], gram: tuple[Floats, Floats, Floats], pull: list[Floats]
) -> list[Floats]:
    """The best a and c at or above 0, where ``alone`` is each without the other.

    ``gram`` is (aa, ac, cc) and ``pull`` (ay, cy), the weighted products of columns and errors.
    """
    aa, ac, cc = gram
    det = aa * cc - ac**2
    a, c = (cc * pull[0] - ac * pull[1]) / det, (aa * pull[1] - ac * pull[0]) / det
    return [
        np.where(c < 0, alone[0], np.maximum(a, 0)),
        np.where(a < 0, alone[1], np.maximum(c, 0)),
    ]


def positive(values: ArrayLike, name: str, finite: bool = True) -> Floats:
    """Return ``values`` as an array.

    Raises:
        ValueError: with ``name``, where one is not positive or, with ``finite``, is infinite.
    """
    array = np.asarray(values, dtype=np.float64)
    bad = ~(array > 0) | (np.isinf(array) & finite)
    if bad.any():
        rule = "positive and finite" if finite else "positive"
        raise ValueError(f"{name} must be {rule}, got {array[bad].flat[0]}")
    return array
