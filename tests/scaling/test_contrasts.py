"""The inference engine reproduces earlier engines under their conventions, and covers the truth."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy import recorded
from cxrstudy.scaling import contrasts
from cxrstudy.scaling.cells import BASE, BASELINE, OUT_OF_DOMAIN, SEEN, Cell, Measured, read_cells
from cxrstudy.scaling.contrasts import Estimate, contrast, verdict
from cxrstudy.scaling.verdicts import (
    BETTER,
    BORROWED,
    BOTH,
    EQUIVALENT,
    ONE_SEED,
    OVER_SEEN,
    PARADIGMS,
    PATIENTS,
    UNTESTABLE,
    UNTOLD,
    WORSE,
)

GOLDEN = Path(__file__).parent / "golden"
STUDIES = ("study-cpu", "study-gpu")
TASKS = ("findings", "lines_tubes")


@pytest.fixture(scope="module", params=STUDIES)
def study(request):
    """Cells of a recorded study, its variances between seeds, and its pinned tables."""
    table = recorded.load(request.param)
    table = table[
        table["task"].isin([*TASKS, "segmentation"]) & table["metric"].isin(["auroc", "dice"])
    ]
    cells = read_cells(table)
    pinned = json.loads((GOLDEN / f"{request.param}.json").read_text(encoding="utf-8"))
    return cells, contrasts.seed_variances(cells), pinned


def found(rows, cells, variance):
    """Estimates by (task, arm, n_images) of the contrasts on findings and tubes."""
    out = {}
    for one, _, weights in rows(cells):
        first = next(iter(weights))
        if first.metric == "auroc":
            out[first.task, one, first.n_images] = contrast(weights, cells, variance)
    return out


def over_control(cells):
    yield from contrasts.over_seen(cells)
    yield from contrasts.over_out_of_domain(cells)


@pytest.mark.parametrize(
    ("table", "rows", "size"),
    [
        ("gains", contrasts.gains, "n_images"),
        ("growth", contrasts.growth, "most"),
        ("in_domain", over_control, "n_images"),
        ("beyond_control", contrasts.over_baseline, "n_images"),
    ],
)
def test_patients_only_gives_the_paired_differences_of_the_first_engine(study, table, rows, size):
    cells, _, pinned = study
    estimates = found(rows, cells, {})
    assert len(estimates) == len(pinned[table]) > 0
    for row in pinned[table]:
        estimate = estimates[row["task"], row["paradigm"], row[size]]
        expected = (row["gain"], row["low"], row["high"])
        assert (estimate.effect, estimate.low, estimate.high) == pytest.approx(expected, abs=1e-9)


def test_differences_of_paradigms_are_no_wider_than_the_second_engine(study):
    """It took a size's own variance if larger than the pooled one, and joined sides by ends."""
    cells, variance, pinned = study
    estimates = {}
    for one, other, weights in contrasts.paradigms(cells):
        first = next(iter(weights))
        if first.metric == "auroc":
            estimates[first.task, one, other, first.n_images] = contrast(weights, cells, variance)
    for row in pinned["differences"]:
        estimate = estimates[row["task"], row["one"], row["other"], row["n_images"]]
        assert estimate.effect == pytest.approx(row["difference"], abs=1e-9)
        assert estimate.high - estimate.low <= (row["high"] - row["low"]) * 1.0001


def test_claims_keep_their_effects_and_their_sign(study):
    """The claims' engine drew seeds at random: intervals agree within the noise of that draw."""
    cells, variance, pinned = study
    ledger = {row["id"]: row for row in pinned["ledger"]}
    own = {
        (c.arm, c.n_images): c
        for c in cells
        if c[:2] == ("findings", "auroc") and c.arm in ("clip", "unicl", "dinov2")
    }
    sizes = sorted({n for _, n in own})
    weights = {own["unicl", sizes[-1]]: 1.0, own["clip", sizes[-1]]: -1.0}
    estimate, row = contrast(weights, cells, variance), ledger["labels-findings"]
    assert estimate.effect == pytest.approx(row["effect"], abs=1e-9)
    assert (estimate.low, estimate.high) == pytest.approx((row["low"], row["high"]), abs=0.002)


