"""Sentences of the book's pages say what the tables of the analysis say, and no more."""

import os
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from made_ladders import base, judge, ladder

from cxrstudy import (
    datasets,
    figures,
    floors_text,
    grid,
    plots,
    recorded,
    share,
    shown,
    sources,
    study,
    tables,
    text,
)
from cxrstudy.plans import plan_path, write_plan
from cxrstudy.results import load_records, write_record
from cxrstudy.scaling import analysis, verdicts

FINDINGS = ("findings", "macro", "auroc")
COLUMNS = {("findings", "auroc"): "findings", ("lines_tubes", "auroc"): "tubes"}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def record(name, rows, *, stage="classify", **subject):
    p = study.validated(stage, {"out": f"runs/mini/{stage}/{name}"})
    own = {"kind": "synthetic", "institution": "synthetic:study", "patients": "p0", "seed": 0}
    own |= {"samples_seen": 30000, "paradigm": "clip", "encoder": "cnn_mini", "data": "study-1"}
    own |= {"base": "clip-base-aaaaaa", "n_images": 200}
    cells = [
        {"task": task, "label": label, "metric": metric, "value": value}
        | {"low": value - 0.01, "high": value + 0.01}
        for task, label, metric, value in rows
    ]
    return write_record(stage, p, metrics=cells, subject=own | subject, started=time.time()).parent


def analysed(runs):
    table = load_records(runs)
    found, _ = analysis.analyse({"": table}, resamples=100)
    return table, {name: rows.drop(columns="variant") for name, rows in found.items()}


def a_study(control=None, skill=1.4, fewest=1.0):
    """A base model of skill 1, two CLIP sizes with seeds, baselines, and perhaps a control."""
    base(trained_on="synthetic:public")
    ladder("clip", {200: fewest, 1000: skill}, seeds=3, jitter=0.01)
    judge("pixels-cccccc", 0.3, paradigm="control", base=None, encoder="pixels")
    judge("random-cnn-cccccc", 0.2, paradigm="control", base=None, encoder="random:cnn_mini")
    if control is not None:
        judge("clip-public-cccccc", control, n_images=1000, trained_on="synthetic:public")


# ---- numbers and names -------------------------------------------------------------------------
@given(st.floats(-0.5, 0.5), st.floats(0, 0.3), st.floats(0, 0.3))
def test_an_interval_has_one_format_and_loses_no_sign(value, below, above):
    said = tables.interval(value, value - below, value + above, sign=True)
    assert "-0.000 " not in said.replace("\u00a0", " ") and "[-0.000," not in said
    shown = float(said.split(" ")[0])
    assert shown == pytest.approx(value, abs=5.1e-4)
    if abs(value) >= 5e-5:
        assert np.sign(shown) == np.sign(value)


def test_what_has_no_interval_or_no_value_says_so():
    assert tables.interval(0.5, np.nan, np.nan) == "0.500 (no interval)"
    assert tables.interval(np.nan, np.nan, np.nan) == "not measured"


def test_encoders_that_differ_in_base_or_budget_each_have_a_row(runs):
    base()
    judge("clip-n200-s0-000003", 0.73, samples_seen=90000, n_images=200)
    judge("clip-n200-s0-000002", 0.72, base="other-base-bbbbbb", n_images=200)
    ladder("clip", {200: 0.9})
    _, found = analysed(runs)
    shown = tables.main_table(found["values"], COLUMNS)
    names = [name for name in shown.index if name.startswith("clip, 200 images")]
    assert len(names) == 3 and len(set(names)) == 3
    assert any("from other-base" in name for name in names)
    assert any("90k seen" in name for name in names)


def test_what_an_encoder_reaches_at_another_institution_has_a_table(runs):
    record("clip-n200-s0-000001", [(*FINDINGS, 0.7), ("findings@public", "macro", "auroc", 0.6)])
    ((title, rows),) = tables.other_institutions(load_records(runs))
    assert title == "Findings at another institution (public)"
    assert rows.iloc[0, 0].startswith("0.600")


def test_a_family_shows_the_mean_over_seeds_with_their_range(runs):
    for seed, value in ((0, 0.3), (1, 0.5)):
        rows = [("reports", "findings", "f1_micro", value)]
        record(f"clip-n200-s{seed}-00000{seed}", rows, stage="report", seed=seed)
    shown = tables.family_table(load_records(runs), "reports")
    assert shown.iloc[0, 0] == "0.400 (0.300 to 0.500, 2 seeds)"
    assert tables.family_table(load_records(runs), "segmentation").empty


