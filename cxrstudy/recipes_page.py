"""The page on what a recipe learns from random weights: its figure, tables and sentences."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cxrstudy import recorded, sources
from cxrstudy.shown import STYLE, TASKS, Shown, human, nothing, show, words
from cxrstudy.tables import interval

BASELINES = {  # a baseline's kind: its name
    "supervised": "trained on labels",
    "random": "random weights",
    "pixels": "pixels",
}


def named(recipes: pd.DataFrame, names: Mapping[str, str], first: str) -> pd.DataFrame:
    """Return the macro AUROC of recipes and baselines, with a column ``name``, in the order told.

    Args:
        recipes: table ``recipes`` of the analysis.
        names: what a variant is called, by its values (``sources.recipe_names``).
        first: what the preset's own recipe is called.
    """
    rows = recipes[(recipes["metric"] == "auroc") & recipes["task"].isin(TASKS)].copy()
    known = {"": first} | dict(names)
    kind = rows["arm"].str.partition(":")[0]
    rows["baseline"] = kind.isin(BASELINES)
    told = kind.map(BASELINES)
    rows["name"] = told.where(rows["baseline"], rows["recipe"].map(known))
    order = [*known.values(), *BASELINES.values()]
    rows["order"] = rows["name"].map({name: k for k, name in enumerate(order)})
    return rows.sort_values(["task", "order"])


def figure(rows: pd.DataFrame, *, title: str = "") -> Shown:
    """Draw each recipe's macro AUROC minus that of random weights, with its paired interval."""
    rows = rows[rows["over_random"].notna() & (rows["name"] != "pixels")]  # pixels are far below
    tasks = [task for task in TASKS if (rows["task"] == task).any()]
    if not tasks:
        return nothing(title, "No recipe has been recorded.")
    size = (3.9 * len(tasks), 1.4 + 0.34 * rows.groupby("task").size().max())
    drawn, panels = plt.subplots(1, len(tasks), figsize=size, squeeze=False, sharex=True)
    said = []
    for k, (axes, task) in enumerate(zip(panels[0], tasks, strict=True)):
        own = rows[rows["task"] == task].iloc[::-1]
        for at, row in enumerate(own.itertuples()):
            colour, marker, _ = ("#444444", "s", "") if row.baseline else STYLE[row.arm]
            axes.plot([row.over_random_low, row.over_random_high], [at, at], color=colour, lw=2)
            axes.plot(row.over_random, at, marker, color=colour, ms=6)
        axes.axvline(0, color="#222", lw=1.2)
        axes.set_yticks(range(len(own)), own["name"] if not k else [""] * len(own))
        axes.set_title(TASKS[task], fontsize=10)
        axes.grid(axis="x", alpha=0.25)
        each = ", ".join(f"{r.name} {r.over_random:+.3f}" for r in own.iloc[::-1].itertuples())
        said.append(f"{TASKS[task]}: {each}")
    drawn.supxlabel("macro AUROC minus random weights", fontsize=10)
    drawn.suptitle(title, fontsize=10)
    drawn.tight_layout()
    return show(drawn, f"{title} Macro AUROC minus random weights. {'; '.join(said)}.")


def table(rows: pd.DataFrame, flops: Mapping[str, float]) -> Shown:
    """Return recipes and baselines with AUROC and the difference from random weights.

    ``flops``: floating-point operations of a variant's pretraining, where they are known.
    """
    lines = []
    for name, own in rows.groupby("name", sort=False):
        first = own.iloc[0]
        seen, used = first["samples_seen"], flops.get(first["recipe"])
        line = {"recipe": name, "samples seen": "" if np.isnan(seen) else human(seen)}
        line["TFLOP"] = "" if first["baseline"] or not used else f"{used / 1e12:.0f}"
        line["seeds"] = "" if first["baseline"] else str(first["seeds"])
        for row in own.itertuples():
            task = TASKS[row.task].lower()
            line[f"{task}: AUROC"] = interval(row.value, row.low, row.high)
            gain = (row.over_random, row.over_random_low, row.over_random_high)
            line[f"{task}: minus random weights"] = (
                "" if np.isnan(gain[0]) else interval(*gain, sign=True)
            )
        lines.append(line)
    return words(pd.DataFrame(lines).set_index("recipe"), "Recipes and what they learned.")


def nuisance(table: pd.DataFrame, names: Mapping[str, str]) -> Shown:
    """Return what the features of each encoder hold beside labels: R2 or AUROC by factor.

    Args:
        table: tidy table of the classification runs, with the task ``nuisance``.
        names: what an encoder's run is called, by its name, in the order of columns.
    """
    rows = table[(table["task"] == "nuisance") & table["run"].isin(names)]
    if rows.empty:
        return nothing("", "What else the features hold has not been evaluated.")
    rows = rows.assign(encoder=rows["run"].map(names))
    rows["factor"] = rows["label"] + rows["metric"].map({"r2": " (R2)", "auroc": " (AUROC)"})
    mean = rows.groupby(["factor", "encoder"], sort=False)["value"].mean().unstack()
    shown = mean[[name for name in dict.fromkeys(names.values()) if name in mean]]
    return words(shown.map("{:.2f}".format), "What features hold beside labels.")


def encoders_by_run(preset: str, first: str) -> dict[str, str]:
    """Return what each recorded classification run evaluates, by its name: recipe or baseline."""
    known = {"": first} | sources.recipe_names(f"{recorded.RECORDED}{preset}")
    found = {}
    for variant, name in reversed(known.items()):  # baselines are in every variant
        table = recorded.load(preset, variant)
        for run in table.loc[table["stage"] == "classify", "run"].unique():
            kind = next((told for key, told in BASELINES.items() if run.startswith(key)), "")
            found[str(run)] = kind or name
    order = [*known.values(), *BASELINES.values()]
    return dict(sorted(found.items(), key=lambda item: order.index(item[1])))


def tested(rows: pd.DataFrame, names: Mapping[str, str]) -> str:
    """Return what was tested, what the intervals hold, and which recipes have no result."""
    one, trained = rows.iloc[0], rows[~rows["baseline"]]
    missing = [name for name in names.values() if name not in set(rows["name"])]
    held = "patients and seeds" if trained["seeds"].min() > 1 else "patients, and seeds where named"
    return (
        f"Synthetic x-rays; {one['n']:,} test images of {one['n_patients']:,} patients. "
        f"Intervals hold {held}." + (f" Not recorded: {', '.join(missing)}." if missing else "")
    )


def sentences(rows: pd.DataFrame) -> str:
    """Return, for each task, which recipes are above random weights and above supervision."""
    out = []
    for task, own in rows[~rows["baseline"]].groupby("task", sort=False):
        above = own[own["over_random_low"] > 0]
        best = own.loc[own["value"].idxmax()]
        gain = interval(*best[["over_random", "over_random_low", "over_random_high"]], sign=True)
        level = own[own["over_supervised_low"] > 0]
        below = own[own["over_supervised_high"] < 0]
        out.append(
            f"- **{TASKS[str(task)]}**: {len(above)} of {len(own)} recipes are above random "
            f"weights. The best is {best['name']}, {gain} above them. Against the same network "
            f"trained on labels, {len(level)} are better, {len(below)} worse, "
            f"{len(own) - len(level) - len(below)} not told apart."
        )
    return "\n".join(out)
