"""The one reader of any data set that a data card describes.

A card is Markdown with YAML front matter; the front matter is the map from the data set's own tables and files to a
manifest, so a card that has rotted fails. ``Card`` below is the front matter's schema.
"""

import glob
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cxrstudy import study
from cxrstudy.data import manifest as manifests
from cxrstudy.data.vocabulary import FINDINGS, LABELS, VIEWS

SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")


class CardError(ValueError):
    """A card, or the data set under ``root``, is not as the card says; the message names the place and the remedy."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Table(_Strict):
    """Where the table lies under root and which of its columns is what."""

    path: str = Field(description="CSV or Parquet, below root; a glob is allowed")
    separator: str = ","
    image_id: str
    patient_id: str
    study_id: list[str] = Field(description="columns whose values, joined by '-', name the study")
    view: str | None = None
    age: str | None = None
    sex: str | None = None
    report: str | None = None
    views: dict[str, str] = Field({}, description="their name of a view -> ours; others become missing; empty: as ours")
    sexes: dict[str, str] = Field({"F": "F", "M": "M"}, description="their name of a sex -> ours")
    sides: dict[str, str] = Field(
        {}, description="our finding -> the column of its side: right, left, bilateral, empty"
    )
    masks: dict[str, str] = Field(
        {}, description="our device -> the column of its mask's file, below root; empty: none"
    )
    malposition: dict[str, str] = Field({}, description="our device -> column: 1 where its tip lies wrong")
    pixel_spacing: str | None = Field(None, description="mm a pixel of the image file, for errors of tips in mm")
    query: str = Field("", description="keep only the rows that meet this pandas query (e.g. frontal views)")


class Labels(_Strict):
    """How the data set's labels become ours (1, 0, missing = unknown)."""

    encoding: Literal["list", "columns"] = Field(description="list: one column, names joined; columns: one a label")
    column: str | None = Field(None, description="list: that column")
    separator: str = Field("|", description="list: what joins the names")
    names: dict[str, str | list[str]] = Field(description="our name -> theirs, or several of theirs")
    values: dict[str, float | None] = Field({}, description="columns: their value, as written -> 1, 0 or null")
    missing: Literal["absent", "unknown"] = Field(description="what a label that is not given means")

    @field_validator("values", mode="before")
    @classmethod
    def _as_text(cls, values: Any) -> Any:
        return {str(key): value for key, value in values.items()} if isinstance(values, dict) else values


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
    show_images: bool = Field(False, description="whether the terms allow its images in a page that is passed on")
    table: Table | None = None
    images: list[str] = Field([], description="where images lie below root: globs whose file names are image ids")
    labels: Labels | None = None


def read_card(card: str | Path) -> Card:
    """The front matter of ``data_cards/<card>.md`` or of a card given by path; CardError naming what does not hold."""
    path = Path(card) if str(card).endswith(".md") else study.root() / "data_cards" / f"{card}.md"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in (study.root() / "data_cards").glob("*.md")))
        raise CardError(f"no data card {str(card)!r}; there are: {names} (or give the path of your own .md)")
    parts = path.read_text(encoding="utf-8").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        raise CardError(f"{path}: does not start with YAML front matter between two lines '---'")
    try:
        return Card(**yaml.safe_load(parts[1]))
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        raise CardError(f"{path}: front matter: {error}") from None


def load_manifest(
    card: str | Path, *, root: str | Path = "", institution: str = "study", n_images: int = 0, seed: int = 0
) -> pd.DataFrame:
    """The manifest of the data set lying under ``root``, as ``card`` describes it.

    The synthetic card needs no root, but ``institution``, ``n_images`` and ``seed``; for a real data set ``n_images``
    keeps a nested subset (0 = all). ``attrs["without_image"]`` counts rows whose image file is not under root (a
    partial download). CardError names the file or column that is not as the card says.
    """
    described = read_card(card)
    if described.kind == "synthetic" and described.table is None:
        return _synthetic(institution, n_images or int(described.counts.get("default_images", 3000)), seed)
    base = Path(root).expanduser()
    if not str(root) or not base.is_dir():
        raise CardError(f"card {described.name}: root {str(root)!r} is not a folder; {described.access}")
    if described.table is None:
        raise CardError(f"card {described.name}: a real data set needs `table` in its front matter")
    manifest = _real(described, described.table, base)
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
        ):  # a side is recorded with its finding, where that is there to have one
            columns[f"side:{name}"] = np.where(described.reported[:, k] == 1, described.side[:, k], "")
    return manifests.validate(pd.DataFrame(columns), f"synthetic institution {institution}")


