"""Kill processes of a small study at random moments, call it again, and compare the results.

    python tests/faults/kills.py --times 20 --seed 0

A study is `cxrstudy run --preset smoke`, cut to one run of data and one of pretraining, in a folder
of its own. At a
random moment of an undisturbed run's time, one process is sent one signal: `cxrstudy run` itself,
Snakemake, a papermill or a kernel; SIGKILL, SIGHUP or SIGTERM. What must hold each time:

- nothing that it started is at work once the call has ended (with `cxrstudy run` killed outright,
  the rest goes on under the lock; the same call is refused until that has ended);
- the same call, once more, ends with exit code 0;
- metrics of every record, scores and weights are those of the undisturbed study, bit by bit;
- no run was ever executed twice at a time.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from conftest import Walk, clone

from cxrstudy import locks

VICTIMS = ("run", "snakemake", "papermill", "kernel")
SIGNALS = ("SIGKILL", "SIGHUP", "SIGTERM")
MODULES = {"ipykernel": "kernel", "cxrstudy.cli": "run"}  # a module's name -> ours
CALL = ("run", "--preset", "smoke", "--cores", "1", "--quiet")


def small(where: Path) -> Walk:
    """Return a clone whose preset smoke has one run of data and one of pretraining."""
    walk = clone(where)
    path = walk.root / "notebooks" / "presets" / "smoke.yml"
    preset = yaml.safe_load(path.read_text("utf-8"))
    one = {"card": "synthetic", "n_images": 120, "size": 32, "fractions": {"pretrain": 1.0}}
    base = {"data": "study", "paradigm": "clip", "encoder": "cnn_mini", "n_images": 100}
    base |= {"samples_seen": 1280, "batch_size": 32, "seed": 0, "checkpoint_steps": 4}
    preset |= {"data": {"study": one}, "base": {"first": base}, "curves": [], "baselines": []}
    path.write_text(yaml.safe_dump(preset | {"segment": None, "report": None}))
    walk.runs.mkdir()
    return walk


def start(walk: Walk) -> subprocess.Popen[bytes]:
    """Return `cxrstudy run`, begun."""
    own = {"CXRSTUDY_ROOT": str(walk.root), "CXRSTUDY_RUNS": str(walk.runs)}
    command = [sys.executable, "-m", "cxrstudy.cli", *CALL]
    with (walk.root / "said").open("ab") as said:
        return subprocess.Popen(
            command, stdout=said, stderr=said, env=os.environ | own, cwd=walk.root
        )


def lock(walk: Walk) -> Path:
    """Return the lock of the study."""
    return walk.runs.resolve() / "smoke" / ".lock"


def at_work(walk: Walk) -> dict[str, list[int]]:
    """Return who works on the study: kind -> process ids."""
    found: dict[str, list[int]] = {}
    for pid, name in locks.workers(lock(walk)).items():
        kind = next((ours for theirs, ours in MODULES.items() if name.startswith(theirs)), name)
        found.setdefault(kind, []).append(pid)
    return found


def results(walk: Walk) -> dict[str, str]:
    """Return what a study has measured: a digest by file, or the metrics of a record."""
    found = {}
    for path in sorted(walk.runs.rglob("*")):
        name = str(path.relative_to(walk.runs))
        if path.name == "record.json":
            record = json.loads(path.read_text("utf-8"))
            found[name] = json.dumps([record["metrics"], record["subject"]], sort_keys=True)
        elif path.suffix in (".parquet", ".safetensors", ".npy") and path.is_file():
            found[name] = hashlib.blake2b(path.read_bytes()).hexdigest()
    return found


def left_over(walk: Walk) -> list[str]:
    """Return scratch files and checkpoints that a finished study still holds."""
    odd = ("checkpoint", ".images", ".checkpoint", ".record", ".preview")
    return [str(p) for p in walk.runs.rglob("*") if p.name.startswith(odd)]


def _wait(condition: Any, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(condition())


def twice(walk: Walk) -> bool:
    """Return whether two papermills write one notebook now."""
    written = []
    for pid in at_work(walk).get("papermill", []):
        with contextlib.suppress(psutil.Error):
            written.append(psutil.Process(pid).cmdline()[4])
    return len(written) > len(set(written))


def kill_once(walk: Walk, victim: str, sent: str, moment: float) -> list[str]:
    """Start the study, kill one process after ``moment`` s, call again; return what was wrong."""
    wrong: list[str] = []
    process = start(walk)
    time.sleep(moment)
    pids = [process.pid] if victim == "run" else []
    if not pids:  # between two notebooks there is no papermill: take the next one
        _wait(lambda: at_work(walk).get(victim) or process.poll() is not None, 20)
        pids = at_work(walk).get(victim, [])
    with contextlib.suppress(ProcessLookupError):
        for pid in pids[:1]:
            os.kill(pid, getattr(signal, sent))
    outright = victim == "run" and sent == "SIGKILL"
    try:
        process.wait(120)
    except subprocess.TimeoutExpired:
        wrong.append("does not end")
        process.kill()
    if left := at_work(walk):
        if not outright:
            wrong.append(f"left at work: {left}")
        second = start(walk)  # refused, or it waits until the lock is free
        if _wait(lambda: twice(walk) or second.poll() is not None, 30) and twice(walk):
            wrong.append("one run twice at a time")
        if second.wait(120) not in (0, 2):
            wrong.append(f"second call: exit code {second.returncode}")
        if not _wait(lambda: not at_work(walk), 120):
            wrong.append("orphans never end")
            for pid in locks.workers(lock(walk)):
                os.kill(pid, signal.SIGKILL)
    if start(walk).wait(300) != 0:
        wrong.append("the same call does not resume: " + (walk.root / "said").read_text()[-600:])
    if at_work(walk):
        wrong.append("something is at work after the end")
    return wrong


def kills(times: int, seed: int, pairs: list[tuple[str, str]]) -> dict[str, Counter[str]]:
    """Kill so many times for each pair of process and signal; return outcomes by pair."""
    rng, found = random.Random(seed), {}
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        whole = small(folder / "whole")
        began = time.monotonic()
        assert start(whole).wait(300) == 0, (whole.root / "said").read_text()
        took, expected = time.monotonic() - began, results(whole)
        assert any(name.endswith(".safetensors") for name in expected)
        print(f"undisturbed: {took:.0f} s, {len(expected)} files compared", flush=True)
        for victim, sent in pairs:
            count = found[f"{victim} {sent}"] = Counter[str]()
            for k in range(times):
                moment, walk = rng.uniform(0.2, 0.95) * took, small(folder / "killed")
                wrong = kill_once(walk, victim, sent, moment)
                differ = {n for n, v in (results(walk).items() ^ expected.items())}
                wrong += [f"differs: {sorted(differ)[:4]}"] * bool(differ)
                wrong += [f"left over: {left_over(walk)[:3]}"] * bool(left_over(walk))
                count["; ".join(wrong) or "as undisturbed"] += 1
                if wrong:
                    print(f"  {victim} {sent} {k} at {moment:.1f} s: {wrong}", flush=True)
                shutil.rmtree(walk.root)
            print(f"{victim} {sent}: {dict(count)}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main() -> None:
    """Print the outcomes of all pairs; exit with 1 if any was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="as run, or run:SIGKILL")
    asked = parser.parse_args()
    pairs = [(v, s) for v in VICTIMS for s in SIGNALS if f"{v}:{s}".startswith(asked.only)]
    found = kills(asked.times, asked.seed, pairs)
    print(f"{sum(map(Counter.total, found.values()))} kills")
    sys.exit(any(set(count) != {"as undisturbed"} for count in found.values()))


if __name__ == "__main__":
    main()
