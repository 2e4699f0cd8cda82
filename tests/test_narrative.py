"""What the book's pages say is computed from records: encoders told apart, sources named, other institutions shown."""

import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from made_ladders import base, judge

from cxrstudy import answer, grid, narrative, plots, recorded, study, tables
from cxrstudy.plans import write_plan
from cxrstudy.results import load_records, write_record
from cxrstudy.scaling import ladders


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def record(name, rows, *, stage="classify", **subject):
    p = study.validated(stage, {"out": f"runs/mini/{stage}/{name}"})
    own = {
        "kind": "synthetic",
        "institution": "synthetic:study",
        "patients": "p0",
        "samples_seen": 30000,
        "seed": 0,
    }
    own |= {
        "paradigm": "clip",
        "encoder": "cnn_mini",
        "base": "clip-base-aaaaaa",
        "n_images": 200,
        "data": "study-1",
    }
    cells = [
        {
            "task": task,
            "label": label,
            "metric": metric,
            "value": value,
            "low": value - 0.01,
            "high": value + 0.01,
        }
        for task, label, metric, value in rows
    ]
    return write_record(stage, p, metrics=cells, subject=own | subject, started=time.time()).parent


FINDINGS = ("findings", "macro", "auroc")


def test_encoders_that_differ_in_base_data_or_budget_each_have_a_row(runs):
    record("clip-n200-s0-000001", [(*FINDINGS, 0.71)])
    record("clip-n200-s0-000002", [(*FINDINGS, 0.72)], base="other-base-bbbbbb")
    record("clip-n200-s0-000003", [(*FINDINGS, 0.73)], samples_seen=90000)
    record("unicl-n200-s0-000004", [(*FINDINGS, 0.74)], paradigm="unicl")
    table = tables.main_table(load_records(runs))
    assert table.index.tolist()[-1] == "unicl, 200 images, seed 0"
    assert len(table) == 4
    assert table.index.is_unique
    assert any("from other-base" in who for who in table.index)
    assert any("seen: 90k" in who for who in table.index)
    assert sorted(table.iloc[:, 0].str[:4]) == ["0.71", "0.72", "0.73", "0.74"]


def test_what_an_encoder_reaches_at_another_institution_has_a_table(runs):
    record("clip-n200-s0-000001", [(*FINDINGS, 0.7), ("findings@public", "macro", "auroc", 0.6)])
    found = dict(tables.family_tables(load_records(runs)))
    assert list(found) == ["Findings at another institution (public)"]
    assert found["Findings at another institution (public)"].iloc[0, 0].startswith("0.600")
    assert tables.family_tables(load_records(runs), ("reports",)) == []


def test_a_family_is_drawn_where_several_sizes_were_judged_and_not_before(runs):
    wanted = {"Dice": ("segmentation", "macro", "dice")}
    record(
        "base-x-000000",
        [("segmentation", "macro", "dice", 0.1)],
        stage="segment",
        base="",
        n_images=None,
    )
    record("clip-n200-s0-000001", [("segmentation", "macro", "dice", 0.2)], stage="segment")
    assert plots.families(load_records(runs), wanted) is None
    record(
        "clip-n900-s0-000002",
        [("segmentation", "macro", "dice", 0.3)],
        stage="segment",
        n_images=900,
    )
    drawn = plots.families(load_records(runs), wanted, title="mini.")
    assert "Dice clip from 0.200 to 0.300" in drawn.alt
    assert "base, not continued 0.100" in drawn.alt


def test_shuffled_labels_are_in_the_table_and_squash_no_figure(runs):
    rows = [(*FINDINGS, 0.8), ("lines_tubes", "macro", "auroc", 0.7)]
    record("clip-n200-s0-000001", rows)
    record("clip-n900-s0-000002", rows, n_images=900)
    half = [(*FINDINGS, 0.5), ("lines_tubes", "macro", "auroc", 0.5)]
    record(
        "shuffled-x-000003",
        half,
        paradigm="control",
        encoder="shuffled labels, cnn_mini",
        base=None,
    )
    table = load_records(runs)
    none = pd.DataFrame(columns=["task", "paradigm", "n_images", "value", "low", "high"])
    assert "shuffled" not in plots.scaling(table, none).alt
    assert any("shuffled" in who for who in tables.main_table(table).index)


