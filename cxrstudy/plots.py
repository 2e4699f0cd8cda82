"""Every figure, as a function of tidy tables or arrays; shown as inline SVG with alternative text.

Colours are colour-blind safe and never alone: each paradigm has its marker and line style too.
"""

import html
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from cxrstudy.data.reports import extract_mentions
from cxrstudy.data.vocabulary import phrase
from cxrstudy.memo import remembered
from cxrstudy.results import window
from cxrstudy.scaling.ladders import abroad, continued, points, reference
from cxrstudy.shown import COLOURS, STYLE, Shown, human, nothing, show
from cxrstudy.shown import words as words

MEASURES = {"auroc": "AUROC", "dice": "Dice", "cl_dice": "clDice", "f1_micro": "micro F1"}
TASKS = {"findings": "Findings", "lines_tubes": "Lines and tubes"}


def _log_ticks(axes: Any, values: np.ndarray, apart: float = 0.09) -> None:
    """Label the ``values`` on a log axis: both ends, and between them those ``apart`` (a share of its length); a small
    tick without a number marks the rest."""
    axes.set_xscale("log")
    low, high = np.log(axes.get_xlim())
    labelled = spaced(np.log(np.unique(values)), apart * (high - low))
    axes.xaxis.set_major_locator(FixedLocator(np.unique(values)[labelled]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))
    axes.xaxis.set_minor_locator(FixedLocator(np.unique(values)[~labelled]))
    axes.xaxis.set_minor_formatter(NullFormatter())


def spaced(places: np.ndarray, apart: float) -> np.ndarray:
    """Which of ascending ``places`` to keep so that any two are ``apart`` at least: the last, then from the first."""
    kept = np.zeros(len(places), dtype=bool)
    kept[-1:] = True
    for k in range(len(places) - 1):
        kept[k] = np.abs(places[kept] - places[k]).min() >= apart
    return kept


@remembered
def scaling(
    table: pd.DataFrame, curves: pd.DataFrame, *, metric: str = "auroc", title: str = ""
) -> Shown:
    """Metric against n_images by paradigm, a panel a task: the mean over seeds with its interval over patients, each
    seed beside it, the fitted law with its band, the base as a solid horizontal line, controls as dashed ones."""
    ladder = points(table, metric)
    tasks = [task for task in TASKS if (ladder["task"] == task).any()]
    figure, panels = plt.subplots(len(tasks), 1, figsize=(7.2, 3.7 * len(tasks)), squeeze=False)
    said = []
    for axes, task in zip(panels[:, 0], tasks, strict=True):
        lines = reference(table, task, metric)
        law = curves[curves["task"] == task]
        said += _ladder(
            axes, ladder[ladder["task"] == task], lines, law, TASKS[task], f"macro {metric.upper()}"
        )
    if title:
        figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return show(
        figure,
        f"{title} Macro {metric.upper()} against the number of in-house images: {'; '.join(said)}.",
    )


@remembered
def families(
    table: pd.DataFrame, wanted: dict[str, tuple[str, str, str]], *, title: str = ""
) -> Shown | None:
    """As ``scaling``, for other task families: a panel each of ``wanted`` (its title: task, label, metric).

    None where no encoder continued on several sizes was judged by any of them.
    """
    panels = []
    for name, (task, label, metric) in wanted.items():
        rows = table[
            (table["task"] == task) & (table["label"] == label) & (table["metric"] == metric)
        ]
        rows = rows[rows["value"].notna()]
        own = continued(rows)
        if rows.loc[own, "n_images"].nunique() > 1:
            panels.append((name, metric, rows[own].assign(task=name), rows[~own]))
    if not panels:
        return None
    none = pd.DataFrame(columns=["paradigm", "n_images", "value", "low", "high"])
    figure, grid = plt.subplots(len(panels), 1, figsize=(7.2, 3.4 * len(panels)), squeeze=False)
    said = []
    for axes, (name, metric, rows, lines) in zip(grid[:, 0], panels, strict=True):
        said += _ladder(axes, rows, lines, none, name, MEASURES.get(metric, metric))
    if title:
        figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return show(figure, f"{title} Against the number of in-house images: {'; '.join(said)}.")


