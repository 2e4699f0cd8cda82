"""The data-quality page: what ingests counted, formatted. Counts under ten are not shown."""

import json
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cxrstudy import sources
from cxrstudy.data.vocabulary import phrase
from cxrstudy.numbers import SMALL, few
from cxrstudy.shown import COLOURS, Shown, nothing, show, words

HIDDEN, FEW = "hidden", few(1)
WIDE = 46  # characters of a line in the flow diagram
SHOWN = 10  # rows of a table of values
Counts = Mapping[str, int]


def ingests() -> list[tuple[str, dict[str, Any], Path | None]]:
    """Return (name, quality.json, ingest folder) of each ingest; no folder if it is recorded.

    Of a damaged file only ``damaged`` is known, the sentence to show.
    """
    found: list[tuple[str, dict[str, Any], Path | None]] = []
    for path in sources.ingests():
        folder = path.parent if path.name == "quality.json" else None
        name = f"{folder.name}, on this machine" if folder else f"{path.stem}, recorded"
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if "flow" not in facts or "images" not in facts:
                raise ValueError("it was cut short")
        except ValueError as error:
            facts = {"damaged": f"{path.name} cannot be read ({error}): run the ingest again."}
        found.append((name, facts, folder))
    return found


def cells(counts: Counts) -> dict[str, str]:
    """Return counts as text. Those under ten are not shown, and never one alone is hidden.

    Of a single one, the total would tell it: the next smallest is then hidden too.
    """
    low = [name for name, n in counts.items() if 0 < n < SMALL]
    others = sorted((n, name) for name, n in counts.items() if n >= SMALL)
    also = {others[0][1]} if len(low) == 1 and others else set()
    return {
        name: FEW if name in low else HIDDEN if name in also else f"{n:,}"
        for name, n in counts.items()
    }


# ---- figures -------------------------------------------------------------------------------------
def flow(facts: Mapping[str, Any]) -> Shown:
    """Return a flow diagram, as CLAIM asks for: what each step left, and what it dropped."""
    steps = [(step["step"], left, cells(step["dropped"])) for step, left in _left(facts["flow"])]
    boxes = []
    for name, left, dropped in steps:
        aside = "\n".join(textwrap.fill(f"{why}: {n}", WIDE) for why, n in dropped.items())
        boxes.append((textwrap.fill(f"{name}: {left}", WIDE), _plain(aside)))
    heights = [max(left.count("\n"), right.count("\n")) + 2.6 for left, right in boxes]
    figure, axes = plt.subplots(figsize=(8.4, 0.19 * sum(heights)))
    axes.set(xlim=(0, 1), ylim=(-sum(heights), 0))
    axes.axis("off")
    style: dict[str, Any] = {"fontsize": 8, "va": "center", "ha": "left"}
    frame: dict[str, Any] = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": COLOURS[0]}
    top = 0.0
    middles = []
    for (left, right), height in zip(boxes, heights, strict=True):
        middles.append(top - height / 2)
        axes.text(0.02, middles[-1], _plain(left), bbox=frame, **style)
        if right:
            axes.text(0.52, middles[-1], right, bbox=frame | {"ec": COLOURS[3]}, **style)
            _arrow(axes, (0.44, middles[-1]), (0.5, middles[-1]))
        top -= height
    for above, below in pairwise(middles):
        _arrow(axes, (0.2, above - 0.9), (0.2, below + 0.9))
    said = [
        f"{name}: {left}" + "".join(f"; dropped, {why}: {n}" for why, n in dropped.items())
        for name, left, dropped in steps
    ]
    return show(figure, f"Flow of files and images. {'. '.join(said)}.")


