"""Run a preset: write its plan, let Snakemake order the notebooks, show what is happening, say what failed."""

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
from cxrstudy.plans import plan_path, read_plans, write_plan
from cxrstudy.plans import read_plan as read_plan
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


def preview(
    preset: str, settings: dict[str, Any], data_root: str = ""
) -> tuple[list[grid.Run], dict[str, str]]:
    """(runs of the plan, those that would be executed with why); nothing is left behind."""
    runs = grid.plan(preset, settings, data_root, must_read=True)
    place = study.runs_root() / preset
    if not place.is_dir():
        return runs, {run.name: "not run yet" for run in runs}
    plan = write_plan(place / f".preview-{os.getpid()}.json", preset, runs)
    try:
        return runs, stale(preset, plan)
    finally:
        plan.unlink()


def _snakemake(preset: str, plan: Path, *words: str) -> list[str]:
    where = study.runs_root() / preset
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(study.root() / "notebooks" / "Snakefile"),
    ]
    command += ["--directory", str(where), "--config", f"plan={plan.name}", "--nolock"]
    return [*command, "--rerun-triggers", "mtime", "params", "input", *words]


def _environment() -> dict[str, str]:
    return os.environ | {
        "CXRSTUDY_ROOT": str(study.root()),
        "CXRSTUDY_RUNS": str(study.runs_root()),
    }


def stale(preset: str, plan: Path) -> dict[str, str]:
    """Names of the runs that would be executed now, each with why (as Snakemake sees it)."""
    command = _snakemake(preset, plan, "--summary")
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    if done.returncode:
        raise study.StudyError(f"snakemake could not read the plan {plan}:\n{done.stderr[-2000:]}")
    rows = list(csv.DictReader(io.StringIO(done.stdout), delimiter="\t"))
    return {
        Path(row["output_file"]).parent.name: row["status"]
        for row in rows
        if row["plan"] != "no update"
    }


def lock_path(preset: str) -> Path:
    """The lock of a preset: see ``locks``."""
    return study.runs_root() / preset / ".lock"


def busy(preset: str) -> bool:
    """Whether runs of this preset are at work now."""
    return locks.busy(lock_path(preset))


def run_preset(
    preset: str,
    *,
    cores: int,
    settings: dict[str, Any],
    data_root: str = "",
    quiet: bool = False,
    stand: set[str] | None = None,
    gpu_runs: int | None = None,
    only: str = "",
) -> int:
    """Execute what is missing or stale of a preset; 0 when all its runs stand, 1 when one failed.

    ``gpu_runs``: how many runs share the first GPU at a time. ``stand``: names of runs whose results are kept
    elsewhere; neither they nor what only they need is executed. ``only``: a stage that needs no other, to be run
    alone. A signal that ends this process ends all that it has started, and then raises SystemExit(1).
    """
    runs = grid.plan(preset, settings, data_root, must_read=True)
    with locks.ending_signals(), locks.held(lock_path(preset), preset) as lock:
        try:
            variant = variant_name(settings)
            plan = write_plan(plan_path(preset, variant), preset, runs, variant)
            if stand:
                runs = grid.without(runs, stand)
                plan = write_plan(plan.with_name("rest-" + plan.name), preset, runs, variant)
            runs = [run for run in runs if only in ("", run.stage)]
            _note_roots(runs)
            waiting = {run.name for run in runs} & set(stale(preset, plan))
            if not waiting:
                print(f"{preset}: all {len(runs)} runs stand; nothing to do")
                return 0
            for run in runs:
                folder(run).mkdir(parents=True, exist_ok=True)
            began = time.time()
            print(
                f"{preset}: {len(waiting)} of {len(runs)} runs to do on {cores} cores; Ctrl-C stops, the same call "
                "resumes",
                flush=True,
            )
            ended = True
            for piece in sorted({run.piece for run in runs if run.name in waiting}):
                wanted = [
                    f"{run.stage}/{run.name}/record.json" for run in runs if run.piece == piece
                ]
                words = ["--cores", str(cores), "--keep-going", "--rerun-incomplete"]
                words += (
                    ["--resources", f"gpu={gpu_runs or 1}"]
                    if gpu_runs or shutil.which("nvidia-smi")
                    else []
                )
                command = [*_snakemake(preset, plan, *words), "--", *wanted]
                todo = [run for run in runs if run.name in waiting and run.piece == piece]
                ended &= _execute(command, todo, cores, lock, began, quiet)
            return _conclude(preset, runs, len(waiting), began, ended)
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):  # the terminal may be gone
                print("\nstopped; the same call resumes")
            raise SystemExit(1) from None


def _note_roots(runs: list[grid.Run]) -> None:
    """Tell data runs that stand where their files lie now."""
    for run in runs:
        if (
            run.stage == "data"
            and run.parameters["root"]
            and (folder(run) / "record.json").is_file()
        ):
            from cxrstudy.data import sets  # imports pandas, which most calls do without

            sets.note_root(folder(run), run.parameters["root"])


