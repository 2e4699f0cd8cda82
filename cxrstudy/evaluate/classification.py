"""Linear probes on frozen features: multi-label logistic regression, every label and penalty in one solve.

One column per (label, strength) minimises, over the n known rows of that label and standardised features z,

    (1/n) sum_i log(1 + exp(-t_i (w.z_i + b))) + strength/2 |w|^2,   t_i = 2 y_i - 1,   b free of penalty,

which is scikit-learn's ``LogisticRegression(C=1 / (strength * n))`` on standardised features.

Method: the features are rotated once into the eigenvectors of their Gram matrix (the N x N one where N < D). There the
bound H <= Z'Z/4n + strength (Boehning 1992) is diagonal, so it preconditions all columns at once; batched L-BFGS
(Nocedal 1980) then needs two matrix products an iteration for all columns together, and since a step is linear in the
scores its line search costs no product. A column leaves once its Newton decrement vanishes.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cxrstudy.data.vocabulary import DEVICES
from cxrstudy.evaluate.metrics import auprc, auroc, bootstrap, interval, known_mean
from cxrstudy.evaluate.small_samples import class_counts, too_few, with_width
from cxrstudy.evaluate.thresholds import decided

Floats = NDArray[np.float64]
Input = ArrayLike | torch.Tensor
_MEMORY = 10  # curvature pairs of L-BFGS
_STEPS = 500
_TOLERANCE = 1e-9  # on the Newton decrement g'H^-1 g: twice the mean log loss still to be gained
_CELLS = 2 * 10**7  # images x columns solved together
PREFIXED = {
    "malposition": "malposition",
    "right": "laterality",
    "zero_shot": "zero_shot",
}  # of a label: its task


@dataclass(frozen=True)
class Probe:
    """A fitted probe of L labels on D features; ``coef`` and ``intercept`` are in the units of the given features."""

    coef: Floats  # (L, D)
    intercept: Floats  # (L,)
    strength: Floats  # (L,) chosen on validation; NaN where training held one class
    strengths: Floats  # (S,) the path that was tried
    val_auroc: Floats  # (S, L)

    def decision_function(self, x: Input) -> Floats:
        """Log odds, (N, L), of features (N, D). ValueError: another D, or a value that is not finite."""
        features = _features(x, "x")
        if features.shape[1] != self.coef.shape[1]:
            raise ValueError(
                f"x has {features.shape[1]} features, the probe was fitted on {self.coef.shape[1]}"
            )
        return _scores(features, self.coef, self.intercept)


def fit_probe(
    x: Input, y: Input, *, strengths: Sequence[float], x_val: Input, y_val: Input
) -> Probe:
    """Fit all labels at all L2 ``strengths`` (see the module) and keep, per label, the best validation AUROC.

    ``x`` (N, D), ``y`` (N, L) in {0, 1, NaN}, NumPy or torch; 1-D ``y`` is one label. Equal AUROCs: the stronger
    penalty. A label whose validation images are of one class takes the median strength, with one warning naming all
    such labels; one whose training images are of one class gets a constant decision and strength NaN.
    ValueError: shapes that do not match, a feature that is not finite (row named), ``y`` outside {0, 1, NaN},
    ``strengths`` empty or not positive.
    """
    path = np.asarray(strengths, dtype=np.float64).ravel()
    if not path.size or not (np.isfinite(path) & (path > 0)).all():
        raise ValueError(
            f"strengths must be a non-empty sequence of positive numbers, got {list(strengths)}"
        )
    train, val = _features(x, "x"), _features(x_val, "x_val")
    known, target = checked_labels(y, "y", len(train))
    val_known, val_target = checked_labels(y_val, "y_val", len(val))
    if train.shape[1] != val.shape[1] or target.shape[1] != val_target.shape[1]:
        shapes = f"{tuple(train.shape)}, {tuple(target.shape)} against {tuple(val.shape)}, {tuple(val_target.shape)}"
        raise ValueError(
            f"x and y of training and validation differ in features or labels: {shapes}"
        )
    positives, totals = target.sum(0).numpy(), known.sum(0).numpy()
    live = np.flatnonzero((positives > 0) & (positives < totals))
    coef = np.zeros((len(path), target.shape[1], train.shape[1]))
    # a label of one class keeps the smoothed log odds of its training images
    intercept = np.tile(np.log((positives + 0.5) / (totals - positives + 0.5)), (len(path), 1))
    val_auroc, truth = (
        np.full(intercept.shape, np.nan),
        np.where(val_known, val_target, np.nan)[:, live],
    )

    variance, mean = torch.var_mean(train.double(), dim=0, correction=0)
    varies = (
        variance.sqrt() > 8 * torch.finfo(train.dtype).eps * mean.abs()
    )  # else constant up to rounding
    scale = torch.where(varies, variance.rsqrt(), 0.0)
    rotated, back = _rotate(train, mean, scale)
    block = max(1, _CELLS // (len(train) * len(path)))
    for some in (live[i : i + block] for i in range(0, len(live), block)):
        w, b = _solve(rotated, target[:, some], known[:, some], path)
        coef[:, some] = (w @ back) * scale.numpy()
        intercept[:, some] = b - coef[:, some] @ mean.numpy()
    for s in range(len(path)):
        val_auroc[s, live] = auroc(truth, _scores(val, coef[s, live], intercept[s, live]))
    pick = choose_strength(path, val_auroc, live)
    every, chosen = np.arange(len(pick)), np.full(len(pick), np.nan)
    chosen[live] = path[pick[live]]
    return Probe(coef[pick, every], intercept[pick, every], chosen, path, val_auroc)


def evaluate(
    scores: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike,
    names: Sequence[str],
    *,
    calls: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    notes: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """AUROC and AUPRC with 95% patient-bootstrap intervals: dicts of label, metric, value, low, high, n, positives,
    n_patients, and ``note`` where there is something to say of the number.

    ``scores``, ``y`` (N, L), ``groups`` (N,), ``names`` the L labels. A label that is too few to evaluate
    (``small_samples``), or of which ``notes`` says why it cannot be, has value NaN and that note. The label "macro" is
    the mean over those that have a value (its interval: the mean within each resample); its n are the images known for
    any of them, its positives are summed over them, and its note tells how many labels were left out. An interval
    without width becomes an exact one; that of a macro average over such a label is the mean of its labels' ends.
    With ``calls`` and ``probabilities`` (N, L) also ``thresholds.decided``'s metrics, and of every metric
    ``NAME_weighted``: its macro average weighted by each label's positives among the test images.
    """
    truth, s = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != s.shape or truth.shape[1] != len(names):
        raise ValueError(
            f"scores {s.shape}, y {truth.shape} and {len(names)} names: want (N, L), (N, L) and L"
        )
    draw: dict[str, Any] = {"groups": groups, "resamples": resamples, "seed": seed}
    measured = {m.__name__: (m(truth, s), bootstrap(m, truth, s, **draw)) for m in (auroc, auprc)}
    if calls is not None and probabilities is not None:
        measured |= decided(truth, calls, probabilities, **draw)
    why = [
        (notes or {}).get(name, "") or few
        for name, few in zip(names, too_few(truth, groups), strict=True)
    ]
    left, independent = (
        np.array([bool(note) for note in why], dtype=bool),
        _independent(truth, calls, groups),
    )
    unit = np.unique(np.asarray(groups), return_inverse=True)[1]
    each = [_counts(truth, unit, [j], note) for j, note in enumerate(why)]
    records, positives = [], np.nansum(truth, axis=0)
    for metric, (every, samples) in measured.items():
        value = np.where(left, np.nan, every)
        low, high, flat = with_width(
            *interval(np.where(left, np.nan, samples)), value, independent[metric]
        )
        both = np.flatnonzero(~np.isnan(value))
        note = (
            f"over {len(both)} of {len(names)} labels, the others too few or not fitted"
            if left.any()
            else ""
        )
        for j, name in enumerate(names):
            ends = {"value": float(value[j]), "low": float(low[j]), "high": float(high[j])}
            records.append({"label": name, "metric": metric} | ends | each[j])
        whole = _counts(truth, unit, both if len(both) else np.arange(len(names)), note)
        columns: list[tuple[str, Floats | None]] = [(metric, None)]
        if calls is not None:
            columns.append((f"{metric}_weighted", positives[both]))
        for kind, weights in columns:
            mean = [known_mean(ends[both], weights) for ends in (value, low, high)]
            if not flat[both].any():
                mean[1:] = interval(known_mean(samples[:, both], weights))
            ends = dict(zip(("value", "low", "high"), map(float, mean), strict=True))
            records.append({"label": "macro", "metric": kind} | ends | whole)
    return records


def _counts(truth: Floats, unit: NDArray[Any], which: Any, note: str) -> dict[str, Any]:
    """What a metric's row says beside its value: images, positives and patients of the labels ``which``, and a note."""
    part = truth[:, which]
    known = (~np.isnan(part)).any(axis=1)
    counts = {
        "n": int(known.sum()),
        "positives": int(np.nansum(part)),
        "n_patients": len(np.unique(unit[known])),
    }
    return counts | ({"note": note} if note else {})


