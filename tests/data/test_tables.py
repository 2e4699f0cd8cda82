"""Tables of every kind give the text that was written, with file and line, or are refused."""

import bz2
import codecs
import datetime
import decimal
import gzip
import json
import lzma
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cxrstudy.data import arrowtext, tables
from cxrstudy.data.tables import CardError, read_tables

TEXT = "id,name,report\n01,Émile,fine\n02,Zoë,\n"


def read(*paths, used=("id", "name"), **options):
    rows = read_tables(list(paths), used=used, **options)
    return rows, [
        [None if pd.isna(v) else v for v in row] for row in rows.frame[list(used)].to_numpy(object)
    ]


def refused(*said, **call):
    path = call.pop("path")
    with pytest.raises(CardError) as caught:
        read(path, **call)
    for part in (path.name, *said):
        assert part in str(caught.value)


# ---- encodings and kinds of file ---------------------------------------------------------------
PACKERS = {"csv": bytes, "csv.gz": gzip.compress, "csv.bz2": bz2.compress, "csv.xz": lzma.compress}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("suffix", PACKERS)
def test_a_table_is_read_whatever_its_unicode_packing_and_line_ends(
    tmp_path, ends, encoding, suffix
):
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(PACKERS[suffix](TEXT.replace("\n", ends).encode(encoding)))
    rows, found = read(path)
    assert found == [["01", "Émile"], ["02", "Zoë"]]
    assert rows.place(1) == f"{path}, line 3"


def test_another_encoding_is_read_if_the_card_names_it_and_else_refused_by_line_and_remedy(
    tmp_path,
):
    path = tmp_path / "t.csv"
    path.write_bytes(TEXT.encode("cp1252"))
    refused("line 2", "0xc9", "encoding: cp1252", path=path)
    assert read(path, encoding="cp1252")[1] == [["01", "Émile"], ["02", "Zoë"]]
    path.write_text(TEXT, encoding="utf-8")
    assert read(path, encoding="cp1252")[1] == [
        ["01", "Émile"],
        ["02", "Zoë"],
    ]  # what is UTF-8 is read as that


def test_a_zip_of_one_table_is_read_and_of_more_refused(tmp_path):
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("deep/t.csv", TEXT)
        packed.writestr("__MACOSX/deep/._t.csv", "x")
    assert read(path)[1][0] == ["01", "Émile"]
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("more.csv", TEXT)
    refused("2 files", "deep/t.csv", "unpack", path=path)
    with zipfile.ZipFile(tmp_path / "book.xlsx", "w") as packed:
        packed.writestr("[Content_Types].xml", "")
        packed.writestr("xl/workbook.xml", "")
    refused("workbook", "save it as CSV", path=tmp_path / "book.xlsx")
    (tmp_path / "table.csv").write_bytes(
        (tmp_path / "book.xlsx").read_bytes()
    )  # whatever it is called
    refused("workbook", "save it as CSV", path=tmp_path / "table.csv")
    (tmp_path / "table.csv").write_text("id,name\n1.2.3\0,a\n")  # DICOM pads ids so
    assert read(tmp_path / "table.csv")[1] == [["1.2.3", "a"]]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "save it as CSV"), (b"<html><table>", "save it as CSV"),
        (b'{"id": 1}', "JSON"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "save it as CSV"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-9], "cannot be unpacked"),
        (codecs.BOM_UTF16_LE + b"a", "damaged"), (b"", "is empty"), (b"\n\n", "is empty"),
        (b"id,name\n", "no rows"), (b"PAR1 and then nothing", "Parquet"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_by_its_kind(tmp_path, data, said):
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    refused(said, path=path)


# ---- rows and lines ----------------------------------------------------------------------------
cell = st.text(st.sampled_from('ab ,;"\n\té'), max_size=5)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(cell, cell), min_size=1, max_size=6), st.sampled_from(",;\t"))
def test_cells_and_lines_are_those_of_the_file(tmp_path_factory, records, separator):
    folder = tmp_path_factory.mktemp("t")
    frame = pd.DataFrame(
        [(f"x{k}", *record) for k, record in enumerate(records)], columns=["id", "name", "text"]
    )
    frame.to_csv(folder / "t.csv", sep=separator, index=False)
    rows, found = read(folder / "t.csv", used=["id", "name", "text"], separator=separator)
    assert found == [[v if v.strip() else None for v in row] for row in frame.to_numpy(object)]
    lines = (folder / "t.csv").read_text().split("\n")
    for k, line in enumerate(rows.line):
        assert lines[line - 1].startswith(f"x{k}{separator}")


