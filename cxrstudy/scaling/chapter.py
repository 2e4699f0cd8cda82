"""What the chapter on scaling laws shows: recorded measurements and a study's fits as tables, rows to draw, sentences.

Nothing here judges: every number comes from ``book/recorded/{coverage,public_laws}.csv``, from `resample` or `trial`.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cxrstudy.scaling.forms import at_the_least
from cxrstudy.scaling.trial import LADDER

ALIKE = [
    "method",
    "runs",
    "sigma",
    "noise",
    "ladder",
]  # settings that differ in these are told apart
KINDS = {
    "profile": ("profile_low", "profile_high", "profile likelihood"),
    "bootstrap": ("low", "high", "bootstrap over patients and runs"),
}


def recorded(path: str | Path) -> pd.DataFrame:
    """A recorded table; FileNotFoundError where it is missing."""
    return pd.read_csv(path)


def coverage_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Coverage over all laws of a kind of setting: of curves in all places, in the worst and the best one, of the
    exponent, and the width of curves."""
    shown = []
    for key, own in rows.groupby(ALIKE, sort=False):
        curves, every = own[~own["place"].isin(("all", "exponent"))], own[own["place"] == "all"]
        said = dict(zip(ALIKE, key, strict=True)) | {
            "laws": len(every),
            "curve held": f"{every['coverage'].mean():.1%}",
        }
        said |= {
            "worst to best place": f"{curves['coverage'].min():.1%} to {curves['coverage'].max():.1%}"
        }
        said |= {"exponent held": f"{own.loc[own['place'] == 'exponent', 'coverage'].mean():.1%}"}
        said |= {
            "width / oracle's": f"{every['width'].mean():.2f} (at most {every['width'].max():.2f})"
        }
        shown.append(said | {"least possible": f"{own['student'].max():.2f}"})
    return pd.DataFrame(shown).set_index("method")


def coverage_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The same to draw (`plots.beside`): a label a kind of setting, a series a place, the range over laws as a line."""
    own = rows[rows["place"] != "all"]
    name = (
        own["method"]
        + "; "
        + own["runs"]
        + "; sigma "
        + own["sigma"]
        + "; "
        + own["noise"]
        + "; "
        + own["ladder"]
    )
    grouped = own.assign(label=name).groupby(["label", "place"], sort=False)["coverage"]
    found = grouped.agg(value="mean", low="min", high="max").reset_index()
    return found.rename(columns={"place": "series"})


def relied_on(rows: pd.DataFrame) -> pd.Series:
    """Whether the book relies on a row's method in its setting; the rest show what the wrong one would do: the plain
    profile with a run far off or for a population, and a part of the noise taken for all of it."""
    misled = rows["runs"].isin(("one far off", "other patients")) & (rows["method"] == "profile")
    return ~misled & (rows["sigma"] != "half, as all")


def coverage_sentence(
    rows: pd.DataFrame, low: float = 0.93, high: float = 0.97, widest: float = 1.6
) -> str:
    """How many settings reach what was aimed at, and which do not."""
    name = [*ALIKE, "form", "exponent"]
    own = rows[relied_on(rows)]
    places, every = own[~own["place"].isin(("all", "exponent"))], own[own["place"] == "all"]
    held, narrow = every["coverage"].between(low, high), every["width"] <= widest
    single = places["coverage"].between(low, high).sum()
    text = (
        f"{len(rows.drop_duplicates(name))} settings, {int(rows['draws'].iloc[0]):,} draws each, seed "
        f"{int(rows['seed'].iloc[0])}; the book relies on {len(every)} of them. Averaged over places, {held.sum()} of "
        f"these hold between {low:.0%} and {high:.0%} of the time; of their {len(places)} single places, {single} do, "
        f"and the rest between {places['coverage'].min():.1%} and {places['coverage'].max():.1%}. The width is at most "
        f"{widest} times the oracle's in {narrow.sum()}."
    )
    simulated = rows["exponent"].astype(float)
    text += (
        f" The exponents simulated are {simulated.min():g} to {simulated.max():g}: of a law outside of them, coverage "
        "was not measured."
    )
    missed = every[~held | ~narrow]
    if len(missed):
        told = [
            f"{', '.join(str(getattr(row, column)) for column in name)} ({row.coverage:.1%}, {row.width:.2f})"
            for row in missed.itertuples()
        ]
        text += f" Not reached (coverage, width): {'; '.join(told)}."
    return text


def public_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Ours beside what was published."""
    shown = pd.DataFrame({"data": rows["data"], "quantity": rows["quantity"]})
    ends = zip(rows["low"], rows["high"], strict=True)
    interval = ["" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]" for low, high in ends]
    shown["ours"] = [f"{value:.4g}{end}" for value, end in zip(rows["ours"], interval, strict=True)]
    shown["published"] = [f"{value:g}" for value in rows["published"]]
    shown["difference"] = [f"{value:+.2g}" for value in rows["difference"]]
    shown[["points", "source"]] = rows[["points", "source"]]
    return shown.set_index("data")


