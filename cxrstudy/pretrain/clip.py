"""Image-text objectives: CLIP (reports), UniCL (reports and labels), CLIP with a label loss."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.nn import functional

from cxrstudy import encoders, study
from cxrstudy.data.manifest import has_prompt, label_array, label_names
from cxrstudy.data.reports import sections
from cxrstudy.data.vocabulary import LABELS, phrase
from cxrstudy.pretrain.augment import augment
from cxrstudy.pretrain.distributed import gather_rows

Positives = Literal["equal", "overlap"]
NORMAL = "no finding, no device"


# ---- losses -----------------------------------------------------------------------------------
def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Return the symmetric contrastive loss (CLIP, Radford et al. 2021), by open_clip.

    Args:
        image, text: (N, D) unit rows.
        logit_scale: factor of the cosines, already exponentiated.
    """
    return ClipLoss()(image, text, logit_scale)


def unicl_loss(
    image: Tensor,
    text: Tensor,
    targets: Tensor,
    logit_scale: Tensor | float,
    positives: Positives = "equal",
) -> Tensor:
    """Return the unified contrastive loss (UniCL, Yang et al., CVPR 2022).

    Pairs with equal targets are positives. The loss is at least the mean log of their number, and
    equals ``clip_loss`` if all targets differ.

    Args:
        image, text: (N, D) unit rows.
        targets: (N,) ids or (N, L) label rows.
        logit_scale: factor of the cosines, already exponentiated.
        positives: "overlap" counts pairs that share a label (after DLILP, arXiv 2504.05227); it
            needs (N, L) rows in {0, 1}.

    Raises:
        ValueError: the shapes do not fit.
    """
    if targets.shape[0] != image.shape[0] or image.shape != text.shape:
        raise ValueError(
            f"image {tuple(image.shape)}, text {tuple(text.shape)}, targets "
            f"{tuple(targets.shape)}: the first two must be alike and targets have one row each"
        )
    if positives == "overlap":
        if targets.ndim != 2:
            raise ValueError(
                "positives='overlap' needs (N,L) label rows, not targets of shape "
                f"{tuple(targets.shape)}"
            )
        rows = targets.nan_to_num().to(image.dtype)
        equal = rows @ rows.T > 0  # (N, N)
    else:
        rows = targets.reshape(len(targets), -1)
        equal = (rows[:, None] == rows[None]).all(-1)  # (N, N)
    equal.fill_diagonal_(True)  # a row with NaN equals nothing, but an image matches its own text
    positive = equal.to(image.dtype)
    weights = positive / positive.sum(1, keepdim=True)  # symmetric, so it serves both directions
    logits = logit_scale * image @ text.T  # (N, N)
    by_image = functional.log_softmax(logits, 1)
    by_text = functional.log_softmax(logits.T, 1)
    return -((weights * by_image).sum(1).mean() + (weights * by_text).sum(1).mean()) / 2


