"""Ids become keyed hashes, and the key stays where it cannot be passed on by mistake."""

import os
import stat

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrstudy.ingest import pseudonym as made
from cxrstudy.ingest.pseudonym import check_collisions, key_mark, load_key, pseudonym, pseudonyms
from cxrstudy.study import StudyError

KEY, OTHER = bytes(range(32)), bytes(32)
ids = st.text(min_size=1, max_size=30)


@given(ids, ids)
def test_a_hash_tells_ids_kinds_and_keys_apart_and_is_the_same_again(one, other):
    hashed = pseudonym("patient", one, KEY)
    assert hashed == pseudonym("patient", one, KEY)
    assert len(hashed) == 16 and set(hashed) <= set("0123456789abcdef")
    assert (hashed == pseudonym("patient", other, KEY)) == (one == other)
    assert len({pseudonym(kind, one, KEY) for kind in made.KINDS}) == 3
    assert hashed != pseudonym("patient", one, OTHER)


def test_a_file_name_that_is_no_text_has_a_hash():
    name = os.fsdecode(b"r\xf6ntgen")
    assert len(pseudonym("image", name, KEY)) == 16


@pytest.mark.parametrize(("kind", "value"), [("patient", ""), ("accession", "12")])
def test_nothing_and_unknown_kinds_are_refused(kind, value):
    with pytest.raises(ValueError, match="pseudonym"):
        pseudonym(kind, value, KEY)


def test_a_column_is_hashed_and_a_collision_is_refused():
    column = pd.Series(["7", "8", "7"], index=[4, 2, 9])
    hashed = pseudonyms("study", column, KEY)
    assert list(hashed) == [pseudonym("study", value, KEY) for value in column]
    assert list(hashed.index) == [4, 2, 9]
    with pytest.raises(StudyError, match=r"1 of 3 patient ids .*--key") as caught:
        check_collisions("patient", {"Smith": "aa", "Jones": "aa", "Brown": "bb"})
    assert "Smith" not in str(caught.value)


def test_a_key_is_made_once_for_its_owner_alone(tmp_path):
    path = tmp_path / "config" / "cxrstudy" / "site.key"
    old = os.umask(0)
    try:
        key = load_key(path, inside=[tmp_path / "ingested"])
    finally:
        os.umask(old)
    assert len(key) == 32 and load_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_key(tmp_path / "other.key") != key
    assert key_mark(key) == key_mark(load_key(path)) != key_mark(OTHER)
    assert key_mark(key) not in path.read_text()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o777])
def test_a_key_that_others_can_read_is_refused_with_the_command(tmp_path, mode):
    path = tmp_path / "site.key"
    load_key(path)
    path.chmod(mode)
    with pytest.raises(StudyError, match=f"mode {mode:o}.*chmod 600 {path}"):
        load_key(path)
    path.chmod(0o600)
    assert load_key(path)


def test_a_key_inside_what_may_be_passed_on_is_refused_also_through_a_link(tmp_path):
    folder = tmp_path / "ingested"
    folder.mkdir()
    link = tmp_path / "link.key"
    link.symlink_to(folder / "site.key")
    for path in (folder / "site.key", folder / "deep" / "site.key", link):
        with pytest.raises(StudyError, match=r"inside .*outside, as --key"):
            load_key(path, inside=[folder])
    assert not list(folder.iterdir())


def test_a_key_inside_the_clone_is_refused(walk):
    path = walk.root / "data_cards" / "site.key"
    with pytest.raises(StudyError, match="inside"):
        load_key(path)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"0" * 63])
def test_a_damaged_key_is_refused_and_never_replaced(tmp_path, content):
    path = tmp_path / "site.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StudyError, match=r"key file .*backup.*--key"):
        load_key(path)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"cannot be (made|read)"):
        load_key(tmp_path / "file" / "site.key")
