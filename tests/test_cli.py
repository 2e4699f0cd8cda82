import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Walk, clone

from cxrstudy import grid


@pytest.fixture
def walk(tmp_path: Path) -> Walk:
    return clone(tmp_path)


@pytest.mark.parametrize("words", [[], ["run"], ["book"], ["runs"], ["new"], ["doctor"]])
def test_help_everywhere(walk: Walk, words: list[str]) -> None:
    done = walk.call(*words, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--preset", "nosuch"], "mini"),
        (["run", "--preset", "smoke", "-n", "--set", "n_imagess=3"], "n_imagess"),
        (["run", "--preset", "smoke", "-n", "--set", "n_images"], "NAME=VALUE"),
        (["run", "--preset", "smoke", "-n", "--set", "n_images=many"], "n_images"),
        (["run", "--preset", "smoke", "-n", "--set", "n_images=100000"], "samples_seen"),
        (["run", "--preset", "smoke", "-n", "--set", "lr=-1"], "lr"),
        (["run", "--preset", "nih", "-n"], "DATA_ROOT"),
        (["run", "--cores", "none"], "none"),
        (["nosuch"], "nosuch"),
    ],
)
def test_a_wrong_call_ends_with_2_and_names_what_is_wrong(
    walk: Walk, words: list[str], said: str
) -> None:
    done = walk.call(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unequal_budget_in_a_preset_file_is_refused(walk: Walk) -> None:
    path = walk.root / "notebooks" / "presets" / "smoke.yml"
    text = path.read_text()
    path.write_text(
        text.replace("    samples_seen: 512\n", "    samples_seen:\n      - 512\n      - 1024\n", 1)
    )
    done = walk.call("run", "--preset", "smoke", "-n")
    assert done.returncode == 2
    assert "constant compute" in done.stderr


def test_dry_run_before_anything_shows_every_run_and_what_it_needs(walk: Walk) -> None:
    done = walk.call("run", "--preset", "mini", "-n")
    assert done.returncode == 0
    count = len(grid.plan("mini"))
    assert f"{count} of {count} runs to do" in done.stdout
    assert "GB of disk" in done.stdout
    assert not walk.runs.exists()


def test_the_data_runs_alone_can_be_asked_for(walk: Walk) -> None:
    done = walk.call("run", "--preset", "mini", "-n", "--only", "data")
    assert done.returncode == 0
    assert "1 of 1 runs to do" in done.stdout
    assert walk.call("run", "--preset", "mini", "-n", "--only", "nosuch").returncode == 2


def test_plans_and_records_that_cannot_be_read_are_named(walk: Walk) -> None:
    torn = walk.runs / "smoke" / "plan.json"
    torn.parent.mkdir(parents=True)
    for text in (
        "",
        '{"preset": "smoke", "runs": [{"na',
        "[]",
        '{"preset": "smoke", "variant": "", "runs": [1]}',
    ):
        torn.write_text(text)
        done = walk.call("runs")
        assert done.returncode == 0
        assert f"{torn} cannot be read: delete it" in done.stdout
    run = {"name": "data-000000", "stage": "data", "parameters": {}, "needs": []}
    torn.write_text(json.dumps({"preset": "smoke", "variant": "", "runs": [run]}))
    record = walk.runs / "smoke" / "data" / "data-000000" / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"schema": 1, "run": "da')
    done = walk.call("runs")
    assert done.returncode == 2
    assert str(record) in done.stderr
    assert "delete the run's folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_runs_before_anything(walk: Walk) -> None:
    assert "no runs yet" in walk.call("runs").stdout


def test_doctor_says_what_each_preset_misses(walk: Walk) -> None:
    done = walk.call("doctor")
    assert done.returncode == 0
    assert "torch" in done.stdout
    assert "preset mini: ready" in done.stdout
    assert "preset nih: missing" in done.stdout
    of_site = done.stdout.split("preset site: missing\n")[1].split("\npreset ")[0]
    assert "\n" not in of_site and "more: cxrstudy run --preset site -n)" in of_site
    assert max(map(len, done.stdout.splitlines())) < 240
    there = walk.call("doctor", "--data-root", str(walk.root))
    assert "no table Data_Entry_2017*.csv" in there.stdout
    assert there.returncode == 0


def test_doctor_says_of_an_own_preset_what_preflight_says(walk: Walk) -> None:
    path = walk.root / "notebooks" / "presets" / "yours.yml"
    text = (walk.root / "notebooks" / "presets" / "smoke.yml").read_text()
    path.write_text(text.replace("n_images: 900", "n_images: 90"))
    done = walk.call("doctor")
    assert done.returncode == 0
    assert "preset yours: missing\n    notebooks/presets/yours.yml:" in done.stdout
    assert "n_images 256" in done.stdout


def test_doctor_fails_when_mini_cannot_run(walk: Walk) -> None:
    (walk.root / "notebooks" / "presets" / "mini.yml").write_text("title: [broken")
    done = walk.call("doctor")
    assert done.returncode == 1
    assert "preset mini: missing" in done.stdout


def test_the_command_line_answers_without_importing_torch() -> None:
    code = "import sys; from cxrstudy import grid, run; grid.plan('mini'); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
