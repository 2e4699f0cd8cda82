"""Recorded studies: tables and per-image scores of a preset's runs, committed with the book.

``keep`` copies the results on this machine into ``book/recorded/PRESET``, without weights. Runs
that were recorded earlier stay, so that a long study can be run in parts on several machines.
``load`` returns the same tidy table as ``results.load_records``.

    runs.csv         one row a run: variant, command, finished, and as JSON parameters, subject,
                     info, environment
    metrics.parquet  the tidy table; metrics.csv has its macro rows in fewer columns
    learning.parquet learning curves of the pretraining runs
    scores/RUN/scores.parquet   per-image test scores (of reports: scores of each report)
    truths/HASH.parquet         images and truths, once for all runs that share them;
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
from cxrstudy.plans import plan_path, plans_by_path

RECORDED = "recorded:"  # before the name of a recorded study
LIMIT = 10_000_000  # bytes of a recorded study: it is part of every clone
SCORES = {"classify": "scores.parquet", "segment": "scores.parquet", "report": "reports.parquet"}
READ = ["run", "stage", "task", "metric", "value", "low", "high"]  # columns of metrics.csv
READ += ["paradigm", "base", "n_images", "samples_seen", "seed"]
OF_THE_IMAGES = ["image_id", "patient_id", "device", "present", "tip_floor_mm", "row"]  # shared
OF_A_REPORT = ["image_id", "patient_id", "f1", "rouge_l", "bleu_4"]  # its text is not recorded


def place(preset: str) -> Path:
    """Return the folder of a preset's recorded results, which need not exist."""
    return study.root() / "book" / "recorded" / preset


def name_of(source: str) -> str:
    """Return how titles name a source, which is a preset or ``recorded:NAME``."""
    if source.startswith(RECORDED):
        return f"{source.removeprefix(RECORDED)}, recorded"
    changed = variant_alone(source)
    return f"{source}, run on this machine{changed and f' with {changed}'}"


def variant_alone(source: str) -> str:
    """Return the ``--set`` variant that stands for a preset which was never run as it is written.

    It is the one that was planned last; "" if the preset itself was run, or nothing of it.
    """
    if source.startswith(RECORDED) or plan_path(source).is_file():
        return ""
    plans = {path: plan for path, plan in plans_by_path(source).items() if plan}
    last = max(plans, key=lambda path: path.stat().st_mtime_ns, default=None)
    return str(plans[last]["variant"]) if last else ""


def presets() -> list[str]:
    """Return the presets with recorded results: studies first, by their largest subset."""
    names = [path.parent.name for path in place("").glob("*/runs.csv")]
    largest = {
        name: load(name, None)["n_images"].max() for name in names if name.startswith("study")
    }
    return sorted(names, key=lambda name: (name not in largest, -largest.get(name, 0), name))


def keep(preset: str, variant: str = "", command: str = "") -> tuple[int, int]:
    """Record every finished run of a plan; a run that was recorded earlier is replaced.

    Args:
        preset: name of the preset.
        variant: its ``--set`` values as text, as ``run.variant_name`` returns them.
        command: the command that made the runs; the default is that of the preset.

    Returns:
        (number of runs recorded now, number of runs recorded in all).

    Raises:
        StudyError: no run of that plan has finished on this machine.
    """
    planned = [item for item in run.read_plan(preset, variant) if item["stage"] != "analyse"]
    folders = [study.runs_root() / preset / item["stage"] / item["name"] for item in planned]
    there = [folder for folder in folders if (folder / "record.json").is_file()]
    if not there:
        of_variant = f" ({variant})" if variant else ""
        raise study.StudyError(
            f"no run of preset {preset!r}{of_variant} has finished on this machine: "
            f"cxrstudy run --preset {preset}"
        )
    out = place(preset)
    rows, curves = [], []
    for folder in there:
        record = results.read_record(folder)
        row = {key: record[key] for key in ("run", "stage", "finished")}
        row |= {"variant": variant, "command": command or f"cxrstudy run --preset {preset}"}
        for key in ("parameters", "subject", "info", "environment"):
            row[key] = json.dumps(record[key], sort_keys=True)
        rows.append(row)
        if (folder / "curve.csv").is_file():
            curves.append(pd.read_csv(folder / "curve.csv").assign(run=folder.name))
        if record["stage"] in SCORES:
            target = out / "scores" / folder.name / "scores.parquet"
            _keep_scores(folder / SCORES[record["stage"]], target)
    runs = _beside(_read(out / "runs.csv"), pd.DataFrame(rows), ["run", "variant"])
    table = results.load_records(there).drop(columns="folder")
    table = _beside(_read(out / "metrics.parquet"), table, ["run"])
    table = table.sort_values("run", kind="stable")
    used = {results.truths_of(path) for path in out.glob("scores/*/scores.parquet")}
    for path in set(out.glob("truths/*.parquet")) - used:
        path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    _write(table, out / "metrics.parquet")
    macro = table.loc[table["label"] == "macro", READ]
    write_text(out / "metrics.csv", macro.to_csv(index=False, float_format="%.6g"))
    if curves:
        path = out / "learning.parquet"
        _write(_beside(_read(path), pd.concat(curves), ["run"]), path)
    write_text(out / "runs.csv", runs.sort_values(["variant", "stage", "run"]).to_csv(index=False))
    return len(there), len(runs)


