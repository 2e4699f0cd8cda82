"""Small samples: exact intervals by their probability law, and what is too few to evaluate."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy import recorded, results
from cxrstudy.evaluate import small_samples, zeroshot
from cxrstudy.evaluate.classification import by_task, evaluate
from cxrstudy.evaluate.small_samples import (
    LEAST,
    LEAST_PATIENTS,
    class_counts,
    exact_interval,
    too_few,
)

quick = settings(deadline=None, max_examples=60)
shares = st.floats(0, 1)
RECORDED = [name for name in ("nih", "study-cpu") if (recorded.place(name) / "runs.csv").is_file()]


# ---- exact intervals ---------------------------------------------------------------------------
@quick
@given(value=shares, n=st.integers(1, 10**6), level=st.floats(0.5, 0.999))
def test_an_exact_interval_holds_its_value_lies_in_0_to_1_and_has_a_width(value, n, level):
    low, high = exact_interval(value, n, level)
    assert 0 <= low <= value <= high <= 1
    assert high > low


@quick
@given(value=shares, n=st.integers(1, 10**5), more=st.integers(1, 10**5))
def test_an_exact_interval_is_narrower_with_more_patients(value, n, more):
    few, many = (np.subtract(*exact_interval(value, k)[::-1]) for k in (n, n + more))
    assert many < few + 1e-12


@quick
@given(n=st.integers(1, 500), k=st.integers(0, 500), level=st.floats(0.5, 0.999))
def test_an_exact_interval_is_clopper_and_pearsons(n, k, level):
    theirs = scipy.stats.binomtest(min(k, n), n).proportion_ci(level, method="exact")
    assert exact_interval(min(k, n) / n, n, level) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-9
    )


@quick
@given(n=st.integers(1, 10**4))
def test_of_all_and_of_none_the_bound_is_the_root_of_half_alpha(n):
    assert exact_interval(1, n) == pytest.approx((0.025 ** (1 / n), 1))
    assert exact_interval(0, n) == pytest.approx((0, 1 - 0.025 ** (1 / n)))
    assert small_samples.exact_width(n) == pytest.approx(1 - 0.025 ** (1 / n))


def test_the_bound_of_a_perfect_auroc_holds_as_often_as_it_says():
    """Two normal classes, one image a patient: if separated, the true AUROC is above the bound."""
    rng = np.random.default_rng(0)
    for shift in (1.5, 2.5, 3.5):
        true, n, held, flat = scipy.stats.norm.cdf(shift / 2**0.5), 8, 0, 0
        for _ in range(2000):
            separated = rng.normal(shift, 1, n).min() > rng.normal(0, 1, n).max()
            flat += separated
            held += not separated or true >= exact_interval(1, n)[0]
        assert held >= 0.975 * 2000


@pytest.mark.parametrize(("value", "n"), [(np.nan, 9), (0.5, 0), (1, np.nan)])
def test_nothing_is_said_of_nothing(value, n):
    assert np.isnan(exact_interval(value, n)).all()


@pytest.mark.parametrize(("value", "level"), [(1.2, 0.95), (-0.1, 0.95), (0.5, 1), (0.5, 0)])
def test_what_is_no_share_is_refused(value, level):
    with pytest.raises(ValueError, match=r"values in \[0, 1\]|level must lie"):
        exact_interval(value, 10, level)


@quick
@given(low=shares, high=shares, value=shares, n=st.integers(1, 1000))
def test_an_interval_that_has_a_width_stays_as_it_is_bit_for_bit(low, high, value, n):
    low, high = sorted((low, high))
    found = small_samples.with_width(low, high, value, n)
    if high - low > small_samples.FLAT:
        assert (found[0], found[1], found[2]) == (low, high, False)
    else:
        assert found[0] <= value <= found[1] and found[0] < found[1] and found[2]


# ---- metrics -----------------------------------------------------------------------------------
def separated(positives, negatives, *, each=1):
    """Scores (N,1) that separate labels (N,1), and patients of ``each`` images, one class each."""
    y = np.repeat([1.0] * positives + [0.0] * negatives, each)[:, None]
    return (
        y * 2 + np.linspace(0, 0.5, len(y))[:, None],
        y,
        np.repeat(np.arange(positives + negatives), each),
    )


@quick
@given(
    positives=st.integers(LEAST, 40),
    negatives=st.integers(LEAST, 40),
    each=st.integers(1, 3),
    turn=st.booleans(),
)
def test_no_interval_of_labels_told_without_fault_has_no_width(positives, negatives, each, turn):
    s, y, groups = separated(positives, negatives, each=each)
    calls, p = (s > 1).astype(float), np.clip(s / 3, 0, 1)
    rows = evaluate(
        -s if turn else s, y, groups, ["a"], predictions=calls, probabilities=p, resamples=20
    )
    for row in rows:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1 and row["low"] < row["high"], row
        assert (row["n"], row["positives"]) == (each * (positives + negatives), each * positives)
        assert row["n_patients"] == positives + negatives
    bound = 0.025 ** (1 / min(positives, negatives))
    own = (rows[0]["low"], rows[0]["high"])
    assert own == pytest.approx((0, 1 - bound) if turn else (bound, 1))


def test_images_of_a_patient_do_not_narrow_an_exact_interval():
    few, many = (
        evaluate(*separated(12, 20, each=each), ["a"], resamples=20)[0]["low"] for each in (1, 5)
    )
    assert few == many


def test_a_macro_average_over_a_label_without_width_is_the_mean_of_its_labels_ends():
    rng = np.random.default_rng(0)
    y = (rng.random((200, 2)) < 0.4).astype(float)
    s = np.stack([y[:, 0] * 9, y[:, 1] + rng.normal(size=200)], axis=1)
    rows = {
        (r["label"], r["metric"]): r
        for r in evaluate(s, y, np.arange(200), ["a", "b"], resamples=100)
    }
    for end in ("value", "low", "high"):
        mean = np.mean([rows[name, "auroc"][end] for name in "ab"])
        assert rows["macro", "auroc"][end] == pytest.approx(mean)


def test_scores_that_do_not_vary_are_a_half_with_a_width():
    _, y, groups = separated(15, 15)
    row = evaluate(np.zeros_like(y), y, groups, ["a"], resamples=20)[0]
    assert row["low"] < row["value"] == 0.5 < row["high"]


@pytest.mark.parametrize(
    ("positives", "negatives"), [(6, 3), (LEAST - 1, 90), (90, LEAST - 1), (0, 50), (50, 0)]
)
def test_too_few_of_either_class_have_no_value_and_are_counted(positives, negatives):
    s, y, groups = separated(positives, negatives)
    rows = evaluate(s, y, groups, ["covid"], predictions=y, probabilities=y, resamples=20)
    for row in rows:
        assert np.isnan([row["value"], row["low"], row["high"]]).all()
        assert (row["n"], row["positives"]) == (positives + negatives, positives)
    assert (
        f"{positives} test images of {positives} patients with it, {negatives}" in rows[0]["note"]
    )
    assert f"needed: {LEAST} images of {LEAST_PATIENTS} patients" in rows[0]["note"]
    assert rows[-1]["label"] == "macro" and rows[-1]["note"].startswith("over 0 of 1 labels")


def test_images_of_too_few_patients_are_too_few():
    s, y, _ = separated(30, 30)
    few = np.r_[np.arange(30) % (LEAST_PATIENTS - 1), 100 + np.arange(30)]
    assert too_few(y, few)[0].startswith(
        "too few to evaluate: 30 test images of 4 patients with it"
    )
    assert too_few(y, np.arange(60)) == [""]
    assert np.isnan(evaluate(s, y, few, ["a"], resamples=20)[0]["value"])


def test_a_label_that_is_too_few_has_no_part_in_the_macro_average():
    rng = np.random.default_rng(1)
    y = (rng.random((300, 2)) < [0.4, 0.02]).astype(float)
    s = y + rng.normal(size=y.shape)
    alone = evaluate(s[:, :1], y[:, :1], np.arange(300), ["a"], resamples=50)
    rows = evaluate(s, y, np.arange(300), ["a", "rare"], resamples=50)
    for one, two in zip(alone, [row for row in rows if row["label"] != "rare"], strict=True):
        assert {k: v for k, v in one.items() if k != "note"} == {
            k: v for k, v in two.items() if k != "note"
        }
    assert next(r for r in rows if r["label"] == "macro")["note"].startswith("over 1 of 2 labels")


@quick
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), patients=st.integers(1, 20))
def test_classes_are_counted_by_image_and_by_patient(seed, n, patients):
    rng = np.random.default_rng(seed)
    y, groups = rng.choice([0.0, 1.0, np.nan], (n, 2)), rng.integers(0, patients, n)
    found = class_counts(y, groups)
    for k in range(2):
        assert (
            found["positives"][k] == (y[:, k] == 1).sum()
            and found["negatives"][k] == (y[:, k] == 0).sum()
        )
        assert found["positive_patients"][k] == len(set(groups[y[:, k] == 1]))
        assert found["negative_patients"][k] == len(set(groups[y[:, k] == 0]))
        assert found["patients"][k] == len(set(groups[~np.isnan(y[:, k])]))
        assert found["pairs"][k] >= 1


@pytest.mark.parametrize("name", RECORDED)
def test_no_recorded_value_moves(name):
    """The minimum and the exact intervals change nothing of what came with the book."""
    table = recorded.load(name)
    table = table[
        (table["stage"] == "classify") & ~table["task"].astype(str).str.contains("@|retrieval")
    ]
    own = table[(table["run"] == table["run"].min()) & table["metric"].isin(["auroc", "auprc"])]
    kept = results.kept_scores(own["folder"].iloc[0])
    runs = pd.read_csv(recorded.place(name) / "runs.csv").set_index("run")
    how = json.loads(runs.loc[own["run"].iloc[0], "parameters"])
    draw = {"resamples": how["resamples"], "seed": how["seed"]}
    names = [column.removeprefix("score:") for column in kept if column.startswith("score:")]
    labels = own.set_index(["task", "label", "metric"])
    for task, which in by_task(names).items():
        truth, scores = (
            kept[[f"{w}:{names[k]}" for k in which]].to_numpy(float) for w in ("truth", "score")
        )
        rows = evaluate(
            scores, truth, kept["patient_id"].to_numpy(), [names[k] for k in which], **draw
        )
        for row in rows:
            there = labels.loc[(task, row["label"], row["metric"])]
            assert [row[c] for c in ("value", "low", "high", "n", "positives")] == [
                there[c] for c in ("value", "low", "high", "n", "positives")
            ]


# ---- retrieval, differences --------------------------------------------------------------------
def test_recall_of_all_and_of_none_has_a_width():
    for rank, ends in ((1.0, (0.025 ** (1 / 30), 1)), (99.0, (0, 1 - 0.025 ** (1 / 30)))):
        row = zeroshot.recall(np.full((60, 2), rank), np.arange(60) // 2, resamples=20)[0]
        assert (row["low"], row["high"]) == pytest.approx(ends) and row["n_patients"] == 30