def test_a_source_is_named_as_recorded_or_as_this_machines(runs):
    assert recorded.name_of("mini") == "mini, run on this machine"
    assert recorded.name_of("recorded:study-cpu") == "study-cpu, recorded"
    table = load_records(runs)
    said = narrative.provenance(table, [], "recorded:study-cpu")
    assert "cxrstudy run --preset study-cpu --unrecorded" in said
    assert "make study PRESET=mini" in narrative.provenance(table, [], "mini")
    record("clip-n200-s0-000001", [(*FINDINGS, 0.7)])
    said = narrative.provenance(load_records(runs), [], "recorded:mini")
    assert said.startswith("Recorded with this book, not on your machine: preset `mini`")
    assert "synthetic x-rays" in said


def test_reports_see_where_they_tell_findings_better_than_both_controls_do(runs):
    habits = [
        ("reports", f"{who}: findings", "f1_micro", 0.1)
        for who in ("other patient", "random report")
    ]
    assert tables.seeing(load_records(runs)) == ""
    record(
        "clip-n200-s0-000001", [("reports", "findings", "f1_micro", 0.3), *habits], stage="report"
    )
    near = [
        ("reports", "random report: findings", "f1_micro", 0.115),
        *habits[:1],
    ]  # their intervals overlap
    own = [("reports", "findings", "f1_micro", 0.13), *near]
    record("dinov2-n200-s0-000002", own, stage="report", paradigm="dinov2")
    better, _, rest = tables.seeing(load_records(runs)).partition("Not by")
    assert "clip, 200 images" in better and "0.300" in better
    assert "dinov2, 200 images" in rest and "clip" not in rest


def test_reports_are_quoted_from_this_machine_alone(runs, tmp_path):
    folder = record(
        "clip-n200-s0-000001", [("reports", "findings", "f1_micro", 0.3)], stage="report"
    )
    table = load_records(runs)
    assert tables.written_reports(table) == []  # no words were kept
    assert folder.is_dir()


def test_a_table_of_sentences_names_each_cells_column_and_keeps_its_roles() -> None:
    table = pd.DataFrame({"claim": ["a < b"], "p": [""], "verdict": ["open"]}).set_index("claim")
    soup = BeautifulSoup(plots.words(table, "one claim").markup, "html.parser")
    assert [(cell["data-label"], cell.get_text()) for cell in soup.find_all("td")] == [
        ("claim", "a < b"),
        ("p", ""),
        ("verdict", "open"),
    ]
    roles = [found["role"] for found in soup.find_all(True)]
    assert roles == [
        "table",
        "rowgroup",
        "row",
        *["columnheader"] * 3,
        "rowgroup",
        "row",
        *["cell"] * 3,
    ]


def test_a_figures_title_says_whose_and_of_what_x_rays() -> None:
    table = pd.DataFrame({"kind": ["synthetic", None, "real"]})
    assert narrative.title_of("recorded:nih", table) == "nih, recorded (real, synthetic x-rays)."
    assert (
        narrative.title_of("mini", table[:1], "seed=1")
        == "mini, run on this machine seed=1 (synthetic x-rays)."
    )


def test_what_a_ladder_shows_is_told_in_a_row_with_its_ends_its_base_and_what_is_not_there_left_out(
    runs,
):
    base(1.0)
    for n, skill in ((200, 1.0), (2000, 2.5)):
        judge(f"clip-n{n}-s0-aaaaaa", skill, n_images=n, trained_on="synthetic:study")
    table = load_records(runs)
    fits, _ = ladders.fit_ladders(table, resamples=20)
    told = narrative.answers(table, fits)
    assert told.index.tolist() == ["Findings, clip", "Lines and tubes, clip"]
    shown = ["macro AUROC", "most minus fewest", "beyond its base", "a tenfold cuts error by"]
    assert list(told.columns) == shown
    macro = table[
        (table["label"] == "macro") & (table["metric"] == "auroc") & (table["task"] == "findings")
    ]
    few, many = (
        macro.loc[macro["run"] == f"clip-n{n}-s0-aaaaaa", "value"].iloc[0] for n in (200, 2000)
    )
    row = told.iloc[0]
    assert row["macro AUROC"] == f"{few:.3f} with 200; {many:.3f} with 2k"
    assert row["beyond its base"].endswith("with 2k: better")
    assert row["most minus fewest"].startswith(f"{many - few:+.3f} [")
    assert row["a tenfold cuts error by"].startswith("no law: ")  # two sizes are too few
    assert narrative.answers(table, fits, ["lines_tubes"]).index.tolist() == [
        "Lines and tubes, clip"
    ]
    assert narrative.answers(table.iloc[:0], fits).empty


