"""Crossovers and overtakes: found where they were planted, and their intervals hold what they say."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_ladders import base, judge, ladder
from scipy import stats

from cxrstudy.evaluate.compare import paired, variances
from cxrstudy.results import load_records
from cxrstudy.scaling.decide import (
    KEY,
    NEVER,
    NO_BASE,
    NO_SIZE,
    SMALLEST,
    crossovers,
    differences,
    overtakes,
    read_ladders,
    rungs,
    seed_spread,
    turning,
    widened,
)
from cxrstudy.scaling.ladders import gains

SIZES = [200, 1000, 8000]
FEW = {"resamples": 200}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def of(found, **values):
    """The one row with these values."""
    rows = found[np.logical_and.reduce([found[name] == value for name, value in values.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


# ---- first, and first that holds -----------------------------------------------------------------------------------
@given(st.lists(st.booleans(), max_size=8))
def test_first_and_first_that_holds_are_what_they_say(ahead):
    sizes = np.array([100.0 * 3**k for k in range(len(ahead))])
    found = turning(sizes, np.array(ahead, dtype=bool))
    first = next((n for n, yes in zip(sizes, ahead, strict=True) if yes), math.nan)
    holds = next((n for k, n in enumerate(sizes) if all(ahead[k:])), math.nan)
    np.testing.assert_equal([found["first"], found["holds"]], [first, holds])
    assert (found["first_said"] == NEVER) == (not any(ahead))
    assert (found["holds_said"] == NEVER) == (not (ahead and ahead[-1]))
    assert (found["holds_said"] == SMALLEST) == bool(ahead and all(ahead))
    assert found["sizes"] == len(ahead)


@pytest.mark.parametrize(
    ("skills", "first", "holds", "first_said", "holds_said"),
    [
        ((0.7, 1.4, 1.6), 1000, 1000, "at 1,000", "from 1,000 on"),
        ((1.4, 0.7, 1.6), 200, 8000, "at 200, the smallest", "from 8,000 on, the largest"),
        ((1.4, 1.4, 0.7), 200, math.nan, "at 200, the smallest", NEVER),
        ((0.7, 0.8, 0.9), math.nan, math.nan, NEVER, NEVER),
        ((1.4, 1.5, 1.6), 200, 200, "at 200, the smallest", SMALLEST),
    ],
)
def test_a_crossover_is_found_where_it_was_planted(
    runs, skills, first, holds, first_said, holds_said
):
    base(1.0)
    ladder(
        "clip", {n: {"findings": s, "lines_tubes": 0.6} for n, s in zip(SIZES, skills, strict=True)}
    )
    found = crossovers(load_records(runs), **FEW)
    row = of(found, task="findings")
    np.testing.assert_equal([row["first"], row["holds"]], [first, holds])
    assert (row["first_said"], row["holds_said"]) == (first_said, holds_said)
    assert (row["sizes"], row["smallest"], row["largest"], row["seeds"]) == (3, 200, 8000, 1)
    assert (row["paradigm"], row["name"], row["covers"]) == (
        "clip",
        "clip",
        "patients alone: one seed",
    )
    other = of(found, task="lines_tubes")
    assert (other["first_said"], other["holds_said"]) == (NEVER, NEVER)


def test_a_ladder_whose_base_was_not_evaluated_says_so(runs):
    ladder("clip", {200: 1.5})
    found = crossovers(load_records(runs), **FEW)
    assert set(found["first_said"]) == set(found["holds_said"]) == {NO_BASE}
    assert found[["first", "holds"]].isna().all(axis=None)
    own = rungs(load_records(runs), **FEW)
    assert own[["gain", "low", "high"]].isna().all(axis=None)
    assert own["value"].between(own["value_low"], own["value_high"]).all()


def test_each_ladder_meets_its_own_base_on_its_own_data(runs):
    base(1.0)
    base(3.0, data="other-1", preset="other")
    base(0.1, name="clip-run")
    ladder("clip", {200: 1.5})
    ladder(
        "unicl", {200: 1.5}, base="clip-run-0f9e8d"
    )  # a base that is a run has a digest of its own
    found = rungs(load_records(runs), **FEW)
    clip, unicl = (of(found, task="findings", paradigm=p)["gain"] for p in ("clip", "unicl"))
    assert 0.05 < clip < unicl - 0.1


# ---- intervals -----------------------------------------------------------------------------------------------------
def test_with_one_seed_gains_are_those_of_the_ladders(runs):
    base()
    for paradigm in ("clip", "unicl"):
        ladder(paradigm, {n: 1 + k / 10 for k, n in enumerate(SIZES)})
    table = load_records(runs)
    keys, numbers = ["task", "paradigm", "n_images"], ["gain", "low", "high", "seeds"]
    one, other = rungs(table, **FEW), gains(table, **FEW)
    pd.testing.assert_frame_equal(one[keys + numbers], other[keys + numbers], check_dtype=False)
    pd.testing.assert_frame_equal(rungs(table, seed=3, **FEW), rungs(table, seed=3, **FEW))


def test_seeds_widen_the_interval_by_their_variance_and_a_students_quantile(runs):
    base()
    folders = ladder("clip", {200: 1.3}, seeds=3, jitter=0.3)
    table = load_records(runs)
    sampled = gains(table, **FEW).set_index("task")
    between = variances([str(folder) for folder in folders], **FEW).set_index("task")["seed_sd"]
    for row in rungs(table, **FEW).itertuples():
        seeds = stats.t.ppf(0.975, 2) * between[row.task] / np.sqrt(3)
        assert seeds > 0.01
        assert row.gain == pytest.approx(sampled.loc[row.task, "gain"])
        assert row.gain - row.low == pytest.approx(
            np.hypot(row.gain - sampled.loc[row.task, "low"], seeds)
        )
        assert row.high - row.gain == pytest.approx(
            np.hypot(sampled.loc[row.task, "high"] - row.gain, seeds)
        )
        assert row.covers == "patients and seeds"


def test_a_size_of_one_seed_borrows_the_variance_of_the_others(runs):
    base()
    ladder("clip", {200: 1.3, 8000: 1.6}, seeds=3, jitter=0.3)
    ladder("clip", {1000: 1.4})
    table = load_records(runs)
    found, sampled = rungs(table, **FEW), gains(table, **FEW)
    assert set(found["covers"]) == {"patients and seeds"}
    wide, narrow = (of(rows, task="findings", n_images=1000) for rows in (found, sampled))
    assert narrow["seeds"] == 1
    assert wide["high"] - wide["low"] > 1.5 * (narrow["high"] - narrow["low"])


@pytest.mark.parametrize("between", [0.0, 0.004, 0.02])
@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_over_seeds_hold_the_truth_as_often_as_they_say(between, seeds):
    rng, held, own, shared = np.random.default_rng(seeds), [], 0.002, 0.001
    for _ in range(300):
        each = []
        patients, resampled = shared * rng.normal(), shared * rng.normal(size=(1, 200))
        for _ in range(4):
            values = patients + rng.normal(size=seeds) * np.hypot(own, between)
            draws = values[:, None] + resampled + own * rng.normal(size=(seeds, 200))
            each.append(list(zip(values, draws, strict=True)))
        value = np.array([np.mean([v for v, _ in runs]) for runs in each])
        draws = np.stack([np.mean([d for _, d in runs], axis=0) for runs in each], axis=1)
        low, high = widened(value, draws, seed_spread(each))
        held.append((low <= 0) & (high >= 0))
    assert np.mean(held) > 0.92  # without what seeds add: 0.7 and 0.2 where they spread


def test_without_a_second_seed_nothing_is_known_of_them():
    assert np.isnan(seed_spread([[(0.8, np.zeros(5))], [(0.9, np.zeros(5))]])).all()
    low, high = widened(np.array([0.5]), np.linspace(0.4, 0.6, 41)[:, None], np.array([np.nan]))
    assert (low[0], high[0]) == pytest.approx((0.405, 0.595))


# ---- one paradigm and another --------------------------------------------------------------------------------------
def test_an_overtaking_is_found_where_it_was_planted(runs):
    ladder("clip", dict(zip(SIZES, (1.5, 1.5, 1.5), strict=True)))
    ladder(
        "dinov2", dict(zip(SIZES, (0.8, 1.2, 2.4), strict=True)), samples_seen=8000, base="dino-cnn"
    )
    ladder("unicl", dict(zip(SIZES, (2.0, 2.1, 2.6), strict=True)))
    found = overtakes(load_records(runs), **FEW)
    assert len(found) == 2 * 3 * 2
    row = of(found, task="findings", one="dinov2", other="clip")
    assert (row["first"], row["holds"], row["holds_said"]) == (
        8000,
        8000,
        "from 8,000 on, the largest",
    )
    assert not row["equal_compute"]
    row = of(found, task="findings", one="clip", other="dinov2")
    assert (row["first_said"], row["holds_said"]) == ("at 200, the smallest", NEVER)
    row = of(found, task="lines_tubes", one="unicl", other="clip")
    assert (row["holds_said"], row["equal_compute"], row["seeds"]) == (SMALLEST, True, 1)
    assert of(found, task="lines_tubes", one="clip", other="unicl")["first_said"] == NEVER


def test_a_difference_is_paired_on_the_same_patients(runs):
    one, other = (
        ladder(paradigm, {200: skill})[0] for paradigm, skill in (("clip", 1.5), ("unicl", 1.2))
    )
    found = differences(load_records(runs), **FEW).set_index("task")
    expected = paired(str(one), str(other), **FEW)
    expected = expected[expected["label"] == "macro"].set_index("task")
    assert len(found) == 2
    for task in found.index:
        assert tuple(found.loc[task, ["one", "other", "n_images"]]) == ("clip", "unicl", 200)
        for name in ("difference", "low", "high"):
            assert found.loc[task, name] == pytest.approx(expected.loc[task, name], abs=1e-9)


def test_only_sizes_in_common_are_compared_and_none_is_said(runs):
    ladder("clip", {200: 1.0, 1000: 1.0})
    ladder("unicl", {1000: 2.0, 8000: 0.5})
    ladder("dinov2", {50: 1.0})
    table = load_records(runs)
    found = overtakes(table, **FEW)
    row = of(found, task="findings", one="unicl", other="clip")
    assert (row["sizes"], row["smallest"], row["largest"], row["holds_said"]) == (
        1,
        1000,
        1000,
        SMALLEST,
    )
    none = found[(found["one"] == "dinov2") | (found["other"] == "dinov2")]
    assert len(none) == 8
    assert set(none["first_said"]) == set(none["holds_said"]) == {NO_SIZE}
    assert set(differences(table, **FEW)["n_images"]) == {1000}


def test_seeds_of_one_side_alone_are_told(runs):
    ladder("clip", {200: 1.5}, seeds=2, jitter=0.2)
    ladder("unicl", {200: 1.5})
    found = differences(load_records(runs), **FEW)
    assert set(found["covers"]) == {"patients, and seeds but for the one of unicl"}
    assert set(found["seeds"]) == {1}


def test_ladders_of_other_data_are_no_pair_and_other_bases_are_told_apart(runs):
    ladder("clip", {200: 1.5})
    ladder("unicl", {200: 1.5}, data="large-1")
    assert overtakes(load_records(runs), **FEW).empty
    judge("clip-n200-s0-cccccc", 2.0, n_images=200, base="tiny-base")
    names = {found.name for found in read_ladders(load_records(runs), **FEW)}
    assert names == {"clip (base clip-cnn)", "clip (base tiny-base)", "unicl"}
    assert len(crossovers(load_records(runs), **FEW)) == 6


# ---- what is refused -----------------------------------------------------------------------------------------------
def test_without_a_ladder_tables_are_empty_and_have_their_columns(runs):
    base()
    for table in (load_records([]), load_records(runs)):
        assert {*KEY, "first", "first_said", "holds_said", "covers"} <= set(
            crossovers(table).columns
        )
        assert {*KEY, "gain", "low", "high"} <= set(rungs(table).columns)
        assert {"one", "other", "first", "holds", "equal_compute"} <= set(overtakes(table).columns)
        assert {"one", "other", "difference"} <= set(differences(table).columns)
        assert (
            sum(map(len, (crossovers(table), rungs(table), overtakes(table), differences(table))))
            == 0
        )


def test_a_metric_without_scores_and_runs_without_scores_are_refused_by_name(runs):
    (folder,) = ladder("clip", {200: 1.5})
    table = load_records(runs)
    with pytest.raises(ValueError, match=r"metric must be auroc or auprc.*'dice'"):
        crossovers(table, metric="dice")
    kept = pd.read_parquet(folder / "scores.parquet")
    kept.drop(columns="score:edema").to_parquet(folder / "scores.parquet")
    with pytest.raises(ValueError, match=rf"{folder.name}.*edema"):
        crossovers(table, resamples=21)
    (folder / "scores.parquet").unlink()
    with pytest.raises(
        ValueError, match=rf"{folder.name}/scores.parquet: not there; run classify.ipynb"
    ):
        crossovers(table, resamples=22)


def test_runs_judged_on_different_patients_are_refused(runs):
    ladder("clip", {200: 1.5})
    base(patients="p1")
    with pytest.raises(ValueError, match="different patients"):
        crossovers(load_records(runs), **FEW)