# ---- answers -----------------------------------------------------------------------------------
def test_a_gain_over_the_base_model_and_over_the_control_are_told_apart(runs):
    a_study(control=1.4)
    table, found = analysed(runs)
    said = text.in_short("mini", found, table)
    assert "encoders are better than their base model in 2 of 2 comparisons" in said
    control = said.partition("as many more steps on images already seen: ")[2].partition(".")[0]
    assert control and "better" not in control and "worse" not in control
    shown = tables.answers(found, {})
    assert set(shown["gain over base model"].str.split(": ").str[-1]) == {verdicts.BETTER}
    assert verdicts.OVER_SEEN in shown


def test_without_a_control_a_gain_may_be_training_alone(runs):
    a_study()
    table, found = analysed(runs)
    assert "a gain may come from more training alone" in text.in_short("mini", found, table)
    assert "a gain may come from more training alone" in text.short_answer("mini", found)


def test_harm_is_named_and_a_loss_that_is_not_excluded_is_not_called_none(runs):
    a_study(fewest=0.6)
    _, found = analysed(runs)
    assert "Worse than the base model: clip with 200 on findings" in text.harm(found)
    assert "below their base model" in text.short_answer("mini", found)
    rows = found["contrasts"]
    unsure = rows.assign(low=-0.02, high=0.02, verdict=verdicts.UNTOLD)
    assert "is not excluded for" in text.harm({"contrasts": unsure})
    sure = rows.assign(low=-0.001, high=0.02, verdict=verdicts.UNTOLD)
    assert "No encoder lost" in text.harm({"contrasts": sure})


def test_pixels_that_are_as_good_are_named(runs):
    base(0.3)
    ladder("clip", {200: 0.3, 1000: 0.31}, seeds=2, jitter=0.01)
    judge("pixels-cccccc", 0.9, paradigm="control", base=None, encoder="pixels")
    _, found = analysed(runs)
    assert all("no encoder is better than raw pixels" in said for said in text.pixels(found))
    assert len(list(text.pixels(found))) == 2


def test_with_nothing_analysed_nothing_is_claimed(runs):
    table = load_records(runs)
    assert "do not say what such images bring" in text.in_short("mini", {}, table)
    assert "no result yet" in text.short_answer("mini", {})
    assert "Nothing of preset" in text.provenance(table, [], "mini")
    assert figures.gains({"contrasts": pd.DataFrame(columns=verdict_columns())}, {}) is None


def plan_of(variant, *parts):
    plan = [grid.Run(part.name, part.parent.name, "mini", {}, ()) for part in parts]
    return write_plan(plan_path("mini", variant), "mini", plan, variant)


def test_a_preset_that_was_run_with_changed_values_only_is_shown_with_them(runs):
    for k, (variant, value) in enumerate({"lr=0.1": 0.7, "samples_seen=320": 0.8}.items()):
        done = runs / "mini" / "analyse" / f"analyse-{k}"
        done.mkdir(parents=True)
        rows = pd.DataFrame({"value": [value], "variant": [""]})
        rows.to_parquet(done / "values.parquet")
        os.utime(plan_of(variant, record(f"clip-{k}", [(*FINDINGS, value)]), done), (k, k))
    assert sources.presets_run() == ["mini"] == sources.studies()[-1:]
    assert sources.plan_table("mini")[0]["value"].tolist() == [0.8]  # the last one
    assert sources.analysis("mini")["values"]["value"].tolist() == [0.8]
    assert sources.variants("mini") == ["lr=0.1"]
    assert sources.analysis("mini", "lr=0.1")["values"]["value"].tolist() == [0.7]
    assert recorded.name_of("mini") == "mini, run on this machine with samples_seen=320"
    said = text.provenance(*sources.plan_table("mini"), "mini")
    assert "changed values only: `samples_seen=320`" in said and "PRESET=mini` runs it as" in said
    with pytest.raises(study.StudyError, match="mini was run with samples_seen=320 only"):
        share.pack("mini")
    plan_of("", record("clip-9", [(*FINDINGS, 0.9)]))  # now the preset itself
    assert sources.plan_table("mini")[0]["value"].tolist() == [0.9]
    assert set(sources.variants("mini")) == {"lr=0.1", "samples_seen=320"}
    assert recorded.name_of("mini") == "mini, run on this machine"


def verdict_columns():
    return ["kind", "task", "metric", "one", "n_images", "effect", "low", "high"]


