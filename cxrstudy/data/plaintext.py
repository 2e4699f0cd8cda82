"""Turn a report's markup and line ends into plain text, keeping where each character was."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from cxrstudy.data.sections import section_of

Place = tuple[int, int]  # (start, end) of one plain character in the original text
_SPECIAL = re.compile(
    r"[\r\xad\xb6\ufeff\u200b-\u200f\u2060\u240a\u240d\u2424%\v\f\x1c-\x1e\x85\u2028\u2029<&\\*_#\[{"
    r"\uff1a~^=]"
)
_LINE_MARK = re.compile(r"\n[ \t]*[(|>]")
_LT, _GT = r"(?:<|&lt;)", r"(?:>|&gt;)"
_REST = r"(?:\s[^<>\n]{0,200}?)?\s*/?"
_BLOCKS = r"p|div|li|ul|ol|tr|table|tbody|h[1-6]|hr|section|pre|dl|dt|dd"
_BREAK = re.compile(  # a line's end, and what a browser, HL7 or a spreadsheet puts for a character
    r"(?P<line>\r+\n|\r|[\v\f\x1c-\x1e\x85\u2028\u2029\xb6\u240a\u240d\u2424]|(?:%0d)?%0a|%0d"
    r"|(?:_x000[da]_)+(?:\r?\n)?"
    r"|\\{1,9}+(?:r\\{1,9}+n|[rn]|u(?:000|x0)[a-d]|u202[89]|x0[a-d](?![\\\da-f]))"
    r"|\\\.(?:br|sp\d*|ce)\\|\\x0[ad](?:0a)?\\|\\(?:par|line)\b ?|\^m(?:\r?\n)?"
    rf"|{_LT}(?:br|cr|lf|crlf|nl|newline){_REST}{_GT}(?:[ \t]*\r?\n)?"
    rf"|(?:{_LT}/?(?:{_BLOCKS}){_REST}{_GT}\s*)+"
    r"|~(?![ \t]?\d))"
    rf"|(?P<cell>{_LT}/?t[dh]{_REST}{_GT}|\\{{1,9}}+(?-i:t)(?![a-z\\]))"
    rf"|(?P<bold>{_LT}/?(?:b|strong|u|i|em|span|font|mark){_REST}{_GT})"
    rf"|(?P<gone>{_LT}/?(?:html|body|head|a|sup|sub|small|code){_REST}{_GT}|\\[hn]\\"
    r"|[\xad\ufeff\u200b-\u200f\u2060])"
    r"|(?P<char>&(?:amp;)*(?:#\d{1,6};|#x[\da-f]{1,5};|[a-z]+\d?;|nbsp)|\\[tfsr]\\)"
    r"|(?P<colon>\uff1a)",
    re.I,
)
_HL7 = {"t": "&", "f": "|", "s": "^", "r": "~"}
_NAME = r"[A-Za-z][A-Za-z0-9 \t/&,;.()'-]{1,60}?"
_MARKED = re.compile(  # **X**, __X__, [X], <X>, and where a line begins ## X ##, == X ==, | X |
    rf"[*_\[{{<][*_\[{{</]*+[ \t]*+({_NAME})[ \t]*+(?::[ \t]*+)?/?[*_\]}}>]++[ \t]*:?"
    rf"|^[ \t]*+[#=~|>(+-]++[ \t]*+({_NAME})[ \t]*+(?::[ \t]*+)?(?:[#=~|)+-]++[ \t]*:?|$)",
    re.M,
)
_EMPHASIS = re.compile(r"\*\*+|(?<![_\w])__(?=[^\W_])|(?<=[^\W_])__(?![_\w])")


def plain(text: str) -> tuple[str, list[Place] | None]:
    r"""Return the text with ``\n`` for every kind of line end and without markup, and its places.

    Line ends are those of Windows, Unicode, HTML, HL7 (``\.br\``), Excel (``_x000D_``) and escaped
    ones (a literal ``\n``). A place is where a character was; places are None if nothing changed.
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
        if m["char"][0] == "\\":
            return _HL7[m["char"][1].lower()]
        return html.unescape(html.unescape(m["char"])).replace("\r", "\n")
    return "\t" if m["cell"] else "**" if m["bold"] else ":" if m["colon"] else ""


def _plain_header(m: re.Match[str]) -> str | None:
    name = m[1] or m[2]
    if section_of(name) is None:
        return None
    return "\n" if "</" in m[0].split(name)[0] else f"\n{name}:"


def _replace(
    pattern: re.Pattern[str],
    by: Callable[[re.Match[str]], str | None],
    text: str,
    places: list[Place],
) -> tuple[str, list[Place]]:
    """Substitute in text and places; a match stays as it is if ``by`` returns None."""
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
