"""A recorded run is repeated alone by the commands that `cxrstudy runs --how` prints, as typed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, Walk, clone

from cxrstudy import alone, study
from cxrstudy.results import read_record

STUDY = ROOT / "book" / "recorded" / "study-cpu" / "runs.csv"
SMALL = {"data": {"n_images": 500, "size": 32}, "classify": {"also": [], "resamples": 50}}
pytestmark = pytest.mark.skipif(not STUDY.is_file(), reason="study-cpu is not recorded here")


@pytest.fixture
def small(tmp_path: Path) -> tuple[Walk, pd.DataFrame]:
    """A clone whose only recorded study is a data run and a baseline of study-cpu, smaller."""
    walk = clone(tmp_path)
    runs = pd.read_csv(STUDY, keep_default_na=False)
    baseline = runs[(runs["stage"] == "classify") & runs["run"].str.startswith("pixels-")]
    data = json.loads(baseline["parameters"].iloc[0])["data"].rsplit("/", 1)[1]
    runs = pd.concat([baseline, runs[runs["run"] == data]])
    runs["parameters"] = [
        json.dumps(json.loads(row.parameters) | SMALL[row.stage]) for row in runs.itertuples()
    ]
    folder = walk.root / "book" / "recorded" / "study-cpu"
    folder.mkdir(parents=True)
    runs.to_csv(folder / "runs.csv", index=False)
    return walk, runs


def test_the_commands_work_as_typed(small: tuple[Walk, pd.DataFrame]) -> None:
    walk, runs = small
    name = runs["run"].iloc[0]
    shown = walk.call("runs", "--how", name)
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) == 4
    env = os.environ | {"CXRSTUDY_ROOT": str(walk.root), "CXRSTUDY_RUNS": str(walk.runs)}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(
        ["bash", "-e"], input=shown.stdout, cwd=walk.root, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = read_record(walk.runs / "study-cpu" / "classify" / name)
    assert record["run"] == name
    assert record["parameters"] == json.loads(runs["parameters"].iloc[0])
    assert any(metric["metric"] == "auroc" and metric["value"] for metric in record["metrics"])


def test_runs_that_a_run_needs_come_before_it_and_files_before_notebooks() -> None:
    runs = pd.read_csv(STUDY, keep_default_na=False)
    trained = runs[(runs["stage"] == "segment") & runs["run"].str.startswith("clip-n200-s0-")]
    lines = alone.commands(trained["run"].iloc[0], "study-cpu")
    assert [re.search(r"notebooks/(\w+)", line)[1] for line in lines[1::2]] == [  # type: ignore
        *("data", "pretrain", "segment")
    ]
    for write, run in zip(lines[::2], lines[1::2], strict=True):
        assert write.split(" > ")[1] == run.split(" -f ")[1]


def test_files_of_real_data_are_in_the_folder_that_the_reader_names() -> None:
    runs = pd.read_csv(ROOT / "book" / "recorded" / "nih" / "runs.csv")
    lines = alone.commands(runs.loc[runs["stage"] == "data", "run"].iloc[0], "nih")
    assert lines[-1].endswith(' -p root "$DATA_ROOT"')


def test_an_unknown_run_is_refused_by_name() -> None:
    with pytest.raises(study.StudyError, match="no run 'nobody-000000' of preset mini"):
        alone.commands("nobody-000000", "mini")
