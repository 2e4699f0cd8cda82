"""Figures of single runs, for the executed notebooks: inline SVG with alternative text.

Colours are colour-blind safe. Each series has its own marker or line style too.
"""

import html
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cxrstudy.data.reports import extract_mentions
from cxrstudy.data.vocabulary import phrase
from cxrstudy.results import window
from cxrstudy.shown import (
    COLOURS,
    LINES,
    MARKERS,
    STYLE,
    TASKS,
    Shown,
    log_sizes,
    nothing,
    show,
)

MARKED = {  # how names in a report are marked: in both reports, in one alone
    "agreed": "color:#111;background:#cfe8d5;border-bottom:2px solid #1b6b3a",
    "missed": "color:#111;background:#ffe2b8;border-bottom:2px dashed #8a4b00",
    "invented": "color:#111;background:#f6cfdf;border-bottom:3px double #8a1250",
}


def forest(metrics: pd.DataFrame, *, metric: str = "auroc", title: str = "") -> Shown:
    """Draw an encoder's labels by task, each with its interval and number of positives.

    ``metrics``: columns task, label, metric, value, low, high, n, positives.
    """
    columns = ["task", "label", "metric", "value", "low", "high", "n", "positives"]
    rows = metrics.reindex(columns=columns)
    rows = rows[(rows["metric"] == metric) & rows["value"].notna()]
    rows = rows.iloc[::-1].reset_index(drop=True)
    if rows.empty:
        return nothing(title, f"No label could be evaluated by {metric.upper()}.")
    figure, axes = plt.subplots(figsize=(6.2, 0.6 + 0.3 * len(rows)))
    names = []
    for k, row in enumerate(rows.itertuples()):
        colour, marker, _ = STYLE["clip" if row.task == "findings" else "unicl"]
        is_macro = row.label == "macro"
        axes.plot([row.low, row.high], [k, k], color=colour, lw=2)
        axes.plot(row.value, k, marker, color=colour, ms=8 if is_macro else 5)
        of_task = f" ({TASKS.get(row.task, phrase(row.task)).lower()})" if is_macro else ""
        known = row.positives == row.positives and row.n == row.n
        counts = f", {row.positives:,.0f} of {row.n:,.0f}" if known else ""
        names.append(f"{phrase(row.label)}{of_task}{counts}")
    axes.set_yticks(range(len(rows)), names)
    axes.axvline(0.5, color="#666", lw=0.9, ls=(0, (2, 2)))
    xlabel = f"{metric.upper()} with 95% interval over patients (positives of test images)"
    axes.set(xlabel=xlabel, title=title)
    axes.grid(axis="x", alpha=0.25)
    worst, best = rows.loc[rows["value"].idxmin()], rows.loc[rows["value"].idxmax()]
    reach = f"{worst['label']} {worst['value']:.3f} to {best['label']} {best['value']:.3f}"
    alt = f"{title} {metric.upper()} of {len(rows)} labels with intervals, from {reach}."
    return show(figure, alt)


def curve(table: pd.DataFrame, *, title: str = "") -> Shown:
    """Draw loss and learning rate of a pretraining run by samples seen."""
    figure, axes = plt.subplots(figsize=(6, 3.2))
    axes.plot(table["samples_seen"], table["loss"], color=COLOURS[0], lw=0.8, alpha=0.5)
    width = window(len(table))
    smooth = table["loss"].rolling(width, min_periods=1).mean()
    axes.plot(table["samples_seen"], smooth, color=COLOURS[0], label=f"loss ({width}-point mean)")
    rate = axes.twinx()
    style: Any = {"color": "#666", "ls": ":", "label": "learning rate (right)"}
    rate.plot(table["samples_seen"], table["lr"], **style)
    rate.set_ylim(bottom=0)
    axes.set(xlabel="samples seen", ylabel="loss", title=title)
    axes.legend(handles=[*axes.lines[1:], *rate.lines], fontsize=8)
    ends = f"from {table['loss'].iloc[0]:.3f} to {smooth.iloc[-1]:.3f}"
    return show(figure, f"{title} Training loss against samples seen, {ends}.")


def checks(table: pd.DataFrame, *, title: str = "") -> Shown:
    """Draw effective rank and, if measured, AUROC of held-out images during a run."""
    figure, axes = plt.subplots(figsize=(6.2, 2.8))
    seen, rank = table["samples_seen"], table["effective_rank"]
    axes.plot(seen, rank, "o-", color=COLOURS[0], label="effective rank (left)")
    axes.set(xlabel="samples seen", ylabel="effective rank", title=title)
    axes.set_ylim(bottom=0)
    lines = list(axes.lines)
    said = [f"rank from {rank.iloc[0]:.1f} to {rank.iloc[-1]:.1f}"]
    if "score" in table:
        score, right = table["score"], axes.twinx()
        right.plot(seen, score, "s--", color=COLOURS[1], label="neighbours' AUROC (right)")
        lines += right.lines
        said.append(f"AUROC from {score.iloc[0]:.3f} to {score.iloc[-1]:.3f}")
    axes.legend(handles=lines, fontsize=8)
    return show(figure, f"{title} Held-out images while training: {', '.join(said)}.")


