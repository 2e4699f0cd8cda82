"""Means over institutions: a published example, laws, and coverage with few institutions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from cxrstudy.scaling.pooled import between_variance, pool, standard_error

# Nine laboratories: table 1 of Kacker, Metrologia 41 (2004) 132. Results of R's metafor (rma with
# method "PM", and with method "DL" and test "knha") as statsmodels has them in its tests:
# statsmodels/stats/tests/results/results_meta.py
Y = [61.0, 61.4, 62.21, 62.3, 62.34, 62.6, 62.7, 62.84, 65.9]
V = [0.2025, 1.2100, 0.0900, 0.2025, 0.3844, 0.5625, 0.0676, 0.0225, 1.8225]


def test_a_published_example_gives_its_published_numbers() -> None:
    assert between_variance(Y, V) == pytest.approx(0.705395309224248, abs=1e-9)
    assert pool(Y, V).effect == pytest.approx(62.4076199113286, abs=1e-9)
    assert pool(Y, V).tau == pytest.approx(0.8399, abs=5e-5)  # as printed by Kacker
    known = pool(Y, V, tau2=0.288049246973751, never_narrower=False)
    assert known.effect == pytest.approx(62.3901386044504, abs=1e-9)
    assert known.low == pytest.approx(61.710383798052, abs=1e-9)
    assert known.high == pytest.approx(63.0698934108488, abs=1e-9)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), min_size=2, max_size=8),
    st.floats(-3, 3),
)
def test_a_shift_and_an_order_change_nothing_else(pairs, shift) -> None:
    y, v = np.array(pairs).T
    one, other = pool(y, v), pool((y + shift)[::-1], v[::-1])
    assert other.effect == pytest.approx(one.effect + shift, abs=1e-6)
    assert other.high - other.low == pytest.approx(one.high - one.low, rel=1e-5, abs=1e-6)
    assert y.min() - 1e-9 <= one.effect <= y.max() + 1e-9
    w = 1 / (v + one.tau**2)
    assert one.high - one.low >= 2 * 1.96 / np.sqrt(w.sum()) - 1e-9


@pytest.mark.parametrize("sites", [2, 3, 5])
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_the_interval_covers_the_mean_where_that_of_the_normal_does_not(sites, tau) -> None:
    rng, held, held_by_normal, repeats = np.random.default_rng(sites), 0, 0, 800
    for _ in range(repeats):
        v = rng.uniform(0.2, 1.5, sites)
        y = rng.normal(0.3, np.sqrt(v + tau**2))
        found = pool(y, v)
        w = 1 / (v + found.tau**2)
        held += found.low <= 0.3 <= found.high
        held_by_normal += abs(found.effect - 0.3) <= norm.ppf(0.975) / np.sqrt(w.sum())
    assert held / repeats >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / repeats)
    if tau and sites < 5:
        assert held_by_normal / repeats < 0.92


def test_what_cannot_be_pooled_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        pool([0.1], [0.01])
    for variance in (0.0, np.nan, -1.0):
        with pytest.raises(ValueError, match="positive"):
            pool([0.1, 0.2], [0.01, variance])
    assert standard_error([-1.959964], [1.959964]) == pytest.approx([1.0], abs=1e-6)
