"""Train small heads on frozen features, and the supervised baseline, with one training loop."""

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from cxrstudy.data.images import Prepared
from cxrstudy.evaluate.features import device
from cxrstudy.progress import Progress

Batch = TypeVar("Batch")


def fit(
    module: nn.Module,
    batches: Iterator[Batch],
    batch_loss: Callable[[Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    *,
    steps: int,
    max_norm: float | None = None,
    validate: Callable[[], float] | None = None,
    checks: Collection[int] = (),
    progress: Progress = iter,
) -> pd.DataFrame:
    """Train ``module`` in place and keep the state with the best validation score.

    Args:
        module: Module whose parameters with ``requires_grad`` are trained.
        batches: Iterator of batches, at least ``steps`` long.
        batch_loss: Takes a batch and returns its loss, a scalar.
        max_norm: Largest norm of a step's gradient; None = no clipping.
        validate: Returns the validation score, the higher the better; None = keep the last state.
        checks: Steps (from 1) after which the score is taken.

    Returns:
        A row a step: ``step``, ``loss``, ``lr`` and ``score`` (NaN between checks).

    Raises:
        FloatingPointError: A loss or a score is not finite.
    """
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    history: list[dict[str, float]] = []
    best, best_state = -math.inf, None
    for step in progress(range(1, steps + 1)):
        module.train()
        loss = batch_loss(next(batches))
        optimizer.zero_grad()
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(trained, max_norm)
        row = {"step": step, "loss": loss.item(), "lr": scheduler.get_last_lr()[0]}
        optimizer.step()
        scheduler.step()
        checked = validate is not None and step in checks
        row["score"] = validate() if validate is not None and checked else math.nan
        if not math.isfinite(row["loss"]) or (checked and not math.isfinite(row["score"])):
            raise FloatingPointError(f"the loss is not finite at step {step} ({row}): lower lr")
        if checked and row["score"] > best:
            best, best_state = row["score"], [weight.detach().clone() for weight in trained]
        history.append(row)
    if best_state is not None:
        with torch.no_grad():
            for weight, value in zip(trained, best_state, strict=True):
                weight.copy_(value)
    return pd.DataFrame(history)


def shuffled_batches(n: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield batches of indices below ``n`` without end; each epoch has every index once."""
    batch_size, order = min(batch_size, n), np.empty(0, np.int64)
    while True:
        if len(order) < batch_size:
            order = np.append(order, rng.permutation(n))
        yield order[:batch_size]
        order = order[batch_size:]


def train_supervised(
    encoder: Any,
    prepared: Prepared,
    rows: np.ndarray,
    y: np.ndarray,
    *,
    samples_seen: int,
    lr: float = 3e-3,
    seed: int = 0,
) -> Any:
    """Train an encoder end to end on labels, in place, and return it frozen.

    A linear head on mean and maximum of the patch features (dropped afterwards), masked binary
    cross-entropy, AdamW with one cycle, batches of 64, images shifted by up to a sixteenth.

    Args:
        rows: Rows (n,) of the data set.
        y: Labels (n,L) in {0, 1, NaN}.
        samples_seen: Images shown in all.
    """
    target = torch.from_numpy(np.nan_to_num(y)).float()
    known = torch.from_numpy(~np.isnan(y)).float()
    rng, batch_size = np.random.default_rng(seed), min(64, len(rows))
    steps, reach = max(1, samples_seen // batch_size), max(1, prepared.images.shape[1] // 16)

    def batch_loss(index: np.ndarray) -> Tensor:
        shift = tuple(int(k) for k in rng.integers(-reach, reach + 1, 2))
        images = np.stack([prepared.images[row] for row in rows[index]])
        x = torch.roll(encoder.normalise(images).to(device()), shift, (2, 3))  # (B,1,H,W)
        tokens = encoder.forward_features(x)  # (B,T,C)
        logits = head(torch.cat([tokens.mean(1), tokens.amax(1)], 1))  # (B,L)
        truth, weight = target[index].to(device()), known[index].to(device())
        loss = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return (loss * weight).sum() / weight.sum().clamp(min=1)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(2 * encoder.channels, y.shape[1]).to(device())
        module = nn.ModuleList([encoder.to(device()).requires_grad_(True), head])
        optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        batches = shuffled_batches(len(rows), batch_size, rng)
        fit(module, batches, batch_loss, optimizer, scheduler, steps=steps)
    return encoder.eval().requires_grad_(False)
