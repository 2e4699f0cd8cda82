"""What a run asks of a cluster: GPUs, CPUs, memory and time, from its preset."""

import math
import re
from collections.abc import Iterable
from typing import Any

from cxrstudy.grid import Run
from cxrstudy.presets import Preset

ON_GPU = ("pretrain", "classify", "segment", "report")
SHARD = 10_000  # images of a data run for each of its CPUs, ...
READERS = 16  # ... of which it asks for no more
FEEDERS = 8  # CPUs for each GPU, to read and augment images
MARGIN = 2.0  # a limit is so many times the estimate, ...
START = 10  # ... and so many minutes more: imports, weights, a slow file system
LEAST = 30.0  # minutes of an evaluation on a GPU: little is known about them
Asks = dict[str, int]


def asks(preset: Preset, runs: list[Run]) -> dict[str, Asks]:
    """Return gpu, cpus_per_task, mem_mb and runtime (minutes, a limit) of each run by its name.

    - GPUs: one a process, where the preset needs GPUs (``gpu_hours``).
    - Memory: the preset's; of runs with fewer processes than the largest, their share.
    - Time: the preset's minutes, shared among pretraining runs by samples seen and pixels. An
      evaluation is given as long as a mean pretraining run. A data run is given what its images
      take as uncompressed DICOM.
    """
    from cxrstudy.preflight.estimates import READ_DICOM  # reads cards, which most calls do without

    px = {run.folder: run.parameters["size"] for run in runs if run.stage == "data"}
    trained = [run for run in runs if run.stage == "pretrain"]
    work = {r.name: _samples(r) * px.get(r.parameters["data"], 1) ** 2 for r in trained}
    mean = preset.minutes / max(1, len(trained))
    most = max((_processes(run) for run in runs), default=1)
    found = {}
    for run in runs:
        on_gpu = bool(preset.gpu_hours) and run.stage in ON_GPU
        minutes = max(mean, LEAST) if on_gpu else mean
        if run.stage == "pretrain":
            minutes = preset.minutes * work[run.name] / sum(work.values())
        cpus = _processes(run) * run.parameters.get("threads", 1)
        if run.stage == "data":
            images = _images(run, trained)
            cpus = min(READERS, max(1, math.ceil(images / SHARD)))
            minutes = images / READ_DICOM[0] / cpus / 60
        found[run.name] = {
            "gpu": _processes(run) * on_gpu,
            "cpus_per_task": max(cpus, FEEDERS * _processes(run) * on_gpu),
            "mem_mb": math.ceil(1000 * preset.memory_gb * _processes(run) / most),
            "runtime": START + math.ceil(MARGIN * minutes),
        }
    return found


def _processes(run: Run) -> int:
    return run.parameters.get("processes", 1)


def _samples(run: Run) -> int:
    return run.parameters["samples_seen"]


def _images(run: Run, trained: Iterable[Run]) -> float:
    """Return the images of a data run; of all, at least what its largest subset is drawn from."""
    if run.parameters["n_images"]:
        return run.parameters["n_images"]
    share = run.parameters["fractions"]
    return max(
        (
            each.parameters["n_images"]
            / max(0.05, sum(share.get(split, 0) for split in each.parameters["splits"]))
            for each in trained
            if each.parameters["data"] == run.folder
        ),
        default=0.0,
    )


# ---- as Snakemake shows it --------------------------------------------------------------------
def read_dry_run(text: str) -> list[dict[str, Any]]:
    """Return run, stage, threads and resources of each job that ``snakemake -n`` has printed."""
    found = []
    for block in re.findall(r"^rule run:\n((?:    .*\n)+)", text, re.M):
        lines = dict(re.findall(r"^ +(\w+): (.*)$", block, re.M))
        pairs = re.findall(r"(\w+)=([^,\s]+)", lines.get("resources", ""))
        named = dict(re.findall(r"(\w+)=([^,\s]+)", lines.get("wildcards", "")))
        numbers = {name: int(value) for name, value in pairs if value.isdigit()}
        found.append(named | dict(pairs) | numbers | {"threads": int(lines.get("threads", 1))})
    return found


def table(jobs: list[dict[str, Any]]) -> list[str]:
    """Return lines on what jobs ask: one for each stage and ask, then the sum of GPU-hours."""
    lines = [f"{'stage':<10}{'jobs':>5}{'GPUs':>6}{'CPUs':>6}{'memory':>10}{'limit':>9}  partition"]
    groups: dict[tuple[Any, ...], int] = {}
    for job in jobs:
        partition = job.get("slurm_partition", "the cluster's default")
        limit = job.get("runtime", 0)
        cpus = job.get("cpus_per_task", job["threads"])
        key = (job["stage"], job.get("gpu", 0), cpus, job.get("mem_mb", 0), limit)
        groups[(*key, partition)] = groups.get((*key, partition), 0) + 1
    for (stage, gpus, cpus, memory, limit, partition), count in groups.items():
        numbers = f"{count:>5}{gpus:>6}{cpus:>6}{memory / 1000:>7.0f} GB{limit / 60:>7.1f} h"
        lines.append(f"{stage:<10}{numbers}  {partition}")
    hours = sum(job.get("gpu", 0) * job.get("runtime", 0) for job in jobs) / 60
    lines.append(f"at most {hours:,.0f} GPU-hours, if every job reached its limit once")
    return lines