def _execute(
    command: list[str], runs: list[grid.Run], cores: int, lock: int, began: float, quiet: bool
) -> bool:
    """Let Snakemake execute runs, and show them; whether it ended well. Whatever ends this ends what it started."""
    where = lock_path(runs[0].preset)
    env = _environment() | {
        locks.MARK: str(where),
        "LOKY_MAX_CPU_COUNT": str(cores),
    }  # on which a large set is drawn
    process = None
    try:
        with where.with_name("snakemake.log").open("a") as log:
            start = log.tell()
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=env, start_new_session=True, pass_fds=[lock]
            )
        _watch(process, runs, began, quiet, start)
    finally:  # also when Snakemake alone was killed, and what it had started goes on
        left = locks.stop(process, where)
        if left:
            print(
                f"could not be stopped: {', '.join(f'{name} {pid}' for pid, name in left.items())}"
            )
    return process.returncode == 0


def _conclude(preset: str, runs: list[grid.Run], waited: int, began: float, ended: bool) -> int:
    """Say what failed and what was not run for it; the exit code."""
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
    """Names of the runs that Snakemake's log says have failed."""
    return re.findall(
        r"^Error in rule run:\n(?: .*\n)*?    output: [^/\n]+/([^/\n]+)/record\.json$", text, re.M
    )


def _watch(
    process: subprocess.Popen, runs: list[grid.Run], began: float, quiet: bool, start: int
) -> None:
    """Show runs as they start, end and fail, until Snakemake ends; ``start``: where its log of this call begins."""
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
    return "waiting", "" if live else "not started"


def states(runs: list[grid.Run], live: bool, began: float = 0.0) -> dict[str, tuple[str, str]]:
    """What ``state`` says of each run by name; of one that waits for a run that failed, also for which."""
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
    """The last error an executed notebook shows, in one line; empty when it shows none."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return ""
    found = [
        o for cell in cells for o in cell.get("outputs", []) if o.get("output_type") == "error"
    ]
    return (
        re.sub(r"\s+", " ", f"{found[-1]['ename']}: {found[-1]['evalue']}")[:500] if found else ""
    )


def headline(run: grid.Run) -> str:
    """A run's seconds and its most telling numbers, in a few words; of a spoilt record, what is wrong with it."""
    try:
        return headline_of(read_record(folder(run)))
    except ValueError as error:
        return str(error)


def headline_of(record: dict[str, Any]) -> str:
    """As ``headline``, from a record."""
    words = [f"{record['info']['seconds']:.0f} s"]
    for metric in record["metrics"]:
        if metric["value"] is not None:
            said = HEADLINES.get((metric["task"], metric["label"], metric["metric"]))
            if said:
                words.append(f"{said} {metric['value']:.3f}")
            elif metric["metric"] in ("loss", "exponent"):
                words.append(
                    f"{metric['task']} {metric['label']} {metric['metric']} {metric['value']:.3f}"
                )
    if len(words) == 1:  # data without labels: reports are retrieved by their images
        found = [
            m["value"]
            for m in record["metrics"]
            if (m["label"], m["metric"]) == ("image_to_text", "recall@5")
        ]
        words += [f"reports retrieved R@5 {value:.3f}" for value in found if value is not None]
    if why := record["info"].get("hardly_trained"):
        words.append(f"WARNING hardly trained: {why}")
    if record["stage"] == "data":
        words += _holdings(record["info"])
    elif record["stage"] == "classify" and not any(
        metric["value"] is not None for metric in record["metrics"]
    ):
        why = dict.fromkeys((record["info"].get("not_evaluated") or {}).values())
        words.append(": ".join(["nothing evaluated", *(["; ".join(why)] if why else [])]))
    return ", ".join(words)


def _holdings(info: dict[str, Any]) -> list[str]:
    """What a data run holds, and what was left out of it and why."""
    from cxrstudy.data import odd  # reads pictures: `cxrstudy runs` of other stages does without

    words = [f"{info['images']} images"]
    if "left_out" not in info:  # a record from before that was counted, or images that were drawn
        return words
    gone, unread = sum(info["left_out"].values()), int(info.get("quarantined", 0))
    if info.get("kind") == "synthetic" and not gone + unread:
        return words
    words.append(_counted(info["left_out"], "left out"))
    words.append(f"{unread} could not be read")
    if sum(info.get("odd", {}).values()):
        words.append(_counted(info["odd"], "odd"))
    if odd.losses(info, info["images"]):
        words.append(f"WARNING more than {odd.MANY:.0%} left out")
    return words


def _counted(parts: dict[str, int], what: str) -> str:
    """A total with its parts, largest first."""
    each = sorted(((name, n) for name, n in parts.items() if n), key=lambda item: -item[1])
    named = ", ".join(f"{name} {n}" for name, n in each)
    return f"{sum(parts.values())} {what}" + (f" ({named})" if named else "")


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
    live: dict[str, bool] = {}
    for plan in read_plans():
        preset = plan["preset"]
        if preset not in live:
            live[preset] = busy(preset)
        runs = [
            grid.Run(item["name"], item["stage"], preset, item["parameters"], tuple(item["needs"]))
            for item in plan["runs"]
        ]
        for run, (kind, why) in zip(runs, states(runs, live[preset]).values(), strict=True):
            record = read_record(folder(run)) if kind == "done" else None
            note = headline_of(record).partition(", ")[2] if record else why
            rows.append(
                Row(
                    preset,
                    plan["variant"],
                    run,
                    kind,
                    record["info"]["seconds"] if record else 0,
                    note,
                )
            )
    return rows


def run_table(preset: str) -> list[dict[str, Any]]:
    """Every run of a preset with an executed notebook: name, stage, record or None, notebook path."""
    planned = {
        run["name"] for plan in read_plans() if plan["preset"] == preset for run in plan["runs"]
    }
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
