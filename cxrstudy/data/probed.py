"""The images of a quick linear probe: a few of a split, and always the same ones."""

from collections.abc import Collection

import numpy as np

from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import label_array, label_names

IMAGES = 512  # of a split, at most


def probed_images(
    prepared: Prepared, split: str, *, without: Collection[str] = (), most: int = IMAGES
) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (n, S, S) and labels (n, L) in {0, 1, NaN} of a split.

    Args:
        without: patients whose images are left out.
        most: so many images at most, drawn at random with a fixed seed.
    """
    manifest = prepared.manifest
    fits = (manifest["split"] == split) & ~manifest["patient_id"].isin(list(without))
    rows = np.random.default_rng(0).permutation(np.flatnonzero(fits))[:most]
    rows.sort()
    labels = label_array(manifest.iloc[rows], label_names(manifest), truth=True)
    return np.asarray(prepared.images[rows]), labels


def has_both(*labels: np.ndarray) -> np.ndarray:
    """Return which labels (L,) have positives and negatives in each of some arrays (n, L)."""
    both = [(y == 1).any(0) & (y == 0).any(0) for y in labels]
    return np.logical_and.reduce(both)
