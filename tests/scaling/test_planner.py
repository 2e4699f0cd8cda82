"""The planner: contrasts between measured sizes, the control first, no promise beyond the laws."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy.scaling import contrasts
from cxrstudy.scaling.cells import BASE, SEEN, Cell, Measured
from cxrstudy.scaling.planner import NUMBERS, consult, planner_grid, signed

SIZES = (100, 1000, 10_000)
RISING = (0.80, 0.82, 0.84)


def cell(n, arm="clip", task="findings"):
    return Cell(task, "auroc", "d", arm, "base", float(n > 0), float(n))


def study(values=RISING, *, base=0.79, control=None, seeds=3, noise=1e-3):
    rng = np.random.default_rng(0)
    shared, cells = noise * rng.normal(size=300), {}

    def add(key, value, count):
        own = value + noise / 4 * rng.normal(size=count)
        own += value - own.mean()
        draws = own[:, None] + shared + noise / 4 * rng.normal(size=(count, 300))
        cells[key] = Measured(own, draws, "cnn", 100, 50, 30, 0.0, "synthetic")

    for n, value in zip(SIZES, values, strict=True):
        add(cell(n), value, seeds)
    if base is not None:
        add(cell(0, BASE), base, 1)
    if control is not None:
        add(cell(SIZES[-1], "clip" + SEEN), control, seeds)
    return cells


@pytest.fixture(scope="module")
def grid():
    return planner_grid(study(control=0.835))


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1), which=st.integers(0, 1))
def test_between_sizes_the_answer_is_the_contrast_of_the_two_nearest(share, which):
    cells = study()
    grid = planner_grid(cells)
    few, many = SIZES[which], SIZES[which + 1]
    n = few * (many / few) ** share
    row = consult(grid, n).iloc[0]
    weights = {cell(few): 1 - share, cell(many): share, cell(0, BASE): -1.0}
    own = contrasts.contrast(weights, cells)
    assert row["gain"] == pytest.approx(own.effect, abs=1e-4)
    assert row["gain_low"] == pytest.approx(own.low, abs=2e-4)
    assert row["gain_high"] == pytest.approx(own.high, abs=2e-4)
    assert row["low"] <= row["value"] <= row["high"]


def test_measured_sizes_are_answered_as_measured(grid):
    cells = study(control=0.835)
    for n, value in zip(SIZES, RISING, strict=True):
        row = consult(grid, n).iloc[0]
        own = contrasts.contrast({cell(n): 1.0, cell(0, BASE): -1.0}, cells)
        assert row["value"] == pytest.approx(value)
        assert (row["gain_low"], row["gain_high"]) == pytest.approx((own.low, own.high))
        assert row["verdict"] == contrasts.verdict(own, 0.005)


def test_an_answer_leads_with_the_gain_beyond_the_control(grid):
    said = consult(grid, 1000)["status"].iloc[0]
    assert said.startswith("At equal compute, 10,000 in-house images are +0.005 [")
    assert "more steps on images already seen" in said.split(":")[0]
    without = consult(planner_grid(study()), 1000)["status"].iloc[0]
    assert without.startswith("No control at equal compute was run")


def test_the_same_verdict_as_the_contrasts_of_the_analysis():
    cells = study(control=0.8395)
    (entry,) = planner_grid(cells)["curves"]
    own = contrasts.contrast({cell(10_000): 1.0, cell(10_000, "clip" + SEEN): -1.0}, cells)
    assert entry["control"]["verdict"] == contrasts.verdict(own, 0.005) == "equivalent"


def test_ten_times_as_many_add_the_paired_difference_up_to_the_limit(grid):
    row = consult(grid, 100).iloc[0]
    own = contrasts.contrast({cell(1000): 1.0, cell(100): -1.0}, study(control=0.835))
    assert (row["more_n"], row["more"]) == (1000, pytest.approx(own.effect))
    assert (row["more_low"], row["more_high"]) == pytest.approx((own.low, own.high))
    assert "The most that these runs can answer for" in consult(grid, 2000)["status"].iloc[0]


def test_outside_what_was_measured_there_is_no_number_unless_the_law_predicted_better():
    (entry,) = planner_grid(study((0.80, 0.84, 0.84)))["curves"]
    assert entry["limit"] == SIZES[-1]
    rows = consult({**planner_grid(study((0.80, 0.84, 0.84)))}, [99, 10_001])
    assert (rows["reach"] == "refused").all() and rows[NUMBERS].isna().all(axis=None)
    assert "last value" in rows["status"].iloc[1] and "smallest size" in rows["status"].iloc[0]


def test_where_the_law_predicted_better_it_is_read_up_to_four_times_the_largest_size():
    n = np.array([100, 300, 1000, 3000, 10_000, 30_000])
    cells = {}
    for size in n:
        value = 1 - 0.5 * size**-0.2
        own = value + 1e-4 * np.array([-1.0, 0.0, 1.0])
        noise = 1e-4 * np.random.default_rng(size).normal(size=(3, 200))
        cells[cell(size)] = Measured(own, own[:, None] + noise, kind="synthetic")
    cells[cell(0, BASE)] = Measured(np.array([0.75]), np.full((1, 200), 0.75), kind="synthetic")
    grid = planner_grid(cells)
    rows = consult(grid, [30_000, 120_000, 120_001])
    assert rows["reach"].tolist() == ["inside", "extrapolated", "refused"]
    assert rows["value"].iloc[1] == pytest.approx(1 - 0.5 * 120_000**-0.2, abs=2e-3)
    wide = rows["high"] - rows["low"]
    assert wide.iloc[1] > wide.iloc[0]
    assert "extrapolated by the fitted law" in rows["status"].iloc[1]


def test_without_its_base_there_is_a_value_and_no_gain():
    row = consult(planner_grid(study(base=None)), 1000).iloc[0]
    assert np.isnan(row["gain"]) and np.isfinite(row["value"])
    assert "base model was not evaluated" in row["status"]


def test_the_grid_is_plain_json(grid):
    assert json.loads(json.dumps(grid, allow_nan=False)) == grid


def test_without_a_curve_nothing_is_answered():
    grid = planner_grid({})
    assert grid["curves"] == [] and consult(grid, 100).empty


@pytest.mark.parametrize("wrong", [0, -5, np.nan, np.inf, [100, 0]])
def test_a_number_below_one_is_refused(grid, wrong):
    with pytest.raises(ValueError, match="at least 1"):
        consult(grid, wrong)


def test_no_sign_is_lost_and_nothing_is_minus_nought():
    values = (0.0004, -0.0004, -0.0006, 0.00001, -0.00001, 0.0)
    shown = ["+0.0004", "-0.0004", "-0.001", "+0.000", "+0.000", "+0.000"]
    assert [signed(v) for v in values] == shown
    assert signed(0.97, False) == "0.970"
