"""Parts of a data card that describe joined tables, positions, masks, boxes, reports and splits."""

import codecs
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cxrstudy.data.below import check_text

Rule = Literal["refuse", "first", "any", "majority"]
Size = Annotated[list[int | str], Field(min_length=2, max_length=2)]
Keys = list[str] | dict[str, str]
Names = dict[str, str | list[str]]


class Strict(BaseModel):
    """A part of a card: unknown names are refused."""

    model_config = ConfigDict(extra="forbid")


def is_unset(value: Any) -> bool:
    """Return whether a key that came later is not given: it is left out of a card's digest."""
    return not value or value == "refuse"


class Source(Strict):
    """A table of the data set: where it is, and what is done to its columns first."""

    path: str = Field(
        description="CSV, Parquet, JSON, JSON lines or Open-i XML, below root; a glob is allowed"
    )
    separator: str = Field(",", description="of CSV: the one sign between cells")
    encoding: str = Field("", description="of CSV that is not UTF-8, say cp1252")
    query: str = Field(
        "", description="keep only the rows that meet this pandas query (e.g. frontal views)"
    )
    rename: dict[str, str] = Field(
        {}, description="their column -> the name that the card uses", exclude_if=is_unset
    )
    extract: dict[str, str] = Field(
        {},
        description="column -> a pattern whose named groups become columns; @table is the path of "
        "the row's table, @image that of its image, both below root",
        exclude_if=is_unset,
    )
    explode: list[str] = Field(
        [],
        description="columns with lists of equal length: a row an entry of the lists",
        exclude_if=is_unset,
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

    @field_validator("extract")
    @classmethod
    def _has_groups(cls, patterns: dict[str, str]) -> dict[str, str]:
        for pattern in patterns.values():
            try:
                names = re.compile(pattern).groupindex
            except re.error as error:
                raise ValueError(f"{pattern!r} is no pattern ({error})") from None
            if not names:
                raise ValueError(f"{pattern!r} has no named group: write (?P<name>...)")
        return patterns

    @property
    def groups(self) -> set[str]:
        """Return the columns that ``extract`` makes."""
        return {name for each in self.extract.values() for name in re.compile(each).groupindex}


class Joined(Source):
    """A further table, joined to the rows of ``table``."""

    on: Keys = Field(
        description="key columns: the same names on both sides, or a mapping {ours: theirs}",
        min_length=1,
    )
    rows: Rule = Field("refuse", description="several rows of it for one key")

    @property
    def keys(self) -> dict[str, str]:
        """Return our key column -> theirs."""
        return self.on if isinstance(self.on, dict) else {name: name for name in self.on}


class Named(Joined):
    """A table with a row a drawn thing, whose name is in a column."""

    label: str = Field(description="column with the name of what is drawn")
    names: Names = Field(description="our name -> theirs, or several of theirs")

    @property
    def theirs(self) -> dict[str, list[str]]:
        """Return our name -> the data set's names."""
        return {k: [names] if isinstance(names, str) else names for k, names in self.names.items()}


class Polylines(Named):
    """Courses of devices as points, which become masks of a width."""

    points: str = Field(description='column with "[[x, y], ...]" in pixels')
    width: int = Field(description="of the line, in the same pixels", ge=1)
    size: Size | None = Field(
        None, description="[height, width] in px that the points refer to; else the image's own"
    )


class Boxes(Named):
    """Boxes around findings: an image with one has the finding."""

    missing: Literal["absent", "unknown"] = Field(
        description="what a class means of which an image that the table lists has no box"
    )
    rows: Rule = Field("any", description="of readers: any or majority")
    reader: str | None = Field(None, description="column that names the reader")


class Position(Strict):
    """Where a device's tip is, in named states: columns that flag them, or values of one column."""

    column: str | None = Field(None, description="column whose values are listed; else columns are")
    malpositioned: list[str] = Field(min_length=1)
    correct: list[str] = Field(min_length=1)

    @property
    def columns(self) -> list[str]:
        """Return the columns that are read."""
        return [self.column] if self.column else [*self.malpositioned, *self.correct]


class RunLengths(Strict):
    """Masks as run lengths: pairs of an offset and a length."""

    column: str
    relative: bool = Field(False, description="offsets count from the end of the previous run")
    transposed: bool = Field(False, description="runs go down columns, not along rows")
    first: Literal[0, 1] | None = Field(
        None, description="number of the first pixel; not given: 0 if relative, else 1"
    )
    size: Size | None = Field(
        None,
        description="[height, width] in px, numbers or names of columns; else the image's own",
    )
    none: list[str] = Field(["-1"], description="cells that say that there is no mask")

    @property
    def columns(self) -> list[str]:
        """Return the columns that are read."""
        return [self.column, *(side for side in self.size or () if isinstance(side, str))]


class Split(Strict):
    """The official split: each patient's column, and what its names are here."""

    column: str
    names: dict[str, str | list[str] | None] = Field(
        description="their split -> ours, or several of ours, which the fractions of the data run "
        "divide; null: leave these images out",
        min_length=1,
    )
    override: str = Field(
        "",
        description="why the official split is not respected: patients are then split by the data "
        "run's fractions",
        exclude_if=is_unset,
    )


class Reports(Strict):
    """Reports in text files."""

    path: str = Field(description="below root, built from columns: reports/{study_id}.txt")
    sections: list[str] = Field([], description="keep these sections alone, e.g. findings")

    @field_validator("path")
    @classmethod
    def _stays(cls, path: str) -> str:
        if "{" not in check_text(path):
            raise ValueError("names one file; build it from columns, as reports/{study_id}.txt")
        return path
