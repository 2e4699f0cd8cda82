"""The book's tables: encoders in words, a column a task or a metric; from the tidy table of records."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import results, study
from cxrstudy.data.images import open_prepared
from cxrstudy.data.vocabulary import phrase
from cxrstudy.evaluate.small_samples import LEAST, TOO_FEW
from cxrstudy.plots import TASKS, human
from cxrstudy.scaling import ladders


def number(value: float, low: float, high: float) -> str:
    """A value with its 95% interval, where one could be given."""
    if np.isnan(value):
        return "not measured"
    return (
        f"{value:.3f} [{low:.3f}, {high:.3f}]"
        if np.isfinite([low, high]).all()
        else f"{value:.3f} (no interval)"
    )


def tested(table: pd.DataFrame, *tasks: str) -> str:
    """On what the numbers of some tasks rest, in a sentence each: test images, their patients, the positives of each
    label; and the labels that are too few to evaluate. Without ``tasks``: of all that there are."""
    return " ".join(
        filter(None, (_tested(table, task) for task in tasks or table["task"].dropna().unique()))
    )


def _tested(table: pd.DataFrame, task: str) -> str:
    own, place = task.partition("@")[::2]
    rows = table[(table["task"] == task) & table["n"].notna()]
    rows = rows[
        ~rows["label"].astype(str).str.contains(": ")
    ]  # baselines of reports: the same test cases
    rows = (
        rows[~rows["label"].isin(["findings", "lines_tubes", "all"])] if own == "reports" else rows
    )
    if rows.empty:
        return ""
    name = TASKS.get(own, phrase(own).capitalize()) + (f" ({place})" if place else "")
    rare = (
        rows["label"].ne("macro")
        & (rows["positives"] < LEAST)
        & (own in ("segmentation", "reports"))
    )
    rare |= rows["note"].astype(str).str.startswith(TOO_FEW) if "note" in rows else False
    kept, said = rows[~rare & rows["value"].notna()], []
    if len(kept):
        what = {"reports": "reports", "continuity": "tubes"}.get(own, "images")
        n = _range(kept["n"] if own != "segmentation" else kept.groupby("run")["n"].max())
        said.append(
            f"{name}: {n} test {what}{_patients(kept)}{'' if own == 'continuity' else _positives(kept)}."
        )
    few = rows[rare & (rows["label"] != "macro")].drop_duplicates("label")
    if len(few):
        each = (
            f"{_label(row.label)} ({row.positives:.0f} of {row.n:.0f})" for row in few.itertuples()
        )
        said.append(f"{name}, {TOO_FEW}: {', '.join(each)}.")
    return " ".join(said)


def _label(name: str) -> str:
    return phrase(re.sub("^(malposition|right|zero_shot):", "", name))


def _range(values: Any) -> str:
    """Numbers in words: the one that there is, or from the least to the largest."""
    known = sorted({int(value) for value in values.dropna()})
    return (
        ""
        if not known
        else f"{known[0]:,}"
        if known[0] == known[-1]
        else f"{known[0]:,} to {known[-1]:,}"
    )


def _patients(rows: pd.DataFrame) -> str:
    """Of how many patients the test images are: from the records, or from the kept scores of older ones."""
    told = _range(rows["n_patients"]) if "n_patients" in rows else ""
    folder = Path(str(rows["folder"].iloc[0]))
    if not told and rows["task"].iloc[0] != "continuity" and (folder / "scores.parquet").is_file():
        told = f"{results.kept_scores(folder)['patient_id'].nunique():,}"
    return f" of {told} patients" if told else ""


def _positives(rows: pd.DataFrame) -> str:
    """The positives of each label."""
    each = (
        rows[(rows["label"] != "macro") & rows["positives"].notna()]
        .groupby("label", sort=False)["positives"]
        .max()
    )
    return (
        f"; positives: {', '.join(f'{_label(n)} {count:,.0f}' for n, count in each.items())}"
        if len(each)
        else ""
    )


def main_table(table: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Macro metric with interval: a row an encoder (controls, base, then the ladders), a column a task."""
    rows = _told(
        table[
            (table["stage"] == "classify")
            & (table["label"] == "macro")
            & (table["metric"] == metric)
        ]
    )
    wide = rows.pivot_table(
        index=["order", "encoder"], columns="task", values="text", aggfunc="first"
    ).droplevel(0)
    heads = {}
    for task, name in TASKS.items():
        one = ladders.judged_labels(table, task)
        what = (
            f"{metric.upper()} of {phrase(one[0])}" if len(one) == 1 else f"macro {metric.upper()}"
        )
        heads[task] = f"{name}, {what}"
    return _headed(wide[[task for task in TASKS if task in wide]].rename(columns=heads))


