"""Read the images of a data run from its shards (see ``shards``), as if they were one array."""

import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

QUALITY = 95  # of JPEG
SUFFIX = {"raw": ".npy", "jpeg": ".arrow"}
OPEN = 512  # files kept open: systems allow 1,024
THREADS = min(4, os.cpu_count() or 1)  # that decode a batch


class Images:
    """The images of a data run, uint8 (N, size, size): row i is row i of the manifest.

    Indexed as an array is, it reads what is asked for; ``np.asarray`` reads all.
    """

    dtype, ndim = np.dtype(np.uint8), 3

    def __init__(self, folder: Path):
        about = json.loads((folder / "shards.json").read_text())
        self.files = [folder / "shards" / shard["file"] for shard in about["shards"]]
        for file, shard in zip(self.files, about["shards"], strict=True):
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise FileNotFoundError(
                    f"{file} is missing or cut short: delete {folder / 'prepared.json'} and run "
                    "data.ipynb again, which makes only this shard"
                )
        self.encoded = about["format"] != "raw"
        self.changed = [file.stat().st_mtime_ns for file in self.files]
        table = pq.read_table(folder / "shards.parquet")
        self.shard, self.offset = (table[name].to_numpy() for name in ("shard", "offset"))
        self.shape = (len(self.shard), about["size"], about["size"])

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return the images (..., size, size) of a row, a slice, a mask or an array of rows."""
        shard, offset = self.shard[rows], self.offset[rows]
        images = np.empty((*shard.shape, *self.shape[1:]), np.uint8)
        flat = images.reshape(-1, *self.shape[1:])

        def read(image: np.ndarray, k: int, at: int) -> None:
            stored = open_shard(self.files[k], self.changed[k])[at]
            image[:] = stored if isinstance(stored, np.ndarray) else decoded(stored.as_py())

        asked = flat, shard.ravel().tolist(), offset.ravel().tolist()
        if self.encoded and len(flat) > 1:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(read, *asked))
        else:
            list(map(read, *asked))
        return images

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)


def decoded(file: bytes) -> np.ndarray:
    """Return the pixels uint8 (H, W) of an image file in memory."""
    return np.asarray(Image.open(io.BytesIO(file)))


@lru_cache(OPEN)
def open_shard(path: Path, changed: int) -> Any:
    """Return the images of a shard, last ``changed`` then, by offset: pixels, or JPEG files."""
    if path.suffix == SUFFIX["raw"]:
        return np.load(path, mmap_mode="r").view(np.ndarray)
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)


def jpeg(image: np.ndarray) -> bytes:
    """Return an image uint8 (H, W) as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
