"""Sentences on tasks that may not be solved: baselines of segmentation, continuity and reports."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxrstudy.shown import human
from cxrstudy.tables import interval


def floors(table: pd.DataFrame) -> list[str]:
    """Return baselines with which segmentation, continuity and malposition are to be compared."""
    return [*_tips(table), *_nearness(table), *_malposition(table)]


def _macro(table: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    rows = table[(table["task"] == task) & (table["metric"] == metric) & table["value"].notna()]
    return rows[rows["label"] == "macro"]


def _random(rows: pd.DataFrame) -> pd.Series:
    return rows["encoder"].astype(str).str.startswith("random:") & (rows["paradigm"] == "control")


def _tips(table: pd.DataFrame) -> Iterator[str]:
    error, floor = (_macro(table, "segmentation", m) for m in ("tip_error_mm", "tip_floor_mm"))
    random, own = error[_random(error)]["value"], error[error["paradigm"] != "control"]["value"]
    if not (len(own) and len(random) and len(floor)):
        return
    near, far, by_chance, rule = own.min(), own.max(), random.min(), floor["value"].median()
    said = "No encoder locates tips." if near > 0.8 * by_chance else ""
    if rule > 10:
        said = "The rule fails on true masks, so that tip errors mean little here."
    yield (
        f"**Tips.** The median tip error is {near:.0f} to {far:.0f} mm. With random weights it is "
        f"{by_chance:.0f} mm; on true masks the same rule errs by {rule:.0f} mm. {said}"
    )


def _nearness(table: pd.DataFrame) -> Iterator[str]:
    rows = table[(table["task"] == "continuity") & table["value"].notna()]
    alone = rows[rows["label"].str.startswith("nearness-")]
    last = rows[(rows["label"] == "layer-1") & (rows["paradigm"] != "control")]
    if alone.empty or last.empty:
        return
    bases = last[last["base"].fillna("") == ""]["value"]
    nearest, best = alone.loc[alone["value"].idxmax()], last.loc[last["value"].idxmax()]
    said = "No base model reaches it. " if len(bases) and bases.max() < nearest["value"] else ""
    apart = "above" if best["low"] > nearest["high"] else "overlaps"
    size = f" with {human(best['n_images'])} images" if best["base"] else ", its base model"
    yield (
        f"**Continuity.** Distance to the tip alone has an AUROC of {_in(nearest)}. {said}The "
        f"highest of {len(last)} encoders ({best['paradigm']}{size}) has {_in(best)}; its interval "
        f"{'is ' * (apart == 'above')}{apart} that of distance alone."
    )


def _in(row: Any) -> str:
    return interval(row["value"], row["low"], row["high"])


def _malposition(table: pd.DataFrame) -> Iterator[str]:
    rows = _macro(table, "malposition", "auroc")
    random, own = rows[_random(rows)]["value"], rows[rows["paradigm"] != "control"]["value"]
    if len(own) and len(random):
        said = "No encoder solves this task." if own.max() < 0.7 else ""
        yield (
            f"**Malposition.** Macro AUROC is {own.min():.2f} to {own.max():.2f}; random weights "
            f"have {random.max():.2f} and guessing 0.50. {said}"
        )


def recognition(table: pd.DataFrame) -> list[str]:
    """Return how well encoders recognise patients, beside what is published; empty if unknown."""
    rows = table[(table["task"] == "same_patient") & table["value"].notna()]
    own = rows[rows["paradigm"] != "control"]
    if own.empty:
        return []
    pixels = rows[rows["encoder"].astype(str) == "pixels"]["value"]
    beside = f"; raw pixels have {pixels.iloc[0]:.2f}" if len(pixels) else ""
    most = own.loc[own["value"].idxmax()]
    return [
        f"**An encoder may recognise patients.** Other studies of the same patient are retrieved "
        f"with an AUROC of {own['value'].min():.2f} to {_in(most)} over {len(own)} encoders"
        f"{beside}; 0.50 is chance. A network trained for it reached 0.994 on ChestX-ray14 "
        "([Packhäuser et al. 2022](https://doi.org/10.1038/s41598-022-19045-3)). Features are "
        "therefore not anonymous."
    ]


def seeing(table: pd.DataFrame) -> str:
    """Return how many encoders report findings better than by habit; "" without reports.

    Better: the interval of micro F1 is above the intervals of two controls, another patient's image
    given to the same decoder and a random report.
    """
    rows = table[(table["task"] == "reports") & (table["metric"] == "f1_micro")]
    own = rows[rows["label"] == "findings"]
    if own.empty:
        return ""
    controls = rows[rows["label"].isin(["other patient: findings", "random report: findings"])]
    habit = own["run"].map(controls.groupby("run")["high"].max())
    above = own["low"] > habit
    return (
        f"Findings are reported better than by habit by {above.sum()} of {len(own)} encoders: "
        "their micro F1 is above that of another patient's image and of a random report, intervals "
        "apart."
    )
