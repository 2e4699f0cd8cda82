"""What preparing and pretraining take is stated from measured rates, and says which."""

import os

import pytest

from cxrstudy import grid, study
from cxrstudy.preflight import STEPS, estimates
from cxrstudy.preflight.asked import Asked
from cxrstudy.preflight.holdings import Holding


def asked(name, n, **values):
    preset = grid.load_preset(name)
    held = {
        key: Holding(study.Data(**{**own, "n_images": 0} | values), n=n, whole=n)
        for key, own in preset.data.items()
    }
    return Asked(preset, held)


def said(step, c):
    return [problem.message for problem in step(c)]


def test_disk_and_hours_of_millions_of_images(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert estimates.reading in STEPS and estimates.training in STEPS
    large, _ = said(estimates.reading, asked("paper", 3_500_000))
    assert "3,500,000 images at 518 px take 939 GB of disk, 235 as image_format: jpeg" in large
    assert "about 7.0 hours on 16 cores" in large and "8.7 images/s a core were measured" in large
    coded, _ = said(estimates.reading, asked("paper", 3_500_000, image_format="jpeg"))
    assert "about 235 GB of disk as JPEG" in coded
    assert said(estimates.reading, asked("paper", 1000)) == []
    assert said(estimates.reading, asked("mini", 10**7)) == []  # drawn, not read


def test_pictures_are_read_faster_than_dicom(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    (text,) = said(estimates.reading, asked("nih", 112_120, size=224))
    assert "47 images/s" in text and "0.7 hours on 1 cores" in text


@pytest.mark.parametrize(
    ("name", "vit", "davit"), [("paper", (5, 17_500_160, 52), (10, 35_000_320, 110))]
)
def test_gpu_hours_rest_on_measured_rates_and_say_what_is_scaled(name, vit, davit):
    first, second = said(estimates.training, asked(name, 3_500_000))
    runs, images, hours = vit
    assert f"rad-dino at 518 px: {runs} runs show {images:,} images, about {hours} hours" in first
    assert "at 94 images/s (measured for ViT-B/14 with 8 local crops)" in first
    runs, images, hours = davit
    assert f"{runs} runs show {images:,} images, about {hours} hours of one H200" in second
    assert "scaled by operations and by pixels to 480" in second
    assert said(estimates.training, asked("mini", 3000)) == []


@pytest.mark.parametrize("name", ["paper", "site"])
def test_what_a_preset_expects_is_no_less_than_its_pretraining(name):
    c = asked(name, 45_000)
    hours = 0.0
    for text in said(estimates.training, c):
        hours += float(text.partition("about ")[2].partition(" hours")[0].replace(",", ""))
    assert hours <= c.preset.gpu_hours <= 2 * hours
