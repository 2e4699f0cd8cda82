"""Time by step of one encoder's full evaluation: classify, segment and report, at their defaults.

    python tests/benchmarks/bench_stages.py --data runs/mini/data/study-4e23d7 \\
        --encoder book/recorded/bases/clip-hybrid

Seconds of CPU time of this process on one thread, because other programs on the machine disturb the
clock. A step's time excludes the other steps that it calls. Runs go to a scratch folder (--out),
which is deleted afterwards. Takes about 2 minutes of CPU.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import torch

from cxrstudy import study
from cxrstudy.data.images import open_prepared
from cxrstudy.evaluate import (
    calibration,
    classification,
    cohort,
    continuity,
    features,
    maps,
    metrics,
    protocol,
    reporting,
    scores,
    segmentation,
    textscores,
    zeroshot,
)

STEPS: dict[str, list[tuple[Any, str]]] = {
    "encode": [(features, "extract"), (features, "inputs"), (maps, "feature_maps")],
    "write feature maps": [(maps, "encode_maps")],
    "pool": [(features, "pool_tokens")],
    "rows and labels": [
        (cohort, "build_cohort"),
        (cohort, "select_rows"),
        (protocol, "open_subject"),
    ],
    "true masks": [(maps, "load_masks")],
    "fit the probe": [(classification, "fit_probe")],
    "thresholds, calibration": [(calibration, "best_threshold"), (calibration, "fit_platt")],
    "zero-shot, retrieval": [(zeroshot, "text_scores")],
    "train the head": [(segmentation, "fit_decoder")],
    "train the decoder": [(reporting, "fit_generator")],
    "write the reports": [(reporting.ReportGenerator, "generate")],
    "score masks": [(segmentation, "score")],
    "continuity": [(continuity, "continuity")],
    "score texts": [(textscores, "evaluate"), (textscores, "per_report")],
    "bootstrap": [(metrics, "bootstrap"), (metrics, "resampled_sums"), (textscores, "_sums")],
    "subgroups (without bootstrap)": [(classification, "subgroups")],
}


class Clock:
    """CPU seconds by step, each without what it calls of the others."""

    def __init__(self) -> None:
        self.own: dict[str, float] = defaultdict(float)
        self.inner = [0.0]

    def timed(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def run(*args: Any, **how: Any) -> Any:
            start = time.process_time()
            self.inner.append(0.0)
            try:
                return call(*args, **how)
            finally:
                spent = time.process_time() - start
                self.own[step] += spent - self.inner.pop()
                self.inner[-1] += spent

        return run

    def watch(self) -> None:
        """Replace each of STEPS by a timed function, under every name it was imported as."""
        ours = [module for name, module in list(sys.modules.items()) if name.startswith("cxrstudy")]
        for step, places in STEPS.items():
            for owner, name in places:
                plain = getattr(owner, name)
                timed = self.timed(step, plain)
                for holder in (*ours, owner):
                    for known, value in list(vars(holder).items()):
                        if value is plain:
                            setattr(holder, known, timed)


def stages(data: str, encoder: str, out: Path) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """The three evaluations, each giving its metrics."""
    prepared = open_prepared(study.resolve(data))

    def given(stage: str) -> Any:
        values = {"data": data, "encoder": encoder, "out": str(out / stage)}
        return study.validated(stage, values)

    def classify() -> Any:
        found = protocol.run(given("classify"), prepared)
        scores.save(found, out / "classify")
        return found.metrics

    def segment() -> Any:
        p = given("segment")
        found = segmentation.run(p, prepared)
        how = {"devices": found["devices"], "resamples": p.resamples, "seed": p.seed}
        rows = found["test"]["row"].to_numpy()
        return (
            found["metrics"]
            + continuity.continuity(found["maps"], prepared, rows, p.layers, **how)["metrics"]
        )

    return {
        "classify": classify,
        "segment": segment,
        "report": lambda: reporting.run(given("report"), prepared)["metrics"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="runs/mini/data/study-4e23d7")
    parser.add_argument("--encoder", default="book/recorded/bases/clip-hybrid")
    parser.add_argument(
        "--out", default="", help="where a scratch folder is made; empty = the system's place"
    )
    options = parser.parse_args()
    data, encoder = (str(study.resolve(path)) for path in (options.data, options.encoder))
    torch.set_num_threads(1)
    clock, table = Clock(), {}
    clock.watch()
    with tempfile.TemporaryDirectory(dir=options.out or None) as scratch:
        os.environ["CXRSTUDY_RUNS"] = scratch
        for stage, run in stages(data, encoder, Path(scratch)).items():
            clock.own.clear()
            start = time.process_time()
            run()
            spent = time.process_time() - start
            rows = {step: clock.own[step] for step in STEPS if clock.own[step] >= 0.005}
            rows |= {"rest": spent - sum(clock.own.values()), "all": spent}
            table |= {(stage, step): value for step, value in rows.items()}
    print(pd.Series(table).round(2).to_string())
    print(f"{os.cpu_count()} cores, 1 thread, torch {torch.__version__}")


if __name__ == "__main__":
    main()
