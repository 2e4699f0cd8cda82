"""Sections of a radiology report: its text in plain characters, its headers whatever their spelling, and what is read.

Headers are recognised by their words, not by a list of phrases: each word of a header names a section ("indication"),
qualifies it ("for this exam") or is a misspelling of such a word. One word of another kind, and it is no header.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

READ = {"findings", "impression"}
UNKNOWN = "other"  # a title that names no known section
Place = tuple[int, int]  # (start, end) of one plain character in the original text

# ---- plain text ----------------------------------------------------------------------------------------------------
_SPECIAL = re.compile(
    r"[\r\xad\xb6\ufeff\u200b-\u200f\u2060\u240a\u240d\u2424%\v\f\x1c-\x1e\x85\u2028\u2029<&\\*_#\[{\uff1a~^=]"
)
_LINE_MARK = re.compile(r"\n[ \t]*[(|>]")
_LT, _GT = r"(?:<|&lt;)", r"(?:>|&gt;)"
_REST = r"(?:\s[^<>\n]{0,200}?)?\s*/?"
_BREAK = re.compile(  # a line's end; what else a browser, HL7 or a spreadsheet puts in a character's place
    r"(?P<line>\r+\n|\r|[\v\f\x1c-\x1e\x85\u2028\u2029\xb6\u240a\u240d\u2424]|(?:%0d)?%0a|%0d|(?:_x000[da]_)+(?:\r?\n)?"
    r"|\\+r\\+n|\\+[rn]|\\+(?:u(?:000|x0)[a-d]|u202[89]|x0[a-d](?![\\\da-f]))"
    r"|\\\.(?:br|sp\d*|ce)\\|\\x0[ad](?:0a)?\\|\\(?:par|line)\b ?|\^m(?:\r?\n)?"
    rf"|{_LT}(?:br|cr|lf|crlf|nl|newline){_REST}{_GT}(?:[ \t]*\r?\n)?"
    rf"|(?:{_LT}/?(?:p|div|li|ul|ol|tr|table|tbody|h[1-6]|hr|section|pre|dl|dt|dd){_REST}{_GT}\s*)+"
    r"|~(?![ \t]?\d))"
    rf"|(?P<cell>{_LT}/?t[dh]{_REST}{_GT}|\\+(?-i:t)(?![a-z\\]))"
    rf"|(?P<bold>{_LT}/?(?:b|strong|u|i|em|span|font|mark){_REST}{_GT})"
    rf"|(?P<gone>{_LT}/?(?:html|body|head|a|sup|sub|small|code){_REST}{_GT}|\\[hn]\\"
    r"|[\xad\ufeff\u200b-\u200f\u2060])"
    r"|(?P<char>&(?:amp;)*(?:#\d{1,6};|#x[\da-f]{1,5};|[a-z]+\d?;|nbsp)|\\[tfsr]\\)"
    r"|(?P<colon>\uff1a)",
    re.I,
)
_HL7 = {"t": "&", "f": "|", "s": "^", "r": "~"}
_NAME = r"[A-Za-z][A-Za-z0-9 \t/&,;.()'-]{1,60}?"
_MARKED = re.compile(  # a header in markup: **X**, __X__, [X], <X>, and at a line's beginning ## X ##, == X ==, | X |
    rf"[*_\[{{<][*_\[{{</]*+[ \t]*+({_NAME})[ \t]*:?[ \t]*/?[*_\]}}>]++[ \t]*:?"
    rf"|^[ \t]*+[#=~|>(+-]++[ \t]*+({_NAME})[ \t]*:?[ \t]*(?:[#=~|)+-]++[ \t]*:?|$)",
    re.M,
)
_EMPHASIS = re.compile(r"\*\*+|(?<![_\w])__(?=[^\W_])|(?<=[^\W_])__(?![_\w])")


def plain(text: str) -> tuple[str, list[Place] | None]:
    r"""Return the text with ``\n`` for every kind of line end, no markup, and where each character was.

    Line ends are those of Windows, Unicode, HTML, HL7 (``\.br\``), Excel (``_x000D_``) and escaped ones (a literal
    ``\n``). The places are None where nothing changed.
    """
    if not (_SPECIAL.search(text) or text[:1] in ("(", "|", ">") or _LINE_MARK.search(text)):
        return text, None
    places: list[Place] = [(at, at + 1) for at in range(len(text))]
    out, places = _replace(_BREAK, _plain_characters, text, places)
    if re.search(r"[*_\[{<#=~|>(+-]", out):
        out, places = _replace(_MARKED, _plain_header, out, places)
        out, places = _replace(_EMPHASIS, lambda m: "", out, places)
    return (out, places) if out != text else (text, None)


def _plain_characters(m: re.Match[str]) -> str:
    if m["line"]:
        return "\n"
    if m["char"]:
        said = m["char"]
        return (
            _HL7[said[1].lower()]
            if said[0] == "\\"
            else html.unescape(html.unescape(said)).replace("\r", "\n")
        )
    return "\t" if m["cell"] else "**" if m["bold"] else ":" if m["colon"] else ""


def _plain_header(m: re.Match[str]) -> str | None:
    if section_of(m[1] or m[2]) is None:
        return None
    return "\n" if "</" in m[0].split(m[1] or m[2])[0] else f"\n{m[1] or m[2]}:"


def _replace(
    pattern: re.Pattern[str],
    by: Callable[[re.Match[str]], str | None],
    text: str,
    places: list[Place],
) -> tuple[str, list[Place]]:
    """Substitute in text and places alike; a match is left as it is where ``by`` returns None."""
    parts, where, at = [], [], 0
    for m in pattern.finditer(text):
        new = by(m)
        if new is None:
            continue
        parts += [text[at : m.start()], new]
        where += places[at : m.start()]
        where += [(places[m.start()][0], places[m.end() - 1][1])] * len(new)
        at = m.end()
    return "".join([*parts, text[at:]]), where + places[at:]


# ---- headers -------------------------------------------------------------------------------------------------------


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split())


_NAMING = {  # words that name a section, wherever in a header they stand
    "findings": "finding findings observation observations result results interpretation description narrative "
    "appearances remark remarks",
    "impression": "impression impressions imp conclusion conclusions concl opinion summary assessment addendum comment "
    "comments diagnosis diagnoses",
    "indication": "indication indications ind ref history histories hx hpi pmh reason reasons rfe background request "
    "requested requesting referral referred referring question complaint complaints symptom symptoms presentation "
    "presenting context clinical clinic clin purpose concern signs admitting provisional preoperative order ordering "
    "allergies medication medications circumstances justification",
    "comparison": "comparison comparisons comparative compare compared comparing comp prior priors previous previously "
    "old last correlation",
    "technique": "technique techniques technic technical factors tech procedure procedures protocol method methods "
    "acquisition projection projections contrast dose radiation exposure view views",
    "examination": "date time accession mrn name dob age sex gender physician modality hospital department "
    "location technologist institution",
    "recommendation": "recommendation recommendations recommend recommended rec recs advice plan suggestion "
    "suggestions management notification notifications communication communicated notified signed signature "
    "dictated transcribed attestation attending disclaimer",
}
_ALONE = {  # words that name one where no word above does
    "chest": "findings", "thorax": "findings", "cxr": "findings",
    "report": "findings", "read": "findings", "reading": "findings",
    "exam": "examination", "examination": "examination", "exams": "examination", "examinations": "examination",
    "study": "examination", "studies": "examination", "information": "indication", "details": "indication",
    "data": "indication", "condition": "indication", "problem": "indication", "followup": "recommendation",
    "review": "findings", "statement": "indication", "notes": "findings",
}  # fmt: skip
_FILL = word_set(
    "the of for and or to with by from in on current final preliminary prelim initial brief "
    "relevant pertinent other additional further overall general key main limited medical surgical social past present "
    "patient patients pt xray xrays xr x ray rays radiograph radiographs radiographic radiography radiological "
    "radiologic radiology film films plain portable mobile bedside erect supine upright ap pa lateral lat frontal "
    "single two three one number type kind digital imaging image images scan scans test provided given available made "
    "done performed wet body text visit consult consultation chief is admission encounter new recent most follow up "
    "section illness referrer service electronically ct mri ultrasound physical action smoking radiologist "
    "report reports working known primary"
)
_FILMS = {"chest", "thorax", "cxr"}
_PROJECTIONS = word_set("pa ap lateral lat frontal portable single two three one")
_MODIFIES = word_set(  # clinical findings, previous impression: not this film's
    "clinical clin admitting provisional working preoperative referring referral ref order technical prior "
    "previous old last"
)
_ORGANS = word_set(
    "heart lung lungs pleura pleural mediastinum mediastinal cardiac cardiomediastinal cardiovascular silhouette bones "
    "bone bony osseous skeleton musculoskeletal structures soft tissues tubes tube lines line devices device support "
    "hardware catheters airway airways trachea diaphragm diaphragms hila hilum hilar abdomen upper vasculature spaces "
    "space size contours parenchyma costophrenic angles thoracic visualized and the of pulmonary vessels aorta "
    "pneumothorax effusion effusions consolidation atelectasis edema opacity opacities nodule nodules mass masses "
    "cardiomegaly fracture fractures pneumonia"
)
_WORDS = {word: name for name, words in _NAMING.items() for word in words.split()}
_KNOWN = set(_WORDS) | set(_ALONE) | _FILL
_NO_SLIP = {
    "induration",
    "compression",
    "depression",
    "expression",
    "option",
    "section",
}  # words of their own
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TOKEN = re.compile(r"[a-z]+|\d+|[^\sa-z\d/&,()+.'-]")


@lru_cache(maxsize=2**14)
def _spelled(word: str, slips: int) -> str | None:
    """The known word that this one is, or is with one slip of spelling (two in a long word); None if there is none."""
    if word in _KNOWN or word in _NO_SLIP or len(word) < 5 or not slips:
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
    """Whether one letter added, lost, changed or swapped with its neighbour makes one word of the other."""
    if abs(len(word) - len(known)) > 1:
        return False
    k = 0
    while k < min(len(word), len(known)) and word[k] == known[k]:
        k += 1
    a, b = word[k:], known[k:]
    return (
        a[1:] == b[1:]
        or a[1:] == b
        or a == b[1:]
        or (a[:2] == b[1::-1] and len(b) > 1 and a[2:] == b[2:])
    )


@lru_cache(maxsize=2**14)
def section_of(phrase: str, slips: int = 2) -> str | None:
    """The section that a header's words name, or None where one of them is no word of headers.

    A header that names a section that is read and one that is not ("impression and recommendations") is read.
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
        if first in _MODIFIES and _WORDS.get(second or "") in READ:
            named.remove(_WORDS[second or ""])
    if (
        set(named) == {"technique"}
        and {"view", "views"} & set(words)
        and (_FILMS | _PROJECTIONS) & set(words)
    ):
        return "findings"  # CHEST, TWO VIEWS: what they show
    alone = [_ALONE[word] for word in words if word in _ALONE]
    read = [name for name in named if name in READ]
    return next(iter(read or named), "findings" if _FILMS & set(words) else next(iter(alone), None))


