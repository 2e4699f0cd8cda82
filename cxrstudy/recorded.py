"""Results that are kept with the book: the tables and per-image scores of a preset's runs, without their weights.

``keep`` gathers what stands on this machine into ``book/recorded/PRESET``, beside what was kept before, so that a long
study can be run in pieces on several machines; ``load`` gives the same tidy table as ``results.load_records``, whose
``folder`` holds the ``scores.parquet`` of each evaluation.

    runs.csv         a row a run: parameters, subject, info and environment (as JSON), variant, command, finished
    metrics.parquet  the tidy table; metrics.csv its macro rows, in the columns that people read
    learning.parquet learning curves of the pretraining runs
    scores/RUN/scores.parquet   per-image test scores (for reports: per-report marks)
    truths/HASH.parquet         the images and truths of the scores, once for all runs that share them;
                                `results.kept_scores` reads both
"""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxrstudy import results, run, study
from cxrstudy.files import replacing, write_text

RECORDED = (
    "recorded:"  # before a preset's name: its results that came with the book, not this machine's
)
LIMIT = 10_000_000  # bytes of a recorded preset: it travels with every clone
SCORES = {"classify": "scores.parquet", "segment": "scores.parquet", "report": "reports.parquet"}
READ = [
    "run",
    "stage",
    "task",
    "metric",
    "value",
    "low",
    "high",
    "paradigm",
    "base",
    "n_images",
    "samples_seen",
    "seed",
]
OF_THE_IMAGES = [
    "image_id",
    "patient_id",
    "device",
    "present",
    "tip_floor_mm",
    "row",
]  # the same in every run
OF_A_REPORT = [
    "image_id",
    "patient_id",
    "f1",
    "rouge_l",
    "bleu_4",
]  # what is kept of one; its words are not


def place(preset: str) -> Path:
    """The folder of a preset's recorded results; it need not be there."""
    return study.root() / "book" / "recorded" / preset


def name_of(source: str) -> str:
    """A preset, or ``recorded:NAME``, in words for titles."""
    kept = source.startswith(RECORDED)
    return (
        f"{source.removeprefix(RECORDED)}, recorded" if kept else f"{source}, run on this machine"
    )


def presets() -> list[str]:
    """Presets that have recorded results: the study first, at its largest."""
    names = [path.parent.name for path in place("").glob("*/runs.csv")]
    largest = {
        name: load(name, None)["n_images"].max() for name in names if name.startswith("study")
    }
    return sorted(names, key=lambda name: (name not in largest, -largest.get(name, 0), name))


def keep(preset: str, variant: str = "", command: str = "") -> tuple[int, int]:
    """Record every run of a plan that has ended, in place of what was kept of the same run.

    ``variant``: the ``--set`` values in words, as `run.variant_name` gives them; ``command``: how the runs were made.
    Returns (runs recorded now, runs kept in all). StudyError: nothing of that plan has ended here.
    """
    planned = [item for item in run.read_plan(preset, variant) if item["stage"] != "analyse"]
    folders = [study.runs_root() / preset / item["stage"] / item["name"] for item in planned]
    there = [folder for folder in folders if (folder / "record.json").is_file()]
    if not there:
        raise study.StudyError(
            f"nothing of preset {preset!r}{f' ({variant})' if variant else ''} has ended on this machine: "
            f"cxrstudy run --preset {preset}"
        )
    out = place(preset)
    records = [results.read_record(folder) for folder in there]
    rows = [
        {key: record[key] for key in ("run", "stage", "finished")}
        | {"variant": variant, "command": command or f"cxrstudy run --preset {preset}"}
        | {
            key: json.dumps(record[key], sort_keys=True)
            for key in ("parameters", "subject", "info", "environment")
        }
        for record in records
    ]
    runs = _beside(_read(out / "runs.csv"), pd.DataFrame(rows), ["run", "variant"])
    table = results.load_records(there).drop(columns="folder")
    table = _beside(_read(out / "metrics.parquet"), table, ["run"]).sort_values(
        "run", kind="stable"
    )
    curves = [
        pd.read_csv(folder / "curve.csv").assign(run=folder.name)
        for folder in there
        if (folder / "curve.csv").is_file()
    ]
    for folder, record in zip(there, records, strict=True):
        if record["stage"] in SCORES:
            _keep_scores(
                folder / SCORES[record["stage"]], out / "scores" / folder.name / "scores.parquet"
            )
    used = {results.truths_of(path) for path in out.glob("scores/*/scores.parquet")}
    for path in set(out.glob("truths/*.parquet")) - used:
        path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    _write(table, out / "metrics.parquet")
    macro = table.loc[table["label"] == "macro", READ]
    write_text(out / "metrics.csv", macro.to_csv(index=False, float_format="%.6g"))
    if curves:
        _write(
            _beside(_read(out / "learning.parquet"), pd.concat(curves), ["run"]),
            out / "learning.parquet",
        )
    write_text(out / "runs.csv", runs.sort_values(["variant", "stage", "run"]).to_csv(index=False))
    return len(there), len(runs)


def load(preset: str, variant: str | None = "") -> pd.DataFrame:
    """The tidy table of recorded runs, as `results.load_records` gives it; of every variant where it is None.

    Empty where nothing is recorded.
    """
    paths = [place(preset) / name for name in ("runs.csv", "metrics.parquet")]
    if not paths[0].is_file():
        return results.load_records([])
    return _load(preset, variant, *(path.stat().st_mtime_ns for path in paths)).copy(deep=False)


