"""The page Explore: its files, its data, its figure and table in a real browser from disk."""

import importlib.metadata
import io
import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import ROOT, Walk
from made_ladders import base, judge, ladder
from nbformat.v4 import new_markdown_cell, new_notebook
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

from cxrstudy import book as builder
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


# ---- the data ----------------------------------------------------------------------------------
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
    files = explorer.write(tmp_path / "a", ["recorded:study-cpu", "mini"])
    script, _, csv, parquet = files
    pd.testing.assert_frame_equal(
        pd.read_csv(csv, keep_default_na=False)[KEYS], made[KEYS], check_dtype=False
    )
    pd.testing.assert_series_equal(pd.read_csv(csv)["value"], made["value"])
    told = pd.read_parquet(parquet)
    assert list(told) == list(made)
    some = ["source", *KEYS, "value", "low", "high", "n_images", "hardware"]
    pd.testing.assert_frame_equal(told[some], made[some], check_dtype=False)
    assert script.stat().st_size < 1_500_000  # the page opens at once
    data = json.loads(script.read_text().removeprefix("window.exploreData=").rstrip(";\n"))
    rows = [
        {**data["runs"][run], **data["keys"][key], "value": value}
        for run, key, value, *_ in data["rows"]
    ]
    said = made.assign(**{name: made[name].map(explorer._words) for name in KEYS[1:]})
    told, true = (
        table.set_index(KEYS)["value"].astype(float).sort_index()
        for table in (pd.DataFrame(rows), said)
    )
    assert told.index.equals(true.index)
    assert ((told - true).abs() <= 6e-4 * true.abs())[true.notna()].all()
    assert told.isna().equals(true.isna())
    before = [path.stat().st_mtime_ns for path in files]
    explorer.write(tmp_path / "a", ["recorded:study-cpu", "mini"])
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_curve_never_joins_sources_or_budgets_and_knows_its_notebooks(made: pd.DataFrame) -> None:
    data = explorer.page_data(made)
    runs = pd.DataFrame(data["runs"])
    here, kept = "mini, run on this machine", "study-cpu, recorded"
    own, of_book = (runs[runs["source"] == source] for source in (here, kept))
    continued = own[own["role"] == "continued"]
    assert set(continued["curve"]) == {"clip", "unicl, seen: 24k", "unicl, seen: 48k"}
    base = own[own["role"] == "base"]
    assert base[["run", "curve"]].to_numpy().tolist() == [
        ["base-clip-cnn-aaaaaa", "clip base model"]
    ]
    assert set(base["base"]) == set(continued["base"])
    assert own.loc[own["paradigm"] == "control", ["role", "curve"]].to_numpy().tolist() == [
        ["", ""]
    ]
    pages = own.loc[own["page"] != "", "page"].tolist()
    assert pages == ["runs/mini/classify-clip-n200-s0-bbbbbb.html"]
    assert (of_book["page"] == "").all()
    assert (of_book["command"] == "cxrstudy run --preset study-cpu").all()
    seen = of_book[of_book["role"] == "continued"].groupby("curve")["samples_seen"].nunique()
    assert seen.eq(1).all()
    said = data["captions"]
    assert said[kept].startswith(
        "Recorded with this book, not on your machine: preset study-cpu, on "
    )
    assert said[here].startswith("Run on this machine: preset mini, on ")
    assert "seeds 0, 1" in said[here]
    assert all("Synthetic x-rays" in words for words in said.values())


def test_no_runs_make_an_empty_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path))
    files = explorer.write(tmp_path / "a", ["mini"])
    assert all(path.is_file() for path in files)
    assert json.loads(files[0].read_text()[19:-2])["rows"] == []


def test_scripts_of_others_come_from_the_installed_packages(tmp_path: Path) -> None:
    sizes = {name: path.stat().st_size for path, name in builder._bundles()}
    assert sizes["plotly.min.js"] > 1_000_000
    script = (explorer.write(tmp_path, [])[1]).read_text()
    version = importlib.metadata.version("itables").replace(".", "_")
    assert f"window._itables_{version} = injectModule(" in script


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


# ---- in a real browser, the book of the smoke study --------------------------------------------
def saved(page, selector: str) -> bytes:
    with page.expect_download() as download:
        page.locator(selector).first.click()
    return Path(download.value.path()).read_bytes()


def drawn(page) -> list[dict]:
    """Return what the figure shows: a dict a trace, of its name, mode, values and texts."""
    return page.evaluate("""() => document.getElementById("explore-plot").data.map(
        ({ name, mode, x, y, text, customdata }) => ({ name, mode, x, y, text, customdata }))""")


