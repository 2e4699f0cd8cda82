"""Masks, positions, reports and official splits of a card's rows, as columns of a manifest."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.data import columns as cells
from cxrstudy.data import shapes
from cxrstudy.data.below import link_message, links_out
from cxrstudy.data.cardfile import Card, Table
from cxrstudy.data.cardparts import Position, RunLengths, Split
from cxrstudy.data.cardrows import BOX, LINE, resolve, size_of
from cxrstudy.data.labels import folded
from cxrstudy.data.locate import fill, find_filled, find_listed
from cxrstudy.data.tables import CardError, Rows

LONGEST = 2**20  # bytes of a report
READERS = 8  # threads that read reports


# ---- masks ---------------------------------------------------------------------------------------
def read_masks(
    card: Card, table: Table, rows: Rows, kept: pd.Index, base: Path
) -> dict[str, pd.Series]:
    """Return ``mask:DEVICE`` of the ``kept`` rows: paths and references, empty if there is none.

    Raises:
        CardError: a file is not there, or cells are no masks.
    """
    found: dict[str, pd.Series] = {}
    for device, mask in table.masks.items():
        if isinstance(mask, RunLengths):
            own = _run_lengths(rows, kept, mask)
        else:
            own = _files(rows, rows.frame.loc[kept, mask], base)
        found[f"mask:{device}"] = own
    for device in card.polylines.names if card.polylines else ():
        lines = rows.frame.loc[kept, LINE + device].fillna("")
        drawn = found.get(f"mask:{device}")
        found[f"mask:{device}"] = lines if drawn is None else (drawn + "\n" + lines).str.strip("\n")
    return found


def _files(rows: Rows, column: pd.Series, base: Path) -> pd.Series:
    """Return the file of each mask, empty if there is none; refuse one that does not exist."""
    names = column.dropna().unique()
    try:
        found = find_listed(base, names)
    except CardError as error:
        raise CardError(f"column {column.name!r}: {error}") from None
    gone = [name for name in names if name not in found]
    if gone:
        row = column.index[column == gone[0]][0]
        raise CardError(
            f"{rows.place(row, str(column.name))}: column {column.name!r} names a mask {gone[0]!r} "
            f"that is not under {base} ({len(gone)} such masks); copy it there, or leave the cell "
            "empty"
        )
    for file in links_out(base, found.values()):
        row = column.index[column.map(found) == file][0]
        at = rows.place(row, str(column.name))
        raise CardError(f"{at}: column {column.name!r}: {link_message(base, file)}")
    return column.map(found).fillna("")


def _run_lengths(rows: Rows, kept: pd.Index, mask: RunLengths) -> pd.Series:
    """Return references of masks given as run lengths."""
    first = mask.first if mask.first is not None else int(not mask.relative)
    nothing, found = {text.strip() for text in mask.none}, []
    for row, cell in rows.frame.loc[kept, mask.column].items():
        if not isinstance(cell, str) or cell.strip() in nothing:
            found.append("")
            continue
        try:
            size = size_of(mask.size, rows, row)
            relative, transposed = mask.relative, mask.transposed
            found.append(
                shapes.run_lengths(
                    cell, size, relative=relative, transposed=transposed, first=first
                )
            )
        except ValueError as error:
            raise CardError(
                f"{rows.place(row, mask.column)}: column {mask.column!r} holds {cell!r:.60}: "
                f"{error}. If the cell means that there is no mask, list it under `none`"
            ) from None
    return pd.Series(found, index=kept, dtype=str)


# ---- positions -----------------------------------------------------------------------------------
def read_positions(position: Position, raw: pd.DataFrame) -> tuple[pd.Series, dict[str, int]]:
    """Return 1 where a tip is malpositioned, 0 where it is correct, and cells not understood.

    Malpositioned comes first, where several devices of a kind are in both states.
    """
    unknown: dict[str, int] = {}

    def flagged(names: list[str]) -> pd.Series:
        flags = []
        for name in names:
            values, counts = cells.understand(raw[name], cells.parse_flag)
            unknown.update(counts)
            flags.append(values.eq(1))
        return pd.concat(flags, axis=1).any(axis=1)

    def listed(names: list[str]) -> pd.Series:
        return raw[position.column].map(folded, na_action="ignore").isin(set(map(folded, names)))

    read: Callable[[list[str]], pd.Series] = listed if position.column else flagged
    wrong, right = read(position.malpositioned), read(position.correct)
    values = np.where(wrong, 1.0, np.where(right, 0.0, np.nan))
    return pd.Series(values, index=raw.index), unknown


# ---- reports -------------------------------------------------------------------------------------
def read_reports(
    card: Card, table: Table, rows: Rows, kept: pd.Index, base: Path, notes: list[str]
) -> pd.Series | None:
    """Return the report of each row, missing if it has none; None if the card names none.

    Raises:
        CardError: no file of a report is there.
    """
    if card.reports:
        return _report_files(card, table, rows, kept, base, notes)
    columns = table.reports
    if isinstance(table.report, str):
        return rows.frame.loc[kept, table.report]
    if not columns:
        return None
    parts = []
    for header, name in columns.items():
        text = rows.frame.loc[kept, name].str.strip()
        parts.append((f"{header}: " + text).mask(cells.blank_cells(text)))
    joined = ["\n".join(p for p in row if isinstance(p, str)) for row in zip(*parts, strict=True)]
    return pd.Series([text or None for text in joined], index=kept, dtype=str)


def _report_files(
    card: Card, table: Table, rows: Rows, kept: pd.Index, base: Path, notes: list[str]
) -> pd.Series:
    assert card.reports
    template, wanted = resolve(card.reports.path, table), card.reports.sections
    paths = fill(template, rows.frame.loc[kept])
    found = find_filled(base, paths, template, rows)
    for file in links_out(base, found.values()):
        raise CardError(f"reports: {link_message(base, file)}")
    if not found:
        raise CardError(
            f"reports: none of {paths.nunique():,} files is under {base} as {template}: the first "
            f"would be {paths.iloc[0]!r}"
        )
    with ThreadPoolExecutor(READERS) as pool:
        texts = dict(zip(found, pool.map(lambda f: _text(f, wanted), found.values()), strict=True))
    report = paths.map(texts)
    if lost := int(report.isna().sum()):
        missing = int(paths.map(found).isna().sum())
        empty = f", {lost - missing:,} because theirs is empty" if lost > missing else ""
        notes.append(f"{lost:,} of {len(kept):,} images have no report{empty} ({template})")
    return report.astype(str).where(report.notna())


def _text(file: str, wanted: list[str]) -> str | None:
    """Return the text of a report, or the sections that are wanted; None if it is empty."""
    with open(file, "rb") as opened:
        data = opened.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise CardError(f"{file} is no report: it has more than {LONGEST:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    text = text.replace("\0", "").strip()
    if wanted and text:
        from cxrstudy.data.reports import sections  # reads word lists that most cards do not need

        found = sections(text)
        own = [(name, found[name.lower()]) for name in wanted if found.get(name.lower())]
        text = "\n".join(f"{name.upper()}: {part}" for name, part in own)
    return text or None


# ---- official split ------------------------------------------------------------------------------
def read_split(split: Split, rows: Rows, kept: pd.Index) -> tuple[pd.Series, dict[str, int]]:
    """Return ``official_split`` (``train``, or ``pretrain+train``) of rows with one, and losses.

    Raises:
        CardError: a cell is not mapped, or no row is left.
    """
    theirs = {
        folded(name): "" if ours is None else "+".join([ours] if isinstance(ours, str) else ours)
        for name, ours in split.names.items()
    }
    column = rows.frame.loc[kept, split.column]
    blank = cells.blank_cells(column) & ~column.map(folded, na_action="ignore").isin(theirs)
    column = column[~blank.to_numpy()]
    mapped: dict[Any, str | None] = {cell: theirs.get(folded(cell)) for cell in column.unique()}
    for cell, ours in mapped.items():
        if ours is None:
            row = column.index[column == cell][0]
            raise CardError(
                f"{rows.place(row, split.column)}: column {split.column!r} holds {cell!r}, which "
                f"split.names of the card does not map; it maps {', '.join(split.names)}. null "
                "leaves these images out"
            )
    found = column.map(mapped)
    used = found[found != ""]
    if used.empty:
        raise CardError(f"column {split.column!r}: no image is in a split that split.names keeps")
    lost = {"no official split": int(blank.sum()), "left out by split": len(found) - len(used)}
    return used, {reason: count for reason, count in lost.items() if count}


def read_boxes(card: Card, rows: Rows, kept: pd.Index) -> dict[str, pd.Series]:
    """Return ``label:NAME`` from boxes, as 1, 0 or missing."""
    names = card.boxes.names if card.boxes else ()
    return {
        f"label:{name}": pd.to_numeric(rows.frame.loc[kept, BOX + name]).astype(float)
        for name in names
    }
