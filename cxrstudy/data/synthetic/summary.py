"""Summarise the synthetic institution for its data card and gallery.

``python -m cxrstudy.data.synthetic.summary`` fills the card's blocks. A test fails if they differ
from what is computed, or if the calibration was measured on another version of the generator.
"""

import re
from dataclasses import fields
from pathlib import Path

import pandas as pd

from cxrstudy import study
from cxrstudy.data import synthetic
from cxrstudy.data.synthetic import devices, institution
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, LABELS, phrase
from cxrstudy.files import write_text

LEARNABLE = 0.75  # AUROC above which a device counts as learnable at an image size
BY_ACUITY = "exams: ambulatory, ward, intensive care"


def calibration() -> pd.DataFrame:
    """Read ``synthetic_calibration.csv``, which ``calibrate_synthetic.py`` writes."""
    path = study.root() / "data_cards" / "synthetic_calibration.csv"
    return pd.read_csv(path, dtype={"generator": str})


def present_labels(batch: synthetic.Batch, row: int) -> str:
    """Return the labels of one image in words, with malpositioned devices marked."""
    wrong = [name for k, name in enumerate(DEVICES) if batch.malpositioned[row, k]]
    names = [name for k, name in enumerate(LABELS) if batch.labels[row, k]]
    return ", ".join(phrase(n) + " (malpositioned)" * (n in wrong) for n in names) or "none"


def image_caption(batch: synthetic.Batch, row: int, index: int) -> str:
    """Return the index, view, sex and age of one image."""
    return f"{index}: {batch.view[row]}, {batch.sex[row]}, {batch.age[row]:.0f} years"


def _table(rows: list[tuple], *columns: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).set_index(columns[0])


def examples_table(indices: range = range(0, 610, 61)) -> pd.DataFrame:
    """Return images of the study's institution in words: truth, structured labels, report."""
    batch = synthetic.describe(indices)
    rows = []
    for k, index in enumerate(indices):
        pairs = zip(LABELS, batch.reported[k], strict=True)
        recorded = ", ".join(phrase(name) for name, value in pairs if value == 1)
        who = image_caption(batch, k, index)
        rows.append((who, present_labels(batch, k), recorded or "none", batch.report[k]))
    return _table(rows, "image", "truth", "structured labels", "report")


def tips_table() -> pd.DataFrame:
    """Return where each device's tip must be."""
    rows = []
    for name, rule in zip(DEVICES, devices.TIP_RULES, strict=True):
        measured, low, high, (mean, sd), wrong = rule
        out = " or ".join(dict.fromkeys(f"{a:g} to {b:g}" for a, b in wrong))
        source = institution.SOURCES.get(f"{name} tip", "assumed")
        correct = f"{low:g} to {high:g} {measured}"
        rows.append((phrase(name), correct, f"{mean:g} ({sd:g})", out, source))
    return _table(
        rows, "device", "correct, mm", "drawn: mean (sd)", "drawn if malpositioned", "source"
    )


def rates_table() -> pd.DataFrame:
    """Return every rate of the study's institution, with its source or the word assumed."""
    site = institution.institution("study")
    rates: list[tuple] = []
    for field in fields(site):
        value = getattr(site, field.name)
        if field.name in ("finding_rates", "device_rates"):
            rates += [(phrase(name), each, BY_ACUITY) for name, each in value.items()]
        elif "unit" in field.metadata:
            rates.append((field.name, value, field.metadata["unit"]))
    rows = []
    for name, value, unit in rates:
        shown = ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
        rows.append((name, shown, unit, institution.SOURCES.get(name, "assumed")))
    return _table(rows, "rate", "value", "of what", "source")


def labels_table() -> pd.DataFrame:
    """Return the AUROC of pixels and of a supervised network, by label."""
    measured = calibration().set_index(["measure", "label"])
    columns = {"pixels": "pixels", "supervised": "network", "pixels, AP only": "pixels, AP only"}
    columns |= {"supervised, AP only": "network, AP only"}
    share = dict(zip(LABELS, synthetic.describe(range(20_000)).labels.mean(0), strict=True))
    rows = []
    for name in (*FINDINGS, "findings", *DEVICES, "devices"):
        keys = [(measure, name) for measure in columns]
        cells = [_interval(measured.loc[key]) if key in measured.index else "" for key in keys]
        title = f"all {name}" if name in ("findings", "devices") else phrase(name)
        rows.append((title, f"{share[name]:.3f}" if name in share else "", *cells))
    return _table(rows, "label", "prevalence", *columns.values())


