"""Run records: one JSON file for each run, written atomically, read as one tidy table.

Schema 1 holds run, stage, preset, parameters and artefacts, and also:

- subject: the encoder and the subset of images that the numbers are about;
- metrics: a list of task, label, metric, value, low, high;
- info: samples seen, unique images, epochs, FLOPs, seconds, images/s, peak memory;
- environment: commit, versions, hardware.
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
CHANCE = (
    0.98  # contrastive loss / log(batch size), the loss of guessing: above, nothing was learned
)
LEAST_MOVED = 0.01  # relative weight change: below, DINOv2 has hardly been trained
SUBJECT = (
    "paradigm", "n_images", "samples_seen", "seed", "institution", "encoder", "base", "kind",
    "data",
    "generator",  # version of the synthetic institution that drew the images
    "patients",
    "trained_on",  # institution of the images of continued pretraining; baselines have none
)  # fmt: skip
VERSIONS = ("torch", "timm", "open_clip_torch", "pandas", "papermill")


@functools.cache
def environment() -> dict[str, Any]:
    """Return commit, versions and hardware of this process."""

    def git(*words: str) -> str:
        call = ["git", "-C", str(study.root()), *words]
        with contextlib.suppress(FileNotFoundError):  # a container may have no git
            return subprocess.run(call, capture_output=True, text=True, check=False).stdout.strip()
        return ""

    commit = git("rev-parse", "--short=12", "HEAD")
    commit = commit or os.environ.get("CXRSTUDY_COMMIT") or "unknown"  # for a copy without git
    changed = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return {
        "commit": commit + changed,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "hardware": hardware(),
    }


def hardware() -> str:
    """Return the name of the GPU, or of the processor with its number of cores."""
    torch = sys.modules.get("torch")  # not imported here: the command line must stay fast
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        name = next(named, name)
    return f"{name}, {os.cpu_count()} cores"


def peak_memory() -> int:
    """Return the largest resident memory of this process, in bytes."""
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

    Numbers that are not finite become null.

    Args:
        stage: data, pretrain, classify, segment or report.
        parameters: of the notebook.
        metrics: dicts with task, label, metric, value and, where known, low, high, n, positives.
        info: what else was measured; seconds and peak memory are added.
        subject: the encoder and the subset of images that the numbers are about.
        started: ``time.time()`` at the notebook's start.
        artefacts: names of the files in the run's folder that belong to the result.
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
    """Return over how many of a curve's ``points`` its loss is averaged: a quarter, 1 to 10."""
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
    """Read a record from its file or its run's folder.

    Raises:
        ValueError: the file is not a record, or one of another version. The message names the file.
    """
    path = Path(path)
    path = path / "record.json" if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] > SCHEMA:
            raise ValueError(
                f"{path}: schema {record['schema']} is newer than the {SCHEMA} that this package "
                "reads; update the package"
            )
        for key in ("run", "stage", "preset", "subject", "metrics", "info", "environment"):
            _ = record[key]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a run record ({error!r}); delete the run's folder and run it again"
        ) from None
    for name in RENAMED.keys() & record.get("parameters", {}).keys():
        raise ValueError(
            f"{path}: from an earlier version: {name} is now called {RENAMED[name]}; "
            "delete the run's folder and run it again"
        )
    return record


def find_records(root: str | Path) -> list[dict[str, Any]]:
    """Return every record below ``root``, in the order of their paths, with its ``folder``."""
    return [
        read_record(path) | {"folder": str(path.parent)}
        for path in sorted(Path(root).rglob("record.json"))
    ]


def load_records(root: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Return the tidy table: one row for each (run, task, label, metric).

    Args:
        root: a folder that is searched for records, or a list of run folders.

    Returns:
        Columns of the metric: value, low, high, n, positives, n_patients, note. Of the encoder:
        n_images, samples_seen, paradigm, seed, institution, encoder, base, kind (synthetic or
        real), data, generator (version of the synthetic institution), patients (hash of the
        labelled patients), trained_on. Of the run: preset, run, stage, hardware, commit, seconds,
        folder.
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
    numeric = ["value", "low", "high", "n", "positives", "n_patients"]
    numeric += ["n_images", "samples_seen", "seed"]
    table[numeric] = table[numeric].apply(pd.to_numeric)
    return table


def kept_scores(folder: str | Path) -> pd.DataFrame:
    """Return the per-image scores of a run folder, with images and truths."""
    path = Path(folder) / "scores.parquet"
    own, truths = pd.read_parquet(path), truths_of(path)
    return own if truths is None else pd.concat([pd.read_parquet(truths), own], axis=1)


def truths_of(path: Path) -> Path | None:
    """Return the file with images and truths of recorded scores; None if the scores hold them."""
    name = (pq.read_metadata(path).metadata or {}).get(b"truths")
    return None if name is None else path.parents[2] / "truths" / f"{name.decode()}.parquet"
