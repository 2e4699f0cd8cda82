"""Hypotheses: where a claim is true, false or empty by construction, the verdict says so at the right rate."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrstudy.scaling.hypotheses import BASE, CLAIMS, CONTRASTS, SHARE, NotTestable, verdict, weigh

BY_ID = {claim.id: claim for claim in CLAIMS}
GROWTH, LABELS = BY_ID["findings-growth"], BY_ID["labels-findings"]
SOME, EVERY = BY_ID["few-suffice"], BY_ID["findings-scale"]


# ---- simulated cells: truth, seeds and patients are known ----------------------------------------------------------
def simulate(rng, truth, *, seeds=3, seed_sd=0.004, patient_sd=0.004, own_sd=0.001, resamples=100):
    """(measured, spread) of cells whose true values are ``truth``; patients move all cells together, and each a bit."""
    shared, shared_draws = rng.normal(0, patient_sd), rng.normal(0, patient_sd, resamples)
    measured, squares = {}, {}
    for cell, value in truth.items():
        count = 1 if cell[3] == BASE else seeds
        runs = (
            value
            + shared
            + rng.normal(0, own_sd)
            + (cell[3] != BASE) * rng.normal(0, seed_sd, count)
        )
        measured[cell] = runs, runs[:, None] + shared_draws + rng.normal(0, own_sd, resamples)
        if count > 1:
            squares.setdefault(cell[:3], []).append(runs.var(ddof=1))
    spread = {
        ladder: (float(np.mean(each)), float(len(each) * (seeds - 1)))
        for ladder, each in squares.items()
    }
    return measured, spread


def cells(values):
    return {
        ("findings", "auroc", paradigm, float(n)): value for (paradigm, n), value in values.items()
    }


def verdicts(claim, options, truth, *, count=300, **how):
    rng, found = np.random.default_rng(len(truth)), []
    for _ in range(count):
        found.append(weigh(claim, options, *simulate(rng, truth, **how), rng))
    return pd.DataFrame(found)


GAP = cells(
    {("clip", 8000): 1.0, ("clip", 200): -1.0, ("dinov2", 8000): -1.0, ("dinov2", 200): 1.0}
)


def grown(more):
    return cells(
        {
            ("clip", 200): 0.8,
            ("clip", 8000): 0.83 + more,
            ("dinov2", 200): 0.7,
            ("dinov2", 8000): 0.73,
        }
    )


def test_what_is_true_by_construction_is_supported_and_what_is_false_contradicted():
    for more, expected, other in (
        (0.03, "supported", "contradicted"),
        (-0.03, "contradicted", "supported"),
    ):
        rates = verdicts(GROWTH, [GAP], grown(more))["verdict"].value_counts(normalize=True)
        assert rates[expected] > 0.9
        assert rates.get(other, 0) == 0


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_where_nothing_is_the_verdict_is_rarely_supported_and_the_interval_holds_nothing(seeds):
    found = verdicts(GROWTH, [GAP], grown(0.0), seeds=seeds, count=600)
    assert (
        found["verdict"] == "supported"
    ).mean() <= 0.045  # 2.5% are meant: 3 deviations of 600 draws above
    assert (found["verdict"] == "contradicted").mean() <= 0.045
    assert (found["p"] < 0.05).mean() <= 0.08
    covered = ((found["low"] <= 0) & (found["high"] >= 0)).mean()
    assert covered >= 0.92


ONE = cells({("unicl", 8000): 1.0, ("clip", 8000): -1.0})


@pytest.mark.parametrize(
    ("claim", "option", "truth"),
    [
        (GROWTH, GAP, grown(0.01)),
        (LABELS, ONE, cells({("unicl", 8000): 0.81, ("clip", 8000): 0.8})),
    ],
)
def test_the_spread_between_seeds_is_in_the_interval_which_covers_at_its_level(
    claim, option, truth
):
    """Without patients' noise nearly all of the interval is that of three seeds, whose spread is hardly known."""
    found = verdicts(claim, [option], truth, patient_sd=1e-5, own_sd=1e-5, count=600)
    covered = ((found["low"] <= 0.01) & (found["high"] >= 0.01)).mean()
    assert 0.93 <= covered <= 0.995


def test_more_seeds_make_the_interval_narrower():
    widths = []
    for seeds in (2, 4, 16):
        found = verdicts(GROWTH, [GAP], grown(0.01), seeds=seeds, count=40)
        widths.append((found["high"] - found["low"]).mean())
    assert widths[0] > 1.3 * widths[1] > 1.3 * 1.3 * widths[2]


