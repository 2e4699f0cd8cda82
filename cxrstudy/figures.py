"""The book's figures of results, drawn from the tables of the analysis. Nothing is computed here.

Colours are colour-blind safe. Each paradigm has its own marker and line style too.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cxrstudy.scaling.verdicts import BASE, BASELINE, GAIN, OUT_OF_DOMAIN, SEEN
from cxrstudy.shown import COLOURS, MARKERS, STYLE, TASKS, Shown, log_sizes, show

MEASURES = {"auroc": "AUROC", "dice": "Dice", "cl_dice": "clDice", "f1_micro": "micro F1"}
Names = Mapping[str, str]  # what each paradigm is called in a legend


def gains(tables: Mapping[str, pd.DataFrame], names: Names, *, title: str = "") -> Shown | None:
    """Draw the gain over the base model by subset size, one panel for each task; None if no gains.

    Hollow marks at the largest size: the control, trained as long on other images.
    """
    rows = tables["contrasts"]
    rows = rows[(rows["kind"] == GAIN) & (rows["metric"] == "auroc") & rows["task"].isin(TASKS)]
    tasks = [task for task in TASKS if (rows["task"] == task).any()]
    if not tasks:
        return None
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False, sharex=True
    )
    said = []
    for axes, task in zip(panels[0], tasks, strict=True):
        own = rows[rows["task"] == task].sort_values("n_images")
        for paradigm, curve in own.groupby("one", sort=True):
            _points(axes, curve, str(paradigm), names, "effect")
            ends = f"{curve['effect'].iloc[0]:+.3f} to {curve['effect'].iloc[-1]:+.3f}"
            said.append(f"{TASKS[task]}, {names.get(str(paradigm), paradigm)}: {ends}")
        for control in _controls(tables["values"], task):
            _hollow(axes, control)
            said.append(f"{TASKS[task]}, {control['arm']}: {control['gain']:+.3f}")
        axes.axhline(0, color="#222", lw=1.4)
        log_sizes(axes, own["n_images"].to_numpy(float))
        axes.set_title(TASKS[task], fontsize=10)
        axes.set_xlabel("in-house images (log scale)")
        axes.grid(alpha=0.25)
    panels[0, 0].set_ylabel("gain over base model, macro AUROC")
    _legend(figure, panels[0], hollow=True)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    alt = f"{title} Gain over the base model in macro AUROC, from fewest to most images. "
    return show(figure, alt + "; ".join(said) + ".")


def _points(axes: Any, curve: pd.DataFrame, paradigm: str, names: Names, column: str) -> None:
    colour, marker, line = STYLE[paradigm]
    aside = 1 + 0.05 * (list(STYLE).index(paradigm) - 1)  # so that bars do not hide each other
    ends = np.abs(curve[["low", "high"]].to_numpy().T - curve[column].to_numpy())
    style = {"color": colour, "capsize": 2, "lw": 1, "ms": 5, "ls": line}
    label = names.get(paradigm, paradigm)
    x = curve["n_images"] * aside
    axes.errorbar(x, curve[column], yerr=ends, marker=marker, label=label, **style)


def _controls(values: pd.DataFrame, task: str) -> list[dict[str, Any]]:
    """Return the controls of a task with ``gain``, their mean minus that of their base model."""
    own = values[(values["task"] == task) & (values["metric"] == "auroc")]
    bases = own[own["arm"] == BASE].set_index(["data", "start"])["value"]
    found = []
    for row in own[own["arm"].str.endswith((SEEN, OUT_OF_DOMAIN))].to_dict("records"):
        if (row["data"], row["start"]) in bases.index:
            found.append(row | {"gain": row["value"] - float(bases[row["data"], row["start"]])})
    return found


def _hollow(axes: Any, control: Mapping[str, Any]) -> None:
    paradigm = str(control["arm"]).partition(" ")[0]
    colour, marker, _ = STYLE[paradigm]
    axes.plot(
        control["n_images"] * (1.25 + 0.2 * list(STYLE).index(paradigm)),
        control["gain"],
        marker,
        color=colour,
        mfc="white",
        ms=7,
    )


def _legend(figure: Any, panels: Any, *, hollow: bool) -> None:
    """Put one legend below all panels."""
    known: dict[str, Any] = {}
    for axes in panels:
        known |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if hollow:
        mark: Any = {"marker": "o", "ls": "", "color": "#555", "mfc": "white", "ms": 7}
        known["control: as many steps on images already seen, or out-of-domain"] = plt.Line2D(
            [], [], **mark
        )
        known["base model (0)"] = plt.Line2D([], [], color="#222", lw=1.4)
    style: Any = {"fontsize": 8, "ncols": 2, "frameon": False, "loc": "upper center"}
    figure.legend(list(known.values()), list(known), bbox_to_anchor=(0.5, 0.01), **style)


def curves(
    tables: Mapping[str, pd.DataFrame],
    wanted: Mapping[str, tuple[str, str]],
    names: Names,
    *,
    title: str = "",
) -> Shown | None:
    """Draw metrics by subset size, one panel for each of ``wanted`` (title: task, metric).

    Base models are solid lines, baselines are dashed lines, and laws are bands. Returns None if
    nothing was measured at two sizes.
    """
    values, bands = tables["values"], tables["bands"]
    panels = []
    for name, (task, metric) in wanted.items():
        own = values[(values["task"] == task) & (values["metric"] == metric)]
        own = own[own["value"].notna()]
        if own.loc[own["arm"].isin(STYLE), "n_images"].nunique() > 1:
            panels.append((name, metric, task, own))
    if not panels:
        return None
    figure, grid = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.8), squeeze=False)
    said = []
    for axes, (name, metric, task, own) in zip(grid[0], panels, strict=True):
        for paradigm, curve in own[own["arm"].isin(STYLE)].groupby("arm", sort=True):
            curve = curve.sort_values("n_images")
            _points(axes, curve, str(paradigm), names, "value")
            law = bands[(bands["task"] == task) & (bands["metric"] == metric)]
            law = law[law["one"] == paradigm]
            if len(law):
                colour = STYLE[str(paradigm)][0]
                shade: Any = {"color": colour, "alpha": 0.13, "label": "law, 95% band"}
                axes.fill_between(law["n_images"], law["low"], law["high"], **shade)
            ends = f"{curve['value'].iloc[0]:.3f} to {curve['value'].iloc[-1]:.3f}"
            said.append(f"{name}, {names.get(str(paradigm), paradigm)}: {ends}")
        said += _levels(axes, own, name)
        log_sizes(axes, own.loc[own["arm"].isin(STYLE), "n_images"].to_numpy(float))
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("in-house images (log scale)")
        axes.set_ylabel(f"macro {MEASURES.get(metric, metric)}")
        axes.grid(alpha=0.25)
    _legend(figure, grid[0], hollow=False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return show(figure, f"{title} By number of in-house images: {'; '.join(said)}.")


def _levels(axes: Any, own: pd.DataFrame, name: str) -> list[str]:
    """Draw base models and baselines as lines where they are near the curves; return all values."""
    near = own[own["arm"].isin([*STYLE, BASE])]
    low, high = float(near["value"].min()), float(near["value"].max())
    room = max(0.02, 0.6 * (high - low))
    shown = own[own["arm"].isin([BASE, BASELINE])].sort_values("value")
    said = [f"{name}, {row.arm} {row.start}: {row.value:.3f}" for row in shown.itertuples()]
    shown = shown[shown["value"].between(low - room, high + room)]
    height = -np.inf
    for row in shown.itertuples():
        is_base = row.arm == BASE
        plain = {"color": "#666", "lw": 0.9, "ls": "--"}
        style: Any = {"color": "#222", "lw": 1.4} if is_base else plain
        axes.axhline(row.value, **style)
        height = max(row.value, height + 0.09 * (high - low + room))  # names do not overlap
        axes.annotate(
            row.start.replace(":", " "),
            (1.0, row.value),
            (1.03, height),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            fontsize=7,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "#777"},
        )
    return said


def labels(rows: pd.DataFrame, *, xlabel: str, title: str = "") -> Shown:
    """Draw several series of one quantity: ``value`` with ``low`` to ``high`` of each ``label``."""
    names, series = list(dict.fromkeys(rows["label"])), list(dict.fromkeys(rows["series"]))
    figure, axes = plt.subplots(figsize=(7.2, 0.9 + (0.12 + 0.16 * len(series)) * len(names)))
    for k, name in enumerate(series):
        own = rows[rows["series"] == name]
        at = np.array([names.index(label) for label in own["label"]], dtype=float)
        at += 0.7 * ((k + 0.5) / len(series) - 0.5)
        colour, marker = COLOURS[k % 10], MARKERS[k % 8]
        parts = str(name).split(", ")
        for paradigm in STYLE.keys() & parts:  # as in every other figure; hollow: its base model
            colour, marker, _ = STYLE[paradigm]
        fill = "#fff" if BASE in parts else colour
        axes.hlines(at, own["low"], own["high"], color=colour, lw=1.6)
        axes.plot(own["value"], at, marker, color=colour, ms=5, label=name, mfc=fill, ls="")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set(xlabel=xlabel, title=title)
    axes.grid(axis="x", alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    said = [f"{r.label}, {r.series} {r.value:.3f}" for r in rows.itertuples() if r.value == r.value]
    return show(figure, f"{title} {xlabel}: {'; '.join(said) or 'nothing to show'}.")
