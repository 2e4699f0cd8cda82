"""Labels of a table, listed in one column or one a column; unmapped values are refused."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy.data.labels import listed_names, match_value, read_columns, read_list
from cxrstudy.data.tables import CardError, read_tables

NAMES = {"cardiomegaly": ["cardiomegaly"], "pleural_effusion": ["pleural effusion"]}


def rows_of(folder, cells):
    pd.DataFrame({"found": cells, "x": ["y"] * len(cells)}).to_csv(folder / "rows.csv", index=False)
    return read_tables([folder / "rows.csv"], used=["found"])


def listed(folder, cells, names=NAMES, separator="|", absent=0.0, may=(), rows=None):
    rows = rows if rows is not None else rows_of(folder, cells)
    return {
        k[6:]: list(v)
        for k, v in read_list(
            rows, rows.frame.index, "found", separator, names, absent, may
        ).items()
    }


# ---- lists -------------------------------------------------------------------------------------
CELLS = {
    "['cardiomegaly', 'pleural effusion']": ["cardiomegaly", "pleural effusion"],
    '["cardiomegaly", "pleural effusion"]': ["cardiomegaly", "pleural effusion"],
    "['cardiomegaly' 'pleural effusion']": ["cardiomegaly", "pleural effusion"],
    "['cardiomegaly'\n 'pleural effusion']": ["cardiomegaly", "pleural effusion"],
    "array(['cardiomegaly', 'pleural effusion'], dtype=object)": [
        "cardiomegaly",
        "pleural effusion",
    ],
    "('cardiomegaly', 'pleural effusion')": ["cardiomegaly", "pleural effusion"],
    "{'pleural effusion', 'cardiomegaly'}": ["pleural effusion", "cardiomegaly"],
    "[cardiomegaly, pleural effusion]": ["cardiomegaly", "pleural effusion"],
    "[' cardiomegaly', '', nan]": ["cardiomegaly"],
    '["Kerley\'s lines"]': ["Kerley's lines"],
    "['Kerley\\'s lines']": ["Kerley's lines"],
    "['a, b', 'c']": ["a, b", "c"],
    "[]": [],
    "['']": [],
    "(small) effusion": ["(small) effusion"],
    "cardiomegaly|pleural effusion": ["cardiomegaly", "pleural effusion"],
    " cardiomegaly | pleural  effusion | ": ["cardiomegaly", "pleural effusion"],
}


@pytest.mark.parametrize(("cell", "names"), CELLS.items())
def test_a_cell_lists_its_names_however_it_is_written(cell, names):
    assert listed_names(cell, "|") == names


@pytest.mark.parametrize("separator", ["|", ";", ", ", " ; ", "\t", "/"])
def test_blanks_around_a_separator_do_not_count(separator):
    sign = separator.strip() or separator
    for joint in (sign, f" {sign}", f"{sign} ", f"  {sign} "):
        assert listed_names(f"a{joint}b c{joint}d", separator) == ["a", "b c", "d"]
    assert listed_names("['a', 'b']", separator) == ["a", "b"]


words = st.text("abc '\"é", min_size=1, max_size=6).map(str.strip).filter(bool)


@settings(deadline=None)
@given(st.lists(words, max_size=4))
def test_lists_of_python_json_and_numpy_come_back(names):
    wanted = [" ".join(name.split()) for name in names]
    assert listed_names(json.dumps(names), "|") == wanted
    assert listed_names(repr(names), ";") == wanted
    assert sorted(listed_names(str(np.array(names, dtype=object)), "|")) == sorted(wanted)


@pytest.mark.parametrize(
    "write", [str, json.dumps, lambda names: str(np.array(names, object)), "|".join]
)
def test_labels_are_those_listed_whatever_their_case(tmp_path, write):
    cells = [
        write(names)
        for names in (["Cardiomegaly", "pleural effusion"], ["normal"], ["PLEURAL EFFUSION"])
    ]
    assert listed(tmp_path, cells) == {"cardiomegaly": [1, 0, 0], "pleural_effusion": [1, 0, 1]}


def test_a_column_of_lists_in_parquet_gives_what_text_gives(tmp_path):
    column = pa.array([["cardiomegaly", "pleural effusion"], [], None, ["normal"]])
    pq.write_table(pa.table({"found": column}), tmp_path / "t.parquet")
    rows = read_tables([tmp_path / "t.parquet"], used=["found"])
    assert listed(tmp_path, [], rows=rows) == {
        "cardiomegaly": [1, 0, 0, 0],
        "pleural_effusion": [1, 0, 0, 0],
    }


def test_a_name_that_never_occurs_is_refused_beside_near_ones_unless_the_card_excuses_it(tmp_path):
    cells = ["Cardiomegaly|Pleural_Effusion", "Normal"]
    with pytest.raises(CardError) as caught:
        listed(
            tmp_path, cells, {"edema": ["Oedema"], "cardiomegaly": ["Cardiomegly"]}, may=["Oedema"]
        )
    for part in (
        "'Cardiomegly'",
        "near it: 'Cardiomegaly'",
        "'Normal'",
        "may_be_absent: [Cardiomegly]",
        "'found'",
    ):
        assert part in str(caught.value)
    names = {"edema": ["Oedema"], "cardiomegaly": ["Cardiomegaly"]}
    for may in (["Oedema"], ["oedema"], True):
        assert listed(tmp_path, cells, names, may=may) == {"edema": [0, 0], "cardiomegaly": [1, 0]}
    with pytest.raises(CardError, match="near it: 'Pleural_Effusion'"):
        listed(tmp_path, cells, {"pleural_effusion": ["Pleural Effusion"]})


def test_a_cell_that_the_separator_does_not_part_is_refused_by_its_line(tmp_path):
    cells = ["cardiomegaly", "pleural effusion", "cardiomegaly; pleural effusion"]
    with pytest.raises(
        CardError,
        match=r"rows.csv, line 4: column 'found' holds 'cardiomegaly; pleural effusion'.*separator",
    ):
        listed(tmp_path, cells)
    assert listed(tmp_path, cells, separator=";") == {
        "cardiomegaly": [1, 0, 1],
        "pleural_effusion": [0, 1, 1],
    }
    names = {"edema": ["edema"]}
    assert listed(tmp_path, ["edema", "edema, interstitial"], names) == {
        "edema": [1, 0]
    }  # a name with a comma


# ---- values ------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["1", "1.0", "1.", "+1", "1e0", " 1 ", "1,0"])
@pytest.mark.parametrize("cell", ["1", "1.0", "1.00", " 1", "True", "true"])
def test_numbers_compare_as_numbers(key, cell):
    assert match_value({key: 1, "-1.0": None, "0": 0})(cell) == 1
    assert match_value({key: 1, "-1.0": None, "0": 0})("-1") is None


def test_words_compare_whatever_their_case_and_exact_ones_come_first():
    value = match_value({"Y": 1, "N": 0, "y": None, "Not visible": None})
    assert [value(cell) for cell in ("Y", "y", "n", " not  VISIBLE")] == [1, None, 0, None]
    for cell in ("Yes", "1", ""):
        with pytest.raises(KeyError):
            value(cell)
    with pytest.raises(KeyError):
        match_value({"1": 1, "1.0": 0})("1.00")  # both could be meant


def test_an_unmapped_value_is_refused_by_file_line_number_of_cells_and_all_values(tmp_path):
    rows = rows_of(tmp_path, ["1", "maybe", "0", "?", "maybe"])
    with pytest.raises(CardError) as caught:
        read_columns(rows, rows.frame.index, {"edema": ["found"]}, {"1": 1, "0": 0}, 0.0)
    for part in (
        "rows.csv, line 3",
        "'found'",
        "'maybe' (2)",
        "'?' (1)",
        "3 cells",
        "labels.values",
        "'1', '0'",
    ):
        assert part in str(caught.value)
    told = read_columns(rows, rows.frame.index[[0, 2]], {"edema": ["found"]}, {"1": 1, "0": 0}, 0.0)
    assert list(told["label:edema"]) == [1, 0]  # rows that are left out need no value
