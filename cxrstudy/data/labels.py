"""Read labels of a table as 1, 0 or missing, from one column of names or from a column a label."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.data.columns import number, plain
from cxrstudy.data.tables import CardError, Rows
from cxrstudy.marks import near

OTHERS = "*"  # in ``labels.values``: every other cell
QUOTED = r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\""
LIST = (  # also numpy's array([...])
    r"(?:\w+\()?\s*(\[.*\]|\(\s*['\"].*\)|\{.*\})\s*(?:,\s*dtype=[^)]*)?\)?"
)


def listed_names(cell: str, separator: str) -> list[str]:
    """Return the names in a cell: joined by ``separator``, or a JSON, Python, numpy or SQL list."""
    text = cell.strip()
    if found := re.fullmatch(LIST, text, re.DOTALL):
        try:
            names = json.loads(found[1])
            named = isinstance(names, list)
            names = [str(name) for name in names if name is not None] if named else [text]
        except (ValueError, RecursionError):
            inner = found[1][1:-1]
            quoted = [re.sub(r"\\(.)", r"\1", one or two) for one, two in re.findall(QUOTED, inner)]
            joint = rf"[,\n{re.escape(separator.strip())}]"
            bare = re.split(joint, re.sub(QUOTED, ",", inner))
            names = quoted + [name for name in bare if name.strip() not in ("nan", "None")]
    else:
        names = text.split(separator.strip() or separator[:1])
    return [name for name in map(plain, names) if name]


def folded(name: str) -> str:
    """Return a name as names are compared: without case and outer blanks."""
    return plain(name).casefold()


def read_list(
    rows: Rows,
    kept: pd.Index,
    column: str,
    separator: str,
    names: Mapping[str, Collection[str]],
    absent: float,
    may_be_absent: Collection[str] | bool,
    unlisted: float = np.nan,
) -> dict[str, pd.Series]:
    """Return ``label:OURS`` for the ``kept`` rows: 1 if the cell lists one of ``names[OURS]``.

    Case and blanks around a name do not count.

    Args:
        rows: the table.
        kept: index of the rows to read.
        column: whose cells list names.
        separator: between names.
        names: our name -> names in the table.
        absent: the value if no name of a label is listed.
        may_be_absent: names that no row need list; True for all.
        unlisted: the value where a joined table has no row.

    Raises:
        CardError: no cell of the whole table lists a name, or ``separator`` does not separate the
            names of a cell.
    """
    cells = rows.frame[column]
    listed = {cell: listed_names(cell, separator) for cell in cells.dropna().unique()}
    parsed = {cell: {name.casefold() for name in found} for cell, found in listed.items()}
    there = set().union(*parsed.values()) if parsed else set()
    wanted = {folded(name) for group in names.values() for name in group}
    for cell, given in parsed.items():
        if any(_holds_several(name, wanted, there) for name in given - wanted):
            raise CardError(
                f"{rows.place(cells.index[cells == cell][0], column)}: column {column!r} holds "
                f"{cell!r}, which labels.separator {separator!r} does not split into names: write "
                "the sign between the names there"
            )
    excused = wanted if may_be_absent is True else set(map(folded, may_be_absent or ()))
    for ours, group in names.items():
        for name in group:
            if folded(name) not in there | excused:
                shown = sorted({each for found in listed.values() for each in found})
                more = f" and {len(shown) - 30} more" if len(shown) > 30 else ""
                raise CardError(
                    f"no row of column {column!r} lists {name!r}, the card's name of {ours}"
                    f"{near(name, shown)}. It lists "
                    f"{', '.join(map(repr, shown[:30])) or 'no name at all'}{more}. Correct the "
                    "name under labels.names. If it is right and only rare, write "
                    f"`may_be_absent: [{name}]` under labels in the card"
                )
    columns = {}
    for ours, group in names.items():
        own = set(map(folded, group))
        present = cells[kept].map({cell: bool(found & own) for cell, found in parsed.items()})
        no = _of_blanks(rows, kept, column, absent, unlisted)
        columns[f"label:{ours}"] = pd.Series(np.where(present.eq(True), 1.0, no), index=kept)
    return columns


def _holds_several(name: str, wanted: set[str], there: set[str]) -> bool:
    """Return whether a listed name is several names with another separator between them."""
    pieces = {folded(piece) for piece in re.split(r"[|;,/\t\n]|\s-\s", name)} - {""}
    return len(pieces) > 1 and bool(pieces & wanted) and pieces <= there | wanted


def match_value(values: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return a function from a cell to its value under ``values``; KeyError if it is not mapped.

    Numbers compare as numbers (``1``, ``1.0`` and ``True`` are one), words without case. ``*`` maps
    every other cell.
    """
    loose: dict[Any, set[Any]] = {}
    for key, value in values.items():
        loose.setdefault(folded(key), set()).add(value)
        if number(key) is not None:
            loose.setdefault(number(key), set()).add(value)

    def value_of(cell: str) -> Any:
        if cell in values:
            return values[cell]
        for key in (folded(cell), number(cell)):
            if len(loose.get(key, ())) == 1:
                return next(iter(loose[key]))
        return values[OTHERS]

    return value_of


def read_columns(
    rows: Rows,
    kept: pd.Index,
    names: Mapping[str, Collection[str]],
    values: Mapping[str, Any],
    absent: float,
    unlisted: float = np.nan,
) -> dict[str, pd.Series]:
    """Return ``label:OURS`` for the ``kept`` rows: present if any column ``names[OURS]`` says so.

    Args:
        rows: the table.
        kept: index of the rows to read.
        names: our name -> columns.
        values: cell -> 1, 0 or None (unknown).
        absent: the value of an empty cell.
        unlisted: the value where a joined table has no row.

    Raises:
        CardError: a cell is not mapped.
    """
    value_of = match_value(values)
    columns = {}
    for ours, group in names.items():
        numbers = []
        for name in group:
            text = rows.frame.loc[kept, name]
            mapped, unmapped = {}, {}
            for cell, count in text.dropna().value_counts().items():
                try:
                    value = value_of(cell)
                    mapped[cell] = np.nan if value is None else float(value)
                except KeyError:
                    unmapped[cell] = int(count)
            if unmapped:
                bad = text[text.isin(list(unmapped))]
                shown = ", ".join(f"{cell!r} ({n})" for cell, n in list(unmapped.items())[:20])
                more = f" and {len(unmapped) - 20} more values" if len(unmapped) > 20 else ""
                raise CardError(
                    f"{rows.place(bad.index[0], name)}: column {name!r} holds {bad.iloc[0]!r}, "
                    f"which labels.values of the card does not map. Not mapped are {len(bad)} "
                    f"cells of this column: {shown}{more}. The card maps "
                    f"{', '.join(map(repr, values)) or 'nothing'}. Add the values as 1, 0 or null "
                    "(unknown)"
                )
            blank = _of_blanks(rows, kept, name, absent, unlisted)
            numbers.append(text.map(mapped).astype(float).where(text.notna(), blank))
        columns[f"label:{ours}"] = pd.concat(numbers, axis=1).max(axis=1)
    return columns


def _of_blanks(
    rows: Rows, kept: pd.Index, column: str, absent: float, unlisted: float
) -> np.ndarray:
    """Return (N,) what an empty cell means: ``unlisted`` where a joined table has no row."""
    if column not in rows.joined:
        return np.full(len(kept), absent)
    return np.where(rows.joined[column][1][kept] < 0, unlisted, absent)
