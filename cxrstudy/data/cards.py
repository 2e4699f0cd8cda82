"""Read any data set that a data card describes, so that a wrong card fails."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cxrstudy.data import columns as cells
from cxrstudy.data import manifest as manifests
from cxrstudy.data.cardfacts import (
    read_boxes,
    read_masks,
    read_positions,
    read_reports,
    read_split,
)
from cxrstudy.data.cardfile import Card, Labels, Table, place, read_card
from cxrstudy.data.cardrows import read_rows, resolve
from cxrstudy.data.ids import read_ids
from cxrstudy.data.joins import one_row_an_image
from cxrstudy.data.labels import read_columns, read_list
from cxrstudy.data.locate import find_images
from cxrstudy.data.remote import view
from cxrstudy.data.tables import CardError, Rows
from cxrstudy.data.vocabulary import FINDINGS, LABELS
from cxrstudy.files import is_remote

__all__ = ["Card", "CardError", "first_images", "load_manifest", "place", "read_card"]

SEVERAL = "of an image that rows give to several patients"


def load_manifest(
    card: str | Path,
    *,
    root: str | Path = "",
    institution: str = "study",
    n_images: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the manifest of the data set under ``root``, as ``card`` describes it.

    ``attrs["rows"]`` counts the rows of the table and ``attrs["left_out"]`` those that are not in
    the manifest, by reason: ``not kept by query``, ``no image id``, ``no patient id``, ``no study
    id``, ``no image file``. ``attrs["not_understood"]`` counts cells that became missing, over all
    images found: our column (``age``, ``sex``, ``view``, ``pixel_spacing``, ``malposition:NAME``)
    -> cell -> how often. ``attrs["mined"]`` is the record of labels that were mined from reports.
    ``attrs["notes"]`` says how many rows of joined tables match, what was made of several rows of
    an image, and the like; it is not there if there is nothing to say.

    Args:
        card: name or path of a card.
        root: folder of the data set; the synthetic card needs none.
        institution: of the synthetic card.
        n_images: size of a nested subset; 0 = all.
        seed: of the subset, and of the synthetic card.

    Raises:
        CardError: naming the file, line or column that is not as the card says.
    """
    described = read_card(card)
    if described.is_drawn:
        n_images = n_images or int(described.counts.get("default_images", 3000))
        return _synthetic(institution, n_images, seed)
    base = view(root, described.copied) if str(root) else Path()
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
    if is_remote(root):
        attrs, top = manifest.attrs, str(root).rstrip("/")
        named = ["path", *manifest.columns[manifest.columns.str.startswith("mask:")]]
        there = {c: manifest[c].str.replace(f"{base}/", f"{top}/", regex=False) for c in named}
        manifest = manifest.assign(**there)
        manifest.attrs = attrs
    return first_images(described, manifest, n_images, seed)


def first_images(card: Card, manifest: pd.DataFrame, n_images: int, seed: int) -> pd.DataFrame:
    """Return the nested subset of a card's manifest, all of it for 0; refuse more than it has."""
    if n_images > len(manifest):
        left = sum(manifest.attrs["left_out"].values())
        lost = f" ({left} rows of its table were left out)" if left else ""
        raise CardError(
            f"card {card.name}: n_images is {n_images}, but the data set has {len(manifest)} "
            f"images{lost}; use n_images: 0 for all"
        )
    return manifests.nested_subset(manifest, n_images, seed=seed) if n_images else manifest


