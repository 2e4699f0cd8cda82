"""The analysis of a study: every inference of its pages, computed once and stored as tables.

``analyse`` reads records and per-image scores and writes these files, which the book formats:

    values.parquet       the macro metric of every evaluated encoder over seeds, with its interval
    contrasts.parquet    ``contrasts.all_contrasts``
    crossovers.parquet, overtakes.parquet   what is read off them (``verdicts``)
    claims.parquet       ``claims.ledger``
    laws.parquet         ``laws.laws``: the fits,
    bands.parquet        the curves of the laws,
    extrapolation.parquet   and their hold-out trials
    planner.json         ``planner.planner_grid``
    recipes.parquet      ``recipes.recipes``, where variants train from random weights

Tables of a recorded study have a column ``variant``: the ``--set`` values of its runs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cxrstudy.files import replacing, write_text
from cxrstudy.scaling import claims, contrasts, laws, planner, recipes, sensitivity, verdicts
from cxrstudy.scaling.cells import Cells, read_cells

TABLES = (
    "values",
    "contrasts",
    "crossovers",
    "overtakes",
    "claims",
    "laws",
    "bands",
    "extrapolation",
)
SETTINGS = ("settings_claims", "settings_contrasts")


def analyse(
    tables: Mapping[str, pd.DataFrame], *, resamples: int = 1000, seed: int = 0
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Return every table of ``TABLES`` and the planner's grid.

    Args:
        tables: tidy tables of records by variant; "" is the study as its preset describes it.
        resamples: of the test patients; ``seed`` of these.

    Raises:
        ValueError: as ``read_cells``.
    """
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    grid: dict[str, Any] = planner.planner_grid({})
    read = {
        variant: read_cells(table, resamples=resamples, seed=seed)
        for variant, table in tables.items()
    }
    pooled = sensitivity.family_variances(list(read.values()))
    for variant, cells in read.items():
        known = pooled | contrasts.seed_variances(cells)
        given: dict[str, Any] = {"cells": cells, "seed_variance": known}
        rows = {
            "values": values(cells, known),
            "contrasts": contrasts.all_contrasts(tables[variant], **given),
            "claims": claims.ledger(tables[variant], **given),
        }
        rows["crossovers"] = verdicts.crossovers(rows["contrasts"])
        rows["overtakes"] = verdicts.overtakes(rows["contrasts"])
        rows |= dict(zip(("laws", "bands", "extrapolation"), laws.laws(cells), strict=True))
        for name, own in rows.items():
            found[name].append(own.assign(variant=variant))
        if not variant:
            grid = planner.planner_grid(cells, known)
    out = {name: pd.concat(each, ignore_index=True) for name, each in found.items() if each}
    compared = recipes.recipes(tables, resamples=resamples, seed=seed)
    return out | ({"recipes": compared} if len(compared) else {}), grid


def values(cells: Cells, known: contrasts.SeedVariance) -> pd.DataFrame:
    """Return the mean over seeds of every cell with its 95% interval, and the range over seeds."""
    rows = []
    for cell, own in sorted(cells.items()):
        estimate = contrasts.contrast({cell: 1.0}, cells, known)
        row = cell._asdict() | {"encoder": own.encoder, "kind": own.kind, "value": estimate.effect}
        row |= {"low": estimate.low, "high": estimate.high, "seeds": len(own.values)}
        row |= {"least": own.values.min(), "most": own.values.max()}
        row |= {"variance_sources": estimate.variance_sources}
        rows.append(row | {name: getattr(own, name) for name in contrasts.COUNTED})
    columns = [*contrasts.Cell._fields, "encoder", "kind", "value", "low", "high", "seeds", "least"]
    return pd.DataFrame(rows, columns=[*columns, "most", "variance_sources", *contrasts.COUNTED])


def write_analysis(
    out: Path, tables: Mapping[str, pd.DataFrame], grid: Mapping[str, Any] | None = None
) -> list[str]:
    """Write tables as Parquet, and the planner's grid as JSON, to a folder; return their names."""
    out.mkdir(parents=True, exist_ok=True)
    names = []
    for name, rows in tables.items():
        with replacing(out / f"{name}.parquet") as scratch:
            rows.to_parquet(scratch, index=False, compression="zstd")
        names.append(f"{name}.parquet")
    if grid is not None:
        text = json.dumps(grid, separators=(",", ":"), default=float, allow_nan=False)
        write_text(out / "planner.json", text)
        names.append("planner.json")
    return names


def by_setting(
    tables: Mapping[str, pd.DataFrame], repeats: Sequence[pd.DataFrame] = (), **how: Any
) -> dict[str, pd.DataFrame]:
    """Return the tables of ``SETTINGS``: ``sensitivity.by_setting``."""
    return dict(zip(SETTINGS, sensitivity.by_setting(tables, repeats=repeats, **how), strict=True))
