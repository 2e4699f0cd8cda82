"""Scores of the test images: their metrics, tables and files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from cxrstudy import study
from cxrstudy.evaluate import zeroshot
from cxrstudy.evaluate.classification import Probe, by_task, evaluate
from cxrstudy.evaluate.cohort import Cohort
from cxrstudy.evaluate.metrics import auroc, known_mean
from cxrstudy.evaluate.small_samples import set_aside, too_few

Arrays = dict[str, np.ndarray]

# columns of metric rows
COLUMNS = [
    "task", "label", "metric", "value", "low", "high", "n", "positives", "n_patients", "note"
]  # fmt: skip


@dataclass(frozen=True)
class FittedProbe:
    """An encoder and what was fitted on its features.

    Attributes:
        encoder: The encoder.
        probe: The linear probe; None without labels.
        threshold: Decision threshold (L,) on the log odds.
        sigmoid: Slope and intercept (L,2) of Platt's sigmoid.
    """

    encoder: Any
    probe: Probe | None
    threshold: np.ndarray
    sigmoid: np.ndarray

    def predict(self, x: np.ndarray, rows: np.ndarray) -> Arrays:
        """Return log odds, their margin above the threshold and probabilities, (n,L) float32 each.

        Args:
            x: Features (N,F), as `extract_features` returns them.
            rows: Rows (n,) to predict.
        """
        scores = np.zeros((len(rows), 0), np.float32)
        if self.probe is not None:
            scores = log_odds(self.probe, x, rows)
        probabilities = expit(self.sigmoid[:, 0] * scores + self.sigmoid[:, 1])
        return {
            "scores": scores,
            "margin": scores - self.threshold,
            "probabilities": probabilities.astype(np.float32),
        }


@dataclass(frozen=True)
class Scores:
    """Scores of the test images of one data set.

    Attributes:
        names: Labels (L). The zero-shot ones come last, as ``zero_shot:NAME``.
        test: Manifest of the N test images.
        scores: Log odds (N,L); of zero-shot labels the difference of cosines.
        truth: Labels (N,L) in {0, 1, NaN}.
        predictions: Predicted labels (N,L); NaN for zero-shot labels, for which nothing is fitted.
        probabilities: Predicted probabilities (N,L); NaN for zero-shot labels.
        ranks: Retrieval ranks (N,2), or None.
        metrics: Dicts with the keys COLUMNS.
    """

    names: list[str]
    test: pd.DataFrame
    scores: np.ndarray
    truth: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    ranks: np.ndarray | None
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Evaluation(Scores):
    """The result of an evaluation run.

    Attributes:
        external: Scores on the other data sets, by the names of their folders.
        fitted: One fitted probe, or one a fold.
        subgroups: Metrics by subgroup of the test patients.
        curve: Label efficiency: macro AUROC by task, number of labelled patients and seed.
        not_evaluated: Reason by task why it has no value.
        subject: The encoder and the data, for the record.
        info: Counts, for the record.
    """

    external: dict[str, Scores]
    fitted: list[FittedProbe]
    subgroups: pd.DataFrame
    curve: pd.DataFrame
    not_evaluated: dict[str, str]
    subject: dict[str, Any]
    info: dict[str, Any]


def log_odds(probe: Probe, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return log odds (n,L) of some rows in float32, in which they are kept and evaluated."""
    return probe.decision_function(x[rows]).astype(np.float32)


# ---- metrics -------------------------------------------------------------------------------------
def score_cohort(
    p: study.Classify, cohort: Cohort, arrays: Arrays, notes: dict[str, str]
) -> Scores:
    """Return the scores of a cohort's test rows and their metrics, from their arrays."""
    test, names, margin = cohort.test, list(cohort.names), arrays["margin"]
    found: dict[str, Any] = {"scores": arrays["scores"], "truth": cohort.targets(test)}
    found["predictions"] = np.where(np.isnan(margin), np.nan, margin >= 0).astype(np.float32)
    found["probabilities"] = arrays["probabilities"]
    if "zero_shot_scores" in arrays:
        zero_shot = arrays["zero_shot_scores"]
        blank = np.full(zero_shot.shape, np.nan, np.float32)
        more = {"scores": zero_shot, "truth": cohort.targets(test, cohort.recorded)}
        more |= {"predictions": blank, "probabilities": blank}
        found = {key: np.concatenate([found[key], more[key]], axis=1) for key in found}
        names += [f"zero_shot:{name}" for name in cohort.recorded]
    patients = test["patient_id"].to_numpy()
    draw: dict[str, Any] = {"resamples": p.resamples, "seed": p.seed}
    metrics = task_metrics(names, groups=patients, notes=notes, **found, **draw)
    ranks = arrays.get("ranks")
    ranks = None if ranks is None or np.isnan(ranks).all() else ranks
    if ranks is not None:
        metrics += set_aside(zeroshot.recall(ranks, patients, **draw))
    return Scores(names=names, test=test, ranks=ranks, metrics=metrics, **found)


