"""Sources of results: a preset's runs on this machine, or the recorded study ``recorded:NAME``.

The book's pages read the tidy table of records and the tables of the analysis from here.
"""

import functools
import json
from pathlib import Path
from typing import Any

import pandas as pd

from cxrstudy import grid, recorded, results, study
from cxrstudy.plans import plans_by_path
from cxrstudy.recorded import RECORDED, variant_alone
from cxrstudy.results import read_record
from cxrstudy.run import read_plan, read_plans, variant_name

ANALYSIS = "analysis"  # the folder of a recorded study's analysis
SENSITIVITY = "sensitivity"  # the folder below book/recorded with the sensitivity analysis
# what `explorer` writes; here, because to name it is no reason to import plotting libraries
EXPLORED = ("explore-data.js", "itables.js", "results.csv", "results.parquet")


def plan_table(source: str, variant: str = "") -> tuple[pd.DataFrame, list[str]]:
    """Return the tidy table of a source's runs, and the names of planned runs without a record."""
    if source.startswith(RECORDED):
        name = source.removeprefix(RECORDED)
        whole = [] if variant or grid.load_preset(name).needs_root else grid.plan(name)
        left = grid.without(whole, recorded.run_names(name))
        return recorded.load(name, variant), [r.name for r in left if r.stage in recorded.SCORES]
    planned = [
        study.runs_root() / source / run["stage"] / run["name"]
        for run in read_plan(source, variant or variant_alone(source))
    ]
    there = [folder for folder in planned if (folder / "record.json").is_file()]
    return results.load_records(there), [folder.name for folder in planned if folder not in there]


def variants(source: str) -> list[str]:
    """Return the ``--set`` variants of a source that have results."""
    if source.startswith(RECORDED):
        return recorded.variants(source.removeprefix(RECORDED))
    shown = ("", variant_alone(source))  # as the preset itself
    return [
        p["variant"] for p in read_plans() if p["preset"] == source and p["variant"] not in shown
    ]


def analysis(source: str, variant: str = "") -> dict[str, pd.DataFrame]:
    """Return the tables of a source's analysis by name (``scaling.analysis.TABLES``).

    Empty where it has not been run. Tables hold the rows of ``variant`` alone.
    """
    folder = _folder(source, variant)
    variant = variant if source.startswith(RECORDED) else ""  # here each has a folder of its own
    tables = {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}
    return {
        name: rows[rows["variant"] == variant].drop(columns="variant").reset_index(drop=True)
        if "variant" in rows
        else rows
        for name, rows in tables.items()
    }


def planner(source: str) -> dict[str, Any]:
    """Return a source's planner grid (``scaling.planner``); without curves if it was not made."""
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
    """Return the folder of a source's analysis, which need not exist."""
    if source.startswith(RECORDED):
        return recorded.place(source.removeprefix(RECORDED)) / ANALYSIS
    for run in read_plan(source, variant or variant_alone(source)):
        if run["stage"] == "analyse":
            return study.runs_root() / source / "analyse" / str(run["name"])
    return study.runs_root() / source / "analyse" / "none"


def named(name: str) -> pd.DataFrame:
    """Return the tidy table of "SOURCE" or "SOURCE VARIANT"."""
    source, _, variant = name.partition(" ")
    return plan_table(source, variant)[0]


def tables(records: list[str], runs: str) -> dict[str, pd.DataFrame]:
    """Return tidy tables by variant: of run folders, of a folder's runs, or of a recorded study."""
    where = study.resolve(runs)
    if not records and where == recorded.place(where.name):
        name = f"{RECORDED}{where.name}"
        found = {v: recorded.load(where.name, v) for v in ["", *variants(name)]}
        return {variant: table for variant, table in found.items() if len(table)}
    return {"": recorded.read(records, runs)}


# ---- which sources there are ---------------------------------------------------------------------
def presets_run() -> list[str]:
    """Return the presets with a plan on this machine: mini first, then by name, smoke last."""
    return _presets_run(left_out())


def _presets_run(lost: dict[str, str]) -> list[str]:
    names = {path.parent.name for path in study.runs_root().glob("*/plan*.json")} - lost.keys()
    known = (name for name in names if name in grid.preset_names())
    return sorted(known, key=lambda name: (name != "mini", name == "smoke", name))


def every() -> list[str]:
    """Return every source: recorded studies, then presets that were run on this machine."""
    lost = left_out()  # plans every preset: asked once
    kept = [f"{RECORDED}{name}" for name in recorded.presets()]
    return [name for name in kept if name not in lost] + _presets_run(lost)


def studies() -> list[str]:
    """Return the sources that are not ablations, or else a preset without results."""
    return [name for name in every() if not _preset_variants(name)] or [blank()]


