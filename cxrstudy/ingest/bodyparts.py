"""Tell whether texts in a header name the chest, another part of the body, both or neither."""

import re
import unicodedata
from functools import lru_cache

from cxrstudy.data.lexicon import read_lexicon

CHEST, OTHER, BOTH, UNKNOWN = "chest", "other", "both", ""


def fold(text: str) -> str:
    """Return a text in lower case without accents, ``_`` for blanks and signs and at both ends."""
    text = unicodedata.normalize("NFKD", text.casefold().replace("\u0131", "i"))
    letters = "".join(c for c in text if not unicodedata.combining(c))
    return "_" + re.sub(r"[\W_]+", "_", letters).strip("_") + "_"


def _pattern(group: str, before: str = "") -> re.Pattern[str]:
    """Return a pattern of any entry; scripts without blanks have no ``before`` a word."""
    texts = {name: "".join(t.split()) for name, t in read_lexicon("bodyparts")[group].items()}
    parts = (f"{before if name != 'asian' else ''}(?:{text})" for name, text in texts.items())
    return re.compile(unicodedata.normalize("NFKD", "|".join(parts)))


CHESTS, SPINES, OTHERS = _pattern("chest"), _pattern("spine"), _pattern("other", "_")


@lru_cache(maxsize=2**16)
def body_part(*texts: str) -> str:
    """Return CHEST, OTHER, BOTH or UNKNOWN for what the texts name, in eleven languages or more."""
    text = fold("_".join(texts))
    rest = SPINES.sub("_", text)
    chest, other = bool(CHESTS.search(rest)), rest != text or bool(OTHERS.search(rest))
    return BOTH if chest and other else CHEST if chest else OTHER if other else UNKNOWN
