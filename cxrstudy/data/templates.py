"""Read report templates: "Pneumothorax: none", "Effusion (-)", "[x] Edema", rows of tables.

What a template says of a name counts more than the words around it.
"""

from __future__ import annotations

import re

from cxrstudy.data.cues import DENIED, DOUBTED, Row
from cxrstudy.data.vocabulary import FINDINGS

_SIDE = (
    r"(?:[ \t]*\([^()\n]{1,30}\)"
    r"|,?[ \t]*\b(?:right|left|bilateral|rt|lt|[rl])\b(?:[ \t]sided?)?)?"
)
_LINK = (  # between name and value: a sign, with dots and blanks
    r"(?:(?=[ ]{0,20}[:=|?\t\u2026\"'\u2010-\u2015\u2212-]|[ \t]{0,20}(?:\.\.|__))"
    r"[ \t:=|?\u2026\"'\u2010-\u2015\u2212.>_-]{1,80})"
)
_END = r"(?=[ \t\"']*(?:$|[\n.;,|)]|\())"
_SEEN = (
    r"(?:seen|present|identified|visuali[sz]ed|visible|demonstrated|detected|evident|noted"
    r"|apparent|found|observed|in place|appreciated)"
)
_SMALL = (
    r"\((?:-|\u2212|\u2013|0|no|neg|n)\)|\[(?:-|no|neg|n|[ _]?)\]|\([ _]\)"
    r"|[\u2610\u25a1\u2717\u2718]"
)
_NO = (
    rf"(?:no(?:ne)?(?: (?:{_SEEN}|evidence|signs?))?|nil|neg(?:ative|\.)?|absent|not {_SEEN}|nad"
    r"|not applicable|n/a)"
)
_ABSENT = re.compile(  # what follows a name
    rf"{_SIDE}(?:{_LINK}(?:{_SMALL}|{_NO}|n|non|false|0|-|\u2212|\u2013|\u2014|-ve)"
    rf"|[ \t]*(?:{_SMALL})|[ \t]+(?:{_NO}|-ve|N))(?-i:){_END}",
    re.I,
)
_DASH = re.compile(  # PTX -
    rf"{_SIDE}[ \t]*[-\u2212\u2013\u2014][ \t]*(?:$|[,;]|\n(?=[ \t]*(?:[A-Z\n]|$)))"
)
_FINE = re.compile(  # denies a finding, not a device
    rf"{_SIDE}{_LINK}(?:normal|unremarkable|clear|wnl){_END}", re.I
)
_NEXT_LINE = re.compile(
    rf"[ \t]*:?[ \t]*\n[ \t]*(?:{_SMALL}|{_NO}|n|false|-|unremarkable)[ \t]*\.?[ \t]*(?=\n|$)", re.I
)
_PRESENT = re.compile(
    rf"{_SIDE}(?:{_LINK}(?:y|yes|true|present|positive|pos|1)\b"
    rf"|{_LINK}?(?:\(?\+{{1,3}}\)?(?!/)|[\[(]x[\])]|\[yes\]|[\u2611\u2612\u2713\u2714])"
    r"|[ \t]+yes\b)",
    re.I,
)
_DOUBT = re.compile(
    rf"{_SIDE}(?:{_LINK}|[ \t]*)(?:\(\?\)|\(?\+/-\)?|\u00b1|(?:equivocal|possible|maybe|uncertain"
    rf"|questionable|indeterminate|suspected|can(?:not|'t| not) (?:be )?excluded?){_END})",
    re.I,
)
_UNFILLED = re.compile(r"[ \t]*:[ \t]*_*[ \t]*(?=\n[ \t]*(?:[^\n:]{2,40}:|\n|$)|$)")
_OPEN = r"(?:[\[(][ \t]*([xX\u2713\u2714+]?)[ _]?[\])]|([\u2610-\u2612\u25a1\u25a0]))"
_LABEL = (
    r"(?:yes|no|y|n|none|present|absent|positive|negative|normal|abnormal|trace|tiny|minimal|small"
    r"|mild|moderate|large|severe|right|left|bilateral|possible|unknown)\b"
)
_CHOICE = re.compile(rf"{_OPEN}[ \t]*({_LABEL})[ \t,/|]*", re.I)  # Pneumothorax: [ ] yes [x] no
_CHOICES = re.compile(rf"{_SIDE}{_LINK}?[ \t]*((?:{_OPEN}[ \t]*{_LABEL}[ \t,/|]*){{2,}})", re.I)
_BEFORE = re.compile(  # what stands before a name, from its line's beginning or the cell before
    r"(?:(?:^|[\n|\t,;]|(?<=[ \t]))[ \t]*(?:[-*\u2022][ \t]*)?"
    r"(?:(?P<box>\[[xX \u2713\u2714_+-]?\]|\([xX _+-]\)|[\u2610-\u2612\u25a1\u25a0\u2713\u2714])"
    r"[ \t]*)"
    r"|(?:^|\n)[ \t|]*(?P<cell>no|none|n|neg|negative|absent|0|false)[ \t]*[|\t][ \t]*)"
    r"(?:(?:no|no evidence of|without|right|left|bilateral|small|large|mild|moderate|severe|acute"
    r"|focal|pleural|pulmonary) )*$",
    re.I,
)
_TICKED = set("xX\u2713\u2714\u2611\u2612\u25a0+")
_FIRST_BOX = re.compile(
    r"[ \t]*(?:[-*\u2022][ \t]*)?"
    r"(?:\[[xX \u2713\u2714_+-]?\]|\([xX _+-]\)|[\u2610-\u2612\u25a1\u25a0])"
)
_EMPTY = re.compile(r"[ \t]*(?:[\[(][ _]?[\])]|[\u2610\u25a1])")
_ANY = re.compile(
    r"[ \t]*(?:[,:=|?\t\u2026\"'\[(\n+\u00b1\u2010-\u2015\u2212\u2610-\u2612\u25a0\u25a1"
    r"\u2713-\u2718-]|\.\.|__)"
    r"|[ \t]+(?i:no|neg|nil|n|yes|absent|right|left|not|r|l|rt|lt)\b|[ \t]*$"
)
_BEFORE_ANY = re.compile(r"[\])|\t\u2610-\u2612\u25a0\u25a1\u2713\u2714]")
_JOIN = re.compile(
    r"[ \t]*(?:/|,|&|\bor\b|\band\b|\band/or\b)[ \t]*(?:or[ \t]+)?(?:(?:right|left|pleural) )?",
    re.I,
)
_SOME = re.compile(  # without one of these, a text has no template
    r"[=|?\t\[\u2026+\u00b1\u2022\u2610-\u2612\u25a0\u25a1\u2713-\u2718]|:(?!\d)|\.\."
    r"|\([^()\n]{0,3}\)|-ve|n/a"
    r"|(?:\b(?:no|none|neg|nil|n|absent|negative)|[-\u2010-\u2015\u2212])[ \t]*(?:[.;,\n)]|$)",
    re.I,
)


