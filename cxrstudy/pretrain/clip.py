"""Image-text objectives: CLIP (reports), UniCL (reports and structured labels), and CLIP beside a plain label loss."""

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


# ---- losses --------------------------------------------------------------------------------------------------------
def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Symmetric contrastive loss (CLIP, Radford et al. 2021), through open_clip.

    Args: ``image``, ``text`` (N,D) unit rows; ``logit_scale`` as it multiplies. Returns a scalar.
    """
    return ClipLoss()(image, text, logit_scale)


def unicl_loss(
    image: Tensor,
    text: Tensor,
    targets: Tensor,
    logit_scale: Tensor | float,
    positives: Positives = "equal",
) -> Tensor:
    """Unified contrastive loss (UniCL, Yang et al., CVPR 2022): every pair with equal targets is a positive.

    Args: ``image``, ``text`` (N,D) unit rows; ``targets`` (N,) ids or (N,L) label rows; ``logit_scale`` as it
    multiplies. ``positives="overlap"`` (after DLILP, arXiv 2504.05227) counts rows that share a label instead, and
    needs (N,L) rows in {0,1}. Returns a scalar, at least the mean log of the number of positives; equals
    ``clip_loss`` when all targets differ. ValueError when the shapes do not fit.
    """
    if targets.shape[0] != image.shape[0] or image.shape != text.shape:
        raise ValueError(
            f"image {tuple(image.shape)}, text {tuple(text.shape)}, targets {tuple(targets.shape)}: the "
            "first two must be alike and targets have one row each"
        )
    if positives == "overlap":
        if targets.ndim != 2:
            raise ValueError(
                f"positives='overlap' needs (N,L) label rows, not targets of shape {tuple(targets.shape)}"
            )
        rows = targets.nan_to_num().to(image.dtype)
        equal = rows @ rows.T > 0
    else:
        rows = targets.reshape(len(targets), -1)
        equal = (rows[:, None] == rows[None]).all(-1)
    equal.fill_diagonal_(
        True
    )  # a row that holds NaN equals nothing, but an image is always its own text's
    positive = equal.to(image.dtype)
    weights = positive / positive.sum(
        1, keepdim=True
    )  # the relation is symmetric: rows serve both directions
    logits = logit_scale * image @ text.T
    by_image = functional.log_softmax(logits, 1)
    by_text = functional.log_softmax(logits.T, 1)
    return -((weights * by_image).sum(1).mean() + (weights * by_text).sum(1).mean()) / 2


def label_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of (N,L) scores with labels in {0, 1, NaN = unknown}: the mean over what is known."""
    known = ~labels.isnan()
    each = functional.binary_cross_entropy_with_logits(
        scores, labels.nan_to_num(), reduction="none"
    )
    return (each * known).sum() / known.sum().clamp_min(1)


# ---- what is said --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Captions:
    """What each of N images may be paired with: its report, and prompts of its structured labels.

    ``reports`` (V lists of N) strings, empty where there is none: the variants of a report that are drawn from;
    ``prompts`` (P) strings; ``says`` (P,L) the labels each says are there; ``options`` (N lists) the prompts an image
    may take, as indices, none where nothing true can be said; ``labels`` (N,L) in {0,1,NaN}.
    """

    reports: list[list[str]]
    prompts: list[str]
    says: np.ndarray
    options: list[list[int]]
    labels: np.ndarray


def report_texts(manifest: pd.DataFrame) -> list[str]:
    """The report of each image, empty where there is none or nothing but blanks."""
    texts = manifest["report"].fillna("").tolist() if "report" in manifest else [""] * len(manifest)
    return [text if text.strip() else "" for text in texts]


