"""The audit of mined labels: draw, weights, refused marks, and the sheet in a browser."""

import json
import re
import stat
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from click.testing import CliRunner
from conftest import ROOT, Walk
from hypothesis import given, settings
from hypothesis import strategies as st
from mined import hospital
from pages import CONTRAST, PHONE, beyond, needs_browser, visits

from cxrstudy import audit, study
from cxrstudy.cli import main
from cxrstudy.data.mining import STATUSES, read_statuses
from cxrstudy.evaluate import agreement

sys.path.insert(0, str(ROOT / "tests" / "data"))
from test_reports import CODES, OPENI, curated

EVIL = (
    "Mild cardiomegaly. <script>window.stolen = 1</script><img src=x onerror='stolen=2'> </script>"
)
REPORTS = [
    EVIL,
    *[f"Mild cardiomegaly, case {k}. No pleural effusion." for k in range(12)],
    *[f"Possible small pleural effusion, case {k}." for k in range(12)],
    *[f"The heart is normal in size, case {k}. Small pleural effusion." for k in range(12)],
    *[f"The lungs are clear, case {k}." for k in range(40)],
    '=HYPERLINK("http://x") No edema. Pulmonary edema.',
]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def population(sizes, seed=0):
    """Statuses of two labels in reports of random order: a count for each pair of statuses."""
    rng = np.random.default_rng(seed)
    pairs = np.repeat(np.arange(16), sizes)
    order = rng.permutation(len(pairs))
    items = [f"{k:06x}" for k in rng.choice(16**6, len(pairs), replace=False)]
    own = pairs[order]
    return pd.DataFrame({"one": own // 4, "two": own % 4}, index=items)


COUNTS = st.lists(st.integers(0, 30), min_size=16, max_size=16).filter(lambda c: sum(c) > 0)


# ---- the draw ------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(0, 99), st.integers(16, 60), st.integers(0, 400))
def test_samples_are_nested_weigh_the_whole_and_follow_the_order(sizes, seed, n, more):
    codes = population(sizes, seed)
    small, large = audit.draw(codes, n), audit.draw(codes, n + more)
    pairs = [set(zip(s["item"], s["label"], strict=True)) for s in (small, large)]
    assert pairs[0] <= pairs[1]
    for label, rows in large.groupby("label"):
        counts = codes[label].value_counts()
        assert set(rows["status"]) == set(counts.index)  # each stratum that exists is read
        for status, own in rows.groupby("status"):
            assert (own["N"] == counts[status]).all() and (own["n"] == len(own)).all()
            there = codes.index[codes[label] == status]
            assert list(own["item"]) == list(there[: len(own)])
    if n + more > len(codes):
        assert len(large) == 2 * len(codes)


def test_too_few_reports_are_refused_with_the_number_needed():
    codes = population([9] * 16)
    with pytest.raises(study.StudyError, match=r"takes \d+ reports") as refused:
        audit.draw(codes, 1)
    least = int(re.search(r"takes (\d+)", str(refused.value))[1])
    assert len(audit.draw(codes, least)) >= 8


def test_about_as_many_reports_are_drawn_as_asked_for():
    for n in (40, 100, 250):
        drawn = [audit.draw(population([60] * 16, seed), n)["item"].nunique() for seed in range(20)]
        assert abs(np.mean(drawn) - n) < 0.1 * n and np.ptp(drawn) < 0.6 * n


# ---- the estimates -------------------------------------------------------------------------------
def truths(codes, rates, seed):
    """What readers say of label one: present with a rate that depends on both labels' statuses."""
    odds = np.asarray(rates)[codes["one"]] * (0.5 + 0.5 * (codes["two"] == 3))
    return pd.Series(np.random.default_rng(seed).random(len(codes)) < odds, codes.index)


VALUES = np.array([np.nan, 0.0, np.nan, 1.0])


@settings(max_examples=2, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(0.05, 0.95), min_size=4, max_size=4))
def test_weighted_counts_are_unbiased_over_the_random_order(seed, rates):
    """Of a fixed data set, the mean over orders is the truth, also where labels share reports."""
    sizes = np.random.default_rng(seed).integers(0, 25, 16)
    codes = population(sizes, seed)
    truth = truths(codes, rates, seed)
    rng, totals = np.random.default_rng(seed + 1), []
    for _ in range(150):
        order = rng.permutation(len(codes))
        names = codes.index[order]  # items are a second order, independent of the first
        again = codes.iloc[order].set_axis([f"{k:03d}" for k in rng.permutation(len(codes))])
        rows = audit.draw(again, 30).query("label == 'one'")
        is_true = truth[names].set_axis(again.index)[rows["item"]].to_numpy()
        totals.append((is_true * rows["N"] / rows["n"]).sum())
    error = np.std(totals) / len(totals) ** 0.5
    assert abs(np.mean(totals) - truth.sum()) < 4.5 * error + 1e-9


@settings(max_examples=30, deadline=None)
@given(COUNTS, st.integers(0, 99), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_a_sheet_of_every_report_gives_the_exact_values_without_width(sizes, seed, rates):
    codes = population(sizes, seed)
    truth = truths(codes, rates, seed)
    rows = audit.draw(codes, len(codes) + 1).query("label == 'one'")
    found = agreement.estimate(rows, truth[rows["item"]].to_numpy(), VALUES)
    said, denied = codes["one"] == 3, codes["one"] == 0 + 1
    wanted = {
        "precision": truth[said].mean() if said.any() else np.nan,
        "recall": said[truth].mean() if truth.any() else np.nan,
        "specificity": (~said)[~truth].mean() if (~truth).any() else np.nan,
        "npv": (~truth)[denied].mean() if denied.any() else np.nan,
    }
    wanted["f1"] = (
        2 * (said & truth).sum() / (said.sum() + truth.sum()) if (said | truth).any() else np.nan
    )
    for name, value in wanted.items():
        ends = [found[name], found[f"{name}_low"], found[f"{name}_high"]]
        np.testing.assert_allclose(ends, [value] * 3, atol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "rates", "read"),
    [
        ((460, 105, 44, 100), (0.01, 0.01, 0.4, 0.9), (16, 8, 4, 8)),
        ((3000, 3000, 30, 100), (0.001, 0.0, 0.2, 0.99), (30, 15, 8, 15)),
        ((4600, 1050, 440, 1000), (0.03, 0.03, 0.4, 0.8), (80, 40, 20, 40)),
    ],
)
def test_intervals_hold_the_truth_at_least_as_often_as_they_say(sizes, rates, read):
    """Also where a missed report is rare and counts for hundreds of others."""
    codes = np.repeat(np.arange(4), sizes)
    truth = np.concatenate([np.arange(n) < round(n * r) for n, r in zip(sizes, rates, strict=True)])
    said, denied = codes == 3, codes == 1
    exact = {"precision": truth[said].mean(), "recall": said[truth].mean()}
    exact |= {"specificity": (~said)[~truth].mean(), "npv": (~truth)[denied].mean()}
    exact["f1"] = 2 * (said & truth).sum() / (said.sum() + truth.sum())
    rng, held = np.random.default_rng(5), dict.fromkeys(exact, 0)
    for _ in range(100):
        drawn = [rng.choice(np.flatnonzero(codes == k), read[k], replace=False) for k in range(4)]
        chosen = np.concatenate(drawn)
        rows = pd.DataFrame({"status": codes[chosen]})
        rows = rows.assign(N=np.array(sizes)[rows["status"]])
        found = agreement.estimate(rows, truth[chosen], VALUES)
        for name, value in exact.items():
            assert found[f"{name}_low"] <= found[name] + 0.02 and found[name] <= 1
            held[name] += found[f"{name}_low"] <= value <= found[f"{name}_high"]
    assert min(held.values()) >= 92, held


def test_nothing_missed_in_a_few_of_many_is_no_proof_of_recall():
    rows = pd.DataFrame({"status": [3] * 10 + [0] * 10, "N": [10] * 10 + [5000] * 10, "n": 10})
    found = agreement.estimate(rows, rows["status"].eq(3).to_numpy(), VALUES)
    assert found["recall"] == 1 and found["recall_low"] < 0.1
    assert found["precision_low"] == found["precision"] == 1  # all ten were read


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from(agreement.MARKS)] * 2), min_size=2, max_size=60))
def test_kappa_is_cohens(pairs):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    one, two = (pd.Series(list(marks)) for marks in zip(*pairs, strict=True))
    found = agreement.kappa(one, two)
    assert found["agreement"] == pytest.approx((one == two).mean())
    if len(set(one) | set(two)) > 1:
        assert found["kappa"] == pytest.approx(metrics.cohen_kappa_score(one, two))
        assert found["kappa_low"] <= found["kappa"] <= found["kappa_high"]
        assert found["kappa_high"] > found["kappa_low"]
    else:
        assert np.isnan(found["kappa"])  # one word alone: agreement cannot exceed chance