def test_the_first_page_and_the_claims_agree_on_every_contrast_that_both_show():
    """One engine: the same cells give the same effect, interval and sign on both pages."""
    for name in ("study-cpu", "study-gpu"):
        found = sources.analysis(f"{recorded.RECORDED}{name}")
        rows = found["contrasts"][found["contrasts"]["metric"] == "auroc"]
        claims = found["claims"].set_index("id")
        both = 0
        pairs = {"labels-findings": "findings", "labels-tubes": "lines_tubes"}
        for claim, task in pairs.items():
            own = rows[(rows["kind"] == verdicts.PARADIGMS) & (rows["task"] == task)]
            own = own[(own["one"] == "clip") & (own["other"] == "unicl")]
            top = own.sort_values("n_images").iloc[-1]
            verdict = claims.loc[claim, "verdict"]
            if verdict == verdicts.UNTESTABLE:
                assert top["verdict"] == verdicts.UNTESTABLE
                continue
            ends = claims.loc[claim, ["effect", "low", "high"]].to_list()
            assert ends == pytest.approx([-top["effect"], -top["high"], -top["low"]])
            if verdict.startswith(verdicts.SUPPORTED):
                assert top["verdict"] == verdicts.WORSE  # clip minus unicl
            both += 1
        gained = rows[rows["kind"] == verdicts.GAIN]
        told = claims.loc["30k-suffice", "contrast"]
        paradigm, task = told.split(": ")[1].split(",")[0], told.rsplit(", ", 1)[1].split(" ")[0]
        top = gained[(gained["one"] == paradigm) & (gained["task"] == task)]
        top = top.sort_values("n_images").iloc[-1]
        assert claims.loc["30k-suffice", "effect"] == pytest.approx(top["effect"])
        assert both


# ---- where a task is not solved ----------------------------------------------------------------
def test_floors_stand_beside_tips_continuity_and_malposition():
    table, _ = sources.plan_table("recorded:study-gpu")
    tips, nearness, placed = floors_text.floors(table)
    assert "No encoder locates tips" in tips and "errs by 3 mm" in tips
    assert "No base model reaches it" in nearness and "0.741" in nearness
    assert "No encoder solves this task" in placed
    assert floors_text.floors(table[table["task"] == "findings"]) == []


def test_reports_count_as_better_than_habit_with_intervals_apart(runs):
    assert floors_text.seeing(load_records(runs)) == ""
    habit = [
        ("reports", f"{who}: findings", "f1_micro", 0.1)
        for who in ("other patient", "random report")
    ]
    own = ("reports", "findings", "f1_micro")
    record("clip-n200-s0-000001", [(*own, 0.3), *habit], stage="report")
    near = [("reports", "random report: findings", "f1_micro", 0.115), habit[0]]
    record("dinov2-n200-s0-000002", [(*own, 0.13), *near], stage="report", paradigm="dinov2")
    assert "by 1 of 2 encoders" in floors_text.seeing(load_records(runs))


def test_encoders_that_hardly_trained_are_counted_and_base_models_are_not(runs):
    assert text.hardly_trained(load_records(runs)) == ""
    for k, (far, root) in enumerate([(0.009, "b"), (0.01, "b"), (0.3, "b"), (0.001, "")]):
        rows = [("pretrain", "dinov2", "relative_weight_change", far)]
        record(f"dinov2-n200-s{k}-00000{k}", rows, stage="pretrain", base=root)
    for k, loss in enumerate([0.999, 0.9]):  # however far the weights moved
        rows = [
            ("pretrain", "clip", "relative_weight_change", 0.001),
            ("pretrain", "clip", "loss_over_chance", loss),
        ]
        record(f"clip-n200-s{k}-00000{k}", rows, stage="pretrain", base="b")
    said = text.hardly_trained(load_records(runs))
    assert said.startswith("**2 of 5 continued encoders hardly trained**")


# ---- names -------------------------------------------------------------------------------------
def test_dinov2_is_called_the_dino_term_alone_where_it_is():
    assert text.names("recorded:study-gpu") == {"dinov2": "dinov2 (DINO term alone)"}
    assert text.names("paper") == {}


def test_a_source_is_named_as_recorded_or_as_this_machines_with_its_kind_of_x_rays():
    rows = pd.DataFrame({"kind": ["synthetic", None, "real"]})
    assert text.title_of("recorded:nih", rows) == "nih, recorded (real and synthetic x-rays)"
    assert text.title_of("mini", rows[:1]) == "mini, run on this machine (synthetic x-rays)"


