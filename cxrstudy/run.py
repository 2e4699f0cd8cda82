"""Run a preset: write its plan, let Snakemake order the notebooks, show progress and failures."""

import contextlib
import csv
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrstudy import cluster, grid, locks, states, study
from cxrstudy.asks import asks, read_dry_run
from cxrstudy.asks import table as asked_table
from cxrstudy.headline import headline_of
from cxrstudy.plans import plan_path, read_plans, write_plan
from cxrstudy.plans import read_plan as read_plan
from cxrstudy.presets import read_settings
from cxrstudy.results import read_record
from cxrstudy.states import folder
from cxrstudy.states import notebook_error as notebook_error


def variant_name(settings: dict[str, Any]) -> str:
    """Return the name of a variant: its ``--set`` values; empty for the preset itself."""
    read = sorted(read_settings(settings).items())
    return ",".join(f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in read)


def run_page(preset: str, stage: str, name: str) -> str:
    """Return the book's page of an executed notebook, without its ending."""
    return f"runs/{preset}/{stage}-{name}"


def preview(preset: grid.Preset, data_root: str = "") -> tuple[list[grid.Run], dict[str, str]]:
    """Return the runs of the plan, and those that would be executed with why; leave no file."""
    runs = grid.expand(preset, data_root, must_read=True)
    place = study.runs_root() / preset.name
    if not place.is_dir():
        return runs, {run.name: "not run yet" for run in runs}
    plan = write_plan(place / f".preview-{os.getpid()}.json", preset.name, runs)
    try:
        return runs, stale(preset.name, plan)
    finally:
        plan.unlink()


def _snakemake(preset: str, plan: Path, *words: str) -> list[str]:
    snakefile = study.root() / "notebooks" / "Snakefile"
    return [
        *(sys.executable, "-m", "snakemake", "-s", str(snakefile), "--nolock"),
        *("--directory", str(study.runs_root() / preset), "--config", f"plan={plan.name}"),
        *("--rerun-triggers", "mtime", "params", "input", *words),
    ]


def _environment() -> dict[str, str]:
    own = {"CXRSTUDY_ROOT": str(study.root()), "CXRSTUDY_RUNS": str(study.runs_root())}
    return os.environ | own


def stale(preset: str, plan: Path) -> dict[str, str]:
    """Return the runs that Snakemake would execute now, each with why."""
    command = _snakemake(preset, plan, "--summary")
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    if done.returncode:
        raise study.StudyError(f"snakemake could not read the plan {plan}:\n{done.stderr[-2000:]}")
    rows = csv.DictReader(io.StringIO(done.stdout), delimiter="\t")
    return {
        Path(row["output_file"]).parent.name: row["status"]
        for row in rows
        if row["plan"] != "no update"
    }


def asked_of(
    preset: grid.Preset, runs: list[grid.Run], wanted: list[str], profile: cluster.Profile
) -> list[dict[str, Any]]:
    """Return what runs would ask of a cluster, after the profile's changes; leave no file.

    Args:
        runs: all runs of the plan.
        wanted: names of those to be executed.
    """
    with tempfile.TemporaryDirectory() as scratch:  # where none has a result yet
        plan = write_plan(Path(scratch) / "p.json", preset.name, runs, "", asks(preset, runs))
        snakemake = _snakemake(preset.name, plan, "--profile", str(profile.folder), "-n", "-c9999")
        snakemake[snakemake.index("--directory") + 1] = scratch
        done = subprocess.run(
            snakemake, capture_output=True, text=True, env=_environment(), check=False
        )
    if done.returncode:
        why = done.stderr[-2000:]
        raise study.StudyError(f"snakemake refuses the profile {profile.folder}:\n{why}")
    return [job for job in read_dry_run(done.stdout + done.stderr) if job["run"] in wanted]


def asked_text(
    preset: grid.Preset,
    runs: list[grid.Run],
    wanted: list[str] | None,
    profile: cluster.Profile,
) -> str:
    """Return what runs would ask of a cluster: those ``wanted`` by name, or all of the preset."""
    names = [run.name for run in runs] if wanted is None else wanted
    table = asked_table(asked_of(preset, runs, names, profile))
    head = f"asked of the cluster by profile {profile.folder.name}:"
    return "\n".join([head, *(f"  {line}" for line in table)])


