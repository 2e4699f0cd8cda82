"""Ladders: a known law is found in records that follow it, and gains are paired differences on the same patients."""

import math
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from cxrstudy import narrative, study, tables
from cxrstudy.data.vocabulary import phrase
from cxrstudy.evaluate import zeroshot
from cxrstudy.results import load_records, write_record
from cxrstudy.scaling.ladders import (
    at_home,
    beyond_control,
    fit_ladders,
    gains,
    growth,
    points,
    reference,
    same_patients,
)

SIZES = [200, 1000, 5000, 20000]
TASKS = ("findings", "lines_tubes")
NAMES = {"findings": ["edema", "atelectasis"], "lines_tubes": ["picc", "chest_tube"]}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def record(name, metrics, *, stage="classify", **subject):
    """One run's record, as the notebooks write it."""
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
        "n_images": 0,
        "data": "study-1",
    }
    return write_record(
        stage, p, metrics=metrics, subject=own | subject, started=time.time()
    ).parent


def metric(task, value, label="macro", metric="auroc", sd=0.002):
    return {
        "task": task,
        "label": label,
        "metric": metric,
        "value": value,
        "low": value - 1.96 * sd,
    } | {"high": value + 1.96 * sd}


def write_ladder(law, paradigm="clip", sizes=SIZES, seeds=1, sd=0.002, **subject):
    """A ladder whose errors follow ``law(task, n)`` with noise of ``sd``, and a decoy of another label and metric."""
    rng = np.random.default_rng(len(paradigm))
    for n in sizes:
        for seed in range(seeds):
            values = {task: 1 - law(task, n) + rng.normal() * sd * (seeds > 1) for task in TASKS}
            rows = [metric(task, value, sd=sd) for task, value in values.items()]
            rows += [metric(task, 0.5, label=NAMES[task][0]) for task in TASKS]
            rows += [metric(task, 0.1, metric="auprc") for task in TASKS]
            record(
                f"{paradigm}-n{n}-s{seed}-abc",
                rows,
                paradigm=paradigm,
                n_images=n,
                seed=seed,
                **subject,
            )


def write_others():
    """What is no point of a ladder: the base as it came, the controls, and a pretraining run."""
    rows = [metric(task, 0.6) for task in TASKS]
    record("base-clip-base-bbbbbb", rows, base="", n_images=20000)
    for control in ("pixels", "random:cnn_mini", "covariates"):
        record(
            f"{control.replace(':', '-')}-ccc", rows, paradigm="control", encoder=control, base=None
        )
    record(
        "clip-n200-s0-ddd",
        [metric("pretrain", 1.2, label="clip", metric="loss")],
        stage="pretrain",
        n_images=200,
    )


def power(a, b, c=0.0):
    return lambda task, n: c + (a if task == "findings" else a / 2) * n**-b


# ---- points and fits -----------------------------------------------------------------------------------------------
def test_a_base_that_went_on_elsewhere_is_a_control_and_no_rung(runs):
    write_ladder(power(1, 0.3))
    rows = [metric(task, 0.66) for task in TASKS]
    record("clip-public-ddd", rows, n_images=20000, trained_on="synthetic:public")
    record("clip-n700-s0-eee", rows, n_images=700, trained_on="synthetic:study")
    table = load_records(runs)
    assert "clip-public-ddd" not in set(points(table)["run"])
    assert "clip-n700-s0-eee" in set(points(table)["run"])
    assert set(reference(table, "findings")["run"]) == {"clip-public-ddd"}
    shown = tables.main_table(table)
    assert "clip base continued on 20k images of public, not in-house" in shown.index


