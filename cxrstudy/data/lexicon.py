"""Read word lists and patterns that are written as blocks of text."""

import re


def word_set(text: str, separator: str | None = None) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split(separator))


def read_lexicon(*blocks: str) -> dict[str, str]:
    """Return name -> text of the last block's entries ``name: text``.

    Indented lines continue an entry. They are joined by a blank, or by nothing after a backslash at
    a line's end. Lines that begin with ``#`` are comments. ``{name}`` stands for the text of an
    entry above it, in this block or an earlier one.
    """
    known: dict[str, str] = {}
    entries: dict[str, str] = {}
    for block in blocks:
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        joined = re.sub(r"\n +", " ", re.sub(r"\\\n +", "", "\n".join(lines)))
        entries = dict(line.split(": ", 1) for line in joined.splitlines())
        for name, text in entries.items():
            text = re.sub(r"\{([a-z]+)\}", lambda m: known[m[1]], text)
            known[name] = entries[name] = text
    return entries
