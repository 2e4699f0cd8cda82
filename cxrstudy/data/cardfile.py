"""Data cards: Markdown with YAML front matter, which maps a data set's own tables to a manifest."""

import codecs
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cxrstudy import marks, study
from cxrstudy.data.below import check_text
from cxrstudy.data.ids import Spelling
from cxrstudy.data.tables import CardError
from cxrstudy.data.vocabulary import LABELS


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Table(_Strict):
    """Where the table is below root, and which of its columns is what."""

    path: str = Field(description="CSV or Parquet, below root; a glob is allowed")
    separator: str = Field(",", description="of CSV: the one sign between cells")
    encoding: str = Field("", description="of CSV that is not UTF-8, say cp1252")
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
    report: str | None = None
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
    masks: dict[str, str] = Field(
        {}, description="our device -> the column of its mask's file, below root; empty: none"
    )
    malposition: dict[str, str] = Field(
        {}, description="our device -> column: 1 if its tip is malpositioned"
    )
    pixel_spacing: str | None = Field(
        None, description="mm a pixel of the image file, for errors of tips in mm"
    )
    query: str = Field(
        "", description="keep only the rows that meet this pandas query (e.g. frontal views)"
    )

    @field_validator("path")
    @classmethod
    def _stays(cls, path: str) -> str:
        check_text(path)
        return path

    @field_validator("separator")
    @classmethod
    def _one_sign(cls, sign: str) -> str:
        sign = "\t" if sign == r"\t" else sign
        if len(sign) != 1 or sign in '"\r\n':
            raise ValueError(f'{sign!r} is not one sign; a tab is written "\\t"')
        return sign

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return name and codecs.lookup(name).name
        except LookupError:
            raise ValueError(f"{name!r} is no encoding that Python knows; say, cp1252") from None


class Labels(_Strict):
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


class Card(_Strict):
    """The front matter of a data card."""

    name: str
    title: str
    kind: Literal["synthetic", "real"]
    licence: str
    access: str
    citation: str
    counts: dict[str, Any] = {}
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
