"""Look at the pixels of each image once: hashes, burned-in text, greys and a small copy.

What was seen is stored below ``private``, in parts, so that a killed ingest continues, and a later
one looks only at images that are new or changed.
"""

import hashlib
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from joblib import Parallel, delayed

from cxrstudy import study
from cxrstudy.data import odd
from cxrstudy.data.dicom import UnreadableImage
from cxrstudy.data.images import read_whole, square
from cxrstudy.files import replacing
from cxrstudy.ingest.burned import burned_in_text
from cxrstudy.ingest.duplicates import HASHES, hash_image
from cxrstudy.ingest.views import SIZE
from cxrstudy.progress import Progress

BATCH = 64  # images that one process looks at between two writes
BINS = np.linspace(0, 256, 33)  # of grey values
SEEN = ("fault", "burned", *HASHES, "grey")
FORM = "1"  # of the stored columns


def look(
    frame: pd.DataFrame, private: Path, workers: int = 1, progress: Progress = iter
) -> pd.DataFrame:
    """Return of each row what its pixels show: ``SEEN``, indexed as ``frame``.

    ``fault`` is the kind of fault of an image that cannot be read, else "". ``burned`` is the
    score of ``burned_in_text``, ``grey`` the share of pixels in each of 32 bins of grey values.

    Args:
        frame: path, size and mtime of images.
        private: folder for what was seen.
        workers: processes.
        progress: wraps the iteration over batches.
    """
    store = private / "pixels"
    store.mkdir(parents=True, exist_ok=True)
    known = _load(store, [*SEEN])
    rows = frame[["path", "size", "mtime"]]
    files = (each for each in rows.itertuples(index=False, name=None) if each not in known.index)
    batches = iter(lambda: list(islice(files, BATCH)), [])
    jobs = list(batches)
    work = Parallel(n_jobs=workers, return_as="generator_unordered")(
        delayed(_look_batch)(batch, store) for batch in jobs
    )
    for _ in zip(progress(range(len(jobs))), work, strict=True):
        pass
    known = _load(store, [*SEEN]) if jobs else known
    return known.reindex(_keys(rows)).set_axis(frame.index)


def hashes_of(place: Path) -> pd.DataFrame:
    """Return image_id and HASHES of the images of an ingest folder, as its ingest saw them.

    Raises:
        StudyError: nothing was seen: its private part is gone, or it did not end.
    """
    links = {os.readlink(link): link.name for link in place.glob("images/*/*") if link.is_symlink()}
    known = _load(place / "private" / "pixels", [*HASHES]).reset_index()
    known["image_id"] = known["path"].map(links)
    known = known.dropna(subset="image_id").drop_duplicates("image_id", keep="last")
    if known.empty:
        raise study.StudyError(f"{place} has no pixels that were looked at: finish its ingest")
    return known[["image_id", *HASHES]].reset_index(drop=True)


def thumbs(frame: pd.DataFrame, private: Path) -> np.ndarray:
    """Return small copies (N, 64, 64) uint8 of images that ``look`` has seen."""
    known = _load(private / "pixels", ["thumb"], set(_keys(frame)))
    found = known["thumb"].reindex(_keys(frame))
    return np.stack([np.frombuffer(each, np.uint8).reshape(SIZE, SIZE) for each in found])


def _keys(frame: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(frame[["path", "size", "mtime"]])


def _load(store: Path, columns: list[str], only: set[Any] | None = None) -> pd.DataFrame:
    """Return stored columns by (path, size, mtime); a part that cannot be read is made again."""
    parts = []
    for file in sorted(store.glob(f"{FORM}-*.parquet")):
        try:
            part = pq.read_table(file, columns=["path", "size", "mtime", *columns]).to_pandas()
        except (OSError, pa.ArrowException):
            file.unlink()
            continue
        part["path"] = [os.fsdecode(path) for path in part["path"]]
        part = part.set_index(["path", "size", "mtime"])
        parts.append(part if only is None else part[part.index.isin(only)])
    if not parts:
        empty = pd.MultiIndex.from_arrays([[], [], []], names=["path", "size", "mtime"])
        return pd.DataFrame({name: [] for name in columns}, index=empty)
    whole = pd.concat(parts)
    return whole[~whole.index.duplicated()]


def _look_batch(files: list[tuple[str, int, int]], store: Path) -> None:
    """Look at some images and write one part of the store."""
    paths = [path for path, _, _ in files]
    seen = pd.DataFrame([_look_at(path) for path in paths])
    columns: dict[str, Any] = {"path": pa.array([os.fsencode(path) for path in paths], pa.binary())}
    columns["size"] = pa.array([size for _, size, _ in files], pa.int64())
    columns["mtime"] = pa.array([mtime for _, _, mtime in files], pa.int64())
    columns |= {name: pa.array(list(seen[name])) for name in (*SEEN, "thumb")}
    name = hashlib.blake2b(repr(files).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    with replacing(store / f"{FORM}-{name}.parquet") as scratch:
        pq.write_table(pa.table(columns), scratch, compression="zstd")


def _look_at(path: str) -> dict[str, Any]:
    """Return `SEEN` and thumb of one image."""
    none: dict[str, Any] = {"burned": 0.0, "grey": [0.0] * (len(BINS) - 1)}
    none |= {"thumb": bytes(SIZE * SIZE), **dict.fromkeys(HASHES, "")}
    try:
        image, _ = read_whole(path)
        small = square(image, SIZE)
    except UnreadableImage as error:
        return {"fault": error.kind, **none}
    except Exception as error:  # one image must not end an ingest
        return {"fault": f"damaged ({type(error).__name__})", **none}
    if small.min() == small.max():
        return {"fault": odd.CONSTANT, **none}
    grey = np.asarray(image, dtype=np.float32)
    counts = np.histogram(grey[::4, ::4], BINS)[0]
    return {
        "fault": "",
        "burned": float(burned_in_text(grey / 255)),
        "grey": list(counts / max(1, counts.sum())),
        "thumb": small.tobytes(),
        **dict.fromkeys(HASHES, ""),
        **hash_image(image),
    }
