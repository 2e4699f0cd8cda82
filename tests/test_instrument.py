"""The synthetic institution is as hard as it should be, and its card says what is so."""

import pytest

from cxrstudy import instrument, pictures
from cxrstudy.data import synthetic
from cxrstudy.data.synthetic import institution
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, LABELS


@pytest.fixture(scope="module")
def table():
    return instrument.calibration().set_index(["measure", "label"])


def test_the_card_is_filled_from_what_is_computed() -> None:
    text = instrument.card().read_text(encoding="utf-8")
    assert text == instrument.filled(text), "python -m cxrstudy.instrument fills it"
    with pytest.raises(ValueError, match="no block <!-- rates -->"):
        instrument.filled("a card without blocks")


def test_the_calibration_is_of_this_generator(table) -> None:
    assert set(table["generator"]) == {synthetic.VERSION}, (
        "tests/benchmarks/calibrate_synthetic.py measures anew"
    )


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


def test_every_rate_bears_a_source_or_the_word_assumed() -> None:
    rates = instrument.rates()
    assert (rates["source"].str.len() > 3).all()
    named = set(rates.index)
    assert {"device_mention", "label_miss", "PICC line", "pleural effusion"} <= named
    tips = instrument.tip_rules()
    known = named | {f"{name} tip" for name in DEVICES}
    assert set(institution.SOURCES) <= known, "a source of nothing"
    said = {f"{name} tip" for name in DEVICES} & set(institution.SOURCES)
    assert all(institution.SOURCES[name] in set(tips["source"]) for name in said)


def test_pictures_show_each_finding_and_device_in_both_views() -> None:
    assert all(
        word in pictures.findings_alone().alt for word in ("cardiomegaly, PA", "fracture, lateral")
    )
    shown = pictures.devices_alone().alt
    assert all(
        f"{instrument.phrase(name)}, {view}" in shown
        for name in DEVICES
        for view in ("PA", "lateral")
    )
    assert "exam 4" in pictures.over_time().alt
    assert "public-6" in pictures.institutions().alt
    assert instrument.described(3)["report"].str.len().min() > 10
    assert len(FINDINGS) == 8
