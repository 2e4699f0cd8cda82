"""Templates of reports: "Pneumothorax: none", "Effusion (-)", "[x] Edema", rows of tables, values on the next line.

What a template says of a name counts more than the words around it: the value is its statement.
"""

from __future__ import annotations

import re

from cxrstudy.data.vocabulary import FINDINGS

_SIDE = (
    r"(?:[ \t]*\([^()\n]{1,30}\)|,?[ \t]*\b(?:right|left|bilateral|rt|lt|[rl])\b(?:[ \t]sided?)?)?"
)
_LINK = (  # between name and value: a sign, with dots and blanks
    r"(?:(?=[ ]{0,20}[:=|?\t\u2026\"'\u2010-\u2015\u2212-]|[ \t]{0,20}(?:\.\.|__))"
    r"[ \t:=|?\u2026\"'\u2010-\u2015\u2212.>_-]{1,80})"
)
_END = r"(?=[ \t\"']*(?:$|[\n.;,|)]|\())"
_SEEN = (
    r"(?:seen|present|identified|visuali[sz]ed|visible|demonstrated|detected|evident|noted|apparent|found|observed"
    r"|in place|appreciated)"
)
_SMALL = r"\((?:-|\u2212|\u2013|0|no|neg|n)\)|\[(?:-|no|neg|n|[ _]?)\]|\([ _]\)|[\u2610\u25a1\u2717\u2718]"
_NO = rf"(?:no(?:ne)?(?: (?:{_SEEN}|evidence|signs?))?|nil|neg(?:ative|\.)?|absent|not {_SEEN}|nad|not applicable|n/a)"
_ABSENT = re.compile(  # what stands behind a name
    rf"{_SIDE}(?:{_LINK}(?:{_SMALL}|{_NO}|n|non|false|0|-|\u2212|\u2013|\u2014|-ve)"
    rf"|[ \t]*(?:{_SMALL})|[ \t]+(?:{_NO}|-ve|N))(?-i:){_END}",
    re.I,
)
_DASH = re.compile(
    rf"{_SIDE}[ \t]*[-\u2212\u2013\u2014][ \t]*(?:$|[,;]|\n(?=[ \t]*(?:[A-Z\n]|$)))"
)  # PTX -
_FINE = re.compile(
    rf"{_SIDE}{_LINK}(?:normal|unremarkable|clear|wnl){_END}", re.I
)  # of a finding, not of a device
_NEXT_LINE = re.compile(
    rf"[ \t]*:?[ \t]*\n[ \t]*(?:{_SMALL}|{_NO}|n|false|-|unremarkable)[ \t]*\.?[ \t]*(?=\n|$)", re.I
)
_PRESENT = re.compile(
    rf"{_SIDE}(?:{_LINK}(?:y|yes|true|present|positive|pos|1)\b|{_LINK}?(?:\(?\+{{1,3}}\)?(?!/)|[\[(]x[\])]|\[yes\]"
    r"|[\u2611\u2612\u2713\u2714])|[ \t]+yes\b)",
    re.I,
)
_DOUBT = re.compile(
    rf"{_SIDE}(?:{_LINK}|[ \t]*)(?:\(\?\)|\(?\+/-\)?|\u00b1|(?:equivocal|possible|maybe|uncertain|questionable"
    rf"|indeterminate|suspected|can(?:not|'t| not) (?:be )?excluded?){_END})",
    re.I,
)
_UNFILLED = re.compile(r"[ \t]*:[ \t]*_*[ \t]*(?=\n[ \t]*(?:[^\n:]{2,40}:|\n|$)|$)")
_OPEN = r"(?:[\[(][ \t]*([xX\u2713\u2714+]?)[ _]?[\])]|([\u2610-\u2612\u25a1\u25a0]))"
_LABEL = (
    r"(?:yes|no|y|n|none|present|absent|positive|negative|normal|abnormal|trace|tiny|minimal|small|mild|moderate|large"
    r"|severe|right|left|bilateral|possible|unknown)\b"
)
_CHOICE = re.compile(rf"{_OPEN}[ \t]*({_LABEL})[ \t,/|]*", re.I)  # Pneumothorax: [ ] yes [x] no
_CHOICES = re.compile(rf"{_SIDE}{_LINK}?[ \t]*((?:{_OPEN}[ \t]*{_LABEL}[ \t,/|]*){{2,}})", re.I)
_BEFORE = re.compile(  # what stands before a name, from its line's beginning or the cell before
    r"(?:(?:^|[\n|\t,;]|(?<=[ \t]))[ \t]*(?:[-*\u2022][ \t]*)?(?:(?P<box>\[[xX \u2713\u2714_+-]?\]|\([xX _+-]\)"
    r"|[\u2610-\u2612\u25a1\u25a0\u2713\u2714])[ \t]*)"
    r"|(?:^|\n)[ \t|]*(?P<cell>no|none|n|neg|negative|absent|0|false)[ \t]*[|\t][ \t]*)"
    r"(?:(?:no|no evidence of|without|right|left|bilateral|small|large|mild|moderate|severe|acute|focal|pleural"
    r"|pulmonary) )*$",
    re.I,
)
_TICKED = set("xX\u2713\u2714\u2611\u2612\u25a0+")
_FIRST_BOX = re.compile(
    r"[ \t]*(?:[-*\u2022][ \t]*)?(?:\[[xX \u2713\u2714_+-]?\]|\([xX _+-]\)|[\u2610-\u2612\u25a1\u25a0])"
)
_EMPTY = re.compile(r"[ \t]*(?:[\[(][ _]?[\])]|[\u2610\u25a1])")
_ANY = re.compile(
    r"[ \t]*(?:[,:=|?\t\u2026\"'\[(\n+\u00b1\u2010-\u2015\u2212\u2610-\u2612\u25a0\u25a1\u2713-\u2718-]|\.\.|__)"
    r"|[ \t]+(?i:no|neg|nil|n|yes|absent|right|left|not|r|l|rt|lt)\b|[ \t]*$"
)
_BEFORE_ANY = re.compile(r"[\])|\t\u2610-\u2612\u25a0\u25a1\u2713\u2714]")
JOIN = re.compile(
    r"[ \t]*(?:/|,|&|\bor\b|\band\b|\band/or\b)[ \t]*(?:or[ \t]+)?(?:(?:right|left|pleural) )?",
    re.I,
)


