"""Numbers as people write them (``1e-4``), and counts that may point to a person."""

import re
from collections.abc import Callable
from typing import Any, get_args, get_origin

SMALL = 10  # counts below may point to a person: they leave no page, card or pack
EXPONENT = re.compile(r"[-+]?(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+")


def few(n: int) -> str:
    """Return a count as text; one from 1 to ``SMALL`` - 1 is not told."""
    return f"{n:,}" if n >= SMALL or not n else f"under {SMALL}"


def typed(value: Any, annotation: Any) -> Any:
    """Return ``value`` with numbers that were read as text as numbers of type ``annotation``.

    Only text with an exponent counts, such as ``1e-4``. YAML reads other numbers as numbers, so
    text that looks like one was quoted on purpose. Whole floats become integers for an integer
    (``1e4``, ``400.0``). Lists and dictionaries are followed to any depth. What does not fit is
    returned unchanged, for the model to refuse.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is list and isinstance(value, list):
        return [typed(item, inner[0]) for item in value]
    if origin is dict and isinstance(value, dict):
        return {key: typed(item, inner[1]) for key, item in value.items()}
    if annotation is Any and isinstance(value, list | dict):
        return typed(value, list[Any] if isinstance(value, list) else dict[Any, Any])
    convert = CONVERTED.get(annotation)
    if convert is None:
        return value
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return convert(float(value), value)
    return convert(value, value) if annotation is int and isinstance(value, float) else value


def _whole(number: float, otherwise: Any) -> Any:
    return int(number) if number.is_integer() else otherwise


CONVERTED: dict[Any, Callable[[float, Any], Any]] = {
    float: lambda number, _: number,
    int: _whole,
    Any: lambda number, _: _whole(number, number),
}