def public_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Exponents and errors of `public_table` to draw, ours and the published ones."""
    own = rows[(rows["published"] < 1)]
    label = own["data"] + ": " + own["quantity"]
    ours = pd.DataFrame(
        {
            "label": label,
            "series": "ours",
            "value": own["ours"],
            "low": own["low"],
            "high": own["high"],
        }
    )
    theirs = pd.DataFrame({"label": label, "series": "published", "value": own["published"]})
    return pd.concat([ours, theirs], ignore_index=True)


def exponents_table(fits: pd.DataFrame) -> pd.DataFrame:
    """`resample_ladders`' fits: exponent with both intervals, or why there is none."""
    shown = fits[["task", "paradigm", "sizes", "runs"]].copy()
    shown["exponent"] = ["none" if np.isnan(v) else _exponent(v) for v in fits["exponent"]]
    for low, high, name in KINDS.values():
        ends = zip(fits[low], fits[high], strict=True)
        shown[name] = ["" if np.isnan(a) else f"[{_exponent(a)}, {_exponent(b)}]" for a, b in ends]
    return (
        shown.assign(why=fits["refused"])
        .rename(columns={"why": "why there is none"})
        .set_index("task")
    )


def _exponent(value: float) -> str:
    """Four decimals, for exponents near 0; at the end of what was searched, that it may be less."""
    return f"{value:.4f} or less" if at_the_least(value) else f"{value:.4f}"


def exponents_rows(fits: pd.DataFrame) -> pd.DataFrame:
    """The exponents that there are, to draw with both intervals."""
    own = fits[fits["refused"] == ""]
    rows = [
        pd.DataFrame(
            {
                "label": own["task"] + ", " + own["paradigm"],
                "series": name,
                "value": own["exponent"],
            }
        ).assign(low=own[low], high=own[high])
        for low, high, name in KINDS.values()
    ]
    return pd.concat(rows, ignore_index=True)


def choices_table(choices: pd.DataFrame) -> pd.DataFrame:
    """`trial.choices`: the form chosen for each ladder, by what held-out error."""
    shown = []
    for key, own in choices.groupby(
        ["task", "metric", "paradigm", "base"], sort=False, dropna=False
    ):
        task, metric, paradigm, _ = key
        chosen = own[own["chosen"]]
        said = {"task": task, "metric": metric, "paradigm": paradigm}
        said |= {"form": "none" if chosen.empty else str(chosen["form"].iloc[0])}
        each = [f"{row.form} {row.held_out:.4f}" for row in own.itertuples() if row.predicted]
        reason = "" if each else str(own["refused"].iloc[0])
        shown.append(said | {"held-out error": ", ".join(each) or f"none: {reason}"})
    return pd.DataFrame(
        shown, columns=["task", "metric", "paradigm", "form", "held-out error"]
    ).set_index("task")


def trials_table(summary: pd.DataFrame) -> pd.DataFrame:
    """`trial.extrapolations`' summary in words."""
    shown = summary[["left_out", "method", "ladders", "runs", "refused"]].copy()
    shown["median error"] = ["" if np.isnan(v) else f"{v:.4f}" for v in summary["median_abs_error"]]
    shown["interval held"] = ["" if np.isnan(v) else f"{v:.0%}" for v in summary["coverage"]]
    return shown.rename(
        columns={"left_out": "sizes left out", "refused": "ladders without"}
    ).set_index("sizes left out")


def trials_sentence(trials: pd.DataFrame, summary: pd.DataFrame) -> str:
    """What the trial found, or that there was nothing to try."""
    laws = summary[(summary["method"] == "chosen") & (summary["runs"] > 0)]
    if laws.empty:
        reasons = trials.loc[trials["method"] == "chosen", "refused"].value_counts()
        why = (
            f" The reason most often: {reasons.index[0]}."
            if len(reasons)
            else " There is no ladder."
        )
        return f"**Too little to try a law on**: with a size left out, none could be fitted.{why}"
    told = []
    for row in laws.itertuples():
        done = trials[(trials["left_out"] == row.left_out) & (trials["refused"] == "")]
        same = done[done["method"] == "chosen"][[*LADDER, "n_images", "value"]].drop_duplicates()
        naive = done[done["method"].isin(("last value", "log-linear"))].merge(
            same, on=[*LADDER, "n_images", "value"]
        )
        each = naive.groupby("method")["off"].apply(lambda off: off.abs().median())
        beside = ", ".join(f"{name} {value:.4f}" for name, value in each.items())
        ours, best = round(row.median_abs_error, 4), round(each.min(), 4)
        better = "better" if ours < best else "worse" if ours > best else "no better"
        sizes = "the largest size" if row.left_out == 1 else f"the largest {row.left_out} sizes"
        told.append(
            f"Without {sizes}, the chosen law is off by {row.median_abs_error:.4f} in the median of {row.runs} runs of "
            f"{row.ladders} ladders (on the same runs {beside}: it is {better} than the best of these); its 95% "
            f"interval held {row.coverage:.0%} of them"
        )
    return ". ".join(told) + "."
