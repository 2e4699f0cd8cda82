"""Read a hospital's tables, whatever their separator and encoding, and folders of report texts."""

import csv
import glob
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from cxrstudy.data import recordfiles, tables
from cxrstudy.data.filetypes import kind_of
from cxrstudy.data.tables import BOMS, PACKED, PARQUET, SEPARATORS, CardError, Rows
from cxrstudy.study import StudyError

PLAIN = ".csv .tsv .tab .gz .bz2 .xz .zip .xml .xlsx .xls .ods"  # workbooks are refused later
TABLES = (*PARQUET, *recordfiles.RECORDS, *PLAIN.split())
START = 2**16  # bytes that give separator and encoding
LINES = 200
LARGEST = 2**20  # bytes of a report
HELP = "@"  # begins the names of columns that say where a report was


def read_source(source: str) -> tuple[Rows, dict[str, int]]:
    """Return the rows of a table, or of a folder or glob of tables or of report texts.

    Of report texts, a row is a file, with its name, the longest number in that, its folder and
    its text. Files that are no text are counted by kind.

    Raises:
        StudyError: there is no such file, or it is no table; the message says what helps.
    """
    path = Path(source).expanduser()
    pattern = str(path / "**/*") if path.is_dir() else str(path)
    files = [path] if path.is_file() else []
    files = files or sorted(f for f in map(Path, glob.glob(pattern, recursive=True)) if f.is_file())
    if not files:
        raise StudyError(f"{source}: there is no such file, or none in it. Correct --table")
    if path.is_file() or all(file.suffix.lower() in TABLES for file in files):
        return _table(files), {}
    return _reports(path, files)


def _table(files: list[Path]) -> Rows:
    start = _start(files[0])
    high = bytes(byte for byte in start if byte >= 0x80)
    letters = {
        name: sum(map(str.isalpha, high.decode(name, errors="ignore")))
        for name in ("cp1252", "cp850")  # of Windows, of DOS
    }
    names: list[str] = []
    for encoding in (max(letters, key=lambda name: letters[name]), "latin-1"):
        try:
            if start.startswith(b"PAR1"):
                names = pq.read_schema(files[0]).names
            separator = _separator(start)
            return tables.read_tables(files, used=names, separator=separator, encoding=encoding)
        except (CardError, OSError, ValueError) as error:
            text = str(error).replace("name that file in table.path", "give that file to --table")
            if "neither UTF-8 nor" not in text:
                break
    raise StudyError(text)


def _start(path: Path) -> bytes:
    """Return the first bytes of a table, unpacked; `read_tables` says what is wrong."""
    try:
        with path.open("rb") as file:
            head = file.read(START)
        opener: Any = next((PACKED[mark] for mark in PACKED if head.startswith(mark)), None)
        if opener:
            with opener(path) as unpacked:
                return unpacked.read(START)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed, packed.open(packed.namelist()[0]) as member:
                return member.read(START)
        return head
    except Exception:  # zlib, lzma and zipfile each raise their own
        return b""


def _text(data: bytes) -> str:
    encoding = next((name for mark, name in BOMS.items() if data.startswith(mark)), "")
    if not encoding and b"\0" in data[:2]:
        encoding = "utf-16-be" if data.startswith(b"\0") else "utf-16-le"
    try:
        return data.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        return data.decode(encoding or "cp1252", errors="replace")


def _separator(start: bytes) -> str:
    """Return the sign that parts the first lines into the most cells, alike in all lines."""
    text = re.sub(r'^"?sep=.{0,1}"?\r?\n', "", _text(start)).lstrip("\r\n")
    lines = text.splitlines(keepends=True)[:LINES]
    lines = lines[:-1] or lines if len(start) == START else lines  # the last may be cut
    best = (0.0, 0, ",")
    for separator in SEPARATORS:
        counts: Counter[int] = Counter()
        try:
            for record in csv.reader(lines, delimiter=separator):
                counts[len(record)] += bool(record)
        except csv.Error:
            pass
        cells, alike = counts.most_common(1)[0] if counts else (1, 0)
        if cells > 1:
            best = max(best, (round(alike / counts.total(), 1), cells, separator))
    return best[2]


def _reports(folder: Path, files: list[Path]) -> tuple[Rows, dict[str, int]]:
    rows, unread = [], Counter[str]()
    for path in files:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        kind = "too long" if len(data) > LARGEST else kind_of(data[:1024])
        if kind != "text":
            unread[kind] += 1
            continue
        number = max(re.findall(r"[\d.]*\d", path.stem), key=len, default=None)
        rows.append((path.stem, number, path.parent.name, _text(data)))
    if not rows:
        raise StudyError(f"{folder}: none of its {len(files)} files is a text or a table")
    columns = [f"{HELP}file", f"{HELP}number in the name", f"{HELP}folder", "report"]
    frame = pd.DataFrame(rows, columns=columns, dtype=str)
    n = len(frame)
    return Rows(frame, [folder], np.zeros(n, int), ["file"], np.arange(1, n + 1)), dict(unread)
