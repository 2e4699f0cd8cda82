"""Select the rows and the labels of an evaluation, before any encoder runs."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data import synthetic
from cxrstudy.data.images import Prepared, open_prepared
from cxrstudy.data.manifest import label_array, label_names, nested_subset
from cxrstudy.data.vocabulary import DEVICES, FINDINGS
from cxrstudy.evaluate.classification import is_recorded, task_of
from cxrstudy.evaluate.small_samples import LEAST, LEAST_PATIENTS, TOO_FEW

NO_LABELS = (
    "the data set records no labels: no probe can be fitted "
    "(in a data card, `labels` says where they are)"
)
NO_TEXT, NO_REPORTS = "the encoder has no text tower", "no test image has a report"
NO_FACTORS = "neither age, sex nor view is known of enough images"


# ---- rows ----------------------------------------------------------------------------------------
class Split(NamedTuple):
    """Rows of a manifest, with their row numbers in a column ``row``."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame


def select_rows(
    prepared: Prepared,
    query: str = "",
    *,
    parameter: str = "within",
    source: str = "",
    metadata: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the manifest with its row numbers (column ``row``), cut to the rows that meet a query.

    Args:
        query: Pandas query on the columns of the manifest and of `row_metadata`; empty = all rows.
        parameter: Name of the parameter that holds the query, for messages.
        source: Name of the data, for messages.
        metadata: `row_metadata` of this data set.

    Raises:
        ValueError: The query is not valid, or no row meets it.
    """
    table = prepared.manifest.assign(row=np.arange(len(prepared.manifest)))
    return _query(table, query, parameter, source, metadata)


def _query(
    table: pd.DataFrame, query: str, parameter: str, source: str, metadata: pd.DataFrame | None
) -> pd.DataFrame:
    if not query:
        return table
    columns = table.set_index("row")
    if metadata is not None:
        more = metadata.columns.difference(columns.columns)
        columns = columns.join(metadata.loc[columns.index, more])
    try:
        rows = columns.query(query).index
    except Exception as error:
        message = f"{parameter}: {query!r} is not a valid query of this manifest: {error}"
        raise ValueError(message) from error
    if rows.empty:
        raise ValueError(f"{parameter}: no row of {source} meets {query!r}")
    return table[table["row"].isin(rows)]


def split_rows(
    table: pd.DataFrame, splits: Sequence[list[str]], what: str = "labelled image"
) -> Split:
    """Return the rows of the splits named for training, validation and test.

    Raises:
        ValueError: A part has no row. The message names its splits and those that the data has.
    """
    parts = [table[table["split"].isin(names)] for names in splits]
    for names, part in zip(splits, parts, strict=True):
        if part.empty:
            present = sorted(set(table["split"]))
            raise ValueError(f"no {what} in splits {names}; the data has {present}")
    return Split(*parts)


def cap_split(split: Split, limits: Sequence[int], seed: int) -> Split:
    """Return nested subsets of whole patients, of at most so many images a part (0 = all)."""
    return Split(
        *(
            nested_subset(part, min(limit or len(part), len(part)), seed=seed)
            for part, limit in zip(split, limits, strict=True)
        )
    )


def _fold_splits(p: study.Classify) -> list[tuple[list[str], list[str], list[str]]]:
    """Return the splits for training, validation and test, once or once a fold.

    In cross-fitting, the fold after the held-out one is used for validation.
    """
    if not p.folds:
        return [(p.train, p.validation, p.test)]
    if p.fold_encoders and len(p.fold_encoders) != len(p.folds):
        raise ValueError(f"fold_encoders: {len(p.fold_encoders)} encoders for {len(p.folds)} folds")
    following = p.folds[1:] + p.folds[:1]
    return [
        ([fold for fold in p.folds if fold not in (test, validation)], [validation], [test])
        for test, validation in zip(p.folds, following, strict=True)
    ]


# ---- labels --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cohort:
    """The rows and labels of an evaluation.

    Attributes:
        prepared: The data set.
        metadata: `row_metadata` of its rows.
        parts: One split of the patients, or one a fold.
        names: Labels that are probed; those that the data set records come first.
        excluded: Reason by label why a label that the data set has cannot be probed.
    """

    prepared: Prepared
    metadata: pd.DataFrame
    parts: list[Split]
    names: list[str]
    excluded: dict[str, str] = field(default_factory=dict)

    @property
    def recorded(self) -> list[str]:
        """Return the labels among ``names`` that the data set records itself."""
        return [name for name in self.names if is_recorded(name)]

    @property
    def test(self) -> pd.DataFrame:
        """Return the test rows of all folds."""
        return pd.concat([part.test for part in self.parts])

    def targets(self, table: pd.DataFrame, names: list[str] | None = None) -> np.ndarray:
        """Return labels (N,L) float32 in {0, 1, NaN} of the rows of ``table``; NaN = unknown."""
        columns = []
        for name in self.names if names is None else names:
            if not is_recorded(name) and name in self.metadata:
                columns.append(self.metadata[name].loc[table["row"]].to_numpy(np.float32))
            elif is_recorded(name) and (name in label_names(table) or f"truth:{name}" in table):
                columns.append(label_array(table, [name], truth=True)[:, 0])
            else:
                columns.append(np.full(len(table), np.nan, np.float32))
        return np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), np.float32)

    def counts(self, name: str) -> list[tuple[int, int]]:
        """Return (positives, negatives) of a label among training, validation and test images.

        In cross-fitting, training and validation counts are the smallest of any fold, and test
        counts are those of all folds.
        """
        found = np.array(
            [
                [[(self.targets(t, [name]) == value).sum() for value in (1, 0)] for t in part]
                for part in self.parts
            ]
        )  # (folds, 3, 2)
        smallest, total = found.min(axis=0), found.sum(axis=0)
        return [(int(a), int(b)) for a, b in (*smallest[:2], total[2])]

    def describe_counts(self, name: str) -> str:
        """Return `counts` in words."""
        parts = zip(("training", "validation", "test"), self.counts(name), strict=True)
        counts = ", ".join(f"{part} {a} / {b}" for part, (a, b) in parts)
        return f"{name} (images with it / without: {counts})"

    def not_fitted(self) -> dict[str, str]:
        """Return the labels of which some training part has one class only, with the reason."""
        return {
            name: f"not fitted: {self.describe_counts(name)}"
            for name in self.names
            if 0 in self.counts(name)[0]
        }


def needed() -> str:
    """Return in words what a label needs to be evaluated."""
    return (
        f"needed: {LEAST} test images of either class from {LEAST_PATIENTS} patients, "
        "and both classes in training"
    )


def build_cohort(p: study.Classify, prepared: Prepared) -> Cohort:
    """Return the cohort that ``p`` describes.

    Without ``p.labels``, every label of the data set that has both classes is probed. Data without
    any label, or with none of ``p.tasks``, give a cohort without names: reports can still be
    retrieved.

    Raises:
        ValueError: Labels were expected and nothing can be evaluated. The message counts each
            label.
    """
    metadata = row_metadata(prepared, p.folds or [*p.train, *p.validation, *p.test])
    table = select_rows(prepared, p.within, source=p.data, metadata=metadata)
    names = p.labels or label_names(table)
    label_array(table.iloc[:0], names, truth=True)  # refuses an unknown label by its name
    if wrong := [name for name in names if not is_recorded(name) or name == "macro"]:
        raise ValueError(
            f"label {wrong[0]!r} has a name that results use for something else: "
            "rename it in the card"
        )
    usable = [name for name in names if p.labels or _has_both_classes(table, name)]
    parts = [split_rows(table, splits) for splits in _fold_splits(p)]
    cohort = Cohort(prepared, metadata, parts, [n for n in usable if task_of(n) in p.tasks])
    for name in names:
        if name not in usable and task_of(name) in p.tasks:
            cohort.excluded[name] = f"{TOO_FEW}: {cohort.describe_counts(name)}; {needed()}"
    _add_derived_labels(p, cohort, usable)
    retrieved = "retrieval" in p.tasks and any(_has_report(part.test).any() for part in parts)
    if names and not cohort.names and not retrieved:
        counts = "; ".join(map(cohort.describe_counts, names))
        raise ValueError(
            f"tasks: nothing of {p.tasks} can be evaluated on {p.data}: {counts}; {needed()}"
        )
    return cohort


def _has_both_classes(table: pd.DataFrame, name: str) -> bool:
    values = label_array(table, [name], truth=True)
    return bool((values == 1).any() and (values == 0).any())


def _add_derived_labels(p: study.Classify, cohort: Cohort, recorded: list[str]) -> None:
    """Add malposition of devices and side of findings, or exclude them with a reason."""
    derived = [
        *(f"malposition:{name}" for name in recorded if name in DEVICES),
        *(f"right:{name}" for name in recorded if name in FINDINGS),
    ]
    for name in [name for name in derived if task_of(name) in p.tasks]:
        tables = [table for part in cohort.parts for table in (part.train, part.test)]
        values = [cohort.targets(table, [name]) for table in tables]
        if all((v == value).sum() >= LEAST for v in values for value in (0, 1)):
            cohort.names.append(name)
        elif any(map(sum, cohort.counts(name))):
            cohort.excluded[name] = (
                f"{TOO_FEW}: {cohort.describe_counts(name)}; "
                f"needed: {LEAST} of either in training and in test"
            )


def _has_report(table: pd.DataFrame) -> pd.Series:
    if "report" not in table:
        return pd.Series(False, table.index)
    return table["report"].fillna("").str.strip() != ""


def external_cohort(p: study.Classify, folder: str, names: list[str]) -> Cohort:
    """Return the test rows of another data set, to be evaluated on ``names``.

    These are the rows of its splits ``p.test``, or all rows if it has none of them. The cohort has
    no names if the data set records none of them.
    """
    prepared = open_prepared(study.resolve(folder))
    table = select_rows(prepared)
    test = table[table["split"].isin(p.test)] if "split" in table else table
    test = test if len(test) else table
    metadata = row_metadata(prepared, sorted(set(test.get("split", []))))
    source = str(p.also)
    split = Split(
        test.iloc[:0], test.iloc[:0], _query(test, p.also_within, "also_within", source, metadata)
    )
    known = names if set(names) & set(label_names(table)) else []
    return Cohort(prepared, metadata, [split], known)


# ---- what was not evaluated ----------------------------------------------------------------------
def not_evaluated(
    p: study.Classify, cohort: Cohort, metrics: Sequence[dict[str, Any]], *, has_text: bool
) -> dict[str, str]:
    """Return the reason for each of ``p.tasks`` that has no value among ``metrics``."""
    done = {row["task"] for row in metrics if row["value"] == row["value"]}
    labels = {
        task: [name for name in [*cohort.names, *cohort.excluded] if task_of(name) == task]
        for task in p.tasks
    } | {"zero_shot": cohort.recorded}
    recorded, reasons = label_names(cohort.prepared.manifest), dict[str, str]()
    needs_labels = p.shuffle_labels or p.encoder.startswith("supervised:")
    for task in [task for task in p.tasks if task not in done]:
        if not recorded and not cohort.names and needs_labels:
            reasons[task] = NO_LABELS
        elif task == "nuisance":
            reasons[task] = "with cross-fitting it is not evaluated" if p.folds else NO_FACTORS
        elif task == "retrieval" and not any(_has_report(part.test).any() for part in cohort.parts):
            reasons[task] = NO_REPORTS
        elif task in ("zero_shot", "retrieval") and not has_text:
            reasons[task] = NO_TEXT
        elif labels[task]:
            counts = "; ".join(map(cohort.describe_counts, labels[task]))
            reasons[task] = f"{TOO_FEW}: {counts}; {needed()}"
        elif not recorded:
            reasons[task] = NO_LABELS
        else:
            names = ", ".join(p.labels or recorded)
            reasons[task] = f"the data set has no labels for it; its labels: {names}"
    return reasons


def excluded_rows(cohort: Cohort) -> list[dict[str, Any]]:
    """Return metric rows without a value for the excluded labels: counts, and the reason."""
    rows, test = [], cohort.test
    for name, note in cohort.excluded.items():
        label = cohort.targets(test, [name])[:, 0]
        known = ~np.isnan(label)
        row: dict[str, Any] = {"task": task_of(name), "label": name, "metric": "auroc"}
        row |= dict.fromkeys(("value", "low", "high"), np.nan)
        row |= {"n": int(known.sum()), "positives": int(np.nansum(label))}
        rows.append(row | {"n_patients": test["patient_id"][known].nunique(), "note": note})
    return rows


# ---- metadata ------------------------------------------------------------------------------------
def row_metadata(prepared: Prepared, splits: list[str]) -> pd.DataFrame:
    """Return what is known of each image beside its labels, a row an image; NaN outside ``splits``.

    Columns: ``malposition:DEVICE`` (1 or 0; NaN without the device), ``right:FINDING`` (1 right, 0
    left; NaN where neither alone), ``scanner``, and ``exam``: the index of the patient's exam in
    the order of exam ids, from 0. The first three come from the manifest's columns
    ``malposition:``, ``side:`` and ``scanner``. For synthetic images they are the truth of the
    generator.
    """
    table = prepared.manifest
    columns = {"exam": _exam_index(table)}
    own = table.columns[table.columns.str.match("malposition:|scanner$")]
    columns |= {name: table[name].to_numpy() for name in own}
    for name in [name for name in FINDINGS if f"side:{name}" in table]:
        side = table[f"side:{name}"].map({"right": 1.0, "left": 0.0})
        columns[f"right:{name}"] = side.to_numpy(float)
    drawn = table["path"].str.startswith("synthetic:").to_numpy()
    if drawn.any() and prepared.info.get("generator") != synthetic.VERSION:
        warnings.warn(
            "drawn by another version of the generator: malposition and scanner are not known",
            stacklevel=2,
        )
    elif drawn.any():
        drawn = drawn & (table["split"].isin(splits).to_numpy() if "split" in table else True)
        if drawn.any():
            columns |= _synthetic_metadata(table[drawn], np.flatnonzero(drawn), len(table))
    return pd.DataFrame(columns, index=np.arange(len(table)))


def _synthetic_metadata(table: pd.DataFrame, rows: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Return `row_metadata` of the synthetic images ``table``, the ``rows`` of a manifest of n."""
    names = [*(f"malposition:{name}" for name in DEVICES), *(f"right:{name}" for name in FINDINGS)]
    values, scanner = np.full((n, len(names)), np.nan), np.full(n, None, dtype=object)
    parts = table["path"].str.split(":", expand=True).assign(place=rows)
    for (institution, seed), part in parts.groupby([1, 2]):
        index = part[3].astype(int).to_numpy()
        batch = synthetic.describe(index, institution=institution, seed=int(seed))
        has_device = batch.labels[:, len(FINDINGS) :] == 1
        malposition = np.where(has_device, batch.malpositioned, np.nan)
        right = np.where(batch.side == "right", 1.0, np.where(batch.side == "left", 0.0, np.nan))
        values[part["place"]] = np.concatenate([malposition, right], axis=1)
        scanner[part["place"]] = batch.scanner
    return {name: values[:, k] for k, name in enumerate(names)} | {"scanner": scanner}


def _exam_index(table: pd.DataFrame) -> np.ndarray:
    """Return the index of each row's exam among its patient's, in the natural order of exam ids."""
    study_id = table["study_id"]
    key = {
        name: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", name)]
        for name in study_id.unique()
    }
    order = {name: k for k, name in enumerate(sorted(key, key=key.__getitem__))}
    rank = study_id.map(order).groupby(table["patient_id"]).rank("dense")
    return (rank.to_numpy() - 1).astype(int)
