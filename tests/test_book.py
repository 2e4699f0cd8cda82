import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from conftest import Walk, clone
from pages import DESKTOP, PHONE, beyond, chromium, needs_browser, visits

from cxrstudy import sources

PAGES = ("index.html", "data.html", "method.html", "results-smoke.html", "runs.html", "rerun.html")


class Tags(HTMLParser):
    """Every start tag of a page with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    handle_startendtag = handle_starttag


def pages(book: Path) -> list[Path]:
    return [path for path in book.rglob("*.html") if "_static" not in path.parts]


def test_the_pages_are_there(book: Path, walked: Walk) -> None:
    assert all((book / page).is_file() for page in PAGES)
    executed = list(walked.runs.glob("*/*/*/notebook.ipynb"))
    assert executed
    listed = (book / "runs.html").read_text()
    for notebook in executed:
        page = f"runs/smoke/{notebook.parent.parent.name}-{notebook.parent.name}.html"
        assert (book / page).is_file()
        assert f'href="{page}"' in listed


def test_no_asset_comes_from_elsewhere(book: Path) -> None:
    for path in pages(book):
        for tag, attributes in Tags(path.read_text()).found:
            if tag in ("script", "img", "iframe", "source", "video", "audio", "embed", "object"):
                address = (
                    attributes.get("src")
                    or attributes.get("data")
                    or attributes.get("srcset")
                    or ""
                )
                assert not re.match(r"(https?:)?//", address), f"{path}: <{tag}> {address}"
            if tag == "link" and attributes.get("rel") != "canonical":
                assert not re.match(r"(https?:)?//", attributes.get("href", "")), (
                    f"{path}: {attributes}"
                )
        inline = re.findall(r"<script(?![^>]*src=)[^>]*>(.*?)</script>", path.read_text(), re.S)
        assert not [text for text in inline if "://" in text], (
            f"{path}: an inline script names an address"
        )
    for path in [*book.rglob("*.css")]:
        outside = re.findall(
            r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]+", path.read_text(errors="replace")
        )
        assert not outside, f"{path}: {outside}"


def test_the_contents_beside_a_page_name_the_chapters_alone_and_of_a_run_its_chapter(
    book: Path,
) -> None:
    for page in (book / "findings.html", next((book / "runs").rglob("*.html"))):
        found = BeautifulSoup(page.read_text(), "html.parser").select("nav.bd-links a")
        assert len(found) > 20
        assert not [link["href"] for link in found if "runs/" in link["href"]]
    current = [
        li.a["href"]
        for li in BeautifulSoup(page.read_text(), "html.parser").select("nav.bd-links li.active")
    ]
    assert current == ["../../runs.html"]


def test_every_figure_has_a_telling_text(book: Path) -> None:
    figures = 0
    for path in pages(book):
        for tag, attributes in Tags(path.read_text()).found:
            if tag == "img" and "logo" not in attributes.get("class", ""):
                figures += 1
                assert len(attributes.get("alt", "")) > 20, (
                    f"{path}: {attributes.get('src', '')[:60]}"
                )
    assert figures >= 10


def test_every_link_within_the_book_leads_somewhere(book: Path) -> None:
    for path in pages(book):
        for tag, attributes in Tags(path.read_text()).found:
            parts = urlsplit(attributes.get("href", "")) if tag == "a" else urlsplit("")
            if parts.path and not parts.scheme:
                target = (path.parent / unquote(parts.path)).resolve()
                assert target.exists(), f"{path}: {attributes['href']}"


def test_synthetic_results_say_so_and_the_door_says_not_for_clinical_use(book: Path) -> None:
    for page in ("index.html", "results-smoke.html"):
        assert "synthetic x-rays" in (book / page).read_text()
    assert all("not for clinical use" in path.read_text() for path in pages(book))


def test_a_number_in_prose_comes_from_its_record(walked: Walk, book: Path, tmp_path: Path) -> None:
    shutil.copytree(walked.root, tmp_path / "copy", ignore=shutil.ignore_patterns("_build"))
    walk = Walk(tmp_path / "copy", tmp_path / "copy" / "runs")
    path = next(walk.runs.glob("smoke/classify/clip-n256-*/record.json"))
    record = json.loads(path.read_text())
    metric = next(
        m
        for m in record["metrics"]
        if (m["task"], m["label"], m["metric"]) == ("findings", "macro", "auroc")
    )
    old, metric["value"] = f"{metric['value']:.3f}", 0.7777
    page = "runs.html"
    assert old in prose(book / page)
    path.write_text(json.dumps(record))
    assert walk.call("book").returncode == 0
    assert "0.778" in prose(walk.root / "_build" / "_build" / "html" / page)


def broken(walk: Walk) -> None:
    """Presets that were run and cannot be shown: deleted, mistyped, or with a damaged file."""
    presets = walk.root / "notebooks" / "presets"
    run = {"name": "data-000000", "stage": "data", "parameters": {}, "needs": []}
    for name in ("gone", "mistyped", "torn", "cut"):
        (walk.runs / name / "data" / "data-000000").mkdir(parents=True)
        plan = json.dumps({"preset": name, "variant": "", "runs": [run]})
        (walk.runs / name / "plan.json").write_text(plan[:40] if name == "torn" else plan)
        if name != "gone":
            shutil.copy(presets / "smoke.yml", presets / f"{name}.yml")
    (presets / "mistyped.yml").write_text("title: [one\n")
    (walk.runs / "cut" / "data" / "data-000000" / "record.json").write_text('{"schema": 1')


def test_what_cannot_be_read_is_left_out_with_the_file_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = clone(tmp_path)
    monkeypatch.setenv("CXRSTUDY_ROOT", str(walk.root))
    monkeypatch.setenv("CXRSTUDY_RUNS", str(walk.runs))
    assert sources.left_out() == {}
    assert sources.studies() == ["mini"]
    broken(walk)
    (walk.runs / "smoke").mkdir()
    (walk.runs / "smoke" / "plan.json").write_text(
        json.dumps({"preset": "smoke", "variant": "", "runs": []})
    )
    found = sources.left_out()
    assert set(found) == {"gone", "mistyped", "torn", "cut"}
    assert "presets/gone.yml is gone" in found["gone"]
    assert "mistyped.yml:1: not YAML" in found["mistyped"]
    assert found["torn"].startswith(f"{walk.runs / 'torn' / 'plan.json'} cannot be read: delete it")
    assert str(walk.runs / "cut" / "data" / "data-000000" / "record.json") in found["cut"]
    assert sources.presets_run() == sources.studies() == ["smoke"]
    (walk.runs / "torn" / "plan.json").write_text(
        json.dumps({"preset": "torn", "variant": "", "runs": []})
    )
    assert sources.presets_run() == ["torn", "smoke"]  # mended, it is there again
    (walk.root / "notebooks" / "presets" / "mini.yml").write_text("title: [broken")
    assert sources.studies() == ["torn", "smoke"]


def test_the_book_goes_on_without_what_cannot_be_read_and_says_so(tmp_path: Path) -> None:
    walk = clone(tmp_path)
    broken(walk)
    done = walk.call("book")
    assert done.returncode == 0, done.stderr
    listed = prose(walk.root / "_build" / "_build" / "html" / "runs.html")
    assert "Left out of this book" in listed
    for name in ("gone", "mistyped", "torn", "cut"):
        assert f"{name}, run on this machine" in listed
        assert f"left out of the book: {name}, run on this machine" in done.stderr


def prose(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page.read_text()))


def test_an_unchanged_book_is_left_as_it_is(walked: Walk, book: Path) -> None:
    kept = [*book.rglob("*.html"), *(walked.root / "_build" / "src").rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in kept if path.is_file()}
    done = walked.call("book")
    assert done.returncode == 0
    assert "up to date" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_copies_of_executed_notebooks_keep_their_time_stamps(walked: Walk, book: Path) -> None:
    for notebook in walked.runs.glob("*/*/*/notebook.ipynb"):
        copy = (
            walked.root
            / "_build/src/runs/smoke"
            / f"{notebook.parent.parent.name}-{notebook.parent.name}.ipynb"
        )
        assert copy.stat().st_mtime == notebook.stat().st_mtime
        assert copy.read_bytes() == notebook.read_bytes()


@needs_browser
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_in_a_real_browser(book: Path, size: tuple[int, int]) -> None:
    with chromium() as browser, visits(browser) as opened:
        page = opened(book / "index.html", size)
        run = next(path.relative_to(book) for path in book.glob("runs/smoke/classify-*.html"))
        for name in (*PAGES, str(run)):
            page.goto((book / name).as_uri())
            page.wait_for_timeout(300)
            assert beyond(page) <= 0, f"{name} scrolls sideways by {beyond(page)} px"
            unseen = page.evaluate(
                "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.alt)"
            )
            assert unseen == [], f"{name}: images that do not load"
        page.goto((book / "objectives.html").as_uri())
        page.wait_for_selector("mjx-container svg")
        page.goto((book / "index.html").as_uri())
        page.locator("article a", has_text="every run").click()
        assert page.title().startswith("Every run")
        page.locator("article a", has_text="clip-n256-s0").first.click()
        assert "runs/smoke/" in page.url
