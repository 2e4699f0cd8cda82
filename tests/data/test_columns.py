"""Ages, sexes, views and numbers in any spelling; cells that are not understood are counted."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrstudy.data.columns import (
    is_blank,
    number,
    parse_age,
    parse_flag,
    parse_sex,
    parse_side,
    parse_spacing,
    parse_view,
    plain,
    sex_parser,
    understand,
)

AGES = {
    "58": 58, "058": 58, "58.0": 58, "58.5": 58.5, "58,5": 58.5, " 58 ": 58, "058Y": 58, "58 y": 58,
    "58 yrs": 58,
}  # fmt: skip
AGES |= {
    "58 years": 58, "58 years old": 58, "58yo": 58, "58 y/o": 58, "58 Y.O.": 58, "\uff18": 8,
    "0": 0, "000D": 0,
}  # fmt: skip
AGES |= {"013M": 13 / 12, "8 months": 8 / 12, "8 Mo.": 8 / 12, "8-month-old": 8 / 12, "12 mths": 1}
AGES |= {"003W": 21 / 365.25, "6 wks": 42 / 365.25, "014D": 14 / 365.25, "1 day": 1 / 365.25}
AGES |= {
    "1 year 2 months": 14 / 12, "1y6m": 1.5, "5 years, 3 months": 5.25, "1 yr and 6 mo": 1.5,
    "130": 130,
}  # fmt: skip
NO_AGES = [
    "-1", "-1.0", "40-49", "40\u201349", "40 to 49", "[40, 50)", ">89", "> 89", "≥90", "90+", "<1",
    "~60", "414", "999Y",
]  # fmt: skip
NO_AGES += [
    "1961-01-01", "01/02/1961", "old", "58 Jahre", "3 m 4 m", "5 parsecs", "", "1/2", "58 60",
    "131", "1560M+",
]  # fmt: skip


@pytest.mark.parametrize(("text", "years"), AGES.items())
def test_an_age_is_read_in_years_whatever_its_unit(text, years):
    assert parse_age(text) == pytest.approx(years, rel=1e-9)


@pytest.mark.parametrize("text", NO_AGES)
def test_what_names_no_age_is_unknown(text):
    assert parse_age(text) is None


@given(st.integers(0, 999), st.sampled_from("YMWD"))
def test_a_dicom_age_is_its_number_of_units(n, unit):
    years = n * {"Y": 1, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}[unit]
    for text in (f"{n:03d}{unit}", f"{n}{unit.lower()}", f" {n} {unit} "):
        assert parse_age(text) == (pytest.approx(years) if years <= 130 else None)


@given(st.text(max_size=12))
def test_any_text_is_an_age_in_range_or_none(text):
    assert parse_age(text) is None or 0 <= parse_age(text) <= 130
    assert parse_sex(text) in ("F", "M", None)
    assert parse_view(text) in ("PA", "AP", "LATERAL", None)
    assert parse_age(f"\ufeff {text}\u00a0") == parse_age(text)


def test_sexes_and_views_are_understood_in_their_common_spellings():
    assert {parse_sex(text) for text in ("F", "f", "Female", "FEMALE ", "woman", "Fem.")} == {"F"}
    assert {parse_sex(text) for text in ("M", "m", "male", " Male", "MAN")} == {"M"}
    assert {parse_sex(text) for text in ("O", "0", "1", "2", "Other", "x", "")} == {None}
    pa = (
        "PA", "pa", "P.A.", "Pa erect", "Postero-Anterior", "POSTEROANTERIOR", "chest PA",
        "PA_standing", "P-A",
    )  # fmt: skip
    ap = (
        "AP", "ap", "AP Supine", "AP semi erect", "AP_horizontal", "anteroposterior", "A/P",
        "portable AP", "Frontal AP",
    )  # fmt: skip
    lateral = (
        "LATERAL", "lateral", "Lat", "LL", "RL", "Left Lateral", "lateral left", "L LAT",
        "Lateral view",
    )  # fmt: skip
    other = (
        "LLD", "lateral decubitus", "frontal", "PA and lateral", "PA/LAT", "AP lordotic", "LAO",
        "L", "", "oblique",
    )  # fmt: skip
    for texts, view in ((pa, "PA"), (ap, "AP"), (lateral, "LATERAL"), (other, None)):
        assert {text: parse_view(text) for text in texts} == dict.fromkeys(texts, view)


def test_an_m_beside_an_h_is_no_man():
    assert [sex_parser(pd.Series(["H", "M", "M"]))(text) for text in ("H", "M")] == [None, None]
    assert [sex_parser(pd.Series(["F", "M", None]))(text) for text in ("F", "m")] == ["F", "M"]


def test_flags_sides_spacings_and_numbers():
    assert [parse_flag(text) for text in ("1", "1.0", "True", "YES", "0", "0.0", "no", "?")] == [
        1, 1, 1, 1, 0, 0, 0, None,
    ]  # fmt: skip
    assert [parse_side(text) for text in ("Right", "L", " both ", "links")] == [
        "right", "left", "bilateral", None,
    ]  # fmt: skip
    spacings = (
        "0.14", "0,14", "0.14 mm", "0.14\\0.14", "[0.14, 0.14]", "0.1\\0.2", "0", "-1", "?", "nan",
    )  # fmt: skip
    assert [parse_spacing(text) for text in spacings] == [0.14] * 5 + [None] * 5
    assert [number(text) for text in ("1", "1.0", "-1,0", "True", "1e0", ".5", "1-2", "")] == [
        1, 1, -1, 1, 1, 0.5, None, None,
    ]  # fmt: skip


@given(st.text())
def test_one_spelling_is_reached_at_once(text):
    assert plain(plain(text)) == plain(text)
    assert plain(text) == plain(text).strip()


def test_what_is_not_understood_is_counted_and_what_is_blank_is_not():
    column = pd.Series(["pa", "PA", "oblique", "oblique", None, "N/A", "nan", "?"])
    values, unknown = understand(column, parse_view)
    assert values.fillna("-").tolist() == ["PA", "PA", *"------"]
    assert unknown == {"oblique": 2, "?": 1}
    assert is_blank(None) and is_blank(" ") and is_blank("\u00a0") and not is_blank("0")


def test_a_map_of_the_card_holds_whatever_the_case_and_alone():
    column = pd.Series(["ap supine", "PostAnt", "PA", "Axial", "x"])
    given_ = {"AP Supine": "AP", "PostAnt": "PA", "Axial": None}
    values, unknown = understand(column, parse_view, given_)
    assert values.fillna("-").tolist() == ["AP", "PA", "-", "-", "-"]
    assert unknown == {"PA": 1, "x": 1}  # null: known, and none of ours