def test_a_rung_that_is_noisier_than_its_ladder_counts_with_its_own_noise():
    rng = np.random.default_rng(0)
    measured, _ = simulate(rng, grown(0.0))
    loud = ("findings", "auroc", "clip", 200.0)
    values, draws = measured[loud]
    apart = np.array([-0.1, 0.0, 0.1])
    measured |= {loud: (values + apart, draws + apart[:, None])}
    spread = {ladder[:3]: (0.004**2, 40.0) for ladder in GAP}
    found = weigh(GROWTH, [GAP], measured, spread, rng)
    assert found["high"] - found["low"] > 2 * 1.9 * 0.1 / math.sqrt(3)


def options_of(paradigms):
    return [cells({(paradigm, 200): 1.0, (paradigm, BASE): -1.0}) for paradigm in paradigms]


PARADIGMS = [f"p{k}" for k in range(6)]


def gained(gains):
    pairs = zip(PARADIGMS, gains, strict=True)
    return cells({(p, n): 0.8 + g * (n > 0) for p, g in pairs for n in (200, BASE)})


def test_a_claim_on_some_option_pays_for_the_choice_among_them():
    options = options_of(PARADIGMS)
    nothing = verdicts(SOME, options, gained([0.0] * 6), seeds=8, count=400)
    assert (nothing["verdict"] == "supported").mean() <= 0.05
    assert (nothing["p"] < 0.05).mean() <= 0.08
    one = verdicts(SOME, options, gained([0.0, 0.0, 0.04, 0.0, 0.0, 0.0]), count=100)
    assert (one["verdict"] == "supported").mean() > 0.9
    assert (one["decides"] == 2).all()
    none = verdicts(SOME, options, gained([-0.04] * 6), count=100)
    assert (none["verdict"] == "contradicted").mean() > 0.9


def test_a_claim_on_every_option_fails_with_one_of_them():
    options = options_of(PARADIGMS)
    every = verdicts(EVERY, options, gained([0.04] * 6), count=100)
    assert (every["verdict"] == "supported").mean() > 0.9
    one = verdicts(EVERY, options, gained([0.04, 0.04, 0.0, 0.04, 0.04, 0.04]), count=400)
    assert (one["verdict"] == "supported").mean() <= 0.045
    bad = verdicts(EVERY, options, gained([0.04, 0.04, -0.04, 0.04, 0.04, 0.04]), count=100)
    assert (bad["verdict"] == "contradicted").mean() > 0.9
    assert (bad["decides"] == 2).all()
    null = verdicts(EVERY, options, gained([0.0] * 6), seeds=8, count=400)
    assert (null["effect"] < 0).mean() > 0.9
    assert (null["high"] < 0).mean() <= 0.05


def test_a_presence_too_small_to_matter_is_contradicted_and_a_direction_is_not():
    truth = cells({("unicl", 8000): 0.8, ("clip", 8000): 0.8})
    how = {"seeds": 40, "seed_sd": 0.001, "own_sd": 0.0005, "count": 100}
    assert (verdicts(LABELS, [ONE], truth, **how)["verdict"] == "contradicted").mean() > 0.9
    direction = dataclasses.replace(LABELS, presence=False)
    assert (verdicts(direction, [ONE], truth, **how)["verdict"] == "contradicted").mean() <= 0.1


def test_without_a_spread_between_seeds_there_is_no_p_and_no_verdict_but_the_reason():
    measured, _ = simulate(np.random.default_rng(0), grown(0.2), seeds=1)
    found = weigh(GROWTH, [GAP], measured, {}, np.random.default_rng(0))
    assert found["verdict"] == "inconclusive"
    assert math.isnan(found["p"])
    assert "second seed of clip, dinov2" in found["why"]
    assert "above 0" in found["why"]
    assert found["low"] > 0.1


