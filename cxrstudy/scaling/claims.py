"""Verdicts on the claims of ``hypotheses``, computed from cells by the inference engine.

- *supported*: the interval is above 0 and the effect reaches the smallest effect of interest. A
  claim about in-house images also needs a control at equal compute that they beat.
- *contradicted*: the interval is below 0. For a claim that there is an effect at all
  (``presence``): below the smallest effect of interest; p then tests against that bound.
- *inconclusive*: neither, or one seed alone.
- *not testable*: runs are missing, or a base model is not above random weights of its architecture
  by the smallest effect of interest.

A claim on *any* of k options takes the best of them, with its lower end at 1 - .05/k. A claim on
*every* option takes the worst, with its upper end at that level (Bonferroni; Berger 1982).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.evaluate.small_samples import FLAT
from cxrstudy.scaling import contrasts
from cxrstudy.scaling.cells import Cell, Cells, base_of, control_of, read_cells
from cxrstudy.scaling.hypotheses import CLAIMS, SIZES, Claim, NotTestable
from cxrstudy.scaling.verdicts import (
    BETTER,
    CONTRADICTED,
    INCONCLUSIVE,
    MARGIN,
    ONE_BASE,
    PATIENTS,
    SUPPORTED,
    UNTESTABLE,
)

COLUMNS = ["id", "claim", "source", "scope", "contrast", "effect", "low", "high", "p", "seeds",
           "variance_sources", "verdict", "why", "threshold"]  # fmt: skip


# ---- the ledger ----------------------------------------------------------------------------------
def ledger(
    table: pd.DataFrame,
    *,
    cells: Cells | None = None,
    seed_variance: contrasts.SeedVariance | None = None,
    claims: Sequence[Claim] = CLAIMS,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return every claim with its verdict on the records of one study, one row each.

    Args:
        table: tidy table of records; ``resamples`` and ``seed`` as ``read_cells`` takes them.
        cells: of the table, where they were read before.
        seed_variance: as ``contrasts.seed_variances`` returns it; the default is that of the cells.

    Returns:
        Columns id, claim, source, scope, contrast (in words), effect, low, high (95%), p, seeds,
        variance_sources, verdict, why (or what is missing), threshold. ``with_holm`` adds p_holm.
    """
    cells = read_cells(table, resamples=resamples, seed=seed) if cells is None else cells
    known = contrasts.seed_variances(cells) if seed_variance is None else seed_variance
    gate = contrasts.untestable(cells, known)
    rows = []
    for claim in claims:
        row: dict[str, Any] = {"id": claim.id, "claim": claim.text, "source": claim.source}
        row |= {"contrast": _before_runs(claim), "threshold": claim.threshold, "scope": ""}
        row |= dict.fromkeys(("effect", "low", "high", "p"), np.nan) | {"seeds": 0}
        try:
            row |= _tested(claim, cells, known, gate)
        except NotTestable as reason:
            row |= {"verdict": UNTESTABLE, "why": str(reason), "variance_sources": ""}
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _before_runs(claim: Claim) -> str:
    """Return a claim's contrast in words."""
    joined = " or " if claim.each else " and "
    arms = [joined.join(arm) for arm in (claim.one, claim.other) if arm]
    measures = " or ".join(f"{task} ({metric})" for task, metric in claim.measures)
    return f"{' minus '.join(arms)}, {measures}, {SIZES[claim.contrast][2]}"


