"""Replace ids by keyed hashes: a guessed id cannot be hashed without the key file."""

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas as pd

from cxrstudy import study

Kind = Literal["patient", "study", "image"]
KINDS: tuple[Kind, ...] = ("patient", "study", "image")
DIGITS = 16  # 64 bits: two of 10 million ids collide with a probability of 3 in a million


def load_key(path: str | Path, inside: Iterable[str | Path] = ()) -> bytes:
    """Return the key (32 bytes) in a file, which is made if it is absent.

    Args:
        path: the key file, readable and writable by its owner alone (mode 600).
        inside: folders that may be passed on, so that the key must not be in them: the ingest
            folder, the walked folders. The clone always counts.

    Raises:
        StudyError: the file is in such a folder, others can read it, or it holds no key.
    """
    given = Path(path).expanduser()
    path = given.resolve()
    for folder in (*inside, study.root()):
        if path.is_relative_to(Path(folder).expanduser().resolve()):
            raise study.StudyError(
                f"key file {given} is inside {folder}: whoever gets that folder could undo the "
                "hashes. Give a place outside, as --key ~/.config/cxrstudy/NAME.key"
            )
    if not path.exists():
        _make_key(path)
    try:
        mode, text = stat.S_IMODE(path.stat().st_mode), path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise study.StudyError(f"key file {given} cannot be read ({error}): {OTHER}") from None
    if mode & 0o077:
        raise study.StudyError(
            f"key file {given} has mode {mode:o}, so that others may read it: chmod 600 {given}"
        )
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise study.StudyError(f"key file {given} is not 64 hexadecimal digits: {OTHER}")
    return bytes.fromhex(text)


OTHER = (
    "restore it from a backup, or name another file with --key (a new key gives every image, "
    "study and patient a new id, so ingest into a new folder)"
)


def _make_key(path: Path) -> None:
    """Write a new random key, with mode 600 from its first byte; never over a file."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another ingest was faster
        return
    except OSError as error:
        raise study.StudyError(
            f"key file {path} cannot be made ({error.strerror}): name another with --key"
        ) from None
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32) + "\n")


def pseudonym(kind: Kind, value: str, key: bytes) -> str:
    """Return the keyed hash of an id in 16 hexadecimal digits.

    One value has different hashes as patient, study and image. Spellings of one id must have
    become one before (``data.ids.normal_id``).

    Raises:
        ValueError: an unknown kind, or an empty value, which would make one of many.
    """
    if kind not in KINDS:
        raise ValueError(f"a pseudonym is of {', '.join(KINDS)}, not of {kind!r}")
    if not value:
        raise ValueError(f"a {kind} without an id has no pseudonym: drop or set it aside before")
    hashed = hashlib.blake2b(key=key, digest_size=DIGITS // 2, person=kind.encode())
    hashed.update(value.encode("utf-8", errors="surrogateescape"))  # file names may be no UTF-8
    return hashed.hexdigest()


def pseudonyms(kind: Kind, values: pd.Series, key: bytes) -> pd.Series:
    """Return the keyed hashes of a column of ids.

    Raises:
        StudyError: two ids have one hash.
    """
    known = {value: pseudonym(kind, value, key) for value in values.unique()}
    check_collisions(kind, known)
    return values.map(known)


def check_collisions(kind: Kind, known: dict[str, str]) -> None:
    """Refuse a map of ids to hashes that makes one of two ids.

    Raises:
        StudyError: so; the ids are not named, because messages are kept.
    """
    if lost := len(known) - len(set(known.values())):
        raise study.StudyError(
            f"{lost} of {len(known)} {kind} ids have the hash of another: ingest into a new folder "
            "with a new key (--key)"
        )


def key_mark(key: bytes) -> str:
    """Return 8 digits that tell one key from another, to be kept beside what it has hashed."""
    return hashlib.blake2b(key=key, digest_size=4, person=b"mark").hexdigest()
