"""Who is labelled, who is tested, and on what: rows and columns of an evaluation, before any encoder is looked at."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data import synthetic
from cxrstudy.data.images import Prepared, open_prepared
from cxrstudy.data.manifest import label_array, label_names
from cxrstudy.data.vocabulary import DEVICES, FINDINGS
from cxrstudy.evaluate.classification import by_task, evaluate, is_recorded, task_of
from cxrstudy.evaluate.small_samples import LEAST, LEAST_PATIENTS, TOO_FEW

NO_LABELS = "the data set records no labels: no probe can be fitted (in a data card, `labels` says where they are)"
NO_TEXT, NO_REPORTS = "the encoder has no text tower", "no test image has a report"
AGES = (0, 40, 60, 80, 131)  # bands, in years
Part = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]  # training, validation, test rows


@dataclass(frozen=True)
class Cohort:
    """``parts``: rows of the manifest, a triple, or one a fold; ``names``: the labels that are probed; ``told``:
    ``facts``; ``left``: labels that the data set knows and that cannot be probed, with the reason."""

    prepared: Prepared
    told: pd.DataFrame
    parts: list[Part]
    names: list[str]
    left: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> list[str]:
        """The recorded labels among ``names``; they come first."""
        return [name for name in self.names if is_recorded(name)]

    def targets(self, table: pd.DataFrame, names: list[str] | None = None) -> np.ndarray:
        """(N,L) float32 in {0,1,NaN} of the rows of ``table``; NaN for what the data set does not tell."""
        columns = []
        for name in self.names if names is None else names:
            if not is_recorded(name):
                told = self.told[name] if name in self.told else pd.Series(np.nan, self.told.index)
                columns.append(told.loc[table["row"]].to_numpy(np.float32))
            elif name in label_names(table) or f"truth:{name}" in table:
                columns.append(label_array(table, [name], truth=True)[:, 0])
            else:
                columns.append(np.full(len(table), np.nan, np.float32))
        return np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), np.float32)

    def counts(self, name: str) -> list[tuple[int, int]]:
        """(positives, negatives) of a label among training, validation and test images; in cross-fitting the fewest of
        any fold, but for test, which is all folds together."""
        found = np.array(
            [
                [[(self.targets(t, [name]) == kind).sum() for kind in (1, 0)] for t in triple]
                for triple in self.parts
            ]
        )
        fewest, every = found.min(axis=0), found.sum(axis=0)
        return [(int(a), int(b)) for a, b in (*fewest[:2], every[2])]

    def counted(self, name: str) -> str:
        """``counts`` in words."""
        parts = zip(("training", "validation", "test"), self.counts(name), strict=True)
        return f"{name} (images with it / without: {', '.join(f'{part} {a} / {b}' for part, (a, b) in parts)})"

    def unfitted(self) -> dict[str, str]:
        """The labels among ``names`` of which some training part is of one class, with the reason."""
        return {
            name: f"not fitted: {self.counted(name)}"
            for name in self.names
            if 0 in self.counts(name)[0]
        }


def needed() -> str:
    """What a label needs to be evaluated, in words."""
    return f"needed: {LEAST} test images of either class from {LEAST_PATIENTS} patients, and both classes in training"


def gather(p: study.Classify, prepared: Prepared) -> Cohort:
    """The cohort that ``p`` describes: without ``p.labels``, every label of the data set that has both classes.

    Data without any label, or none of ``p.tasks``, give a cohort without names: reports can still be retrieved.
    ValueError, which counts each label, where labels were expected and nothing at all is left to evaluate.
    """
    told = facts(prepared, p.folds or [*p.train, *p.validation, *p.test])
    table = labelled_rows(prepared, p, told)
    recorded = p.labels or label_names(table)
    label_array(
        table.iloc[:0], recorded, truth=True
    )  # a label that is not there is refused by its name
    if wrong := [name for name in recorded if not is_recorded(name) or name == "macro"]:
        raise ValueError(
            f"label {wrong[0]!r} has a name that results use for something else: rename it in the card"
        )
    base = [name for name in recorded if p.labels or _both(table, name)]
    cohort = Cohort(prepared, told, _parts(table, p), [n for n in base if task_of(n) in p.tasks])
    single = [name for name in recorded if name not in base and task_of(name) in p.tasks]
    cohort.left.update({name: f"{TOO_FEW}: {cohort.counted(name)}; {needed()}" for name in single})
    extra = [
        f"{prefix}:{n}"
        for prefix, of in (("malposition", DEVICES), ("right", FINDINGS))
        for n in base
        if n in of
    ]

    def enough(name: str) -> bool:
        found = [
            cohort.targets(part, [name])
            for triple in cohort.parts
            for part in (triple[0], triple[2])
        ]
        return all((values == kind).sum() >= LEAST for values in found for kind in (0, 1))

    for name in [name for name in extra if task_of(name) in p.tasks]:
        if enough(name):
            cohort.names.append(name)
        elif any(map(sum, cohort.counts(name))):
            cohort.left[name] = (
                f"{TOO_FEW}: {cohort.counted(name)}; needed: {LEAST} of either in training and in test"
            )
    retrieved = "retrieval" in p.tasks and any(_reports(part[2]).any() for part in cohort.parts)
    if recorded and not cohort.names and not retrieved:
        each = "; ".join(map(cohort.counted, recorded))
        raise ValueError(
            f"tasks: nothing of {p.tasks} can be evaluated on {p.data}: {each}; {needed()}"
        )
    return cohort


def _reports(table: pd.DataFrame) -> pd.Series:
    """Whether each row has a report."""
    if "report" not in table:
        return pd.Series(False, table.index)
    return table["report"].fillna("").str.strip() != ""


def elsewhere(p: study.Classify, folder: str, names: list[str]) -> Cohort:
    """Test rows of another data set, judged on ``names``, NaN where it does not know one: of its splits ``p.test``, or
    all of it where it has none of them. Without names where it knows none of them."""
    prepared = open_prepared(study.resolve(folder))
    table = prepared.manifest.assign(row=np.arange(len(prepared.manifest)))
    test = table[table["split"].isin(p.test)] if "split" in table else table
    test = test if len(test) else table
    none = test.iloc[:0]
    known = names if set(names) & set(label_names(table)) else []
    told = facts(prepared, sorted(set(test.get("split", []))))
    return Cohort(prepared, told, [(none, none, _cut(test, "also_within", p, told))], known)


def not_evaluated(
    p: study.Classify, cohort: Cohort, metrics: Sequence[dict[str, Any]], *, has_text: bool
) -> dict[str, str]:
    """Of each of ``p.tasks`` without a number among ``metrics``: why."""
    done = {row["task"] for row in metrics if row["value"] == row["value"]}
    asked = [*cohort.names, *cohort.left]
    every: dict[str, list[str]] = {
        task: [name for name in asked if task_of(name) == task] for task in p.tasks
    }
    every["zero_shot"], reasons = cohort.base, dict[str, str]()
    without = not cohort.names and (p.shuffle_labels or p.encoder.startswith("supervised:"))
    for task in [task for task in p.tasks if task not in done]:
        if without and not label_names(cohort.prepared.manifest):
            reasons[task] = NO_LABELS
        elif task == "retrieval" and not any(_reports(part[2]).any() for part in cohort.parts):
            reasons[task] = NO_REPORTS
        elif task in ("zero_shot", "retrieval") and not has_text:
            reasons[task] = NO_TEXT
        elif every[task]:
            reasons[task] = f"{TOO_FEW}: {'; '.join(map(cohort.counted, every[task]))}; {needed()}"
        elif not label_names(cohort.prepared.manifest):
            reasons[task] = NO_LABELS
        else:
            known = ", ".join(p.labels or label_names(cohort.prepared.manifest))
            reasons[task] = f"the data set tells nothing of it; its labels: {known}"
    return reasons


def left_rows(cohort: Cohort) -> list[dict[str, Any]]:
    """Metric rows without a value of the labels that are ``left``: how many test images there are, and why."""
    rows, test = [], pd.concat([part[2] for part in cohort.parts])
    for name, note in cohort.left.items():
        known = cohort.targets(test, [name])[:, 0]
        there = ~np.isnan(known)
        row = {"task": task_of(name), "label": name, "metric": "auroc"} | dict.fromkeys(
            ("value", "low", "high"), np.nan
        )
        row |= {"n": int(there.sum()), "positives": int(np.nansum(known))}
        rows.append(row | {"n_patients": test["patient_id"][there].nunique(), "note": note})
    return rows


# ---- what is known of a row ----------------------------------------------------------------------------------------
def facts(prepared: Prepared, splits: list[str]) -> pd.DataFrame:
    """What is known of each row of the manifest beside its labels, a row a row; NaN outside ``splits``.

    ``malposition:DEVICE`` (1, 0; NaN without the device), ``right:FINDING`` (1 right, 0 left; NaN where neither alone),
    ``scanner``, and ``exam``: the patient's exams in the order of their ids, from 0. The first three are the manifest's
    own columns ``malposition:``, ``side:`` and ``scanner``; for drawn images they are the institution's truth.
    """
    table = prepared.manifest
    told = {"exam": _exams(table)}
    told |= {
        c: table[c].to_numpy()
        for c in table.columns[table.columns.str.match("malposition:|scanner$")]
    }
    for name in [n for n in FINDINGS if f"side:{n}" in table]:
        told[f"right:{name}"] = (
            table[f"side:{name}"].map({"right": 1.0, "left": 0.0}).to_numpy(float)
        )
    drawn = table["path"].str.startswith("synthetic:").to_numpy()
    if drawn.any() and prepared.info.get("generator") != synthetic.VERSION:
        warnings.warn(
            "drawn by another version of the generator: malposition and scanner are not known",
            stacklevel=2,
        )
    elif drawn.any():
        drawn = drawn & (table["split"].isin(splits).to_numpy() if "split" in table else True)
        told |= _drawn_facts(table[drawn], np.flatnonzero(drawn), len(table)) if drawn.any() else {}
    return pd.DataFrame(told, index=np.arange(len(table)))


def _drawn_facts(table: pd.DataFrame, rows: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """``facts`` of drawn images, the ``rows`` of a manifest of n."""
    names = [*(f"malposition:{name}" for name in DEVICES), *(f"right:{name}" for name in FINDINGS)]
    told, scanner = np.full((n, len(names)), np.nan), np.full(n, None, dtype=object)
    parts = table["path"].str.split(":", expand=True).assign(place=rows)
    for (institution, seed), part in parts.groupby([1, 2]):
        batch = synthetic.describe(
            part[3].astype(int).to_numpy(), institution=institution, seed=int(seed)
        )
        held = batch.labels[:, len(FINDINGS) :] == 1
        right = np.where(batch.side == "right", 1.0, np.where(batch.side == "left", 0.0, np.nan))
        told[part["place"]] = np.concatenate(
            [np.where(held, batch.malpositioned, np.nan), right], axis=1
        )
        scanner[part["place"]] = batch.scanner
    return {name: told[:, k] for k, name in enumerate(names)} | {"scanner": scanner}


def _exams(table: pd.DataFrame) -> np.ndarray:
    """A patient's exams in the order of their ids, the numbers in them taken as numbers: 0, 1, ..."""
    study_id = table["study_id"]
    key = {
        name: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", name)]
        for name in study_id.unique()
    }
    place = study_id.map({name: k for k, name in enumerate(sorted(key, key=key.__getitem__))})
    return (place.groupby(table["patient_id"]).rank("dense").to_numpy() - 1).astype(int)


