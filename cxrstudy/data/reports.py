"""Read a radiology report: its sections, and the findings and devices it mentions."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, replace

from cxrstudy.data import templates
from cxrstudy.data.cues import Reader
from cxrstudy.data.language import foreign_parts
from cxrstudy.data.plaintext import plain
from cxrstudy.data.sections import READ, split
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, OTHER_DEVICES

NAMES = FINDINGS + DEVICES + OTHER_DEVICES
_NO_CATHETER = {"endotracheal_tube", "tracheostomy_tube", "gastrostomy_tube", "pacemaker"}
_CATHETERS = {*DEVICES, *OTHER_DEVICES} - _NO_CATHETER
_BLANKS = str.maketrans({c: " " for c in "-\u2010\u2011\u2012\u2013\u2014\t\r\f\v\xa0"})
_NEWLINE, _BLANK_RUN = re.compile(r"\n"), re.compile(r"  +")
_ITEM = re.compile(r"\s*(?:\n|$|[-*\u2022]|\(?\d+[.)])")


@dataclass(frozen=True)
class Mention:
    """One finding or device as one place of a text names it: ``text[span[0]:span[1]]``.

    ``hedge`` is weak for may, possible, cannot exclude (uncertain), and strong for probable,
    compatible, A or B (present).
    """

    name: str
    status: str  # present, absent, uncertain
    side: str  # right, left, bilateral or ''
    span: tuple[int, int]
    hedge: str = ""


def sections(text: str) -> dict[str, str]:
    """Return a report's sections by lower-case name: findings, impression, indication and others.

    Clinical history and similar belong to the indication, text without a header to the findings.
    """
    found: dict[str, str] = {}
    text, _ = plain(text)
    for name, start, end in split(text):
        part = text[start:end].strip()
        found[name] = f"{found[name]}\n{part}" if name in found else part
    return found


def extract_mentions(text: str) -> list[Mention]:
    """Return every finding and device that a text states, doubts or denies, in its order.

    Indication, history and comparison are not read. A 'catheter' counts unless the text says
    which kind.
    """
    found = _read(text)
    present = {m.name for m in found if m.status == "present"}
    vague = {"catheter"} if "pacemaker" in present else {"catheter", "tip"}
    if not present & _CATHETERS:
        found = [replace(m, name="other_catheter") if m.name in vague else m for m in found]
    return [m for m in found if m.name in NAMES]


def extract_labels(text: str) -> dict[str, str]:
    """Return name -> status of every finding and device mentioned.

    If a name has several, present comes before uncertain, uncertain before absent. Words that leave
    the finding open are uncertain too: pneumonia and airspace opacity are no consolidation, a
    nodular opacity is no nodule, as Open-i's curators code them (and NIH and CheXpert pneumonia).
    """
    said: dict[str, set[str]] = {}
    for mention in extract_mentions(text):
        said.setdefault(mention.name, set()).add(mention.status)
    ranks = ("present", "uncertain", "absent")
    return {
        name: next(rank for rank in ranks if rank in said[name]) for name in NAMES if name in said
    }


def _read(text: str) -> list[Mention]:
    """Return all mentions; 'catheter', 'tip' (of a line) and 'abnormal' are names here too."""
    text, places = plain(text)
    foreign = foreign_parts(text)
    if foreign and foreign[0] == (0, len(text)):
        return []
    found = []
    for section, start, end in split(text):
        if section not in READ:
            continue
        part = text[start:end]
        flat, starts, shifts = _flatten(part)
        rows = Reader(flat).read()
        for row in rows if starts else ():
            row.start += shifts[bisect_right(starts, row.start)]
            row.end += shifts[bisect_right(starts, row.end - 1)]
        for row in templates.fill_in(part, rows):
            low, high = start + row.start, start + row.end
            if any(first <= low < last for first, last in foreign):
                continue
            span = (places[low][0], places[high - 1][1]) if places else (low, high)
            found.append(Mention(row.name, row.status, row.side, span, row.hedge))
    return found


def _flatten(text: str) -> tuple[str, list[int], list[int]]:
    """Return text in lower case with single blanks, and where how many characters were lost.

    Hyphens become blanks. Newlines stay only where they end a sentence.
    """
    flat = text.lower()
    if len(flat) != len(text):
        flat = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    flat = _NEWLINE.sub(_newline, flat).translate(_BLANKS)
    starts, shifts = [], [0]
    if "  " in flat:
        for m in _BLANK_RUN.finditer(flat):
            starts.append(m.start() + 1 - shifts[-1])
            shifts.append(shifts[-1] + m.end() - m.start() - 1)
        flat = _BLANK_RUN.sub(" ", flat)
    return flat, starts, shifts


def _newline(m: re.Match[str]) -> str:
    """Keep a newline after a short line or a full stop and before a list's item, else a blank."""
    at, text = m.start(), m.string
    before = text[text.rfind("\n", 0, at) + 1 : at].rstrip()
    return "\n" if len(before) < 50 or before[-1] in ".:;" or _ITEM.match(text, at + 1) else " "
