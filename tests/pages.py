"""What the tests of pages in a real browser share."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)"
)
DESKTOP, PHONE = (1300, 900), (390, 800)
CONTRAST = """node => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [x, y, z] = [r, g, b].map(v => linear(v / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const style = getComputedStyle(node);
  let ground = node, colour = [0, 0, 0, 0];
  while (ground && (colour.length === 4 && colour[3] === 0)) {
    colour = rgb(getComputedStyle(ground).backgroundColor); ground = ground.parentElement;
  }
  const ink = node.namespaceURI.endsWith('svg') ? style.fill : style.color;
  const text = light(rgb(ink)), under = light(colour);
  return (Math.max(text, under) + 0.05) / (Math.min(text, under) + 0.05);
}"""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Debian's browser, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@contextlib.contextmanager
def visits(browser: Any) -> Iterator[Any]:
    """A function that opens a file in a new context; requests and errors fail the test."""
    contexts, wrong = [], []
    ours = ("file", "data", "blob")

    def opened(path, size=DESKTOP, scheme="light", script=True):
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            java_script_enabled=script,
        )
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console",
            lambda message: wrong.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda r: wrong.append(r.url) if r.url.split(":")[0] not in ours else None
        )
        page.goto(path.as_uri())
        if script:
            page.wait_for_timeout(300)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def call(*words: object, **environment: str) -> None:
    """Run a Python module, or ``-c`` code, to its good end."""
    command = [sys.executable, *([] if words[0] == "-c" else ["-m"]), *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def scaffold(top: Path, toc: str) -> Path:
    """A small book's source below ``top``, with the book's extension, assets and configuration."""
    source = top / "src"
    source.mkdir()
    for name in ("_ext", "assets"):
        shutil.copytree(
            ROOT / "book" / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "book" / "_config.yml", source)
    (source / "_toc.yml").write_text(f"format: jb-book\n{toc}\n")
    return source


def built(top: Path) -> Path:
    """Build what `scaffold` began as strictly as the book is built; the folder of its pages."""
    words = (
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        top / "src",
        "--path-output",
        top,
    )
    call(*words, "-W", "-n", "--keep-going", PYTHONWARNINGS="ignore")
    return top / "_build" / "html"


def beyond(page: Any) -> int:
    """By how many pixels a page scrolls sideways."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
