"""Time and memory to read, join, validate, split and nest the tables of a large data set.

    python tests/benchmarks/bench_tables.py --rows 350000

Two CSV files are made: images (ids, view, age, sex, path) and labels by study. Prints seconds by
step and the peak of memory. The image files are not made, so that finding them is not timed.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from cxrstudy.data import cards, manifest
from cxrstudy.data.cardfile import Card

LABELS = ("Effusion", "Edema", "Cardiomegaly", "Pneumothorax")


def write_tables(folder: Path, rows: int) -> Card:
    """Write the two tables and return the card that reads them."""
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


def main() -> None:
    """Run the steps and print their seconds and the peak of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=350_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        card = write_tables(folder, rows)
        cards.find_images = lambda base, patterns, image, rows: "images/" + image
        began = time.perf_counter()
        made = cards._real(card, card.table, folder)
        print(f"read, joined, validated: {time.perf_counter() - began:.1f} s")
        start = time.perf_counter()
        shares = {"pretrain": 0.7, "train": 0.14, "validation": 0.03, "test": 0.13}
        made = manifest.assign_splits(made, fractions=shares, seed=0)
        print(f"split: {time.perf_counter() - start:.1f} s")
        start = time.perf_counter()
        sizes = [len(manifest.nested_subset(made, n, seed=0)) for n in (rows // 100, rows // 10)]
        print(f"two nested subsets of {sizes}: {time.perf_counter() - start:.1f} s")
        print(f"all: {time.perf_counter() - began:.1f} s of {rows:,} rows")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak of memory: {peak:.1f} GB (with the making of the tables)")


if __name__ == "__main__":
    main()
