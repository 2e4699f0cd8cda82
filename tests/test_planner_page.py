"""The page 'Plan your own site', built as the book builds it, in a real browser from disk."""

import json
import re
from pathlib import Path
from statistics import NormalDist

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
    needs_browser,
    scaffold,
    visits,
)

pytestmark = pytest.mark.slow  # a book of its own and some thirty looks at it: make test-slow
PAGES = ("law", "refused", "empty")  # what its runs allow
LINKED = ("sensitivity", "laws")  # pages that it links to
SIZES = (200, 600, 2000, 8000, 30_000)
DINO = "dinov2 (DINO term alone)"


def skill(n: float) -> float:
    """The skill of made-up runs whose error is about 0.3 (n / 200)^-0.2."""
    return 1.45 * NormalDist().inv_cdf(1 - 0.3 * (n / 200) ** -0.2)


def make_runs(kind: str) -> None:
    """Runs of the preset mini with their analysis, and its plan."""
    from cxrstudy.results import load_records
    from cxrstudy.scaling import analysis

    if kind == "empty":
        return
    public = {"trained_on": "synthetic:public"}
    folders = [base({"findings": 0.6, "lines_tubes": 0.9}, **public)]
    if kind == "law":
        folders += ladder("clip", {n: skill(n) for n in SIZES}, seeds=2, jitter=0.01)
        folders += ladder("unicl", {200: 1.3, 1000: 1.1, 8000: 0.9}, seeds=2, jitter=0.05)
        folders.append(judge("clip-public-cccccc", skill(20_000), n_images=SIZES[-1], **public))
    folders += ladder("dinov2", {200: 2.6, 1000: 2.5, 8000: 2.4}, base="dino-cnn", seeds=2)
    folders.append(judge("pixels-cccccc", 0.5, paradigm="control", base=None, encoder="pixels"))
    runs = [{"name": folder.name, "stage": "classify"} for folder in folders]
    top = folders[0].parents[1]
    tables, grid = analysis.analyse({"": load_records(folders)}, resamples=200)
    analysis.write_analysis(top / "analyse" / "analyse-dddddd", tables, grid)
    runs.append({"name": "analyse-dddddd", "stage": "analyse"})
    plan = {
        "preset": "mini",
        "variant": "",
        "runs": [run | {"parameters": {}, "needs": []} for run in runs],
    }
    (top / "plan.json").write_text(json.dumps(plan))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small book of three such pages, and stubs of the pages that they link to."""
    top = tmp_path_factory.mktemp("planner")
    others = [f"  - file: planner-{name}" for name in PAGES[1:]]
    others += [f"  - file: {name}" for name in LINKED]
    source = scaffold(top, "\n".join(["root: planner-law", "chapters:", *others]))
    for name in LINKED:
        (source / f"{name}.md").write_text(f"# {name}\n")
    for name in PAGES:
        environment = {"CXRSTUDY_RUNS": str(top / name / "runs"), "CXRSTUDY_ROOT": str(ROOT)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CXRSTUDY_RUNS", environment["CXRSTUDY_RUNS"])
            make_runs(name)
        page = source / f"planner-{name}.ipynb"
        words = (ROOT / "book" / "planner.ipynb", page, "-k", "python3", "--no-progress-bar")
        call("papermill", *words, **environment)
        notebook = nbformat.read(page, 4)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.metadata["tags"] = ["remove-cell"]
        nbformat.write(notebook, page)
    return built(top)


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


# ---- the same numbers --------------------------------------------------------------------------
@needs_browser
@pytest.mark.parametrize("name", ["law", "refused"])
def test_the_page_says_what_python_says(visit, name):
    page = visit(name)
    consult, grid = answers(page)
    several = [1, 199, 200, 201, 333, 1000, 2718, 7999, 8000, 8001, 30_000, 32_000, 120_001, 3e6]
    compared = 0
    for row in consult(several).itertuples():
        page.select_option("#planner-task", row.task)
        page.select_option("#planner-paradigm", label=row.name)
        page.fill("#planner-n", f"{row.n_images:.0f}")
        assert said(page) == row.status
        compared += 1
    assert compared == len(grid["curves"]) * len(several)
    beyond_largest = {c["name"] for c in grid["curves"] if c["limit"] > c["largest"]}
    assert beyond_largest == ({"clip"} if name == "law" else set())


@needs_browser
def test_the_answer_leads_with_the_gain_beyond_the_control_and_counts_the_test_set(visit):
    page = visit("law")
    page.select_option("#planner-paradigm", label="clip")
    page.fill("#planner-n", "1000")
    assert said(page).startswith("At equal compute, 30,000 in-house images are ")
    assert "] in macro AUROC beyond more steps on images already seen: " in said(page)
    assert page.locator("#planner .planner-control").count() == 1
    note = page.locator(".planner-note").text_content()
    assert "Test set: 600 images of 300 patients, " in note and "positive labels." in note
    page.select_option("#planner-paradigm", label="unicl")
    assert said(page).startswith("No control at equal compute was run for unicl on findings")
    assert page.locator("#planner .planner-control").count() == 0


@needs_browser
def test_the_table_and_the_slider_agree_to_the_digit(visit):
    page = visit("law")
    table = page.locator("table").nth(1)
    rows = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
    assert len(rows) == 2 * (5 + 3 + 3)
    for task, paradigm, images, gain, value in rows:
        page.select_option("#planner-task", label=task)
        page.select_option("#planner-paradigm", label=paradigm)
        page.fill("#planner-n", images.replace(",", ""))
        words = said(page).replace("\u00a0", " ")
        assert value.replace("\u00a0", " ") in words
        if paradigm == DINO:
            assert gain == "base model not evaluated" and "its gain is unknown" in words
        else:
            assert f"that is {gain}".replace("\u00a0", " ") in words


# ---- by keyboard and by ear --------------------------------------------------------------------
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
    for key, n in (("End", 120_000), ("Home", 200)):
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
    assert "With 500 images" in said(page)


# ---- the picture -------------------------------------------------------------------------------
@needs_browser
def test_the_picture_shows_the_readers_point_where_there_is_an_answer(visit):
    page = visit("law")
    page.select_option("#planner-paradigm", label="clip")
    picture = page.locator("#planner svg")
    for n, points in ((1000, 1), (100_000, 1), (130_000, 0)):
        page.fill("#planner-n", str(n))
        assert picture.locator(".planner-point").count() == points
    assert picture.locator(".planner-dot").count() == 5
    assert picture.locator(".planner-beyond").count() == 1
    assert picture.locator(".planner-base").count() == 1
    label = picture.get_attribute("aria-label")
    start = r"gain over the base model, macro AUROC of clip on findings \(synthetic x-rays\)"
    assert re.match(start, label) and "control " in label
    page.fill("#planner-n", "300")
    low = picture.locator(".planner-point").bounding_box()
    page.fill("#planner-n", "30000")
    high = picture.locator(".planner-point").bounding_box()
    dot = picture.locator(".planner-dot").nth(4).bounding_box()
    assert low["x"] < high["x"]
    assert high["y"] < low["y"]
    assert high["x"] + high["width"] / 2 == pytest.approx(dot["x"] + dot["width"] / 2, abs=1)
    page.select_option("#planner-paradigm", label="unicl")  # its last value predicted as well
    assert picture.locator(".planner-beyond").count() == 0
    page.select_option("#planner-paradigm", label=DINO)  # no base model: its value is drawn
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


# ---- what is missing ---------------------------------------------------------------------------
@needs_browser
def test_without_javascript_the_tables_answer(visit):
    page = visit("law", script=False)
    shown = page.locator("#planner").inner_text().strip()
    assert shown == "This part needs JavaScript; the table below does not."
    assert page.locator("article table").count() == 2
    text = page.locator("article").inner_text()
    assert "No paradigm is shown to be better" in text  # random weights were not evaluated
    assert "clip" in text and DINO in text and "base model not evaluated" in text


@needs_browser
def test_a_preset_that_has_not_been_run_says_so(visit):
    page = visit("empty")
    text = page.locator("article").inner_text()
    assert "There is no scaling curve to plan by yet: make study PRESET=mini runs one." in text
    assert page.locator("#planner, article table").count() == 0


@needs_browser
def test_where_no_law_predicted_better_there_is_no_answer_beyond_the_largest_size(visit):
    page = visit("refused")
    page.fill("#planner-n", "9000")
    assert said(page).startswith("No answer for 9,000 images with dinov2 (DINO term alone)")
    assert "the last value predicted held-out sizes at least as well as a law" in said(page)


def test_the_page_carries_its_data_and_says_that_numbers_are_synthetic(site):
    markup = (site / "planner-law.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", markup))
    assert "Synthetic x-rays. Test set: findings, 600 test images of 300 patients" in text
    inline = re.findall(r"<script(?![^>]*src=)[^>]*>(.*?)</script>", markup, re.S)
    assert any("more_n" in script for script in inline)
    assert not any("://" in script for script in inline)
    assert 'src="_static/planner.js"' in markup
