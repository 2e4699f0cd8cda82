"""The synthetic institution is neither trivial nor too hard, and its card agrees with it."""

import numpy as np
import pytest

from cxrstudy import pictures
from cxrstudy.data import synthetic
from cxrstudy.data.synthetic import institution, summary
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, LABELS, phrase


@pytest.fixture(scope="module")
def table():
    return summary.calibration().set_index(["measure", "label"])


def test_the_card_is_filled_from_what_is_computed() -> None:
    text = summary.card_path().read_text(encoding="utf-8")
    remedy = "run python -m cxrstudy.data.synthetic.summary"
    assert text == summary.fill_card(text), remedy
    with pytest.raises(ValueError, match="no block <!-- rates -->"):
        summary.fill_card("a card without blocks")


def test_the_calibration_is_of_this_generator(table) -> None:
    remedy = "run tests/benchmarks/calibrate_synthetic.py"
    assert set(table["generator"]) == {synthetic.VERSION}, remedy


def test_it_is_neither_trivial_nor_invisible(table) -> None:
    pixels, network = table.loc["pixels"]["value"], table.loc["supervised"]["value"]
    assert 0.60 <= pixels["findings"] <= 0.75
    assert 0.55 <= pixels["devices"] <= 0.80
    assert table.loc[("pixels, AP only", "devices"), "value"] < 0.70
    assert min(network["findings"], network["devices"]) >= 0.88
    assert (pixels[list(LABELS)] <= 0.90).all()
    assert (network[list(LABELS)] >= 0.75).all()
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_every_rate_has_a_source_or_the_word_assumed() -> None:
    rates = summary.rates_table()
    assert (rates["source"].str.len() > 3).all()
    named = set(rates.index)
    assert {"device_mention", "label_miss", "PICC line", "pleural effusion"} <= named
    tips = {f"{name} tip" for name in DEVICES}
    assert set(institution.SOURCES) <= named | tips, "a source of nothing"
    shown = set(summary.tips_table()["source"])
    assert all(institution.SOURCES[name] in shown for name in tips & set(institution.SOURCES))


def test_pictures_show_each_finding_and_device_in_both_views() -> None:
    for labels in (FINDINGS, DEVICES):
        alt = pictures.isolated(labels).alt
        assert all(f"{phrase(n)}, {view}" in alt for n in labels for view in ("PA", "lateral"))
    assert "exam 4" in pictures.over_time().alt
    assert "public-6" in pictures.institutions().alt
    assert "faint" in pictures.faint_devices().alt
    indices = range(0, 183, 61)
    assert "122: " in pictures.examples(indices).alt
    assert summary.examples_table(indices)["report"].str.len().min() > 10
    assert len(FINDINGS) == 8


def test_the_outline_of_a_pneumothorax_is_apical_and_lateral() -> None:
    """The shift of the mediastinum changes the image more than the air does, and is no part."""
    lateral = np.flatnonzero(synthetic.describe(range(400)).view == "LATERAL")[:6]
    for pa in lateral - 1:
        image, bare, _, extent = synthetic.isolate_label([pa], "pneumothorax", size=128)
        inside = extent[0] > pictures.EXTENT_LEVEL * extent[0].max()
        row, column = np.nonzero(inside)
        away = np.abs(column - 63.5)
        assert np.median(away) > 24  # of 64: the lateral half of a hemithorax
        assert row.min() < 40  # reaches the apex
        assert (np.asarray(image - bare)[0, 0][inside] < 0).mean() > 0.95  # air is dark