def test_all_contrasts_has_every_kind_and_says_what_its_intervals_include():
    table = recorded.load("study-gpu")
    rows = contrasts.all_contrasts(
        table[(table["metric"] == "auroc") & table["task"].isin(TASKS)], resamples=200
    )
    there = set(contrasts.KINDS) - {"gain over out-of-domain images"}
    assert set(rows["kind"]) == there
    control = rows[rows["kind"] == OVER_SEEN]  # one seed, and the paradigm's own runs have several
    assert set(control["variance_sources"]) == {BORROWED}
    assert set(rows.loc[rows["kind"] == "largest - smallest subset", "variance_sources"]) == {BOTH}
    assert ((rows["low"] <= rows["effect"]) & (rows["effect"] <= rows["high"])).all()
    excludes = (rows["low"] > 0) | (rows["high"] < 0)
    assert (excludes == (rows["p"] < 0.05)).all()
    assert (rows["low"] <= rows["low90"]).all() and (rows["high90"] <= rows["high"]).all()
    tubes = rows[(rows["kind"] == PARADIGMS) & (rows["task"] == "lines_tubes")]
    dinov2 = (tubes[["one", "other"]] == "dinov2").any(
        axis=1
    )  # its base is at random weights there
    assert set(tubes.loc[dinov2, "verdict"]) == {UNTESTABLE}
    assert UNTESTABLE not in set(tubes.loc[~dinov2, "verdict"])


# ---- laws --------------------------------------------------------------------------------------
def cell(n, arm="clip"):
    return Cell("findings", "auroc", "data", arm, "base", 1000.0, float(n))


def measured(rng, seeds, spread=0.01, resamples=300):
    values = 0.8 + spread * rng.normal(size=seeds)
    return Measured(
        values,
        values[:, None] + 0.01 * rng.normal(size=resamples) + 0.002 * rng.normal(size=(seeds, 1)),
    )


