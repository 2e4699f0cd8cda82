"""Run a preset: write its plan, let Snakemake order the notebooks, show what is happening, say what failed."""

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cxrstudy import grid, study
from cxrstudy.files import write_changed
from cxrstudy.results import read_record

HEADLINES = {  # (task, label, metric) of a record to what a line says of it
    ("findings", "macro", "auroc"): "findings AUROC",
    ("lines_tubes", "macro", "auroc"): "lines_tubes AUROC",
    ("segmentation", "macro", "dice"): "Dice",
    ("segmentation", "macro", "cl_dice"): "clDice",
    ("reports", "findings", "f1_micro"): "findings F1",
    ("reports", "lines_tubes", "f1_micro"): "lines_tubes F1",
}


def folder(run: grid.Run) -> Path:
    """Where a run's record, executed notebook and artefacts lie."""
    return study.resolve(run.folder)


def variant_name(settings: dict[str, Any]) -> str:
    """The name of a variant of a preset: its ``--set`` values; empty for the preset as it is."""
    read = sorted(grid.read_settings(settings).items())
    return ",".join(f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in read)


def run_page(preset: str, stage: str, name: str) -> str:
    """The page of an executed notebook in the book, without its ending."""
    return f"runs/{preset}/{stage}-{name}"


def plan_path(preset: str, variant: str = "") -> Path:
    """Where the plan of a preset, or of a variant of it, is kept."""
    return study.runs_root() / preset / (f"plan-{study.digest(variant)}.json" if variant else "plan.json")


def read_plan(preset: str, variant: str = "") -> list[dict[str, Any]]:
    """The planned runs (name, stage, parameters, needs); none where there is no plan."""
    path = plan_path(preset, variant)
    return json.loads(path.read_text())["runs"] if path.is_file() else []


def write_plan(path: Path, preset: str, runs: list[grid.Run], variant: str = "") -> Path:
    """Write a plan and return its path; untouched when it stands already."""
    content = {
        "preset": preset,
        "variant": variant,
        "runs": [{"name": r.name, "stage": r.stage, "parameters": r.parameters, "needs": r.needs} for r in runs],
    }
    write_changed(path, json.dumps(content, indent=1))
    return path


def preview(preset: str, settings: dict[str, Any], data_root: str = "") -> tuple[list[grid.Run], dict[str, str]]:
    """(runs of the plan, those that would be executed with why); nothing is left behind."""
    runs = grid.plan(preset, settings, data_root)
    place = study.runs_root() / preset
    if not place.is_dir():
        return runs, {run.name: "not run yet" for run in runs}
    plan = write_plan(place / f".preview-{os.getpid()}.json", preset, runs)
    try:
        return runs, stale(preset, plan)
    finally:
        plan.unlink()


def read_plans() -> list[dict[str, Any]]:
    """Every plan below the runs folder, presets as they are before their variants."""
    paths = sorted(study.runs_root().glob("*/plan*.json"), key=lambda path: (path.parent, len(path.name), path.name))
    return [json.loads(path.read_text()) for path in paths]


def _snakemake(preset: str, plan: Path, *words: str) -> list[str]:
    where = study.runs_root() / preset
    command = [sys.executable, "-m", "snakemake", "-s", str(study.root() / "notebooks" / "Snakefile")]
    command += ["--directory", str(where), "--config", f"plan={plan.name}", "--nolock"]
    return [*command, "--rerun-triggers", "mtime", "params", "input", *words]


def _environment() -> dict[str, str]:
    return os.environ | {"CXRSTUDY_ROOT": str(study.root()), "CXRSTUDY_RUNS": str(study.runs_root())}