def label_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy of (N, L) scores: the mean over known labels.

    Args:
        labels: (N, L) in {0, 1, NaN = unknown}.
    """
    known = ~labels.isnan()
    each = functional.binary_cross_entropy_with_logits(
        scores, labels.nan_to_num(), reduction="none"
    )
    return (each * known).sum() / known.sum().clamp_min(1)


# ---- captions ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Captions:
    """The texts of N images: reports, and prompts of their structured labels.

    Attributes:
        reports: N strings; empty if an image has no report.
        prompts: P different strings.
        prompt_labels: (P, L) bool: labels that are present in each prompt.
        prompt_ids: (N,) index of each image's prompt; -1 if none can be written.
        labels: (N, L) in {0, 1, NaN}.
    """

    reports: list[str]
    prompts: list[str]
    prompt_labels: np.ndarray
    prompt_ids: np.ndarray
    labels: np.ndarray


def report_texts(manifest: pd.DataFrame) -> list[str]:
    """Return the report of each image; empty if there is none, or only blanks."""
    texts = manifest["report"].fillna("").tolist() if "report" in manifest else [""] * len(manifest)
    return [text if text.strip() else "" for text in texts]


def captions(manifest: pd.DataFrame, *, part: str = "joined") -> Captions:
    """Return reports and label prompts of a manifest.

    A prompt names all labels that are recorded as present, with their sides (columns
    ``side:NAME``). If none is present it says so: no finding at all or, if all labels are the
    card's own, each by its name ("no bacterial pneumonia", as there may be a viral one).

    Args:
        part: "joined" (the whole report), "findings" or "impression" (that section; the whole
            report if it has none).
    """
    reports = report_texts(manifest)
    if part != "joined":
        reports = [sections(text).get(part) or text for text in reports]
    names = label_names(manifest)
    labels = label_array(manifest, names)
    sides = {n: manifest[f"side:{n}"].fillna("").tolist() for n in names if f"side:{n}" in manifest}
    none = [] if set(names) & set(LABELS) else [f"no {phrase(n)}" for n in names]
    ids: dict[str, int] = {}
    prompt_ids = np.full(len(manifest), -1)
    prompt_labels = []
    for row in np.flatnonzero(has_prompt(labels)):
        present = labels[row] == 1
        each = [
            f"{sides[n][row]} {phrase(n)}".strip() if n in sides else phrase(n)
            for n in np.array(names)[present]
        ]
        text = prompt(each or none)
        if text not in ids:
            ids[text] = len(ids)
            prompt_labels.append(present)
        prompt_ids[row] = ids[text]
    shape = len(prompt_labels), len(names)
    says = np.array(prompt_labels, dtype=bool).reshape(shape)
    return Captions(reports, list(ids), says, prompt_ids, labels)


def prompt(phrases: list[str]) -> str:
    """Return the prompt of some labels, as in MedImageInsight (``x-ray chest ... Pneumonia``)."""
    return "x-ray chest " + (", ".join(phrases) or NORMAL)


def choose_prompts(
    has_report: np.ndarray, has_prompt: np.ndarray, label_share: float, rng: np.random.Generator
) -> np.ndarray:
    """Return which of a batch's samples take a label prompt, (B,) bool.

    A share of those with both take it, and all of those without a report.

    Args:
        has_report, has_prompt: (B,) bool.
    """
    return has_prompt & ((rng.random(len(has_report)) < label_share) | ~has_report)


def target_ids(prompt_ids: np.ndarray, as_prompt: np.ndarray, take: np.ndarray) -> Tensor:
    """Return (B,) ids for ``unicl_loss`` (UniCL, sec. 3).

    A prompt has its own id. A report has that of its image (``take``), which no other image has.
    """
    own = -1 - take
    return torch.from_numpy(np.where(as_prompt, prompt_ids, own).astype(np.int64))


def overlap_rows(prompt_labels: np.ndarray, as_prompt: np.ndarray) -> Tensor:
    """Return (B, L+1) rows for ``positives="overlap"``.

    Of a prompt: its labels (B, L), and whether it says that there are none. Of a report, which
    belongs to its own image only: zeros.
    """
    says_none = ~prompt_labels.any(1, keepdims=True)
    rows = np.concatenate([prompt_labels, says_none], axis=1) & as_prompt[:, None]
    return torch.from_numpy(rows.astype(np.float32))


# ---- the objective ----------------------------------------------------------------------------
class ImageText(nn.Module):
    """``clip``, ``unicl`` and ``clip+labels``: image encoder, text tower and, for the last, a head.

    Attributes:
        encoder, text: both trained.
        label_head: linear, for the label loss of ``clip+labels``.
        facts: what the record says of the texts.
    """

    def __init__(self, p: study.Pretrain, base: encoders.LoadedCheckpoint, subset: pd.DataFrame):
        super().__init__()
        texts = captions(subset, part=p.report_part)
        self.p, self.texts, self.encoder = p, texts, base.encoder
        self.has_report = np.array([bool(text) for text in texts.reports])
        self.has_prompt = texts.prompt_ids >= 0
        text = base.text
        if text is None:
            corpus = texts.prompts + [report for report in texts.reports if report]
            text = encoders.build_text(corpus, base.encoder.channels, seed=p.seed)
        self.text = text
        self.lr_schedule: dict[str, Any] = {}  # the loop's own
        n_labels = texts.labels.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(p.seed)
            size = n_labels if p.paradigm == "clip+labels" else 0
            self.label_head = nn.Linear(base.encoder.channels, size) if size else None
        self.report_tokens = text.tokens(texts.reports)  # (N, context)
        self.prompt_tokens = text.tokens(texts.prompts or [""])  # (P, context)
        self.prompt_labels = texts.prompt_labels if texts.prompts else np.zeros((1, n_labels), bool)
        self.facts = {"reports_cut": round(text.cut(texts.reports), 4)}

    def modules_to_save(self) -> nn.ModuleDict:
        """Return what is evaluated and saved."""
        return nn.ModuleDict({"encoder": self.encoder, "text": self.text})

    def param_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups: no decay on biases, norms and the logit scale."""
        decayed = [w for w in self.parameters() if w.ndim >= 2]
        others = [w for w in self.parameters() if w.ndim < 2]
        return [
            {"params": decayed, "weight_decay": self.p.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]

    def set_learning_rates(
        self, optimiser: torch.optim.Optimizer, rate: float, step: int, steps: int
    ) -> float:
        """Set the learning rate of a step in every group, and return it."""
        for group in optimiser.param_groups:
            group["lr"] = rate
        return rate

    def prepare(
        self,
        x: Tensor,
        take: np.ndarray,
        low: int,
        rng: np.random.Generator,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return what ``forward`` takes: augmented images, their tokens, targets and labels.

        All ranks draw the same random numbers, so that they do what one process would.

        Args:
            x: (n, 1, H, W) this rank's images: the n of the batch from ``low`` on.
            take: (B,) the batch's samples over all ranks, as positions in the subset.
            rng, generator: of this step.
        """
        p, own = self.p, slice(low, low + len(x))
        with torch.autocast(x.device.type, enabled=False):  # bf16 would shift pixels by up to two
            x = augment(x, generator, low=low, total=len(take))
            x = x.contiguous(memory_format=torch.channels_last)
        as_prompt = np.zeros(len(take), bool)
        if p.paradigm == "unicl":
            has = self.has_report[take], self.has_prompt[take]
            as_prompt = choose_prompts(*has, p.label_share, rng)
        prompt_ids = np.maximum(self.texts.prompt_ids[take], 0)  # (B,); those at -1 show a report
        tokens = torch.where(
            torch.from_numpy(as_prompt[own])[:, None],
            self.prompt_tokens[prompt_ids[own]],
            self.report_tokens[take[own]],
        )  # (n, context)
        batch = {"tokens": tokens[:, : int((tokens != 0).sum(1).max())]}
        if p.paradigm == "unicl" and p.positives == "overlap":
            batch["targets"] = overlap_rows(self.prompt_labels[prompt_ids], as_prompt)
        elif p.paradigm == "unicl":
            batch["targets"] = target_ids(prompt_ids, as_prompt, take)
        if self.label_head is not None:
            batch["labels"] = torch.from_numpy(self.texts.labels[take])  # (B, L)
        moved = {name: part.to(x.device, non_blocking=True) for name, part in batch.items()}
        return {"x": x, **moved}

    def forward(self, batch: dict[str, Tensor], *_: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a step, of the whole batch over all ranks, and its parts."""
        x = batch["x"]
        pooled = self.encoder.pool(x)  # (n, C)
        image = self.text.embed_image(pooled).float()  # (n, D)
        with torch.autocast("cpu", enabled=False):  # backward of attention is slow in bf16
            text = self.text.embed_text(batch["tokens"]).float()  # (n, D)
        with torch.autocast(x.device.type, enabled=False):
            image, text, scale = gather_rows(image), gather_rows(text), self.text.scale()  # (B, D)
            if self.p.paradigm == "unicl":
                loss = unicl_loss(image, text, batch["targets"], scale, self.p.positives)
            else:
                loss = clip_loss(image, text, scale)
            parts = {"contrastive": loss.detach(), "logit_scale": scale.detach()}
            if self.label_head is not None:
                scores = gather_rows(self.label_head(pooled.float()))  # (B, L)
                extra = label_loss(scores, batch["labels"])
                parts["labels"] = extra.detach()
                loss = loss + self.p.label_weight * extra
        return loss, parts

    def on_step_end(self, step: int, steps: int) -> None:
        """Keep the logit scale where its gradient can lower it again."""
        self.text.log_scale.data.clamp_(max=math.log(100))

    def save(self, folder: Path) -> None:
        """Write the encoder and its text tower, without the label head."""
        encoders.save_encoder(self.encoder.cpu(), folder, self.text.cpu())
