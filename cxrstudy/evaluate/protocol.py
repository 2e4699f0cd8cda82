"""The one protocol under which every encoder is judged: who is labelled, who is tested, and that nobody leaks."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import encoders, study, weights
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import label_array, label_names, patients_hash
from cxrstudy.data.vocabulary import DEVICES, LABELS
from cxrstudy.evaluate.classification import evaluate, fit_probe
from cxrstudy.evaluate.features import covariates, encode
from cxrstudy.progress import Progress


class LeakError(ValueError):
    """A patient who must not be in an encoder's pretraining is in it."""


def open_subject(name: str, size: int, seed: int) -> tuple[Any, dict[str, Any], set[str]]:
    """(encoder, what it is, patients it was pretrained on) for a value of the parameter ``encoder``."""
    if name == "covariates":
        return None, {"paradigm": "control", "encoder": "covariates", "n_images": 0, "samples_seen": 0}, set()
    folder = encoders.encoder_folder(study.resolve(name))
    encoder = weights.load_encoder(folder or name, size=size, seed=seed)
    if folder is None:
        control = name == "pixels" or name.startswith("random:")
        kind = "control" if control else "open weights"
        return encoder, {"paradigm": kind, "encoder": name, "n_images": 0, "samples_seen": 0, "seed": seed}, set()
    patients = encoders.listed_patients(folder)
    if encoder.info.get("n_images") and patients is None:
        raise LeakError(f"{folder}: patients.txt is missing: nobody can tell whom it was pretrained on; run it again")
    return encoder, dict(encoder.info), patients or set()


def labelled_rows(prepared: Prepared, p: study.Classify) -> pd.DataFrame:
    """The manifest with its row numbers, cut to ``within``; ValueError naming the query that does not hold."""
    manifest = prepared.manifest.assign(row=np.arange(len(prepared.manifest)))
    if not p.within:
        return manifest
    try:
        manifest = manifest.query(p.within)
    except Exception as error:
        raise ValueError(f"within: {p.within!r} is no query of this manifest: {error}") from error
    if manifest.empty:
        raise ValueError(f"within: no row of {p.data} meets {p.within!r}")
    return manifest


def run(p: study.Classify, prepared: Prepared, *, progress: Progress = iter) -> dict[str, Any]:
    """Probe one encoder (or one a fold) and score the test patients.

    Returns ``names`` (L), ``scores`` (N,L) log odds and ``truth`` (N,L) of the ``test`` rows (a manifest), ``probes``,
    ``metrics`` (a list: task, label, metric, value, low, high, n, positives) and ``subject``. Fixed splits: no labelled
    patient may be in the encoder's pretraining; folds: no patient of the held fold. LeakError when one is.
    """
    table = labelled_rows(prepared, p)
    names = p.labels or [name for name in label_names(table) if name in LABELS and _both(table, name)]
    parts = _parts(table, p)
    judged = p.fold_encoders or [p.encoder] * len(parts)
    scores, tests, probes = [], [], []
    opened: dict[str, tuple[Any, dict[str, Any], set[str]]] = {}
    for name, triple in zip(judged, parts, strict=True):  # before anything is computed
        if name not in opened:
            opened[name] = open_subject(name, prepared.info["size"], p.seed)
        _refuse_leak(opened[name][2], triple[2] if p.folds else pd.concat(triple), name)
    cached: dict[str, np.ndarray] = {}
    for name, (train, validation, test) in zip(judged, parts, strict=True):
        if name not in cached:
            encoder = opened[name][0]
            rows = np.concatenate([part["row"].to_numpy() for part in (train, validation, test)])
            if encoder is None:
                x = covariates(prepared.manifest)
            else:
                pooled = encode(encoder, prepared, rows, pooling=p.pooling, progress=progress)
                x = np.zeros((len(prepared.manifest), pooled.shape[1]), np.float32)
                x[rows] = pooled
            cached[name] = x
        x = cached[name]
        probe = fit_probe(
            x[train["row"]],
            label_array(train, names, truth=True),
            strengths=p.strengths,
            x_val=x[validation["row"]],
            y_val=label_array(validation, names, truth=True),
        )
        scores.append(probe.decision_function(x[test["row"]]).astype(np.float32))  # judged as they are kept
        tests.append(test)
        probes.append(probe)
    held, pooled_scores = pd.concat(tests), np.concatenate(scores)
    truth = label_array(held, names, truth=True)
    labelled = pd.concat([part for parts_ in parts for part in parts_])
    subject = opened[judged[0]][1] | {
        "data": Path(p.data).name,
        "kind": prepared.info["kind"],
        "institution": prepared.info["institution"],
        "generator": prepared.info.get("generator"),
        "patients": patients_hash(labelled),
    }
    return {
        "names": names,
        "scores": pooled_scores,
        "truth": truth,
        "test": held,
        "probes": probes,
        "metrics": score(p, names, pooled_scores, truth, held["patient_id"].to_numpy()),
        "subject": subject,
        "info": {"test_images": len(held), "train_images": len(parts[0][0]), "features": int(probes[0].coef.shape[1])},
    }


