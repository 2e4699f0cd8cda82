"""Speed of the patient bootstrap and of the probe against loops over scikit-learn.

    python tests/benchmarks/bench_evaluate.py           # full sizes: 10 minutes on 2 cores
    python tests/benchmarks/bench_evaluate.py --quick   # a tenth of each

Both sides run in one process, alternating, on the same data. A side that would take minutes is
timed on a part of its loop (the printed share) and scaled up, because each iteration costs the
same. Ratios are given as median and range over rounds. The results of both sides are compared too.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from cxrstudy.evaluate.classification import fit_probe
from cxrstudy.evaluate.metrics import auprc, auroc, bootstrap


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def report(what: str, ours: list[float], theirs: list[float], share: float, gap: str) -> None:
    """One line: seconds of each side and their ratio, round by round."""
    ratios = [their / share / our for our, their in zip(ours, theirs, strict=True)]
    other, ratio = statistics.median(theirs) / share, statistics.median(ratios)
    print(
        f"{what}: {statistics.median(ours):.3f} s against {other:.1f} s (timed on {share:.1%}): "
        f"{ratio:.0f}x, {min(ratios):.0f} to {max(ratios):.0f}; {gap}",
        flush=True,
    )


def bench_bootstrap(n: int, labels: int, resamples: int, rounds: int, turns: int = 10) -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((n, labels)) < np.linspace(0.02, 0.4, labels)).astype(float)
    s, groups = rng.normal(size=y.shape) + y, rng.integers(n * 2 // 3, size=n)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for metric, reference in ((auroc, roc_auc_score), (auprc, average_precision_score)):

        def ours(metric: Any = metric) -> Any:
            return bootstrap(metric, y, s, groups=groups, resamples=resamples)

        def theirs(reference: Any = reference) -> Any:
            draws, values = np.random.default_rng(0), []
            for _ in range(turns):
                rows = np.concatenate(
                    [members[i] for i in draws.integers(len(members), size=len(members))]
                )
                values.append([reference(y[rows, j], s[rows, j]) for j in range(labels)])
            return np.array(values)

        pairs = [(timed(ours), timed(theirs)) for _ in range(rounds + 1)][1:]
        gap = np.abs(pairs[0][0][1][:turns] - pairs[0][1][1]).max()
        what = f"{metric.__name__} bootstrap, {n} images x {labels} labels x {resamples} resamples"
        report(
            what,
            [a[0] for a, _ in pairs],
            [b[0] for _, b in pairs],
            turns / resamples,
            f"differ by {gap:.0e}",
        )


def bench_probe(
    n: int, d: int, labels: int, strengths: int, rounds: int, timed_labels: int = 2
) -> None:
    """scikit-learn at its own defaults (lbfgs, float32), but for iterations enough to converge."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    x = ((rng.normal(size=(n + 2000, d)) * np.arange(1, d + 1) ** -0.5) @ rotation).astype(
        np.float32
    )
    logit = x @ (rng.normal(size=(d, labels)) * (rng.random((d, labels)) < 0.1))
    logit = 1.5 * logit / logit.std(axis=0) + rng.logistic(size=logit.shape)
    y = (
        logit
        > [
            np.quantile(c, 1 - p)
            for c, p in zip(logit.T, np.linspace(0.02, 0.4, labels), strict=True)
        ]
    ) * 1.0
    x, y, x_val, y_val = x[:n], y[:n], x[n:], y[n:]
    path = np.logspace(-5, 1, strengths)
    chosen = np.linspace(0, labels - 1, timed_labels).astype(int)

    def ours() -> Any:
        return fit_probe(x, y, strengths=list(path), x_val=x_val, y_val=y_val)

    def theirs() -> Any:
        mean, std = x.mean(axis=0), x.std(axis=0)
        z, z_val, values = (x - mean) / std, (x_val - mean) / std, []
        for strength in path:
            models = [
                LogisticRegression(C=1 / (strength * n), max_iter=1000).fit(z, y[:, j])
                for j in chosen
            ]
            scores = [model.decision_function(z_val) for model in models]
            values.append(
                [roc_auc_score(y_val[:, j], s) for j, s in zip(chosen, scores, strict=True)]
            )
        return np.array(values)

    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds + 1)][1:]
    gap = np.abs(pairs[0][0][1].val_auroc[:, chosen] - pairs[0][1][1])
    what = f"probe, {n} images x {d} features x {labels} labels x {strengths} strengths"
    note = f"validation AUROC differs by {np.median(gap):.4f} (median), {gap.max():.4f} (most)"
    report(what, [a[0] for a, _ in pairs], [b[0] for _, b in pairs], timed_labels / labels, note)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads"
    )
    bench_bootstrap(2000, 20, 200 if options.quick else 2000, options.rounds)
    bench_probe(2000, 192, 20, 10, options.rounds)
    if not options.quick:
        bench_probe(10000, 768, 20, 10, max(1, options.rounds - 2))
