"""The linear probe compared with scikit-learn's logistic regression, by label and penalty."""

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cxrstudy.evaluate.classification import by_task, evaluate, fit_probe
from cxrstudy.evaluate.metrics import auroc, bootstrap, interval

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def one_thread():
    """Small problems: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def task(n=300, d=20, labels=4, seed=0, unknown=0.0):
    """Features of unequal scale, labels of unequal prevalence: (x, y, x_val, y_val)."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(2 * n, d)) * np.arange(1, d + 1) ** -0.5) @ rng.normal(size=(d, d))
    x = x * 10 ** rng.uniform(-2, 2, size=d) + 10 * rng.normal(size=d)
    logit = ((x - x.mean(0)) / x.std(0)) @ rng.normal(size=(d, labels)) / d**0.5
    y = (logit + rng.logistic(size=logit.shape) > np.linspace(-0.5, 2, labels)).astype(float)
    y[rng.random(y.shape) < unknown] = np.nan
    return x[:n], y[:n], x[n:], y[n:]


def sklearn_fit(x, label, strength):
    """(coef, intercept) in units of x, from known rows, features standardised by all rows."""
    mean, std = x.mean(0), x.std(0)
    std[std == 0] = np.inf
    known = ~np.isnan(label)
    model = LogisticRegression(C=1 / (strength * known.sum()), solver="newton-cholesky", tol=1e-8)
    model.fit((x[known] - mean) / std, label[known])
    return model.coef_[0] / std, model.intercept_[0] - model.coef_[0] / std @ mean


