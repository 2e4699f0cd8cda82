"""What the book's pages say of a set of runs: sentences and tables computed from records, never typed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cxrstudy import grid, recorded, results, study
from cxrstudy.data.manifest import label_names
from cxrstudy.data.vocabulary import phrase
from cxrstudy.plots import TASKS, human
from cxrstudy.run import read_plan, read_plans, run_table
from cxrstudy.scaling import ladders

if TYPE_CHECKING:  # these import torch, which most pages can do without
    from cxrstudy.data.cards import Card
    from cxrstudy.data.images import Prepared


RECORDED = "recorded:"  # before a preset's name: its results that came with the book, not this machine's


def name_of(preset: str) -> str:
    """A source of results in words, for titles."""
    kept = preset.startswith(RECORDED)
    return f"{preset.removeprefix(RECORDED)}, recorded" if kept else f"{preset}, run on this machine"


def plan_table(preset: str, variant: str = "") -> tuple[pd.DataFrame, list[str]]:
    """(tidy table of the runs of a preset's plan, names of planned runs without a record).

    ``preset``: one that was run on this machine; or ``recorded:NAME``, whose results came with the book.
    """
    if preset.startswith(RECORDED):
        return recorded.load(preset.removeprefix(RECORDED), variant), []
    planned = [study.runs_root() / preset / run["stage"] / run["name"] for run in read_plan(preset, variant)]
    there = [folder for folder in planned if (folder / "record.json").is_file()]
    return results.load_records(there), [folder.name for folder in planned if folder not in there]


def variants(preset: str) -> list[str]:
    """The ``--set`` variants of a preset (or of ``recorded:NAME``) that there are results of."""
    if preset.startswith(RECORDED):
        return recorded.variants(preset.removeprefix(RECORDED))
    return [plan["variant"] for plan in read_plans() if plan["preset"] == preset and plan["variant"]]


def provenance(table: pd.DataFrame, missing: list[str], preset: str) -> str:
    """One paragraph: what was run, on what, from which code, and what is missing."""
    described = grid.load_preset(preset.removeprefix(RECORDED))
    if table.empty:
        wait = f"about {described.minutes:g} minutes on {described.hardware}"
        return (
            f"**Nothing of preset `{preset}` has been run on this machine yet.** `{command(preset)}` runs it ({wait})."
        )
    kinds = sorted(table["kind"].dropna().unique())
    seeds = sorted(int(seed) for seed in table.loc[table["stage"] == "pretrain", "seed"].dropna().unique())
    once, kept = table.drop_duplicates("run"), preset.startswith(RECORDED)
    text = (
        f"{'Recorded with this book, not on your machine: p' if kept else 'P'}reset `{preset.removeprefix(RECORDED)}` "
        f"({described.title.lower()}): {len(once)} runs, {once['seconds'].sum() / 60:.1f} minutes of "
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
    preset = preset.removeprefix(RECORDED)
    needs = grid.load_preset(preset).needs_root
    return f"make study PRESET={preset}" + (" DATA_ROOT=/path/to/images" if needs else "")


def _list(items: Any) -> str:
    return ", ".join(str(item) for item in items)


def number(value: float, low: float, high: float) -> str:
    """A value with its 95% interval."""
    return "not measured" if np.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def main_table(table: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Macro metric with interval: a row an encoder (controls, base, then the ladders), a column a task."""
    rows = _told(table[(table["stage"] == "classify") & (table["label"] == "macro") & (table["metric"] == metric)])
    wide = rows.pivot_table(index=["order", "encoder"], columns="task", values="text", aggfunc="first").droplevel(0)
    wide = wide[[task for task in TASKS if task in wide]].rename(
        columns={k: f"{v}, macro {metric.upper()}" for k, v in TASKS.items()}
    )
    return wide.rename_axis(columns=None)


def label_table(table: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Every label's metric with interval: a row a label, a column an encoder."""
    rows = table[(table["stage"] == "classify") & (table["metric"] == metric) & table["value"].notna()]
    rows = _told(rows[(rows["label"] != "macro") & rows["task"].isin(TASKS)])
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


def family_tables(table: pd.DataFrame, tasks: tuple[str, ...] = ()) -> list[tuple[str, pd.DataFrame]]:
    """(title, table) of every task family beside classification that has been judged, or of ``tasks`` alone: a row an
    encoder."""
    found = []
    elsewhere = sorted({task for task in table["task"].dropna() if "@" in task and task.partition("@")[0] in TASKS})
    abroad = {
        task: (f"{TASKS[at[0]]} at another institution ({at[2]})", {("macro", "auroc"): "macro AUROC"})
        for task in elsewhere
        if (at := task.partition("@"))
    }
    for task, (title, columns) in (abroad | FAMILIES).items():
        if tasks and task not in tasks:
            continue
        rows = table[(table["task"] == task) & table["value"].notna()].copy()
        rows["column"] = [columns.get(key) for key in zip(rows["label"], rows["metric"], strict=True)]
        rows = rows[rows["column"].notna()]
        if rows.empty:
            continue
        rows = _told(rows)
        wide = rows.pivot_table(index=["order", "encoder"], columns="column", values="text", aggfunc="first")
        shown = [name for name in columns.values() if name in wide]
        found.append((title, wide.droplevel(0)[shown].fillna("").rename_axis(columns=None)))
    return found


def written_reports(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(encoder in words, its reports.parquet) of bases and of each paradigm's largest n_images, first seed; of runs on
    this machine alone, since recorded ones keep no words, and where the data's terms let its images be shown."""
    from cxrstudy.data.images import open_prepared

    rows = table[(table["stage"] == "report") & (table["paradigm"] != "control")].drop_duplicates("run")
    rows = rows[[(Path(folder) / "reports.parquet").is_file() for folder in rows["folder"]]]
    if rows.empty:
        return []
    rows = _told(rows).sort_values("order")
    last = rows.groupby(["paradigm", "base"], dropna=False)["n_images"].transform("max")
    found = []
    for row in rows[rows["n_images"].fillna(0) == last.fillna(0)].drop_duplicates(["paradigm", "base"]).itertuples():
        data = results.read_record(row.folder)["parameters"]["data"]
        if data and open_prepared(study.resolve(data)).info["show_images"]:
            found.append((row.encoder, pd.read_parquet(Path(row.folder) / "reports.parquet")))
    return found


def _told(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with the columns order, encoder (in words that tell any two encoders apart) and text."""
    told = rows.assign(
        order=[_order(row) for row in rows.itertuples()],
        encoder=[_who(row) for row in rows.itertuples()],
        text=[number(row.value, row.low, row.high) for row in rows.itertuples()],
    )
    for name, word in (("base", "from"), ("samples_seen", "seen:"), ("data", "on")):
        several = told.groupby("encoder")[name].transform(lambda values: values.nunique(dropna=False)) > 1
        more = [
            f", {word} {(human(value) if name == 'samples_seen' else re.sub(r'-[0-9a-f]{6}$', '', str(value)))}"
            if value == value and value else ""
            for value in told[name]
        ]  # fmt: skip
        told["encoder"] = told["encoder"] + np.where(several, more, "")
    return told


def _who(row: Any) -> str:
    if row.paradigm == "control":
        return {"covariates": "view, age and sex alone", "pixels": "raw pixels"}.get(
            row.encoder, str(row.encoder).replace("random:", "random weights: ")
        )
    if not row.base:
        return f"base ({row.paradigm}, {human(row.samples_seen)} seen), not continued"
    if elsewhere(row):
        where = str(row.trained_on).removeprefix("synthetic:")
        return f"{row.paradigm} base continued on {human(row.n_images)} images of {where}, not in-house"
    return f"{row.paradigm}, {human(row.n_images)} images, seed {row.seed:g}"


def elsewhere(row: Any) -> bool:
    """Whether the encoder of a row of the tidy table went on from its base on another institution's images."""
    return bool(row.base) and isinstance(row.trained_on, str) and row.trained_on != row.institution


def _order(row: Any) -> tuple[Any, ...]:
    kind = 0 if row.paradigm == "control" else 1 if not row.base or elsewhere(row) else 2
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
    """(fits, curves) of the scale run of a plan; empty where it has not been run. Computed anew for recorded runs."""
    if preset.startswith(RECORDED):
        how = grid.load_preset(preset.removeprefix(RECORDED)).scale
        return ladders.fit_ladders(plan_table(preset, variant)[0], form=how.get("form", "power"))
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


def agreement(ledger: pd.DataFrame) -> str:
    """The claims of `claims.ledger` by verdict, the paper's before its neighbours', each with effect and interval."""
    words = {
        "supported": "Supported by these runs",
        "contradicted": "Contradicted by these runs",
        "inconclusive": "Left open",
        "not testable": "Not testable with these runs",
    }
    lines = []
    for verdict, title in words.items():
        own = ledger[ledger["verdict"] == verdict].sort_values("source", kind="stable")
        if len(own):
            lines += [f"**{title}:**", ""]
        for row in own.itertuples():
            told = f": {row.effect:+.4f} [{row.low:+.4f}, {row.high:+.4f}]" if row.effect == row.effect else ""
            lines.append(f"- {row.claim} ({row.source}){told}")
        lines += [""] * bool(len(own))
    return "\n".join(lines)


def thresholds(crossed: pd.DataFrame) -> list[str]:
    """Sentences on `decide.crossovers`: from how many images on continuing beats the base, by task and paradigm."""
    return [
        f"{TASKS[row.task]}, `{row.name}`: first size whose gain excludes zero: {row.first_said}; the same "
        f"at every larger size: {row.holds_said} ({row.covers})."
        for row in crossed.itertuples()
    ]


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

    described = grid.load_preset(preset.removeprefix(RECORDED))
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
