"""The evaluation protocol: fit on training patients, select on validation, report on test patients.

It refuses encoders that were pretrained on patients of the evaluation, before anything is computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import patients_hash
from cxrstudy.evaluate import features, nuisance, reidentification, zeroshot
from cxrstudy.evaluate.calibration import best_threshold, fit_platt
from cxrstudy.evaluate.classification import fit_probe, subgroups
from cxrstudy.evaluate.cohort import (
    Cohort,
    Split,
    build_cohort,
    excluded_rows,
    external_cohort,
    not_evaluated,
)
from cxrstudy.evaluate.embeddings import Embeddings
from cxrstudy.evaluate.heads import train_supervised
from cxrstudy.evaluate.scores import (
    Arrays,
    Evaluation,
    FittedProbe,
    label_efficiency,
    log_odds,
    score_cohort,
)
from cxrstudy.evaluate.subjects import (
    SUPERVISED,
    Subject,
    described,
    open_subject,
    refuse_leak,
    refuse_overlap,
)
from cxrstudy.progress import Progress


@dataclass(frozen=True)
class _Encoded:
    """An encoder, its text tower if one is evaluated, and its features of a data set."""

    encoder: Any
    text: Any
    x: np.ndarray  # (N,F)
    mean: np.ndarray  # (N,C) mean of the last layer's patches, for the text tower


@dataclass(frozen=True)
class _Fold:
    """What one split of the patients gave."""

    fitted: FittedProbe
    has_text: bool
    test: Arrays  # of the test rows: `FittedProbe.predict` and `zeroshot.text_scores`
    external: dict[str, Arrays]  # `FittedProbe.predict` by data set
    few_labels: dict[tuple[int, int], np.ndarray]  # log odds by (labelled patients, seed)
    same_patient: pd.Series  # of `reidentification.patient_aurocs`
    nuisance: list[dict[str, Any]]  # of `nuisance.metric_rows`


# ---- the evaluation ------------------------------------------------------------------------------
def run(p: study.Classify, prepared: Prepared, *, progress: Progress = iter) -> Evaluation:
    """Fit a probe on one encoder (or one a fold) and score the test patients.

    Without any label there is no probe, and only retrieval is left to evaluate.

    Raises:
        LeakError: A patient of the evaluation (in cross-fitting: of the test fold) was in the
            encoder's pretraining, or a test patient is a training or validation patient too.
        ValueError: A parameter does not fit the data, or nothing can be evaluated.
    """
    cohort = build_cohort(p, prepared)
    external = _external_cohorts(p, cohort)
    names = p.fold_encoders or [p.encoder] * len(cohort.parts)
    subjects = _open_subjects(p, prepared, cohort, external, names)
    folds = list(_evaluate_folds(p, cohort, external, subjects, names, progress))
    arrays = {key: np.concatenate([fold.test[key] for fold in folds]) for key in folds[0].test}
    own = score_cohort(p, cohort, arrays, cohort.not_fitted())
    metrics = own.metrics + excluded_rows(cohort)
    metrics += reidentification.metric_row(
        pd.concat([fold.same_patient for fold in folds]),
        len(own.test),
        resamples=p.resamples,
        seed=p.seed,
    )
    metrics += folds[0].nuisance if len(folds) == 1 else []
    has_text = any(fold.has_text for fold in folds)
    reasons = not_evaluated(p, cohort, metrics, has_text=has_text)
    elsewhere = {}
    for name, other in external.items():
        if not (cohort.names and other.names):
            reasons[f"@{name}"] = "no label that both data sets record"
            continue
        found = [fold.external[name] for fold in folds]
        mean = {key: np.mean([arrays[key] for arrays in found], 0) for key in found[0]}
        elsewhere[name] = score_cohort(p, other, mean, cohort.not_fitted())
        rows = elsewhere[name].metrics
        metrics += [row | {"task": f"{row['task']}@{name}"} for row in rows]
    first = folds[0].fitted.probe
    info = {
        "test_images": len(own.test),
        "test_patients": int(own.test["patient_id"].nunique()),
        "train_images": len(cohort.parts[0].train),
        "features": 0 if first is None else first.coef.shape[1],
        "not_evaluated": reasons,
    }
    return Evaluation(
        **vars(own) | {"metrics": metrics},
        external=elsewhere,
        fitted=[fold.fitted for fold in folds],
        subgroups=subgroups(
            own.test,
            cohort.metadata,
            own.names,
            own.scores,
            own.truth,
            notes=cohort.not_fitted(),
            resamples=p.resamples,
            seed=p.seed,
        ),
        curve=label_efficiency(cohort, own, [fold.few_labels for fold in folds]),
        not_evaluated=reasons,
        subject=described(p, prepared, cohort, names[0], subjects[names[0]][1]),
        info=info,
    )


def _external_cohorts(p: study.Classify, cohort: Cohort) -> dict[str, Cohort]:
    """Return the data sets of ``p.also`` by the names of their folders."""
    names = [study.resolve(folder).name for folder in p.also]
    if len(set(names)) < len(names):
        raise ValueError(
            f"also: two folders of one name among {', '.join(p.also)}; "
            "their results have this name: rename one"
        )
    pairs = zip(names, p.also, strict=True)
    return {name: external_cohort(p, folder, cohort.names) for name, folder in pairs}


def _open_subjects(
    p: study.Classify,
    prepared: Prepared,
    cohort: Cohort,
    external: dict[str, Cohort],
    names: list[str],
) -> dict[str, Subject]:
    """Return the encoders by name; refuse leaks before anything is computed."""
    tests = [other.test for other in external.values()]
    for part in cohort.parts:
        for test in (part.test, *tests):
            refuse_overlap(part.train, part.validation, test)
    subjects: dict[str, Subject] = {}
    for name, part in zip(names, cohort.parts, strict=True):
        if name not in subjects:
            subjects[name] = open_subject(name, prepared.info["size"], p.seed)
        for rows in (part.test if p.folds else pd.concat(part), *tests):
            refuse_leak(subjects[name][2], rows, name)
    return subjects


def _evaluate_folds(
    p: study.Classify,
    cohort: Cohort,
    external: dict[str, Cohort],
    subjects: dict[str, Subject],
    names: list[str],
    progress: Progress,
) -> Iterator[_Fold]:
    """Fit and score each split of the patients; an encoder runs once for all folds."""
    encoded: dict[str, _Encoded] = {}
    for name, part in zip(names, cohort.parts, strict=True):
        if name not in encoded or name.startswith(SUPERVISED):
            encoded[name] = _encode(p, cohort, part, name, subjects[name][0], progress)
        one, test = encoded[name], part.test["row"].to_numpy()
        fitted = _fit(p, cohort, part, one)
        arrays = fitted.predict(one.x, test)
        if one.text is not None:
            arrays |= zeroshot.text_scores(
                one.text, one.mean[test], cohort.prepared, part.test, cohort.recorded, p.tasks
            )
        elsewhere = {}
        for key, other in external.items():
            if cohort.names and other.names:
                rows = other.test["row"].to_numpy()
                x, _ = extract_features(p, one.encoder, None, other.prepared, rows, progress)
                elsewhere[key] = fitted.predict(x, rows)
        few_labels = _few_labels(p, cohort, part, one.x) if cohort.names else {}
        ids = (part.test[name].to_numpy() for name in ("patient_id", "study_id"))
        own = reidentification.patient_aurocs(one.x[test], *ids)
        others = _nuisance(p, cohort, part, one.x)
        yield _Fold(fitted, one.text is not None, arrays, elsewhere, few_labels, own, others)


def _encode(
    p: study.Classify, cohort: Cohort, part: Split, name: str, encoder: Any, progress: Progress
) -> _Encoded:
    """Train a supervised encoder on the labels of its fold, and return the features of all rows."""
    prepared, text = cohort.prepared, None
    baseline_without_labels = not cohort.names and (p.shuffle_labels or name.startswith(SUPERVISED))
    if not baseline_without_labels:
        if name.startswith(SUPERVISED):  # a fresh one for each fold
            encoder = open_subject(name, prepared.info["size"], p.seed)[0]
            rows, y = part.train["row"].to_numpy(), _training_labels(p, cohort, part)[0]
            how = {"samples_seen": p.supervised_samples, "seed": p.seed}
            train_supervised(encoder, prepared, rows, y, **how)
        if encoder is not None and not {"zero_shot", "retrieval"}.isdisjoint(p.tasks):
            text = zeroshot.open_text_tower(name, encoder)
    if not cohort.names and text is None:
        none = np.zeros((len(prepared.manifest), 0), np.float32)
        return _Encoded(encoder, text, none, none)
    rows = pd.unique(np.concatenate([table["row"] for table in part]))  # in folds: all rows
    x, mean = extract_features(p, encoder, text, prepared, rows, progress)
    return _Encoded(encoder, text, x, mean)


def extract_features(
    p: study.Classify,
    encoder: Any,
    text: Any,
    prepared: Prepared,
    rows: np.ndarray,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Return pooled features (N,F) of all N images and the mean of the last layer's patches (N,C).

    Only ``rows`` are computed. The others are NaN, which no probe accepts. C is 0 without a text
    tower (``text`` None).
    """
    n, width = len(prepared.manifest), 0 if text is None else encoder.channels
    mean = np.full((n, width), np.nan, np.float32)
    if encoder is None:
        return features.covariates(prepared.manifest), mean
    if isinstance(encoder, Embeddings):
        found = encoder.of(prepared.manifest["image_id"].iloc[rows])
    else:
        poolings = [p.pooling, *["mean"] * (width > 0)]
        how: dict[str, Any] = {"layers": p.layers, "progress": progress}
        found, *means = features.encode_each(encoder, prepared, rows, poolings, **how)
        for pooled in means:
            mean[rows] = pooled[:, :width]  # the last layer comes first
    x = np.full((n, found.shape[1]), np.nan, np.float32)
    x[rows] = found
    return x, mean


