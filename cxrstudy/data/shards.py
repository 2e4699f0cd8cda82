"""Shards: the pixels of a data run, in files of up to some 10,000 images that are made one by one.

A shard holds the patients of one range of the hash that orders nested subsets, so that a small
subset lies in the first shards. Within a shard, images are in the order of the manifest. A shard
is named after what it holds: paths, sizes and times of the files, pixels, format. So a run that was
killed continues with the shards that are missing, and what another data run beside it has already
is copied, not read again.

Files of a data run: ``shards/NAME.npy`` or ``.arrow`` (pixels), ``shards/NAME.parquet`` (a row an
image, see ``Facts``), ``shards.json`` (each shard's images, bytes and SHA-256) and
``shards.parquet`` (shard and offset of each row of the manifest).
"""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from joblib.externals.loky import ProcessPoolExecutor

from cxrstudy.data.dicom import UnreadableImage
from cxrstudy.data.manifest import unit_hash
from cxrstudy.data.shardfiles import SUFFIX, jpeg, open_shard
from cxrstudy.files import replacing, write_text
from cxrstudy.progress import Progress

SIZE = 10_000  # images of a shard at most, on average; at least half of it
PART = 256, 2**24  # images read at a time at most, and their pixels
READER = 1  # raise it when ``images.read_image`` gives other pixels of a file than before
SCHEMA = pa.schema([("image", pa.binary())])
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # of each process
PASSING = {os.strerror(code) for code in errno.errorcode}  # reasons that may be gone next time

Found = tuple[np.ndarray, tuple[str, ...]] | UnreadableImage  # pixels and notes, or why none
Read = Callable[[Sequence[str], int], Iterable[Found]]  # paths, px -> what was found


class Facts(NamedTuple):
    """What is known of an image: ``total`` and ``squares`` sum its values and their squares.

    ``digest`` of the pixels is 0 if all are equal. ``reason`` and ``kind`` say why an image cannot
    be read, and are empty if it can; ``notes`` are the ways it is odd, joined by '|'.
    """

    key: int
    total: int
    squares: int
    digest: int
    reason: str
    kind: str
    notes: str


@dataclass(frozen=True)
class _Part:
    """Images of one shard that are read together; ``known`` are those that another shard has."""

    shard: int
    keys: list[int]
    paths: list[str]
    known: dict[int, tuple[Path, int, Facts]]


# ---- which images are together ------------------------------------------------------------------
def shard_numbers(manifest: pd.DataFrame, seed: int) -> np.ndarray:
    """Return the shard of each image (N,): a range of the hash of its patient, from 0."""
    count = 1
    while len(manifest) / count > SIZE:
        count *= 2  # so that most shards stay as they are when a few images are added
    patient = unit_hash(manifest["patient_id"], f"subset:{seed}")
    return np.unique((patient * count).astype(np.int32), return_inverse=True)[1]


def image_keys(paths: Sequence[str], names: Sequence[str], made_by: str) -> np.ndarray:
    """Return a hash (N,) uint64 of each image's name, size and time of its file, and ``made_by``.

    Args:
        paths: files, or what is drawn (``synthetic:...``), which has no file.
        names: the paths below root, so that a data set may move.
    """

    def key(pair: tuple[str, str]) -> bytes:
        path, name = pair
        stamp = (0, 0)
        with suppress(OSError):
            stat = os.stat(path)
            stamp = stat.st_size, stat.st_mtime_ns
        text = f"{READER}\0{made_by}\0{name}\0{stamp}"
        return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()

    with ThreadPoolExecutor(16) as pool:  # a file's state takes a millisecond over a network
        parts = pool.map(key, zip(paths, names, strict=True), chunksize=1000)
        return np.frombuffer(b"".join(parts), dtype="<u8").astype(np.uint64)


