"""The book's tables of results, from the tables of the analysis and the tidy table of records.

One format for an interval, one word for a verdict.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import results, study
from cxrstudy.data.vocabulary import phrase
from cxrstudy.evaluate.small_samples import LEAST, TOO_FEW
from cxrstudy.scaling.verdicts import BASE, BASELINE, GAIN, OVER_BASELINE, OVER_OTHERS, OVER_SEEN
from cxrstudy.shown import TASKS, human

TITLES = TASKS | {
    "segmentation": "Segmentation of lines and tubes",
    "malposition": "Malposition of tips",
    "laterality": "Left or right",
    "zero_shot": "Zero-shot, by prompts",
}
BASELINES = {"pixels": "raw pixels", "covariates": "view, age and sex alone"}


def interval(value: float, low: float, high: float, *, sign: bool = False) -> str:
    """Return a number with its 95% interval as text; the only format of the book."""
    if not np.isfinite(value):
        return "not measured"
    known = np.isfinite([low, high]).all()
    ends = f"[{_digits(low, sign)},\u00a0{_digits(high, sign)}]" if known else "(no interval)"
    return f"{_digits(value, sign)} {ends}"


def _digits(value: float, sign: bool) -> str:
    """Return three decimals, or four if three would hide the sign; never minus zero."""
    places = 4 if sign and 0.00005 <= abs(value) < 0.0005 else 3
    rounded = round(float(value), places) + 0.0
    return f"{rounded:+.{places}f}" if sign else f"{rounded:.{places}f}"


def effect(row: Any) -> str:
    """Return a contrast with its interval and its verdict."""
    return f"{interval(row.effect, row.low, row.high, sign=True)}: {row.verdict}"


def relative(row: Any) -> str:
    """Return a contrast of log errors as a relative change of 1 - AUROC, with its interval."""
    ends = (f"{np.expm1(value):+.0%}" for value in (row.effect, row.low, row.high))
    return "{} [{},\u00a0{}]".format(*ends)


def encoder_name(row: Any) -> str:
    """Return what an evaluated encoder of the table ``values`` is called."""
    if row.arm == BASE:
        return f"base model {row.start}"
    if row.arm == BASELINE:
        kind, _, of = str(row.start).partition(":")
        named = {
            "random": f"random weights of {of}",
            "supervised": f"supervised from scratch, {of}",
        }
        text = BASELINES.get(row.start, named.get(kind, str(row.start)))
        return re.sub("^shuffled labels", "permuted labels (negative control)", text)
    return f"{row.arm}, {human(row.n_images)} images"


def main_table(values: pd.DataFrame, metrics: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """Return a table with a row for each evaluated encoder and a column for each metric.

    Args:
        values: the table ``values`` of the analysis, over seeds.
        metrics: (task, metric) to the column's heading.
    """
    rows = values.assign(
        encoder=[encoder_name(row) for row in values.itertuples()],
        order=values["arm"].map({BASELINE: 0, BASE: 1}).fillna(2),
        text=[interval(r.value, r.low, r.high) for r in values.itertuples()],
        column=[metrics.get(key) for key in zip(values["task"], values["metric"], strict=True)],
    )
    rows = _distinguished(rows[rows["column"].notna()])
    wide = rows.pivot_table(
        index=["order", "arm", "n_images", "encoder"],
        columns="column",
        values="text",
        aggfunc="first",
    )
    shown = [name for name in metrics.values() if name in wide]
    return _headed(wide.droplevel([0, 1, 2])[shown].fillna(""))


def _distinguished(rows: pd.DataFrame) -> pd.DataFrame:
    """Add to encoders with the same name what differs: base model, samples seen, data."""
    for name, words in (("start", "from {}"), ("samples_seen", "{} seen"), ("data", "on {}")):
        several = rows.groupby("encoder")[name].transform("nunique") > 1
        short = human if name == "samples_seen" else lambda v: re.sub("-[0-9a-f]{6}$", "", str(v))
        shown = [f", {words.format(short(value))}" for value in rows[name]]
        rows = rows.assign(encoder=rows["encoder"].astype(str) + np.where(several, shown, ""))
    return rows


def ends(values: pd.DataFrame) -> pd.DataFrame:
    """Return base models, baselines, and each arm's smallest and largest subset."""
    sizes = values.groupby(["task", "metric", "data", "arm", "start"])["n_images"]
    return values[values["n_images"].isin([0]) | (values["n_images"] == sizes.transform("min"))
                  | (values["n_images"] == sizes.transform("max"))]  # fmt: skip