def lock_path(preset: str) -> Path:
    """Return the lock of a preset: see ``locks``."""
    return study.runs_root() / preset / ".lock"


def busy(preset: str) -> bool:
    """Return whether runs of this preset are running now, on this machine or on a cluster."""
    lock = lock_path(preset)
    return locks.busy(lock) or bool(cluster.jobs(lock, must_answer=False))


def run_preset(
    preset: grid.Preset,
    *,
    cores: int,
    data_root: str = "",
    quiet: bool = False,
    recorded: set[str] | None = None,
    gpu_runs: int | None = None,
    only: str = "",
    profile: cluster.Profile | None = None,
) -> int:
    """Execute the runs of a preset that are missing or stale; return 0 if all succeed, else 1.

    A signal that ends this process ends all that it has started, and then raises SystemExit(1).

    Args:
        cores: CPU cores of this machine; not used with a profile.
        recorded: names of runs whose results are kept elsewhere: neither they nor what only they
            need is executed.
        gpu_runs: how many runs share the first GPU at a time.
        only: a stage that needs no other, to be run alone.
        profile: how Snakemake executes runs elsewhere, on a cluster.
    """
    name = preset.name
    runs = grid.expand(preset, data_root, must_read=True)
    with locks.ending_signals(), locks.held(lock_path(name), name) as lock:
        if left := cluster.jobs(lock_path(name), must_answer=bool(profile)):
            ids = " ".join(job.id for job in left)
            raise study.StudyError(
                f"preset {name!r} is being run already: wait for its jobs, or scancel {ids}"
            )
        try:
            variant = variant_name(preset.settings)
            asked = asks(preset, runs)
            plan = write_plan(plan_path(name, variant), name, runs, variant, asked)
            if recorded:
                runs = grid.without(runs, recorded)
                rest = plan.with_name("rest-" + plan.name)
                plan = write_plan(rest, name, runs, variant, asked)
            runs = [run for run in runs if only in ("", run.stage)]
            _note_roots(runs)
            waiting = {run.name for run in runs} & set(stale(name, plan))
            if not waiting:
                print(f"{name}: all {len(runs)} runs are up to date; nothing to do")
                return 0
            for run in runs:
                folder(run).mkdir(parents=True, exist_ok=True)
                (folder(run) / states.FAILED).unlink(missing_ok=True)
            began = lock_path(name).stat().st_mtime  # by the clock of the disk, as records have it
            where = f"by {profile.folder.name}" if profile else f"on {cores} cores"
            todo = f"{len(waiting)} of {len(runs)} runs to do {where}"
            print(f"{name}: {todo}; Ctrl-C stops, the same call resumes", flush=True)
            words = ["--keep-going", "--rerun-incomplete"]
            words += cluster.words(profile, lock_path(name)) if profile else ["--cores", str(cores)]
            if not profile and (gpu_runs or shutil.which("nvidia-smi")):
                words += ["--resources", f"gpu={gpu_runs or 1}"]
            ended = True
            for priority in sorted({run.priority for run in runs if run.name in waiting}):
                part = [run for run in runs if run.priority == priority]
                wanted = [f"{run.stage}/{run.name}/record.json" for run in part]
                command = [*_snakemake(name, plan, *words), "--", *wanted]
                due = [run for run in part if run.name in waiting]
                ended &= _execute(command, due, 0 if profile else cores, lock, began, quiet)
            return _conclude(name, runs, len(waiting), began, ended)
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):  # the terminal may be gone
                print("\nstopped; the same call resumes")
            raise SystemExit(1) from None


def _note_roots(runs: list[grid.Run]) -> None:
    """Note in finished data runs where their files are now."""
    for run in runs:
        root = run.parameters.get("root")
        if run.stage == "data" and root and (folder(run) / "record.json").is_file():
            from cxrstudy.data import sets  # imports pandas, which most calls do without

            sets.note_root(folder(run), root)


