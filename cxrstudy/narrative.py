"""What the book's pages say of a set of runs: sentences and tables computed from records, never typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cxrstudy import grid, results, study
from cxrstudy.data.manifest import label_names
from cxrstudy.data.vocabulary import phrase
from cxrstudy.plots import TASKS, human
from cxrstudy.run import read_plan, read_plans, run_table
from cxrstudy.scaling import ladders

if TYPE_CHECKING:  # these import torch, which most pages can do without
    from cxrstudy.data.cards import Card
    from cxrstudy.data.images import Prepared


def plan_table(preset: str, variant: str = "") -> tuple[pd.DataFrame, list[str]]:
    """(tidy table of the runs of a preset's plan, names of planned runs without a record)."""
    planned = [study.runs_root() / preset / run["stage"] / run["name"] for run in read_plan(preset, variant)]
    there = [folder for folder in planned if (folder / "record.json").is_file()]
    return results.load_records(there), [folder.name for folder in planned if folder not in there]


def variants(preset: str) -> list[str]:
    """The ``--set`` variants of a preset that were run on this machine."""
    return [plan["variant"] for plan in read_plans() if plan["preset"] == preset and plan["variant"]]


def provenance(table: pd.DataFrame, missing: list[str], preset: str) -> str:
    """One paragraph: what was run, on what, from which code, and what is missing."""
    described = grid.load_preset(preset)
    if table.empty:
        wait = f"about {described.minutes:g} minutes on {described.hardware}"
        return (
            f"**Nothing of preset `{preset}` has been run on this machine yet.** `{command(preset)}` runs it ({wait})."
        )
    kinds = sorted(table["kind"].dropna().unique())
    seeds = sorted(int(seed) for seed in table.loc[table["stage"] == "pretrain", "seed"].dropna().unique())
    once = table.drop_duplicates("run")
    text = (
        f"Preset `{preset}` ({described.title.lower()}): {len(once)} runs, {once['seconds'].sum() / 60:.1f} minutes of "
        f"computing on {_list(once['hardware'].unique())}, code at {_list(once['commit'].unique())}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {_list(seeds)}. Data: {_list(kinds)}."
    )
    if missing:
        text += f" **{len(missing)} runs have no result yet** ({_list(missing)}); `{command(preset)}` runs them."
    if "synthetic" in kinds and "real" not in kinds:
        text += " Every number here is about **synthetic x-rays** and says nothing about patients."
    if "real" in kinds:
        text += " The evaluated x-rays are **real**; research only, not for clinical use."
    return text


def command(preset: str) -> str:
    """What a reader types to run a preset."""
    needs = grid.load_preset(preset).needs_root
    return f"make study PRESET={preset}" + (" DATA_ROOT=/path/to/images" if needs else "")


def _list(items: Any) -> str:
    return ", ".join(str(item) for item in items)


def number(value: float, low: float, high: float) -> str:
    """A value with its 95% interval."""
    return "not measured" if np.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def main_table(table: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Macro metric with interval: a row an encoder (controls, base, then the ladders), a column a task."""
    rows = table[(table["stage"] == "classify") & (table["label"] == "macro") & (table["metric"] == metric)].copy()
    rows["order"] = [_order(row) for row in rows.itertuples()]
    rows["encoder"] = [_who(row) for row in rows.itertuples()]
    rows["text"] = [number(row.value, row.low, row.high) for row in rows.itertuples()]
    wide = rows.pivot_table(index=["order", "encoder"], columns="task", values="text", aggfunc="first").droplevel(0)
    wide = wide[[task for task in TASKS if task in wide]].rename(
        columns={k: f"{v}, macro {metric.upper()}" for k, v in TASKS.items()}
    )
    return wide.rename_axis(columns=None)


def label_table(table: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Every label's metric with interval: a row a label, a column an encoder."""
    rows = table[(table["stage"] == "classify") & (table["metric"] == metric) & table["value"].notna()]
    rows = rows[(rows["label"] != "macro") & rows["task"].isin(TASKS)].copy()
    rows["order"] = [_order(row) for row in rows.itertuples()]
    rows["encoder"] = [_who(row) for row in rows.itertuples()]
    rows["text"] = [number(row.value, row.low, row.high) for row in rows.itertuples()]
    columns = rows.drop_duplicates("encoder").sort_values("order")["encoder"]
    labels = rows.drop_duplicates("label")["label"]
    return (
        rows.pivot_table(index="label", columns="encoder", values="text", aggfunc="first")
        .loc[labels, list(columns)]
        .rename_axis(columns=None)
    )


FAMILIES: dict[str, tuple[str, dict[tuple[str, str], str]]] = {  # task: title, columns by (label, metric)
    "segmentation": (
        "Lines and tubes, drawn",
        {
            ("macro", "dice"): "Dice",
            ("macro", "cl_dice"): "clDice",
            ("macro", "missed"): "share missed",
            ("macro", "false_alarm"): "share drawn where there is none",
            ("macro", "tip_error_mm"): "tip error, mm (median)",
            ("macro", "tip_floor_mm"): "the same of the true mask, by the same rule",
        },
    ),
    "continuity": (
        "Continuity: does a patch at a tube's tip resemble the rest of the tube? (AUROC)",
        {(f"layer-{k}", "auroc"): f"layer {-k}" for k in range(5, 0, -1)}
        | {(f"nearness-{k}", "auroc"): f"distance alone, {k} x {k} patches" for k in (2, 4, 8, 16, 32, 37, 64)},
    ),
    "reports": (
        "Reports, written",
        {
            ("findings", "f1_micro"): "findings, micro F1",
            ("findings", "f1_macro"): "findings, macro F1",
            ("lines_tubes", "f1_micro"): "lines and tubes, micro F1",
            ("all", "f1_side"): "with side, F1",
            ("all", "rouge_l"): "ROUGE-L",
            ("all", "bleu_4"): "BLEU-4",
            ("other patient: findings", "f1_micro"): "another patient's image: findings, micro F1",
        },
    ),
    "malposition": ("Malposition of tips", {("macro", "auroc"): "macro AUROC", ("macro", "auprc"): "macro AUPRC"}),
    "laterality": ("Left or right", {("macro", "auroc"): "macro AUROC"}),
    "zero_shot": ("Zero-shot, by prompts", {("macro", "auroc"): "macro AUROC"}),
    "retrieval": (
        "Retrieval",
        {
            (way, f"recall@{k}"): f"{way.replace('_', ' ')}, R@{k}"
            for way in ("image_to_text", "text_to_image")
            for k in (1, 5, 10)
        },
    ),
}


def family_tables(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(title, table) of every task family beside classification that has been judged: a row an encoder."""
    found = []
    for task, (title, columns) in FAMILIES.items():
        rows = table[(table["task"] == task) & table["value"].notna()].copy()
        rows["column"] = [columns.get(key) for key in zip(rows["label"], rows["metric"], strict=True)]
        rows = rows[rows["column"].notna()]
        if rows.empty:
            continue
        rows["order"] = [_order(row) for row in rows.itertuples()]
        rows["encoder"] = [_who(row) for row in rows.itertuples()]
        rows["text"] = [number(row.value, row.low, row.high) for row in rows.itertuples()]
        wide = rows.pivot_table(index=["order", "encoder"], columns="column", values="text", aggfunc="first")
        shown = [name for name in columns.values() if name in wide]
        found.append((title, wide.droplevel(0)[shown].fillna("").rename_axis(columns=None)))
    return found


def _who(row: Any) -> str:
    if row.paradigm == "control":
        return {"covariates": "view, age and sex alone", "pixels": "raw pixels"}.get(
            row.encoder, str(row.encoder).replace("random:", "random weights: ")
        )
    if not row.base:
        return f"base ({row.paradigm}, {human(row.samples_seen)} seen), not continued"
    return f"{row.paradigm}, {human(row.n_images)} images, seed {row.seed:g}"


def _order(row: Any) -> tuple[Any, ...]:
    kind = 0 if row.paradigm == "control" else 1 if not row.base else 2
    return (
        kind,
        str(row.paradigm),
        float(row.n_images or 0),
        float(row.seed if row.seed == row.seed else 0),
        str(row.encoder),
    )


def verdicts(table: pd.DataFrame, gained: pd.DataFrame, fits: pd.DataFrame) -> list[str]:
    """Sentences on each task: where each ladder starts and ends, whether it beats its base, and the fitted exponent."""
    said = []
    for task, title in TASKS.items():
        for paradigm, ladder in ladders.points(table[table["task"] == task]).groupby("paradigm"):
            mean = ladder.groupby("n_images")["value"].mean()
            text = (
                f"**{title}, `{paradigm}`**: macro AUROC {mean.iloc[0]:.3f} with {human(mean.index[0])} images, "
                f"{mean.iloc[-1]:.3f} with {human(mean.index[-1])}"
            )
            own = gained[(gained["task"] == task) & (gained["paradigm"] == paradigm)]
            if len(own):
                ends = own.sort_values("n_images").iloc[[0, -1]]
                told = [
                    f"{row.gain:+.3f} [{row.low:+.3f}, {row.high:+.3f}] with {human(row.n_images)}, {_sign(row)}"
                    for row in ends.itertuples()
                ]
                text += f". Against its base: {'; '.join(told)}"
            fit = fits[(fits["task"] == task) & (fits["paradigm"] == paradigm)]
            if len(fit) and fit["refused"].iloc[0]:
                text += f". No law was fitted: {fit['refused'].iloc[0]}"
            elif len(fit):
                exponent, count = fit["exponent"].iloc[0], int(fit["points"].iloc[0])
                tenfold = 1 - 10**-exponent
                text += (
                    f". Fitted through {count} points, ten times the images cut the error by {tenfold:.1%} (indicative)"
                )
            said.append(text.rstrip(".") + ".")
    return said


def _sign(row: Any) -> str:
    return "better" if row.low > 0 else "worse" if row.high < 0 else "no clear difference"


def scale_artefacts(preset: str, variant: str = "") -> tuple[pd.DataFrame, pd.DataFrame]:
    """(fits, curves) of the scale run of a plan; empty where it has not been run."""
    for run in read_plan(preset, variant):
        folder = study.runs_root() / preset / run["stage"] / run["name"]
        if run["stage"] == "scale" and (folder / "record.json").is_file():
            fits, curves = (pd.read_csv(folder / f"{name}.csv") for name in ("fits", "curves"))
            return fits.fillna({"refused": ""}), curves
    return ladders.fit_ladders(results.load_records([]))


def gain_table(gained: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Continued minus base with its interval, and how far the weights went: a row a ladder point, a column a task.

    ``table`` is the tidy table of the same runs. With several seeds: their mean, and the range over them.
    """
    rows = gained.assign(
        encoder=[f"{r.paradigm}, {human(r.n_images)} images" for r in gained.itertuples()],
        text=[
            f"{r.gain:+.3f} [{r.low:+.3f}, {r.high:+.3f}]"
            + (f"; {r.seeds} seeds {r.least:+.3f} to {r.most:+.3f}" if r.seeds > 1 else "")
            for r in gained.itertuples()
        ],
        task=gained["task"].map(TASKS),
    )
    wide = rows.pivot_table(index=["paradigm", "n_images", "encoder"], columns="task", values="text", aggfunc="first")
    moved = table[(table["stage"] == "pretrain") & (table["metric"] == "moved")]
    far = moved.groupby(["paradigm", "n_images"])["value"].mean()
    wide["weights moved"] = [f"{far[key[:2]]:.1%}" if key[:2] in far.index else "not recorded" for key in wide.index]
    return wide.droplevel([0, 1]).rename_axis(columns=None)


def harm(gained: pd.DataFrame, bound: float = -0.01) -> str:
    """A sentence: whether continuing cost any rung more than ``-bound`` of macro AUROC, by its interval's lower end."""
    if gained.empty:
        return ""
    short = gained[~(gained["low"] > bound)]  # where there is no interval, nothing is excluded
    if short.empty:
        return f"No rung's interval reaches down to {bound:+.2f}: continuing harmed none of them by that much."
    named = [f"`{r.paradigm}` with {human(r.n_images)} on {TASKS[r.task].lower()}" for r in short.itertuples()]
    return f"A loss of {-bound:.2f} cannot be excluded for {len(short)} of {len(gained)} points: {'; '.join(named)}."


def caution(preset: str) -> str:
    """What must be said before the numbers of a preset on real images: the card's own words on confounding."""
    from cxrstudy.data.cards import read_card

    described = grid.load_preset(preset)
    cards_ = [read_card(values["card"]) for values in described.data.values()]
    return "\n\n".join(f"> **Read this first: {card.title}.** {card.caution}" for card in cards_ if card.caution)


def data_sets(presets: list[str]) -> list[tuple[str, Prepared, Card]]:
    """(name, prepared data, card) of every finished data run of these presets; each data set once."""
    from cxrstudy.data.cards import read_card
    from cxrstudy.data.images import open_prepared

    found: dict[tuple[str, int], tuple[str, Prepared, Card]] = {}
    for preset in presets:
        for row in run_table(preset):
            if row["stage"] == "data" and row["record"]:
                prepared = open_prepared(row["notebook"].parent)
                key = (prepared.info["institution"], prepared.info["size"])
                found.setdefault(key, (grid.slug(row["name"]), prepared, read_card(prepared.info["card"])))
    return list(found.values())


def describe_data(name: str, prepared: Prepared, card: Card) -> str:
    """A heading and a paragraph on one prepared data set."""
    manifest, info = prepared.manifest, prepared.info
    what = "Synthetic" if info["kind"] == "synthetic" else "Real"
    return (
        f"## {card.title}: {name}\n\n**{what} x-rays.** {len(manifest):,} images of "
        f"{manifest['patient_id'].nunique():,} patients at {info['size']} px; {info['quarantined']} could not be read "
        f"and are left out. Licence: {card.licence}. Cite: {card.citation}."
    )


def prevalence_table(prepared: Prepared) -> pd.DataFrame:
    """Share of images with each label recorded as present, by split."""
    names = label_names(prepared.manifest)
    shares = prepared.manifest.groupby("split")[[f"label:{name}" for name in names]].mean().T
    return shares.set_axis([phrase(name) for name in names]).rename_axis(columns=None).map("{:.3f}".format)
