"""Image-text objectives: CLIP (reports) and UniCL (reports and structured labels), and the text they are fed."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.nn import functional

from cxrstudy.data.manifest import label_array, label_names
from cxrstudy.data.vocabulary import phrase


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Symmetric contrastive loss (CLIP, Radford et al. 2021), through open_clip.

    Args: ``image``, ``text`` (N,D) unit rows; ``logit_scale`` as it multiplies. Returns a scalar.
    """
    return ClipLoss()(image, text, logit_scale)


def unicl_loss(image: Tensor, text: Tensor, targets: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Unified contrastive loss (UniCL, Yang et al., CVPR 2022): every pair with equal targets is a positive.

    Args: ``image``, ``text`` (N,D) unit rows; ``targets`` (N,) ids or (N,L) label rows; ``logit_scale`` as it
    multiplies. Returns a scalar, at least the mean log of the number of positives; equals ``clip_loss`` when all
    targets differ. ValueError when the shapes do not fit.
    """
    if targets.shape[0] != image.shape[0] or image.shape != text.shape:
        raise ValueError(
            f"image {tuple(image.shape)}, text {tuple(text.shape)}, targets {tuple(targets.shape)}: the "
            "first two must be alike and targets have one row each"
        )
    rows = targets.reshape(len(targets), -1)
    equal = (rows[:, None] == rows[None]).all(-1)
    equal.fill_diagonal_(True)  # a row that holds NaN equals nothing, but an image is always its own text's
    positive = equal.to(image.dtype)
    weights = positive / positive.sum(1, keepdim=True)  # the relation is symmetric: rows serve both directions
    logits = logit_scale * image @ text.T
    by_image = functional.log_softmax(logits, 1)
    by_text = functional.log_softmax(logits.T, 1)
    return -((weights * by_image).sum(1).mean() + (weights * by_text).sum(1).mean()) / 2


@dataclass(frozen=True)
class Captions:
    """What each image may be paired with: its report, and the prompt of its label set.

    ``reports`` (N) strings, empty where there is none; ``prompts`` strings, one a distinct label set; ``label_set``
    (N,) index into them.
    """

    reports: list[str]
    prompts: list[str]
    label_set: np.ndarray


def captions(manifest: pd.DataFrame) -> Captions:
    """Reports and label prompts of a manifest; a label set is the names recorded as present."""
    names = label_names(manifest)
    present = label_array(manifest, names) == 1
    sets, label_set = np.unique(present, axis=0, return_inverse=True)
    prompts = [prompt([name for name, there in zip(names, row, strict=True) if there]) for row in sets]
    reports = manifest["report"].fillna("").tolist() if "report" in manifest else [""] * len(manifest)
    return Captions(reports, prompts, label_set.reshape(-1))


def prompt(names: list[str]) -> str:
    """The text of a label set, in the manner of MedImageInsight's prompts (``x-ray chest ... Pneumonia``)."""
    return "x-ray chest " + (", ".join(phrase(name) for name in names) or "no finding, no device")


def mixed(label_set: np.ndarray, has_report: np.ndarray, label_share: float, rng: np.random.Generator) -> np.ndarray:
    """Which of a batch's samples take their label prompt: a share of those with a report, all of those without.

    Args: ``label_set`` (B,); ``has_report`` (B,) bool. Returns (B,) bool.
    """
    return (rng.random(len(label_set)) < label_share) | ~has_report


def target_ids(label_set: np.ndarray, as_prompt: np.ndarray) -> Tensor:
    """(B,) ids for ``unicl_loss``: a prompt bears its label set's id, a report an id of its own (UniCL, sec. 3)."""
    own = -1 - np.arange(len(label_set))
    return torch.from_numpy(np.where(as_prompt, label_set, own).astype(np.int64))