def test_points_are_the_continued_encoders_and_the_reference_is_all_the_rest(runs):
    write_ladder(power(1, 0.3), "unicl")
    write_ladder(power(1, 0.3), "clip", seeds=2)
    write_others()
    table = load_records(runs)
    ladder = points(table)
    assert len(ladder) == 2 * 4 * 3
    assert set(ladder["paradigm"]) == {"clip", "unicl"}
    keys = list(ladder[["task", "paradigm", "n_images", "seed"]].itertuples(index=False, name=None))
    assert keys == sorted(keys)
    assert set(points(table, "auprc")["value"]) == {0.1}
    assert set(points(table, label="edema")["value"]) == {0.5}
    for task in TASKS:
        rest = reference(table, task)
        assert sorted(rest["encoder"]) == ["cnn_mini", "covariates", "pixels", "random:cnn_mini"]
        every = table[
            (table["task"] == task) & (table["label"] == "macro") & (table["metric"] == "auroc")
        ]
        assert sorted([*rest["run"], *ladder.loc[ladder["task"] == task, "run"]]) == sorted(
            every["run"]
        )


@settings(deadline=None, max_examples=8)
@given(a=st.floats(0.6, 1.5), b=st.floats(0.15, 0.5))
def test_a_power_law_is_found_in_the_records_that_follow_it(tmp_path_factory, a, b):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRSTUDY_RUNS", str(tmp_path_factory.mktemp("runs")))
        laws = {"clip": power(a, b), "unicl": power(a, b / 2)}
        for paradigm, law in laws.items():
            write_ladder(law, paradigm)
        write_others()
        fits, curves = fit_ladders(load_records(study.runs_root()))
    assert len(fits) == 4
    for fit in fits.itertuples():
        assert (fit.form, fit.points, fit.refused) == ("power", 4, "")
        assert fit.exponent == pytest.approx(b if fit.paradigm == "clip" else b / 2, rel=1e-3)
        curve = curves[(curves["task"] == fit.task) & (curves["paradigm"] == fit.paradigm)]
        n = curve["n_images"].to_numpy()
        assert n[[0, -1]] == pytest.approx([200, 80000])
        np.testing.assert_allclose(
            curve["value"], [1 - laws[fit.paradigm](fit.task, k) for k in n], atol=1e-4
        )
        assert (curve["low"] < curve["value"]).all()
        assert (curve["value"] < curve["high"]).all()


def test_noise_widens_the_interval_which_still_holds_the_law(runs):
    law, widths = power(0.8, 0.25), []
    for sd in (0.002, 0.01):
        write_ladder(law, "clip", seeds=3, sd=sd)
        _, curves = fit_ladders(load_records(runs))
        curve = curves[curves["task"] == "findings"]
        true = 1 - np.array([law("findings", n) for n in curve["n_images"]])
        assert ((curve["low"] <= true) & (true <= curve["high"])).all()
        widths.append((curve["high"] - curve["low"]).mean())
    assert widths[1] > 2 * widths[0]


def test_a_floor_is_found_where_the_form_has_one(runs):
    write_ladder(power(1.5, 0.5, 0.08), sizes=[100, 400, 1600, 6400, 25600], sd=0.0005)
    fits, _ = fit_ladders(load_records(runs), form="power_floor")
    assert (fits["form"] == "power_floor").all()
    np.testing.assert_allclose(fits["floor"], 0.08, atol=0.003)
    np.testing.assert_allclose(fits["exponent"], 0.5, atol=0.03)
    assert (fit_ladders(load_records(runs))[0]["floor"] == 0).all()


@pytest.mark.parametrize("sizes", [[200], [200, 1000]])
def test_a_ladder_that_cannot_be_fitted_is_left_out_with_the_reason_and_the_others_are_fitted(
    runs, sizes
):
    write_ladder(power(1, 0.3), "clip")
    write_ladder(power(1, 0.3), "unicl", sizes=sizes)
    fits, curves = fit_ladders(load_records(runs))
    refused = fits[fits["paradigm"] == "unicl"]
    assert len(refused) == 2
    assert refused["refused"].str.contains("distinct n").all()
    assert refused["exponent"].isna().all()
    assert set(curves["paradigm"]) == {"clip"}
    assert (fits.loc[fits["paradigm"] == "clip", "refused"] == "").all()


def test_errors_that_rise_are_refused_with_the_reason(runs):
    write_ladder(lambda task, n: 0.1 * n**0.1)
    fits, curves = fit_ladders(load_records(runs))
    assert fits["refused"].str.len().min() > 10
    assert curves.empty