def answers(tables: Mapping[str, pd.DataFrame], names: Mapping[str, str]) -> pd.DataFrame:
    """Return the gains of each curve's largest subset: a row a (task, paradigm), with verdicts."""
    every, crossed = tables["contrasts"], tables["crossovers"]
    every = every[every["task"].isin(TASKS)]
    rows, errors = every[every["metric"] == "auroc"], every[every["metric"] == "log_error"]
    found = []
    gained = rows[rows["kind"] == GAIN]
    for (task, one, start), own in gained.groupby(["task", "one", "start"], sort=False):
        own = own.sort_values("n_images")
        few, many = own.iloc[0], own.iloc[-1]
        here = rows[(rows["task"] == task) & (rows["one"] == one) & (rows["start"] == start)]
        cells = {"task": TASKS[task], "paradigm": names.get(one, one)}
        cells |= {"images": human(many["n_images"]), "gain over base model": effect(many)}
        error = errors[(errors["kind"] == GAIN) & (errors["n_images"] == many["n_images"])]
        error = error[(error["task"] == task) & (error["one"] == one) & (error["start"] == start)]
        if len(error):
            cells["relative change of error"] = relative(error.iloc[0])
        for kind in (OVER_SEEN, OVER_OTHERS):
            there = here[(here["kind"] == kind) & (here["n_images"] == many["n_images"])]
            if (rows["kind"] == kind).any():
                cells[kind] = effect(there.iloc[0]) if len(there) else "not run"
        best = here[here["kind"] == OVER_BASELINE]
        if len(best):
            name = BASELINES.get(best["other"].iloc[0], best["other"].iloc[0].replace(":", " "))
            cells["gain over best baseline"] = f"{effect(best.iloc[0])} (over {name})"
        if len(own) > 1:
            cells[f"with {human(few['n_images'])} images"] = effect(few)
            held = crossed[(crossed["task"] == task) & (crossed["one"] == one)]
            held = held[(held["start"] == start) & (held["metric"] == "auroc")]["holds"]
            passed = held.iloc[0] if len(held) else np.nan
            cells["better than base model from"] = (
                human(passed) if passed == passed else "no size on"
            )
        found.append(cells)
    return pd.DataFrame(found).fillna("").set_index("task") if found else pd.DataFrame()


def label_rows(table: pd.DataFrame, task: str, metric: str = "auroc") -> pd.DataFrame:
    """Return a task's labels, of each base model and of each paradigm's largest subset, first seed.

    Columns label (with its positives), series, value, low, high; labels by their best value.
    """
    rows = table[(table["stage"] == "classify") & (table["task"] == task)]
    rows = rows[(rows["metric"] == metric) & (rows["label"] != "macro") & rows["value"].notna()]
    based = rows["base"].fillna("") != ""
    others = rows["trained_on"].notna() & (rows["trained_on"] != rows["institution"])
    tops = rows[based & ~others & (rows["paradigm"] != "control")].sort_values("seed")
    tops = tops[tops["n_images"] == tops.groupby("paradigm")["n_images"].transform("max")]
    bases = rows[rows["run"].str.startswith("base-") & (rows["paradigm"] != "control")]
    sizes = tops["n_images"].map(human).astype(str)
    named = [
        bases.assign(series="base model, " + bases["paradigm"]),
        tops.assign(series=tops["paradigm"] + ", " + sizes + " images"),
    ]
    rows = pd.concat(named).drop_duplicates(["series", "label"])
    rows = rows.sort_values("value", ascending=False, kind="stable")
    counted = [f"{phrase(r.label)} ({r.positives:,.0f} of {r.n:,.0f})" for r in rows.itertuples()]
    rows = rows.assign(label=counted)[["label", "series", "value", "low", "high"]]
    return rows.reset_index(drop=True)


def ends_of_records(table: pd.DataFrame) -> pd.DataFrame:
    """Return records of base models, baselines, and each paradigm's smallest and largest subset."""
    trained = (table["base"].fillna("") != "") & (table["paradigm"] != "control")
    own = table[trained]
    sizes = own.groupby(["task", "paradigm", "base", "data"])["n_images"]
    ends = (own["n_images"] == sizes.transform("min")) | (own["n_images"] == sizes.transform("max"))
    return table[~trained | ends.reindex(table.index, fill_value=False)]