# ---- make ----------------------------------------------------------------------------------------
def make(
    out: Path,
    paths: Sequence[str],
    keys: np.ndarray,
    numbers: np.ndarray,
    *,
    read: Read,
    size: int,
    image_format: str,
    jobs: int,
    root: str = "",
    progress: Progress = iter,
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Make the shards that are not in ``out/shards`` yet.

    Args:
        paths: of N images; ``keys`` and ``numbers`` (N,): see ``image_keys``, ``shard_numbers``.
        read: reads some paths; the results do not depend on how many at a time.
        jobs: processes that read.
        root: folder of the files.

    Raises:
        UnreadableImage: root has vanished; what is made stays.

    Returns:
        ``Facts`` of each image with its ``shard`` and ``offset``, in the order of ``paths``; and
        of each shard: name, images, bytes, sha256.
    """
    folder = out / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.*"):  # of a run that was killed; see ``images.prepare`` for locks
        left.unlink()
    rows = [np.flatnonzero(numbers == k) for k in range(numbers.max() + 1)]
    seal = hashlib.blake2b(f"{image_format} {size}".encode(), digest_size=12)
    names = []
    for own in rows:
        named = seal.copy()
        named.update(keys[own].tobytes())
        names.append(named.hexdigest())
    with ThreadPoolExecutor() as pool:
        whole = list(pool.map(lambda name: _is_there(out, name, image_format), names))
    due = [k for k, found in enumerate(whole) if not found]
    known = _known(out, keys[np.concatenate([rows[k] for k in due])]) if due else {}
    step = max(16, min(PART[0], PART[1] // size**2))
    parts = [
        _Part(
            k,
            (some := keys[rows[k][start : start + step]]).tolist(),
            [paths[row] for row in rows[k][start : start + step]],
            {key: known[key] for key in some.tolist() if key in known},
        )
        for k in due
        for start in range(0, len(rows[k]), step)
    ]
    results = _in_order(partial(_read_part, read, size, image_format, root), parts, jobs)
    both = zip(progress(parts), results, strict=True)
    for k, group in groupby(both, key=lambda pair: pair[0].shard):
        made = (result for _, result in group)
        _write(folder / names[k], made, len(rows[k]), size, image_format)
    tables = [pq.read_table(folder / f"{name}.parquet") for name in names]
    frames = [
        table.to_pandas().assign(shard=k, offset=np.arange(len(table)))
        for k, table in enumerate(tables)
    ]
    facts = pd.concat(frames, ignore_index=True)
    facts.index = pd.Index(np.concatenate(rows))
    listed = [_about(name, table, image_format) for name, table in zip(names, tables, strict=True)]
    return facts.sort_index(), listed


def _in_order(function: Callable, parts: Sequence[Any], jobs: int) -> Iterator[Any]:
    """Yield the results of parts in their order; few wait, however slow the caller is."""
    if jobs == 1:
        yield from map(function, parts)
        return
    # a pool of its own: joblib's Parallel cannot use a reusable one that it has not made
    pool, waiting = ProcessPoolExecutor(jobs, env=ONE_THREAD), deque[Any]()
    try:
        for part in parts:
            waiting.append(pool.submit(function, part))
            if len(waiting) > 2 * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(kill_workers=True)


def _about(name: str, table: pa.Table, image_format: str) -> dict[str, Any]:
    own = {"file": name + SUFFIX[image_format], "images": len(table)}
    return own | {"bytes": int(table.schema.metadata[b"bytes"]), "sha256": _sha256_of(table)}


def _sha256_of(table: pa.Table) -> str:
    return table.schema.metadata[b"sha256"].decode()


def _is_there(out: Path, name: str, image_format: str) -> bool:
    """Return whether a shard is in ``out``, or in a data run beside it: then it is linked here."""
    file, table = (out / "shards" / f"{name}{end}" for end in (SUFFIX[image_format], ".parquet"))
    if not (file.is_file() and table.is_file()):
        for other in out.parent.glob(f"*/shards/{name}.parquet"):
            pixels = other.with_suffix(file.suffix)
            if pixels.is_file():
                _link(pixels, file)
                _link(other, table)
                break
        else:
            return False
    facts = pq.read_table(table, columns=["reason"])
    if not PASSING.isdisjoint(facts["reason"].unique().to_pylist()):
        return False
    if _sha256(file) == _sha256_of(facts):
        return True
    warnings.warn(f"{file} is damaged (its SHA-256 is another): it is made again", stacklevel=2)
    return False


def _link(source: Path, target: Path) -> None:
    with replacing(target) as scratch:
        try:
            os.link(source, scratch)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, scratch)


def _known(out: Path, keys: np.ndarray) -> dict[int, tuple[Path, int, Facts]]:
    """Return where pixels of some images are already, in this data run or one beside it."""
    found: dict[int, tuple[Path, int, Facts]] = {}
    for table in out.parent.glob("*/shards/*.parquet"):
        pixels = next(
            (f for end in SUFFIX.values() if (f := table.with_suffix(end)).exists()), None
        )
        there = pq.read_table(table, columns=["key"])["key"].to_numpy()
        at = np.flatnonzero(np.isin(there, keys))
        if pixels is None or not len(at):
            continue
        rows = pq.read_table(table).take(at).to_pylist()
        if _sha256(pixels) != pq.read_schema(table).metadata[b"sha256"].decode():
            continue
        for offset, row in zip(at.tolist(), rows, strict=True):
            found.setdefault(row["key"], (pixels, offset, Facts(**row)))
    return found


def _read_part(
    read: Read, size: int, image_format: str, root: str, part: _Part
) -> tuple[list[Facts], Any]:
    """Return facts and pixels of some images: uint8 (n, size, size), or JPEG files."""
    new = [key not in part.known for key in part.keys]
    fresh = iter(read([path for path, is_new in zip(part.paths, new, strict=True) if is_new], size))
    facts: list[Facts] = []
    pixels: list[Any] = []
    for key in part.keys:
        if key in part.known:
            file, offset, own = part.known[key]
            facts.append(own)
            stored = open_shard(file, file.stat().st_mtime_ns)[offset]
            pixels.append(stored if image_format == "raw" else stored.as_py())
            continue
        found = next(fresh)
        if isinstance(found, UnreadableImage):
            if root and found.reason in PASSING and not os.path.isdir(root):
                raise UnreadableImage(root, "root has vanished", "the same call resumes")
            facts.append(Facts(key, 0, 0, 0, str(found.reason), found.kind, ""))
            pixels.append(np.zeros((size, size), np.uint8) if image_format == "raw" else b"")
            continue
        image, notes = found
        facts.append(_facts(key, image, notes))
        pixels.append(image if image_format == "raw" else jpeg(image))
    return facts, np.stack(pixels) if image_format == "raw" else pixels


def _facts(key: int, image: np.ndarray, notes: tuple[str, ...]) -> Facts:
    counts = np.bincount(image.ravel(), minlength=256)
    total, squares = (int(counts @ np.arange(256) ** power) for power in (1, 2))
    flat = counts.max() == image.size
    digest = hashlib.blake2b(image.tobytes(), digest_size=8).digest()
    number = 0 if flat else int.from_bytes(digest, "little")
    return Facts(key, total, squares, number, "", "", "|".join(dict.fromkeys(notes)))


def _write(
    stem: Path, results: Iterable[tuple[list[Facts], Any]], n: int, size: int, image_format: str
) -> None:
    """Write a shard's pixels, then its table: a shard with a table is whole."""
    facts: list[Facts] = []
    file = stem.with_suffix(SUFFIX[image_format])
    with replacing(file) as scratch:
        with _writer(scratch, n, size, image_format) as write:
            for own, pixels in results:
                facts += own
                write(pixels)
        about = {"sha256": _sha256(scratch), "bytes": str(scratch.stat().st_size)}
    frame = pd.DataFrame(facts).astype(dict.fromkeys(("key", "squares", "digest"), np.uint64))
    with replacing(stem.with_suffix(".parquet")) as scratch:
        table = pa.Table.from_pandas(frame, preserve_index=False)
        pq.write_table(table.replace_schema_metadata(about), scratch)


@contextmanager
def _writer(path: Path, n: int, size: int, image_format: str) -> Iterator[Callable[[Any], Any]]:
    """Give what appends pixels to a file; written, not mapped, so that a full disk is an error."""
    if image_format == "raw":
        about = {"descr": "|u1", "fortran_order": False, "shape": (n, size, size)}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, about)
            yield lambda pixels: file.write(memoryview(pixels))
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            yield lambda files: writer.write_batch(
                pa.record_batch([pa.array(files, pa.binary())], schema=SCHEMA)
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish(
    out: Path, facts: pd.DataFrame, listed: list[dict[str, Any]], size: int, image_format: str
) -> None:
    """Write where the image of each row is, and remove files of other contents from ``out``."""
    table = pa.table({name: facts[name].to_numpy(np.int32) for name in ("shard", "offset")})
    with replacing(out / "shards.parquet") as scratch:
        pq.write_table(table, scratch)
    about = {"size": size, "format": image_format, "shards": listed}
    write_text(out / "shards.json", json.dumps(about, indent=1))
    kept = {Path(shard["file"]).stem for shard in listed}
    for file in [*(out / "shards").iterdir(), *out.glob("images.npy"), *out.glob(".images.*.npy")]:
        if file.stem not in kept:
            file.unlink()