def several_labels(table: pd.DataFrame) -> bool:
    """Whether any task was judged by more than one label: else `label_table` would repeat `main_table`."""
    return any(len(ladders.judged_labels(table, task)) > 1 for task in TASKS)


def label_table(table: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Every label's metric with interval: a row a label, a column an encoder."""
    rows = table[
        (table["stage"] == "classify") & (table["metric"] == metric) & table["value"].notna()
    ]
    rows = _told(rows[(rows["label"] != "macro") & rows["task"].isin(TASKS)])
    columns = rows.drop_duplicates("encoder").sort_values("order")["encoder"]
    labels = rows.drop_duplicates("label")["label"]
    wide = rows.pivot_table(index="label", columns="encoder", values="text", aggfunc="first")
    return _headed(wide.loc[labels, list(columns)].rename(index=phrase))


def _headed(wide: pd.DataFrame) -> pd.DataFrame:
    """``wide`` with the name of its index in the corner: one row of heads, not two."""
    return wide.rename_axis(index=None, columns=wide.index.name)


def label_rows(table: pd.DataFrame, task: str, metric: str = "auroc") -> pd.DataFrame:
    """A task's labels to draw (`plots.beside`): each base as it came and each ladder's largest size, by its first seed.

    Columns: label (with its positives among the test images), series, value, low, high; labels in the order of their
    best value.
    """
    each = table[
        (table["stage"] == "classify") & (table["task"] == task) & (table["metric"] == metric)
    ]
    each = each[(each["label"] != "macro") & each["value"].notna()]
    ladder = each[ladders.continued(each)].sort_values(["n_images", "seed"])
    tops = ladder[ladder["n_images"] == ladder.groupby("paradigm")["n_images"].transform("max")]
    tops = tops[tops["seed"] == tops.groupby("paradigm")["seed"].transform("min")]
    bases = each[each["run"].str.startswith("base-") & (each["paradigm"] != "control")]
    named = [
        bases.assign(series="base, " + bases["paradigm"]),
        tops.assign(
            series=tops["paradigm"] + ", " + tops["n_images"].map(human).astype(str) + " images"
        ),
    ]
    rows = (
        pd.concat(named)
        .drop_duplicates(["series", "label"])
        .sort_values("value", ascending=False, kind="stable")
    )
    counted = [
        f"{phrase(row.label)} ({row.positives:,.0f} of {row.n:,.0f})"
        if row.positives == row.positives
        else phrase(row.label)
        for row in rows.itertuples()
    ]
    rows = rows.assign(label=counted)
    return rows[["label", "series", "value", "low", "high"]].reset_index(drop=True)


FAMILIES: dict[
    str, tuple[str, dict[tuple[str, str], str]]
] = {  # task: title, columns by (label, metric)
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
        | {
            (f"nearness-{k}", "auroc"): f"distance alone, {k} x {k} patches"
            for k in (2, 4, 8, 16, 32, 37, 64)
        },
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
            ("random report: findings", "f1_micro"): "a report drawn at random: findings, micro F1",
        },
    ),
    "malposition": (
        "Malposition of tips",
        {("macro", "auroc"): "macro AUROC", ("macro", "auprc"): "macro AUPRC"},
    ),
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


