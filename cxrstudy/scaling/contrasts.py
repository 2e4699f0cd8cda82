"""Differences between evaluated encoders: the one inference engine of the study.

A *contrast* is a weighted sum of cells (``scaling.cells``): the gain over the base model, the
largest minus the smallest subset, one paradigm minus another. Its 95% interval joins two sources of
variance:

- **patients**: the contrast on shared resamples of the test patients (paired percentile bootstrap);
- **seeds**: the variance between seeds, pooled over the subset sizes of a scaling curve, with
  Student's t quantile (over several curves: Satterthwaite 1946). What the same patients add to the
  variance between seeds is taken out first, because the bootstrap has it already.

A curve with one seed at every size takes the variance of its paradigm's other curves, and
``variance_sources`` says so. Where no curve of the paradigm has two seeds, the interval has
patients only, and no verdict is given.

The p value is the level at which the interval touches its null value: p < .05 exactly where the
interval excludes it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from cxrstudy.evaluate.small_samples import FLAT, is_flat
from cxrstudy.scaling import verdicts as v
from cxrstudy.scaling.cells import (
    BASE,
    BASELINE,
    LOG_ERROR,
    OUT_OF_DOMAIN,
    SEEN,
    Cell,
    Cells,
    Floats,
    base_of,
    read_cells,
)

LEARNED_FROM_LABELS = ("shuffled", "supervised")  # the best baseline is not chosen from these
SeedVariance = Mapping[Cell, tuple[float, float]]  # by curve or family: variance, its dof
Ends = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class Estimate:
    """A contrast: its effect in the metric's units, 95% interval, p, and what the interval covers.

    ``low90`` and ``high90`` serve the two one-sided tests of equivalence at 5%.
    """

    effect: float
    low: float
    high: float
    p: float
    variance_sources: str  # v.BOTH, v.BORROWED or v.PATIENTS
    seeds: int  # fewest seeds of a trained cell
    low90: float = np.nan
    high90: float = np.nan


# ---- one contrast --------------------------------------------------------------------------------
def seed_variances(cells: Cells) -> dict[Cell, tuple[float, float]]:
    """Return the pooled variance between seeds and its degrees of freedom, by curve and by family.

    A curve or family without two seeds at any size has no entry.
    """
    squares: dict[Cell, tuple[float, float]] = {}
    for cell, measured in cells.items():
        count = len(measured.values)
        if count > 1:
            variance, _ = components(measured.values, measured.draws)
            for key in (cell.curve, cell.family):
                total, dof = squares.get(key, (0.0, 0.0))
                squares[key] = (total + variance * (count - 1), dof + count - 1)
    return {key: (total / dof, dof) for key, (total, dof) in squares.items()}


def components(values: Floats, draws: Floats) -> tuple[float, float]:
    """Return the variances (between seeds, of the test patients) of S runs.

    A two-way random effects model over seeds x resamples (Searle et al. 1992): what the same
    patients add to the variance between seeds (the residual) is part of the patients' variance.

    Args:
        values: (S,) as measured.
        draws: (S, R) on shared resamples of the test patients.
    """
    d = draws[:, ~np.isnan(draws).any(axis=0)]
    s, r = d.shape
    left = d - d.mean(axis=1, keepdims=True) - d.mean(axis=0) + d.mean()
    residual = (left**2).sum() / ((s - 1) * (r - 1))
    shared = max(0.0, d.mean(axis=0).var(ddof=1) - residual / s)
    return max(0.0, float(values.var(ddof=1) - residual)), float(shared + residual)


def ends_of(
    weights: Mapping[Cell, float], cells: Cells, seed_variance: SeedVariance
) -> tuple[float, Ends | None, str, int]:
    """Return a contrast's effect, its interval as a function of the level, sources, fewest seeds.

    The interval is None where a cell has no value.
    """
    effect = float(sum(w * cells[cell].values.mean() for cell, w in weights.items()))
    draws = np.sum([w * cells[cell].draws.mean(axis=0) for cell, w in weights.items()], axis=0)
    draws = np.sort(draws[~np.isnan(draws)])
    flat = all(is_flat(cells[cell].draws.mean(axis=0)) for cell in weights)
    hidden = min(cells[cell].hidden for cell in weights) if flat else 0.0
    random = [cell for cell in weights if cell.has_seeds]
    keys = {c: next((k for k in (c.curve, c.family) if k in seed_variance), None) for c in random}
    parts: dict[Cell, float] = {}
    for cell, key in keys.items():
        if key is not None:
            added = weights[cell] ** 2 * seed_variance[key][0] / len(cells[cell].values)
            parts[key] = parts.get(key, 0.0) + added
    variance = sum(parts.values())
    dof = np.inf
    if variance > 0:
        dof = variance**2 / sum(v**2 / seed_variance[key][1] for key, v in parts.items())

    def ends(level: float) -> tuple[float, float]:
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        half = stats.t.ppf((1 + level) / 2, dof) * np.sqrt(variance) if variance > 0 else 0.0
        below = max(np.hypot(max(effect - low, 0.0), half), hidden)
        above = max(np.hypot(max(high - effect, 0.0), half), hidden)
        return effect - below, effect + above

    sources = v.BOTH if all(key == cell.curve for cell, key in keys.items()) else v.BORROWED
    sources = v.PATIENTS if None in keys.values() else sources
    seeds = min((len(cells[cell].values) for cell in random), default=0)
    return effect, ends if np.isfinite(effect) and len(draws) else None, sources, seeds


def contrast(
    weights: Mapping[Cell, float],
    cells: Cells,
    seed_variance: SeedVariance | None = None,
    *,
    null: float = 0.0,
) -> Estimate:
    """Estimate a weighted sum of cells.

    Args:
        weights: weight of each cell, for example {largest: 1, base: -1}.
        cells: as ``read_cells`` returns them; draws share their resamples.
        seed_variance: as ``seed_variances`` returns it (the default). Empty: patients only.
        null: the value that p tests, in the metric's units.

    Returns:
        The estimate; NaN where a cell has no value, and no interval where nothing varies.
    """
    known = seed_variances(cells) if seed_variance is None else seed_variance
    effect, ends, sources, seeds = ends_of(weights, cells, known)
    if ends is None:
        return Estimate(np.nan, np.nan, np.nan, np.nan, sources, seeds)
    (low, high), inner = ends(0.95), ends(0.90)
    least = 2 / (cells[next(iter(weights))].draws.shape[1] + 1)
    p = p_value(ends, least, null)
    return Estimate(effect, float(low), float(high), p, sources, seeds, *map(float, inner))


def p_value(ends: Ends, least: float, null: float = 0.0) -> float:
    """Return one minus the level at which an interval touches ``null``: at least ``least``."""

    def excludes(p: float) -> bool:
        low, high = ends(1 - p)
        return low > null or high < null

    if excludes(least):
        return least
    small, large = least, 1.0  # excludes it at ``large``, unless at no level
    for _ in range(40):
        middle = (small + large) / 2
        small, large = (small, middle) if excludes(middle) else (middle, large)
    return large


def verdict(estimate: Estimate, margin: float | None) -> str:
    """Return the one word for a contrast: better, worse, equivalent, or undecided.

    ``margin``: bounds of equivalence (two one-sided tests at 5%), None for none. Equivalent comes
    first: a difference that is surely smaller than the margin is of no interest, whatever its sign.
    """
    if not np.isfinite(estimate.low) or estimate.high - estimate.low <= FLAT:
        return v.UNTOLD
    if estimate.variance_sources == v.PATIENTS:
        return v.ONE_SEED
    if margin and -margin < estimate.low90 and estimate.high90 < margin:
        return v.EQUIVALENT
    return v.BETTER if estimate.low > 0 else v.WORSE if estimate.high < 0 else v.UNTOLD


# ---- the contrasts of the study ------------------------------------------------------------------
Row = tuple[str, str, dict[Cell, float]]  # one, other, weights


def gains(cells: Cells) -> Iterator[Row]:
    """Yield each cell trained in-house minus its base model."""
    for cell in trained(cells):
        if base_of(cell) in cells:
            yield cell.arm, cell.start, {cell: 1.0, base_of(cell): -1.0}


def growth(cells: Cells) -> Iterator[Row]:
    """Yield the largest minus the smallest subset of each curve."""
    for sizes in curves(cells):
        if len(sizes) > 1:
            yield sizes[-1].arm, f"{sizes[0].n_images:g} images", {sizes[-1]: 1.0, sizes[0]: -1.0}


def slopes(cells: Cells) -> Iterator[Row]:
    """Yield the least-squares slope per tenfold data, over the sizes that passed the base model."""
    for sizes in curves(cells):
        passed = above_base(sizes, cells)
        if len(passed) > 2:
            yield sizes[-1].arm, f"from {passed[0].n_images:g} images", slope(passed)


def slope(sizes: list[Cell]) -> dict[Cell, float]:
    """Return the weights of a least-squares slope on log10 of the subset size."""
    x = np.log10([cell.n_images for cell in sizes])
    x -= x.mean()
    return dict(zip(sizes, (x / (x**2).sum()).tolist(), strict=True))


def above_base(sizes: list[Cell], cells: Cells) -> list[Cell]:
    """Return the sizes from which every mean is above the base model, or all if it is unknown."""
    base = cells.get(base_of(sizes[0]))
    if base is None:
        return sizes
    sign = -1.0 if sizes[0].metric == LOG_ERROR else 1.0
    gained = [sign * (cells[c].values.mean() - base.values.mean()) for c in sizes]
    below = [k for k, gain in enumerate(gained) if gain < 0]
    return sizes[below[-1] + 1 :] if below else sizes


def over_seen(cells: Cells) -> Iterator[Row]:
    """Yield in-house training minus as many more steps on images that the base had already seen."""
    yield from _over(cells, SEEN)


def over_out_of_domain(cells: Cells) -> Iterator[Row]:
    """Yield in-house minus out-of-domain images: same base model, subset size and samples seen."""
    yield from _over(cells, OUT_OF_DOMAIN)


def _over(cells: Cells, which: str) -> Iterator[Row]:
    for cell in trained(cells):
        other = cell._replace(arm=cell.arm + which)
        if other in cells:
            yield cell.arm, other.arm, {cell: 1.0, other: -1.0}


def over_baseline(cells: Cells) -> Iterator[Row]:
    """Yield the largest subset of each curve minus the best baseline that learned from no label."""
    for sizes in curves(cells):
        top = sizes[-1]
        plain = [c for c in cells if c.arm == BASELINE and c[:3] == top[:3]]
        plain = [c for c in plain if not any(word in c.start for word in LEARNED_FROM_LABELS)]
        if plain:
            sign = -1.0 if top.metric == LOG_ERROR else 1.0
            best = max(plain, key=lambda c: sign * cells[c].values.mean())
            yield top.arm, best.start, {top: 1.0, best: -1.0}


def paradigms(cells: Cells) -> Iterator[Row]:
    """Yield one paradigm minus another at every subset size that both have."""
    for one, other in combinations(list(trained(cells)), 2):
        alike = one[:3] == other[:3] and one.n_images == other.n_images
        if one.arm != other.arm and alike:
            yield one.arm, other.arm, {one: 1.0, other: -1.0}


def over_random(cells: Cells) -> Iterator[Row]:
    """Yield each base model minus random weights of its architecture."""
    for cell in sorted(c for c in cells if c.arm == BASE):
        random = cell._replace(arm=BASELINE, start=f"random:{cells[cell].encoder}")
        if random in cells:
            yield cell.start, random.start, {cell: 1.0, random: -1.0}


KINDS: dict[str, Callable[[Cells], Iterator[Row]]] = {
    v.GAIN: gains,
    v.GROWTH: growth,
    v.SLOPE: slopes,
    v.OVER_SEEN: over_seen,
    v.OVER_OTHERS: over_out_of_domain,
    v.OVER_BASELINE: over_baseline,
    v.PARADIGMS: paradigms,
    v.OVER_RANDOM: over_random,
}
COLUMNS = ["kind", "task", "metric", "data", "start", "one", "other", "n_images"]
ESTIMATED = ["effect", "low", "high", "p", "seeds", "variance_sources", "low90", "high90"]
COUNTED = ["n", "n_patients", "positives"]


def all_contrasts(
    table: pd.DataFrame,
    *,
    resamples: int = 1000,
    seed: int = 0,
    cells: Cells | None = None,
    seed_variance: SeedVariance | None = None,
) -> pd.DataFrame:
    """Return every contrast of ``KINDS`` on a tidy table of records, one row each.

    Args:
        table: as ``read_cells``, whose ``resamples``, ``seed`` and errors these are.
        cells: of the table, where they were read before.
        seed_variance: as ``seed_variances`` returns it; the default is that of the cells.

    Returns:
        Columns kind, task, metric, data, start (base model), one, other, n_images (the larger),
        effect, low, high, p, seeds, variance_sources, low90, high90, verdict, and of the test set n
        (images), n_patients, positives.
    """
    cells = read_cells(table, resamples=resamples, seed=seed) if cells is None else cells
    known = seed_variances(cells) if seed_variance is None else seed_variance
    untested = set(untestable(cells, known))
    rows: list[dict[str, Any]] = []
    for kind, build in KINDS.items():
        for one, other, weights in build(cells):
            first = next(iter(weights))
            named = (kind, *first[:3], first.start, one, other, max(c.n_images for c in weights))
            estimate = contrast(weights, cells, known)
            margin = v.MARGIN.get(first.metric) if kind != v.SLOPE else None
            said = verdict(_signed(estimate, first.metric), margin)
            tested = {c._replace(metric=_own(c.metric)).curve for c in weights}
            if kind == v.PARADIGMS and tested & untested:
                said = v.UNTESTABLE
            row = dict(zip(COLUMNS, named, strict=True)) | vars(estimate) | {"verdict": said}
            rows.append(row | {name: getattr(cells[first], name) for name in COUNTED})
    return pd.DataFrame(rows, columns=[*COLUMNS, *ESTIMATED, "verdict", *COUNTED])


def _own(metric: str) -> str:
    return "auroc" if metric == LOG_ERROR else metric


def _signed(estimate: Estimate, metric: str) -> Estimate:
    """Return the estimate with positive for better: of an error, with the opposite sign."""
    if metric != LOG_ERROR:
        return estimate
    e = estimate
    turned = replace(e, effect=-e.effect, low=-e.high, high=-e.low)
    return replace(turned, low90=-e.high90, high90=-e.low90)


def untestable(cells: Cells, seed_variance: SeedVariance) -> dict[Cell, str]:
    """Return the curves whose base model is not above random weights, with the reason.

    A paradigm is compared with another only where the interval of (base - random weights of its
    architecture) lies above the smallest effect of interest.
    """
    gate = {}
    for _, random, weights in over_random(cells):
        base = next(iter(weights))
        found = contrast(weights, cells, seed_variance)
        enough = found.low >= v.MARGIN.get(base.metric, 0.0)
        shown = f"{found.effect:+.4f} [{found.low:+.4f}, {found.high:+.4f}] over {random}"
        gate[base] = "" if enough else f"its base model {base.start} is only {shown}"
    reasons = {}
    for cell in cells:
        if cell.trained and cell.metric != LOG_ERROR:
            missing = f"random weights were not evaluated beside its base model {cell.start}"
            reason = gate.get(base_of(cell), missing)
            if reason:
                reasons[cell.curve] = reason
    return reasons


def trained(cells: Cells) -> Iterator[Cell]:
    """Yield the cells of in-house training, by curve and size."""
    return iter(sorted(cell for cell in cells if cell.in_house))


def curves(cells: Cells) -> list[list[Cell]]:
    """Return the in-house cells of each curve, by rising size."""
    found: dict[Cell, list[Cell]] = {}
    for cell in trained(cells):
        found.setdefault(cell.curve, []).append(cell)
    return list(found.values())
