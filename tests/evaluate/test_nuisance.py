"""What features hold beside labels: factors of synthetic images; R2 and AUROC."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from cxrstudy.data.synthetic.sampling import acquisition, describe
from cxrstudy.evaluate import nuisance
from cxrstudy.evaluate.metrics import auroc


@pytest.fixture(scope="module")
def manifest():
    index = np.arange(600)
    batch = describe(index, institution="study", seed=3)
    paths = [f"synthetic:study:3:{k}" for k in index]
    columns = {"path": paths, "view": batch.view, "age": batch.age, "sex": batch.sex}
    return pd.DataFrame(columns | {"patient_id": batch.patient_id}), batch


def rows(x, known, patients, **how):
    n = len(x) // 3
    parts = [np.arange(n), np.arange(n, 2 * n), np.arange(2 * n, 3 * n)]
    given = {"strengths": [1e-3, 1e-1], "resamples": 200, "seed": 0} | how
    return {
        row["label"]: row
        for row in nuisance.metric_rows(x, known, parts, patients[parts[2]], **given)
    }


def test_factors_are_those_that_the_images_were_drawn_with(manifest):
    table, batch = manifest
    known = nuisance.factors(table)
    frontal = batch.view != "LATERAL"
    made = acquisition(np.arange(600), institution="study", seed=3)
    for name in ("habitus", "rotation", "exposure"):
        assert np.array_equal(known.loc[frontal, name], made[name][frontal])
    scanners = known.filter(like="scanner ")
    assert set(scanners) == {f"scanner {name}" for name in batch.scanner}
    assert (scanners[frontal].sum(axis=1) == 1).all()
    assert known[~frontal].isna().all(axis=None)
    assert np.array_equal(known.loc[frontal, "AP"], (batch.view == "AP")[frontal])


def test_exposure_of_an_image_shows_in_its_pixels():
    from cxrstudy.data.synthetic.sampling import sample

    index = np.arange(240)
    batch = sample(index, institution="study", size=32)
    exposure = acquisition(index, institution="study")["exposure"]
    frontal = batch.view == "PA"
    grey = batch.image.mean((1, 2, 3)).numpy()
    assert abs(np.corrcoef(grey[frontal], exposure[frontal])[0, 1]) > 0.3


def test_a_table_without_the_columns_has_no_factors():
    table = pd.DataFrame({"path": ["a.png", "b.png"]})
    assert nuisance.factors(table).empty


def test_what_the_features_hold_is_found_and_what_they_do_not_is_not(manifest):
    table, _ = manifest
    known = nuisance.factors(table)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(600, 8))
    x = np.column_stack([noise, known["exposure"].fillna(1.0), known["male"].fillna(0.5)])
    found = rows(x, known, table["patient_id"].to_numpy())
    assert found["exposure"]["metric"] == "r2"
    assert found["exposure"]["value"] > 0.95
    assert found["male"]["metric"] == "auroc"
    assert found["male"]["value"] > 0.99
    assert found["rotation"]["low"] <= 0.05
    assert found["rotation"]["value"] < 0.1
    assert found["exposure"]["low"] <= found["exposure"]["value"] <= found["exposure"]["high"]
    assert found["exposure"]["n"] == known["exposure"].iloc[400:].notna().sum()


def test_r2_is_that_of_ridge_regression(manifest):
    table, _ = manifest
    known = nuisance.factors(table)[["habitus"]]
    rng = np.random.default_rng(1)
    x = rng.normal(size=(600, 12)) + np.outer(known["habitus"].fillna(1.0), rng.normal(size=12))
    strength = 0.1
    got = rows(x, known, table["patient_id"].to_numpy(), strengths=[strength])["habitus"]
    y = known["habitus"].to_numpy()
    train, test = (
        np.flatnonzero(~np.isnan(y) & part)
        for part in (np.arange(600) < 200, np.arange(600) >= 400)
    )
    z = (x - x[train].mean(0)) / x[train].std(0)
    fit = Ridge(alpha=strength * len(train)).fit(z[train], y[train])
    assert got["value"] == pytest.approx(fit.score(z[test], y[test]), abs=1e-9)


def test_auroc_is_that_of_the_probe_and_rare_classes_are_left_out(manifest):
    table, _ = manifest
    known = nuisance.factors(table)[["male"]].assign(rare=0.0)
    known.loc[:3, "rare"] = 1.0
    x = (
        np.random.default_rng(2).normal(size=(600, 4))
        + known["male"].fillna(0.5).to_numpy()[:, None]
    )
    found = rows(x, known, table["patient_id"].to_numpy())
    assert "rare" not in found
    assert 0.8 < found["male"]["value"] < 1
    y = known["male"].to_numpy()[400:]
    here = ~np.isnan(y)
    best = auroc(y[here][:, None], x[400:].sum(1)[here][:, None])[0]
    assert found["male"]["value"] == pytest.approx(best, abs=0.03)