def load(preset: str, variant: str | None = "") -> pd.DataFrame:
    """Return the tidy table of recorded runs, as ``results.load_records`` does; empty if none.

    ``variant`` None: the runs of every variant.
    """
    paths = [place(preset) / name for name in ("runs.csv", "metrics.parquet")]
    if not paths[0].is_file():
        return results.load_records([])
    return _load(preset, variant, *(path.stat().st_mtime_ns for path in paths)).copy(deep=False)


@functools.lru_cache(64)
def _load(preset: str, variant: str | None, *changed: int) -> pd.DataFrame:
    """Cache ``load`` by when its files were ``changed``: pages read them many times."""
    out, runs = place(preset), _read(place(preset) / "runs.csv")
    assert runs is not None
    table = pd.read_parquet(out / "metrics.parquet")
    if variant is not None:
        table = table[table["run"].isin(runs.loc[runs["variant"] == variant, "run"])]
    folders = {name: str(out / "scores" / name) for name in table["run"].unique()}
    return table.assign(folder=table["run"].map(folders)).reset_index(drop=True)


def read(records: Iterable[str], runs: str) -> pd.DataFrame:
    """Return the tidy table of the run folders ``records``, or else of all runs below ``runs``.

    ``runs`` may be the folder of a recorded study, ``book/recorded/NAME``.
    """
    where = study.resolve(runs)
    if not records and where == place(where.name):
        return load(where.name)
    return results.load_records([study.resolve(folder) for folder in records] or where)


def variants(preset: str) -> list[str]:
    """Return the recorded ``--set`` variants of a preset, without the preset itself."""
    runs = _read(place(preset) / "runs.csv")
    return sorted(set(runs["variant"]) - {""}) if runs is not None else []


def flops(preset: str) -> dict[str, float]:
    """Return the floating-point operations of a preset's pretraining, by variant (mean of runs)."""
    runs = _read(place(preset) / "runs.csv")
    if runs is None:
        return {}
    runs = runs[runs["stage"] == "pretrain"]
    counted = runs["info"].map(lambda text: json.loads(text).get("flops"))
    found: dict[str, float] = counted.astype(float).groupby(runs["variant"]).mean().to_dict()
    return found


def run_names(preset: str) -> set[str]:
    """Return the names of a preset's recorded runs."""
    return set(commands(preset))


def commands(preset: str) -> dict[str, str]:
    """Return the command that made each recorded run of a preset, by the run's name."""
    runs = _read(place(preset) / "runs.csv")
    return dict(zip(runs["run"], runs["command"], strict=True)) if runs is not None else {}


def size(preset: str) -> int:
    """Return the bytes of all files of a recorded study."""
    return sum(file.stat().st_size for file in place(preset).rglob("*") if file.is_file())


def _keep_scores(source: Path, target: Path) -> None:
    """Write per-image scores, of labels as ranks: AUROC, AUPRC and ROC curves stay the same."""
    table = pd.read_parquet(source).sort_values("image_id", kind="stable").reset_index(drop=True)
    if source.name == "reports.parquet":
        table = table[OF_A_REPORT]
    elif "device" not in table:
        labels = [name.removeprefix("score:") for name in table if name.startswith("score:")]
        columns = [f"{what}:{name}" for name in labels for what in ("truth", "score")]
        table = table[["image_id", "patient_id", *columns]]
        for name in labels:
            table[f"score:{name}"] = _ranks(table[f"score:{name}"], table[f"truth:{name}"])
            table[f"truth:{name}"] = table[f"truth:{name}"].astype("Int8")
    floats = table.select_dtypes("float64").columns
    _share(table.astype(dict.fromkeys(floats, np.float32)), target)


def _share(table: pd.DataFrame, target: Path) -> None:
    """Write a run's own columns, and the shared ones once, in a file that its metadata name."""
    shared = [name for name in table if name in OF_THE_IMAGES or name.startswith("truth:")]
    key = study.digest(table[shared].to_csv(index=False), 12)
    truths = target.parents[2] / "truths" / f"{key}.parquet"
    if not truths.is_file():
        _write(table[shared], truths)
    _write(table.drop(columns=shared), target, truths=key)


def _ranks(scores: pd.Series, truth: pd.Series) -> pd.Series:
    """Return the rank of each score among the scores of the positives, missing where the truth is.

    Negatives between the same two positives share a rank. No metric of ranks distinguishes them,
    and the file is a third of the size.
    """
    steps = np.unique(scores[truth == 1])
    ranks = np.searchsorted(steps, scores, "left") + np.searchsorted(steps, scores, "right")
    return pd.Series(ranks, scores.index).where(truth.notna()).astype("UInt16")


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
        "store_schema": False,  # pandas' own types: a seventh of a file of scores
    }
    with replacing(path) as scratch, pq.ParquetWriter(scratch, rows.schema, **options) as file:
        file.write_table(rows)
        if notes:
            file.add_key_value_metadata(notes)


def _read(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    csv = path.suffix == ".csv"
    return pd.read_csv(path, keep_default_na=False) if csv else pd.read_parquet(path)


def _beside(old: pd.DataFrame | None, new: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return old and new rows, without the old ones whose keys are among the new."""
    if old is None:
        return new
    again: Any = pd.MultiIndex.from_frame(old[keys]).isin(pd.MultiIndex.from_frame(new[keys]))
    return pd.concat([old[~again], new], ignore_index=True)
