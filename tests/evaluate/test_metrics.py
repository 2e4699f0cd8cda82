"""AUROC, AUPRC and their patient bootstrap against scikit-learn and naive loops."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from cxrstudy.evaluate.metrics import auprc, auroc, bootstrap, interval, knn_auroc

REFERENCE = {auroc: roc_auc_score, auprc: average_precision_score}
both = pytest.mark.parametrize("metric", [auroc, auprc])


def reference(metric, y, s, weights=None):
    """scikit-learn, one label at a time, NaN rows dropped; NaN where one class is left."""
    values = []
    for label, score in zip(y.T, s.T, strict=True):
        known = ~np.isnan(label)
        weight = np.ones(len(label)) if weights is None else weights
        present = {label[i] for i in np.flatnonzero(known) if weight[i] > 0}
        one = (
            np.nan
            if len(present) < 2
            else REFERENCE[metric](label[known], score[known], sample_weight=weight[known])
        )
        values.append(one)
    return np.array(values)


@st.composite
def problems(draw, labels=3):
    """y (N,L) with unknown and one-class labels, s with and without ties, patients of 1 to many."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = (rng.random((n, labels)) < rng.choice([0.05, 0.5, 0.95], size=labels)).astype(float)
    y[rng.random(y.shape) < draw(st.sampled_from([0, 0.3]))] = np.nan
    s = rng.normal(size=y.shape) + np.nan_to_num(y)
    step = draw(st.sampled_from([0, 0.5, 3]))
    return y, np.round(s / step) if step else s, rng.integers(draw(st.integers(1, n)), size=n), rng


@both
@given(problem=problems())
@settings(deadline=None, max_examples=60)
def test_equals_sklearn_on_every_input(metric, problem):
    y, s, _, rng = problem
    np.testing.assert_allclose(metric(y, s), reference(metric, y, s), rtol=0, atol=1e-12)
    weights = rng.integers(0, 4, size=len(y)) * rng.choice([1, 0.37])
    np.testing.assert_allclose(
        metric(y, s, weights), reference(metric, y, s, weights), rtol=0, atol=1e-12
    )


