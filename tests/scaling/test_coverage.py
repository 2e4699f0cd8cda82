"""The simulation of coverage: short here, and the recorded one is of today's settings."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "coverage.py"
SPEC = importlib.util.spec_from_file_location("law_coverage", FILE)
coverage = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(coverage)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sizes": "5 sizes, 1 seed"},
        {"sigma": "estimated"},
        {"runs": "one far off", "method": "robust profile"},
    ],
)
def test_coverage_of_the_recorded_settings_short(change):
    """75 draws of each of two laws; book/recorded/coverage.csv has 2,000 of more."""
    wanted = (coverage.DEFAULT | change).items()
    middle = [s for s in coverage.settings() if (s["form"], s["exponent"]) in coverage.MIDDLE]
    rows = [
        row
        for setting in middle
        if wanted <= setting.items()
        for row in coverage.simulate(setting, 75, 5)
        if row["place"] == "all"
    ]
    assert len(rows) == 2
    assert 0.9 < np.mean([row["coverage"] for row in rows]) < 0.99
    assert all(row["width"] < 1.6 and row["refused"] == 0 for row in rows)


def test_the_recorded_coverage_is_of_the_settings_of_today():
    rows = pd.read_csv(coverage.RECORDED / "coverage.csv")
    names = ["form", "exponent", *coverage.DEFAULT]
    recorded = set(rows[names].itertuples(index=False, name=None))
    assert recorded == {tuple(s[name] for name in names) for s in coverage.settings()}
    assert set(rows["draws"]) == {2000} and rows["seed"].nunique() == 1
    assert rows["command"].str.contains(f"--seed {rows['seed'].iloc[0]} --draws 2000").all()
