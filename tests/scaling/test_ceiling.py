"""Where every encoder separates every test image, no gain, harm or claim is decided."""

import numpy as np
import pytest
from made_ladders import PATIENTS, TRUTH, base, ladder

from cxrstudy import text
from cxrstudy.evaluate.small_samples import exact_width
from cxrstudy.results import load_records
from cxrstudy.scaling import claims, contrasts, planner, verdicts
from cxrstudy.scaling.cells import read_cells


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


def test_differences_of_encoders_that_separate_all_reach_as_far_as_their_test_patients_hide(table):
    found = contrasts.all_contrasts(table, resamples=50)
    found = found[found["kind"].isin([verdicts.GAIN, verdicts.GROWTH])]
    found = found[found["metric"] == "auroc"]
    assert len(found) and (found["effect"] == 0).all()
    for row in found.itertuples():
        assert (row.low, row.high) == pytest.approx((-hidden(row.task), hidden(row.task)))
    assert set(found["verdict"]) == {verdicts.UNTOLD}


def test_no_claim_is_decided_and_no_harm_is_excluded(table):
    ledger = claims.ledger(table, resamples=50)
    assert set(ledger["verdict"]) == {verdicts.INCONCLUSIVE, verdicts.UNTESTABLE}
    found = {"contrasts": contrasts.all_contrasts(table, resamples=50)}
    said = text.harm(found)
    assert "is not excluded for" in said and "600 test images" in said


def test_a_value_at_the_ceiling_has_an_interval_below_it(table):
    cells = read_cells(table, resamples=50)
    for entry in planner.planner_grid(cells)["curves"]:
        assert max(entry["measured"]["low"]) < 1
    rows = contrasts.all_contrasts(table, cells=cells)
    assert verdicts.crossovers(rows)["first"].isna().all()