FAMILIES: dict[str, tuple[str, dict[tuple[str, str], str]]] = {
    "segmentation": (
        "Lines and tubes, segmented",
        {
            ("macro", "dice"): "Dice",
            ("macro", "cl_dice"): "clDice",
            ("macro", "missed"): "share missed",
            ("macro", "tip_error_mm"): "tip error, mm (median)",
        },
    ),
    "continuity": (
        "Continuity: does a patch at a tube's tip resemble the rest of the tube? (AUROC)",
        {
            ("layer-2", "auroc"): "features of the second last layer",
            ("layer-1", "auroc"): "features of the last layer",
        },
    ),
    "reports": (
        "Reports, generated",
        {
            ("findings", "f1_micro"): "findings, micro F1",
            ("lines_tubes", "f1_micro"): "lines and tubes, micro F1",
            ("all", "rouge_l"): "ROUGE-L",
            ("all", "bleu_4"): "BLEU-4",
            ("other patient: findings", "f1_micro"): "another patient's image: findings, micro F1",
            ("random report: findings", "f1_micro"): "a random report: findings, micro F1",
        },
    ),
    "retrieval": (
        "Retrieval",
        {
            (way, "recall@5"): f"{way.replace('_', ' ')}, R@5"
            for way in ("image_to_text", "text_to_image")
        },
    ),
    "zero_shot": ("Zero-shot, by prompts", {("macro", "auroc"): "macro AUROC"}),
}


def family_table(
    table: pd.DataFrame, task: str, columns: Mapping[tuple[str, str], str] | None = None
) -> pd.DataFrame:
    """Return a task of ``FAMILIES``, one row for each encoder; empty where it was not run.

    A cell is the value with its interval or, with several seeds, their mean and range.
    """
    columns = FAMILIES[task][1] if columns is None else columns
    rows = table[(table["task"] == task) & table["value"].notna()]
    rows = rows[~rows["run"].str.startswith("shuffled-")]
    rows = rows.assign(
        column=[columns.get(key) for key in zip(rows["label"], rows["metric"], strict=True)],
        encoder=[_named(row) for row in rows.itertuples()],
        n_images=rows["n_images"].where(rows["base"].fillna("") != "", 0),
    )
    rows = rows[rows["column"].notna()]
    if rows.empty:
        return pd.DataFrame()
    found = []
    for (n, encoder, column), own in rows.groupby(["n_images", "encoder", "column"], dropna=False):
        first, mean = own.iloc[0], own["value"].mean()
        least, most = own["value"].min(), own["value"].max()
        text = f"{mean:.3f} ({least:.3f} to {most:.3f}, {len(own)} seeds)"
        if len(own) == 1:
            text = interval(first["value"], first["low"], first["high"])
        if first["metric"] == "tip_error_mm":
            text = f"{mean:.0f}"
        found.append({"n": n, "encoder": encoder, "column": column, "text": text})
    wide = pd.DataFrame(found).pivot_table(
        index=["n", "encoder"], columns="column", values="text", aggfunc="first"
    )
    shown = [name for name in columns.values() if name in wide]
    return _headed(wide.droplevel(0)[shown].fillna(""))