def marks(page) -> dict[str, str]:
    """Return the text of every mark of the figure by its run."""
    texts = [text for trace in drawn(page) if trace["mode"] == "markers" for text in trace["text"]]
    return {text.split(":")[0]: text for text in texts}


def place(page, run: str) -> tuple[float, float]:
    """Return where the mark of a run is in the window, once it is scrolled into view."""
    page.locator("#explore-plot").scroll_into_view_if_needed()
    x, y = page.evaluate(
        """run => {
          const plot = document.getElementById("explore-plot"), box = plot.getBoundingClientRect();
          const { xaxis, yaxis } = plot._fullLayout;
          for (const { mode, text, x, y } of plot.data) {
            const k = mode === "markers" ? text.findIndex((t) => t.startsWith(run)) : -1;
            if (k < 0) continue;
            const inside = [xaxis._offset + xaxis.d2p(x[k]), yaxis._offset + yaxis.d2p(y[k])];
            return [box.x + inside[0], box.y + inside[1]];
          }
        }""",
        run,
    )
    return x, y


def filter_by(page, heading: str, *values: str) -> None:
    """Choose values in the list of a column's filter."""
    page.locator("th", has_text=re.compile(f"^{heading}")).locator(".dtcc-button").first.click()
    for value in values:
        page.locator(".dtcc-list-buttons").get_by_text(value, exact=True).click()
    page.keyboard.press("Escape")


@needs_browser
def test_figure_table_and_downloads_from_disk(walked: Walk, book: Path, tmp_path: Path) -> None:
    true = load_records(walked.runs / "smoke")
    rows = true[
        (true["task"] == "findings") & (true["label"] == "macro") & (true["metric"] == "auroc")
    ]
    rows = rows[rows["base"].fillna("") != ""]
    with chromium() as browser, visits(browser) as opened:
        page = opened(book / "explore.html")
        page.wait_for_selector("#explore-rows_info")
        assert set(marks(page)) == set(rows["run"])
        name = rows["run"].iloc[-1]
        row = rows.set_index("run").loc[name]
        assert f"AUROC {row['value']:#.4g}, 95% interval {row['low']:#.4g}" in marks(page)[name]
        assert "Synthetic x-rays" in page.locator("#explore-caption").text_content()
        page.select_option("#explore-paradigm", "clip")
        assert set(marks(page)) == set(rows.loc[rows["paradigm"] == "clip", "run"])
        page.select_option("#explore-paradigm", "all")

        csv = saved(page, "a[href='_static/results.csv']")
        assert csv == (book / "_static" / "results.csv").read_bytes()
        assert csv.count(b"\n") == len(true) + 1
        assert (
            saved(page, "a[href='_static/results.parquet']")
            == (book / "_static" / "results.parquet").read_bytes()
        )
        page.fill("#explore-table input[type='search']", f"{name} findings")
        filter_by(page, "metric", "AUROC")
        header = page.locator("th", has_text=re.compile("^value"))
        for order in ("ascending", "descending"):  # a large table takes a moment to sort
            header.click(position={"x": 5, "y": 5})
            page.wait_for_selector(f"th[aria-sort={order}]:has-text('value')")
        (tmp_path / "shown.csv").write_bytes(saved(page, ".buttons-csv"))
        shown = pd.read_csv(tmp_path / "shown.csv")
        own = true[
            (true["run"] == name) & (true["metric"] == "auroc") & (true["task"] == "findings")
        ]
        assert len(shown) == len(own)  # labels too few to evaluate have no value, and come last
        known = sorted(own["value"].dropna(), reverse=True)
        assert shown["value"].tolist()[: len(known)] == pytest.approx(known, abs=1e-4)
        assert shown["value"].iloc[len(known) :].isna().all()

        link = page.locator("#explore-rows tbody a").first.get_attribute("href")
        assert link == f"runs/smoke/classify-{name}.html"
        page.mouse.click(*place(page, name))
        page.wait_for_url(f"**/{link}")
        page.locator(".dropdown-download-buttons > button").click()
        notebook = walked.runs / "smoke" / "classify" / name / "notebook.ipynb"
        assert saved(page, ".btn-download-source-button") == notebook.read_bytes()


