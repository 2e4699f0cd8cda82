"""Thresholds, probabilities and calibration against brute force and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_score, recall_score

from cxrstudy.evaluate.calibration import (
    BINS,
    best_threshold,
    fit_platt,
    reliability,
    threshold_metrics,
)
from cxrstudy.evaluate.metrics import bootstrap, resampled_sums

quick = settings(deadline=None, max_examples=40)


def draw(seed, n=60, labels=2, unknown=0.1):
    rng = np.random.default_rng(seed)
    s = np.round(rng.normal(size=(n, labels)), 1)  # ties
    y = (s + rng.normal(size=s.shape) > 0.8).astype(float)
    y[rng.random(y.shape) < unknown] = np.nan
    return y, s


@quick
@given(seed=st.integers(0, 10**6), n=st.integers(2, 40))
def test_the_threshold_is_the_one_that_brute_force_finds(seed, n):
    y, s = draw(seed, n, 1)
    known = ~np.isnan(y[:, 0])
    found = best_threshold(y, s)[0]
    if not np.nansum(y):
        assert np.isnan(found)
        return
    choices = np.unique(s[known])
    f1 = np.array([f1_score(y[known, 0], s[known, 0] >= t) for t in choices])
    assert found == choices[np.flatnonzero(f1 >= f1.max() - 1e-12).max()]


@quick
@given(seed=st.integers(0, 10**6))
def test_what_is_unknown_or_in_another_order_moves_no_threshold(seed):
    y, s = draw(seed, 50, 2, 0.3)
    order = np.random.default_rng(seed).permutation(50)
    np.testing.assert_array_equal(best_threshold(y[order], s[order]), best_threshold(y, s))
    moved = np.where(np.isnan(y), 99.0, s)
    np.testing.assert_array_equal(best_threshold(y, moved), best_threshold(y, s))
    np.testing.assert_allclose(fit_platt(y, moved), fit_platt(y, s))


def test_platt_is_a_logistic_regression_on_softened_targets():
    y, s = draw(3, 400, 2)
    found = fit_platt(y, s)
    for j in range(2):
        known = ~np.isnan(y[:, j])
        truth, score = y[known, j], s[known, j]
        high, low = (truth.sum() + 1) / (truth.sum() + 2), 1 / (len(truth) - truth.sum() + 2)
        soft = np.where(truth == 1, high, low)
        both, weight = np.concatenate([score, score])[:, None], np.concatenate([soft, 1 - soft])
        model = LogisticRegression(C=1e10, tol=1e-10).fit(
            both, np.repeat([1, 0], len(score)), sample_weight=weight
        )
        np.testing.assert_allclose(
            found[j], [model.coef_[0, 0], model.intercept_[0]], rtol=1e-3, atol=1e-3
        )


def test_scores_that_separate_or_do_not_vary_have_finite_probabilities():
    y = np.repeat([[0.0], [1.0]], 20, axis=0)
    slope, intercept = fit_platt(y, np.linspace(-1, 1, 40)[:, None])[0]
    assert np.isfinite([slope, intercept]).all() and slope > 0
    flat = fit_platt(y, np.full((40, 1), 3.0))[0]
    assert flat[0] == 0 and expit(flat[1]) == pytest.approx(0.5, abs=0.01)
    assert np.isfinite(fit_platt(np.full((5, 1), np.nan), np.zeros((5, 1)))).all()


@quick
@given(seed=st.integers(0, 10**6))
def test_decisions_are_scikit_learns_and_resamples_are_the_bootstraps(seed):
    y, s = draw(seed, 50)
    calls, p, groups = (s >= 0.3).astype(float), expit(s), np.arange(50) // 2
    found = threshold_metrics(y, calls, p, groups=groups, resamples=30, seed=seed)
    for j in range(2):
        known = ~np.isnan(y[:, j])
        truth, call = y[known, j], calls[known, j]
        if 0 < truth.sum() < len(truth) and call.any():
            values = [found[name][0][j] for name in ("f1", "sensitivity", "specificity", "ppv")]
            wanted = [
                f1_score(truth, call),
                recall_score(truth, call),
                recall_score(1 - truth, 1 - call),
            ]
            np.testing.assert_allclose(values, [*wanted, precision_score(truth, call)])
        bins = np.minimum((p[known, j] * BINS).astype(int), BINS - 1)
        gaps = [abs((truth - p[known, j])[bins == k].sum()) for k in range(BINS)]
        assert found["ece"][0][j] == pytest.approx(sum(gaps) / known.sum())
        table = reliability(y[:, j], p[:, j])
        assert (
            table["n"] * (table["mean_predicted"] - table["fraction_positive"]).abs()
        ).sum() / known.sum() == pytest.approx(found["ece"][0][j])

    def sensitivity(truth, call):
        yes = truth == 1
        return np.where(yes.any(0), (call * yes).sum(0) / np.maximum(yes.sum(0), 1), np.nan)

    slow = bootstrap(sensitivity, y, calls, groups=groups, resamples=30, seed=seed)
    np.testing.assert_allclose(found["sensitivity"][1], slow)


def test_sums_of_resamples_are_those_of_the_rows_drawn():
    rng = np.random.default_rng(0)
    cells, groups = rng.normal(size=(30, 3)), rng.integers(0, 9, 30)
    slow = bootstrap(lambda a, _: a.sum(0), cells, cells, groups=groups, resamples=20, seed=4)
    np.testing.assert_allclose(resampled_sums(cells, groups=groups, resamples=20, seed=4), slow)


def test_the_interval_of_ece_holds_its_value_though_resampling_adds_noise():
    rng = np.random.default_rng(0)
    p = rng.random((600, 1))
    y = (rng.random((600, 1)) < p).astype(float)
    value, draws = threshold_metrics(y, y, p, groups=np.arange(600), resamples=300)["ece"]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert low < value[0] < high
    assert value[0] < 0.08
    assert threshold_metrics(y, y, 1 - p, groups=np.arange(600), resamples=20)["ece"][0] > 0.4


def test_nothing_is_said_where_nothing_can_be_divided_by():
    y, calls = np.array([[0.0, 1, np.nan]] * 4), np.array([[0.0, 1, 1]] * 4)
    found = threshold_metrics(y, calls, calls, groups=np.arange(4), resamples=20)
    assert np.isnan([found["f1"][0][0], found["sensitivity"][0][0], found["ppv"][0][0]]).all()
    assert np.isnan(found["specificity"][0][1]) and found["sensitivity"][0][1] == 1
    assert all(np.isnan(found[name][0][2]) for name in found)


def test_a_resample_without_anyone_known_does_not_cost_the_interval_of_ece():
    rng, y = np.random.default_rng(0), np.full((40, 2), np.nan)
    y[:2, 0], y[:, 1] = [0.0, 1.0], rng.integers(0, 2, 40)
    p = np.tile(np.linspace(0.1, 0.9, 40)[:, None], 2)
    value, draws = threshold_metrics(y, y, p, groups=np.arange(40), resamples=60)["ece"]
    missing = np.isnan(draws[:, 0])
    assert 0 < missing.sum() < 30  # neither of the two was drawn
    assert np.isfinite(draws[:, 1]).all()
    assert draws[~missing, 0].min() <= value[0] <= draws[~missing, 0].max()
