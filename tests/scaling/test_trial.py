"""Laws on trial: forms are chosen and judged by sizes they were not shown; the bootstrap draws patients and runs."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_ladders import base, judge, ladder

from cxrstudy.results import load_records
from cxrstudy.scaling import chapter, ladders, public
from cxrstudy.scaling.fit import fit_scaling
from cxrstudy.scaling.forms import Runs
from cxrstudy.scaling.resample import draw_runs, refit, resample_ladders, spread_of_seeds
from cxrstudy.scaling.trial import METRICS, choices, choose_form, extrapolate, extrapolations

RECORDED = Path(__file__).resolve().parents[2] / "book" / "recorded"
TABLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "public_scaling"
SIX = np.repeat([200, 600, 2000, 6000, 20000, 50000.0], [3, 2, 2, 2, 2, 3])


def power(n, b=0.25, top=0.3):
    return top * (n / 200) ** -b


LAWS = {
    "power": power,
    "power_floor": lambda n: 0.1 + 0.2 * (n / 200) ** -0.6,
    "broken": lambda n: 0.3 * (n / 200) ** -0.02 * (1 + (n / 2500) ** 4) ** -0.15,
}


# ---- the choice of a form -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", LAWS)
@pytest.mark.parametrize("given_sigma", [False, True])
def test_the_form_behind_the_runs_is_chosen(form, given_sigma):
    rng, chosen = np.random.default_rng(3), []
    curve = LAWS[form](SIX)
    for _ in range(8):
        error = curve * (1 + 0.01 * rng.normal(size=14))
        found = choose_form(SIX, error, 0.01 * curve if given_sigma else None)
        assert (
            list(found["form"]) == ["power", "power_floor", "m4", "broken"]
            and found["chosen"].sum() == 1
        )
        chosen.append(found.loc[found["chosen"], "form"].iloc[0])
    assert chosen.count(form) >= 6, chosen


def test_the_held_out_error_is_of_fits_that_did_not_see_the_sizes():
    rng = np.random.default_rng(4)
    error = power(SIX) * (1 + 0.02 * rng.normal(size=14))
    misses = []
    for sizes in ([50000.0], [20000.0, 50000.0]):
        kept = ~np.isin(SIX, sizes)
        fit = fit_scaling(SIX[kept], error[kept], form="power")
        misses += [fit.predict(n) - error[n == SIX].mean() for n in sizes]
    found = choose_form(SIX, error).set_index("form").loc["power"]
    assert (
        found["held_out"] == pytest.approx(np.sqrt(np.mean(np.square(misses))))
        and found["predicted"] == 3
    )
    moved = np.where(SIX == 50000, 1.1 * error, error)  # the largest size alone is never in a fit
    gap = choose_form(SIX, moved, left_out=(1,)).set_index("form").loc["power", "held_out"]
    assert gap == pytest.approx(abs(misses[0] - 0.1 * error[SIX == 50000].mean()))


def test_a_tie_goes_to_the_simpler_form_and_a_clear_gain_does_not():
    error = power(SIX)  # power_floor with a floor of 0 predicts it just as well
    found = choose_form(SIX, error, 0.01)
    assert found.set_index("form")["chosen"].to_dict() == {
        "power": True, "power_floor": False, "m4": False, "broken": False
    }  # fmt: skip
    rows = choose_form(SIX, LAWS["power_floor"](SIX), 0.001).set_index("form")
    assert rows.loc["power_floor", "chosen"]
    assert (
        rows.loc["power_floor", "held_out"]
        < rows.loc["power_floor", "rival"] - rows.loc["power_floor", "tie"]
    )


@pytest.mark.parametrize(
    ("sizes", "form", "predicted"), [(3, "power", 0), (4, "power", 1), (2, None, 0), (1, None, 0)]
)
def test_with_few_sizes_the_simplest_form_or_none_and_the_reasons_say_why(sizes, form, predicted):
    n = np.unique(SIX)[:sizes]
    found = choose_form(n, power(n), 0.002)
    assert list(found.loc[found["chosen"], "form"]) == ([form] if form else [])
    assert found["predicted"].iloc[0] == predicted
    rest = found[found["predicted"] == 0]
    assert rest["refused"].str.contains("distinct n").all() and rest["held_out"].isna().all()


def test_errors_that_do_not_fall_choose_no_form():
    found = choose_form(
        SIX, np.full(14, 0.2) * (1 + 0.01 * np.random.default_rng(1).normal(size=14))
    )
    assert not found["chosen"].any() and found["refused"].str.contains("does not fall").all()


# ---- extrapolation --------------------------------------------------------------------------------------------------
@given(seed=st.integers(0, 999))
@settings(deadline=None, max_examples=5)
def test_every_held_out_run_is_predicted_and_the_order_of_runs_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    error, order = power(SIX) * (1 + 0.01 * rng.normal(size=14)), rng.permutation(14)
    found, moved = extrapolate(SIX, error), extrapolate(SIX[order], error[order])
    methods = ["power", "power_floor", "chosen", "last value", "log-linear"]
    assert list(dict.fromkeys(found["method"])) == methods
    counts = found.groupby(["left_out", "method"]).size()
    assert (
        (counts.loc[1] == 3).all() and (counts.loc[2] == 5).all() and (found["refused"] == "").all()
    )
    by = ["left_out", "method", "value"]
    a, b = (
        table.sort_values(by)[["predicted", "low", "high"]].to_numpy(float)
        for table in (found, moved)
    )
    np.testing.assert_allclose(a, b, rtol=1e-3)
    np.testing.assert_allclose(found["off"], found["predicted"] - found["value"])
    laws = found[found["method"] != "last value"]
    assert laws.loc[laws["method"] == "power", "off"].abs().max() < 0.02


def test_the_guesses_and_the_law_are_what_they_say():
    rng = np.random.default_rng(5)
    error = power(SIX) * (1 + 0.01 * rng.normal(size=14))
    found = extrapolate(SIX, error, 0.003, left_out=(2,)).groupby("method")
    kept = SIX < 20000
    assert found.get_group("last value")["predicted"].unique() == [error[SIX == 6000].mean()]
    line = np.polynomial.Polynomial.fit(np.log(SIX[kept]), error[kept], 1)
    np.testing.assert_allclose(found.get_group("log-linear")["predicted"], line(np.log(SIX[~kept])))
    assert found.get_group("log-linear")[["low", "high", "held"]].isna().all(axis=None)
    fit = fit_scaling(SIX[kept], error[kept], sigma=0.003, form="power")
    rows = found.get_group("power")
    np.testing.assert_allclose(rows["predicted"], fit.predict(SIX[~kept]))
    np.testing.assert_allclose(
        rows[["low", "high"]].to_numpy().T, fit.interval(SIX[~kept], noise=True)
    )
    inside = (rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"])
    assert list(rows["held"]) == list(inside.astype(float))


def test_the_interval_of_a_new_run_holds_as_often_as_it_says():
    rng, held = np.random.default_rng(6), []
    for _ in range(40):
        error = power(SIX) * (1 + 0.02 * rng.normal(size=14))
        for told in ({"sigma": 0.02 * power(SIX)}, {"sigma": 0.01 * power(SIX), "partial": True}):
            found = extrapolate(SIX, error, **told, forms=("power",), left_out=(2,))
            held.append(found.groupby("method")["held"].mean()["power"])
    assert 0.88 < np.mean(held[::2]) < 0.999 and 0.88 < np.mean(held[1::2]) < 0.999


@given(
    sizes=st.integers(1, 6),
    seeds=st.integers(1, 2),
    rising=st.booleans(),
    sigma=st.sampled_from([None, 0.01]),
)
@settings(deadline=None, max_examples=12)
def test_what_cannot_be_predicted_is_a_row_with_its_reason_and_never_an_exception(
    sizes, seeds, rising, sigma
):
    n = np.unique(SIX)[:sizes].repeat(seeds)
    found = extrapolate(n, 0.5 - power(n) if rising else power(n), sigma)
    assert set(found["left_out"]) == {1, 2}
    refused = found["refused"] != ""
    assert (
        found.loc[refused, "predicted"].isna().all()
        and found.loc[~refused, "predicted"].notna().all()
    )
    if sizes < 4:
        assert refused[found["method"].isin(("power", "power_floor", "chosen"))].all()
        assert found.loc[found["method"] == "power", "refused"].str.contains("distinct n").all()
    with pytest.raises(ValueError, match=r"both must be \(K,\)"):
        extrapolate(n, np.append(power(n), 0.1))


# ---- the tidy table -------------------------------------------------------------------------------------------------
SKILLS = {n: 0.3 + 0.22 * np.log10(n) for n in (200, 600, 2000, 6000, 20000, 50000)}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def other_family(table, task, label, metric, value):
    """Rows of another task family for the same encoders."""
    rows = table[
        (table["task"] == "findings") & (table["label"] == "macro") & (table["metric"] == "auroc")
    ]
    stage = {"segmentation": "segment", "reports": "report"}[task]
    return rows.assign(
        task=task,
        label=label,
        metric=metric,
        stage=stage,
        value=[value(n) for n in rows["n_images"]],
    )


def test_every_family_of_the_table_is_tried_and_summed_up(runs):
    base()
    ladder("clip", SKILLS, seeds=2, jitter=0.01)
    ladder("dinov2", dict(list(SKILLS.items())[:2]))
    table = load_records(runs)
    table = pd.concat([
        table,
        other_family(table, "segmentation", "macro", "dice", lambda n: 1 - power(n, 0.1, 0.7)),
        other_family(table, "reports", "findings", "f1_micro", lambda n: 1 - power(n, 0.15, 0.8)),
    ])  # fmt: skip
    trials, summary = extrapolations(table)
    assert set(zip(trials["task"], trials["label"], trials["metric"], strict=True)) == set(
        METRICS[:4]
    )
    clip = trials[(trials["paradigm"] == "clip") & (trials["method"] == "power")]
    dice = clip[clip["task"] == "segmentation"]
    assert dice["off"].abs().max() < 1e-3
    np.testing.assert_allclose(dice["value"], power(dice["n_images"], 0.1, 0.7))
    few = trials[trials["paradigm"] == "dinov2"]
    assert few.loc[few["method"] == "power", "refused"].str.contains("distinct n").all()
    for row in summary.itertuples():
        own = trials[(trials["left_out"] == row.left_out) & (trials["method"] == row.method)]
        done = own[own["refused"] == ""]
        assert row.runs == len(done) and row.refused == len(own) - len(done)
        assert row.median_abs_error == pytest.approx(done["off"].abs().median())
        assert row.coverage == pytest.approx(done["held"].mean(), nan_ok=True)
    chosen = choices(table)
    assert chosen.groupby(["task", "metric", "paradigm"])["chosen"].sum().max() == 1
    assert "interval held" in chapter.trials_sentence(trials, summary)
    assert (
        len(chapter.trials_table(summary)) == len(summary)
        and "power" in chapter.choices_table(chosen).to_string()
    )


def test_with_nothing_or_too_little_the_tables_are_empty_and_the_page_says_so(runs):
    base()
    for table in (load_records([]), load_records(runs)):
        trials, summary = extrapolations(table)
        assert trials.empty and summary.empty and choices(table).empty
        assert "Too little" in chapter.trials_sentence(trials, summary)
        assert all(part.empty for part in resample_ladders(table))
    ladder("clip", dict(list(SKILLS.items())[:2]))
    table = load_records(runs)
    trials, summary = extrapolations(table)
    assert "Too little" in chapter.trials_sentence(
        trials, summary
    ) and "distinct n" in chapter.trials_sentence(trials, summary)
    fits, bands = resample_ladders(table, resamples=50)
    assert bands.empty and fits["refused"].str.contains("distinct n").all()
    shown = chapter.exponents_table(fits)
    assert (shown["exponent"] == "none").all() and shown["why there is none"].str.contains(
        "distinct n"
    ).all()
    assert chapter.exponents_rows(fits).empty


# ---- the bootstrap --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["power", "power_floor"])
def test_many_refits_are_each_the_fit_of_fit_scaling(form):
    rng = np.random.default_rng(7)
    errors = LAWS[form](SIX) * (1 + 0.02 * rng.normal(size=(6, 14)))
    sigma = 0.01 * np.sqrt(LAWS[form](SIX))
    many = refit(Runs(form, 0.5, SIX, errors[0], sigma), errors)
    for k, error in enumerate(errors):
        fit = fit_scaling(SIX, error, sigma=sigma, form=form)
        np.testing.assert_allclose(
            [v[k] for v in many[:3]], [fit.exponent, fit.scale, fit.floor], rtol=2e-3, atol=2e-4
        )


def test_drawn_runs_spread_as_seeds_do_and_keep_what_patients_do_to_all():
    rng = np.random.default_rng(8)
    n = np.repeat([200, 2000, 20000.0], [40, 2, 1])
    level = power(n, 0.2)
    error = level + 0.01 * np.sqrt(level) * rng.normal(size=43)
    shift = 0.01 * rng.normal(size=(4000, 1))
    drawn = draw_runs(n, error, error + shift, rng)
    apart = drawn - shift
    spread, dof = spread_of_seeds(n, error)
    assert dof == 40 and spread == pytest.approx(0.01, rel=0.3)
    assert apart[:, :40].std() == pytest.approx(spread * np.sqrt(level[0]), rel=0.1)
    pair = abs(error[40] - error[41]) / np.sqrt(
        2
    )  # two runs: their own deviation, grown to be right on average
    assert apart[:, 40:42].std() == pytest.approx(pair, rel=0.1)
    assert apart[:, 42].std() == pytest.approx(spread * np.sqrt(level[42]), rel=0.1)
    assert apart[:, 42].mean() == pytest.approx(error[42], abs=1e-3)


def test_patients_that_move_each_run_are_not_counted_twice():
    rng = np.random.default_rng(9)
    n = np.repeat([200, 2000, 20000.0], 4)
    error = power(n) + 0.005 * rng.normal(size=12)  # all of it what sampled patients do to each run
    drawn = draw_runs(n, error, error + 0.005 * rng.normal(size=(4000, 12)), rng)
    means = drawn.reshape(4000, 3, 4).mean(axis=2)
    assert means.std(axis=0).mean() < 1.35 * 0.005 / np.sqrt(4)


def test_one_run_a_size_spreads_as_its_residuals_or_is_refused():
    n, rng = np.unique(SIX), np.random.default_rng(10)
    errors = power(n) + 0.01 * np.sqrt(power(n)) * rng.normal(size=(100, 6))
    spreads, dofs = zip(*[spread_of_seeds(n, error) for error in errors], strict=True)
    assert set(dofs) == {4} and np.mean(np.square(spreads)) == pytest.approx(0.01**2, rel=0.25)
    error = errors[0]
    assert draw_runs(n, error, np.tile(error, (500, 1)), rng).std(axis=0).min() > 0
    with pytest.raises(ValueError, match="add seeds"):
        draw_runs(n[:2], error[:2], np.tile(error[:2], (5, 1)), rng)


def test_both_bands_of_every_ladder(runs):
    base()
    ladder("clip", SKILLS, seeds=3, jitter=0.01)
    ladder("unicl", SKILLS, jitter=0.01)
    table = load_records(runs)
    fits, bands = resample_ladders(table, resamples=200, n_images=[200, 1000, 1e5])
    assert (fits["refused"] == "").all() and len(fits) == 4 and len(bands) == 12
    assert ((fits["low"] < fits["exponent"]) & (fits["exponent"] < fits["high"])).all()
    assert ((bands["low"] < bands["value"]) & (bands["value"] < bands["high"])).all()
    assert (
        (bands["profile_low"] < bands["value"]) & (bands["value"] < bands["profile_high"])
    ).all()
    assert sorted(bands["n_images"].unique()) == [200, 1000, 1e5]
    many = fits[fits["paradigm"] == "clip"]
    assert list(many["seeds"]) == [3, 3] and list(many["runs"]) == [18, 18]
    again, _ = resample_ladders(table, resamples=200)
    pd.testing.assert_frame_equal(fits, again)
    other, _ = resample_ladders(table, resamples=200, seed=1)
    assert (fits["low"] != other["low"]).all()
    rows = table[
        (table["task"] == "findings") & (table["paradigm"] == "clip") & (table["label"] == "macro")
    ]
    clip = rows[(rows["metric"] == "auroc") & (rows["base"] != "")]
    assert ladders.noise_of(table, clip, "auroc") == {"robust": True}  # seeds tell
    once = ladders.noise_of(table, clip.drop_duplicates("n_images"), "auroc")
    assert once["partial"] and (once["sigma"] > 0).all()
    with pytest.raises(ValueError, match="to be resampled, got 'm4'"):
        resample_ladders(table, form="m4")
    judge("clip-other-s0-cccccc", 1.0, n_images=200, patients="p9")
    with pytest.raises(ValueError, match="different patients"):
        resample_ladders(load_records(runs))


def test_a_whole_grid_is_resampled_within_its_time():
    """8 ladders of 6 sizes and 3 seeds, 1,000 resamples, without the patients' bootstrap (5 s are allowed)."""
    n, rng = np.unique(SIX).repeat(3), np.random.default_rng(11)
    error = power(n) * (1 + 0.02 * rng.normal(size=18))
    draws = error * (1 + 0.01 * rng.normal(size=(1000, 18)))
    start = time.process_time()
    for _ in range(8):
        fit = fit_scaling(n, error, form="power")
        many = refit(fit.runs, draw_runs(n, error, draws, rng))
        fit.runs.curve([v[:, None] for v in many], np.geomspace(200, 2e5, 40))
    assert time.process_time() - start < 5