def task_metrics(
    names: Sequence[str],
    scores: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray,
    *,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    notes: dict[str, str] | None = None,
    resamples: int,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the metrics of every task, each with its macro average; arguments as `evaluate`.

    Zero-shot labels have no threshold metrics, because nothing was fitted for them.
    """
    metrics = []
    for task, index in by_task(names).items():
        how: dict[str, Any] = {"notes": notes, "resamples": resamples, "seed": seed}
        if task != "zero_shot":
            how |= {"predictions": predictions[:, index], "probabilities": probabilities[:, index]}
        labels = [names[k] for k in index]
        rows = evaluate(scores[:, index], truth[:, index], groups, labels, **how)
        metrics += [{"task": task, **row} for row in rows]
    return metrics


def label_efficiency(
    cohort: Cohort, own: Scores, few_labels: list[dict[tuple[int, int], np.ndarray]]
) -> pd.DataFrame:
    """Return macro AUROC by task, number of labelled patients of a fold, and seed.

    For all patients, the number is the mean over folds. Labels that are too small to evaluate are
    left out.
    """
    everyone = round(np.mean([part.train["patient_id"].nunique() for part in cohort.parts]))
    truth, not_fitted = own.truth[:, : len(cohort.names)], cohort.not_fitted()
    few = zip(cohort.names, too_few(truth, own.test["patient_id"].to_numpy()), strict=True)
    excluded = [bool(note) or name in not_fitted for name, note in few]
    rows = []
    for number, seed in sorted(few_labels[0], key=lambda key: (key[0] or everyone, key[1])):
        scores = np.concatenate([fold[number, seed] for fold in few_labels])
        for task, index in by_task(cohort.names).items():
            if used := [k for k in index if not excluded[k]]:
                value = float(known_mean(auroc(truth[:, used], scores[:, used])))
                row = {"task": task, "patients": number or everyone, "seed": seed, "auroc": value}
                rows.append(row)
    return pd.DataFrame(rows, columns=["task", "patients", "seed", "auroc"])


# ---- files ---------------------------------------------------------------------------------------
def score_table(result: Scores) -> pd.DataFrame:
    """Return the scores of every test image, from which every metric can be computed again.

    Columns: image_id, patient_id; of each label ``score:`` and ``truth:`` and, if they were fitted,
    ``call:`` (predicted label) and ``probability:``; of retrieval ``rank:``. All float32.
    """
    columns = {name: result.test[name].to_numpy() for name in ("image_id", "patient_id")}
    for k, name in enumerate(result.names):
        columns[f"score:{name}"] = result.scores[:, k]
        columns[f"truth:{name}"] = result.truth[:, k].astype(np.float32)
        if not name.startswith("zero_shot:"):
            columns[f"call:{name}"] = result.predictions[:, k]
            columns[f"probability:{name}"] = result.probabilities[:, k]
    if result.ranks is not None:
        for j, name in enumerate(zeroshot.DIRECTIONS):
            columns[f"rank:{name}"] = result.ranks[:, j]
    return pd.DataFrame(columns)


def save_scores(result: Scores, path: Path) -> None:
    """Write `score_table` as Parquet."""
    score_table(result).to_parquet(path, index=False, compression="zstd")


def save(result: Evaluation, out: Path) -> list[str]:
    """Write scores and tables into the folder of a run and return the names of the files."""
    out.mkdir(parents=True, exist_ok=True)
    scores: dict[str, Scores] = {"scores.parquet": result}
    scores |= {f"scores@{name}.parquet": other for name, other in result.external.items()}
    for name, one in scores.items():
        save_scores(one, out / name)
    tables = {"subgroups.csv": result.subgroups, "curve.csv": result.curve}
    tables = {name: table for name, table in tables.items() if len(table)}
    for name, table in tables.items():
        table.to_csv(out / name, index=False)
    return [*scores, *tables]
