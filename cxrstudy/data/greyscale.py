"""The grey scale of a DICOM image: stored values to [0, 1] with bone bright, in DICOM's order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_windowing

FEW = 8  # grey levels, of 256: fewer are a blank picture where the image itself has at least twice as many
CLIPPED = (
    0.98  # of the pixels that the image's own range shows between its ends: more at an end are lost
)
OWN_RANGE = "window replaced by the image's own range"
OTHER_WINDOW = "first window replaced by another of its own"
NO_RESCALE = "rescale of one value not applied"
NO_PADDING = "padding that covers the image not applied"


def tag_values(ds: pydicom.Dataset, name: str, kind: type) -> list[Any]:
    """Return the values of a tag as ``kind``, none where it is absent or malformed."""
    try:  # pydicom parses on access; what cannot be parsed counts as absent
        value = ds.get(name)
        return [] if value is None else [kind(v) for v in np.atleast_1d(value).tolist()]
    except Exception:
        return []


def bone_bright(pixels: np.ndarray, ds: pydicom.Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return stored values (H, W) as float32 in [0, 1], and notes on transforms that were not applied.

    The first VOI LUT or window is taken that leaves a picture. One that does not (see ``_blank``) is passed over: for
    the next of the image's own, and at last for the range between its smallest and largest value. A rescale or modality
    LUT that leaves no picture is not applied, nor is padding that covers the image.
    """
    # each step maps a stored value to one grey, so all run on at most 65,536 values; the image is one look-up
    stored = np.arange(int(pixels.min()), int(pixels.max()) + 1)
    index = pixels.astype(np.intp) - stored[0]
    counts = np.bincount(index.ravel(), minlength=len(stored))
    padding = _padding(stored, ds)
    notes = []
    if _covers(padding, counts):
        padding, notes = np.zeros_like(padding), [NO_PADDING]
    used = np.where(padding, 0, counts)
    values = _modality(stored, ds)
    own = _own_range(values, used)
    if _blank(own, raw := _own_range(stored, used), used):
        own, ways = raw, []  # a window in units that are gone says nothing
        notes.append(NO_RESCALE)
    else:
        ways = list(_voi(values, ds))
    grey = next((way for way in ways if not _blank(way, own, used)), own)
    if ways and grey is not ways[0]:
        notes.append(OWN_RANGE if grey is own else OTHER_WINDOW)
    if grey is own and not own[used > 0].any():
        grey = np.zeros(len(stored))  # one value alone has no contrast to scale
    elif ds.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    grey = np.clip(grey, 0, 1)
    grey[padding] = 0
    return grey.astype(np.float32)[index], tuple(notes)


def _padding(stored: np.ndarray, ds: pydicom.Dataset) -> np.ndarray:
    """Which stored values are padding."""
    ends = tag_values(ds, "PixelPaddingValue", int) + tag_values(ds, "PixelPaddingRangeLimit", int)
    signed = ds.get("PixelRepresentation") == 1
    ends = [
        v - 2**16 if v >= 2**15 and signed else v for v in ends
    ]  # unsigned beside signed pixels
    ends = [v + 2**16 if v < 0 and not signed else v for v in ends]  # and the other way round
    return (stored >= min(ends)) & (stored <= max(ends)) if ends else np.zeros_like(stored, bool)


def _covers(padding: np.ndarray, counts: np.ndarray) -> bool:
    """Whether padding leaves no picture of an image that has one without it."""
    rest = np.where(padding, 0, counts)
    little = np.count_nonzero(rest) <= 1 or rest.sum() < (1 - CLIPPED) * counts.sum()
    return bool(padding.any() and little and np.count_nonzero(counts) >= FEW)


def _modality(stored: np.ndarray, ds: pydicom.Dataset) -> np.ndarray:
    """Stored values after the modality LUT or the rescale."""
    if ds.get("ModalityLUTSequence"):
        return _lookup(stored, ds.ModalityLUTSequence[0])[0]
    slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
    return stored * float(1 if slope is None else slope) + float(intercept or 0)


def _voi(values: np.ndarray, ds: pydicom.Dataset) -> Iterator[np.ndarray]:
    """Greys of the values by each VOI LUT, then by each window; widths that the standard forbids count as none."""
    for item in ds.get("VOILUTSequence") or []:
        table, white = _lookup(values, item)
        yield np.asarray_chkfinite(table / (white or 1))
    function = ds.get("VOILUTFunction") or "LINEAR"
    ds.VOILUTFunction = function
    pairs = zip(
        tag_values(ds, "WindowCenter", float), tag_values(ds, "WindowWidth", float), strict=False
    )
    for k, (_, width) in enumerate(pairs):
        if width >= 1 if function == "LINEAR" else width > 0:
            with np.errstate(
                over="ignore"
            ):  # in the sigmoid's tails; the infinities draw out pydicom's output range
                out = apply_windowing(np.r_[-np.inf, np.inf, values], ds, index=k)
            yield np.asarray_chkfinite((out[2:] - out[0]) / (out[1] - out[0]))


def _own_range(values: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Values between the smallest (0) and largest (1) of those used; zeros where that is one value."""
    some = values[used > 0]
    black, white = (some.min(), some.max()) if some.size else (0, 0)
    return (
        np.zeros(len(values))
        if black == white
        else np.asarray_chkfinite((values - black) / (white - black))
    )


def _levels(grey: np.ndarray, used: np.ndarray) -> int:
    """How many of 256 grey levels the pixels have."""
    return len(np.unique(np.rint(np.clip(grey[used > 0], 0, 1) * 255)))


def _blank(grey: np.ndarray, own: np.ndarray, used: np.ndarray) -> bool:
    """Whether greys leave no picture: fewer than FEW levels, and at most half of those that the image's own range
    shows; or CLIPPED of the pixels that the own range shows between its ends lie at the ends."""
    left = _levels(grey, used)
    between = np.where((own > 0) & (own < 1), used, 0)
    lost = between[(grey <= 0) | (grey >= 1)].sum()
    return (left < FEW and 2 * left <= _levels(own, used)) or bool(
        between.sum() and lost >= CLIPPED * between.sum()
    )


def _lookup(values: np.ndarray, item: pydicom.Dataset) -> tuple[np.ndarray, int]:
    # not pydicom's: that fails for modality entries of 12 bits and wraps inputs above 255 where VOI entries have 8
    entries, first = int(item.LUTDescriptor[0]) or 2**16, int(item.LUTDescriptor[1])
    first -= (
        2**16 if first >= 2**15 and values.min() < 0 else 0
    )  # written as unsigned beside signed values
    words = (
        np.frombuffer(data, "<u2")
        if isinstance(data := item.LUTData, bytes)
        else np.atleast_1d(data).astype("<u2")
    )
    table = (
        words if len(words) >= entries else words.view(np.uint8)
    )  # 8-bit entries come two to a word
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)
    return table[index].astype(np.int64), 2 ** int(table[:entries].max()).bit_length() - 1
