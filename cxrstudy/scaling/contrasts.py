"""Differences between evaluated encoders, each with one interval and one p value: the inference engine of the study.

A *cell* is one encoder, or several that differ in their seed alone, on one task and metric. A *contrast* is a weighted
sum of cells: gain over the base model, growth with the subset size, in-domain minus out-of-domain, slope.

The interval (95%) joins two sources of variance in quadrature:

- **patients**: the contrast on shared resamples of the test patients (paired percentile bootstrap);
- **seeds**: the variance between seeds, pooled over the subset sizes of a scaling curve, with Student's t quantile at
  the pooled degrees of freedom (over several curves: Satterthwaite 1946). The part of that variance which comes from
  the same patients striking seeds differently is taken out first: the bootstrap has it already (``components``).

Where a curve has one seed at every size, its variance between seeds is unknown: the interval has patients only, and
``variance_sources`` says so. The p value is the level at which the interval touches 0, so p < .05 and an interval that
excludes 0 always agree.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from cxrstudy.evaluate.compare import components
from cxrstudy.scaling.evidence import _drawn as resample_masks
from cxrstudy.scaling.ladders import CONTINUED, abroad, resampled

Floats = NDArray[np.float64]
BASE, BASELINE, OUT_OF_DOMAIN = "base model", "baseline", " out-of-domain"
BOTH, PATIENTS = "patients and seeds", "patients only"
READERS = {("classify", "auroc"): resampled, ("classify", "auprc"): resampled}
READERS |= {("segment", "dice"): resample_masks, ("segment", "cl_dice"): resample_masks}
LEARNED_FROM_LABELS = ("shuffled", "supervised")  # the best baseline is not chosen from these


class Cell(NamedTuple):
    """What encoders that differ in their seed alone have in common."""

    task: str
    metric: str
    data: str
    arm: str  # paradigm, with OUT_OF_DOMAIN where images of another institution were used; BASE; BASELINE
    start: (
        str  # the base model that training started from; the name of a base model or of a baseline
    )
    samples_seen: float
    n_images: float  # subset size; 0 for base models and baselines

    @property
    def curve(self) -> "Cell":
        """The scaling curve of the cell, which pools the variance between seeds."""
        return self._replace(n_images=0.0)


@dataclass(frozen=True)
class Measured:
    """Values of S seeds, (S,), and of each on R shared resamples of the test patients, (S, R)."""

    values: Floats
    draws: Floats


Cells = Mapping[Cell, Measured]
SeedVariance = Mapping[
    Cell, tuple[float, float]
]  # of a curve: variance between seeds, degrees of freedom


@dataclass(frozen=True)
class Estimate:
    """A contrast: its effect in the metric's units, 95% interval, two-sided p, and what the interval covers."""

    effect: float
    low: float
    high: float
    p: float
    variance_sources: str  # BOTH or PATIENTS
    seeds: int  # fewest seeds of a trained cell


# ---- from the tidy table to cells ----------------------------------------------------------------------------------
def read_cells(
    table: pd.DataFrame, *, resamples: int = 1000, seed: int = 0
) -> dict[Cell, Measured]:
    """Return the cells of a tidy table of records, from the per-image scores stored with its runs.

    Every cell of one (task, metric, data) is evaluated on the labels that all its runs have. ValueError: runs of one
    (task, metric, data) with different test patients, or without stored scores.
    """
    kept = table[
        (table["label"] == "macro") & table["value"].notna() & ~table["task"].str.contains("@")
    ]
    kept = kept.drop_duplicates(["folder", "task", "metric"])
    labels = table[(table["label"] != "macro") & table["value"].notna()]
    found: dict[Cell, list[tuple[float, Floats]]] = {}
    for (stage, task, metric, data), rows in kept.groupby(
        ["stage", "task", "metric", "data"], sort=False
    ):
        reader = READERS.get((stage, metric))
        if reader is None:
            continue
        if rows["patients"].nunique() > 1:
            some = rows.groupby("patients")["run"].first()
            raise ValueError(
                f"{task}: {', '.join(some)} have different test patients and cannot be compared"
            )
        own = labels[
            (labels["task"] == task)
            & (labels["metric"] == metric)
            & labels["folder"].isin(rows["folder"])
        ]
        shared = own.groupby("label", sort=False)["folder"].nunique()
        names = tuple(shared.index[shared == rows["folder"].nunique()])
        if not names:
            continue
        for row in (
            rows.assign(arm=_arms(rows), start=_starts(rows)).sort_values("seed").itertuples()
        ):
            if not (Path(row.folder) / "scores.parquet").is_file():
                raise ValueError(
                    f"{row.folder}: scores.parquet is missing; run the {stage} notebook again"
                )
            trained = row.arm not in (BASE, BASELINE)
            seen, size = (float(row.samples_seen), float(row.n_images)) if trained else (0.0, 0.0)
            cell = Cell(task, metric, data, row.arm, row.start, seen, size)
            found.setdefault(cell, []).append(reader(row.folder, names, metric, resamples, seed))
    return {
        c: Measured(np.array([v for v, _ in each]), np.stack([d for _, d in each]))
        for c, each in found.items()
    }


