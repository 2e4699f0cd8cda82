"""Read all tables that a card names as one table of text, a row an image and reader."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cxrstudy.data import shapes
from cxrstudy.data.below import refuse_links_out
from cxrstudy.data.cardfile import Card, Table
from cxrstudy.data.cardparts import Boxes, Named, Polylines, Rule, RunLengths, Size, Source
from cxrstudy.data.joins import explode, extract, join
from cxrstudy.data.labels import folded
from cxrstudy.data.locate import fields, find_images
from cxrstudy.data.tables import CardError, Rows, read_tables
from cxrstudy.marks import near

OF_TABLE, OF_IMAGE = "@table", "@image"  # columns with the path of a row's table, and of its image
BOX = "@box:"  # columns made from boxes, a label each
LINE = "@line:"  # columns made from polylines, a device each


def read_rows(card: Card, table: Table, base: Path) -> tuple[Rows, Rule, list[str]]:
    """Return the rows of a card's tables, joined; how several of an image count; and notes.

    Raises:
        CardError: naming file, line, column and remedy.
    """
    notes: list[str] = []
    used, keep = used_columns(card, table), _with_meaning(card, table)
    named = [part for part in (card.polylines, card.boxes) if part]
    keys = [key for part in (*card.tables, *named) for key in part.keys]
    made = table.groups | {OF_TABLE, OF_IMAGE}
    own = [name for name in used if name not in {*made, table.reader}]  # a file may name none
    needed = [name for name in (*card.tables[0].keys,) if name not in made] if card.tables else own
    asked = [name.strip("`") for name in re.findall(r"`[^`]+`|\w+", table.query)]
    rows = _read(table, "table", base, card.access, needed, [*used, *keys], keep)
    early = {c: pattern for c, pattern in table.extract.items() if c in rows.frame}
    rows = extract(explode(rows, table.explode), early, notes)
    if OF_IMAGE in table.extract:
        _need(rows, [table.image_id])
        rows = _with_image(card, table, rows, base)
        rows = extract(rows, {OF_IMAGE: table.extract[OF_IMAGE]}, notes)
    rule = table.rows
    for number, part in enumerate(card.tables):
        where = f"tables {number + 1} ({part.path})"
        other = _read(part, where, base, card.access, [*part.keys.values()], [*used, *asked], keep)
        other = extract(explode(other, part.explode), part.extract, notes)
        other = _meets(other, part, where)
        _need(rows, part.keys, near_of=where)
        exact = table.ids == "exact"
        rows = join(rows, other, part.keys, part.rows, used=used, exact=exact, notes=notes)
        if part.rows in ("any", "majority"):
            if rule not in ("refuse", part.rows):
                raise CardError(f"{where}: rows is {part.rows}, but {rule} elsewhere: write one")
            rule = part.rows
    late = {c: p for c, p in table.extract.items() if c not in early and c != OF_IMAGE}
    _need(rows, late)
    rows = extract(rows, late, notes)
    for part in named:
        where = "polylines" if isinstance(part, Polylines) else "boxes"
        _need(rows, part.keys, near_of=where)
        rows = join(rows, _drawn(part, where, card, base, notes), part.keys, "refuse", notes=notes)
    _need(rows, used)
    return rows, rule, notes


def used_columns(card: Card, table: Table) -> list[str]:
    """Return the columns that a card maps, in any of its tables."""
    used = [table.image_id, table.patient_id, *table.study_id]
    used += [c for c in (table.view, table.age, table.sex, table.pixel_spacing, table.reader) if c]
    used += [*table.reports.values(), *table.sides.values()]
    for mask in table.masks.values():
        used += mask.columns if isinstance(mask, RunLengths) else [mask]
    for position in table.malposition.values():
        used += [position] if isinstance(position, str) else position.columns
    used += [table.split.column] if table.split else []
    for template in (*card.images, card.reports.path if card.reports else ""):
        used += [alias(name, table) for name in fields(template)]
    labels = card.labels
    if labels and labels.encoding == "columns":
        used += [name for names in labels.theirs.values() for name in names]
    elif labels and labels.column:
        used.append(labels.column)
    elif labels and labels.encoding == "list":
        raise CardError(
            "labels.encoding is list, so labels.column must name the column that lists them"
        )
    return list(dict.fromkeys(used))


def alias(name: str, table: Table) -> str:
    """Return the column that a path template's ``{image_id}`` or ``{patient_id}`` stands for."""
    return {"image_id": table.image_id, "patient_id": table.patient_id}.get(name, name)