def _tested(
    claim: Claim, cells: Cells, known: contrasts.SeedVariance, gate: Mapping[Cell, str]
) -> dict[str, Any]:
    """Return effect, interval, p, verdict and scope of a claim."""
    options, words, left = _options(claim, cells, gate)
    found = [contrasts.ends_of(weights, cells, known) for weights in options]
    if any(ends is None for _, ends, _, _ in found):
        raise NotTestable("missing: a value that is defined; a label has test images of one class")
    sign, k = -1.0 if claim.each == "every" else 1.0, len(options)
    decides = int(np.argmax([sign * effect for effect, *_ in found]))
    effect, _, sources, seeds = found[decides]

    def ends(level: float) -> tuple[float, float]:
        """Return the deciding end at 1 - (1 - level)/k and the other at the level itself."""
        strict = 1 - (1 - level) / k
        lows, highs = (
            [e(at)[side] for _, e, _, _ in found if e is not None]
            for side, at in ((0, strict if sign > 0 else level), (1, level if sign > 0 else strict))
        )
        return (max(lows), max(highs)) if sign > 0 else (min(lows), min(highs))

    low, high = ends(0.95)
    draws = cells[next(iter(options[0]))].draws.shape[1]
    said, why = verdict(effect, low, high, claim.threshold, presence=claim.presence)
    bound = claim.threshold if said == CONTRADICTED and high >= 0 else 0.0
    p = contrasts.p_value(ends, 2 / (draws + 1), bound)
    if high - low <= FLAT:
        low, high, p, said = np.nan, np.nan, np.nan, INCONCLUSIVE
        why = "all resamples are alike: these test images cannot tell"
    elif PATIENTS in [s for _, _, s, _ in found]:
        said, p, why = INCONCLUSIVE, np.nan, f"one seed: over patients alone, {why}"
    if said == SUPPORTED and claim.in_house:
        said, more = _beyond_control(options[decides], cells, known)
        why += more
    used = {cell for weights in options for cell in weights}
    if said in (SUPPORTED, CONTRADICTED):
        said += ONE_BASE * _one_base(claim, used, cells)
    which = {"any": f"the greatest of {k}: ", "every": f"the least of {k}: "}.get(claim.each, "")
    why += _harm(claim, options[decides], cells)
    why += "".join(f"; left out: {reason}" for reason in left)
    row: dict[str, Any] = {"effect": effect, "low": low, "high": high, "p": p, "seeds": seeds}
    row |= {"variance_sources": sources, "verdict": said, "why": why}
    return row | {"contrast": which + words[decides], "scope": _scope(used, cells)}


def verdict(
    effect: float, low: float, high: float, threshold: float, *, presence: bool = False
) -> tuple[str, str]:
    """Return the verdict of an effect with its interval, and why."""
    bound = threshold if presence else 0.0
    if high < bound:
        return CONTRADICTED, f"the whole interval is below {bound:g}"
    if low > 0 and effect >= threshold:
        return SUPPORTED, f"the whole interval is above 0 and the effect at least {threshold:g}"
    if low > 0:
        return INCONCLUSIVE, f"above 0, but below the smallest effect of interest, {threshold:g}"
    return INCONCLUSIVE, "the interval includes 0"


def _beyond_control(
    weights: Mapping[Cell, float], cells: Cells, known: contrasts.SeedVariance
) -> tuple[str, str]:
    """Return the verdict of a gain over the same training on other images, if that was run."""
    pairs = []
    for cell, weight in weights.items():
        if weight > 0 and cell.in_house and cell.n_images == max(c.n_images for c in weights):
            control = control_of(cell, cells)
            pairs += [] if control is None else [{cell: 1.0, control: -1.0}]
    if not pairs:
        return INCONCLUSIVE, "; no control at equal compute was run at this subset size"
    told, better = [], True
    for pair in pairs:
        cell, other = pair
        found = contrasts.contrast(pair, cells, known)
        said = contrasts.verdict(found, MARGIN.get(cell.metric))
        better = better and said == BETTER
        shown = f"{found.effect:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        told.append(f"{cell.arm} minus {other.arm} {shown}: {said}")
    return SUPPORTED if better else INCONCLUSIVE, f"; at equal compute, {'; '.join(told)}"


def _one_base(claim: Claim, used: set[Cell], cells: Cells) -> bool:
    """Return whether an arm of a comparison has only one base model in the whole study."""
    metric = {(cell.task, cell.metric, cell.data) for cell in used}
    alike = [c for c in cells if c.in_house and c[:3] in metric]
    arms = (arm for arm in (claim.one, claim.other) if arm)
    return any(len({c.start for c in alike if c.arm in arm}) <= 1 for arm in arms)


def _harm(claim: Claim, weights: Mapping[Cell, float], cells: Cells) -> str:
    """Return what the smallest and the largest subset of a gain have over their base models."""
    if claim.contrast != "gain":
        return ""
    told = []
    for paradigm in dict.fromkeys(c.arm for c in weights if c.in_house):
        top = next(c for c in weights if c.arm == paradigm)
        sizes = sorted(c for c in cells if c.in_house and c.curve == top.curve)
        base = cells[base_of(top)].values.mean()
        least, most = (cells[c].values.mean() - base for c in (sizes[0], sizes[-1]))
        few = f"{least:+.4f} with {sizes[0].n_images:,.0f}"
        told.append(f"{paradigm} {few}, {most:+.4f} with the most")
    return f"; against their base models: {'; '.join(told)}"


def _scope(used: set[Cell], cells: Cells) -> str:
    """Return base models, seeds and test set of a verdict."""
    kinds = ", ".join(sorted({cells[cell].kind for cell in used}))
    starts = ", ".join(sorted({cell.start for cell in used}))
    seen = sorted({cell.samples_seen for cell in used if cell.trained})
    said = [f"{kinds} x-rays", f"base {starts}"]
    said += [f"{' or '.join(f'{n:,.0f}' for n in seen)} samples seen"] if seen else []
    tested = {(cells[cell].n, cells[cell].n_patients) for cell in used}
    said += [f"{n:,} test images of {patients:,} patients" for n, patients in sorted(tested)]
    return "; ".join(said)


