"""Speed and memory of the walk of an archive, against pydicom's usual way to read headers.

    python tests/benchmarks/bench_ingest.py            # 2,000 headers, a tree of 40,000: minutes
    python tests/benchmarks/bench_ingest.py --quick    # 500 and 4,000

The files have headers as a PACS gives them (110 elements, 40 of them private, 5 sequences) and
small pixel data. In one process, alternating on the same files: `read_header`, and
`pydicom.dcmread(stop_before_pixels=True)`, without and with access to the same tags. Ratios: median
and range over rounds. The walk is measured as a whole (list, read, judge), with processes already
started, then again with nothing new. In one process, CPU time is told too, which a busy machine
changes less. Memory is the peak of one process for trees that double in size.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom

sys.path.insert(0, str(Path(__file__).parents[1] / "ingest"))
from headers_made import header, save

from cxrstudy.ingest.headers import TAGS, read_header
from cxrstudy.ingest.walk import walk

ROUNDS = 5


def tree(root: Path, n: int) -> None:
    """Write ``n`` files, 200 a folder; ids of the same length are put into one file's bytes."""
    save(header(900001), root / "first")
    data = (root / "first").read_bytes()
    (root / "first").unlink()
    for k in range(n):
        folder = root / f"{k // 200:04d}"
        folder.mkdir(exist_ok=True)
        changed = data.replace(b"900001", f"{100000 + k}".encode())
        changed = changed.replace(b"450000", f"{100000 + k // 2}".encode())
        (folder / f"IM{k:06d}").write_bytes(
            changed.replace(b"225000", f"{100000 + k // 4}".encode())
        )


def rate(read: Callable[[Path], Any], files: list[Path]) -> float:
    """Headers a second."""
    start = time.perf_counter()
    for path in files:
        read(path)
    return len(files) / (time.perf_counter() - start)


def peer(path: Path) -> pydicom.Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True)


def peer_with_tags(path: Path) -> list[Any]:
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    return [ds.get(name) for name in TAGS.values()]


def headers(root: Path, n: int) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file())[:n]
    ratios: dict[str, list[float]] = {"pydicom": [], "pydicom with values": []}
    rates = []
    for _ in range(ROUNDS):
        rates.append(rate(read_header, files))
        for name, read in (("pydicom", peer), ("pydicom with values", peer_with_tags)):
            ratios[name].append(rates[-1] / rate(read, files))
    print(f"read_header: {statistics.median(rates):,.0f} headers/s in one process")
    for name, found in ratios.items():
        spread = f"{min(found):.1f} to {max(found):.1f}"
        print(f"  {statistics.median(found):.1f} times {name} ({spread})")


def whole(root: Path, n: int, workers: int) -> None:
    for processes in (1, workers):
        private = Path(tempfile.mkdtemp())
        walk([next(root.iterdir())], private / "warm", processes)
        for what in ("first", "second"):
            start, cpu = time.perf_counter(), time.process_time()
            frame = walk([root], private / "p", processes)
            took, cpu = time.perf_counter() - start, time.process_time() - cpu
            kept = (frame["drop_reason"] == "").sum()
            said = f", {n / cpu:,.0f} files a CPU second" if processes == 1 else ""
            print(
                f"{what} walk, {processes} processes: {n / took:,.0f} files/s{said}; {kept:,} kept"
            )
        shutil.rmtree(private)


def memory(root: Path) -> None:
    """Print the peak memory of a walk over a quarter, a half and all of the folders."""
    folders = sorted(map(str, root.iterdir()))
    for part in (4, 2, 1):
        some = folders[: len(folders) // part]
        call = [sys.executable, __file__, "--peak", *some]
        print(f"{len(some) * 200:,} files: {subprocess.check_output(call, text=True).strip()}")


def peak(folders: list[str]) -> None:
    before = most()
    with tempfile.TemporaryDirectory() as private:
        walk(folders, private)
    print(f"{before} MB after imports, {most()} MB at most")


def most() -> int:
    """Peak memory of this process in MB; `ru_maxrss` would count that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) // 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peak", nargs="*")
    given = parser.parse_args()
    if given.peak:
        peak(given.peak)
        sys.exit()
    with tempfile.TemporaryDirectory() as made:
        n = 4000 if given.quick else 40_000
        tree(Path(made), n)
        headers(Path(made), 500 if given.quick else 2000)
        whole(Path(made), n, given.workers)
        memory(Path(made))
