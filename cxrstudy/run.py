"""Run a preset: write its plan, let Snakemake order the notebooks, show progress and failures."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cxrstudy import grid, locks, study
from cxrstudy.headline import headline_of
from cxrstudy.plans import plan_path, read_plans, write_plan
from cxrstudy.plans import read_plan as read_plan
from cxrstudy.presets import read_settings
from cxrstudy.results import read_record


def folder(run: grid.Run) -> Path:
    """Return the folder of a run's record, executed notebook and artefacts."""
    return study.resolve(run.folder)


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


def lock_path(preset: str) -> Path:
    """Return the lock of a preset: see ``locks``."""
    return study.runs_root() / preset / ".lock"


def busy(preset: str) -> bool:
    """Return whether runs of this preset are running now."""
    return locks.busy(lock_path(preset))


def run_preset(
    preset: grid.Preset,
    *,
    cores: int,
    data_root: str = "",
    quiet: bool = False,
    recorded: set[str] | None = None,
    gpu_runs: int | None = None,
    only: str = "",
) -> int:
    """Execute the runs of a preset that are missing or stale; return 0 if all succeed, else 1.

    A signal that ends this process ends all that it has started, and then raises SystemExit(1).

    Args:
        recorded: names of runs whose results are kept elsewhere: neither they nor what only they
            need is executed.
        gpu_runs: how many runs share the first GPU at a time.
        only: a stage that needs no other, to be run alone.
    """
    name = preset.name
    runs = grid.expand(preset, data_root, must_read=True)
    with locks.ending_signals(), locks.held(lock_path(name), name) as lock:
        try:
            variant = variant_name(preset.settings)
            plan = write_plan(plan_path(name, variant), name, runs, variant)
            if recorded:
                runs = grid.without(runs, recorded)
                plan = write_plan(plan.with_name("rest-" + plan.name), name, runs, variant)
            runs = [run for run in runs if only in ("", run.stage)]
            _note_roots(runs)
            waiting = {run.name for run in runs} & set(stale(name, plan))
            if not waiting:
                print(f"{name}: all {len(runs)} runs are up to date; nothing to do")
                return 0
            for run in runs:
                folder(run).mkdir(parents=True, exist_ok=True)
            began = time.time()
            todo = f"{len(waiting)} of {len(runs)} runs to do on {cores} cores"
            print(f"{name}: {todo}; Ctrl-C stops, the same call resumes", flush=True)
            words = ["--cores", str(cores), "--keep-going", "--rerun-incomplete"]
            if gpu_runs or shutil.which("nvidia-smi"):
                words += ["--resources", f"gpu={gpu_runs or 1}"]
            ended = True
            for priority in sorted({run.priority for run in runs if run.name in waiting}):
                part = [run for run in runs if run.priority == priority]
                wanted = [f"{run.stage}/{run.name}/record.json" for run in part]
                command = [*_snakemake(name, plan, *words), "--", *wanted]
                due = [run for run in part if run.name in waiting]
                ended &= _execute(command, due, cores, lock, began, quiet)
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
    """
    where = lock_path(runs[0].preset)
    own = {locks.MARK: str(where), "LOKY_MAX_CPU_COUNT": str(cores)}  # for drawing large sets
    process = None
    try:
        with where.with_name("snakemake.log").open("a") as log:
            start = log.tell()
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=_environment() | own,
                start_new_session=True,
                pass_fds=[lock],
            )
        _watch(process, runs, began, quiet, start)
    finally:  # also if Snakemake alone was killed, and what it had started continues
        if left := locks.stop(process, where):
            names = ", ".join(f"{name} {pid}" for pid, name in left.items())
            print(f"could not be stopped: {names}")
    return process.returncode == 0


def _conclude(preset: str, runs: list[grid.Run], waited: int, began: float, ended: bool) -> int:
    """Print what failed and what was not run because of it; return the exit code."""
    found = states(runs, False, began)
    missing = [run for run in runs if found[run.name][0] != "done"]
    for run in missing:
        kind, why = found[run.name]
        print(f"  {'not run' if kind == 'waiting' else kind}: {run.stage} {run.name}: {why}")
    if missing or not ended:
        log = lock_path(preset).with_name("snakemake.log")
        print(f"{preset}: {len(missing)} of {len(runs)} runs have no result (details: {log})")
        return 1
    print(f"{preset}: done, {waited} runs in {time.time() - began:.0f} s")
    return 0


def _given_up(text: str) -> list[str]:
    """Return the runs that have failed according to Snakemake's log."""
    failed = r"^Error in rule run:\n(?: .*\n)*?    output: [^/\n]+/([^/\n]+)/record\.json$"
    return re.findall(failed, text, re.M)


