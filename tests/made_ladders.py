"""Simulated runs for tests: records and scores as classify.ipynb writes them, of a known skill."""

import time
from pathlib import Path

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.evaluate.metrics import auprc, auroc
from cxrstudy.results import write_record

LABELS = {"findings": ["edema", "atelectasis"], "lines_tubes": ["picc", "chest_tube"]}
_RNG = np.random.default_rng(11)
IMAGES = 600
PATIENTS = np.array([f"p{k // 2:03}" for k in range(IMAGES)])
TRUTH = {
    name: _RNG.integers(0, 2, IMAGES).astype(float) for names in LABELS.values() for name in names
}
SHARED = {
    name: _RNG.normal(size=IMAGES) for name in TRUTH
}  # what makes an image hard for every encoder


def judge(
    name: str,
    skill: float | dict[str, float],
    *,
    seed: int = 0,
    noise: float = 0.2,
    preset: str = "mini",
    kind: str = "synthetic",
    **subject: object,
) -> Path:
    """Write one run's record and scores below $CXRSTUDY_RUNS and return its folder.

    ``skill`` (by task, or one for all) is how far positives score above negatives. ``noise`` is the
    run's own, in addition to that of all runs, drawn by ``seed``. ``subject`` goes into the record.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    scores, rows = {}, []
    for task, labels in LABELS.items():
        gap = skill[task] if isinstance(skill, dict) else skill
        for label in labels:
            scores[label] = gap * TRUTH[label] + SHARED[label] + noise * rng.normal(size=IMAGES)
        y, s = (np.stack([values[label] for label in labels], axis=1) for values in (TRUTH, scores))
        for metric, measure in (("auroc", auroc), ("auprc", auprc)):
            each = measure(y, s)
            for label, value in [*zip(labels, each, strict=True), ("macro", each.mean())]:
                row = {"task": task, "label": label, "metric": metric, "value": float(value)}
                rows.append(
                    row | {"low": float(value) - 0.03, "high": float(value) + 0.03, "n": IMAGES}
                )
    parameters = study.validated("classify", {"out": f"runs/{preset}/classify/{name}"})
    own = {
        "kind": kind,
        "institution": "synthetic:study",
        "patients": "p0",
        "samples_seen": 24000,
        "seed": seed,
    }
    own |= {
        "paradigm": "clip",
        "encoder": "cnn_mini",
        "base": "clip-cnn",
        "n_images": 0,
        "data": "study-1",
    }
    folder = write_record(
        "classify", parameters, metrics=rows, subject=own | subject, started=time.time()
    ).parent
    columns = {f"score:{label}": s for label, s in scores.items()} | {
        f"truth:{label}": y for label, y in TRUTH.items()
    }
    table = pd.DataFrame(
        {"image_id": [f"i{k:03}" for k in range(IMAGES)], "patient_id": PATIENTS, **columns}
    )
    table.to_parquet(folder / "scores.parquet")
    return folder


def base(skill: float | dict[str, float] = 1.0, name: str = "clip-cnn", **more: object) -> Path:
    """The base's own evaluation."""
    return judge(f"base-{name}-aaaaaa", skill, base="", n_images=20000, **more)


def ladder(
    paradigm: str,
    skills: dict[int, float | dict[str, float]],
    *,
    seeds: int = 1,
    jitter: float = 0.0,
    **more: object,
) -> list[Path]:
    """A scaling curve: sizes and their skills; ``jitter`` is the SD of skill between ``seeds``."""
    rng = np.random.default_rng(len(paradigm))
    folders = []
    for n, skill in skills.items():
        for seed in range(seeds):
            gaps = skill if isinstance(skill, dict) else dict.fromkeys(LABELS, skill)
            own = {task: gap + jitter * rng.normal() for task, gap in gaps.items()}
            name = f"{paradigm}-n{n}-s{seed}-bbbbbb"
            folders.append(judge(name, own, seed=seed, paradigm=paradigm, n_images=n, **more))
    return folders
