"""What the recorded studies say, pinned: a rewrite of the inference must first give these numbers, then may differ.

Remade, where a change is meant, by ``python tests/scaling/test_golden.py``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cxrstudy import recorded
from cxrstudy.narrative import answers
from cxrstudy.scaling import claims, decide, ladders, planner

GOLDEN = Path(__file__).parent / "golden"
STUDIES = ("study-cpu", "study-gpu")
WORDS = {
    "claim",
    "source",
    "scope",
    "contrast",
    "why",
    "runs",
    "name",
    "first_said",
    "holds_said",
    "covers",
}


def golden(study: str) -> dict[str, Any]:
    """Tables of a recorded study by name, each a list of rows, without the columns that are only wording."""
    table = recorded.load(study)
    fits, _ = ladders.fit_ladders(table)
    grid = planner.planner_grid(table)
    frames = {
        "ledger": claims.ledger(table),
        "crossovers": decide.crossovers(table),
        "overtakes": decide.overtakes(table),
        "differences": decide.differences(table),
        "sizes": decide.rungs(table),
        "gains": ladders.gains(table),
        "growth": ladders.growth(table),
        "beyond_control": ladders.beyond_control(table),
        "in_domain": ladders.at_home(table),
        "laws": fits,
        "planner": planner.consult(grid, [500, 5000, 40_000]),
        "answers": answers(table, fits).reset_index(),
    }
    return {name: rows(frame) for name, frame in frames.items()}


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON holds them: numbers to 10 digits, missing as null."""
    kept = frame[[column for column in frame if column not in WORDS]]
    return json.loads(kept.to_json(orient="records", double_precision=10))


@pytest.mark.parametrize("study", STUDIES)
def test_recorded_studies_say_what_they_said(study):
    expected = json.loads((GOLDEN / f"{study}.json").read_text(encoding="utf-8"))
    found = golden(study)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert len(found[name]) == len(wanted), name
        for k, (one, other) in enumerate(zip(found[name], wanted, strict=True)):
            assert other.keys() <= one.keys(), name  # columns may be added
            for column, value in other.items():
                if isinstance(
                    value, float
                ):  # laws are solved by iteration: alike to a thousandth of a thousandth
                    assert one[column] == pytest.approx(value, rel=1e-6, abs=1e-8), (
                        name,
                        k,
                        column,
                    )
                elif isinstance(value, str):  # words may be added behind the numbers
                    assert one[column].startswith(value), (name, k, column)
                else:
                    assert one[column] == value, (name, k, column)


def test_golden_tables_hold_numbers():
    for study in STUDIES:
        kept = json.loads((GOLDEN / f"{study}.json").read_text(encoding="utf-8"))
        effects = [row["effect"] for row in kept["ledger"] if row["effect"] is not None]
        assert len(effects) >= 8
        assert np.isfinite(effects).all()


if __name__ == "__main__":
    for name in sys.argv[1:] or STUDIES:
        (GOLDEN / f"{name}.json").write_text(
            json.dumps(golden(name), indent=1, ensure_ascii=False) + "\n"
        )