_CORE = word_set(
    "findings impression impressions indication indications history comparison technique conclusion "
    "recommendation recommendations"
)
_ADVERBS = word_set(
    "previously previous old last prior compared recommend recommended requested referred read"
)
_EVENT = re.compile(r"[.:;?!\n)\]]")
_LINE_HEAD = re.compile(  # at a line's beginning, with something else than a colon behind it
    r"^[ \t]*+(?:\(?\d{1,2}[.)][ \t]*+)?([A-Za-z](?:[A-Za-z/&,' ]|-(?=[A-Za-z])){1,50}+)"
    r"[ \t]*(?:[-\u2010-\u2014]+(?=\s)|[-=\u2012-\u2014]+>|>+|[=|\t])",
    re.M,
)
_CAPS_HEAD = re.compile(  # FINDINGS Lungs are clear
    r"^[ \t]*+(FINDINGS?|IMPRESSIONS?|CONCLUSIONS?|OPINION|INDICATIONS?|HISTORY|CLINICAL [A-Z]+|COMPARISONS?|TECHNIQUE)"
    r"(?=[ \t]+[A-Za-z\d_][^A-Z]|\.?[ \t]{2}|\.[ \t])",
    re.M,
)
_SUFFIX = re.compile(
    r"(?:^|[\s,])((?:\b(?:[A-Z][A-Za-z]*+|of|for|and|to|with|[&/])[ \t]*[/&,]?[ \t]*){1,6})$"
)
_DOTTED = re.compile(
    r"(?:\b[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z][A-Za-z /&]{0,40}\([A-Za-z /]{1,20}\))$"
)  # H.P.I. (old):
_LAST_WORD = re.compile(r"[a-z]+$")
_NUMBER = re.compile(r"[ \t]*(?:[-*\u2022>#]+|\(?\d{1,2}[.)]|[A-Z][.)](?=[ \t]))?[ \t]*")
_LINE_END = re.compile(r"\S[ \t]*\n")
_BLANK_LINE, _SENTENCE_END = re.compile(r"\S\s*?\n\s*?\n"), re.compile(r"[^\s.][.\n]")


