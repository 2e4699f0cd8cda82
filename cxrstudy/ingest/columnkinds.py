"""Tell what a column of a hospital's table holds, with the evidence: labels, reports, views ..."""

import re
from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from cxrstudy.data.columns import is_blank, parse_age, plain, sex_parser
from cxrstudy.data.labels import listed_names
from cxrstudy.data.lexicon import by_word, read_lexicon
from cxrstudy.data.reports import extract_labels
from cxrstudy.data.vocabulary import LABELS
from cxrstudy.ingest.bodyparts import fold
from cxrstudy.ingest.views import view_of_text

SAMPLE = 5000  # cells that are looked at
MOST = 0.9  # of the cells must be understood
NAMES = 300  # different names that a column of lists may hold
NONE = ("no_finding", "normal", "none", "o_b", "unauffallig")
DATE = re.compile(
    r"((19|20)\d\d([-./]?)[01]\d\3[0-3]\d|[0-3]?\d([-./])[0-3]?\d\4(19|20)?\d\d)([ T].*)?"
)
_LEXICON = read_lexicon("columns")


def _patterns(group: str) -> dict[str, re.Pattern[str]]:
    words = {name: "".join(text.split()) for name, text in _LEXICON[group].items()}
    return {name: re.compile(f"_(?:{text})") for name, text in words.items()}


KEYS, ROLES, NAMED = _patterns("keys"), _patterns("roles"), _patterns("labels")
_FLAGS = by_word({name: re.sub(r"\s*\|\s*", "|", t) for name, t in _LEXICON["flags"].items()}, "|")
VALUES = {"present": 1, "absent": 0, "uncertain": None}


@dataclass(frozen=True)
class Column:
    """What a column holds.

    ``kind`` is label, list, report, view, age, sex, birth, date, id or "". ``label`` is our name of
    a label, or the section of a report, if known. ``values`` maps cells to 1, 0 or None, or the
    names of a list to ours. ``separator`` is that of a list. ``evidence`` quotes no identifier.
    """

    table: str
    column: str
    name: str  # of the column in the joined frame
    kind: str
    evidence: str
    label: str = ""
    values: dict[str, int | str | None] = field(default_factory=dict)
    separator: str = ""


def names_of(text: str, patterns: dict[str, re.Pattern[str]]) -> list[str]:
    """Return which patterns the name of a column has; case, accents and signs do not count."""
    text = fold(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text))
    return [name for name, pattern in patterns.items() if pattern.search(text)]


def label_of(text: str) -> str:
    """Return our name of a finding or device, "" if a name means none or several."""
    named = set(names_of(text, NAMED))
    said = extract_labels(fold(text).strip("_").replace("_", " ") + ".")
    found = {name for name in LABELS if said.get(name) == "present"} or named
    return next(iter(found)) if len(found) == 1 and "none" not in named else ""


def kind_of_column(cells: pd.Series, table: str, column: str, name: str) -> Column:
    """Return what a column of text cells holds, by its cells first and its name second."""
    cells = cells.dropna()
    cells = cells.iloc[:: max(1, len(cells) // SAMPLE)]
    cells = cells[[not is_blank(cell) for cell in cells]]
    roles = names_of(column, ROLES)

    def made(kind: str, what: str, **more: object) -> Column:
        return Column(table, column, name, kind, f"{what} ({len(cells):,} looked at)", **more)  # type: ignore[arg-type]

    if cells.empty:
        return Column(table, column, name, "", "no cell has a value")
    counts = Counter(map(plain, cells))
    short = len(counts) <= 40 and max(map(len, counts)) <= 60

    def share(understood: list[bool]) -> float:
        return sum(n for n, yes in zip(counts.values(), understood, strict=True) if yes) / len(
            cells
        )

    flags = {cell: VALUES[_FLAGS[cell.casefold()]] for cell in counts if cell.casefold() in _FLAGS}
    numbers = share([bool(re.fullmatch(r"[-+\d.,eE]+", cell)) for cell in counts])
    if short:
        sex = sex_parser(cells)
        if (part := share([sex(cell) is not None for cell in counts])) >= MOST:
            return made("sex", f"{part:.0%} of the cells are sexes")
        views = [bool(view_of_text(cell)) for cell in counts]
        if (part := share(views)) >= (0.5 if "view" in roles else MOST) and "sex" not in roles:
            return made("view", f"{part:.0%} of the cells are views")
        told = len(counts) > 1 or label_of(column)  # a constant is a label by its name alone
        if told and len(flags) == len(counts) and not {"age", "sex", "view", "birth"} & set(roles):
            shown = ", ".join(f"{cell} {n}" for cell, n in counts.most_common())
            return made("label", f"cells: {shown}", label=label_of(column), values=flags)
    part = share([parse_age(cell) is not None for cell in counts])
    written = share([bool(re.fullmatch(r"\d{3}[YMWD]", cell)) for cell in counts])
    if ("age" in roles and part >= MOST / 2) or written >= MOST:
        return made("age", f"{part:.0%} of the cells are ages")
    if (part := share([bool(DATE.fullmatch(cell)) for cell in counts])) >= MOST:
        return made("birth" if "birth" in roles else "date", f"{part:.0%} of the cells are dates")
    words = sorted(len(cell.split()) for cell in cells)[len(cells) // 2]
    is_prose = words >= (4 if {"findings", "impression"} & set(roles) else 8)
    if is_prose and (len(counts) >= len(cells) / 2 or "findings" in roles):
        section = next((role for role in ("impression", "findings") if role in roles), "")
        return made("report", f"text, {words} words in the median cell", label=section)
    if numbers < MOST and (lists := _listed(counts)):
        separator, found = lists
        ours = {cell: ours for cell in found if (ours := label_of(cell))}
        named = sum(n for cell, n in found.items() if cell in ours or fold(cell).strip("_") in NONE)
        if ours and named >= found.total() / 5:
            what = f"lists of {len(found)} names, {len(ours)} of them ours"
            return made("list", what, values=ours, separator=separator)
    if 1 < len(counts) >= len(cells) / 2 and max(map(len, counts)) <= 100:
        return made("id", f"{len(counts) / len(cells):.0%} of the cells differ")
    return made("", f"{len(counts):,} different cells, of no known kind")


def _listed(counts: Counter[str]) -> tuple[str, Counter[str]] | None:
    """Return the separator of a column of lists, and the names with their counts."""
    best: tuple[str, Counter[str]] | None = None
    for separator in ("|", ";", ","):
        names: Counter[str] = Counter()
        for cell, n in counts.items():
            for name in listed_names(cell, separator):
                names[name] += n
        if names and len(names) <= NAMES and (best is None or len(names) < len(best[1])):
            best = separator, names
    return best