def test_own_images_are_told_from_more_training_and_what_was_not_run_is_said(runs):
    base(1.0)
    judge("clip-n2000-s0-aaaaaa", 2.5, n_images=2000, trained_on="synthetic:study")
    judge("clip-public-bbbbbb", 1.5, n_images=2000, trained_on="synthetic:public")
    judge(
        "unicl-n2000-s0-aaaaaa", 2.5, n_images=2000, trained_on="synthetic:study", paradigm="unicl"
    )
    table = load_records(runs)
    compared = ladders.at_home(table)
    assert len(compared) == 2
    better = (compared["low"] > 0).sum()
    assert f"measurably better in {better} of 2 ladders" in narrative.others_as_good(compared)
    assert narrative.others_as_good(compared.iloc[:0]) == ""
    told = narrative.answers(table, ladders.fit_ladders(table, resamples=20)[0])
    assert told.loc["Findings, unicl", "beyond as many of others"] == "not run"
    assert told.loc["Findings, clip", "beyond as many of others"].startswith("+")


def test_bases_are_told_beside_random_weights_of_their_architecture(runs):
    record("base-clip-aaaaaa", [(*FINDINGS, 0.8)], base="", n_images=0)
    record(
        "base-dino-aaaaaa",
        [(*FINDINGS, 0.7)],
        base="",
        n_images=0,
        paradigm="dinov2",
        encoder="other",
    )
    none = {"base": "", "n_images": 0, "paradigm": "control"}
    record("random-cnn_mini-aaaaaa", [(*FINDINGS, 0.65)], **none | {"encoder": "random:cnn_mini"})
    record("pixels-aaaaaa", [(*FINDINGS, 0.6)], **none | {"encoder": "pixels"})
    assert narrative.above_random(load_records(runs)) == [
        "Findings, `clip`: +0.150 (0.650 at random)"
    ]


def test_what_ten_times_the_images_cut_is_told_with_its_interval_and_its_floor() -> None:
    fit = {
        "refused": "",
        "exponent": 1.0,
        "exponent_low": 0.0005,
        "exponent_high": 2.0,
        "floor": 0.0,
        "points": 6,
    }
    assert narrative._tenfold(pd.Series(fit)) == "90.0% [0.1% or less, 99.0%], through 6 points"
    assert "of what is above a floor of 0.100" in narrative._tenfold(
        pd.Series(fit | {"floor": 0.1})
    )
    assert "was not kept" in narrative._tenfold(
        pd.Series(fit).drop(["exponent_low", "exponent_high"])
    )


def test_a_results_page_answers_in_short_against_the_base_and_the_best_baseline(runs):
    base(1.0)
    judge("pixels-aaaaaa", 1.5, paradigm="control", encoder="pixels", base="")
    for n, skill in ((200, 0.5), (2000, 2.5)):
        judge(f"clip-n{n}-s0-aaaaaa", skill, n_images=n, trained_on="synthetic:study")
    table = load_records(runs)
    gained = ladders.gains(table).query("task == 'findings' and n_images == 2000").iloc[0]
    said = answer.in_short(table)
    assert "600 test images of 300 patients" in said
    assert "better than the base in 2 of 2 ladders and measurably worse in 0" in said
    own = f"{gained.gain:+.3f} [{gained.low:+.3f},\u00a0{gained.high:+.3f}] (better) against the unmodified base"
    assert f"- Findings, `clip` with 2k in-house images: {own}" in said
    assert "against the best baseline that learned from no label (raw pixels)" in said
    assert "no encoder" not in said
    assert said.endswith(
        "trained with one seed: intervals hold test patients only, not what another seed would change."
    )


