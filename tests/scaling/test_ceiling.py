"""Where every encoder tells every test image, nothing is told of the encoders: no gain, harm or claim is decided."""

import numpy as np
import pytest
from made_ladders import PATIENTS, TRUTH, base, ladder

from cxrstudy import narrative, plots_claims
from cxrstudy.evaluate.small_samples import exact_width
from cxrstudy.results import load_records
from cxrstudy.scaling import claims, decide, ladders, planner


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("ceiling")
        patch.setenv("CXRSTUDY_RUNS", str(root))
        base(1000.0)
        for paradigm in ("clip", "unicl", "dinov2"):
            ladder(paradigm, {200: 1000.0, 2000: 1000.0}, seeds=2)
        return load_records(root)


def hidden(task):
    """The exact width of an AUROC of 1 on the made-up patients."""
    names = {"findings": ["edema", "atelectasis"], "lines_tubes": ["picc", "chest_tube"]}[task]
    either = [min(len(set(PATIENTS[TRUTH[name] == kind])) for kind in (0, 1)) for name in names]
    return np.mean([exact_width(min(n, len(set(PATIENTS)) // 2)) for n in either])


@pytest.mark.parametrize("compare", [ladders.gains, ladders.growth])
def test_differences_of_encoders_that_tell_all_reach_as_far_as_their_test_patients_hide(
    table, compare
):
    found = compare(table, resamples=50)
    assert (found["gain"] == 0).all() and len(found)
    for row in found.itertuples():
        assert (row.low, row.high) == pytest.approx((-hidden(row.task), hidden(row.task)))


def test_no_claim_is_decided_and_no_gain_or_harm_is_said(table):
    ledger = claims.ledger(table, 50)
    assert set(ledger["verdict"]) == {"inconclusive", "not testable"}
    assert claims.readable(ledger)["effect [95%]"].isin(["+0.0000", ""]).all()
    assert "could be tried" not in plots_claims.forest(ledger).alt
    gained = ladders.gains(table, resamples=50)
    assert "harmed none" not in narrative.harm(
        gained
    ) and "cannot be told from 600 test images" in narrative.harm(gained)


def test_a_value_at_the_ceiling_has_an_interval_below_it(table):
    found = decide.rungs(table, resamples=50)
    assert (found["value_high"] == 1).all() and (found["value_low"] < 1).all()
    assert (decide.crossovers(table, resamples=50)["first_said"] == decide.NEVER).all()
    assert planner.planner_grid(table, resamples=50)
