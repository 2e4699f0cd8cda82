"""What a radiology report says: its sections, the findings and devices it mentions, and how it says each.

A mention is denied, doubted or stated by cue words of its own sentence and their scope, as in NegEx, here with the
lists, resolutions and comparisons that radiologists write. Measured on Open-i's manual codes, negspacy's and medspacy's
general rules fall below such rules, so neither is a dependency (so does NegEx in radiology: 5 points of F1 in Peng et
al., NegBio, AMIA 2018, PMC5961822).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cxrstudy.data import templates
from cxrstudy.data.language import foreign_parts, is_english
from cxrstudy.data.phrases import ABNORMAL, CUES, SIZES, TERMS
from cxrstudy.data.sections import READ, plain, split
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, OTHER_DEVICES

NAMES = FINDINGS + DEVICES + OTHER_DEVICES
_CATHETERS = set(DEVICES + OTHER_DEVICES) - {
    "endotracheal_tube",
    "tracheostomy_tube",
    "gastrostomy_tube",
    "pacemaker",
}
_MIDLINE = {
    "cardiomegaly",
    "endotracheal_tube",
    "nasogastric_tube",
    "tracheostomy_tube",
    "gastrostomy_tube",
}
# A comma or 'and' behind a denied name, and what starts a statement there
_RESUMES = re.compile(
    r"(?:, ?)?(?:and )?(?:(?:there|the|mild|mildly|moderate|stable|unchanged|persistent|chronic|old|healed|status"
    r"|only|minimal|improv\w+|increas\w+|lungs?|heart|cardiac)\b"
    r"(?! (?:mass|nodul|failure|enlarg)\w*(?:[.;\n]|[^.;\n]*\bn?or\b))"
    r"|(?:(?<=, )(?:left|right|bilateral)|bibasilar|basilar|linear|low|slight|subsegmental|minor|small|trace|tiny"
    r"|patchy|streaky|residual|scattered|few|multiple|several)\b(?![^.;\n]*\bn?or\b))"
)
_LIST = re.compile(r"[^.;\n]*\b(?:or|versus|vs)\b")
_TIP = re.compile(r"\b(?:tips?|end)\b")
_ONE_VIEW = re.compile(
    r" (?:well |clearly )?(?:in|on) (?:the )?(?:\w+ )?(?:lateral|frontal|pa|ap|prior|previous|view)"
)
_JOINED = re.compile(
    r"with (?:\w+ )?(?:superimposed|associated|adjacent|underlying|overlying|accompanying)|assoc"
)
_NOTHING = re.compile(
    r"(?:process|abnormality|abnormalities|disease|findings?)$"
)  # what a denial may be spent on
_PLURAL = re.compile(r"\b(?:are|have|were|been)\W*$")
_BEFORE_HEART = re.compile(
    r"(?: (?:size|sized|of|the|in|overall|and|mediastinal|transverse|appearing|for|configuration|contours?))* ?"
)
_ENLARGED_ELSE = re.compile(r" (?:right|left|hil|pulm|aort|thor|medias|lymph|azyg|vascul|main)")
_LARGE_ELSE = re.compile(
    r" (?!(?:in|for|and|but|on|as|at|by|to)\b|with|since|from|due|compar|again|size)[a-z]"
)
_VERB = re.compile(r"\b(?:is|are|appears?|has|have|remains?|was|corresponds?)\b")
_SIDE = re.compile(
    r"\b(?:(right|rul|rml|rll)|(left|lul|lll|lingula\w*)|(bilateral\w*|both|bi ?bas\w+|biapical|bilat))\b"
    r"(?! (?:atri|ventric|heart|main|pulmonary arter))|(,)"
)
_CELL_END = re.compile(r"[ \"]*(?:$|[.;,\n|)])")
_SIDES = {frozenset(): "", frozenset({1}): "right", frozenset({2}): "left"}  # all else: bilateral
_BLANKS = str.maketrans({c: " " for c in "-\u2010\u2011\u2012\u2013\u2014\t\r\f\v\xa0"})
_NEWLINE, _RUN = re.compile(r"\n"), re.compile(r"  +")
_ITEM = re.compile(r"\s*(?:\n|$|[-*\u2022]|\(?\d+[.)])")
_NORMAL = re.compile(
    r"\bno (?:\w+ ){0,4}?(?:acute|active|significant|evidence|abnormal|disease|process|cardi|pulmonary|finding)"
    r"|\bnormal|\bclear\b|unremarkable|within (?:\w+ )?limits|\bnegative\b"
)


def _heads(phrase: str) -> Iterator[str]:
    """The phrase, or one for each alternative of the group that it begins with."""
    group = re.match(r"\(\?:([^()]*)\)(\??)", phrase)
    if not group:
        yield phrase
        return
    for option in [*group[1].split("|"), *([""] if group[2] else [])]:
        yield from _heads((option + phrase[group.end() :]).lstrip())


def _compile() -> tuple[re.Pattern[str], dict[str, tuple[re.Pattern[str], list[str]]]]:
    """Where an event may begin, and for each two letters the phrases that begin so with their kinds."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for kind, phrases in (CUES | TERMS | SIZES | {"abnormal": ABNORMAL}).items():
        for phrase in (head for words in phrases.split(" | ") for head in _heads(words.strip())):
            rows.setdefault(phrase[:2], []).append((phrase, kind))
    tables = {
        start: (
            re.compile("(?:" + "|".join(f"(?:{p})()" for p, _ in row) + ")(?![a-z])"),
            [kind for _, kind in row],
        )
        for start, row in rows.items()
    }
    seconds = {
        start[0]: "".join(sorted(two[1] for two in tables if two[0] == start[0]))
        for start in sorted(tables)
    }
    starts = "|".join(f"{first}[{second}]" for first, second in seconds.items())
    return re.compile(rf"[.,;:?\n]|\b(?:{starts})"), tables


