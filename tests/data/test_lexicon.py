"""Test that word lists are read as they are written."""

import re

import pytest

from cxrstudy.data import lexicon
from cxrstudy.data.lexicon import by_word, read_lexicon, word_set


@pytest.mark.parametrize("name", ["phrases", "headers", "languages"])
def test_every_entry_has_words_and_no_part_is_left(name):
    for entries in read_lexicon(name).values():
        assert entries
        for text in entries.values():
            assert text.strip() == text != ""
            assert "  " not in text and not re.search(r"\{[a-z]+\}", text)


def test_entries_are_joined_and_parts_are_filled_in(tmp_path, monkeypatch):
    (tmp_path / "words").mkdir()
    lines = ["# a comment", "[one]", "seen: (?:seen|\\", "    noted)", "", "[two words]"]
    lines += ["# of b", "b c: not", "    {seen}{0,2} | x"]
    (tmp_path / "words" / "x.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(lexicon, "__file__", str(tmp_path / "lexicon.py"))
    one, two = {"seen": "(?:seen|noted)"}, {"b c": "not (?:seen|noted){0,2} | x"}
    assert read_lexicon("x") == {"one": one, "two words": two}


def test_words_become_sets_and_maps():
    assert word_set("a b  a") == {"a", "b"}
    assert word_set("|a b", "|") == {"", "a b"}
    assert by_word({"x": "a b", "y": "c"}) == {"a": "x", "b": "x", "c": "y"}