def sizes_table() -> pd.DataFrame:
    """Return the AUROC of a supervised network by device and image size.

    The column "learnable from" is the smallest size at which the interval is above LEARNABLE.
    """
    measured, shown = calibration(), []
    by_size = measured[measured["measure"] == "supervised by size"]
    faint = measured[measured["measure"] == "supervised, faint"].set_index("label")
    sizes = sorted(by_size["px"].unique())
    for name in DEVICES:
        rows = by_size[by_size["label"] == name].set_index("px").loc[sizes]
        first = rows.index[rows["low"] > LEARNABLE]
        start = f"{first[0]:g} px" if len(first) else f"more than {sizes[-1]:g} px"
        cells = [_interval(row) for _, row in rows.iterrows()]
        shown.append((phrase(name), *cells, start, _interval(faint.loc[name])))
    headings = [f"{px:g} px" for px in sizes]
    return _table(shown, "device", *headings, "learnable from", "64 px, faint devices")


def _interval(row: pd.Series) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def speed_text() -> str:
    """Return how fast images are rendered and a model is trained, as Markdown."""
    measured = calibration()
    drawn = measured[measured["measure"] == "images a second drawn"]
    trained = measured[measured["measure"] == "images a second trained"].iloc[0]
    rates = ", ".join(f"{row['value']:,.0f} at {row['px']:g} px" for _, row in drawn.iterrows())
    ratio = drawn[drawn["px"] == trained["px"]]["value"].iloc[0] / trained["value"]
    return (
        f"One thread renders {rates} images per second. It trains `{trained['label']}` on "
        f"{trained['value']:,.0f} images per second at {trained['px']:g} px: rendering is "
        f"{ratio:.1f} times as fast. A data run renders each image once, into a memory-mapped "
        "array that carries the generator's version."
    )


def turing_text() -> str:
    """Return how well a small network distinguishes real from synthetic images, as Markdown."""
    rows = calibration()
    rows = rows[rows["measure"] == "turing"]
    if rows.empty:
        return "*Not measured: no real x-rays were available for the calibration.*"
    row = rows.iloc[0]
    return (
        "A small network was trained to distinguish real x-rays (ChestX-ray14) from synthetic "
        f"ones: {row['tested']:.0f} images at {row['px']:g} px, four folds. Views, size and every "
        f"image's histogram were made equal. Its AUROC is {_interval(row)}; 0.5 would be chance. "
        "Synthetic images are thus easy to distinguish from real ones."
    )


def _markdown(table: pd.DataFrame) -> str:
    columns = [str(table.index.name), *table.columns]
    rows = [f"| {' | '.join(map(str, row))} |" for row in table.itertuples()]
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows])


def card_path() -> Path:
    """Return the path of the synthetic institution's data card."""
    return study.root() / "data_cards" / "synthetic.md"


def fill_card(text: str) -> str:
    """Return a card's text with every block ``<!-- NAME -->`` ... ``<!-- /NAME -->`` filled.

    Raises:
        ValueError: the text lacks a block.
    """
    tables = {"rates": rates_table, "tips": tips_table, "labels": labels_table}
    tables |= {"sizes": sizes_table}
    blocks = {name: _markdown(table()) for name, table in tables.items()}
    for name, block in (blocks | {"speed": speed_text(), "turing": turing_text()}).items():
        new = f"<!-- {name} -->\n{block}\n<!-- /{name} -->"
        old = re.search(rf"<!-- {name} -->\n.*?<!-- /{name} -->", text, flags=re.DOTALL)
        if not old:
            raise ValueError(f"{card_path()}: no block <!-- {name} --> ... <!-- /{name} -->")
        text = text.replace(old[0], new)
    return text


if __name__ == "__main__":
    write_text(card_path(), fill_card(card_path().read_text(encoding="utf-8")))
