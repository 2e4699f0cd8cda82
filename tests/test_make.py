"""`make study`: one process runs the preset and builds the book, and what ends make ends it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from conftest import ROOT

from cxrstudy import book, cli, run, study

CXRSTUDY = f"""#!{sys.executable}
import os, pathlib, sys, time
place = pathlib.Path(__file__).parent
around = f"\\n{{os.environ.get('DATA_ROOT')}}\\n{{os.getpid()}}"
(place / "told").write_text(" ".join(sys.argv[1:]) + around)
while not (place / "go").exists():
    time.sleep(0.02)
sys.exit(int((place / "go").read_text()))
"""


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A clone whose `cxrstudy` only notes how it was called and waits for the file ``go``."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    places = tmp_path / ".venv" / "bin"
    places.mkdir(parents=True)
    (places / "cxrstudy").write_text(CXRSTUDY)
    (places / "cxrstudy").chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    return places


def make(place: Path, *words: str) -> subprocess.Popen[str]:
    """`make study` with `cxrstudy` at work."""
    command = ["make", "study", *words]
    process = subprocess.Popen(command, cwd=place.parents[1], text=True, stderr=subprocess.PIPE)
    until(
        lambda: (place / "told").is_file() and len((place / "told").read_text().splitlines()) == 3
    )
    return process


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_a_signal_to_make_reaches_what_it_runs(made: Path) -> None:
    process = make(made)
    pid = int((made / "told").read_text().splitlines()[2])
    assert (
        psutil.Process(pid).ppid() == process.pid
    )  # no shell between them, which would not pass it on
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode != 0
    until(lambda: gone(pid))


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        ([], ["run --preset mini --book", ""], 0),
        (
            ["PRESET=nih", "DATA_ROOT=/with a/blank"],
            ["run --preset nih --book", "/with a/blank"],
            0,
        ),
        (["PRESET=nosuch"], ["run --preset nosuch --book", ""], 2),
    ],
)
def test_its_variables_are_handed_on_and_its_end_is_that_of_the_run(
    made: Path, words: list[str], told: list[str], code: int
) -> None:
    (made / "go").write_text(str(code))
    process = make(made, *words)
    _, said = process.communicate(timeout=20)
    assert (made / "told").read_text().splitlines()[:2] == told
    assert (process.returncode == 0) == (code == 0)
    assert code == 0 or f"Error {code}" in said


@pytest.mark.parametrize(
    ("ran", "built", "code"),
    [(0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1), (0, "fault", 1), (0, "stopped", 1)],
)
def test_the_book_is_built_after_the_run_also_where_some_runs_failed(
    monkeypatch: pytest.MonkeyPatch, ran: int, built: object, code: int
) -> None:
    order: list[str] = []

    def build() -> int:
        order.append("book")
        if built == "stopped":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        if built == "fault":
            raise study.StudyError("no page")
        return int(str(built))

    monkeypatch.setattr(run, "run_preset", lambda *_, **__: order.append("run") or ran)
    monkeypatch.setattr(book, "build", build)
    done = CliRunner().invoke(cli.main, ["run", "--preset", "smoke", "--book"])
    assert done.exit_code == code, done.output
    assert order == ["run", "book"]
    order.clear()
    assert CliRunner().invoke(cli.main, ["run", "--preset", "smoke"]).exit_code == ran
    assert order == ["run"]


@pytest.mark.parametrize("words", [["--preset", "nosuch"], ["--preset", "smoke", "--set", "lr=-1"]])
def test_a_wrong_call_and_a_stopped_run_build_no_book(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr(book, "build", lambda: pytest.fail("a book"))
    assert CliRunner().invoke(cli.main, ["run", *words, "--book"]).exit_code == 2

    def stopped(*_: object, **__: object) -> int:
        raise SystemExit(1)  # as run_preset does when it is told to end

    monkeypatch.setattr(run, "run_preset", stopped)
    assert CliRunner().invoke(cli.main, ["run", "--preset", "smoke", "--book"]).exit_code == 1
