"""The recorded analyses are what this code computes from the recorded scores.

``golden/`` has the results of earlier engines, patients only; test_contrasts reproduces them.
Analyses are remade, where a change is meant, by ``cxrstudy record`` or notebooks/analyse.ipynb.
"""

import numpy as np
import pandas as pd
import pytest

from cxrstudy import recorded, sources
from cxrstudy.scaling import analysis

WORDS = {"why", "scope", "contrast"}
SLOW = {"laws", "bands", "extrapolation"}  # solved by iteration


@pytest.mark.parametrize("study", ["study-cpu", "study-gpu", "nih", "nih-small"])
def test_the_recorded_analysis_is_that_of_the_recorded_scores(study):
    found, grid = analysis.analyse(sources.tables([], f"book/recorded/{study}"))
    folder = recorded.place(study) / sources.ANALYSIS
    assert set(found) == set(analysis.TABLES)
    for name, rows in found.items():
        kept = pd.read_parquet(folder / f"{name}.parquet")
        assert len(rows) == len(kept), name
        numbers = [c for c in kept if pd.api.types.is_numeric_dtype(kept[c])]
        accuracy = 1e-4 if name in SLOW else 1e-9
        for column in numbers:
            np.testing.assert_allclose(
                rows[column].to_numpy(float), kept[column].to_numpy(float), rtol=accuracy,
                atol=1e-7, err_msg=f"{name}.{column}",
            )  # fmt: skip
        texts = [c for c in kept if c not in numbers and c not in WORDS]
        for column in texts:
            assert rows[column].fillna("").tolist() == kept[column].fillna("").tolist(), (
                name,
                column,
            )
    told = sources.planner(f"{recorded.RECORDED}{study}")
    assert [c["name"] for c in told["curves"]] == [c["name"] for c in grid["curves"]]


def test_recorded_analyses_hold_numbers():
    for study in ("study-cpu", "study-gpu"):
        found = sources.analysis(f"{recorded.RECORDED}{study}")
        assert len(found["contrasts"]) > 400
        assert np.isfinite(found["contrasts"][["effect", "low", "high"]].to_numpy()).mean() > 0.99
