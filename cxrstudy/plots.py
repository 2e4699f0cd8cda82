"""Figures of single runs, for the executed notebooks; inline SVG with alternative text.

Colours are colour-blind safe and never alone: each paradigm has its marker and line style too.
"""

import html
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cxrstudy.data.reports import extract_mentions
from cxrstudy.data.vocabulary import phrase
from cxrstudy.results import window
from cxrstudy.shown import COLOURS, STYLE, Shown, log_sizes, nothing, show
from cxrstudy.shown import words as words

MEASURES = {"auroc": "AUROC", "dice": "Dice", "cl_dice": "clDice", "f1_micro": "micro F1"}
TASKS = {"findings": "Findings", "lines_tubes": "Lines and tubes"}


def forest(metrics: pd.DataFrame, *, metric: str = "auroc", title: str = "") -> Shown:
    """One encoder's labels, each with its interval and its positives among the test images, by task."""
    rows = metrics.reindex(
        columns=["task", "label", "metric", "value", "low", "high", "n", "positives"]
    )
    rows = (
        rows[(rows["metric"] == metric) & rows["value"].notna()].iloc[::-1].reset_index(drop=True)
    )
    if rows.empty:
        return nothing(title, f"No label could be evaluated by {metric.upper()}.")
    figure, axes = plt.subplots(figsize=(6.2, 0.6 + 0.3 * len(rows)))
    colours = [
        STYLE["clip"][0] if task == "findings" else STYLE["unicl"][0] for task in rows["task"]
    ]
    markers = ["o" if task == "findings" else "s" for task in rows["task"]]
    for k, row in rows.iterrows():
        axes.plot([row["low"], row["high"]], [k, k], color=colours[k], lw=2)
        axes.plot(
            row["value"], k, markers[k], color=colours[k], ms=8 if row["label"] == "macro" else 5
        )
    names = [
        f"{phrase(label)} ({TASKS.get(task, phrase(task)).lower()})"
        if label == "macro"
        else phrase(label)
        for label, task in zip(rows["label"], rows["task"], strict=True)
    ]
    counts = zip(names, rows["positives"], rows["n"], strict=True)
    names = [
        f"{name}, {k:,.0f} of {n:,.0f}" if k == k and n == n else name for name, k, n in counts
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.axvline(0.5, color="#666", lw=0.9, ls=(0, (2, 2)))
    axes.set(
        xlabel=f"{metric.upper()} with 95% interval over patients (positives of test images)",
        title=title,
    )
    axes.grid(axis="x", alpha=0.25)
    worst, best = rows.loc[rows["value"].idxmin()], rows.loc[rows["value"].idxmax()]
    alt = f"{title} {metric.upper()} of {len(rows)} labels with intervals, from {worst['label']} {worst['value']:.3f} "
    return show(figure, alt + f"to {best['label']} {best['value']:.3f}.")


def curve(table: pd.DataFrame, *, title: str = "") -> Shown:
    """Loss and learning rate of one pretraining run against samples seen."""
    figure, axes = plt.subplots(figsize=(6, 3.2))
    axes.plot(table["samples_seen"], table["loss"], color=COLOURS[0], lw=0.8, alpha=0.5)
    width = window(len(table))
    smooth = table["loss"].rolling(width, min_periods=1).mean()
    axes.plot(table["samples_seen"], smooth, color=COLOURS[0], label=f"loss ({width}-point mean)")
    rate = axes.twinx()
    rate.plot(
        table["samples_seen"], table["lr"], color="#666", ls=":", label="learning rate (right)"
    )
    rate.set_ylim(bottom=0)
    axes.set(xlabel="samples seen", ylabel="loss", title=title)
    axes.legend(handles=[*axes.lines[1:], *rate.lines], fontsize=8)
    ends = f"from {table['loss'].iloc[0]:.3f} to {smooth.iloc[-1]:.3f}"
    return show(figure, f"{title} Training loss against samples seen, {ends}.")


def checks(table: pd.DataFrame, *, title: str = "") -> Shown:
    """How held-out images fared during a run: effective rank of their features and, where it was asked, their score."""
    figure, axes = plt.subplots(figsize=(6.2, 2.8))
    axes.plot(
        table["samples_seen"],
        table["effective_rank"],
        "o-",
        color=COLOURS[0],
        label="effective rank (left)",
    )
    axes.set(xlabel="samples seen", ylabel="effective rank", title=title)
    axes.set_ylim(bottom=0)
    lines, said = (
        list(axes.lines),
        [
            f"rank from {table['effective_rank'].iloc[0]:.1f} to {table['effective_rank'].iloc[-1]:.1f}"
        ],
    )
    if "score" in table:
        right = axes.twinx()
        right.plot(
            table["samples_seen"],
            table["score"],
            "s--",
            color=COLOURS[1],
            label="neighbours' AUROC (right)",
        )
        lines += right.lines
        said.append(f"AUROC from {table['score'].iloc[0]:.3f} to {table['score'].iloc[-1]:.3f}")
    axes.legend(handles=lines, fontsize=8)
    return show(figure, f"{title} Held-out images while training: {', '.join(said)}.")


def prevalence(shares: pd.DataFrame, *, title: str = "") -> Shown:
    """Share of images with each label present, by split; ``shares`` is label x split."""
    if shares.empty:
        return nothing(title, "This data set records no labels.")
    figure, axes = plt.subplots(figsize=(6.2, 0.6 + 0.3 * len(shares)))
    for k, split in enumerate(shares.columns):
        axes.plot(
            shares[split],
            np.arange(len(shares)),
            "osD^vPX*"[k % 8],
            color=COLOURS[k % 10],
            label=split,
            ms=5,
        )
    axes.set_yticks(range(len(shares)), [phrase(name) for name in shares.index])
    axes.invert_yaxis()
    axes.set(xlabel="share of images with the label present", title=title)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    highest = shares.mean(axis=1)
    return show(
        figure,
        f"{title} Prevalence of {len(shares)} labels by split, highest {highest.idxmax()} {highest.max():.2f}.",
    )


def report_examples(reports: pd.DataFrame, *, count: int = 6, allowed: bool = True) -> Shown:
    """True and generated reports side by side, from the worst F1 to the best, marked by what both or one alone names.

    ``reports`` has truth, generated, f1 and lists of names agreed, missed and invented; a word instead where the terms
    of the data set do not allow it to be shown (``allowed``).
    """
    if not allowed:
        return Shown(
            "<p>The terms of this data set do not allow its reports to be shown here.</p>",
            "no reports shown",
        )
    looks = {
        "agreed": "background:#cfe8d5;border-bottom:2px solid #1b6b3a",
        "missed": "background:#ffe2b8;border-bottom:2px dashed #8a4b00",
        "invented": "background:#f6cfdf;border-bottom:3px double #8a1250",
    }
    looks = {kind: f"color:#111;{look}" for kind, look in looks.items()}

    def marked(row: Any, column: str) -> str:
        text, out, at = str(row[column]), "", 0
        kinds = {name: kind for kind in looks for name in row[kind]}
        for mention in sorted(extract_mentions(text), key=lambda m: m.span):
            kind, (start, end) = kinds.get(mention.name, ""), mention.span
            if kind and mention.status != "absent" and start >= at:
                out += html.escape(text[at:start])
                out += f'<mark style="{looks[kind]}" title="{kind}">{html.escape(text[start:end])}</mark>'
                at = end
        return out + html.escape(text[at:])

    def named(row: Any) -> str:
        told = [f"{kind}: {', '.join(map(phrase, row[kind]))}" for kind in looks if len(row[kind])]
        return f"F1 {row['f1']:.2f}<br>{'<br>'.join(told)}" if told else "neither names anything"

    judged = (
        reports[reports["f1"].notna()] if reports["f1"].notna().any() else reports
    )  # the rest name nothing
    ranked = judged.sort_values("f1", kind="stable").reset_index(drop=True)
    chosen = ranked.iloc[
        np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).astype(int))
    ]
    cells = [
        (marked(row, "truth"), marked(row, "generated"), named(row)) for _, row in chosen.iterrows()
    ]
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
    heads = "".join(
        f'<th scope="col">{head}</th>'
        for head in ("true report", "generated report", "named in them")
    )
    key = ", ".join(f'<mark style="{look}">{kind}</mark>' for kind, look in looks.items())
    table = '<table class="dataframe words"><caption>From the worst F1 to the best. '
    table += f"Marked: {key}</caption><thead><tr>{heads}</tr></thead>"
    return Shown(
        f"{table}<tbody>{body}</tbody></table>",
        f"{len(chosen)} generated reports beside the true ones",
    )


