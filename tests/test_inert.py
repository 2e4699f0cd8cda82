"""What comes from reports, tables, tags and errors is shown in pages as text: none of it runs."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import docutils.core
import nbformat
import pandas as pd
import pytest
import yaml
from conftest import ROOT, Walk
from markdown_it import MarkdownIt
from myst_parser.parsers.docutils_ import Parser
from pages import needs_browser, visits

from cxrstudy import bookpages, claims_text, datasets, plots, shown, text
from cxrstudy.data.cardfile import CardError, read_card
from cxrstudy.data.odd import counts

SCRIPT = "<script>window.hacked=1</script>"
IMAGE = "<img src=x onerror=window.hacked=2>"
EVIL = (
    f"{SCRIPT}{IMAGE} </td></table></script><svg onload=window.hacked=3> [x](javascript:hacked=4)"
)
DIRECTIVE = f"```{{raw}} html\n{SCRIPT}\n```\n\n{{raw}}`x`"


def rendered(markdown: str) -> str:
    """Markdown of a notebook's output as the book shows it (myst-nb: commonmark)."""
    return MarkdownIt("commonmark").render(markdown)


def page(markdown: str) -> str:
    """A page of the book that is written in MyST, with its directives."""
    words = {"myst_enable_extensions": ["dollarmath", "amsmath", "colon_fence", "deflist"]}
    quiet = {"report_level": 5, "embed_stylesheet": False, "stylesheet_path": ""}
    return docutils.core.publish_parts(
        markdown, parser=Parser(), writer_name="html5", settings_overrides=words | quiet
    )["body"]


def reports() -> str:
    lists = {name: [["pneumothorax"]] for name in ("agreed", "missed", "invented")}
    row = {"truth": [f"No pneumothorax. {EVIL}"], "generated": [EVIL], "f1": [0.5]}
    return plots.report_examples(pd.DataFrame(row | lists)).markup


def data_set() -> str:
    info = {"kind": "real", "size": 64, "left_out": {EVIL: 3}, "set_aside": {f"not grey {EVIL}": 9}}
    info |= {"odd": {EVIL: 1}, "rows": 20, "not_understood": {"age": {EVIL: 3}}}
    manifest = pd.DataFrame({"patient_id": ["a", "b"]})
    card = SimpleNamespace(title=EVIL, licence=EVIL, citation=EVIL, verified=None)
    said = datasets.describe("a", SimpleNamespace(manifest=manifest, info=info), card)
    return rendered(said) + counts(info, 2).to_html()


def table() -> str:
    cells = pd.DataFrame({EVIL: [EVIL]}, index=pd.Index([EVIL], name=f"{EVIL}2"))
    return shown.words(cells, EVIL, EVIL).markup


def figure() -> str:
    axes = plots.plt.subplots()[0]
    return shown.show(axes, EVIL).markup + shown.nothing(EVIL, EVIL).markup


def planner() -> str:
    return claims_text.embedded({"note": EVIL})


PARTS = {each.__name__: each for each in (reports, data_set, table, figure, planner)}


def failed_run(walk: Walk) -> str:
    folder = walk.runs / "smoke" / "data" / "a-000000"
    folder.mkdir(parents=True)
    evil = f"{EVIL} {DIRECTIVE}"
    error = nbformat.v4.new_output("error", ename="CardError", evalue=evil, traceback=[])
    cell = nbformat.v4.new_code_cell("", outputs=[error])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "notebook.ipynb")
    runs = [{"name": folder.name, "stage": "data", "parameters": {}, "needs": []}]
    plan = {"preset": "smoke", "variant": "", "runs": runs}
    (walk.runs / "smoke" / "plan.json").write_text(json.dumps(plan))
    return bookpages.runs()[1]


def written(path: Path, **values: str) -> None:
    """Give a card other words."""
    _, front, rest = path.read_text(encoding="utf-8").split("---\n", 2)
    facts = yaml.dump(yaml.safe_load(front) | values, sort_keys=False)
    path.write_text(f"---\n{facts}---\n{rest}", encoding="utf-8")


def cautions(walk: Walk) -> str:
    written(walk.root / "data_cards" / "site.md", caution=EVIL, title=EVIL)
    preset = walk.root / "notebooks" / "presets" / "site.yml"
    lines = preset.read_text(encoding="utf-8")
    lines = re.sub(r"^title:.*\n", f"title: {json.dumps(EVIL)}\n", lines, flags=re.MULTILINE)
    preset.write_text(lines, encoding="utf-8")
    return rendered(text.caution("site")) + rendered(text.described("site"))


def test_text_is_escaped_for_markdown():
    for evil in (EVIL, DIRECTIVE, "a | b", "$x$ `y` *z* _u_ &lt;", "# title", "~~~", "\\<b>"):
        for said in (rendered(shown.inert(evil)), page(f"Said: {shown.inert(evil)}")):
            plain = re.sub(r"</?(p|main|div)\b[^>]*>", "", said)
            assert "<" not in plain, plain


@pytest.mark.parametrize("name", ["<b>", "a`b", "a|b", "{x}", "a\nb"])
def test_a_label_with_markup_in_its_name_is_refused(walk: Walk, name: str):
    path = walk.root / "data_cards" / "site.md"
    names = f"  names:\n    {json.dumps(name)}: x\n"
    text = path.read_text(encoding="utf-8")
    assert "  names:\n" in text
    path.write_text(text.replace("  names:\n", names, 1), encoding="utf-8")
    with pytest.raises(CardError, match=r"site.md:\d+.*is shown in pages: write it without"):
        read_card("site")


@needs_browser
def test_in_a_browser_it_stays_text(browser, walk: Walk, tmp_path: Path):
    parts = {name: make() for name, make in PARTS.items()}
    parts["failed_run"] = page(failed_run(walk))
    parts["cautions"] = cautions(walk)
    body = "".join(f'<section id="{name}">{part}</section>' for name, part in parts.items())
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset=utf-8>{body}", "utf-8")
    (tmp_path / "_static").mkdir()
    for name in ("planner.css", "planner.js"):
        (tmp_path / "_static" / name).touch()
    with visits(browser) as visit:
        seen = visit(tmp_path / "page.html")
        assert seen.evaluate("window.hacked") is None
        assert seen.locator("img[onerror], svg[onload], a[href^=javascript]").count() == 0
        for name in parts:
            section = seen.locator(f"section#{name}")
            assert section.count() == 1
            assert section.evaluate("node => node.parentElement.tagName") == "BODY", name
            said = section.evaluate("node => node.textContent + node.innerHTML")
            assert "window.hacked" in said, name  # it is there, as text
            scripts = section.locator("script:not([src])").evaluate_all(
                "all => all.map(s => s.type)"
            )
            assert set(scripts) <= {"application/json"}, name


def test_nothing_else_makes_html_of_text():
    """Each place where HTML is put together by hand is one that the tests above know."""
    known = {"shown.py", "plots.py", "pictures.py", "explorer.py", "claims_text.py"}
    made = re.compile(r"_repr_html_|to_html|HTML\(|<(?:p|div|td|tr|table|span|script|img|mark)\b")
    package = ROOT / "cxrstudy"
    for path in package.rglob("*.py"):
        if made.search(path.read_text(encoding="utf-8")):
            assert path.name in known, f"{path}: escape what it shows, and test it here"
