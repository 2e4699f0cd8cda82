"""Two encoders on the same patients: paired differences, corrected over a grid, and where variance comes from.

All from the per-image test scores that every ``classify`` run keeps, on the same resamples of the same patients.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from cxrstudy import results, study
from cxrstudy.evaluate.metrics import auprc, auroc, bootstrap, interval, known_mean
from cxrstudy.evaluate.small_samples import (
    class_counts,
    exact_width,
    is_flat,
    too_few,
    widened_difference,
)

Floats = NDArray[np.float64]
MEASURES = {"auroc": auroc, "auprc": auprc}


def read_scores(folders: Sequence[str | Path]) -> tuple[list[pd.DataFrame], list[str]]:
    """Kept scores of some classify runs in one order of images, and the labels that all of them judged.

    ValueError: a run without ``scores.parquet``, runs judged on other images, by other truths, or on no common label.
    """
    tables = []
    for folder in folders:
        path = study.resolve(folder) / "scores.parquet"
        if not path.is_file():
            raise ValueError(f"{path}: not there; run classify.ipynb with out={folder} first")
        tables.append(results.kept_scores(path.parent).sort_values("image_id", ignore_index=True))
    first = tables[0]
    names = [
        c.removeprefix("truth:")
        for c in first
        if c.startswith("truth:") and all(c in t for t in tables)
    ]
    if not names:
        raise ValueError(
            f"{', '.join(map(str, folders))}: no label was judged in all of these runs"
        )
    for folder, table in zip(folders, tables, strict=True):
        if not table["image_id"].equals(first["image_id"]):
            apart = len(set(table["image_id"]) ^ set(first["image_id"]))
            raise ValueError(
                f"{folder} and {folders[0]} were judged on different images ({apart} in one alone)"
            )
        for name in names:
            if not table[f"truth:{name}"].equals(first[f"truth:{name}"]):
                raise ValueError(
                    f"{folder} and {folders[0]} differ in the truth of {name!r}: they are of other data"
                )
    return tables, names


def paired(
    one: str | Path,
    other: str | Path,
    *,
    metric: str = "auroc",
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """``one`` minus ``other``, label by label and macro by task, on the same resamples of patients.

    Rows: task, label, difference, low, high (95%), p (two-sided, ``bootstrap_p``), n (images), n_patients. A label that
    is too few to evaluate has no row, and no part in macro. Where all resamples of two different encoders are alike,
    the interval is exact (``small_samples``).
    """
    from cxrstudy.evaluate.classification import (
        by_task,
    )  # imports torch, which the book's pages do without

    tables, names = read_scores([one, other])
    draws, values = _draws(tables, names, metric, resamples, seed)
    apart, point = draws[0] - draws[1], values[0] - values[1]
    truth, patients = (
        tables[0][[f"truth:{name}" for name in names]],
        tables[0]["patient_id"].to_numpy(),
    )
    few = too_few(truth.to_numpy(float), patients)
    hidden = np.array(
        [exact_width(n) for n in class_counts(truth.to_numpy(float), patients)["pairs"]]
    )
    hidden = np.where(is_flat(draws[0]), hidden, 0.0)
    rows = []
    for task, own in by_task(names).items():
        places = [k for k in own if np.isfinite(point[k]) and not few[k]]
        columns = [(names[k], [k]) for k in places] + ([("macro", places)] if places else [])
        for label, which in columns:
            mean, difference = known_mean(apart[:, which]), float(point[which].mean())
            ends = interval(mean)
            low, high = widened_difference(
                difference, float(ends[0]), float(ends[1]), float(hidden[which].mean())
            )
            known = truth.iloc[:, which].notna().any(axis=1).to_numpy()
            counts = {"n": int(known.sum()), "n_patients": len(np.unique(patients[known]))}
            row = {"task": task, "label": label, "difference": difference, "low": low, "high": high}
            rows.append(row | {"p": bootstrap_p(mean)} | counts)
    return pd.DataFrame(
        rows, columns=["task", "label", "difference", "low", "high", "p", "n", "n_patients"]
    )


def grid(
    pairs: Sequence[tuple[str | Path, str | Path]],
    *,
    label: str = "macro",
    metric: str = "auroc",
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Pairs of runs compared on ``label`` of each task; ``p_holm`` is corrected over all rows together.

    Rows: one, other (names of the runs' folders), and those of ``paired``. ``p_least``: as small as ``p_holm`` can get
    with so many rows and resamples; where it is above the level, nothing can be found but by more ``resamples``.
    """
    columns = ["one", "other", "task", "label", "difference", "low", "high", "p", "n", "n_patients"]
    found = [pd.DataFrame(columns=columns)]
    for one, other in pairs:
        rows = paired(one, other, metric=metric, resamples=resamples, seed=seed)
        found.append(
            rows[rows["label"] == label].assign(one=Path(one).name, other=Path(other).name)
        )
    table = pd.concat(found[1:] or found, ignore_index=True)[columns]
    least = min(1.0, 2 * table["p"].notna().sum() / (resamples + 1))
    return table.assign(p_holm=holm(table["p"].to_numpy(float)), p_least=least)