def resolve(template: str, table: Table) -> str:
    """Return a path template with our names of columns replaced by theirs."""
    for name in fields(template):
        template = template.replace(f"{{{name}", f"{{{alias(name, table)}")
    return template


def _with_meaning(card: Card, table: Table) -> list[str]:
    """Return cells that the card gives a meaning, although they may look like missing ones."""
    keep = [*table.views, *table.sexes]
    if card.labels:
        keep += [*card.labels.values, *(n for names in card.labels.theirs.values() for n in names)]
    for mask in table.masks.values():
        keep += mask.none if isinstance(mask, RunLengths) else []
    return keep + [name for name in (table.split.names if table.split else ())]


def _read(
    source: Source,
    where: str,
    base: Path,
    access: str,
    needed: Iterable[str],
    also: Iterable[str],
    keep: list[str],
) -> Rows:
    """Read the tables of one entry of the card."""
    try:
        paths = sorted(p for p in base.glob(source.path) if not p.name.startswith(("._", "~$")))
    except (NotImplementedError, ValueError) as error:
        raise CardError(f"{where}: {source.path!r}: {error}; give a path below root") from None
    if not paths:
        raise CardError(f"no table {source.path} under {base}; {access}")
    refuse_links_out(base, paths)
    own = {*source.extract, *source.explode} - {OF_TABLE, OF_IMAGE}
    rows = read_tables(
        paths,
        used=[name for name in needed if name not in source.groups],
        separator=source.separator,
        encoding=source.encoding,
        query=source.query,
        keep=keep,
        also=[name for name in (*also, *own) if name not in source.groups],
        rename=source.rename,
    )
    if OF_TABLE in source.extract:
        names = np.array([path.relative_to(base).as_posix() for path in paths], dtype=object)
        cells = pd.Series(names[rows.file], index=rows.frame.index, dtype=str)
        rows = replace(rows, frame=rows.frame.assign(**{OF_TABLE: cells}))
    return rows


def _with_image(card: Card, table: Table, rows: Rows, base: Path) -> Rows:
    """Return rows with the path of their image below root, missing if it has none."""
    ids = rows.frame[table.image_id].dropna().drop_duplicates()
    files = find_images(base, [resolve(p, table) for p in card.images], ids, rows)
    below = files.dropna().str.removeprefix(f"{base}/")
    names = dict(zip(ids[below.index], below, strict=True))
    cells = rows.frame[table.image_id].map(names).astype(str).where(lambda c: c.notna())
    return replace(rows, frame=rows.frame.assign(**{OF_IMAGE: cells}))


def _meets(rows: Rows, source: Source, where: str) -> Rows:
    """Return the rows that meet the query of a joined table."""
    if not source.query:
        return rows
    try:
        kept = rows.frame.query(source.query).index
    except Exception as error:  # pandas raises a dozen kinds
        raise CardError(f"{where}: query {source.query!r} does not hold: {error}") from error
    if kept.empty:
        raise CardError(f"{where}: query {source.query!r} keeps no row of {len(rows.frame)}")
    return rows.take(kept.to_numpy())


def _need(rows: Rows, names: Iterable[str], near_of: str = "") -> None:
    """Refuse columns that no table has."""
    for name in names:
        if name not in rows.frame:
            sources = [rows, *(other for other, _ in rows.joined.values())]
            files = ", ".join(dict.fromkeys(path.name for each in sources for path in each.files))
            asked = f", the key `on` of {near_of}" if near_of else ""
            raise CardError(
                f"{files:.200}: no column {name!r}{asked}; there is "
                f"{', '.join(list(rows.frame)[:60])}{near(name, rows.frame)}"
            )


