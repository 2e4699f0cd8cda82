"""Cells: what encoders scored, read from records, with shared resamples of the test patients."""

import numpy as np
import pandas as pd
import pytest
from made_ladders import IMAGES, PATIENTS, TRUTH, base, judge, ladder
from sklearn.metrics import roc_auc_score

from cxrstudy.results import kept_scores, load_records
from cxrstudy.scaling import contrasts
from cxrstudy.scaling.cells import (
    BASE,
    BASELINE,
    LOG_ERROR,
    OUT_OF_DOMAIN,
    SEEN,
    Cell,
    base_of,
    read_cells,
)

STUDY = ("study-1", "clip", "clip-cnn", 24000.0)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path))
    return tmp_path


def cell(n, arm="clip", task="findings", metric="auroc"):
    return Cell(task, metric, "study-1", arm, "clip-cnn", 24000.0 if n else 0.0, float(n))


def test_values_are_macro_aurocs_by_scikit_learn_and_seeds_share_a_cell(runs):
    base()
    folders = ladder("clip", {200: 1.0, 1000: 1.4}, seeds=2, jitter=0.1)
    cells = read_cells(load_records(runs), resamples=50)
    own = cells[cell(200)]
    for folder, value in zip(folders[:2], own.values, strict=True):
        scores = kept_scores(folder)
        each = [
            roc_auc_score(scores[f"truth:{label}"], scores[f"score:{label}"])
            for label in ("edema", "atelectasis")
        ]
        assert value == pytest.approx(np.mean(each), abs=1e-12)
    assert own.draws.shape == (2, 50)
    assert (own.n, own.n_patients) == (IMAGES, len(set(PATIENTS)))
    assert own.positives == TRUTH["edema"].sum() + TRUTH["atelectasis"].sum()
    assert base_of(cell(200)) in cells
    assert {c.arm for c in cells} == {"clip", BASE}


def test_draws_are_paired_over_encoders(runs):
    base(1.0)
    ladder("clip", {200: 1.02, 1000: 1.04})
    cells = read_cells(load_records(runs), resamples=300)
    one, other = cells[cell(200)].draws[0], cells[base_of(cell(200))].draws[0]
    assert np.std(one - other) < 0.5 * np.hypot(np.std(one), np.std(other))


def test_the_error_is_read_on_a_log_scale_too_but_not_at_its_ceiling(runs):
    base()
    ladder("clip", {200: 1.0})
    judge("clip-n900-s0-bbbbbb", 1000.0, n_images=900)
    cells = read_cells(load_records(runs), resamples=20)
    own, log = cells[cell(200)], cells[cell(200, metric=LOG_ERROR)]
    np.testing.assert_allclose(log.values, np.log(1 - own.values))
    np.testing.assert_allclose(log.draws, np.log(1 - own.draws))
    assert cell(900) in cells and cell(900, metric=LOG_ERROR) not in cells


def test_arms_tell_new_images_of_others_from_images_that_the_base_had_seen(runs):
    base(trained_on="synthetic:public")
    ladder("clip", {200: 1.0})
    judge("clip-public-cccccc", 1.0, n_images=200, trained_on="synthetic:public")
    judge("clip-other-cccccc", 1.0, n_images=200, trained_on="synthetic:elsewhere")
    judge("pixels-cccccc", 0.3, paradigm="control", base=None, encoder="pixels")
    cells = read_cells(load_records(runs), resamples=20)
    arms = {c.arm for c in cells}
    assert arms == {"clip", "clip" + SEEN, "clip" + OUT_OF_DOMAIN, BASE, BASELINE}
    seen = [w for _, _, w in contrasts.over_seen(cells) if next(iter(w)).metric == "auroc"]
    assert len(seen) == 2 and {c.arm for w in seen for c in w} == {"clip", "clip" + SEEN}


def test_runs_with_other_test_patients_or_without_scores_are_refused_by_name(runs):
    base()
    folders = ladder("clip", {200: 1.0, 1000: 1.4})
    table = load_records(runs)
    (folders[0] / "scores.parquet").unlink()
    with pytest.raises(ValueError, match=r"clip-n200-s0-bbbbbb.*scores\.parquet is missing"):
        read_cells(table)
    judge("clip-n9000-s0-bbbbbb", 1.0, n_images=9000, patients="others")
    with pytest.raises(ValueError, match="different test patients"):
        read_cells(load_records(runs))


def test_labels_that_one_run_lacks_count_in_none(runs):
    base()
    ladder("clip", {200: 1.0})
    table = load_records(runs)
    alone = table[~(table["run"].str.startswith("base-") & (table["label"] == "edema"))]
    scores = kept_scores(table.loc[table["run"].str.startswith("clip"), "folder"].iloc[0])
    only = roc_auc_score(scores["truth:atelectasis"], scores["score:atelectasis"])
    assert read_cells(alone, resamples=5)[cell(200)].values[0] == pytest.approx(only)


def test_an_empty_table_has_no_cells():
    assert read_cells(pd.DataFrame(columns=load_records([]).columns)) == {}
