"""The joint law of model size and data, and our fits of published data."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special

from cxrstudy.scaling.fit import fit_joint

TABLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "public_scaling"
FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "public_laws.py"
SPEC = importlib.util.spec_from_file_location("public_laws", FILE)
public_laws = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(public_laws)

needs_tables = pytest.mark.skipif(not TABLES.is_dir(), reason="needs ../shared/data/public_scaling")


@given(
    alpha=st.floats(0.2, 0.7),
    beta=st.floats(0.2, 0.7),
    floor=st.floats(0.5, 2),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=3)
def test_joint_law_is_recovered_despite_outliers(alpha, beta, floor, seed):
    rng = np.random.default_rng(seed)
    n, d = np.exp(rng.uniform(np.log([1e7, 1e9]), np.log([1e10, 1e12]), size=(60, 2))).T
    of_size, of_data = (n / 1e8) ** -alpha, (d / 1e10) ** -beta
    assume(min(np.ptp(of_size), np.ptp(of_data)) > 0.1)
    loss = floor + 0.8 * of_size + 0.8 * of_data
    loss[:3] *= 1.5
    fit = fit_joint(n, d, loss)
    np.testing.assert_allclose([fit.alpha, fit.beta, fit.E], [alpha, beta, floor], rtol=0.02)
    np.testing.assert_allclose(fit.predict(n, d)[3:], loss[3:], rtol=2e-3)


@needs_tables
def test_joint_law_of_chinchilla_as_refitted_by_besiroglu_et_al():
    rows = pd.read_csv(TABLES / "chinchilla_points.csv").sort_values("loss").iloc[:-5]
    size, flop, loss = rows[["Model Size", "Training FLOP", "loss"]].to_numpy(float).T
    tokens = flop / 6 / size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_joint(size, tokens, loss)
    np.testing.assert_allclose([fit.alpha, fit.beta], [0.348, 0.366], atol=0.01)
    assert pytest.approx(1.817, abs=0.03) == fit.E
    assert pytest.approx(482, rel=0.1) == fit.A and pytest.approx(2085, rel=0.1) == fit.B

    def huber(e, a, alpha, b, beta):
        predicted = np.log(e + a * size**-alpha + b * tokens**-beta)
        return special.huber(1e-3, predicted - np.log(loss)).sum()

    ours = huber(fit.E, fit.A, fit.alpha, fit.B, fit.beta)
    assert ours <= huber(1.8172, 482.01, 0.3478, 2085.43, 0.3658)


def test_joint_refusals_name_the_reason():
    n, d = np.geomspace(1e7, 1e9, 8), np.geomspace(1e9, 1e11, 8)
    for arguments, match in [
        ({"d": d[:-1]}, r"must be \(K,\)"),
        ({"loss": -np.ones(8)}, "loss must be positive and finite, got -1.0"),
        ({"n": np.repeat([1e7, 1e8], 4)}, "3 distinct n and 3 distinct d"),
    ]:
        with pytest.raises(ValueError, match=match):
            fit_joint(**({"n": n, "d": d, "loss": np.full(8, 2.0)} | arguments))


# ---- published data ----------------------------------------------------------------------------
@needs_tables
def test_published_laws_come_out_as_published_and_as_recorded():
    rows = public_laws.laws(TABLES)
    exponents = rows[rows["quantity"].str.contains("exponent")]
    assert len(exponents) == 8
    assert (exponents["difference"].abs() < 0.0056).all()  # published to two decimals
    predicted = rows[rows["quantity"].str.startswith("error")]
    assert len(predicted) == 4 and (predicted["difference"].abs() < 0.0015).all()
    joint = rows[rows["data"] == "Chinchilla"].set_index("quantity")["difference"].abs()
    assert joint[["alpha", "beta"]].max() < 0.01 and joint["E"] < 0.03
    kept = pd.read_csv(public_laws.RECORDED / "public_laws.csv")
    own = rows.round(5).reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, own, check_dtype=False, rtol=1e-3)


def test_the_frontier_is_the_least_error_of_each_bin_at_its_middle():
    compute, error = np.array([1e10, 2e10, 1e11, 1e12, 9e12]), np.array([0.5, 0.4, 0.3, 0.2, 0.25])
    at, least = public_laws.frontier(compute, error, bins=3)
    edges = np.linspace(10, np.log10(9e12) + 0.1, 4)
    np.testing.assert_allclose(np.log10(at), (edges[1:] + edges[:-1]) / 2)
    log = np.log10(compute)
    bins = [(log >= low) & (log < high) for low, high in zip(edges, edges[1:], strict=False)]
    np.testing.assert_allclose(least, [error[k].min() for k in bins])
    # Empty bins have no point.
    assert len(public_laws.frontier(compute, error, bins=30)[0]) == len(compute)