def captions(
    manifest: pd.DataFrame, *, part: str = "joined", prompts: str = "set", with_sides: bool = True
) -> Captions:
    """Reports and label prompts of a manifest.

    ``part``: of a report, "joined" (as it is), "findings" or "impression" (that section, or all where it lacks it), or
    "sampled" (either, drawn anew each time). ``prompts``: "set" gives an image the one prompt of all labels recorded as
    present; "name" one of several, a label each. Sides (columns ``side:NAME``) are said where they are recorded, if
    ``with_sides``. Where none is present the prompt says so: no finding at all, or, where all labels are of the card's
    own and none of the vocabulary, each by its name ("no bacterial pneumonia": a viral one may be there).
    """
    whole = report_texts(manifest)
    kinds = {"joined": [""], "sampled": ["findings", "impression"]}.get(part, [part])
    reports = [
        [sections(text).get(kind) or text if kind else text for text in whole] for kind in kinds
    ]
    names = label_names(manifest)
    labels = label_array(manifest, names)
    sided = [n for n in names if with_sides and f"side:{n}" in manifest]
    sides = {n: manifest[f"side:{n}"].fillna("").tolist() for n in sided}
    none = [] if set(names) & set(LABELS) else [f"no {phrase(n)}" for n in names]
    known: dict[str, int] = {}
    options: list[list[int]] = []
    says: list[np.ndarray] = []
    for row, (present, can) in enumerate(zip(labels == 1, has_prompt(labels), strict=True)):
        if not can:
            options.append([])
            continue
        said = [
            f"{sides[n][row]} {phrase(n)}".strip() if n in sides else phrase(n)
            for n in np.array(names)[present]
        ]
        one_by_one = prompts == "name" and len(said) > 0
        meant = list(np.eye(len(names), dtype=bool)[present]) if one_by_one else [present]
        texts = [prompt([one]) for one in said] if one_by_one else [prompt(said or none)]
        for text, which in zip(texts, meant, strict=True):
            if text not in known:
                known[text] = len(known)
                says.append(which)
        options.append([known[text] for text in texts])
    return Captions(
        reports,
        list(known),
        np.array(says, dtype=bool).reshape(len(says), len(names)),
        options,
        labels,
    )


def prompt(said: list[str]) -> str:
    """The text of some labels, in the manner of MedImageInsight's prompts (``x-ray chest ... Pneumonia``)."""
    return "x-ray chest " + (", ".join(said) or NORMAL)


def mixed(
    has_report: np.ndarray, has_prompt: np.ndarray, label_share: float, rng: np.random.Generator
) -> np.ndarray:
    """Which of a batch's samples take a label prompt: a share of those that have both, all of those without a report.

    Args: ``has_report``, ``has_prompt`` (B,) bool. Returns (B,) bool.
    """
    return has_prompt & ((rng.random(len(has_report)) < label_share) | ~has_report)


def target_ids(prompts: np.ndarray, as_prompt: np.ndarray, take: np.ndarray) -> Tensor:
    """(B,) ids for ``unicl_loss``: a prompt bears its own id, a report that of its image (``take``), which no other
    image has (UniCL, sec. 3)."""
    own = -1 - take
    return torch.from_numpy(np.where(as_prompt, prompts, own).astype(np.int64))


def overlap_rows(says: np.ndarray, as_prompt: np.ndarray) -> Tensor:
    """(B,L+1) rows for ``positives="overlap"``: the labels (B,L) that a prompt says and whether it says that there are
    none; a report, which is its own image's alone, has none of either."""
    rows = np.concatenate([says, ~says.any(1, keepdims=True)], axis=1) & as_prompt[:, None]
    return torch.from_numpy(rows.astype(np.float32))


