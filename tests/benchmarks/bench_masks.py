"""Speed and memory of clDice and tip error on 1,000 masks against full-frame use of a library.

    python tests/benchmarks/bench_masks.py            # 1,000 masks of 512 px: a minute or so
    python tests/benchmarks/bench_masks.py --quick    # 100

All sides run in one process, alternating, on the same masks: true masks of the synthetic
institution, and predictions made of them by a shift and a gap. The usual use is scikit-image's
skeletonize of the whole image. MONAI's differentiable soft_skel, which others use as a metric too,
is measured if monai is installed. Peak memory is what NumPy and Python allocate (tracemalloc)
beyond the masks themselves, in a separate round. Ratios: median and range over rounds.
"""

import argparse
import importlib.util
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from skimage.morphology import skeletonize

from cxrstudy.data import synthetic
from cxrstudy.evaluate.masks import cl_dice, skeletons, tip_error

Call = Callable[[], Any]


def drawn(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """``n`` true masks of devices and predictions of them, bool (n,size,size)."""
    found: list[np.ndarray] = []
    start = 0
    while len(found) < n:
        batch = np.asarray(synthetic.sample(range(start, start + 32), size=size).masks)
        found += list(batch[batch.any((2, 3))])
        start += 32
    truth = np.stack(found[:n])
    pred = np.roll(truth, 1, axis=2)
    pred[:, size // 2 : size // 2 + size // 20] = False
    return truth, pred


def usual(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """clDice as its authors' repository computes the metric: each whole image skeletonised."""
    values = []
    for p, t in zip(pred, truth, strict=True):
        line_p, line_t = skeletonize(p), skeletonize(t)
        precision, recall = (
            (t & line_p).sum() / max(line_p.sum(), 1),
            (p & line_t).sum() / max(line_t.sum(), 1),
        )
        values.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return np.array(values)


def soft(pred: np.ndarray, truth: np.ndarray, steps: int = 10) -> np.ndarray:
    """clDice by MONAI's soft_skel, 16 masks at a time."""
    import torch
    from monai.losses.cldice import soft_skel

    values = []
    for start in range(0, len(pred), 16):
        p, t = (torch.from_numpy(m[start : start + 16, None]).float() for m in (pred, truth))
        line_p, line_t = soft_skel(p, steps), soft_skel(t, steps)
        precision, recall = (
            (a * b).sum((1, 2, 3)) / a.sum((1, 2, 3)).clamp(min=1)
            for a, b in ((line_p, t), (line_t, p))
        )
        values.append((2 * precision * recall / (precision + recall).clamp(min=1e-9)).numpy())
    return np.concatenate(values)


def timed(call: Call) -> tuple[float, Any]:
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def peak(call: Call) -> float:
    """MB allocated at most during a call."""
    tracemalloc.start()
    call()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 2**20


def compare(n: int, size: int, rounds: int) -> None:
    truth, pred = drawn(n, size)
    both = lambda: cl_dice(pred, truth)  # noqa: E731
    sides: dict[str, Call] = {"ours": both, "skimage, whole image": lambda: usual(pred, truth)}
    if importlib.util.find_spec("monai"):
        sides["monai soft_skel"] = lambda: soft(pred, truth)
    times: dict[str, list[float]] = {name: [] for name in sides}
    values = {}
    for turn in range(rounds + 1):
        for name, call in sides.items():
            seconds, values[name] = timed(call)
            if turn:  # the first round warms up
                times[name].append(seconds)
    own = f"{statistics.median(times['ours']):.2f} s, {peak(both):.1f} MB"
    print(f"clDice, {n} masks of {size} px: ours {own}")
    for name in list(sides)[1:]:
        ratios = [their / our for our, their in zip(times["ours"], times[name], strict=True)]
        gap = np.abs(values["ours"] - values[name]).max()
        print(
            f"  {name}: {statistics.median(times[name]):.2f} s, {peak(sides[name]):.1f} MB: "
            f"{statistics.median(ratios):.1f}x, {min(ratios):.1f} to {max(ratios):.1f}; "
            f"values differ by {gap:.1e}"
        )
    same = all(
        np.array_equal(ours, np.argwhere(skeletonize(mask)))
        for ours, mask in zip(skeletons(truth), truth, strict=True)
    )
    print(f"  skeletons equal those of the whole image: {same}")
    lines = skeletons(pred)
    alone = [timed(lambda: tip_error(pred, truth, 0.7))[0] for _ in range(rounds)]
    shared = [
        timed(lambda: tip_error(pred, np.zeros((n, 2)), 0.7, skeletons=lines))[0]
        for _ in range(rounds)
    ]
    reused = f"{statistics.median(shared):.3f} s with the skeletons of clDice"
    print(f"tip error: {statistics.median(alone):.2f} s; {reused}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    compare(100 if options.quick else 1000, 512, options.rounds)
