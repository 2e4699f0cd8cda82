"""Files below a folder, found by patterns, and the one that each id or path of a table names."""

import fnmatch
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from cxrstudy.data.tables import CardError, Rows

SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")
OTHER_PICTURES = (
    ".tif",
    ".tiff",
    ".bmp",
    ".jp2",
    ".jpe",
    ".ima",
    ".webp",
    ".gif",
)  # found, so that they are told
Listing = tuple[tuple[str, ...], tuple[str, ...]]  # folders, files
Index = Callable[[str], set[str]]  # a name as a table writes it -> the files that it may mean


def matching_files(base: Path, pattern: str) -> list[str]:
    """Return the files below ``base`` that fit a glob, as paths below it with '/'.

    ``**`` stands for any number of folders, none too; a trailing ``**`` for every file below. Case does not count
    (``*.png`` fits ``X.PNG``). Hidden files fit only where the pattern begins with a dot; links are followed, once.
    """
    parts = [part for part in pattern.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts or re.match(r"/|[a-zA-Z]:", pattern):
        raise CardError(f"images: {pattern!r} leads out of root; write where images lie below it")
    parts += ["*"] if parts[-1:] == ["**"] else []
    found: dict[str, None] = {}

    @cache
    def listing(folder: str) -> Listing:
        return _listing(base / folder)

    def expand(folder: str, parts: Sequence[str], above: tuple[tuple[int, int], ...]) -> None:
        folders, files = listing(folder)
        head, rest = parts[0], parts[1:]
        if head == "**":
            stat = os.stat(base / folder)
            here = (stat.st_dev, stat.st_ino)
            if here in above:  # a link that leads to a folder it lies in
                return
            expand(folder, rest, above)
            for name in folders:
                if not name.startswith("."):
                    expand(posixpath.join(folder, name), parts, (*above, here))
            return
        exact = [name for name in (folders if rest else files) if name == head]
        fits = _fits(head)
        for name in (
            exact
            if exact and not re.search(r"[*?[]", head)
            else filter(fits, folders if rest else files)
        ):
            path = posixpath.join(folder, name)
            if rest:
                expand(path, rest, above)
            else:
                found[path] = None

    if parts:
        expand("", parts, ())
    return sorted(found)


def _fits(part: str) -> Callable[[str], bool]:
    fits = re.compile(fnmatch.translate(part), re.IGNORECASE).match
    return lambda name: bool(fits(name)) and name.startswith(".") == part.startswith(".")


def _listing(folder: Path) -> Listing:
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.name)
    except OSError:  # absent, or not to be read
        pass
    return tuple(sorted(folders)), tuple(sorted(files))


