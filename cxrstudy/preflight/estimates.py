"""State what preparing and pretraining take, from measured rates; say which, and what is scaled.

Rates of reading: tests/benchmarks/bench_shards.py ``sources``, at 518 px. Rates of a GPU: the steps
of tests/benchmarks/bench_pretrain.py on an H200, in bf16.
"""

import os
from collections.abc import Iterator

from cxrstudy.data import cards
from cxrstudy.preflight.asked import Asked, Problem

LEAST = 1.0  # GB, or hours: what takes less is not stated
PICTURES = (".png", ".jpg", ".jpeg")
READ_PICTURE = 47.0, "JPEG of 3,056 x 2,544 px"  # images/s of one core
READ_DICOM = 8.7, "DICOM of 3,056 x 2,544 px, uncompressed; 6.4 of 1,760 x 1,760 px in JPEG 2000"
AS_JPEG = 0.25  # of the disk of raw pixels: .18 of real, .28 of synthetic images at 518 px
DAVIT = 1590.0 / 3.9  # images/s: davit_huge takes 3.9 times the operations of davit_base
RATES = {  # published weights: images/s of an H200, at how many px, what was measured
    "rad-dino": (94.0, 518, "measured for ViT-B/14 with 8 local crops"),
    "medimageinsight": (DAVIT, 224, "DaViT-base's measured 1,590 at 224 px, scaled by operations"),
}


def reading(c: Asked) -> Iterator[Problem]:
    """State disk and hours of each data set of files."""
    for key, held in c.held.items():
        p, cores = held.p, os.cpu_count() or 1
        if held.fault or p.card == "synthetic":
            continue
        patterns = [pattern.lower() for pattern in cards.read_card(p.card).images]
        is_picture = bool(patterns) and all(pattern.endswith(PICTURES) for pattern in patterns)
        rate, what = READ_PICTURE if is_picture else READ_DICOM
        gb, hours = held.n * p.size**2 / 1e9, held.n / rate / cores / 3600
        if max(gb, hours) < LEAST:
            continue
        kept = f"{gb:,.0f} GB of disk, {gb * AS_JPEG:,.0f} as image_format: jpeg"
        if p.image_format == "jpeg":
            kept = f"about {gb * AS_JPEG:,.0f} GB of disk as JPEG"
        yield Problem(
            "note",
            "",
            f"data {key}: {held.n:,} images at {p.size} px take {kept}, and about {hours:,.1f} "
            f"hours on {cores} cores of this machine ({rate:g} images/s a core were measured: "
            f"{what}; a slow disk or network takes longer)",
        )


def training(c: Asked) -> Iterator[Problem]:
    """State GPU-hours of pretraining from published weights, where a preset needs a GPU."""
    shown: dict[tuple[str, int], list[int]] = {}
    for k, p in c.points if c.preset.gpu_hours else ():
        curve = c.preset.curves[k]
        weights = c.preset.base.get(curve.base, {}).get("checkpoint")
        if weights in RATES and curve.data in c.held:
            key = str(weights), c.held[curve.data].p.size
            shown.setdefault(key, []).extend([p.samples_seen] * max(1, len(c.folds)))
    for (weights, px), seen in shown.items():
        rate, own_px, what = RATES[weights]
        rate *= (own_px / px) ** 2
        scaled = "" if px == own_px else f" and by pixels to {px}"
        yield Problem(
            "note",
            "",
            f"pretraining {weights} at {px} px: {len(seen)} runs show {sum(seen):,} images, about "
            f"{sum(seen) / rate / 3600:,.0f} hours of one H200 at {rate:.0f} images/s "
            f"({what}{scaled}); evaluations and other GPUs were not measured",
        )
