"""Report scores compared with scikit-learn, sacrebleu, rouge-score and loops; easy cases."""

import numpy as np
import pandas as pd
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score

from cxrstudy.data import synthetic
from cxrstudy.data.reports import NAMES, extract_labels
from cxrstudy.data.vocabulary import FINDINGS
from cxrstudy.evaluate import textscores
from cxrstudy.evaluate.metrics import bootstrap, interval
from cxrstudy.evaluate.textscores import (
    corpus_bleu,
    differences,
    evaluate,
    other_patients,
    per_report,
    texts,
)

REPORTS = list(synthetic.describe(range(160)).report)
GROUPS = [f"p{k // 2}" for k in range(80)]
quick = settings(deadline=None, max_examples=25)


def table(generated, truth, groups=None, **more):
    rows = evaluate(
        generated, truth, groups or list(map(str, range(len(truth)))), **{"resamples": 50} | more
    )
    return {(row["label"], row["metric"]): row for row in rows}


def supports(row):
    """Patients whose report bears what a row of REPORTS counts (a patient a report)."""
    if not row["metric"].startswith("f1"):
        return len(REPORTS)
    columns = textscores.TASKS.get(
        row["label"], [NAMES.index(row["label"])] if row["label"] in NAMES else []
    )
    kind = int(row["metric"] == "f1_side")
    found = [
        {name for name, _ in textscores._positive(report, "present")[kind]} for report in REPORTS
    ]
    return sum(bool(names & set(columns)) for names in found)


def value(generated, truth, label, metric, **more):
    return table([generated], [truth], **more)[label, metric]["value"]


# ---- easy cases --------------------------------------------------------------------------------
def test_identical_reports_have_every_score_at_one():
    rows = table(REPORTS, REPORTS)
    assert {label for label, _ in rows} >= {
        "findings",
        "lines_tubes",
        "all",
        "cardiomegaly",
        "picc",
    }
    assert {metric for _, metric in rows} == {
        "f1_micro",
        "f1_macro",
        "f1_side",
        "rouge_l",
        "bleu_4",
        "f1",
    }
    for row in rows.values():
        assert (row["value"], row["high"]) == pytest.approx((1, 1), abs=1e-12)
        assert row["low"] == pytest.approx(0.025 ** (1 / supports(row)))  # every resample is alike
        assert (row["task"], row["n"]) == ("reports", len(REPORTS))


def test_empty_reports_have_every_score_at_zero():
    for empty in ("", "  ", "\n"):
        assert {row["value"] for row in table([empty] * len(REPORTS), REPORTS).values()} == {0.0}


def test_the_order_of_reports_changes_nothing():
    truth, mine, order = REPORTS[:80], REPORTS[80:], np.random.default_rng(0).permutation(80)
    one = table(mine, truth, GROUPS)
    two = table([mine[i] for i in order], [truth[i] for i in order], [GROUPS[i] for i in order])
    assert one.keys() == two.keys()
    for key, row in one.items():
        assert list(row.values())[3:] == pytest.approx(list(two[key].values())[3:], abs=1e-12)


def test_where_nothing_is_named_there_is_no_f1():
    rows = table(["No pneumothorax."], ["The heart is normal in size."])
    assert np.isnan(
        [rows["all", metric]["value"] for metric in ("f1_micro", "f1_macro", "f1_side")]
    ).all()
    assert rows["all", "rouge_l"]["value"] < 1
    assert rows["all", "f1_micro"]["positives"] == 0


def test_a_name_that_is_only_doubted_counts_as_asked():
    doubted, sure = "There may be pulmonary edema.", "Pulmonary edema."
    assert value(doubted, sure, "edema", "f1") == 1
    assert value(doubted, sure, "edema", "f1", uncertain="absent") == 0
    assert value(sure, doubted, "all", "f1_micro", uncertain="absent") == 0  # invented
    assert value("No pulmonary edema.", sure, "edema", "f1") == 0


def test_sides_are_judged_apart_from_names():
    left, right, both, neither = (
        f"{side} pleural effusion." for side in ("Left", "Right", "Bilateral", "Small")
    )
    assert value(left, right, "findings", "f1_micro") == 1
    assert value(left, right, "findings", "f1_side") == 0
    assert value(left, both, "findings", "f1_side") == pytest.approx(2 / 3)  # one of two sides
    assert value(f"{left} {right}", both, "all", "f1_side") == 1
    assert value(neither, left, "all", "f1_side") == 0
    assert np.isnan(value(neither, neither, "all", "f1_side"))
    assert (
        value(f"{left} Right chest tube.", f"{left} Left chest tube.", "lines_tubes", "f1_side")
        == 0
    )
    assert value(f"{left} Right chest tube.", f"{left} Left chest tube.", "all", "f1_side") == 0.5


