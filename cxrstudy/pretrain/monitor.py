"""Is the encoder being destroyed? A fixed batch of held-out images is looked at while the run goes on.

Continuing an encoder can cost it, within a few thousand images, what it knew (facebookresearch/dinov2 #204). The signs
are cheap: how many directions its features spread over, how well they still tell labels apart, and, for ``dinov2``,
whether the teacher still tells images apart.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cxrstudy import study
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import label_array, label_names

CHECKS = 10  # a run, beside the one at its end
IMAGES = 384
Score = Callable[
    [np.ndarray, np.ndarray], float
]  # features (N,C), labels (N,L) in {0,1,NaN} -> higher is better


class Collapsed(RuntimeError):
    """The encoder lost what it knew, or its features fell together; the message says when and what to change."""


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred features (N,C) (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    share = values / values.sum().clamp_min(1e-12)
    return float(torch.special.entr(share).sum().exp())


class Monitor:
    """Checks of one run: ``checks`` is a list of dicts (samples_seen, effective_rank, score, and what the objective
    tells of itself), kept with every checkpoint. ``unmeasured`` says why there is no score, where labels cannot give
    one."""

    def __init__(
        self,
        p: study.Pretrain,
        prepared: Prepared,
        rows: np.ndarray,
        score: Score | None,
        checks: list[dict[str, float]],
    ):
        split = prepared.manifest["split"]
        left = np.setdiff1d(np.arange(len(split)), rows)
        choices = [
            np.flatnonzero(split == "validation"),
            np.flatnonzero(~split.isin(p.splits).to_numpy()),
            left,
        ]
        enough = (c for c in choices if len(c) >= IMAGES // 4 and not np.isin(c, rows).any())
        held = next(enough, rows)  # where the subset is all there is, its own images must serve
        held = np.sort(np.random.default_rng(0).permutation(held)[:IMAGES])
        self.p, self.score, self.checks = p, score, checks
        self.images = prepared.images[held]
        self.labels = label_array(
            prepared.manifest.iloc[held], label_names(prepared.manifest), truth=True
        )
        self.unmeasured: dict[str, str] = {}
        both = ((self.labels == 1).sum(0) > 1) & ((self.labels == 0).sum(0) > 1)
        if score is not None and not both.any():  # the rank is looked at all the same
            why = (
                f"no label has two of either kind among {len(held)} held-out images"
                if both.size
                else "no labels"
            )
            self.unmeasured = {"heldout_score": f"not measured: {why}"}
            self.score = None
            warnings.warn(
                f"the score of held-out images is not measured: {why}; their rank is", stacklevel=2
            )

    @torch.no_grad()
    def check(self, encoder: Any, samples_seen: int, curve: list[dict[str, float]]) -> None:
        """Look once; Collapsed where features have fallen together, or a continued encoder's score has."""
        device = next(encoder.parameters()).device
        modes = [
            (module, module.training) for module in encoder.modules()
        ]  # a teacher's batch norms have their own
        encoder.eval()
        parts = torch.from_numpy(self.images).split(128)
        features = torch.cat(
            [encoder.pool(encoder.normalise(x).to(device)).float().cpu() for x in parts]
        )
        for module, mode in modes:
            module.training = mode
        if not torch.isfinite(features).all():
            if samples_seen < self.p.samples_seen:
                return  # the next step's loss will tell, and name its images
            raise Collapsed(
                f"after the last step its features are no longer finite; lower lr (now {self.p.lr:g})"
            )
        found = {"samples_seen": float(samples_seen), "effective_rank": effective_rank(features)}
        if self.score is not None:
            found["score"] = self.score(features.numpy(), self.labels)
        if curve and "teacher_entropy" in curve[-1]:
            found |= {name: curve[-1][name] for name in ("teacher_entropy", "teacher_spread")}
        self.checks.append(found)
        first = self.checks[0]
        why = ""
        if found["effective_rank"] - 1 < 0.1 * (
            first["effective_rank"] - 1
        ):  # 1 is all in one direction
            now, then = found["effective_rank"], first["effective_rank"]
            why = f"its features now spread over {now:.1f} directions, at the start over {then:.1f}"
        elif self.p.base and found.get("score", 1.0) < first.get("score", 0.0) - self.p.collapse:
            why = (
                f"its score on {len(self.images)} held-out images fell from {first['score']:.3f} to "
                f"{found['score']:.3f}, by more than collapse={self.p.collapse:g}"
            )
        if why:
            dino = self.p.paradigm == "dinov2"
            heads = (
                "; where the base came without its heads, raise freeze_trunk in `dino`"
                if dino
                else ""
            )
            raise Collapsed(
                f"the encoder is being destroyed: after {samples_seen} samples {why}. Lower lr (now {self.p.lr:g}) or "
                "raise warmup" + heads
            )
