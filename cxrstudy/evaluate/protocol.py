"""The one protocol under which every encoder is judged, and that nobody leaks: fit on some, choose on others, test."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from cxrstudy import study
from cxrstudy.data.images import Prepared
from cxrstudy.evaluate import features, zeroshot
from cxrstudy.evaluate.calibration import best_threshold, fit_platt
from cxrstudy.evaluate.classification import by_task, evaluate, fit_probe
from cxrstudy.evaluate.cohort import (
    Cohort,
    Part,
    _parts,
    elsewhere,
    gather,
    labelled_rows,
    left_rows,
    not_evaluated,
    subgroups,
)
from cxrstudy.evaluate.embeddings import Embeddings
from cxrstudy.evaluate.heads import train_supervised
from cxrstudy.evaluate.metrics import auroc, known_mean
from cxrstudy.evaluate.small_samples import set_aside, too_few
from cxrstudy.evaluate.subjects import (
    SUPERVISED,
    LeakError,
    Subject,
    described,
    open_subject,
    refuse_leak,
    refuse_overlap,
)
from cxrstudy.progress import Progress

__all__ = [
    "SUPERVISED",
    "LeakError",
    "_parts",
    "labelled_rows",
    "open_subject",
    "refuse_leak",
    "refuse_overlap",
    "run",
    "save",
    "save_scores",
    "score",
]

COLUMNS = [
    "task",
    "label",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "positives",
    "n_patients",
    "note",
]  # of metrics


# ---- one fold ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Judge:
    """An encoder and what was fitted on it: probe (None without labels), thresholds (L,), Platt's slopes and intercepts
    (L,2)."""

    encoder: Any
    text: Any
    probe: Any
    threshold: np.ndarray
    sigmoid: np.ndarray

    def judge(self, x: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Of ``rows`` of ``look``'s features: log odds, how far above the threshold, probability; (N,L) float32."""
        s = (
            _scores(self.probe, x, rows)
            if self.probe is not None
            else np.zeros((len(rows), 0), np.float32)
        )
        chance = expit(self.sigmoid[:, 0] * s + self.sigmoid[:, 1])
        return {
            "scores": s,
            "margin": s - self.threshold,
            "probabilities": chance.astype(np.float32),
        }


