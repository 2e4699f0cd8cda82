"""Replace files whole: a reader sees the old file or the new one, never a part."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def is_remote(path: str | Path) -> bool:
    """Return whether a path is in a bucket: s3://bucket/folder, gs://, az:// and the like."""
    return "://" in str(path)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a scratch path to write to; it replaces ``path`` if the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file whole."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_changed(path: Path, text: str) -> None:
    """Write a text file whole, unless it has this text already: then it keeps its time stamp."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
