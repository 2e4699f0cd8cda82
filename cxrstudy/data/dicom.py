"""Read DICOM files as images with bone bright."""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom import uid
from pydicom.errors import InvalidDicomError

from cxrstudy.data import bits
from cxrstudy.data.filetypes import BARE, what_is
from cxrstudy.data.greyscale import bone_bright

MAX_PIXELS = 100_000_000  # a stitched long-leg film has some 50 million, a chest detector under 20
MAX_PER_BYTE = 200  # pixels a byte of compressed data: an x-ray at 1:100 is past use
MAX_BYTES = 2**28  # of a file, and of one that is deflated as a whole
COPY = "copy or export the file again, or leave it out"
GREY = "export one grey frame of it, or leave it out"
INSTALL = "pip install python-gdcm pyjpegls pillow, or decompress the file with another tool"
TAGS = "correct the tags that say how its pixels are stored, export the file again, or leave it out"


class UnreadableImage(Exception):
    """A file from which no x-ray can be read: ``.path``, ``.reason``, ``.remedy``, ``.kind``."""

    def __init__(self, path: str | Path, reason: str, remedy: str = COPY, kind: str = "") -> None:
        super().__init__(path, reason, remedy, kind)  # all arguments, so that it can be pickled
        self.path, self.reason, self.remedy = path, reason, remedy
        self.kind = kind or reason.split(" (")[0].split(":")[0]

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}. What helps: {self.remedy}."


def read_dicom(path: str | Path) -> np.ndarray:
    """Read the x-ray of a Part 10 file or a bare data set: float32 (H, W) in [0, 1], bone bright.

    The steps follow DICOM: stored bits (``bits.stored_values``), modality LUT or rescale, VOI LUT
    or window, scaling, inversion of MONOCHROME1. PresentationLUTShape is ignored: it repeats the
    photometric interpretation (in all 2,129 Open-i headers that have it), and some files err.

    With a VOI transform, 0 and 1 are the ends of its output range, as on a reading screen, so that
    neither the brightest pixel nor the collimation changes a tissue's intensity. A LUT's range is
    the bits that its largest entry needs: 10-bit entries are sometimes declared as 16. Without a
    usable transform (``greyscale.bone_bright``), 0 and 1 are the image's smallest and largest
    value. An image of one value becomes zeros. Padding never counts, and is black.

    Raises:
        UnreadableImage: and nothing else, if the file is absent or not DICOM, holds no image,
            colour or several frames, has absurd dimensions, is cut short, has tags that do not fit
            its pixel data, or needs a codec that is not installed.
    """
    return read_with_notes(path)[0]


def read_with_notes(path: str | Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the image as ``read_dicom`` does, and a note on each tag that was overruled."""
    ds = _load(path)
    with _unreadable(path, "its image attributes are broken"):
        allocated = int(ds.get("BitsAllocated") or 0)
        if fault := _fault(ds, allocated):
            raise UnreadableImage(path, *fault)
    try:
        pixels, notes = bits.stored_values(ds)
    except bits.UnfitTags as error:
        raise UnreadableImage(path, str(error), TAGS) from error
    except bits.NoCodec as error:
        raise UnreadableImage(path, f"{error} is installed", INSTALL) from error
    except Exception as error:
        reason = (
            f"pixel data damaged ({ds.file_meta.TransferSyntaxUID.name}: {_on_one_line(error)})"
        )
        raise UnreadableImage(path, reason) from error
    with _unreadable(path, "its grey scale cannot be applied"):
        ds.BitsStored = ds.get("BitsStored") or allocated
        ds.PixelRepresentation = ds.get("PixelRepresentation") or 0
        grey, more = bone_bright(pixels, ds)
        return grey, notes + more


def _fault(ds: pydicom.Dataset, allocated: int) -> tuple[str, str] | None:
    """Return why the tags describe no readable x-ray, and the remedy; None if they do."""
    rows, columns = int(ds.Rows), int(ds.Columns)
    samples, frames = int(ds.get("SamplesPerPixel") or 1), int(ds.get("NumberOfFrames") or 1)
    photometric, syntax = ds.get("PhotometricInterpretation"), ds.file_meta.TransferSyntaxUID
    have = len(ds.get("PixelData") or b"")
    need = 1 if syntax.is_compressed else rows * columns * allocated // 8
    line = max(2, min(rows, columns) * allocated // 8)  # this many bytes too many are no padding
    if not photometric:
        return "not grey as far as its tags say: PhotometricInterpretation is absent", TAGS
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return f"not grey but {photometric}", GREY
    if frames != 1:
        return f"several frames: {frames} frames, not one", GREY
    if not allocated:
        return "BitsAllocated is absent: how many bits a pixel has is unknown", TAGS
    if allocated not in (8, 16):
        return f"an unknown depth: {allocated} bits allocated a pixel, not 8 or 16", GREY
    inflated = syntax.is_compressed and rows * columns > max(MAX_PER_BYTE * have, 2**22)
    if inflated or not 0 < rows * columns <= MAX_PIXELS:
        return f"absurd dimensions: {rows} rows, {columns} columns", COPY
    if have < max(need, 1):
        of = f" of {need}" if have else ""
        return f"pixel data absent or cut short: {have} bytes{of}", COPY
    if not syntax.is_compressed and have - need >= line:
        return f"pixel data too long: {have} bytes of {need}", TAGS
    return None


def _on_one_line(error: Exception) -> str:
    return " ".join(repr(error).split())


@contextmanager
def _unreadable(path: str | Path, reason: str) -> Iterator[None]:
    """Turn every error into UnreadableImage: damaged bytes make pydicom raise almost anything."""
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(path, f"{reason} ({_on_one_line(error)})") from error


def _refuse_absurd(path: str | Path, data: bytes) -> None:
    """Refuse a file of absurd size, deflated or not: pydicom would take all of it."""
    if len(data) > MAX_BYTES:
        raise UnreadableImage(path, f"absurd size: more than {MAX_BYTES:,} bytes", GREY)
    if uid.DeflatedExplicitVRLittleEndian.encode() in data[:1024]:
        meta = 144 + int.from_bytes(data[140:144], "little")  # the end of its file meta
        unpack = zlib.decompressobj(-zlib.MAX_WBITS).decompress
        if len(unpack(data[meta:], MAX_BYTES + 1)) > MAX_BYTES:
            raise UnreadableImage(path, f"absurd size: unpacked more than {MAX_BYTES:,} bytes")


def _load(path: str | Path) -> pydicom.FileDataset:
    with _unreadable(path, "it does not open or parse as DICOM"), open(path, "rb") as opened:
        size = min(os.fstat(opened.fileno()).st_size, MAX_BYTES)
        data = opened.read(size + 1)  # a field of 4 GB in a small file then takes no memory
        file, start = BytesIO(data), data[:2]
        if not start:
            raise UnreadableImage(path, "the file is empty")
        _refuse_absurd(path, data)
        try:
            ds = pydicom.dcmread(file)
        except InvalidDicomError:  # force would parse a JPEG too, so look first
            if start not in BARE:
                raise UnreadableImage(path, f"no DICOM header: it is {what_is(path)}") from None
            file.seek(0)
            ds = pydicom.dcmread(file, force=True)
        if "Rows" not in ds or "Columns" not in ds:
            raise UnreadableImage(path, "it holds no image, or was cut short")
        if "TransferSyntaxUID" not in ds.file_meta:
            implicit, little = ds.original_encoding
            explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
            ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
        return ds