def test_another_metric_is_fitted_on_its_own_values(runs):
    write_ladder(power(1, 0.3))  # its auprc stays at 0.1
    fits, _ = fit_ladders(load_records(runs), metric="auprc")
    assert len(fits) == 2
    assert fits["refused"].str.len().min() > 10


def test_without_a_ladder_there_is_nothing_to_fit_and_no_error(runs):
    write_others()
    for table in (load_records(runs), load_records([])):
        fits, curves = fit_ladders(table)
        assert fits.empty
        assert {"task", "paradigm", "exponent", "refused"} <= set(fits.columns)
        assert curves.empty
        assert {"n_images", "value", "low", "high"} <= set(curves.columns)
        assert gains(table).empty


def test_runs_judged_on_different_patients_are_refused_by_their_names(runs):
    write_ladder(power(1, 0.3))
    table = load_records(runs)
    assert same_patients(table) == "p0"
    assert same_patients(load_records([])) == ""
    record("pixels-eee", [metric("findings", 0.6)], paradigm="control", patients="p1")
    with pytest.raises(ValueError, match="different patients") as caught:
        fit_ladders(load_records(runs))
    assert "clip-n" in str(caught.value)
    assert "pixels-eee" in str(caught.value)


def test_runs_of_unequal_compute_are_no_ladder(runs):
    write_ladder(power(1, 0.3), sizes=SIZES[:2])
    write_ladder(power(1, 0.3), sizes=SIZES[2:], samples_seen=60000)
    with pytest.raises(ValueError, match="samples_seen"):
        fit_ladders(load_records(runs))


def test_other_tasks_and_other_data_make_no_curve(runs):
    """Their scores lie in another file or are of another kind: findings@public-0 has none of its labels' noise here."""
    write_ladder(power(1, 0.3))
    plain = load_records(runs)
    for n in SIZES:
        rows = [
            metric(task, 0.7 - n / 1e6)
            for task in ("findings@public-0", "retrieval", "malposition", "zero_shot")
        ]
        record(f"clip-n{n}-s0-more", rows, n_images=n)
    table = load_records(runs)
    assert set(points(table)["task"]) == set(TASKS)
    pd.testing.assert_frame_equal(fit_ladders(table)[0], fit_ladders(plain)[0])


# ---- gains ---------------------------------------------------------------------------------------------------------
RNG = np.random.default_rng(7)
PATIENTS = np.array([f"p{k // 2}" for k in range(300)])
TRUTH = {name: RNG.integers(0, 2, 300).astype(float) for names in NAMES.values() for name in names}
TRUTH["picc"][::7] = np.nan


def judge(name, skill, seed=0, one_class=(), **subject):
    """An evaluated run: its record and its scores, of which ``skill`` says how much they know."""
    rng = np.random.default_rng(seed)
    truth = {label: np.ones(300) if label in one_class else y for label, y in TRUTH.items()}
    scores = {
        label: skill * np.nan_to_num(y, nan=0.5) + rng.normal(size=300)
        for label, y in truth.items()
    }
    columns = {f"score:{label}": s for label, s in scores.items()} | {
        f"truth:{label}": y for label, y in truth.items()
    }
    table = pd.DataFrame(
        {"image_id": [f"i{k:03}" for k in range(300)], "patient_id": PATIENTS, **columns}
    )
    rows = []
    for task, labels in NAMES.items():
        both = [label for label in labels if label not in one_class]
        for kind, measure in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
            values = {}
            for label in labels:
                known = ~np.isnan(truth[label])
                values[label] = (
                    measure(truth[label][known], scores[label][known])
                    if label in both
                    else math.nan
                )
                rows.append(metric(task, values[label], label=label, metric=kind))
            rows.append(metric(task, np.mean([values[label] for label in both]), metric=kind))
    folder = record(name, rows, **subject)
    table.sample(frac=1, random_state=seed).to_parquet(
        folder / "scores.parquet"
    )  # rows in any order
    return {(row["task"], row["metric"]): row["value"] for row in rows if row["label"] == "macro"}


def row_width(found, task):
    return found.loc[task, "high"] - found.loc[task, "low"]


def base_run(skill=1.0, name="base-clip-base-bbbbbb", seed=1, **subject):
    return judge(name, skill, seed=seed, base="", n_images=20000, **subject)


