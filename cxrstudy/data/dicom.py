"""DICOM files to images with bone bright, and the few tags that a manifest needs."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_windowing, pixel_array

MAX_PIXELS = 100_000_000  # a stitched long-leg film has some 50 million, a chest detector under 20
TEXT = {"patient_id": "PatientID", "study_id": "StudyInstanceUID", "series_id": "SeriesInstanceUID"}
TEXT |= {"image_id": "SOPInstanceUID", "view": "ViewPosition", "age": "PatientAge", "sex": "PatientSex"}
VIEWS = {"PA": "PA", "POSTEROANTERIOR": "PA", "AP": "AP", "ANTEROPOSTERIOR": "AP"}  # no decubitus (LLD), no oblique
VIEWS |= dict.fromkeys(("LATERAL", "LAT", "LL", "RL", "LLAT", "RLAT", "LEFT LATERAL", "RIGHT LATERAL"), "LATERAL")
YEARS = {"Y": 1.0, "": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
COPY, GREY = "copy or export the file again, or leave it out", "export one grey frame of it, or leave it out"
INSTALL = "pip install python-gdcm pyjpegls pillow, copy the file again, or decompress it with another tool"
# gdcm, which pydicom would take first, aborts the whole process on some damaged files: only where there is no other
CODECS = dict.fromkeys((uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.JPEG2000), "pillow")
CODECS |= dict.fromkeys(uid.JPEGLSTransferSyntaxes, "pyjpegls")


class UnreadableImage(Exception):
    """A file from which no x-ray can be read: `.path` as given, `.reason`, `.remedy`."""

    def __init__(self, path: str | Path, reason: str, remedy: str = COPY) -> None:
        super().__init__(path, reason, remedy)  # the arguments of __init__, so that it survives pickling
        self.path, self.reason, self.remedy = path, reason, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}. What helps: {self.remedy}."


def read_dicom(path: str | Path) -> np.ndarray:
    """Float32 (H, W) in [0, 1], bone bright: the x-ray of a Part 10 file or of a bare data set.

    In DICOM's order: modality LUT or rescale, VOI LUT or window (the first of each), scaling, inversion of MONOCHROME1.
    PresentationLUTShape restates the last (in all 2,129 Open-i headers that have it; some files err): not consulted.

    With a VOI transform, 0 and 1 are the ends of its output range, as on a reading room's screen: the grey of a tissue
    then hangs on neither the brightest pixel nor the collimation. A LUT's range is the bits that its largest entry
    needs (10-bit entries are met declared as 16). Without one, or with a window width that the standard forbids, they
    are the smallest and largest value of the image, as bits stored say little of the range used; an image of one value
    has no contrast to scale and becomes zeros. Padding never counts, and is black.

    Raises UnreadableImage, and nothing else, if the file is absent or no DICOM, holds no image, colour or several
    frames, has absurd dimensions, is cut short, or needs a codec that is not installed.
    """
    ds = _load(path)
    with _unreadable(path, "its image attributes are broken"):
        rows, columns, bits = int(ds.Rows), int(ds.Columns), int(ds.get("BitsAllocated") or 0)
        samples, frames = int(ds.get("SamplesPerPixel") or 1), int(ds.get("NumberOfFrames") or 1)
        photometric, syntax = ds.get("PhotometricInterpretation"), ds.file_meta.TransferSyntaxUID
        have, need = len(ds.get("PixelData") or b""), 1 if syntax.is_compressed else rows * columns * bits // 8
    for wrong, reason, remedy in (
        (samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"), f"not grey but {photometric}", GREY),
        (frames != 1, f"{frames} frames, not one", GREY),
        (bits not in (8, 16), f"{bits} bits allocated a pixel, not 8 or 16", GREY),
        (not 0 < rows * columns <= MAX_PIXELS, f"absurd dimensions: {rows} rows, {columns} columns", COPY),
        (have < need, f"pixel data absent or cut short: {have} bytes", COPY),
    ):
        if wrong:
            raise UnreadableImage(path, reason, remedy)
    with _unreadable(path, f"pixel data ({syntax.name}) damaged, or no codec for them is installed", INSTALL):
        pixels = pixel_array(ds, decoding_plugin=CODECS.get(syntax, ""))  # "": all that pydicom finds
    with _unreadable(path, "its grey scale cannot be applied"):
        return _bone_bright(pixels, ds)


def read_tags(path: str | Path) -> dict[str, Any]:
    """Tags of an image, None where absent or malformed; no pixels are read.

    `patient_id`, `study_id`, `series_id`, `image_id`; `view`: PA, AP, LATERAL; `pixel_spacing`: (row, column) in mm, at
    the detector where no magnification is known; `age`: years, as a bare number too; `sex`: M, F, O. Raises
    UnreadableImage, and nothing else, if the file is absent, no DICOM or no image.
    """
    ds = _load(path, stop_before_pixels=True)
    tags = {key: "\\".join(_values(ds, name, str)).strip() or None for key, name in TEXT.items()}
    age = re.fullmatch(r"(\d{1,3})([YMWD]?)", tags["age"] or "")
    factor = next((v for v in _values(ds, "EstimatedRadiographicMagnificationFactor", float) if v > 0), 1.0)
    patient_mm = [v for v in _values(ds, "PixelSpacing", float) if 0 < v < np.inf]
    detector_mm = [v / factor for v in _values(ds, "ImagerPixelSpacing", float) if 0 < v < np.inf]
    return tags | {
        "view": VIEWS.get((tags["view"] or "").upper()),
        "pixel_spacing": next((tuple(mm) for mm in (patient_mm, detector_mm) if len(mm) == 2), None),
        "age": int(age[1]) * YEARS[age[2]] if age else None,
        "sex": tags["sex"] if tags["sex"] in ("M", "F", "O") else None,
    }


@contextmanager
def _unreadable(path: str | Path, reason: str, remedy: str = COPY) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged bytes make pydicom and the codecs raise almost anything
        raise UnreadableImage(path, f"{reason} ({' '.join(repr(error).split())})", remedy) from error


def _load(path: str | Path, stop_before_pixels: bool = False) -> pydicom.FileDataset:
    with _unreadable(path, "it does not open or parse as DICOM"), open(path, "rb") as file:
        start = file.peek(2)[:2]
        try:
            ds = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels)
        except InvalidDicomError:  # force would parse a JPEG too, so look first
            if start not in (b"\x08\x00", b"\x02\x00", b"\x00\x08"):  # group 8, 2 (meta header), 8 big-endian
                raise ValueError("no DICOM header" if start else "the file is empty") from None
            file.seek(0)
            ds = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels, force=True)
        if "Rows" not in ds or "Columns" not in ds:
            raise ValueError("it holds no image, or was cut short")
        if "TransferSyntaxUID" not in ds.file_meta:
            implicit, little = ds.original_encoding
            explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
            ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
        return ds


def _values(ds: pydicom.Dataset, name: str, kind: type) -> list[Any]:
    try:  # pydicom parses on access; what cannot be parsed counts as absent
        value = ds.get(name)
        return [] if value is None else [kind(v) for v in np.atleast_1d(value).tolist()]
    except Exception:
        return []


def _lookup(values: np.ndarray, item: pydicom.Dataset) -> tuple[np.ndarray, int]:
    # not pydicom's: that fails for modality entries of 12 bits and wraps inputs above 255 where VOI entries have 8
    entries, first = int(item.LUTDescriptor[0]) or 2**16, int(item.LUTDescriptor[1])
    first -= 2**16 if first >= 2**15 and values.min() < 0 else 0  # written as unsigned beside signed values
    words = np.frombuffer(data, "<u2") if isinstance(data := item.LUTData, bytes) else np.array(data).astype("<u2")
    table = words if len(words) >= entries else words.view(np.uint8)  # 8-bit entries come two to a word
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)
    return table[index].astype(np.int64), 2 ** int(table[:entries].max()).bit_length() - 1


def _bone_bright(pixels: np.ndarray, ds: pydicom.Dataset) -> np.ndarray:
    # each step maps a stored value to one grey, so all run on at most 65,536 values; the image is one look-up
    stored = np.arange(int(pixels.min()), int(pixels.max()) + 1)
    index = pixels.astype(np.intp) - stored[0]
    ends = _values(ds, "PixelPaddingValue", int) + _values(ds, "PixelPaddingRangeLimit", int)
    ends = [v - 2**16 if v >= 2**15 and pixels.dtype.kind == "i" else v for v in ends]  # unsigned beside signed pixels
    padding = (stored >= min(ends)) & (stored <= max(ends)) if ends else np.zeros_like(stored, bool)
    if ds.get("ModalityLUTSequence"):
        values, _ = _lookup(stored, ds.ModalityLUTSequence[0])
    else:
        slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
        values = stored * float(1 if slope is None else slope) + float(intercept or 0)
    ds.VOILUTFunction = ds.get("VOILUTFunction") or "LINEAR"
    width = next(iter(_values(ds, "WindowWidth", float)), 0.0)
    if ds.get("VOILUTSequence"):
        black, (values, white) = 0, _lookup(values, ds.VOILUTSequence[0])
    elif _values(ds, "WindowCenter", float) and (width >= 1 if ds.VOILUTFunction == "LINEAR" else width > 0):
        with np.errstate(over="ignore"):  # in the sigmoid's tails; the infinities draw out pydicom's output range
            out = apply_windowing(np.r_[-np.inf, np.inf, values], ds)
        black, white, values = out[0], out[1], out[2:]
    else:
        used = values[(np.bincount(index.ravel(), minlength=len(stored)) > 0) & ~padding]
        black, white = (used.min(), used.max()) if used.size else (0, 0)
    if black == white:
        return np.zeros(pixels.shape, np.float32)
    grey = np.asarray_chkfinite((values - black) / (white - black))  # black > white: a negative rescale slope
    grey = np.clip(1 - grey if ds.PhotometricInterpretation == "MONOCHROME1" else grey, 0, 1)
    grey[padding] = 0
    return grey.astype(np.float32)[index]