def settings() -> dict[str, str]:
    """Return recorded ablations: "factor=value" to "SOURCE" or "SOURCE VARIANT"."""
    found: dict[str, str] = {}
    for source in (name for name in every() if name.startswith(RECORDED)):
        for key, values in _settings_of(source).items():
            found.setdefault(key, f"{source} {variant_name(values)}".strip())
    return found


def analyse(preset: str) -> list[str]:
    """Run the analysis of a recorded preset; of an ablation also the sensitivity analysis.

    Returns the folders written.
    """
    from papermill import execute_notebook  # takes a second to import

    runs = f"book/recorded/{preset}"
    asked: list[dict[str, Any]] = [{"runs": runs, "out": f"{runs}/{ANALYSIS}"}]
    if _settings_of(preset):
        repeats = [name for name in studies() if name.startswith(RECORDED)]
        out = f"book/recorded/{SENSITIVITY}"
        asked.append({"settings": settings(), "repeats": repeats, "out": out})
    template = study.root() / "notebooks" / "analyse.ipynb"
    for k, parameters in enumerate(asked):
        executed = study.runs_root() / "scratch" / "analyse" / f"{preset}-{k}.ipynb"
        executed.parent.mkdir(parents=True, exist_ok=True)
        execute_notebook(template, executed, parameters, kernel_name="python3", progress_bar=False)
    return [str(parameters["out"]) for parameters in asked]


def _preset_variants(source: str) -> dict[str, dict[str, Any]]:
    return grid.load_preset(source.removeprefix(RECORDED)).variants


def _settings_of(source: str) -> dict[str, dict[str, Any]]:
    """Return the settings of an ablation; none where variants are recipes from random weights."""
    preset = grid.load_preset(source.removeprefix(RECORDED))
    return preset.variants if any(curve.base for curve in preset.curves) else {}


def recipe_names(source: str) -> dict[str, str]:
    """Return what a preset calls its variants, by their ``--set`` values."""
    named = _preset_variants(source).items()
    return {variant_name(values): key.partition("=")[2] for key, values in named}


def blank() -> str:
    """Return a preset to show where nothing has been run: mini, or any other that loads."""
    for name in ("mini", *grid.preset_names()):
        if not _preset_fault(name):
            return name
    raise study.StudyError(f"no preset can be read: {_preset_fault('mini')}")


def files(source: str) -> list[Path]:
    """Return the files that a source consists of."""
    if source.startswith(RECORDED):
        place = recorded.place(source.removeprefix(RECORDED))
        return [path for path in place.rglob("*") if path.is_file() and "scores" not in path.parts]
    place = study.runs_root() / source
    found = (place.glob(f) for f in ("plan*.json", "*/*/record.json", "analyse/*/*.parquet"))
    return [path for each in found for path in each]


def left_out() -> dict[str, str]:
    """Return the sources whose files cannot be read, each with the file and the remedy."""
    names = recorded.presets()
    found = {f"{RECORDED}{name}": _preset_fault(name, plans=True) for name in names}
    for place in sorted({path.parent for path in study.runs_root().glob("*/plan*.json")}):
        found[place.name] = _preset_fault(place.name) or _runs_fault(place)
    return {name: fault for name, fault in found.items() if fault}


def _preset_fault(name: str, plans: bool = False) -> str:
    """Return why a preset cannot be loaded or, with ``plans``, planned; "" if it can."""
    if name not in grid.preset_names():
        remedy = f"put it back, or delete {study.runs_root() / name}"
        return f"its file notebooks/presets/{name}.yml is gone: {remedy}"
    try:
        if not grid.load_preset(name).needs_root and plans:
            grid.plan(name)
    except (study.StudyError, OSError) as error:
        return str(error)
    return ""


def _runs_fault(place: Path) -> str:
    """Return which file of a preset's runs cannot be read, and the remedy; "" if all can."""
    planned: set[str] = set()
    for path, plan in plans_by_path(place.name).items():
        if plan is None:
            remedy = f"delete it; cxrstudy run --preset {place.name} writes it again"
            return f"{path} cannot be read: {remedy}"
        planned |= {run["name"] for run in plan["runs"]}
    for path in sorted(place.glob("*/*/record.json")):
        facts = path.stat()
        wanted = path.parent.name in planned or path.with_name("notebook.ipynb").is_file()
        if wanted and (fault := _record_fault(path, facts.st_mtime_ns, facts.st_size)):
            return fault
    return ""


@functools.lru_cache(4096)
def _record_fault(path: Path, *changed: int) -> str:
    """Return why a record cannot be read, "" if it can; cached by when it was ``changed``."""
    try:
        read_record(path)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def ingests() -> list[Path]:
    """Return the quality.json of ingests in the clone, then of recorded ones."""
    here = sorted((study.root() / "ingested").glob("*/quality.json"))
    return here + sorted(recorded.place("ingest").glob("*.json"))