def test_differences_are_by_name():
    told = differences(
        "Cardiomegaly. Right PICC. No effusion.",
        "The heart is enlarged. Small effusion. May be edema.",
    )
    assert told == {
        "agreed": ["cardiomegaly"],
        "missed": ["pleural_effusion", "edema"],
        "invented": ["picc"],
    }
    told = differences("Cardiomegaly.", "The heart is enlarged. May be edema.", uncertain="absent")
    assert told == {"agreed": ["cardiomegaly"], "missed": [], "invented": []}


def test_tracheostomy_tubes_and_the_like_are_lines_and_tubes():
    rows = table(["Tracheostomy tube."], ["Tracheostomy tube. Cardiomegaly."])
    assert rows["lines_tubes", "f1_micro"]["value"] == 1
    assert rows["findings", "f1_micro"]["value"] == 0


# ---- references --------------------------------------------------------------------------------
def bears(reports, positive=("present", "uncertain")):
    said = [extract_labels(text) for text in reports]
    return np.array(
        [[labels.get(name) in positive for name in NAMES] for labels in said], dtype=int
    )


@quick
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 30),
    uncertain=st.sampled_from(["present", "absent"]),
)
def test_f1_is_scikit_learns(seed, n, uncertain):
    rng = np.random.default_rng(seed)
    mine, truth = (
        ["" if rng.random() < 0.1 else REPORTS[i] for i in rng.integers(160, size=n)]
        for _ in range(2)
    )
    truth = [text or "No finding." for text in truth]
    positive = ("present", "uncertain") if uncertain == "present" else ("present",)
    y, s = bears(truth, positive), bears(mine, positive)
    rows = table(mine, truth, uncertain=uncertain, resamples=1)
    for task, of_task in {"findings": True, "lines_tubes": False, "all": None}.items():
        columns = [
            k for k, name in enumerate(NAMES) if of_task is None or (name in FINDINGS) == of_task
        ]
        pair = y[:, columns], s[:, columns]
        row = rows[task, "f1_micro"]
        assert row["positives"] == pair[0].sum()
        if pair[0].sum() + pair[1].sum():
            assert row["value"] == pytest.approx(f1_score(*pair, average="micro", zero_division=0))
        borne = [k for k in columns if y[:, k].any()]
        if borne:
            expected = np.mean([f1_score(y[:, k], s[:, k], zero_division=0) for k in borne])
            assert rows[task, "f1_macro"]["value"] == pytest.approx(expected)
    for k, name in enumerate(NAMES):
        assert ((name, "f1") in rows) == y[:, k].any()
        if y[:, k].any():
            assert rows[name, "f1"]["value"] == pytest.approx(
                f1_score(y[:, k], s[:, k], zero_division=0)
            )


sentences = st.lists(
    st.sampled_from(["no", "edema", "effusion", ",", ".", "left-sided", "4", "Cm", "the"]),
    max_size=9,
).map(" ".join)


@quick
@given(pairs=st.lists(st.tuples(sentences, sentences.filter(str.strip)), min_size=1, max_size=6))
def test_bleu_is_sacrebleus_of_the_corpus_and_of_each_report(pairs):
    mine, truth = map(list, zip(*pairs, strict=True))
    expected = sacrebleu.corpus_bleu(mine, [truth]).score / 100
    assert table(mine, truth, resamples=1)["all", "bleu_4"]["value"] == pytest.approx(
        expected, abs=1e-12
    )
    alone = [sacrebleu.sentence_bleu(m, [t]).score / 100 for m, t in pairs]
    assert list(per_report(mine, truth)["bleu_4"]) == pytest.approx(alone, abs=1e-12)


def test_bleu_of_many_sums_at_once_is_that_of_each():
    counts = np.array(
        [
            [9, 8, 5, 3, 0, 0, 9, 8, 7, 6],
            [3, 9, 3, 2, 1, 0, 3, 2, 1, 0],
            [9, 9, 9, 8, 7, 6, 9, 8, 7, 6],
        ]
    )
    expected = [
        sacrebleu.BLEU.compute_bleu(
            list(c[2:6]), list(c[6:]), int(c[0]), int(c[1]), smooth_method="exp"
        ).score
        / 100
        for c in counts
    ]
    np.testing.assert_allclose(corpus_bleu(counts.astype(float)), expected, atol=1e-12)
    np.testing.assert_allclose(corpus_bleu(counts[None].astype(float))[0], expected, atol=1e-12)


def test_rouge_is_the_mean_of_rouge_scores():
    mine, truth = REPORTS[80:], REPORTS[:80]
    scorer = RougeScorer(["rougeL"])
    alone = [scorer.score(t, m)["rougeL"].fmeasure for m, t in zip(mine, truth, strict=True)]
    assert table(mine, truth)["all", "rouge_l"]["value"] == pytest.approx(np.mean(alone))
    assert list(per_report(mine, truth)["rouge_l"]) == pytest.approx(alone)