def _arms(rows: pd.DataFrame) -> pd.Series:
    """The arm of each evaluated encoder."""
    continued = rows["paradigm"].isin(CONTINUED) & (rows["base"].fillna("") != "")
    arm = rows["paradigm"].where(continued, BASE).where(rows["paradigm"] != "control", BASELINE)
    return arm.where(~(continued & abroad(rows)), arm + OUT_OF_DOMAIN)


def _starts(rows: pd.DataFrame) -> pd.Series:
    """The base model's name without its run's digest, for trained encoders and for the base model itself."""
    run = rows["run"].str.replace("-[0-9a-f]{6}$", "", regex=True)
    own = run.str.removeprefix("base-").where(
        rows["paradigm"] != "control", rows["encoder"].astype(str)
    )
    base = rows["base"].fillna("").astype(str).str.replace("-[0-9a-f]{6}$", "", regex=True)
    return base.where(base != "", own)


def seed_variances(cells: Cells) -> dict[Cell, tuple[float, float]]:
    """Return, for each curve with two seeds somewhere, the pooled variance between seeds and its degrees of freedom."""
    squares: dict[Cell, tuple[float, float]] = {}
    for cell, measured in cells.items():
        count = len(measured.values)
        if count > 1:
            variance = components(measured.values, measured.draws)["seed_sd"] ** 2
            total, dof = squares.get(cell.curve, (0.0, 0.0))
            squares[cell.curve] = (total + variance * (count - 1), dof + count - 1)
    return {curve: (total / dof, dof) for curve, (total, dof) in squares.items()}


# ---- one contrast --------------------------------------------------------------------------------------------------
def contrast(
    weights: Mapping[Cell, float], cells: Cells, seed_variance: SeedVariance | None = None
) -> Estimate:
    """Estimate a weighted sum of cells.

    Args:
        weights: weight of each cell, for example {largest: 1, base: -1}.
        cells: as ``read_cells`` returns them; draws share their resamples.
        seed_variance: as ``seed_variances`` returns it (the default). An empty mapping gives patients only.

    Returns: the estimate; NaN where a cell has no value.
    """
    known = seed_variances(cells) if seed_variance is None else seed_variance
    effect = float(sum(w * cells[cell].values.mean() for cell, w in weights.items()))
    draws = np.sort(
        np.sum([w * cells[cell].draws.mean(axis=0) for cell, w in weights.items()], axis=0)
    )
    random = [cell for cell in weights if _has_seeds(cell)]
    parts: dict[Cell, float] = {}
    for cell in random:
        if cell.curve in known:
            added = weights[cell] ** 2 * known[cell.curve][0] / len(cells[cell].values)
            parts[cell.curve] = parts.get(cell.curve, 0.0) + added
    variance = sum(parts.values())
    dof = (
        variance**2 / sum(v**2 / known[curve][1] for curve, v in parts.items())
        if variance > 0
        else np.inf
    )
    draws = draws[~np.isnan(draws)]

    def ends(level: float) -> tuple[float, float]:
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        half = stats.t.ppf((1 + level) / 2, dof) * np.sqrt(variance) if variance > 0 else 0.0
        return effect - np.hypot(max(effect - low, 0.0), half), effect + np.hypot(
            max(high - effect, 0.0), half
        )

    seeds = min((len(cells[cell].values) for cell in random), default=0)
    sources = BOTH if all(cell.curve in known for cell in random) else PATIENTS
    if not np.isfinite(effect) or not len(draws):
        return Estimate(np.nan, np.nan, np.nan, np.nan, sources, seeds)
    low, high = ends(0.95)
    return Estimate(
        effect, float(low), float(high), _p_value(ends, 2 / (len(draws) + 1)), sources, seeds
    )


def _has_seeds(cell: Cell) -> bool:
    """Whether a seed changes a cell: trained encoders, and the decoder of masks on any encoder; a probe is exact."""
    return cell.arm not in (BASE, BASELINE) or cell.metric in ("dice", "cl_dice")


def _p_value(ends: Callable[[float], tuple[float, float]], least: float) -> float:
    """One minus the level at which the interval touches 0, found by bisection; at least ``least``, at most 1."""

    def excludes(p: float) -> bool:
        low, high = ends(1 - p)
        return low > 0 or high < 0

    if excludes(least):
        return least
    small, large = least, 1.0  # excludes 0 at large, unless at no level
    for _ in range(40):
        middle = (small + large) / 2
        small, large = (small, middle) if excludes(middle) else (middle, large)
    return large