def look(
    p: study.Classify,
    encoder: Any,
    text: Any,
    prepared: Prepared,
    rows: np.ndarray,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Return pooled features (N,F) of all N images and, with a text tower, the mean of the last layer's patches (N,C).

    Only ``rows`` are computed. The others are NaN, which no probe accepts.
    """
    n, width = len(prepared.manifest), 0 if text is None else encoder.channels
    mean = np.full((n, width), np.nan, np.float32)
    how: dict[str, Any] = {"layers": p.layers, "progress": progress}
    if encoder is None:
        return features.covariates(prepared.manifest), mean
    if isinstance(encoder, Embeddings):
        found = encoder.of(prepared.manifest["image_id"].iloc[rows])
    else:
        found, *means = features.encode_each(
            encoder, prepared, rows, [p.pooling, *["mean"] * (width > 0)], **how
        )
        for own in means:
            mean[rows] = own[:, :width]  # the last layer comes first
    x = np.full((n, found.shape[1]), np.nan, np.float32)
    x[rows] = found
    return x, mean


def _probe(
    p: study.Classify,
    x: np.ndarray,
    rows: np.ndarray,
    y: np.ndarray,
    val: np.ndarray,
    y_val: np.ndarray,
) -> Any:
    return fit_probe(x[rows], y, strengths=p.strengths, x_val=x[val], y_val=y_val)


def _scores(probe: Any, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Log odds (N,L), float32: judged as they are kept."""
    return probe.decision_function(x[rows]).astype(np.float32)


def _labels(p: study.Classify, cohort: Cohort, part: Part) -> list[np.ndarray]:
    """Training and validation labels (n,L); dealt out anew among the images where that control is asked for."""
    found = [cohort.targets(rows) for rows in part[:2]]
    draws = np.random.default_rng(p.seed)
    return [draws.permutation(y) for y in found] if p.shuffle_labels else found


def _counts(p: study.Classify, cohort: Cohort) -> list[int]:
    """``label_counts``, each once; 0, all, for those that some fold has no patients left to leave out for."""
    fewest = min(part[0]["patient_id"].nunique() for part in cohort.parts)
    return list(dict.fromkeys(count if 0 < count < fewest else 0 for count in p.label_counts))


def _few(
    p: study.Classify, cohort: Cohort, part: Part, x: np.ndarray
) -> dict[tuple[int, int], np.ndarray]:
    """Scores (N,L) of a fold's test rows by probes of few labelled patients, by (their number or 0, seed); nested in a
    seed.

    Strengths are chosen on all validation patients: the curve counts what is fitted, not what is chosen on.
    """
    (train, val, held), (y, y_val), scores = part, _labels(p, cohort, part), {}
    patients = np.unique(train["patient_id"])
    for seed in range(p.label_seeds):
        order = np.random.default_rng([p.seed, seed]).permutation(patients)
        for count in _counts(p, cohort):
            here = train["patient_id"].isin(order[: count or None]).to_numpy()
            probe = _probe(
                p, x, train["row"].to_numpy()[here], y[here], val["row"].to_numpy(), y_val
            )
            scores[count, seed] = _scores(probe, x, held["row"].to_numpy())
    return scores


# ---- the evaluation ------------------------------------------------------------------------------------------------
def run(p: study.Classify, prepared: Prepared, *, progress: Progress = iter) -> dict[str, Any]:
    """Probe one encoder (or one a fold) and score the test patients.

    Returns ``names`` (L), ``scores`` (N,L) log odds, ``calls`` and ``probabilities`` (N,L; see ``thresholds``) and
    ``truth`` (N,L) of the ``test`` rows (a manifest); ``ranks`` (N,2) of retrieval, or None; ``also``: the same on
    other data sets, by the names of their folders; ``judges`` and their ``probes``, one a fold; ``metrics`` (a list:
    task, label, metric, value, low, high, n, positives, n_patients, note); ``not_evaluated``: of each task without a
    number, why; tables ``subgroups`` and ``curve`` (label efficiency); ``subject``. Without any label there is no
    probe, and what is left is retrieval. Fixed splits: no labelled patient may be in the encoder's pretraining; folds:
    no patient of the held fold. LeakError when one is, or when a test patient is one of training or validation.
    """
    cohort = gather(p, prepared)
    others = _others(p, cohort)
    judged = p.fold_encoders or [p.encoder] * len(cohort.parts)
    opened = _opened(p, prepared, cohort, others, judged)
    notes, has_text = cohort.unfitted(), False
    seen: dict[str, tuple[Any, ...]] = {}
    judges, found, few = [], [], []
    abroad: dict[str, list[dict[str, np.ndarray]]] = {place: [] for place in others}
    for name, part in zip(judged, cohort.parts, strict=True):
        if name not in seen or name.startswith(SUPERVISED):
            encoder, text = _ready(p, prepared, cohort, part, name, opened[name][0])
            wanted = np.concatenate([table["row"] for table in part])  # all rows of all folds
            looked = (
                look(p, encoder, text, prepared, wanted, progress)
                if cohort.names or text
                else (None, None)
            )
            seen[name] = (encoder, text, *looked)
        encoder, text, x, mean = seen[name]
        has_text = has_text or text is not None
        judge, held = _judge(p, cohort, part, encoder, text, x), part[2]["row"].to_numpy()
        shots = (
            zeroshot.look(text, mean[held], prepared, part[2], cohort.base, p.tasks)
            if text is not None
            else {}
        )
        judges.append(judge)
        found.append(judge.judge(x, held) | shots)
        few.append(_few(p, cohort, part, x) if cohort.names else {})
        for place, other in others.items():
            there = other.parts[0][2]["row"].to_numpy()
            if cohort.names and other.names:
                abroad[place].append(
                    judge.judge(look(p, encoder, None, other.prepared, there, progress)[0], there)
                )
    result = _gathered(
        p, cohort, {k: np.concatenate([f[k] for f in found]) for k in found[0]}, notes
    )
    result["metrics"] += left_rows(cohort)
    reasons = not_evaluated(p, cohort, result["metrics"], has_text=has_text)
    result["also"] = {
        place: _gathered(
            p, others[place], {k: np.mean([f[k] for f in scores], 0) for k in scores[0]}, notes
        )
        for place, scores in abroad.items()
        if scores
    }
    for where, there in result["also"].items():
        result["metrics"] += [row | {"task": f"{row['task']}@{where}"} for row in there["metrics"]]
    reasons |= {
        f"@{place}": "no label that both data sets record"
        for place, scores in abroad.items()
        if not scores
    }
    probes = [judge.probe for judge in judges if judge.probe is not None]
    cells = (result["test"], cohort.told, result["names"], result["scores"], result["truth"])
    return result | {
        "not_evaluated": reasons,
        "subgroups": subgroups(*cells, notes=notes, resamples=p.resamples, seed=p.seed),
        "curve": _curve(cohort, result["truth"], result["test"]["patient_id"].to_numpy(), few),
        "judges": judges,
        "probes": probes,
        "subject": described(p, prepared, cohort, judged[0], opened[judged[0]][1]),
        "info": {
            "test_images": len(result["test"]),
            "test_patients": int(result["test"]["patient_id"].nunique()),
            "train_images": len(cohort.parts[0][0]),
            "features": _width(probes[0]) if probes else 0,
            "not_evaluated": reasons,
        },
    }


def _others(p: study.Classify, cohort: Cohort) -> dict[str, Cohort]:
    """The data sets of ``p.also`` by the names of their folders; ValueError where two have one name."""
    places = [study.resolve(folder).name for folder in p.also]
    if len(set(places)) < len(places):
        raise ValueError(
            f"also: two folders of one name among {', '.join(p.also)}; their results bear it: rename one"
        )
    return {
        place: elsewhere(p, folder, cohort.names)
        for place, folder in zip(places, p.also, strict=True)
    }


def _opened(
    p: study.Classify,
    prepared: Prepared,
    cohort: Cohort,
    others: dict[str, Cohort],
    judged: list[str],
) -> dict[str, Subject]:
    """The encoders by name, before anything is computed; LeakError as ``run`` says."""
    tests = [other.parts[0][2] for other in others.values()]
    for train, validation, test in cohort.parts:
        for judges_on in (test, *tests):
            refuse_overlap(train, validation, judges_on)
    opened: dict[str, Subject] = {}
    for name, part in zip(judged, cohort.parts, strict=True):
        if name not in opened:
            opened[name] = open_subject(name, prepared.info["size"], p.seed)
        for rows in (part[2] if p.folds else pd.concat(part), *tests):
            refuse_leak(opened[name][2], rows, name)
    return opened


def _ready(
    p: study.Classify, prepared: Prepared, cohort: Cohort, part: Part, name: str, encoder: Any
) -> tuple[Any, Any]:
    """An encoder, trained on the labels where that is asked for, and its text side where it has one to evaluate."""
    if not cohort.names and (p.shuffle_labels or name.startswith(SUPERVISED)):
        return encoder, None  # a baseline of labels, without labels
    if name.startswith(SUPERVISED):  # each fold's own, from its own training patients
        encoder = open_subject(name, prepared.info["size"], p.seed)[0]
        how = {"samples_seen": p.supervised_samples, "seed": p.seed}
        train_supervised(
            encoder, prepared, part[0]["row"].to_numpy(), _labels(p, cohort, part)[0], **how
        )
    asked = encoder is not None and not {"zero_shot", "retrieval"}.isdisjoint(p.tasks)
    return encoder, zeroshot.text_side(name, encoder) if asked else None


def _judge(
    p: study.Classify, cohort: Cohort, part: Part, encoder: Any, text: Any, x: np.ndarray
) -> Judge:
    """What is fitted on a fold's training and validation rows."""
    if not cohort.names:
        return Judge(encoder, text, None, np.zeros(0), np.zeros((0, 2)))
    rows, val, _ = (table["row"].to_numpy() for table in part)
    y, y_val = _labels(p, cohort, part)
    probe = _probe(p, x, rows, y, val, y_val)
    on_val = _scores(probe, x, val)
    return Judge(encoder, text, probe, best_threshold(y_val, on_val), fit_platt(y_val, on_val))


def _width(probe: Any) -> int:
    """How many features a probe was fitted on."""
    return len(probe.coef[0])


def _gathered(
    p: study.Classify, cohort: Cohort, found: dict[str, np.ndarray], notes: dict[str, str]
) -> dict[str, Any]:
    """Names, scores, calls, probabilities, truth, test, ranks and metrics from the arrays of ``Judge.judge`` (labels of
    the first cohort's order) and ``zeroshot.look``, whose labels nothing was fitted for: no call, no probability."""
    test = pd.concat([part[2] for part in cohort.parts])
    names = list(cohort.names)
    calls = np.where(np.isnan(found["margin"]), np.nan, found["margin"] >= 0).astype(np.float32)
    arrays = {"scores": found["scores"], "calls": calls, "probabilities": found["probabilities"]}
    arrays["truth"] = cohort.targets(test)
    if "shots" in found:
        blank = np.full(found["shots"].shape, np.nan, np.float32)
        more = {"scores": found["shots"], "calls": blank, "probabilities": blank}
        more["truth"] = cohort.targets(test, cohort.base)
        arrays = {k: np.concatenate([arrays[k], more[k]], axis=1) for k in arrays}
        names += [f"zero_shot:{name}" for name in cohort.base]
    patients = test["patient_id"].to_numpy()
    decided = {k: arrays[k] for k in ("calls", "probabilities")}
    metrics = score(p, names, arrays["scores"], arrays["truth"], patients, notes=notes, **decided)
    ranks = found.get("ranks")
    ranks = None if ranks is None or np.isnan(ranks).all() else ranks
    if ranks is not None:
        metrics += set_aside(zeroshot.recall(ranks, patients, resamples=p.resamples, seed=p.seed))
    return arrays | {"names": names, "test": test, "ranks": ranks, "metrics": metrics}


def score(
    p: study.Classify,
    names: list[str],
    scores: np.ndarray,
    truth: np.ndarray,
    patients: np.ndarray,
    *,
    calls: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    notes: dict[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Metrics of every task, each with its macro average; F1 and its like where ``calls`` and ``probabilities`` (N,L)
    are given, but for zero-shot labels, for which nothing was fitted. ``notes``: why a label has no value."""
    out = []
    for task, chosen in by_task(names).items():
        how: dict[str, Any] = {}
        if calls is not None and probabilities is not None and task != "zero_shot":
            how = {"predictions": calls[:, chosen], "probabilities": probabilities[:, chosen]}
        cells = (scores[:, chosen], truth[:, chosen], patients, [names[k] for k in chosen])
        rows = evaluate(*cells, notes=notes, resamples=p.resamples, seed=p.seed, **how)
        out += [{"task": task, **row} for row in rows]
    return out


def _curve(
    cohort: Cohort,
    truth: np.ndarray,
    patients: np.ndarray,
    few: list[dict[tuple[int, int], np.ndarray]],
) -> pd.DataFrame:
    """Label efficiency: macro AUROC by task, number of labelled patients (of a fold; all: the folds' mean) and seed,
    over the labels that are not too few among the test ``patients``."""
    rows, everyone = [], round(np.mean([part[0]["patient_id"].nunique() for part in cohort.parts]))
    why, unfitted = too_few(truth[:, : len(cohort.names)], patients), cohort.unfitted()
    left = [bool(note) or name in unfitted for name, note in zip(cohort.names, why, strict=True)]
    for count, seed in sorted(few[0], key=lambda key: (key[0] or everyone, key[1])):
        scores = np.concatenate([fold[count, seed] for fold in few])
        for task, which in by_task(cohort.names).items():
            kept = [k for k in which if not left[k]]
            if kept:
                value = float(known_mean(auroc(truth[:, kept], scores[:, kept])))
                rows.append(
                    {"task": task, "patients": count or everyone, "seed": seed, "auroc": value}
                )
    return pd.DataFrame(rows, columns=["task", "patients", "seed", "auroc"])


def score_table(result: dict[str, Any]) -> pd.DataFrame:
    """Per-image test scores, from which every metric can be recomputed: a row an image, float32.

    Columns: image_id, patient_id; of each label ``score:``, ``truth:``, and, where they were fitted, ``call:`` and
    ``probability:``; of retrieval ``rank:``.
    """
    columns = {
        "image_id": result["test"]["image_id"].to_numpy(),
        "patient_id": result["test"]["patient_id"].to_numpy(),
    }
    for k, name in enumerate(result["names"]):
        columns[f"score:{name}"] = result["scores"][:, k]
        columns[f"truth:{name}"] = result["truth"][:, k].astype(np.float32)
        if not name.startswith("zero_shot:"):
            columns[f"call:{name}"] = result["calls"][:, k]
            columns[f"probability:{name}"] = result["probabilities"][:, k]
    if result["ranks"] is not None:
        columns |= {
            f"rank:{name}": result["ranks"][:, j] for j, name in enumerate(zeroshot.DIRECTIONS)
        }
    return pd.DataFrame(columns)


def save_scores(result: dict[str, Any], path: Path) -> None:
    """Write ``score_table`` as Parquet."""
    score_table(result).to_parquet(path, index=False, compression="zstd")


def save(result: dict[str, Any], out: Path) -> list[str]:
    """Write a result's scores and tables into the folder of its run; the names of the files."""
    out.mkdir(parents=True, exist_ok=True)
    save_scores(result, out / "scores.parquet")
    for name, there in result["also"].items():
        save_scores(there, out / f"scores@{name}.parquet")
    tables = {name: result[name] for name in ("subgroups", "curve") if len(result[name])}
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    return [
        "scores.parquet",
        *(f"scores@{name}.parquet" for name in result["also"]),
        *(f"{n}.csv" for n in tables),
    ]