def bootstrap_p(differences: ArrayLike) -> float:
    """Two-sided p of 'no difference' from resampled differences (R,): twice the smaller share at or beyond 0, each
    share (k + 1)/(R + 1) so that it is never 0; NaN where no resample has a value."""
    d = np.asarray(differences, dtype=np.float64)
    d = d[~np.isnan(d)]
    if not len(d):
        return float("nan")
    return float(min(1.0, 2 * (min((d <= 0).sum(), (d >= 0).sum()) + 1) / (len(d) + 1)))


def holm(p: ArrayLike) -> Floats:
    """Holm's (1979) step-down correction: the chance of even one false finding among all stays below the level.

    NaN stays NaN and counts for nothing.
    """
    raw = np.asarray(p, dtype=np.float64)
    out, order = (
        np.full(raw.shape, np.nan),
        np.argsort(raw, kind="stable")[: int((~np.isnan(raw)).sum())],
    )
    steps = raw[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return out


def variances(
    folders: Sequence[str | Path],
    *,
    labels: Sequence[str] = (),
    metric: str = "auroc",
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Runs that differ in their seed alone: how much of a macro metric's spread is the seed's, how much the patients'.

    Rows (task): value, seed_sd, sampling_sd, both_sd (of one run), seeds. Two-way random effects over seeds x resamples
    (Searle et al. 1992), see ``components``. ``labels``: of these alone. ValueError with fewer than two runs.
    """
    from cxrstudy.evaluate.classification import by_task

    if len(folders) < 2:
        raise ValueError(f"variance between seeds needs at least two runs, got {len(folders)}")
    tables, names = read_scores(folders)
    names = [name for name in names if not labels or name in labels]
    draws, values = _draws(tables, names, metric, resamples, seed)
    few = too_few(
        tables[0][[f"truth:{name}" for name in names]].to_numpy(float),
        tables[0]["patient_id"].to_numpy(),
    )
    rows = []
    for task, own in by_task(names).items():
        places = [k for k in own if np.isfinite(values[:, k]).all() and not few[k]]
        if places:
            parts = components(values[:, places].mean(axis=1), known_mean(draws[:, :, places]))
            rows.append(
                {"task": task, "value": float(values[:, places].mean())}
                | parts
                | {"seeds": len(folders)}
            )
    return pd.DataFrame(
        rows, columns=["task", "value", "seed_sd", "sampling_sd", "both_sd", "seeds"]
    )


def components(values: ArrayLike, draws: ArrayLike) -> dict[str, float]:
    """Standard deviations from S runs' ``values`` (S,) and their resamples ``draws`` (S,R), the same patients a column.

    Resamples: what a column shares is sampling, what it does not (the residual) is how the same patients strike
    different seeds differently. The spread of ``values`` holds seed and residual: the residual is taken away, and what
    is left is the seed's, 0 where nothing is. ``sampling_sd`` joins the shared and the residual part, ``both_sd`` all
    three.
    """
    v, d = np.asarray(values, dtype=np.float64), np.asarray(draws, dtype=np.float64)
    d = d[:, ~np.isnan(d).any(axis=0)]
    s, r = d.shape
    left = d - d.mean(axis=1, keepdims=True) - d.mean(axis=0) + d.mean()
    residual = (left**2).sum() / ((s - 1) * (r - 1))
    shared = max(0.0, d.mean(axis=0).var(ddof=1) - residual / s)
    between = max(0.0, v.var(ddof=1) - residual)
    parts = {
        "seed_sd": between,
        "sampling_sd": shared + residual,
        "both_sd": between + shared + residual,
    }
    return {name: float(np.sqrt(value)) for name, value in parts.items()}


def _draws(
    tables: list[pd.DataFrame], names: list[str], metric: str, resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """Resampled metrics (runs, resamples, L) and the values themselves (runs, L)."""
    if metric not in MEASURES:
        raise ValueError(f"metric {metric!r} cannot be compared; one of {', '.join(MEASURES)} can")
    measure, draws, values = MEASURES[metric], [], []
    for table in tables:
        y, s = (
            table[[f"{what}:{name}" for name in names]].to_numpy(float)
            for what in ("truth", "score")
        )
        values.append(measure(y, s))
        draws.append(
            bootstrap(
                measure, y, s, groups=table["patient_id"].to_numpy(), resamples=resamples, seed=seed
            )
        )
    return np.stack(draws), np.stack(values)
