"""What a preset's data sets contain, known from their tables: images, labels, reports, masks."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data import cards
from cxrstudy.data import manifest as manifests
from cxrstudy.data.manifest import assign_splits, label_array, label_names, nested_subset
from cxrstudy.files import is_remote
from cxrstudy.marks import line_of_value

Tables = dict[tuple[str, str], pd.DataFrame | str]  # by card and root: its manifest, or the error
FACTS = ("exam", "scanner", "right:", "malposition:")  # known later; a query may name them
DEVIATIONS = 4.0  # of a generated set's split from its share, at most
EXAMS = 2.5  # images of a generated patient, which go into one split together


@dataclass(frozen=True)
class Holding:
    """One data set of a preset: ``n`` images of the ``whole`` that its table has.

    ``manifest``: their rows with their split (empty if fractions are wrong). It is None if the
    images are generated, or if there is a ``fault``.
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
    notes: list[str] = field(default_factory=list)

    @property
    def is_split(self) -> bool:
        """Whether it is known how many images are in each split."""
        return not self.fault and sums_to_one(self.p.fractions)

    @cached_property
    def labels(self) -> list[str]:
        """Names of the labels that are recorded for some image."""
        if self.manifest is None:
            return []
        return [n for n in label_names(self.manifest) if self.manifest[f"label:{n}"].notna().any()]

    @cached_property
    def reported(self) -> np.ndarray:
        """(N,) bool: which images have a report."""
        return manifests.has_report(self.rows)

    @cached_property
    def prompted(self) -> np.ndarray:
        """(N,) bool: for which images a label prompt can be written."""
        return manifests.has_prompt(label_array(self.rows, label_names(self.rows)))

    @cached_property
    def masked(self) -> np.ndarray:
        """(N,) bool: which images have the mask of a device."""
        columns = self.rows.columns[self.rows.columns.str.startswith("mask:")]
        return self.rows[columns].fillna("").ne("").any(axis=1).to_numpy()

    @property
    def rows(self) -> pd.DataFrame:
        """The manifest, where there is one."""
        assert self.manifest is not None
        return self.manifest

    def count(self, splits: list[str], paradigm: str = "dinov2") -> int:
        """Return how many images of some splits a paradigm can be trained on.

        Of a generated set, the expected number.
        """
        if self.manifest is None:
            return round(self.n * self._share(splits))
        fit = manifests.usable(self.manifest, paradigm)
        return int((self.manifest["split"].isin(splits).to_numpy() & fit).sum())

    def most(self, splits: list[str]) -> float:
        """Return an upper limit of the images in some splits of a generated set."""
        if self.manifest is not None:
            return 0
        share = self._share(splits)
        return self.n * share + DEVIATIONS * (self.n * EXAMS * share * (1 - share)) ** 0.5

    def _share(self, splits: list[str]) -> float:
        return min(1.0, sum(self.p.fractions.get(split, 0.0) for split in set(splits)))

    def within(self, query: str) -> pd.DataFrame:
        """Return the rows that meet a query; all if it asks for what is known only later."""
        later = any(fact in query for fact in FACTS)
        return self.rows if not query or later else self.rows.query(query)

    def query_fault(self, query: str) -> str:
        """Return why a query cannot be asked of the manifest; empty if it can."""
        try:
            return "" if len(self.within(query)) else "is met by no image"
        except Exception as error:  # pandas raises a dozen kinds
            return f"is no query of this data set: {error}"


@dataclass(frozen=True)
class Counts:
    """Images and patients that have a label (``images[0]``) or are known not to (``images[1]``)."""

    images: tuple[int, int]
    patients: tuple[int, int]


def count_labels(rows: pd.DataFrame, names: list[str]) -> dict[str, Counts]:
    """Return positives and negatives of each label among some rows."""
    found, patients = {}, rows["patient_id"].to_numpy()
    for name, column in zip(names, label_array(rows, names).T, strict=True):
        with_it, without = column == 1, column == 0
        images = int(with_it.sum()), int(without.sum())
        found[name] = Counts(images, (len(set(patients[with_it])), len(set(patients[without]))))
    return found


def sums_to_one(fractions: dict[str, float]) -> bool:
    """Return whether these shares are at least 0 and sum to 1."""
    shares = fractions.values()
    return bool(shares) and min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-9


def hold(p: study.Data, tables: Tables) -> Holding:
    """Return what a data run with parameters ``p`` would read; no image is opened.

    Each table is read once and kept in ``tables``. A fault of the card or its data set does not
    raise: it is kept as ``fault``, with the card's line as ``where``.
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
        fault = f"card {card.name} reads files: name their folder by --data-root PATH or DATA_ROOT"
        return Holding(p, fault=fault, fault_of_root=True)
    if not is_remote(root) and not Path(root).expanduser().is_dir():
        return Holding(p, fault=f"{root!r} is not a folder; {card.access}", fault_of_root=True)
    if (p.card, root) not in tables:
        try:
            tables[p.card, root] = cards.load_manifest(p.card, root=root)
        except (ValueError, OSError) as error:
            tables[p.card, root] = str(error)
    manifest = tables[p.card, root]
    if isinstance(manifest, str):
        return Holding(p, fault=manifest, where=_card_line(p.card, manifest))
    attrs: dict[str, Any] = {
        name: manifest.attrs.get(name) or {} for name in ("left_out", "not_understood")
    }
    rows = manifest
    if 0 < p.n_images < len(manifest):
        rows = nested_subset(manifest, p.n_images, seed=p.seed)
    if sums_to_one(p.fractions):
        try:
            split = assign_splits(rows, fractions=p.fractions, seed=p.seed)
        except ValueError as error:
            return Holding(p, fault=str(error), where=_card_line(p.card, str(error)))
    else:
        split = rows.assign(split="")
    notes = list(manifest.attrs.get("notes") or [])
    return Holding(p, len(rows), len(manifest), split, **attrs, notes=notes)


def _card_line(card: str, message: str) -> str:
    """Return the card's file and the line of the first of its values that a message quotes.

    Empty if the message names the line itself.
    """
    path = Path(card) if card.endswith(".md") else study.root() / "data_cards" / f"{card}.md"
    if f"{path.name}:" in message:
        return ""
    _, *front = path.read_text(encoding="utf-8-sig").split("---\n", 2)
    quoted = re.findall(r"'([^']+)'", message)
    patterns = [word for word in re.split(r"[\s,;]+", message) if "*" in word or "." in word[:-1]]
    lines = [
        line_of_value(front[0], words, first=2) for words in (quoted, patterns) if len(front) > 1
    ]
    line = next((number for number in lines if number), 1)
    shown = path.relative_to(study.root()) if path.is_relative_to(study.root()) else path
    return f"{shown}:{line}"