def split(text: str) -> list[tuple[str, int, int]]:
    """Return (name, start, end) of each section of a plain text that holds a word.

    What stands under no header belongs to the findings. A line that begins with an unknown title ("Clin info:") is not
    read where the findings have a header further down. A section that is not read ends at a blank line, unless the
    findings have a header further down, and where a line begins with an organ ("Heart:").
    """
    heads = _headers(text)
    known = [head for head in heads if head[2] != UNKNOWN]
    stops = [start for start, _, _ in [*known, (len(text), 0, "")]][1:]
    filled = [
        (start, name)
        for (start, end, name), stop in zip(known, stops, strict=True)
        if text[end:stop].strip()
    ]
    named = {name for _, name in filled}
    own = [start for start, name in filled if name == "findings"]
    first, last = min(own, default=-1), max(own, default=-1)
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
            if (
                not cut and start == len(text) and not READ & named
            ):  # findings without a header of their own
                cut = _SENTENCE_END.search(text, begin, start)
            middle = cut.end() if cut else start
        pieces += [(name, begin, middle), ("findings", middle, start)]
        name, begin = new, end
    return [piece for piece in pieces if text[piece[1] : piece[2]].strip()]


def _headers(text: str) -> list[tuple[int, int, str]]:
    """(start, end, section) of every header, in order; section 'organ': an organ's or a finding's name and a colon."""
    found: list[tuple[int, int, str]] = []
    before, line = 0, 0  # where the phrase and its line begin
    lower = text.islower()
    for m in _EVENT.finditer(text):
        at, mark = m.start(), m[0]
        if mark == ":":
            begin = (
                before
                if at > before or not (dotted := _DOTTED.search(text, line, at))
                else dotted.start()
            )
            head = _colon(text, begin, at, line) if at - begin < 90 else None
            head = head or _suffix(text, before, at, lower)
            if head:
                found.append(head)
        elif mark == "\n" and 0 < at - before < 60:
            head = _own_line(text, before, at, line, lower)
            if head:
                found.append(head)
        before = at + 1
        if mark == "\n":
            line = before
    for m in [*_LINE_HEAD.finditer(text), *_CAPS_HEAD.finditer(text)]:
        name = section_of(m[1]) if m[1].strip().lower() not in _ADVERBS else None
        if (
            name
            and _is_title(m[1])
            and not any(start <= m.start(1) < end for start, end, _ in found)
        ):
            found.append((m.start(1), m.end(), name))
    return sorted(found)