@functools.lru_cache(64)
def _load(preset: str, variant: str | None, *changed: int) -> pd.DataFrame:
    """The same, of files as they were ``changed`` last: a page reads some tables ten times."""
    out, runs = place(preset), _read(place(preset) / "runs.csv")
    assert runs is not None
    table = pd.read_parquet(out / "metrics.parquet")
    if variant is not None:
        table = table[table["run"].isin(runs.loc[runs["variant"] == variant, "run"])]
    folders = {name: str(out / "scores" / name) for name in table["run"].unique()}
    return table.assign(folder=table["run"].map(folders)).reset_index(drop=True)


def read(records: Iterable[str], runs: str) -> pd.DataFrame:
    """The tidy table of run folders ``records``, or of all runs below ``runs``, which may be a recorded preset's folder
    (``book/recorded/NAME``)."""
    where = study.resolve(runs)
    if not records and where == place(where.name):
        return load(where.name)
    return results.load_records([study.resolve(folder) for folder in records] or where)


def variants(preset: str) -> list[str]:
    """The ``--set`` variants that are recorded of a preset, but for the preset as it is."""
    runs = _read(place(preset) / "runs.csv")
    return sorted(set(runs["variant"]) - {""}) if runs is not None else []


def run_names(preset: str) -> set[str]:
    """Names of the runs that are recorded of a preset."""
    runs = _read(place(preset) / "runs.csv")
    return set(runs["run"]) if runs is not None else set()


def commands(preset: str) -> dict[str, str]:
    """How each recorded run of a preset was made."""
    runs = _read(place(preset) / "runs.csv")
    return dict(zip(runs["run"], runs["command"], strict=True)) if runs is not None else {}


def size(preset: str) -> int:
    """Bytes that a recorded preset takes: its tables, scores and provenance together."""
    return sum(file.stat().st_size for file in place(preset).rglob("*") if file.is_file())


def _keep_scores(source: Path, target: Path) -> None:
    """Per-image scores, small: a label's scores become ranks that give AUROC, AUPRC and ROC curves of any patients."""
    table = pd.read_parquet(source).sort_values("image_id", kind="stable").reset_index(drop=True)
    if source.name == "reports.parquet":
        table = table[OF_A_REPORT]
    elif "device" not in table:
        labels = [name.removeprefix("score:") for name in table if name.startswith("score:")]
        wanted = [
            "image_id",
            "patient_id",
            *(f"{what}:{name}" for name in labels for what in ("truth", "score")),
        ]
        table = table[wanted]
        for name in labels:
            table[f"score:{name}"] = _places(table[f"score:{name}"], table[f"truth:{name}"])
            table[f"truth:{name}"] = table[f"truth:{name}"].astype("Int8")
    floats = table.select_dtypes("float64").columns
    _share(table.astype(dict.fromkeys(floats, np.float32)), target)


def _share(table: pd.DataFrame, target: Path) -> None:
    """Write a run's scores, and beside them, under a name that the scores tell, what other runs have in common."""
    shared = [name for name in table if name in OF_THE_IMAGES or name.startswith("truth:")]
    key = study.digest(table[shared].to_csv(index=False), 12)
    truths = target.parents[2] / "truths" / f"{key}.parquet"
    if not truths.is_file():
        _write(table[shared], truths)
    _write(table.drop(columns=shared), target, truths=key)


def _places(scores: pd.Series, truth: pd.Series) -> pd.Series:
    """Places of scores among those of the positives: equal for negatives between the same two, which no measure of the
    positives' ranks tells apart, so that they take a third of the room. Missing where the truth is: no metric is made.
    """
    steps = np.unique(scores[truth == 1])
    places = np.searchsorted(steps, scores, "left") + np.searchsorted(steps, scores, "right")
    return pd.Series(places, scores.index).where(truth.notna()).astype("UInt16")


def _write(table: pd.DataFrame, path: Path, **notes: str) -> None:
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    suited = {name: "DELTA_BYTE_ARRAY" for name in ("image_id", "patient_id") if name in table}
    suited |= {name: "BYTE_STREAM_SPLIT" for name in table if name.startswith("score:")}
    rows = pa.Table.from_pandas(table, preserve_index=False)
    options: Any = {
        "compression": "zstd",
        "compression_level": 19,
        "use_dictionary": [name for name in texts if name not in suited],
        "column_encoding": suited or None,
        "write_statistics": False,
        "store_schema": False,  # of pandas' own types: a seventh of a file of scores
    }
    with replacing(path) as scratch, pq.ParquetWriter(scratch, rows.schema, **options) as file:
        file.write_table(rows)
        if notes:
            file.add_key_value_metadata(notes)


def _read(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    return (
        pd.read_csv(path, keep_default_na=False) if path.suffix == ".csv" else pd.read_parquet(path)
    )


def _beside(old: pd.DataFrame | None, new: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """``old`` and ``new`` rows, without the old ones whose keys are among the new."""
    if old is None:
        return new
    again: Any = pd.MultiIndex.from_frame(old[keys]).isin(pd.MultiIndex.from_frame(new[keys]))
    return pd.concat([old[~again], new], ignore_index=True)
