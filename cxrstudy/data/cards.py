"""The one reader of any data set that a data card describes.

A card is Markdown with YAML front matter; the front matter is the map from the data set's own tables and files to a
manifest, so a card that has rotted fails. ``Card`` below is the front matter's schema.
"""

import codecs
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cxrstudy import marks, study
from cxrstudy.data import columns as cells
from cxrstudy.data import manifest as manifests
from cxrstudy.data.ids import Spelling, read_ids
from cxrstudy.data.labels import read_columns, read_list
from cxrstudy.data.locate import find_images, find_listed
from cxrstudy.data.tables import CardError, Rows, read_tables
from cxrstudy.data.vocabulary import FINDINGS, LABELS

__all__ = ["Card", "CardError", "Labels", "Table", "load_manifest", "read_card"]

VIEW = Literal["PA", "AP", "LATERAL"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Table(_Strict):
    """Where the table lies under root and which of its columns is what."""

    path: str = Field(description="CSV or Parquet, below root; a glob is allowed")
    separator: str = Field(",", description="of CSV: the one sign between cells")
    encoding: str = Field("", description="of CSV that is not UTF-8, say cp1252")
    ids: Spelling | None = Field(
        None,
        description="ids of patients and studies that differ in spelling alone (blanks, case, leading zeros, .0 ...): "
        "exact: they are different; normalised: they are one, written in one spelling; not given: refused",
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
    views: dict[str, VIEW | None] = Field(
        {},
        description="their name of a view -> ours, or null; others become missing; empty: common spellings",
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
        {}, description="our device -> column: 1 where its tip lies wrong"
    )
    pixel_spacing: str | None = Field(
        None, description="mm a pixel of the image file, for errors of tips in mm"
    )
    query: str = Field(
        "", description="keep only the rows that meet this pandas query (e.g. frontal views)"
    )

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

    encoding: Literal["list", "columns"] = Field(
        description="list: one column, names joined; columns: one a label"
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
    may_be_absent: list[str] | bool = Field(
        [],
        description="list: names that no row need list, as in a part of the data set; true: all of them",
    )

    @field_validator("values", mode="before")
    @classmethod
    def _as_text(cls, values: Any) -> Any:
        return (
            {str(key): value for key, value in values.items()}
            if isinstance(values, dict)
            else values
        )

    @field_validator("values")
    @classmethod
    def _ours(cls, values: dict[str, float | None]) -> dict[str, float | None]:
        if wrong := [key for key, value in values.items() if value not in (0, 1, None)]:
            raise ValueError(f"{wrong[0]!r} must become 1 (present), 0 (absent) or null (unknown)")
        if any(not key.strip() for key in values):
            raise ValueError("an empty cell has no value here: `missing` says what it means")
        return values


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
        [], description="where images lie below root: globs whose file names are image ids"
    )
    labels: Labels | None = None


class _Loader(yaml.SafeLoader):
    """YAML whose keys stay text as written: ``Yes``, ``on``, ``1.0``, ``007`` and dates are names of a table."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        found: dict[Any, Any] = {}
        for key, value in node.value:
            name = (
                key.value
                if isinstance(key, yaml.ScalarNode)
                else self.construct_object(key, deep=True)
            )
            if name in found:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name!r} is given twice", key.start_mark
                )
            found[name] = self.construct_object(value, deep=True)
        return found


def read_card(card: str | Path) -> Card:
    """The front matter of ``data_cards/<card>.md`` or of a card given by path; CardError naming line and field of what
    does not hold."""
    path, text, first = _front(card)
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise CardError("front matter of " + marks.not_yaml(error, text, path, first)) from None
    except ValueError as error:  # a date that is none
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
    """A card's file, its front matter, and the line on which that begins."""
    path = Path(card) if str(card).endswith(".md") else study.root() / "data_cards" / f"{card}.md"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in (study.root() / "data_cards").glob("*.md")))
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


