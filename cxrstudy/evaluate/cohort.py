"""Who is labelled, who is tested, and on what: rows and columns of an evaluation, before any encoder is looked at."""

import re
import warnings
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data import synthetic
from cxrstudy.data.images import Prepared, open_prepared
from cxrstudy.data.manifest import label_array, label_names
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, LABELS
from cxrstudy.evaluate.classification import by_task, evaluate, task_of

LEAST = 10  # of either kind, in training and in test, for a task beyond findings and devices to be judged
AGES = (0, 40, 60, 80, 131)  # bands, in years
Part = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]  # training, validation, test rows


@dataclass(frozen=True)
class Cohort:
    """``parts``: rows of the manifest, a triple, or one a fold; ``names``: the labels judged; ``told``: ``facts``."""

    prepared: Prepared
    told: pd.DataFrame
    parts: list[Part]
    names: list[str]

    @property
    def base(self) -> list[str]:
        """The labels of the vocabulary among ``names``; they come first."""
        return [name for name in self.names if ":" not in name]

    def targets(self, table: pd.DataFrame, names: list[str] | None = None) -> np.ndarray:
        """(N,L) float32 in {0,1,NaN} of the rows of ``table``; NaN for what the data set does not tell."""
        columns = []
        for name in self.names if names is None else names:
            if ":" in name:
                told = self.told[name] if name in self.told else pd.Series(np.nan, self.told.index)
                columns.append(told.loc[table["row"]].to_numpy(np.float32))
            elif name in label_names(table) or f"truth:{name}" in table:
                columns.append(label_array(table, [name], truth=True)[:, 0])
            else:
                columns.append(np.full(len(table), np.nan, np.float32))
        return np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), np.float32)


def gather(p: study.Classify, prepared: Prepared) -> Cohort:
    """The cohort that ``p`` describes; ValueError naming the parameter that leaves nothing to judge."""
    told = facts(prepared, p.folds or [*p.train, *p.validation, *p.test])
    table = labelled_rows(prepared, p, told)
    base = p.labels or [name for name in label_names(table) if name in LABELS and _both(table, name)]
    label_array(table.iloc[:0], base, truth=True)  # a label that is not there is refused by its name
    cohort = Cohort(prepared, told, _parts(table, p, told), [n for n in base if task_of(n) in p.tasks])
    extra = [f"{prefix}:{n}" for prefix, of in (("malposition", DEVICES), ("right", FINDINGS)) for n in base if n in of]

    def enough(name: str) -> bool:
        found = [cohort.targets(part, [name]) for triple in cohort.parts for part in (triple[0], triple[2])]
        return all((values == kind).sum() >= LEAST for values in found for kind in (0, 1))

    cohort.names.extend(name for name in extra if task_of(name) in p.tasks and enough(name))
    if not cohort.names:
        raise ValueError(
            f"tasks: nothing of {p.tasks} can be probed on {p.data} with labels {p.labels or 'of any name'}"
        )
    return cohort


def elsewhere(p: study.Classify, folder: str, names: list[str]) -> Cohort:
    """Test rows of another data set, judged on ``names``, NaN where it does not know one: of its splits ``p.test``, or
    all of it where it has none of them."""
    prepared = open_prepared(study.resolve(folder))
    table = prepared.manifest.assign(row=np.arange(len(prepared.manifest)))
    test = table[table["split"].isin(p.test)] if "split" in table else table
    test = test if len(test) else table
    none = test.iloc[:0]
    if not set(names) & set(label_names(table)):
        raise ValueError(f"also: {folder} has none of the labels {', '.join(names)}")
    told = facts(prepared, sorted(set(test.get("split", []))))
    return Cohort(prepared, told, [(none, none, _cut(test, "also_within", p, told))], names)