def probes(table: pd.DataFrame, *, kept: int, title: str = "") -> Shown:
    """Draw the validation AUROC of a run's linear probes by step; ``kept`` is the step kept."""
    figure, axes = plt.subplots(figsize=(6.2, 2.8))
    axes.plot(table["step"], table["score"], "o-", color=COLOURS[0], label="validation AUROC")
    best = float(table.loc[table["step"] == kept, "score"].iloc[0])
    style: Any = {"color": COLOURS[1], "ms": 10, "label": f"kept: step {kept:,}"}
    axes.plot([kept], [best], "*", **style)
    axes.set(xlabel="step", ylabel="macro AUROC", title=title)
    axes.legend(fontsize=8)
    said = f"{best:.3f} at step {kept:,}, which is kept; {table['score'].iloc[-1]:.3f} at the last"
    return show(figure, f"{title} Linear probes on validation patients: {said}.")


def prevalence(shares: pd.DataFrame, *, title: str = "") -> Shown:
    """Draw the share of images with each label, by split; ``shares`` is label x split."""
    if shares.empty:
        return nothing(title, "This data set records no labels.")
    figure, axes = plt.subplots(figsize=(6.2, 0.6 + 0.3 * len(shares)))
    for k, split in enumerate(shares.columns):
        style: Any = {"color": COLOURS[k % 10], "label": split, "ms": 5}
        axes.plot(shares[split], np.arange(len(shares)), MARKERS[k % 8], **style)
    axes.set_yticks(range(len(shares)), [phrase(name) for name in shares.index])
    axes.invert_yaxis()
    axes.set(xlabel="share of images with the label present", title=title)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    mean = shares.mean(axis=1)
    highest = f"highest {mean.idxmax()} {mean.max():.2f}"
    return show(figure, f"{title} Prevalence of {len(shares)} labels by split, {highest}.")


def report_examples(reports: pd.DataFrame, *, count: int = 6, allowed: bool = True) -> Shown:
    """Show true and generated reports side by side, from the worst F1 to the best.

    Names in both reports, or in one alone, are marked.

    Args:
        reports: columns truth, generated, f1, and agreed, missed, invented (lists of names).
        count: the most reports that are shown.
        allowed: False where the terms of the data set forbid it; a sentence says so.
    """
    if not allowed:
        why = "The terms of this data set do not allow its reports to be shown here."
        return Shown(f"<p>{why}</p>", "no reports shown")
    known = reports["f1"].notna()  # elsewhere neither report names anything
    ranked = reports[known] if known.any() else reports
    ranked = ranked.sort_values("f1", kind="stable").reset_index(drop=True)
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    chosen = ranked.iloc[np.unique(places.astype(int))]
    body = ""
    for _, row in chosen.iterrows():
        cells = (_marked(row, "truth"), _marked(row, "generated"), _named(row))
        body += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    titles = ("true report", "generated report", "named in them")
    heads = "".join(f'<th scope="col">{head}</th>' for head in titles)
    key = ", ".join(f'<mark style="{look}">{kind}</mark>' for kind, look in MARKED.items())
    table = '<table class="dataframe words"><caption>From the worst F1 to the best. '
    table += f"Marked: {key}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return Shown(table, f"{len(chosen)} generated reports beside the true ones")


def _marked(row: Any, column: str) -> str:
    """Return a report as HTML with the names in it marked."""
    text, out, at = str(row[column]), "", 0
    kinds = {name: kind for kind in MARKED for name in row[kind]}
    for mention in sorted(extract_mentions(text), key=lambda m: m.span):
        kind, (start, end) = kinds.get(mention.name, ""), mention.span
        if kind and mention.status != "absent" and start >= at:
            named = html.escape(text[start:end])
            out += html.escape(text[at:start])
            out += f'<mark style="{MARKED[kind]}" title="{kind}">{named}</mark>'
            at = end
    return out + html.escape(text[at:])


def _named(row: Any) -> str:
    """Return a report's F1 and the names agreed, missed and invented, as HTML."""
    told = [f"{kind}: {', '.join(map(phrase, row[kind]))}" for kind in MARKED if len(row[kind])]
    return f"F1 {row['f1']:.2f}<br>{'<br>'.join(told)}" if told else "neither names anything"


