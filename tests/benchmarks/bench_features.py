"""Cost of encoding, and of writing features to disk, against the bare forward pass.

    python tests/benchmarks/bench_features.py            # some 2 minutes on one core
    python tests/benchmarks/bench_features.py --quick    # fewer images and rounds

Sides alternate in one process, on the same images, encoder and batch. The bare side's images are
float tensors in memory, normalised and of the encoder's size. ``encode`` reads memory-mapped bytes,
normalises and pools them. ``encode_maps`` writes feature maps in half precision. Ratios are
medians, with their range, of rounds of this process's CPU time, or of wall time on a GPU.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cxrstudy import encoders
from cxrstudy.data.images import Prepared
from cxrstudy.evaluate.features import BATCH, device, encode
from cxrstudy.evaluate.maps import encode_maps


def timed(call: Callable[[], Any]) -> float:
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def bench(name: str, size: int, n: int, rounds: int, folder: Path) -> None:
    np.save(
        folder / "images.npy",
        np.random.default_rng(0).integers(0, 256, (n, size, size), dtype=np.uint8),
    )
    images = np.load(folder / "images.npy", mmap_mode="r")
    prepared = Prepared(
        pd.DataFrame({"image_id": [f"i{k}" for k in range(n)]}), images, {"size": size}
    )
    encoder, rows = encoders.load_encoder(f"random:{name}", size=size).to(device()), np.arange(n)
    tensors = [
        encoder.normalise(np.array(images[start : start + BATCH])) for start in range(0, n, BATCH)
    ]
    tensors = [x.to(device()) for x in tensors]

    @torch.inference_mode()
    def bare() -> None:
        for x in tensors:
            encoder.forward_features(x)

    sides: dict[str, Callable[[], Any]] = {
        "encode": lambda: encode(encoder, prepared, rows, pooling="mean+max"),
        "maps": lambda: encode_maps(encoder, prepared, rows, 1, home=folder),
    }
    bare()  # the first pass of all
    ratios: dict[str, list[float]] = {what: [] for what in sides}
    for _ in range(rounds):
        for what, call in sides.items():
            before, own, after = timed(bare), timed(call), timed(bare)
            ratios[what].append(2 * own / (before + after))
    for what, values in ratios.items():
        reach = f"{min(values):.3f} to {max(values):.3f}"
        told = f"{statistics.median(values):.3f} of the bare pass, {reach}"
        print(f"{name} at {size} px, {n} images, {what}: {told}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} cores, 1 thread"
    )
    print(f"{where}, torch {torch.__version__}")
    share = 4 if options.quick else 1
    for name, size, n in (
        ("cnn_mini", 64, 2048),
        ("davit_mini", 64, 1024),
        ("vit_small_patch16_224", 224, 64),
    ):
        with tempfile.TemporaryDirectory() as folder:
            bench(
                name,
                size,
                max(64, n // share),
                3 if options.quick else options.rounds,
                Path(folder),
            )
