"""The claims of the paper and its neighbours, as contrasts over subset sizes with thresholds.

Each entry of ``CLAIMS`` is an analogue, in this study, of a sentence of the literature. ``claims``
defines the verdicts and computes them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

PAPER, SHARE, NUMBER = "arXiv 2509.12818", 30_000 / 3_500_000, 30_000
CLIP_ARM, DINO_ARM = ("clip", "unicl"), ("dinov2",)  # analogues of MedImageInsight and RAD-DINO
ALL_ARMS = (*CLIP_ARM, *DINO_ARM)
FINDINGS, TUBES, PLACED = ("findings", "auroc"), ("lines_tubes", "auroc"), ("malposition", "auroc")
DICE, CL_DICE = ("segmentation", "dice"), ("segmentation", "cl_dice")
DECADE = 0.0025  # AUROC per tenfold data: 0.005 over the paper's two decades, 30k to 3.5M
OVERLAP = 0.01  # Dice and clDice


class NotTestable(ValueError):
    """What a claim asks for is not among the records; the message says what is missing."""


@dataclass(frozen=True)
class Claim:
    """One claim: ``one`` minus ``other``, by a contrast of ``SIZES`` over the subset sizes.

    Attributes:
        one, other: arms, each the mean over those of its paradigms that were run; ``other`` may be
            empty.
        measures: (task, metric).
        threshold: smallest effect of interest, in the metric's units.
        each: every paradigm of ``one`` on every measure is an option; any or every one must hold.
        presence: the claim is that there is an effect.
        in_house: the claim is about in-house images, so that it needs a control at equal compute.
    """

    id: str
    text: str
    source: str
    measures: tuple[tuple[str, str], ...]
    contrast: str
    one: tuple[str, ...]
    other: tuple[str, ...] = ()
    threshold: float = 0.005
    each: Literal["", "any", "every"] = ""
    presence: bool = False
    in_house: bool = False


CLAIMS = (
    Claim("findings-gain",
          "The CLIP arm gains more from in-house images on findings than the DINO arm",
          PAPER, (FINDINGS,), "gain", CLIP_ARM, DINO_ARM, in_house=True),
    Claim("findings-slope",
          "On findings, the CLIP arm gains more per tenfold in-house data than the DINO arm",
          PAPER, (FINDINGS,), "slope", CLIP_ARM, DINO_ARM, threshold=DECADE, in_house=True),
    Claim("tubes-classified", "The DINO arm classifies lines and tubes better than the CLIP arm",
          PAPER, (TUBES,), "largest", DINO_ARM, CLIP_ARM),
    Claim("tubes-drawn", "The DINO arm segments lines and tubes better than the CLIP arm (Dice)",
          PAPER, (DICE,), "largest", DINO_ARM, CLIP_ARM, threshold=OVERLAP),
    Claim("tubes-centre-lines",
          "The DINO arm segments lines and tubes better than the CLIP arm (clDice)",
          PAPER, (CL_DICE,), "largest", DINO_ARM, CLIP_ARM, threshold=OVERLAP),
    Claim("labels-findings", "UniCL with reports and labels improves on reports alone (findings)",
          PAPER, (FINDINGS,), "largest", ("unicl",), ("clip",), presence=True),
    Claim("labels-tubes",
          "UniCL with reports and labels improves on reports alone (lines and tubes)",
          PAPER, (TUBES,), "largest", ("unicl",), ("clip",), presence=True),
    Claim("few-suffice",
          "For some task, the paper's share of in-house images (30k of 3.5M) beats the base model",
          PAPER, (FINDINGS, TUBES), "share", ALL_ARMS, each="any", presence=True, in_house=True),
    Claim("30k-suffice", "For some task, about 30,000 in-house images beat the base model",
          PAPER, (FINDINGS, TUBES), "number", ALL_ARMS, each="any", presence=True, in_house=True),
    Claim("findings-scale", "Every paradigm improves on findings with more in-house images",
          f"premise of {PAPER}, in our words", (FINDINGS,), "slope", ALL_ARMS, threshold=DECADE,
          each="every", presence=True, in_house=True),
    Claim("placement-seen",
          "The frozen CLIP base is above the frozen DINO base: is the tube there?",
          "arXiv 2505.10823, counter-evidence", (TUBES,), "base", CLIP_ARM, DINO_ARM),
    Claim("placement-right",
          "The frozen CLIP base is above the frozen DINO base: is the tip misplaced?",
          "arXiv 2505.10823, counter-evidence", (PLACED,), "base", CLIP_ARM, DINO_ARM),
    Claim("frozen-drawn",
          "The frozen DINO base is above the frozen CLIP base at segmentation (Dice)",
          "arXiv 2504.16047", (DICE,), "base", DINO_ARM, CLIP_ARM, threshold=OVERLAP),
    Claim("frozen-classified",
          "The frozen CLIP base is above the frozen DINO base at classification (findings)",
          "arXiv 2504.16047", (FINDINGS,), "base", CLIP_ARM, DINO_ARM),
)  # fmt: skip


# ---- which subset sizes a contrast weighs --------------------------------------------------------
Sizes = Sequence[float]
Weights = tuple[dict[float, float], str]  # by subset size (0: the base model), and in words


def _largest(sizes: Sizes) -> Weights:
    return {sizes[-1]: 1.0}, f"with {sizes[-1]:,.0f} images"


def _gain(sizes: Sizes) -> Weights:
    return {sizes[-1]: 1.0, 0.0: -1.0}, f"gain over the base model with {sizes[-1]:,.0f} images"


def _slope(sizes: Sizes) -> Weights:
    x = np.log10(sizes)
    x = x - x.mean()
    weights = dict(zip(sizes, (x / (x @ x)).tolist(), strict=True))
    return weights, f"slope per 10x data, {sizes[0]:,.0f} to {sizes[-1]:,.0f} images"


def _base(sizes: Sizes) -> Weights:
    return {0.0: 1.0}, "base models"


def _share(sizes: Sizes) -> Weights:
    what = f"the paper's share, {SHARE:.2%} of the largest"
    return _nearest(sizes[:-1], SHARE * sizes[-1], 10, what)


def _number(sizes: Sizes) -> Weights:
    return _nearest(sizes, NUMBER, 3, f"the paper's {NUMBER:,} images")


def _nearest(sizes: Sizes, aim: float, within: float, what: str) -> Weights:
    off = np.abs(np.log(np.array(sizes) / aim))
    k = int(off.argmin())  # of two as near, the smaller
    if off[k] > np.log(within):
        nearest = f"the nearest has {sizes[k]:,.0f}"
        raise NotTestable(f"a subset within {within} times of {what}; {nearest}")
    said = f"with {sizes[k]:,.0f} images minus the base model; nearest to {what}"
    return {sizes[k]: 1.0, 0.0: -1.0}, said


SIZES: dict[str, tuple[Callable[[Sizes], Weights], int, str]] = {  # weights, sizes needed, in words
    "largest": (_largest, 1, "with the largest subset"),
    "gain": (_gain, 1, "gain over the base model with the largest subset"),
    "slope": (_slope, 2, "slope per 10x data, from where the base model is passed"),
    "base": (_base, 0, "base models"),
    "share": (_share, 2, "with the paper's share of images minus the base model"),
    "number": (_number, 1, "with about 30,000 images minus the base model"),
}