@both
@given(problem=problems(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_bootstrap_equals_a_loop_over_resampled_rows(metric, problem, seed):
    y, s, groups, _ = problem
    names = np.unique(groups)
    rng, rows = np.random.default_rng(seed), []
    for _ in range(4):
        drawn = names[rng.integers(len(names), size=len(names))]
        rows.append(np.concatenate([np.flatnonzero(groups == name) for name in drawn]))
    naive = np.stack([reference(metric, y[i], s[i]) for i in rows])
    fast = bootstrap(metric, y, s, groups=groups, resamples=4, seed=seed)
    slow = bootstrap(
        lambda y, s: reference(metric, y, s), y, s, groups=groups, resamples=4, seed=seed
    )
    np.testing.assert_allclose(fast, naive, rtol=0, atol=1e-12)
    np.testing.assert_allclose(slow, naive, rtol=0, atol=1e-12)


@both
@given(problem=problems(), scale=st.sampled_from([0.5, 4.0]))
@settings(deadline=None, max_examples=30)
def test_order_of_images_and_scale_of_scores_do_not_matter(metric, problem, scale):
    y, s, groups, rng = problem
    order = rng.permutation(len(y))
    np.testing.assert_allclose(
        metric(y[order], s[order] * scale + 1), metric(y, s), rtol=0, atol=1e-12
    )
    here = bootstrap(metric, y, s, groups=groups, resamples=5)
    there = bootstrap(metric, y[order], s[order], groups=groups[order], resamples=5)
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-12)


@given(problem=problems())
@settings(deadline=None, max_examples=30)
def test_turning_the_scores_round_turns_auroc_round(problem):
    y, s, _, _ = problem
    np.testing.assert_allclose(auroc(y, -s), 1 - auroc(y, s), rtol=0, atol=1e-12)
    np.testing.assert_allclose(auroc(1 - y, s), 1 - auroc(y, s), rtol=0, atol=1e-12)


@both
def test_resamples_are_shared_by_labels_and_encoders_and_by_longer_runs(metric):
    rng = np.random.default_rng(0)
    y, s, groups = (
        rng.integers(0, 2, (60, 2)).astype(float),
        rng.normal(size=(60, 2)),
        np.arange(60) // 2,
    )
    first = bootstrap(metric, y, s, groups=groups, resamples=600, seed=3)
    swapped = bootstrap(metric, y[:, ::-1], s[:, ::-1], groups=groups, resamples=600, seed=3)
    np.testing.assert_array_equal(first, swapped[:, ::-1])
    np.testing.assert_array_equal(
        first[:300], bootstrap(metric, y, s, groups=groups, resamples=300, seed=3)
    )
    same = bootstrap(metric, y, 2 * s, groups=groups, resamples=600, seed=3)
    np.testing.assert_array_equal(first - same, 0)
    assert not np.array_equal(first, bootstrap(metric, y, s, groups=groups, resamples=600, seed=4))


def test_patients_come_whole():
    """Copies of an image under one patient act as one image; under many patients they do not."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 100).astype(float)
    s = y + rng.normal(size=100)
    copies = np.repeat(np.arange(100), 4)
    alone = bootstrap(auroc, y, s, groups=np.arange(100), resamples=400)
    whole = bootstrap(auroc, y[copies], s[copies], groups=copies, resamples=400)
    apart = bootstrap(auroc, y[copies], s[copies], groups=np.arange(400), resamples=400)
    np.testing.assert_allclose(whole, alone, atol=1e-12)
    assert apart.std() < 0.6 * whole.std()


def test_interval_covers_the_truth_as_often_as_it_says():
    """In 200 simulated data sets of 300 patients, the 95% interval covers the true AUROC."""
    rng, truth, hits = np.random.default_rng(2), 0.7602499389065233, 0  # Phi(1 / sqrt 2)
    for _ in range(200):
        patient = np.sort(rng.integers(300, size=450))
        y = (rng.random(300) < 0.3)[patient].astype(float)
        lo, hi = interval(
            bootstrap(auroc, y, y + rng.normal(size=450), groups=patient, resamples=200)
        )
        hits += lo[0] <= truth <= hi[0]
    assert 0.90 <= hits / 200 <= 0.99


@both
def test_many_images_and_blocks_do_not_change_a_value(metric):
    """Large enough that weightings are done in many blocks."""
    rng = np.random.default_rng(5)
    y, s = (rng.random((9000, 2)) < 0.1).astype(float), rng.normal(size=(9000, 2)).round(2)
    samples = bootstrap(metric, y, s, groups=np.arange(9000) // 3, resamples=120)
    assert samples.shape == (120, 2)
    draw = np.random.default_rng(0).integers(3000, size=(120, 3000))[-1]
    rows = np.concatenate([3 * draw, 3 * draw + 1, 3 * draw + 2])
    np.testing.assert_allclose(samples[-1], reference(metric, y[rows], s[rows]), atol=1e-12)


def test_any_metric_of_any_shape():
    masks = np.zeros((10, 4, 4), bool)
    masks[:5] = True
    samples = bootstrap(
        lambda y, s: (y == s).mean(), masks, masks, groups=list("aabbccddee"), resamples=4
    )
    np.testing.assert_array_equal(samples, np.ones((4, 1)))


def test_interval_ignores_nan_and_keeps_shape():
    samples = np.arange(101.0)[:, None] * [1.0, 2.0, np.nan]
    samples[3, 1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lo, hi = interval(samples, level=0.9)
    np.testing.assert_allclose(lo, [5, np.nanquantile(samples[:, 1], 0.05), np.nan])
    np.testing.assert_allclose(hi, [95, np.nanquantile(samples[:, 1], 0.95), np.nan])
    assert np.ndim(interval(samples[:, 0])[0]) == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval(samples, level=95)


@both
def test_refusals_name_the_reason(metric):
    y, s = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.1, 0.2], [0.3, 0.4]])
    with pytest.raises(
        ValueError, match=r"shape \(2, 2\), s has \(2,\)|shape \(2, 2\), s has \(2, 1\)"
    ):
        metric(y, s[:, 0])
    with pytest.raises(ValueError, match=r"found 2\.0 in row 0, label 1"):
        metric(np.where(y == 1, [1, 2], y), s)
    with pytest.raises(ValueError, match="found nan in row 1, label 0"):
        metric(y, np.where(s == 0.3, np.nan, s))
    assert np.isfinite(metric(y[:, 0], s[:, 0])).all() and metric(y[:, 0], s[:, 0]).shape == (1,)
    with pytest.raises(ValueError, match=r"weights have shape \(3,\)"):
        metric(y, s, np.ones(3))
    with pytest.raises(ValueError, match="not negative"):
        metric(y, s, np.array([1, -1]))
    with pytest.raises(ValueError, match=r"groups have shape \(1,\)"):
        bootstrap(metric, y, s, groups=[1], resamples=3)
    with pytest.raises(ValueError, match="row 1 has nan"):
        bootstrap(metric, y, s, groups=[1, np.nan], resamples=3)
    with pytest.raises(ValueError, match="at least 1"):
        bootstrap(metric, y, s, groups=[1, 2], resamples=0)


def test_a_score_that_is_nan_is_harmless_where_the_label_is_unknown():
    y, s = np.array([0, 1, np.nan, 1]), np.array([0.1, 0.9, np.nan, np.inf])
    assert auroc(y, s) == auprc(y, s) == 1


def test_knn_auroc_is_one_where_neighbours_share_labels_and_a_half_where_they_do_not():
    rng = np.random.default_rng(0)
    y = (np.arange(300) % 3 == np.arange(3)[:, None]).T.astype(float)
    apart = np.eye(3)[np.arange(300) % 3] + 0.05 * rng.normal(size=(300, 3))
    assert knn_auroc(apart, y) == pytest.approx(1.0)
    assert knn_auroc(rng.normal(size=(300, 8)), y) == pytest.approx(0.5, abs=0.08)
    y[:30, 0] = np.nan
    assert knn_auroc(apart, y) > 0.99
    assert knn_auroc(apart, np.zeros((300, 2))) == 0.5