def family_tables(
    table: pd.DataFrame, tasks: tuple[str, ...] = ()
) -> list[tuple[str, pd.DataFrame]]:
    """(title, table) of every task family beside classification that has been judged, or of ``tasks`` alone: a row an
    encoder."""
    found = []
    for task, (title, columns) in _families(table).items():
        if tasks and task not in tasks:
            continue
        rows = table[(table["task"] == task) & table["value"].notna()].copy()
        if task in ("zero_shot", "retrieval"):  # nothing is fitted to labels there
            rows = rows[~rows["run"].str.startswith("shuffled-")]
        rows["column"] = [
            columns.get(key) for key in zip(rows["label"], rows["metric"], strict=True)
        ]
        rows = rows[rows["column"].notna()]
        if rows.empty:
            continue
        rows = _told(rows)
        wide = rows.pivot_table(
            index=["order", "encoder"], columns="column", values="text", aggfunc="first"
        )
        shown = [name for name in columns.values() if name in wide]
        found.append((title, _headed(wide.droplevel(0)[shown].fillna(""))))
    return found


def tasks_of(title: str, table: pd.DataFrame) -> list[str]:
    """The tasks whose numbers stand in the table of that ``title`` of `family_tables`."""
    return [
        task
        for task in table["task"].dropna().unique()
        if title in _families(table).get(task, ("",))[:1]
    ]


def _families(table: pd.DataFrame) -> dict[str, tuple[str, dict[tuple[str, str], str]]]:
    """``FAMILIES``, after the classification tasks at other institutions that ``table`` holds."""
    found = {}
    for task in sorted(table["task"].dropna().unique()):
        own, _, place = task.partition("@")
        if place and own in TASKS:
            found[task] = (
                f"{TASKS[own]} at another institution ({place})",
                {("macro", "auroc"): "macro AUROC"},
            )
    return found | FAMILIES


def seeing(table: pd.DataFrame) -> str:
    """Whose reports tell findings better than habit: the interval of micro F1 lies above those of another patient's
    image, fed to the same decoder, and of a report drawn at random. Empty where none were written."""
    rows = table[(table["task"] == "reports") & (table["metric"] == "f1_micro")]
    own = rows[rows["label"] == "findings"]
    if own.empty:
        return ""
    controls = rows[rows["label"].isin(["other patient: findings", "random report: findings"])]
    habit = own["run"].map(controls.groupby("run")["high"].max())
    told = _told(own.assign(sees=own["low"] > habit)).sort_values("order")
    apart, rest = (
        "; ".join(f"{row.encoder} {row.text}" for row in told[told["sees"] == sees].itertuples())
        for sees in (True, False)
    )
    return (
        "Findings are told better than by habit (micro F1 above that of another patient's image and of a report drawn "
        f"at random, intervals apart) by: **{apart or 'none'}**. Not by: {rest or 'none'}."
    )


