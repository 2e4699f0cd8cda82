"""Cells of a table as values: ages, sexes, views, sides, numbers and ids, whatever their common spelling."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import pandas as pd

OLDEST = 130  # years; slips such as 414 are met
YEARS = {"year": 1.0, "month": 1 / 12, "week": 7 / 365.25, "day": 1 / 365.25}
UNITS = {
    "y": "year",
    "yr": "year",
    "yrs": "year",
    "yo": "year",
    "m": "month",
    "mo": "month",
    "mos": "month",
}
UNITS |= {
    "mth": "month",
    "mths": "month",
    "mon": "month",
    "w": "week",
    "wk": "week",
    "wks": "week",
    "d": "day",
}
UNITS |= {"dy": "day", "dys": "day"} | {f"{unit}{s}": unit for unit in YEARS for s in ("", "s")}
NUMBER = r"\d+(?:[.,]\d+)?"
VIEWS = {
    "PA": "PA",
    "P A": "PA",
    "POSTEROANTERIOR": "PA",
    "POSTERO ANTERIOR": "PA",
    "POSTERIOR ANTERIOR": "PA",
}
VIEWS |= {
    "POSTERIOANTERIOR": "PA",
    "AP": "AP",
    "A P": "AP",
    "ANTEROPOSTERIOR": "AP",
    "ANTERO POSTERIOR": "AP",
}
VIEWS |= {
    "ANTERIOR POSTERIOR": "AP",
    "ANTERIOPOSTERIOR": "AP",
}  # no oblique, no decubitus (LLD), no lordotic
LATERAL = {"LATERAL", "LAT", "LL", "RL", "LLAT", "RLAT"}
LATERAL |= {f"{side} {lat}" for side in ("L", "R", "LEFT", "RIGHT") for lat in ("LATERAL", "LAT")}
LATERAL |= {" ".join(reversed(view.split())) for view in LATERAL}
VIEWS |= dict.fromkeys(LATERAL, "LATERAL")
POSITIONS = {
    "ERECT",
    "SEMI",
    "SEMIERECT",
    "UPRIGHT",
    "STANDING",
    "SITTING",
    "SEATED",
    "SUPINE",
    "HORIZONTAL",
    "BED",
}
POSITIONS |= {
    "PORTABLE",
    "MOBILE",
    "BEDSIDE",
    "CHEST",
    "THORAX",
    "CXR",
    "XRAY",
    "RADIOGRAPH",
    "VIEW",
    "PROJECTION",
}
POSITIONS |= {
    "FRONTAL"
}  # words beside a view that do not change it; "frontal" alone is PA or AP: not understood
SEXES = dict.fromkeys(
    ("f", "female", "fem", "woman", "girl", "w", "weiblich", "femenino", "feminino", "femme"), "F"
)
SEXES |= dict.fromkeys(
    ("m", "male", "man", "boy", "männlich", "masculino", "masculin", "homme", "hombre"), "M"
)
SIDES = {
    "right": "right",
    "r": "right",
    "left": "left",
    "l": "left",
    "bilateral": "bilateral",
    "both": "bilateral",
}
FLAGS = dict.fromkeys(("1", "true", "yes", "y"), 1.0) | dict.fromkeys(
    ("0", "false", "no", "n"), 0.0
)
BLANK = {
    "",
    "na",
    "n/a",
    "nan",
    "<na>",
    "#na",
    "#n/a",
    "#n/a n/a",
    "null",
    "none",
    "nat",
    "-nan",
    "unknown",
    "not known",
}
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212\ufe58\ufe63\uff0d"), "-")


def plain(text: str) -> str:
    """Return a cell in one spelling: compatible Unicode forms, no invisible signs, single blanks, none at the ends."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(DASHES)
        text = "".join(sign for sign in text if unicodedata.category(sign) != "Cf")
    return " ".join(CONTROL.sub("", text).split())


