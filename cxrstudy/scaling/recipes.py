"""What each part of a recipe brings, from random weights: the variants of a preset, compared.

Each variant of such a preset trains the same architecture in another way. All are evaluated on the
same test patients, so that differences between variants are paired, and seeds are joined.
"""

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from cxrstudy.scaling import contrasts
from cxrstudy.scaling.cells import BASE, LOG_ERROR, Cell, Cells, Measured, join_seeds, read_cells

TRAINED = re.compile(r"(clip|unicl|dinov2|clip\+labels)-n\d+-s\d+")  # a run from random weights
RANDOM, SUPERVISED = "random:", "supervised:"
COLUMNS = ["recipe", "arm", "task", "metric", "samples_seen", "value", "low", "high", "seeds"]


def recipes(
    tables: Mapping[str, pd.DataFrame], *, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Return the value of every recipe, and its paired differences, with intervals.

    The variance between seeds is pooled over recipes.

    Args:
        tables: tidy tables by variant; "" is the preset itself.
        resamples: of the test patients; ``seed`` is theirs.

    Returns:
        A row a recipe or baseline, task and metric: recipe (its variant), arm (the paradigm, or the
        baseline's name), samples_seen, value, low, high, seeds, n, n_patients, positives. Columns
        over_random, over_supervised, over_pixels and over_base (the recipe of the preset itself)
        have the differences, each with ``_low``, ``_high`` and ``_p``; baselines have over_random
        alone. Empty without variants that train from random weights.
    """
    read = {v: read_cells(t, resamples=resamples, seed=seed) for v, t in tables.items()}
    cells = {cell: found for variant, own in read.items() for cell, found in _named(own, variant)}
    seen = {v: t.loc[t["run"].str.match(TRAINED), "samples_seen"].max() for v, t in tables.items()}
    trained = [cell for cell in cells if cell.arm != BASE]
    if len({cell.start for cell in trained}) < 2:
        return pd.DataFrame(columns=COLUMNS)
    known = _pooled(cells)
    rows = []
    for cell in sorted(cells, key=lambda cell: (cell.task, cell.metric, cell.arm == BASE)):
        estimate, own = contrasts.contrast({cell: 1.0}, cells, known), cells[cell]
        at_base = cell.arm == BASE
        row: dict[str, Any] = {"recipe": "" if at_base else cell.start}
        row |= {"arm": cell.start if at_base else cell.arm}
        row |= {"task": cell.task, "metric": cell.metric}
        row |= {"samples_seen": float("nan") if at_base else float(seen[cell.start])}
        row |= {"value": estimate.effect, "low": estimate.low, "high": estimate.high}
        row |= {"seeds": len(own.values), "n": own.n, "n_patients": own.n_patients}
        row |= {"positives": own.positives}
        for name, other in _compared(cell, cells).items():
            pair = {cell: 1.0, other: -1.0}
            difference = contrasts.contrast(pair, cells, known)
            row |= {name: difference.effect, f"{name}_low": difference.low}
            row |= {f"{name}_high": difference.high, f"{name}_p": difference.p}
        rows.append(row)
    return pd.DataFrame(rows)


def _pooled(cells: Cells) -> dict[Cell, tuple[float, float]]:
    """Return one variance between seeds for all recipes of a task and metric, by curve.

    Each recipe has too few seeds for a variance of its own; they train one architecture on the same
    images.
    """
    known = contrasts.seed_variances(cells)
    out: dict[Cell, tuple[float, float]] = {}
    for cell in cells:
        same = [(c, v) for c, v in known.items() if c != c.family and c.metric == cell.metric]
        own = [v for c, v in same if c.task == cell.task]
        dof = sum(degrees for _, degrees in own)
        if dof:
            out[cell.curve] = sum(v * degrees for v, degrees in own) / dof, dof
    return out


def _named(cells: Cells, variant: str) -> list[tuple[Cell, Measured]]:
    """Return a variant's cells: recipes as paradigms that start from the variant, and baselines."""
    found: dict[Cell, list[Measured]] = {}
    for cell, own in cells.items():
        trained = TRAINED.fullmatch(cell.start)
        if cell.metric == LOG_ERROR:
            continue
        if trained:
            cell = cell._replace(arm=trained[1], start=variant)
        elif not cell.start.startswith((RANDOM, SUPERVISED)) and cell.start != "pixels":
            continue
        else:
            cell = cell._replace(arm=BASE)
        found.setdefault(cell, []).append(own)
    return [(cell, join_seeds(each)) for cell, each in found.items()]


def _compared(cell: Cell, cells: Cells) -> dict[str, Cell]:
    """Return what a recipe is compared with, by the name of the column."""
    out: dict[str, Any] = {}
    for other in cells:
        same = (other.task, other.metric, other.data) == (cell.task, cell.metric, cell.data)
        if not same or other == cell:
            continue
        if other.arm == BASE and (cell.arm != BASE or other.start.startswith(RANDOM)):
            out[f"over_{other.start.partition(':')[0]}"] = other
        elif cell.arm != BASE and other.start == "":
            out["over_base"] = other
    return out
