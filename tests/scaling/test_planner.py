"""The planner: read from the law where there is one, between what was measured where there is none, and no further."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_ladders import base, judge, ladder
from scipy import stats

from cxrstudy.results import load_records
from cxrstudy.scaling.decide import KEY, Ladder, rungs
from cxrstudy.scaling.ladders import fit_ladders
from cxrstudy.scaling.planner import (
    LIMIT,
    abreast,
    boxed,
    consult,
    embedded,
    planner,
    planner_grid,
    prospect,
    shown,
)

SIZES = [200, 1000, 8000]
FEW = {"resamples": 200}
NUMBERS = ["value", "low", "high", "gain", "gain_low", "gain_high", "more", "more_low", "more_high"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """clip follows a law on both tasks, unicl on none: its skill falls."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("planner") / "runs"
        patch.setenv("CXRSTUDY_RUNS", str(folder))
        base(1.0)
        ladder("clip", {200: 1.0, 1000: 1.35, 8000: 1.8})
        ladder("unicl", {200: 1.3, 1000: 1.35, 8000: 1.0})
        return load_records(folder)


@pytest.fixture(scope="module")
def grid(table):
    return planner_grid(table, **FEW)


def of(rows, task="findings", paradigm="clip"):
    return rows[(rows["task"] == task) & (rows["paradigm"] == paradigm)].reset_index(drop=True)


def entry(grid, task="findings", paradigm="clip"):
    return next(e for e in grid["ladders"] if (e["task"], e["paradigm"]) == (task, paradigm))


# ---- a law ---------------------------------------------------------------------------------------------------------
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(n=st.floats(200, 32000))
def test_the_grid_read_between_its_sizes_is_the_law_itself_to_three_digits(table, grid, n):
    direct = planner_grid(table, [n], **FEW)
    read, exact = (of(consult(g, round(n, 3)))[NUMBERS].to_numpy(float) for g in (grid, direct))
    np.testing.assert_allclose(
        read, exact, atol=5e-4, rtol=0.01
    )  # an end of a wide interval bends between two sizes


def test_its_law_is_that_of_the_ladders(table, grid):
    fits, curves = fit_ladders(table)
    own = curves[(curves["task"] == "findings") & (curves["paradigm"] == "clip")]
    rows = of(consult(grid, own["n_images"].to_numpy()[:-1]))
    np.testing.assert_allclose(rows["value"], own["value"][:-1], atol=5e-4)
    assert (
        rows["low"] <= own["low"][:-1] + 1e-5
    ).all()  # wider: these hold the sampling of patients too
    assert (rows["high"] >= own["high"][:-1] - 1e-5).all()
    refused = fits[(fits["task"] == "findings") & (fits["paradigm"] == "unicl")]["refused"].iloc[0]
    assert entry(grid, paradigm="unicl")["reason"] == refused.rstrip(".")


def test_a_gain_is_the_law_less_the_base_and_its_interval_is_the_narrower_for_being_paired(
    table, grid
):
    own = table[
        (table["run"] == "base-clip-cnn-aaaaaa")
        & (table["label"] == "macro")
        & (table["metric"] == "auroc")
    ]
    rows = of(consult(grid, [200, 900, 8000, 30000]))
    value = own.loc[own["task"] == "findings", "value"].iloc[0]
    np.testing.assert_allclose(rows["base_value"], value)
    np.testing.assert_allclose(rows["gain"], rows["value"] - value, atol=2e-6)
    assert (rows["gain_low"] < rows["gain"]).all()
    assert (rows["gain"] < rows["gain_high"]).all()
    inside = rows["n_images"] <= 8000
    assert (rows["gain_high"] - rows["gain_low"] < rows["high"] - rows["low"])[inside].all()
    assert set(rows["basis"]) == {"law"}
    assert rows["covers"].str.endswith("one seed a size").all()
    assert set(rows["reason"]) == {""}