_SOME = re.compile(
    r"[=|?\t\[\u2026+\u00b1\u2022\u2610-\u2612\u25a0\u25a1\u2713-\u2718]|:(?!\d)|\.\.|\([^()\n]{0,3}\)|-ve|n/a"
    r"|(?:\b(?:no|none|neg|nil|n|absent|negative)|[-\u2010-\u2015\u2212])[ \t]*(?:[.;,\n)]|$)",
    re.I,
)


def fill_in(text: str, rows: list[tuple]) -> list[tuple]:
    """Return the rows (start, end, name, status, side, hedge) of a text as its templates answer them.

    A value counts for all names before it that are joined to it ("A / B: none").
    """
    if not rows or not _SOME.search(text):
        return rows
    out: list[tuple] = []
    values = [value(text, lo, hi, name not in FINDINGS) for lo, hi, name, *_ in rows]
    for k in range(len(rows) - 1, 0, -1):
        if (
            values[k] == "absent"
            and values[k - 1] is None
            and JOIN.fullmatch(text, rows[k - 1][1], rows[k][0])
        ):
            values[k - 1] = "absent"
    for (lo, hi, name, status, side, hedge), answer in zip(rows, values, strict=True):
        if answer == "unfilled" or (answer == "unticked" and status == "absent"):
            continue
        if answer == "present":
            asked = status == "uncertain" and "?" not in text[hi : hi + 2]
            status, hedge = (status, hedge) if asked else ("present", "")
        elif answer:
            status, hedge = ("uncertain", "weak") if answer == "uncertain" else ("absent", "")
        out.append((lo, hi, name, status, side, hedge))
    return out


def value(text: str, start: int, end: int, device: bool) -> str | None:
    """Return what a template says of the name at ``text[start:end]``: absent, present, uncertain, unticked or unfilled.

    None where no template stands there. An unticked box counts as absent; a name with a colon and nothing behind it is
    unfilled. "Unremarkable" denies a finding, not a device.
    """
    said = None
    line = text.rfind("\n", 0, start) + 1
    boxes_first = False
    if start > line and _BEFORE_ANY.search(text, max(line, start - 60), start):
        boxes_first = bool(_FIRST_BOX.match(text, line))
        m = _BEFORE.search(text[max(line - 1, start - 60, 0) : start])
        if m and (m["cell"] or boxes_first or not _ANY.match(text, end)):
            said = "absent" if m["cell"] else None if set(m["box"]) & _TICKED else "unticked"
    if boxes_first and (
        _FIRST_BOX.match(text, end) or not text[end : text.find("\n", end) + 1 or None].strip()
    ):
        return said
    if not _ANY.match(text, end):
        return said
    if choices := _CHOICES.match(text, end):
        ticked = [
            m[3].lower()
            for m in _CHOICE.finditer(choices[1])
            if set((m[1] or "") + (m[2] or "")) & _TICKED
        ]
        if len(ticked) != 1:
            return "unfilled"
        return "absent" if re.fullmatch(f"{_NO}|n", ticked[0]) else "present"
    if not boxes_first and _EMPTY.match(text, end):
        return "absent"
    if _DOUBT.match(text, end):
        return "uncertain"
    if _PRESENT.match(text, end):
        return "present"
    if (
        _ABSENT.match(text, end)
        or _DASH.match(text, end)
        or (not device and _FINE.match(text, end))
    ):
        return "absent"
    alone = not re.search(r"[A-Za-z]{3}.*[A-Za-z]{3}.*[A-Za-z]{3}", text[line:start])
    if alone and _NEXT_LINE.match(text, end):
        return "absent"
    return "unfilled" if alone and _UNFILLED.match(text, end) else said