# ---- the sheet and its score ---------------------------------------------------------------------
def drawn(tmp_path, **options):
    card = hospital(tmp_path / "data", REPORTS)
    out, sample, never = audit.write_sheet(str(card), root=str(tmp_path / "data"), **options)
    return card, out, sample, never


def filled(out: Path, path: Path, change=lambda frame: frame, **how) -> Path:
    """A reader's file: of each row of the twin the mined status, as the design holds it."""
    frame = pd.read_csv(out / "sheet.csv", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    design = json.loads((out / "design.json").read_text())["sample"]
    keys = zip(design["item"], design["label"], strict=True)
    status = dict(zip(keys, design["status"], strict=True))
    words = ["cannot tell", *STATUSES[1:]]
    pairs = zip(frame["item"], frame["label"], strict=True)
    frame["mark"] = [words[status[pair]] for pair in pairs]
    change(frame).to_csv(path, index=False, **how)
    return path


def test_a_blinded_sheet_holds_no_mined_status_and_is_private(tmp_path, runs):
    _, out, sample, never = drawn(tmp_path, n=40)
    assert out == runs / "audits" / "hospital" and "picc" in never
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()} == {0o600}
    page = BeautifulSoup((out / "sheet.html").read_text(), "html.parser")
    data = json.loads(page.find(id="data").string)
    assert {tuple(item) for item in data["items"]} == {("id", "ask", "parts")}
    assert {said for item in data["items"] for _, said in item["parts"]} == {"", "-"}
    assert sum(len(item["ask"]) for item in data["items"]) == len(sample)
    texts = {"".join(text for text, _ in item["parts"]) for item in data["items"]}
    assert texts <= set(REPORTS)
    twin = pd.read_csv(out / "sheet.csv", encoding="utf-8-sig")
    assert list(twin) == ["item", "label", "mark", "comment", "report"]
    assert not twin["report"].str.match("[=+@-]").any() and twin["mark"].isna().all()