@pytest.mark.parametrize(("n", "d", "unknown"), [(400, 20, 0.0), (300, 30, 0.3), (60, 150, 0.2)])
@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0])
def test_is_the_optimum_that_sklearn_finds(n, d, unknown, strength):
    """More images than features and fewer, with unknown labels and without."""
    x, y, x_val, y_val = task(n, d, unknown=unknown)
    probe = fit_probe(x, y, strengths=[strength], x_val=x_val, y_val=y_val)
    scores = probe.decision_function(x_val)
    for j in range(y.shape[1]):
        coef, intercept = sklearn_fit(x, y[:, j], strength)
        assert np.linalg.norm((probe.coef[j] - coef) * x.std(0)) <= 2e-3 * np.linalg.norm(
            coef * x.std(0)
        )
        known = ~np.isnan(y_val[:, j])
        theirs = roc_auc_score(y_val[known, j], (x_val @ coef + intercept)[known])
        assert probe.val_auroc[0, j] == pytest.approx(theirs, abs=0.002)
        np.testing.assert_allclose(
            scores[:, j], x_val @ coef + intercept, atol=5e-3 * (1 + np.abs(scores[:, j]).max())
        )


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(8, 80),
    d=st.integers(1, 40),
    strength=st.floats(1e-3, 10),
)
@settings(deadline=None, max_examples=25)
def test_no_weights_give_a_lower_objective(seed, n, d, strength):
    """The gradient of the documented objective vanishes on any input."""
    x, y, x_val, y_val = task(n, d, labels=2, seed=seed, unknown=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe = fit_probe(x, y, strengths=[strength], x_val=x_val, y_val=y_val)
    z = (x - x.mean(0)) / x.std(0)
    for j in np.flatnonzero(~np.isnan(probe.strength)):
        known = ~np.isnan(y[:, j])
        w, p = probe.coef[j] * x.std(0), 1 / (1 + np.exp(-probe.decision_function(x)[known, j]))
        miss = p - y[known, j]
        gradient = np.append(z[known].T @ miss / known.sum() + strength * w, miss.mean())
        assert np.abs(gradient).max() < 1e-4


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_order_and_copies_of_unknown_rows_do_not_matter(seed):
    x, y, x_val, y_val = task(120, 6, labels=2, seed=seed)
    rng = np.random.default_rng(seed)
    call = {"strengths": [0.1, 0.01], "x_val": x_val, "y_val": y_val}
    probe, order = fit_probe(x, y, **call), rng.permutation(120)
    moved = fit_probe(x[order], y[order], **call)
    np.testing.assert_allclose(moved.coef * x.std(0), probe.coef * x.std(0), atol=2e-4)
    # each image also stands as a copy without labels: moments unchanged, so the fit is too
    masked = fit_probe(np.concatenate([x, x]), np.concatenate([y, np.full_like(y, np.nan)]), **call)
    np.testing.assert_allclose(masked.coef * x.std(0), probe.coef * x.std(0), atol=2e-4)
    # and a label's unknown rows count for the other labels alone
    hidden = y.copy()
    hidden[rng.random(120) < 0.3, 0] = np.nan
    np.testing.assert_allclose(
        fit_probe(x, hidden, **call).coef[1] * x.std(0), probe.coef[1] * x.std(0), atol=2e-4
    )


def test_labels_and_strengths_together_equal_one_at_a_time():
    x, y, x_val, y_val = task(250, 12, unknown=0.1)
    path = [1e-3, 1e-1, 10.0]
    together = fit_probe(x, y, strengths=path, x_val=x_val, y_val=y_val)
    assert together.val_auroc.shape == (3, 4) and together.coef.shape == (4, 12)
    for s, strength in enumerate(path):
        for j in range(4):
            alone = fit_probe(x, y[:, j], strengths=[strength], x_val=x_val, y_val=y_val[:, j])
            assert alone.val_auroc[0, 0] == pytest.approx(together.val_auroc[s, j], abs=1e-3)
            if strength == together.strength[j]:
                np.testing.assert_allclose(
                    alone.coef[0] * x.std(0), together.coef[j] * x.std(0), atol=2e-4
                )
    np.testing.assert_array_equal(
        together.strength, np.array(path)[together.val_auroc.argmax(axis=0)]
    )
    np.testing.assert_allclose(
        auroc(y_val, together.decision_function(x_val)), together.val_auroc.max(axis=0)
    )


def test_equal_validation_scores_take_the_stronger_penalty():
    x = np.linspace(-1, 1, 40)[:, None]  # one feature: every penalty orders the images alike
    y = (x[:, 0] > 0).astype(float)
    assert fit_probe(x, y, strengths=[0.1, 10, 1], x_val=x, y_val=y).strength == [10]


def test_without_validation_positives_the_median_strength_is_taken_and_said_once():
    x, y, x_val, y_val = task(labels=3)
    y_val[:, 0], y_val[:, 2] = 0, np.nan
    with pytest.warns(UserWarning, match=r"label\(s\) \[0, 2\].*median, 0.1") as caught:
        probe = fit_probe(x, y, strengths=[0.001, 0.1, 5], x_val=x_val, y_val=y_val)
    assert len(caught) == 1 and probe.strength[0] == probe.strength[2] == 0.1
    assert np.isnan(probe.val_auroc[:, [0, 2]]).all() and not np.isnan(probe.val_auroc[:, 1]).any()


def test_labels_of_one_class_and_constant_features_do_no_harm():
    x, y, x_val, y_val = task(labels=4)
    y[:, 0], y[:, 1], y[:, 2] = 0, 1, np.nan
    x[:, 5], x_val[:, 5] = 1e6 + 0.1, 3.0
    probe = fit_probe(x, y, strengths=[0.1], x_val=x_val, y_val=y_val)
    scores = probe.decision_function(x_val)
    np.testing.assert_array_equal(np.isnan(probe.strength), [True, True, True, False])
    assert (
        np.ptp(scores[:, :3], axis=0).max() == 0
        and scores[0, 0] < 0 < scores[0, 1]
        and scores[0, 2] == 0
    )
    assert (probe.coef[:, 5] == 0).all() and np.isfinite(scores).all()
    coef, _ = sklearn_fit(x, y[:, 3], 0.1)
    np.testing.assert_allclose(np.delete((probe.coef[3] - coef) * x.std(0), 5), 0, atol=1e-3)


def test_takes_torch_and_half_precision():
    x, y, x_val, y_val = (np.ascontiguousarray(a, dtype=np.float32) for a in task(80, 5))
    ours = fit_probe(x, y, strengths=[0.1], x_val=x_val, y_val=y_val)
    x, y, x_val, y_val = (torch.from_numpy(a) for a in (x, y, x_val, y_val))
    theirs = fit_probe(x.requires_grad_(), y, strengths=[0.1], x_val=x_val, y_val=y_val)
    np.testing.assert_array_equal(ours.coef, theirs.coef)
    half = fit_probe(x.bfloat16(), y, strengths=[0.1], x_val=x_val.bfloat16(), y_val=y_val)
    assert half.decision_function(x_val.bfloat16()).dtype == np.float64
    with pytest.raises(AttributeError):
        ours.coef = None


def test_refusals_name_the_reason():
    x, y, x_val, y_val = task(50, 4, labels=2)
    ok = {"strengths": [1.0], "x_val": x_val, "y_val": y_val}
    bad = x.copy()
    bad[[7, 9], 2] = [np.inf, np.nan]
    for change, match in [
        ({"strengths": []}, "strengths must be a non-empty"),
        ({"strengths": [1, 0]}, "positive numbers"),
        ({"x": bad}, r"x has a feature that is not finite in row 7 \(2 such rows\)"),
        ({"x_val": bad}, "x_val has a feature"),
        ({"y": y[:-1]}, r"y has shape \(49, 2\), expected \(50, L\)"),
        ({"y_val": y_val[:, :1]}, "differ in features or labels"),
        ({"x_val": x_val[:, :3]}, "differ in features or labels"),
        ({"y": y + 1}, "y must be 0, 1 or NaN: found 2.0 in row"),
        ({"x": x[:, 0]}, r"non-empty \(N, D\)"),
    ]:
        with pytest.raises(ValueError, match=match):
            fit_probe(**({"x": x, "y": y} | ok | change))
    with pytest.raises(ValueError, match="x has 3 features, the probe was fitted on 4"):
        fit_probe(x, y, **ok).decision_function(x_val[:, :3])


def test_evaluate_reports_labels_and_their_mean():
    rng = np.random.default_rng(0)
    y = (rng.random((200, 3)) < [0.3, 0.1, 0.5]).astype(float)
    y[:, 2], y[:20, 0] = 0, np.nan
    scores, groups = rng.normal(size=y.shape) + np.nan_to_num(y), np.arange(200) // 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records = evaluate(scores, y, groups, ["edema", "picc", "fracture"], resamples=200, seed=1)
    assert [(r["metric"], r["label"]) for r in records] == [
        (m, name) for m in ("auroc", "auprc") for name in ("edema", "picc", "fracture", "macro")
    ]
    edema, picc, fracture, macro = records[:4]
    value, samples = (
        auroc(y, scores),
        bootstrap(auroc, y, scores, groups=groups, resamples=200, seed=1),
    )
    assert edema["value"] == value[0] and (edema["low"], edema["high"]) == tuple(
        e[0] for e in interval(samples)
    )
    assert edema["n"] == 180 and edema["positives"] == np.nansum(y[:, 0]) and picc["n"] == 200
    assert (
        np.isnan([fracture["value"], fracture["low"], fracture["high"]]).all()
        and fracture["positives"] == 0
    )
    assert (
        macro["value"] == pytest.approx(value[:2].mean())
        and macro["low"] < macro["value"] < macro["high"]
    )
    assert (macro["low"], macro["high"]) == pytest.approx(interval(samples[:, :2].mean(axis=1)))
    assert macro["positives"] == edema["positives"] + picc["positives"] and macro["n"] == 200
    with pytest.raises(ValueError, match="2 names"):
        evaluate(scores, y, groups, ["a", "b"])


@pytest.mark.skipif(
    not (SHARED / "nih_subset").is_dir(),
    reason="needs the real x-rays of ../shared/data/nih_subset",
)
def test_real_labels_and_patients():
    """Age, sex and view of 1,000 real x-rays: the probe agrees with scikit-learn."""
    with open(
        SHARED / "nih_subset" / "Data_Entry_2017_v2020.csv", newline="", encoding="utf-8"
    ) as file:
        rows = list(csv.DictReader(file))
    x = np.array(
        [
            [float(r["Patient Age"]), r["Patient Gender"] == "M", r["View Position"] == "PA"]
            for r in rows
        ]
    )
    y = (
        np.array(
            [
                [name in r["Finding Labels"] for name in ("Edema", "Effusion", "Infiltration")]
                for r in rows
            ]
        )
        * 1.0
    )
    patients = np.array([int(r["Patient ID"]) for r in rows])
    test = patients % 3 == 0
    probe = fit_probe(x[~test], y[~test], strengths=[1e-3, 0.1], x_val=x[test], y_val=y[test])
    for j in range(3):
        coef, intercept = sklearn_fit(x[~test], y[~test, j], probe.strength[j])
        np.testing.assert_allclose(
            probe.decision_function(x[test])[:, j], x[test] @ coef + intercept, atol=1e-3
        )
    records = evaluate(
        probe.decision_function(x[test]), y[test], patients[test], ["e", "f", "i"], resamples=100
    )
    assert all(r["low"] < r["value"] < r["high"] for r in records)


# ---- more metrics ------------------------------------------------------------------------------
def test_evaluate_weighs_labels_by_their_positives_and_judges_decisions():
    rng = np.random.default_rng(0)
    y = (rng.random((300, 3)) < [0.4, 0.1, 0.0]).astype(float)
    s = rng.normal(size=y.shape) + y
    calls, p = (s > 0.5).astype(float), 1 / (1 + np.exp(-s))
    names, groups = ["edema", "picc", "fracture"], np.arange(300) // 2
    rows = evaluate(s, y, groups, names, predictions=calls, probabilities=p, resamples=100)
    value = {(r["label"], r["metric"]): r for r in rows}
    weights = y[:, :2].sum(0)
    for metric in ("auroc", "auprc", "f1", "sensitivity", "specificity", "ppv", "ece"):
        parts = np.array([value[name, metric]["value"] for name in names[:2]])
        used = weights if metric not in ("specificity", "ece", "ppv") else y.sum(0)
        whole = value["macro", f"{metric}_weighted"]
        assert whole["value"] == pytest.approx((parts * weights).sum() / used.sum())
        assert whole["low"] <= whole["value"] <= whole["high"]
    assert value["macro", "f1"]["value"] == pytest.approx(
        np.mean([value[n, "f1"]["value"] for n in names[:2]])
    )
    assert all(
        np.isnan(value["fracture", metric]["value"]) for metric in ("sensitivity", "specificity")
    )
    assert value["fracture", "auroc"]["note"].startswith(
        "too few to evaluate: 0 test images of 0 patients with it, 300"
    )
    assert value["macro", "auroc"]["note"].startswith("over 2 of 3 labels")
    assert by_task(["edema", "picc", "right:edema", "malposition:picc", "zero_shot:picc"]) == {
        "findings": [0], "lines_tubes": [1], "malposition": [3], "laterality": [2], "zero_shot": [4]
    }  # fmt: skip