def parse_age(text: str) -> float | None:
    """Return an age in years, None where it is not known.

    A bare number is years; ``058Y``, ``013M``, ``003W`` and ``014D`` (DICOM), ``8 months``, ``6 wks`` and
    ``1 year 2 months`` are parts of years. A band (``40-49``) and a bound (``>89``, ``90+``, ``<1``) name no age, so
    both are unknown, as are negative ages and those above 130.
    """
    text = plain(text).casefold().removesuffix("old").removesuffix("of age").strip()
    text = re.sub(r"y\s?[./]\s?o\b\.?", "yo", text)
    if re.fullmatch(rf"{NUMBER}(?:e\+?\d+)?", text):
        age = float(text.replace(",", "."))
    else:
        parts = re.findall(rf"({NUMBER})\s*-?\s*([^\W\d_]+)\.?", text)
        rest = re.sub(rf"({NUMBER})\s*-?\s*([^\W\d_]+)\.?", "", text)
        units = [UNITS.get(unit) for _, unit in parts]
        if (
            not parts
            or re.sub(r"\band\b|[\s,-]", "", rest)
            or None in units
            or len(set(units)) < len(units)
        ):
            return None
        age = sum(
            float(n.replace(",", ".")) * YEARS[str(unit)]
            for (n, _), unit in zip(parts, units, strict=True)
        )
    return age if 0 <= age <= OLDEST else None


def parse_sex(text: str) -> str | None:
    """Return F or M, None where a sex is neither or not understood (numbers need the card's ``sexes``)."""
    return SEXES.get(plain(text).casefold().rstrip("."))


def sex_parser(column: pd.Series) -> Callable[[str], str | None]:
    """Return ``parse_sex`` as it holds in a column: beside H (hombre) an M is mujer, beside V it may be either."""
    other = any(plain(text).casefold() in ("h", "v") for text in column.dropna().unique())
    return lambda text: None if other and plain(text).casefold() == "m" else parse_sex(text)


def parse_view(text: str) -> str | None:
    """Return PA, AP or LATERAL, None where a view is none of them, is two of them or is not understood."""
    words = re.sub(r"[\W_]+", " ", plain(text).upper().replace("X-RAY", "XRAY")).split()
    return VIEWS.get(" ".join(word for word in words if word not in POSITIONS))


def parse_side(text: str) -> str | None:
    """Return right, left or bilateral."""
    return SIDES.get(plain(text).casefold().rstrip("."))


def parse_flag(text: str) -> float | None:
    """Return 1 or 0 for a yes or a no."""
    return FLAGS.get(re.sub(r"(?<=^[01])[.,]0+$", "", plain(text).casefold()))


def parse_spacing(text: str) -> float | None:
    """Return a pixel's size in mm; of two (``0.14\\0.14``, rows and columns) only where they are equal."""
    numbers = re.split(r"[\\\s;x]+|,\s+", plain(text).casefold().removesuffix("mm").strip("[]() "))
    sizes = {number(part) for part in numbers}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    return size if size and size > 0 else None


def number(text: str) -> float | None:
    """Return a cell as a number (also with a decimal comma; ``True`` is 1), None where it is none."""
    text = plain(text).casefold()
    if re.fullmatch(r"[-+]?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?", text):
        return float(text.replace(",", "."))
    return {"true": 1.0, "false": 0.0}.get(text)


def is_blank(text: object) -> bool:
    """Tell whether a cell says that nothing is known."""
    return not isinstance(text, str) or plain(text).casefold() in BLANK


def understand(
    column: pd.Series, parse: Callable[[str], Any], given: Mapping[str, Any] | None = None
) -> tuple[pd.Series, dict[str, int]]:
    """Return a column's values and, of cells that are not understood, how often each occurs.

    ``given`` is the card's own map: only its names are then understood, whatever their case; null says that a name is
    known and none of ours.
    """
    given = dict(given or {})
    folded: dict[str, set[Hashable]] = {}
    for name, value in given.items():
        folded.setdefault(plain(name).casefold(), set()).add(value)
    found: dict[str, Any] = {}
    unknown: Counter[str] = Counter()
    for text, count in column.dropna().value_counts().items():
        values = folded.get(plain(text).casefold(), set()) if given else set()
        if text in given or len(values) == 1:
            found[text] = given[text] if text in given else next(iter(values))
        elif not is_blank(text):
            found[text] = None if given else parse(text)
            if found[text] is None:
                unknown[text] += int(count)
    return column.map(found), dict(unknown.most_common())