def test_what_is_not_better_is_not_called_harmless_and_pixels_that_are_as_good_are_named(runs):
    base(1.0)
    judge("pixels-aaaaaa", 3.0, paradigm="control", encoder="pixels", base="")
    for seed in (0, 1):
        judge(
            f"clip-n200-s{seed}-aaaaaa",
            1.0,
            seed=seed,
            noise=0.6,
            n_images=200,
            trained_on="synthetic:study",
        )
    said = answer.in_short(load_records(runs))
    assert (
        "On findings **no encoder, continued or not, is above raw pixels with certainty**" in said
    )
    assert "(worse) against the best baseline" in said
    assert "one seed" not in said
    assert not any(word in said for word in ("harm", "equal", "as good"))


@pytest.mark.parametrize(
    ("gain", "low", "high", "word"),
    [
        (0.02, 0.01, 0.03, "(better)"),
        (-0.02, -0.03, -0.01, "(worse)"),
        (0.0, -0.009, 0.01, "(no measurable difference)"),
        (0.0, -0.05, 0.05, "(no measurable difference: 0.050 lower is not excluded)"),
        (0.0, np.nan, np.nan, "(no interval: better or worse cannot be told)"),
    ],
)
def test_a_difference_gets_the_word_that_its_interval_allows(gain, low, high, word):
    assert answer._compared(SimpleNamespace(gain=gain, low=low, high=high)).endswith(word)


def test_in_short_copes_with_parts_that_are_missing(runs):
    assert answer.in_short(load_records(runs)) == answer.NOTHING
    record("clip-n200-s0-000001", [("retrieval", "image_to_text", "recall@5", 0.2)])
    assert answer.in_short(load_records(runs)) == answer.NOTHING
    judge("clip-n200-s0-aaaaaa", 1.0, n_images=200, trained_on="synthetic:study")
    said = answer.in_short(load_records(runs))
    assert "No base was evaluated as it came" in said
    assert (
        "its base was not evaluated; no baseline that learned from no label was evaluated." in said
    )


def test_encoders_that_hardly_trained_are_counted_and_bases_are_not(runs):
    assert narrative.hardly_trained(load_records(runs)) == ""
    for k, (far, root) in enumerate([(0.009, "b"), (0.01, "b"), (0.3, "b"), (0.001, "")]):
        record(
            f"dinov2-n200-s{k}-00000{k}",
            [("pretrain", "dinov2", "moved", far)],
            stage="pretrain",
            base=root,
        )
    for k, loss in enumerate([0.999, 0.9]):  # however far the weights moved
        rows = [
            ("pretrain", "clip", "moved", 0.001),
            ("pretrain", "clip", "loss_over_chance", loss),
        ]
        record(f"clip-n200-s{k}-00000{k}", rows, stage="pretrain", base="b")
    assert narrative.hardly_trained(load_records(runs)).startswith(
        "**2 of 5 continued encoders hardly trained**"
    )


def test_growth_from_a_loss_is_told_as_recovery() -> None:
    gained = pd.DataFrame(
        [("findings", "unicl", 32, -0.034, -0.066, -0.002)],
        columns=["task", "paradigm", "n_images", "gain", "low", "high"],
    )
    grown = SimpleNamespace(task="findings", paradigm="unicl", fewest=32, gain=0.023)
    assert (
        narrative.recovery(grown, gained)
        == " (mostly recovery: the smallest subset is 0.034 below the base)"
    )
    grown.gain = 0.2
    assert narrative.recovery(grown, gained).startswith(" (in part recovery: ")
    grown.gain = -0.01
    assert narrative.recovery(grown, gained) == " (the smallest subset is 0.034 below the base)"
    assert narrative.recovery(grown, gained.assign(high=0.001)) == ""