def test_an_open_sheet_says_what_was_mined(tmp_path, runs):
    _, out, _, _ = drawn(tmp_path, n=40, blinded=False, labels=["cardiomegaly"])
    page = BeautifulSoup((out / "sheet.html").read_text(), "html.parser")
    items = json.loads(page.find(id="data").string)["items"]
    assert {status for item in items for status in item["mined"]} <= set(STATUSES)
    assert any("cardiomegaly: present" in part for item in items for part in item["parts"])


def test_a_larger_sheet_keeps_items_and_another_seed_draws_others(tmp_path, runs):
    first = drawn(tmp_path, n=20)[2]
    again, larger = drawn(tmp_path, n=20)[2], drawn(tmp_path, n=40)[2]
    pd.testing.assert_frame_equal(first, again)
    assert set(first["item"]) < set(larger["item"])
    assert not set(first["item"]) & set(drawn(tmp_path, n=20, seed=1)[2]["item"])


@pytest.mark.parametrize(
    "how",
    [{}, {"sep": ";"}, {"sep": "\t"}, {"encoding": "cp1252"}, {"encoding": "utf-16"}],
    ids=str,
)
def test_marks_that_repeat_the_mined_status_score_as_perfect(tmp_path, runs, how):
    card, out, sample, _ = drawn(tmp_path, n=40)
    table = audit.score(str(card), [filled(out, tmp_path / "one.csv", **how)])
    assert set(table["label"]) == set(sample["label"]) == {"cardiomegaly", "edema",
        "pleural_effusion"}  # fmt: skip
    assert (table[["precision", "recall", "specificity", "f1", "npv"]].fillna(1) == 1).all(
        axis=None
    )
    found = json.loads((out / "audit.json").read_text())
    assert found["readers"] == 1 and found["mined"]["reports"] == len(REPORTS)
    assert "sample" not in found and not set(found) & {"items", "texts"}


