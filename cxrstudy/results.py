"""Run records: one JSON file a run, written atomically, read back as one tidy table.

The book reads records and nothing else. Schema 1 holds: run, stage, preset, parameters, subject (what encoder and
subset the numbers are about), metrics (a list of task, label, metric, value, low, high), info (samples seen, unique
images, epochs, FLOPs, seconds, images/s, peak memory), environment (commit, versions, hardware), artefacts.
"""

import contextlib
import functools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from cxrstudy import study
from cxrstudy.files import write_text
from cxrstudy.marks import RENAMED

SCHEMA = 1
CHANCE = 0.98  # of a contrastive loss in units of guessing's, log(batch size): above it nothing was learned
LEAST_MOVED = 0.01  # of the base's weights: a dinov2 that moved by less has hardly been trained
SUBJECT = (
    "paradigm", "n_images", "samples_seen", "seed", "institution", "encoder", "base", "kind", "data",
    "generator",  # version of the synthetic institution that drew the images
    "patients",
    "trained_on",  # institution that the encoder's pretraining was continued on; the controls have none
)  # fmt: skip
VERSIONS = ("torch", "timm", "open_clip_torch", "pandas", "papermill")


@functools.cache
def environment() -> dict[str, Any]:
    """What the numbers were made with: commit, versions, hardware."""

    def git(*words: str) -> str:
        call = ["git", "-C", str(study.root()), *words]
        with contextlib.suppress(FileNotFoundError):  # a container may lack it
            return subprocess.run(call, capture_output=True, text=True, check=False).stdout.strip()
        return ""

    dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    return {
        "commit": (
            git("rev-parse", "--short=12", "HEAD") or os.environ.get("CXRSTUDY_COMMIT") or "unknown"
        )
        + (
            "+changes" if dirty else ""
        ),  # the variable: for a copy without its history, on a machine that is lent
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "hardware": hardware(),
    }


def hardware() -> str:
    """The GPU's name, or the processor's with its number of cores."""
    torch = sys.modules.get(
        "torch"
    )  # only notebooks that train or encode have it; the command line must stay quick
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [
        li.split(":", 1)[1].strip() for li in _lines("/proc/cpuinfo") if li.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def peak_memory() -> int:
    """Bytes this process held at most."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def write_record(
    stage: str,
    parameters: study.Parameters,
    *,
    metrics: Iterable[dict[str, Any]] = (),
    info: dict[str, Any] | None = None,
    subject: dict[str, Any] | None = None,
    started: float,
    artefacts: Iterable[str] = (),
) -> Path:
    """Write ``record.json`` into the run's folder (``parameters.out``) and return its path.

    ``started`` is ``time.time()`` at the notebook's start. Numbers that are not finite become null.
    """
    values = parameters.model_dump()
    out = study.resolve(values["out"])
    record = {
        "schema": SCHEMA,
        "run": out.name,
        "stage": stage,
        "preset": out.parent.parent.name,
        "parameters": values,
        "subject": subject or {},
        "metrics": list(metrics),
        "info": {
            "seconds": round(time.time() - started, 2),
            "peak_memory_bytes": peak_memory(),
            **(info or {}),
        },
        "environment": environment(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "artefacts": list(artefacts),
    }
    path = out / "record.json"
    write_text(path, json.dumps(_plain(record), indent=1, allow_nan=False))
    return path


def window(points: int) -> int:
    """Over how many of a training curve's points its loss is averaged: a quarter of them, ten at most, one at least."""
    return max(1, min(10, points // 4))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


def read_record(path: str | Path) -> dict[str, Any]:
    """One record, by its file or its run's folder; ValueError naming the file when it is not a record."""
    path = Path(path)
    path = path / "record.json" if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] > SCHEMA:
            raise ValueError(
                f"{path}: schema {record['schema']} is newer than this package reads ({SCHEMA}); update it"
            )
        _ = [
            record[key]
            for key in ("run", "stage", "preset", "subject", "metrics", "info", "environment")
        ]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a run record ({error!r}); delete the run's folder and run it again"
        ) from None
    for name in RENAMED.keys() & record.get("parameters", {}).keys():
        raise ValueError(
            f"{path}: of an earlier version: {name} is now called {RENAMED[name]}; "
            "delete the run's folder and run it again"
        )
    return record


def find_records(root: str | Path) -> list[dict[str, Any]]:
    """Every record below ``root``, in the order of their paths; each bears its folder as ``folder``."""
    return [
        read_record(path) | {"folder": str(path.parent)}
        for path in sorted(Path(root).rglob("record.json"))
    ]


def load_records(root: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """The tidy table: one row a (run, task, label, metric).

    ``root`` is a folder searched for records, or a list of run folders. Columns: value, low, high, n, positives,
    n_patients, note (of the metric); n_images, samples_seen, paradigm, seed, institution, encoder, base, kind
    (synthetic or real), data, generator (version of the synthetic institution), patients (hash of the labelled
    patients); preset, run, stage, hardware, commit, seconds, folder.
    """
    if isinstance(root, str | Path):
        records = find_records(root)
    else:
        records = [read_record(folder) | {"folder": str(folder)} for folder in root]
    rows = []
    for record in records:
        shared = {key: record["subject"].get(key) for key in SUBJECT}
        shared |= {key: record[key] for key in ("run", "stage", "preset", "folder")}
        shared |= {key: record["environment"][key] for key in ("hardware", "commit")}
        shared["seconds"] = record["info"]["seconds"]
        rows += [metric | shared for metric in record["metrics"]]
    columns = ["run", "task", "label", "metric", "value", "low", "high", "n", "positives", *SUBJECT]
    columns += ["preset", "stage", "hardware", "commit", "seconds", "folder", "n_patients", "note"]
    table = (
        pd.DataFrame(rows).reindex(columns=columns)
        if rows
        else pd.DataFrame(columns=columns, dtype=object)
    )
    numeric = [
        "value",
        "low",
        "high",
        "n",
        "positives",
        "n_patients",
        "n_images",
        "samples_seen",
        "seed",
    ]
    table[numeric] = table[numeric].apply(pd.to_numeric)
    return table


def kept_scores(folder: str | Path) -> pd.DataFrame:
    """Per-image scores of a run, by its folder; of a recorded one, beside the images and truths that it shares."""
    path = Path(folder) / "scores.parquet"
    own, truths = pd.read_parquet(path), truths_of(path)
    return own if truths is None else pd.concat([pd.read_parquet(truths), own], axis=1)


def truths_of(path: Path) -> Path | None:
    """Where the images and truths of recorded scores are; None where they are in the file itself."""
    name = (pq.read_metadata(path).metadata or {}).get(b"truths")
    return None if name is None else path.parents[2] / "truths" / f"{name.decode()}.parquet"
