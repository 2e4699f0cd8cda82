"""Images that can be read and are odd, and the words in which a data run says what is not in it."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.data import bits, greyscale, picturefiles

CONSTANT, FLAT, ONE_PIXEL, TINY, ASPECT = (
    "constant",
    "nearly constant",
    "one pixel",
    "under 32 px",
    "extreme aspect",
)
# the oddest first, in which order a page shows them
KINDS: tuple[str, ...] = (
    CONSTANT,
    ONE_PIXEL,
    FLAT,
    TINY,
    picturefiles.COLOUR,
    greyscale.NO_RESCALE,
    greyscale.NO_PADDING,
)
KINDS += (
    picturefiles.TORN,
    greyscale.OWN_RANGE,
    bits.WIDER,
    ASPECT,
    picturefiles.CLEAR,
    picturefiles.OWN,
    greyscale.OTHER_WINDOW,
)
KINDS += (picturefiles.FEWER,)
LEAST_SIDE = 32  # px
MOST_ASPECT = 3.0  # a chest film is at most some 1.3 times as long as wide
FEW_GREYS = 32  # of 256, between the 1st and the 99th percentile
MANY = 0.05  # of the images: so many not there are told where the reader looks
ASKED = "not kept by query"  # a reason for which rows are left out on purpose


def of_shape(rows: int, columns: int) -> tuple[str, ...]:
    """Return in which kinds an image is odd by its shape."""
    small = (
        (ONE_PIXEL,) if rows * columns == 1 else (TINY,) if min(rows, columns) < LEAST_SIDE else ()
    )
    return (*small, ASPECT) if max(rows, columns) > MOST_ASPECT * min(rows, columns) else small


def of_greys(pixels: np.ndarray) -> tuple[str, ...]:
    """Return in which kinds an image (uint8) is odd by its greys."""
    if pixels.min() == pixels.max():
        return (CONSTANT,)
    low, high = np.percentile(pixels, [1, 99])
    return (FLAT,) if high - low < FEW_GREYS else ()


def count(kinds: Iterable[str]) -> dict[str, int]:
    """Return how many there are of each kind, most first."""
    return dict(Counter(kinds).most_common())


def losses(info: dict[str, Any], images: int) -> list[str]:
    """Return a sentence on rows left out, and one on images not read, where both are more than MANY of all.

    ``info`` is that of a data run (``rows``, ``left_out``, ``set_aside``), ``images`` how many are in it.
    """
    left = {reason: n for reason, n in (info.get("left_out") or {}).items() if reason != ASKED}
    aside = info.get("set_aside") or {}
    asked_away = (info.get("left_out") or {}).get(ASKED, 0)
    rows = (
        info.get("rows") or images + sum(aside.values()) + sum(left.values()) + asked_away
    ) - asked_away
    parts = (
        (left, rows, "rows of the table were left out"),
        (aside, images + sum(aside.values()), "images could not be read"),
    )
    kept = 1.0
    for lost, total, _ in parts:
        kept *= 1 - sum(lost.values()) / max(total, 1)
    if 1 - kept <= MANY + 1e-9:
        return []
    return [
        f"{sum(lost.values()):,} of {total:,} {what} ({sum(lost.values()) / total:.0%}): "
        f"{', '.join(f'{reason} {n:,}' for reason, n in lost.items() if n)}."
        for lost, total, what in parts
        if sum(lost.values())
    ]


def counts(info: dict[str, Any], images: int) -> pd.DataFrame:
    """Return how many rows and images a data run has lost and found odd: (what, why) and their number."""
    left, aside, kinds = (info.get(name) or {} for name in ("left_out", "set_aside", "odd"))
    rows = [
        (
            "rows of the table",
            "",
            info.get("rows") or images + sum(left.values()) + sum(aside.values()),
        )
    ]
    rows += [("left out", reason, n) for reason, n in left.items()]
    rows += [("could not be read", kind, n) for kind, n in aside.items()]
    rows += [
        ("images prepared", "", images),
        *(("odd, and kept", kind, n) for kind, n in kinds.items()),
    ]
    for column, values in (info.get("not_understood") or {}).items():
        rows += [(f"{column} not understood", value, n) for value, n in values.items()]
    return pd.DataFrame(rows, columns=["what", "why", "number"]).set_index(["what", "why"])


def oddest(folder: str | Path, images: pd.Series, most: int = 8) -> pd.DataFrame:
    """Return the oddest of the images prepared in ``folder``: row, image_id, kind; one of each kind, then more.

    ``images`` are the image ids of the data run, in its order.
    """
    table = pd.read_csv(Path(folder) / "odd.csv", dtype=str, keep_default_na=False)
    table["row"] = table["image_id"].map(pd.Series(range(len(images)), index=images.to_numpy()))
    table["rank"] = table["kind"].map({kind: k for k, kind in enumerate(KINDS)})
    table["turn"] = table.groupby("kind").cumcount()
    table = table.sort_values(["turn", "rank"], kind="stable")
    joined = table.groupby("row", sort=False).agg(
        image_id=("image_id", "first"), kind=("kind", ", ".join)
    )
    return joined.head(most).reset_index()
