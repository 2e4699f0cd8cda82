"""The joint law of model size and data: loss = E + A / n^alpha + B / d^beta."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from cxrstudy.scaling.forms import Floats, positive

SHARES = (0.02, 0.1, 0.3, 0.6, 0.9)  # of the least loss: each term at the start of a search
EXPONENTS = (0.1, 0.3, 0.5, 0.8, 1.2)  # alpha and beta at the start of a search


@dataclass(frozen=True)
class JointFit:
    """The parameters of loss = E + A / n^alpha + B / d^beta."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def predict(self, n: ArrayLike, d: ArrayLike) -> Floats:
        """Return the fitted loss at model sizes n and data sizes d, broadcast.

        Raises:
            ValueError: one is not positive.
        """
        size, data = positive(n, "n", finite=False), positive(d, "d", finite=False)
        return np.asarray(self.E + self.A * size**-self.alpha + self.B * data**-self.beta)


def fit_joint(n: ArrayLike, d: ArrayLike, loss: ArrayLike, *, delta: float = 1e-3) -> JointFit:
    """Fit E + A / n^alpha + B / d^beta by the summed Huber loss of log loss.

    This is Chinchilla's third approach (Hoffmann et al. 2022): the log of the prediction is the
    logsumexp of three terms, fitted from a grid of starts. The published fit stopped early, since
    the gradients of its averaged loss were below the optimiser's tolerance (Besiroglu et al. 2024).
    Here the sum is divided by ``delta``, and the best starts run until their gradients vanish.

    Args:
        n: (K,) model sizes.
        d: (K,) data sizes.
        loss: (K,) losses.
        delta: of the Huber loss, in units of log loss.

    Returns:
        The fit.

    Raises:
        ValueError: shapes that differ, a value that is not finite or not positive, or fewer than 6
            runs or 3 distinct n or d.
    """
    size, data, y = positive(n, "n"), positive(d, "d"), positive(loss, "loss")
    if size.ndim != 1 or not size.shape == data.shape == y.shape:
        raise ValueError(f"n {size.shape}, d {data.shape} and loss {y.shape} must be (K,)")
    if len(y) < 6 or min(len(np.unique(size)), len(np.unique(data))) < 3:
        raise ValueError("the joint law needs at least 6 runs with 3 distinct n and 3 distinct d")
    x, target = -np.log([size, data]), np.log(y)
    centre = x.mean(axis=1)
    x = x - centre[:, None]

    def objective(p: Floats) -> tuple[Floats, Floats]:
        """Return values (S,), gradients (S, 5) at p (S, 5): log terms at the centre, exponents."""
        terms = p[:, :3, None] + np.pad(p[:, 3:, None] * x, ((0, 0), (1, 0), (0, 0)))  # (S, 3, K)
        total = special.logsumexp(terms, axis=1, keepdims=True)
        pull = np.exp(terms - total) * np.clip((total - target) / delta, -1, 1)
        gradient = np.concatenate([pull.sum(axis=-1), (pull[:, 1:] * x).sum(axis=-1)], axis=1)
        return special.huber(delta, total[:, 0] - target).sum(axis=-1) / delta, gradient

    axes = [target.min() + np.log(SHARES)] * 3 + [np.array(EXPONENTS)] * 2
    starts = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 5)
    starts = starts[np.argsort(objective(starts)[0])[:24]]

    def at(p: Floats) -> list[Floats]:
        return [v[0] for v in objective(p[None])]

    fits = [optimize.minimize(at, p, jac=True, options={"gtol": 1e-6}) for p in starts]
    best = min(fits, key=lambda fit: fit.fun)
    left = np.abs(best.jac).max()
    if left > 1e-2:
        warnings.warn(f"fit_joint stopped at a gradient of {left:.1g}, not at 0", stacklevel=2)
    e, a, b, alpha, beta = best.x
    A, B = np.exp([a - alpha * centre[0], b - beta * centre[1]])
    return JointFit(float(np.exp(e)), float(A), float(alpha), float(B), float(beta))
