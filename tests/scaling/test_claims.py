"""Verdicts on claims: of simulated cells with known truths, of simulated and recorded studies."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_ladders import base, judge, ladder

from cxrstudy import recorded
from cxrstudy.results import load_records
from cxrstudy.scaling import sensitivity
from cxrstudy.scaling.cells import BASE, BASELINE, SEEN, Cell, Measured
from cxrstudy.scaling.claims import ledger, verdict
from cxrstudy.scaling.hypotheses import CLAIMS, NUMBER, SHARE, SIZES, Claim, NotTestable
from cxrstudy.scaling.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    ONE_BASE,
    SUPPORTED,
    UNTESTABLE,
    VERDICTS,
    changes,
    holm,
    with_holm,
)

BY_ID = {claim.id: claim for claim in CLAIMS}
NOISE = np.random.default_rng(5).normal(size=(1, 300))
EMPTY = pd.DataFrame()


def start_of(paradigm, number=0):
    return ("dino" if paradigm == "dinov2" else "clip") + f"-base{number or ''}"


def cell(paradigm, n, arm="", task="findings", number=0):
    return Cell(
        task, "auroc", "d", arm or paradigm, start_of(paradigm, number), float(n > 0), float(n)
    )


def made(
    values,
    *,
    bases=0.8,
    random=0.6,
    seeds=3,
    seed_sd=0.0005,
    patient_sd=0.0005,
    control=None,
    rng=None,
):
    """Cells of a study: ``values`` by (paradigm, n); noise that patients and seeds add."""
    rng = np.random.default_rng(0) if rng is None else rng
    cells, task = {}, "findings"

    def add(key, value, count):
        shift, own = patient_sd * rng.normal(), value + seed_sd * rng.normal(size=count)
        draws = (own + shift)[:, None] + patient_sd * rng.normal(size=(1, 300))
        cells[key] = Measured(own + shift, draws, "cnn", 100, 50, 30, 0.0, "synthetic")

    for (paradigm, n), value in values.items():
        add(cell(paradigm, n), value, seeds)
        start = cell(paradigm, 0, BASE)
        if start not in cells:
            add(start, bases, 1)
        if control is not None and n == max(m for p, m in values if p == paradigm):
            add(cell(paradigm, n, paradigm + SEEN), control, seeds)
    if random is not None:
        key = Cell(task, "auroc", "d", BASELINE, "random:cnn", 0.0, 0.0)
        add(key, random, 1)
    return cells


def one(claim, cells):
    chosen = BY_ID[claim] if isinstance(claim, str) else claim
    return ledger(EMPTY, cells=cells, claims=[chosen]).iloc[0]


def values(**last):
    """Two sizes each of some paradigms, whose largest subset has this value."""
    return {(p, n): (0.8 if n == 100 else v) for p, v in last.items() for n in (100, 10_000)}


# ---- verdicts ----------------------------------------------------------------------------------
finite = st.floats(-1, 1)


@given(st.tuples(finite, finite, finite), st.floats(0.001, 0.1), st.booleans(), st.floats(0, 0.5))
def test_a_greater_effect_never_speaks_less_for_a_claim(ends, threshold, presence, up):
    low, effect, high = sorted(ends)
    order = [CONTRADICTED, INCONCLUSIVE, SUPPORTED]
    first, _ = verdict(effect, low, high, threshold, presence=presence)
    second, _ = verdict(effect + up, low + up, high + up, threshold, presence=presence)
    assert order.index(first) <= order.index(second)


@given(st.tuples(finite, finite, finite))
def test_of_a_claim_and_its_opposite_not_both_are_supported(ends):
    low, effect, high = sorted(ends)
    said, _ = verdict(effect, low, high, 0.005)
    opposite, _ = verdict(-effect, -high, -low, 0.005)
    assert (said == SUPPORTED) <= (opposite == CONTRADICTED)


def test_truths_are_found():
    better = made(values(clip=0.83, unicl=0.85))
    assert one("labels-findings", better)["verdict"] == SUPPORTED + ONE_BASE
    same = one("labels-findings", made(values(clip=0.83, unicl=0.83)))
    assert same["verdict"] == CONTRADICTED + ONE_BASE  # no improvement of interest
    assert same["p"] < 0.05 and same["low"] < 0 < same["high"]  # p tests what the verdict tests
    gained = made(values(clip=0.83, unicl=0.83, dinov2=0.81), control=0.8)
    row = one("findings-gain", gained)
    assert row["verdict"] == SUPPORTED + ONE_BASE
    assert row["effect"] == pytest.approx(0.02, abs=0.003)


def test_growth_from_harm_is_no_gain():
    """The CLIP arm falls below its base with few images and ends where the DINO arm ends."""
    harmed = {("clip", 100): 0.78, ("clip", 10_000): 0.805, ("dinov2", 100): 0.8}
    harmed |= {("dinov2", 10_000): 0.805}
    row = one("findings-gain", made(harmed, control=0.8))
    assert row["verdict"] == INCONCLUSIVE
    assert "clip -0.02" in row["why"]


def test_in_house_images_must_beat_a_control_at_equal_compute():
    grown = values(clip=0.83, dinov2=0.81)
    assert one("findings-gain", made(grown, control=0.8))["verdict"] == SUPPORTED + ONE_BASE
    row = one("findings-gain", made(grown, control=0.83))
    assert row["verdict"] == INCONCLUSIVE and "equivalent" in row["why"]
    row = one("findings-gain", made(grown))
    assert row["verdict"] == INCONCLUSIVE and "no control at equal compute" in row["why"]


def test_a_paradigm_that_has_not_learned_the_task_is_no_rival():
    row = one("findings-gain", made(values(clip=0.83, dinov2=0.81), random=0.798))
    assert row["verdict"] == UNTESTABLE and "random:cnn" in row["why"]
    row = one("labels-findings", made(values(clip=0.83, unicl=0.85), random=None))
    assert row["verdict"] == UNTESTABLE and "not evaluated" in row["why"]


def test_one_base_is_said_until_there_are_more():
    cells = made(values(clip=0.83, unicl=0.85))
    assert one("labels-findings", cells)["verdict"] == SUPPORTED + ONE_BASE
    second = {
        c._replace(start=start_of(c.arm, 2)): m
        for c, m in cells.items()
        if c.arm in ("clip", "unicl") and c.n_images == 100
    }
    assert one("labels-findings", cells | second)["verdict"] == SUPPORTED


def test_one_seed_leaves_a_claim_open():
    row = one("labels-findings", made(values(clip=0.83, unicl=0.85), seeds=1))
    assert row["verdict"] == INCONCLUSIVE and "one seed" in row["why"] and np.isnan(row["p"])
    bases = made(values(clip=0.83, dinov2=0.83), seeds=1)
    bases[cell("dinov2", 0, BASE)] = made(values(dinov2=0.8), bases=0.7)[cell("dinov2", 0, BASE)]
    assert one("frozen-classified", bases)["verdict"] == SUPPORTED + ONE_BASE  # no seed in a base


def test_every_option_must_hold_and_any_one_may():
    falling = {("clip", n): 0.8 + 0.02 * k for k, n in enumerate((100, 1000, 10_000), 1)}
    rising = falling | {("dinov2", n): 0.81 for n in (100, 1000, 10_000)}
    every = one("findings-scale", made(rising, control=0.8))
    assert every["verdict"] == CONTRADICTED and "dinov2" in every["contrast"]
    few = one("few-suffice", made({(p, n): v + 0.01 for (p, n), v in rising.items()}))
    assert few["verdict"] == INCONCLUSIVE and "greatest of 2" in few["contrast"]


def test_choosing_the_best_of_several_options_widens_the_end_that_decides():
    cells = made({("clip", 100): 0.81, ("clip", 10_000): 0.81}, seed_sd=0.002)
    claim = dataclasses.replace(
        BY_ID["few-suffice"], one=("clip",), measures=(("findings", "auroc"),)
    )
    many = {
        c._replace(arm=arm): m
        for c, m in cells.items()
        for arm in ("unicl", "dinov2")
        if c.arm == "clip"
    }
    alone, of_three = (
        one(claim, cells),
        one(dataclasses.replace(claim, one=("clip", "unicl")), cells | many),
    )
    assert of_three["low"] <= alone["low"] + 1e-12
    assert of_three["p"] >= alone["p"] - 1e-12


def test_true_nulls_are_rarely_supported():
    """Of 400 studies with nothing between the paradigms, at most 5% find UniCL better."""
    rng, found = np.random.default_rng(9), 0
    claim = dataclasses.replace(BY_ID["labels-findings"], threshold=1e-9)
    for _ in range(400):
        cells = made(values(clip=0.83, unicl=0.83), rng=rng, seed_sd=0.004, patient_sd=0.003)
        found += one(claim, cells)["verdict"].startswith(SUPPORTED)
    assert found / 400 <= 0.05


# ---- contrasts over sizes ----------------------------------------------------------------------
sizes = st.lists(st.integers(10, 10**6), min_size=2, max_size=8, unique=True).map(sorted)


@given(sizes, st.floats(-1, 1), st.floats(-0.1, 0.1))
def test_the_slope_of_a_straight_line_is_its_slope(numbers, a, b):
    weights, _ = SIZES["slope"][0](numbers)
    line = {n: a + b * np.log10(n) for n in numbers}
    assert sum(w * line[n] for n, w in weights.items()) == pytest.approx(b, abs=1e-6)


@given(sizes)
def test_the_papers_share_and_number_are_the_nearest_sizes_and_far_ones_are_refused(numbers):
    for name, there, aim, within in (
        ("share", numbers[:-1], SHARE * numbers[-1], 10),
        ("number", numbers, NUMBER, 3),
    ):
        off = [abs(np.log(n / aim)) for n in there]
        if min(off) > np.log(within):
            with pytest.raises(NotTestable, match="nearest"):
                SIZES[name][0](numbers)
        else:
            weights, _ = SIZES[name][0](numbers)
            assert abs(np.log(max(weights) / aim)) == pytest.approx(min(off))


def test_ids_are_unique_and_every_contrast_is_known():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    assert {claim.contrast for claim in CLAIMS} <= set(SIZES)
    assert all(claim.source and claim.text for claim in CLAIMS)


# ---- tables of records -------------------------------------------------------------------------
@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path))
    return tmp_path


def test_a_study_on_disk_is_read_and_what_is_missing_is_said(runs):
    base()
    ladder("clip", {200: 1.0, 1000: 1.4}, seeds=2, jitter=0.02)
    ladder("unicl", {200: 1.1, 1000: 1.8}, seeds=2, jitter=0.02)
    judge("random-cnn-cccccc", 0.2, paradigm="control", base=None, encoder="random:cnn_mini")
    rows = ledger(load_records(runs), resamples=200).set_index("id")
    assert rows.loc["labels-findings", "verdict"] == SUPPORTED + ONE_BASE
    assert "test images of" in rows.loc["labels-findings", "scope"]
    assert "missing: runs of dinov2" in rows.loc["tubes-classified", "why"]
    assert set(rows["verdict"]) <= set(VERDICTS)
    assert rows.loc[rows["verdict"] == UNTESTABLE, "effect"].isna().all()


def test_the_ledger_depends_on_its_seed_alone(runs):
    base()
    ladder("clip", {200: 1.0, 1000: 1.4}, seeds=2)
    table = load_records(runs)
    pd.testing.assert_frame_equal(ledger(table, resamples=50), ledger(table, resamples=50))


def test_an_added_claim_is_one_entry(runs):
    base()
    ladder("clip", {200: 1.0, 1000: 1.4}, seeds=2)
    own = Claim("own", "Ours", "here", (("lines_tubes", "auroc"),), "gain", ("clip",))
    row = ledger(load_records(runs), claims=[own], resamples=50).iloc[0]
    assert row["id"] == "own" and row["effect"] > 0


# ---- several studies ---------------------------------------------------------------------------
@given(st.lists(st.floats(0, 1) | st.just(float("nan")), min_size=1, max_size=12))
def test_holm_is_monotone_never_smaller_and_by_its_definition(p):
    found, raw = holm(p), np.array(p)
    known = ~np.isnan(raw)
    assert (np.isnan(found) == ~known).all()
    assert (found[known] >= raw[known] - 1e-12).all() and (found[known] <= 1).all()
    if known.any():
        assert np.nanmin(found) == pytest.approx(min(1.0, np.nanmin(raw) * known.sum()))


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.integers(0, 99))
def test_holm_knows_no_places(p, seed):
    order = np.random.default_rng(seed).permutation(len(p))
    np.testing.assert_allclose(holm(np.array(p)[order]), holm(p)[order])


def test_holm_is_over_all_ledgers_of_a_book():
    one, other = pd.DataFrame({"p": [0.01, np.nan]}), pd.DataFrame({"p": [0.02]})
    found = with_holm({"a": one, "b": other})
    assert found["a"]["p_holm"].tolist()[0] == pytest.approx(0.02)
    assert found["b"]["p_holm"].tolist() == [pytest.approx(0.02)]
    assert with_holm({}) == {}


def test_settings_take_the_variance_between_seeds_of_larger_studies(runs, tmp_path):
    base()
    ladder("clip", {200: 1.0, 1000: 1.4}, seeds=3, jitter=0.02)
    larger = load_records(runs)
    tables = {}
    for value, skill in (("1", 1.3), ("2", 0.6)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CXRSTUDY_RUNS", str(tmp_path / f"setting{value}"))
            base()
            ladder("clip", {200: 1.0, 1000: skill})
            tables[f"noise={value}"] = load_records(tmp_path / f"setting{value}")
    claim, rows = sensitivity.by_setting(tables, repeats=[larger], resamples=100)
    gains = rows[(rows["kind"] == "gain over base model") & (rows["n_images"] == 1000)]
    assert gains["variance_sources"].str.startswith("patients, and seeds").all()
    assert set(rows["setting"]) == set(claim["setting"]) == {"1", "2"}
    assert rows.loc[rows["reference"], "setting"].unique().tolist() == ["1"]
    alone, _ = sensitivity.by_setting(tables, resamples=100)
    assert alone["verdict"].isin([INCONCLUSIVE, UNTESTABLE]).all()
    with pytest.raises(ValueError, match="factor=value"):
        sensitivity.by_setting({"noise": larger})


def test_changes_name_verdicts_that_differ_and_effects_that_reverse():
    row = {"id": "a", "claim": "A", "factor": "f"}
    columns = ("setting", "reference", "effect", "low", "high", "verdict")
    rows = [
        row | dict(zip(columns, values, strict=True))
        for values in (
            ("1", True, 0.1, 0.05, 0.2, SUPPORTED),
            ("2", False, -0.1, -0.2, -0.05, CONTRADICTED),
            ("3", False, 0.1, 0.0, 0.2, UNTESTABLE),
        )
    ]
    found = changes(pd.DataFrame(rows)).set_index("setting")
    assert found.loc["2", ["differs", "reverses"]].tolist() == [True, True]
    assert found.loc["3", ["differs", "reverses"]].tolist() == [False, False]


def test_recorded_studies_do_not_generalise_from_one_base():
    for name in ("study-cpu", "study-gpu"):
        folder = recorded.place(name) / "analysis" / "claims.parquet"
        rows = pd.read_parquet(folder)
        assert not rows["verdict"].eq(SUPPORTED).any()
        assert len(rows) == len(CLAIMS)