def stale(preset: str, plan: Path) -> dict[str, str]:
    """Names of the runs that would be executed now, each with why (as Snakemake sees it)."""
    command = _snakemake(preset, plan, "--summary")
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    if done.returncode:
        raise study.StudyError(f"snakemake could not read the plan {plan}:\n{done.stderr[-2000:]}")
    rows = list(csv.DictReader(io.StringIO(done.stdout), delimiter="\t"))
    return {Path(row["output_file"]).parent.name: row["status"] for row in rows if row["plan"] != "no update"}


@contextlib.contextmanager
def _alone(preset: str) -> Iterator[None]:
    """Hold the preset's lock, which the system releases even when this process is killed."""
    path = study.runs_root() / preset / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise study.StudyError(f"preset {preset!r} is being run already (lock {path})") from None
        yield


def run_preset(
    preset: str,
    *,
    cores: int,
    settings: dict[str, Any],
    data_root: str = "",
    quiet: bool = False,
    stand: set[str] | None = None,
    gpu_runs: int | None = None,
) -> int:
    """Execute what is missing or stale of a preset; 0 when all its runs stand, 1 when one failed.

    ``gpu_runs``: how many runs share the first GPU at a time. ``stand``: names of runs whose results are kept
    elsewhere; neither they nor what only they need is executed.
    """
    runs = grid.plan(preset, settings, data_root)
    with _alone(preset):
        variant = variant_name(settings)
        plan = write_plan(plan_path(preset, variant), preset, runs, variant)
        if stand:
            runs = grid.without(runs, stand)
            plan = write_plan(plan.with_name("rest-" + plan.name), preset, runs, variant)
        waiting = stale(preset, plan)
        if not waiting:
            print(f"{preset}: all {len(runs)} runs stand; nothing to do")
            return 0
        for run in runs:
            folder(run).mkdir(parents=True, exist_ok=True)
        began = time.time()
        print(
            f"{preset}: {len(waiting)} of {len(runs)} runs to do on {cores} cores; Ctrl-C stops, the same call resumes"
        )
        for piece in sorted({run.piece for run in runs if run.name in waiting}):
            wanted = [f"{run.stage}/{run.name}/record.json" for run in runs if run.piece == piece]
            command = _snakemake(preset, plan, "--cores", str(cores), "--keep-going", "--rerun-incomplete")
            command += ["--resources", f"gpu={gpu_runs or 1}"] if gpu_runs or shutil.which("nvidia-smi") else []
            with (plan.parent / "snakemake.log").open("a") as log:
                env = _environment() | {"LOKY_MAX_CPU_COUNT": str(cores)}  # on which a data run draws a large set
                process = subprocess.Popen(
                    [*command, "--", *wanted], stdout=log, stderr=log, env=env, start_new_session=True
                )
            try:
                _watch(process, [run for run in runs if run.name in waiting and run.piece == piece], began, quiet)
            except KeyboardInterrupt:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                print("\nstopped; the same call resumes")
                return 1
        failed = [run for run in runs if state(run, False)[0] != "done"]
        for run in failed:
            kind, why = state(run, False, began)
            print(f"  {kind}: {run.stage} {run.name}: {why}")
        if failed or process.returncode:
            print(f"{preset}: {len(failed)} of {len(runs)} runs have no result (details: {plan.parent}/snakemake.log)")
            return 1
    print(f"{preset}: done, {len(waiting)} runs in {time.time() - began:.0f} s")
    return 0


def _watch(process: subprocess.Popen, runs: list[grid.Run], began: float, quiet: bool) -> None:
    bar = tqdm(total=len(runs), desc="runs", unit="run", disable=quiet, ncols=100, file=sys.stdout)
    reported: set[str] = set()
    while True:
        ended = process.poll() is not None
        at_work = []
        for run in runs:
            record = folder(run) / "record.json"
            if run.name not in reported and record.is_file() and record.stat().st_mtime >= began:
                reported.add(run.name)
                bar.update(1)
                if not sys.stdout.isatty() and not quiet:
                    print(f"  done: {run.stage} {run.name} ({headline(run)})", flush=True)
            elif run.name not in reported:
                note = folder(run) / "progress"
                if note.is_file() and note.stat().st_mtime >= began:
                    at_work.append(f"{grid.slug(run.name)} {note.read_text()}")
        bar.set_postfix_str("; ".join(at_work[:2]), refresh=False)
        if sys.stdout.isatty():
            bar.refresh()
        if ended:
            bar.close()
            return
        time.sleep(0.3)