# ---- fitting -------------------------------------------------------------------------------------
def _training_labels(p: study.Classify, cohort: Cohort, part: Split) -> list[np.ndarray]:
    """Return training and validation labels (n,L), permuted among the images if so asked."""
    labels = [cohort.targets(table) for table in (part.train, part.validation)]
    rng = np.random.default_rng(p.seed)
    return [rng.permutation(y) for y in labels] if p.shuffle_labels else labels


def _fit(p: study.Classify, cohort: Cohort, part: Split, encoded: _Encoded) -> FittedProbe:
    """Fit the probe on training rows, and thresholds and sigmoids on validation rows."""
    if not cohort.names:
        return FittedProbe(encoded.encoder, None, np.zeros(0), np.zeros((0, 2)))
    x, val = encoded.x, part.validation["row"].to_numpy()
    y, y_val = _training_labels(p, cohort, part)
    x_train = x[part.train["row"].to_numpy()]
    probe = fit_probe(x_train, y, strengths=p.strengths, x_val=x[val], y_val=y_val)
    scores = log_odds(probe, x, val)
    threshold, sigmoid = best_threshold(y_val, scores), fit_platt(y_val, scores)
    return FittedProbe(encoded.encoder, probe, threshold, sigmoid)


def _nuisance(
    p: study.Classify, cohort: Cohort, part: Split, x: np.ndarray
) -> list[dict[str, Any]]:
    """Return metric rows of what the features hold beside labels, if the run asks for them."""
    if nuisance.TASK not in p.tasks or p.folds or not x.shape[1]:
        return []
    rows = [table["row"].to_numpy() for table in part]
    known = nuisance.factors(cohort.prepared.manifest)
    how: dict[str, Any] = {"strengths": p.strengths, "resamples": p.resamples, "seed": p.seed}
    return nuisance.metric_rows(x, known, rows, part.test["patient_id"].to_numpy(), **how)


