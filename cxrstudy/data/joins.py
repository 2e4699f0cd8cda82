"""Columns from patterns and lists, tables joined by keys, several rows of an image made one."""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cxrstudy.data.cardparts import Rule
from cxrstudy.data.columns import blank_cells
from cxrstudy.data.ids import normal_ids
from cxrstudy.data.tables import CardError, Rows

GLUE = "\x1f"  # between the parts of a key
SHOWN = 3


# ---- columns from patterns and lists -------------------------------------------------------------
def extract(rows: Rows, patterns: Mapping[str, str], notes: list[str]) -> Rows:
    """Return rows with a column for each named group of ``patterns`` (column -> pattern).

    Cells that do not fit have no value, and are counted in ``notes``.

    Raises:
        CardError: no cell fits, or a group has the name of a column.
    """
    for column, pattern in patterns.items():
        cells = rows.frame[column]
        found = cells.str.extract(pattern)
        found = found[[name for name in found if isinstance(name, str)]]
        if both := sorted(set(found) & set(rows.frame)):
            raise CardError(
                f"{rows.files[0]} has a column {both[0]!r} already, so a group of extract needs "
                "another name"
            )
        lost = cells.notna() & found.isna().all(axis=1)
        if not found.notna().any(axis=None):
            first = cells.first_valid_index()
            at = rows.files[0] if first is None else rows.place(first, column)
            shown = "nothing" if first is None else repr(cells[first])
            raise CardError(
                f"{at}: no cell of column {column!r} fits the pattern {pattern!r} under extract; "
                f"the first holds {shown}"
            )
        if count := int(lost.sum()):
            notes.append(f"{count:,} cells of column {column!r} do not fit the pattern of extract")
        rows = replace(rows, frame=rows.frame.assign(**found))
    return rows


def explode(rows: Rows, columns: Sequence[str]) -> Rows:
    """Return a row for each entry of the lists (JSON or Python) in ``columns``.

    Raises:
        CardError: a cell is no list, or lists of a row differ in length.
    """
    if not columns:
        return rows
    lists: dict[str, list[list[Any]]] = {name: [] for name in columns}
    for row in rows.frame.index:
        for name in columns:
            cell = rows.frame.at[row, name]
            try:
                lists[name].append(_list(cell))
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                raise CardError(
                    f"{rows.place(row, name)}: column {name!r} holds {cell!r:.80}, which is no "
                    "list; name only columns of lists under explode"
                ) from None
        lengths = {name: len(lists[name][-1]) for name in columns}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name!r} {n}" for name, n in lengths.items())
            raise CardError(f"{rows.place(row)}: lists to explode differ in length: {said}")
    take = np.repeat(np.arange(len(rows.frame)), [len(entry) for entry in lists[columns[0]]])
    taken = rows.take(take)
    flat = {
        name: pd.Series([entry for cell in cells for entry in cell], dtype=str)
        for name, cells in lists.items()
    }
    return replace(taken, frame=taken.frame.assign(**flat))


def _list(cell: object) -> list[str | None]:
    if not isinstance(cell, str):
        return []
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        found = ast.literal_eval(cell)
    if not isinstance(found, list | tuple):
        raise ValueError(cell)
    return [None if entry in (None, "") else str(entry) for entry in found]


