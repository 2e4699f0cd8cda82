"""Tables by Arrow as text: columns as a CSV file would hold them, and simple CSV read fast."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

EXACT: dict[Any, int] = {
    np.float16: 2**11,
    np.float32: 2**24,
    np.float64: 2**53,
}  # larger integers lose digits


def as_text(column: "pa.ChunkedArray") -> list[str | None]:
    """Return the cells of an Arrow column as a CSV file would hold them; None for missing.

    Whole numbers have no ``.0``, because many programs store integers with gaps as floats.
    Midnight is left out if all times are midnight. Lists are written as JSON.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return as_text(column.cast(kind.value_type))
    values = column.to_pylist()

    def each(write: Callable[[Any], str | None]) -> list[str | None]:
        return [None if value is None else write(value) for value in values]

    if pa.types.is_floating(kind):
        short = {16: np.float16, 32: np.float32}.get(kind.bit_width, np.float64)
        return each(lambda v: _number(v, short))
    if pa.types.is_decimal(kind):
        return each(lambda v: str(int(v)) if v == v.to_integral_value() else str(v.normalize()))
    if pa.types.is_timestamp(kind):
        times = [(v.hour, v.minute, v.second, v.microsecond) for v in values if v is not None]
        midnight = not any(map(any, times))
        return each(lambda v: str(v.date()) if midnight else v.isoformat(" "))
    if pa.types.is_nested(kind):
        return each(lambda v: json.dumps(v, default=str, ensure_ascii=False))
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    if any(is_binary(kind) for is_binary in binary):
        return each(lambda v: v.decode("utf-8", errors="backslashreplace"))
    return each(str)


def _number(value: float, short: type) -> str | None:
    """Return a number with the digits of its type; one that has lost digits as 1E20."""
    if value != value:
        return None
    if abs(value) < np.inf and value == int(value):
        return str(int(value)) if abs(value) <= EXACT[short] else f"{value:E}"
    return str(short(value))


def read_plain_csv(text: str, separator: str, n_columns: int) -> pd.DataFrame | None:
    """Return the rows below the header of CSV without quotes as text, columns 0, 1, ...

    Returns None where the general reader is needed: quotes, empty or ragged lines, a single column,
    line ends of several kinds. So row k is always on line k + 2 of ``text``.
    """
    mixed = text.count("\r") != text.count("\r\n")
    if n_columns < 2 or mixed or '"' in text or "\x1a" in text:
        return None
    names = list(map(str, range(n_columns)))
    as_written = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.large_string()), strings_can_be_null=False
    )
    try:
        table = pyarrow.csv.read_csv(
            pa.py_buffer(text.encode()),
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator, quote_char=False),
            convert_options=as_written,
        )
    except pa.ArrowInvalid:
        return None
    if len(table) != text.count("\n") - text.endswith("\n"):
        return None
    kind = pd.StringDtype(storage="pyarrow", na_value=np.nan)
    return pd.DataFrame({k: kind.__from_arrow__(table.column(k)) for k in range(n_columns)})
