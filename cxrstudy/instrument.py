"""What the synthetic institution's card and gallery say of it: rates with their sources, calibration, speed.

``python -m cxrstudy.instrument`` fills the card's blocks anew; a test fails while they differ from what is computed, or
while the calibration was measured on another generator.
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

LEARNABLE = 0.75  # AUROC above which a device counts as learnable at a size


def calibration() -> pd.DataFrame:
    """``data_cards/synthetic_calibration.csv``, as ``tests/benchmarks/calibrate_synthetic.py`` wrote it."""
    return pd.read_csv(
        study.root() / "data_cards" / "synthetic_calibration.csv", dtype={"generator": str}
    )


def present(batch: synthetic.Batch, row: int) -> str:
    """The labels of one image in words, misplaced devices said to be so."""
    wrong = [name for k, name in enumerate(DEVICES) if batch.malpositioned[row, k]]
    names = [
        phrase(n) + " (misplaced)" * (n in wrong)
        for k, n in enumerate(LABELS)
        if batch.labels[row, k]
    ]
    return ", ".join(names) or "nothing"


def table(rows: list[tuple], *columns: str) -> pd.DataFrame:
    """Rows of text under these headings, the first of them as the index."""
    return pd.DataFrame(rows, columns=list(columns)).set_index(columns[0])


def markdown(shown: pd.DataFrame) -> str:
    """A table as the card writes it."""
    columns = [str(shown.index.name), *shown.columns]
    rows = [f"| {' | '.join(map(str, row))} |" for row in shown.itertuples()]
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows])


def described(count: int = 10) -> pd.DataFrame:
    """Images of the institution in words: what is so, what the labels say, what the report says."""
    told = synthetic.describe(range(0, 61 * count, 61))
    rows = []
    for k in range(count):
        recorded = ", ".join(
            phrase(n) for n, v in zip(LABELS, told.reported[k], strict=True) if v == 1
        )
        who = f"{told.view[k]}, {told.sex[k]}, {told.age[k]:.0f} y"
        rows.append((f"{61 * k}: {who}", present(told, k), recorded or "none", told.report[k]))
    return table(rows, "image", "what is so", "labels recorded as present", "report")


def tip_rules() -> pd.DataFrame:
    """Where each device's tip must lie."""
    rows = []
    for name, (whence, low, high, (mean, sd), wrong) in zip(DEVICES, devices.RULES, strict=True):
        out = " or ".join(dict.fromkeys(f"{a:g} to {b:g}" for a, b in wrong))
        source = institution.SOURCES.get(f"{name} tip", "assumed")
        rows.append(
            (phrase(name), f"{low:g} to {high:g} {whence}", f"{mean:g} ({sd:g})", out, source)
        )
    return table(
        rows, "device", "well placed, mm", "drawn: mean (sd)", "drawn where misplaced", "source"
    )


def rates() -> pd.DataFrame:
    """Every rate of the study's institution, with its source or the word assumed."""
    site = institution.institution("study")
    rows: list[tuple] = []

    def line(name: str, value: object, what: str) -> None:
        shown = ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
        rows.append((name, shown, what, institution.SOURCES.get(name, "assumed")))

    for field in fields(site):
        value = getattr(site, field.name)
        if field.name in ("finding_rates", "device_rates"):
            for name, each in value.items():
                line(phrase(name), each, "exams: ambulatory, ward, intensive care")
        elif "what" in field.metadata:
            line(field.name, value, field.metadata["what"])
    return table(rows, "rate", "value", "of what", "source")


