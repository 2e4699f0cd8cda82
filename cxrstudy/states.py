"""State of runs: of each, from what it left; of all, shown while Snakemake executes them."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from cxrstudy import grid, study
from cxrstudy.headline import headline_of
from cxrstudy.results import read_record

ENDED = "ended.txt"  # in a run's folder: how a cluster ended its job
FAILED = "failed.ipynb"  # in a run's folder: the notebook of a failed attempt, for the next one
ASK = 30.0  # seconds between two looks at a queue


def folder(run: grid.Run) -> Path:
    """Return the folder of a run's record, executed notebook and artefacts."""
    return study.resolve(run.folder)


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
        if ended := _ended(where, log.stat().st_mtime):
            return "failed", ended
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        return "failed", f"stopped before its end: {''.join(last)[:200]} (see {log})"
    if not live and (ended := _ended(where, began)):
        return "failed", ended
    return "waiting", "" if live else "not started"


def _ended(where: Path, since: float) -> str:
    """Return how a cluster ended a run's job at ``since`` or later; empty if it did not."""
    note = where / ENDED
    return note.read_text() if note.is_file() and note.stat().st_mtime >= since else ""


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


class Ended(NamedTuple):
    """How Snakemake's log says that a run's job has ended."""

    why: str
    again: bool  # the job is started again


def read_log(text: str) -> dict[str, Ended]:
    """Return the runs that have failed according to Snakemake's log, by name."""
    found = {}
    blocks = r"^Error in rule run:\n(.*?)(?=^(?:\[|Trying to restart|Select jobs)|\Z)"
    for block in re.finditer(blocks, text, re.M | re.S):
        run = re.search(r"^    output: [^/\n]+/([^/\n]+)/record\.json$", block[1], re.M)
        said = re.search(r"^    message: (.*?)\n    \w+: ", block[1], re.M | re.S)
        job = re.search(r"^    jobid: (\d+)$", block[1], re.M)
        log = re.search(r"^    log: .*, (\S+) \(check", block[1], re.M)
        if run:
            whole = said[1] if said and said[1] != "None" else ""
            short = re.split(r" ?Detailed failure|For further|\n +sbatch call", whole)[0]
            why = " ".join(short.split())
            why += f" (log: {log[1]})" if why and log else ""
            again = bool(job and f"restart job {job[1]}." in text[block.end() :])
            found[run[1]] = Ended(why, again)
    return found


def watch(
    process: subprocess.Popen,
    runs: list[grid.Run],
    log: Path,
    start: int,
    began: float,
    *,
    quiet: bool,
    queue: Callable[[], tuple[str, str]] | None = None,
) -> None:
    """Show runs as they start, end and fail, until Snakemake ends.

    Args:
        log: Snakemake's log; this call begins at the offset ``start``.
        began: when it did, in seconds since 1970 by the clock of the disk.
        queue: returns how many jobs wait in a cluster's queue, and why some may wait for ever.
    """
    reported: set[str] = set()
    told: set[str] = set()
    before: dict[str, Ended] = {}
    asked, waiting = 0.0, ""
    with tqdm(
        total=len(runs), desc="runs", unit="run", disable=quiet, ncols=100, file=sys.stdout
    ) as bar:
        while True:
            ended = process.poll() is not None
            with log.open("rb") as file:
                file.seek(start)
                failed = read_log(file.read().decode(errors="replace"))
            # what Snakemake starts again, it says in the next line, which may come a moment later
            settled = {
                name: end for name, end in failed.items() if ended or before.get(name) == end
            }
            before = failed
            lines = _ends(runs, settled, reported, began)
            for run in [run for run in runs if run.name not in reported]:
                record = folder(run) / "record.json"
                if record.is_file() and record.stat().st_mtime >= began:
                    reported.add(run.name)
                    bar.update(1)
                    if not sys.stdout.isatty() and not quiet:
                        lines.append(f"done: {run.stage} {run.name} ({headline(run)})")
            if queue and time.monotonic() - asked > ASK:
                asked = time.monotonic()
                waiting, stuck = queue()
                lines += [f"jobs wait: {stuck}"] if stuck else []
            for line in dict.fromkeys(lines):
                if line not in told:
                    told.add(line)
                    bar.write(f"  {line}")
            sys.stdout.flush()
            notes = [*filter(None, [waiting]), *_at_work(runs, reported, began)]
            bar.set_postfix_str("; ".join(notes[:2]), refresh=False)
            if sys.stdout.isatty():
                bar.refresh()
            if ended:
                return
            time.sleep(0.3)


def _ends(
    runs: list[grid.Run], ended: dict[str, Ended], reported: set[str], began: float
) -> list[str]:
    """Return lines on runs that have failed or are started again; note the former as reported."""
    lines = []
    for run in [run for run in runs if run.name in ended and run.name not in reported]:
        why, again = ended[run.name]
        if again and not notebook_error(folder(run) / FAILED):
            lines.append(f"again: {run.stage} {run.name}: {why}")
            continue
        if why:
            (folder(run) / ENDED).write_text(why)
        reported.add(run.name)
        lines.append(f"failed: {run.stage} {run.name}: {state(run, False, began)[1]}")
    return lines


def _at_work(runs: list[grid.Run], reported: set[str], began: float) -> list[str]:
    """Return how far runs are that are at work."""
    notes = [(run, folder(run) / "progress") for run in runs if run.name not in reported]
    return [
        f"{grid.slug(run.name)} {note.read_text()}"
        for run, note in notes
        if note.is_file() and note.stat().st_mtime >= began
    ]
