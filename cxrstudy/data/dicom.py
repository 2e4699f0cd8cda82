"""DICOM files to images with bone bright, and the few tags that a manifest needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.errors import InvalidDicomError

from cxrstudy.data import bits
from cxrstudy.data.columns import parse_age, parse_view
from cxrstudy.data.filetypes import BARE, what_is
from cxrstudy.data.greyscale import bone_bright, tag_values

MAX_PIXELS = 100_000_000  # a stitched long-leg film has some 50 million, a chest detector under 20
TEXT = {"patient_id": "PatientID", "study_id": "StudyInstanceUID", "series_id": "SeriesInstanceUID"}
TEXT |= {
    "image_id": "SOPInstanceUID",
    "view": "ViewPosition",
    "age": "PatientAge",
    "sex": "PatientSex",
}
COPY, GREY = (
    "copy or export the file again, or leave it out",
    "export one grey frame of it, or leave it out",
)
INSTALL = "pip install python-gdcm pyjpegls pillow, or decompress the file with another tool"
TAGS = "correct the tags that say how its pixels are stored, export the file again, or leave it out"


class UnreadableImage(Exception):
    """A file from which no x-ray can be read: ``.path`` as given, ``.reason``, ``.remedy``, ``.kind`` to count by."""

    def __init__(self, path: str | Path, reason: str, remedy: str = COPY, kind: str = "") -> None:
        super().__init__(
            path, reason, remedy, kind
        )  # the arguments of __init__, so that it survives pickling
        self.path, self.reason, self.remedy = path, reason, remedy
        self.kind = kind or reason.split(" (")[0].split(":")[0]

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}. What helps: {self.remedy}."


def read_dicom(path: str | Path) -> np.ndarray:
    """Float32 (H, W) in [0, 1], bone bright: the x-ray of a Part 10 file or of a bare data set.

    In DICOM's order: the stored bits (see ``bits.stored_values``), modality LUT or rescale, VOI LUT or window, scaling,
    inversion of MONOCHROME1. PresentationLUTShape restates the last (in all 2,129 Open-i headers that have it; some
    files err): not consulted.

    With a VOI transform, 0 and 1 are the ends of its output range, as on a reading room's screen: the grey of a tissue
    then hangs on neither the brightest pixel nor the collimation. A LUT's range is the bits that its largest entry
    needs (10-bit entries are met declared as 16). Without one, with a window width that the standard forbids, or where
    a transform leaves no picture (see ``greyscale.bone_bright``), they are the smallest and largest value of the image,
    as bits stored say little of the range used; an image of one value has no contrast to scale and becomes zeros.
    Padding never counts, and is black.

    Raises UnreadableImage, and nothing else, if the file is absent or no DICOM, holds no image, colour or several
    frames, has absurd dimensions, is cut short, has tags that do not fit its pixel data, or needs a codec that is not
    installed.
    """
    return read_with_notes(path)[0]


def read_with_notes(path: str | Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return what ``read_dicom`` does, and a note on each tag that was not taken at its word."""
    ds = _load(path)
    with _unreadable(path, "its image attributes are broken"):
        rows, columns, allocated = int(ds.Rows), int(ds.Columns), int(ds.get("BitsAllocated") or 0)
        samples, frames = int(ds.get("SamplesPerPixel") or 1), int(ds.get("NumberOfFrames") or 1)
        photometric, syntax = ds.get("PhotometricInterpretation"), ds.file_meta.TransferSyntaxUID
        have, need = (
            len(ds.get("PixelData") or b""),
            1 if syntax.is_compressed else rows * columns * allocated // 8,
        )
    line = max(2, min(rows, columns) * allocated // 8)  # so many bytes too many are no mere padding
    unsaid = "not grey as far as its tags say: PhotometricInterpretation is absent"
    for wrong, reason, remedy in (
        (not photometric, unsaid, TAGS),
        (
            samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"),
            f"not grey but {photometric}",
            GREY,
        ),
        (frames != 1, f"several frames: {frames} frames, not one", GREY),
        (not allocated, "BitsAllocated is absent: how many bits a pixel has is not said", TAGS),
        (
            allocated not in (8, 16),
            f"an unknown depth: {allocated} bits allocated a pixel, not 8 or 16",
            GREY,
        ),
        (
            not 0 < rows * columns <= MAX_PIXELS,
            f"absurd dimensions: {rows} rows, {columns} columns",
            COPY,
        ),
        (not have, "pixel data absent or cut short: 0 bytes", COPY),
        (have < need, f"pixel data absent or cut short: {have} bytes of {need}", COPY),
        (
            not syntax.is_compressed and have - need >= max(line, 2),
            f"pixel data too long: {have} bytes of {need}",
            TAGS,
        ),
    ):
        if wrong:
            raise UnreadableImage(path, reason, remedy)
    try:
        pixels, notes = bits.stored_values(ds)
    except bits.UnfitTags as error:
        raise UnreadableImage(path, str(error), TAGS) from error
    except bits.NoCodec as error:
        raise UnreadableImage(path, f"{error} is installed", INSTALL) from error
    except Exception as error:
        raise UnreadableImage(
            path, f"pixel data damaged ({syntax.name}: {' '.join(repr(error).split())})"
        ) from error
    with _unreadable(path, "its grey scale cannot be applied"):
        ds.BitsStored = ds.get("BitsStored") or allocated
        ds.PixelRepresentation = ds.get("PixelRepresentation") or 0
        grey, more = bone_bright(pixels, ds)
        return grey, notes + more


def read_tags(path: str | Path) -> dict[str, Any]:
    """Tags of an image, None where absent or malformed; no pixels are read.

    `patient_id`, `study_id`, `series_id`, `image_id`; `view`: PA, AP, LATERAL; `pixel_spacing`: (row, column) in mm, at
    the detector where no magnification is known; `age`: years, as a bare number too; `sex`: M, F, O. Raises
    UnreadableImage, and nothing else, if the file is absent, no DICOM or no image.
    """
    ds = _load(path, stop_before_pixels=True)
    tags = {key: "\\".join(tag_values(ds, name, str)).strip() or None for key, name in TEXT.items()}
    factor = next(
        (v for v in tag_values(ds, "EstimatedRadiographicMagnificationFactor", float) if v > 0), 1.0
    )
    patient_mm = [v for v in tag_values(ds, "PixelSpacing", float) if 0 < v < np.inf]
    detector_mm = [
        v / factor for v in tag_values(ds, "ImagerPixelSpacing", float) if 0 < v < np.inf
    ]
    return tags | {
        "view": parse_view(tags["view"] or ""),
        "pixel_spacing": next(
            (tuple(mm) for mm in (patient_mm, detector_mm) if len(mm) == 2), None
        ),
        "age": parse_age(tags["age"] or ""),
        "sex": tags["sex"] if tags["sex"] in ("M", "F", "O") else None,
    }


@contextmanager
def _unreadable(path: str | Path, reason: str, remedy: str = COPY) -> Iterator[None]:
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:  # damaged bytes make pydicom and the codecs raise almost anything
        raise UnreadableImage(
            path, f"{reason} ({' '.join(repr(error).split())})", remedy
        ) from error


def _load(path: str | Path, stop_before_pixels: bool = False) -> pydicom.FileDataset:
    with _unreadable(path, "it does not open or parse as DICOM"), open(path, "rb") as file:
        start = file.peek(2)[:2]
        if not start:
            raise UnreadableImage(path, "the file is empty")
        try:
            ds = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels)
        except InvalidDicomError:  # force would parse a JPEG too, so look first
            if start not in BARE:
                raise UnreadableImage(path, f"no DICOM header: it is {what_is(path)}") from None
            file.seek(0)
            ds = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels, force=True)
        if "Rows" not in ds or "Columns" not in ds:
            raise UnreadableImage(path, "it holds no image, or was cut short")
        if "TransferSyntaxUID" not in ds.file_meta:
            implicit, little = ds.original_encoding
            explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
            ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
        return ds