def roc_and_pr(scores: pd.DataFrame, labels: list[str], *, title: str = "") -> Shown:
    """Draw ROC and precision-recall curves of some labels.

    ``scores``: columns ``score:LABEL`` and ``truth:LABEL``; rows with unknown truth are left out.
    """
    if not labels:
        return nothing(title, "No label was evaluated: there are no curves.")
    figure, panels = plt.subplots(1, 2, figsize=(9.2, 4.3))
    said = []
    for k, label in enumerate(labels):
        score, truth_of = f"score:{label}", f"truth:{label}"
        known = scores[[score, truth_of]].dropna().sort_values(score, ascending=False)
        last = known[score].diff(-1).to_numpy() != 0  # equal scores are one step of the curve
        truth = known[truth_of].to_numpy()
        true, false = np.cumsum(truth)[last], np.cumsum(1 - truth)[last]
        if not len(truth) or not true[-1] or not false[-1]:
            continue
        style: dict[str, Any] = {"color": COLOURS[k % 10], "ls": LINES[k // 10 % 4], "lw": 1.2}
        x, y = np.append(0, false / false[-1]), np.append(0, true / true[-1])
        panels[0].plot(x, y, **style, label=phrase(label))
        panels[1].step(true / true[-1], true / (true + false), where="pre", **style)
        said.append(phrase(label))
    panels[0].plot([0, 1], [0, 1], color="#666", lw=0.9, ls=(0, (2, 2)))
    panels[0].set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC")
    panels[1].set(xlabel="sensitivity (recall)", ylabel="PPV (precision)", ylim=(0, 1.02))
    panels[1].set_title("Precision and recall")
    for axes in panels:
        axes.grid(alpha=0.25)
    figure.tight_layout()
    figure.legend(loc="center left", fontsize=8, bbox_to_anchor=(1.0, 0.5))
    which = ", ".join(said) or "no label"
    return show(figure, f"{title} ROC and precision-recall curves of {which}.")


def reliability(tables: dict[str, pd.DataFrame], *, title: str = "") -> Shown:
    """Draw the share of positives by predicted probability; the diagonal is perfect calibration.

    ``tables``: the tables of ``calibration.reliability`` by label.
    """
    tables = {label: bins for label, bins in tables.items() if len(bins)}
    if not tables:
        return nothing(title, "No label was evaluated: there are no probabilities.")
    figure, axes = plt.subplots(figsize=(5.2, 4.6))
    said = []
    for k, (label, bins) in enumerate(tables.items()):
        colour, marker = COLOURS[k % 10], MARKERS[k % 8]
        x, y, n = bins["mean_predicted"], bins["fraction_positive"], bins["n"]
        axes.plot(x, y, f"{marker}-", color=colour, lw=0.9, ms=0, label=phrase(label))
        axes.scatter(x, y, 6 + 60 * n / n.max(), color=colour, marker=marker)
        apart = (n * (x - y).abs()).sum() / n.sum()
        said.append(f"{phrase(label)} {apart:.3f}")
    axes.plot([0, 1], [0, 1], color="#666", lw=0.9, ls=(0, (2, 2)))
    axes.set(xlabel="mean probability of a bin", ylabel="share of positives in it", title=title)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return show(figure, f"{title} Reliability; mean distance from the diagonal: {', '.join(said)}.")


def efficiency(table: pd.DataFrame, *, title: str = "") -> Shown:
    """Draw macro AUROC by the number of labelled patients, for each task.

    A point is one draw of patients, the line is the mean over draws.
    """
    if table.empty:
        return nothing(title, "No label was evaluated: there is no label-efficiency curve.")
    figure, axes = plt.subplots(figsize=(6.2, 3.6))
    said = []
    for k, (task, rows) in enumerate(table.groupby("task", sort=False)):
        colour, name = COLOURS[k % 10], TASKS.get(str(task), phrase(str(task)))
        mean = rows.groupby("patients")["auroc"].mean()
        axes.plot(rows["patients"], rows["auroc"], MARKERS[k % 8], color=colour, ms=4, alpha=0.5)
        axes.plot(mean.index, mean, LINES[k % 4], color=colour, lw=1.4, label=name)
        first, last = (f"{mean.iloc[end]:.3f} with {mean.index[end]}" for end in (0, -1))
        said.append(f"{task} from {first} to {last}")
    log_sizes(axes, table["patients"].to_numpy())
    axes.set(xlabel="labelled patients (log scale)", ylabel="macro AUROC", title=title)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return show(figure, f"{title} Macro AUROC by labelled patients: {'; '.join(said)}.")