def labels_table() -> pd.DataFrame:
    """AUROC of pixels and of a supervised network, label by label."""
    measured = calibration().set_index(["measure", "label"])
    columns = {"pixels": "pixels", "supervised": "network", "pixels, AP only": "pixels, AP only"}
    columns |= {"supervised, AP only": "network, AP only"}
    share = dict(zip(LABELS, synthetic.describe(range(20_000)).labels.mean(0), strict=True))
    rows = []
    for name in (*FINDINGS, "findings", *DEVICES, "devices"):
        cells = [
            _cell(measured.loc[(m, name)]) if (m, name) in measured.index else "" for m in columns
        ]
        title = f"all {name}" if name in ("findings", "devices") else phrase(name)
        rows.append((title, f"{share[name]:.3f}" if name in share else "", *cells))
    return table(rows, "label", "prevalence", *columns.values())


def sizes_table() -> pd.DataFrame:
    """AUROC of a supervised network by image size, and the size from which a device is learnable."""
    measured, shown = calibration(), []
    by_size = measured[measured["measure"] == "supervised by size"]
    faint = measured[measured["measure"] == "supervised, faint"].set_index("label")
    sizes = sorted(by_size["px"].unique())
    for name in DEVICES:
        rows = by_size[by_size["label"] == name].set_index("px").loc[sizes]
        first = rows.index[rows["low"] > LEARNABLE]
        start = f"{first[0]:g} px" if len(first) else f"more than {sizes[-1]:g} px"
        shown.append(
            (
                phrase(name),
                *(_cell(row) for _, row in rows.iterrows()),
                start,
                _cell(faint.loc[name]),
            )
        )
    return table(shown, "device", *(f"{px:g} px" for px in sizes), "learnable from", "faint, 64 px")


def _cell(row: pd.Series) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def speed() -> str:
    """How fast x-rays are drawn, beside the training step that eats them (Markdown)."""
    measured = calibration()
    drawn = measured[measured["measure"] == "images a second drawn"]
    trained = measured[measured["measure"] == "images a second trained"].iloc[0]
    rates_ = ", ".join(f"{row['value']:,.0f} at {row['px']:g} px" for _, row in drawn.iterrows())
    share = drawn[drawn["px"] == trained["px"]]["value"].iloc[0] / trained["value"]
    return (
        f"One thread draws {rates_} images a second; a training step of `{trained['label']}` takes "
        f"{trained['value']:,.0f} at {trained['px']:g} px: {share:.1f} times as slow. A data run therefore draws each "
        "image once, into a memory-mapped array that bears the generator's version."
    )


def turing() -> str:
    """How well a small network tells real from synthetic (Markdown)."""
    rows = calibration()
    rows = rows[rows["measure"] == "turing"]
    if rows.empty:
        return "*Not measured: no real x-rays were at hand when the calibration was made.*"
    row = rows.iloc[0]
    return (
        f"A small network, trained on three quarters of {row['tested']:.0f} x-rays at {row['px']:g} px and tested on "
        f"the rest in turn, tells real (ChestX-ray14) from synthetic with an AUROC of {_cell(row)}, although views, "
        "size and every image's histogram were made equal (0.5 is guessing, 1 is never wrong): the honest distance "
        "between the two."
    )


TABLES = {"rates": rates, "tips": tip_rules, "labels": labels_table, "sizes": sizes_table}
SENTENCES = {"speed": speed, "turing": turing}


def card() -> Path:
    """The synthetic institution's data card."""
    return study.root() / "data_cards" / "synthetic.md"


def filled(text: str) -> str:
    """A card's text with every block between ``<!-- NAME -->`` and ``<!-- /NAME -->`` computed anew."""
    blocks = {name: markdown(block()) for name, block in TABLES.items()}
    for name, block in (
        blocks | {name: sentence() for name, sentence in SENTENCES.items()}
    ).items():
        new = f"<!-- {name} -->\n{block}\n<!-- /{name} -->"
        old = re.search(rf"<!-- {name} -->\n.*?<!-- /{name} -->", text, flags=re.DOTALL)
        if not old:
            raise ValueError(f"{card()}: no block <!-- {name} --> ... <!-- /{name} -->")
        text = text.replace(old[0], new)
    return text


if __name__ == "__main__":
    write_text(card(), filled(card().read_text(encoding="utf-8")))
