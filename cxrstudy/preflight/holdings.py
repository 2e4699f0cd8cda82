"""What a preset's data sets hold, known from their tables alone: images, labels, reports and masks by split."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data import cards
from cxrstudy.data.manifest import assign_splits, label_array, label_names, nested_subset
from cxrstudy.marks import line_of_value

Tables = dict[
    tuple[str, str], pd.DataFrame | str
]  # a data set read once: its manifest, or why there is none
FACTS = (
    "exam",
    "scanner",
    "right:",
    "malposition:",
)  # that a query may name beside the manifest's columns
DEVIATIONS = 4.0  # of a drawn set's split from its share, at most
EXAMS = 2.5  # images of a drawn patient, which go into one split together


@dataclass(frozen=True)
class Holding:
    """One data set of a preset: ``n`` images of the ``whole`` that its table holds.

    ``manifest``: their rows with their split (empty where fractions are wrong); None where they are drawn, or there is
    a fault.
    """

    p: study.Data
    n: int = 0
    whole: int = 0
    manifest: pd.DataFrame | None = None
    fault: str = ""
    fault_of_root: bool = False
    where: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    not_understood: dict[str, Any] = field(default_factory=dict)

    @property
    def is_split(self) -> bool:
        """Whether it is known how many images are in each split."""
        return not self.fault and sums_to_one(self.p.fractions)

    @cached_property
    def labels(self) -> list[str]:
        """Names of the labels that are recorded of any image."""
        if self.manifest is None:
            return []
        return [n for n in label_names(self.manifest) if self.manifest[f"label:{n}"].notna().any()]

    @cached_property
    def reported(self) -> np.ndarray:
        """(N,) bool: which images have a report."""
        assert self.manifest is not None
        if "report" not in self.manifest:
            return np.zeros(len(self.manifest), bool)
        return self.manifest["report"].fillna("").str.strip().ne("").to_numpy()

    @cached_property
    def prompted(self) -> np.ndarray:
        """(N,) bool: which images have labels that a prompt can say: one is present, or all are known."""
        assert self.manifest is not None
        names = label_names(self.manifest)
        labels = label_array(self.manifest, names)
        return (labels == 1).any(1) | ((~np.isnan(labels)).all(1) if names else False)

    @cached_property
    def masked(self) -> np.ndarray:
        """(N,) bool: which images have the mask of a device."""
        assert self.manifest is not None
        columns = self.manifest.columns[self.manifest.columns.str.startswith("mask:")]
        return self.manifest[columns].fillna("").ne("").any(axis=1).to_numpy()

    def usable(self, paradigm: str) -> np.ndarray:
        """(N,) bool: which images a paradigm can be trained on."""
        assert self.manifest is not None
        if paradigm in ("clip", "clip+labels"):
            return self.reported
        return (
            self.reported | self.prompted
            if paradigm == "unicl"
            else np.ones(len(self.manifest), bool)
        )

    def count(self, splits: list[str], paradigm: str = "dinov2") -> int:
        """How many images of some splits a paradigm can be trained on; of a drawn set, how many are to be expected."""
        if self.manifest is None:
            return round(self.n * self._share(splits))
        return int((self.manifest["split"].isin(splits).to_numpy() & self.usable(paradigm)).sum())

    def most(self, splits: list[str]) -> float:
        """More images than this cannot be in some splits of a drawn set, as good as never."""
        if self.manifest is not None:
            return 0
        share = self._share(splits)
        return self.n * share + DEVIATIONS * (self.n * EXAMS * share * (1 - share)) ** 0.5

    def _share(self, splits: list[str]) -> float:
        return min(1.0, sum(self.p.fractions.get(split, 0.0) for split in set(splits)))

    def within(self, query: str) -> pd.DataFrame:
        """The rows that meet a query; all of them where it asks for what is known only later."""
        assert self.manifest is not None
        return (
            self.manifest
            if not query or any(fact in query for fact in FACTS)
            else self.manifest.query(query)
        )

    def query_fault(self, query: str) -> str:
        """Why a query cannot be asked of the manifest; empty where it can."""
        try:
            return "" if len(self.within(query)) else "is met by no image"
        except Exception as error:  # pandas raises a dozen kinds
            return f"is no query of this data set: {error}"


@dataclass(frozen=True)
class Counts:
    """Images and patients of some rows that have a label (``images[0]``) or are known not to (``images[1]``)."""

    images: tuple[int, int]
    patients: tuple[int, int]


def count_labels(rows: pd.DataFrame, names: list[str]) -> dict[str, Counts]:
    """Count positives and negatives of each label among some rows."""
    found, patients = {}, rows["patient_id"].to_numpy()
    for name, column in zip(names, label_array(rows, names).T, strict=True):
        with_it, without = column == 1, column == 0
        images = int(with_it.sum()), int(without.sum())
        found[name] = Counts(images, (len(set(patients[with_it])), len(set(patients[without]))))
    return found


def sums_to_one(fractions: dict[str, float]) -> bool:
    """Whether patients can be split by these shares."""
    shares = fractions.values()
    return bool(shares) and min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-9


def hold(p: study.Data, tables: Tables) -> Holding:
    """Read what a data run with parameters ``p`` would read, each table once, and split it; no image is opened.

    Never raises for a fault of the card or its data set: it is kept as ``fault``, with the card's line as ``where``.
    """
    root = p.root
    try:
        card = cards.read_card(p.card)
    except (ValueError, OSError) as error:
        return Holding(p, fault=str(error))
    if card.kind == "synthetic" and card.table is None:
        n = p.n_images or int(card.counts.get("default_images", 3000))
        return Holding(p, n, n)
    if not root:
        said = (
            f"card {card.name} reads files: say where they lie, --data-root PATH or DATA_ROOT=PATH"
        )
        return Holding(p, fault=said, fault_of_root=True)
    if not Path(root).expanduser().is_dir():
        return Holding(p, fault=f"{root!r} is not a folder; {card.access}", fault_of_root=True)
    if (p.card, root) not in tables:
        try:
            tables[p.card, root] = cards.load_manifest(p.card, root=root)
        except (ValueError, OSError) as error:
            tables[p.card, root] = str(error)
    manifest = tables[p.card, root]
    if isinstance(manifest, str):
        return Holding(p, fault=manifest, where=_card_line(p.card, manifest))
    told: dict[str, Any] = {
        name: manifest.attrs.get(name) or {} for name in ("left_out", "not_understood")
    }
    rows = (
        nested_subset(manifest, p.n_images, seed=p.seed)
        if 0 < p.n_images < len(manifest)
        else manifest
    )
    fit = (
        assign_splits(rows, fractions=p.fractions, seed=p.seed)
        if sums_to_one(p.fractions)
        else rows.assign(split="")
    )
    return Holding(p, len(rows), len(manifest), fit, **told)


def _card_line(card: str, message: str) -> str:
    """The card's file, and the line of the first of its values that a message quotes; empty where the message tells."""
    path = Path(card) if card.endswith(".md") else study.root() / "data_cards" / f"{card}.md"
    if f"{path.name}:" in message:
        return ""
    front = path.read_text(encoding="utf-8-sig").split("---\n", 2)
    quoted = re.findall(r"'([^']+)'", message)
    patterns = [word for word in re.split(r"[\s,;]+", message) if "*" in word or "." in word[:-1]]
    found = (
        [line_of_value(front[1], words, first=2) for words in (quoted, patterns)]
        if len(front) > 2
        else []
    )
    line = next((number for number in found if number), 1)
    shown = path.relative_to(study.root()) if path.is_relative_to(study.root()) else path
    return f"{shown}:{line}"
