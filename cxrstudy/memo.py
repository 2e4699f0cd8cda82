"""Results of slow functions by what they were computed from, for the next page or build of the book."""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pandas as pd

from cxrstudy import study
from cxrstudy.files import replacing

PLACE = "CXRSTUDY_MEMO"  # names the folder, in kernels that make the book's pages; elsewhere all is computed
P = ParamSpec("P")
R = TypeVar("R")


def remembered(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, not executed where the same code had equal arguments and, in run folders among them, scores."""

    @functools.wraps(function)
    def recalled(*args: P.args, **kwargs: P.kwargs) -> R:
        if PLACE not in os.environ:
            return function(*args, **kwargs)
        import joblib  # not by every command

        scores = {
            name: _scores(name) for value in (*args, *kwargs.values()) for name in _folders(value)
        }
        key = joblib.hash(
            (function.__module__, function.__qualname__, args, kwargs, scores, _code())
        )
        path = Path(os.environ[PLACE]) / f"{key}.pickle"
        with contextlib.suppress(Exception):  # a file that is not there, or spoilt: it is made anew
            os.utime(path)  # what is asked for is not forgotten
            return pickle.loads(path.read_bytes())
        found = function(*args, **kwargs)
        if scores == {name: _scores(name) for name in scores}:  # else a run was recorded meanwhile
            with replacing(path) as scratch:
                scratch.write_bytes(pickle.dumps(found))
        return found

    return recalled


def forget(place: Path, most: int = 1000) -> None:
    """Remove what was not asked for the longest, beyond ``most`` results; a book asks for some 250."""
    for path in sorted(place.glob("*.pickle"), key=lambda path: -path.stat().st_mtime)[most:]:
        path.unlink(missing_ok=True)


def _folders(value: Any) -> list[str]:
    if isinstance(value, pd.DataFrame):
        return list(value["folder"].unique()) if "folder" in value else []
    return [value] if isinstance(value, str) and os.path.isdir(value) else []


def _scores(folder: str) -> str:
    path = Path(folder) / "scores.parquet"
    return _digest(path, path.stat().st_mtime_ns) if path.is_file() else ""


@functools.cache
def _digest(path: Path, changed: int) -> str:
    return hashlib.blake2b(path.read_bytes()).hexdigest()


@functools.cache
def _code() -> str:
    ours = [
        path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.rglob("*.py"))
    ]
    others = ("numpy", "scipy", "pandas", "pyarrow", "matplotlib", "seaborn")
    return study.digest([ours, *map(importlib.metadata.version, others)], 32)


if PLACE in os.environ:
    _code()  # as it was imported, whatever is edited while pages are made
