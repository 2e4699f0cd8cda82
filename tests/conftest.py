"""One tiny study, run through the command line, and its book: shared by many tests."""

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# before torch is imported: two threads are very slow beside any other load
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def studied(file: str) -> bool:
    """Whether tests of a file look at the study below, which takes minutes."""
    return bool(
        re.search(
            r"^def test_.*\b(walked|book)\b",
            (ROOT / file).read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )


class ByFile(LoadFileScheduling):
    """A file's tests stay in one process, and so do those of all files that look at the study."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "the study" if studied(file) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """How tests are dealt out to processes."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest goes first."""
    items.sort(key=lambda item: not studied(item.nodeid.partition("::")[0]))


@dataclass(frozen=True)
class Walk:
    """A clone of what the study needs, its runs, and how to call the command line on it."""

    root: Path
    runs: Path

    def call(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = (
            os.environ
            | {"CXRSTUDY_ROOT": str(self.root), "CXRSTUDY_RUNS": str(self.runs)}
            | environment
        )
        command = [sys.executable, "-m", "cxrstudy.cli", *words]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=env,
            cwd=self.root,
            timeout=900,
            check=False,
        )


def clone(where: Path) -> Walk:
    """Copy the repository's files, except the installed package, for a test to change.

    Recorded studies are left out, because they would make every page slower.
    """
    kept = [path.parent.name for path in (ROOT / "book" / "recorded").glob("*/runs.csv")]
    left = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__", *kept)
    for name in ("notebooks", "book", "data_cards"):
        shutil.copytree(ROOT / name, where / name, ignore=left)
    return Walk(where, where / "runs")


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """A copy of the repository, which this process uses too."""
    place = clone(tmp_path)
    monkeypatch.setenv("CXRSTUDY_ROOT", str(place.root))
    monkeypatch.setenv("CXRSTUDY_RUNS", str(place.runs))
    return place


@pytest.fixture(scope="session")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The smoke preset, run once from nothing."""
    walk = clone(tmp_path_factory.mktemp("walk"))
    done = walk.call("run", "--preset", "smoke", "--cores", "2", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    return walk


@pytest.fixture(scope="session")
def book(walked: Walk) -> Path:
    """The built book of that study: the folder of its pages."""
    done = walked.call("book")
    assert done.returncode == 0, done.stdout + done.stderr
    return walked.root / "_build" / "_build" / "html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window."""
    from pages import chromium

    with chromium() as opened:
        yield opened


# ---- pretraining (here, as a second conftest.py would hide this one from `from conftest import`)
@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data that the tests of pretraining share."""
    from cxrstudy import study
    from cxrstudy.data.sets import prepare_data

    folder = tmp_path_factory.mktemp("data") / "study-abc"
    fractions = {"pretrain": 0.7, "other": 0.3}
    prepare_data(study.Data(n_images=120, size=32, fractions=fractions, out=str(folder)))
    return folder


@pytest.fixture(scope="session")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a clip run from random weights on the other split."""
    from made_runs import go

    out = tmp_path_factory.mktemp("runs") / "clip-base-123abc"
    go(data, out, splits=["other"], n_images=20)
    return out