def busy(preset: str) -> bool:
    """Whether a `cxrstudy run` of this preset is at work now."""
    path = study.runs_root() / preset / ".lock"
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def state(run: grid.Run, live: bool, began: float = 0.0) -> tuple[str, str]:
    """('done' | 'failed' | 'running' | 'waiting', why) of one run; ``live``: its preset is being run now."""
    where = folder(run)
    notebook, log = where / "notebook.ipynb", where / "papermill.log"
    if (where / "record.json").is_file():
        return "done", ""
    if log.is_file() and log.stat().st_mtime >= began:
        error = notebook_error(notebook)
        if error:
            return "failed", f"{error} (see {notebook})"
        if live:
            return "running", ""
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        return "failed", f"stopped before its end: {''.join(last)[:200]} (see {log})"
    return "waiting", "" if live else "not started, or it needs a run that failed"


def notebook_error(path: Path) -> str:
    """The last error an executed notebook shows, in one line; empty when it shows none."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return ""
    found = [o for cell in cells for o in cell.get("outputs", []) if o.get("output_type") == "error"]
    return re.sub(r"\s+", " ", f"{found[-1]['ename']}: {found[-1]['evalue']}")[:500] if found else ""


def headline(run: grid.Run) -> str:
    """A run's seconds and its most telling numbers, in a few words."""
    return headline_of(read_record(folder(run)))


def headline_of(record: dict[str, Any]) -> str:
    """As ``headline``, from a record."""
    words = [f"{record['info']['seconds']:.0f} s"]
    for metric in record["metrics"]:
        if metric["value"] is not None:
            said = HEADLINES.get((metric["task"], metric["label"], metric["metric"]))
            if said:
                words.append(f"{said} {metric['value']:.3f}")
            elif metric["metric"] in ("loss", "exponent"):
                words.append(f"{metric['task']} {metric['label']} {metric['metric']} {metric['value']:.3f}")
    if record["stage"] == "data":
        words.append(f"{record['info']['images']} images")
    return ", ".join(words)


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
    """Every planned run with its state, duration and headline."""
    rows = []
    for plan in read_plans():
        live = busy(plan["preset"])
        for item in plan["runs"]:
            run = grid.Run(item["name"], item["stage"], plan["preset"], item["parameters"], tuple(item["needs"]))
            kind, why = state(run, live)
            record = read_record(folder(run)) if kind == "done" else None
            note = headline_of(record).partition(", ")[2] if record else why
            rows.append(
                Row(plan["preset"], plan["variant"], run, kind, record["info"]["seconds"] if record else 0, note)
            )
    return rows


def run_table(preset: str) -> list[dict[str, Any]]:
    """Every run of a preset with an executed notebook: name, stage, record or None, notebook path."""
    planned = {run["name"] for plan in read_plans() if plan["preset"] == preset for run in plan["runs"]}
    rows = []
    for notebook in sorted((study.runs_root() / preset).glob("*/*/notebook.ipynb")):
        record = notebook.with_name("record.json")
        if not record.is_file() and notebook.parent.name not in planned:
            continue  # what a changed preset no longer asks for, and never ended
        rows.append(
            {
                "name": notebook.parent.name,
                "stage": notebook.parent.parent.name,
                "notebook": notebook,
                "record": read_record(record) if record.is_file() else None,
            }
        )
    order = {stage: k for k, stage in enumerate(study.STAGES)}
    return sorted(rows, key=lambda row: (order.get(row["stage"], 9), row["name"]))