# ---- joins ---------------------------------------------------------------------------------------
def join(
    rows: Rows,
    other: Rows,
    keys: Mapping[str, str],
    rule: Rule,
    *,
    used: Sequence[str] = (),
    exact: bool = False,
    notes: list[str],
) -> Rows:
    """Return ``rows`` with the columns of ``other``; rows without a partner have no value in them.

    Keys are compared as they are written. Those without a partner are compared again in one
    spelling (``ids.normal_id``), unless that is ambiguous.

    Args:
        rows: ours.
        other: its columns are added, except those that ours has too.
        keys: our key column -> theirs.
        rule: several rows of ``other`` for one key: refuse; first; else one row of the result each.
        used: columns that the card uses: of two that both tables have, cells must be equal.
        exact: compare keys only as they are written.
        notes: gets a line with the match rate.

    Raises:
        CardError: no key matches, several rows match where one may, or a used column is ambiguous.
    """
    ours, theirs = _key(rows.frame, list(keys)), _key(other.frame, list(keys.values()))
    name = ", ".join(sorted({path.name for path in other.files})[:SHOWN])
    there = np.flatnonzero(theirs.notna())
    given = theirs.iloc[there].reset_index(drop=True)
    first = ~given.duplicated().to_numpy()
    if rule == "refuse" and not first.all():
        same = there[(given == given[~first].iloc[0]).to_numpy()]
        raise CardError(
            f"{other.places(other.frame.index[same])}: {int((~first).sum()):,} rows have a key "
            f"({', '.join(keys.values())}) that another row has too. Say what several rows mean: "
            "`rows: first`, `any` or `majority` beside `on` in the card"
        )
    unique = given[first].reset_index(drop=True)
    code = _positions(ours, unique)
    if not exact:
        code = _match_normal(ours, unique, code)
    matched = int((code >= 0).sum())
    if not matched:
        raise CardError(
            f"{name}: no row matches by {_said(keys)}: ours is {_example(ours)}, theirs "
            f"{_example(theirs)}. Correct `on`, or make a key of another spelling by `extract`"
        )
    notes.append(
        f"{name}: {matched:,} of {len(ours):,} rows ({matched / len(ours):.1%}) matched by "
        f"{_said(keys)}"
    )
    if first.all() or rule == "first":
        partner = np.where(code >= 0, there[np.flatnonzero(first)][code], -1)
        joined = rows
    else:
        take, partner = _expand(code, _positions(given, unique), len(unique))
        partner = np.where(partner >= 0, there[partner], -1)
        joined = rows.take(take)
    _refuse_ambiguous(joined, other, partner, set(used) - set(keys), name)
    return joined.beside(other, partner, set(keys.values()))


def _key(frame: pd.DataFrame, columns: list[str]) -> pd.Series:
    """Return key cells without outer blanks, joined; missing where one is blank."""
    parts = [frame[name].str.strip().mask(blank_cells(frame[name])) for name in columns]
    return parts[0].str.cat(parts[1:], sep=GLUE) if len(parts) > 1 else parts[0]


def _positions(keys: pd.Series, unique: pd.Series) -> np.ndarray:
    """Return where each key is in ``unique``, -1 if it is not or is missing."""
    found = pc.index_in(pa.array(keys, pa.large_string()), pa.array(unique, pa.large_string()))
    return found.fill_null(-1).to_numpy()


def _match_normal(ours: pd.Series, unique: pd.Series, code: np.ndarray) -> np.ndarray:
    """Return ``code`` with partners of keys that differ from theirs only in spelling."""
    open_keys = (code < 0) & ours.notna().to_numpy()
    if not open_keys.any():
        return code
    used = np.zeros(len(unique), bool)
    used[code[code >= 0]] = True
    left = np.flatnonzero(~used)
    normal = _normal(unique.iloc[left])
    clear = ~normal.duplicated(keep=False).to_numpy()
    if not clear.any():
        return code
    found = _positions(_normal(ours[open_keys]), normal[clear])
    code = code.copy()
    code[open_keys] = np.where(found >= 0, left[clear][found], -1)
    return code


def _normal(keys: pd.Series) -> pd.Series:
    """Return keys with each part in one spelling."""
    if not keys.str.contains(GLUE, regex=False).any():
        return normal_ids(keys)
    parts = keys.str.split(GLUE, expand=True)
    normal = [normal_ids(parts[name]) for name in parts]
    return normal[0].str.cat(normal[1:], sep=GLUE)


