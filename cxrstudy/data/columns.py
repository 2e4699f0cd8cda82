"""Parse cells of a table: ages, sexes, views, sides and numbers in their common spellings."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import pandas as pd

from cxrstudy.data.lexicon import by_word, word_set

OLDEST = 130  # years; typing errors such as 414 occur
YEARS = {"year": 1.0, "month": 1 / 12, "week": 7 / 365.25, "day": 1 / 365.25}
UNITS = by_word(
    {
        "year": "year|years|y|yr|yrs|yo",
        "month": "month|months|m|mo|mos|mth|mths|mon",
        "week": "week|weeks|w|wk|wks",
        "day": "day|days|d|dy|dys",
    },
    "|",
)
NUMBER = r"\d+(?:[.,]\d+)?"
VIEWS = by_word(
    {  # no oblique, no decubitus (LLD), no lordotic
        "PA": "PA|P A|POSTEROANTERIOR|POSTERO ANTERIOR|POSTERIOR ANTERIOR|POSTERIOANTERIOR",
        "AP": "AP|A P|ANTEROPOSTERIOR|ANTERO POSTERIOR|ANTERIOR POSTERIOR|ANTERIOPOSTERIOR",
        "LATERAL": "LATERAL|LAT|LL|RL|LLAT|RLAT",
    },
    "|",
)
for side in ("L", "R", "LEFT", "RIGHT"):
    for lateral in ("LATERAL", "LAT"):
        VIEWS[f"{side} {lateral}"] = VIEWS[f"{lateral} {side}"] = "LATERAL"
POSITIONS = word_set(  # words that do not change a view; "frontal" alone may be PA or AP
    "ERECT SEMI SEMIERECT UPRIGHT STANDING SITTING SEATED SUPINE HORIZONTAL BED PORTABLE MOBILE "
    "BEDSIDE CHEST THORAX CXR XRAY RADIOGRAPH VIEW PROJECTION FRONTAL"
)
SEXES = by_word(
    {
        "F": "f|female|fem|woman|girl|w|weiblich|femenino|feminino|femme",
        "M": "m|male|man|boy|männlich|masculino|masculin|homme|hombre",
    },
    "|",
)
SIDES = by_word({"right": "right|r", "left": "left|l", "bilateral": "bilateral|both"}, "|")
FLAGS = {word: 1.0 for word in ("1", "true", "yes", "y")}
FLAGS |= {word: 0.0 for word in ("0", "false", "no", "n")}
BLANK = word_set("|na|n/a|nan|<na>|#na|#n/a|#n/a n/a|null|none|nat|-nan|unknown|not known", "|")
NOT_BLANK = r"[!-~]*\d[!-~]*|[!-~]{10,}"  # no word of BLANK has a digit or ten letters
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212\ufe58\ufe63\uff0d"), "-")


def plain(text: str) -> str:
    """Return a cell in one spelling: NFKC, no invisible characters, single inner blanks."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(DASHES)
        text = "".join(sign for sign in text if unicodedata.category(sign) != "Cf")
    return " ".join(CONTROL.sub("", text).split())


def parse_age(text: str) -> float | None:
    """Return an age in years, None if it is unknown.

    A bare number is years. ``058Y``, ``013M``, ``003W`` and ``014D`` (DICOM), ``8 months``,
    ``6 wks`` and ``1 year 2 months`` are converted. A band (``40-49``) or a bound (``>89``,
    ``90+``, ``<1``) is unknown, as are negative ages and those above 130.
    """
    text = plain(text).casefold().removesuffix("old").removesuffix("of age").strip()
    text = re.sub(r"y\s?[./]\s?o\b\.?", "yo", text)
    if re.fullmatch(rf"{NUMBER}(?:e\+?\d+)?", text):
        age = float(text.replace(",", "."))
    else:
        part = rf"({NUMBER})\s*-?\s*([^\W\d_]+)\.?"
        parts = [
            (float(n.replace(",", ".")), UNITS.get(unit)) for n, unit in re.findall(part, text)
        ]
        units = [unit for _, unit in parts]
        rest = re.sub(r"\band\b|[\s,-]", "", re.sub(part, "", text))
        if not parts or rest or None in units or len(set(units)) < len(units):
            return None
        age = sum(n * YEARS[str(unit)] for n, unit in parts)
    return age if 0 <= age <= OLDEST else None


