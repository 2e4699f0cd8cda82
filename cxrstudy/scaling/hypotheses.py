"""What the paper and its neighbours claim, as contrasts with thresholds, and how a claim is weighed.

A claim is one entry of ``CLAIMS``: a contrast between cells of the grid (task, metric, paradigm, number of images), the
smallest effect of interest, and where it is said. Its verdict is computed by ``weigh``, never written.

**Effect**: the contrast of macro metrics, seeds averaged. **Interval** (95%) and p: the same contrast on resamples of
the test patients, paired over all runs, plus the spread between seeds. The variance between the seeds of one rung is
pooled over the rungs of a ladder, or is the rung's own where that is larger; its S-th part enters a mean of S seeds
with Student's t of the pooled degrees of freedom. What seeds and patients do together is counted in both parts, and
what the paradigms share at one seed in neither: both make intervals too wide, not too narrow. A base as it came is
given and has no seeds, but for the decoder that draws tubes on it. Where a rung has one seed and no other tells its
spread, the interval holds patients alone, there is no p, and the claim stays inconclusive.

**Verdict**: *supported*, the interval lies above 0 and the effect is at least the threshold; *contradicted*, the
interval lies below 0, or, for a claim that something is there at all (``presence``), below the threshold; else
*inconclusive*; *not testable* where runs are missing.

A claim on *any* of k options (some task) takes the best of them, its lower end at 1 - 0.05/k; one on *every* option the
worst, its upper end so (Bonferroni; the other end needs none, Berger 1982).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cxrstudy.evaluate.compare import bootstrap_p
from cxrstudy.evaluate.metrics import interval
from cxrstudy.evaluate.small_samples import FLAT, is_flat

Floats = NDArray[np.float64]
Ladder = tuple[str, str, str]  # task, metric, paradigm
Cell = tuple[
    str, str, str, float
]  # and the number of images, or BASE: the base that the paradigm went on from
BASE = -1.0
PAPER, SHARE = (
    "arXiv 2509.12818",
    30_000 / 3_500_000,
)  # its smallest subset as a share of its largest
MI2, RAD_DINO = ("clip", "unicl"), ("dinov2",)
FINDINGS, TUBES, PLACED = ("findings", "auroc"), ("lines_tubes", "auroc"), ("malposition", "auroc")
DICE, CL_DICE = ("segmentation", "dice"), ("segmentation", "cl_dice")
DECADE = 0.0025  # AUROC a tenfold: 0.005 over the paper's two decades, 30k to 3.5M
OVERLAP = 0.01  # Dice and clDice
_DRAWS = 20  # of the seeds' spread, a resample of patients


class NotTestable(ValueError):
    """What a claim asks for is not among the records; the message says what."""


@dataclass(frozen=True)
class Claim:
    """One claim: ``one`` minus ``other``, by a contrast of ``CONTRASTS`` over the numbers of images.

    ``one`` and ``other`` are families of paradigms, the mean over those that were run; without ``other`` it is ``one``
    alone. ``measures``: (task, metric). ``threshold``: the smallest effect of interest, in the metric's units; the
    default is of AUROC, and all of them are our choice. ``each``: every paradigm of ``one`` on every measure is an
    option of its own, of which any or every one must hold. ``presence``: the claim is that an effect is there at all.
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