def _colon(text: str, before: int, at: int, line: int) -> tuple[int, int, str] | None:
    skip = _NUMBER.match(text, before, at)
    start = skip.end() if skip else before
    phrase = text[start:at].strip()
    own = not text[line:before].strip(" \t.)0123456789")
    name = section_of(phrase)
    if name and not own and _is_two(phrase, name):
        return None
    if (
        name == "comparison"
        and not own
        and phrase[:7].lower() == "compare"
        and " " in phrase
        and not phrase.isupper()
    ):
        return None  # ... . Compared to the prior: it has grown
    if not name and own and len(phrase.split()) <= 4 and re.fullmatch(r"[A-Za-z' ]+", phrase):
        last = phrase.lower().split()[
            -1
        ]  # Lung findings, Smoking history: whatever their first words
        name = section_of(last) if last in _CORE else None
    if name:
        return start, at + 1, name
    words = phrase.lower().replace("/", " ").replace(",", " ").replace("&", " ").split()
    if words and (own or phrase.isupper()) and all(word in _ORGANS for word in words):
        return start, at + 1, "organ"
    return (start, at + 1, UNKNOWN) if own and 0 < len(words) <= 4 else None


def _suffix(text: str, before: int, at: int, lower: bool) -> tuple[int, int, str] | None:
    """A header in capitals, or with one, that follows other words without a stop: a lost line end."""
    if lower and (ending := _LAST_WORD.search(text, before, at)) and ending[0] in _CORE:
        return ending.start(), at + 1, section_of(ending[0]) or ""
    m = _SUFFIX.search(text, max(before, at - 60), at)
    if not m or not m[1].strip():
        return None
    words = [(w.start(), w[0]) for w in re.finditer(r"[A-Za-z]+", m[1])]
    for k, (offset, word) in enumerate(words):
        phrase = m[1][offset:].strip()
        if word[0].isupper() and (
            phrase.isupper() or (words[-1][1] != "Chest" and len(words) - k <= 3)
        ):
            name = section_of(phrase)
            if (
                name
                and not _is_two(phrase, name)
                and (phrase.isupper() or _CORE & {_spelled(w.lower(), 1) for _, w in words[k:]})
            ):
                return m.start(1) + offset, at + 1, name
    return None