def fill_in(text: str, rows: list[Row]) -> list[Row]:
    """Return the rows of a text as its templates state them; a template left open drops its row.

    A value counts for all names before it that are joined to it ("A / B: none").
    """
    if not rows or not _SOME.search(text):
        return rows
    values = [value(text, row.start, row.end, row.name not in FINDINGS) for row in rows]
    for k in range(len(rows) - 1, 0, -1):
        is_joined = values[k] == "absent" and values[k - 1] is None
        if is_joined and _JOIN.fullmatch(text, rows[k - 1].end, rows[k].start):
            values[k - 1] = "absent"
    out = []
    for row, answer in zip(rows, values, strict=True):
        if answer == "unfilled" or (answer == "unticked" and row.status == "absent"):
            continue
        if answer == "present":
            if row.status != "uncertain" or "?" in text[row.end : row.end + 2]:
                row.say(("present", ""))
        elif answer:
            row.say(DOUBTED if answer == "uncertain" else DENIED)
        out.append(row)
    return out


def value(text: str, start: int, end: int, device: bool) -> str | None:
    """Return what a template says of the name at ``text[start:end]``, None if there is no template.

    The value is absent, present, uncertain, unticked (counts as absent) or unfilled (a name with a
    colon and nothing after it).
    """
    line = text.rfind("\n", 0, start) + 1
    before, boxes_first = _value_before(text, line, start, end)
    if boxes_first:
        rest_of_line = text[end : text.find("\n", end) + 1 or None]
        if _FIRST_BOX.match(text, end) or not rest_of_line.strip():
            return before
    if not _ANY.match(text, end):
        return before
    if choices := _CHOICES.match(text, end):
        return _ticked(choices[1])
    if not boxes_first and _EMPTY.match(text, end):
        return "absent"
    if _DOUBT.match(text, end):
        return "uncertain"
    if _PRESENT.match(text, end):
        return "present"
    absent = (_ABSENT, _DASH) if device else (_ABSENT, _DASH, _FINE)
    if any(pattern.match(text, end) for pattern in absent):
        return "absent"
    if not re.search(r"[A-Za-z]{3}.*[A-Za-z]{3}.*[A-Za-z]{3}", text[line:start]):
        if _NEXT_LINE.match(text, end):
            return "absent"
        if _UNFILLED.match(text, end):
            return "unfilled"
    return before


def _value_before(text: str, line: int, start: int, end: int) -> tuple[str | None, bool]:
    """Return the value before a name, and whether boxes stand before names in its line."""
    if start <= line or not _BEFORE_ANY.search(text, max(line, start - 60), start):
        return None, False
    boxes_first = bool(_FIRST_BOX.match(text, line))
    m = _BEFORE.search(text[max(line - 1, start - 60, 0) : start])
    if m and m["cell"]:
        return "absent", boxes_first
    if m and (boxes_first or not _ANY.match(text, end)):
        return None if set(m["box"]) & _TICKED else "unticked", boxes_first
    return None, boxes_first


def _ticked(choices: str) -> str:
    """Return the value of the one ticked box among several."""
    boxes = _CHOICE.finditer(choices)
    ticked = [m[3].lower() for m in boxes if set((m[1] or "") + (m[2] or "")) & _TICKED]
    if len(ticked) != 1:
        return "unfilled"
    return "absent" if re.fullmatch(f"{_NO}|n", ticked[0]) else "present"
