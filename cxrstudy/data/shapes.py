"""Masks that are not files: run lengths and polylines, as references in a manifest.

A cell of a column ``mask:DEVICE`` has a line for each mask, which are united. A line is the path of
a file or a reference, ``rle:HEIGHTxWIDTH:FLAGS:RUNS`` or ``line:HEIGHTxWIDTH:THICKNESS:POINTS``.
The size 0x0 is that of the image itself.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cxrstudy.data.dicom import MAX_PIXELS
from cxrstudy.data.filetypes import DICOM, what_is
from cxrstudy.data.remote import fetched

KINDS = ("rle:", "line:")
TURNED = (5, 6, 7, 8)  # values of the EXIF tag Orientation that exchange rows and columns
ORIENTATION = 0x0112
OWN = (0, 0)  # the size of the image itself


def is_reference(line: str) -> bool:
    """Return whether a line of a mask's cell is no path."""
    return line.startswith(KINDS)


def map_files(cell: Any, change: Callable[[str], str]) -> Any:
    """Return the cell of a mask column with ``change`` applied to each path in it."""
    if not isinstance(cell, str) or not cell:
        return cell
    lines = cell.split("\n")
    return "\n".join(line if is_reference(line) else change(line) for line in lines)


def files_of(cell: str) -> list[str]:
    """Return the paths in the cell of a mask column."""
    return [line for line in cell.split("\n") if line and not is_reference(line)]


def run_lengths(
    text: str, size: tuple[int, int], *, relative: bool, transposed: bool, first: int
) -> str:
    """Return the reference of a mask given as run lengths.

    Args:
        text: pairs of an offset and a length.
        size: height and width; ``OWN`` for those of the image.
        relative: offsets count from the end of the previous run.
        transposed: runs go down columns.
        first: number of the first pixel, 0 or 1.

    Raises:
        ValueError: ``text`` holds something else than pairs, or runs that leave the image.
    """
    runs = _runs(text)
    starts, lengths = _absolute(runs, relative, first)
    flags = f"{'r' * relative}{'t' * transposed}{first}"
    if (lengths < 0).any() or (starts < 0).any() or (relative and (runs < 0).any()):
        raise ValueError("a run begins before the first pixel, or has a negative length")
    if size != OWN:
        _check_inside(starts, lengths, size)
    return f"rle:{size[0]}x{size[1]}:{flags}:{' '.join(map(str, runs.ravel()))}"


def polyline(text: str, size: tuple[int, int], width: int) -> str:
    """Return the reference of a line of ``width`` px through ``text``, ``[[x, y], ...]`` (JSON).

    Raises:
        ValueError: there are no two points of two numbers.
    """
    try:
        points = np.asarray(json.loads(text), dtype=np.float64)
    except (TypeError, RecursionError) as error:  # an object, or lists nested deeply
        raise ValueError(f"no points: {error}") from None
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not np.isfinite(points).all():
        raise ValueError("expected two points or more, each [x, y]")
    written = " ".join(f"{x:g},{y:g}" for x, y in points.round(2))
    return f"line:{size[0]}x{size[1]}:{width}:{written}"


def draw(reference: str, image: str | Path) -> np.ndarray:
    """Return the mask of a reference, bool (H,W), in the pixels that it refers to.

    Args:
        reference: as ``run_lengths`` or ``polyline`` give.
        image: file of the x-ray, opened if the reference has no size of its own.

    Raises:
        ValueError: runs leave the image, or the size is absurd.
        OSError: the image cannot be opened.
    """
    kind, size, how, what = reference.split(":", 3)
    height, width = map(int, size.split("x"))
    if (height, width) == OWN:
        height, width = image_shape(image)
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"absurd dimensions: {height} rows, {width} columns")
    if kind == "line":
        canvas = Image.new("1", (width, height))
        points = [tuple(map(float, point.split(","))) for point in what.split()]
        ImageDraw.Draw(canvas).line(points, fill=1, width=int(how), joint="curve")
        return np.array(canvas, dtype=bool)
    starts, lengths = _absolute(_runs(what), "r" in how, int(how[-1]))
    _check_inside(starts, lengths, (height, width))
    edges = np.zeros(height * width + 1, np.int32)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + lengths, -1)
    on = edges.cumsum()[:-1] > 0
    return on.reshape(width, height).T if "t" in how else on.reshape(height, width)


def image_shape(path: str | Path) -> tuple[int, int]:
    """Return rows and columns of an image file as it is read, upright, from its header alone."""
    with fetched(path) as file:
        return _shape_of(file)


def _shape_of(path: Path) -> tuple[int, int]:
    if what_is(path) == DICOM:
        import pydicom

        tags = ["Rows", "Columns"]
        ds = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
        return int(ds.Rows), int(ds.Columns)
    with Image.open(path) as file:
        rows, columns = file.height, file.width
        turned = file.getexif().get(ORIENTATION) in TURNED
    return (columns, rows) if turned else (rows, columns)


def _runs(text: str) -> np.ndarray:
    """Return pairs of offset and length, int64 (K,2)."""
    try:
        numbers = np.array(text.replace(",", " ").split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise ValueError("run lengths are whole numbers with blanks between them") from None
    if len(numbers) % 2 or not len(numbers):
        raise ValueError(f"run lengths are pairs of offset and length, but {len(numbers)} numbers")
    return numbers.reshape(-1, 2)


def _absolute(runs: np.ndarray, relative: bool, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where runs begin, from 0, and how long they are."""
    starts, lengths = runs.T
    if relative:
        starts = starts.cumsum() + lengths.cumsum() - lengths
    return starts - first, lengths


def _check_inside(starts: np.ndarray, lengths: np.ndarray, size: tuple[int, int]) -> None:
    end, pixels = int((starts + lengths).max()), size[0] * size[1]
    if end > pixels:
        raise ValueError(
            f"a run ends at pixel {end:,}, but {size[0]} x {size[1]} has {pixels:,}: is `size` "
            "that of the masks, and `relative` right?"
        )