def test_no_page_computes_an_interval():
    """Pages read tables: no module of the analysis but its words, and no bootstrap."""
    forbidden = (
        "bootstrap",
        "percentile",
        "quantile",
        "fit_scaling",
        "read_cells",
        "all_contrasts",
    )
    for path in sorted((study.root() / "book").glob("*.ipynb")):
        if path.stem != "objectives":  # its subject: losses, worked by hand
            source = path.read_text(encoding="utf-8")
            assert not [word for word in forbidden if f"{word}(" in source], path.name
            parts = [line for line in source.splitlines() if "cxrstudy.scaling" in line]
            assert all("verdicts" in line for line in parts if "import" in line), path.name
    for name in ("figures", "tables", "text", "datasets", "sources", "book", "bookpages"):
        source = (study.root() / "cxrstudy" / f"{name}.py").read_text(encoding="utf-8")
        parts = [line for line in source.splitlines() if "scaling" in line and "import" in line]
        assert all("verdicts" in line for line in parts), name


# ---- the data page -----------------------------------------------------------------------------
def test_prevalence_is_of_known_labels_and_counts_the_unknown():
    manifest = pd.DataFrame(
        {"split": ["a", "a", "a", "b"], "label:edema": [1.0, 0.0, np.nan, np.nan]}
    )
    shown = datasets.prevalence_table(SimpleNamespace(manifest=manifest)).markup
    soup = BeautifulSoup(shown, "html.parser")
    assert {cell["data-label"]: cell.get_text() for cell in soup.find_all("td")} == {
        "label": "pulmonary edema",
        "a (n = 3)": "0.500",
        "b (n = 1)": "unknown in all",
        "unknown": "50.0% (2)",
    }
    none = datasets.prevalence_table(SimpleNamespace(manifest=manifest[["split"]]))
    assert "records no labels" in none.alt


def test_recorded_data_sets_have_their_counts_and_prevalence():
    kept = datasets.recorded_sets(["recorded:nih", "mini"])
    assert kept.loc["nih: nih", ["images", "patients"]].tolist() == ["1,000", "682"]
    assert (
        datasets.recorded_prevalence(["recorded:nih"], "real").loc["cardiomegaly"].item() == "0.016"
    )


def test_images_that_a_data_run_lost_are_told(runs):
    out = str(runs / "mini" / "data" / "own-aaaaaa")
    p = study.validated("data", {"card": "synthetic", "out": out})
    info = {"images": 693, "patients": 531, "quarantined": 2}
    info |= {"left_out": {"no patient id": 1, "no image file": 4}}
    folder = write_record("data", p, metrics=[], subject={}, started=time.time(), info=info).parent
    (folder / "notebook.ipynb").write_text("{}")
    write_plan(runs / "mini" / "plan.json", "mini", [grid.Run("own-aaaaaa", "data", "mini", {})])
    lost = "(2 could not be read; rows of the table left out: 5)"
    assert (
        datasets.in_words("mini")
        == f"As prepared, `own` holds **693 images** of 531 patients {lost}."
    )


# ---- figures -----------------------------------------------------------------------------------
def test_figures_tell_their_ends_and_their_controls(runs):
    a_study(control=1.2)
    _, found = analysed(runs)
    shown = figures.gains(found, {}, title="Ours")
    assert shown.alt.startswith("Ours Gain over the base model")
    assert "Findings, clip: " in shown.alt and "clip on images already seen" in shown.alt
    curves = figures.curves(found, {"Findings": ("findings", "auroc")}, {}, title="Ours")
    assert "base model clip-cnn" in curves.alt


def test_wide_drawings_alone_scroll_on_a_phone():
    shares = pd.DataFrame({"all": [0.5]}, index=["edema"])
    rows = {"label": ["edema"], "series": ["a" * 60], "value": 0.5, "low": 0.4, "high": 0.6}
    assert 'class="wide"' in figures.labels(pd.DataFrame(rows), xlabel="AUROC").markup
    small = pd.DataFrame({"mean_predicted": [0.5], "fraction_positive": 0.5, "n": 9})
    assert 'class="wide"' not in plots.reliability({"edema": small}).markup
    assert plots.prevalence(shares).alt


def test_a_table_of_sentences_names_each_cells_column_and_keeps_its_roles():
    table = pd.DataFrame({"claim": ["a < b"], "p": [""], "verdict": ["open"]}).set_index("claim")
    soup = BeautifulSoup(shown.words(table, "one claim").markup, "html.parser")
    cells = [(cell["data-label"], cell.get_text()) for cell in soup.find_all("td")]
    assert cells == [("claim", "a < b"), ("p", ""), ("verdict", "open")]
    roles = [found["role"] for found in soup.find_all(True)]
    head, body = ["rowgroup", "row", *["columnheader"] * 3], ["rowgroup", "row", *["cell"] * 3]
    assert roles == ["table", *head, *body]
