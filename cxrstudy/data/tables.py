"""Read tables of a data set (CSV or Parquet) as text, with the file and line of every row."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from cxrstudy.data.arrowtext import as_text, read_plain_csv
from cxrstudy.data.columns import plain
from cxrstudy.data.lexicon import word_set
from cxrstudy.data.recordfiles import is_records, read_records
from cxrstudy.marks import near

SEPARATORS = (",", ";", "\t", "|")
PARQUET = (".parquet", ".pq", ".parq")
# cells without a value
MISSING = word_set("|#N/A|#N/A N/A|#NA|-NaN|-nan|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null", "|")
BOMS = {  # UTF-32 first: its mark begins as that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
PACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
# bytes and rows that a table may have: the largest public one has 4 million rows in 2 GB. A packed
# file of a few kB can unpack to any size, so how much is read depends on its size too
LARGEST, MOST_ROWS, SMALL, RATIO = 2**33, 10**8, 2**28, 50
SAVE = "save it as CSV (UTF-8), as every spreadsheet program can, and name that file in table.path"
NO_TABLE = (  # first bytes, what it is, what helps
    (b"\xd0\xcf\x11\xe0", "is a workbook of a spreadsheet program (.xls), not CSV", SAVE),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the table", "run `git lfs pull`"),
    (b"SQLite format 3", "is a database, not CSV", SAVE),
    (b"<", "is a page (HTML or XML), not CSV", SAVE),
    (b"{", "is JSON, not CSV", SAVE),
)


class CardError(ValueError):
    """A card, or the data set under ``root``, is wrong; the message names place and remedy."""


@dataclass(frozen=True)
class Rows:
    """Rows of all files as text.

    ``frame`` is missing where a cell is empty, and indexed from 0 without gaps. ``file`` is each
    row's index in ``files``, ``line`` where it begins: the header of CSV is line 1, Parquet
    counts rows from 1. ``units`` says of each file what ``line`` counts. ``joined`` says of columns
    that other tables gave: these rows, and which of them each row has (-1: none).
    """

    frame: pd.DataFrame
    files: list[Path]
    file: np.ndarray
    units: list[str]
    line: np.ndarray
    joined: dict[str, "tuple[Rows, np.ndarray]"] = field(default_factory=dict)

    def place(self, row: Any, column: str = "") -> str:
        """Return file and line of a row of ``frame`` by its index, or of its cell in ``column``."""
        if column in self.joined:
            other, partner = self.joined[column]
            if partner[row] >= 0:
                return other.place(partner[row], column)
        file = self.file[row]
        return f"{self.files[file]}, {self.units[file]} {self.line[row]}"

    def take(self, rows: np.ndarray) -> "Rows":
        """Return some of the rows, by position; one may come several times."""
        joined = {name: (other, own[rows]) for name, (other, own) in self.joined.items()}
        frame = self.frame.take(rows).reset_index(drop=True)
        return Rows(frame, self.files, self.file[rows], self.units, self.line[rows], joined)

    def beside(self, other: "Rows", partner: np.ndarray, without: Collection[str] = ()) -> "Rows":
        """Return these rows with the columns of ``other`` that they lack.

        Args:
            other: more columns.
            partner: (N,) the row of ``other`` for each of these; -1: none.
            without: columns of ``other`` that are not taken.
        """
        names = [c for c in other.frame if c not in self.frame and c not in without]
        columns = {
            name: pd.Series(
                other.frame[name].array.take(partner, allow_fill=True), index=self.frame.index
            )
            for name in names
        }
        frame = pd.concat([self.frame, pd.DataFrame(columns, index=self.frame.index)], axis=1)
        return replace(
            self, frame=frame, joined=self.joined | dict.fromkeys(names, (other, partner))
        )

    def places(self, rows: Iterable[Any], most: int = 3) -> str:
        """Return the places of the first few of several rows."""
        rows = list(rows)
        more = f"; and {len(rows) - most} more" if len(rows) > most else ""
        return "; ".join(map(self.place, rows[:most])) + more


def read_tables(
    paths: Sequence[Path],
    *,
    used: Collection[str],
    separator: str = ",",
    encoding: str = "",
    query: str = "",
    keep: Collection[str] = (),
    also: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
) -> Rows:
    """Read tables with the same columns, one below the other.

    Args:
        paths: CSV (also packed by gzip, bzip2, xz or zip), Parquet, JSON, JSON lines or Open-i XML.
        used: columns that every file must have, once.
        separator: between cells of a CSV file.
        encoding: of files that are neither UTF-8 nor marked as UTF-16 or UTF-32.
        query: columns named in it must be in every file or in none.
        keep: cells with a meaning although they look like a missing value (say, ``NA``).
        also: columns that a file may have.
        rename: name of a column in a file -> the name to give it.

    Raises:
        CardError: naming file, line and remedy.
    """
    given, names = rename or {}, {*used, *also}
    wanted = names | {theirs for theirs, name in given.items() if name in names}
    wanted |= {name.strip("`") for name in re.findall(r"`[^`]+`|\w+", query)}
    frames, lines, units = [], [], []
    for path in paths:
        if _is_parquet(path):
            frame, line, unit = *_read_parquet(path, wanted), "row"
        elif is_records(path):
            frame, line, unit = _read_records(path, encoding)
        else:
            ours = {name: theirs for theirs, name in given.items()}
            first = [ours.get(name, name) for name in used]
            frame, line, unit = *_read_csv(path, separator, encoding, first), "line"
        frame.columns = [{plain(k): v for k, v in given.items()}.get(plain(c), c) for c in frame]
        frames.append(_headed(frame, path, used, query, also))
        lines.append(line)
        units.append(unit)
    if not any(map(len, frames)):
        raise CardError(f"{', '.join(map(str, paths[:3]))}: there is a header, but no rows")
    asked = {c for frame in frames for c in frame if re.search(rf"\b{re.escape(c)}\b", query)}
    for path, frame in zip(paths, frames, strict=True):
        for column in sorted(asked - set(frame)):
            raise CardError(
                f"{path} has no column {column!r}, which table.query names; another table has it"
            )
    whole = pd.concat(frames, ignore_index=True)
    nothing = MISSING - set(keep)
    for column in whole:
        whole[column] = whole[column].mask(whole[column].str.strip().isin(nothing))
    file = np.repeat(np.arange(len(paths)), [len(frame) for frame in frames])
    return Rows(whole, list(paths), file, units, np.concatenate(lines))


def _is_parquet(path: Path) -> bool:
    if path.suffix.lower() in PARQUET or not path.is_file():
        return path.suffix.lower() in PARQUET
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _headed(
    frame: pd.DataFrame, path: Path, used: Collection[str], query: str, also: Collection[str]
) -> pd.DataFrame:
    """Rename used columns to the card's names; blanks around a name in the file do not count."""
    columns = list(frame)
    there, renamed = set(map(plain, columns)), {}
    for name in dict.fromkeys((*used, *(name for name in also if plain(name) in there))):
        alike = [c for c in columns if c == name] or [c for c in columns if plain(c) == plain(name)]
        if len(alike) > 1:
            raise CardError(f"{path} has {len(alike)} columns {name!r}: rename one of them")
        if not alike:
            more = f" and {len(columns) - 60} more" if len(columns) > 60 else ""
            raise CardError(
                f"{path} has no column {name!r}; it has {', '.join(columns[:60])}{more}"
                f"{near(name, columns)}"
            )
        renamed[alike[0]] = name
    frame = frame.rename(columns=renamed)
    twice = {c for c in columns if columns.count(c) > 1}
    for name in twice:
        if name and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", query):
            raise CardError(
                f"{path} has several columns {name!r}, which table.query names: rename one of them"
            )
    return frame.loc[:, [c not in twice and c != "" for c in frame]]


