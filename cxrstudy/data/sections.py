"""Find the sections of a report by their headers, whatever their spelling.

A header is recognised by its words, not by a list of phrases: each word names a section
("indication"), qualifies it ("for this exam") or is a misspelling of such a word. A phrase with any
other word is no header.
"""

from __future__ import annotations

import html
import re
from functools import lru_cache
from itertools import pairwise

from cxrstudy.data.lexicon import by_word, read_lexicon, word_set

READ = {"findings", "impression"}  # the sections whose names are labels
UNKNOWN = "other"  # a title that names no known section
Head = tuple[int, int, str]  # start, end, section
_LEXICON = read_lexicon("headers")
_WORDS, _ALONE = by_word(_LEXICON["naming"]), by_word(_LEXICON["alone"])
_OTHER = {name: word_set(words) for name, words in _LEXICON["other"].items()}
_ORGANS, _CORE = _OTHER["organs"], _OTHER["core"]
_FILMS = {"chest", "thorax", "cxr"}
_KNOWN = dict.fromkeys(sorted({*_WORDS, *_ALONE, *_OTHER["fill"]}))  # in a fixed order
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TOKEN = re.compile(r"[a-z]+|\d+|[^\sa-z\d/&,()+.'-]")


# ---- words of headers ----------------------------------------------------------------------------
@lru_cache(maxsize=2**14)
def _spelled(word: str, slips: int) -> str | None:
    """Return the known word that this one is, up to ``slips`` typing errors (two in long words)."""
    if word in _KNOWN or word in _OTHER["no_slip"] or len(word) < 5 or not slips:
        return word if word in _KNOWN else None
    near = [known for known in _KNOWN if len(known) >= 5 and abs(len(known) - len(word)) <= 2]
    for known in near:
        if _one_slip(word, known):
            return known
    if len(word) < 9 or slips < 2:
        return None
    edits = {word[:k] + c + word[k + 1 :] for k in range(1, len(word)) for c in _LETTERS}
    edits |= {word[:k] + word[k + 1 :] for k in range(1, len(word))}
    edits |= {word[:k] + c + word[k:] for k in range(1, len(word) + 1) for c in _LETTERS}
    far = [known for known in near if len(known) >= 9 and known[0] == word[0]]
    return next((known for known in far if any(_one_slip(edit, known) for edit in edits)), None)


