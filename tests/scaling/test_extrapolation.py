"""Hold-out extrapolation: forms are chosen and evaluated by sizes that were left out of the fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy.scaling.extrapolation import choose_form, extrapolate
from cxrstudy.scaling.fit import fit_scaling

SIX = np.repeat([200, 600, 2000, 6000, 20000, 50000.0], [3, 2, 2, 2, 2, 3])
FORMS = ["power", "power_floor", "m4"]


def power(n, b=0.25, top=0.3):
    return top * (n / 200) ** -b


def power_floor(n):
    return 0.1 + 0.2 * (n / 200) ** -0.6


# ---- the choice of a form ----------------------------------------------------------------------
@pytest.mark.parametrize("law", [power, power_floor])
@pytest.mark.parametrize("given_sigma", [False, True])
def test_the_form_behind_the_runs_is_chosen(law, given_sigma):
    rng, chosen, curve = np.random.default_rng(3), [], law(SIX)
    for _ in range(8):
        error = curve * (1 + 0.01 * rng.normal(size=14))
        found = choose_form(SIX, error, 0.01 * curve if given_sigma else None)
        assert list(found["form"]) == FORMS and found["chosen"].sum() == 1
        chosen.append(found.loc[found["chosen"], "form"].iloc[0])
    assert chosen.count(law.__name__) >= 6, chosen


def test_the_held_out_error_is_of_fits_without_these_sizes():
    rng = np.random.default_rng(4)
    error = power(SIX) * (1 + 0.02 * rng.normal(size=14))
    misses = []
    for sizes in ([50000.0], [20000.0, 50000.0]):
        kept = ~np.isin(SIX, sizes)
        fit = fit_scaling(SIX[kept], error[kept], form="power")
        misses += [fit.predict(n) - error[n == SIX].mean() for n in sizes]
    found = choose_form(SIX, error).set_index("form").loc["power"]
    assert found["held_out"] == pytest.approx(np.sqrt(np.mean(np.square(misses))))
    assert found["predicted"] == 3
    moved = np.where(SIX == 50000, 1.1 * error, error)  # the largest size is in no fit
    gap = choose_form(SIX, moved, left_out=(1,)).set_index("form").loc["power", "held_out"]
    assert gap == pytest.approx(abs(misses[0] - 0.1 * error[SIX == 50000].mean()))


def test_a_tie_goes_to_the_simpler_form_and_a_clear_gain_does_not():
    # power_floor with a floor of 0 predicts a power law just as well
    found = choose_form(SIX, power(SIX), 0.01)
    assert list(found["chosen"]) == [True, False, False]
    row = choose_form(SIX, power_floor(SIX), 0.001).set_index("form").loc["power_floor"]
    assert row["chosen"]
    assert row["held_out"] < row["best_so_far"] - row["tie"]


@pytest.mark.parametrize(
    ("sizes", "form", "predicted"), [(3, "power", 0), (4, "power", 1), (2, None, 0), (1, None, 0)]
)
def test_with_few_sizes_the_simplest_form_or_none_is_chosen_with_reasons(sizes, form, predicted):
    n = np.unique(SIX)[:sizes]
    found = choose_form(n, power(n), 0.002)
    assert list(found.loc[found["chosen"], "form"]) == ([form] if form else [])
    assert found["predicted"].iloc[0] == predicted
    rest = found[found["predicted"] == 0]
    assert rest["refused"].str.contains("distinct n").all() and rest["held_out"].isna().all()


def test_errors_that_do_not_fall_choose_no_form():
    noise = np.random.default_rng(1).normal(size=14)
    found = choose_form(SIX, 0.2 * (1 + 0.01 * noise))
    assert not found["chosen"].any() and found["refused"].str.contains("does not fall").all()


# ---- extrapolation -----------------------------------------------------------------------------
@given(seed=st.integers(0, 999))
@settings(deadline=None, max_examples=5)
def test_every_held_out_run_is_predicted_and_the_order_of_runs_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    error, order = power(SIX) * (1 + 0.01 * rng.normal(size=14)), rng.permutation(14)
    found, moved = extrapolate(SIX, error), extrapolate(SIX[order], error[order])
    methods = ["power", "power_floor", "chosen", "last value", "log-linear"]
    assert list(dict.fromkeys(found["method"])) == methods
    counts = found.groupby(["left_out", "method"]).size()
    assert (counts.loc[1] == 3).all() and (counts.loc[2] == 5).all()
    assert (found["refused"] == "").all()
    by, numbers = ["left_out", "method", "value"], ["predicted", "low", "high"]
    one, other = (t.sort_values(by)[numbers].to_numpy(float) for t in (found, moved))
    np.testing.assert_allclose(one, other, rtol=1e-3)
    np.testing.assert_allclose(found["off"], found["predicted"] - found["value"])
    assert found.loc[found["method"] == "power", "off"].abs().max() < 0.02


def test_the_guesses_and_the_law_predict_by_their_definitions():
    rng = np.random.default_rng(5)
    error = power(SIX) * (1 + 0.01 * rng.normal(size=14))
    found = extrapolate(SIX, error, 0.003, left_out=(2,)).groupby("method")
    kept = SIX < 20000
    assert found.get_group("last value")["predicted"].unique() == [error[SIX == 6000].mean()]
    line = np.polynomial.Polynomial.fit(np.log(SIX[kept]), error[kept], 1)
    guessed = found.get_group("log-linear")
    np.testing.assert_allclose(guessed["predicted"], line(np.log(SIX[~kept])))
    assert guessed[["low", "high", "held"]].isna().all(axis=None)
    fit = fit_scaling(SIX[kept], error[kept], sigma=0.003, form="power")
    rows = found.get_group("power")
    np.testing.assert_allclose(rows["predicted"], fit.predict(SIX[~kept]))
    ends = rows[["low", "high"]].to_numpy().T
    np.testing.assert_allclose(ends, fit.interval(SIX[~kept], noise=True))
    inside = (rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"])
    assert list(rows["held"]) == list(inside.astype(float))


def test_the_interval_of_a_new_run_covers_it_as_often_as_its_level():
    rng, held = np.random.default_rng(6), []
    for _ in range(40):
        error = power(SIX) * (1 + 0.02 * rng.normal(size=14))
        for how in ({"sigma": 0.02 * power(SIX)}, {"sigma": 0.01 * power(SIX), "partial": True}):
            found = extrapolate(SIX, error, **how, forms=("power",), left_out=(2,))
            held.append(found.groupby("method")["held"].mean()["power"])
    assert 0.88 < np.mean(held[::2]) < 0.999 and 0.88 < np.mean(held[1::2]) < 0.999


@given(
    sizes=st.integers(1, 6),
    seeds=st.integers(1, 2),
    rising=st.booleans(),
    sigma=st.sampled_from([None, 0.01]),
)
@settings(deadline=None, max_examples=12)
def test_what_cannot_be_predicted_is_a_row_with_its_reason(sizes, seeds, rising, sigma):
    n = np.unique(SIX)[:sizes].repeat(seeds)
    found = extrapolate(n, 0.5 - power(n) if rising else power(n), sigma)
    assert set(found["left_out"]) == {1, 2}
    refused = found["refused"] != ""
    assert found.loc[refused, "predicted"].isna().all()
    assert found.loc[~refused, "predicted"].notna().all()
    if sizes < 4:
        assert refused[found["method"].isin(("power", "power_floor", "chosen"))].all()
        assert found.loc[found["method"] == "power", "refused"].str.contains("distinct n").all()
    with pytest.raises(ValueError, match=r"both must be \(K,\)"):
        extrapolate(n, np.append(power(n), 0.1))
