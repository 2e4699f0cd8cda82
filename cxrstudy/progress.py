"""Progress bars, for a reader of the notebook and for `cxrstudy run`, which watches many."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Progress = Callable[[Iterable], Iterable]  # of long loops: `track` in notebooks, else `iter`


def track(items: Iterable[Item], what: str = "") -> Iterator[Item]:
    """Iterate with a bar; also write the share that is done to $CXRSTUDY_PROGRESS, if set."""
    watched = os.environ.get("CXRSTUDY_PROGRESS")
    bar = tqdm(items, desc=what, mininterval=1.0, dynamic_ncols=False, ncols=88)
    noted = 0.0
    for item in bar:
        yield item
        if watched and bar.total and time.monotonic() - noted > 0.5:
            noted = time.monotonic()
            Path(watched).write_text(f"{what} {(bar.n + 1) / bar.total:.0%}")
