"""Data sets in a bucket: a root such as s3://bucket/folder, read through fsspec.

A view of the bucket is a folder here: tables, reports and what the card names beside images are
copied; every other file is an empty one of the same size and time. So patterns, spellings, checks
of paths and digests are those of a folder. An image is fetched when it is read.
"""

import fnmatch
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from cxrstudy import study
from cxrstudy.data.below import check_text
from cxrstudy.data.tables import CardError
from cxrstudy.files import is_remote, replacing


def place(root: str | Path) -> Path:
    """Return the folder that stands for ``root``: itself, or the view of a bucket."""
    if not is_remote(root):
        return Path(root).expanduser()
    name = study.digest(str(root).rstrip("/"), 12)
    return study.runs_root() / "scratch" / "remote" / name


def local(path: str, root: str | Path) -> str:
    """Return the file that stands here for one below ``root``."""
    top = f"{str(root).rstrip('/')}/"
    return f"{place(root)}/{path.removeprefix(top)}" if is_remote(root) else path


def view(root: str | Path, patterns: tuple[str, ...]) -> Path:
    """Return the folder that stands for ``root``, a bucket's filled and up to date.

    Args:
        patterns: globs and templates of the files to copy.

    Raises:
        CardError: the bucket cannot be read, or a name in it leads out of root.
    """
    return _fill(str(root), patterns) if is_remote(root) else place(root)


@lru_cache(8)  # listed once a process: a study names a data set many times
def _fill(root: str, patterns: tuple[str, ...]) -> Path:
    system, top = _system(root)
    try:
        found = system.find(top, detail=True)
    except Exception as error:  # every service raises its own
        raise CardError(
            f"root {root}: cannot be listed ({type(error).__name__}: {error})"
        ) from None
    if not found:
        raise CardError(f"root {root}: there is no file")
    globs = [re.sub(r"\{[^}]*\}", "*", pattern).replace("**/", "*") for pattern in patterns]
    base, names = place(root), set()
    for path, info in found.items():
        name = check_text(path.removeprefix(f"{top}/"))
        names.add(name)
        changed = next(
            (info[key] for key in ("LastModified", "mtime", "created") if info.get(key)), 0
        )
        stamp = changed.timestamp() if isinstance(changed, datetime) else float(changed)
        file = base / name
        stat = file.stat() if file.is_file() else None
        if stat and (stat.st_size, stat.st_mtime) == (info["size"], stamp):
            continue
        with replacing(file) as scratch:
            if any(fnmatch.fnmatch(name, glob) for glob in globs):
                system.get_file(path, str(scratch))
            else:
                scratch.touch()
                os.truncate(scratch, info["size"])
            os.utime(scratch, (stamp, stamp))
    for file in base.rglob("*"):
        if file.is_file() and file.relative_to(base).as_posix() not in names:
            file.unlink()
    return base


def _system(path: str) -> tuple[Any, str]:
    import fsspec  # which most calls do without

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise CardError(
            f"{path}: {error}. Buckets need an extra: pip install 'cxrstudy[cloud]' (S3), or "
            "fsspec's package for yours (gcsfs, adlfs)"
        ) from None


@contextmanager
def fetched(path: str | Path) -> Iterator[Path]:
    """Give a file here with the content of ``path``, which may be in a bucket.

    Raises:
        FileNotFoundError: it is not there.
        StudyError: it cannot be fetched.
    """
    if not is_remote(path):
        yield Path(path)
        return
    system, name = _system(str(path))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / posixpath.basename(name)
        try:
            system.get_file(name, str(file))
        except FileNotFoundError:
            raise
        except Exception as error:  # not the image's fault: it must not be set aside
            raise study.StudyError(
                f"{path} cannot be fetched ({type(error).__name__}: {error}); the same call resumes"
            ) from error
        yield file