def test_errors_of_the_miner_lower_the_right_metric(tmp_path, runs):
    card, out, _, _ = drawn(tmp_path, n=1000)

    def wrong(frame):
        own = frame["label"] == "cardiomegaly"
        hit = frame.index[own & (frame["mark"] == "present")][:3]
        miss = frame.index[own & (frame["mark"] == "cannot tell")][:2]
        frame.loc[hit, "mark"], frame.loc[miss, "mark"] = "absent", "present"
        return frame

    table = audit.score(str(card), [filled(out, tmp_path / "one.csv", wrong)]).set_index("label")
    row = table.loc["cardiomegaly"]  # all were read: 13 mined as present
    assert row["precision"] == pytest.approx(10 / 13)
    assert row["recall"] == pytest.approx(10 / 12)
    assert row["specificity"] == pytest.approx((len(REPORTS) - 15) / (len(REPORTS) - 12))
    assert row["present"] == "10 of 13 (of 13)"


def test_two_readers_have_a_kappa_and_the_page_shows_them(tmp_path, runs):
    from types import SimpleNamespace

    card, out, _, _ = drawn(tmp_path, n=40)
    info = {"card": "hospital", "mined": json.loads((out / "design.json").read_text())["mined"]}
    prepared = SimpleNamespace(info=info)
    assert "No audit of the mined labels has been done." in audit.in_book(prepared)[1].alt
    filled(out, out / "hospital-reader-1.csv")
    filled(out, out / "hospital-reader-2.csv", lambda f: f.assign(mark="a"))
    table = audit.score(str(card))
    assert table["reader"].max() == 2 and table["kappa"].max() <= 1
    said, shown = audit.in_book(prepared)
    assert "78 reports, 38 with any label" in said.alt
    soup = BeautifulSoup(shown.markup, "html.parser")
    assert "2 reader(s)" in soup.caption.text and "have changed" not in soup.caption.text
    assert len(soup.select("tbody tr")) == 6
    assert "precision" in soup.thead.text and "kappa" in soup.thead.text
    prepared.info["mined"] = info["mined"] | {"reports": 80}
    assert "have changed since this audit" in audit.in_book(prepared)[1].markup
    assert audit.in_book(SimpleNamespace(info={"card": "hospital"})) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.assign(mark=[*f["mark"][:-1], ""]), "line .*has no mark"),
        (lambda f: f.assign(mark=["presnt", *f["mark"][1:]]), "line 2: .*'presnt' .*near it: 'pre"),
        (lambda f: f.assign(item=["ffff", *f["item"][1:]]), "line 2: ffff .* is not of this sheet"),
        (lambda f: pd.concat([f, f[:1]]), "is there twice"),
        (lambda f: f[1:], "1 rows cannot be scored:\n.*is missing"),
        (lambda f: f.drop(columns="mark"), "has no column 'mark'"),
    ],
)
def test_incomplete_or_foreign_rows_are_refused_by_line(tmp_path, runs, change, said):
    card, out, _, _ = drawn(tmp_path, n=40)
    with pytest.raises(ValueError, match=said):
        audit.score(str(card), [filled(out, tmp_path / "one.csv", change)])
    assert not (out / "audit.json").exists()