def test_a_probe_on_a_base_has_no_seeds_and_a_decoder_of_masks_on_it_has():
    claim, rng = BY_ID["frozen-drawn"], np.random.default_rng(0)
    for task, metric, decided in (("segmentation", "dice", False), ("findings", "auroc", True)):
        option = {(task, metric, "dinov2", BASE): 1.0, (task, metric, "clip", BASE): -1.0}
        truth = {(task, metric, "dinov2", BASE): 0.9, (task, metric, "clip", BASE): 0.2}
        measured, none = simulate(rng, truth)
        found = weigh(claim, [option], measured, none, rng)
        assert (found["verdict"] == "supported") is decided
        assert np.isfinite(found["p"]) == decided
        known = weigh(
            claim,
            [option],
            measured,
            dict.fromkeys([(task, metric, "dinov2"), (task, metric, "clip")], (0.01, 8.0)),
            rng,
        )
        assert known["verdict"] == "supported"
        assert (
            known["high"] - known["low"] > 0.4
        ) is not decided  # seeds' luck is in the interval where it has a say


def test_an_undefined_metric_is_not_testable():
    measured, spread = simulate(np.random.default_rng(0), grown(math.nan))
    with pytest.raises(NotTestable, match="one class"):
        weigh(GROWTH, [GAP], measured, spread, np.random.default_rng(0))


finite = st.floats(-1, 1)
FAVOUR = ("contradicted", "inconclusive", "supported")


@given(
    ends=st.tuples(finite, finite, finite),
    threshold=st.floats(0, 0.1),
    presence=st.booleans(),
    up=st.floats(0, 1),
)
def test_a_greater_effect_never_speaks_less_for_a_claim(ends, threshold, presence, up):
    low, effect, high = sorted(ends)
    before, _ = verdict(effect, low, high, threshold, presence=presence)
    after, _ = verdict(effect + up, low + up, high + up, threshold, presence=presence)
    assert FAVOUR.index(after) >= FAVOUR.index(before)


@given(ends=st.tuples(finite, finite, finite))
def test_of_a_claim_and_its_opposite_one_is_supported_where_the_other_is_contradicted(ends):
    low, effect, high = sorted(ends)
    one, other = verdict(effect, low, high, 0.0)[0], verdict(-effect, -high, -low, 0.0)[0]
    assert FAVOUR.index(one) == 2 - FAVOUR.index(other)


# ---- contrasts and entries -----------------------------------------------------------------------------------------
rungs = st.lists(st.integers(10, 10**7), min_size=2, max_size=7, unique=True).map(sorted)


@given(sizes=rungs, a=st.floats(-1, 1), b=st.floats(-0.1, 0.1))
def test_the_slope_of_a_straight_line_is_its_slope_and_its_growth_the_difference_of_its_ends(
    sizes, a, b
):
    line = {n: a + b * math.log10(n) for n in sizes}
    slope, growth = (
        sum(w * line[n] for n, w in CONTRASTS[name][0](sizes)[0].items())
        for name in ("slope", "growth")
    )
    assert slope == pytest.approx(b, abs=1e-6 / math.log10(sizes[-1] / sizes[0]))
    assert growth == pytest.approx(line[sizes[-1]] - line[sizes[0]])
    assert sum(CONTRASTS["slope"][0](sizes)[0].values()) == pytest.approx(
        0, abs=1e-6 / math.log10(sizes[-1] / sizes[0])
    )


@given(sizes=rungs)
def test_the_equivalent_of_30k_has_the_nearest_share_and_a_far_one_is_refused(sizes):
    off = [abs(math.log(n / sizes[-1] / SHARE)) for n in sizes[:-1]]
    if min(off) > math.log(10) + 1e-9:
        with pytest.raises(NotTestable, match="within ten times"):
            CONTRASTS["share"][0](sizes)
    elif min(off) < math.log(10) - 1e-9:
        weights, words = CONTRASTS["share"][0](sizes)
        (chosen,) = (n for n, w in weights.items() if w > 0)
        assert off[sizes.index(chosen)] == min(off)
        assert weights[BASE] == -1
        assert "rung nearest to the paper" in words


def test_the_papers_own_ladder_has_30k_as_its_equivalent():
    assert CONTRASTS["share"][0]([30e3, 50e3, 100e3, 1e6, 3.5e6])[0] == {30e3: 1.0, BASE: -1.0}


def test_entries_can_be_tried_and_found():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.contrast in CONTRASTS
        assert claim.threshold > 0
        assert claim.one and not set(claim.one) & set(claim.other)
        assert "2509.12818" in claim.source or claim.source.startswith("arXiv ")
    least = 2 / (1000 + 1)  # the smallest p of the default resamples of patients
    assert len(CLAIMS) * least < 0.05, (
        "with so many claims Holm's correction leaves nothing to be found"
    )
