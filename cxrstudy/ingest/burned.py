"""Find text burned into the pixels of an x-ray, where no tag can be removed.

Letters are marks of thin strokes, brighter or darker than what is around them, alike in height and
contrast, one beside the other. A side marker (L, R, AP) has one or two: the score counts letters in
a row, and the threshold is above that. It reads nothing: "PORTABLE" counts as a name does. What it
finds of planted text is measured in ``tests/ingest/test_burned.py``.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

THRESHOLD = 4.0  # letters in a row; chosen on half of the planted texts, measured on the others
LONGER, LEAST = 1024, 300  # px of the longer side of the copies that are searched, halved once
STROKE = 9  # px: wider strokes are found in the smaller copy
HEIGHTS = (6, 56)  # px of a letter
CONTRASTS = (0.1, 0.2, 0.4)  # of strokes to their surroundings; a high one parts touching letters


def says_burned_in(tag: Any) -> bool:
    """Return whether the tag BurnedInAnnotation says that the pixels hold identifying text.

    NO is not believed: it is often written without a look. The detector decides then.
    """
    return str(tag or "").strip().upper() in ("YES", "Y", "TRUE", "1")


def burned_in_text(image: np.ndarray) -> float:
    """Return the number of letters in the longest line of text in an image; see ``THRESHOLD``.

    Args:
        image: (H, W), uint8 or float in [0, 1].
    """
    grey = np.asarray(image, dtype=np.float32) / (255 if image.dtype == np.uint8 else 1)
    longest = 0.0
    for copy in _copies(grey):
        for bright in (copy, 1 - copy):
            peaks = bright - ndimage.grey_opening(bright, size=(STROKE, STROKE))
            for contrast in CONTRASTS:
                marks = _marks(peaks, contrast)
                for turned in (marks, marks[:, [1, 0, 3, 2, 4]]):  # level and upright lines
                    longest = max(longest, _longest_row(turned[_letter_like(turned)]))
    return longest


def _copies(grey: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an image in one or two sizes, so that letters of any size have a usual one in one."""
    longer = max(grey.shape)
    for side in (min(longer, LONGER), min(longer, LONGER) // 2):
        if side == longer:
            yield grey
        elif side >= LEAST:
            width, height = (max(1, round(n * side / longer)) for n in grey.shape[::-1])
            yield np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BOX))


def _marks(peaks: np.ndarray, contrast: float) -> np.ndarray:
    """Return top, left, bottom, right and mean contrast of each connected mark: (N, 5)."""
    labels, n = ndimage.label(peaks > contrast, structure=np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    places = [(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in boxes]
    flat = labels.ravel()
    on = np.flatnonzero(flat)
    summed = np.bincount(flat[on], peaks.ravel()[on], minlength=n + 1)[1:]
    mean = summed / np.bincount(flat[on], minlength=n + 1)[1:]
    return np.column_stack([np.array(places, dtype=float).reshape(-1, 4), mean])


def _letter_like(marks: np.ndarray) -> np.ndarray:
    """Return which marks have the height and width of a letter, or of two that touch."""
    height, width = (marks[:, 2:4] - marks[:, :2]).T
    return (height >= HEIGHTS[0]) & (height <= HEIGHTS[1]) & (width <= 1.8 * height)


def _longest_row(marks: np.ndarray) -> float:
    """Return how many marks the longest row has."""
    top, left, bottom, right, contrast = marks[np.argsort(marks[:, 1], kind="stable")].T
    height, length = bottom - top, np.ones(len(marks))
    first = np.searchsorted(left, left - 4 * HEIGHTS[1])  # those further left are too far away
    for k, start in enumerate(first):
        before = slice(start, k)
        small = np.minimum(height[k], height[before])
        gap = left[k] - right[before]
        shared = np.minimum(bottom[k], bottom[before]) - np.maximum(top[k], top[before])
        strong = np.maximum(contrast[k], contrast[before])
        follows = (gap > -0.25 * small) & (gap < 1.3 * small) & (shared > 0.6 * small)
        follows &= np.maximum(height[k], height[before]) < 2 * small
        follows &= np.abs(contrast[k] - contrast[before]) < 0.4 * strong
        length[k] += length[before][follows].max(initial=0)
    return float(length.max(initial=0))
