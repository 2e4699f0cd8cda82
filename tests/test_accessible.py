"""axe-core on every page of the tests' book, in both colour schemes, on a desktop and a phone."""

import importlib.resources
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from conftest import Walk
from pages import needs_browser
from test_book import Tags, pages

# what the theme does and we leave: (rule, what its selector or markup holds, why)
THEMES: tuple[tuple[str, str, str], ...] = ()
SERIOUS = ("serious", "critical")
FEW = ("index.html", "results-smoke.html", "search.html")


def violations(browser: Any, paths: Iterable[Path], scheme: str, width: int) -> list[str]:
    """What axe-core finds of serious impact, one line a (page, rule, element)."""
    axe = (importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text()
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    found = []
    for path in paths:
        page.goto(path.as_uri())
        page.evaluate(axe)
        for rule in page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]:
            for node in rule["nodes"]:
                known = any(rule["id"] == name and mark in node["html"] for name, mark, _ in THEMES)
                if node["impact"] in SERIOUS and not known:
                    found.append(
                        f"{path.name} {scheme} {width}: {rule['id']} {node['target']} "
                        f"{node['html'][:120]}"
                    )
    page.close()
    return found


@needs_browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1300), ("dark", 390)])
def test_axe_finds_nothing_serious_on_some_pages(
    book: Path, browser: Any, scheme: str, width: int
) -> None:
    assert violations(browser, [book / name for name in FEW], scheme, width) == []


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
def test_axe_finds_nothing_serious_on_any_page(
    book: Path, browser: Any, scheme: str, width: int
) -> None:
    assert violations(browser, pages(book), scheme, width) == []


@needs_browser
def test_search_finds_a_finding_from_disk(book: Path, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{(book / 'search.html').as_uri()}?q=atelectasis")
    page.wait_for_selector('#search-results li a[href^="gallery.html"]')
    assert (
        page.locator('#search-results li a[href^="runs/"]').count() == 0
    )  # hundreds would hide the chapters
    page.close()


def test_every_place_within_a_page_that_is_linked_is_there(book: Path) -> None:
    tags = {path: Tags(path.read_text()).found for path in pages(book)}
    ids = {
        path: {a.get("id") for _, a in found} | {a.get("name") for _, a in found}
        for path, found in tags.items()
    }
    for path, found in tags.items():
        for tag, attributes in found:
            parts = urlsplit(attributes.get("href", "")) if tag == "a" else urlsplit("")
            if parts.fragment and not parts.scheme:
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                assert target not in ids or unquote(parts.fragment) in ids[target], (
                    f"{path}: {attributes['href']}"
                )


@pytest.mark.slow
@needs_browser
def test_the_chapters_are_printed_to_one_pdf(walked: Walk, book: Path) -> None:
    done = walked.call("book", "--pdf")
    assert done.returncode == 0, done.stderr
    printed = walked.root / "_build" / "book.pdf"
    assert printed.read_bytes().startswith(b"%PDF-")
    assert printed.stat().st_size > 100_000
    assert not (book / "book-in-one.html").exists()


def test_without_a_browser_the_pdf_says_what_is_missing(walked: Walk) -> None:
    done = walked.call("book", "--pdf", CHROMIUM="/nowhere/chromium")
    assert done.returncode == 2
    assert "CHROMIUM=/nowhere/chromium" in done.stderr
    assert "apt install chromium" in done.stderr


def test_chapters_on_one_page_lead_to_each_other(tmp_path: Path) -> None:
    from cxrstudy import pdf

    def write(name: str, body: str) -> None:
        (tmp_path / f"{name}.html").write_text(
            f"<html><article class=bd-article>{body}</article></html>"
        )

    write(
        "index",
        '<h1 id="top">Door<a class="headerlink" href="#top">#</a></h1>'
        '<a href="laws.html#fit">fit</a>',
    )
    write(
        "laws",
        '<h1>Laws</h1><p id="fit"><a href="runs/mini/x.html">run</a><a href="https://a.org">a</a></p>',
    )
    toc = {"root": "index", "parts": [{"caption": "Results", "chapters": [{"file": "laws"}]}]}
    found = Tags(pdf.together(tmp_path, json.loads(json.dumps(toc)))).found
    links = [attributes.get("href", "") for tag, attributes in found if tag == "a"]
    assert links == ["#laws--fit", "#index", "#laws", "", "https://a.org"]
    assert {"index", "laws", "index--top", "laws--fit"} <= {
        attributes.get("id") for _, attributes in found
    }