def labelled_rows(
    prepared: Prepared, p: study.Classify, told: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The manifest with its row numbers, cut to ``within``; ValueError naming the query that does not hold."""
    return _cut(prepared.manifest.assign(row=np.arange(len(prepared.manifest))), "within", p, told)


def _cut(
    table: pd.DataFrame, which: str, p: study.Classify, told: pd.DataFrame | None
) -> pd.DataFrame:
    """The rows that meet a query on the manifest's columns and on ``facts``'."""
    if not (query := getattr(p, which)):
        return table
    known = table.set_index("row")
    if told is not None:
        known = known.join(told.loc[known.index, told.columns.difference(known.columns)])
    try:
        kept = known.query(query).index
    except Exception as error:
        raise ValueError(f"{which}: {query!r} is no query of this manifest: {error}") from error
    if kept.empty:
        raise ValueError(
            f"{which}: no row of {p.also if which == 'also_within' else p.data} meets {query!r}"
        )
    return table[table["row"].isin(kept)]


def _both(table: pd.DataFrame, name: str) -> bool:
    values = label_array(table, [name], truth=True)
    return bool((values == 1).any() and (values == 0).any())


def _parts(table: pd.DataFrame, p: study.Classify) -> list[Part]:
    """(train, validation, test) rows: one triple, or one a fold (validation = the fold after the held one)."""
    if not p.folds:
        wanted = [(p.train, p.validation, p.test)]
    else:
        if p.fold_encoders and len(p.fold_encoders) != len(p.folds):
            raise ValueError(
                f"fold_encoders: {len(p.fold_encoders)} encoders for {len(p.folds)} folds"
            )
        after = p.folds[1:] + p.folds[:1]
        wanted = [
            ([f for f in p.folds if f not in (held, next_)], [next_], [held])
            for held, next_ in zip(p.folds, after, strict=True)
        ]
    parts = []
    for triple in wanted:
        chosen = [table[table["split"].isin(splits)] for splits in triple]
        for splits, part in zip(triple, chosen, strict=True):
            if part.empty:
                raise ValueError(
                    f"no labelled image in splits {splits}; the data has {sorted(set(table['split']))}"
                )
        parts.append((chosen[0], chosen[1], chosen[2]))
    return parts


# ---- parts of the test patients ------------------------------------------------------------------------------------
def subgroups(
    test: pd.DataFrame,
    told: pd.DataFrame,
    names: list[str],
    scores: np.ndarray,
    truth: np.ndarray,
    *,
    notes: dict[str, str] | None = None,
    resamples: int,
    seed: int = 0,
) -> pd.DataFrame:
    """AUROC and AUPRC of findings and devices by view, sex, age band, scanner and time (a patient's first exam or a
    later one), where the data set tells them.

    Columns: by, group, and those of a metric row; a label that is too few in a group has a row without a value there.
    """
    known = told.loc[test["row"]]
    of = {"view": test.get("view"), "sex": test.get("sex"), "scanner": known.get("scanner")}
    of["exam"] = (
        known["exam"].gt(0).map({False: "first", True: "later"}) if known["exam"].any() else None
    )
    if "age" in test:
        bands = [f"{low}-{high - 1}" for low, high in pairwise(AGES)]
        of["age"] = pd.cut(pd.to_numeric(test["age"]), AGES, right=False, labels=bands)
    patients, rows = test["patient_id"].to_numpy(), []
    for by, column in of.items():
        values = np.array(
            [] if column is None else column.astype(object).where(column.notna(), None)
        )
        for group in sorted({v for v in values if v is not None}):
            here = values == group
            for task, which in by_task([name for name in names if is_recorded(name)]).items():
                cells = (
                    scores[here][:, which],
                    truth[here][:, which],
                    patients[here],
                    [names[k] for k in which],
                )
                found = evaluate(*cells, notes=notes, resamples=resamples, seed=seed)
                rows += [
                    {"by": by, "group": group, "task": task, **row} for row in found if row["n"]
                ]
    columns = [
        "by",
        "group",
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
    ]
    return pd.DataFrame(rows, columns=columns).astype({"note": object})
