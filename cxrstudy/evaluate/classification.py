"""Linear probes (logistic regression) on frozen features; metrics by label, task and subgroup."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from cxrstudy.data.vocabulary import DEVICES
from cxrstudy.evaluate.calibration import threshold_metrics
from cxrstudy.evaluate.logistic import rotate, solve
from cxrstudy.evaluate.metrics import auprc, auroc, bootstrap, interval, known_mean
from cxrstudy.evaluate.small_samples import class_counts, too_few, with_width

Floats = NDArray[np.float64]
Input = ArrayLike | torch.Tensor
_CELLS = 2 * 10**7  # images x columns solved together
AGES = (0, 40, 60, 80, 131)  # limits of the age bands, in years
# task of a label by its prefix
PREFIXED = {"malposition": "malposition", "right": "laterality", "zero_shot": "zero_shot"}


# ---- probes --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Probe:
    """A fitted probe of L labels on D features, in the units of the given features."""

    coef: Floats  # (L,D)
    intercept: Floats  # (L,)
    strength: Floats  # (L,) L2 penalty chosen on validation; NaN where training had one class
    strengths: Floats  # (S,) L2 penalties that were tried
    val_auroc: Floats  # (S,L)

    def decision_function(self, x: Input) -> Floats:
        """Return log odds (N,L) of features (N,D).

        Raises:
            ValueError: Another D, or a feature that is not finite.
        """
        features = _features(x, "x")
        if features.shape[1] != self.coef.shape[1]:
            raise ValueError(
                f"x has {features.shape[1]} features, the probe was fitted on {self.coef.shape[1]}"
            )
        return _log_odds(features, self.coef, self.intercept)


def fit_probe(
    x: Input, y: Input, *, strengths: Sequence[float], x_val: Input, y_val: Input
) -> Probe:
    """Fit all labels at all L2 penalties (see `logistic`) and keep the best one per label.

    The best has the largest validation AUROC.

    At equal AUROC the larger penalty is taken. A label whose validation images are of one class
    gets the median penalty, with one warning that names all such labels. A label whose training
    images are of one class gets a constant decision and strength NaN.

    Args:
        x: Training features (N,D), NumPy or torch.
        y: Training labels (N,L) in {0, 1, NaN}; 1-D is one label.
        strengths: L2 penalties (S,).
        x_val: Validation features (M,D).
        y_val: Validation labels (M,L).

    Raises:
        ValueError: Shapes do not match, a feature is not finite (the message names the row), ``y``
            is outside {0, 1, NaN}, or ``strengths`` is empty or not positive.
    """
    path = np.asarray(strengths, dtype=np.float64).ravel()
    if not path.size or not (np.isfinite(path) & (path > 0)).all():
        raise ValueError(
            f"strengths must be a non-empty sequence of positive numbers, got {list(strengths)}"
        )
    train, val = _features(x, "x"), _features(x_val, "x_val")
    known, target = _labels(y, "y", len(train))
    val_known, val_target = _labels(y_val, "y_val", len(val))
    if train.shape[1] != val.shape[1] or target.shape[1] != val_target.shape[1]:
        raise ValueError(
            "x and y of training and validation differ in features or labels: "
            f"{tuple(train.shape)}, {tuple(target.shape)} and "
            f"{tuple(val.shape)}, {tuple(val_target.shape)}"
        )
    positives, totals = target.sum(0).numpy(), known.sum(0).numpy()
    fittable = np.flatnonzero((positives > 0) & (positives < totals))  # labels with both classes
    coef = np.zeros((len(path), target.shape[1], train.shape[1]))
    # a label of one class keeps the smoothed log odds of its training images
    intercept = np.tile(np.log((positives + 0.5) / (totals - positives + 0.5)), (len(path), 1))
    val_auroc = np.full(intercept.shape, np.nan)
    val_truth = np.where(val_known, val_target, np.nan)[:, fittable]

    variance, mean = torch.var_mean(train.double(), dim=0, correction=0)
    # a feature that varies by rounding alone is constant
    varies = variance.sqrt() > 8 * torch.finfo(train.dtype).eps * mean.abs()
    scale = torch.where(varies, variance.rsqrt(), 0.0)
    rotated, back = rotate(train, mean, scale)
    block = max(1, _CELLS // (len(train) * len(path)))
    for some in (fittable[i : i + block] for i in range(0, len(fittable), block)):
        w, b = solve(rotated, target[:, some], known[:, some], path)
        coef[:, some] = (w @ back) * scale.numpy()
        intercept[:, some] = b - coef[:, some] @ mean.numpy()
    for s in range(len(path)):
        scores = _log_odds(val, coef[s, fittable], intercept[s, fittable])
        val_auroc[s, fittable] = auroc(val_truth, scores)
    pick = _choose_strength(path, val_auroc, fittable)
    labels, chosen = np.arange(len(pick)), np.full(len(pick), np.nan)
    chosen[fittable] = path[pick[fittable]]
    return Probe(coef[pick, labels], intercept[pick, labels], chosen, path, val_auroc)


def _choose_strength(
    path: Floats, val_auroc: Floats, fittable: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return an index into the path per label, as `fit_probe` says."""
    order = np.argsort(-path, kind="stable")
    values = np.nan_to_num(val_auroc[order], nan=-1.0)
    pick = order[np.argmax(values >= values.max(axis=0) - 1e-12, axis=0)]
    median, without = order[(len(path) - 1) // 2], fittable[np.isnan(val_auroc[0, fittable])]
    if len(without):
        warnings.warn(
            "validation has one class only, no strength can be chosen for label(s) "
            f"{without.tolist()}: the median, {path[median]:g}, is taken",
            stacklevel=3,
        )
    pick[without] = median
    return pick


def _log_odds(x: torch.Tensor, coef: Floats, intercept: Floats) -> Floats:
    """Return x @ coef.T + intercept in float64, a block of rows at a time."""
    w, b = torch.from_numpy(coef), torch.from_numpy(intercept)
    return torch.cat([torch.addmm(b, rows.double(), w.T) for rows in x.split(65536)]).numpy()


def _features(x: Input, name: str) -> torch.Tensor:
    features = torch.as_tensor(x).detach().cpu()
    features = features if features.dtype == torch.float64 else features.float()
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"{name} must be a non-empty (N, D), got shape {tuple(features.shape)}")
    finite = torch.isfinite(features).all(dim=1)
    if not finite.all():
        bad = torch.nonzero(~finite).flatten().tolist()
        raise ValueError(
            f"{name} has a feature that is not finite in row {bad[0]} ({len(bad)} such rows)"
        )
    return features


