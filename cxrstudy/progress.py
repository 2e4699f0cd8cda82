"""Progress bars, for a person at the notebook and for `cxrstudy run`, which watches many notebooks at once."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Progress = Callable[
    [Iterable], Iterable
]  # what long loops take: `track` in notebooks, `iter` where nobody looks


def track(items: Iterable[Item], what: str = "") -> Iterator[Item]:
    """Iterate with a bar; also note the share done in the file $CXRSTUDY_PROGRESS, where that is set."""
    watched = os.environ.get("CXRSTUDY_PROGRESS")
    bar = tqdm(items, desc=what, mininterval=1.0, dynamic_ncols=False, ncols=88)
    noted = 0.0
    for item in bar:
        yield item
        if watched and bar.total and time.monotonic() - noted > 0.5:
            noted = time.monotonic()
            Path(watched).write_text(f"{what} {(bar.n + 1) / bar.total:.0%}")
