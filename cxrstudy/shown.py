"""What a page shows: figures and tables as HTML with a text in their place, colours, and numbers for people."""

import base64
import html
import io
import re
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

COLOURS = sns.color_palette("colorblind").as_hex()
LEGIBLE = 430  # pt: a wider drawing, as narrow as a phone, has letters that are too small; there it scrolls instead
plt.rcParams["axes.titley"] = (
    1.0  # where it is anyhow; else it is sought anew, axis by axis, at every drawing
)
STYLE = {  # colour, marker, line
    "clip": (COLOURS[0], "o", "-"),
    "unicl": (COLOURS[1], "s", "--"),
    "clip+labels": (COLOURS[4], "^", "-."),
    "dinov2": (COLOURS[2], "D", ":"),
}


class Shown:
    """A figure as HTML with alternative text, in notebooks and in the book."""

    def __init__(self, markup: str, alt: str, image: bytes = b""):
        self.markup, self.alt, self.image = markup, alt, image

    def _repr_html_(self) -> str:
        return self.markup

    def __repr__(self) -> str:
        return f"[figure: {self.alt}]"


def show(figure: Figure, alt: str, *, raster: bool = False) -> Shown:
    """``figure`` as an image with ``alt``: SVG, or PNG for pictures made of pixels. ValueError without a text."""
    if not alt.strip():
        raise ValueError("a figure needs alternative text")
    buffer = io.BytesIO()
    kind = "png" if raster else "svg"
    with plt.rc_context({"svg.hashsalt": "cxrstudy"}):
        figure.savefig(
            buffer,
            format=kind,
            bbox_inches="tight",
            dpi=110,
            metadata=None if raster else {"Date": None},
        )
    plt.close(figure)
    mime = "image/png" if raster else "image/svg+xml"
    data = base64.b64encode(buffer.getvalue()).decode()
    style = "max-width:100%;height:auto;background:#fff"
    width = re.search(rb'<svg[^>]* width="([\d.]+)pt"', buffer.getvalue())
    kind = ' class="wide"' if not raster and width and float(width[1]) > LEGIBLE else ""
    return Shown(
        f'<img{kind} alt="{html.escape(alt)}" style="{style}" src="data:{mime};base64,{data}">',
        alt,
        buffer.getvalue(),
    )


def words(shown: pd.DataFrame, what: str, caption: str = "") -> Shown:
    """A table of sentences for the book: nothing cut short, lines broken, each cell with its column's name, which shows
    where a phone makes a card of a row; ``what`` it is, in words, and what its ``caption`` says above it."""
    named = shown.rename_axis(
        index=shown.index.name or shown.columns.name, columns=None
    )  # `tables` name the corner
    with pd.option_context("display.max_colwidth", None):
        soup = BeautifulSoup(
            named.reset_index().to_html(classes="dataframe words", index=False, border=0),
            "html.parser",
        )
    if caption:
        head = soup.new_tag("caption")
        head.string = caption
        soup.find_all("table")[0].insert(0, head)
    names = [cell.get_text() for cell in soup.select("thead tr:last-child th")]
    for row in soup.select("tbody tr"):
        for name, cell in zip(names, row.select("td"), strict=True):
            cell["data-label"] = name
    roles = dict(
        table="table", thead="rowgroup", tbody="rowgroup", tr="row", th="columnheader", td="cell"
    )
    for found in soup.find_all(
        list(roles)
    ):  # some browsers drop them where a table is laid out as cards
        found["role"] = roles[found.name]
    return Shown(str(soup), what)


def human(value: float) -> str:
    """1500 -> 1.5k, 3500000 -> 3.5M."""
    for step, unit in ((1e6, "M"), (1e3, "k")):
        if value >= step:
            return f"{value / step:.3g}{unit}"
    return f"{value:.3g}"


def nothing(title: str, why: str) -> Shown:
    """What stands in a figure's place where there is nothing to draw, and why."""
    return Shown(f"<p>{html.escape(f'{title} {why}'.strip())}</p>", f"{title} {why}".strip())


def log_sizes(axes: Any, sizes: np.ndarray) -> None:
    """Give an axis a log scale, with a number at the ``sizes`` that have room for one."""
    axes.set_xscale("log")
    known = np.unique(sizes)
    low, high = np.log(known[0]), np.log(known[-1])
    kept = [known[-1]]
    for size in known[:-1]:
        if all(abs(np.log(size / other)) > 0.13 * max(high - low, 1e-9) for other in kept):
            kept.append(size)
    axes.xaxis.set_major_locator(FixedLocator(sorted(kept)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))
    axes.xaxis.set_minor_locator(FixedLocator([n for n in known if n not in kept]))
    axes.xaxis.set_minor_formatter(NullFormatter())