def test_ten_times_as_many_add_what_the_law_rises_by_up_to_its_limit(grid):
    rows = of(consult(grid, [300, 3000, 4000, 32000]))
    ten = of(consult(grid, [3000, 30000, 32000, 32000]))
    np.testing.assert_allclose(rows["more"], ten["value"] - rows["value"], atol=5e-4)
    assert rows["more_n"].tolist() == [3000, 30000, 32000, 32000]
    assert (rows["more_low"] <= rows["more"]).all()
    assert (rows["more"] <= rows["more_high"]).all()
    said = rows["status"].tolist()
    assert "Ten times as many, 30,000, would add +0." in said[1]
    assert "32,000, the most that they can, would add +0." in said[2]
    assert said[3].endswith("For more images these runs cannot speak.")


def test_a_law_is_flagged_beyond_the_largest_size_and_refused_beyond_four_times_it(grid):
    rows = of(consult(grid, [199, 200, 8000, 8001, 32000, 32001, 3.5e6]))
    assert rows["reach"].tolist() == [
        "refused",
        *["inside"] * 2,
        *["extrapolated"] * 2,
        *["refused"] * 2,
    ]
    assert rows.loc[rows["reach"] == "refused", [*NUMBERS, "more_n"]].isna().all(axis=None)
    assert rows.loc[rows["reach"] != "refused", NUMBERS].notna().all(axis=None)
    said = rows["status"].tolist()
    assert (
        said[0]
        == "No answer for 199 images with clip on findings (synthetic x-rays): the smallest size measured is 200."
    )
    assert "The law is extrapolated here: the largest size measured is 8,000." in said[3]
    assert f"up to 32,000, {LIMIT} times the largest size measured" in said[5]
    assert all("synthetic x-rays" in sentence for sentence in said)
    assert "extrapolated" not in said[2]


# ---- no law --------------------------------------------------------------------------------------------------------
def test_without_a_law_measured_gains_are_read_with_their_intervals_inside_the_ladder_only(
    table, grid
):
    measured = of(rungs(table, **FEW), paradigm="unicl")
    rows = of(consult(grid, [*SIZES, 3000, 8001, 199]), paradigm="unicl")
    assert set(rows["basis"]) == {"measured, no law"}
    assert set(rows["covers"]) == {"patients alone: one seed"}
    assert rows["reach"].tolist() == ["inside"] * 4 + ["refused"] * 2
    assert rows["reason"].str.contains("does not fall").all()
    names = {
        "value": "value",
        "low": "value_low",
        "high": "value_high",
        "gain": "gain",
        "gain_low": "low",
    }
    for name, at in (names | {"gain_high": "high"}).items():
        np.testing.assert_allclose(rows[name][:3], measured[at], atol=2e-6)
        share = np.log(3) / np.log(8)
        expected = (1 - share) * measured[at][1] + share * measured[at][2]
        assert rows[name][3] == pytest.approx(expected, abs=2e-6)
    assert (
        "No law was fitted: this is read between the sizes that were measured." in rows["status"][3]
    )
    assert "no law could be fitted to go beyond it" in rows["status"][4]


def test_what_more_images_add_without_a_law_is_the_paired_difference_of_two_sizes(table, grid):
    row = of(consult(grid, 1000), paradigm="unicl").iloc[0]
    value = of(rungs(table, **FEW), paradigm="unicl")["value"]
    assert row["more_n"] == 8000
    assert row["more"] == pytest.approx(value[2] - value[1], abs=2e-6)
    assert row["more_low"] < row["more"] < row["more_high"] < 0
    assert row["more_high"] - row["more_low"] < row["high"] - row["low"]


def test_two_sizes_are_no_law_and_one_size_answers_for_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    base()
    ladder("clip", {200: 1.2, 1000: 1.5})
    ladder("unicl", {500: 1.2})
    rows = planner(load_records(tmp_path / "runs"), [500, 501], **FEW)
    assert rows["reason"].str.contains("distinct n").all()
    clip, unicl = (of(rows, paradigm=paradigm) for paradigm in ("clip", "unicl"))
    assert clip["value"].notna().all()
    assert unicl["reach"].tolist() == ["inside", "refused"]


