"""Differences between runs: on the same resamples, corrected for their number, seeds and patients told apart."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy.evaluate.compare import bootstrap_p, components, grid, holm, paired, variances
from cxrstudy.evaluate.metrics import auroc, bootstrap

NAMES = ["edema", "fracture", "picc", "malposition:picc"]
values = st.lists(st.floats(0, 1) | st.just(float("nan")), min_size=1, max_size=12)


def write(folder, signal, seed=0, n=300, truth_seed=7):
    """A run's kept scores: of every label the truth times ``signal``, and noise."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(truth_seed)
    truth = (fixed.random((n, 4)) < [0.3, 0.2, 0.3, 0.4]).astype(np.float32)
    truth[truth[:, 2] == 0, 3] = np.nan
    table = pd.DataFrame(
        {"image_id": [f"i{k}" for k in range(n)], "patient_id": [f"p{k // 2}" for k in range(n)]}
    )
    for j, name in enumerate(NAMES):
        table[f"score:{name}"] = (signal * np.nan_to_num(truth[:, j]) + rng.normal(size=n)).astype(
            np.float32
        )
        table[f"truth:{name}"] = truth[:, j]
    folder.mkdir(parents=True)
    table.sample(frac=1, random_state=seed).to_parquet(folder / "scores.parquet")
    return folder


@settings(deadline=None)
@given(p=values, seed=st.integers(0, 99))
def test_holm_is_never_below_the_raw_p_keeps_their_order_and_knows_no_places(p, seed):
    raw, found = np.array(p), holm(p)
    known = ~np.isnan(raw)
    np.testing.assert_array_equal(np.isnan(found), ~known)
    assert (found[known] >= raw[known]).all() and (found[known] <= 1).all()
    assert (np.diff(found[known][np.argsort(raw[known], kind="stable")]) >= 0).all()
    order = np.random.default_rng(seed).permutation(len(raw))
    np.testing.assert_allclose(holm(raw[order]), found[order])
    if known.sum() == 1:
        np.testing.assert_array_equal(found[known], raw[known])


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50))
def test_the_p_of_a_bootstrap_lies_in_reach_and_does_not_care_who_is_first(draws):
    d = np.array(draws)
    assert 0 < bootstrap_p(d) <= 1
    assert bootstrap_p(d) == bootstrap_p(-d)
    assert bootstrap_p(np.abs(d) + 1) == min(1.0, 2 / (len(d) + 1))
    assert np.isnan(bootstrap_p([np.nan]))


def test_a_run_differs_from_itself_by_nothing_and_from_a_better_one_by_what_it_lacks(tmp_path):
    good, bad = write(tmp_path / "good", 2.0), write(tmp_path / "bad", 0.3, seed=1)
    same = paired(good, good, resamples=50)
    assert (
        (same["difference"] == 0).all()
        and (same["p"] == 1).all()
        and (same[["low", "high"]] == 0).all(axis=None)
    )
    table = paired(good, bad, resamples=200, seed=3).set_index(["task", "label"])
    assert list(table.index.get_level_values("task").unique()) == [
        "findings",
        "lines_tubes",
        "malposition",
    ]
    row = table.loc["findings", "macro"]
    assert 0 < row["low"] < row["difference"] < row["high"] and row["p"] < 0.02
    turned = (
        paired(bad, good, resamples=200, seed=3)
        .set_index(["task", "label"])
        .loc["findings", "macro"]
    )
    assert (
        turned["difference"] == -row["difference"]
        and turned["p"] == row["p"]
        and turned["low"] == -row["high"]
    )
    one, other = (
        pd.read_parquet(f / "scores.parquet").sort_values("image_id") for f in (good, bad)
    )
    cells = [
        (t[["truth:picc"]].to_numpy(float), t[["score:picc"]].to_numpy(float)) for t in (one, other)
    ]
    assert table.loc[("lines_tubes", "picc"), "difference"] == pytest.approx(
        auroc(*cells[0])[0] - auroc(*cells[1])[0]
    )
    draws = [
        bootstrap(auroc, *c, groups=one["patient_id"].to_numpy(), resamples=200, seed=3)
        for c in cells
    ]
    low = np.quantile(draws[0] - draws[1], 0.025)
    assert table.loc[("lines_tubes", "picc"), "low"] == pytest.approx(low)
    held = table.loc[("malposition", "malposition:picc"), "n"]
    assert held == one["truth:malposition:picc"].notna().sum() < 300