def _labels(y: Input, name: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return masks (N,L) of what is known and, as float32, what is positive."""
    labels = torch.as_tensor(y).detach().cpu().float()
    labels = labels[:, None] if labels.ndim == 1 else labels
    if labels.ndim != 2 or len(labels) != n:
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}, expected ({n}, L): one row an image"
        )
    known = ~torch.isnan(labels)
    bad = torch.nonzero(known & (labels != 0) & (labels != 1))
    if len(bad):
        i, j = bad[0].tolist()
        raise ValueError(
            f"{name} must be 0, 1 or NaN: found {float(labels[i, j])} in row {i}, label {j}"
        )
    return known, torch.nan_to_num(labels)


# ---- metrics -------------------------------------------------------------------------------------
def evaluate(
    scores: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike,
    names: Sequence[str],
    *,
    predictions: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    notes: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return AUROC and AUPRC with 95% patient-bootstrap intervals, by label and as macro average.

    The label "macro" is the mean over the labels that have a value. Its interval is that of the
    mean within each resample, its n the images known for any of these labels, its positives their
    sum. Its note says how many labels were left out. An interval without width becomes an exact one
    (`small_samples`). The macro interval is then the mean of its labels' ends.

    Args:
        scores: Scores (N,L).
        y: Labels (N,L) in {0, 1, NaN}.
        groups: Patient (N,) of each image.
        names: The L labels.
        predictions: Predicted labels (N,L). With ``probabilities`` they add `threshold_metrics`
            and, for every metric, ``METRIC_weighted``: the macro average weighted by each label's
            positives.
        probabilities: Predicted probabilities (N,L).
        notes: Reason by label why a label cannot have a value.

    Returns:
        Dicts of label, metric, value, low, high, n, positives, n_patients and, if any, note. A
        label that is too small to evaluate, or has a note, has value NaN and that note.
    """
    truth, s = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != s.shape or truth.shape[1] != len(names):
        raise ValueError(
            f"scores {s.shape}, y {truth.shape} and {len(names)} names: want (N, L), (N, L) and L"
        )
    draw: dict[str, Any] = {"groups": groups, "resamples": resamples, "seed": seed}
    measured = {m.__name__: (m(truth, s), bootstrap(m, truth, s, **draw)) for m in (auroc, auprc)}
    if predictions is not None and probabilities is not None:
        measured |= threshold_metrics(truth, predictions, probabilities, **draw)
    few = zip(names, too_few(truth, groups), strict=True)
    why = [(notes or {}).get(name, "") or reason for name, reason in few]
    excluded = np.array([bool(note) for note in why], dtype=bool)
    independent = _independent_patients(truth, predictions, groups)
    unit = np.unique(np.asarray(groups), return_inverse=True)[1]
    label_counts = [_counts(truth, unit, [j], note) for j, note in enumerate(why)]
    records, positives = [], np.nansum(truth, axis=0)
    for metric, (values, samples) in measured.items():
        value = np.where(excluded, np.nan, values)
        low, high, flat = with_width(
            *interval(np.where(excluded, np.nan, samples)), value, independent[metric]
        )
        for j, name in enumerate(names):
            ends = {"value": float(value[j]), "low": float(low[j]), "high": float(high[j])}
            records.append({"label": name, "metric": metric} | ends | label_counts[j])
        used = np.flatnonzero(~np.isnan(value))
        note = f"over {len(used)} of {len(names)} labels, the others too few or not fitted"
        macro_counts = _counts(
            truth, unit, used if len(used) else np.arange(len(names)), note * bool(excluded.any())
        )
        kinds: list[tuple[str, Floats | None]] = [(metric, None)]
        if predictions is not None:
            kinds.append((f"{metric}_weighted", positives[used]))
        for kind, weights in kinds:
            mean = [known_mean(part[used], weights) for part in (value, low, high)]
            if not flat[used].any():
                mean[1:] = interval(known_mean(samples[:, used], weights))
            ends = dict(zip(("value", "low", "high"), map(float, mean), strict=True))
            records.append({"label": "macro", "metric": kind} | ends | macro_counts)
    return records


def _counts(truth: Floats, unit: NDArray[Any], labels: Any, note: str) -> dict[str, Any]:
    """Return the images, positives and patients of some labels, and the note if any."""
    part = truth[:, labels]
    known = (~np.isnan(part)).any(axis=1)
    counts = {"n": int(known.sum()), "positives": int(np.nansum(part))}
    counts["n_patients"] = len(np.unique(unit[known]))
    return counts | ({"note": note} if note else {})


def _independent_patients(
    truth: Floats, predictions: ArrayLike | None, groups: ArrayLike
) -> dict[str, NDArray[Any]]:
    """Return the number of independent patients behind each label's metric: {metric: (L,)}."""
    found = class_counts(truth, groups)
    called = np.full(truth.shape, np.nan)
    if predictions is not None:
        called = np.where(np.isnan(truth), np.nan, np.asarray(predictions))
    return {
        "auroc": found["pairs"],
        "auprc": found["pairs"],
        "f1": found["positive_patients"],
        "sensitivity": found["positive_patients"],
        "specificity": found["negative_patients"],
        "ppv": class_counts(called, groups)["positive_patients"],
        "ece": found["patients"],
    }


# ---- labels and tasks ----------------------------------------------------------------------------
def task_of(name: str) -> str:
    """Return the task of a label.

    It is given by the prefix (``malposition:picc``). Without one it is lines_tubes for a device of
    the vocabulary, and findings for all others, including a data set's own labels.
    """
    prefix = name.split(":")[0] if ":" in name else ""
    return PREFIXED.get(prefix, "lines_tubes" if name in DEVICES else "findings")


def is_recorded(name: str) -> bool:
    """Return whether the data set records a label itself, unlike ``right:edema``."""
    return name.partition(":")[0] not in PREFIXED or ":" not in name


def by_task(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the label indices of each task that has any, findings and lines_tubes first."""
    tasks = ["findings", "lines_tubes", *PREFIXED.values()]
    found = {task: [k for k, name in enumerate(names) if task_of(name) == task] for task in tasks}
    return {task: indices for task, indices in found.items() if indices}


# ---- subgroups -----------------------------------------------------------------------------------
def subgroups(
    test: pd.DataFrame,
    metadata: pd.DataFrame,
    names: list[str],
    scores: np.ndarray,
    truth: np.ndarray,
    *,
    notes: Mapping[str, str] | None = None,
    resamples: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Return metrics of the recorded labels by view, sex, age band, scanner and exam.

    Args:
        test: Manifest of the N test images, with their row numbers.
        metadata: `cohort.row_metadata` of the data set.
        names: The L labels of ``scores`` and ``truth`` (N,L).
        notes: Reason by label why a label cannot have a value.

    Returns:
        Columns ``by`` and ``group``, and those of metric rows. ``exam`` is "first" or "later" in
        the order of a patient's exams. A label that is too small in a group has a row without a
        value.
    """
    known = metadata.loc[test["row"]]
    groups = {"view": test.get("view"), "sex": test.get("sex"), "scanner": known.get("scanner")}
    if known["exam"].any():
        groups["exam"] = known["exam"].gt(0).map({False: "first", True: "later"})
    if "age" in test:
        bands = [f"{low}-{high - 1}" for low, high in pairwise(AGES)]
        groups["age"] = pd.cut(pd.to_numeric(test["age"]), AGES, right=False, labels=bands)
    patients, rows = test["patient_id"].to_numpy(), []
    tasks = by_task([name for name in names if is_recorded(name)])
    for by, column in groups.items():
        if column is None:
            continue
        values = np.array(column.astype(object).where(column.notna(), None))
        for group in sorted({value for value in values if value is not None}):
            here = values == group
            for task, index in tasks.items():
                found = evaluate(
                    scores[here][:, index],
                    truth[here][:, index],
                    patients[here],
                    [names[k] for k in index],
                    notes=notes,
                    resamples=resamples,
                    seed=seed,
                )
                start = {"by": by, "group": group, "task": task}
                rows += [start | row for row in found if row["n"]]
    columns = ["by", "group", "task", "label", "metric", "value", "low", "high", "n", "positives"]
    table = pd.DataFrame(rows, columns=[*columns, "n_patients", "note"])
    return table.astype({"note": object})
