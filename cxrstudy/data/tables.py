"""Tables of a data set (CSV or Parquet, one file or several) as text, with the file and line of every row."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxrstudy.data.columns import plain
from cxrstudy.marks import near

SEPARATORS = (",", ";", "\t", "|")
PARQUET = (".parquet", ".pq", ".parq")
MISSING = (
    "",
    "#N/A",
    "#N/A N/A",
    "#NA",
    "-NaN",
    "-nan",
    "<NA>",
    "N/A",
    "NA",
    "NULL",
    "NaN",
    "None",
    "n/a",
    "nan",
    "null",
)
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
BOMS |= {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # after UTF-32, whose mark begins alike
PACKED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
}
PACKED |= {b"\xfd7zXZ": lzma.decompress}
SAVE = (
    "save it as CSV (UTF-8), which every spreadsheet program can, and name that file in table.path"
)
EXACT = 2**53  # whole numbers beyond this lose digits as floating-point numbers


class CardError(ValueError):
    """A card, or the data set under ``root``, is not as the card says; the message names the place and the remedy."""


@dataclass(frozen=True)
class Rows:
    """Rows of all files: ``frame`` holds text (missing where a cell is empty) and is indexed from 0 without gaps."""

    frame: pd.DataFrame
    files: list[Path]
    file: np.ndarray  # of each row: its index in ``files``
    units: list[str]  # of each file: what ``line`` counts
    line: (
        np.ndarray
    )  # of each row: where it begins, the header being line 1 (Parquet: the row, from 1)

    def place(self, row: Any) -> str:
        """Return file and line of a row of ``frame`` by its index."""
        file = self.file[row]
        return f"{self.files[file]}, {self.units[file]} {self.line[row]}"

    def places(self, rows: Iterable[Any], most: int = 3) -> str:
        """Return the places of the first few of several rows."""
        rows = list(rows)
        told = "; ".join(self.place(row) for row in rows[:most])
        return told + (f"; and {len(rows) - most} more" if len(rows) > most else "")


def read_tables(
    paths: Sequence[Path],
    *,
    used: Collection[str],
    separator: str = ",",
    encoding: str = "",
    query: str = "",
    keep: Collection[str] = (),
) -> Rows:
    """Read tables of one shape below one another.

    Args:
        paths: CSV (also packed by gzip, bzip2, xz or zip) or Parquet.
        used: columns that every file must have, once.
        separator: what parts cells of a CSV file.
        encoding: of files that are neither UTF-8 nor marked as UTF-16 or UTF-32.
        query: columns named in it must be in every file or in none.
        keep: cells that mean something although they look like a missing value (say, ``NA``).

    Raises:
        CardError: naming file, line and remedy.
    """
    names = used if not query else [*used, *re.findall(r"`[^`]+`|\w+", query)]
    frames, lines = [], []
    for path in paths:
        if _is_parquet(path):
            frame, line = _read_parquet(path, {name.strip("`") for name in names})
        else:
            frame, line = _read_csv(path, separator, encoding, used)
        frames.append(_headed(frame, path, used, query))
        lines.append(line)
    if not any(map(len, frames)):
        raise CardError(f"{', '.join(map(str, paths[:3]))}: there is a header, but no rows")
    for path, frame in zip(paths, frames, strict=True):
        gone = [
            c
            for other in frames
            for c in other
            if c not in frame and re.search(rf"\b{re.escape(c)}\b", query)
        ]
        if gone:
            raise CardError(
                f"{path} has no column {gone[0]!r}, which table.query names; another of the tables has it"
            )
    whole = pd.concat(frames, ignore_index=True)
    nothing = set(MISSING) - set(keep)
    for column in whole:
        whole[column] = whole[column].mask(whole[column].str.strip().isin(nothing))
    which = np.repeat(np.arange(len(paths)), [len(frame) for frame in frames])
    units = ["row" if _is_parquet(path) else "line" for path in paths]
    return Rows(whole, list(paths), which, units, np.concatenate(lines))


def _is_parquet(path: Path) -> bool:
    if path.suffix.lower() in PARQUET or not path.is_file():
        return path.suffix.lower() in PARQUET
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _headed(frame: pd.DataFrame, path: Path, used: Collection[str], query: str) -> pd.DataFrame:
    """The frame with its used columns under the card's names (blanks around a name in the file do not count)."""
    columns = list(frame)
    for name in dict.fromkeys(used):
        alike = [c for c in columns if c == name] or [c for c in columns if plain(c) == plain(name)]
        if len(alike) > 1:
            raise CardError(f"{path} has {len(alike)} columns {name!r}: name one of them otherwise")
        if not alike:
            told = ", ".join(columns[:60]) + (
                f" and {len(columns) - 60} more" if len(columns) > 60 else ""
            )
            raise CardError(f"{path} has no column {name!r}; it has {told}{near(name, columns)}")
        if alike[0] != name:
            frame = frame.rename(columns={alike[0]: name})
    twice = {c for c in columns if columns.count(c) > 1}
    for name in twice:
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", query) and name:
            raise CardError(
                f"{path} has several columns {name!r}, which table.query names: name them differently"
            )
    return frame.loc[:, [c not in twice and c != "" for c in frame]]


