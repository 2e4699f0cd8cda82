"""Time and memory to read, join, validate, split, write, read and nest a large manifest.

    python tests/benchmarks/bench_tables.py --rows 350000

Two CSV files are made by another process: images (ids, view, age, sex, path) and labels by study.
Prints seconds and the peak of memory by step; on a busy machine, go by the CPU's seconds. The image
files are not made, so that finding them is not timed.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.data import cards, manifest
from cxrstudy.data.cardfile import Card

LABELS = ("Effusion", "Edema", "Cardiomegaly", "Pneumothorax")


def write_tables(folder: Path, rows: int) -> None:
    """Write the two tables."""
    rng = np.random.default_rng(0)
    exams = np.sort(rng.integers(0, int(rows / 1.6) + 1, rows))
    patients = exams // 2
    pd.DataFrame(
        {
            "image": np.char.add("i", np.arange(rows).astype(str)),
            "patient": np.char.add("p", patients.astype(str)),
            "study": np.char.add("s", exams.astype(str)),
            "view": rng.choice(["PA", "AP", "LATERAL"], rows),
            "age": rng.integers(18, 90, rows),
            "sex": rng.choice(["F", "M"], rows),
        }
    ).to_csv(folder / "images.csv", index=False)
    own = np.unique(exams)
    found = {name: rng.choice(["1.0", "0.0", "-1.0", ""], len(own)) for name in LABELS}
    keys = {"study": np.char.add("s", own.astype(str))}
    pd.DataFrame(keys | found).to_csv(folder / "labels.csv", index=False)


def card_of_tables() -> Card:
    """Return the card that reads the two tables."""
    facts = dict.fromkeys(("name", "title", "licence", "access", "citation"), "bench")
    table = {"path": "images.csv", "image_id": "image", "patient_id": "patient"}
    table |= {"view": "view", "age": "age", "sex": "sex"}
    return Card(
        **facts,
        kind="real",
        table=table | {"study_id": ["study"]},
        tables=[{"path": "labels.csv", "on": ["study"]}],
        labels={
            "encoding": "columns",
            "names": {name.lower(): name for name in LABELS},
            "values": {"1.0": 1, "0.0": 0, "-1.0": None},
            "missing": "unknown",
        },
    )


def peak_gb() -> float:
    """Return the largest memory since the last call, in GB."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def main() -> None:
    """Run the steps and print their seconds and the peak of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=350_000)
    rows = parser.parse_args().rows
    took, used, peaks = [], [], []

    def step(what: str, action: Callable[[], Any]) -> Any:
        start = time.perf_counter(), time.process_time()
        result = action()
        took.append(time.perf_counter() - start[0])
        used.append(time.process_time() - start[1])
        peaks.append(peak_gb())
        print(f"{what}: {took[-1]:.1f} s (CPU {used[-1]:.1f} s), peak {peaks[-1]:.2f} GB")
        return result

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        making = multiprocessing.get_context("spawn").Process(
            target=write_tables, args=(folder, rows)
        )
        making.start()
        making.join()
        card, file = card_of_tables(), folder / "manifest.parquet"
        cards.find_images = lambda base, patterns, image, rows: "images/" + image
        shares = {"pretrain": 0.7, "train": 0.14, "validation": 0.03, "test": 0.13}
        peak_gb()
        made = step("read, joined, validated", lambda: cards._real(card, card.table, folder))
        made = step("split", lambda: manifest.assign_splits(made, fractions=shares, seed=0))
        step("written, validated", lambda: manifest.write_manifest(made, file))
        del made
        made = step("read, validated", lambda: manifest.read_manifest(file))
        sizes = rows // 100, rows // 10
        step(
            f"two nested subsets of {sizes}",
            lambda: [len(manifest.nested_subset(made, n, seed=0)) for n in sizes],
        )
        cpu = f"CPU {sum(used):.1f} s"
        print(f"all: {sum(took):.1f} s ({cpu}) of {rows:,} rows, peak {max(peaks):.2f} GB")


if __name__ == "__main__":
    main()
