"""Figures of the pages on claims, sensitivity and laws, drawn from the tables of the analysis."""

import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cxrstudy.scaling import verdicts
from cxrstudy.shown import COLOURS, STYLE, Shown, human, nothing, show

GREY = "#666666"
CLAIM = {  # verdict on a claim: colour, marker
    verdicts.SUPPORTED: (COLOURS[2], "o"),
    verdicts.CONTRADICTED: (COLOURS[3], "X"),
    verdicts.INCONCLUSIVE: (GREY, "D"),
}
CONTRAST = {  # verdict on a contrast: colour, marker
    verdicts.BETTER: (COLOURS[2], "^"),
    verdicts.WORSE: (COLOURS[3], "v"),
    verdicts.EQUIVALENT: (COLOURS[0], "s"),
    verdicts.UNTOLD: (GREY, "D"),
    verdicts.ONE_SEED: (GREY, "x"),
}
ENDS = (-4.0, 8.0)  # of the axis of claims; what is beyond has an arrow and its number


def forest(ledger: pd.DataFrame, *, title: str = "") -> Shown:
    """Draw the effect of every tested claim, in multiples of its smallest effect of interest."""
    rows = ledger[ledger["effect"].notna()].iloc[::-1].reset_index(drop=True)
    if rows.empty:
        return nothing(title, "No claim could be tested.")
    figure, axes = plt.subplots(figsize=(7.4, 1.3 + 0.46 * len(rows)))
    axes.axvspan(-1, 1, color="#eeeeee", zorder=0)
    axes.axvline(0, color="#222", lw=1.2)
    for k, row in rows.iterrows():
        word = row["verdict"].removesuffix(verdicts.ONE_BASE)
        colour, marker = CLAIM[word]
        effect, low, high = (row[name] / row["threshold"] for name in ("effect", "low", "high"))
        axes.plot(np.clip([low, high], *ENDS), [k, k], color=colour, lw=2)
        if ENDS[0] <= effect <= ENDS[1]:
            axes.plot(effect, k, marker, color=colour, ms=7)
        else:
            at, arrow = (ENDS[1], ">") if effect > 0 else (ENDS[0], "<")
            axes.plot(at, k, arrow, color=colour, ms=9, clip_on=False)
            beside = (-14 if effect > 0 else 14, 0)
            axes.annotate(f"{effect:+.0f}", (at, k), beside, textcoords="offset points",
                          ha="right" if at > 0 else "left", va="center", fontsize=8)  # fmt: skip
    wrapped = ["\n".join(textwrap.wrap(text, 50)) for text in rows["claim"]]
    axes.set_yticks(range(len(rows)), wrapped, fontsize=7.5)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlim(*ENDS)
    axes.xaxis.set_major_locator(FixedLocator(list(range(-4, 9, 2))))
    axes.set_xlabel(
        "effect / smallest effect of interest (grey: smaller than of interest)\n"
        "$\\leftarrow$ against the claim      for the claim $\\rightarrow$"
    )
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.25)
    figure.tight_layout()
    shown = rows["verdict"].str.removesuffix(verdicts.ONE_BASE)
    _legend(figure, {name: CLAIM[name] for name in CLAIM if (shown == name).any()})
    told = [f"{r.id} {r.effect:+.4f}, {r.verdict}" for r in rows.iloc[::-1].itertuples()]
    return show(figure, f"{title} Effects of {len(rows)} tested claims: {'; '.join(told)}.")