def _watch(
    process: subprocess.Popen, runs: list[grid.Run], began: float, quiet: bool, start: int
) -> None:
    """Show runs as they start, end and fail, until Snakemake ends.

    Args:
        start: offset in its log at which this call begins.
    """
    log = lock_path(runs[0].preset).with_name("snakemake.log")
    reported: set[str] = set()
    with tqdm(
        total=len(runs), desc="runs", unit="run", disable=quiet, ncols=100, file=sys.stdout
    ) as bar:
        while True:
            ended = process.poll() is not None
            with log.open("rb") as file:
                file.seek(start)
                failed = _given_up(file.read().decode(errors="replace"))
            at_work = []
            for run in [run for run in runs if run.name not in reported]:
                record, note = folder(run) / "record.json", folder(run) / "progress"
                if run.name in failed:
                    reported.add(run.name)
                    bar.write(f"  failed: {run.stage} {run.name}: {state(run, False, began)[1]}")
                elif record.is_file() and record.stat().st_mtime >= began:
                    reported.add(run.name)
                    bar.update(1)
                    if not sys.stdout.isatty() and not quiet:
                        bar.write(f"  done: {run.stage} {run.name} ({headline(run)})")
                elif note.is_file() and note.stat().st_mtime >= began:
                    at_work.append(f"{grid.slug(run.name)} {note.read_text()}")
            sys.stdout.flush()
            bar.set_postfix_str("; ".join(at_work[:2]), refresh=False)
            if sys.stdout.isatty():
                bar.refresh()
            if ended:
                return
            time.sleep(0.3)


def state(run: grid.Run, live: bool, began: float = 0.0) -> tuple[str, str]:
    """Return ('done' | 'failed' | 'running' | 'waiting', why) of one run.

    Args:
        live: whether its preset is being run now.
    """
    where = folder(run)
    notebook, log = where / "notebook.ipynb", where / "papermill.log"
    if (where / "record.json").is_file():
        return "done", ""
    if log.is_file() and log.stat().st_mtime >= began:
        if error := notebook_error(notebook):
            return "failed", f"{error} (see {notebook})"
        if live:
            return "running", ""
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        return "failed", f"stopped before its end: {''.join(last)[:200]} (see {log})"
    return "waiting", "" if live else "not started"


def states(runs: list[grid.Run], live: bool, began: float = 0.0) -> dict[str, tuple[str, str]]:
    """Return the ``state`` of each run by name; of one that waits, also the failed run it needs."""
    found: dict[str, tuple[str, str]] = {}
    cause: dict[str, str] = {}
    for run in runs:  # each comes after those it needs
        kind, why = state(run, live, began)
        failed = [cause[name] for name in run.needs if name in cause]
        if kind == "failed":
            cause[run.name] = run.name
        elif kind == "waiting" and failed:
            cause[run.name] = failed[0]
            why = f"needs {failed[0]}, which failed"
        found[run.name] = kind, why
    return found


def notebook_error(path: Path) -> str:
    """Return the last error of an executed notebook, in one line; empty if there is none."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return ""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    found = [o for o in outputs if o.get("output_type") == "error"]
    if not found:
        return ""
    return re.sub(r"\s+", " ", f"{found[-1]['ename']}: {found[-1]['evalue']}")[:500]


def headline(run: grid.Run) -> str:
    """Return a run's seconds and main numbers in one line; of a damaged record, the fault."""
    try:
        return headline_of(read_record(folder(run)))
    except ValueError as error:
        return str(error)


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
        for run, (kind, why) in zip(runs, states(runs, live[preset]).values(), strict=True):
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