def load_manifest(
    card: str | Path,
    *,
    root: str | Path = "",
    institution: str = "study",
    n_images: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """The manifest of the data set lying under ``root``, as ``card`` describes it.

    The synthetic card needs no root, but ``institution``, ``n_images`` and ``seed``; for a real data set ``n_images``
    keeps a nested subset (0 = all).

    ``attrs["rows"]`` counts the rows of the table and ``attrs["left_out"]`` those that are not in the manifest, by
    reason: ``not kept by query``, ``no image id``, ``no patient id``, ``no study id``, ``no image file``.
    ``attrs["not_understood"]`` counts cells that became missing because nobody knows what they mean, over all images
    found: our column (``age``, ``sex``, ``view``, ``pixel_spacing``, ``malposition:NAME``) -> their value -> how often.
    CardError names the file, line or column that is not as the card says.
    """
    described = read_card(card)
    if described.kind == "synthetic" and described.table is None:
        return _synthetic(
            institution, n_images or int(described.counts.get("default_images", 3000)), seed
        )
    base = Path(root).expanduser()
    if not str(root) or not base.is_dir():
        raise CardError(
            f"card {described.name}: root {str(root)!r} is not a folder; {described.access}"
        )
    if described.table is None:
        raise CardError(f"card {described.name}: a real data set needs `table` in its front matter")
    try:
        manifest = _real(described, described.table, base)
    except CardError as error:
        raise CardError(f"card {described.name}: {error}") from error
    if n_images > len(manifest):
        left = sum(manifest.attrs["left_out"].values())
        raise CardError(
            f"card {described.name}: n_images is {n_images}, but the data set has {len(manifest)} images"
            f"{f' ({left} rows of its table were left out)' if left else ''}; use n_images: 0 for all"
        )
    return manifests.nested_subset(manifest, n_images, seed=seed) if n_images else manifest


def _synthetic(institution: str, n_images: int, seed: int) -> pd.DataFrame:
    """Rows of an institution; images are drawn later, from the index in ``path``."""
    from cxrstudy.data import synthetic  # imports torch, which reading a card does without

    described = synthetic.describe(np.arange(n_images), institution=institution, seed=seed)
    names = [f"{institution}-{index}" for index in range(n_images)]
    columns = {
        "image_id": names,
        "patient_id": list(described.patient_id),
        "study_id": list(described.study_id),
        "path": [f"synthetic:{institution}:{seed}:{index}" for index in range(n_images)],
        "view": list(described.view),
        "age": np.asarray(described.age, dtype=float),
        "sex": list(described.sex),
        "report": list(described.report),
    }
    columns |= {f"label:{name}": described.reported[:, k] for k, name in enumerate(LABELS)}
    columns |= {f"truth:{name}": described.labels[:, k] for k, name in enumerate(LABELS)}
    for k, name in enumerate(FINDINGS):
        if name not in (
            "cardiomegaly",
            "edema",
        ):  # a side is recorded with its finding, where that is there
            columns[f"side:{name}"] = np.where(
                described.reported[:, k] == 1, described.side[:, k], ""
            )
    return manifests.validate(pd.DataFrame(columns), f"synthetic institution {institution}")


def _real(card: Card, table: Table, base: Path) -> pd.DataFrame:
    rows = _rows(card, table, base)
    names = {
        ours: [theirs] if isinstance(theirs, str) else theirs
        for ours, theirs in _names(card).items()
    }
    kept, left_out = _kept(rows, table)
    patient = read_ids(rows, [table.patient_id], kept, "patient", table.ids)
    exam = read_ids(rows, table.study_id, kept, "study", table.ids)
    image = rows.frame.loc[kept, table.image_id]
    if (twice := image[image.duplicated(keep=False)]).size:
        same = twice[twice == twice.iloc[0]]
        raise manifests.ManifestError(
            f"card {card.name}: {rows.places(same.index)}, column {table.image_id!r}, 'image_id': {same.iloc[0]!r} "
            f"appears a second time; image ids must be unique ({twice.nunique()} such ids). Keep one row an image"
        )
    path = find_images(base, card.images, image, rows)
    if gone := int(path.isna().sum()):
        left_out["no image file"] = gone
    path = path.dropna()
    kept = path.index
    raw = rows.frame.loc[kept]
    columns: dict[str, Any] = {
        "image_id": image[kept],
        "patient_id": patient[kept],
        "study_id": exam[kept],
    }
    columns["path"] = path
    unknown: dict[str, dict[str, int]] = {}
    for ours, column, parse, given in (
        ("view", table.view, cells.parse_view, table.views),
        ("age", table.age, cells.parse_age, None),
        ("sex", table.sex, cells.sex_parser(raw[table.sex]) if table.sex else None, table.sexes),
        ("pixel_spacing", table.pixel_spacing, cells.parse_spacing, None),
        *(
            (f"malposition:{device}", wrong, cells.parse_flag, None)
            for device, wrong in table.malposition.items()
        ),
    ):
        if column and parse:
            columns[ours], unknown[ours] = cells.understand(raw[column], parse, given)
            if ours not in ("view", "sex"):
                columns[ours] = columns[ours].astype(float)
    if table.report:
        columns["report"] = raw[table.report]
    for ours, column in table.sides.items():
        told = raw[column].fillna("")
        columns[f"side:{ours}"] = told.map(
            {text: cells.parse_side(text) or text for text in told.unique()}
        )
    for ours, column in table.masks.items():
        columns[f"mask:{ours}"] = _masks(rows, raw[column], base)
    if card.labels:
        absent = 0.0 if card.labels.missing == "absent" else np.nan
        if card.labels.encoding == "list":
            listed, may = str(card.labels.column), card.labels.may_be_absent
            columns |= read_list(rows, kept, listed, card.labels.separator, names, absent, may)
        else:
            columns |= read_columns(rows, kept, names, card.labels.values, absent)
    manifest = pd.DataFrame(columns).reset_index(drop=True)
    out = manifests.validate(
        manifest, place=lambda row: f"card {card.name}, {rows.place(kept[row])}"
    )
    out.attrs["rows"] = len(rows.frame)
    out.attrs["left_out"] = left_out
    out.attrs["not_understood"] = {ours: counts for ours, counts in unknown.items() if counts}
    return out


def _names(card: Card) -> dict[str, str | list[str]]:
    return card.labels.names if card.labels else {}


def _rows(card: Card, table: Table, base: Path) -> Rows:
    """The rows of every table that the card names."""
    try:
        paths = sorted(p for p in base.glob(table.path) if not p.name.startswith(("._", "~$")))
    except (NotImplementedError, ValueError) as error:
        raise CardError(f"table.path {table.path!r}: {error}; give a path below root") from None
    if not paths:
        raise CardError(f"no table {table.path} under {base}; {card.access}")
    used = [table.image_id, table.patient_id, *table.study_id]
    used += [c for c in (table.view, table.age, table.sex, table.report, table.pixel_spacing) if c]
    used += [*table.sides.values(), *table.masks.values(), *table.malposition.values()]
    keep = [*table.views, *table.sexes]
    if card.labels:
        theirs = [
            name
            for group in _names(card).values()
            for name in ([group] if isinstance(group, str) else group)
        ]
        if card.labels.encoding == "list" and not card.labels.column:
            raise CardError(
                "labels.encoding is list, so labels.column must name the column that lists them"
            )
        used += [str(card.labels.column)] if card.labels.encoding == "list" else theirs
        keep += [*card.labels.values, *theirs]
    return read_tables(
        paths,
        used=used,
        separator=table.separator,
        encoding=table.encoding,
        query=table.query,
        keep=keep,
    )


def _kept(rows: Rows, table: Table) -> tuple[pd.Index, dict[str, int]]:
    """The rows that the query keeps and that have their ids; how many others there are, by reason."""
    frame = rows.frame
    left_out = {}
    if table.query:
        try:
            kept = frame.query(table.query)
        except Exception as error:  # pandas raises a dozen kinds
            raise CardError(f"table.query {table.query!r} does not hold: {error}") from error
        if not isinstance(kept, pd.DataFrame) or kept.empty:
            raise CardError(f"table.query {table.query!r} keeps no row of {len(frame)}")
        left_out["not kept by query"] = len(frame) - len(kept)
        frame = kept
    for what, names in (
        ("image", [table.image_id]),
        ("patient", [table.patient_id]),
        ("study", table.study_id),
    ):
        for name in names:
            blank = frame[name].isna() | frame[name].isin(
                [t for t in frame[name].unique() if cells.is_blank(t)]
            )
            if blank.all():
                raise CardError(
                    f"{rows.place(frame.index[0])}: no row has a {what} id: column {name!r} is empty"
                )
            left_out[f"no {what} id"] = left_out.get(f"no {what} id", 0) + int(blank.sum())
            frame = frame[~blank]
    return frame.index, {reason: count for reason, count in left_out.items() if count}


def _masks(rows: Rows, column: pd.Series, base: Path) -> pd.Series:
    """The file of each mask, empty where there is none; CardError naming one that is not there."""
    names = column.dropna().unique()
    try:
        found = find_listed(base, names)
    except CardError as error:
        raise CardError(f"column {column.name!r}: {error}") from None
    gone = [name for name in names if name not in found]
    if gone:
        row = column.index[column == gone[0]][0]
        raise CardError(
            f"{rows.place(row)}: column {column.name!r} names a mask {gone[0]!r} that does not lie under {base} "
            f"({len(gone)} such masks); copy it there, or leave the cell empty"
        )
    return column.map(found).fillna("")