CLAIMS = (
    Claim("findings-growth", "MI2 scales more effectively on finding-related tasks (change, fewest to most images)",
          PAPER, (FINDINGS,), "growth", MI2, RAD_DINO),
    Claim("findings-slope", "MI2 scales more effectively on finding-related tasks (slope)",
          PAPER, (FINDINGS,), "slope", MI2, RAD_DINO, threshold=DECADE),
    Claim("tubes-classified", "RAD-DINO is stronger on tube-related tasks (classification)",
          PAPER, (TUBES,), "largest", RAD_DINO, MI2),
    Claim("tubes-drawn", "RAD-DINO is stronger on tube-related tasks (segmentation, Dice)",
          PAPER, (DICE,), "largest", RAD_DINO, MI2, threshold=OVERLAP),
    Claim("tubes-centre-lines", "RAD-DINO is stronger on tube-related tasks (segmentation, clDice)",
          PAPER, (CL_DICE,), "largest", RAD_DINO, MI2, threshold=OVERLAP),
    Claim("labels-findings", "MI2 with reports and labels by UniCL improves on reports alone (findings)",
          PAPER, (FINDINGS,), "largest", ("unicl",), ("clip",), presence=True),
    Claim("labels-tubes", "MI2 with reports and labels by UniCL improves on reports alone (lines and tubes)",
          PAPER, (TUBES,), "largest", ("unicl",), ("clip",), presence=True),
    Claim("few-suffice", "For some tasks as few as 30k in-domain samples surpass the open-weights models",
          PAPER, (FINDINGS, TUBES), "share", (*MI2, *RAD_DINO), each="any", presence=True),
    Claim("findings-scale", "With more in-house images every paradigm improves on findings",
          f"premise of {PAPER}, in our words", (FINDINGS,), "slope", (*MI2, *RAD_DINO), threshold=DECADE, each="every",
          presence=True),
    Claim("placement-seen", "Frozen MI2 is above frozen RAD-DINO on tube placement (read as: is the tube there?)",
          "arXiv 2505.10823, counter-evidence", (TUBES,), "base", MI2, RAD_DINO),
    Claim("placement-right", "Frozen MI2 is above frozen RAD-DINO on tube placement (read as: is its tip misplaced?)",
          "arXiv 2505.10823, counter-evidence", (PLACED,), "base", MI2, RAD_DINO),
    Claim("frozen-drawn", "RAD-DINO is best at segmentation (here against MI2, lines and tubes)",
          "arXiv 2504.16047", (DICE,), "base", RAD_DINO, MI2, threshold=OVERLAP),
    Claim("frozen-classified", "Text-supervised CheXagent is best at classification (here MI2 for it, findings)",
          "arXiv 2504.16047", (FINDINGS,), "base", MI2, RAD_DINO),
)  # fmt: skip


# ---- contrasts: weights over the numbers of images, and words ------------------------------------------------------
def _largest(sizes: Sequence[float]) -> tuple[dict[float, float], str]:
    return {sizes[-1]: 1.0}, f"with {sizes[-1]:,.0f} images"


def _growth(sizes: Sequence[float]) -> tuple[dict[float, float], str]:
    return {
        sizes[-1]: 1.0,
        sizes[0]: -1.0,
    }, f"change from {sizes[0]:,.0f} to {sizes[-1]:,.0f} images"


def _slope(sizes: Sequence[float]) -> tuple[dict[float, float], str]:
    decades = np.log10(sizes)
    off = decades - decades.mean()
    weights = dict(zip(sizes, (off / (off @ off)).tolist(), strict=True))
    return weights, f"slope a tenfold of images, {sizes[0]:,.0f} to {sizes[-1]:,.0f}"


def _base(sizes: Sequence[float]) -> tuple[dict[float, float], str]:
    return {BASE: 1.0}, "of the bases as they came"


def _share(sizes: Sequence[float]) -> tuple[dict[float, float], str]:
    shares = np.array(sizes[:-1]) / sizes[-1]
    off = np.abs(np.log(shares / SHARE))
    k = int(off.argmin())  # of two as near, the smaller
    if off[k] > np.log(10):
        raise NotTestable(
            f"a rung within ten times of the paper's share, {SHARE:.2%}; the nearest is {shares[k]:.2%}"
        )
    words = f"with {sizes[k]:,.0f} images minus the base; {sizes[k]:,.0f} of {sizes[-1]:,.0f}, {shares[k]:.2%}, is the "
    times = shares[k] / SHARE
    near = f"{times:.2g} times" if times >= 1 else f"{1 / times:.2g} times less than"
    return {
        sizes[k]: 1.0,
        BASE: -1.0,
    }, f"{words}rung nearest to the paper's 30k of 3.5M, {near} its {SHARE:.2%}"


Contrast = Callable[[Sequence[float]], tuple[dict[float, float], str]]
CONTRASTS: dict[str, tuple[Contrast, int, str]] = {  # weights, how many sizes they need, words before there are runs
    "largest": (_largest, 1, "with the most images"),
    "growth": (_growth, 2, "change from the fewest to the most images"),
    "slope": (_slope, 2, "slope a tenfold of images"),
    "base": (_base, 0, "of the bases as they came"),
    "share": (_share, 2, "with that share of the most images which is nearest, by its logarithm, to the paper's 30k of "
              "3.5M minus the base"),
}  # fmt: skip