@pytest.mark.parametrize("kind", ["auroc", "auprc"])
def test_gains_are_the_differences_of_macro_values_by_scikit_learn_within_their_interval(
    runs, kind
):
    base = base_run()
    own = {
        n: judge(f"clip-n{n}-s0-abc", 1 + k / 2, seed=n, n_images=n) for k, n in enumerate(SIZES)
    }
    judge("pixels-ccc", 0.3, paradigm="control", encoder="pixels", base=None)
    found = gains(load_records(runs), metric=kind, resamples=200)
    assert len(found) == 2 * len(SIZES)
    for row in found.itertuples():
        expected = own[row.n_images][row.task, kind] - base[row.task, kind]
        assert row.gain == pytest.approx(expected, abs=1e-9)
        assert row.low < row.gain < row.high
        assert (row.paradigm, row.seeds) == ("clip", 1)
        assert row.least == row.gain == row.most
    best = found[found["n_images"] == SIZES[-1]]
    assert (best["low"] > 0).all()  # it knows far more


def test_a_gain_over_seeds_is_their_mean_with_their_range_and_a_narrower_interval(runs):
    base_run()
    for k in range(3):
        judge(f"clip-n200-s{k}-abc", 1.0 + k / 4, seed=7 + k, n_images=200)
    found = gains(load_records(runs), resamples=200).set_index("task")
    table = load_records(runs)
    for task in TASKS:
        each = []
        for k in range(3):
            alone = gains(
                table[~table["run"].str.match(f"clip-n200-s[^{k}]")], resamples=200
            ).set_index("task")
            each.append(alone.loc[task, "gain"])
            assert row_width(alone, task) > row_width(found, task)
        each.sort()
        row = found.loc[task]
        assert row["seeds"] == 3
        assert row["gain"] == pytest.approx(np.mean(each))
        assert (row["least"], row["most"]) == pytest.approx((each[0], each[-1]))


def test_the_interval_is_of_the_paired_difference(runs):
    judge("clip-n200-s0-abc", 1.0, seed=1, n_images=200)
    base_run(seed=1)  # the very same scores
    found = gains(load_records(runs), resamples=50)
    assert len(found) == 2
    assert not found[["gain", "low", "high"]].to_numpy().any()


def test_a_label_of_one_class_is_left_out_of_both(runs):
    base = base_run(one_class=["edema"])
    own = judge("clip-n200-s0-abc", 2.0, seed=5, one_class=["edema"], n_images=200)
    found = gains(load_records(runs), resamples=50).set_index("task")
    assert found.loc["findings", "gain"] == pytest.approx(
        own["findings", "auroc"] - base["findings", "auroc"]
    )


