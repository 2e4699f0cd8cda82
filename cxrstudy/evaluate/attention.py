"""Probes that pool patches by attention: every label looks where its own query says, all labels and penalties together.

``score = sum_t a_t (w.z_t) + b`` with ``a = softmax_t(q.z_t / sqrt C)`` over standardised patches z: multiple-instance
attention (Ilse, Tomczak and Welling 2018) with one linear query a label. With q = 0, where it starts, it is the linear
probe on the mean of the patches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional

from cxrstudy.evaluate.classification import Floats, Input, checked_labels, choose_strength
from cxrstudy.evaluate.metrics import auroc


@dataclass(frozen=True)
class AttentionProbe:
    """A fitted attention-pooled probe of L labels on patches of C features.

    ``weight`` (2L,C): L queries q, then L directions w, on features standardised by ``mean`` and ``scale`` (C,).
    """

    weight: Floats
    intercept: Floats  # (L,)
    mean: Floats
    scale: Floats
    strength: Floats  # as Probe's
    strengths: Floats
    val_auroc: Floats

    def decision_function(self, x: Any, rows: ArrayLike | None = None) -> Floats:
        """Log odds (N,L) of patch features (N,T,C), an array or a memory map, or of its ``rows``."""
        return np.concatenate([score + self.intercept for score, _ in self._look(x, rows)])

    def attention(self, x: Any, rows: ArrayLike | None = None) -> Floats:
        """Share of each label's attention on each patch (N,L,T), summing to 1 over the patches."""
        return np.concatenate([share for _, share in self._look(x, rows)])

    def _look(self, x: Any, rows: ArrayLike | None) -> Iterator[tuple[Floats, Floats]]:
        chosen = np.arange(len(x)) if rows is None else np.asarray(rows)
        weight = torch.from_numpy(self.weight).float()
        for start in range(0, len(chosen), 256):
            z = _standard(x, chosen[start : start + 256], self.mean, self.scale)
            score, share = _attend(z, weight)
            yield score.double().numpy(), share.transpose(1, 2).double().numpy()


def fit_attention(
    x: Any,
    y: Input,
    *,
    strengths: Sequence[float],
    rows: ArrayLike,
    val_rows: ArrayLike,
    y_val: Input,
    passes: int = 20,
    least: int = 400,
    batch: int = 256,
    lr: float = 0.01,
    seed: int = 0,
) -> AttentionProbe:
    """Fit all labels and strengths together. Each column minimises the mean log loss of its known rows plus
    ``strength``/2 (|w|^2 + |q|^2) by Adam over ``passes`` of the images, at least ``least`` steps, the rate falling
    from ``lr`` to 0 as a cosine. ``x`` (M,T,C) is read a batch at a time; ``y`` (n,L), ``y_val`` as ``fit_probe``'s,
    of ``rows`` and ``val_rows`` of ``x``; the strength is chosen as there.
    """
    path, rows, val_rows = (
        np.asarray(strengths, dtype=np.float64).ravel(),
        np.asarray(rows),
        np.asarray(val_rows),
    )
    known, target = checked_labels(y, "y", len(rows))
    val_known, val_target = checked_labels(y_val, "y_val", len(val_rows))
    labels, columns = target.shape[1], target.shape[1] * len(path)
    positives, totals = target.sum(0).numpy(), known.sum(0).numpy()
    live = np.flatnonzero((positives > 0) & (positives < totals))
    odds = np.log((positives + 0.5) / (totals - positives + 0.5))
    mean, scale = _moments(x, rows)
    weight = torch.zeros(2 * columns, x.shape[2], requires_grad=True)
    intercept = torch.from_numpy(np.tile(odds, len(path))).float().requires_grad_()
    ridge = torch.from_numpy(np.repeat(path, labels)).float().repeat(2)[:, None]
    share = torch.zeros(labels).index_fill(0, torch.from_numpy(live), 1.0) / known.float().mean(
        0
    ).clamp(min=1e-9)
    steps = max(least, passes * -(-len(rows) // batch))
    optimiser = torch.optim.Adam([weight, intercept], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator, order = np.random.default_rng(seed), np.empty(0, dtype=np.int64)
    for _ in range(steps):
        if len(order) < min(batch, len(rows)):
            order = np.concatenate([order, generator.permutation(len(rows))])
        take, order = order[:batch], order[batch:]
        score = _attend(_standard(x, rows[take], mean, scale), weight)[0] + intercept
        truth, sure = (
            a[torch.from_numpy(take)].float().repeat(1, len(path)) for a in (target, known)
        )
        loss = functional.binary_cross_entropy_with_logits(score, truth, reduction="none") * sure
        whole = (loss.mean(0) * share.repeat(len(path))).sum() + (ridge * weight.square()).sum() / 2
        optimiser.zero_grad()
        whole.backward()
        optimiser.step()
        schedule.step()
    every = weight.detach().double().numpy().reshape(2, len(path), labels, -1)
    offset = intercept.detach().double().numpy().reshape(len(path), labels)
    dead = np.setdiff1d(np.arange(labels), live)
    every[:, :, dead], offset[:, dead] = 0.0, odds[dead]
    val_auroc, judged = (
        np.full((len(path), labels), np.nan),
        np.where(val_known, val_target, np.nan),
    )
    found = [
        AttentionProbe(
            every[:, s].reshape(2 * labels, -1), offset[s], mean, scale, path, path, val_auroc
        )
        for s in range(len(path))
    ]
    for s, probe in enumerate(found):
        val_auroc[s, live] = auroc(judged[:, live], probe.decision_function(x, val_rows)[:, live])
    pick, chosen = choose_strength(path, val_auroc, live), np.full(labels, np.nan)
    chosen[live] = path[pick[live]]
    best = every[:, pick, np.arange(labels)].reshape(2 * labels, -1)
    return AttentionProbe(
        best, offset[pick, np.arange(labels)], mean, scale, chosen, path, val_auroc
    )


def _attend(z: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N,K) without their intercept and attention (N,T,K) of standardised patches (N,T,C), weight (2K,C)."""
    query, value = (z @ weight.T).chunk(2, dim=2)
    share = torch.softmax(query / z.shape[2] ** 0.5, dim=1)
    return (share * value).sum(1), share


def _standard(x: Any, rows: NDArray[np.int64], mean: Floats, scale: Floats) -> torch.Tensor:
    z = torch.from_numpy(np.asarray(x[rows], dtype=np.float32))
    return (z - torch.from_numpy(mean).float()) * torch.from_numpy(scale).float()


def _moments(x: Any, rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Mean and reciprocal standard deviation (C,) over the patches of some rows; 0 for a feature that is constant."""
    total, squares, n = np.zeros(x.shape[2]), np.zeros(x.shape[2]), len(rows) * x.shape[1]
    for start in range(0, len(rows), 256):
        part = np.asarray(x[rows[start : start + 256]], dtype=np.float64)
        total, squares = total + part.sum((0, 1)), squares + (part**2).sum((0, 1))
    variance = np.maximum(squares / n - (total / n) ** 2, 0.0)
    varies = variance > 1e-10 * (squares / n)
    return total / n, np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
