"""The page 'Plan your own site', built as the book builds it and used in a real browser from disk."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from made_ladders import base, judge, ladder
from pages import (
    CONTRAST,
    DESKTOP,
    PHONE,
    beyond,
    built,
    call,
    chromium,
    needs_browser,
    scaffold,
    visits,
)

pytestmark = pytest.mark.slow  # a book of its own and some thirty looks at it: make test-slow
PAGES = ("law", "refused", "empty")  # what its runs allow


def make_runs(kind: str) -> None:
    """Runs of the preset mini, and its plan."""
    if kind == "empty":
        return
    folders = [base({"findings": 1.0, "lines_tubes": 1.2})]
    if kind == "law":
        folders += ladder("clip", {200: 1.0, 1000: 1.35, 8000: 1.8})
        folders += ladder("unicl", {200: 1.3, 1000: 1.1, 8000: 0.9}, seeds=2, jitter=0.05)
    folders += ladder(
        "dinov2", {200: 2.6, 1000: 2.5, 8000: 2.4}, base="dino-cnn"
    )  # whose base was not evaluated
    folders.append(judge("pixels-cccccc", 0.5, paradigm="control", base=None, encoder="pixels"))
    runs = [
        {"name": folder.name, "stage": "classify", "parameters": {}, "needs": []}
        for folder in folders
    ]
    plan = {"preset": "mini", "variant": "", "runs": runs}
    (folders[0].parents[1] / "plan.json").write_text(json.dumps(plan))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small book of three such pages."""
    top = tmp_path_factory.mktemp("planner")
    others = (f"  - file: planner-{name}" for name in PAGES[1:])
    source = scaffold(top, "\n".join(["root: planner-law", "chapters:", *others]))
    for name in PAGES:
        environment = {"CXRSTUDY_RUNS": str(top / name / "runs"), "CXRSTUDY_ROOT": str(ROOT)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CXRSTUDY_RUNS", environment["CXRSTUDY_RUNS"])
            make_runs(name)
        page = source / f"planner-{name}.ipynb"
        call(
            "papermill",
            ROOT / "book" / "planner.ipynb",
            page,
            "-k",
            "python3",
            "--no-progress-bar",
            **environment,
        )
        notebook = nbformat.read(page, 4)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.metadata["tags"] = ["remove-cell"]
        nbformat.write(notebook, page)
    return built(top)


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def visit(site, browser):
    """Open one of the pages; whatever it asks of others, or complains of, fails the test."""
    with visits(browser) as opened:
        yield lambda name="law", *how, **more: opened(site / f"planner-{name}.html", *how, **more)


def answers(page):
    """What Python says by the page's own grid."""
    from cxrstudy.scaling import planner

    grid = json.loads(page.locator("#planner-grid").text_content())
    return lambda n: planner.consult(grid, n), grid


def said(page):
    return page.locator(".planner-said").text_content()


# ---- the same numbers ----------------------------------------------------------------------------------------------
@needs_browser
@pytest.mark.parametrize("name", ["law", "refused"])
def test_the_page_says_what_python_says(visit, name):
    from cxrstudy.scaling import planner

    page = visit(name)
    consult, grid = answers(page)
    several = [1, 199, 200, 201, 333, 1000, 2718, 7999, 8000, 8001, 20000, 32000, 32001, 3_500_000]
    compared = 0
    for row in consult(several).itertuples():
        page.select_option("#planner-task", row.task)
        page.select_option("#planner-paradigm", label=row.name)
        page.fill("#planner-n", f"{row.n_images:.0f}")
        assert said(page) == row.status
        assert page.locator(".planner-abreast").text_content() == planner.abreast(
            grid, row.task, row.n_images
        )
        assert page.locator(".planner-note").first.text_content().endswith(planner.SAID["no_home"])
        compared += 1
    assert compared == len(grid["ladders"]) * len(several)
    bases = {ladder["basis"] for ladder in grid["ladders"]}
    assert bases == ({"law", "measured"} if name == "law" else {"measured"})


@needs_browser
def test_the_grid_in_the_page_is_the_law_itself_to_three_digits(site, visit, monkeypatch):
    from cxrstudy.results import load_records
    from cxrstudy.scaling import planner

    page = visit("law")
    table = load_records(site.parents[1] / "law" / "runs")
    several = [250, 1500, 5000, 31000]
    direct = planner.planner(table, several, n_grid=several)
    page.select_option("#planner-task", "findings")
    page.select_option("#planner-paradigm", label="clip")
    rows = direct[(direct["task"] == "findings") & (direct["paradigm"] == "clip")]
    for row in rows.itertuples():
        page.fill("#planner-n", str(int(row.n_images)))
        numbers = [float(n) for n in re.findall(r"[+-]?\d\.\d{3}", said(page))]
        expected = [
            row.value,
            row.low,
            row.high,
            row.base_value,
            row.gain,
            row.gain_low,
            row.gain_high,
        ]
        assert numbers == pytest.approx(
            [*expected, row.more, row.more_low, row.more_high], abs=1e-3
        )


# ---- by keyboard and by ear ----------------------------------------------------------------------------------------
@needs_browser
def test_everything_is_reached_and_moved_by_keyboard_and_heard(visit):
    page = visit("law")
    page.focus("#planner-task")
    order = ["planner-task"]
    for _ in range(3):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order == ["planner-task", "planner-paradigm", "planner-n", "planner-slider"]
    consult, _ = answers(page)
    before = float(page.input_value("#planner-n"))
    page.keyboard.press("ArrowRight")
    after = float(page.input_value("#planner-n"))
    assert before < after < 1.1 * before
    assert page.get_attribute("#planner-slider", "aria-valuetext") == f"{after:,.0f} images"
    assert said(page) == consult(after)["status"].iloc[0]
    for key, n in (("End", 32000), ("Home", 200)):
        page.keyboard.press(key)
        assert float(page.input_value("#planner-n")) == n
    assert page.get_attribute(".planner-said", "aria-live") == "polite"
    for control in page.locator("#planner select, #planner input").all():
        assert page.locator(f"label[for={control.get_attribute('id')}]").count() == 1
    page.focus("#planner-n")
    page.keyboard.press("Enter")  # no form is sent
    assert page.url.endswith("planner-law.html")


@needs_browser
def test_a_choice_of_task_keeps_the_paradigm_and_the_number(visit):
    page = visit("law")
    page.select_option("#planner-paradigm", label="unicl")
    page.fill("#planner-n", "1500")
    page.select_option("#planner-task", "lines_tubes")
    assert "With 1,500 images, unicl is expected" in said(page)
    assert "on lines and tubes" in said(page)


@needs_browser
def test_what_is_no_number_is_asked_for_again(visit):
    page = visit("law")
    for typed in ("", "0", "-3"):
        page.fill("#planner-n", typed)
        assert said(page) == "Type a number of images, 1 or more."
    page.fill("#planner-n", "500")
    assert said(page).startswith("With 500 images")


# ---- the picture ---------------------------------------------------------------------------------------------------
@needs_browser
def test_the_picture_shows_the_readers_point_where_there_is_an_answer(visit):
    page = visit("law")
    page.select_option("#planner-paradigm", label="clip")
    picture = page.locator("#planner svg")
    for n, points in ((1000, 1), (20000, 1), (50000, 0)):
        page.fill("#planner-n", str(n))
        assert picture.locator(".planner-point").count() == points
    assert picture.locator(".planner-dot").count() == 3
    assert picture.locator(".planner-beyond").count() == 1
    assert picture.locator(".planner-base").count() == 1
    label = picture.get_attribute("aria-label")
    assert re.match(
        r"gain over the base, macro AUROC of clip on findings \(synthetic x-rays\)", label
    )
    page.fill("#planner-n", "300")
    low = picture.locator(".planner-point").bounding_box()
    page.fill("#planner-n", "8000")
    high = picture.locator(".planner-point").bounding_box()
    dot = picture.locator(".planner-dot").nth(2).bounding_box()
    assert low["x"] < high["x"]
    assert high["y"] < low["y"]
    assert high["x"] + high["width"] / 2 == pytest.approx(dot["x"] + dot["width"] / 2, abs=1)
    page.select_option("#planner-paradigm", label="dinov2")  # no base: its value is drawn
    assert "gain" not in picture.get_attribute("aria-label")
    assert picture.locator(".planner-beyond").count() == 0


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_the_page_fits_and_can_be_read(visit, name, size, scheme):
    page = visit(name, size, scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert beyond(page) <= 0
    if name == "empty":
        return
    box = page.locator("#planner svg").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= size[0]
    for selector in (".planner-said", "#planner label", "#planner figcaption", "#planner svg text"):
        node = page.locator(selector).first
        assert node.is_visible()
        ratio = node.evaluate(CONTRAST)
        assert ratio >= 4.5, f"{selector} has contrast {ratio:.1f} in {scheme}"


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_serious_fault(visit, size, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    page = visit("law", size, scheme)
    found = (
        axe.Axe().run(page, context="article", options={"preload": False}).response["violations"]
    )
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


# ---- what is missing -----------------------------------------------------------------------------------------------
@needs_browser
def test_without_javascript_the_tables_answer(visit):
    page = visit("law", script=False)
    assert (
        page.locator("#planner").inner_text().strip()
        == "This part needs JavaScript; the table below does not."
    )
    text = page.locator(".planner-table").first.inner_text()
    assert "clip" in text
    assert "measured, no law" in text
    assert "law; extrapolated" in text
    assert page.locator(".planner-table").count() == 3


@needs_browser
def test_a_preset_that_has_not_been_run_says_so(visit):
    page = visit("empty")
    text = page.locator("article").inner_text()
    assert "Nothing of preset mini has been run on this machine yet" in text
    assert "There is no ladder of continued encoders to plan by yet." in text
    assert page.locator("#planner, .planner-table").count() == 0


@needs_browser
def test_where_every_fit_is_refused_the_page_says_why_and_answers_inside_alone(visit):
    page = visit("refused")
    assert (
        "Why there is no law: error does not fall with n"
        in page.locator(".planner-note").first.text_content()
    )
    text = page.locator("article").inner_text()
    assert "No law for dinov2 on findings: error does not fall with n" in text
    assert "base not evaluated" in text
    page.fill("#planner-n", "9000")
    assert said(page).endswith("no law could be fitted to go beyond it.")


def test_the_page_carries_its_crossovers_and_says_that_numbers_are_synthetic(site):
    markup = (site / "planner-law.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", markup))
    assert "from 1,000 on" in text
    assert "never within the ladder" in text
    assert "from the smallest on" in text
    assert "Every number here is about synthetic x-rays" in text
    inline = re.findall(r"<script(?![^>]*src=)[^>]*>(.*?)</script>", markup, re.S)
    assert any("more_n" in script for script in inline)
    assert not any("://" in script for script in inline)
    assert 'src="_static/planner.js"' in markup