def _independent(
    truth: Floats, calls: ArrayLike | None, groups: ArrayLike
) -> dict[str, NDArray[Any]]:
    """On how many independent patients each metric of each label rests: {metric: (L,)}."""
    found = class_counts(truth, groups)
    called = (
        np.full(truth.shape, np.nan)
        if calls is None
        else np.where(np.isnan(truth), np.nan, np.asarray(calls))
    )
    return {
        "auroc": found["pairs"],
        "auprc": found["pairs"],
        "f1": found["positive_patients"],
        "sensitivity": found["positive_patients"],
        "specificity": found["negative_patients"],
        "ppv": class_counts(called, groups)["positive_patients"],
        "ece": found["patients"],
    }


def task_of(name: str) -> str:
    """The task that a label belongs to: by its prefix (``malposition:picc``), else lines_tubes for a device of the
    vocabulary and findings for all others, those under a data set's own name too."""
    prefix = name.split(":")[0] if ":" in name else ""
    return PREFIXED.get(prefix, "lines_tubes" if name in DEVICES else "findings")


def is_recorded(name: str) -> bool:
    """Whether a label is one that the data set records, and not made of others (``right:edema``)."""
    return name.partition(":")[0] not in PREFIXED or ":" not in name


def by_task(names: Sequence[str]) -> dict[str, list[int]]:
    """Places of the labels of each task, findings and lines_tubes first."""
    tasks = ["findings", "lines_tubes", *PREFIXED.values()]
    found = {task: [k for k, name in enumerate(names) if task_of(name) == task] for task in tasks}
    return {task: places for task, places in found.items() if places}