@given(seed=st.integers(0, 10**6), seeds=st.integers(1, 4), scale=st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_signs_and_scales(seed, seeds, scale):
    rng = np.random.default_rng(seed)
    cells = {cell(n): measured(rng, seeds) for n in (10, 100)}
    weights = {cell(100): 1.0, cell(10): -1.0}
    one = contrast(weights, cells)
    turned = contrast({c: -w for c, w in weights.items()}, cells)
    assert (turned.effect, turned.low, turned.high) == pytest.approx(
        (-one.effect, -one.high, -one.low)
    )
    assert turned.p == pytest.approx(one.p, rel=1e-3)
    larger = contrast({c: scale * w for c, w in weights.items()}, cells)
    assert (larger.effect, larger.high) == pytest.approx((scale * one.effect, scale * one.high))
    assert one.variance_sources == (BOTH if seeds > 1 else PATIENTS)
    assert one.seeds == seeds


def test_more_seeds_narrow_the_interval_and_seeds_widen_patients_only():
    rng = np.random.default_rng(3)
    three = {cell(n): measured(rng, 3, spread=0.02) for n in (10, 100, 1000)}
    weights = {cell(1000): 1.0, cell(10): -1.0}
    alone, both = contrast(weights, three, {}), contrast(weights, three)
    assert both.high - both.low > alone.high - alone.low
    variance = contrasts.seed_variances(three)
    doubled = {
        c: Measured(np.tile(m.values, 2), np.tile(m.draws, (2, 1))) for c, m in three.items()
    }
    narrower = contrast(weights, doubled, variance)
    assert narrower.high - narrower.low < both.high - both.low


def test_a_base_model_has_no_seeds_but_its_decoder_of_masks_has():
    base = Cell("segmentation", "dice", "data", BASE, "base", 0.0, 0.0)
    rng = np.random.default_rng(0)
    assert contrast({base: 1.0}, {base: measured(rng, 1)}).variance_sources == PATIENTS
    probed = base._replace(task="findings", metric="auroc")
    assert contrast({probed: 1.0}, {probed: measured(rng, 1)}).variance_sources == BOTH


def test_controls_are_other_arms_and_no_points_of_a_curve():
    rng = np.random.default_rng(0)
    own, other, seen = cell(100), cell(100, "clip" + OUT_OF_DOMAIN), cell(100, "clip" + SEEN)
    cells = {c: measured(rng, 2) for c in (own, other, seen)}
    assert [there for _, there, _ in contrasts.over_out_of_domain(cells)] == [other.arm]
    assert [there for _, there, _ in contrasts.over_seen(cells)] == [seen.arm]
    assert [len(curve) for curve in contrasts.curves(cells)] == [1]


def test_a_curve_of_one_seed_takes_the_variance_of_its_paradigm_and_says_so():
    rng = np.random.default_rng(1)
    cells = {cell(n): measured(rng, 3, spread=0.02) for n in (10, 100)}
    control = cell(100, "clip" + SEEN)
    cells[control] = measured(rng, 1)
    one = contrast({cell(100): 1.0, control: -1.0}, cells)
    alone = contrast({cell(100): 1.0, control: -1.0}, cells, {})
    assert one.variance_sources == BORROWED
    assert alone.variance_sources == PATIENTS
    assert one.high - one.low > alone.high - alone.low
    lone = {cell(100, "unicl"): measured(rng, 1)}
    assert contrast({cell(100, "unicl"): 1.0}, cells | lone).variance_sources == PATIENTS


def test_p_is_of_the_null_value_that_it_is_asked_for():
    rng = np.random.default_rng(2)
    cells = {cell(n): measured(rng, 3, spread=0.001) for n in (10, 100)}
    weights = {cell(100): 1.0, cell(10): -1.0}
    one = contrast(weights, cells)
    assert contrast(weights, cells, null=one.effect).p > 0.9
    assert contrast(weights, cells, null=one.high + 1e-6).p < 0.05
    assert contrast(weights, cells, null=one.high - 1e-6).p > 0.0499


@given(
    effect=st.floats(-0.02, 0.02), half=st.floats(1e-4, 0.03), margin=st.sampled_from([0.005, None])
)
def test_a_verdict_is_one_word_that_its_interval_bears(effect, half, margin):
    inner = 0.84 * half
    ends = (effect - half, effect + half, 0.5, BOTH, 3, effect - inner, effect + inner)
    found = verdict(Estimate(effect, *ends), margin)
    if found == EQUIVALENT:
        assert margin and abs(effect) + inner < margin
    elif margin and abs(effect) + inner < margin:
        raise AssertionError("within the margin, but not equivalent")
    assert (found == BETTER) <= (effect - half > 0)
    assert (found == WORSE) <= (effect + half < 0)
    assert (found == UNTOLD) <= (effect - half <= 0 <= effect + half)
    alone = Estimate(effect, *ends[:3], PATIENTS, 1, *ends[5:])
    assert verdict(alone, margin) == ONE_SEED


def test_without_an_interval_nothing_is_told():
    nan = float("nan")
    assert verdict(Estimate(nan, nan, nan, nan, BOTH, 0), 0.005) == UNTOLD
    assert verdict(Estimate(0.0, 0.0, 0.0, 1.0, BOTH, 3, 0.0, 0.0), 0.005) == UNTOLD


def test_a_paradigm_is_compared_only_where_its_base_model_has_learned_the_task():
    rng = np.random.default_rng(3)
    base = Cell("findings", "auroc", "data", BASE, "base", 0.0, 0.0)
    random = base._replace(arm=BASELINE, start="random:cnn")

    def study(above):
        draws = 0.7 + 0.002 * rng.normal(size=(1, 300))
        return {
            cell(100): measured(rng, 3),
            base: Measured(np.array([0.7 + above]), draws + above, encoder="cnn"),
            random: Measured(np.array([0.7]), 0.7 + 0.002 * rng.normal(size=(1, 300))),
        }

    assert not contrasts.untestable(study(0.05), {})
    reasons = contrasts.untestable(study(0.004), {})
    assert list(reasons) == [cell(100).curve] and "random:cnn" in reasons[cell(100).curve]
    lone = {c: m for c, m in study(0.05).items() if c != random}
    assert "not evaluated" in contrasts.untestable(lone, {})[cell(100).curve]


def test_slopes_start_where_the_base_model_is_passed():
    rng = np.random.default_rng(4)
    base = Cell("findings", "auroc", "data", BASE, "base", 0.0, 0.0)
    level = {10: 0.7, 100: 0.78, 1000: 0.82, 10_000: 0.84, 100_000: 0.86}
    cells = {cell(n): Measured(np.array([v]), np.full((1, 9), v)) for n, v in level.items()}
    cells[base] = Measured(np.array([0.8]), np.full((1, 9), 0.8) + rng.normal(size=9) * 1e-3)
    ((_, told, weights),) = contrasts.slopes(cells)
    assert told == "from 1000 images"
    assert {c.n_images for c in weights} == {1000, 10_000, 100_000}
    assert contrast(weights, cells, {}).effect == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("seeds", "between"),
    [
        ((1, 1, 1, 1, 1), 0.0),
        ((2, 2, 2, 2, 2), 0.01),
        ((3, 3, 3, 3, 3), 0.01),
        ((3, 1, 1, 1, 3), 0.01),
    ],
)
def test_intervals_cover_the_truth(seeds, between):
    """93 to 97% of simulated studies, growth and slope; seeds vary as much as patients or not."""
    rng, hits, trials, resamples = np.random.default_rng(7), np.zeros(2), 1000, 300
    sizes = 10.0 ** np.arange(1, 6)
    truth = {cell(n): 0.01 * k for k, n in enumerate(sizes)}
    mixing = np.linalg.cholesky(0.01**2 * (0.2 * np.eye(5) + 0.8))
    ends = {cell(sizes[-1]): 1.0, cell(sizes[0]): -1.0}
    x = np.log10(sizes) - 3
    slope = dict(zip(truth, x / (x**2).sum(), strict=True))
    for _ in range(trials):
        sampled, noise = mixing @ rng.normal(size=5), mixing @ rng.normal(size=(5, resamples))
        cells = {}
        for k, (point, value) in enumerate(truth.items()):
            values = value + sampled[k] + between * rng.normal(size=seeds[k])
            cells[point] = Measured(values, values[:, None] + noise[k])
        for j, weights in enumerate((ends, slope)):
            estimate = contrast(weights, cells)
            hits[j] += (
                estimate.low <= sum(w * truth[c] for c, w in weights.items()) <= estimate.high
            )
    assert (hits / trials >= 0.93).all(), hits / trials
    assert (hits / trials <= 0.975).all(), hits / trials