def test_lines_are_those_of_the_right_file_of_several(tmp_path):
    (tmp_path / "a.csv").write_text('id,name\n1,"two\nlines"\n\n2,b\n')
    (tmp_path / "b.csv").write_text("sep=,\nname,id\nc,3\n")
    rows, found = read(tmp_path / "a.csv", tmp_path / "b.csv")
    assert found == [["1", "two\nlines"], ["2", "b"], ["3", "c"]]
    assert [rows.place(k) for k in range(3)] == [
        f"{tmp_path}/a.csv, line 2",
        f"{tmp_path}/a.csv, line 5",
        f"{tmp_path}/b.csv, line 3",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,name\n1,a\n2,b,c\n", ("line 3", "3 cells", "2 columns", "double quotes")),
        ("id,name\n1,a\n2\n", ("line 3", "1 cells", "2 columns")),
        ('id,name\n1,"a\nb"\n2,"c\n3,d\n', ("line 4", "not closed")),
        ('id,name\n1,"a"b"\n', ("line 2", "double quotes")),
    ],
)
def test_a_row_of_another_length_or_an_open_quote_is_refused_by_file_and_line(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    refused(*said, path=tmp_path / "t.csv")


def test_empty_lines_do_not_count(tmp_path):
    (tmp_path / "t.csv").write_text("\n  \nid,name\n\n1,a\n \t\n2,b\n\x1a")
    rows, found = read(tmp_path / "t.csv")
    assert (found, list(rows.line)) == ([["1", "a"], ["2", "b"]], [5, 7])


def test_separators_at_line_ends_do_not_count(tmp_path):
    (tmp_path / "t.csv").write_text("id,name\n1,a,,\n2,b\n")
    assert read(tmp_path / "t.csv")[1] == [["1", "a"], ["2", "b"]]


# ---- columns -----------------------------------------------------------------------------------
@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_another_separator_is_named_with_the_remedy(tmp_path, sign):
    (tmp_path / "t.csv").write_text(f"id{sign}name\n1{sign}a, b\n")
    refused(f"separator: {json.dumps(sign)}", "','", path=tmp_path / "t.csv")
    assert read(tmp_path / "t.csv", separator=sign)[1] == [["1", "a, b"]]
    (tmp_path / "t.csv").write_text(f"id{sign}name{sign}x,y\n1{sign}a{sign}\n")
    refused(f"separator: {json.dumps(sign)}", path=tmp_path / "t.csv")


def test_a_column_is_found_with_blanks_around_its_name_and_else_near_ones_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("id, name \n1,a\n")
    assert read(tmp_path / "t.csv")[1] == [["1", "a"]]
    (tmp_path / "t.csv").write_text("ID,Names\n1,a\n")
    refused("'id'", "it has ID, Names", "near it: 'ID'", path=tmp_path / "t.csv")


def test_a_column_that_is_there_twice_is_refused_where_it_is_used(tmp_path):
    (tmp_path / "t.csv").write_text("id,name,x,x,,\n1,a,b,c,,\n")
    assert read(tmp_path / "t.csv")[1] == [["1", "a"]]
    refused("2 columns 'x'", path=tmp_path / "t.csv", used=["id", "x"])
    refused("several columns 'x'", path=tmp_path / "t.csv", query="x == 'b'")


def test_every_one_of_several_tables_needs_the_columns(tmp_path):
    (tmp_path / "a.csv").write_text("id,name,site\n1,a,x\n")
    (tmp_path / "b.csv").write_text("id,Name\n1,a\n")
    with pytest.raises(CardError, match=r"b.csv has no column 'name'.*near it: 'Name'"):
        read(tmp_path / "a.csv", tmp_path / "b.csv")
    (tmp_path / "b.csv").write_text("id,name\n1,a\n")
    assert len(read(tmp_path / "a.csv", tmp_path / "b.csv")[1]) == 2
    with pytest.raises(CardError, match=r"b.csv has no column 'site', which table.query names"):
        read(tmp_path / "a.csv", tmp_path / "b.csv", query="site == 'x'")


def test_cells_that_look_missing_are_kept_where_the_card_gives_them_a_meaning(tmp_path):
    (tmp_path / "t.csv").write_text("id,name\n1,NA\n2,null\n3, nan \n4,\n")
    assert [name for _, name in read(tmp_path / "t.csv")[1]] == [None] * 4
    assert [name for _, name in read(tmp_path / "t.csv", keep=["NA"])[1]] == [
        "NA", None, None, None,
    ]  # fmt: skip


# ---- Parquet -----------------------------------------------------------------------------------
day = datetime.datetime(2020, 1, 2)
COLUMNS = [
    (pa.array([5, None]), ["5", None]), (pa.array([5.0, None]), ["5", None]),
    (pa.array([0.1, np.nan]), ["0.1", None]), (pa.array([0.1, 7], pa.float32()), ["0.1", "7"]),
    (pa.array([2**53 + 1, None]), [str(2**53 + 1), None]), (pa.array([True, None]), ["True", None]),
    (pa.array([day, None]), ["2020-01-02", None]),
    (pa.array([day.replace(hour=3), None]), ["2020-01-02 03:00:00", None]),
    (pa.array([day.date(), None]), ["2020-01-02", None]),
    (pa.array(["007", None]).dictionary_encode(), ["007", None]),
    (pa.array([7, None]).dictionary_encode(), ["7", None]), (pa.array([b"P1", None]), ["P1", None]),
    (pa.array([["a", "b c"], None]), ['["a", "b c"]', None]),
    (pa.array([decimal.Decimal("5.00"), decimal.Decimal("0.50")]), ["5", "0.5"]),
    (pa.array(["nan", ""]), [None, None]), (pa.nulls(2), [None, None]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("column", "text"),
    COLUMNS,
    ids=[str(column.type) + str(k) for k, (column, _) in enumerate(COLUMNS)],
)
def test_a_parquet_column_of_any_type_gives_the_text_that_csv_would(tmp_path, column, text):
    pq.write_table(pa.table({"id": ["a", "b"], "x": column}), tmp_path / "t.parquet")
    rows, found = read(tmp_path / "t.parquet", used=["id", "x"])
    assert [x for _, x in found] == text
    assert rows.place(1) == f"{tmp_path}/t.parquet, row 2"


def test_a_float_with_lost_digits_does_not_pass_for_a_whole_number(tmp_path):
    pq.write_table(pa.table({"id": [1e17 + 16, 12.0]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", used=["id"])[1] == [["1.000000E+17"], ["12"]]


def test_an_index_of_pandas_is_a_column(tmp_path):
    pd.DataFrame({"name": ["a"]}, index=pd.Index([7], name="id")).to_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")[1] == [["7", "a"]]


ENDS = st.sampled_from(["\n", "\r\n", "\r"])
CELLS = st.text(st.sampled_from("a1é .-'=#\t\x0b\u2028"), max_size=4)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(CELLS, min_size=2, max_size=3), max_size=5), ENDS, st.booleans())
def test_plain_tables_are_the_same_whether_read_fast_or_not(monkeypatch, tmp_path, rows, end, last):
    text = end.join([";".join(row) for row in [["a", "b"], *rows]]) + end * last
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    found = []
    for fast in (arrowtext.read_plain_csv, lambda *_: None):
        monkeypatch.setattr(tables, "read_plain_csv", fast)
        try:
            frame, lines = tables._read_csv(path, ";", "", ["a"])
            found.append(
                (
                    frame.astype(object).to_numpy().tolist(),
                    list(lines),
                    frame.dtypes.astype(str).tolist(),
                )
            )
        except CardError as error:
            found.append(str(error))
    assert found[0] == found[1]
