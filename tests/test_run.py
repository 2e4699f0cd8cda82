import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import Walk, clone

from cxrstudy import run as runner
from cxrstudy import study
from cxrstudy.results import load_records
from cxrstudy.shown import TASKS


def stamps(walk: Walk) -> dict[str, int]:
    files = [*walk.runs.rglob("record.json"), *walk.runs.rglob("notebook.ipynb")]
    return {str(path): path.stat().st_mtime_ns for path in files}


def change_preset(walk: Walk, **values: object) -> None:
    path = walk.root / "notebooks" / "presets" / "smoke.yml"
    preset = yaml.safe_load(path.read_text())
    preset["curves"][0].update(values)
    path.write_text(yaml.safe_dump(preset))


def to_do(output: str) -> set[str]:
    return set(re.findall(r"would run +\w+ +(\S+)", output))


@pytest.fixture
def copied(walked: Walk, tmp_path: Path) -> Walk:
    shutil.copytree(
        walked.root, tmp_path / "copy", ignore=shutil.ignore_patterns("_build")
    )  # keeps time stamps
    return Walk(tmp_path / "copy", tmp_path / "copy" / "runs")


def test_every_planned_run_leaves_an_executed_notebook_and_a_record(walked: Walk) -> None:
    plan = json.loads((walked.runs / "smoke" / "plan.json").read_text())["runs"]
    assert {run["stage"] for run in plan} == set(study.STAGES) - {"plan"}  # run by hand
    for run in plan:
        folder = walked.runs / "smoke" / run["stage"] / run["name"]
        record = json.loads((folder / "record.json").read_text())
        assert record["parameters"] == run["parameters"]
        assert record["preset"] == "smoke"
        assert {"commit", "versions", "hardware"} <= set(record["environment"])
        assert record["info"]["seconds"] > 0
        assert record["info"]["peak_memory_bytes"] > 1e8
        cells = json.loads((folder / "notebook.ipynb").read_text())["cells"]
        assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")


def test_the_ladder_is_at_constant_compute_and_judged_on_the_same_patients(walked: Walk) -> None:
    table = load_records(walked.runs)
    ladder = table[(table["stage"] == "pretrain") & (table["base"] != "")]
    assert ladder["samples_seen"].nunique() == 1
    assert ladder["n_images"].nunique() == 3
    judged = table[table["stage"] == "classify"]
    assert judged["patients"].nunique() == 1
    macro = judged[(judged["label"] == "macro") & (judged["metric"] == "auroc")]
    macro = macro[macro["task"].isin(TASKS)]
    assert set(macro["task"]) == {"findings", "lines_tubes"}
    assert (macro["low"] <= macro["value"]).all()
    assert (macro["value"] <= macro["high"]).all()
    assert macro["value"].between(0.3, 1).all()


def test_no_labelled_patient_was_in_any_pretraining_subset(walked: Walk) -> None:
    labelled = set()
    for path in walked.runs.glob("smoke/classify/*/scores.parquet"):
        labelled |= set(pd.read_parquet(path)["patient_id"])
    seen = set()
    for path in walked.runs.glob("smoke/pretrain/*/encoder/patients.txt"):
        seen |= set(path.read_text().split("\n"))
    assert labelled
    assert seen
    assert not labelled & seen


def test_a_second_run_executes_nothing_and_rewrites_nothing(walked: Walk) -> None:
    before = stamps(walked)
    done = walked.call("run", "--preset", "smoke", "--cores", "2")
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert stamps(walked) == before


def test_changing_a_grid_value_reruns_exactly_what_it_touches(copied: Walk) -> None:
    assert to_do(copied.call("run", "--preset", "smoke", "-n").stdout) == set()
    change_preset(copied, n_images=[64, 128, 200])
    names = {
        re.sub(r"-[0-9a-f]{6}$", "", name)
        for name in to_do(copied.call("run", "--preset", "smoke", "-n").stdout)
    }
    assert names == {"clip-n200-s0", "analyse"}


