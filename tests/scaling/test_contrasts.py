"""The inference engine: it gives what each older engine gave under that engine's convention, and covers the truth."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy import recorded
from cxrstudy.scaling import contrasts
from cxrstudy.scaling.contrasts import BASE, BOTH, OUT_OF_DOMAIN, PATIENTS, Cell, Measured, contrast

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
    cells = contrasts.read_cells(table)
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


@pytest.mark.parametrize(
    ("table", "rows", "size"),
    [
        ("gains", contrasts.gains, "n_images"),
        ("growth", contrasts.growth, "most"),
        ("in_domain", contrasts.in_domain, "n_images"),
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
    """It took a size's own variance where that is larger than the pooled one, and joined the sides by their ends."""
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
    """The claims' engine drew seeds at random: its intervals agree within the noise of that draw."""
    cells, variance, pinned = study
    ledger = {row["id"]: row for row in pinned["ledger"]}
    own = {
        (c.arm, c.n_images): c
        for c in cells
        if c.task == "findings" and c.arm in ("clip", "unicl", "dinov2")
    }
    sizes = sorted({n for _, n in own})
    weights = {own["unicl", sizes[-1]]: 1.0, own["clip", sizes[-1]]: -1.0}
    estimate, row = contrast(weights, cells, variance), ledger["labels-findings"]
    assert estimate.effect == pytest.approx(row["effect"], abs=1e-9)
    assert (estimate.low, estimate.high) == pytest.approx((row["low"], row["high"]), abs=0.002)


def test_all_contrasts_has_every_kind_and_says_what_its_intervals_cover():
    table = recorded.load("study-gpu")
    rows = contrasts.all_contrasts(
        table[(table["metric"] == "auroc") & table["task"].isin(TASKS)], resamples=200
    )
    assert set(rows["kind"]) == set(contrasts.KINDS)
    control = rows[rows["kind"] == "in-domain - out-of-domain"]
    assert set(control["variance_sources"]) == {PATIENTS}
    assert set(rows.loc[rows["kind"] == "largest - smallest subset", "variance_sources"]) == {BOTH}
    assert ((rows["low"] <= rows["effect"]) & (rows["effect"] <= rows["high"])).all()
    excludes = (rows["low"] > 0) | (rows["high"] < 0)
    assert (excludes == (rows["p"] < 0.05)).all()


# ---- laws ----------------------------------------------------------------------------------------------------------
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


def test_out_of_domain_is_another_arm():
    rng = np.random.default_rng(0)
    own, other = cell(100), cell(100, "clip" + OUT_OF_DOMAIN)
    cells = {own: measured(rng, 2), other: measured(rng, 2)}
    assert [(one, there) for one, there, _ in contrasts.in_domain(cells)] == [
        ("clip", "clip" + OUT_OF_DOMAIN)
    ]
    assert [len(curve) for curve in contrasts._curves(cells)] == [1]


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
    """93 to 97% of simulated studies, growth and slope, where seeds vary as much as patients or not at all."""
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