def roc_and_pr(scores: pd.DataFrame, labels: list[str], *, title: str = "") -> Shown:
    """ROC and precision-recall curves of some labels, from a table with ``score:LABEL`` and ``truth:LABEL``."""
    if not labels:
        return nothing(title, "No label was evaluated: there are no curves.")
    figure, panels = plt.subplots(1, 2, figsize=(9.2, 4.3))
    said = []
    for k, label in enumerate(labels):
        known = (
            scores[[f"score:{label}", f"truth:{label}"]]
            .dropna()
            .sort_values(f"score:{label}", ascending=False)
        )
        last = (
            known[f"score:{label}"].diff(-1).to_numpy() != 0
        )  # equal scores are one step of the curve
        truth = known[f"truth:{label}"].to_numpy()
        true, false = np.cumsum(truth)[last], np.cumsum(1 - truth)[last]
        if not len(truth) or not true[-1] or not false[-1]:
            continue
        style: dict[str, Any] = {
            "color": COLOURS[k % 10],
            "ls": ("-", "--", "-.", ":")[k // 10 % 4],
            "lw": 1.2,
        }
        panels[0].plot(
            np.append(0, false / false[-1]),
            np.append(0, true / true[-1]),
            **style,
            label=phrase(label),
        )
        panels[1].step(true / true[-1], true / (true + false), where="pre", **style)
        said.append(phrase(label))
    panels[0].plot([0, 1], [0, 1], color="#666", lw=0.9, ls=(0, (2, 2)))
    panels[0].set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC")
    panels[1].set(
        xlabel="sensitivity (recall)",
        ylabel="PPV (precision)",
        title="Precision and recall",
        ylim=(0, 1.02),
    )
    for axes in panels:
        axes.grid(alpha=0.25)
    figure.tight_layout()
    figure.legend(loc="center left", fontsize=8, bbox_to_anchor=(1.0, 0.5))
    return show(
        figure, f"{title} ROC and precision-recall curves of {', '.join(said) or 'no label'}."
    )


def reliability(tables: dict[str, pd.DataFrame], *, title: str = "") -> Shown:
    """Said against seen: ``calibration.reliability``'s tables by label; on the diagonal they are honest."""
    tables = {label: bins for label, bins in tables.items() if len(bins)}
    if not tables:
        return nothing(title, "No label was evaluated: there are no probabilities.")
    figure, axes = plt.subplots(figsize=(5.2, 4.6))
    said = []
    for k, (label, bins) in enumerate(tables.items()):
        colour, marker = COLOURS[k % 10], "osD^vPX*"[k % 8]
        axes.plot(
            bins["mean_predicted"],
            bins["fraction_positive"],
            f"{marker}-",
            color=colour,
            lw=0.9,
            ms=0,
            label=phrase(label),
        )
        axes.scatter(
            bins["mean_predicted"],
            bins["fraction_positive"],
            6 + 60 * bins["n"] / bins["n"].max(),
            color=colour,
            marker=marker,
        )
        apart = (
            bins["n"] * (bins["mean_predicted"] - bins["fraction_positive"]).abs()
        ).sum() / bins["n"].sum()
        said.append(f"{phrase(label)} {apart:.3f}")
    axes.plot([0, 1], [0, 1], color="#666", lw=0.9, ls=(0, (2, 2)))
    axes.set(xlabel="mean probability of a bin", ylabel="share of positives in it", title=title)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return show(figure, f"{title} Reliability; mean distance from the diagonal: {', '.join(said)}.")


def efficiency(table: pd.DataFrame, *, title: str = "") -> Shown:
    """Macro AUROC against the number of labelled patients by task; a point a draw of patients, a line their mean."""
    if table.empty:
        return nothing(title, "No label was evaluated: there is no label-efficiency curve.")
    figure, axes = plt.subplots(figsize=(6.2, 3.6))
    said = []
    for k, (task, rows) in enumerate(table.groupby("task", sort=False)):
        colour, marker = COLOURS[k % 10], "osD^vPX*"[k % 8]
        mean = rows.groupby("patients")["auroc"].mean()
        axes.plot(rows["patients"], rows["auroc"], marker, color=colour, ms=4, alpha=0.5)
        line = ("-", "--", "-.", ":")[k % 4]
        axes.plot(
            mean.index,
            mean,
            line,
            color=colour,
            lw=1.4,
            label=TASKS.get(str(task), phrase(str(task))),
        )
        said.append(
            f"{task} from {mean.iloc[0]:.3f} with {mean.index[0]} to {mean.iloc[-1]:.3f} with {mean.index[-1]}"
        )
    log_sizes(axes, table["patients"].to_numpy())
    axes.set(xlabel="labelled patients (log scale)", ylabel="macro AUROC", title=title)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return show(figure, f"{title} Macro AUROC by labelled patients: {'; '.join(said)}.")