# ---- CSV -----------------------------------------------------------------------------------------------------------
def _read_csv(
    path: Path, separator: str, encoding: str, used: Collection[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    try:
        data = path.read_bytes()
    except OSError as error:  # a folder, say
        raise CardError(f"{path} cannot be read as a table ({error.strerror})") from None
    text = _decode(*_unpack(path, data), encoding)
    first = 0
    if hint := re.match(r'"?sep=.{0,1}"?\r?\n', text):  # Excel writes it above the header
        text, first = text[hint.end() :], 1
    csv.field_size_limit(2**27)  # run lengths of masks are longer than the default
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    records: list[list[str]] = []
    lines: list[int] = []
    begin = 1
    try:
        for record in reader:
            line, begin = begin, reader.line_num + 1
            if (
                not "".join(record).strip(" \t\x1a") and len(record) < 2
            ):  # an empty line, or DOS's sign of the end
                continue
            if not header:
                header = _header(record, text, separator, path, used)
                continue
            while len(record) > len(header) and not record[-1]:  # separators at a line's end
                record.pop()
            if len(record) != len(header):
                raise CardError(
                    f"{path}, line {line + first}: {len(record)} cells, but the header has {len(header)} columns; "
                    f"put cells that hold {separator!r} or a line end in double quotes, and cut no row short"
                )
            records.append(record)
            lines.append(line + first)
    except csv.Error as error:
        raise CardError(
            f"{path}, line {begin + first}: not a row of CSV ({error}); a cell in double quotes is not closed, or "
            'holds quotes that are not doubled ("")'
        ) from None
    if not header:
        raise CardError(f"{path} is empty")
    cells = zip(*records, strict=True) if records else [() for _ in header]
    series = [pd.Series(list(column), dtype=str) for column in cells]
    frame = (
        pd.concat(series, axis=1) if records else pd.DataFrame({k: s for k, s in enumerate(series)})
    )
    return frame.set_axis(header, axis=1), np.array(lines, dtype=int)


def _header(
    record: list[str], text: str, separator: str, path: Path, used: Collection[str]
) -> list[str]:
    """The names of the columns; CardError where another separator would give more of those that the card names."""
    wanted = {plain(name) for name in used}
    if wanted - set(map(plain, record)):
        for other in SEPARATORS:
            names = {
                plain(name)
                for name in next(csv.reader(io.StringIO(text.lstrip("\r\n")), delimiter=other), [])
            }
            if other != separator and len(names) > 1 and (len(record) == 1 or wanted <= names):
                raise CardError(
                    f"{path} has no column {next(n for n in used if plain(n) not in map(plain, record))!r} when read "
                    f"with separator {separator!r}: its columns are parted by {other!r}; write `separator: "
                    f"{json.dumps(other)}` under table in the card"
                )
    return record


def _unpack(path: Path, data: bytes) -> tuple[Path, bytes]:
    """The one table of a packed file; CardError where a file is no table of text."""
    try:
        for magic, unpack in PACKED.items():
            if data.startswith(magic):
                return path, unpack(data)
        if data.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                names = [
                    n
                    for n in packed.namelist()
                    if not n.endswith("/") and not n.startswith("__MACOSX/")
                ]
                if {"[Content_Types].xml", "content.xml"} & set(names):
                    raise CardError(
                        f"{path} is a workbook of a spreadsheet program, not CSV: {SAVE}"
                    )
                if len(names) != 1:
                    told = ", ".join(names[:5])
                    raise CardError(
                        f"{path} holds {len(names)} files ({told}): unpack it, and name one in table.path"
                    )
                return path, packed.read(names[0])
    except CardError:
        raise
    except Exception as error:  # each of the four kinds raises its own
        raise CardError(
            f"{path} cannot be unpacked ({error}); copy it again, or unpack it yourself"
        ) from None
    for magic, kind, remedy in (
        (b"\xd0\xcf\x11\xe0", "is a workbook of a spreadsheet program (.xls), not CSV", SAVE),
        (
            b"version https://git-lfs",
            "is a pointer of Git LFS, not the table",
            "fetch it with `git lfs pull`",
        ),
        (b"SQLite format 3", "is a database, not CSV", SAVE),
        (b"<", "is a page (HTML or XML), not CSV", SAVE),
        (b"{", "is JSON, not CSV", SAVE),
    ):
        if data.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(magic):
            raise CardError(f"{path} {kind}: {remedy}")
    return path, data


def _decode(path: Path, data: bytes, encoding: str) -> str:
    for mark, name in BOMS.items():
        if data.startswith(mark):
            try:
                return data.decode(name)
            except UnicodeDecodeError as error:
                raise CardError(
                    f"{path}: marked as {name}, but damaged ({error}); copy or save it again"
                ) from None
    start = np.frombuffer(data[:4096], np.uint8)
    zeros = np.flatnonzero(start == 0) % 2
    kind = "utf-8"
    if len(zeros) > 0.2 * len(
        start
    ):  # UTF-16 without its mark: every second byte of plain letters is zero
        kind = "utf-16-le" if zeros.mean() > 0.5 else "utf-16-be"
    try:
        text = data.decode(kind)
    except UnicodeDecodeError as error:
        if kind != "utf-8" or len(zeros):
            raise CardError(f"{path} holds bytes that are no text: {SAVE}") from None
        if not encoding:
            line, byte = data[: error.start].count(b"\n") + 1, data[error.start]
            raise CardError(
                f"{path}, line {line}: not UTF-8 (byte 0x{byte:02x}). Save it as UTF-8; or, if a Windows program of "
                "western Europe or America wrote it, write `encoding: cp1252` under table in the card"
            ) from None
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as other:
            raise CardError(
                f"{path}: neither UTF-8 nor {encoding}, as the card has it ({other})"
            ) from None
    return text.replace("\0", "")  # DICOM pads ids with it


# ---- Parquet -------------------------------------------------------------------------------------------------------
def _read_parquet(path: Path, names: Collection[str]) -> tuple[pd.DataFrame, np.ndarray]:
    try:
        table = pq.read_table(path)
    except Exception as error:  # pyarrow raises a dozen kinds
        raise CardError(f"{path} cannot be read as Parquet ({error}); write it again") from None
    wanted = {plain(name) for name in names}
    columns = {}
    for k, name in enumerate(table.column_names):
        text = as_text(table.column(k)) if plain(name) in wanted else [None] * len(table)
        columns[k] = pd.Series(text, dtype=str)
    frame = pd.DataFrame(columns, index=range(len(table))).set_axis(table.column_names, axis=1)
    return frame, np.arange(1, len(table) + 1)


def as_text(column: "pa.ChunkedArray") -> list[str | None]:
    """Return the cells of an Arrow column as a CSV file would hold them; None where there is none.

    Whole numbers have no ``.0`` (a column of integers with a gap is stored as floating-point numbers by many
    programs); midnight is left out where all times are midnight; lists are written as JSON.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return as_text(column.cast(kind.value_type))
    values = column.to_pylist()
    if pa.types.is_floating(kind):
        short = {16: np.float16, 32: np.float32}.get(
            kind.bit_width, np.float64
        )  # the digits that were written
        return [_number(value, short) for value in values]
    if pa.types.is_decimal(kind):
        return [
            None if v is None else str(int(v)) if v == v.to_integral_value() else str(v.normalize())
            for v in values
        ]
    if pa.types.is_timestamp(kind):
        days = all(
            v is None or (v.hour, v.minute, v.second, v.microsecond) == (0, 0, 0, 0) for v in values
        )
        return [None if v is None else str(v.date()) if days else v.isoformat(" ") for v in values]
    if pa.types.is_nested(kind):
        return [
            None if v is None else json.dumps(v, default=str, ensure_ascii=False) for v in values
        ]
    if (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    ):
        return [None if v is None else v.decode("utf-8", errors="backslashreplace") for v in values]
    return [None if v is None else str(v) for v in values]


def _number(value: float | None, short: type) -> str | None:
    if value is None or value != value:
        return None
    exact = 2**24 if short is np.float32 else 2**11 if short is np.float16 else EXACT
    if value == int(value) if abs(value) < np.inf else False:
        return (
            str(int(value)) if abs(value) <= exact else f"{value:e}".replace("e", "E")
        )  # digits are lost
    return str(short(value))
