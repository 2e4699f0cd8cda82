"""Data cards: Markdown with YAML front matter, which maps a data set's own tables to a manifest."""

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from cxrstudy import marks, study
from cxrstudy.data.below import LINKED, check_text
from cxrstudy.data.cardparts import (
    Boxes,
    Joined,
    Polylines,
    Position,
    Reports,
    Rule,
    RunLengths,
    Source,
    Split,
    Strict,
    is_unset,
)
from cxrstudy.data.ids import Spelling
from cxrstudy.data.tables import CardError
from cxrstudy.data.vocabulary import DEVICES, LABELS


class Table(Source):
    """Where the table is below root, and which of its columns is what."""

    rows: Rule = Field(
        "refuse",
        description="several rows of one image: any (one says so), majority (of the readers), "
        "first; not given: refused",
        exclude_if=is_unset,
    )
    reader: str | None = Field(
        None, description="column that names the reader of a row", exclude_if=is_unset
    )
    ids: Spelling | None = Field(
        None,
        description="ids of patients and studies that differ only in spelling (blanks, case, "
        "leading zeros, .0 ...): exact: they are different; normalised: they are one, written in "
        "one spelling; not given: refused",
    )
    image_id: str
    patient_id: str
    study_id: list[str] = Field(
        description="columns whose values, joined by '-', name the study", min_length=1
    )
    view: str | None = None
    age: str | None = None
    sex: str | None = None
    report: str | list[str] | dict[str, str] | None = Field(
        None, description="column; or several, joined as HEADER: text (a mapping names headers)"
    )
    views: dict[str, Literal["PA", "AP", "LATERAL"] | None] = Field(
        {},
        description="their name of a view -> ours, or null; others become missing; "
        "empty: common spellings",
    )
    sexes: dict[str, Literal["F", "M"] | None] = Field(
        {}, description="their name of a sex -> ours, as views"
    )
    sides: dict[str, str] = Field(
        {}, description="our finding -> the column of its side: right, left, bilateral, empty"
    )
    masks: dict[str, str | RunLengths] = Field(
        {},
        description="our device -> the column of its mask's file, below root, empty: none; or of "
        "its run lengths",
    )
    malposition: dict[str, str | Position] = Field(
        {}, description="our device -> column: 1 if its tip is malpositioned; or states by name"
    )
    split: Split | None = Field(
        None, description="the official split: its column and names", exclude_if=is_unset
    )
    pixel_spacing: str | None = Field(
        None, description="mm a pixel of the image file, for errors of tips in mm"
    )

    @property
    def reports(self) -> dict[str, str]:
        """Return header -> column of a report of several columns; a single one has no header."""
        if isinstance(self.report, dict):
            return self.report
        if isinstance(self.report, list):
            return {_header(column): column for column in self.report}
        return {"": self.report} if self.report else {}


def _header(column: str) -> str:
    """Return the header of a report's column: IMPRESSION for ``section_impression``."""
    name = re.sub(r"^(section|report)[_ ]", "", column.strip(), flags=re.IGNORECASE)
    return name.replace("_", " ").upper()


