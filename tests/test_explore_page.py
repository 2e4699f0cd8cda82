"""The page 'Explore the results': its files, its data, and its figure and table used in a real browser from disk."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, Walk
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

from cxrstudy import explorer, recorded
from cxrstudy.results import load_records

KEYS = ["run", "task", "label", "metric"]
slow = pytest.mark.slow


def plan(folders: list[Path]) -> None:
    """What a preset's runs are found by."""
    runs = [{"name": f.name, "stage": "classify", "parameters": {}, "needs": []} for f in folders]
    (folders[0].parents[1] / "plan.json").write_text(
        json.dumps({"preset": "mini", "variant": "", "runs": runs})
    )


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Runs of this machine beside the recorded ones."""
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    folders = [base(), *ladder("clip", {200: 1.0, 1000: 1.3}, seeds=2, jitter=0.1)]
    folders += ladder("unicl", {200: 1.1}) + ladder("unicl", {1000: 1.2}, samples_seen=48000)
    folders.append(judge("pixels-cccccc", 0.5, paradigm="control", base=None, encoder="pixels"))
    plan(folders)
    (folders[1] / "notebook.ipynb").write_text("{}")  # the one whose page the book has
    return explorer.gather(["recorded:study-cpu", "mini"])


# ---- the data ------------------------------------------------------------------------------------------------------
def test_the_table_is_every_row_of_both_sources(made: pd.DataFrame, tmp_path: Path) -> None:
    own = {
        "recorded:study-cpu": recorded.load("study-cpu"),
        "mini": load_records(tmp_path / "runs"),
    }
    for source, table in own.items():
        told, there = (
            t.sort_values(KEYS).reset_index(drop=True)
            for t in (made[made["source"] == source], table)
        )
        wanted = there.columns.drop("folder")
        pd.testing.assert_frame_equal(told[wanted], there[wanted], check_dtype=False)


def test_the_files_hold_the_table_and_the_page_four_digits_of_it(
    made: pd.DataFrame, tmp_path: Path
) -> None:
    script, csv, parquet = explorer.write(tmp_path / "a", ["recorded:study-cpu", "mini"])
    pd.testing.assert_frame_equal(
        pd.read_csv(csv, keep_default_na=False)[KEYS], made[KEYS], check_dtype=False
    )
    pd.testing.assert_series_equal(pd.read_csv(csv)["value"], made["value"])
    told = pd.read_parquet(parquet)
    assert list(told) == list(made)
    some = ["source", *KEYS, "value", "low", "high", "n_images", "hardware"]
    pd.testing.assert_frame_equal(told[some], made[some], check_dtype=False)
    assert script.stat().st_size < 1_500_000  # the page opens at once
    data = json.loads(script.read_text().removeprefix("window.cxrstudyResults=").rstrip(";\n"))
    runs, rows = data["runs"], data["rows"]
    names = [
        name for name, count in zip(runs["name"], runs["rows"], strict=True) for _ in range(count)
    ]
    keys = pd.DataFrame([data["keys"][k] for k in rows["key"]], columns=KEYS[1:])
    told = keys.assign(run=names, value=rows["value"]).set_index(KEYS)["value"].sort_index()
    true = made.set_index(KEYS)["value"].sort_index()
    assert told.index.equals(true.index)
    assert ((told - true).abs() <= 6e-4 * true.abs()).all()
    before = [path.stat().st_mtime_ns for path in (script, csv, parquet)]
    explorer.write(tmp_path / "a", ["recorded:study-cpu", "mini"])
    assert [path.stat().st_mtime_ns for path in (script, csv, parquet)] == before


def test_a_curve_never_joins_sources_or_budgets_and_knows_its_notebooks(made: pd.DataFrame) -> None:
    data = explorer.payload(made)
    runs = pd.DataFrame(data["runs"])
    own, kept = (runs[runs["source"] == k] for k in (1, 0))
    assert [source["kept"] for source in data["sources"]] == [True, False]
    assert set(own.loc[own["role"] == "rung", "ladder"]) == {
        "clip",
        "unicl, seen: 24k",
        "unicl, seen: 48k",
    }
    assert own.loc[own["role"] == "base", "name"].tolist() == ["base-clip-cnn-aaaaaa"]
    assert own.loc[own["paradigm"] == "control", "role"].tolist() == [""]
    assert own.loc[own["page"] != "", "page"].tolist() == [
        "runs/mini/classify-clip-n200-s0-bbbbbb.html"
    ]
    assert (kept["page"] == "").all()
    assert (kept["command"] == "cxrstudy run --preset study-cpu").all()
    judged = kept[kept["role"] == "rung"]
    assert judged.groupby(["stage", "ladder"])["samples_seen"].nunique().eq(1).all()
    said = [source["caption"] for source in data["sources"]]
    assert said[0].startswith("Recorded with this book, not on your machine: preset study-cpu, on ")
    assert said[1].startswith("Run on this machine: preset mini, on ")
    assert "seeds 0, 1" in said[1] and all("Synthetic x-rays" in words for words in said)


def test_nothing_run_is_an_empty_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path))
    files = explorer.write(tmp_path / "a", ["mini"])
    assert all(path.is_file() for path in files)
    assert json.loads(files[0].read_text()[23:-2])["rows"]["value"] == []


def test_the_readme_shows_what_is_recorded() -> None:
    path = recorded.place("study-gpu") / explorer.FIGURE
    assert f"({path.relative_to(ROOT)})" in (ROOT / "README.md").read_text()
    drawn = path.read_text().rstrip().endswith(f"<!-- {explorer.drawn_from('study-gpu')} -->")
    assert drawn, "the table has changed: cxrstudy record --preset study-gpu --figure"


@slow  # each run's scores are resampled
def test_the_figure_drawn_anew_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    kept = (recorded.place("study-gpu") / explorer.FIGURE).read_text()
    monkeypatch.setattr(
        recorded, "place", lambda name, place=recorded.place: _beside(tmp_path, place(name))
    )
    drawn = explorer.draw("study-gpu").read_text()
    if drawn == kept:
        return
    numbers = [[float(n) for n in re.findall(r"-?\d+\.\d+", text)] for text in (drawn, kept)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.5)  # another matplotlib or numpy


def _beside(top: Path, place: Path) -> Path:
    """A copy of recorded results, which a test may write to."""
    return (
        shutil.copytree(place, top / place.name, dirs_exist_ok=True)
        if place.name == "study-gpu"
        else place
    )


# ---- in a real browser, the book of the smoke study ----------------------------------------------------------------
@needs_browser
def test_figure_table_and_downloads_from_disk(walked: Walk, book: Path, tmp_path: Path) -> None:
    true = load_records(walked.runs / "smoke")
    rungs = true[
        (true["task"] == "findings") & (true["label"] == "macro") & (true["metric"] == "auroc")
    ]
    rungs = rungs[rungs["base"].fillna("") != ""]

    def saved(page, selector) -> bytes:
        with page.expect_download() as download:
            page.locator(selector).first.click()
        return Path(download.value.path()).read_bytes()

    with chromium() as browser, visits(browser) as opened:
        page = opened(book / "explore.html")
        assert page.locator(".explore-point").count() == len(rungs)
        page.focus(".explore-point[tabindex='0']")
        page.keyboard.press("End")
        name = page.locator(".explore-detail").text_content().split(":")[0]
        value = rungs.set_index("run").loc[name, "value"]
        assert f"AUROC {value:#.4g} [" in page.locator(".explore-detail").text_content()
        assert "Synthetic x-rays" in page.locator("#explore-figure figcaption").text_content()
        page.locator("#explore-paradigm-0").uncheck()
        assert page.locator(".explore-point").count() == (rungs["paradigm"] != "clip").sum()
        page.locator("#explore-paradigm-0").check()

        csv = saved(page, "a[href='_static/results.csv']")
        assert csv == (book / "_static" / "results.csv").read_bytes()
        assert csv.count(b"\n") == len(true) + 1
        assert (
            saved(page, "a[href='_static/results.parquet']")
            == (book / "_static" / "results.parquet").read_bytes()
        )
        page.fill("#explore-find", f"{name} findings")
        page.select_option("#explore-only-metric", "auroc")
        page.locator("th button", has_text="value").click()
        page.locator("th button", has_text="value").click()
        (tmp_path / "shown.csv").write_bytes(saved(page, "#explore-save"))
        shown = pd.read_csv(tmp_path / "shown.csv")
        own = true[
            (true["run"] == name) & (true["metric"] == "auroc") & (true["task"] == "findings")
        ]
        assert len(shown) == len(own)  # labels too few to evaluate have no value, and come last
        known = sorted(own["value"].dropna(), reverse=True)
        assert shown["value"].tolist()[: len(known)] == pytest.approx(known, abs=1e-4)
        assert shown["value"].iloc[len(known) :].isna().all()
        assert page.locator("th[aria-sort='descending']").text_content() == "value"

        page.locator(f".explore-point[aria-label^='{name}']").focus()
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/runs/smoke/classify-{name}.html")
        page.locator(".dropdown-download-buttons > button").click()
        notebook = walked.runs / "smoke" / "classify" / name / "notebook.ipynb"
        assert saved(page, ".btn-download-source-button") == notebook.read_bytes()


# ---- in a real browser, recorded results beside this machine's -----------------------------------------------------
@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page alone, of the recorded study and a made ladder."""
    top = tmp_path_factory.mktemp("explore")
    source = scaffold(top, "root: explore\nchapters:\n  - file: method")
    (source / "method.md").write_text("# Method\n")
    sources = ["recorded:study-cpu", "mini"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRSTUDY_RUNS", str(top / "runs"))
        plan([base(), *ladder("clip", {200: 1.0, 1000: 1.3}, seeds=2, jitter=0.1)])
        explorer.write(source / "assets", sources)
        words = ("-k", "python3", "--no-progress-bar", "-y", json.dumps({"presets": sources}))
        call(
            "papermill",
            ROOT / "book" / "explore.ipynb",
            source / "explore.ipynb",
            *words,
            CXRSTUDY_ROOT=str(ROOT),
        )
    return built(top)


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def visit(site, browser):
    with visits(browser) as opened:
        yield lambda *how, **more: opened(site / "explore.html", *how, **more)


def points(page):
    return page.locator(".explore-point")


@slow
@needs_browser
def test_every_choice_draws_the_recorded_values(visit):
    page = visit()
    table = recorded.load("study-cpu")
    drawn = 0
    for task, label, metric in (
        ("findings", "macro", "auroc"),
        ("lines_tubes", "picc", "auprc"),
        ("segmentation", "macro", "dice"),
    ):
        page.select_option("#explore-task", task)
        page.select_option("#explore-label", label)
        page.select_option("#explore-metric", metric)
        rows = table[
            (table["task"] == task) & (table["label"] == label) & (table["metric"] == metric)
        ]
        rows = rows.set_index("run")
        for point in points(page).all():
            name, said = point.get_attribute("aria-label").split(": ", 1)
            row = rows.loc[name]
            assert f"{row['value']:#.4g} [{row['low']:#.4g}, {row['high']:#.4g}]" in said
            assert f"{row['n_images']:,.0f} images, {row['samples_seen']:,.0f} samples seen" in said
            assert f"{row['paradigm']}, seed {row['seed']:.0f};" in said
            drawn += 1
        assert points(page).count() == rows.index.str.match(r"(clip|unicl|dinov2)-n\d+-s\d").sum()
        assert page.locator(".explore-base").count() == 2
    assert drawn > 60


@slow
@needs_browser
def test_means_and_sources_are_told_apart(visit):
    page = visit()
    page.select_option("#explore-points", "mean")
    table = recorded.load("study-cpu")
    rows = table[
        (table["task"] == "findings") & (table["label"] == "macro") & (table["metric"] == "auroc")
    ]
    rows = rows[(rows["paradigm"] == "clip") & (rows["n_images"] == 200) & (rows["base"] != "")]
    said = points(page).first.get_attribute("aria-label")
    value, low, high = rows[["value", "low", "high"]].mean()
    assert said.startswith("clip, mean of seeds 0, 1, 2; 200 images")
    numbers = [float(n) for n in re.findall(r"0\.\d+", said)][:3]
    assert numbers == pytest.approx([value, low, high], abs=1e-4)
    points(page).first.click()
    assert page.locator("#explore-find").input_value() == "clip-n200-"
    assert page.locator("#explore-table tbody tr").count() == len(rows)
    caption = page.locator("#explore-figure figcaption")
    assert (
        "Recorded with this book, not on your machine: preset study-cpu" in caption.text_content()
    )
    page.select_option("#explore-source", label="mini, run on this machine")
    assert "Run on this machine: preset mini" in caption.text_content()
    assert "seeds 0, 1." in caption.text_content()
    assert points(page).count() == 2


@slow
@needs_browser
def test_a_recorded_point_leads_to_its_rows_by_keyboard(visit):
    page = visit()
    page.focus("#explore-paradigm-2")
    page.keyboard.press("Tab")  # the figure is one stop
    first = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert first != second == page.locator(".explore-detail").text_content()
    assert "Made by: cxrstudy run --preset study-cpu" in second
    page.keyboard.press("Enter")
    name = second.split(":")[0]
    cells = page.locator("#explore-table tbody tr td:first-child").all_text_contents()
    assert cells and set(cells) == {name}
    assert page.evaluate("document.activeElement.className") == "explore-scroll"
    page.focus(".explore-point[tabindex='0']")
    page.keyboard.press("Tab")
    assert page.evaluate("!document.activeElement.closest('.explore-picture')")
    for control in page.locator(".explore :is(select, input)").all():
        assert page.locator(f"label[for={control.get_attribute('id')}]").count() == 1


@slow
@needs_browser
def test_the_table_turns_pages_sorts_and_filters(visit):
    page = visit()
    table, rows = page.locator("#explore-table"), page.locator("#explore-table tbody tr")
    status = page.locator(".explore-status")
    total = int(re.match(r"([\d,]+) of", status.text_content())[1].replace(",", ""))
    assert total == len(recorded.load("study-cpu")) + 5 * 12
    assert rows.count() == 25
    page.click("#explore-next")
    assert "shown: 26 to 50." in status.text_content()
    page.select_option("#explore-only-source", label="mini, run on this machine")
    assert page.locator("#explore-only-label option[value=pacemaker]").count() == 1
    page.select_option("#explore-only-task", "findings")
    assert (
        page.locator("#explore-only-label option[value=pacemaker]").count() == 0
    )  # no label of this task
    page.select_option("#explore-only-label", "macro")
    page.select_option("#explore-only-metric", "auroc")
    assert status.text_content() == f"5 of {total:,} rows match; shown: 1 to 5."
    header = page.locator("th button", has_text="images")
    header.focus()
    page.keyboard.press("Enter")
    sizes = [
        int(cell.replace(",", ""))
        for cell in table.locator("tbody tr td:nth-child(9)").all_text_contents()
    ]
    assert sizes == [200, 200, 1000, 1000, 20000]
    assert page.locator("th[aria-sort]").count() == 1
    page.fill("#explore-find", "no such run")
    assert status.text_content() == f"0 of {total:,} rows match."
    assert page.locator("#explore-save").is_disabled()


@slow
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_fits_can_be_read_and_has_no_serious_fault(visit, size, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    page = visit(size, scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert beyond(page) <= 0
    box = page.locator("#explore-figure .explore-picture svg").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= size[0]
    for selector in (
        ".explore-detail",
        ".explore label",
        "figcaption",
        ".explore-picture text",
        "th button",
        "td",
    ):
        node = page.locator(f"article {selector}").first
        assert node.evaluate(CONTRAST) >= 4.5, f"{selector} in {scheme}"
    found = (
        axe.Axe().run(page, context="article", options={"preload": False}).response["violations"]
    )
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


@slow
@needs_browser
def test_without_javascript_a_figure_and_the_files_stand(visit):
    page = visit(script=False)
    assert page.locator("#explore-figure img").is_visible()
    assert "Macro AUROC against the number of in-house images" in page.locator(
        "#explore-figure img"
    ).get_attribute("alt")
    for name in explorer.FILES.values():
        assert page.locator(f"a[href='_static/{name}']").is_visible()