def _expand(code: np.ndarray, theirs: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of ours, and the partner of each, for every pair with one key."""
    counts, order = np.bincount(theirs, minlength=n), np.argsort(theirs, kind="stable")
    starts = counts.cumsum() - counts
    each = np.where(code >= 0, counts[code], 1)
    take = np.repeat(np.arange(len(code)), each)
    within = np.arange(len(take)) - np.repeat(each.cumsum() - each, each)
    found = code[take]
    return take, np.where(found >= 0, order[np.where(found >= 0, starts[found] + within, 0)], -1)


def _refuse_ambiguous(
    rows: Rows, other: Rows, partner: np.ndarray, used: set[str], name: str
) -> None:
    """Refuse a used column that both tables have, with different cells."""
    has = np.flatnonzero(partner >= 0)
    for column in sorted(used & set(rows.frame) & set(other.frame)):
        ours = rows.frame[column].iloc[has].fillna("").to_numpy()
        theirs = other.frame[column].iloc[partner[has]].fillna("").to_numpy()
        if (ours != theirs).any():
            row = rows.frame.index[has[np.argmax(ours != theirs)]]
            raise CardError(
                f"{rows.place(row, column)}: column {column!r} is in {name} too, with other cells. "
                f"Give one of them another name there: `rename: {{{column}: ...}}` in the card"
            )


def _said(keys: Mapping[str, str]) -> str:
    return ", ".join(a if a == b else f"{a} = {b}" for a, b in keys.items())


def _example(keys: pd.Series) -> str:
    first = keys.first_valid_index()
    return "empty" if first is None else repr(keys[first].replace(GLUE, ", "))


# ---- several rows of an image --------------------------------------------------------------------
def one_row_an_image(
    manifest: pd.DataFrame, rule: Rule, reader: pd.Series | None, notes: list[str]
) -> tuple[pd.DataFrame, int]:
    """Return one row for each image id, and how many rows are left out.

    Left out are images that rows give to several patients. Labels and positions: see ``Rule``;
    masks are united; of the other columns the first that is not empty is taken, and ``notes`` says
    how many images have rows that differ.

    Args:
        manifest: rows of the manifest, several an image. The index is kept, of the first of each.
        rule: any, majority (of the readers that say 0 or 1; a tie is unknown) or first.
        reader: of each row; rows of one reader are ``any`` first. None: each row is a reader.
        notes: gets sentences on what differed.

    Raises:
        CardError: rows of an image are in several official splits.
    """
    if not manifest["image_id"].duplicated().any():
        return manifest, 0
    patients = manifest.groupby("image_id")["patient_id"].transform("nunique")
    several, manifest = manifest[patients > 1], manifest[patients == 1]
    if manifest.empty:
        raise CardError("every image has rows of several patients: is patient_id right?")
    by = manifest.groupby("image_id", sort=False)
    voted = [name for name in manifest if name.startswith(("label:", "malposition:"))]
    masks = [name for name in manifest if name.startswith("mask:")]
    sides = [name for name in manifest if name.startswith("side:")]
    filled = manifest.assign(**{name: manifest[name].replace("", np.nan) for name in sides})
    result = filled.groupby("image_id", sort=False).first()
    result[sides] = result[sides].fillna("")
    others = [c for c in result if c not in (*voted, *masks, *sides, "path", "patient_id")]
    for name in others:
        differ = by[name].nunique() > 1
        if name == "official_split" and differ.any():
            image = differ.index[differ][0]
            splits = ", ".join(sorted(by.get_group(image)[name].unique()))
            raise CardError(f"image {image!r} has rows in several official splits: {splits}")
        if differ.any():
            notes.append(
                f"{int(differ.sum()):,} images have rows that differ in {name}: the first is taken"
            )
    for name in masks:
        result[name] = by[name].agg(lambda cells: "\n".join(dict.fromkeys(filter(None, cells))))
    if voted and rule != "first":
        result[voted] = _vote(manifest, voted, rule, reader).reindex(result.index)
    index = manifest.index[~manifest["image_id"].duplicated().to_numpy()]
    notes.append(f"{len(manifest):,} rows are of {len(result):,} images: rows: {rule}")
    result = result.reset_index().set_index(index)[list(manifest)]
    return result, len(several)


def _vote(
    manifest: pd.DataFrame, voted: list[str], rule: Rule, reader: pd.Series | None
) -> pd.DataFrame:
    """Return labels of each image: present for any, or for more than half of the readers."""
    image, values = manifest["image_id"], manifest[voted].astype(float)
    if reader is not None:
        values = values.groupby([image, reader[manifest.index].fillna("")], sort=False).max()
        image = values.index.get_level_values(0)
    by = values.groupby(image, sort=False)
    if rule == "any":
        return by.max()
    share = by.mean()
    return share.gt(0.5).astype(float).where(share.notna() & share.ne(0.5))
