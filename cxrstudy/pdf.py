"""Print the built book to one PDF: its chapters on one page, which Chromium prints."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml
from bs4 import BeautifulSoup

from cxrstudy import study
from cxrstudy.files import replacing, write_text

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
DROPPED = "script, noscript, style, button, a.headerlink, #planner, .explorer, .prev-next-area"
SECONDS = 600  # for printing
WIDE = 9  # columns that fit on a page in portrait
OPTIONS = ["--headless", "--disable-gpu", "--no-pdf-header-footer", "--export-tagged-pdf"]
OPTIONS += ["--generate-pdf-document-outline", "--no-first-run"]
OPTIONS += ["--virtual-time-budget=120000", "--timeout=300000"]  # ms, to typeset formulas


def browser() -> str:
    """Return the path of Chromium: $CHROMIUM, or an installed one.

    Raises:
        StudyError: there is none.
    """
    asked = os.environ.get("CHROMIUM", "")
    for name in [asked] if asked else [*BROWSERS, MAC]:
        if path := shutil.which(name):
            return path
    missing = f"CHROMIUM={asked} was not found" if asked else "none was found"
    raise study.StudyError(
        f"the PDF is printed by Chromium or Chrome, and {missing}: install one (Debian: apt "
        "install chromium) or name its path in CHROMIUM; or open the book and print its pages"
    )


def print_book(html: Path, toc: Path, target: Path) -> Path:
    """Print the chapters that ``toc`` names, without pages of runs, from ``html`` to ``target``.

    Raises:
        StudyError: there is no browser, or it could not print.
    """
    program = browser()
    page = html / "book-in-one.html"
    write_text(page, together(html, yaml.safe_load(toc.read_text(encoding="utf-8"))))
    try:
        with tempfile.TemporaryDirectory() as profile, replacing(target) as scratch:
            command = [program, *OPTIONS, f"--user-data-dir={profile}"]
            command += ["--no-sandbox"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
            command += [f"--print-to-pdf={scratch}", page.as_uri()]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=SECONDS
            )
            if done.returncode or not scratch.is_file():
                why = done.stderr.strip()[-500:]
                raise study.StudyError(f"{program} could not print {page}: {why}")
    finally:
        page.unlink(missing_ok=True)
    return target


def together(html: Path, toc: dict[str, Any]) -> str:
    """Return one page with all chapters, whose links to each other stay on the page."""
    parts = [("", [toc["root"]])]
    parts += [(p["caption"], [c["file"] for c in p["chapters"]]) for p in toc["parts"]]
    names = {name for _, chapters in parts for name in chapters}
    first = BeautifulSoup((html / f"{toc['root']}.html").read_text(encoding="utf-8"), "html.parser")
    linked = first.select("head link[rel=stylesheet], head script[src*=mathjax]")
    head = [str(tag) for tag in linked]
    head += [str(tag) for tag in first.select("head script") if "MathJax" in tag.get_text()]
    contents, bodies = [], []
    for caption, chapters in parts:
        contents += [f"<li class=caption>{caption}</li>"] if caption else []
        for name in chapters:
            article = _article(html / f"{name}.html", name, names)
            title = article.h1.get_text() if article.h1 else name
            contents.append(f'<li><a href="#{name}">{title}</a></li>')
            body = article.decode_contents()
            bodies.append(f'<section class="chapter" id="{name}">{body}</section>')
    title = first.h1.get_text() if first.h1 else "The book"
    return (
        '<!DOCTYPE html><html lang="en" data-mode="light" data-theme="light"><head>'
        f'<meta charset="utf-8"><title>{title}</title>{"".join(head)}</head>'
        f'<body class="in-one"><main class="bd-article">{bodies[0]}<nav aria-label="Contents">'
        f"<h2>Contents</h2><ul>{''.join(contents)}</ul></nav>{''.join(bodies[1:])}</main>"
        "</body></html>"
    )


def _article(path: Path, name: str, names: set[str]) -> Any:
    """Return a chapter's article with its name in ids and links, without links to other pages."""
    article = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").select_one(
        "article.bd-article"
    )
    if article is None:
        raise study.StudyError(f"{path} has no article; build the book again: cxrstudy book")
    for tag in article.select(DROPPED):
        tag.decompose()
    for tag in article.find_all(id=True):
        tag["id"] = f"{name}--{tag['id']}"
    for tag in article.find_all("a", href=True):
        page, _, anchor = str(tag["href"]).partition("#")
        chapter = page.removesuffix(".html") or name
        if chapter in names:
            tag["href"] = f"#{chapter}--{anchor}" if anchor else f"#{chapter}"
        elif "://" not in page and not page.startswith("mailto:"):
            del tag["href"]
    for tag in article.select("details"):
        tag["open"] = ""
    for tag in article.find_all("table"):
        row = tag.find("tr")
        if row is not None and len(row.find_all(["td", "th"])) > WIDE:
            tag["data-wide"] = ""
    for tag in article.find_all("h1"):
        for link in tag.find_all("a"):
            link.unwrap()
    return article
