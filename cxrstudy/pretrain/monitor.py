"""Checks of a run: is a continued encoder being destroyed, and has it trained at all?

Continued pretraining can destroy an encoder within a few thousand images
(facebookresearch/dinov2 #204). A fixed batch of held-out images shows it cheaply: the effective
rank of their features, how well the features separate labels, and, for ``dinov2``, whether the
teacher still separates images.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cxrstudy import study
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import label_array, label_names
from cxrstudy.results import CHANCE, LEAST_MOVED

CHECKS = 10  # per run, and one at its end
IMAGES = 384
# features (N, C) and labels (N, L) in {0, 1, NaN} -> a number; higher is better
Score = Callable[[np.ndarray, np.ndarray], float]


class Collapsed(RuntimeError):
    """The encoder is being destroyed; the message says when, and what to change."""


# ---- during a run --------------------------------------------------------------------------------
def effective_rank(features: Tensor) -> float:
    """Return exp(entropy of the normalised singular values) of centred features (N, C).

    Roy and Vetterli 2007.
    """
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    share = values / values.sum().clamp_min(1e-12)
    return float(torch.special.entr(share).sum().exp())


@torch.no_grad()
def pooled_features(encoder: Any, images: np.ndarray) -> Tensor:
    """Return pooled features (N, C) of images uint8 (N, S, S), on the CPU."""
    device = next(encoder.parameters()).device
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    batches = torch.from_numpy(images).split(128)
    features = [encoder.pool(encoder.normalise(x).to(device)).float().cpu() for x in batches]
    for module, mode in modes:  # each as it was: batch norms may be frozen
        module.training = mode
    return torch.cat(features)


class Monitor:
    """Check one run on held-out images.

    Attributes:
        checks: a dict per check (samples_seen, effective_rank, score, and for dinov2 the entropy of
            the teacher's probabilities), saved with every checkpoint.
        unmeasured: why there is no score, if labels cannot give one.
    """

    def __init__(
        self,
        p: study.Pretrain,
        prepared: Prepared,
        rows: np.ndarray,
        score: Score | None,
        checks: list[dict[str, float]],
    ):
        held_out = _held_out(p, prepared, rows)
        self.p, self.score, self.checks = p, score, checks
        self.images = prepared.images[held_out]
        names = label_names(prepared.manifest)
        self.labels = label_array(prepared.manifest.iloc[held_out], names, truth=True)
        self.unmeasured: dict[str, str] = {}
        both = ((self.labels == 1).sum(0) > 1) & ((self.labels == 0).sum(0) > 1)
        if score is not None and not both.any():
            why = "no labels"
            if both.size:
                n = len(held_out)
                why = f"no label has two positives and two negatives among {n} held-out images"
            self.unmeasured = {"heldout_score": f"not measured: {why}"}
            self.score = None
            warnings.warn(
                f"the score of held-out images is not measured: {why}; their effective rank is",
                stacklevel=2,
            )

    @torch.no_grad()
    def check(self, encoder: Any, samples_seen: int, curve: list[dict[str, float]]) -> None:
        """Add one check.

        Raises:
            Collapsed: the effective rank, or the score of a continued encoder, has fallen.
        """
        features = pooled_features(encoder, self.images)  # (N, C)
        if not torch.isfinite(features).all():
            if samples_seen < self.p.samples_seen:
                return  # the loss of the next step is not finite either, and names its images
            raise Collapsed(
                "after the last step the encoder's features are not finite. "
                f"Lower lr (now {self.p.lr:g})"
            )
        found = {"samples_seen": float(samples_seen), "effective_rank": effective_rank(features)}
        if self.score is not None:
            found["score"] = self.score(features.numpy(), self.labels)
        if curve and "teacher_entropy" in curve[-1]:
            found |= {name: curve[-1][name] for name in ("teacher_entropy", "teacher_spread")}
        self.checks.append(found)
        if why := self._collapse(self.checks[0], found):
            heads = "; if the base came without its heads, raise freeze_trunk in `dino`"
            raise Collapsed(
                f"the encoder is being destroyed: after {samples_seen} samples {why}. "
                f"Lower lr (now {self.p.lr:g}) or raise warmup"
                + (heads if self.p.paradigm == "dinov2" else "")
            )

    def _collapse(self, first: dict[str, float], now: dict[str, float]) -> str:
        """Return what has collapsed since the first check; empty if nothing has."""
        rank, first_rank = now["effective_rank"], first["effective_rank"]
        if rank - 1 < 0.1 * (first_rank - 1):  # 1 = all features in one direction
            return (
                f"the effective rank of its features is {rank:.1f}, at the start {first_rank:.1f}"
            )
        if self.p.base and now.get("score", 1.0) < first.get("score", 0.0) - self.p.max_score_drop:
            return (
                f"its score on {len(self.images)} held-out images fell from {first['score']:.3f} "
                f"to {now['score']:.3f}, by more than max_score_drop={self.p.max_score_drop:g}"
            )
        return ""


def _held_out(p: study.Pretrain, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
    """Return at most ``IMAGES`` rows that are not trained on, or of ``rows`` if all are."""
    split = prepared.manifest["split"]
    choices = [
        np.flatnonzero(split == "validation"),
        np.flatnonzero(~split.isin(p.splits).to_numpy()),
        np.setdiff1d(np.arange(len(split)), rows),
    ]
    enough = (c for c in choices if len(c) >= IMAGES // 4 and not np.isin(c, rows).any())
    return np.sort(np.random.default_rng(0).permutation(next(enough, rows))[:IMAGES])


# ---- at its end ----------------------------------------------------------------------------------
def relative_weight_change(initial: list[Tensor], encoder: nn.Module) -> float:
    """Return |w - w0| / |w0| over all parameters; ``initial`` is w0, on the CPU."""
    final = [w.detach().cpu() for w in encoder.parameters()]
    change = sum(float((b - a).square().sum()) for a, b in zip(initial, final, strict=True))
    length = sum(float(w.square().sum()) for w in initial)
    return math.sqrt(change / max(length, 1e-12))


def training_progress(p: study.Pretrain, loss: float, weight_change: float) -> dict[str, Any]:
    """Return ``loss_over_chance`` and ``hardly_trained`` where they apply; warn of the latter.

    A contrastive loss is divided by that of guessing, log(batch size): at 1 nothing was learned.
    ``dinov2`` has no such reference value, so its weights are compared with the base's.
    """
    facts: dict[str, Any] = {}
    if p.paradigm in ("clip", "unicl"):
        facts["loss_over_chance"] = loss / math.log(p.batch_size)
    why = ""
    if facts.get("loss_over_chance", 0.0) > CHANCE:
        why = (
            f"its loss, {loss:.2f}, is that of guessing, log(batch_size) = "
            f"{math.log(p.batch_size):.2f}: images and texts are not matched. "
            "Raise samples_seen or lr"
        )
    elif p.paradigm == "dinov2" and p.base and weight_change < LEAST_MOVED:
        why = f"its weights changed by {weight_change:.1%} of the base's. Raise samples_seen or lr"
    if why:
        warnings.warn(f"hardly trained: {why}", stacklevel=3)
        facts["hardly_trained"] = why
    return facts