# ---- the objective -------------------------------------------------------------------------------------------------
class ImageText(nn.Module):
    """``clip``, ``unicl`` and ``clip+labels``: an image encoder, a text tower and, for the last, a linear label head.

    Attributes: ``encoder`` and ``text``, both trained; what a sample is paired with is drawn by the caller's ``rng``.
    """

    def __init__(self, p: study.Pretrain, base: encoders.LoadedCheckpoint, subset: pd.DataFrame):
        super().__init__()
        texts = captions(subset, part=p.report_part, prompts=p.prompts, with_sides=p.sides)
        has_report = np.array([bool(text) for text in texts.reports[0]])
        self.has_prompt = np.array([bool(options) for options in texts.options])
        self.p, self.texts, self.has_report, self.encoder = p, texts, has_report, base.encoder
        text = base.text
        if text is None:
            corpus = texts.prompts + [
                report for variant in texts.reports for report in variant if report
            ]
            text = encoders.build_text(corpus, base.encoder.channels, seed=p.seed)
        self.text = text
        self.lr_schedule: dict[str, Any] = {}  # the loop's own
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(p.seed)
            size = texts.labels.shape[1] if p.paradigm == "clip+labels" else 0
            self.label_head = nn.Linear(base.encoder.channels, size) if size else None
        self.report_tokens = torch.stack(
            [text.tokens(variant) for variant in texts.reports]
        )  # (V,N,context)
        self.prompt_tokens = text.tokens(texts.prompts or [""])  # never shown where there are none
        self.says = texts.says if texts.prompts else np.zeros((1, texts.labels.shape[1]), bool)
        self.facts = {
            "reports_cut": round(text.cut([r for variant in texts.reports for r in variant]), 4)
        }

    def modules_to_save(self) -> nn.ModuleDict:
        """What is judged and saved."""
        return nn.ModuleDict({"encoder": self.encoder, "text": self.text})

    def param_groups(self) -> list[dict[str, Any]]:
        """AdamW's groups: no decay on what is one-dimensional (biases, norms, the logit scale)."""
        decayed = [w for w in self.parameters() if w.ndim >= 2]
        others = [w for w in self.parameters() if w.ndim < 2]
        return [
            {"params": decayed, "weight_decay": self.p.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]

    def set_learning_rates(
        self, optimiser: torch.optim.Optimizer, rate: float, step: int, steps: int
    ) -> float:
        """Give every group the rate of a step, and say it."""
        for group in optimiser.param_groups:
            group["lr"] = rate
        return rate

    def step_loss(
        self,
        x: Tensor,
        take: np.ndarray,
        low: int,
        rng: np.random.Generator,
        generator: torch.Generator,
        *_: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step and its parts. ``take`` (B,) are the batch's samples over all ranks, of which ``x``
        (n,1,H,W) holds the n from ``low`` on: all ranks draw alike, so that they do what one process would."""
        p, own = self.p, slice(low, low + len(x))
        with torch.autocast(
            x.device.type, enabled=False
        ):  # half precision would move pixels by up to two
            x = augment(x, generator, low=low, total=len(take)).contiguous(
                memory_format=torch.channels_last
            )
        as_prompt = np.zeros(len(take), bool)
        if p.paradigm == "unicl":
            as_prompt = mixed(self.has_report[take], self.has_prompt[take], p.label_share, rng)
        variant = rng.integers(0, len(self.report_tokens), len(take))
        chosen = [self.texts.options[k] for k in take]
        prompts = np.array(
            [
                o[int(u * len(o))] if o else 0
                for o, u in zip(chosen, rng.random(len(take)), strict=True)
            ]
        )
        said, told = self.prompt_tokens[prompts[own]], self.report_tokens[variant[own], take[own]]
        tokens = torch.where(torch.from_numpy(as_prompt[own])[:, None], said, told)
        tokens = tokens[:, : int((tokens != 0).sum(1).max())].to(x.device, non_blocking=True)
        pooled = self.encoder.pool(x)
        image = self.text.embed_image(pooled).float()
        with torch.autocast(
            "cpu", enabled=False
        ):  # where its attention's backward is slow in half precision
            text = self.text.embed_text(tokens).float()
        with torch.autocast(x.device.type, enabled=False):
            image, text, scale = gather_rows(image), gather_rows(text), self.text.scale()
            if p.paradigm == "unicl" and p.positives == "overlap":
                rows = overlap_rows(self.says[prompts], as_prompt).to(x.device, non_blocking=True)
                loss = unicl_loss(image, text, rows, scale, "overlap")
            elif p.paradigm == "unicl":
                ids = target_ids(prompts, as_prompt, take).to(x.device, non_blocking=True)
                loss = unicl_loss(image, text, ids, scale)
            else:
                loss = clip_loss(image, text, scale)
            parts = {"contrastive": loss.detach(), "logit_scale": scale.detach()}
            if self.label_head is not None:
                labels = torch.from_numpy(self.texts.labels[take]).to(x.device, non_blocking=True)
                extra = label_loss(gather_rows(self.label_head(pooled.float())), labels)
                parts["labels"] = extra.detach()
                loss = loss + p.label_weight * extra
        return loss, parts

    def on_step_end(self, step: int, steps: int) -> None:
        """Keep the logit scale where its gradient can bring it down again."""
        self.text.log_scale.data.clamp_(max=math.log(100))

    def save(self, folder: Path) -> None:
        """Write the encoder and its text tower; the label head, which no one would reuse, is dropped."""
        encoders.save_encoder(self.encoder.cpu(), folder, self.text.cpu())