def test_a_grid_corrects_over_all_its_rows(tmp_path):
    runs = [write(tmp_path / f"run{k}", signal, seed=k) for k, signal in enumerate((1.5, 0.4, 0.4))]
    table = grid([(runs[0], runs[1]), (runs[0], runs[2]), (runs[1], runs[2])], resamples=100)
    assert len(table) == 3 * 3 and set(table["label"]) == {"macro"}
    np.testing.assert_allclose(table["p_holm"], holm(table["p"]))
    assert list(table.columns[:2]) == ["one", "other"] and table["one"].iloc[0] == "run0"
    assert (table["p_holm"] >= table["p"]).all()
    assert grid([]).empty
    assert (table["p_least"] == 9 * 2 / 101).all() and (table["p_holm"] >= table["p_least"]).all()
    clear = [(write(tmp_path / f"clear{k}", 9.0, seed=k), runs[1]) for k in range(2)]
    found = grid(clear, resamples=100)
    assert (
        found["p_holm"].min() == pytest.approx(found["p_least"].iloc[0]) == 6 * 2 / 101
    )  # it is reached
    assert (grid(clear * 20, resamples=100)["p_least"] == 1).all()


def test_runs_that_cannot_be_compared_are_refused_by_name(tmp_path):
    one, short = write(tmp_path / "one", 1.0), write(tmp_path / "short", 1.0, n=280)
    with pytest.raises(ValueError, match=r"short and .*one .*different images \(20 in one alone\)"):
        paired(one, short)
    with pytest.raises(ValueError, match="differ in the truth of 'edema'"):
        paired(one, write(tmp_path / "other", 1.0, truth_seed=8))
    with pytest.raises(ValueError, match=r"gone/scores.parquet: not there"):
        paired(one, tmp_path / "gone")
    with pytest.raises(ValueError, match="metric 'f1' cannot be compared"):
        paired(one, one, metric="f1")
    with pytest.raises(ValueError, match="at least two runs"):
        variances([one])


def test_seed_and_sampling_are_told_apart_where_they_are_known():
    """Simulated: seeds of SD 0.03, patients of SD 0.02 shared by all seeds, 0.01 of each seed's own."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        seeds, own = 0.03 * rng.normal(size=6), 0.01 * rng.normal(size=6)
        draws = (
            seeds[:, None]
            + own[:, None]
            + 0.02 * rng.normal(size=400)
            + 0.01 * rng.normal(size=(6, 400))
        )
        found.append(components(0.8 + seeds + own, draws))
    mean = pd.DataFrame(found).pow(2).mean().pow(0.5)
    assert mean["seed_sd"] == pytest.approx(0.03, rel=0.1)
    assert mean["sampling_sd"] == pytest.approx((0.02**2 + 0.01**2) ** 0.5, rel=0.1)
    assert mean["both_sd"] == pytest.approx(
        (mean["seed_sd"] ** 2 + mean["sampling_sd"] ** 2) ** 0.5
    )
    assert components([0.8, 0.8], np.tile(0.8 + rng.normal(size=50), (2, 1)))["seed_sd"] == 0


def test_variances_of_kept_runs(tmp_path):
    runs = [write(tmp_path / f"run{k}", 1.0 + 0.5 * k, seed=k) for k in range(3)]
    table = variances(runs, resamples=100).set_index("task")
    assert (table["seed_sd"] > 0.02).all() and (table["seeds"] == 3).all()
    alike = variances([runs[0], runs[0]], resamples=100).set_index("task")
    assert (alike["seed_sd"] == 0).all() and (alike["sampling_sd"] > 0.005).all()
    assert list(variances(runs, labels=["picc"], resamples=30)["task"]) == ["lines_tubes"]