def _real(card: Card, table: Table, base: Path) -> pd.DataFrame:
    paths = sorted(base.glob(table.path))
    if not paths:
        raise CardError(f"card {card.name}: no table {table.path} under {base}; {card.access}")
    frames = [
        pd.read_parquet(path).astype(str)
        if path.suffix == ".parquet"
        else pd.read_csv(path, sep=table.separator, dtype=str)
        for path in paths
    ]
    raw = pd.concat(frames, ignore_index=True)
    used = [table.image_id, table.patient_id, *table.study_id]
    used += [c for c in (table.view, table.age, table.sex, table.report, table.pixel_spacing) if c]
    used += [*table.sides.values(), *table.masks.values(), *table.malposition.values()]
    if card.labels:
        used += (
            [card.labels.column]
            if card.labels.column
            else [n for o in card.labels.names for n in _theirs(card.labels, o)]
        )
    for column in used:
        if column not in raw:
            raise CardError(f"card {card.name}: {paths[0]} has no column {column!r}; it has {', '.join(raw.columns)}")
    raw = _query(raw, card, table.query) if table.query else raw
    path = _find_images(card, base, raw[table.image_id])
    if path.notna().sum() == 0:
        raise CardError(f"card {card.name}: none of {len(raw)} images lies under {base} as {', '.join(card.images)}")
    raw = raw[path.notna()]
    study_id = raw[table.study_id[0]].str.cat(raw[table.study_id[1:]], sep="-")  # missing where a part is
    manifest = pd.DataFrame(
        {"image_id": raw[table.image_id], "patient_id": raw[table.patient_id], "study_id": study_id, "path": path}
    ).loc[raw.index]
    if table.view:
        manifest["view"] = raw[table.view].map(table.views or {view: view for view in VIEWS})
    if table.age:  # '058Y' in older releases of ChestX-ray14, 414 where a digit slipped: beyond 130 is unknown
        age = pd.to_numeric(raw[table.age].str.extract(r"(\d+)", expand=False), errors="coerce")
        manifest["age"] = age.where(age <= 130)
    if table.sex:
        manifest["sex"] = raw[table.sex].map(table.sexes)
    if table.report:
        manifest["report"] = raw[table.report]
    if table.pixel_spacing:
        manifest["pixel_spacing"] = pd.to_numeric(raw[table.pixel_spacing], errors="coerce")
    for ours, column in table.sides.items():
        manifest[f"side:{ours}"] = raw[column].fillna("")
    for ours, column in table.malposition.items():
        manifest[f"malposition:{ours}"] = pd.to_numeric(raw[column], errors="coerce")
    for ours, column in table.masks.items():
        manifest[f"mask:{ours}"] = [_mask(card, base, name, column) for name in raw[column].fillna("")]
    if card.labels:
        manifest = manifest.assign(**_labels(raw, card.labels))
    out = manifests.validate(manifest.reset_index(drop=True), f"card {card.name}, {paths[0]}")
    out.attrs["without_image"] = int(path.isna().sum())
    return out


def _find_images(card: Card, base: Path, ids: pd.Series) -> pd.Series:
    """The file of each image id (its name below root, its file name, or that without .dcm, .png, .jpg, .jpeg), missing
    where there is none; CardError where an id fits several files."""
    found = {f for pattern in card.images for f in glob.glob(str(Path(glob.escape(str(base)), pattern)))}
    exact: dict[str, set[str]] = {}
    short: dict[str, set[str]] = {}
    for file in sorted(found):
        path = Path(file)
        for name in (path.name, path.relative_to(base).as_posix()):
            exact.setdefault(name, set()).add(file)
            if path.suffix.lower() in SUFFIXES:
                short.setdefault(name.removesuffix(path.suffix), set()).add(file)

    def pick(name: object) -> str | None:
        files = exact.get(str(name)) or short.get(str(name)) or set()
        if len(files) > 1:
            raise CardError(
                f"card {card.name}: image {name!r} fits {len(files)} files ({', '.join(sorted(files)[:2])}); "
                f"let column {card.table and card.table.image_id!r} hold the path below root"
            )
        return next(iter(files), None)

    return ids.map(pick)


def _mask(card: Card, base: Path, name: str, column: str) -> str:
    if name and not (base / name).is_file():
        raise CardError(f"card {card.name}: column {column!r} names a mask {name!r} that does not lie under {base}")
    return str(base / name) if name else ""


def _query(raw: pd.DataFrame, card: Card, query: str) -> pd.DataFrame:
    try:
        kept = raw.query(query)
    except Exception as error:  # pandas raises a dozen kinds
        raise CardError(f"card {card.name}: table.query {query!r} does not hold: {error}") from error
    if not isinstance(kept, pd.DataFrame) or kept.empty:
        raise CardError(f"card {card.name}: table.query {query!r} keeps no row")
    return kept


def _theirs(labels: Labels, ours: str) -> list[str]:
    names = labels.names[ours]
    return [names] if isinstance(names, str) else names


def _labels(raw: pd.DataFrame, labels: Labels) -> dict[str, pd.Series]:
    absent = 0.0 if labels.missing == "absent" else np.nan
    columns = {}
    if labels.encoding == "list":
        listed = raw[labels.column].fillna("").str.split(labels.separator, regex=False).map(set)
        for ours in labels.names:
            theirs = set(_theirs(labels, ours))
            columns[f"label:{ours}"] = listed.map(lambda given, theirs=theirs: 1.0 if theirs & given else absent)
        return columns
    for ours in labels.names:
        numbers = []
        for name in _theirs(labels, ours):
            text = raw[name]
            unknown = sorted(set(text.dropna()) - set(labels.values))
            if unknown:
                raise CardError(f"card column {name!r} holds {unknown[0]!r}, which its labels.values does not map")
            numbers.append(text.map(labels.values).astype(float).where(text.notna(), absent))
        columns[f"label:{ours}"] = pd.concat(numbers, axis=1).max(axis=1)  # several of theirs: present if any is
    return columns
