"""Scaling laws: known ones are recovered, intervals cover them, and bad data is refused by name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from cxrstudy.scaling.fit import fit_scaling

FORMS = ("power", "power_floor", "m4")
SIZES = np.array([200, 1000, 5000, 20000, 50000.0])
THREE_SEEDS = np.repeat([3e4, 5e4, 1e5, 1e6, 3.5e6], 3)
SIX = np.repeat([200, 600, 2000, 6000, 20000, 50000.0], [3, 2, 2, 2, 2, 3])
NO_FALL = "does not fall with n beyond its noise"

forms = pytest.mark.parametrize("form", FORMS)
forms_with_a_floor = pytest.mark.parametrize("form", ["power_floor", "m4"])
drawn = {
    "b": st.floats(0.08, 1.2),
    "floor": st.sampled_from([0.0, 0.03, 0.12]),
    "top": st.floats(0.2, 0.45),
}


def law(form, n, b=0.3, floor=0.0, top=0.3, first=200, plateau=0.5):
    """Return the curve that starts at ``top`` for n = ``first``."""
    if form == "m4":
        odds = (top - floor) / (plateau - top) * (n / first) ** -b
        return floor + (plateau - floor) * odds / (1 + odds)
    return floor + (top - floor) * (n / first) ** -b


def width(ends):
    """Return the width of an interval (low, high)."""
    return ends[1] - ends[0]


def noisy(curve, rng, sd=0.02):
    """Return the curve with noise in proportion to it."""
    return curve * (1 + sd * rng.normal(size=np.shape(curve)))


# ---- the optimum -------------------------------------------------------------------------------
@forms
@given(**drawn)
@settings(deadline=None, max_examples=8)
def test_recovers_a_law_without_noise(form, b, floor, top):
    floor = 0.0 if form == "power" else floor
    fit = fit_scaling(SIZES, law(form, SIZES, b, floor, top), form=form)
    assert fit.form == form
    assert fit.exponent == pytest.approx(b, rel=1e-3)
    assert fit.floor == pytest.approx(floor, abs=2e-4)
    far = np.array([[100.0, 3e5], [1e6, np.inf]])
    truth = law(form, far, b, floor, top)
    np.testing.assert_allclose(fit.predict(far), truth, rtol=2e-3, atol=1e-3)
    low, high = fit.interval(far)
    assert low.shape == high.shape == (2, 2)
    np.testing.assert_allclose(high - low, 0, atol=2e-3)


@forms
@given(**drawn, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=4)
def test_order_of_runs_and_units_do_not_matter(form, b, floor, top, seed):
    rng = np.random.default_rng(seed)
    n = np.repeat(SIZES, 2)
    error = noisy(law(form, n, b, 0.0 if form == "power" else floor, top), rng, 0.01)
    order = rng.permutation(10)
    fit = fit_scaling(n, error, form=form)
    moved = fit_scaling(n[order] / 1000, error[order], form=form)
    # Where the floor is 0 the optimum is flat: the exponents agree to a share of their interval.
    flat = 1e-3 * width(fit.exponent_interval())
    assert moved.exponent == pytest.approx(fit.exponent, abs=flat + 1e-9)
    np.testing.assert_allclose(moved.interval(SIZES / 1000), fit.interval(SIZES), rtol=1e-4)
    if form != "m4":  # any unit of error will do
        doubled = fit_scaling(n, 2 * error, form=form).interval(SIZES)
        np.testing.assert_allclose(doubled, 2 * np.array(fit.interval(SIZES)), rtol=1e-3)


@forms_with_a_floor
def test_finds_the_optimum_that_a_general_solver_finds(form):
    n, rng = THREE_SEEDS, np.random.default_rng(3)
    error = law(form, n, 0.3, 0.1, 0.3, 3e4) + 0.004 * rng.normal(size=15)
    fit = fit_scaling(n, error, form=form, sigma=0.004)

    def misses(p):
        return (law(form, n, *p, 3e4) - error) / 0.004

    bounds = ([0.0005, 0, 0], [3, 1, 0.5])
    best = optimize.least_squares(misses, [0.3, 0.1, 0.3], bounds=bounds, xtol=1e-15, ftol=1e-15)
    rss = (((fit.predict(n) - error) / 0.004) ** 2).sum()
    assert rss <= 2 * best.cost * (1 + 1e-9)
    assert fit.exponent == pytest.approx(best.x[0], rel=1e-3)
    assert fit.floor == pytest.approx(best.x[1], abs=1e-4)


@forms_with_a_floor
def test_interval_is_the_profile_likelihood(form):
    """With sigma given, fix the curve at n to an end and minimise: chi^2 rises by z^2."""
    n, rng = THREE_SEEDS, np.random.default_rng(4)
    error = law(form, n, 0.3, 0.1, 0.3, 3e4) + 0.004 * rng.normal(size=15)
    fit = fit_scaling(n, error, form=form, sigma=0.004)
    rss = (((fit.predict(n) - error) / 0.004) ** 2).sum()
    start, bounds = [fit.exponent, fit.floor, fit.predict(3e4)], ([0.0005, 0, 0], [3, 0.3, 0.5])
    for at in (1e5, 3e7):
        for end in fit.interval(at, level=0.9):

            def misses(p, at=at, end=end):
                gap = 1e4 * (law(form, at, *p, 3e4) - end)
                return np.append((law(form, n, *p, 3e4) - error) / 0.004, gap)

            found = optimize.least_squares(
                misses, start, bounds=bounds, x_scale=[0.1, 0.01, 0.01], xtol=1e-14
            )
            assert 2 * found.cost - rss == pytest.approx(1.6449**2, rel=0.05)


# ---- intervals ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("form", "noise"),
    [("power", "relative"), ("power_floor", "constant"), ("power_floor", "known")],
)
def test_intervals_cover_the_truth_as_often_as_their_level(form, noise):
    """95% intervals over random laws and sizes, noise of 1-3%, three seeds a size.

    Of the curve at the smallest size, the middle, the largest and ten times beyond; of a new run
    there; and of the exponent. Over 500 to 2,000 draws coverage is 93.6-98.3%, and widths are
    1.1-1.4 times those of an interval that knows the noise.
    """
    rng, draws = np.random.default_rng(0), 50
    inside = np.zeros((draws, 9))
    for i in range(draws):
        sizes = SIZES if rng.random() < 0.5 else THREE_SEEDS[::3]
        floor = 0.0 if form == "power" else rng.choice([0, 0.05, 0.15])
        at, n = sizes[[0, 2, 4, 4]] * [1, 1, 1, 10], sizes.repeat(3)
        level, b = rng.choice([0.01, 0.03]), rng.uniform(0.15, 0.6)
        curve, truth = (law(form, x, b, floor, 0.3, sizes[0]) for x in (n, at))
        sd, sd_at = (level * (curve.mean() if noise == "constant" else c) for c in (curve, truth))
        error = curve + sd * rng.normal(size=15)
        fit = fit_scaling(n, error, form=form, sigma=sd if noise == "known" else None)
        run = truth + (0 if noise == "known" else sd_at) * rng.normal(size=4)
        ends = (fit.interval(at), fit.interval(at, noise=noise != "known"), fit.exponent_interval())
        pairs = zip((truth, run, np.array([b])), ends, strict=True)
        inside[i] = np.concatenate([(low <= v) & (v <= high) for v, (low, high) in pairs])
    coverage = inside.mean(axis=0)
    assert (coverage > 0.95 - 3 * (0.95 * 0.05 / draws) ** 0.5).all(), coverage
    assert 0.93 < inside.mean() < 0.985, coverage


@forms
def test_wider_levels_contain_narrower_ones_and_the_curve(form):
    n, rng = np.repeat(SIZES, 3), np.random.default_rng(2)
    fit = fit_scaling(n, noisy(law(form, n, top=0.35), rng), form=form)
    at = np.geomspace(100, 1e7, 9)
    ends = [fit.interval(at, level=level) for level in (0.5, 0.9, 0.99)]
    ends.append(fit.interval(at, level=0.99, noise=True))
    for (low, high), (lower, higher) in zip(ends, ends[1:], strict=False):
        assert (lower <= low).all() and (high <= higher).all()
        assert (low <= fit.predict(at)).all() and (fit.predict(at) <= high).all()
    assert (ends[2][0] >= 0).all()
    low, high = fit.exponent_interval()
    assert low < fit.exponent < high
    low, high = fit.interval(np.inf)
    assert low <= fit.floor <= high


@forms
def test_samples_are_reproducible_and_agree_with_the_interval(form):
    n, rng = np.repeat(SIZES, 3), np.random.default_rng(2)
    error = noisy(law(form, n, top=0.35), rng, 0.01)
    fit = fit_scaling(n, error, form=form, resamples=400)
    curves = fit.samples([[200.0, 5e4]])
    assert curves.shape == (400, 1, 2)
    np.testing.assert_array_equal(curves, fit.samples([[200.0, 5e4]]))
    sampled = np.subtract(*np.percentile(curves[:, 0], [97.5, 2.5], axis=0))
    np.testing.assert_allclose(sampled, width(fit.interval([200.0, 5e4])), rtol=0.3)


def test_one_run_a_size_is_allowed_but_wide():
    rng = np.random.default_rng(0)
    error = noisy(law("power_floor", THREE_SEEDS, 0.3, 0.1, 0.3, 3e4), rng)
    one, three = fit_scaling(THREE_SEEDS[::3], error[::3]), fit_scaling(THREE_SEEDS, error)
    assert (one.dof, three.dof) == (2, 12)
    assert width(one.interval(1e7)) > 2 * width(three.interval(1e7))


@pytest.mark.parametrize("form", ["power", "power_floor"])
def test_one_seed_a_size_is_wide_and_covers_the_truth(form):
    rng, covered, ratio = np.random.default_rng(12), [], []
    floor = 0.05 * (form != "power")
    truth, curve = law(form, 1.25e5, 0.4, floor), law(form, SIZES, 0.4, floor)
    for _ in range(60):
        runs = curve[:, None] * (1 + 0.02 * rng.normal(size=(5, 3)))
        one = fit_scaling(SIZES, runs[:, 0], form=form).interval(1.25e5)
        three = fit_scaling(SIZES.repeat(3), runs.ravel(), form=form).interval(1.25e5)
        covered.append(one[0] <= truth <= one[1])
        ratio.append(width(one) / width(three))
    assert np.mean(covered) > 0.87 and np.median(ratio) > 1.7


# ---- noise -------------------------------------------------------------------------------------
def test_sigma_is_kept_unless_the_residuals_refute_it():
    n, rng = THREE_SEEDS, np.random.default_rng(1)
    error = law("power_floor", n, 0.3, 0.1, 0.3, 3e4) + 0.01 * rng.normal(size=15)
    right = fit_scaling(n, error, sigma=0.01)
    too_small = fit_scaling(n, error, sigma=np.full(15, 0.001))
    assert (right.sigma_hat, right.dof) == (1, np.inf)
    assert too_small.sigma_hat > 5 and too_small.dof == 12
    np.testing.assert_allclose(too_small.predict(n), right.predict(n), rtol=1e-6)
    assert 0.5 < width(right.interval(1e6)) / width(too_small.interval(1e6)) < 2
    # With sigma known, three sizes are enough for three parameters.
    three = fit_scaling(n[:9], error[:9], sigma=0.01)
    assert width(three.interval(1e6)) > width(right.interval(1e6))


def test_a_part_of_the_noise_is_its_lower_bound_beside_the_residuals():
    rng = np.random.default_rng(1)
    curve = law("power", SIZES)
    error = noisy(curve, rng)
    part, whole, large = (
        fit_scaling(SIZES, error, sigma=share * 0.02 * curve, form="power", partial=partial)
        for share, partial in ((0.8, True), (0.8, False), (8.0, True))
    )
    tiny = fit_scaling(SIZES, error, sigma=1e-6 * curve, form="power", partial=True)
    residual_sd = (((error / curve - part.predict(SIZES) / curve) ** 2).sum() / 3) ** 0.5
    assert tiny.sigma_hat * 1e-6 == pytest.approx(residual_sd, rel=0.05)
    assert (part.dof, whole.dof) == (3, np.inf)
    widths = [width(fit.interval(1e5)) for fit in (part, whole, large)]
    expected = max(1, part.sigma_hat * stats.t.ppf(0.975, 3) / 1.96)
    assert widths[0] / widths[1] == pytest.approx(expected, rel=0.02)
    assert widths[2] / widths[1] == pytest.approx(10, rel=0.1)  # sigma is ten times as large
    with pytest.raises(ValueError, match="power_floor needs at least 4 distinct n, got 3"):
        fit_scaling(SIZES[:3], error[:3], sigma=0.001, partial=True)
    with pytest.raises(ValueError, match=NO_FALL):  # it falls beyond sigma, not beyond residuals
        fit_scaling(SIZES[:3], [0.25, 0.22, 0.223], sigma=1e-4, form="power", partial=True)


def test_the_exponent_of_the_noise_is_estimated_from_the_runs():
    rng, n = np.random.default_rng(10), np.repeat([200, 2000, 20000, 200000.0], 12)
    curve = law("power", n, top=0.4)
    for exponent in (0, 1):
        noise = 0.02 * curve**exponent * curve.mean() ** (1 - exponent)
        fit = fit_scaling(n, curve + noise * rng.normal(size=48), form="power")
        assert fit.noise_exponent == pytest.approx(exponent, abs=0.35)
        assert len(fit.alternative_fits) == 2
        lower, higher = (other.noise_exponent for other in fit.alternative_fits)
        assert lower < fit.noise_exponent < higher
    given_sigma = fit_scaling(n, curve, sigma=0.01, form="power")
    assert given_sigma.noise_exponent is None and given_sigma.alternative_fits == ()


# ---- outliers ----------------------------------------------------------------------------------
@pytest.mark.parametrize("sigma", [None, 0.02])
def test_an_outlying_run_does_not_drive_a_robust_fit(sigma):
    curve, rng = law("power", SIX), np.random.default_rng(7)
    off, widths, marked = [], [], []
    for which in [*range(14), *range(14)]:
        error = noisy(curve, rng)
        error[which] *= 1.5
        how = {"form": "power", "sigma": None if sigma is None else sigma * curve}
        fits = [fit_scaling(SIX, error, **how, robust=robust) for robust in (False, True)]
        off.append([np.abs(np.log(fit.predict(SIX) / curve)).max() for fit in fits])
        widths.append([width(fit.interval([200.0, 2000, 5e4])).mean() for fit in fits])
        marked.append(fits[1].weights.argmin() == which and fits[1].weights[which] < 0.5)
    plain, robust = np.mean(off, axis=0)
    assert robust < plain / 2
    assert np.median(np.divide(*np.transpose(widths)[::-1])) < 0.5
    assert np.mean(marked) > 0.9


def test_a_robust_fit_is_the_minimum_of_hubers_loss():
    rng = np.random.default_rng(8)
    error = law("power_floor", SIX, 0.4, 0.05) + 0.006 * rng.normal(size=14)
    error[[3, 9]] += 0.05
    fit = fit_scaling(SIX, error, form="power_floor", sigma=0.006, robust=True)

    def misses(p):
        return (law("power_floor", SIX, *p) - error) / 0.006

    off = np.abs(misses([fit.exponent, fit.floor, float(fit.predict(200.0))]))
    scale = 1.345 * max(1.0, np.median(off) / stats.norm.ppf(0.75) * np.sqrt(14 / 11))
    bounds = ([0.0005, 0, 0], [3, 1, 1])
    best = optimize.least_squares(
        misses, [0.4, 0.05, 0.3], bounds=bounds, loss="huber", f_scale=scale, xtol=1e-14
    )
    assert fit.exponent == pytest.approx(best.x[0], abs=0.005)
    assert fit.floor == pytest.approx(best.x[1], abs=0.002)


def test_robust_changes_little_without_outliers_and_nothing_with_few_degrees_of_freedom():
    rng, ratio = np.random.default_rng(9), []
    for _ in range(30):
        error = noisy(law("power", SIX), rng)
        fits = [fit_scaling(SIX, error, form="power", robust=robust) for robust in (False, True)]
        ratio.append(np.divide(*[width(fit.interval(5e4)) for fit in fits[::-1]]))
    assert 0.9 < np.median(ratio) < 1.3
    few = law("power", SIZES) * [1, 1, 1.3, 1, 1]
    robust, plain = (fit_scaling(SIZES, few, form="power", robust=r) for r in (True, False))
    assert (robust.weights == 1).all() and robust.interval(1e5) == plain.interval(1e5)


# ---- refusals, or wide intervals ---------------------------------------------------------------
def refused_calls():
    """Return arguments that differ from a good call, each with the reason of its refusal."""
    good = law("power_floor", SIZES, 0.4, 0.1)
    n = np.repeat(SIZES, 3)
    flat = noisy(np.full(15, 0.2), np.random.default_rng(0))
    three = {"n": SIZES[:3], "error": good[:3]}
    two = {"n": [200, 200, 1000, 1000], "error": [0.3, 0.31, 0.2, 0.21], "form": "power"}
    chance = {"error": [0.52, 0.51, 0.5, 0.505, 0.5], "form": "m4"}
    zero, nan = (np.where(SIZES == 5000, value, good) for value in (0.0, np.nan))
    return [
        ({"form": "bent"}, "form must be one of power, power_floor, m4, got 'bent'"),
        ({"error": zero}, "error is 0 at n = 5000: the metric is at its ceiling"),
        ({"error": good[:-1]}, r"n has shape \(5,\), error \(4,\)"),
        ({"n": SIZES - 200}, "n must be positive and finite, got 0.0"),
        ({"error": good - 0.31}, "error must be positive and finite, got"),
        ({"error": nan}, "error must be positive and finite, got nan"),
        ({"sigma": 0.0}, "sigma must be positive"),
        (three, "power_floor needs at least 4 distinct n, got 3"),
        (three | {"form": "m4"}, "m4 needs at least 4 distinct n, got 3"),
        (two, "at least 3 distinct n, got 2"),
        ({"n": SIZES[:2], "error": good[:2], "sigma": 0.01}, "at least 3 distinct n, got 2"),
        ({"error": good[::-1]}, r"error rises with n beyond its noise \(p = "),
        ({"error": good[::-1], "sigma": 0.2}, f"{NO_FALL}.*floor or ceiling"),
        ({"error": np.full(5, 0.2)}, NO_FALL),
        ({"n": n, "error": flat}, rf"{NO_FALL} \(p = 0\.\d\d; 0\.\d+ at n = 200"),
        ({"n": n, "error": flat, "sigma": 0.004, "form": "power"}, NO_FALL),
        ({"error": good, "sigma": 0.2}, NO_FALL),
        (chance, "at the ceiling: 0.5 or more, and a random guess has 0.5"),
    ]


def test_refusals_name_the_reason():
    good = {"n": SIZES, "error": law("power_floor", SIZES, 0.4, 0.1)}
    for arguments, match in refused_calls():
        with pytest.raises(ValueError, match=match):
            fit_scaling(**(good | arguments))
    fit = fit_scaling(**good)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        fit.interval(1e5, level=95)
    with pytest.raises(ValueError, match="n must be positive"):
        fit.predict([1e5, -1])


def test_noise_alone_is_rarely_fitted():
    rng, passed = np.random.default_rng(1), 0
    for _ in range(60):
        try:
            fit_scaling(np.repeat(SIZES, 3), noisy(np.full(15, 0.2), rng))
            passed += 1
        except ValueError:
            pass
    assert passed <= 7


@given(
    lowest=st.integers(1, 3),
    rise=st.floats(0.3, 1.0),
    form=st.sampled_from(FORMS),
    seeds=st.integers(1, 3),
)
@settings(deadline=None, max_examples=20)
def test_a_curve_that_falls_and_rises_again_is_refused_or_gets_a_wide_interval(
    lowest, rise, form, seeds
):
    k = np.arange(5)
    error = 0.3 - 0.05 * np.minimum(k, lowest) + rise * 0.05 * np.maximum(k - lowest, 0)
    try:
        fit = fit_scaling(SIZES.repeat(seeds), error.repeat(seeds), form=form)
    except ValueError:
        return
    low, high = fit.interval(SIZES, noise=True)
    assert ((low <= error) & (error <= high)).mean() >= 0.8
    assert width(fit.interval(5e5, noise=True)) > 0.05


@given(seed=st.integers(0, 999), level=st.sampled_from([0.0005, 0.01, 0.499]))
@settings(deadline=None, max_examples=15)
def test_a_metric_at_its_ceiling_or_at_chance_gives_no_confident_exponent(seed, level):
    error = level * (1 + 0.2 * np.random.default_rng(seed).uniform(-1, 1, size=15))
    try:
        fit = fit_scaling(SIZES.repeat(3), np.minimum(error, 0.4999), form="power")
    except ValueError:
        return
    low, high = fit.exponent_interval()
    assert low < 0.05 and high - low > 0.005