_STARTS, _TABLES = _compile()


@dataclass(frozen=True)
class Mention:
    """One finding or device as one place of a text names it: ``text[span[0]:span[1]]``."""

    name: str
    status: str  # present, absent, uncertain
    side: str  # right, left, bilateral or ''
    span: tuple[int, int]
    hedge: str = ""  # weak: may, possible, cannot exclude (uncertain); strong: probable, compatible, A or B (present)


def sections(text: str) -> dict[str, str]:
    """A report's sections by lower-case name: findings, impression, indication, comparison, technique and others.

    Clinical history and the like are its indication; what stands under no header belongs to the findings.
    """
    found: dict[str, str] = {}
    text, _ = plain(text)
    for name, start, end in split(text):
        found[name] = (
            f"{found[name]}\n{text[start:end].strip()}"
            if name in found
            else text[start:end].strip()
        )
    return found


def extract_mentions(text: str) -> list[Mention]:
    """Every finding and device that a text states, doubts or denies, in its order.

    What indication, history and comparison name is left out; a 'catheter' counts unless the text says which kind.
    """
    found = _read(text)
    names = {m.name for m in found if m.status == "present"}
    vague = (
        set()
        if names & _CATHETERS
        else {"catheter"}
        if "pacemaker" in names
        else {"catheter", "tip"}
    )
    found = [replace(m, name="other_catheter") if m.name in vague else m for m in found]
    return [m for m in found if m.name in NAMES]


def extract_labels(text: str) -> dict[str, str]:
    """{name: present, absent or uncertain} of every finding and device mentioned: present before uncertain, absent.

    Words that leave the finding open make it uncertain too: pneumonia and airspace opacity are no consolidation, a
    nodular opacity is no nodule, as Open-i's curators code them (and NIH's and CheXpert's labels of pneumonia).
    """
    said: dict[str, set[str]] = {}
    for mention in extract_mentions(text):
        said.setdefault(mention.name, set()).add(mention.status)
    ranks = ("present", "uncertain", "absent")
    return {
        name: next(rank for rank in ranks if rank in said[name]) for name in NAMES if name in said
    }


def is_normal(text: str) -> bool:
    """Whether a text calls the chest normal and names nothing else: no finding, device, old or doubted change."""
    clean, _ = plain(text)
    said = " ".join(clean[start:end].lower() for name, start, end in split(clean) if name in READ)
    return (
        bool(_NORMAL.search(said))
        and is_english(text)
        and all(m.status == "absent" for m in _read(text))
    )


def _read(text: str) -> list[Mention]:
    """All mentions of what is read; 'catheter', 'tip' (of some line) and 'abnormal' are names here too."""
    text, places = plain(text)
    foreign = foreign_parts(text)
    if foreign and foreign[0] == (0, len(text)):
        return []
    found = []
    for section, start, end in split(text):
        if section in READ:
            part = text[start:end]
            flat, starts, shifts = _flatten(part)
            rows = []
            for (name, lo, hi, status, hedge), side in _Reader(flat).read():
                if starts:
                    lo, hi = (
                        lo + shifts[bisect_right(starts, lo)],
                        hi + shifts[bisect_right(starts, hi - 1)],
                    )
                rows.append((lo, hi, name, status, side, hedge))
            found += [
                (start + lo, start + hi, *more) for lo, hi, *more in templates.fill_in(part, rows)
            ]
    found = [row for row in found if not any(lo <= row[0] < hi for lo, hi in foreign)]
    if places:
        found = [(places[lo][0], places[hi - 1][1], *more) for lo, hi, *more in found]
    return [
        Mention(name, status, side, (lo, hi), hedge) for lo, hi, name, status, side, hedge in found
    ]


