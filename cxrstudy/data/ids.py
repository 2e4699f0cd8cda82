"""Read ids of patients and studies: two spellings of one id would put a patient into two splits."""

import html
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

import pandas as pd

from cxrstudy.data.columns import plain
from cxrstudy.data.tables import CardError, Rows

Spelling = Literal["exact", "normalised"]
QUOTES = "'\"`\u00b4\u2018\u2019\u201c\u201d[](){},;"
NORMAL = r"[1-9][0-9]*|[a-z][a-z0-9_.-]*"  # ids that ``normal_id`` returns as they are
MONTH = r"(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
LOST = {  # what spreadsheets do to ids without a way back (except the first, if digits are few)
    r"\d(\.\d+)?[eE]\+\d+": "a spreadsheet or a floating-point column has cut its digits",
    rf"\d{{1,2}}-{MONTH}(-\d+)?|{MONTH}-\d+": "a spreadsheet has turned it into a date",
    r"#+": "a spreadsheet has written it into too narrow a column",
    r"#(VALUE!|REF!|NAME\?|DIV/0!|NUM!|NULL!)": "a formula of a spreadsheet has failed",
}


def normal_id(text: str) -> str:
    """Return an id in one spelling, as it was before spreadsheets and exports changed it.

    Ignored are blanks, quotes and brackets (``'0012``, ``="0012"``, ``b'0012'``), case, kinds of
    dashes and letters (full-width digits, composed accents), invisible characters and, in a
    number, leading zeros, a decimal part of zeros, thousands separators and scientific notation.
    """
    text = re.sub(r"\s", "", plain(html.unescape(text))).casefold()
    text = re.sub(r"^b(?=(['\"]).*\1$)", "", text).removeprefix("=").strip(QUOTES)
    if not text.isascii():
        text = "".join(str(unicodedata.decimal(sign, sign)) for sign in text)
    if re.fullmatch(r"[+]?[1-9]\d{0,2}([,'_\u2019]\d{3})+(\.0*)?", text):
        text = re.sub(r"[,'_\u2019]", "", text)
    elif re.fullmatch(r"[+]?[1-9]\d{0,2}(?!\.0+$)(\.\d{3})+", text):  # 1.234: German for 1234
        text = text.replace(".", "")
    if written := re.fullmatch(r"(\d)(?:\.(\d+))?e(\+?)(\d{1,2})", text):
        whole, part, plus, power = written[1], written[2] or "", written[3], int(written[4])
        if (plus or part) and len(part) <= power:  # 1e5 may be an id as it is
            text = whole + part.ljust(power, "0")
    if re.fullmatch(r"\+?\d+([.,]0*)?", text):
        text = re.split("[.,]", text.removeprefix("+"))[0].lstrip("0") or "0"
    return text or "?"  # an id of punctuation alone


def normal_ids(ids: pd.Series) -> pd.Series:
    """Return ``normal_id`` of each id; missing ones stay so."""
    odd = ids[~ids.str.fullmatch(NORMAL).fillna(True).astype(bool)]
    if odd.empty:
        return ids
    changed = odd.map({text: normal_id(text) for text in odd.unique()})
    result = ids.copy()
    result[odd.index] = changed.astype(ids.dtype)
    return result


def read_ids(
    rows: Rows, columns: Sequence[str], kept: pd.Index, what: str, spelling: Spelling | None
) -> pd.Series:
    """Return the ids of the ``kept`` rows, the values of several columns joined by '-'.

    Args:
        rows: the table.
        columns: whose values form the id.
        kept: index of the rows to read.
        what: "patient" or "study", for messages.
        spelling: what ids that differ only in spelling mean. ``exact``: they are two;
            ``normalised``: they are one, written as ``normal_id``; None: refuse them.

    Raises:
        CardError: ids differ only in spelling, or a spreadsheet has destroyed some.
    """
    parts = [rows.frame.loc[kept, column] for column in columns]
    if spelling == "exact":
        return parts[0].str.cat(parts[1:], sep="-")
    normal = [normal_ids(part) for part in parts]
    written, same = (series[0].str.cat(series[1:], sep="-") for series in (parts, normal))
    pairs = pd.DataFrame({"written": written, "same": same}).drop_duplicates()
    twice = pairs[pairs.duplicated("same", keep=False)]
    if len(twice) and spelling != "normalised":
        raise CardError(_pairs(rows, twice, what))
    for column, part in zip(columns, parts, strict=True):
        for pattern, why in list(LOST.items())[1 if spelling == "normalised" else 0 :]:
            lost = part[part.str.strip().str.fullmatch(pattern)]
            if len(lost):
                raise CardError(
                    f"{rows.places(lost.index)}: column {column!r} holds the {what} id "
                    f"{lost.iloc[0]!r}: {why}, so several ids may have become one. Export the "
                    "column as text. If the id is right, write `ids: exact` under table in the card"
                )
    return same if spelling == "normalised" else written


def _pairs(rows: Rows, twice: pd.DataFrame, what: str) -> str:
    """Return the message on ids that are equal once normalised."""
    groups = [group["written"].head(3) for _, group in twice.groupby("same", sort=False)]
    shown = "; ".join(
        " and ".join(f"{text!a} ({rows.place(row)})" for row, text in group.items())
        for group in groups[:5]
    )
    more = f"; and {len(groups) - 5} more" if len(groups) > 5 else ""
    return (
        f"{len(groups)} {what} ids are written in more than one way: {shown}{more}. If they are "
        f"one {what} each, write `ids: normalised` under table in the card. If they are "
        "different, write `ids: exact`"
    )
