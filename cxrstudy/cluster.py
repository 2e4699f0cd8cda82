"""Snakemake profiles, and jobs in Slurm's queue: which are there, and how they are cancelled.

Jobs of a preset have a name that begins with a digest of its lock (see ``locks``). So they are
found again when what submitted them has ended.
"""

import importlib.util
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cxrstudy.study import StudyError, digest, root

BUILT_IN = ("local", "dryrun", "touch")  # executors that Snakemake itself has
FILE = re.compile(r"(profile|config)(\.v\d+\+)?\.yaml")
USUAL = ("None", "Priority", "Resources")  # why jobs wait in a queue
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


class Job(NamedTuple):
    """A job in Slurm's queue."""

    id: str
    state: str
    reason: str


class Profile(NamedTuple):
    """A folder that Snakemake's ``--profile`` reads, and its executor."""

    folder: Path
    executor: str


def read_profile(name: str, *, submits: bool = True) -> Profile:
    """Return the profile ``notebooks/profiles/NAME``, or the one in the folder ``name``.

    Raises:
        StudyError: there is none, it is not YAML, or its executor is not installed. If this call
            ``submits`` jobs: they cannot be submitted here.
    """
    own = root() / "notebooks" / "profiles"
    folder = own / name if (own / name).is_dir() else Path(name).expanduser().resolve()
    files = sorted(f for f in folder.glob("*.yaml") if FILE.fullmatch(f.name))
    if not files:
        there = ", ".join(sorted(path.parent.name for path in own.glob("*/config.yaml")))
        raise StudyError(f"no profile {name!r}: there are {there}; or name a folder of config.yaml")
    try:
        values: Any = yaml.safe_load(files[-1].read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{files[-1]}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise StudyError(f"{files[-1]}:1: expected lines `name: value`")
    executor = str(values.get("executor", "local"))
    module = f"snakemake_executor_plugin_{executor.replace('-', '_')}"
    if executor not in BUILT_IN and importlib.util.find_spec(module) is None:
        package = module.replace("_", "-")
        raise StudyError(f"profile {name}: executor {executor} needs: pip install {package}")
    if submits and executor == "slurm" and not shutil.which("sbatch"):
        raise StudyError(f"profile {name}: no sbatch here; call this where jobs are submitted")
    return Profile(folder, executor)


def words(profile: Profile, lock: Path) -> list[str]:
    """Return what Snakemake is called with."""
    named = ["--slurm-jobname-prefix", _prefix(lock)] if profile.executor == "slurm" else []
    return ["--profile", str(profile.folder), *named]


def _prefix(lock: Path) -> str:
    return f"cxrstudy-{digest(str(lock))}"


def jobs(lock: Path, *, must_answer: bool = True) -> list[Job]:
    """Return a preset's jobs in Slurm's queue; none where there is no Slurm.

    Raises:
        StudyError: there is a queue, but it does not answer, and it must.
    """
    if not shutil.which("squeue"):
        return []
    command = ["squeue", "--me", "--noheader", "--format=%i|%j|%T|%r"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        if not must_answer:
            return []
        why = str(error.stderr or "").strip()[:300]
        raise StudyError(f"Slurm's squeue does not answer: {why or error}") from None
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 3]
    return [
        Job(number, state, reason)
        for number, name, state, reason in rows
        if name.startswith(_prefix(lock)) and state not in ENDED
    ]


def cancel(lock: Path, patience: float = 120.0) -> list[Job]:
    """Cancel a preset's jobs and wait for their end; return those that are still there."""
    until = time.monotonic() + patience  # Slurm itself waits 30 s between its signals
    while left := jobs(lock):
        if time.monotonic() > until:
            return left
        subprocess.run(["scancel", *(job.id for job in left)], capture_output=True, check=False)
        time.sleep(1)
    return []


def queue(lock: Path) -> tuple[str, str]:
    """Return how many jobs of a preset wait in the queue, and reasons why some may wait for ever.

    Such are a limit that they exceed and a drained node. Each is empty if there is none.
    """
    reasons = [job.reason for job in jobs(lock, must_answer=False) if job.state == "PENDING"]
    unusual = sorted(set(reasons) - set(USUAL))
    return f"{len(reasons)} in the queue" if reasons else "", ", ".join(unusual)