def _few_labels(
    p: study.Classify, cohort: Cohort, part: Split, x: np.ndarray
) -> dict[tuple[int, int], np.ndarray]:
    """Return test log odds (n,L) of probes fitted on few patients, by (number or 0 = all, seed).

    With one seed, the patients of a larger number contain those of a smaller one. L2 penalties are
    chosen on all validation patients: the curve varies the patients that are fitted on.
    """
    smallest = min(part.train["patient_id"].nunique() for part in cohort.parts)
    numbers = dict.fromkeys(n if 0 < n < smallest else 0 for n in p.label_counts)
    y, y_val = _training_labels(p, cohort, part)
    train, val, test = (table["row"].to_numpy() for table in part)
    patients, scores = np.unique(part.train["patient_id"]), {}
    for seed in range(p.label_seeds):
        order = np.random.default_rng([p.seed, seed]).permutation(patients)
        for number in numbers:
            here = part.train["patient_id"].isin(order[: number or None]).to_numpy()
            how: dict[str, Any] = {"strengths": p.strengths, "x_val": x[val], "y_val": y_val}
            scores[number, seed] = log_odds(fit_probe(x[train[here]], y[here], **how), x, test)
    return scores


# ---- heads on frozen encoders --------------------------------------------------------------------
def open_frozen_encoder(
    p: study.Segment | study.Report, prepared: Prepared, split: Split, what: str
) -> tuple[Any, dict[str, Any]]:
    """Return the encoder that a head is trained on, and its description for the record.

    The encoder is None for ``covariates``, which only report generation accepts.

    Args:
        what: What the head needs of the encoder, for messages.

    Raises:
        LeakError: A patient of the split was in the encoder's pretraining, or a test patient is in
            another part too.
        ValueError: It is not a frozen encoder of images.
    """
    refuse_overlap(*split)
    encoder, subject, pretrained = open_subject(p.encoder, prepared.info["size"], p.seed)
    accepted = encoder is None and isinstance(p, study.Report)
    if p.encoder.startswith(SUPERVISED) or not (accepted or hasattr(encoder, "forward_features")):
        raise ValueError(
            f"encoder: {p.encoder!r} is not a frozen encoder of images with {what}; name one"
        )
    tables = pd.concat(split)
    refuse_leak(pretrained, tables, p.encoder)
    subject = subject | {"trained_on": subject.get("institution")}
    subject |= {key: prepared.info.get(key) for key in ("kind", "institution", "generator")}
    return encoder, subject | {"data": Path(p.data).name, "patients": patients_hash(tables)}