def _ladder(
    axes: Any, rows: pd.DataFrame, lines: pd.DataFrame, law: pd.DataFrame, name: str, measure: str
) -> list[str]:
    """One panel; what it shows, in words."""
    said = []
    for paradigm, group in rows.groupby("paradigm"):
        colour, marker, line = STYLE[str(paradigm)]
        aside = 1 + 0.04 * (list(STYLE).index(str(paradigm)) - 0.5)  # so that bars do not hide
        mean = group.groupby("n_images")[["value", "low", "high"]].mean()
        errors = np.abs(mean[["low", "high"]].to_numpy().T - mean["value"].to_numpy())
        style = {"color": colour, "capsize": 2, "label": paradigm, "lw": 1, "ms": 6}
        axes.errorbar(mean.index * aside, mean["value"], yerr=errors, fmt=marker, **style)
        if len(group) > len(mean):
            axes.plot(
                group["n_images"] * aside * 1.03,
                group["value"],
                marker,
                color=colour,
                ms=3,
                mfc="none",
                mew=0.7,
            )
        fitted = law[law["paradigm"] == paradigm]
        if len(fitted):
            axes.plot(fitted["n_images"], fitted["value"], line, color=colour, lw=1.4)
            axes.fill_between(
                fitted["n_images"], fitted["low"], fitted["high"], color=colour, alpha=0.13, lw=0
            )
        elif len(mean) > 1:
            axes.plot(mean.index * aside, mean["value"], line, color=colour, lw=0.8, alpha=0.6)
        said.append(
            f"{name} {paradigm} from {mean['value'].iloc[0]:.3f} to {mean['value'].iloc[-1]:.3f}"
        )
    shown = lines[
        ~lines["encoder"].astype(str).str.startswith("shuffled")
    ]  # 0.5, and no line to compare with
    several = (shown["paradigm"] != "control").sum() > 1
    near = np.concatenate(
        [rows["low"], rows["high"], shown.loc[shown["paradigm"] != "control", "value"]]
    )
    span = max(0.03, np.ptp(near[~np.isnan(near)]))
    away = shown["value"] < np.nanmin(near) - span  # it would squash all others
    seen = np.concatenate([near, shown.loc[~away, "value"]])
    room = max(0.01, 0.08 * np.ptp(seen[~np.isnan(seen)]))
    bottom, top = np.nanmin(seen) - room, min(1.0, np.nanmax(seen) + room)
    axes.set_ylim(bottom, top)
    height = bottom - 1.0
    for row in shown.assign(abroad=abroad(shown)).sort_values("value").itertuples():
        is_base = row.paradigm != "control" and not row.abroad
        style = (
            {"color": "#222", "lw": 1.6}
            if is_base
            else {"color": "#666", "lw": 0.9, "ls": (0, (2, 2))}
        )
        if row.value >= bottom:
            axes.axhline(row.value, **style)
        of = f"{row.paradigm} " if several else ""
        word = f"{of}base, not continued" if is_base else str(row.encoder).replace(":", " ")
        if row.abroad:  # went on elsewhere: what more of the same costs and brings
            word = f"{row.paradigm} on {str(row.trained_on).removeprefix('synthetic:')}"
        said.append(f"{name} {word} {row.value:.3f}")
        if row.value < bottom:
            word = f"below: {word} {row.value:.3f}"
        height = max(
            row.value, bottom, height + 0.05 * (top - bottom)
        )  # labels of near lines are set apart
        where: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": ("axes fraction", "data"),
        }
        thin = {
            "arrowstyle": "-",
            "lw": 0.6,
            "color": "#777",
            "relpos": (0, 0.5),
            "shrinkA": 0,
            "shrinkB": 0,
        }
        where |= {"ha": "left", "va": "center", "annotation_clip": False}
        where |= {"arrowprops": thin} if row.value >= bottom else {}
        axes.annotate(
            word, (1.0, max(row.value, bottom)), (1.035, height), fontsize=8, color="#222", **where
        )
    _log_ticks(axes, rows["n_images"].to_numpy())
    axes.set(title=name, xlabel="in-house images (log scale)", ylabel=measure)
    axes.legend(loc="best", fontsize=8, frameon=True)
    axes.grid(alpha=0.25)
    return said


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
    _log_ticks(axes, table["patients"].to_numpy())
    axes.set(xlabel="labelled patients (log scale)", ylabel="macro AUROC", title=title)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return show(figure, f"{title} Macro AUROC by labelled patients: {'; '.join(said)}.")


def attention(
    images: np.ndarray, shares: np.ndarray, labels: list[str], *, title: str = ""
) -> Shown:
    """Where a probe looks: images (N,H,W), each under a label's share of attention on its T patches, shares (N,T)."""
    side = int(shares.shape[1] ** 0.5)
    figure, panels = plt.subplots(1, len(images), figsize=(2.5 * len(images), 2.8), squeeze=False)
    for axes, image, share, label in zip(panels[0], images, shares, labels, strict=True):
        box = (0, image.shape[1], image.shape[0], 0)
        axes.imshow(image, cmap="gray", extent=box)
        heat = share.reshape(side, side) / share.max()
        axes.imshow(heat, cmap="magma", alpha=0.45, extent=box, interpolation="nearest")
        axes.set_title(phrase(label), fontsize=9)
        axes.axis("off")
    figure.tight_layout()
    most = ", ".join(
        f"{phrase(n)} {share.max():.0%} on one patch"
        for n, share in zip(labels, shares, strict=True)
    )
    return show(
        figure, f"{title} Attention of the probe over {side} x {side} patches: {most}.", raster=True
    )


@remembered
def beside(rows: pd.DataFrame, *, xlabel: str, title: str = "", line: float | None = None) -> Shown:
    """Several series of one quantity, a row a ``label``: ``value`` with the interval ``low`` to ``high`` where there is
    one, a colour and marker a ``series``; ``line`` is a value to compare with."""
    labels, series = list(dict.fromkeys(rows["label"])), list(dict.fromkeys(rows["series"]))
    figure, axes = plt.subplots(figsize=(7.2, 0.9 + (0.12 + 0.16 * len(series)) * len(labels)))
    for k, name in enumerate(series):
        own = rows[rows["series"] == name]
        place = np.array([labels.index(label) for label in own["label"]]) + 0.7 * (
            (k + 0.5) / len(series) - 0.5
        )
        colour, marker = COLOURS[k % 10], "osD^vPX*"[k % 8]
        words = str(name).split(", ")
        for paradigm in STYLE.keys() & words:  # as in every other figure; hollow: its base
            colour, marker, _ = STYLE[paradigm]
        axes.hlines(place, own["low"], own["high"], color=colour, lw=1.6)
        axes.plot(
            own["value"],
            place,
            marker,
            color=colour,
            ms=5,
            label=name,
            mfc="#fff" if "base" in words else colour,
        )
    if line is not None:
        axes.axvline(line, color="#666", lw=0.9, ls=(0, (2, 2)))
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set(xlabel=xlabel, title=title)
    axes.grid(axis="x", alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    said = [
        f"{row.label}, {row.series} {row.value:.3f}"
        for row in rows.itertuples()
        if pd.notna(row.value)
    ]
    return show(figure, f"{title} {xlabel}: {'; '.join(said) or 'nothing to show'}.")
