"""Sentences and tables of the page on scaling laws, and of recorded measurements of them."""

import re
from collections.abc import Mapping

import pandas as pd

from cxrstudy.tables import TITLES, interval


def _rows(laws: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the table ``laws`` with their task in words."""
    return laws.assign(task=laws["task"].map(TITLES).fillna(laws["task"]).str.lower())


def trial_sentence(laws: pd.DataFrame) -> str:
    """Return how often the chosen law predicted the held-out size better than the last value."""
    tried = laws[laws["law_error"].notna() & laws["last_error"].notna()]
    fitted = int((laws["form"] != "").sum())
    said = (
        f"{len(laws)} curves were tried. {fitted} have a law. The others are refused: "
        "their error does not fall beyond its noise, or too few sizes are above the base model."
    )
    if tried.empty:
        return f"{said} With the largest size left out, no law could be fitted."
    better = tried[tried["extrapolates"]]
    named = ", ".join(f"{row.one} on {row.task}" for row in _rows(better).itertuples())
    return (
        "**Fitted without the largest size, the chosen law predicted it better than the last value "
        f"in {len(better)} of {len(tried)} curves**{f' ({named})' if named else ''}. The median "
        f"error of the law is {tried['law_error'].median():.4f}, of the last value "
        f"{tried['last_error'].median():.4f}. {said}"
    )


def law_table(laws: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Return the chosen laws with their errors on the held-out size, a row a curve that has one."""
    found = []
    for row in _rows(laws[laws["form"] != ""]).itertuples():
        errors = {"law": row.law_error, "last value": row.last_error}
        cells = {"task": row.task, "paradigm": names.get(row.one, row.one), "form": row.form}
        cells["fitted from"] = f"{row.from_n:,.0f} images, {row.sizes} sizes, {row.runs} runs"
        cells["exponent"] = interval(row.exponent, row.low, row.high)
        for name, error in errors.items():
            cells[f"error of the {name}"] = f"{error:.4f}" if pd.notna(error) else "not tried"
        found.append(cells)
    return pd.DataFrame(found).set_index("task") if found else pd.DataFrame()


def no_law(laws: pd.DataFrame, names: Mapping[str, str]) -> str:
    """Return which curves have no law, a line a reason; empty where all have one."""
    found: dict[str, list[str]] = {}
    for row in _rows(laws[laws["form"] == ""]).itertuples():
        why = row.refused.partition(" (")[0].partition(":")[0]
        if re.search(r" n, got |no subset", why):
            why = "too few sizes are above the base model"
        found.setdefault(why, []).append(f"{names.get(row.one, row.one)} on {row.task}")
    lines = [f"- No law, because {why}: {', '.join(curves)}." for why, curves in found.items()]
    return "\n".join(lines)


# ---- recorded measurements -----------------------------------------------------------------------
def relied_on(coverage: pd.DataFrame) -> pd.DataFrame:
    """Return the settings in which the book relies on a fit: the same test patients for all runs.

    Left out: the plain profile with an outlying run, a part of the noise taken for all of it, and
    populations of other patients.
    """
    plain = (coverage["method"] == "profile") & (coverage["runs"] == "one far off")
    other = coverage["runs"] == "other patients"
    return coverage[~plain & ~other & (coverage["sigma"] != "half, as all")]


def coverage_sentence(coverage: pd.DataFrame, low: float = 0.93, high: float = 0.97) -> str:
    """Return the coverage of 95% intervals in the simulated settings that the book relies on."""
    own = relied_on(coverage)
    every = own[own["place"] == "all"]["coverage"]
    places = own[~own["place"].isin(["all", "exponent"])]["coverage"]
    others = coverage[(coverage["runs"] == "other patients") & (coverage["method"] == "profile")]
    others = others[others["place"] == "all"]
    return (
        f"{len(every)} settings that this book relies on were simulated, "
        f"{int(own['draws'].iloc[0]):,} draws each, with exponents from "
        f"{own['exponent'].min():g} to {own['exponent'].max():g}. "
        f"Averaged over sizes, the 95% intervals cover the true curve in {every.min():.1%} to "
        f"{every.max():.1%} of draws; {every.between(low, high).sum()} of {len(every)} settings "
        f"are between {low:.0%} and {high:.0%}. At single sizes coverage is {places.min():.1%} to "
        f"{places.max():.1%}. The intervals are about these test patients: for a population "
        f"of other patients they cover {others['coverage'].min():.1%} to "
        f"{others['coverage'].max():.1%}."
    )


def public_sentence(rows: pd.DataFrame) -> str:
    """Return how close our estimates are to the published ones."""
    off = ((rows["ours"] - rows["published"]) / rows["published"]).abs()
    return (
        f"{len(rows)} published estimates were fitted again. Ours differ by {off.median():.1%} "
        f"in the median and by {off.max():.1%} at most."
    )
