"""Find files below a folder by patterns, and the one that each id or path of a table names."""

import fnmatch
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from cxrstudy.data.below import check_text, link_message, links_out
from cxrstudy.data.tables import CardError, Rows

SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")
OTHER_SUFFIXES = (".tif", ".tiff", ".bmp", ".jp2", ".jpe", ".ima", ".webp", ".gif")
# names of files to compare with: whole or without a suffix, with case or without
ORDER = (((), False), (SUFFIXES, False), ((), True), (SUFFIXES, True), (OTHER_SUFFIXES, True))
FIELD = re.compile(r"\{([^{}:]+)(?::\.(\d+))?\}")  # of a path template
OUT = r"(?:^|[/\\])\.\.(?:[/\\]|$)|^[/\\]|^[a-zA-Z]:"  # of a path that may lead out of root
Listing = tuple[tuple[str, ...], tuple[str, ...]]  # folders, files
Index = Callable[[str], list[str]]  # a name as a table writes it -> the files that it may mean


def matching_files(base: Path, pattern: str) -> list[str]:
    """Return the files below ``base`` that match a glob, as paths below it with '/'.

    ``**`` matches any number of folders, none too; a trailing ``**`` every file below. Case does
    not count (``*.png`` matches ``X.PNG``). Hidden files match only a pattern that begins with a
    dot. Links are followed, once.
    """
    parts = [part for part in pattern.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts or re.match(r"/|[a-zA-Z]:", pattern):
        raise CardError(f"images: {pattern!r} leads out of root; write where images are below it")
    parts += ["*"] if parts[-1:] == ["**"] else []
    found: set[str] = set()
    listing = cache(lambda folder: _listing(base / folder))

    def expand(folder: str, parts: Sequence[str], above: tuple[tuple[int, int], ...]) -> None:
        folders, files = listing(folder)
        head, rest = parts[0], parts[1:]
        if head == "**":
            stat = os.stat(base / folder)
            here = (stat.st_dev, stat.st_ino)
            if here in above:  # a link to a folder that contains it
                return
            expand(folder, rest, above)
            for name in folders:
                if not name.startswith("."):
                    expand(posixpath.join(folder, name), parts, (*above, here))
            return
        for name in _matches(head, folders if rest else files):
            path = posixpath.join(folder, name)
            if rest:
                expand(path, rest, above)
            else:
                found.add(path)

    if parts:
        expand("", parts, ())
    return sorted(found)


def _matches(part: str, names: Sequence[str]) -> list[str]:
    """Return the names that match one part of a pattern; an exact name comes before its case."""
    if part in names and not re.search(r"[*?[]", part):
        return [part]
    matches = re.compile(fnmatch.translate(part), re.IGNORECASE).match
    return [n for n in names if matches(n) and n.startswith(".") == part.startswith(".")]


def _listing(folder: Path) -> Listing:
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.name)
    except OSError:  # absent, or not readable
        pass
    return tuple(sorted(folders)), tuple(sorted(files))


@cache
def _roots(base: Path) -> tuple[list[str], set[str]]:
    """Return how paths of a table may begin with root: the whole of it, or its own name."""
    roots = (base.as_posix(), base.absolute().as_posix(), os.path.realpath(base))
    spelled = {unicodedata.normalize("NFC", root).rstrip("/") + "/" for root in roots}
    return sorted(spelled, key=len, reverse=True), {
        f"{posixpath.basename(r[:-1])}/" for r in spelled
    }


def below_root(name: str, base: Path) -> str:
    """Return a path of a table as one below ``base``, with '/', composed accents and no ``./``.

    Raises:
        CardError: it leads out of ``base``.
    """
    path = (name if name.isascii() else unicodedata.normalize("NFC", name)).strip()
    if "/" not in path and "\\" not in path and path != "..":
        return path
    path = path.replace("\\", "/")
    for root in _roots(base)[0] if path.startswith("/") or not base.is_absolute() else ():
        path = path.removeprefix(root)
    if path.startswith("/"):  # through a link, say
        path = os.path.realpath(path).removeprefix(f"{os.path.realpath(base)}/")
    path = posixpath.normpath(path)
    if path.startswith(("/", "../")) or path == ".." or re.match(r"[a-zA-Z]:/", path):
        raise CardError(f"{name!r} leads out of root {base}; give the path below it")
    return path


def _spellings(name: str, base: Path) -> list[str]:
    """Return a path below root, then the same without root's own name."""
    path = below_root(name, base)
    return [path, *(path.removeprefix(own) for own in _roots(base)[1] if path.startswith(own))]


def fields(template: str) -> list[str]:
    """Return the columns that a path template names: ``p{subject_id:.2}/{study_id}.txt``."""
    return [name for name, _ in FIELD.findall(template)]


def fill(template: str, frame: pd.DataFrame) -> pd.Series:
    """Return the path of each row by a template, missing where a cell of it is.

    ``{column}`` stands for a cell, ``{column:.2}`` for its first two characters.
    """
    first, *rest = FIELD.split(template)
    path = pd.Series(first, index=frame.index, dtype=str)
    for name, length, text in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        cells = frame[name].str.strip()
        path = path.str.cat([cells.str[: int(length)] if length else cells]) + text
    return path