def test_points_that_lost_are_not_also_said_to_be_untold() -> None:
    columns = ["task", "paradigm", "n_images", "gain", "low", "high", "n", "n_patients"]
    lost, untold, safe = (
        ("findings", "unicl", n, 0.0, low, high, 517, 379)
        for n, low, high in ((32, -0.06, -0.002), (100, -0.03, 0.02), (370, -0.005, 0.01))
    )
    said = narrative.harm(pd.DataFrame([lost, untold, safe], columns=columns))
    shown, open_ = said.split("None is shown, but one of 0.01 is not excluded, for 1 of 3 points: ")
    assert "with 32" in shown and "with 32" not in open_
    assert (
        "`unicl` with 100 on findings. Whether these were harmed cannot be told from 517" in open_
    )
    assert said.endswith("For the other one a loss of 0.01 is excluded.")
    assert "cannot be told" not in narrative.harm(pd.DataFrame([lost, safe], columns=columns))


def test_one_label_is_named_in_the_table_that_is_not_repeated(runs):
    record("clip-n200-s0-000001", [(*FINDINGS, 0.7), ("findings", "bacterial", "auroc", 0.7)])
    table = load_records(runs)
    assert list(tables.main_table(table).columns) == ["Findings, AUROC of bacterial"]
    assert not tables.several_labels(table)
    record(
        "clip-n900-s0-000002", [(*FINDINGS, 0.7), ("findings", "viral", "auroc", 0.7)], n_images=900
    )
    table = load_records(runs)
    assert list(tables.main_table(table).columns) == ["Findings, macro AUROC"]
    assert tables.several_labels(table)


def test_prevalence_is_of_known_labels_and_counts_the_unknown() -> None:
    manifest = pd.DataFrame(
        {"split": ["a", "a", "a", "b"], "label:edema": [1.0, 0.0, np.nan, np.nan]}
    )
    soup = BeautifulSoup(
        narrative.prevalence_table(SimpleNamespace(manifest=manifest)).markup, "html.parser"
    )
    assert {cell["data-label"]: cell.get_text() for cell in soup.find_all("td")} == {
        "label": "pulmonary edema",
        "a (n = 3)": "0.500",
        "b (n = 1)": "unknown in all",
        "unknown": "50.0% (2)",
    }
    assert "4 images: 0 means known to be absent" in soup.caption.get_text()
    assert (
        "records no labels"
        in narrative.prevalence_table(SimpleNamespace(manifest=manifest[["split"]])).alt
    )


def test_the_description_is_followed_by_what_the_data_run_holds() -> None:
    said = answer.described("recorded:nih")
    assert said.startswith("*The same way on real x-rays.* ")
    assert said.endswith("As prepared, `nih` holds **1,000 images** of 682 patients.")
    assert "As prepared" not in answer.described("recorded:bases")


def test_images_that_a_data_run_lost_are_told_beside_the_description(runs):
    p = study.validated(
        "data", {"card": "synthetic", "out": str(runs / "mini" / "data" / "own-aaaaaa")}
    )
    info = {
        "images": 693,
        "patients": 531,
        "quarantined": 2,
        "left_out": {"no patient id": 1, "no image file": 4},
    }
    write_record("data", p, metrics=[], subject={}, started=time.time(), info=info)
    assert "As prepared" not in answer.described("mini")  # of another plan
    write_plan(runs / "mini" / "plan.json", "mini", [grid.Run("own-aaaaaa", "data", "mini", {})])
    lost = "(2 could not be read; rows of the table left out: 5)"
    assert answer.described("mini").endswith(
        f"As prepared, `own` holds **693 images** of 531 patients {lost}."
    )


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12, unique=True), st.floats(0.01, 3))
def test_labelled_ticks_are_apart_and_the_rest_is_near_one(places, apart):
    places = np.array(sorted(places))
    kept = plots.spaced(places, apart)
    assert kept[-1]
    assert (np.diff(places[kept]) >= apart).all()
    assert all(np.abs(places[kept] - place).min() < apart for place in places[~kept])


def test_wide_drawings_alone_scroll_on_a_phone() -> None:
    shares = pd.DataFrame({"all": [0.5]}, index=["edema"])
    rows = pd.DataFrame(
        {"label": ["edema"], "series": ["a" * 60], "value": 0.5, "low": 0.4, "high": 0.6}
    )
    assert 'class="wide"' in plots.beside(rows, xlabel="AUROC").markup
    assert (
        'class="wide"'
        not in plots.reliability(
            {"edema": pd.DataFrame({"mean_predicted": [0.5], "fraction_positive": 0.5, "n": 9})}
        ).markup
    )
    assert plots.prevalence(shares).alt