def _own_line(
    text: str, before: int, at: int, line: int, lower: bool
) -> tuple[int, int, str] | None:
    """A header that has its line, or the end of a line, for itself."""
    skip = _NUMBER.match(text, before, at)
    start = skip.end() if skip else before
    phrase = text[start:at].strip(" \t-\u2013\u2014")
    if not phrase or len(phrase) > 60:
        return None
    name = section_of(phrase, 1)
    if not name:
        return None
    words = phrase.split()
    own = not text[line:before].strip(" \t.)0123456789")
    follows = text[at:].lstrip()[:1] if len(words) > 1 else ""
    wraps = (
        follows.islower()
        and not phrase.isupper()
        and len(text[:line].rstrip().rpartition("\n")[2]) > 40
    )
    ended = text[:line].rstrip(" \t")[-2:]
    begins = not ended or (not follows.islower() and (ended == "\n\n" or ended[:-1] in (".", ":")))
    if len(words) > 1 and not lower and ((not _is_title(phrase) and not begins) or wraps):
        return None  # a sentence goes on
    if len(words) == 1 and not (phrase[0].isupper() or lower or (own and phrase in _CORE)):
        return None
    if not own and len(words) > 1:
        return None
    if len(words) > 1 and not any(
        _spelled(w, 1) in _WORDS for w in re.findall(r"[a-z]+", phrase.lower())
    ):
        return (
            (start, at, name) if "report" in phrase.lower() else None
        )  # a study's title: Chest PA and lateral
    return start, at, name


def _is_two(phrase: str, name: str) -> bool:
    """Whether it is a comparison's text and the next header: COMPARISON: PRIOR FINDINGS: ..."""
    return name == "comparison" and phrase.split()[-1].lower() in _CORE - {"comparison"}


def _is_title(phrase: str) -> bool:
    """Whether its words begin with capitals, but for small ones, or it is one word that does."""
    words = re.findall(r"[A-Za-z]+", phrase)
    later = [
        w
        for w in words[1:]
        if w.lower() not in ("of", "for", "and", "to", "with", "the", "by", "in")
    ]
    return (
        bool(words)
        and words[0][0].isupper()
        and (all(w[0].isupper() for w in later) or len(words) <= 3)
    )
