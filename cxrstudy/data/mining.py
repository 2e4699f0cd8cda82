"""Mine labels from reports: the status of each name in each report, and counts for the record."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from cxrstudy.data.language import language, not_english
from cxrstudy.data.reports import NAMES, extract_labels

STATUSES = ("not mentioned", "absent", "uncertain", "present")  # a status is its index here
NOT_READ = -1  # no report, or not in English
CHUNK = 2000  # reports a process reads at a time


def read_statuses(reports: pd.Series, names: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return the status (index in ``STATUSES``) of each of our names in each report, as int8.

    A row is ``NOT_READ`` if it has no report, or one that is not in English.

    Args:
        reports: text or missing; each distinct text is read once.
        names: our name -> names of the vocabulary; of several, the last status of ``STATUSES``.
    """
    texts = reports.where(reports.map(lambda text: isinstance(text, str) and bool(text.strip())))
    row, unique = pd.factorize(texts)  # -1 is missing, the last row below
    starts = range(0, len(unique), CHUNK)
    jobs = -1 if len(starts) > 2 else 1  # processes take a second to start
    parts = Parallel(n_jobs=jobs)(delayed(_read)(list(unique[k : k + CHUNK])) for k in starts)
    none = np.full((1, len(NAMES)), NOT_READ, dtype=np.int8)
    found = np.concatenate([*parts, none])[row]
    places = {ours: [NAMES.index(name) for name in group] for ours, group in names.items()}
    columns = {ours: found[:, place].max(axis=1) for ours, place in places.items()}
    return pd.DataFrame(columns, index=reports.index)


def _read(texts: list[str]) -> np.ndarray:
    """Return the status of every name of the vocabulary in each text (T, NAMES)."""
    found = np.zeros((len(texts), len(NAMES)), dtype=np.int8)
    for row, text in zip(found, texts, strict=True):
        labels = extract_labels(text)
        for name, status in labels.items():
            row[NAMES.index(name)] = STATUSES.index(status)
        if not labels and language(text) != "English":
            row[:] = NOT_READ
    return found


def mine_labels(
    reports: pd.Series,
    studies: pd.Series,
    names: Mapping[str, Sequence[str]],
    *,
    uncertain: str = "unknown",
    missing: str = "unknown",
) -> tuple[dict[str, pd.Series], dict[str, Any]]:
    """Return ``label:OURS`` for each row, mined from its report, and what was mined.

    Args:
        reports: text or missing.
        studies: a report of a study that has several images is counted once.
        names: our name -> names of the vocabulary.
        uncertain: what an uncertain mention means: unknown, present or absent.
        missing: what a label means that a report does not mention: unknown or absent.

    Returns:
        Columns in {0, 1, missing}, and a record: ``by``, ``reports``, ``with_label``,
        ``not_english`` (language -> reports), ``uncertain``, ``missing``, ``counts`` (label ->
        status -> reports).
    """
    codes = read_statuses(reports, names)
    means = {"unknown": np.nan, "absent": 0.0, "present": 1.0}
    values = np.array([means[missing], 0.0, means[uncertain], 1.0, np.nan])  # NOT_READ is last
    columns = {f"label:{name}": pd.Series(values[codes[name]], reports.index) for name in codes}
    once = ~pd.DataFrame({"study": studies, "report": reports}).duplicated()
    read, texts = codes[once & (codes != NOT_READ).all(axis=1)], reports[once].dropna()
    record = {
        "by": f"cxrstudy {version('cxrstudy')}",
        "reports": int((texts.str.strip() != "").sum()),
        "with_label": int((read > 0).any(axis=1).sum()),
        "not_english": not_english(texts[(codes.loc[texts.index] == NOT_READ).all(axis=1)]),
        "uncertain": uncertain,
        "missing": missing,
        "counts": {
            name: {word: int((read[name] == k).sum()) for k, word in enumerate(STATUSES) if k}
            for name in read
        },
    }
    return columns, record


def in_words(record: Mapping[str, Any]) -> str:
    """Return a record of ``mine_labels`` as sentences for a page or a warning."""
    others = record["not_english"]
    said = (
        f"Labels mined from reports by {record['by']}: {record['reports']:,} reports, "
        f"{record['with_label']:,} with any label."
    )
    if others:
        most = ", ".join(f"{name} {count:,}" for name, count in others.items())
        said += (
            f" {sum(others.values()):,} reports are not in English ({most}): only English is "
            "read, so they give no labels."
        )
    return said
