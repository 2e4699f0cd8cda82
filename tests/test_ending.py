"""However `cxrstudy run` ends, no process is left, and no run is executed twice at a time."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from conftest import Walk, clone

from cxrstudy import grid, locks, run, states, study

WAIT = """
import json, os, pathlib, signal, subprocess, sys, time
place = pathlib.Path(os.environ["CXRSTUDY_RUNS"])
folder = place.joinpath(*pathlib.Path(out).parts[1:])
with (place / "begun").open("a") as file:
    file.write(f"{os.getpid()} {folder.name}\\n")
if (place / "child").exists():  # as the processes of one run on several GPUs
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
if (place / "stubborn").exists():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if seed == 1 and (place / "fail").exists():
    raise ValueError("made to fail")
while not (place / "go").exists():
    time.sleep(0.05)
record = {"schema": 1, "run": folder.name, "stage": "data", "preset": "waits"}
record |= {"subject": {}, "metrics": []}
record |= {"info": {"seconds": 1.0, "images": 5}, "environment": {}}
(folder / "record.json").write_text(json.dumps(record))
"""
PRESET = {
    "title": "Two runs that wait",
    "minutes": 1,
    "hardware": "any",
    "data": {"one": {"seed": 1, "size": 32}, "two": {"seed": 2, "size": 32}},
}


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    """A clone whose data runs only wait for the file ``runs/go``; killed at the end."""
    walk = clone(tmp_path)
    path = walk.root / "notebooks" / "data.ipynb"
    notebook = nbformat.read(path, 4)
    first = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    notebook.cells = [first, nbformat.v4.new_code_cell(WAIT)]
    nbformat.write(notebook, path)
    (walk.root / "notebooks" / "presets" / "waits.yml").write_text(yaml.safe_dump(PRESET))
    walk.runs.mkdir()
    yield walk
    for pid in at_work(walk):
        os.kill(pid, signal.SIGKILL)


def lock(walk: Walk) -> Path:
    return walk.runs.resolve() / "waits" / ".lock"


def at_work(walk: Walk) -> dict[int, str]:
    return locks.workers(lock(walk))


def started(walk: Walk, *words: str, **more: object) -> subprocess.Popen[str]:
    """`cxrstudy run` with both its runs at work."""
    before = begun(walk)
    env = os.environ | {"CXRSTUDY_ROOT": str(walk.root), "CXRSTUDY_RUNS": str(walk.runs)}
    command = [
        sys.executable,
        "-m",
        "cxrstudy.cli",
        "run",
        "--preset",
        "waits",
        "--cores",
        "2",
        *words,
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        cwd=walk.root,
        **more,
    )
    until(lambda: len(begun(walk)) >= len(before) + 2)
    return process


def begun(walk: Walk) -> list[int]:
    """Process ids of the kernels of all runs begun so far."""
    path = walk.runs / "begun"
    return (
        [int(line.split()[0]) for line in path.read_text().splitlines()] if path.is_file() else []
    )


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


slow = pytest.mark.slow
SIGNALS = [
    "SIGTERM",
    "SIGHUP",
    "SIGINT",
    pytest.param("SIGQUIT", marks=slow),
    pytest.param("SIGUSR1", marks=slow),
]


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_that_ends_it_ends_all_that_it_started_and_the_same_call_resumes(
    walk: Walk, name: str
) -> None:
    if name == "SIGINT":
        text = yaml.safe_dump(
            PRESET | {"variants": {"more": {"size": 48}}}
        )  # which must not be begun afterwards
        (walk.root / "notebooks" / "presets" / "waits.yml").write_text(text)
    process = started(walk)
    assert len(at_work(walk)) >= 5  # snakemake, and a papermill and a kernel for each run
    process.send_signal(getattr(signal, name))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the same call resumes" in said.splitlines()[-1]
    assert not at_work(walk)
    assert not any(alive(pid) for pid in begun(walk))
    assert len(begun(walk)) == 2
    if name == "SIGTERM":
        (walk.runs / "go").touch()
        assert "waits: done, 2 runs" in walk.call("run", "--preset", "waits").stdout


@slow
def test_what_does_not_end_when_asked_is_killed(walk: Walk) -> None:
    (walk.runs / "stubborn").touch()
    (walk.runs / "child").touch()
    process = started(walk)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert not at_work(walk)
    assert not any(alive(pid) for pid in begun(walk))


def test_killed_outright_its_runs_are_shown_as_running_and_not_executed_again(walk: Walk) -> None:
    process = started(walk)
    process.kill()
    process.wait()
    assert at_work(walk)  # Snakemake goes on
    listed = walk.call("runs").stdout
    assert "2 running" in listed and "failed" not in listed
    again = walk.call("run", "--preset", "waits")
    assert again.returncode == 2
    assert "being run already" in again.stderr
    told = re.search(r"stop them with: kill ([\d ]+)", again.stderr)
    assert told
    assert {int(pid) for pid in told[1].split()} == set(at_work(walk))
    assert "snakemake" in again.stderr and "papermill" in again.stderr
    assert len(begun(walk)) == 2
    subprocess.run(["kill", *told[1].split()], check=True)
    until(lambda: not at_work(walk))
    (walk.runs / "go").touch()
    assert "waits: done, 2 runs" in walk.call("run", "--preset", "waits").stdout
    assert "2 done" in walk.call("runs").stdout


@slow
def test_killed_outright_it_may_also_be_left_to_end(walk: Walk) -> None:
    process = started(walk)
    process.kill()
    process.wait()
    (walk.runs / "go").touch()
    until(lambda: not at_work(walk))
    done = walk.call("run", "--preset", "waits")
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert len(begun(walk)) == 2


def test_while_it_works_a_second_call_is_told_which_process_to_stop(walk: Walk) -> None:
    process = started(walk)
    again = walk.call("run", "--preset", "waits")
    assert again.returncode == 2
    assert f"kill {process.pid}" in again.stderr
    assert len(begun(walk)) == 2
    (walk.runs / "go").touch()
    assert process.wait(timeout=60) == 0


def test_with_snakemake_killed_what_it_had_started_is_ended_too(walk: Walk) -> None:
    (walk.runs / "child").touch()
    process = started(walk)
    kill_all([pid for pid, name in at_work(walk).items() if name == "snakemake"])
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert not at_work(walk)


def test_with_both_killed_what_still_works_holds_the_lock(walk: Walk) -> None:
    (walk.runs / "child").touch()
    process = started(walk)
    kill_all(
        [
            process.pid,
            *(pid for pid, name in at_work(walk).items() if name in ("snakemake", "papermill")),
        ]
    )
    process.wait()
    until(
        lambda: not any(alive(pid) for pid in begun(walk))
    )  # kernels end with papermill, their children do not
    left = at_work(walk)
    assert left
    again = walk.call("run", "--preset", "waits")
    assert again.returncode == 2
    assert all(str(pid) in again.stderr for pid in left)
    kill_all(list(left))
    (walk.runs / "go").touch()
    assert "waits: done, 2 runs" in walk.call("run", "--preset", "waits").stdout


def test_under_nohup_it_outlives_its_terminal(walk: Walk) -> None:
    process = started(walk, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    (walk.runs / "go").touch()
    assert process.wait(timeout=60) == 0


@slow
def test_when_nobody_reads_what_it_says_it_ends_and_so_does_all_that_it_started(walk: Walk) -> None:
    (walk.runs / "fail").touch()
    process = started(walk)
    assert process.stdout
    process.stdout.close()  # as `| head` does; the failure is then said to nobody
    assert process.wait(timeout=60) != 0
    assert not at_work(walk)


def test_a_failure_is_told_when_it_happens_and_again_in_the_end(walk: Walk) -> None:
    (walk.runs / "fail").touch()
    process = started(walk, "--quiet")
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if "failed:" in line:
            break
    assert re.search(r"failed: data one-\w+: ValueError: made to fail", said[-1])
    assert process.poll() is None  # the other one is at work
    (walk.runs / "go").touch()
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"failed: data one-\w+: ValueError: made to fail", rest)
    assert "waits: 1 of 2 runs have no result" in rest


def test_a_run_that_waits_for_a_failed_one_is_told_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path))
    names = {"a": (), "b": ("a",), "c": ("b",), "d": ()}
    runs = [grid.Run(name, "data", "p", {}, needs) for name, needs in names.items()]
    for name in ("a", "d"):
        (tmp_path / "p" / "data" / name).mkdir(parents=True)
    (tmp_path / "p" / "data" / "a" / "papermill.log").write_text("Killed\n")
    (tmp_path / "p" / "data" / "d" / "record.json").write_text("{}")
    found = states.states(runs, False)
    assert found["a"][0] == "failed" and "Killed" in found["a"][1]
    assert found["b"] == found["c"] == ("waiting", "needs a, which failed")
    assert found["d"] == ("done", "")


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"images": 900, "quarantined": 0}, "900 images"),  # a record from before
        ({"images": 900, "left_out": {}, "quarantined": 0, "kind": "synthetic"}, "900 images"),
        (
            {
                "images": 54,
                "left_out": {"no image file": 184},
                "quarantined": 0,
                "odd": {"constant": 3, "colour": 0},
            },
            "54 images, 184 left out (no image file 184), 0 could not be read, 3 odd (constant 3), "
            "WARNING more than 5% left out",
        ),
        (
            {
                "images": 96,
                "left_out": {"no patient id": 1, "no image file": 2},
                "quarantined": 1,
                "kind": "real",
            },
            "96 images, 3 left out (no image file 2, no patient id 1), 1 could not be read",
        ),
        (
            {"images": 95, "left_out": {}, "quarantined": 5, "set_aside": {"no image": 5}},
            "95 images, 0 left out, 5 could not be read",
        ),
        (
            {"images": 94, "left_out": {}, "quarantined": 6, "set_aside": {"no image": 6}},
            "94 images, 0 left out, 6 could not be read, WARNING more than 5% left out",
        ),
    ],
)
def test_a_data_run_says_what_was_left_out_and_why(info: dict, said: str) -> None:
    record = {"stage": "data", "metrics": [], "info": info | {"seconds": 2.0}}
    assert run.headline_of(json.loads(json.dumps(record))) == f"2 s, {said}"


def test_the_lock_is_below_the_runs_wherever_these_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "link"))
    assert (
        run.lock_path("waits")
        == (tmp_path / "disk" / "waits" / ".lock").resolve()
        == study.runs_root() / "waits/.lock"
    )
    assert not run.busy("waits")
    with locks.held(run.lock_path("waits"), "waits"):
        assert run.busy("waits")
        with (
            pytest.raises(study.StudyError, match="being run already"),
            locks.held(run.lock_path("waits"), "waits", 0),
        ):
            pass
    assert not run.busy("waits")