def _flatten(text: str) -> tuple[str, list[int], list[int]]:
    """Lower case, single blanks (for hyphens too), newlines only where they end a sentence; where it lost how many."""
    flat = text.lower()
    if len(flat) != len(text):
        flat = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    if "\n" in flat:
        flat = _NEWLINE.sub(_newline, flat)
    flat = flat.translate(_BLANKS)
    starts, shifts = [], [0]
    if "  " in flat:
        for m in _RUN.finditer(flat):
            starts.append(m.start() + 1 - shifts[-1])
            shifts.append(shifts[-1] + m.end() - m.start() - 1)
        flat = _RUN.sub(" ", flat)
    return flat, starts, shifts


def _newline(m: re.Match[str]) -> str:
    """A newline stays after a short line, a blank one or a full stop and before a list's item: else it is a blank."""
    at, text = m.start(), m.string
    before = text[text.rfind("\n", 0, at) + 1 : at].rstrip()
    return "\n" if len(before) < 50 or before[-1] in ".:;" or _ITEM.match(text, at + 1) else " "


class _Reader:
    """Goes through a flat text from cue to cue; `rows` of [name, start, end, status, hedge] are what it found."""

    def __init__(self, flat: str) -> None:
        self.flat = flat
        self.rows: list[list] = []
        self.sides: list[str] = []
        self.sentence = self.first = 0  # where the sentence began, in the text and in rows
        self._begin()

    def _begin(self) -> None:
        """Nothing is denied, doubted, probable or aside; `clause` and `comma`: first row since the last of these."""
        self.no = self.weak = self.lasting = self.strong = self.aside = False
        self.used = 0  # names since the denial
        self.heart: tuple[int, int] | None = None  # whose size is yet to come
        self.size: tuple[int, int, str] | None = None  # whose owner may come
        self.clause = self.comma = len(self.rows)

    def read(self) -> Iterator[tuple[list, str]]:
        """Each row with its side."""
        flat, search, at = self.flat, _STARTS.search, 0
        while m := search(flat, at):
            start, at = m.span()
            if at - start == 1:
                self._mark(m[0], start, at)
                continue
            table, kinds = _TABLES[m[0]]
            if (n := table.match(flat, start)) is None:
                at = start + 1
                continue
            at = n.end()
            kind = kinds[(n.lastindex or 1) - 1]
            if kind in SIZES:
                self._heart(kind, start, at)
            elif kind in CUES:
                self._cue(kind, start, at)
            elif kind and not self.aside:
                self._add(kind, start, at)
        self._stop(len(flat))
        return zip(self.rows, self.sides, strict=True)

    def _status(self) -> list[str]:
        if self.no:
            return ["absent", ""]
        return ["uncertain", "weak"] if self.weak else ["present", "strong" if self.strong else ""]

    def _add(self, kind: str, start: int, end: int) -> None:
        said = self._status()
        if kind[-1] == "!":
            kind, said = kind[:-1], ["absent", ""]
        elif kind[-1] == "?":
            kind, said = kind[:-1], ["uncertain", "weak"] if said[0] == "present" else said
        self.rows += [[name, start, end, *said] for name in kind.split("+")]
        self.used += 1

    def _stop(self, end: int) -> None:
        if self.first < len(self.rows):
            self._find_sides(end)
        self.sentence, self.first = end, len(self.rows)
        self._begin()

    def _mark(self, mark: str, start: int, end: int) -> None:
        """Punctuation."""
        if mark in ";\n" or (
            mark == "."
            and not (self.flat[end : end + 1].isdigit() and self.flat[start - 1].isdigit())
        ):
            self._stop(end)
        elif mark == ",":
            self.aside = self.strong = False
            self.weak = self.weak and (self.lasting or bool(_LIST.match(self.flat, end)))
            self.comma = len(self.rows)
            self._resume(start)
        elif mark == ":":
            self.aside = False
        elif mark == "?":
            if self.clause < len(self.rows) and self.rows[-1][2] == start:
                self.rows[-1][3:] = ["uncertain", "weak"]
            else:
                self.weak = True

    def _resume(self, at: int) -> None:
        if self.no and self._spent(at) and _RESUMES.match(self.flat, at):
            self.no = False

    def _spent(self, at: int) -> bool:
        return bool(
            self.used or _NOTHING.search(self.flat, self.sentence, at - (self.flat[at - 1] == " "))
        )

    def _cue(self, kind: str, start: int, end: int) -> None:
        rows, flat = self.rows, self.flat
        if kind == "but":
            self._begin()
        elif kind == "no":
            gap = flat[rows[-1][2] : start] if self.clause < len(rows) else ""
            cell = gap.strip(' :|="') == "" and bool(
                gap and _CELL_END.match(flat, end)
            )  # Pneumothorax - no, ...
            if cell or gap == ": ":
                rows[-1][3:] = ["absent", ""]
            if not cell:
                self.no, self.used = True, 0
        elif kind in ("gone", "doubted"):
            wide = self.comma == len(rows) or (
                kind == "gone" and _PLURAL.search(flat, max(0, start - 12), start)
            )
            named = rows[self.clause if wide else self.comma :]
            while len(named) > 1 and _VERB.search(flat, named[0][1], named[-1][1]):
                named = named[1:]  # of those before the verb something was said already
            if kind == "doubted":
                self.weak = self.weak or not named
                named = [row for row in named if row[3] == "present"]
            elif not named and not self.heart and not flat.endswith("patient", start, end):
                self.no, self.used = True, 0
            elif _TIP.search(flat, self.sentence, start) or _ONE_VIEW.match(flat, end):
                named = []
            for row in named:
                row[3:] = ["absent", ""] if kind == "gone" else ["uncertain", "weak"]
        elif kind in ("weak", "likely"):
            self.no = self.no and not self.used
            self.weak, self.strong = self.weak or kind == "weak", self.strong or kind == "likely"
            self.lasting = self.lasting or flat.startswith(("differ", "considera", "etiol"), start)
        elif kind == "strong":
            self.strong = True
        elif kind == "aside":
            self.aside = True
        elif kind in ("with", "due"):
            self.no = self.no and not (self._spent(start) if kind == "with" else self.used)
            if kind == "with":
                self.aside, self.weak = (
                    False,
                    self.weak and bool(self.lasting or _JOINED.match(flat, start)),
                )
        elif kind == "or":
            if self.clause < len(rows) and not (self.no or self.weak) and rows[-1][3] == "present":
                rows[-1][4], self.strong = "strong", True
        elif kind == "and":
            self._resume(start)

    def _heart(self, kind: str, start: int, end: int) -> None:
        """The heart, or a size: whichever comes first waits for the other."""
        flat = self.flat
        if kind == "elsewhere":
            self.used += 1
            if self.heart and _VERB.search(flat, self.heart[1], start):
                self.heart = None
            return
        if kind == "heart":
            size, self.size, self.heart = self.size, None, (start, end)
            if size and _BEFORE_HEART.fullmatch(flat, size[1], start):
                self.heart = None
                if not self.aside and (size[2] == "large" or not self.no):
                    self._add_heart(size[2], size[0], end)
            return
        self.size = (start, end, kind)
        if self.heart is None:
            if kind == "large" and not self.no:
                self.rows.append(["abnormal", start, end, *self._status()])
        elif kind == "large":
            other = _ENLARGED_ELSE if flat.startswith(("enlarg", "bord"), start) else _LARGE_ELSE
            if not other.match(flat, end):
                self._add_heart(kind, self.heart[0], end)
                self.heart = None
        elif kind == "same" or not self.no:
            if kind != "same":
                self._add_heart(kind, self.heart[0], end)
            if not (kind == "upper" and flat.startswith((" to ", " or "), end)):
                self.heart = None

    def _add_heart(self, kind: str, start: int, end: int) -> None:
        self.rows.append(
            ["cardiomegaly", start, end, *(self._status() if kind == "large" else ["absent", ""])]
        )

    def _find_sides(self, end: int) -> None:
        """The side of each row of the sentence: said before it, else behind it, else that of the row before."""
        rows, flat = self.rows[self.first :], self.flat
        words = [(m.start(), m.lastindex or 0) for m in _SIDE.finditer(flat, self.sentence, end)]
        before, shared = self.sentence, ""
        for k, (name, lo, hi, *_) in enumerate(rows):
            comma = max((at for at, w in words if w == 4 and before <= at < lo), default=before)
            near = {w for at, w in words if comma <= at < hi and w < 4} or {
                w for at, w in words if before <= at < hi and w < 4
            }
            before = hi
            if not near:
                stop = end
                if k + 1 < len(rows):
                    stop = rows[k + 1][1]
                    cut = max(flat.rfind(" and ", hi, stop), flat.rfind(" or ", hi, stop))
                    stop = cut if cut >= 0 else stop
                stop = min([at for at, w in words if w == 4 and at >= hi] + [stop])
                near = {w for at, w in words if hi <= at < stop and w < 4}
                before = stop if near else hi
            gap = flat[rows[k - 1][2] : lo] if k and rows[k - 1][3] == rows[k][3] else ","
            shared = (
                _SIDES.get(frozenset(near), "bilateral")
                if near or len(gap) > 20 or "," in gap
                else shared
            )
            self.sides.append("" if name in _MIDLINE else shared)