def other_institutions(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return (title, table) of each classification task at another institution, "TASK@DATA"."""
    found = []
    for task in sorted(table["task"].dropna().unique()):
        own, _, where = task.partition("@")
        if where and own in TASKS:
            columns = {("macro", "auroc"): "macro AUROC"}
            title = f"{TASKS[own]} at another institution ({where})"
            found.append((title, family_table(table, task, columns)))
    return [(title, rows) for title, rows in found if len(rows)]


def _named(row: Any) -> str:
    """Return what the encoder of a row of records is called."""
    if row.paradigm == "control":
        kind, _, of = str(row.encoder).partition(":")
        return f"random weights of {of}" if kind == "random" else BASELINES.get(kind, row.encoder)
    if not row.base or row.base != row.base:
        name = re.sub("-[0-9a-f]{6}$", "", row.run).removeprefix("base-")
        return f"base model {name}"
    others = row.trained_on == row.trained_on and row.trained_on not in (None, row.institution)
    return f"{row.paradigm}{' (control)' * others}, {human(row.n_images)} images"


def _headed(wide: pd.DataFrame) -> pd.DataFrame:
    """Move the name of the index to the corner, so that there is one row of headings."""
    return wide.rename_axis(index=None, columns=wide.index.name)


# ---- test sets -----------------------------------------------------------------------------------
def tested(table: pd.DataFrame, *tasks: str) -> str:
    """Return the test images, patients and positives by label of ``tasks`` (all if none is given).

    Labels too few to evaluate are named.
    """
    names = tasks or table["task"].dropna().unique()
    return " ".join(filter(None, (_tested(table, task) for task in names)))


def _tested(table: pd.DataFrame, task: str) -> str:
    own, _, where = task.partition("@")
    rows = table[(table["task"] == task) & table["n"].notna()]
    rows = rows[~rows["label"].astype(str).str.contains(": ")]  # baselines of reports
    if own == "reports":
        rows = rows[~rows["label"].isin(["findings", "lines_tubes", "all"])]
    if rows.empty:
        return ""
    name = TITLES.get(own, phrase(own).capitalize()) + (f" ({where})" if where else "")
    few = rows["label"].ne("macro") & (rows["positives"] < LEAST)
    few &= own in ("segmentation", "reports")
    if "note" in rows:
        few |= rows["note"].astype(str).str.startswith(TOO_FEW)
    kept, said = rows[~few & rows["value"].notna()], []
    if len(kept):
        what = {"reports": "reports", "continuity": "tubes"}.get(own, "images")
        n = _range(kept["n"] if own != "segmentation" else kept.groupby("run")["n"].max())
        positives = "" if own == "continuity" else _positives(kept)
        said.append(f"{name}: {n} test {what}{_patients(kept)}{positives}.")
    lost = rows[few & (rows["label"] != "macro")].drop_duplicates("label")
    if len(lost):
        each = (f"{_label(r.label)} ({r.positives:.0f} of {r.n:.0f})" for r in lost.itertuples())
        said.append(f"{name}, {TOO_FEW}: {', '.join(each)}.")
    return " ".join(said)


def _label(name: str) -> str:
    return phrase(re.sub("^(malposition|right|zero_shot):", "", name))


def _range(values: Any) -> str:
    """Return the smallest and the largest of some counts, or the one that there is."""
    known = sorted({int(value) for value in values.dropna()})
    if not known:
        return ""
    return f"{known[0]:,}" if known[0] == known[-1] else f"{known[0]:,} to {known[-1]:,}"


def _patients(rows: pd.DataFrame) -> str:
    """Return the number of test patients, from the records or from the stored scores."""
    count = _range(rows["n_patients"]) if "n_patients" in rows else ""
    folder = Path(str(rows["folder"].iloc[0]))
    if not count and rows["task"].iloc[0] != "continuity" and (folder / "scores.parquet").is_file():
        count = f"{results.kept_scores(folder)['patient_id'].nunique():,}"
    return f" of {count} patients" if count else ""


def _positives(rows: pd.DataFrame) -> str:
    """Return the positives of each label."""
    known = rows[(rows["label"] != "macro") & rows["positives"].notna()]
    each = known.groupby("label", sort=False)["positives"].max()
    listed = ", ".join(f"{_label(name)} {count:,.0f}" for name, count in each.items())
    return f"; positives: {listed}" if listed else ""


# ---- reports -------------------------------------------------------------------------------------
def generated_reports(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return (encoder, its reports.parquet) of base models and each paradigm's largest subset.

    Only of runs on this machine, because recorded studies keep no reports, and only where the terms
    of the data set allow its images to be shown.
    """
    from cxrstudy.data.images import open_prepared

    rows = table[(table["stage"] == "report") & (table["paradigm"] != "control")]
    rows = rows.drop_duplicates("run").sort_values(["n_images", "seed"])
    rows = rows[[(Path(folder) / "reports.parquet").is_file() for folder in rows["folder"]]]
    last = rows.groupby(["paradigm", "base"], dropna=False)["n_images"].transform("max")
    rows = rows[rows["n_images"].fillna(0) == last.fillna(0)]
    found = []
    for row in rows.drop_duplicates(["paradigm", "base"]).itertuples():
        data = results.read_record(row.folder)["parameters"]["data"]
        if data and open_prepared(study.resolve(data)).info["show_images"]:
            found.append((_named(row), pd.read_parquet(Path(row.folder) / "reports.parquet")))
    return found