def test_marks_in_the_twin_are_not_overwritten(tmp_path, runs):
    _, out, _, _ = drawn(tmp_path, n=40)
    drawn(tmp_path, n=20)
    filled(out, out / "sheet.csv")
    with pytest.raises(study.StudyError, match="rename it"):
        drawn(tmp_path, n=40)


# ---- the command line ----------------------------------------------------------------------------
def test_from_the_command_line(walk: Walk) -> None:
    folder = walk.root / "own"
    card = str(hospital(folder, REPORTS))

    def call(*words: str, **environment: str):
        return CliRunner().invoke(main, ["audit", *words], env=environment)

    done = call(card, "--score")
    assert done.exit_code == 2 and "no sheet" in done.output
    assert call(card).exit_code == 2
    done = call(card, "--n", "40", DATA_ROOT=str(folder))
    assert done.exit_code == 0, done.output
    out = walk.runs / "audits" / "hospital"
    assert f"{out / 'sheet.html'}" in done.output and "3 labels" in done.output
    done = walk.call("audit", card, "--score")  # the twin, without marks; in its own process
    assert done.returncode == 2 and "has no mark" in done.stderr
    assert "Traceback" not in done.stderr
    one = filled(out, walk.root / "one.csv")
    done = call(card, "--score", str(one), str(one))
    assert done.exit_code == 0, done.output
    assert "cardiomegaly" in done.output and "kappa" in done.output
    assert (out / "audit.json").is_file()
    for words, said in (
        ((card, "--n", "1"), "takes"),
        ((card, "--label", "nosuch"), "nosuch"),
        ((card, str(one)), "--score"),
        (("nosuch",), "no data card"),
        ((card, "--score", "a", "b", "c"), "3 files"),
        ((card, "--score", "gone.csv"), "gone.csv"),
    ):
        done = call(*words, DATA_ROOT=str(folder))
        assert done.exit_code == 2 and said in done.output, done.output


# ---- in a browser, from disk ---------------------------------------------------------------------
def progress(page) -> int:
    return int(re.search(r"; (\d+) of", page.locator("#state").text_content())[1])


@needs_browser
def test_a_reader_marks_the_sheet_by_keyboard_and_saves_it(tmp_path, runs, browser):
    card, out, sample, _ = drawn(tmp_path, n=1000, labels=["cardiomegaly", "pleural_effusion"])
    with visits(browser) as opened:
        page = opened(out / "sheet.html")
        count = page.locator("#asked fieldset").count()
        assert count == 2 and progress(page) == 0
        page.keyboard.press("1")
        assert progress(page) == 1
        assert page.locator("fieldset.now legend").text_content() == "pleural effusion"
        assert page.evaluate("document.activeElement.textContent") == "1 present"
        page.keyboard.press("ArrowUp")
        assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
        page.keyboard.press("3")  # another mark in place of the first
        page.locator("#spans").click()
        page.keyboard.press("2")
        page.locator("#spans").click()
        assert progress(page) == 2
        assert "Report 2 of" in page.locator("#state").text_content()
        page.keyboard.press("ArrowLeft")
        page.locator("#comment-0").fill('=1+1 "1,2"')  # its digits are no marks
        assert progress(page) == 2
        page.reload()
        assert progress(page) == 2 and page.locator("#comment-0").input_value()[:4] == "=1+1"
        page.select_option("#reader", "2")  # the other reader starts from nothing
        assert progress(page) == 0
        page.select_option("#reader", "1")
        page.locator("#open").focus()
        page.keyboard.press("Enter")
        assert "Report 2 of" in page.locator("#state").text_content()
        for _ in range(len(sample) - 2):
            page.keyboard.press("4")
        assert "All done" in page.locator("#state").text_content()
        with page.expect_download() as got:
            page.locator("#save").click()
        assert got.value.suggested_filename == "hospital-reader-1.csv"
        path = tmp_path / "one.csv"
        got.value.save_as(path)
        assert page.evaluate("window.stolen") is None
    saved = pd.read_csv(path, encoding="utf-8-sig", keep_default_na=False)
    assert saved["mark"].value_counts()[["uncertain", "absent"]].tolist() == [1, 1]
    assert saved["comment"][0] == ' =1+1 "1,2"' and (saved["mentions shown"] == "yes").sum() == 1
    assert len(audit.score(str(card), [path])) == 2
    assert json.loads((out / "audit.json").read_text())["mentions_shown"] == 1


