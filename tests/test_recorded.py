"""What is recorded of a study is enough to compute its numbers again, and to go on from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
from conftest import Walk

from cxrstudy import grid, recorded, sources
from cxrstudy import run as runner
from cxrstudy.data.synthetic import describe
from cxrstudy.data.vocabulary import LABELS
from cxrstudy.evaluate.metrics import auprc, auroc
from cxrstudy.results import kept_scores, load_records, truths_of
from cxrstudy.scaling import contrasts
from cxrstudy.shown import TASKS


@pytest.fixture
def kept(walked: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """A copy of the smoke study whose runs have been recorded by the command line."""
    shutil.copytree(
        walked.root, tmp_path / "copy", ignore=shutil.ignore_patterns("_build", "encoder")
    )
    walk = Walk(tmp_path / "copy", tmp_path / "copy" / "runs")
    monkeypatch.setenv("CXRSTUDY_ROOT", str(walk.root))
    monkeypatch.setenv("CXRSTUDY_RUNS", str(walk.runs))
    done = walk.call("record", "--preset", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    return walk


def test_the_recorded_table_is_that_of_the_runs(kept: Walk) -> None:
    told, ran = recorded.load("smoke"), load_records(kept.runs)
    ran = ran[ran["stage"] != "analyse"]
    keys = ["run", "task", "label", "metric"]
    told, ran = (
        t.sort_values(keys).reset_index(drop=True).drop(columns="folder") for t in (told, ran)
    )
    pd.testing.assert_frame_equal(told, ran, check_dtype=False)
    runs = pd.read_csv(recorded.place("smoke") / "runs.csv")
    for row in runs.itertuples():
        assert json.loads(row.environment)["commit"]
        assert json.loads(row.parameters)["out"].endswith(row.run)
        assert row.command == "cxrstudy run --preset smoke"


def test_every_rank_metric_comes_out_of_the_recorded_scores_and_labels_drawn_anew(
    kept: Walk,
) -> None:
    table = recorded.load("smoke")
    judged = table[
        (table["stage"] == "classify") & table["label"].isin(LABELS) & table["value"].notna()
    ]
    checked = 0
    for folder, rows in judged.groupby("folder"):
        scores = kept_scores(str(folder))
        index = scores["image_id"].str.extract(r"(\d+)$")[0].astype(int)
        truth = pd.DataFrame(describe(index).labels, columns=list(LABELS))
        for row in rows[rows["metric"].isin(["auroc", "auprc"])].itertuples():
            y, s = truth[[row.label]].to_numpy(), scores[[f"score:{row.label}"]].to_numpy(float)
            assert np.array_equal(y[:, 0], scores[f"truth:{row.label}"].to_numpy(float))
            value = {"auroc": auroc, "auprc": auprc}[row.metric](y, s)[0]
            assert value == pytest.approx(row.value, abs=1e-9)
            checked += 1
    assert checked > 20


def test_gains_from_recorded_scores_are_those_from_the_runs(kept: Walk) -> None:
    ran = load_records(kept.runs / "smoke")
    told, own = (contrasts.all_contrasts(t, resamples=50) for t in (recorded.load("smoke"), ran))
    pd.testing.assert_frame_equal(told, own, check_exact=False, atol=1e-9)
    assert (recorded.place("smoke") / "analysis" / "contrasts.parquet").is_file()


def test_notebooks_read_runs_and_recorded_presets_alike(kept: Walk) -> None:
    table = recorded.load("smoke")
    few = [
        f"runs/smoke/classify/{name}"
        for name in table.loc[table["stage"] == "classify", "run"].unique()[:2]
    ]
    assert set(recorded.read(few, "runs/none")["run"]) == {Path(name).name for name in few}
    pd.testing.assert_frame_equal(recorded.read([], "book/recorded/smoke"), recorded.load("smoke"))
    assert set(recorded.read([], "runs/smoke")["run"]) == set(
        load_records(kept.runs / "smoke")["run"]
    )


def test_what_is_recorded_is_not_run_again_and_what_is_not_is(kept: Walk) -> None:
    plan = json.loads((kept.runs / "smoke" / "plan.json").read_text())["runs"]
    shutil.rmtree(kept.runs)
    done = kept.call("run", "--preset", "smoke", "--unrecorded", "-n")
    assert f"0 of {len(plan)} runs to do" in done.stdout, done.stdout + done.stderr
    path = recorded.place("smoke") / "runs.csv"
    runs = pd.read_csv(path, keep_default_na=False)
    one = next(
        run for run in plan if run["stage"] == "classify" and run["name"].startswith("unicl")
    )
    runs[runs["run"] != one["name"]].to_csv(path, index=False)
    done = kept.call("run", "--preset", "smoke", "--unrecorded", "-n")
    todo = {
        line.split()[3] for line in done.stdout.splitlines() if line.strip().startswith("would run")
    }
    wanted = {one["name"]}
    for run in reversed(plan):
        wanted |= set(run["needs"]) if run["name"] in wanted else set()
    assert todo == wanted


def test_recording_again_replaces_and_never_doubles(kept: Walk) -> None:
    before = recorded.load("smoke")
    again = recorded.keep("smoke")
    assert again == (before["run"].nunique(), before["run"].nunique())
    pd.testing.assert_frame_equal(recorded.load("smoke"), before)


def test_images_and_truths_are_kept_once_for_all_runs_of_a_setting(kept: Walk) -> None:
    out, used = recorded.place("smoke"), {}
    whole = apart = 0
    for run in recorded.load("smoke")[["run", "stage"]].drop_duplicates().itertuples():
        if run.stage not in recorded.SCORES:
            continue
        path = out / "scores" / run.run / "scores.parquet"
        ran = pd.read_parquet(
            kept.runs / "smoke" / run.stage / run.run / recorded.SCORES[run.stage]
        )
        ran, told = (
            ran.sort_values("image_id", kind="stable", ignore_index=True),
            kept_scores(path.parent),
        )
        for name in told:
            if name.startswith("score:"):
                places = recorded._ranks(ran[name], ran[name.replace("score", "truth", 1)])
                assert places.equals(told[name].astype("UInt16")), (path, name)
            else:
                pd.testing.assert_series_equal(told[name], ran[name], check_dtype=False, rtol=1e-6)
        assert not set(pd.read_parquet(path)) & {"image_id", "patient_id", "truth:edema"}
        used.setdefault((run.stage, *told), []).append(truths_of(path))
        recorded._write(told, out / "whole.parquet")
        whole, apart = whole + (out / "whole.parquet").stat().st_size, apart + path.stat().st_size
    truths = set(out.glob("truths/*"))
    assert truths == {path for paths in used.values() for path in paths}
    assert (
        all(len(set(paths)) == 1 for paths in used.values()) and max(map(len, used.values())) > 1
    ), used
    assert apart + sum(path.stat().st_size for path in truths) < whole


def test_truths_that_no_run_is_judged_by_any_more_are_removed(kept: Walk) -> None:
    before = set(recorded.place("smoke").glob("truths/*"))
    recorded.keep("smoke")
    assert set(recorded.place("smoke").glob("truths/*")) == before
    for path in kept.runs.glob("smoke/classify/*/scores.parquet"):
        pd.read_parquet(path).assign(patient_id="one").to_parquet(path)
    recorded.keep("smoke")
    after = set(recorded.place("smoke").glob("truths/*"))
    assert len(after) == len(before) and after != before


def test_nothing_to_record_is_said(tmp_path: Path, walked: Walk) -> None:
    done = Walk(walked.root, tmp_path / "none").call("record", "--preset", "smoke")
    assert done.returncode == 2
    assert "nothing of preset 'smoke' has been run here" in done.stderr


def test_recorded_results_have_a_page_without_any_run_on_this_machine(kept: Walk) -> None:
    shutil.rmtree(kept.runs)
    assert sources.every() == ["recorded:smoke"]
    page, asked = kept.root / "page.ipynb", {"preset": "recorded:smoke"}
    template = kept.root / "book" / "results.ipynb"
    papermill.execute_notebook(template, page, asked, kernel_name="python3", progress_bar=False)
    text = page.read_text()
    assert "Recorded with this book, not run on your machine" in text
    assert "smoke, recorded" in text


# ---- the recorded study itself -----------------------------------------------------------------
STUDY = "study-cpu"


def test_the_study_stands_first_at_its_largest_and_no_preset_is_too_large_for_a_clone() -> None:
    names = recorded.presets()
    assert names[:2] == ["study-gpu", STUDY]
    assert names[2:] == sorted(names[2:])
    for name in names:
        assert recorded.size(name) < recorded.LIMIT, name


@pytest.mark.parametrize(("study", "encoders"), [(STUDY, 39), ("study-gpu", 51)])
def test_the_recorded_study_holds_what_its_scores_and_labels_drawn_anew_give(
    study: str, encoders: int
) -> None:
    table = recorded.load(study)
    judged = table[(table["stage"] == "classify") & table["metric"].isin(["auroc", "auprc"])]
    judged = judged[judged["label"].isin(LABELS) & judged["task"].isin(TASKS)]
    truth, index = pd.DataFrame(), np.array([])
    for folder, rows in judged.groupby("folder"):
        scores = kept_scores(str(folder))
        asked = scores["image_id"].str.extract(r"(\d+)$")[0].to_numpy(int)
        if not np.array_equal(asked, index):  # all runs are judged on the same images
            truth, index = pd.DataFrame(describe(asked).labels, columns=list(LABELS)), asked
        for name in rows["label"].unique():
            assert np.array_equal(truth[name], scores[f"truth:{name}"].to_numpy(float)), (
                folder,
                name,
            )
        for metric, measure in {"auroc": auroc, "auprc": auprc}.items():
            told = rows[(rows["metric"] == metric) & rows["value"].notna()].set_index("label")[
                "value"
            ]
            found = measure(
                truth[told.index].to_numpy(),
                scores[[f"score:{n}" for n in told.index]].to_numpy(float),
            )
            np.testing.assert_allclose(found, told, atol=1e-6, err_msg=str(folder))
    assert judged["run"].nunique() >= encoders


@pytest.mark.slow  # five minutes: data, one pretraining, two evaluations
def test_recorded_runs_come_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = {
        "base-clip-hybrid": 1e-3,
        "clip-n200-s0": 1e-2,
    }  # training adds up what processors round differently
    table = recorded.load(STUDY)
    told = table[
        (table["stage"] == "classify") & (table["label"] == "macro") & (table["metric"] == "auroc")
    ]
    told = told[told["run"].str.rsplit("-", n=1).str[0].isin(again)].set_index(["run", "task"])[
        "value"
    ]
    names = set(told.index.get_level_values("run"))
    assert len(names) == len(again)
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    others = recorded.run_names(STUDY) | {run.name for run in grid.plan(STUDY)}
    assert (
        runner.run_preset(grid.load_preset(STUDY), cores=2, quiet=True, recorded=others - names)
        == 0
    )
    found = load_records(tmp_path / "runs")
    found = found[(found["label"] == "macro") & (found["metric"] == "auroc")].set_index(
        ["run", "task"]
    )["value"]
    for (name, task), value in told.items():
        near = again[name.rsplit("-", 1)[0]]
        assert found[name, task] == pytest.approx(value, abs=near), (name, task)