# ---- tables with a row a drawn thing -------------------------------------------------------------
def _drawn(part: Named, where: str, card: Card, base: Path, notes: list[str]) -> Rows:
    """Return one row a key, with a column for each of our names."""
    used = [*part.keys.values(), part.label]
    if isinstance(part, Polylines):
        used += [part.points, *(side for side in part.size or () if isinstance(side, str))]
    elif isinstance(part, Boxes) and part.reader:
        used.append(part.reader)
    keep = [name for names in part.theirs.values() for name in names]
    rows = _read(part, where, base, card.access, used, (), keep)
    rows = _meets(extract(explode(rows, part.explode), part.extract, notes), part, where)
    names = rows.frame[part.label]
    there = {folded(name) for name in names.dropna().unique()}
    for ours, group in part.theirs.items():
        for name in group:
            if folded(name) not in there:
                raise CardError(
                    f"{rows.files[0]}: no row of column {part.label!r} is {name!r}, the card's "
                    f"name of {ours}{near(name, names.dropna().unique())}; correct {where}.names"
                )
    frame, keys = rows.frame, list(part.keys.values())
    by = frame.groupby(keys, sort=False)
    first = frame.index[~frame.duplicated(keys).to_numpy() & frame[keys].notna().all(axis=1)]
    group_of = by.ngroup()
    result = rows.take(first.to_numpy())
    columns = {}
    for ours, group in part.theirs.items():
        own = names.map(folded, na_action="ignore").isin({folded(name) for name in group})
        if isinstance(part, Polylines):
            columns[LINE + ours] = _lines(rows, part, own, group_of, len(first))
        elif isinstance(part, Boxes):
            columns[BOX + ours] = _boxes(frame, part, own, group_of, len(first))
    return replace(result, frame=result.frame[keys].assign(**columns))


def _lines(rows: Rows, part: Polylines, own: pd.Series, group: pd.Series, n: int) -> pd.Series:
    """Return the references of the lines of each key, missing if it has none."""
    found: dict[int, list[str]] = {}
    for row in own.index[own & (group >= 0)]:
        cell = rows.frame[part.points][row]
        if isinstance(cell, str):
            try:
                line = shapes.polyline(cell, size_of(part.size, rows, row), part.width)
            except (ValueError, TypeError) as error:
                raise CardError(
                    f"{rows.place(row)}: column {part.points!r} holds {cell!r:.60}: {error}"
                ) from None
            found.setdefault(int(group[row]), []).append(line)
    return pd.Series({k: "\n".join(lines) for k, lines in found.items()}, dtype=str).reindex(
        range(n)
    )


def _boxes(frame: pd.DataFrame, part: Boxes, own: pd.Series, group: pd.Series, n: int) -> pd.Series:
    """Return 1 or 0 of each key as text: whether it has a box; missing where that is unknown."""
    readers = frame[part.reader].fillna("") if part.reader else pd.Series("", index=frame.index)
    has = own.astype(float).groupby([group, readers]).max().groupby(level=0).mean()
    present = has.gt(0 if part.rows == "any" else 0.5).reindex(range(n))
    return present.map({True: "1", False: "0" if part.missing == "absent" else None}).astype(str)


def size_of(size: Size | None, rows: Rows, row: int) -> tuple[int, int]:
    """Return height and width in px that a card gives, by number or column; ``shapes.OWN`` if none.

    Raises:
        ValueError: a cell is no size.
    """
    if size is None:
        return shapes.OWN
    height, width = (
        side if isinstance(side, int) else int(float(str(rows.frame[side][row]))) for side in size
    )
    if height < 1 or width < 1:
        raise ValueError(f"a size of {height} x {width}")
    return height, width