# ---- published laws -------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not TABLES.is_dir(), reason="needs ../shared/data/public_scaling")
def test_published_laws_come_out_as_published_and_as_recorded():
    rows = public.laws(TABLES)
    exponents = rows[rows["quantity"].str.contains("exponent")]
    assert (
        len(exponents) == 8 and (exponents["difference"].abs() < 0.0056).all()
    )  # published to two decimals
    predicted = rows[rows["quantity"].str.startswith("error")]
    assert len(predicted) == 4 and (predicted["difference"].abs() < 0.0015).all()
    joint = rows[rows["data"] == "Chinchilla"].set_index("quantity")["difference"].abs()
    assert joint[["alpha", "beta"]].max() < 0.01 and joint["E"] < 0.03
    kept = pd.read_csv(RECORDED / "public_laws.csv")
    pd.testing.assert_frame_equal(
        kept, rows.round(5).reset_index(drop=True), check_dtype=False, rtol=1e-3
    )


def test_the_frontier_is_the_least_error_of_each_bin_at_its_middle():
    compute, error = np.array([1e10, 2e10, 1e11, 1e12, 9e12]), np.array([0.5, 0.4, 0.3, 0.2, 0.25])
    at, least = public.frontier(compute, error, bins=3)
    edges = np.linspace(10, np.log10(9e12) + 0.1, 4)
    np.testing.assert_allclose(np.log10(at), (edges[1:] + edges[:-1]) / 2)
    inside = [
        (np.log10(compute) >= low) & (np.log10(compute) < high)
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    np.testing.assert_allclose(least, [error[k].min() for k in inside])
    assert len(public.frontier(compute, error, bins=30)[0]) == len(
        compute
    )  # empty bins have no point


def test_the_chapter_reads_what_is_recorded():
    laws, held = (
        chapter.recorded(RECORDED / f"{name}.csv") for name in ("public_laws", "coverage")
    )
    assert len(chapter.public_table(laws)) == len(laws) and set(
        chapter.public_rows(laws)["series"]
    ) == {
        "ours",
        "published",
    }
    assert chapter.coverage_rows(held)["value"].between(0.5, 1).all()
    said, every = chapter.coverage_sentence(held), held[held["place"] == "all"]
    assert said.startswith(f"{len(every)} settings, 2,000 draws each")
    every = every[chapter.relied_on(every)]
    assert f"relies on {len(every)}" in said
    missed = every[~every["coverage"].between(0.93, 0.97) | (every["width"] > 1.6)]
    assert ("Not reached" in said) == (len(missed) > 0) and said.count("(") == len(missed) + (
        len(missed) > 0
    )
    assert len(chapter.coverage_table(held)) == len(held.drop_duplicates(chapter.ALIKE))