@cache
def _roots(base: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How paths of a table may begin with root: the whole of it, or its own name."""
    roots = (base.as_posix(), base.absolute().as_posix(), os.path.realpath(base))
    spelled = {unicodedata.normalize("NFC", root).rstrip("/") + "/" for root in roots}
    return tuple(sorted(spelled, key=len, reverse=True)), tuple(
        {f"{posixpath.basename(r[:-1])}/" for r in spelled}
    )


def below_root(name: str, base: Path) -> str:
    """Return a path of a table as one below ``base``, with '/', composed accents and no ``./``.

    Raises CardError where it leads out of ``base``.
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


def find_images(base: Path, patterns: Sequence[str], ids: pd.Series, rows: Rows) -> pd.Series:
    """Return the file of each image id, missing where there is none.

    An id names a file by its path below root (also one that begins with root's own name) or below the fixed part of a
    pattern, or by its file name, each also without its suffix. Case counts only where it tells two files apart.

    Raises CardError: no file fits a pattern, no id fits a file, an id fits several files, two ids fit one file, or an
    id leads out of root.
    """
    files: dict[str, str] = {}  # path below root: fixed part of the pattern that found it
    for pattern in patterns:
        fixed = re.match(r"(?:[^*?[]*/)?", pattern.replace("\\", "/").removeprefix("./"))
        files |= dict.fromkeys(matching_files(base, pattern), fixed[0] if fixed else "")
    if not files:
        seen = next(
            (
                f
                for f in matching_files(base, "**/*")
                if f.lower().endswith(SUFFIXES + OTHER_PICTURES)
            ),
            "",
        )
        raise CardError(
            f"none of {len(ids)} images lies under {base} as {', '.join(patterns) or '(the card names no pattern)'}: "
            "no file fits the pattern. "
            + (
                f"There is {seen!r}: mend `images` in the card"
                if seen
                else "No image lies there at all: mend root"
            )
        )
    tiers = [
        _index(files, names, fold)
        for names, fold in ((_whole, False), (_stem, False), (_whole, True))
    ]
    tiers += [_index(files, _stem, True), _index(files, _other_stem, True)]
    _roots.cache_clear()  # the folder that root leads to may have changed
    found: dict[str, str] = {}
    for name in ids.unique():
        try:
            path = below_root(name, base)
        except CardError as error:
            raise CardError(
                f"{rows.place(ids.index[ids == name][0])}: column {ids.name!r}: {error}"
            ) from None
        spelled = (
            path,
            *(path.removeprefix(own) for own in _roots(base)[1] if path.startswith(own)),
        )
        hits = next(
            (files_ for each in spelled for index in tiers if (files_ := index(each))), set()
        )
        if len(hits) > 1:
            raise CardError(
                f"{rows.place(ids.index[ids == name][0])}: image {name!r} fits {len(hits)} files "
                f"({', '.join(sorted(hits)[:2])}); let column {ids.name!r} hold the path below root"
            )
        if hits:
            found[name] = f"{base}/{next(iter(hits))}"
    if not found:
        raise CardError(
            f"none of {len(ids)} images lies under {base} as {', '.join(patterns)}: {len(files)} files fit the "
            f"pattern, but no id names one. The first id is {ids.iloc[0]!r} (column {ids.name!r}), the first file "
            f"{next(iter(files))!r}: ids are file names or paths below root, with or without their suffix"
        )
    paths = ids.map(found)
    twice = paths.dropna()
    twice = twice[twice.duplicated(keep=False)].sort_values()
    if len(twice):
        same = twice[twice == twice.iloc[0]].index
        raise CardError(
            f"{rows.places(same)}: {ids[same[0]]!r} and {ids[same[1]]!r} name one file, {twice.iloc[0]}"
        )
    return paths


def find_listed(base: Path, names: Iterable[str]) -> dict[str, str]:
    """Return, of paths below ``base``, those that name a file: name -> file. CardError where one leads out of base."""
    listing = cache(
        lambda folder: {
            unicodedata.normalize("NFC", file): file for file in _listing(base / folder)[1]
        }
    )
    _roots.cache_clear()
    found = {}
    for name in names:
        path = below_root(name, base)
        for each in (path, *(path.removeprefix(own) for own in _roots(base)[1])):
            folder, file = posixpath.split(each)
            if file in listing(folder):
                found[name] = f"{base}/{posixpath.join(folder, listing(folder)[file])}"
                break
    return found


def _whole(path: str) -> str:
    return path


def _stem(path: str) -> str | None:
    stem, suffix = posixpath.splitext(path)
    return stem if suffix.lower() in SUFFIXES else None


def _other_stem(path: str) -> str | None:
    stem, suffix = posixpath.splitext(path)
    return stem if suffix.lower() in OTHER_PICTURES else None


def _index(files: dict[str, str], name: Callable[[str], str | None], fold: bool) -> Index:
    """Names of files, made when first asked for: path, path below the pattern's fixed part and file name."""

    @cache
    def table() -> tuple[dict[str, str], dict[str, set[str]]]:
        one: dict[str, str] = {}
        several: dict[str, set[str]] = {}
        for file, fixed in files.items():
            path = name(file if file.isascii() else unicodedata.normalize("NFC", file))
            if path is not None:
                path, fixed = (path.casefold(), fixed.casefold()) if fold else (path, fixed)
                for each in (path, path.removeprefix(fixed), posixpath.basename(path)):
                    if one.setdefault(each, file) != file:
                        several.setdefault(each, {one[each]}).add(file)
        return one, several

    def files_of(path: str) -> set[str]:
        one, several = table()
        key = path.casefold() if fold else path
        return several.get(key) or ({one[key]} if key in one else set())

    return files_of
