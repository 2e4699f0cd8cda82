"""One id in two spellings is refused with both named, unless the card says what that means."""

import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrstudy.data.ids import normal_id, read_ids
from cxrstudy.data.tables import CardError, read_tables

SAME = {
    "12": [
        "12", " 12", "12 ", "12\u00a0", "\ufeff12", "12\u200b", "0012", "12.0", "12.", "12,0",
        "1.2E+01", "1.2e+1",
    ]
}  # fmt: skip
SAME["12"] += [
    "\uff11\uff12", "١٢", '"12"', "'12", "'0012'", '="0012"', "b'12'", "[12]", "+12", "12\t", "12;",
    "\u202a12\u202c",
]  # fmt: skip
SAME["123000"] = [
    "123000", "123,000", "1.23E+05", "1.23e5", "123 000", "123'000", "000123000", "123000.00",
    "123_000", "123,000.00",
]  # fmt: skip
SAME["p12-é"] = ["P12-é", "p12-e\u0301", "P12\u2013É", " P 12 - é", "P12-&eacute;", "\uff3012-é"]
SAME["1234567"] = ["1234567", "1.234.567", "1,234,567.0"]
SAME["1234"] = ["1.234", "1,234", "1234.000"]
SAME["a1b"] = ["a1b", "A1B", "A1b "]


@pytest.mark.parametrize(
    ("normal", "text"), [(normal, text) for normal, texts in SAME.items() for text in texts]
)
def test_spellings_of_one_id_are_one(normal, text):
    assert normal_id(text) == normal


DIFFERENT = [
    "1E5", "100000", "1.5", "1.2.3", "1.2.30", "12E3", "P07", "P7", "a-b", "a_b", "ab", "0", "1,5",
    "12/3", "15",
]  # fmt: skip


def test_different_ids_stay_different():
    assert len({normal_id(text) for text in DIFFERENT}) == len(DIFFERENT)


@given(st.text(min_size=1, max_size=10))
def test_a_normal_id_is_its_own(text):
    once = normal_id(text)
    assert normal_id(f" {text}\u00a0") == once
    assert normal_id(once) == once or not once.isascii()


def ids(tmp_path, parts, spelling=None):
    for k, part in enumerate(parts):
        pd.DataFrame({"id": part, "x": ["y"] * len(part)}).to_csv(
            tmp_path / f"part_{k}.csv", index=False
        )
    rows = read_tables(sorted(tmp_path.glob("part_*.csv")), used=["id"])
    return list(read_ids(rows, ["id"], rows.frame.index, "patient", spelling))


@pytest.mark.parametrize(
    "change", [lambda i: f"{i} ", lambda i: i.lower(), lambda i: f"'{i}", lambda i: f"{i}\u00a0"]
)
def test_patients_of_two_tables_in_two_spellings_are_refused_with_pairs_places_and_remedy(
    tmp_path, change
):
    one = [f"P{k:03d}" for k in range(40)]
    other = [change(i) for i in one]
    with pytest.raises(CardError) as caught:
        ids(tmp_path, [one, other])
    for part in (
        "40 patient ids",
        "'P000'",
        "part_0.csv, line 2",
        "part_1.csv, line 2",
        "ids: normalised",
        "ids: exact",
    ):
        assert part in str(caught.value)
    assert ids(tmp_path, [one, other], "exact") == one + other
    joined = ids(tmp_path, [one, other], "normalised")
    assert joined[:40] == joined[40:]
    assert len(set(joined)) == 40
    assert ids(tmp_path, [one, one]) == one + one


def test_ids_that_lost_their_zeros_or_grew_a_fraction_are_refused(tmp_path):
    for other in (["7", "12"], ["7.0", "12.0"], ["007.0", "1.2E+01"]):
        with pytest.raises(CardError, match="2 patient ids are written in more than one way"):
            ids(tmp_path, [["007", "012"], other])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1.23457E+11", "cut its digits"),
        ("3-Jan", "date"),
        ("####", "narrow"),
        ("#REF!", "formula"),
    ],
)
def test_an_id_that_a_spreadsheet_has_destroyed_is_refused_by_its_line(tmp_path, text, why):
    with pytest.raises(
        CardError,
        match=rf"part_0.csv, line 3: column 'id' holds the patient id '{re.escape(text)}'.*{why}",
    ) as caught:
        ids(tmp_path, [["a", text, "b"]])
    assert "as text" in str(caught.value) and "ids: exact" in str(caught.value)
    assert ids(tmp_path, [["a", text, "b"]], "exact") == ["a", text, "b"]
    if "E+" not in text:  # which normalised ids may come from
        with pytest.raises(CardError, match=why):
            ids(tmp_path, [["a", text, "b"]], "normalised")