def test_without_its_base_a_ladder_is_planned_by_value_and_no_gain_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    ladder("clip", {200: 1.0, 1000: 1.4, 8000: 1.8}, kind="real")
    rows = planner(load_records(tmp_path / "runs"), 1000, **FEW)
    assert rows[["gain", "gain_low", "gain_high", "base_value"]].isna().all(axis=None)
    assert rows["value"].between(rows["low"], rows["high"]).all()
    assert rows["status"].str.contains("was not evaluated, so no gain can be said").all()
    assert rows["status"].str.contains("real x-rays").all()
    assert not rows["status"].str.contains("nan").any()
    assert set(shown(rows)["gain over the base"]) == {"not known"}


# ---- honest intervals ----------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "between"), [(1, 0.0), (1, 0.004), (3, 0.002), (3, 0.004)])
def test_the_interval_of_a_gain_holds_the_truth_as_often_as_it_says(seeds, between):
    """Errors 0.3 n^-0.06 at five sizes; patients move all runs by 0.004, a run's own noise is 0.002."""
    rng, held = np.random.default_rng(5), []
    sizes, at = np.array([200.0, 1e3, 3e3, 1e4, 5e4]), np.array([2e3, 5e4, 2e5])
    n, floor, empty = np.repeat(sizes, seeds), 0.81, planner_grid(load_records([]))
    for _ in range(150):
        common, resampled = 0.004 * rng.normal(), 0.004 * rng.normal(size=(200, 1))
        value = 1 - 0.3 * n**-0.06 + common + rng.normal(size=len(n)) * np.hypot(0.002, between)
        draws = value + resampled + 0.002 * rng.normal(size=(200, len(n)))
        own = floor + common + 0.002 * rng.normal()
        made = Ladder(
            key=dict.fromkeys(KEY, "x"),
            name="x",
            runs=pd.DataFrame({"n_images": n, "value": value, "kind": "synthetic"}),
            sizes=sizes,
            seeds=np.full(5, seeds),
            values=value.reshape(5, seeds).mean(axis=1),
            draws=draws.reshape(200, 5, seeds).mean(axis=2),
            spread=np.full(5, np.nan),
            base=(own, own + resampled[:, 0] + 0.002 * rng.normal(size=200)),
        )
        one = {
            "sigma": np.full(len(n), 0.002),
            "partial": True,
        }  # seeds are in no resample of patients
        noise = {"robust": True} | (one if seeds == 1 else {})
        rows = consult(empty | {"ladders": [prospect(made, noise, list(at), resamples=20)]}, at)
        true = 1 - 0.3 * at**-0.06 - floor
        held.append((rows["gain_low"] <= true) & (true <= rows["gain_high"]))
    share = np.mean(held, axis=0)
    assert (share > stats.binom.ppf(1e-3, 150, 0.93) / 150).all(), share


# ---- what pages take -----------------------------------------------------------------------------------------------
def test_the_grid_is_plain_json_that_cannot_end_its_script(grid):
    assert json.loads(json.dumps(grid, allow_nan=False)) == grid
    named = grid | {"ladders": [entry(grid) | {"name": "</script><b>"}]}
    markup = embedded(named)
    assert markup.count("</script>") == 2
    data = markup.split('id="planner-grid">')[1].split("</script>")[0]
    assert json.loads(data) == named
    assert "://" not in markup


