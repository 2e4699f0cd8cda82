"""Convert stored DICOM values to intensities in [0, 1] with bone bright, in DICOM's order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_windowing

FEW = 8  # of 256 grey levels: fewer are no picture if the image's own range shows twice as many
CLIPPED = 0.98  # of the pixels between the ends of the own range: more at an end are lost
OWN_RANGE = "window replaced by the image's own range"
OTHER_WINDOW = "first window replaced by another of its own"
NO_RESCALE = "rescale of one value not applied"
NO_PADDING = "padding that covers the image not applied"


def tag_values(ds: pydicom.Dataset, name: str, kind: type) -> list[Any]:
    """Return the values of a tag as ``kind``; an absent or malformed tag has none."""
    try:  # pydicom parses on access
        value = ds.get(name)
        return [] if value is None else [kind(v) for v in np.atleast_1d(value).tolist()]
    except Exception:
        return []


def bone_bright(pixels: np.ndarray, ds: pydicom.Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return stored values (H, W) as float32 in [0, 1], and notes on transforms not applied.

    The first VOI LUT or window that leaves a picture (see ``_blank``) is applied. If none does,
    the image's own range, from its smallest to its largest value, is used. A rescale or modality
    LUT that leaves no picture is not applied, nor is padding that covers the image.
    """
    # Each step maps a stored value to one grey, so all work on at most 65,536 values.
    stored = np.arange(int(pixels.min()), int(pixels.max()) + 1)
    index = np.subtract(pixels, stored[0], dtype=np.intp)
    counts = np.bincount(index.ravel(), minlength=len(stored))
    padding = _padding(stored, ds)
    notes = []
    if _covers(padding, counts):
        padding, notes = np.zeros_like(padding), [NO_PADDING]
    used = np.where(padding, 0, counts)
    values = _modality(stored, ds)
    own = _own_range(values, used)
    if _blank(own, raw := _own_range(stored, used), used):
        own, windows = raw, []  # the window's units are lost with the rescale
        notes.append(NO_RESCALE)
    else:
        windows = list(_voi(values, ds))
    grey = next((window for window in windows if not _blank(window, own, used)), own)
    if windows and grey is not windows[0]:
        notes.append(OWN_RANGE if grey is own else OTHER_WINDOW)
    if grey is own and not own[used > 0].any():
        grey = np.zeros(len(stored))  # one value has no contrast to scale
    elif ds.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    grey = np.clip(grey, 0, 1)
    grey[padding] = 0
    return grey.astype(np.float32)[index], tuple(notes)


def _padding(stored: np.ndarray, ds: pydicom.Dataset) -> np.ndarray:
    """Mark the stored values that are padding."""
    ends = tag_values(ds, "PixelPaddingValue", int) + tag_values(ds, "PixelPaddingRangeLimit", int)
    if not ends:
        return np.zeros_like(stored, bool)
    if ds.get("PixelRepresentation") == 1:  # padding may be written unsigned beside signed pixels
        ends = [v - 2**16 if v >= 2**15 else v for v in ends]
    else:  # and the other way round
        ends = [v + 2**16 if v < 0 else v for v in ends]
    return (stored >= min(ends)) & (stored <= max(ends))


def _covers(padding: np.ndarray, counts: np.ndarray) -> bool:
    """Return whether padding leaves no picture of an image that has one without it."""
    rest = np.where(padding, 0, counts)
    little = np.count_nonzero(rest) <= 1 or rest.sum() < (1 - CLIPPED) * counts.sum()
    return bool(padding.any() and little and np.count_nonzero(counts) >= FEW)


def _modality(stored: np.ndarray, ds: pydicom.Dataset) -> np.ndarray:
    """Apply the modality LUT or the rescale."""
    if ds.get("ModalityLUTSequence"):
        return _lookup(stored, ds.ModalityLUTSequence[0])[0]
    slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
    return stored * float(1 if slope is None else slope) + float(intercept or 0)


def _voi(values: np.ndarray, ds: pydicom.Dataset) -> Iterator[np.ndarray]:
    """Yield the greys by each VOI LUT, then by each window; a forbidden width is skipped."""
    for item in ds.get("VOILUTSequence") or []:
        table, white = _lookup(values, item)
        yield np.asarray_chkfinite(table / (white or 1))
    ds.VOILUTFunction = function = ds.get("VOILUTFunction") or "LINEAR"
    centers, widths = (tag_values(ds, f"Window{name}", float) for name in ("Center", "Width"))
    for k, (_, width) in enumerate(zip(centers, widths, strict=False)):
        if width >= 1 if function == "LINEAR" else width > 0:
            with np.errstate(over="ignore"):  # in the tails of the sigmoid
                # the infinities give the ends of pydicom's output range
                out = apply_windowing(np.r_[-np.inf, np.inf, values], ds, index=k)
            yield np.asarray_chkfinite((out[2:] - out[0]) / (out[1] - out[0]))


def _own_range(values: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Scale values from the smallest (0) to the largest (1) used; zeros if that is one value."""
    some = values[used > 0]
    black, white = (some.min(), some.max()) if some.size else (0, 0)
    if black == white:
        return np.zeros(len(values))
    return np.asarray_chkfinite((values - black) / (white - black))


def _blank(grey: np.ndarray, own: np.ndarray, used: np.ndarray) -> bool:
    """Return whether greys leave no picture: few levels, or nearly all pixels at the ends.

    Few: under FEW levels, and at most half of those that the image's own range shows. Nearly all:
    CLIPPED of the pixels that the own range shows between its ends.
    """

    def levels(values: np.ndarray) -> int:
        return len(np.unique(np.rint(np.clip(values[used > 0], 0, 1) * 255)))

    between = np.where((own > 0) & (own < 1), used, 0)
    lost = between[(grey <= 0) | (grey >= 1)].sum()
    few = (left := levels(grey)) < FEW and 2 * left <= levels(own)
    return few or bool(between.sum() and lost >= CLIPPED * between.sum())


def _lookup(values: np.ndarray, item: pydicom.Dataset) -> tuple[np.ndarray, int]:
    """Return the LUT's entries for the values, and the largest number of the bits they need.

    pydicom's own fails for 12-bit modality entries, and wraps inputs above 255 for 8-bit VOI ones.
    """
    entries, first = int(item.LUTDescriptor[0]) or 2**16, int(item.LUTDescriptor[1])
    if first >= 2**15 and values.min() < 0:  # written as unsigned beside signed values
        first -= 2**16
    data = item.LUTData
    words = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.atleast_1d(data)
    words = words.astype("<u2")
    table = words if len(words) >= entries else words.view(np.uint8)  # 8-bit: two to a word
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)
    return table[index].astype(np.int64), 2 ** int(table[:entries].max()).bit_length() - 1
