"""Sphinx extension: pages that work without a network, accessible tables, notebooks to save."""

import json
import re
from pathlib import Path

from bs4 import BeautifulSoup
from sphinx.addnodes import toctree


def _reached(table):
    """Make a table reachable by keyboard, unless the element around it is."""
    before = table.string[table.string.rfind("<", 0, table.start()) : table.start()]
    reachable = 'tabindex="0"' in before and before.endswith(">")
    return table[0] if reachable else f'{table[0]} tabindex="0"'


ROLES = {"table": "table", "thead": "rowgroup", "tbody": "rowgroup", "tr": "row"}
ROLES |= {"th": "columnheader", "td": "cell"}


def label_cells(table):
    """Name the column in each cell of a Markdown table, for phones, where its rows are cards."""
    soup = BeautifulSoup(table[0], "html.parser")
    names = [cell.get_text() for cell in soup.select("thead tr > *")]
    for row in soup.select("tbody tr"):
        for name, cell in zip(names, row.select("td"), strict=False):
            if name and len(names) > 2:
                cell["data-label"] = name
    for found in soup.find_all(list(ROLES)):  # some browsers drop them where rows are cards
        found["role"] = ROLES[found.name]
    return str(soup)


MENDS = (  # pattern, replacement: violations that axe-core finds
    (r"<th></th>", "<td></td>"),  # pandas' empty corner above the index
    (r"<table(?= |>)(?! tabindex)", _reached),  # a table that scrolls by itself
    # and in the sidebar of a run's page, its chapter (`lighten`)
    (re.compile(r'<table tabindex="0" class="words table">.*?</table>', re.DOTALL), label_cells),
    (
        r'toctree-l1(?="><a class="reference internal" href="../../runs.html")',
        "toctree-l1 current active",
    ),
)
OUTSIDE = ("thebe", "https://", "http://")


def drop_outside(app, pagename, templatename, context, doctree):
    """Leave out scripts and styles of Thebe (live kernels need a server) or from another host."""

    def ours(file):
        body = getattr(file, "attributes", {}).get("body", "")
        return not any(mark in f"{getattr(file, 'filename', file)} {body}" for mark in OUTSIDE)

    for key in ("script_files", "css_files"):
        context[key] = [file for file in context.get(key, []) if ours(file)]


def keep_notebook(app, pagename, templatename, context, doctree):
    """Write a page's notebook as a script too, which ``assets/notebook.js`` reads and saves."""
    if context.get("page_source_suffix") == ".ipynb":
        text = Path(app.env.doc2path(pagename)).read_text(encoding="utf-8")
        script = Path(app.outdir, "_sources", f"{pagename}.ipynb.js")
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f"cxrstudyNotebook({json.dumps(text)});\n", encoding="utf-8")


def hide_parameters(app, docname, source):
    """Leave the cells of parameters out of the book's own pages; pages of runs show them."""
    if not docname.startswith("runs/"):
        tag = r'^ *"(?:injected-)?parameters"(?=,?$)'  # in a list of tags, on a line of its own
        source[0] = re.sub(tag, r'\g<0>, "remove-cell"', source[0], flags=re.MULTILINE)


def lighten(app, env):
    """Leave pages of single runs out of the sidebar and of the search.

    Hundreds of similar notebooks would hide the chapters.
    """
    for name, tree in env.tocs.items():
        if name.startswith("runs/"):
            env.metadata[name]["nosearch"] = True
        elif name != env.config.root_doc:
            for node in list(tree.findall(toctree)):
                node.parent.remove(node)


def mend(app, error):
    """Apply ``MENDS`` to the pages that were written."""
    if error is None and app.builder.format == "html":
        for path in Path(app.outdir).rglob("*.html"):
            text = path.read_text(encoding="utf-8")
            mended = text
            for pattern, new in MENDS:
                mended = re.sub(pattern, new, mended)
            if mended != text:
                path.write_text(mended, encoding="utf-8")


def setup(app):
    """Register with Sphinx, late, after themes and other extensions."""
    app.connect("source-read", hide_parameters)
    app.connect("html-page-context", drop_outside, priority=900)
    app.connect("html-page-context", keep_notebook, priority=900)
    app.connect("env-updated", lighten)
    app.connect("build-finished", mend)
    app.extensions["sphinx_multitoc_numbering"].parallel_read_safe = True  # it acts after reading
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