def test_numbers_to_read_are_whole_and_nothing_is_minus_nought(grid):
    rows = consult(grid, [1000, 32000])
    told = shown(rows)
    row = told[
        (told["task"] == "findings") & (told["paradigm"] == "clip") & (told["images"] == "1,000")
    ].iloc[0]
    first = of(rows).iloc[0]
    assert (
        row["expected"]
        == f"{first['value']:.3f} [{first['low']:.3f},\N{NO-BREAK SPACE}{first['high']:.3f}]"
    )
    assert row["ten times as many, or the most, would add"].startswith("10,000: +0.")
    assert set(told["read from"]) == {
        "law",
        "law; extrapolated",
        "measured, no law",
        "measured, no law; refused",
    }
    nought = rows.assign(gain=-1e-9, gain_low=-0.0001, gain_high=0.0)
    assert set(shown(nought)["gain over the base"]) == {"+0.000 [+0.000,\N{NO-BREAK SPACE}+0.000]"}
    assert 'aria-label="a &quot;b&quot;"' in boxed(told, 'a "b"')


def test_without_a_ladder_nothing_is_answered_and_nothing_fails():
    grid = planner_grid(load_records([]))
    assert grid["ladders"] == []
    rows = consult(grid, [100, 1000])
    assert rows.empty
    assert {"value", "gain", "more", "status"} <= set(rows.columns)
    assert shown(rows).empty


@pytest.mark.parametrize("wrong", [0, -5, np.nan, np.inf, [100, 0]])
def test_a_number_that_is_none_is_refused(grid, wrong):
    with pytest.raises(ValueError, match="n_images must be at least 1"):
        consult(grid, wrong)


def test_another_form_and_metric_are_read_on_their_own(table, tmp_path, monkeypatch):
    other = planner_grid(table, metric="auprc", **FEW)
    assert other["metric"] == "AUPRC"
    row = of(consult(other, 200)).iloc[0]
    own = table[
        (table["run"] == "base-clip-cnn-aaaaaa")
        & (table["metric"] == "auprc")
        & (table["label"] == "macro")
    ]
    assert row["base_value"] == pytest.approx(own.loc[own["task"] == "findings", "value"].iloc[0])
    assert "macro AUPRC" in row["status"]
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    ladder(
        "clip", {200: 1.0, 800: 1.3, 3000: 1.55, 12000: 1.8}
    )  # one size more than a power law needs
    table = load_records(tmp_path / "runs")
    _, curves = fit_ladders(table, form="m4")
    curves = of(curves)[:-1]
    rows = of(consult(planner_grid(table, form="m4", **FEW), curves["n_images"].to_numpy()))
    np.testing.assert_allclose(rows["value"], curves["value"], atol=5e-4)
    power = of(consult(planner_grid(table, **FEW), curves["n_images"].to_numpy()))
    assert (rows["value"] - power["value"]).abs().max() > 5e-4


def test_only_continued_encoders_are_planned_by(table, tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    judge("pixels-cccccc", 0.5, paradigm="control", base=None, encoder="pixels")
    base()
    assert planner_grid(load_records(tmp_path / "runs"))["ladders"] == []


def test_paradigms_are_set_abreast_with_their_bases_and_in_house_beside_others_images(
    table, grid, tmp_path, monkeypatch
):
    value = of(consult(grid, 20000))["value"].iloc[0]
    assert abreast(grid, "findings", 20000) == (
        f"All on findings with 20,000 images: clip {value:.3f}, from a base of {entry(grid)['base_value']:.3f}; "
        "unicl no answer."
    )
    assert (
        entry(grid)["home"]
        == "Whether as many images of others would have done as well was not tried."
    )
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    base(1.0)
    home, away = (
        {"trained_on": "synthetic:study"},
        {"trained_on": "synthetic:public", "n_images": 8000},
    )
    for n, skill in ((200, 1.0), (8000, 2.0)):
        judge(f"clip-n{n}-s0-aaaaaa", skill, n_images=n, **home)
    judge("clip-public-cccccc", 1.0, **away)
    told = entry(planner_grid(load_records(tmp_path / "runs"), **FEW))["home"]
    assert told.startswith(
        "The same base on as many images of public, 8,000 of each: in-house is +0."
    )
    assert told.endswith("beyond it, a gain.")