def test_equivalence_is_declared_of_a_difference_at_the_margin_in_5_percent():
    """Two one-sided tests at 5%: with the truth at the margin, 1 in 20 is wrongly equivalent."""
    rng, wrong, trials = np.random.default_rng(8), 0, 1500
    noise = rng.normal(size=(2, 400)) * 0.0015
    for _ in range(trials):
        cells = {}
        for n, truth in ((10, 0.8), (100, 0.805)):
            sampled = 0.0015 * rng.normal()
            values = truth + sampled + 0.001 * rng.normal(size=3)
            draws = values[:, None] + noise[0 if n == 10 else 1]
            cells[cell(n)] = Measured(values, draws)
        found = contrast({cell(100): 1.0, cell(10): -1.0}, cells)
        wrong += verdict(found, 0.005) == EQUIVALENT
    assert 0.01 <= wrong / trials <= 0.065, wrong / trials


def test_variance_between_seeds_and_of_patients_are_told_apart_where_they_are_known():
    """Simulated: seeds SD 0.03; patients SD 0.02 shared by all seeds, 0.01 of each seed alone."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        seeds, own = 0.03 * rng.normal(size=6), 0.01 * rng.normal(size=6)
        noise = 0.02 * rng.normal(size=400) + 0.01 * rng.normal(size=(6, 400))
        draws = (seeds + own)[:, None] + noise
        found.append(contrasts.components(0.8 + seeds + own, draws))
    between, sampled = np.sqrt(np.mean(found, axis=0))
    assert between == pytest.approx(0.03, rel=0.1)
    assert sampled == pytest.approx((0.02**2 + 0.01**2) ** 0.5, rel=0.1)
    alike = np.tile(0.8 + rng.normal(size=50), (2, 1))
    assert contrasts.components(np.array([0.8, 0.8]), alike)[0] == 0
