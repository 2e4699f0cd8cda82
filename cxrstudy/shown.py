"""Figures and tables as HTML with alternative text, their colours, and numbers as text."""

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
MARKERS, LINES = "osD^vPX*", ("-", "--", "-.", ":")
LEGIBLE = 430  # pt; a wider figure scrolls on a phone, where its letters would be too small
TASKS = {"findings": "Findings", "lines_tubes": "Lines and tubes"}
plt.rcParams["axes.titley"] = 1.0  # the usual place; unset, it is computed at every drawing
STYLE = {  # colour, marker, line
    "clip": (COLOURS[0], "o", "-"),
    "unicl": (COLOURS[1], "s", "--"),
    "clip+labels": (COLOURS[4], "^", "-."),
    "dinov2": (COLOURS[2], "D", ":"),
}


class Shown:
    """A figure or table as HTML with alternative text, in notebooks and in the book."""

    def __init__(self, markup: str, alt: str, image: bytes = b""):
        self.markup, self.alt, self.image = markup, alt, image

    def _repr_html_(self) -> str:
        return self.markup

    def __repr__(self) -> str:
        return f"[figure: {self.alt}]"


def show(figure: Figure, alt: str, *, raster: bool = False) -> Shown:
    """Return a figure as an image: SVG, or PNG with ``raster``, for pictures made of pixels.

    Raises:
        ValueError: the alternative text ``alt`` is empty.
    """
    if not alt.strip():
        raise ValueError("a figure needs alternative text")
    buffer = io.BytesIO()
    kind = "png" if raster else "svg"
    with plt.rc_context({"svg.hashsalt": "cxrstudy"}):
        notes = None if raster else {"Date": None}
        figure.savefig(buffer, format=kind, bbox_inches="tight", dpi=110, metadata=notes)
    plt.close(figure)
    mime = "image/png" if raster else "image/svg+xml"
    data = base64.b64encode(buffer.getvalue()).decode()
    style = "max-width:100%;height:auto;background:#fff"
    width = re.search(rb'<svg[^>]* width="([\d.]+)pt"', buffer.getvalue())
    wide = ' class="wide"' if not raster and width and float(width[1]) > LEGIBLE else ""
    source = f'src="data:{mime};base64,{data}"'
    image = f'<img{wide} alt="{html.escape(alt)}" style="{style}" {source}>'
    return Shown(image, alt, buffer.getvalue())


def words(shown: pd.DataFrame, what: str, caption: str = "") -> Shown:
    """Return a table of the book as HTML, with whole texts.

    Each cell has its column's name, which a phone shows where it lays out a row as a card.

    Args:
        shown: the table; its index becomes the first column.
        what: the alternative text.
        caption: text above the table, if any.
    """
    named = shown.rename_axis(index=shown.index.name or shown.columns.name, columns=None)
    with pd.option_context("display.max_colwidth", None):
        written = named.reset_index().to_html(classes="dataframe words", index=False, border=0)
    soup = BeautifulSoup(written, "html.parser")
    if caption:
        head = soup.new_tag("caption")
        head.string = caption
        soup.find_all("table")[0].insert(0, head)
    names = [cell.get_text() for cell in soup.select("thead tr:last-child th")]
    for row in soup.select("tbody tr"):
        for name, cell in zip(names, row.select("td"), strict=True):
            cell["data-label"] = name
    roles = {"table": "table", "thead": "rowgroup", "tbody": "rowgroup", "tr": "row"}
    roles |= {"th": "columnheader", "td": "cell"}
    for found in soup.find_all(list(roles)):  # some browsers drop them where rows are cards
        found["role"] = roles[found.name]
    return Shown(str(soup), what)


def human(value: float) -> str:
    """Return a count in short: 1500 -> 1.5k, 3500000 -> 3.5M."""
    for step, unit in ((1e6, "M"), (1e3, "k")):
        if value >= step:
            return f"{value / step:.3g}{unit}"
    return f"{value:.3g}"


def inert(text: object) -> str:
    """Return text of a file or an error for Markdown: one line in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|$#~@&])", r"\\\1", " ".join(str(text).split()))


def without_html(text: str) -> str:
    """Return the Markdown of a card or preset, in which tags of HTML are words."""
    return text.replace("<", "&lt;")


def nothing(title: str, why: str) -> Shown:
    """Return a sentence in place of a figure that has nothing to draw."""
    text = f"{title} {why}".strip()
    return Shown(f"<p>{html.escape(text)}</p>", text)


def log_sizes(axes: Any, sizes: np.ndarray) -> None:
    """Give an x axis a log scale, with a number at each of ``sizes`` that has room for one."""
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
