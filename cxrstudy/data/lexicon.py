"""Read the word lists and patterns of ``words/*.txt``."""

import re
from pathlib import Path


def word_set(text: str, separator: str | None = None) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split(separator))


def by_word(entries: dict[str, str], separator: str | None = None) -> dict[str, str]:
    """Return word -> name of the entry that lists it."""
    return {word: name for name, words in entries.items() for word in words.split(separator)}


def read_lexicon(name: str) -> dict[str, dict[str, str]]:
    """Return the groups of ``words/NAME.txt``: group -> entry -> text.

    A line ``[GROUP]`` starts a group, a line ``ENTRY: text`` an entry. Indented lines continue it,
    joined by a blank, or by nothing after a backslash at a line's end. Lines that begin with ``#``
    are comments. ``{entry}`` stands for the text of an entry above it.
    """
    text = (Path(__file__).parent / "words" / f"{name}.txt").read_text(encoding="utf-8")
    text = re.sub(r"^(#.*)?\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\n +", " ", re.sub(r"\\\n +", "", text))
    groups: dict[str, dict[str, str]] = {}
    known: dict[str, str] = {}
    for line in text.splitlines():
        if group := re.fullmatch(r"\[(.*)\]", line):
            entries = groups[group[1]] = {}
            continue
        entry, value = line.split(": ", 1)
        value = re.sub(r"\{([a-z]+)\}", lambda m: known[m[1]], value)
        known[entry] = entries[entry] = value
    return groups