def test_gains_hang_on_the_seed_of_the_resampling_alone(runs):
    base_run()
    judge("clip-n200-s0-abc", 1.5, seed=5, n_images=200)
    table = load_records(runs)
    one, again, other = (gains(table, resamples=50, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, again)
    assert (one["gain"] == other["gain"]).all()
    assert (one["low"] != other["low"]).all()


def test_runs_whose_base_was_not_evaluated_are_left_out(runs):
    base_run()
    judge("clip-n200-s0-abc", 1.5, seed=5, n_images=200)
    judge(
        "unicl-n200-s0-abc", 1.5, seed=6, n_images=200, paradigm="unicl", base="other-base-ffffff"
    )
    assert set(gains(load_records(runs), resamples=50)["paradigm"]) == {"clip"}


def test_each_run_is_compared_with_its_own_base(runs):
    base = base_run(skill=1.0)
    base_run(skill=3.0, name="base-clip-base-2-bbbbbb", seed=2)
    own = judge("clip-n200-s0-abc", 1.5, seed=5, n_images=200)
    found = gains(load_records(runs), resamples=50).set_index("task")
    for task in TASKS:
        assert found.loc[task, "gain"] == pytest.approx(own[task, "auroc"] - base[task, "auroc"])


def test_gains_between_runs_judged_on_different_patients_are_refused(runs):
    base_run(patients="p1")
    judge("clip-n200-s0-abc", 1.5, seed=5, n_images=200)
    with pytest.raises(ValueError, match="different patients"):
        gains(load_records(runs), resamples=50)


def test_each_run_is_compared_with_its_base_on_the_same_data(runs):
    base_run(skill=3.0, name="base-clip-base-aaaaaa", seed=2, data="large-1")
    base = base_run(skill=1.0, data="study-1")
    own = judge("clip-n200-s0-abc", 1.5, seed=5, n_images=200, data="study-1")
    found = gains(load_records(runs), resamples=50).set_index("task")
    for task in TASKS:
        assert found.loc[task, "gain"] == pytest.approx(own[task, "auroc"] - base[task, "auroc"])


def test_in_house_training_is_compared_with_as_much_training_elsewhere_and_with_nothing_else(runs):
    home, away = (
        {"trained_on": "synthetic:study"},
        {"trained_on": "synthetic:public", "n_images": 5000},
    )
    base_run()
    for seed in (0, 1):
        judge(f"clip-n5000-s{seed}-aaaaaa", 2.0, seed=seed + 5, n_images=5000, **home)
    judge("clip-n200-s0-bbbbbb", 2.0, seed=9, n_images=200, **home)
    judge("clip-public-cccccc", 1.0, seed=11, **away)
    judge("unicl-public-dddddd", 1.0, seed=12, paradigm="unicl", **away)  # no rung beside it
    judge("clip-public-eeeeee", 1.0, seed=13, samples_seen=999, **away)  # another budget
    table = load_records(runs)
    found = at_home(table, resamples=200)
    assert found[["task", "paradigm", "n_images", "seeds"]].values.tolist() == [
        ["findings", "clip", 5000, 2],
        ["lines_tubes", "clip", 5000, 2],
    ]
    macro = table[(table["label"] == "macro") & (table["metric"] == "auroc")].set_index(
        ["run", "task"]
    )["value"]
    for row in found.itertuples():
        own = np.mean([macro[f"clip-n5000-s{seed}-aaaaaa", row.task] for seed in (0, 1)])
        assert row.gain == pytest.approx(own - macro["clip-public-cccccc", row.task])
        assert row.low < row.gain < row.high
    assert "against as many of `public`" in narrative.at_home(found)[0]
    assert at_home(table[~table["run"].str.contains("public")]).empty


def test_the_book_says_which_rungs_may_have_been_harmed(runs):
    columns = ["task", "paradigm", "n_images", "seeds", "gain", "low", "high", "least", "most"]
    fine = [
        ("findings", "clip", 200, 1, 0.0, -0.009, 0.01, 0.0, 0.0),
        ("lines_tubes", "clip", 1000, 3, 0.02, 0.01, 0.03, 0.01, 0.03),
    ]
    assert "harmed none" in narrative.harm(pd.DataFrame(fine, columns=columns))
    hurt = pd.DataFrame(
        [*fine, ("lines_tubes", "unicl", 8000, 1, 0.0, -0.02, 0.01, 0.0, 0.0)], columns=columns
    )
    assert "1 of 3 points: `unicl` with 8k on lines and tubes." in narrative.harm(hurt)
    assert narrative.harm(hurt[:0]) == ""
    lost = narrative.harm(hurt.assign(gain=-0.04, low=-0.08, high=-0.002))
    assert lost.startswith("A loss is shown: ") and "lost 0.040 [-0.080, -0.002]" in lost
    assert "1 of 1 points" in narrative.harm(hurt[:1].assign(low=float("nan")))


def test_the_table_of_gains_tells_seeds_and_how_far_the_weights_went(runs):
    base_run()
    for k in range(2):
        judge(f"clip-n200-s{k}-abc", 1.0 + k / 4, seed=7 + k, n_images=200)
        record(
            f"clip-n200-s{k}-run",
            [metric("pretrain", 0.1 + k / 10, label="clip", metric="relative_weight_change")],
            stage="pretrain",
            n_images=200,
        )
    table = load_records(runs)
    shown = tables.gain_table(gains(table, resamples=50), table)
    assert list(shown.index) == ["clip, 200 images"]
    assert shown["weights moved"].tolist() == ["15.0%"]
    assert all("; 2 seeds " in text for text in shown.iloc[0, :2])


def test_other_families_have_tables_of_their_own_and_stay_out_of_the_labels(runs):
    base_run()
    rows = [
        metric("segmentation", 0.4, metric="dice"),
        metric("segmentation", 0.1, label="picc", metric="dice"),
    ]
    record("base-clip-base-seg", rows, stage="segment", base="", n_images=20000)
    rows = [metric("reports", v, label=k, metric=m) for k, m, v in REPORTED]
    record("clip-n200-s0-rep", rows, stage="report", n_images=200)
    told = [metric("retrieval", 0.2, label=way, metric="recall@5") for way in zeroshot.DIRECTIONS]
    record("clip-n200-s0-ret", told, n_images=200)
    record(
        "pixels-mal", [metric("malposition", 0.6)], paradigm="control", encoder="pixels", base=None
    )
    table = load_records(runs)
    found = dict(tables.family_tables(table))
    assert list(found) == [
        "Lines and tubes, drawn",
        "Reports, written",
        "Malposition of tips",
        "Retrieval",
    ]
    assert list(found["Retrieval"].columns) == ["image to text, R@5", "text to image, R@5"]
    assert found["Lines and tubes, drawn"].to_dict() == {
        "Dice": {"base (clip, 30k seen), not continued": DICE}
    }
    assert list(found["Reports, written"].columns) == ["findings, micro F1", "ROUGE-L"]
    assert list(found["Reports, written"].index) == ["clip, 200 images, seed 0"]
    assert set(tables.label_table(table).index) == {
        *map(phrase, (*NAMES["findings"], *NAMES["lines_tubes"]))
    }


REPORTED = [("findings", "f1_micro", 0.5), ("all", "rouge_l", 0.3), ("edema", "f1", 0.2)]
DICE = "0.400 [0.396, 0.404]"


def test_what_more_images_bring_is_the_most_minus_the_fewest_on_the_same_patients_and_may_be_a_loss(
    runs,
):
    for n, seed, skill in (
        (200, 1, 2.0),
        (200, 2, 2.0),
        (900, 3, 9.0),
        (5000, 4, 1.0),
        (5000, 5, 1.0),
    ):
        judge(f"clip-n{n}-s{seed}-aaaaaa", skill, seed=seed, n_images=n)
    judge("unicl-n200-s0-bbbbbb", 1.0, paradigm="unicl", n_images=200)  # one size: nothing grows
    table = load_records(runs)
    found = growth(table, resamples=200)
    assert found["paradigm"].tolist() == ["clip", "clip"]
    assert found[["fewest", "most"]].values.tolist() == [[200, 5000]] * 2
    macro = table[
        (table["label"] == "macro") & (table["metric"] == "auroc") & (table["paradigm"] == "clip")
    ]
    own = macro.groupby(["task", "n_images"])["value"].mean()
    for row in found.itertuples():
        assert row.gain == pytest.approx(own[row.task, 5000] - own[row.task, 200])
        assert row.low < row.gain < row.high < 0
    told = tables.growth_table({"mention=45": table, "none": table.iloc[:0]}, "findings")
    assert told.index.tolist() == ["mention=45"]
    assert told.loc["mention=45", "clip"].startswith(f"{found['gain'].iloc[0]:+.3f} [")


def test_the_best_control_is_one_that_learned_nothing_of_the_labels(runs):
    judge("clip-n200-s0-aaaaaa", 1.0, n_images=200)
    judge("clip-n900-s0-aaaaaa", 2.0, n_images=900)
    assert beyond_control(load_records(runs), resamples=50).empty
    for encoder, skill in (
        ("pixels", 0.5),
        ("random:cnn_mini", 1.5),
        ("supervised:cnn_mini", 4.0),
        ("shuffled:x", 5.0),
    ):
        judge(
            f"{encoder.split(':')[0]}-cccccc", skill, paradigm="control", encoder=encoder, base=""
        )
    found = beyond_control(load_records(runs), resamples=200)
    assert set(found["control"]) == {", over random cnn_mini"}
    assert set(found["n_images"]) == {900}
    assert (found["low"] > 0).all()
