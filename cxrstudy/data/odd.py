"""Name and count odd but readable images, and say what a data run lost."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.data import bits, greyscale, picturefiles

CONSTANT, FLAT, ONE_PIXEL = "constant", "nearly constant", "one pixel"
TINY, ASPECT = "under 32 px", "extreme aspect"
# the oddest first: pages show them in this order
KINDS: tuple[str, ...] = (
    CONSTANT,
    ONE_PIXEL,
    FLAT,
    TINY,
    picturefiles.COLOUR,
    greyscale.NO_RESCALE,
)
KINDS += (greyscale.NO_PADDING, picturefiles.TORN, greyscale.OWN_RANGE, bits.WIDER, ASPECT)
KINDS += (picturefiles.CLEAR, picturefiles.OWN, greyscale.OTHER_WINDOW, picturefiles.FEWER)
LEAST_SIDE = 32  # px
MOST_ASPECT = 3.0  # a chest film is at most some 1.3 times as long as wide
FEW_GREYS = 32  # of 256, between the 1st and the 99th percentile
MANY = 0.05  # of the images: a loss beyond this is reported as a warning
COPY = "copy of an image in another split"  # why an image is set aside
ASKED = "not kept by query"  # the reason of rows that are left out on purpose


def of_shape(rows: int, columns: int) -> tuple[str, ...]:
    """Return how an image is odd by its shape."""
    small: tuple[str, ...] = (TINY,) if min(rows, columns) < LEAST_SIDE else ()
    small = (ONE_PIXEL,) if rows * columns == 1 else small
    return (*small, ASPECT) if max(rows, columns) > MOST_ASPECT * min(rows, columns) else small


def of_greys(pixels: np.ndarray) -> tuple[str, ...]:
    """Return how an image (uint8) is odd by its intensities."""
    if pixels.min() == pixels.max():
        return (CONSTANT,)
    low, high = np.percentile(pixels, [1, 99])
    return (FLAT,) if high - low < FEW_GREYS else ()


def count(kinds: Iterable[str]) -> dict[str, int]:
    """Count each kind, the most frequent first."""
    return dict(Counter(kinds).most_common())


def losses(info: dict[str, Any], images: int) -> list[str]:
    """Return sentences on rows left out and images not read, if both are more than MANY of all.

    Args:
        info: of a data run, with ``rows``, ``left_out`` and ``set_aside``.
        images: how many images the data run holds.
    """
    left = {reason: n for reason, n in (info.get("left_out") or {}).items() if reason != ASKED}
    aside = info.get("set_aside") or {}
    on_purpose = (info.get("left_out") or {}).get(ASKED, 0)
    prepared = images + sum(aside.values())
    rows = (info.get("rows") or prepared + sum(left.values()) + on_purpose) - on_purpose
    parts = [
        (left, rows, sum(left.values()), "rows of the table were left out"),
        (aside, prepared, sum(aside.values()), "images could not be read"),
    ]
    kept = np.prod([1 - lost / max(total, 1) for _, total, lost, _ in parts])
    if 1 - kept <= MANY + 1e-9:
        return []
    return [
        f"{lost:,} of {total:,} {what} ({lost / total:.0%}): "
        f"{', '.join(f'{reason} {n:,}' for reason, n in reasons.items() if n)}."
        for reasons, total, lost, what in parts
        if lost
    ]


def copied(pairs: list[str], most: int = 5) -> list[str]:
    """Return a sentence on images set aside as copies of images in another split, if any."""
    more = f"; and {len(pairs) - most:,} more" if len(pairs) > most else ""
    return [
        f"{len(pairs):,} images are copies of images in another split and are set aside: "
        f"{'; '.join(pairs[:most])}{more} (all in quarantine.csv). If their patients are one, "
        "correct the patient ids of the table, or leave copies out by table.query in the card"
    ][: len(pairs)]


def counts(info: dict[str, Any], images: int) -> pd.DataFrame:
    """Return the number of rows and images that a data run lost or found odd, by (what, why)."""
    left, aside, kinds = (info.get(name) or {} for name in ("left_out", "set_aside", "odd"))
    total = info.get("rows") or images + sum(left.values()) + sum(aside.values())
    rows = [("rows of the table", "", total)]
    rows += [("left out", reason, n) for reason, n in left.items()]
    read = {COPY: "set aside"}
    rows += [(read.get(kind, "could not be read"), kind, n) for kind, n in aside.items()]
    rows += [("images prepared", "", images)]
    rows += [("odd, and kept", kind, n) for kind, n in kinds.items()]
    for column, values in (info.get("not_understood") or {}).items():
        rows += [(f"{column} not understood", value, n) for value, n in values.items()]
    return pd.DataFrame(rows, columns=["what", "why", "number"]).set_index(["what", "why"])


def oddest(folder: str | Path, images: pd.Series, most: int = 8) -> pd.DataFrame:
    """Return row, image_id and kind of the oddest images in ``folder``: one of each kind first.

    Args:
        folder: of a data run, with its ``odd.csv``.
        images: the image ids of the data run, in its order.
        most: how many to return.
    """
    table = pd.read_csv(Path(folder) / "odd.csv", dtype=str, keep_default_na=False)
    table["row"] = table["image_id"].map(pd.Series(range(len(images)), index=images.to_numpy()))
    table["rank"] = table["kind"].map({kind: k for k, kind in enumerate(KINDS)})
    table["turn"] = table.groupby("kind").cumcount()
    table = table.sort_values(["turn", "rank"], kind="stable")
    grouped = table.groupby("row", sort=False)
    joined = grouped.agg(image_id=("image_id", "first"), kind=("kind", ", ".join))
    return joined.head(most).reset_index()
