"""Sources of results: a preset's runs on this machine, or ``recorded:NAME``, which came with the book.

The book's pages read through this module: the tidy table of records, and the tables of the analysis.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from cxrstudy import grid, recorded, results, study
from cxrstudy.recorded import RECORDED
from cxrstudy.run import read_plan, read_plans

ANALYSIS = "analysis"  # the folder of a recorded study's analysis
SENSITIVITY = "sensitivity"  # the folder below book/recorded with the sensitivity analysis


def plan_table(source: str, variant: str = "") -> tuple[pd.DataFrame, list[str]]:
    """Return the tidy table of a source's runs, and the names of planned runs without a record."""
    if source.startswith(RECORDED):
        name = source.removeprefix(RECORDED)
        whole = [] if variant or grid.load_preset(name).needs_root else grid.plan(name)
        left = grid.without(whole, recorded.run_names(name))
        return recorded.load(name, variant), [r.name for r in left if r.stage in recorded.SCORES]
    planned = [
        study.runs_root() / source / run["stage"] / run["name"]
        for run in read_plan(source, variant)
    ]
    there = [folder for folder in planned if (folder / "record.json").is_file()]
    return results.load_records(there), [folder.name for folder in planned if folder not in there]


def variants(source: str) -> list[str]:
    """Return the ``--set`` variants of a source that have results."""
    if source.startswith(RECORDED):
        return recorded.variants(source.removeprefix(RECORDED))
    return [p["variant"] for p in read_plans() if p["preset"] == source and p["variant"]]


def analysis(source: str, variant: str = "") -> dict[str, pd.DataFrame]:
    """Return the tables of a source's analysis by name (``scaling.analysis.TABLES``).

    Empty where it has not been run. Tables hold the rows of ``variant`` alone.
    """
    folder = _folder(source, variant)
    tables = {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}
    return {
        name: rows[rows["variant"] == variant].drop(columns="variant").reset_index(drop=True)
        if "variant" in rows
        else rows
        for name, rows in tables.items()
    }


def planner(source: str) -> dict[str, Any]:
    """Return a source's grid of the planner (``scaling.planner``); one without curves where none is."""
    path = _folder(source, "") / "planner.json"
    if not path.is_file():
        return {"curves": []}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def sensitivity() -> dict[str, pd.DataFrame]:
    """Return the tables of the recorded sensitivity analysis (``scaling.analysis.SETTINGS``)."""
    folder = recorded.place(SENSITIVITY)
    return {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


def _folder(source: str, variant: str) -> Path:
    """Where the analysis of a source lies; a folder that need not exist."""
    if source.startswith(RECORDED):
        return recorded.place(source.removeprefix(RECORDED)) / ANALYSIS
    for run in read_plan(source, variant):
        if run["stage"] == "analyse":
            return study.runs_root() / source / "analyse" / str(run["name"])
    return study.runs_root() / source / "analyse" / "none"


def named(name: str) -> pd.DataFrame:
    """Return the tidy table of "SOURCE" or "SOURCE VARIANT"."""
    source, _, variant = name.partition(" ")
    return plan_table(source, variant)[0]


def tables(records: list[str], runs: str) -> dict[str, pd.DataFrame]:
    """Return tidy tables by variant: of run folders, of all runs below a folder, or of a recorded study."""
    where = study.resolve(runs)
    if not records and where == recorded.place(where.name):
        name = f"{RECORDED}{where.name}"
        found = {v: recorded.load(where.name, v) for v in ["", *variants(name)]}
        return {variant: table for variant, table in found.items() if len(table)}
    return {"": recorded.read(records, runs)}
