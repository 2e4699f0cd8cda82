"""Read tables of embeddings that were made elsewhere: which columns are the vector, which image."""

import re
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxrstudy.data.tables import RATIO, SMALL

READABLE = (".parquet", ".pq", ".npz")
TABLES = (*READABLE, ".csv", ".tsv", ".npy", ".pkl", ".feather", ".xlsx")  # recognised as tables
REMEDY = (
    "Parquet needs image_id and one list column (all lists of one length), or a numeric column "
    "a dimension, named alike with a running number (e0, e1, ...); npz needs image_id (M,) and "
    "vectors (M,D)"
)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings made elsewhere; used in place of an encoder.

    Attributes:
        path: File of the table.
        vectors: Embeddings (M,D) float32.
        place: Row of ``vectors`` by image id.
    """

    path: Path
    vectors: np.ndarray
    place: pd.Series

    def of(self, image_ids: pd.Series) -> np.ndarray:
        """Return the embeddings (N,D) of these images.

        Raises:
            ValueError: Images are missing. The message says how many, and how ids look on both
                sides.
        """
        missing = image_ids[~image_ids.isin(self.place.index)]
        if len(missing):
            ours, theirs = missing.astype(str), self.place.index.to_series().astype(str)
            alike = _plain(ours).isin(_plain(theirs)).mean()
            hint = (
                "; they differ only in blanks, capitals, folder or ending: write both alike"
                if alike > 0.5
                else ""
            )
            raise ValueError(
                f"{self.path} lacks {len(missing)} of {len(image_ids)} images; first: "
                f"{missing.iloc[0]} (ids of the data: {_some(ours)}; "
                f"of the table: {_some(theirs)}){hint}"
            )
        return self.vectors[self.place[image_ids].to_numpy()]


def read_embeddings(path: str | Path) -> Embeddings:
    """Read a table of embeddings: Parquet, or npz with ``image_id`` (M,) and ``vectors`` (M,D).

    The vector of a Parquet table is its one list column, or its numeric columns that are named
    alike with a running number (from 0 or 1, without gaps, in the order of the numbers). Other
    columns are not used, and a warning names them. A warning is also given for vectors that are
    equal or all zero.

    Raises:
        ValueError: No such columns or several, an image twice or without id, or vectors of unequal
            length or not finite. The message names the columns or the row (from 0).
    """
    path = Path(path)
    if why := unreadable(path):
        raise ValueError(why)
    try:
        raw, vectors = _read_npz(path) if path.suffix.lower() == ".npz" else _read_parquet(path)
    except _Ambiguous as error:
        raise ValueError(f"{path}: {error}. {REMEDY}") from None
    except Exception as error:
        raise ValueError(f"{path}: no table of embeddings ({error}). {REMEDY}") from error
    ids = _names(path, raw)
    if vectors.ndim != 2 or len(vectors) != len(ids) or not vectors.size:
        raise ValueError(
            f"{path}: {len(ids)} image ids but vectors of shape {vectors.shape}; "
            "one row an image is needed"
        )
    twice = pd.Series(ids).duplicated()
    if twice.any():
        raise ValueError(
            f"{path}: {int(twice.sum())} image ids appear again; first: {ids[twice.argmax()]}"
        )
    with np.errstate(over="ignore"):
        vectors = vectors.astype(np.float32)
    finite = np.isfinite(vectors).all(1)
    if not finite.all():
        row = int(finite.argmin())
        raise ValueError(
            f"{path}: the vector in row {row} ({ids[row]}) is not finite "
            f"({(~finite).sum()} such rows)"
        )
    _warn_of_blanks(path, ids, vectors)
    return Embeddings(path, vectors, pd.Series(np.arange(len(ids)), index=ids))


def unreadable(path: Path) -> str:
    """Return why a table cannot be read, by its suffix, and the remedy; empty where it can."""
    if path.suffix.lower() in READABLE:
        return ""
    return (
        f"{path}: no table of embeddings: only Parquet and npz are read. Convert a CSV by "
        f"pd.read_csv(path, dtype={{'image_id': str}})"
        f".to_parquet('{path.with_suffix('.parquet').name}'). {REMEDY}"
    )


class _Ambiguous(ValueError):
    """A table whose vector columns are not clear."""


# ---- files ---------------------------------------------------------------------------------------
def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(path) as packed:
        held, size = sum(entry.file_size for entry in packed.infolist()), path.stat().st_size
    if held > max(SMALL, RATIO * size):  # vectors hardly shrink
        raise _Ambiguous(f"has {size:,} bytes, and unpacked {held:,}: an absurd size")
    with np.load(path, allow_pickle=False) as file:
        if "image_id" not in file or "vectors" not in file:
            raise _Ambiguous(
                f"holds {', '.join(file.files)}, where image_id and vectors are needed"
            )
        ids, vectors = file["image_id"], file["vectors"]
    if vectors.dtype.kind not in "fiu":
        raise _Ambiguous(f"vectors are of type {vectors.dtype}, not numbers")
    return ids, vectors


def _read_parquet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = pq.ParquetFile(path).read()
    names = table.column_names
    columns = {name: table.column(k) for k, name in enumerate(names) if names.count(name) == 1}
    index = table.select(names[:1]).to_pandas().index  # pandas stores it apart from the columns
    if "image_id" not in columns and index.name != "image_id":
        raise _Ambiguous(f"needs one column image_id; it has {_listed(names)}")
    ids = columns.pop("image_id").to_pandas() if "image_id" in columns else index
    chosen = _vector_columns(columns)
    unused = [
        name
        for name in names
        if name not in ("image_id", *chosen) and not name.startswith("__index_level_")
    ]
    if unused:
        what = repr(chosen[0]) if len(chosen) == 1 else f"{chosen[0]} to {chosen[-1]}"
        warnings.warn(f"{path}: the vector is {what}; not used: {_listed(unused)}", stacklevel=4)
    if len(chosen) > 1:
        vectors = np.stack([_numbers(columns[name]) for name in chosen], axis=1)
        if np.isin(vectors, [-1, 0, 1]).all():  # label_0, label_1, ... are numbered as well
            many = f"columns {chosen[0]} to {chosen[-1]} hold 0, 1 and -1 alone, as labels do"
            raise _Ambiguous(f"{many}; if they are a vector, write it as one list column")
    else:
        vectors = _lists(chosen[0], columns[chosen[0]])
    return ids.to_numpy(), vectors


def _vector_columns(columns: dict[str, pa.ChunkedArray]) -> list[str]:
    """Return the name of the one list column, or of the numbered columns in their order.

    A list column has priority over numbered ones that are fewer than its values, such as labels.

    Raises:
        _Ambiguous: There is not exactly one such choice.
    """
    lists = [
        name
        for name, column in columns.items()
        if _is_list(column.type) and _is_number(column.type.value_type)
    ]
    groups: dict[str, dict[str, int]] = {}
    for name, column in columns.items():
        match = re.fullmatch(r"(.*?)(\d+)", name, re.DOTALL)
        if match and not _is_list(column.type):
            groups.setdefault(match[1], {})[name] = int(match[2])
    groups = {
        p: g
        for p, g in groups.items()
        if len(g) > 1 and any(_is_number(columns[n].type) for n in g)
    }
    if len(lists) == 1:
        longest = pc.max(pc.list_value_length(columns[lists[0]])).as_py() or 0
        groups = {prefix: group for prefix, group in groups.items() if len(group) >= longest}
    found = [repr(name) for name in lists] + [f"{_listed(group, 2)}" for group in groups.values()]
    if len(found) != 1:
        why = (
            f"more than one could be the vector: {'; '.join(found)}"
            if found
            else "none of its columns is a vector"
        )
        raise _Ambiguous(f"{why} (columns: {_listed(f'{n} ({columns[n].type})' for n in columns)})")
    if lists:
        return lists
    (group,) = groups.values()
    words = [name for name in group if not _is_number(columns[name].type)]
    if words:
        raise _Ambiguous(
            f"column {words[0]} among the numbered ones holds {columns[words[0]].type}, not numbers"
        )
    order = sorted(group, key=group.__getitem__)
    found_numbers, first = [group[name] for name in order], group[order[0]]
    if first > 1 or found_numbers != list(range(first, first + len(order))):
        missing = sorted(set(range(min(first, 1), found_numbers[-1])) - set(found_numbers))
        gap = (
            f"; missing numbers: {_listed(map(str, missing))}"
            if missing
            else "; a number appears twice"
        )
        raise _Ambiguous(f"the numbered columns {order[0]} to {order[-1]} are no complete run{gap}")
    return order


def _lists(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Return the values (M,D) of a list column."""
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(float)
    if np.isnan(lengths).any():
        row = int(np.isnan(lengths).argmax())
        raise _Ambiguous(
            f"column {name}: no list in row {row} ({int(np.isnan(lengths).sum())} such rows)"
        )
    if len(set(lengths)) > 1:
        first = lengths[0]
        row = int((lengths != first).argmax())
        raise _Ambiguous(
            f"column {name}: lists are not all of one length: {first:.0f} in row 0, "
            f"{lengths[row]:.0f} in row {row}"
        )
    return (
        _numbers(pc.list_flatten(column)).reshape(len(lengths), -1)
        if len(lengths)
        else np.empty((0, 0))
    )


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Return the values of a numeric column; missing ones are NaN."""
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)


# ---- ids and checks ------------------------------------------------------------------------------
def _names(path: Path, raw: np.ndarray) -> np.ndarray:
    """Return image ids as strings; whole numbers without a point (5, not 5.0)."""
    if raw.ndim != 1:
        raise ValueError(f"{path}: image_id has shape {raw.shape}; want one id an image")
    empty = pd.isna(raw)
    if empty.any():
        raise ValueError(
            f"{path}: no image_id in row {int(empty.argmax())} ({int(empty.sum())} such rows)"
        )
    if raw.dtype.kind == "f" and (raw == np.floor(raw)).all():
        if (np.abs(raw) >= 2**53).any():
            raise ValueError(
                f"{path}: image_id as floating-point numbers has lost its last digits; "
                "write it as text"
            )
        raw = raw.astype(np.int64)
    if raw.dtype.kind in "OS":
        return np.array([name.decode() if isinstance(name, bytes) else str(name) for name in raw])
    return raw.astype(str)


def _plain(ids: pd.Series) -> pd.Series:
    """Return ids without what often differs between two tables of the same images."""
    return (
        ids.str.strip()
        .str.lower()
        .str.replace(r"^.*[/\\]|\.(png|jpe?g|dcm|dicom|0)$", "", regex=True)
    )


def _warn_of_blanks(path: Path, ids: np.ndarray, vectors: np.ndarray) -> None:
    zero = ~vectors.any(1)
    if len(vectors) > 1 and (vectors == vectors[0]).all():
        warnings.warn(
            f"{path}: all {len(vectors)} vectors are equal: they carry no information",
            stacklevel=3,
        )
    elif zero.any():
        first = ids[zero.argmax()]
        warnings.warn(
            f"{path}: {int(zero.sum())} vectors are all zeros (first: {first})", stacklevel=3
        )


def _some(ids: pd.Series) -> str:
    return ", ".join(map(repr, ids.iloc[:3]))


def _listed(names: Iterable[Any], most: int = 12) -> str:
    names = list(names)
    return ", ".join(map(str, names[:most])) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )
