"""Files that are replaced whole: a reader, or a run that resumes, sees the old one or the new one, never half."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A scratch path beside ``path`` to write to; it takes the place of ``path`` when the block ends without error."""
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
    """As ``write_text``, but a file that holds ``text`` already keeps its time stamp."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