def _execute(
    command: list[str], runs: list[grid.Run], cores: int, lock: int, began: float, quiet: bool
) -> bool:
    """Let Snakemake execute runs and show them; return whether all succeeded.

    Whatever ends this ends what it started.

    Args:
        cores: CPU cores of this machine; 0 on a cluster.
    """
    where = lock_path(runs[0].preset)
    own = {locks.MARK: str(where)}
    if cores:
        own["LOKY_MAX_CPU_COUNT"] = str(cores)  # for drawing large sets
    process = None
    try:
        log_path = where.with_name("snakemake.log")
        with log_path.open("a") as log:
            start = log.tell()
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=_environment() | own,
                start_new_session=True,
                pass_fds=[lock],
            )
        queue = None if cores else functools.partial(cluster.queue, where)
        states.watch(process, runs, log_path, start, began, quiet=quiet, queue=queue)
    finally:  # also if Snakemake alone was killed, and what it had started continues
        try:
            if not cores:
                _cancel(process, where)
        finally:
            if left := locks.stop(process, where):
                names = ", ".join(f"{name} {pid}" for pid, name in left.items())
                print(f"could not be stopped: {names}")
    return process.returncode == 0


def _cancel(process: subprocess.Popen | None, lock: Path) -> None:
    """Let Snakemake cancel its jobs, and cancel those in Slurm's queue that are left."""
    if process and process.poll() is None:
        process.send_signal(signal.SIGINT)  # by SIGTERM it would wait until they are done
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
    if process:
        process.kill()  # or it would submit cancelled jobs again
    try:
        if left := cluster.cancel(lock):
            print(f"could not be cancelled: jobs {' '.join(job.id for job in left)}")
    except study.StudyError as error:
        print(f"jobs may be left: {error}")


def _conclude(preset: str, runs: list[grid.Run], waited: int, began: float, ended: bool) -> int:
    """Print what failed and what was not run because of it; return the exit code."""
    found = states.states(runs, False, began)
    missing = [run for run in runs if found[run.name][0] != "done"]
    for run in missing:
        kind, why = found[run.name]
        print(f"  {'not run' if kind == 'waiting' else kind}: {run.stage} {run.name}: {why}")
    if missing or not ended:
        log = lock_path(preset).with_name("snakemake.log")
        free = shutil.disk_usage(log.parent).free
        if free < 2**26:  # then neither logs nor notebooks could be written, which would say so
            print(f"  the disk of {log.parent} has {free / 1e6:.0f} MB left: free space there")
        print(f"{preset}: {len(missing)} of {len(runs)} runs have no result (details: {log})")
        return 1
    print(f"{preset}: done, {waited} runs in {time.time() - began:.0f} s")
    return 0


@dataclass(frozen=True)
class Row:
    """A line of `cxrstudy runs`."""

    preset: str
    variant: str
    run: grid.Run
    state: str
    seconds: float
    note: str


def overview() -> list[Row]:
    """Return every planned run with its state, duration and headline."""
    plans = read_plans()
    live = {preset: busy(preset) for preset in {plan["preset"] for plan in plans}}
    rows = []
    for plan in plans:
        preset = plan["preset"]
        runs = [
            grid.Run(item["name"], item["stage"], preset, item["parameters"], tuple(item["needs"]))
            for item in plan["runs"]
        ]
        for run, (kind, why) in zip(runs, states.states(runs, live[preset]).values(), strict=True):
            record = read_record(folder(run)) if kind == "done" else None
            note = headline_of(record).partition(", ")[2] if record else why
            seconds = record["info"]["seconds"] if record else 0
            rows.append(Row(preset, plan["variant"], run, kind, seconds, note))
    return rows


def run_table(preset: str) -> list[dict[str, Any]]:
    """Return every run of a preset with an executed notebook: name, stage, record, notebook.

    The record is None if the run did not end. Such runs that no plan asks for are left out.
    """
    plans = [plan for plan in read_plans() if plan["preset"] == preset]
    planned = {run["name"] for plan in plans for run in plan["runs"]}
    rows = []
    for notebook in sorted((study.runs_root() / preset).glob("*/*/notebook.ipynb")):
        record, (stage, name) = notebook.with_name("record.json"), notebook.parts[-3:-1]
        if record.is_file() or name in planned:
            found = read_record(record) if record.is_file() else None
            rows.append({"name": name, "stage": stage, "notebook": notebook, "record": found})
    order = {stage: k for k, stage in enumerate(study.STAGES)}
    return sorted(rows, key=lambda row: (order.get(row["stage"], 9), row["name"]))