# ---- what is known of a row ----------------------------------------------------------------------------------------
def facts(prepared: Prepared, splits: list[str]) -> pd.DataFrame:
    """What is known of each row of the manifest beside its labels, a row a row; NaN outside ``splits``.

    ``malposition:DEVICE`` (1, 0; NaN without the device), ``right:FINDING`` (1 right, 0 left; NaN where neither alone),
    ``scanner``, and ``exam``: the patient's exams in the order of their ids, from 0. The first three are the manifest's
    own columns ``malposition:``, ``side:`` and ``scanner``; for drawn images they are the institution's truth.
    """
    table = prepared.manifest
    told = {"exam": _exams(table)}
    told |= {c: table[c].to_numpy() for c in table.columns[table.columns.str.match("malposition:|scanner$")]}
    for name in [n for n in FINDINGS if f"side:{n}" in table]:
        told[f"right:{name}"] = table[f"side:{name}"].map({"right": 1.0, "left": 0.0}).to_numpy(float)
    drawn = table["path"].str.startswith("synthetic:").to_numpy()
    if drawn.any() and prepared.info.get("generator") != synthetic.FINGERPRINT:
        warnings.warn("drawn by another generator than today's: malposition and scanner are not known", stacklevel=2)
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
        batch = synthetic.describe(part[3].astype(int).to_numpy(), institution=institution, seed=int(seed))
        held = batch.labels[:, len(FINDINGS) :] == 1
        right = np.where(batch.side == "right", 1.0, np.where(batch.side == "left", 0.0, np.nan))
        told[part["place"]] = np.concatenate([np.where(held, batch.malpositioned, np.nan), right], axis=1)
        scanner[part["place"]] = batch.scanner
    return {name: told[:, k] for k, name in enumerate(names)} | {"scanner": scanner}


def _exams(table: pd.DataFrame) -> np.ndarray:
    """A patient's exams in the order of their ids, the numbers in them taken as numbers: 0, 1, ..."""
    study_id = table["study_id"]
    key = {name: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", name)] for name in study_id.unique()}
    place = study_id.map({name: k for k, name in enumerate(sorted(key, key=key.__getitem__))})
    return (place.groupby(table["patient_id"]).rank("dense").to_numpy() - 1).astype(int)


def labelled_rows(prepared: Prepared, p: study.Classify, told: pd.DataFrame | None = None) -> pd.DataFrame:
    """The manifest with its row numbers, cut to ``within``; ValueError naming the query that does not hold."""
    return _cut(prepared.manifest.assign(row=np.arange(len(prepared.manifest))), "within", p, told)


def _cut(table: pd.DataFrame, which: str, p: study.Classify, told: pd.DataFrame | None) -> pd.DataFrame:
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
        raise ValueError(f"{which}: no row of {p.also if which == 'also_within' else p.data} meets {query!r}")
    return table[table["row"].isin(kept)]


def _both(table: pd.DataFrame, name: str) -> bool:
    values = label_array(table, [name], truth=True)
    return bool((values == 1).any() and (values == 0).any())


def _parts(table: pd.DataFrame, p: study.Classify, told: pd.DataFrame | None = None) -> list[Part]:
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
        chosen = [table[table["split"].isin(splits)] for splits in triple]
        for splits, part in zip(triple, chosen, strict=True):
            if part.empty:
                raise ValueError(f"no labelled image in splits {splits}; the data has {sorted(set(table['split']))}")
        which = ("fit_within", "fit_within", "test_within")
        train, validation, test = (_cut(part, q, p, told) for part, q in zip(chosen, which, strict=True))
        parts.append((train, validation, test))
    return parts


# ---- parts of the test patients ------------------------------------------------------------------------------------
def subgroups(
    test: pd.DataFrame,
    told: pd.DataFrame,
    names: list[str],
    scores: np.ndarray,
    truth: np.ndarray,
    *,
    resamples: int,
    seed: int = 0,
) -> pd.DataFrame:
    """AUROC and AUPRC of findings and devices by view, sex, age band, scanner and time (a patient's first exam or a
    later one), where the data set tells them.

    Columns: by, group, and those of a metric row. A label with one class in a group has no row there.
    """
    known = told.loc[test["row"]]
    of = {"view": test.get("view"), "sex": test.get("sex"), "scanner": known.get("scanner")}
    of["exam"] = known["exam"].gt(0).map({False: "first", True: "later"}) if known["exam"].any() else None
    if "age" in test:
        bands = [f"{low}-{high - 1}" for low, high in pairwise(AGES)]
        of["age"] = pd.cut(pd.to_numeric(test["age"]), AGES, right=False, labels=bands)
    patients, rows = test["patient_id"].to_numpy(), []
    for by, column in of.items():
        values = np.array([] if column is None else column.astype(object).where(column.notna(), None))
        for group in sorted({v for v in values if v is not None}):
            here = values == group
            for task, which in by_task([name for name in names if ":" not in name]).items():
                cells = (scores[here][:, which], truth[here][:, which], patients[here], [names[k] for k in which])
                found = evaluate(*cells, resamples=resamples, seed=seed)
                rows += [
                    {"by": by, "group": group, "task": task, **row} for row in found if row["value"] == row["value"]
                ]
    return pd.DataFrame(
        rows, columns=["by", "group", "task", "label", "metric", "value", "low", "high", "n", "positives"]
    )