def test_set_runs_beside_the_first_results_and_a_dry_run_leaves_nothing(copied: Walk) -> None:
    before = stamps(copied)
    plans = sorted(copied.runs.glob("smoke/plan*"))
    shown = copied.call(
        "run", "--preset", "smoke", "-n", "--set", "n_images=96", "--set", "samples_seen=128"
    )
    assert shown.returncode == 0
    names = {re.sub(r"-[0-9a-f]{6}$", "", name) for name in to_do(shown.stdout)}
    assert names == {"clip-n96-s0", "unicl-n96-s0", "analyse"}
    assert sorted(copied.runs.glob("smoke/plan*")) == plans
    done = copied.call(
        "run", "--preset", "smoke", "--set", "n_images=96", "--set", "samples_seen=128", "--quiet"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    after = stamps(copied)
    assert all(after[path] == stamp for path, stamp in before.items())
    assert len(after) > len(before)


def test_a_failing_run_leaves_the_others_and_the_next_call_runs_what_is_missing(
    tmp_path: Path,
) -> None:
    walk = clone(tmp_path)
    template = walk.root / "notebooks" / "pretrain.ipynb"
    notebook = json.loads(template.read_text())
    flag = tmp_path / "fail"
    flag.touch()
    cell = next(c for c in notebook["cells"] if "result = pretrain" in "".join(c["source"]))
    fails = f"p.paradigm == 'unicl' and os.path.exists({str(flag)!r})"
    trap = f"import os\nassert not ({fails}), 'made to fail'\n"
    cell["source"] = [trap, *cell["source"]]
    template.write_text(json.dumps(notebook))
    preset = walk.root / "notebooks" / "presets" / "smoke.yml"
    small = yaml.safe_load(preset.read_text()) | {"baselines": []}
    small["data"]["study"]["n_images"] = 400
    small["curves"] = [
        small["curves"][0] | {"paradigm": ["clip", "unicl"], "n_images": 64, "samples_seen": 128}
    ]
    preset.write_text(yaml.safe_dump(small))
    done = walk.call("run", "--preset", "smoke", "--quiet")
    assert done.returncode == 1
    assert "AssertionError: made to fail" in done.stdout
    assert re.search(
        r"not run: classify unicl-n64-s0-\w+: needs unicl-n64-s0-\w+, which failed", done.stdout
    )
    table = load_records(walk.runs)
    assert set(table.loc[(table["stage"] == "classify") & (table["base"] != ""), "paradigm"]) == {
        "clip"
    }
    executed = next(walk.runs.glob("smoke/pretrain/unicl-*/notebook.ipynb"))
    assert "made to fail" in executed.read_text()
    listed = walk.call("runs").stdout
    assert "1 failed" in listed
    flag.unlink()
    before = stamps(walk)
    assert walk.call("run", "--preset", "smoke", "--quiet").returncode == 0
    after = stamps(walk)
    untouched = [path for path in before if "unicl" not in path and "/analyse/" not in path]
    assert untouched
    assert all(after[path] == before[path] for path in untouched)
    table = load_records(walk.runs)
    assert set(table.loc[(table["stage"] == "classify") & (table["base"] != ""), "paradigm"]) == {
        "clip",
        "unicl",
    }


def test_runs_lists_state_duration_and_headline(walked: Walk) -> None:
    listed = walked.call("runs").stdout
    assert re.search(r"classify +clip-n256-s0-\w+ +done +\d+ s +findings AUROC 0\.\d+", listed)
    assert re.search(r"\d+ done$", listed.strip())


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({}, "nothing evaluated"),
        ({"not_evaluated": {"findings": "no labels", "picc": "no labels"}}, "no labels"),
    ],
)
def test_a_run_that_evaluated_nothing_says_so(info, said):
    empty = {"task": "findings", "label": "macro", "metric": "auroc", "value": None}
    line = runner.headline_of(
        {"stage": "classify", "metrics": [empty], "info": info | {"seconds": 2.0}}
    )
    assert line.startswith("2 s, nothing evaluated")
    assert line.endswith(said)


def test_a_run_on_data_without_labels_is_told_by_its_retrieval():
    found = {"task": "retrieval", "label": "image_to_text", "metric": "recall@5", "value": 0.25}
    line = runner.headline_of({"stage": "classify", "metrics": [found], "info": {"seconds": 2.0}})
    assert line == "2 s, reports retrieved R@5 0.250"
