"""Keep the paths of a card below its root: none leads out by ``..``, as absolute, or by a link."""

import json
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from cxrstudy.data.tables import CardError

LINKED = "ingest.json"  # in root: its `folders` are those that links may lead into


def check_text(path: str) -> str:
    """Return a path or glob of a card with '/', if its text stays below root.

    Raises:
        CardError: it is absolute, has a part ``..`` or a zero byte.
    """
    text = path.replace("\\", "/")
    if text.startswith("/") or re.match("[a-zA-Z]:", text) or "\0" in text:
        raise CardError(f"{path!r} leads out of root: it is absolute. Write the path below root")
    if ".." in text.split("/"):
        raise CardError(f"{path!r} leads out of root by '..'. Write the path below root")
    return text


def below(root: str | Path, path: str) -> Path:
    """Return the file below ``root`` that a card, or a cell of its tables, names.

    Raises:
        CardError: it leads out of root by its text or through a link.
    """
    file = Path(root) / check_text(path)
    refuse_links_out(root, [file])
    return file


def refuse_links_out(root: str | Path, files: Iterable[str | Path]) -> None:
    """Refuse files below ``root`` by their text that a link puts elsewhere.

    Raises:
        CardError: naming the first of them.
    """
    for file in links_out(root, files):
        raise CardError(link_message(root, file))


def link_message(root: str | Path, file: str | Path) -> str:
    """Return what to do about a link that leads out of root."""
    return (
        f"{file} leads out of root through a link. Copy the files below root, or choose a root "
        f"that holds them; links of an ingest folder lead only into the `folders` of its "
        f"{Path(root) / LINKED}: run the ingest again if these have moved"
    )


def links_out(root: str | Path, files: Iterable[str | Path]) -> list[str | Path]:
    """Return the files that links put outside of ``root`` and of the folders it may link to."""
    folder = cache(os.path.realpath)  # many files have one folder
    inside = [os.path.join(folder(each), "") for each in (root, *_linked(Path(root)))]

    def end(file: str) -> str:
        for _ in range(40):  # as many links as Linux follows
            above, name = os.path.split(file)
            if name in ("", ".", ".."):
                break
            file = os.path.join(folder(above or "."), name)
            try:
                target = os.readlink(file)
            except OSError:  # no link, or no file
                return file
            file = os.path.join(os.path.dirname(file), target)
        return os.path.realpath(file)

    return [f for f in files if not f"{end(os.fspath(f))}/".startswith(tuple(inside))]


def _linked(root: Path) -> list[str]:
    file = root / LINKED
    if not file.is_file():
        return []
    try:
        folders = json.loads(file.read_text(encoding="utf-8"))["folders"]
        if isinstance(folders, list):
            return [os.path.join(root, folder) for folder in folders]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise CardError(f"{file} is damaged: run the ingest again")