def find_images(base: Path, patterns: Sequence[str], ids: pd.Series, rows: Rows) -> pd.Series:
    """Return the file of each image id, missing if there is none.

    An id is a file's path below root (with or without root's own name), its path below the fixed
    part of a pattern, or its name, each with or without suffix. Case counts only if it
    distinguishes two files. Patterns with ``{column}`` are templates, filled from the row.

    Args:
        base: root of the data set.
        patterns: globs and templates below root.
        ids: image ids; the index is that of ``rows``.
        rows: the table, for templates and messages.

    Raises:
        CardError: no file matches a pattern, no id names a file, an id names several files, two
            ids name one file, or an id leads out of root.
    """
    found: dict[str, str] = {}
    templates = [pattern for pattern in patterns if fields(pattern)]
    if templates and len(templates) < len(patterns):
        raise CardError("images: write globs or paths built from {columns}, not both")
    for template in templates:
        paths = fill(template, rows.frame.loc[ids.index])
        named = paths.map(find_filled(base, paths, template, rows)).dropna()
        found = dict(zip(ids[named.index], named, strict=True)) | found
    if templates and not found:
        raise CardError(
            f"none of {len(ids)} images is under {base} as {', '.join(templates)}: the first would "
            f"be {paths.iloc[0]!r}. Correct root, or `images` in the card"
        )
    if not templates:
        found = _find_named(base, patterns, ids, rows)
    for file in links_out(base, found.values()):
        place = rows.place(ids.index[ids.map(found) == file][0])
        raise CardError(f"{place}: column {ids.name!r}: {link_message(base, file)}")
    paths = ids.map(found)
    twice = paths[~ids.duplicated()].dropna()
    twice = twice[twice.duplicated(keep=False)].sort_values()
    if len(twice):
        same = twice[twice == twice.iloc[0]].index
        raise CardError(
            f"{rows.places(same)}: {ids[same[0]]!r} and {ids[same[1]]!r} name one file, "
            f"{twice.iloc[0]}"
        )
    return paths


def _find_named(base: Path, patterns: Sequence[str], ids: pd.Series, rows: Rows) -> dict[str, str]:
    """Return id -> file of those that some glob finds."""
    files: dict[str, str] = {}  # path below root: fixed part of the pattern that found it
    for pattern in patterns:
        fixed = re.match(r"(?:[^*?[]*/)?", pattern.replace("\\", "/").removeprefix("./"))
        files |= dict.fromkeys(matching_files(base, pattern), fixed[0] if fixed else "")
    if not files:
        raise CardError(_no_files(base, patterns, len(ids)))
    indexes = [_index(files, suffixes, fold) for suffixes, fold in ORDER]
    _roots.cache_clear()  # the folder that root leads to may have changed
    found: dict[str, str] = {}
    for name in ids.unique():
        try:
            spellings = _spellings(name, base)
        except CardError as error:
            place = rows.place(ids.index[ids == name][0])
            raise CardError(f"{place}: column {ids.name!r}: {error}") from None
        hits = (hit for spelling in spellings for index in indexes if (hit := index(spelling)))
        named = next(hits, [])
        if len(named) > 1:
            raise CardError(
                f"{rows.place(ids.index[ids == name][0])}: image {name!r} fits {len(named)} files "
                f"({', '.join(sorted(named)[:2])}). Give the path below root in column {ids.name!r}"
            )
        if named:
            found[name] = f"{base}/{named[0]}"
    if not found:
        raise CardError(
            f"none of {len(ids)} images is under {base} as {', '.join(patterns)}: {len(files)} "
            f"files fit the pattern, but no id names one. The first id is {ids.iloc[0]!r} (column "
            f"{ids.name!r}), the first file {next(iter(files))!r}: ids are file names or paths "
            "below root, with or without their suffix"
        )
    return found


def find_filled(base: Path, paths: pd.Series, template: str, rows: Rows) -> dict[str, str]:
    """Return path -> file of those filled into a template that name a file below root."""
    paths = paths.dropna()
    for row, path in paths[paths.str.contains(OUT)].items():
        try:
            check_text(path)
        except CardError as error:
            raise CardError(f"{rows.place(row)}: {template}: {error}") from None
    return find_listed(base, paths.unique())


def _no_files(base: Path, patterns: Sequence[str], n: int) -> str:
    """Return the message that no file matches the patterns."""
    files = matching_files(base, "**/*")
    image = next((f for f in files if f.lower().endswith(SUFFIXES + OTHER_SUFFIXES)), "")
    remedy = (
        f"There is {image!r}: correct `images` in the card"
        if image
        else "There is no image at all: correct root"
    )
    where = ", ".join(patterns) or "(the card names no pattern)"
    return f"none of {n} images is under {base} as {where}: no file fits the pattern. {remedy}"


def find_listed(base: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name -> file for each path below ``base`` that names a file.

    Raises:
        CardError: a path leads out of ``base``.
    """
    composed = cache(
        lambda folder: {unicodedata.normalize("NFC", f): f for f in _listing(base / folder)[1]}
    )
    _roots.cache_clear()
    found = {}
    for name in names:
        for spelling in _spellings(name, base):
            folder, file = posixpath.split(spelling)
            if file in composed(folder):
                found[name] = f"{base}/{posixpath.join(folder, composed(folder)[file])}"
                break
    return found


def _index(files: dict[str, str], suffixes: tuple[str, ...], fold: bool) -> Index:
    """Return a look-up of files by path, path below the pattern's fixed part, and file name.

    With ``suffixes``, names have lost one of them; with ``fold``, case does not count.
    """

    @cache
    def table() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for file, fixed in files.items():
            path = file if file.isascii() else unicodedata.normalize("NFC", file)
            if suffixes:
                path, suffix = posixpath.splitext(path)
                if suffix.lower() not in suffixes:
                    continue
            path, fixed = (path.casefold(), fixed.casefold()) if fold else (path, fixed)
            for each in (path, path.removeprefix(fixed), posixpath.basename(path)):
                hits = found.setdefault(each, [])
                if hits[-1:] != [file]:
                    hits.append(file)
        return found

    return lambda path: table().get(path.casefold() if fold else path, [])