class Labels(Strict):
    """How the data set's labels become ours (1, 0, missing = unknown)."""

    encoding: Literal["list", "columns", "reports"] = Field(
        description="list: one column, names joined; columns: one a label; reports: mined from the "
        "report, in English"
    )
    column: str | None = Field(None, description="list: that column")
    separator: str = Field(
        "|", description="list: what joins the names; lists in brackets are read too", min_length=1
    )
    names: dict[str, str | list[str]] = Field(
        description="our name -> theirs, or several of theirs"
    )
    values: dict[str, float | None] = Field(
        {},
        description="columns: their value, as written -> 1, 0 or null; numbers compare as numbers",
    )
    missing: Literal["absent", "unknown"] = Field(
        description="what a label that is not given means"
    )
    unlisted: Literal["absent", "unknown"] | None = Field(
        None,
        description="what labels of a joined table mean where it has no such row; not given: "
        "unknown",
        exclude_if=is_unset,
    )
    uncertain: Literal["unknown", "present", "absent"] | None = Field(
        None,
        description="reports: what an uncertain mention means; not given: unknown",
        exclude_if=lambda value: value is None,  # as cards without it were hashed
    )
    may_be_absent: list[str] | bool = Field(
        [],
        description="list: names that no row need list, as in a part of the data set; true: all",
    )

    @field_validator("names")
    @classmethod
    def _no_markup(cls, names: dict[str, Any]) -> dict[str, Any]:
        if wrong := [name for name in names if re.search(r"[<>`{}|\n]", name)]:
            raise ValueError(f"{wrong[0]!r} is shown in pages: write it without < > ` {{ }} |")
        return names

    @model_validator(mode="before")
    @classmethod
    def _of_reports(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("encoding") != "reports":
            return values
        return {"names": {name: name for name in LABELS}, "missing": "unknown"} | values

    @model_validator(mode="after")
    def _fit(self) -> "Labels":
        if self.encoding != "reports":
            if self.uncertain:
                raise ValueError("`uncertain` is for encoding: reports only; see `values`")
            return self
        from cxrstudy.data.reports import NAMES  # reads its word lists, not needed otherwise

        if wrong := [n for group in self.theirs.values() for n in group if n not in NAMES]:
            known = ", ".join(NAMES)
            raise ValueError(
                f"reports are read for no {wrong[0]!r}{marks.near(wrong[0], NAMES)}; known: {known}"
            )
        if self.column or self.values:
            raise ValueError("encoding: reports takes neither `column` nor `values`")
        return self

    @field_validator("values", mode="before")
    @classmethod
    def _as_text(cls, values: Any) -> Any:
        return {str(k): v for k, v in values.items()} if isinstance(values, dict) else values

    @field_validator("values")
    @classmethod
    def _ours(cls, values: dict[str, float | None]) -> dict[str, float | None]:
        if wrong := [key for key, value in values.items() if value not in (0, 1, None)]:
            raise ValueError(f"{wrong[0]!r} must become 1 (present), 0 (absent) or null (unknown)")
        if any(not key.strip() for key in values):
            raise ValueError("an empty cell has no value here: `missing` says what it means")
        return values

    @property
    def theirs(self) -> dict[str, list[str]]:
        """Return our name -> the data set's names."""
        return {k: [names] if isinstance(names, str) else names for k, names in self.names.items()}


class Card(Strict):
    """The front matter of a data card."""

    name: str
    title: str
    kind: Literal["synthetic", "real"]
    licence: str
    access: str
    citation: str
    counts: dict[str, Any] = Field({})
    contamination: str = Field("", description="which public encoders have been trained on it")
    caution: str = Field("", description="what a reader must know before any number on it")
    show_images: bool = Field(
        False, description="whether the terms allow its images in a page that is passed on"
    )
    table: Table | None = None
    images: list[str] = Field(
        [], description="where images are below root: globs whose file names are image ids"
    )
    labels: Labels | None = None
    tables: list[Joined] = Field(
        [], description="further tables, joined to the rows of table", exclude_if=is_unset
    )
    polylines: Polylines | None = Field(
        None, description="courses of devices, which become masks", exclude_if=is_unset
    )
    boxes: Boxes | None = Field(
        None, description="boxes: an image with one has the finding", exclude_if=is_unset
    )
    reports: Reports | None = Field(None, description="reports in files", exclude_if=is_unset)
    verified: Literal["real", "layout"] | None = Field(
        None,
        description="real: read from the real files; layout: written from the documented layout, "
        "real files not seen",
        exclude=True,  # says nothing about the data, so it is no part of a run's name
    )

    @model_validator(mode="after")
    def _no_label_twice(self) -> "Card":
        both = set(self.labels.names if self.labels else ()) & set(
            self.boxes.names if self.boxes else ()
        )
        if both:
            raise ValueError(f"{min(both)!r} is under labels.names and boxes.names: keep one")
        return self

    @field_validator("images")
    @classmethod
    def _stay(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            check_text(pattern)
        return patterns

    @property
    def is_drawn(self) -> bool:
        """Return whether its images are drawn; an export of them is read as files are."""
        return self.kind == "synthetic" and self.table is None

    @property
    def copied(self) -> tuple[str, ...]:
        """Patterns of the files that are read with the tables: these, and reports."""
        parts = [self.table, *self.tables, self.polylines, self.boxes, self.reports]
        return (*(part.path for part in parts if part), LINKED)


def serves(card: Card) -> list[str]:
    """Return what a card's data serve: findings, tubes present, placed or drawn, reports."""
    names = {*(card.labels.names if card.labels else ()), *(card.boxes.names if card.boxes else ())}
    table, drawn = card.table, card.is_drawn
    found = {
        "findings": drawn or bool(names - set(DEVICES)),
        "tubes present": drawn or bool(names & set(DEVICES)),
        "tubes placed": bool(table and table.malposition),
        "tubes drawn": drawn or bool((table and table.masks) or card.polylines),
        "reports": drawn or bool((table and table.report) or card.reports),
    }
    return [what for what, is_there in found.items() if is_there]


class _Loader(yaml.SafeLoader):
    """YAML whose keys stay text as written: ``Yes``, ``on``, ``1.0``, ``007`` and dates too."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        found: dict[Any, Any] = {}
        for key, value in node.value:
            is_scalar = isinstance(key, yaml.ScalarNode)
            name = key.value if is_scalar else self.construct_object(key, deep=True)
            if name in found:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name!r} is given twice", key.start_mark
                )
            found[name] = self.construct_object(value, deep=True)
        return found


def read_card(card: str | Path) -> Card:
    """Read the front matter of ``data_cards/<card>.md``, or of a card given by its path.

    Raises:
        CardError: naming line and field of each fault.
    """
    path, text, first = _front(card)
    try:
        marks.refuse_bomb(text, _Loader)
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise CardError("front matter of " + marks.not_yaml(error, text, path, first)) from None
    except ValueError as error:  # an impossible date
        raise CardError(f"front matter of {path}: {error}") from None
    if not isinstance(values, dict):
        raise CardError(f"front matter of {path}:{first}: expected lines `name: value`")
    try:
        return Card(**values)
    except ValidationError as error:
        raise CardError("front matter of " + marks.faults(error, Card, text, path, first)) from None


def place(card: str | Path, *keys: str | int) -> str:
    """Return a card's file and the line of an entry of its front matter, for messages."""
    path, text, first = _front(card)
    shown = path.relative_to(study.root()) if path.is_relative_to(study.root()) else path
    return f"{shown}:{marks.line_of(text, *keys, first=first)}"


def _front(card: str | Path) -> tuple[Path, str, int]:
    """Return a card's file, its front matter, and the line on which that begins."""
    folder = study.root() / "data_cards"
    path = Path(card) if str(card).endswith(".md") else folder / f"{card}.md"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in folder.glob("*.md")))
        raise CardError(
            f"no data card {str(card)!r}; there are: {names} (or give the path of your own .md)"
        )
    try:
        text = re.sub(r"\r\n?", "\n", path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CardError(f"{path}: not UTF-8 ({error}): save the card as UTF-8") from None
    front = re.match(r"\s*---[ \t]*\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    if not front:
        raise CardError(f"{path}: does not start with YAML front matter between two lines '---'")
    return path, front[1], 1 + text[: front.start(1)].count("\n")