# ---- weighing ------------------------------------------------------------------------------------------------------
def weigh(
    claim: Claim,
    options: Sequence[Mapping[Cell, float]],
    measured: Mapping[Cell, tuple[Floats, Floats]],
    spread: Mapping[Ladder, tuple[float, float]],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Effect, interval, p and verdict of a claim from its cells: the statistics alone, as this module's docstring says.

    ``options``: weights over cells. ``measured``: of each cell the values of S seeds (S,) and their resamples (S, R),
    the same patients a column. ``spread``: of a ladder the variance between seeds and its degrees of freedom; without
    it the claim is inconclusive. Keys: effect, low, high, p, verdict, why, ``decides`` (the option that gives the
    effect) and ``draws`` (resamples of the effect). NotTestable: an effect that is not defined.
    """
    effects = np.array(
        [sum(w * measured[cell][0].mean() for cell, w in option.items()) for option in options]
    )
    if not np.isfinite(effects).all():
        raise NotTestable(
            "a metric that is defined: the test images of every label are of one class"
        )
    unknown = {
        cell[2] for option in options for cell in option if _by_lot(cell) and cell[:3] not in spread
    }
    drawn = np.stack(
        [_draws(option, measured, {} if unknown else spread, rng) for option in options]
    )
    # what holds of every option is decided by the least effect: by the greatest, with all signs turned
    sign, k = -1.0 if claim.each == "every" else 1.0, len(options)
    turned = sign * drawn.T
    decides = int((sign * effects).argmax())
    ends = float(interval(turned, 1 - 0.05 / k)[0].max()), float(interval(turned)[1].max())
    low, high = ends if sign > 0 else (-ends[1], -ends[0])
    falls = [
        p / 2 if np.nanmedian(d) > 0 else 1 - p / 2 for d in turned.T for p in [bootstrap_p(d)]
    ]  # not above 0
    p = min(1.0, 2 * min(k * min(falls), 1 - min(falls)))
    effect = float(effects[decides])
    said, why = verdict(effect, low, high, claim.threshold, presence=claim.presence)
    if high - low <= FLAT and all(is_flat(draws.T).all() for _, draws in measured.values()):
        low, high, p = np.nan, np.nan, np.nan
        said, why = (
            "inconclusive",
            "all resamples are alike, as where an AUROC is 1: these test images cannot tell",
        )
    if unknown:
        where = "above 0" if low > 0 else "below 0" if high < 0 else "on both sides of 0"
        why = f"a second seed of {', '.join(sorted(unknown))} is missing; over patients alone the interval is {where}"
        said, p = "inconclusive", np.nan
    found = {
        "effect": effect,
        "low": low,
        "high": high,
        "p": p,
        "verdict": said,
        "why": why,
        "decides": decides,
    }
    return found | {"draws": sign * turned.max(axis=1)}


def _by_lot(cell: Cell) -> bool:
    """Whether a seed has a say in a cell: in continued encoders, and in the decoder of masks on any encoder; a probe
    has one solution."""
    return cell[3] != BASE or cell[0] == "segmentation"


def _draws(
    option: Mapping[Cell, float],
    measured: Mapping[Cell, tuple[Floats, Floats]],
    spread: Mapping[Ladder, tuple[float, float]],
    rng: np.random.Generator,
) -> Floats:
    """Resamples of one contrast: of patients (R,), or with the spread between seeds, (R * _DRAWS,)."""
    total = sum(w * measured[cell][1].mean(axis=0) for cell, w in option.items())
    variances: dict[Ladder, float] = {}
    for cell, w in option.items():
        values, ladder = measured[cell][0], cell[:3]
        if _by_lot(cell) and ladder in spread:
            own = float(values.var(ddof=1)) if len(values) > 1 else 0.0
            added = w**2 * max(own, spread[ladder][0]) / len(values)
            variances[ladder] = variances.get(ladder, 0.0) + added
    draws = np.repeat(total, _DRAWS if variances else 1).astype(np.float64)
    for ladder, variance in variances.items():
        draws += np.sqrt(variance) * rng.standard_t(spread[ladder][1], len(draws))
    return draws


def verdict(
    effect: float, low: float, high: float, threshold: float, *, presence: bool = False
) -> tuple[str, str]:
    """(verdict, why) of an effect with its interval; ``presence``: the claim is that an effect of interest exists."""
    bound = threshold if presence else 0.0
    if high < bound:
        return "contradicted", f"the whole interval is below {bound:g}"
    if low > 0 and effect >= threshold:
        return "supported", f"the whole interval is above 0 and the effect at least {threshold:g}"
    if low > 0:
        return (
            "inconclusive",
            f"above 0, but smaller than the smallest effect of interest, {threshold:g}",
        )
    return "inconclusive", "the interval holds 0"