# ---- in a real browser, recorded results beside this machine's ---------------------------------
@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page alone, of the recorded study and made runs."""
    top = tmp_path_factory.mktemp("explore")
    page = "runs/mini/classify-clip-n200-s0-bbbbbb"
    source = scaffold(top, f"root: explore\nchapters:\n  - file: method\n  - file: {page}")
    (source / "method.md").write_text("# Method\n")
    bundles = {name: path for path, name in builder._bundles()}
    shutil.copy(bundles["plotly.min.js"], source / "assets")
    sources = ["recorded:study-cpu", "mini"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRSTUDY_RUNS", str(top / "runs"))
        folders = [base(), *ladder("clip", {200: 1.0, 1000: 1.3}, seeds=2, jitter=0.1)]
        plan(folders)
        notebook = new_notebook(cells=[new_markdown_cell("# A run")])
        nbformat.write(notebook, folders[1] / "notebook.ipynb")
        (source / page).parent.mkdir(parents=True)
        shutil.copy(folders[1] / "notebook.ipynb", source / f"{page}.ipynb")
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


@pytest.fixture
def visit(site, browser):
    def opened_page(*how, **more):
        page = opened(site / "explore.html", *how, **more)
        if more.get("script", True):
            page.wait_for_selector("#explore-rows_info")
        return page

    with visits(browser) as opened:
        yield opened_page


def found(page) -> int:
    """Return how many rows of the table match."""
    info = page.locator("#explore-rows_info").text_content()
    return int(re.search(r"of ([\d,]+) rows", info)[1].replace(",", ""))


@slow
@needs_browser
def test_every_choice_draws_the_recorded_values(visit):
    page = visit()
    table = recorded.load("study-cpu")
    count = 0
    for choice, names in {
        ("findings", "macro", "AUROC"): ("findings", "macro", "auroc"),
        ("lines and tubes", "PICC line", "AUPRC"): ("lines_tubes", "picc", "auprc"),
        ("segmentation", "macro", "dice"): ("segmentation", "macro", "dice"),
    }.items():
        for name, value in zip(("task", "label", "metric"), choice, strict=True):
            page.select_option(f"#explore-{name}", value)
        wanted = (table[["task", "label", "metric"]] == list(names)).all(axis=1)
        rows = table[wanted].set_index("run")
        shown = marks(page)
        for name, said in shown.items():
            row = rows.loc[name]
            ends = f"95% interval {row['low']:#.4g} to {row['high']:#.4g}"
            assert f"{choice[2]} {row['value']:#.4g}, {ends}" in said
            assert f"{row['n_images']:,.0f} images, {row['samples_seen']:,.0f} samples seen" in said
            assert f"{row['paradigm']}, seed {row['seed']:.0f}<br>" in said
            assert f"{row['n']:,.0f} test images" in said
            count += 1
        assert len(shown) == rows.index.str.match(r"(clip|unicl|dinov2)-n\d+-s\d").sum()
        bases = [t for t in drawn(page) if t["name"] and t["name"].endswith("base model")]
        assert len(bases) == 2
        page.select_option("#explore-paradigm", "dinov2")
        assert {t["name"] for t in drawn(page) if t["name"]} == {"dinov2", "dinov2 base model"}
        page.select_option("#explore-paradigm", "all")
    assert count > 60


@slow
@needs_browser
def test_hover_click_means_and_sources(visit):
    page = visit()
    table = recorded.load("study-cpu")
    rows = table[
        (table["task"] == "findings") & (table["label"] == "macro") & (table["metric"] == "auroc")
    ]
    rows = rows[(rows["paradigm"] == "clip") & (rows["n_images"] == 200) & (rows["base"] != "")]
    name = rows["run"].iloc[0]
    page.mouse.move(*place(page, name))
    page.wait_for_selector("#explore-plot .hoverlayer text")
    label = page.locator("#explore-plot .hoverlayer").text_content()
    assert name in label and "200 images" in label and "test images" in label
    page.mouse.click(*place(page, name))
    page.wait_for_url("**#explore-table")
    assert found(page) == (table["run"] == name).sum()
    cells = page.locator("#explore-rows tbody td:first-child").all_text_contents()
    assert cells and set(cells) == {name}

    page.select_option("#explore-points", "mean over seeds")
    said = next(iter(marks(page).values()))
    assert said.startswith("clip-n200-: clip, mean of seeds 0, 1, 2<br>200 images")
    numbers = [float(n) for n in re.findall(r"0\.\d+", said)][:3]
    value = rows["value"]
    assert numbers == pytest.approx([value.mean(), value.min(), value.max()], abs=1e-4)
    page.locator("#explore-open").click()
    assert found(page) == len(rows)
    page.get_by_text("Clear the filters").click()
    assert found(page) > len(table)
    caption = page.locator("#explore-caption")
    recorded_words = "Recorded with this book, not on your machine: preset study-cpu"
    assert recorded_words in caption.text_content()
    page.select_option("#explore-source", label="mini, run on this machine")
    assert "Run on this machine: preset mini" in caption.text_content()
    assert "seeds 0, 1." in caption.text_content()
    assert len(marks(page)) == 2
    page.select_option("#explore-points", "each run")
    page.mouse.click(*place(page, "clip-n200-s0"))
    page.wait_for_url("**/runs/mini/classify-clip-n200-s0-bbbbbb.html")


@slow
@needs_browser
def test_every_point_can_be_read_and_followed_by_keyboard(visit):
    page = visit()
    page.focus("#explore-run")
    first = page.locator("#explore-detail").text_content()
    page.keyboard.press("ArrowDown")
    second = page.locator("#explore-detail").text_content()
    name = second.split(":")[0]
    assert first != second and "Made by: cxrstudy run --preset study-cpu" in second
    assert name in page.locator("#explore-plot .hoverlayer").text_content()
    assert page.locator("#explore-run option").count() == len(marks(page)) + 2  # and the bases
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "explore-open"
    page.keyboard.press("Enter")
    cells = page.locator("#explore-rows tbody td:first-child").all_text_contents()
    assert cells and set(cells) == {name}
    for control in page.locator("#explore-figure :is(select, input)").all():
        assert page.locator(f"label[for={control.get_attribute('id')}]").count() == 1


@slow
@needs_browser
def test_the_table_turns_pages_sorts_and_filters(visit):
    page = visit()
    info, rows = page.locator("#explore-rows_info"), page.locator("#explore-rows tbody tr")
    total = found(page)
    assert total == len(recorded.load("study-cpu")) + 5 * 12
    assert rows.count() == 25
    page.locator(".dt-paging-button.next").click()
    assert info.text_content().startswith("26 to 50 of ")
    filter_by(page, "source", "mini, run on this machine")
    assert found(page) == 5 * 12
    filter_by(page, "task", "findings")
    filter_by(page, "label", "macro")
    filter_by(page, "metric", "AUROC")
    assert found(page) == 5
    header = page.locator("th", has_text=re.compile("^subset size"))
    header.locator(".dt-column-order").focus()
    page.keyboard.press("Enter")
    names = [cell.split("\n")[0] for cell in page.locator("thead th").all_text_contents()]
    k = next(k for k, name in enumerate(names) if name.startswith("subset size")) + 1
    sizes = page.locator(f"#explore-rows tbody td:nth-child({k})").all_text_contents()
    assert [int(size.replace(",", "")) for size in sizes] == [200, 200, 1000, 1000, 20000]
    assert page.locator("thead th[aria-sort]").count() == 1
    shown = pd.read_csv(io.BytesIO(saved(page, ".buttons-csv")))
    assert shown["subset size"].tolist() == [200, 200, 1000, 1000, 20000]
    assert shown["value"].between(0.5, 1).all() and set(shown["task"]) == {"findings"}
    page.fill("#explore-table input[type='search']", "no such run")
    assert page.locator("#explore-rows tbody").text_content() == "No matching records found"
    page.get_by_text("Clear the filters").click()
    assert found(page) == total


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
    box = page.locator("#explore-plot svg").first.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= size[0]
    for selector in (
        "#explore-detail",
        ".explorer label",
        "#explore-caption",
        "#explore-plot .xtick text",
        "#explore-plot .legendtext",
        "#explore-table th",
        "#explore-table td",
    ):
        node = page.locator(f"article {selector}").first
        assert node.evaluate(CONTRAST) >= 4.5, f"{selector} in {scheme}"
    for step in ("as opened", "with a filter open"):
        ran = axe.Axe().run(page, context="article", options={"preload": False})
        serious = [v for v in ran.response["violations"] if v["impact"] in ("serious", "critical")]
        assert [v["id"] for v in serious] == [], step
        page.locator("#explore-table .dtcc-button").nth(1).click()


@slow
@needs_browser
def test_without_javascript_a_figure_and_the_files_are_there(visit):
    page = visit(script=False)
    figure = page.locator("noscript img, article img")
    assert figure.first.is_visible()
    alt = figure.first.get_attribute("alt")
    assert "By number of in-house images: Findings, clip" in alt
    assert not page.locator("#explore-figure").is_visible()
    for name in explorer.FILES.values():
        assert page.locator(f"a[href='_static/{name}']").is_visible()
