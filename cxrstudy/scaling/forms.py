"""The forms of a scaling law, and least squares over them by variable projection.

n is the number of images, all of a, b, b0, c at least 0:

    power        error = a n^-b
    power_floor  error = c + a n^-b
    m4           (error - c) / (plateau - error) = a n^-b, so error = c + (plateau - c) r / (1 + r) with r = a n^-b
    broken       error = a n^-b0 (1 + (n / d)^(1/s))^(-(b - b0) s): slope b0 before the break at d, b after it

m4 is the fourth estimator of Alabdulmohsin et al. 2022 (a random guess at one end, a floor at the other) with the
exponent of its denominator held at 1: five or six sizes cannot tell a fourth parameter.

broken is the smoothly broken power law of Caballero et al. 2023 with one break and no floor. Its sharpness s is held at
0.25, so that nine tenths of the turn take about half a decade of n; the break lies between the second and the last but
one of the sizes, so that each slope rests on two of them; both slopes fall, so it bends but has no bump.

On a grid of the nonlinear parameters (a *node*) the rest is linear and solved in closed form within its bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

Floats = NDArray[np.float64]
FORMS = ("power", "power_floor", "m4", "broken")  # the simpler first
SIZES = {"power": 3, "power_floor": 4, "m4": 4, "broken": 5}  # distinct n that a fit needs
FREE = {"power": 2, "power_floor": 3, "m4": 3, "broken": 4}  # parameters
SHARPNESS = 0.25
_AXES = {"power": 1, "power_floor": 1, "m4": 2, "broken": 3}
EXPONENTS = (
    0.0005,
    3.0,
)  # searched; at the lower end an error falls by less than 1% over 20 doublings
_EXPONENT = np.log(EXPONENTS)
_RATIO = np.log([1e-5, 1e3])  # of r at the middle of the data


@dataclass(frozen=True)
class Runs:
    """K runs to fit. A node of the grid (M, 1 to 3) is log b; for m4 then log r at the middle of the data; for broken
    then log b0 and log d."""

    form: str
    plateau: float
    n: Floats  # (K,)
    error: Floats  # (K,)
    spread: Floats  # (K,) standard deviation of each error, up to a factor where none was given

    @property
    def cap(self) -> float:
        """The largest value of a linear coefficient."""
        return self.plateau if self.form == "m4" else np.inf

    @property
    def searched(self) -> Floats:
        """Lowest and highest node (2, .)."""
        axes = [_EXPONENT]
        if self.form == "m4":
            axes.append(_RATIO)
        if self.form == "broken":
            axes += [_EXPONENT, np.log(np.unique(self.n)[[1, -2]])]
        return np.stack(axes, axis=1)

    def curve(self, law: Sequence[Floats | float], n: Floats) -> Floats:
        """The law (b, a, c, b0, d) at n; infinity gives c."""
        b, a, c, early, bend = (np.asarray(v) for v in law)
        if self.form == "broken":
            return a * np.exp(_broken(b, early, np.log(bend), n))
        power = a * n**-b
        return c + (self.plateau - c) * power / (1 + power) if self.form == "m4" else c + power

    def parameters(self, node: Floats, best: list[Floats]) -> tuple[Floats, ...]:
        """The law (b, a, c, b0, d) of nodes (M, .) and their coefficients (M,)."""
        b, none = np.exp(node[:, 0]), np.zeros(len(node))
        if self.form == "broken":
            early, bend = np.exp(node[:, 1]), np.exp(node[:, 2])
            middle = np.exp(np.log(self.n).mean())
            return b, best[0] * np.exp(-_broken(b, early, node[:, 2], middle)), none, early, bend
        unit = np.exp(b * np.log(self.n).mean())
        if self.form == "m4":
            return b, unit * np.exp(node[:, 1]), best[0], b, none
        return b, unit * best[0], best[1] if self.form == "power_floor" else none, b, none

    def columns(self, node: Floats, n: Floats) -> tuple[Floats | float, list[Floats]]:
        """The curve at n (X,): an offset and the columns (M, X) of its coefficients: a; a and c; for m4 c."""
        middle = np.log(self.n).mean()
        if self.form == "broken":
            shape = (np.exp(node[:, :1]), np.exp(node[:, 1:2]), node[:, 2:])
            return 0.0, [np.exp(_broken(*shape, n) - _broken(*shape, np.exp(middle)))]
        fall = np.exp(node[:, :1]) * (middle - np.log(n))
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
        best = [
            np.clip(f / ((p * p) @ weight), 0, self.cap) for f, p in zip(pull, columns, strict=True)
        ]
        if len(columns) == 2:
            (aa, ac), cc = ((columns[0] * p) @ weight for p in columns), weight.sum()
            best = within_bounds(best, (aa, ac, cc), pull)
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
            aa, ac, cc, ay, cy = (
                p * p @ weight,
                p @ weight,
                weight.sum(),
                rest * p @ weight,
                rest @ weight,
            )
            det = aa * cc - ac**2
            a, c = (cc * ay - ac * cy) / det, (aa * cy - ac * ay) / det
            to_a, to_c = (
                (cc * u - ac) / det,
                (aa - ac * u) / det,
            )  # the inverse Gram matrix times the target
            room = threshold - (rest - a[:, None] * p - c[:, None]) ** 2 @ weight
            for half in (
                side * np.sqrt(np.maximum(room, 0) / (to_a * u + to_c)) for side in (-1, 1)
            ):
                at_a, at_c = a + half * to_a, c + half * to_c
                good = (room >= 0) & (at_a >= 0) & (at_c >= 0)
                found.append(np.where(good, at_a * u + at_c, np.nan).T)
        return np.fmin.reduce(np.concatenate(found)), np.fmax.reduce(np.concatenate(found))

    def best(self) -> Floats:
        """The node (1, .) with the least residual sum. In three dimensions the valley is bent: the three best places of
        a break on a coarse grid are where a solver starts."""
        if _AXES[self.form] < 3:
            node, rss = self.zoom(8, 60)
            return node[[rss.argmin()]]
        node, rss = self.zoom(1, 60)
        starts = [np.flatnonzero(node[:, 2] == place) for place in np.unique(node[:, 2])]
        starts = sorted((at[rss[at].argmin()] for at in starts), key=lambda k: rss[k])[:3]

        def off(p: Floats) -> Floats:
            column = self.columns(p[None], self.n)[1][0][0] / self.spread
            y = self.error / self.spread
            return y - column * max(column @ y / (column @ column), 0)

        low, high = self.searched
        inside = np.clip(node[starts], low + 1e-9, high - 1e-9)
        return min(
            (optimize.least_squares(off, p, bounds=(low, high)) for p in inside),
            key=lambda f: f.cost,
        ).x[None]

    def zoom(
        self, rounds: int, fine: int, within: float | None = None, start: Floats | None = None
    ) -> tuple[Floats, Floats]:
        """Nodes and their residual sums (M,) after shrinking the box around the least, or around all ``within``.

        In several dimensions that region is a narrow ridge, so the box turns with it.
        """
        full, axes_ = self.searched, _AXES[self.form]
        (low, high), turn = full, np.eye(axes_)
        count, node, rss = (4 * fine, fine, fine // 4 + 4)[axes_ - 1], full[:0], full[:0, 0]
        for _ in range(rounds):
            if np.max(high - low) < 1e-6:
                break
            axes = np.linspace(low, high, count).T
            node = np.clip(np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, axes_) @ turn.T, *full)
            node = node if start is None else np.concatenate([node, start])
            rss = self.project(node, self.error[None])[0][0]
            kept = node[[rss.argmin()]] if within is None else node[rss <= max(within, rss.min())]
            before, turn = (
                turn,
                np.linalg.eigh(np.cov(kept.T))[1] if 1 < axes_ < len(kept) else turn,
            )
            margin = (
                np.abs(turn.T @ before) @ (high - low) / (count - 1) * (4 if within is None else 1)
            )
            low, high = (kept @ turn).min(axis=0) - margin, (kept @ turn).max(axis=0) + margin
        return node, rss


def within_bounds(
    alone: list[Floats], gram: tuple[Floats, Floats, Floats], pull: list[Floats]
) -> list[Floats]:
    """The best scale and floor, both at least 0: ``alone`` are each without the other, ``gram`` is (aa, ac, cc)."""
    aa, ac, cc = gram
    a, c = (
        v / (aa * cc - ac**2) for v in (cc * pull[0] - ac * pull[1], aa * pull[1] - ac * pull[0])
    )
    return [
        np.where(c < 0, alone[0], np.maximum(a, 0)),
        np.where(a < 0, alone[1], np.maximum(c, 0)),
    ]


def at_the_least(exponent: float) -> bool:
    """Whether an exponent lies at the lower end of what is searched: the data set none there, it may be less."""
    return bool(exponent < EXPONENTS[0] * 1.01)


def positive(values: ArrayLike, name: str, finite: bool = True) -> Floats:
    """``values`` as an array; ValueError naming ``name`` where one is not positive (or, if asked, not finite)."""
    array = np.asarray(values, dtype=np.float64)
    bad = ~(array > 0) | (np.isinf(array) & finite)
    if bad.any():
        raise ValueError(
            f"{name} must be positive{' and finite' if finite else ''}, got {array[bad].flat[0]}"
        )
    return array


def _broken(b: Any, early: Any, bend: Any, n: Any) -> Floats:
    """Log of the broken law with a scale of 1; ``bend`` is log d."""
    x = np.minimum(np.log(n), 600)  # keeps infinity minus infinity out
    turn = SHARPNESS * np.logaddexp(0, (x - bend) / SHARPNESS)
    return np.where(np.isinf(n), -np.inf, -early * x - (b - early) * turn)