def _left(steps: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Return each step and what it left; not where the difference would tell a count under ten."""
    low = [0 < sum(step["dropped"].values()) < SMALL for step in steps]
    hide = {k if k < len(steps) - 1 else k - 1 for k, is_low in enumerate(low) if is_low}
    return [(step, HIDDEN if k in hide else f"{step['left']:,}") for k, step in enumerate(steps)]


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "->", "color": "#444"})


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # no formula


def bars(counts: Counts, what: str) -> Shown:
    """Return a bar a band; bands under ten have none, and are named below."""
    counts = {name: n for name, n in counts.items() if n or name != "unknown"}
    written = cells(counts)
    if not any(counts.values()):
        return nothing(f"{what}:", "not known.")
    figure, axes = plt.subplots(figsize=(6.4, 2.6))
    heights = [0 if written[name] in (FEW, HIDDEN) else n for name, n in counts.items()]
    axes.bar(range(len(counts)), heights, color=COLOURS[0])
    for k, name in enumerate(counts):
        if written[name] in (FEW, HIDDEN):
            axes.text(k, 0, written[name], rotation=90, fontsize=7, ha="center", va="bottom")
    axes.set_xticks(range(len(counts)), list(counts), rotation=40, ha="right", fontsize=8)
    axes.set_ylabel("images" if "report" not in what.lower() else "reports")
    axes.set_title(what, fontsize=10)
    said = ", ".join(f"{name}: {n}" for name, n in written.items())
    return show(figure, f"{what}. {said}.")


def grey_values(facts: Mapping[str, Any]) -> Shown:
    """Return the share of pixels by grey value: the mean of the images, and 5% to 95% of them."""
    grey = facts["grey"]
    middle = [(a + b) / 2 for a, b in pairwise(grey["edges"])]
    figure, axes = plt.subplots(figsize=(6.4, 2.6))
    band = "5th to 95th percentile of images"
    axes.fill_between(middle, grey["low"], grey["high"], color=COLOURS[0], alpha=0.25, label=band)
    axes.plot(middle, grey["mean"], color=COLOURS[0], label="mean")
    axes.set(xlabel="grey value, 0 to 255, bone bright", ylabel="share of pixels")
    axes.legend(fontsize=8)
    axes.set_title("Grey values", fontsize=10)
    ends = f"{grey['mean'][0]:.1%} in the darkest 32nd of the scale, {grey['mean'][-1]:.1%} in the"
    return show(figure, f"Grey values: of the pixels, {ends} brightest.")


# ---- tables --------------------------------------------------------------------------------------
def table(counts: Counts, what: str, of: str = "images") -> Shown:
    """Return the most frequent values and how many images have each."""
    if not counts:
        return nothing(f"{what}:", "none.")
    first = dict(list(counts.items())[:SHOWN])
    if rest := sum(counts.values()) - sum(first.values()):
        first[f"{len(counts) - SHOWN:,} other values"] = rest
    shown = pd.DataFrame({of: cells(first)}).rename_axis(what)
    return words(shown, f"{what}: how many {of}.")


def prevalence(facts: Mapping[str, Any]) -> Shown:
    """Return each label: images where it is known, and the share of these where it is present."""
    rows = {}
    for name, counts in facts["labels"].items():
        known = counts["present"] + counts["absent"]
        is_few = min(counts["present"], counts["absent"]) < SMALL
        share = FEW if is_few else f"{counts['present'] / known:.3f}"
        rows[phrase(name)] = {"known": f"{known:,}", "share present": share}
    if not rows:
        return nothing("", "No labels: see the card.")
    where = "in columns of tables" if facts["labels_from"] == "tables" else "mined from reports"
    caption = (
        f"Labels {where}. Where fewer than {SMALL} images have or lack one, no share is given."
    )
    return words(pd.DataFrame(rows).T.rename_axis("label"), "Prevalence of labels.", caption)


def agreement(facts: Mapping[str, Any]) -> Shown:
    """Return how labels of tables agree with what the English reports say."""
    heads = {"both": "both", "report_only": "report only", "table_only": "table only"}
    heads |= {"neither": "neither"}
    rows = {}
    for name, found in facts["agreement"].items():
        counts = cells({head: found[key] for key, head in heads.items()})
        kappa = "" if found["kappa"] is None else f"{found['kappa']:.2f}"
        rows[phrase(name)] = counts | {"Cohen's kappa": kappa}
    if not rows:
        return nothing("", "Labels of tables and English reports are not both there to compare.")
    caption = "Images whose report says present or absent, and whose label in a table is known."
    return words(pd.DataFrame(rows).T.rename_axis("label"), "Agreement of labels.", caption)


def oddest(facts: Mapping[str, Any], folder: Path | None) -> Shown:
    """Return the images that resemble no other: pictures if the card allows it, else their ids."""
    odd = facts["odd"]
    if not odd:
        return nothing("", "Too few images to compare.")
    said = [f"{each['image_id']} ({each['distance']:.2f})" for each in odd]
    if folder is not None and _may_show(folder.name):
        from cxrstudy import pictures
        from cxrstudy.data.images import UnreadableImage, read_image

        found = []
        for each, caption in zip(odd, said, strict=True):
            name = each["image_id"]
            try:
                found.append((read_image(folder / "images" / name[:2] / name, 96), caption))
            except UnreadableImage:  # moved since
                continue
        if found:
            images, captions = zip(*found, strict=True)
            return pictures.images(
                np.stack(images), list(captions), title="Oddest images.", columns=8
            )
    text = "The card does not allow images here. " if folder else ""
    return nothing(f"{text}Ids, and distance to the nearest others:", "; ".join(said) + ".")


def _may_show(name: str) -> bool:
    from cxrstudy.data.cards import CardError, read_card

    try:
        return read_card(name).show_images
    except CardError:
        return False


# ---- sentences -----------------------------------------------------------------------------------
def summary(facts: Mapping[str, Any]) -> str:
    """Return what is there in a sentence or two."""
    said = (
        f"{facts['images']:,} images of {facts['patients']:,} patients in "
        f"{facts['studies']:,} studies."
    )
    if new := facts.get("new"):
        said += f" In the last ingest, {few(new['images'])} images were new."
    copies = sum(facts["duplicates"].values())
    said += f" {few(copies)} pairs of copies were found; duplicates.csv lists them."
    if notes := cells(facts.get("notes", {})):
        said += (
            f" Doubtful by their headers: {', '.join(f'{why} {n}' for why, n in notes.items())}."
        )
    looked = facts.get("contamination", {}).get("said")
    return f"{said} {looked or 'Not compared with public or other images.'}"


def views_in_words(facts: Mapping[str, Any]) -> str:
    """Return where views come from, and how good the classifier is."""
    said = f"What views rest on: {facts['evidence']['view']}."
    found = facts.get("view_classifier")
    if found and "accuracy" in found:
        said += (
            f" A probe on a shipped encoder learned from {found['n']:,} images with a known view. "
            f"By cross-validation over patients it is right in {found['accuracy']:.1%} of them. "
            f"It decides above a probability of {found['threshold']:.2f}: of the known images "
            f"{found['decided']:.0%}, right in {found['accuracy_decided'] or 0:.1%}; of the "
            f"{few(found['asked'])} unknown ones {few(found['decided_of_asked'])}."
        )
    clash = cells(facts["contradictions"])
    return said + (
        " Contradictions: " + "; ".join(f"{k}: {n}" for k, n in clash.items()) + "."
        if clash
        else ""
    )


def reports_in_words(facts: Mapping[str, Any]) -> str:
    """Return number, languages, sections and leftovers of identifiers of reports."""
    found = facts["reports"]
    if not found:
        return "No reports."

    def listed(counts: Counts) -> str:
        return ", ".join(f"{name} {n}" for name, n in cells(counts).items()) or "none"

    return (
        f"{found['images']:,} images have a report; {found['different']:,} texts differ. "
        f"Languages: {listed(found['languages'])}. Sections in {found['sections_of']:,} of them: "
        f"{listed(found['sections'])}. Identifiers found and replaced: "
        f"{listed(facts['identifiers'])}."
    )