def score(
    p: study.Classify, names: list[str], scores: np.ndarray, truth: np.ndarray, patients: np.ndarray
) -> list[dict[str, Any]]:
    """Metrics of both tasks, ``findings`` and ``lines_tubes`` (the devices), each with its macro average."""
    out = []
    for task, of_task in (("findings", lambda n: n not in DEVICES), ("lines_tubes", lambda n: n in DEVICES)):
        chosen = [k for k, name in enumerate(names) if of_task(name)]
        if chosen:
            found = evaluate(
                scores[:, chosen],
                truth[:, chosen],
                patients,
                [names[k] for k in chosen],
                resamples=p.resamples,
                seed=p.seed,
            )
            out += [{"task": task, **metric} for metric in found]
    return out


def _both(table: pd.DataFrame, name: str) -> bool:
    values = label_array(table, [name], truth=True)
    return bool((values == 1).any() and (values == 0).any())


def _parts(table: pd.DataFrame, p: study.Classify) -> list[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]]:
    """(train, validation, test) rows: one triple, or one a fold (validation = the fold after the held one)."""
    if not p.folds:
        wanted = [(p.train, p.validation, p.test)]
    else:
        if p.fold_encoders and len(p.fold_encoders) != len(p.folds):
            raise ValueError(f"fold_encoders: {len(p.fold_encoders)} encoders for {len(p.folds)} folds")
        after = p.folds[1:] + p.folds[:1]
        wanted = [
            ([f for f in p.folds if f not in (held, next_)], [next_], [held])
            for held, next_ in zip(p.folds, after, strict=True)
        ]
    parts = []
    for triple in wanted:
        chosen = tuple(table[table["split"].isin(splits)] for splits in triple)
        for splits, part in zip(triple, chosen, strict=True):
            if part.empty:
                raise ValueError(f"no labelled image in splits {splits}; the data has {sorted(set(table['split']))}")
        parts.append(chosen)
    return parts  # type: ignore[return-value]


def _refuse_leak(seen: set[str], judged: pd.DataFrame, name: str) -> None:
    shared = sorted(seen & set(judged["patient_id"]))
    if shared:
        raise LeakError(
            f"{len(shared)} patients who judge encoder {name} were in its pretraining (first: {shared[0]}); "
            "pretrain on splits that hold none of them"
        )


def save_scores(result: dict[str, Any], path: Path) -> None:
    """Per-image test scores, from which every metric can be recomputed: Parquet, float32."""
    columns = {"image_id": result["test"]["image_id"].to_numpy(), "patient_id": result["test"]["patient_id"].to_numpy()}
    for k, name in enumerate(result["names"]):
        columns[f"score:{name}"] = result["scores"][:, k]
        columns[f"truth:{name}"] = result["truth"][:, k].astype(np.float32)
    pd.DataFrame(columns).to_parquet(path, index=False, compression="zstd")