def parse_sex(text: str) -> str | None:
    """Return F or M, None if a sex is neither or not understood (numbers need a card's map)."""
    return SEXES.get(plain(text).casefold().rstrip("."))


def sex_parser(column: pd.Series) -> Callable[[str], str | None]:
    """Return ``parse_sex`` for a column: M is unclear beside H (hombre, mujer) and beside V."""
    unclear = any(plain(text).casefold() in ("h", "v") for text in column.dropna().unique())
    return lambda text: None if unclear and plain(text).casefold() == "m" else parse_sex(text)


def parse_view(text: str) -> str | None:
    """Return PA, AP or LATERAL, None if a view is none, two of them or not understood."""
    words = re.sub(r"[\W_]+", " ", plain(text).upper().replace("X-RAY", "XRAY")).split()
    return VIEWS.get(" ".join(word for word in words if word not in POSITIONS))


def parse_side(text: str) -> str | None:
    """Return right, left or bilateral."""
    return SIDES.get(plain(text).casefold().rstrip("."))


def parse_flag(text: str) -> float | None:
    """Return 1 for yes, 0 for no."""
    return FLAGS.get(re.sub(r"(?<=^[01])[.,]0+$", "", plain(text).casefold()))


def parse_spacing(text: str) -> float | None:
    """Return a pixel's size in mm; rows and columns (``0.14\\0.14``) must be equal."""
    numbers = re.split(r"[\\\s;x]+|,\s+", plain(text).casefold().removesuffix("mm").strip("[]() "))
    sizes = {number(part) for part in numbers}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    return size if size and size > 0 else None


def number(text: str) -> float | None:
    """Return a cell as a number (a decimal comma counts, ``True`` is 1), None if it is none."""
    text = plain(text).casefold()
    if re.fullmatch(r"[-+]?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?", text):
        return float(text.replace(",", "."))
    return {"true": 1.0, "false": 0.0}.get(text)


def is_blank(text: object) -> bool:
    """Return whether a cell says that nothing is known."""
    return not isinstance(text, str) or plain(text).casefold() in BLANK


def blank_cells(column: pd.Series) -> pd.Series:
    """Return of each cell of a column whether it says that nothing is known."""
    unique = pd.Series(column.unique())
    seen = unique.astype("str").str.fullmatch(NOT_BLANK).fillna(False).astype(bool)
    return column.isna() | column.isin([text for text in unique[~seen] if is_blank(text)])


def understand(
    column: pd.Series, parse: Callable[[str], Any], given: Mapping[str, Any] | None = None
) -> tuple[pd.Series, dict[str, int]]:
    """Return a column's values and, of cells that are not understood, how often each occurs.

    Args:
        column: the cells as text.
        parse: from a cell to its value, None if it is not understood.
        given: the card's own map from cells to values, used in place of ``parse``. Case does not
            count. None as a value: the cell is known, and has none of our values.
    """
    given = dict(given or {})
    folded: dict[str, set[Hashable]] = {}
    for name, value in given.items():
        folded.setdefault(plain(name).casefold(), set()).add(value)
    found: dict[str, Any] = {}
    unknown: Counter[str] = Counter()
    for text, count in column.dropna().value_counts().items():
        values = folded.get(plain(text).casefold(), set())
        if text in given or len(values) == 1:
            found[text] = given[text] if text in given else next(iter(values))
        elif not is_blank(text):
            found[text] = None if given else parse(text)
            if found[text] is None:
                unknown[text] += int(count)
    return column.map(found), dict(unknown.most_common())
