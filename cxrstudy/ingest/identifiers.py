"""Replace what is left of identifiers in a report: dates, times, numbers, names, addresses.

Patterns (``data/words/identifiers.txt``) find spellings, not meanings: what they miss is still
there. The counts by kind tell how well the export had been de-identified.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

from cxrstudy.data.lexicon import read_lexicon

_LEXICON = read_lexicon("identifiers")
KINDS = ("email", "date", "phone", "id", "time", "address", "age")  # in the order of their use
RULES = [
    (kind, re.compile(rule, re.IGNORECASE | re.MULTILINE))
    for kind in KINDS
    for rule in _LEXICON[kind].values()
]
TITLE, DEGREE, TOKEN, BEFORE, BETWEEN = (
    re.compile(_LEXICON["names"][name])
    for name in ("title", "degree", "token", "before", "between")
)
WORD = re.compile(r"[^\W\d_]{2,}")
REPORTED = frozenset(_LEXICON["names"]["words"].split()) | {
    word
    for file in ("headers", "languages", "phrases")
    for group in read_lexicon(file).values()
    for word in WORD.findall(" ".join(group.values()).lower())
}
PLAIN = str.maketrans("\u0131\u0142\u00f8\u0111\u0130\u0141\u00d8\u0110", "ilodilod")  # no accents
WRITTEN_OUT = str.maketrans(  # as a name is often typed
    {"\u00e4": "ae", "\u00f6": "oe", "\u00fc": "ue", "\u00df": "ss", "\u00f8": "oe", "\u00e5": "aa"}
)
Spans = list[tuple[int, int]]


def clean_report(text: str, names: Iterable[str] = ()) -> tuple[str, dict[str, int]]:
    """Return a report with identifiers as ``[date]``, ``[name]`` ..., and how many of each kind.

    Args:
        text: the report.
        names: of persons in the image's tags (``Smith^Jane^^Dr``): patient, physicians, operators;
            several are joined by a backslash.
    """
    counts: Counter[str] = Counter()
    text = _cut(text, _own_names(text, names), counts)
    text = _cut(text, _after_titles(text), counts)
    text = _cut(text, _before_degrees(text), counts)
    has_digits = re.search(r"\d", text)
    for kind, rule in RULES if has_digits else RULES[:2]:  # only those of `email` need none
        text = rule.sub(_replacing(kind, counts), text)
    return text, dict(counts)


def _replacing(kind: str, counts: Counter[str]) -> Callable[[re.Match[str]], str]:
    def replace(found: re.Match[str]) -> str:
        counts[kind] += 1
        return f"{found.groupdict().get('keep') or ''}[{kind}]"

    return replace


def _folded(text: str) -> str:
    """Return a text without case and accents, as long as it was."""
    if text.isascii():
        return text.lower()
    text = text.translate(PLAIN)
    return "".join(unicodedata.normalize("NFD", sign)[0].lower()[0] for sign in text)


def _own_names(text: str, names: Iterable[str]) -> Spans:
    """Find parts of known names; one that is also a word of reports only beside another part."""
    known = [_folded(s) for name in names for s in (name, name.lower().translate(WRITTEN_OUT))]
    persons = [person.split("^")[:3] for name in known for person in re.split(r"[=\\]", name)]
    parts = {part for person in persons for part in WORD.findall(" ".join(person))}
    folded = _folded(text)
    words = [m for m in WORD.finditer(folded) if m[0] in parts] if parts else []
    spans: list[tuple[int, int, bool]] = []  # runs of parts, and whether one is certain
    for word in words:
        start, end = word.span()
        sure = word[0] not in REPORTED and (len(word[0]) > 2 or text[start].isupper())
        if spans and BETWEEN.fullmatch(folded, spans[-1][1], start):
            start, sure = spans.pop()[0], True
        spans.append((start, end, sure))
    return [(start, end) for start, end, sure in spans if sure]


def _after_titles(text: str) -> Spans:
    """Find names of up to four parts after a title or "signed by"."""
    spans: Spans = []
    for title in TITLE.finditer(text):
        begin = end = title.end()
        for _ in range(4):
            token = TOKEN.match(text, end)
            any_case = end == begin and title[0].endswith(".")
            if not token or DEGREE.match(text, end) or not _is_name(token[1], any_case):
                break
            end = token.end(1)
            if token.end() > end:  # a comma
                break
        if end > begin:
            spans.append((begin + 1, end))
    return spans


def _before_degrees(text: str) -> Spans:
    """Find names of up to three parts before ", MD"."""
    spans: Spans = []
    for degree in DEGREE.finditer(text):
        before = BEFORE.search(text[: degree.start()])
        words = before[0].split(" ") if before else []
        while words and not _is_name(words[0]):
            words = words[1:]
        if words and _is_name(words[-1]):
            spans.append((degree.start() - len(" ".join(words)), degree.start()))
    return spans


def _is_name(word: str, any_case: bool = False) -> bool:
    """Return whether a word may be of a name: a capital, and no word of reports or ``XXXX``."""
    if re.fullmatch(r"[Xx]{2,}\W*", word) or _folded(word) in REPORTED:
        return False
    return any_case or word[0].isupper()


def _cut(text: str, spans: Spans, counts: Counter[str]) -> str:
    """Replace spans by ``[name]``."""
    at, out = 0, ""
    for start, end in sorted(spans):
        if start >= at:
            out, at = f"{out}{text[at:start]}[name]", end
            counts["name"] += 1
    return out + text[at:]
