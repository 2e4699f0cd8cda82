"""Every number that the book has, in one table: as files to download, and as data of the page "Explore the results".

``write`` puts them beside the book's scripts; ``book/assets/explore.js`` draws the figure and the table from them. A
source is one plan's runs, recorded or of this machine; no curve joins two of them.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from cxrstudy import narrative, plots, recorded, results, run, study
from cxrstudy.data.vocabulary import PHRASES
from cxrstudy.files import replacing, write_changed, write_text
from cxrstudy.plots import STYLE, TASKS, human
from cxrstudy.scaling import ladders

FILES = {"CSV": "results.csv", "Parquet": "results.parquet"}
FIGURE = "scaling.svg"
SCRIPT = "explore-data.js"
DIGITS = 4  # significant ones of a number in the page; the files hold them all
HELD = {
    "base": "from",
    "samples_seen": "seen:",
    "data": "on",
    "encoder": "of",
}  # what one curve has in common


def gather(sources: list[str]) -> pd.DataFrame:
    """Every row of every run of these sources (``recorded:NAME`` or a preset run on this machine) and their variants:
    the tidy table without ``folder``, after the columns source and variant."""
    tables = [
        narrative.plan_table(source, variant)[0].assign(source=source, variant=variant)
        for source in sources
        for variant in ("", *narrative.variants(source))
    ]
    told = [table for table in tables if len(table)] or [
        results.load_records([]).assign(source="", variant="")
    ]
    table = pd.concat(told, ignore_index=True).drop(columns="folder")
    first = ["source", "variant"]
    return table[[*first, *(name for name in table if name not in first)]]


def write(folder: Path, sources: list[str]) -> list[Path]:
    """Write the table of ``sources`` into ``folder`` as `FILES` and as `SCRIPT`; files that do not change keep their
    time stamps. Returns their paths."""
    table = gather(sources)
    data = json.dumps(payload(table), separators=(",", ":"), allow_nan=False)
    write_changed(folder / SCRIPT, f"window.cxrstudyResults={data};\n")
    text = table.to_csv(index=False)
    csv, parquet = (folder / name for name in FILES.values())
    write_changed(csv, text)
    if not parquet.is_file() or parquet.stat().st_mtime < csv.stat().st_mtime:
        with replacing(parquet) as scratch:
            table.to_parquet(scratch, index=False, compression="zstd")
    return [folder / SCRIPT, csv, parquet]


def payload(table: pd.DataFrame) -> dict[str, Any]:
    """What the page reads: ``sources``, ``runs`` (columns; ``rows`` is how many rows each has), ``keys`` (task, label,
    metric), and ``rows`` as columns in the order of the runs, with an index into ``keys``."""
    of = ["source", "variant", "run"]
    table = table.sort_values(
        of, kind="stable", key=lambda c: c if c.name == "run" else pd.factorize(c)[0]
    )
    runs = _runs(table, of)
    keys = table[["task", "label", "metric"]].drop_duplicates()
    index = table.groupby(["task", "label", "metric"], sort=False).ngroup()
    places = runs[of[:2]].drop_duplicates()
    at = runs.groupby(of[:2], sort=False).ngroup()
    numbers = {
        name: [_short(value) for value in table[name]] for name in ("value", "low", "high", "n")
    }
    columns = (
        "stage",
        "paradigm",
        "n_images",
        "samples_seen",
        "seed",
        "role",
        "ladder",
        "page",
        "command",
    )
    return {
        "sources": [
            _source(runs[at == k], source, variant)
            for k, (source, variant) in enumerate(places.to_numpy().tolist())
        ],
        "runs": {"source": at.tolist(), "name": runs["run"].tolist(), "rows": runs["rows"].tolist()}
        | {name: [_plain(value) for value in runs[name]] for name in columns},
        "keys": keys.to_numpy().tolist(),
        "rows": {"key": index.tolist(), **numbers},
        "styles": STYLE,
        "phrases": PHRASES
        | {"lines_tubes": TASKS["lines_tubes"].lower(), "auroc": "AUROC", "auprc": "AUPRC"},
    }


def main_figure(source: str) -> plots.Shown | None:
    """Macro AUROC against in-house images of a source, with its laws; None where it holds no ladder."""
    table = narrative.plan_table(source)[0]
    if ladders.points(table).empty:
        return None
    return plots.scaling(
        table, narrative.scale_artefacts(source)[1], title=narrative.title_of(source, table)
    )


def draw(preset: str) -> Path:
    """Draw the main figure of a preset's recorded runs beside them, as the README shows it; the same bytes each time.

    StudyError: no ladder of that preset is recorded.
    """
    figure = main_figure(f"{recorded.RECORDED}{preset}")
    if figure is None:
        raise study.StudyError(
            f"no ladder of preset {preset!r} is recorded: cxrstudy record --preset {preset}"
        )
    path = recorded.place(preset) / FIGURE
    write_text(path, f"{figure.image.decode()}<!-- {drawn_from(preset)} -->\n")
    return path


def drawn_from(preset: str) -> str:
    """What a recorded figure says of the table it was drawn from: another table, and it is to be drawn anew."""
    digest = hashlib.blake2b(
        (recorded.place(preset) / "metrics.parquet").read_bytes(), digest_size=16
    ).hexdigest()
    return f"drawn from metrics.parquet {digest}"


def embedded(figure: str) -> str:
    """The place of the interactive figure in a page at the book's root, as HTML; ``figure`` is shown where scripts are
    not."""
    return (
        '<link rel="stylesheet" href="_static/explore.css"><div id="explore-figure" class="explore"><noscript><p>'
        f"Choosing what is shown needs JavaScript; this figure does not.</p>{figure}</noscript></div>"
    )


def embedded_table() -> str:
    """The place of the table in the same page, links to its files, and the scripts that fill both places."""
    links = " or ".join(
        f'<a href="_static/{name}" download>as {kind}</a>' for kind, name in FILES.items()
    )
    return (
        '<div id="explore-table" class="explore"><noscript><p>Sorting and filtering need JavaScript; the files below '
        'do not.</p></noscript></div><p class="explore-files">The whole table, with all digits, and hardware and code '
        f'of every row: download it {links}.</p><script src="_static/{SCRIPT}" defer></script>'
        '<script src="_static/explore.js" defer></script>'
    )


# ---- the parts -----------------------------------------------------------------------------------------------------
def _runs(table: pd.DataFrame, of: list[str]) -> pd.DataFrame:
    """A row a run, in the table's order: its subject, how many ``rows`` it has, its ``role`` ("rung" of a ladder,
    "base" or neither), the ``ladder`` it belongs to, the ``page`` of its notebook and the ``command`` that reruns it.
    """
    runs = table.drop_duplicates(of).reset_index(drop=True)
    runs["rows"] = table.groupby(of, sort=False).size().to_numpy()
    judged = runs["stage"].isin(recorded.SCORES)
    came = (
        judged & (runs["paradigm"].fillna("control") != "control") & (runs["base"].fillna("") == "")
    )
    runs["role"] = ""
    runs.loc[came, "role"] = "base"
    runs.loc[judged & ladders.continued(runs), "role"] = "rung"
    ladder = runs["paradigm"].where(runs["role"] == "rung", "").astype(str)
    for (
        name,
        word,
    ) in HELD.items():  # runs that differ in more than n_images and seed are no one ladder
        several = runs.groupby([*of[:2], "stage", ladder])[name].transform("nunique") > 1
        more = runs[name].map(human if name == "samples_seen" else str).astype(str)
        ladder = ladder.where(~several | (ladder == ""), ladder + f", {word} " + more)
    kept = {source: source.startswith(recorded.RECORDED) for source in runs["source"].unique()}
    here = {(name, row["name"]) for name in kept if not kept[name] for row in run.run_table(name)}
    pages, commands = [], []
    told = {
        name: recorded.commands(name.removeprefix(recorded.RECORDED)) for name in kept if kept[name]
    }
    for row in runs.itertuples():
        pages.append(
            run.run_page(row.source, row.stage, row.run) + ".html"
            if (row.source, row.run) in here
            else ""
        )
        commands.append(
            told.get(row.source, {}).get(row.run) or f"cxrstudy run --preset {row.preset}"
        )
    return runs.assign(ladder=ladder, page=pages, command=commands)


def _source(runs: pd.DataFrame, source: str, variant: str) -> dict[str, Any]:
    """One source in words: its ``name``, and a ``caption`` that says where, on what and by how many seeds."""
    kept, rungs = source.startswith(recorded.RECORDED), runs[runs["role"] == "rung"]
    seeds = sorted({int(seed) for seed in rungs["seed"].dropna()})
    kinds = sorted(runs["kind"].dropna().unique())
    words = (
        f"{'Recorded with this book, not on your machine' if kept else 'Run on this machine'}: preset "
        f"{source.removeprefix(recorded.RECORDED)}{f' ({variant})' if variant else ''}, on "
        f"{', '.join(runs['hardware'].unique())}; code at {', '.join(runs['commit'].unique())}; "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds)) or 'none'}. "
        f"{' and '.join(kinds).capitalize() or 'Unknown'} x-rays"
    )
    words += (
        ": these numbers say nothing about patients."
        if kinds == ["synthetic"]
        else "; not for clinical use."
    )
    return {
        "name": f"{recorded.name_of(source)}{f', {variant}' if variant else ''}",
        "kept": kept,
        "caption": words,
    }


def _short(value: float) -> float | int | None:
    """A number with few digits, for the page."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(value) if value == int(value) else short


def _plain(value: Any) -> Any:
    if value is None or value != value:
        return None
    return int(value) if isinstance(value, float) and value == int(value) else value