def _synthetic(institution: str, n_images: int, seed: int) -> pd.DataFrame:
    """Return rows of an institution; images are drawn later, from the index in ``path``."""
    from cxrstudy.data import synthetic  # imports torch, not needed to read a card

    described = synthetic.describe(np.arange(n_images), institution=institution, seed=seed)
    columns: dict[str, Any] = {
        "image_id": [f"{institution}-{index}" for index in range(n_images)],
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
        if name not in ("cardiomegaly", "edema"):  # a side is recorded with a present finding
            present = described.reported[:, k] == 1
            columns[f"side:{name}"] = np.where(present, described.side[:, k], "")
    return manifests.validate(pd.DataFrame(columns), f"synthetic institution {institution}")


# ---- a data set of files -------------------------------------------------------------------------
def _real(card: Card, table: Table, base: Path) -> pd.DataFrame:
    pa.set_memory_pool(pa.system_memory_pool())  # the default one keeps a fifth of what is freed
    rows, rule, notes = read_rows(card, table, base)
    pa.default_memory_pool().release_unused()
    kept, left_out = _kept(rows, table)
    split = table.split
    if split and split.override:
        notes.append(f"the official split (column {split.column!r}) is not used: {split.override}")
    elif split:
        official, lost = read_split(split, rows, kept)
        notes.append(f"the official split (column {split.column!r}) is respected")
        kept, left_out = official.index, left_out | lost
    patient = read_ids(rows, [table.patient_id], kept, "patient", table.ids)
    exam = read_ids(rows, table.study_id, kept, "study", table.ids)
    image = rows.frame.loc[kept, table.image_id]
    if table.rows == "refuse":
        _refuse_twice(card, table, rows, image)
    path = find_images(base, [resolve(p, table) for p in card.images], image, rows)
    if without_file := int(path.isna().sum()):
        left_out["no image file"] = without_file
    path = path.dropna()
    kept = path.index
    columns: dict[str, Any] = {
        "image_id": image[kept],
        "patient_id": patient[kept],
        "study_id": exam[kept],
        "path": path,
    }
    report = read_reports(card, table, rows, kept, base, notes)
    raw = rows.frame if len(kept) == len(rows.frame) else rows.frame.loc[kept]
    facts, not_understood = _facts(table, raw, report)
    pa.default_memory_pool().release_unused()
    columns |= facts | read_masks(card, table, rows, kept, base)
    mined = None
    if card.labels and card.labels.encoding == "reports":
        found, mined = _mined(card.labels, columns)
        columns |= found
    elif card.labels:
        columns |= _labels(card.labels, rows, kept)
    columns |= read_boxes(card, rows, kept)
    if split and not split.override:
        columns["official_split"] = official[kept]
    manifest = pd.DataFrame(columns)
    if rule != "refuse":
        reader = rows.frame.loc[kept, table.reader] if table.reader else None
        manifest, several = one_row_an_image(manifest, rule, reader, notes)
        kept, left_out = manifest.index, left_out | ({SEVERAL: several} if several else {})
    manifest = manifests.validate(
        manifest.reset_index(drop=True),
        place=lambda row: f"card {card.name}, {rows.place(kept[row])}",
    )
    manifest.attrs["rows"] = len(rows.frame)
    manifest.attrs["left_out"] = left_out
    manifest.attrs["not_understood"] = not_understood
    if mined:
        manifest.attrs["mined"] = mined
    if notes:
        manifest.attrs["notes"] = notes
    return manifest


def _kept(rows: Rows, table: Table) -> tuple[pd.Index, dict[str, int]]:
    """Return the rows that meet the query and have ids, and the number of others by reason."""
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
    ids = [("image", table.image_id), ("patient", table.patient_id)]
    ids += [("study", name) for name in table.study_id]
    for what, name in ids:
        blank = cells.blank_cells(frame[name])
        if blank.all():
            raise CardError(
                f"{rows.place(frame.index[0])}: no row has a {what} id: column {name!r} is empty"
            )
        left_out[f"no {what} id"] = left_out.get(f"no {what} id", 0) + int(blank.sum())
        frame = frame[~blank]
    return frame.index, {reason: count for reason, count in left_out.items() if count}


def _refuse_twice(card: Card, table: Table, rows: Rows, image: pd.Series) -> None:
    """Refuse an image id in several rows of the table; rows that a join repeats are one."""
    if manifests.all_different(image):
        return
    own = pd.DataFrame({"file": rows.file[image.index], "line": rows.line[image.index]})
    image = image[~own.assign(image=image.to_numpy()).duplicated().to_numpy()]
    twice = image[image.duplicated(keep=False)]
    if len(twice):
        same = twice[twice == twice.iloc[0]]
        raise manifests.ManifestError(
            f"card {card.name}: {rows.places(same.index)}, column {table.image_id!r}, 'image_id': "
            f"{same.iloc[0]!r} appears a second time; image ids must be unique "
            f"({twice.nunique()} such ids). Keep one row an image, or say what several rows mean: "
            "`rows: any`, `majority` or `first` under table in the card"
        )


def _facts(
    table: Table, raw: pd.DataFrame, report: pd.Series | None
) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """Return columns of the manifest parsed cell by cell, and cells that are not understood."""
    columns: dict[str, Any] = {}
    unknown: dict[str, dict[str, int]] = {}

    def read(ours: str, column: str | None, parse: Any, given: Any = None) -> None:
        if column:
            columns[ours], counts = cells.understand(raw[column], parse, given)
            if counts:
                unknown[ours] = counts
            if ours not in ("view", "sex"):
                columns[ours] = columns[ours].astype(float)

    read("view", table.view, cells.parse_view, table.views)
    read("age", table.age, cells.parse_age)
    if table.sex:
        read("sex", table.sex, cells.sex_parser(raw[table.sex]), table.sexes)
    read("pixel_spacing", table.pixel_spacing, cells.parse_spacing)
    for device, position in table.malposition.items():
        name = f"malposition:{device}"
        if isinstance(position, str):
            read(name, position, cells.parse_flag)
            continue
        columns[name], counts = read_positions(position, raw)
        if counts:
            unknown[name] = counts
    if report is not None:
        columns["report"] = report
    for finding, column in table.sides.items():
        side = raw[column].fillna("")
        sides = {text: cells.parse_side(text) or text for text in side.unique()}
        columns[f"side:{finding}"] = side.map(sides)
    return columns, unknown


def _labels(labels: Labels, rows: Rows, kept: pd.Index) -> dict[str, pd.Series]:
    absent = 0.0 if labels.missing == "absent" else np.nan
    unlisted = 0.0 if labels.unlisted == "absent" else np.nan
    if labels.encoding == "columns":
        return read_columns(rows, kept, labels.theirs, labels.values, absent, unlisted)
    column, rare = str(labels.column), labels.may_be_absent
    return read_list(rows, kept, column, labels.separator, labels.theirs, absent, rare, unlisted)


def _mined(labels: Labels, columns: dict[str, Any]) -> tuple[dict[str, pd.Series], dict[str, Any]]:
    """Return labels mined from the reports, and the record of ``mining.mine_labels``."""
    from cxrstudy.data.mining import mine_labels  # reads word lists that most cards do not need

    if "report" not in columns:
        raise CardError(
            "labels.encoding is reports, but the card has no reports: name `report` under table"
        )
    rule = {"uncertain": labels.uncertain or "unknown", "missing": labels.missing}
    return mine_labels(columns["report"], columns["study_id"], labels.theirs, **rule)