# ---- the options of a claim ----------------------------------------------------------------------
def _options(
    claim: Claim, cells: Cells, gate: Mapping[Cell, str]
) -> tuple[list[dict[Cell, float]], list[str], list[str]]:
    """Return for each testable option its weights over cells and its name; and what others lack."""
    options, words, left = [], [], []
    for measure in claim.measures:
        own, unclear = _longest(cells, measure)
        for one in [(paradigm,) for paradigm in claim.one] if claim.each else [claim.one]:
            try:
                weights, said = _weights(claim, [one, claim.other], own, unclear, cells, gate)
            except NotTestable as reason:
                left.append(f"{measure[0]}: {reason}" if claim.each else str(reason))
                continue
            options.append(weights)
            words.append(f"{said}, {measure[0]} ({measure[1]})")
    if not options:
        raise NotTestable("; ".join(dict.fromkeys(left)))
    return options, words, list(dict.fromkeys(left))


def _longest(
    cells: Cells, measure: tuple[str, str]
) -> tuple[dict[str, dict[float, Cell]], dict[str, str]]:
    """Return the cells by size of each paradigm's longest curve (base model at 0), or why none."""
    found: dict[str, list[list[Cell]]] = {}
    for curve in contrasts.curves({c: m for c, m in cells.items() if c[:2] == measure}):
        found.setdefault(curve[0].arm, []).append(curve)
    longest, unclear = {}, {}
    for paradigm, each in found.items():
        most = [curve for curve in each if len(curve) == max(map(len, each))]
        if len(most) > 1:
            names = " and ".join(f"{c[0].start}, {c[0].samples_seen:,.0f} seen" for c in most)
            unclear[paradigm] = f"missing: one longest curve of {paradigm}; as long are {names}"
            continue
        longest[paradigm] = {cell.n_images: cell for cell in most[0]}
        if base_of(most[0][0]) in cells:
            longest[paradigm][0.0] = base_of(most[0][0])
    return longest, unclear


def _weights(
    claim: Claim,
    arms: list[tuple[str, ...]],
    own: Mapping[str, dict[float, Cell]],
    unclear: Mapping[str, str],
    cells: Cells,
    gate: Mapping[Cell, str],
) -> tuple[dict[Cell, float], str]:
    """Return the weights over cells of one option, and its name."""
    sides = []
    for arm in (arm for arm in arms if arm):
        side = [paradigm for paradigm in arm if paradigm in own]
        if not side:
            reasons = [unclear[paradigm] for paradigm in arm if paradigm in unclear]
            raise NotTestable("; ".join(reasons) or f"missing: runs of {' or '.join(arm)}")
        sides.append(side)
    everyone = [paradigm for side in sides for paradigm in side]
    if len(sides) > 1:
        for paradigm in everyone:
            reason = gate.get(next(c for n, c in own[paradigm].items() if n).curve, "")
            if reason:
                raise NotTestable(f"{paradigm} has not learned the task: {reason}")
    sizes = _common_sizes(claim, everyone, own, cells)
    by_size, how = SIZES[claim.contrast][0](sizes)
    weights: dict[Cell, float] = {}
    for sign, side in zip((1, -1), sides, strict=False):
        for paradigm in side:
            for n, w in by_size.items():
                if n not in own[paradigm]:
                    raise NotTestable(f"missing: the base model of {paradigm}")
                cell = own[paradigm][n]
                weights[cell] = weights.get(cell, 0.0) + sign * w / len(side)
    return weights, f"{' minus '.join(' and '.join(side) for side in sides)}, {how}"


def _common_sizes(
    claim: Claim, everyone: list[str], own: Mapping[str, dict[float, Cell]], cells: Cells
) -> list[float]:
    """Return the subset sizes of all paradigms; for a slope, those that pass the base model."""
    there = []
    for paradigm in everyone:
        curve = [cell for n, cell in sorted(own[paradigm].items()) if n]
        kept = contrasts.above_base(curve, cells) if claim.contrast == "slope" else curve
        there.append({cell.n_images for cell in kept})
    sizes, need = sorted(set.intersection(*there)), SIZES[claim.contrast][1]
    if len(sizes) < need:
        beyond = " that pass their base models" if claim.contrast == "slope" else ""
        raise NotTestable(f"missing: {need} subset sizes of {' and '.join(everyone)}{beyond}")
    return sizes
