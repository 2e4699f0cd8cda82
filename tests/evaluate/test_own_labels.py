"""Data sets as hospitals have them: labels under their own names, few of them, or none at all."""

import json
import time

import numpy as np
import pandas as pd
import pytest
import torch

from cxrstudy import encoders, figures, plots, recorded, results, study, tables, text
from cxrstudy.data.images import Prepared
from cxrstudy.data.sets import prepare_data
from cxrstudy.evaluate import protocol
from cxrstudy.evaluate.scores import COLUMNS, save
from cxrstudy.evaluate.subjects import LeakError
from cxrstudy.scaling import contrasts, verdicts
from cxrstudy.scaling.analysis import analyse

torch.set_num_threads(1)
SHARES = {"pretrain": 0.1, "train": 0.4, "validation": 0.2, "test": 0.3}
TASKS = ["findings", "lines_tubes", "malposition", "laterality", "zero_shot", "retrieval"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    p = study.Data(
        n_images=360, size=32, fractions=SHARES, out=str(tmp_path_factory.mktemp("data"))
    )
    whole = prepare_data(p)
    manifest = whole.manifest.assign(
        path=[f"/x-rays/{k}.png" for k in range(360)]
    )  # no generator that knows more
    dropped = manifest.columns[manifest.columns.str.match("(label|truth|side|malposition):")]
    return Prepared(manifest.drop(columns=dropped), whole.images, whole.info | {"kind": "real"})


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """An encoder with a text tower."""
    folder, encoder = tmp_path_factory.mktemp("clip"), encoders.build_encoder("cnn_mini", 32)
    encoders.save_encoder(
        encoder, folder / "encoder", encoders.build_text(["a report"], encoder.channels)
    )
    return str(folder / "encoder")


def labelled(prepared, **columns):
    return Prepared(prepared.manifest.assign(**columns), prepared.images, prepared.info)


def marked(prepared, seed=0, rate=0.5):
    """Images that bear a mark where a label is 1: every encoder tells it."""
    mark = (np.random.default_rng(seed).random(len(prepared.manifest)) < rate).astype(float)
    images = np.array(prepared.images)
    images[mark == 1, :10, :10], images[mark == 0, :10, :10] = 255, 0
    return Prepared(prepared.manifest.assign(**{"label:covid": mark}), images, prepared.info)


def run(prepared, **changes):
    own = {"encoder": "pixels", "resamples": 40, "strengths": [0.1, 10.0], "data": "runs/x/real-1"}
    return protocol.run(study.validated("classify", own | changes), prepared)


# ---- no labels ---------------------------------------------------------------------------------
BASELINES = [
    {"encoder": "pixels"},
    {"encoder": "covariates"},
    {"encoder": "random:cnn_mini"},
    {"encoder": "supervised:cnn_mini", "supervised_samples": 64},
    {"encoder": "random:cnn_mini", "shuffle_labels": True},
    {"encoder": "pixels", "label_counts": [10, 0]},
]


@pytest.mark.parametrize(
    "changes", BASELINES, ids=lambda changes: " ".join(map(str, changes.values()))
)
def test_without_labels_a_baseline_ends_well_with_the_reason_in_its_record(
    prepared, tmp_path, changes
):
    result = run(prepared, **changes)
    assert (
        result.metrics == []
        and result.names == []
        and result.curve.empty
        and result.subgroups.empty
    )
    assert list(result.not_evaluated) == TASKS
    assert "records no labels" in result.not_evaluated["findings"]
    assert result.info["not_evaluated"] == result.not_evaluated
    p = study.validated("classify", changes | {"out": str(tmp_path / "run")})
    files = save(result, tmp_path / "run")
    path = results.write_record(
        "classify", p, metrics=result.metrics, info=result.info, subject=result.subject,
        started=time.time(), artefacts=files,
    )  # fmt: skip
    assert json.loads(path.read_text())["info"]["not_evaluated"]["lines_tubes"]
    assert list(pd.read_parquet(tmp_path / "run" / "scores.parquet").columns) == [
        "image_id",
        "patient_id",
    ]


def test_without_labels_reports_are_still_retrieved(prepared, clip):
    result = run(prepared, encoder=clip)
    assert {row["task"] for row in result.metrics} == {"retrieval"} and result.ranks is not None
    assert set(result.not_evaluated) == set(TASKS) - {"retrieval"}
    shuffled = run(prepared, encoder=clip, shuffle_labels=True)
    assert shuffled.metrics == [] and "no labels" in shuffled.not_evaluated["retrieval"]
    silent = Prepared(prepared.manifest.drop(columns="report"), prepared.images, prepared.info)
    found = run(silent, encoder=clip)
    assert found.metrics == [] and found.not_evaluated["retrieval"] == "no test image has a report"


def test_without_labels_folds_and_other_data_sets_end_well_too(prepared, tmp_path):
    result = run(prepared, folds=["train", "validation", "test"])
    assert (
        result.metrics == [] and len(result.test) == prepared.manifest["split"].ne("pretrain").sum()
    )
    prepare_data(
        study.Data(
            n_images=60, size=32, institution="public-0", fractions={"test": 1.0}, out=str(tmp_path)
        )
    )
    result = run(prepared, also=[str(tmp_path)])
    assert result.external == {} and f"@{tmp_path.name}" in result.not_evaluated
    other = run(
        marked(prepared), also=[str(tmp_path)]
    )  # with labels of its own, which the other does not know
    assert (
        other.external == {}
        and other.names == ["covid"]
        and f"@{tmp_path.name}" in other.not_evaluated
    )


def test_leaks_are_refused_without_labels_too(prepared):
    with pytest.raises(LeakError):
        run(prepared, train=["train", "test"])


def test_figures_say_that_there_is_nothing_to_draw():
    empty = pd.DataFrame(columns=COLUMNS)
    for shown in (
        plots.forest(empty, title="Here."),
        plots.prevalence(pd.DataFrame()),
        plots.roc_and_pr(pd.DataFrame(), []),
        plots.reliability({}),
        plots.efficiency(pd.DataFrame(columns=["task", "patients", "seed", "auroc"])),
    ):
        assert "No label" in shown.alt or "no labels" in shown.alt


# ---- labels under their own names --------------------------------------------------------------
def test_labels_under_their_own_names_are_evaluated_as_findings(prepared, clip):
    rng = np.random.default_rng(3)
    names = ("COVID-19 pneumonia", "tuberculosis", "edema", "picc", "a:b")
    data = labelled(
        prepared, **{f"label:{name}": (rng.random(360) < 0.4).astype(float) for name in names}
    )
    result = run(data, encoder=clip)
    assert set(result.names) == {*names, *(f"zero_shot:{name}" for name in names)}
    tasks = {
        row["label"]: row["task"]
        for row in result.metrics
        if row["task"] in ("findings", "lines_tubes")
    }
    assert tasks == dict.fromkeys([*names, "macro"], "findings") | {
        "picc": "lines_tubes",
        "macro": "lines_tubes",
    }
    values = {(row["task"], row["label"], row["metric"]): row["value"] for row in result.metrics}
    own = [values["findings", name, "auroc"] for name in names if name != "picc"]
    assert values["findings", "macro", "auroc"] == pytest.approx(np.mean(own))
    assert values["zero_shot", "zero_shot:tuberculosis", "auroc"] > 0
    assert {"tuberculosis", "a:b"} <= set(result.subgroups["label"])
    assert list(result.not_evaluated) == ["malposition", "laterality"]


@pytest.mark.parametrize("name", ["macro", "right:edema", "zero_shot:edema"])
def test_a_name_that_results_use_is_refused(prepared, name):
    with pytest.raises(ValueError, match="rename it"):
        run(labelled(prepared, **{f"label:{name}": np.arange(360) % 2.0}))


def test_a_label_that_every_encoder_tells_has_an_interval_with_a_width_and_its_counts(prepared):
    for encoder in ("pixels", "random:cnn_mini"):
        result = run(marked(prepared), encoder=encoder, tasks=["findings"])
        row = result.metrics[0]
        assert row["value"] == 1 and 0.7 < row["low"] < 0.95 and row["high"] == 1
        assert (row["n"], row["positives"]) == (len(result.test), result.truth.sum())
        assert (
            row["n_patients"] == result.test["patient_id"].nunique() == result.info["test_patients"]
        )


# ---- too few -----------------------------------------------------------------------------------
def few_in_test(prepared, split, count, value=1.0):
    """A label that so many images of a split have (``value`` 0: lack), and half of all others."""
    rng = np.random.default_rng(5)
    label = (rng.random(360) < 0.5).astype(float)
    here = np.flatnonzero(prepared.manifest["split"] == split)
    label[here] = 1 - value
    label[here[:count]] = value
    return labelled(prepared, **{"label:covid": label})


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_too_few_of_either_class_in_test_have_no_value_and_are_counted_by_split(prepared, value):
    result = run(few_in_test(prepared, "test", 6, value), tasks=["findings"])
    n = len(result.test)
    for row in result.metrics:
        assert np.isnan([row["value"], row["low"], row["high"]]).all() and row["note"]
        assert (row["n"], row["positives"]) == (n, 6 if value else n - 6)
    reason = result.not_evaluated["findings"]
    counted = f"test {6 if value else n - 6} / {n - 6 if value else 6}"
    assert (
        "covid" in reason
        and counted in reason
        and "training" in reason
        and "needed: 10 test images" in reason
    )
    groups = result.subgroups
    assert (
        groups["value"].isna().all()
        and groups["note"].str.startswith(("too few", "over 0 of")).all()
    )
    assert run(few_in_test(prepared, "test", 6, value), label_counts=[20, 0]).curve.empty


def test_a_label_that_training_does_not_hold_is_not_evaluated(prepared):
    result = run(few_in_test(prepared, "train", 0), tasks=["findings"])
    assert np.isnan(result.metrics[0]["value"]) and result.metrics[0]["note"].startswith(
        "not fitted: covid"
    )
    assert "training 0 / " in result.metrics[0]["note"]


def test_a_label_of_one_class_alone_is_left_out_and_said(prepared):
    data = few_in_test(marked(prepared), "test", 40)
    data = labelled(data, **{"label:always": 1.0, "label:unknown": np.nan})
    result = run(data, tasks=["findings"])
    rows = {row["label"]: row for row in result.metrics if row["metric"] == "auroc"}
    assert result.names == ["covid"] and rows["covid"]["value"] > 0
    for name in ("always", "unknown"):
        assert np.isnan(rows[name]["value"]) and rows[name]["note"].startswith(
            f"too few to evaluate: {name}"
        )


def test_where_nothing_can_be_evaluated_each_label_is_counted(prepared):
    silent = Prepared(prepared.manifest.drop(columns="report"), prepared.images, prepared.info)
    data = labelled(silent, **{"label:covid": 1.0, "label:other": 0.0})
    with pytest.raises(ValueError, match=r"tasks: nothing of .* can be evaluated") as caught:
        run(data)
    test = (data.manifest["split"] == "test").sum()
    for said in (
        "covid (images with it / without: training ",
        f"test {test} / 0",
        "other",
        f"test 0 / {test}",
        "needed",
    ):
        assert said in str(caught.value)
    spoken = labelled(prepared, **{"label:covid": 1.0})  # reports are there: they can be retrieved
    assert "covid" in run(spoken).not_evaluated["findings"]


def test_a_fold_too_few_by_itself_is_evaluated_with_the_others(prepared):
    rng = np.random.default_rng(7)
    data = labelled(prepared, **{"label:covid": (rng.random(360) < 0.06).astype(float)})
    result = run(data, folds=["train", "validation", "test", "pretrain"], tasks=["findings"])
    assert result.metrics[0]["positives"] >= 10 and result.metrics[0]["value"] > 0


# ---- pages -------------------------------------------------------------------------------------
def row(task, label, value, n=100, positives=40, **more):
    row = {"task": task, "label": label, "metric": "auroc"}
    row |= dict.fromkeys(("value", "low", "high"), value)
    row |= {"n": n, "positives": positives, "n_patients": 60}
    return row | {"run": "r", "folder": "", "note": np.nan} | more


def test_a_page_says_on_what_its_numbers_rest():
    few = "too few to evaluate: 3 test images of 3 patients with it, 97 of 60 without"
    cells = [row("findings", "edema", 0.8), row("findings", "covid", np.nan, positives=3, note=few)]
    table = pd.DataFrame(
        [*cells, row("findings", "macro", 0.8), row("malposition", "malposition:picc", 0.6)]
    )
    said = tables.tested(table, "findings")
    assert said == (
        "Findings: 100 test images of 60 patients; positives: pulmonary edema 40. "
        "Findings, too few to evaluate: covid (3 of 100)."
    )
    assert "Malposition of tips: 100 test images of 60 patients; positives: PICC" in tables.tested(
        table
    )
    assert tables.tested(table, "reports") == "" == tables.tested(table[:0])


def test_no_harm_is_said_only_where_the_test_images_can_tell(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    y = np.repeat([1.0, 0.0], [6 * 4, 3 * 4])  # told without fault by both
    for name, base, n in (
        ("base-clip-cnn-aaaaaa", "", 0),
        ("clip-n200-s0-bbbbbb", "clip-cnn", 200),
    ):
        out = tmp_path / "runs" / "mini" / "classify" / name
        p = study.validated("classify", {"out": str(out)})
        rows = [row("findings", label, 1.0, n=len(y)) for label in ("edema", "macro")]
        subject = {
            "paradigm": "clip",
            "encoder": "cnn_mini",
            "base": base,
            "n_images": n,
            "data": "d",
            "seed": 0,
        }
        results.write_record(
            "classify", p, metrics=rows, subject=subject | {"patients": "p"}, started=time.time()
        )
        scores = pd.DataFrame(
            {
                "image_id": [f"i{k}" for k in range(len(y))],
                "patient_id": np.arange(len(y)).astype(str),
            }
        )
        scores.assign(**{"score:edema": y, "truth:edema": y}).to_parquet(out / "scores.parquet")
    table = results.load_records(tmp_path / "runs")
    rows = contrasts.all_contrasts(table, resamples=50)
    gained = rows[(rows["kind"] == verdicts.GAIN) & (rows["metric"] == "auroc")]
    assert gained[["effect", "n", "n_patients"]].values.tolist() == [[0, 36, 36]]
    assert gained["low"].iloc[0] == pytest.approx(0.025 ** (1 / 12) - 1)
    assert gained["high"].iloc[0] > 0
    said = text.harm({"contrasts": gained})
    assert "is not excluded for 1 of 1 points, on 36 test images of 36 patients" in said
    sure = text.harm({"contrasts": gained.assign(low=-0.001, high=0.002)})
    assert sure == "No encoder lost 0.005 or more: every interval excludes it."


READERS = {
    "tested": tables.tested,
    "label rows": lambda t: figures.labels(tables.label_rows(t, "findings"), xlabel="AUROC"),
}


def write_runs(tmp_path, monkeypatch, metrics):
    """Records of a base and a continued encoder without any number, or of a base alone."""
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    nothing = row(
        "findings", "covid", np.nan, n=9, positives=6, note="too few to evaluate: 6 test images"
    )
    rows = {"none": [], "too few": [nothing, nothing | {"label": "macro"}], "a base alone": []}[
        metrics
    ]
    for name, base, n in (
        ("base-clip-cnn-aaaaaa", "", 0),
        ("clip-n200-s0-bbbbbb", "clip-cnn", 200),
    ):
        p = study.validated(
            "classify", {"out": str(tmp_path / "runs" / "mini" / "classify" / name)}
        )
        subject = {
            "paradigm": "clip",
            "encoder": "cnn_mini",
            "base": base,
            "n_images": n,
            "data": "d",
            "seed": 0,
        }
        own = (
            [row("findings", label, 0.8) for label in ("covid", "macro")]
            if metrics == "a base alone" and not n
            else rows
        )
        results.write_record(
            "classify", p, metrics=own, subject=subject | {"patients": "p"}, started=time.time()
        )
    table = results.load_records(tmp_path / "runs")
    assert len(table) == {"none": 0, "too few": 4, "a base alone": 2}[metrics]
    return table


@pytest.mark.parametrize("metrics", ["none", "too few"])
def test_the_analysis_copes_with_runs_without_a_number(tmp_path, monkeypatch, metrics):
    tables, _ = analyse({"": write_runs(tmp_path, monkeypatch, metrics)}, resamples=50)
    assert tables["values"].empty and tables["contrasts"].empty


@pytest.mark.parametrize("metrics", ["none", "too few", "a base alone"])
@pytest.mark.parametrize("reader", READERS)
def test_pages_cope_with_runs_without_a_number(tmp_path, monkeypatch, metrics, reader):
    READERS[reader](write_runs(tmp_path, monkeypatch, metrics))


def test_scores_of_a_run_without_labels_can_be_recorded(tmp_path):
    kept = pd.DataFrame({"image_id": ["a", "b"], "patient_id": ["p", "q"]})
    kept.to_parquet(tmp_path / "scores.parquet")
    recorded._keep_scores(
        tmp_path / "scores.parquet", tmp_path / "kept" / "scores" / "run" / "scores.parquet"
    )
    pd.testing.assert_frame_equal(
        results.kept_scores(tmp_path / "kept" / "scores" / "run").astype(object),
        kept.astype(object),
    )