def _one_slip(word: str, known: str) -> bool:
    """Return whether one letter is added, lost, changed or swapped with its neighbour."""
    if abs(len(word) - len(known)) > 1:
        return False
    k = 0
    while k < min(len(word), len(known)) and word[k] == known[k]:
        k += 1
    a, b = word[k:], known[k:]
    is_swap = len(b) > 1 and a[:2] == b[1::-1] and a[2:] == b[2:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or is_swap


@lru_cache(maxsize=2**14)
def section_of(phrase: str, slips: int = 2) -> str | None:
    """Return the section that a header's words name, None if a word is no word of headers.

    A header that names a section that is read and another ("impression and recommendations") is
    read.
    """
    said = html.unescape(phrase).lower().replace("x-ray", "xray").replace("x ray", "xray")
    said = re.sub(r"\bfollow[ -]ups?\b", "followup", said)
    said = re.sub(r"\b([a-z])/([a-z])\b|\b([a-z])\.([a-z])\.([a-z])?\.?", r"\1\2\3\4\5", said)
    said = re.sub(r"\(s\)|\(ies\)|['\u2019]s\b", "", said)
    words = [word if word.isdigit() else _spelled(word, slips) for word in _TOKEN.findall(said)]
    if not words or None in words or len(words) > 9:
        return None
    named = [_WORDS[word] for word in words if word in _WORDS]
    for first, second in pairwise(words):
        if first in _OTHER["modifies"] and _WORDS.get(second or "") in READ:
            named.remove(_WORDS[second or ""])
    has_view = not {"view", "views"}.isdisjoint(words)
    if set(named) == {"technique"} and has_view and (_FILMS | _OTHER["projections"]) & set(words):
        return "findings"  # CHEST, TWO VIEWS: what they show
    alone = [_ALONE[word] for word in words if word in _ALONE]
    read = [name for name in named if name in READ]
    return next(iter(read or named), "findings" if _FILMS & set(words) else next(iter(alone), None))


# ---- sections ------------------------------------------------------------------------------------
_EVENT = re.compile(r"[.:;?!\n)\]]")
_LINE_HEAD = re.compile(  # where a line begins, followed by something else than a colon
    r"^[ \t]*+(?:\(?\d{1,2}[.)][ \t]*+)?([A-Za-z](?:[A-Za-z/&,' ]|-(?=[A-Za-z])){1,50}+)"
    r"[ \t]*(?:[-\u2010-\u2014]+(?=\s)|[-=\u2012-\u2014]+>|>+|[=|\t])",
    re.M,
)
_CAPS_HEAD = re.compile(  # FINDINGS Lungs are clear
    r"^[ \t]*+(FINDINGS?|IMPRESSIONS?|CONCLUSIONS?|OPINION|INDICATIONS?|HISTORY|CLINICAL [A-Z]+"
    r"|COMPARISONS?|TECHNIQUE)(?=[ \t]+[A-Za-z\d_][^A-Z]|\.?[ \t]{2}|\.[ \t])",
    re.M,
)
_SUFFIX = re.compile(
    r"(?:^|[\s,])((?:\b(?:[A-Z][A-Za-z]*+|of|for|and|to|with|[&/])[ \t]*[/&,]?[ \t]*){1,6})$"
)
_DOTTED = re.compile(  # H.P.I. (old):
    r"(?:\b[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z][A-Za-z /&]{0,40}\([A-Za-z /]{1,20}\))$"
)
_LAST_WORD = re.compile(r"[a-z]+$")
_NUMBER = re.compile(r"[ \t]*(?:[-*\u2022>#]+|\(?\d{1,2}[.)]|[A-Z][.)](?=[ \t]))?[ \t]*")
_LINE_END = re.compile(r"\S[ \t]*\n")
_BLANK_LINE, _SENTENCE_END = re.compile(r"\S\s*?\n\s*?\n"), re.compile(r"[^\s.][.\n]")


def split(text: str) -> list[tuple[str, int, int]]:
    """Return (name, start, end) of each section of a plain text that holds a word.

    Text without a header belongs to the findings. A line that begins with an unknown title ("Clin
    info:") is not read if the findings have a header further down. A section that is not read ends
    at a blank line, unless the findings have a header further down, and where a line begins with
    an organ ("Heart:").
    """
    heads = _headers(text)
    known = [head for head in heads if head[2] != UNKNOWN]
    stops = [start for start, _, _ in [*known, (len(text), 0, "")]][1:]
    filled = [
        (start, name)
        for (start, end, name), stop in zip(known, stops, strict=True)
        if text[end:stop].strip()
    ]
    is_read = any(name in READ for _, name in filled)
    findings = [start for start, name in filled if name == "findings"]
    first, last = min(findings, default=-1), max(findings, default=-1)
    pieces: list[tuple[str, int, int]] = []
    name, begin = "findings", 0
    for start, end, new in [*heads, (len(text), len(text), "")]:
        if new == UNKNOWN and start > first:
            continue
        if new == "organ":
            if name in READ or start < last:
                continue
            new, end = "findings", start
        middle = start
        if name not in READ:
            cut = None if begin <= last else _BLANK_LINE.search(text, begin, start)
            if name in ("examination", "technique") and pieces and pieces[-2][0] in READ:
                cut = _LINE_END.search(text, begin, start)  # a line among the findings
            if not cut and start == len(text) and not is_read:  # findings without a header
                cut = _SENTENCE_END.search(text, begin, start)
            middle = cut.end() if cut else start
        pieces += [(name, begin, middle), ("findings", middle, start)]
        name, begin = new, end
    return [piece for piece in pieces if text[piece[1] : piece[2]].strip()]


def _headers(text: str) -> list[Head]:
    """Return every header in order; section 'organ' is the name of an organ or finding."""
    found: list[Head] = []
    before, line = 0, 0  # where the phrase and its line begin
    lower = text.islower()
    for m in _EVENT.finditer(text):
        at, mark = m.start(), m[0]
        head = None
        if mark == ":":
            # only so far back: text of nothing but colons would take the square of its length
            dotted = None if at > before else _DOTTED.search(text, max(line, at - 90), at)
            begin = dotted.start() if dotted else before
            head = _colon(text, begin, at, line) if at - begin < 90 else None
            head = head or _suffix(text, before, at, lower)
        elif mark == "\n" and 0 < at - before < 60:
            head = _own_line(text, before, at, line, lower)
        if head:
            found.append(head)
        before = at + 1
        if mark == "\n":
            line = before
    for m in [*_LINE_HEAD.finditer(text), *_CAPS_HEAD.finditer(text)]:
        name = section_of(m[1]) if m[1].strip().lower() not in _OTHER["adverbs"] else None
        is_inside = any(start <= m.start(1) < end for start, end, _ in found)
        if name and not is_inside and _is_title(m[1]):
            found.append((m.start(1), m.end(), name))
    return sorted(found)


def _skip_number(text: str, before: int, at: int, line: int) -> tuple[int, bool]:
    """Return where a phrase begins after an item's number, and whether it begins its line."""
    skip = _NUMBER.match(text, before, at)
    begins_line = not text[line:before].strip(" \t.)0123456789")
    return skip.end() if skip else before, begins_line


def _colon(text: str, before: int, at: int, line: int) -> Head | None:
    """Return the header that ends with a colon."""
    start, begins_line = _skip_number(text, before, at, line)
    phrase = text[start:at].strip()
    name = section_of(phrase)
    if name and not begins_line:
        is_verb = phrase[:7].lower() == "compare" and " " in phrase and not phrase.isupper()
        if _is_two(phrase, name) or (name == "comparison" and is_verb):
            return None  # ... . Compared to the prior: it has grown
    few_words = len(phrase.split()) <= 4 and re.fullmatch(r"[A-Za-z' ]+", phrase)
    if not name and begins_line and few_words:
        last = phrase.lower().split()[-1]  # Lung findings, Smoking history
        name = section_of(last) if last in _CORE else None
    if name:
        return start, at + 1, name
    words = re.sub("[/,&]", " ", phrase.lower()).split()
    if words and (begins_line or phrase.isupper()) and _ORGANS.issuperset(words):
        return start, at + 1, "organ"
    return (start, at + 1, UNKNOWN) if begins_line and 0 < len(words) <= 4 else None


def _suffix(text: str, before: int, at: int, lower: bool) -> Head | None:
    """Return a header in capitals, or with one, after other words: a line end was lost."""
    near = max(before, at - 60)
    if lower and (ending := _LAST_WORD.search(text, near, at)) and ending[0] in _CORE:
        return ending.start(), at + 1, section_of(ending[0]) or ""
    m = _SUFFIX.search(text, near, at)
    if not m or not m[1].strip():
        return None
    words = [(w.start(), w[0]) for w in re.finditer(r"[A-Za-z]+", m[1])]
    for k, (offset, word) in enumerate(words):
        phrase = m[1][offset:].strip()
        capitals = phrase.isupper()
        may_be = capitals or (words[-1][1] != "Chest" and len(words) - k <= 3)
        name = section_of(phrase) if word[0].isupper() and may_be else None
        if not name or _is_two(phrase, name):
            continue
        if capitals or _CORE & {_spelled(w.lower(), 1) for _, w in words[k:]}:
            return m.start(1) + offset, at + 1, name
    return None


def _own_line(text: str, before: int, at: int, line: int, lower: bool) -> Head | None:
    """Return the header that has its line, or the end of a line, for itself."""
    start, begins_line = _skip_number(text, before, at, line)
    phrase = text[start:at].strip(" \t-\u2013\u2014")
    name = section_of(phrase, 1) if 0 < len(phrase) <= 60 else None
    if not name:
        return None
    words = phrase.split()
    if len(words) == 1:
        is_title = phrase[0].isupper() or lower or (begins_line and phrase in _CORE)
        return (start, at, name) if is_title else None
    if not begins_line or (not lower and _continues(text, at, line, phrase)):
        return None
    if not any(_spelled(w, 1) in _WORDS for w in re.findall(r"[a-z]+", phrase.lower())):
        is_title = "report" in phrase.lower()  # not a study's title: Chest PA and lateral
        return (start, at, name) if is_title else None
    return start, at, name


def _continues(text: str, at: int, line: int, phrase: str) -> bool:
    """Return whether a line of several words belongs to a sentence."""
    above = text[:line].rstrip()
    end_above = text[:line].rstrip(" \t")[-2:]
    follows_lower = text[at:].lstrip()[:1].islower()
    if follows_lower and not phrase.isupper() and len(above.rpartition("\n")[2]) > 40:
        return True
    has_end = end_above == "\n\n" or end_above[:-1] in (".", ":")
    begins = not end_above or (not follows_lower and has_end)
    return not begins and not _is_title(phrase)


def _is_two(phrase: str, name: str) -> bool:
    """Return whether it is a comparison and the next header: COMPARISON: PRIOR FINDINGS: ..."""
    return name == "comparison" and phrase.split()[-1].lower() in _CORE - {"comparison"}


def _is_title(phrase: str) -> bool:
    """Return whether the words begin with capitals, except small ones, or the first of few does."""
    words = re.findall(r"[A-Za-z]+", phrase)
    if not words or not words[0][0].isupper():
        return False
    return len(words) <= 3 or all(
        w[0].isupper() for w in words[1:] if w.lower() not in _OTHER["small"]
    )