# ---- CSV -----------------------------------------------------------------------------------------
def _read_csv(
    path: Path, separator: str, encoding: str, used: Collection[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    try:
        data = path.read_bytes()
    except OSError as error:  # a folder, say
        raise CardError(f"{path} cannot be read as a table ({error.strerror})") from None
    text = _decode(path, _unpack(path, data), encoding)
    above = 0  # lines above the header
    if hint := re.match(r'"?sep=.{0,1}"?\r?\n', text):  # Excel writes it
        text, above = text[hint.end() :], 1
    csv.field_size_limit(2**27)  # run lengths of masks are longer than the default
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    records: list[list[str]] = []
    lines: list[int] = []
    begin = 1 + above
    try:
        for record in reader:
            line, begin = begin, reader.line_num + 1 + above
            if len(record) < 2 and not "".join(record).strip(" \t\x1a"):  # empty, or DOS's end mark
                continue
            if not header:
                header = _header(record, text, separator, path, used)
                first = line == 1 + above  # the header is the first line
                fast = read_plain_csv(text, separator, len(header)) if first else None
                if fast is not None:
                    return fast.set_axis(header, axis=1), np.arange(len(fast)) + 2 + above
                continue
            while len(record) > len(header) and not record[-1]:  # separators at a line's end
                record.pop()
            if len(record) != len(header):
                raise CardError(
                    f"{path}, line {line}: {len(record)} cells, but the header has {len(header)} "
                    f"columns. Put cells that hold {separator!r} or a line end in double quotes, "
                    "and write every row in full"
                )
            records.append(record)
            lines.append(line)
    except csv.Error as error:
        raise CardError(
            f"{path}, line {begin}: not a row of CSV ({error}). A cell in double quotes is not "
            'closed, or holds quotes that are not doubled ("")'
        ) from None
    if not header:
        raise CardError(f"{path} is empty")
    cells = zip(*records, strict=True) if records else [()] * len(header)
    frame = pd.DataFrame({k: pd.Series(list(column), dtype=str) for k, column in enumerate(cells)})
    return frame.set_axis(header, axis=1), np.array(lines, dtype=int)


def _header(
    record: list[str], text: str, separator: str, path: Path, used: Collection[str]
) -> list[str]:
    """Return the columns' names; refuse them if another separator gives more that are used."""
    gone = [name for name in used if plain(name) not in set(map(plain, record))]
    for other in SEPARATORS if gone else ():
        first = next(csv.reader(io.StringIO(text.lstrip("\r\n")), delimiter=other), [])
        names = set(map(plain, first))
        better = len(record) == 1 or set(map(plain, used)) <= names
        if other != separator and len(names) > 1 and better:
            raise CardError(
                f"{path} has no column {gone[0]!r} when read with separator {separator!r}. Its "
                f"separator is {other!r}: write `separator: {json.dumps(other)}` under table in "
                "the card"
            )
    return record


def _unpack(path: Path, data: bytes, is_csv: bool = True) -> bytes:
    """Return the one table of a packed file; refuse a file that is no table of text."""
    try:
        for magic, unpack in PACKED.items():
            if data.startswith(magic):
                with unpack(io.BytesIO(data)) as packed:
                    return _within(path, packed, len(data))
        if data.startswith(b"PK\x03\x04"):
            return _unzip(path, data)
    except CardError:
        raise
    except Exception as error:  # each of the four kinds raises its own
        raise CardError(
            f"{path} cannot be unpacked ({error}); copy it again, or unpack it yourself"
        ) from None
    for magic, kind, remedy in NO_TABLE if is_csv else NO_TABLE[:3]:
        if data.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(magic):
            raise CardError(f"{path} {kind}: {remedy}")
    return data


def _unzip(path: Path, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        names = [n for n in packed.namelist() if not n.endswith("/") and n[:9] != "__MACOSX/"]
        if {"[Content_Types].xml", "content.xml"} & set(names):
            raise CardError(f"{path} is a workbook of a spreadsheet program, not CSV: {SAVE}")
        if len(names) != 1:
            raise CardError(
                f"{path} holds {len(names)} files ({', '.join(names[:5])}): unpack it, and name "
                "one in table.path"
            )
        with packed.open(names[0]) as file:
            return _within(path, file, len(data))


def _within(path: Path, packed: Any, size: int) -> bytes:
    """Return what a packed file of ``size`` bytes holds; refuse an absurd size, unread."""
    most = min(LARGEST, max(SMALL, RATIO * size))
    data: bytes = packed.read(most + 1)
    if len(data) > most:
        raise CardError(
            f"{path} has {size:,} bytes, and unpacked more than {most:,}, as no table of text has: "
            "copy it again; if it is the table, unpack it yourself"
        )
    return data


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
    if len(zeros) > 0.2 * len(start):  # UTF-16 without its mark: every second byte is zero
        kind = "utf-16-le" if zeros.mean() > 0.5 else "utf-16-be"
    try:
        text = data.decode(kind)
    except UnicodeDecodeError as error:
        if kind != "utf-8" or len(zeros):
            raise CardError(f"{path} holds bytes that are no text: {SAVE}") from None
        if not encoding:
            line, byte = data[: error.start].count(b"\n") + 1, data[error.start]
            raise CardError(
                f"{path}, line {line}: not UTF-8 (byte 0x{byte:02x}). Save it as UTF-8; or, if a "
                "Windows program of western Europe or America wrote it, write `encoding: cp1252` "
                "under table in the card"
            ) from None
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as other:
            raise CardError(
                f"{path}: neither UTF-8 nor {encoding}, the card's encoding ({other})"
            ) from None
    return text.replace("\0", "")  # DICOM pads ids with zero bytes


# ---- JSON and XML --------------------------------------------------------------------------------
def _read_records(path: Path, encoding: str) -> tuple[pd.DataFrame, np.ndarray, str]:
    try:
        data = path.read_bytes()
        columns, rows, places, unit = read_records(
            path, _decode(path, _unpack(path, data, is_csv=False), encoding)
        )
    except OSError as error:
        raise CardError(f"{path} cannot be read as a table ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # the second if it is nested deeply
        if isinstance(error, CardError):
            raise
        raise CardError(f"{path}, {error}") from None
    return pd.DataFrame(rows, columns=columns, dtype=str), np.array(places, dtype=int), unit


# ---- Parquet -------------------------------------------------------------------------------------
def _read_parquet(path: Path, names: Collection[str]) -> tuple[pd.DataFrame, np.ndarray]:
    try:
        if (rows := pq.read_metadata(path).num_rows) > MOST_ROWS:
            raise CardError(f"{path} says that it has {rows:,} rows, as no table of images has")
        table = pq.read_table(path)
    except CardError:
        raise
    except Exception as error:  # pyarrow raises a dozen kinds
        raise CardError(f"{path} cannot be read as Parquet ({error}); write it again") from None
    wanted = set(map(plain, names))
    columns = {}
    for k, name in enumerate(table.column_names):
        text = as_text(table.column(k)) if plain(name) in wanted else [None] * len(table)
        columns[k] = pd.Series(text, dtype=str)
    frame = pd.DataFrame(columns, index=range(len(table))).set_axis(table.column_names, axis=1)
    return frame, np.arange(1, len(table) + 1)
