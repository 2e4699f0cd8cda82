"""The joint law of model size and data: loss = E + A / n^alpha + B / d^beta."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from cxrstudy.scaling.forms import Floats, positive


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
        size, data = positive(n, "n", finite=False), positive(d, "d", finite=False)
        return np.asarray(self.E + self.A * size**-self.alpha + self.B * data**-self.beta)


def fit_joint(n: ArrayLike, d: ArrayLike, loss: ArrayLike, *, delta: float = 1e-3) -> JointFit:
    """Fit E + A/n^alpha + B/d^beta by the Huber loss (summed) of log loss: model sizes n, data sizes d, all (K,).

    Chinchilla's third approach (Hoffmann et al. 2022): log prediction = logsumexp of three terms, from a grid of
    starts. The published fit stopped early, its averaged loss having gradients below the optimiser's tolerance
    (Besiroglu et al. 2024): here the sum is divided by ``delta`` and the best starts run until their gradients vanish.
    ValueError: shapes differ, a value not finite or not positive, fewer than 6 runs or 3 distinct n or d.
    """
    size, data, y = positive(n, "n"), positive(d, "d"), positive(loss, "loss")
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
        optimize.minimize(
            lambda p: [v[0] for v in objective(p[None])], start, jac=True, options={"gtol": 1e-6}
        )
        for start in starts
    ]
    best = min(fits, key=lambda fit: fit.fun)
    if np.abs(best.jac).max() > 1e-2:
        warnings.warn(
            f"fit_joint stopped at a gradient of {np.abs(best.jac).max():.1g}, not at 0",
            stacklevel=2,
        )
    e, a, b, alpha, beta = best.x
    A, B = np.exp([a - alpha * middle[0], b - beta * middle[1]])
    return JointFit(float(np.exp(e)), float(A), float(alpha), float(B), float(beta))