# ---- the contrasts of the study ------------------------------------------------------------------------------------
Row = tuple[str, str, dict[Cell, float]]  # one, other, weights


def gains(cells: Cells) -> Iterator[Row]:
    """Each trained cell minus its base model."""
    for cell in _trained(cells):
        base = Cell(cell.task, cell.metric, cell.data, BASE, cell.start, 0.0, 0.0)
        if base in cells:
            yield cell.arm, cell.start, {cell: 1.0, base: -1.0}


def growth(cells: Cells) -> Iterator[Row]:
    """The largest minus the smallest subset of each curve."""
    for sizes in _curves(cells):
        if len(sizes) > 1:
            yield sizes[-1].arm, f"{sizes[0].n_images:g} images", {sizes[-1]: 1.0, sizes[0]: -1.0}


def slopes(cells: Cells) -> Iterator[Row]:
    """The least-squares slope of each curve per tenfold increase in data; at least 3 sizes."""
    for sizes in _curves(cells):
        if len(sizes) > 2:
            x = np.log10([cell.n_images for cell in sizes])
            x -= x.mean()
            yield sizes[-1].arm, "", dict(zip(sizes, (x / (x**2).sum()).tolist(), strict=True))


def in_domain(cells: Cells) -> Iterator[Row]:
    """In-domain minus out-of-domain: same base model, subset size and samples seen."""
    for cell in _trained(cells):
        other = cell._replace(arm=cell.arm + OUT_OF_DOMAIN)
        if other in cells:
            yield cell.arm, other.arm, {cell: 1.0, other: -1.0}


def over_baseline(cells: Cells) -> Iterator[Row]:
    """The largest subset of each curve minus the best baseline that learned from no label."""
    for sizes in _curves(cells):
        top = sizes[-1]
        alike = [c for c in cells if c.arm == BASELINE and c[:3] == top[:3]]
        plain = [c for c in alike if not any(word in c.start for word in LEARNED_FROM_LABELS)]
        if plain:
            best = max(plain, key=lambda c: cells[c].values.mean())
            yield top.arm, best.start, {top: 1.0, best: -1.0}


def paradigms(cells: Cells) -> Iterator[Row]:
    """One paradigm minus another at every subset size that both have."""
    for one, other in combinations(list(_trained(cells)), 2):
        alike = ("task", "metric", "data", "n_images")
        if one.arm != other.arm and all(
            getattr(one, name) == getattr(other, name) for name in alike
        ):
            yield one.arm, other.arm, {one: 1.0, other: -1.0}


KINDS: dict[str, Callable[[Cells], Iterator[Row]]] = {
    "gain over base model": gains,
    "largest - smallest subset": growth,
    "per 10x data": slopes,
    "in-domain - out-of-domain": in_domain,
    "gain over best baseline": over_baseline,
    "difference of paradigms": paradigms,
}


def all_contrasts(table: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return every contrast of ``KINDS`` on a tidy table of records, one row each.

    Columns: kind, task, metric, data, start (base model), one, other, n_images (the larger), effect, low, high, p,
    seeds, variance_sources. ValueError as ``read_cells``.
    """
    cells = read_cells(table, resamples=resamples, seed=seed)
    known = seed_variances(cells)
    rows: list[dict[str, Any]] = []
    for kind, build in KINDS.items():
        for one, other, weights in build(cells):
            first = next(iter(weights))
            row: dict[str, Any] = {
                "kind": kind,
                "task": first.task,
                "metric": first.metric,
                "data": first.data,
                "start": first.start,
            }
            row |= {"one": one, "other": other, "n_images": max(cell.n_images for cell in weights)}
            rows.append(row | vars(contrast(weights, cells, known)))
    columns = ["kind", "task", "metric", "data", "start", "one", "other", "n_images"]
    return pd.DataFrame(
        rows, columns=[*columns, "effect", "low", "high", "p", "seeds", "variance_sources"]
    )


def _trained(cells: Cells) -> Iterator[Cell]:
    """Cells of in-domain training, by curve and size."""
    trained = (
        cell
        for cell in cells
        if cell.arm not in (BASE, BASELINE) and not cell.arm.endswith(OUT_OF_DOMAIN)
    )
    return iter(sorted(trained))


def _curves(cells: Cells) -> list[list[Cell]]:
    """The in-domain cells of each curve, by rising size."""
    found: dict[Cell, list[Cell]] = {}
    for cell in _trained(cells):
        found.setdefault(cell.curve, []).append(cell)
    return list(found.values())
