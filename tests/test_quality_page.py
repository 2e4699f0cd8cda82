"""The data-quality page formats what ingests counted, and hides counts under ten."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Walk
from hypothesis import given
from hypothesis import strategies as st

from cxrstudy import quality_page as page
from cxrstudy import sources

COUNTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 60), min_size=1)
FACTS: dict[str, Any] = {
    "images": 40,
    "patients": 30,
    "studies": 35,
    "flow": [
        {"step": "files found", "left": 60, "dropped": {}},
        {"step": "x-rays of a chest, by their headers", "left": 48, "dropped": {"colour $x$": 12}},
        {"step": "with a patient", "left": 45, "dropped": {"no patient id": 3}},
        {"step": "each picture once", "left": 40, "dropped": {"same pixels": 5}},
    ],
    "duplicates": {"same pixels": 5},
    "labels": {"edema": {"present": 3, "absent": 30, "unknown": 7}},
    "labels_from": "tables",
    "agreement": {
        "edema": {"both": 11, "report_only": 12, "table_only": 2, "neither": 15, "kappa": 0.5}
    },
    "odd": [{"image_id": "00ab", "distance": 0.5}],
}


@given(COUNTS)
def test_no_count_under_ten_is_shown_or_follows_from_the_others(counts: dict[str, int]) -> None:
    shown = page.cells(counts)
    assert shown.keys() == counts.keys()
    hidden = [name for name in counts if shown[name] in (page.FEW, page.HIDDEN)]
    for name, n in counts.items():
        assert (shown[name] == f"{n:,}") == (name not in hidden)
        if 0 < n < page.SMALL:
            assert shown[name] == page.FEW
    others = [name for name in counts if counts[name] >= page.SMALL]
    if len(hidden) == 1:  # then the total tells it: nothing else could be hidden
        assert not others


def test_the_flow_says_each_step_in_its_alternative_text_and_hides_small_differences() -> None:
    alt = page.flow(FACTS).alt
    assert "files found: 60" in alt and "dropped, colour $x$: 12" in alt
    assert "no patient id: under 10" in alt
    assert "with a patient: hidden" in alt  # 48 - 45 would tell it, and so would 45 - 40
    assert "45" not in alt


def test_prevalence_and_agreement_hide_small_cells() -> None:
    text = page.prevalence(FACTS).markup
    assert "33" in text and page.FEW in text and "0.09" not in text
    text = page.agreement(FACTS).markup
    assert page.FEW in text and page.HIDDEN in text and ">11<" not in text


def test_bars_and_values_have_alternative_text() -> None:
    found = page.bars({"0 to 9": 4, "10 to 19": 30, "20 to 29": 50, "unknown": 0}, "Age in years")
    assert "10 to 19: hidden" in found.alt and "unknown" not in found.alt
    assert page.bars({}, "Age in years").markup.startswith("<p>")
    assert "other values" in page.table({str(k): 20 for k in range(30)}, "mm a pixel").markup


def test_images_are_shown_only_where_the_card_allows_it(walk: Walk) -> None:
    folder = walk.root / "ingested" / "gone"
    assert "00ab" in page.oddest(FACTS, folder).markup
    assert "<img" not in page.oddest(FACTS, folder).markup


def test_ingests_are_found_and_a_damaged_one_is_named(walk: Walk) -> None:
    for name, text in (("good", json.dumps(FACTS)), ("torn", '{"flow": [')):
        place = walk.root / "ingested" / name
        place.mkdir(parents=True)
        (place / "quality.json").write_text(text)
    found = {name: facts for name, facts, _ in page.ingests()}
    assert found["good, on this machine"]["images"] == 40
    assert "run the ingest again" in found["torn, on this machine"]["damaged"]


@pytest.mark.skipif(not sources.ingests(), reason="no ingest is recorded or made here")
@pytest.mark.parametrize("path", sources.ingests(), ids=lambda path: path.stem)
def test_every_part_of_the_page_can_be_made_of_an_ingest(path: Path) -> None:
    facts = json.loads(path.read_text(encoding="utf-8"))
    parts = [page.flow(facts), page.prevalence(facts), page.agreement(facts)]
    parts += [page.bars(facts["ages"], "Age in years"), page.grey_values(facts)]
    parts += [page.table(facts[name], name) for name in ("views", "sexes", "scanners", "spacing")]
    parts += [page.oddest(facts, None)]
    assert all(part.alt for part in parts)
    for words in (page.summary(facts), page.views_in_words(facts), page.reports_in_words(facts)):
        assert words.endswith(".")


def test_the_book_has_the_page(walk: Walk) -> None:
    from cxrstudy import book

    assert "quality" in book.page_plan(walk.root / "_build")
    assert "file: quality" in (ROOT / "book" / "_toc.yml").read_text()