def written_reports(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(encoder in words, its reports.parquet) of bases and of each paradigm's largest n_images, first seed; of runs on
    this machine alone, since recorded ones keep no words, and where the data's terms let its images be shown."""
    rows = table[(table["stage"] == "report") & (table["paradigm"] != "control")].drop_duplicates(
        "run"
    )
    rows = rows[[(Path(folder) / "reports.parquet").is_file() for folder in rows["folder"]]]
    if rows.empty:
        return []
    rows = _told(rows).sort_values("order")
    last = rows.groupby(["paradigm", "base"], dropna=False)["n_images"].transform("max")
    found = []
    for row in (
        rows[rows["n_images"].fillna(0) == last.fillna(0)]
        .drop_duplicates(["paradigm", "base"])
        .itertuples()
    ):
        data = results.read_record(row.folder)["parameters"]["data"]
        if data and open_prepared(study.resolve(data)).info["show_images"]:
            found.append((row.encoder, pd.read_parquet(Path(row.folder) / "reports.parquet")))
    return found


def _told(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with the columns order, encoder (in words that tell any two encoders apart) and text."""
    rows = rows.assign(abroad=ladders.abroad(rows))
    told = rows.assign(
        order=[_order(row) for row in rows.itertuples()],
        encoder=[_who(row) for row in rows.itertuples()],
        text=[_text(row) for row in rows.itertuples()],
    ).astype({"encoder": object})
    for name, word in (("base", "from"), ("samples_seen", "seen:"), ("data", "on")):
        several = (
            told.groupby("encoder")[name].transform(lambda values: values.nunique(dropna=False)) > 1
        )
        more = [
            f", {word} {(human(value) if name == 'samples_seen' else re.sub(r'-[0-9a-f]{6}$', '', str(value)))}"
            if value == value and value else ""
            for value in told[name]
        ]  # fmt: skip
        told["encoder"] = told["encoder"] + np.where(several, more, "")
    return told


def _text(row: Any) -> str:
    """A row's number with its interval, or why there is none."""
    if np.isnan(row.value) and isinstance(getattr(row, "note", None), str):
        return TOO_FEW
    return number(row.value, row.low, row.high)


def _who(row: Any) -> str:
    if row.paradigm == "control":
        return {"covariates": "view, age and sex alone", "pixels": "raw pixels"}.get(
            row.encoder,
            str(row.encoder)
            .replace("random:", "random weights: ")
            .replace("supervised:", "supervised: "),
        )
    if not row.base or row.n_images == 0:  # those of others: it is not known what they have seen
        seen = f", {human(row.samples_seen)} seen" if row.samples_seen else ""
        return f"base ({row.paradigm}{seen}), not continued"
    if row.abroad:
        where = str(row.trained_on).removeprefix("synthetic:")
        return f"{row.paradigm} base continued on {human(row.n_images)} images of {where}, not in-house"
    return f"{row.paradigm}, {human(row.n_images)} images, seed {row.seed:g}"


def _order(row: Any) -> tuple[Any, ...]:
    kind = 0 if row.paradigm == "control" else 1 if not row.base or row.abroad else 2
    return (
        kind,
        str(row.paradigm),
        float(row.n_images or 0),
        float(row.seed if row.seed == row.seed else 0),
        str(row.encoder),
    )


def _gain(row: Any) -> str:
    return f"{row.gain:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"


def growth_table(tables: Mapping[str, pd.DataFrame], task: str) -> pd.DataFrame:
    """What more in-house images bring to a task (`ladders.growth`): a row a setting of ``tables``, a column a
    paradigm."""
    rows = []
    for setting, table in tables.items():
        found = ladders.growth(table)
        for row in found[found["task"] == task].itertuples():
            rows.append((setting, row.paradigm, _gain(row)))
    told = pd.DataFrame(rows, columns=["setting", "paradigm", "text"])
    wide = told.pivot_table(
        index="setting", columns="paradigm", values="text", aggfunc="first", sort=False
    )
    return wide.fillna("").rename_axis(columns=None)


def gain_table(gained: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Continued minus base with its interval, and how far the weights went: a row a ladder point, a column a task.

    ``table`` is the tidy table of the same runs. With several seeds: their mean, and the range over them.
    """
    rows = gained.assign(
        encoder=[f"{r.paradigm}, {human(r.n_images)} images" for r in gained.itertuples()],
        text=[
            _gain(r) + (f"; {r.seeds} seeds {r.least:+.3f} to {r.most:+.3f}" if r.seeds > 1 else "")
            for r in gained.itertuples()
        ],
        task=gained["task"].map(TASKS),
    )
    wide = rows.pivot_table(
        index=["paradigm", "n_images", "encoder"], columns="task", values="text", aggfunc="first"
    )
    moved = table[(table["stage"] == "pretrain") & (table["metric"] == "moved")]
    far = moved.groupby(["paradigm", "n_images"])["value"].mean()
    wide["weights moved"] = [
        f"{far[key[:2]]:.1%}" if key[:2] in far.index else "not recorded" for key in wide.index
    ]
    return _headed(wide.droplevel([0, 1]))