# ---- inputs --------------------------------------------------------------------------------------------------------
def _features(x: Input, name: str) -> torch.Tensor:
    features = torch.as_tensor(x).detach().cpu()
    features = features if features.dtype == torch.float64 else features.float()
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"{name} must be a non-empty (N, D), got shape {tuple(features.shape)}")
    finite = torch.isfinite(features).all(dim=1)
    if not finite.all():
        bad = torch.nonzero(~finite).flatten().tolist()
        raise ValueError(
            f"{name} holds a feature that is not finite in row {bad[0]} ({len(bad)} such rows)"
        )
    return features


def checked_labels(y: Input, name: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks (N, L) of what is known and, as float32, what is positive."""
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


def _scores(x: torch.Tensor, coef: Floats, intercept: Floats) -> Floats:
    """x @ coef.T + intercept in float64, a block of rows at a time."""
    w, b = torch.from_numpy(coef), torch.from_numpy(intercept)
    return torch.cat([torch.addmm(b, rows.double(), w.T) for rows in x.split(65536)]).numpy()


def choose_strength(path: Floats, val_auroc: Floats, live: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index into the path per label: the best AUROC, equal ones to the stronger penalty, no AUROC to the median."""
    order = np.argsort(-path, kind="stable")
    judged = np.nan_to_num(val_auroc[order], nan=-1.0)
    pick = order[np.argmax(judged >= judged.max(axis=0) - 1e-12, axis=0)]
    median, unjudged = order[(len(path) - 1) // 2], live[np.isnan(val_auroc[0, live])]
    if len(unjudged):
        said = f"label(s) {unjudged.tolist()}: the median, {path[median]:g}, is taken"
        warnings.warn(
            f"validation holds one class only, no strength can be chosen for {said}", stacklevel=3
        )
    pick[unjudged] = median
    return pick


# ---- the solver ----------------------------------------------------------------------------------------------------
def _rotate(
    x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, Floats]:
    """Standardised features in their principal axes, (N, K) float32, and the map (K, D) that takes weights back."""
    z = (x - mean) * scale
    if len(z) >= z.shape[1]:
        axes = torch.linalg.eigh(z.T @ z)[1]
        return z.float() @ axes.float(), axes.T.numpy()
    values, axes = torch.linalg.eigh(z @ z.T)
    kept = values > 1e-12 * values[-1].clamp(min=1e-300)
    length = values[kept].sqrt()
    return (axes[:, kept] * length).float(), ((axes[:, kept] / length).T @ z).numpy()


def _solve(
    z: torch.Tensor, target: torch.Tensor, known: torch.Tensor, path: Floats
) -> tuple[Floats, Floats]:
    """Weights (S, L, K) and intercepts (S, L) of every (strength, label), from rotated features z (N, K)."""
    n_labels, n_axes = target.shape[1], z.shape[1]
    label = torch.arange(n_labels).repeat(len(path))
    design = torch.cat([z, torch.ones(len(z), 1)], dim=1)
    ridge = torch.from_numpy(np.repeat(path, n_labels))[:, None] * (
        torch.arange(n_axes + 1) < n_axes
    )
    bound = design.double().square().mean(0) / 4 + ridge  # (C, K + 1)
    share = (
        (known / known.sum(0)).float().T[label]
    )  # (C, N): a known row's weight in its label's mean
    sign = (
        1 - 2 * target.T[label]
    )  # -1 for a positive: the residual sign * sigmoid(sign * logit) keeps its precision
    w = torch.zeros_like(bound)
    w[:, -1] = torch.logit((share * (sign < 0)).sum(1).double(), eps=1e-6)
    solution, column = w.clone(), torch.arange(len(w))
    logits = w.float() @ design.T
    share *= sign
    residual = torch.sigmoid(sign * logits) * share
    gradient = (residual @ design).double() + ridge * w
    steps, changes = w.new_zeros(0, *w.shape), w.new_zeros(0, *w.shape)
    for step in range(1, _STEPS + 1):
        direction = -_newton(gradient, steps, changes, bound)
        slope = (gradient * direction).sum(1)
        going = -slope > _TOLERANCE
        solution[column] = w
        if not going.any():
            break
        if going.float().mean() < 0.9:
            state = (column, w, bound, ridge, share, sign, logits, gradient, direction, slope)
            column, w, bound, ridge, share, sign, logits, gradient, direction, slope = (
                a[going] for a in state
            )
            steps, changes = steps[:, going], changes[:, going]
        if step % 20 == 0:  # sums of steps drift in float32
            logits = w.float() @ design.T
        ahead = direction.float() @ design.T
        length = torch.ones_like(slope)
        for _ in range(
            10
        ):  # a column whose slope turned, to a third of what it was, shortens its step by the secant
            move = length[:, None] * direction
            there = torch.addcmul(logits, length.float()[:, None], ahead)
            residual = (sign * there).sigmoid_().mul_(share)
            after = torch.einsum("cn,cn->c", residual, ahead).double() + (
                ridge * (w + move) * direction
            ).sum(1)
            over = (slope < -_TOLERANCE) & (after > -slope / 3)
            if not over.any():
                break
            length = torch.where(over, length * slope / (slope - after), length)
        w, logits = w + move, there
        new = (residual @ design).double() + ridge * w
        steps = torch.cat([steps, move[None]])[-_MEMORY:]
        changes, gradient = torch.cat([changes, (new - gradient)[None]])[-_MEMORY:], new
    else:
        warnings.warn(
            f"{int(going.sum())} probe column(s) had not converged after {_STEPS} steps",
            stacklevel=3,
        )
    weights = solution.reshape(len(path), n_labels, n_axes + 1).numpy()
    return weights[..., :-1], weights[..., -1]


def _newton(
    gradient: torch.Tensor, steps: torch.Tensor, changes: torch.Tensor, bound: torch.Tensor
) -> torch.Tensor:
    """L-BFGS's product of the inverse Hessian with each column's gradient; steps and changes are (M, C, K + 1)."""
    curvature = (steps * changes).sum(
        -1
    )  # (M, C); rounding may spoil a finished column's: such a pair is ignored
    rho = torch.where(curvature > 0, 1 / curvature, 0.0)
    q, alphas = gradient.clone(), []
    for s, c, r in zip(reversed(steps), reversed(changes), reversed(rho), strict=True):
        alphas.append(r * (s * q).sum(1))
        q -= alphas[-1][:, None] * c
    q /= bound
    if len(steps):
        fit = curvature[-1] / (changes[-1].square() / bound).sum(1)
        q *= torch.where(rho[-1] > 0, fit, 1.0)[:, None]
    for s, c, r in zip(steps, changes, rho, strict=True):
        q += (alphas.pop() - r * (c * q).sum(1))[:, None] * s
    return q
