"""Tell the language of a report: English is read, other languages are counted.

A text is English unless words of another language outnumber its English ones. The lists are short:
function words, and words of normal and common reports, so that two words ("Kein Pneumothorax.") are
enough. Words that two languages share ("edema", "pleural", "normal") count for neither.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable

from cxrstudy.data.lexicon import read_lexicon, word_set
from cxrstudy.data.plaintext import plain

_LEXICON = read_lexicon("languages")
_ENGLISH = word_set(_LEXICON["english"]["only"])
_FAMILIAR = _ENGLISH | word_set(_LEXICON["english"]["shared"])
_LANGUAGES: dict[str, list[str]] = {}  # word -> languages
for _name, _words in _LEXICON["foreign"].items():
    for _word in _words.split():
        _LANGUAGES.setdefault(_word, []).append(_name)
_FOREIGN = frozenset(_LANGUAGES)
_SCRIPT = {name: re.compile(f"[{letters}]") for name, letters in _LEXICON["scripts"].items()}
_OTHER = re.compile(f"[{''.join(_LEXICON['scripts'].values())}]{{2,}}")
_ACCENTED = re.compile("[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1ea0-\u1ef9]")
_NEUTRAL = _FOREIGN | word_set(_LEXICON["english"]["names"])
_WORD = re.compile(r"[^\W\d_]+")
_ASCII_WORD = re.compile(r"[a-z]{2,}")
_SENTENCE = re.compile(r"[^.;!?\n]+")


def language(text: str) -> str:
    """Return the language of a report: "English", another name, or "unknown" for unlisted words."""
    return _language(plain(text)[0])


def foreign_parts(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of the parts of a plain text that are not English: all, or sentences."""
    is_ascii = text.isascii()
    words = (_ASCII_WORD if is_ascii else _WORD).findall(text.lower())
    is_known = len(words) < 6 or not _FAMILIAR.isdisjoint(words)
    if is_ascii and is_known and _FOREIGN.isdisjoint(words):
        return []
    if _language(text) != "English":
        return [(0, len(text))]
    return [
        m.span() for m in _SENTENCE.finditer(text) if _language(m[0]) not in ("English", "unknown")
    ]


def not_english(reports: Iterable[object]) -> dict[str, int]:
    """Count the reports of each other language, most first. Missing reports are skipped."""
    texts = (text for text in reports if isinstance(text, str) and text.strip())
    return dict(Counter(name for name in map(language, texts) if name != "English").most_common())


def keep_english(reports: Iterable[str]) -> list[str]:
    """Return the reports, empty those in other languages; one warning says how many they are."""
    texts = list(reports)
    names = [language(text) if text.strip() else "English" for text in texts]
    found = Counter(name for name in names if name != "English")
    if found:
        most = ", ".join(f"{name} {n:,}" for name, n in found.most_common(4))
        warnings.warn(
            f"{found.total():,} of {sum(bool(text.strip()) for text in texts):,} reports are not "
            f"in English ({most}): only English is read, so they give no labels. Leave them out, "
            "or translate them first.",
            stacklevel=2,
        )
    return [text if name == "English" else "" for text, name in zip(texts, names, strict=True)]


def _language(text: str) -> str:
    words = _WORD.findall(text.lower())
    foreign = [word for word in words if word in _LANGUAGES]
    accented, other = 0, []
    if not text.isascii():
        accents = (w for w in words if len(w) > 2 and w not in _NEUTRAL and _ACCENTED.search(w))
        accented, other = sum(1 for _ in accents), _OTHER.findall(text)
    english = sum(1 for word in words if word in _ENGLISH)
    if len(foreign) + accented + sum(map(len, other)) / 2 > english:
        if other:
            return next(name for name, letter in _SCRIPT.items() if letter.search("".join(other)))
        votes = Counter(name for word in foreign for name in _LANGUAGES[word])
        return votes.most_common(1)[0][0] if votes else "unknown"
    long_words = {word for word in words if len(word) > 3 and "xx" not in word}
    return "unknown" if len(long_words) > 5 and _FAMILIAR.isdisjoint(words) else "English"