@needs_browser
def test_report_text_is_inert_and_mentions_are_marked(tmp_path, runs, browser):
    _, out, _, _ = drawn(tmp_path, n=1000, labels=["cardiomegaly"], blinded=False)
    with visits(browser) as opened:
        page = opened(out / "sheet.html")
        found = False
        for _ in range(len(REPORTS)):
            if page.locator("#report").evaluate("n => n.textContent.includes('stolen')"):
                found = True
                shown = page.locator("#report").text_content()
                assert shown.replace(" (cardiomegaly: present)", "") == EVIL
                assert page.locator("#report :is(script, img)").count() == 0
                marked = page.locator("#report mark").evaluate("n => n.firstChild.data")
                assert marked.lower() == "cardiomegaly"
                page.keyboard.press("h")
                assert page.locator("#report mark").count() == 0
            page.keyboard.press("ArrowRight")
        assert found and page.evaluate("window.stolen") is None
        assert page.locator("body > script").count() == 2


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_sheet_can_be_read_and_used_by_all(tmp_path, runs, browser, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    _, out, _, _ = drawn(tmp_path, n=40, blinded=False)
    page_text = (out / "sheet.html").read_text()
    (out / "free.html").write_text(
        re.sub("<meta http-equiv[^>]*>", "", page_text)
    )  # axe is a script
    with visits(browser) as opened:
        page = opened(out / "free.html", PHONE, scheme)
        page.keyboard.press("1")
        page.keyboard.press("ArrowLeft")
        assert beyond(page) <= 0
        ran = axe.Axe().run(page, options={"preload": False})
        assert [v["id"] for v in ran.response["violations"]] == []
        for selector in ("#report", "button[aria-pressed=true]", "button", "legend", "#state"):
            assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector
        for control in page.locator(":is(select, input)").all():
            assert page.locator(f"label[for={control.get_attribute('id')}]").count() == 1


# ---- real reports --------------------------------------------------------------------------------
@pytest.mark.skipif(
    not OPENI.is_file(), reason="needs the real reports of ../shared/data/openi_reports"
)
def test_an_audit_of_real_reports_holds_what_all_of_them_say(tmp_path, runs):
    """Open-i's codes as the reader, by a script: intervals of 200 hold the values of all."""
    rows = list(curated())
    texts = pd.Series([text for _, text, _ in rows])
    names = [name for name in CODES if name != "lines"]
    card = hospital(tmp_path / "data", texts)
    out, sample, _ = audit.write_sheet(str(card), root=str(tmp_path / "data"), n=200, labels=names)
    assert 180 <= sample["item"].nunique() <= 220

    def is_coded(codes, label):
        return any(f"{c}/".startswith(tuple(f"{d}/" for d in CODES[label])) for c in codes)

    coded = {audit._inert(text): codes for _, text, codes in rows}

    def curators(frame):
        pairs = zip(frame["report"], frame["label"], strict=True)
        said = [is_coded(coded[text], label) for text, label in pairs]
        return frame.assign(mark=np.where(said, "present", "cannot tell"))

    table = audit.score(str(card), [filled(out, tmp_path / "one.csv", curators)])
    codes = read_statuses(texts, {name: [name] for name in names})
    for label, row in table.set_index("label").iterrows():
        true = np.array([is_coded(each, label) for _, _, each in rows])
        said = (codes[label] == STATUSES.index("present")).to_numpy()
        both = (said & true).sum()
        for metric, value in (("precision", both / said.sum()), ("recall", both / true.sum())):
            assert row[f"{metric}_low"] - 1e-9 <= value <= row[f"{metric}_high"] + 1e-9, label
            assert row[metric] > 0.85
