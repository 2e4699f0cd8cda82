"""Labels of a table as ours: 1, 0 or missing; from one column that lists names, or from one column a label."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.data.columns import number, plain
from cxrstudy.data.tables import CardError, Rows
from cxrstudy.marks import near

QUOTED = r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\""
LIST = r"(?:\w+\()?\s*(\[.*\]|\(\s*['\"].*\)|\{.*\})\s*(?:,\s*dtype=[^)]*)?\)?"  # also numpy's array([...])


def listed_names(cell: str, separator: str) -> list[str]:
    """Return the names in a cell: joined by ``separator``, or a list as JSON, Python, numpy or SQL write it."""
    text = cell.strip()
    found = re.fullmatch(LIST, text, re.DOTALL)
    if found:
        inner = found[1][1:-1]
        try:
            names = json.loads(found[1])
            names = (
                [str(name) for name in names if name is not None]
                if isinstance(names, list)
                else [text]
            )
        except ValueError:
            quoted = [re.sub(r"\\(.)", r"\1", one or two) for one, two in re.findall(QUOTED, inner)]
            bare = re.sub(QUOTED, ",", inner)
            joint = rf"[,\n{re.escape(separator.strip())}]"
            names = quoted + [
                name for name in re.split(joint, bare) if name.strip() not in ("nan", "None")
            ]
    else:
        names = (
            re.split(re.escape(separator.strip()), text)
            if separator.strip()
            else re.split(separator[:1], text)
        )
    return [name for name in map(plain, names) if name]


def read_list(
    rows: Rows,
    kept: pd.Index,
    column: str,
    separator: str,
    names: Mapping[str, Collection[str]],
    absent: float,
    may_be_absent: Collection[str] | bool,
) -> dict[str, pd.Series]:
    """Return ``label:OURS`` for the ``kept`` rows: 1 where a cell of ``column`` lists one of ``names[OURS]``.

    Case and blanks around a name do not count. ``absent`` is the value where no name of a label is listed. Raises
    CardError for a name that no cell of the whole table lists, unless it is in ``may_be_absent``, and for a cell whose
    names ``separator`` does not part.
    """
    cells = rows.frame[column]
    parsed = {
        cell: {name.casefold() for name in listed_names(cell, separator)}
        for cell in cells.dropna().unique()
    }
    there = set().union(*parsed.values()) if parsed else set()
    wanted = {plain(theirs).casefold(): theirs for group in names.values() for theirs in group}
    for cell, given in parsed.items():
        for name in given - set(wanted):
            pieces = {plain(piece).casefold() for piece in re.split(r"[|;,/\t\n]|\s-\s", name)} - {
                ""
            }
            if len(pieces) > 1 and pieces & set(wanted) and pieces <= there | set(wanted):
                row = cells.index[cells == cell][0]
                raise CardError(
                    f"{rows.place(row)}: column {column!r} holds {cell!r}, which labels.separator {separator!r} does "
                    "not part into names: write the sign between the names there"
                )
    excused = {
        plain(name).casefold()
        for name in (may_be_absent if not isinstance(may_be_absent, bool) else ())
    }
    excused |= set(wanted) if may_be_absent is True else set()
    for ours, group in names.items():
        for theirs in group:
            if not {plain(theirs).casefold()} & (there | excused):
                shown = sorted({name for cell in parsed for name in listed_names(cell, separator)})
                raise CardError(
                    f"no row of column {column!r} lists {theirs!r}, the card's name of {ours}"
                    f"{near(theirs, shown)}. It lists {', '.join(map(repr, shown[:30])) or 'no name at all'}"
                    f"{f' and {len(shown) - 30} more' if len(shown) > 30 else ''}. Mend the name under labels.names; "
                    f"if it is right and only rare, write `may_be_absent: [{theirs}]` under labels in the card"
                )
    given = cells[kept].map(parsed)
    columns = {}
    for ours, group in names.items():
        theirs_ = {plain(theirs).casefold() for theirs in group}
        listed = given.map(
            lambda found, theirs_=theirs_: isinstance(found, set) and bool(found & theirs_)
        )
        columns[f"label:{ours}"] = pd.Series(np.where(listed.astype(bool), 1.0, absent), index=kept)
    return columns


def match_value(values: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return a function from a cell to its value under ``values``; KeyError where the card does not map it.

    Numbers compare as numbers (``1``, ``1.0`` and ``True`` are one), words whatever their case.
    """
    loose: dict[Any, set[Any]] = {}
    for key, value in values.items():
        loose.setdefault(plain(key).casefold(), set()).add(value)
        if number(key) is not None:
            loose.setdefault(number(key), set()).add(value)

    def value_of(cell: str) -> Any:
        if cell in values:
            return values[cell]
        for key in (plain(cell).casefold(), number(cell)):
            if len(loose.get(key, ())) == 1:
                return next(iter(loose[key]))
        raise KeyError(cell)

    return value_of


def read_columns(
    rows: Rows,
    kept: pd.Index,
    names: Mapping[str, Collection[str]],
    values: Mapping[str, Any],
    absent: float,
) -> dict[str, pd.Series]:
    """Return ``label:OURS`` for the ``kept`` rows from the columns ``names[OURS]``: present where any of them is.

    ``absent`` is the value of an empty cell. Raises CardError for values that ``values`` does not map.
    """
    value_of = match_value(values)
    columns = {}
    for ours, group in names.items():
        numbers = []
        for theirs in group:
            text = rows.frame.loc[kept, theirs]
            mapped, unmapped = {}, {}
            for cell, count in text.dropna().value_counts().items():
                try:
                    value = value_of(cell)
                    mapped[cell] = np.nan if value is None else float(value)
                except KeyError:
                    unmapped[cell] = int(count)
            if unmapped:
                bad = text[text.isin(list(unmapped))]
                told = ", ".join(
                    f"{cell!r} ({count})" for cell, count in list(unmapped.items())[:20]
                )
                more = f" and {len(unmapped) - 20} more values" if len(unmapped) > 20 else ""
                raise CardError(
                    f"{rows.place(bad.index[0])}: column {theirs!r} holds {bad.iloc[0]!r}, which labels.values of the "
                    f"card does not map. Not mapped are {len(bad)} cells of this column: {told}{more}; the card maps "
                    f"{', '.join(map(repr, values)) or 'nothing'}. Add them as 1, 0 or null (unknown)"
                )
            numbers.append(text.map(mapped).astype(float).where(text.notna(), absent))
        columns[f"label:{ours}"] = pd.concat(numbers, axis=1).max(axis=1)
    return columns