def by_setting(
    contrasts: pd.DataFrame, first: str, tasks: Mapping[str, str], *, title: str = ""
) -> Shown:
    """Draw the gain over the control by setting: a row of panels a task, a column a factor.

    Args:
        contrasts: ``settings_contrasts`` of ``sources.sensitivity``, of the kinds to draw.
        first: the factor of the first column; others follow in their order.
        tasks: titles of the tasks to draw.
    """
    rows = contrasts[contrasts["task"].isin(tasks) & (contrasts["metric"] == "auroc")]
    counts = rows.groupby("factor", sort=False)["setting"].nunique()
    factors = sorted(counts.index[counts > 1], key=lambda name: name != first)
    if not factors:
        return nothing(title, "No factor has two settings with a control.")
    widths = [float(counts[name]) for name in factors]
    figure, panels = plt.subplots(
        len(tasks), len(factors), figsize=(1.2 + 0.72 * sum(widths), 2.5 * len(tasks)),
        squeeze=False, sharey=True, sharex="col", width_ratios=widths,
    )  # fmt: skip
    told, used = [], set()
    for line, task in zip(panels, tasks, strict=True):
        for axes, factor in zip(line, factors, strict=True):
            own = rows[(rows["task"] == task) & (rows["factor"] == factor)]
            names = _ordered(own)
            axes.axhspan(-verdicts.MARGIN["auroc"], verdicts.MARGIN["auroc"], color="#eeeeee")
            axes.axhline(0, color="#222", lw=1.2)
            for row in own.itertuples():
                at, (colour, marker) = names.index(row.setting), CONTRAST[row.verdict]
                axes.plot([at, at], [row.low, row.high], color=colour, lw=2)
                axes.plot(at, row.effect, marker, color=colour, ms=7)
                if row.reference:
                    axes.plot(at, row.effect, "o", mfc="none", mec="#222", ms=13)
                used.add(row.verdict)
                told.append(
                    f"{tasks[task]}, {factor} {row.setting}: {row.effect:+.4f} {row.verdict}"
                )
            axes.set_xticks(range(len(names)), names, fontsize=8)
            axes.set_xlim(-0.6, len(names) - 0.4)
            axes.grid(axis="y", alpha=0.25)
        line[0].set_ylabel(f"{tasks[task]}\ngain over control\n(macro AUROC)", fontsize=8)
    for axes, factor in zip(panels[-1], factors, strict=True):
        width = max(12, int(9 * counts[factor]))
        axes.set_xlabel("\n".join(textwrap.wrap(factor, width)), fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    marks = {name: CONTRAST[name] for name in CONTRAST if name in used}
    _legend(figure, marks | {"reference setting": ("#222", "ring")})
    return show(figure, f"{title} In-house minus control. {'; '.join(told)}.")


def _ordered(rows: pd.DataFrame) -> list[str]:
    """Return a factor's settings by rising value; the reference first if they are words."""
    names = list(dict.fromkeys(rows["setting"]))
    number = pd.to_numeric(pd.Series(names), errors="coerce")
    return sorted(names, key=float) if number.notna().all() else names


def laws(
    tables: Mapping[str, pd.DataFrame], names: Mapping[str, str], tasks: Mapping[str, str], *,
    title: str = "",
) -> Shown:  # fmt: skip
    """Draw the measured points of every curve, and the chosen law with its band if there is one."""
    values, bands = tables["values"], tables["bands"]
    points = values[(values["metric"] == "auroc") & values["arm"].isin(STYLE)]
    shown = [task for task in tasks if (points["task"] == task).any()]
    if not shown:
        return nothing(title, "No scaling curve was measured.")
    figure, panels = plt.subplots(1, len(shown), figsize=(4.1 * len(shown), 3.5), squeeze=False)
    told = []
    for axes, task in zip(panels[0], shown, strict=True):
        for (arm, start), own in points[points["task"] == task].groupby(["arm", "start"]):
            colour, marker, line = STYLE[str(arm)]
            own = own.sort_values("n_images")
            ends = np.abs(own[["low", "high"]].to_numpy().T - own["value"].to_numpy())
            axes.errorbar(own["n_images"], own["value"], yerr=ends, fmt=marker, color=colour, ms=5,
                          lw=1, capsize=2, label=names.get(str(arm), str(arm)))  # fmt: skip
            law = bands[(bands["task"] == task) & (bands["metric"] == "auroc")]
            law = law[(law["one"] == arm) & (law["start"] == start)]
            axes.plot(law["n_images"], law["value"], color=colour, ls=line, lw=1.4)
            axes.fill_between(law["n_images"].to_numpy(float), law["low"].to_numpy(float),
                              law["high"].to_numpy(float), color=colour, alpha=0.15)  # fmt: skip
            reach = f"a law from {human(law['n_images'].min())} images" if len(law) else "no law"
            told.append(f"{tasks[task]}, {names.get(str(arm), arm)}: {reach}")
        _size_axis(axes, points["n_images"])
        axes.set_title(tasks[task].capitalize(), fontsize=10)
        axes.set_xlabel("in-house images (log scale)")
        axes.grid(alpha=0.25)
    panels[0, 0].set_ylabel("macro AUROC")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    known: dict[str, Any] = {}
    for axes in panels[0]:
        known |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    known["line and band: the chosen law, where there is one"] = plt.Line2D([], [], color=GREY)
    figure.legend(list(known.values()), list(known), fontsize=8, ncols=2, frameon=False,
                  loc="upper center", bbox_to_anchor=(0.5, 0.01))  # fmt: skip
    return show(figure, f"{title} Measured points and laws. {'; '.join(told)}.")


def _size_axis(axes: Any, sizes: pd.Series) -> None:
    """Set a log axis with numbers at every second measured size."""
    known = sorted(sizes.unique())
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(known[::-2][::-1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(figure: plt.Figure, marks: Mapping[str, tuple[str, str]]) -> None:
    """Put the marks that occur below a figure."""
    handles = []
    for name, (colour, marker) in marks.items():
        ring = {"marker": "o", "mfc": "none", "ms": 11} if marker == "ring" else {"marker": marker}
        line = "" if marker == "ring" else "-"
        handles.append(plt.Line2D([], [], color=colour, ls=line, label=name, **ring))
    figure.legend(handles=handles, fontsize=8, ncols=3, frameon=False, loc="upper center",
                  bbox_to_anchor=(0.5, 0.0))  # fmt: skip