@pytest.mark.parametrize("metric", ["f1_micro", "f1_macro", "f1_side", "rouge_l", "bleu_4"])
def test_intervals_are_those_of_a_loop_over_resampled_patients(metric):
    mine, truth = np.array(REPORTS[80:], dtype=object), np.array(REPORTS[:80], dtype=object)
    named = bears(truth).any(axis=0)  # macro F1 keeps the names of the whole test set

    def again(t, m):
        if metric == "f1_macro":
            y, s = bears(t)[:, named], bears(m)[:, named]
            both = (y | s).any(axis=0)
            return f1_score(y[:, both], s[:, both], average="macro", zero_division=0)
        return table(list(m), list(t), resamples=1)["all", metric]["value"]

    samples = bootstrap(again, truth, mine, groups=GROUPS, resamples=25, seed=3)
    low, high = interval(samples[:, 0])
    row = table(list(mine), list(truth), GROUPS, resamples=25, seed=3)["all", metric]
    assert (row["low"], row["high"]) == pytest.approx((float(low), float(high)), abs=1e-12)


def test_patients_are_drawn_not_reports():
    mine, truth = REPORTS[80:120], REPORTS[:40]
    names = list(map(str, range(40)))
    once, twice = table(mine, truth, names), table(mine * 2, truth * 2, names * 2)
    for key, row in once.items():
        ends = [row[name] for name in ("value", "low", "high")]
        assert ends == pytest.approx(
            [twice[key][name] for name in ("value", "low", "high")], abs=1e-12
        )


def test_a_reports_own_scores_are_those_of_it_alone():
    mine, truth = REPORTS[80:95], REPORTS[:15]
    rows = per_report(mine, truth)
    for k, (m, t) in enumerate(zip(mine, truth, strict=True)):
        alone = value(m, t, "all", "f1_micro")
        assert rows["f1"][k] == pytest.approx(alone, nan_ok=True)
        assert {kind: rows[kind][k] for kind in ("agreed", "missed", "invented")} == differences(
            m, t
        )


# ---- wrong input -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mine", "truth", "more", "said"),
    [
        (["a"], ["a", "b"], {}, "1 generated reports for 2 true ones"),
        ([], [], {}, "at least one"),
        (["a", "b", "c"], ["a", " ", ""], {}, r"row 1 is empty \(2 such rows\)"),
        (["a"], ["a"], {"resamples": 0}, "resamples"),
        (["a"], ["a"], {"groups": ["x", "y"]}, "groups"),
    ],
)
def test_wrong_input_is_refused_with_its_place(mine, truth, more, said):
    with pytest.raises(ValueError, match=said):
        evaluate(mine, truth, **{"groups": ["x"] * len(truth)} | more)


# ---- what is scored, and the control -----------------------------------------------------------
def test_a_part_of_a_report_is_cut_out_and_history_left_out():
    whole = "INDICATION: Fever.\nFINDINGS: Clear\n lungs.\n\nIMPRESSION: Normal.\n"
    manifest = pd.DataFrame({"report": [whole, "IMPRESSION: Edema.", None, "Lungs are clear.", ""]})
    joined = [
        "FINDINGS: Clear lungs. IMPRESSION: Normal.",
        "IMPRESSION: Edema.",
        "",
        "FINDINGS: Lungs are clear.",
        "",
    ]
    assert texts(manifest) == joined
    assert texts(manifest, "findings") == ["Clear lungs.", "", "", "Lungs are clear.", ""]
    assert texts(manifest, "impression") == ["Normal.", "Edema.", "", "", ""]
    with pytest.raises(ValueError, match="'report'"):
        texts(manifest.drop(columns="report"))


def test_synthetic_reports_are_written_as_they_are():
    assert texts(pd.DataFrame({"report": REPORTS})) == REPORTS


@quick
@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=12), seed=st.integers(0, 99))
def test_everyone_gets_the_image_of_another_patient_and_every_image_goes_to_one(sizes, seed):
    patients = np.random.default_rng(seed).permutation(
        np.repeat([f"p{k}" for k in range(len(sizes))], sizes)
    )
    if 2 * max(sizes) > sum(sizes):
        with pytest.raises(ValueError, match=f"'p{np.argmax(sizes)}'"):
            other_patients(patients, seed)
        return
    other = other_patients(patients, seed)
    assert sorted(other) == list(range(len(patients)))
    assert (patients[other] != patients).all()
    np.testing.assert_array_equal(other, other_patients(patients, seed))


def test_another_seed_gives_other_images():
    patients = np.arange(50)
    assert (other_patients(patients, 0) != other_patients(patients, 1)).any()


def test_reports_in_other_languages_are_set_aside_and_counted():
    manifest = pd.DataFrame(
        {"report": ["FINDINGS: No effusion.", "Kein Pneumothorax. Kein Erguss.", None]}
    )
    with pytest.warns(UserWarning, match="1 of 2 reports are not in English"):
        found = textscores.texts(manifest)
    assert [bool(text) for text in found] == [True, False, False]
