"""Ladders in the tidy table: the points of each scaling curve, and the law fitted to it."""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.evaluate.metrics import auprc, auroc, bootstrap
from cxrstudy.scaling.fit import fit_scaling

CONTINUED = ("clip", "unicl", "dinov2", "clip+labels")


def points(table: pd.DataFrame, metric: str = "auroc", label: str = "macro") -> pd.DataFrame:
    """Rows of continually pretrained encoders: one a (paradigm, n_images, seed, task), sorted."""
    wanted = (table["stage"] == "classify") & (table["metric"] == metric) & (table["label"] == label)
    chosen = table[wanted & table["paradigm"].isin(CONTINUED) & (table["base"].fillna("") != "")]
    return chosen.sort_values(["task", "paradigm", "n_images", "seed"]).reset_index(drop=True)


def reference(table: pd.DataFrame, task: str, metric: str = "auroc", label: str = "macro") -> pd.DataFrame:
    """Rows of one task that are no point of a ladder: the base as it came, and the controls."""
    wanted = (table["stage"] == "classify") & (table["task"] == task) & (table["label"] == label)
    chosen = table[wanted & (table["metric"] == metric)]
    return chosen[~(chosen["paradigm"].isin(CONTINUED) & (chosen["base"].fillna("") != ""))]


def same_patients(table: pd.DataFrame) -> str:
    """The hash of the labelled patients of all evaluated runs; ValueError when runs were judged on different ones."""
    judged = table[(table["stage"] == "classify")]
    hashes = judged.groupby("patients")["run"].first()
    if len(hashes) > 1:
        raise ValueError(f"runs were judged on different patients and cannot be compared: {', '.join(hashes)}")
    return str(hashes.index[0]) if len(hashes) else ""


def fit_ladders(
    table: pd.DataFrame, *, metric: str = "auroc", form: str = "power", resamples: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fit 1 - metric against n_images for every (task, paradigm) of the tidy table.

    Returns (fits, curves): fits has task, paradigm, form, points, exponent, floor and ``refused`` (the reason, where
    the data cannot support a fit); curves has task, paradigm, n_images, value, low, high of the fitted metric.
    """
    same_patients(table)
    fits: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    for (task, paradigm), ladder in points(table, metric).groupby(["task", "paradigm"]):
        for held in ("samples_seen", "base", "data", "encoder"):
            if ladder[held].nunique() > 1:
                found = sorted(ladder[held].unique())
                raise ValueError(f"the {paradigm} runs are no ladder: their {held} differ ({found})")
        n = ladder["n_images"].to_numpy(float)
        sigma = ((ladder["high"] - ladder["low"]) / (2 * 1.96)).to_numpy(float)
        row = {"task": task, "paradigm": paradigm, "form": form, "points": len(ladder)}
        try:
            fit = fit_scaling(
                n, 1 - ladder["value"].to_numpy(float), sigma=sigma, form=form, resamples=resamples, seed=seed
            )
        except ValueError as reason:
            fits.append(row | {"refused": str(reason)})
            continue
        fits.append(row | {"exponent": fit.exponent, "floor": fit.floor, "refused": ""})
        grid = np.geomspace(n.min(), n.max() * 4, 60)
        low, high = fit.interval(grid)
        curve = {"n_images": grid, "value": 1 - fit.predict(grid), "low": 1 - high, "high": 1 - low}
        curves.append(pd.DataFrame({"task": task, "paradigm": paradigm, **curve}))
    none = pd.DataFrame(columns=["task", "paradigm", "n_images", "value", "low", "high"])
    columns = ["task", "paradigm", "form", "points", "exponent", "floor", "refused"]
    return pd.DataFrame(fits).reindex(columns=columns), pd.concat(curves) if curves else none


def gains(table: pd.DataFrame, *, metric: str = "auroc", resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Continued minus base, macro ``metric``, with the interval of the paired difference on the same resamples.

    One row a (run, task): task, paradigm, n_images, seed, gain, low, high. From the per-image test scores kept with
    each record; runs whose base was not evaluated are left out. Patients are resampled; seeds are not, so the interval
    holds sampling variance alone.
    """
    same_patients(table)
    measure = {"auroc": auroc, "auprc": auprc}[metric]
    judged = table[table["stage"] == "classify"]
    rows = []
    for task in ("findings", "lines_tubes"):
        labels = judged[(judged["task"] == task) & (judged["label"] != "macro")]
        names = list(labels.loc[labels["value"].notna(), "label"].unique())
        ladder = points(table[table["task"] == task], metric)
        if ladder.empty or not names:
            continue

        @functools.cache
        def resampled(folder: str, names: tuple[str, ...] = tuple(names)) -> tuple[float, np.ndarray]:
            kept = pd.read_parquet(Path(folder) / "scores.parquet").sort_values("image_id")
            y, s = (kept[[f"{what}:{name}" for name in names]].to_numpy(float) for what in ("truth", "score"))
            draws = bootstrap(measure, y, s, groups=kept["patient_id"].to_numpy(), resamples=resamples, seed=seed)
            return float(np.nanmean(measure(y, s))), np.nanmean(draws, axis=1)

        bases = reference(table, task, metric)
        for row in ladder.itertuples():
            pattern = re.escape(f"base-{_slug(row.base)}-") + "[^-]+"
            near = bases[(bases["paradigm"] != "control") & (bases["data"] == row.data)]
            own = [
                folder for run, folder in zip(near["run"], near["folder"], strict=True) if re.fullmatch(pattern, run)
            ]
            if own:
                value, draws = resampled(row.folder)
                base_value, base_draws = resampled(own[0])
                low, high = np.nanpercentile(draws - base_draws, [2.5, 97.5])
                point = {"task": task, "paradigm": row.paradigm, "n_images": row.n_images, "seed": row.seed}
                rows.append(point | {"gain": value - base_value, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["task", "paradigm", "n_images", "seed", "gain", "low", "high"])


def _slug(run: str) -> str:
    return run.rsplit("-", 1)[0]
