"""Laws of curves: fitted from where the base model is passed, used only where they predict."""

import numpy as np
import pytest

from cxrstudy.scaling import laws
from cxrstudy.scaling.cells import BASE, Cell, Measured
from cxrstudy.scaling.fit import fit_scaling

SIZES = np.array([100, 300, 1000, 3000, 10_000, 30_000])


def cell(n, arm="clip"):
    return Cell("findings", "auroc", "d", arm, "base", float(n > 0), float(n))


def study(error, *, base=1.0, seeds=3, noise=1e-4, seed=0):
    """Cells of one curve with these errors, and the base model's error."""
    rng = np.random.default_rng(seed)
    cells = {}
    for n, e in [(0, base), *zip(SIZES, error, strict=True)]:
        values = 1 - e + noise * rng.normal(size=seeds if n else 1)
        draws = values[:, None] + noise * rng.normal(size=(len(values), 200))
        cells[cell(n, "clip" if n else BASE)] = Measured(values, draws)
    return cells


def test_the_law_that_is_quoted_is_the_one_that_was_chosen_and_finds_its_exponent():
    fits, bands, trials = laws.laws(study(0.5 * SIZES**-0.2))
    row = fits.iloc[0]
    assert row["form"] == "power" and row["refused"] == ""
    assert row["exponent"] == pytest.approx(0.2, abs=0.01)
    assert row["low"] <= row["exponent"] <= row["high"]
    assert row["law_error"] < row["last_error"] and row["extrapolates"]
    assert bands["n_images"].max() == pytest.approx(SIZES[-1] * laws.LIMIT)
    assert ((bands["low"] <= bands["value"]) & (bands["value"] <= bands["high"])).all()
    assert set(trials["method"]) >= {"chosen", "last value"}


def test_sizes_below_the_base_model_are_not_fitted():
    error = 0.5 * SIZES**-0.2
    fits, bands, _ = laws.laws(study(error, base=error[1] - 1e-3))
    row = fits.iloc[0]
    assert (row["from_n"], row["sizes"], row["runs"]) == (1000, 4, 12)
    assert bands["n_images"].min() == pytest.approx(1000)
    fits, bands, _ = laws.laws(study(error, base=error[-1] / 2))
    assert "above the base model" in fits["refused"].iloc[0] and bands.empty


def test_where_the_last_value_predicts_better_nothing_is_extrapolated():
    flat = np.array([0.30, 0.25, 0.21, 0.18, 0.15, 0.15])
    fits, bands, _ = laws.laws(study(flat))
    assert not fits["extrapolates"].iloc[0]
    assert bands.empty or bands["n_images"].max() <= SIZES[-1] * (1 + 1e-9)


def test_errors_that_do_not_fall_have_a_reason_in_place_of_a_law():
    fits, bands, _ = laws.laws(study(np.full(6, 0.3), noise=1e-3))
    assert "fall" in fits["refused"].iloc[0] and np.isnan(fits["exponent"].iloc[0]) and bands.empty


def test_noise_is_of_the_seeds_where_there_are_enough_and_else_each_runs_own():
    (many,) = laws.curves_of(study(0.5 * SIZES**-0.2))
    assert many.noise == {"robust": True}
    (few,) = laws.curves_of(study(0.5 * SIZES**-0.2, seeds=1))
    assert few.noise["partial"] and few.noise["sigma"].shape == (6,)
    np.testing.assert_allclose(few.noise["sigma"], 1e-4, rtol=0.35)


def test_noise_that_all_runs_share_is_not_a_runs_own():
    cells = study(0.5 * SIZES**-0.2, seeds=1)
    shift = 0.05 * np.random.default_rng(1).normal(size=200)
    moved = {c: Measured(m.values, m.draws + shift) for c, m in cells.items()}
    (one,), (other,) = (list(laws.curves_of(each)) for each in (cells, moved))
    np.testing.assert_allclose(one.noise["sigma"], other.noise["sigma"], rtol=1e-6)


def test_a_curve_of_one_size_has_no_law():
    cells = {c: m for c, m in study(0.5 * SIZES**-0.2).items() if c.n_images in (0, 100)}
    assert list(laws.curves_of(cells)) == []


def test_the_row_and_the_fit_are_those_of_fit_scaling():
    (curve,) = laws.curves_of(study(0.5 * SIZES**-0.2))
    row, fit = laws.fitted(curve)
    own = fit_scaling(curve.n, curve.error, form=row["form"], **curve.noise)
    assert fit.exponent == pytest.approx(own.exponent)
