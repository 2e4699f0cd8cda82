"""Manifests: the one table, a row an image, that every data set becomes; splits and nested subsets.

Columns: image_id, patient_id, study_id, path (strings; image_id unique); view, sex (strings or
missing); age (years); report (string or missing); pixel_spacing (mm); official_split (our names of
the data set's own split, joined by ``+``); split (by ``assign_splits``).

Columns a name of the vocabulary: ``label:NAME`` (as recorded: 1, 0 or missing = unknown),
``truth:NAME`` (the truth, if known, as of the synthetic institution), ``side:NAME`` (right, left,
bilateral or empty), ``malposition:NAME`` (1: a device's tip is malpositioned), ``mask:NAME`` (a
device's mask: its path, or a reference of ``shapes``, a line each; or empty).
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.data.vocabulary import LABELS, VIEWS
from cxrstudy.files import replacing

REQUIRED = ("image_id", "patient_id", "study_id", "path")
ALLOWED = {"view": VIEWS, "sex": ("F", "M")}
SIDES = ("right", "left", "bilateral", "")


class ManifestError(ValueError):
    """A manifest breaks its contract; the message names file, row and column."""


def validate(
    manifest: pd.DataFrame, where: str = "manifest", place: Callable[[int], str] | None = None
) -> pd.DataFrame:
    """Return ``manifest`` itself if it is valid.

    Args:
        manifest: to be checked.
        where: its name in messages.
        place: names a row by the file and line that it came from; else rows count from 0.

    Raises:
        ManifestError: naming row and column.
    """

    def refuse(bad: Any, column: str, why: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            at = place(row) if place else f"{where}, row {row}"
            raise ManifestError(
                f"{at}, column {column!r}: {manifest[column].iloc[row]!r} {why} "
                f"({int(bad.sum())} such rows)"
            )

    for column in REQUIRED:
        if column not in manifest:
            raise ManifestError(
                f"{where}: column {column!r} is missing; a manifest needs {', '.join(REQUIRED)}"
            )
    if manifest.empty:
        raise ManifestError(f"{where}: holds no rows")
    for column in REQUIRED:
        cells = manifest[column]
        if pd.api.types.is_string_dtype(cells) and not pd.api.types.is_object_dtype(cells):
            text = cells.notna() & (cells != "")
        else:
            text = cells.map(lambda value: isinstance(value, str) and value != "")
        refuse(~text, column, "is not a non-empty string")
    if not all_different(manifest["image_id"]):
        twice = manifest["image_id"].duplicated()
        refuse(twice, "image_id", "appears a second time; image ids must be unique")
    for column in manifest:
        cells = manifest[column]
        if column in ALLOWED:
            allowed = ALLOWED[column]
            refuse(cells.notna() & ~cells.isin(allowed), column, f"is not one of {allowed}")
        elif column == "age":
            years = pd.to_numeric(cells, errors="coerce")
            refuse(cells.notna() & ~years.between(0, 130), column, "is not an age in years")
        elif column.startswith(("label:", "truth:", "malposition:")):
            refuse(cells.notna() & ~cells.isin([0, 1]), column, "is not 0, 1 or missing")
        elif column.startswith("side:"):
            wrong = cells.notna() & ~cells.isin(SIDES)
            refuse(wrong, column, "is not right, left, bilateral or empty")
    return manifest


def all_different(ids: pd.Series) -> bool:
    """Return whether no text comes twice, in a fifth of the memory that ``duplicated`` takes."""
    parts = (ids.iloc[start : start + 100_000] for start in range(0, len(ids), 100_000))
    hashes = [pd.util.hash_array(part.to_numpy(object), categorize=False) for part in parts]
    distinct = len(np.unique(np.concatenate(hashes))) == len(ids)
    return distinct or not ids.duplicated().any()


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Read and validate a manifest (Parquet); ManifestError names a file that cannot be read."""
    try:
        return validate(pd.read_parquet(path), str(path))
    except ManifestError:
        raise
    except Exception as error:  # text that is not UTF-8 is found only when it is looked at
        raise ManifestError(f"{path}: not a readable Parquet table: {error}") from error


def write_manifest(manifest: pd.DataFrame, path: str | Path) -> None:
    """Validate and write a manifest atomically."""
    with replacing(path) as scratch:
        validate(manifest, str(path)).to_parquet(scratch, index=False)


def unit_hash(values: pd.Series, key: str) -> np.ndarray:
    """Return a number in [0, 1) for each value that depends only on (key, value)."""
    codes, unique = pd.factorize(values.astype(str))
    salt = hashlib.blake2b(key.encode(), digest_size=32).digest()
    digests = [hashlib.blake2b(name.encode(), digest_size=8, key=salt).digest() for name in unique]
    numbers = np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64) >> np.uint64(11)
    return (numbers.astype(np.float64) * 2.0**-53)[codes]


def assign_splits(
    manifest: pd.DataFrame, *, fractions: dict[str, float], seed: int = 0
) -> pd.DataFrame:
    """Return a copy with column ``split``; each patient is in one split.

    A patient's split is a keyed hash of the patient id. It depends only on (patient id, fractions,
    seed), so it stays when images or patients are added. A column ``official_split`` is respected:
    it names each image's split, or several (``pretrain+train``), which then share the patients by
    their fractions.

    Args:
        manifest: images.
        fractions: split -> its share of patients. Their order does not matter, because a plan
            sorts its parameters and a notebook does not.
        seed: of the hash.

    Raises:
        ValueError: fractions are negative or do not sum to 1.
        ManifestError: a patient is in two official splits, or one has no share of the fractions.
    """
    fractions = dict(sorted(fractions.items()))
    shares = np.array(list(fractions.values()), dtype=float)
    sums_to_one = np.isclose(shares.sum(), 1.0, rtol=0, atol=1e-9)
    if not len(shares) or (shares < 0).any() or not sums_to_one:
        raise ValueError(
            f"fractions must be at least 0 and sum to 1, not {fractions}, which sum to "
            f"{shares.sum():g}"
        )
    position = unit_hash(manifest["patient_id"], f"split:{seed}")
    if "official_split" in manifest:
        return manifest.assign(split=_official(manifest, fractions, position))
    index = np.searchsorted(np.cumsum(shares)[:-1], position, side="right")
    return manifest.assign(split=np.array(list(fractions), dtype=object)[index])


def _official(
    manifest: pd.DataFrame, fractions: dict[str, float], position: np.ndarray
) -> np.ndarray:
    """Return the split of each image within its official split."""
    pairs = manifest[["patient_id", "official_split"]].drop_duplicates()
    twice = pairs[pairs["patient_id"].duplicated(keep=False)]
    if len(twice):
        said = [
            f"{patient!r} ({', '.join(sorted(own['official_split']))})"
            for patient, own in twice.groupby("patient_id", sort=False)
        ]
        raise ManifestError(
            f"{len(said)} patients are in several official splits: {', '.join(said[:5])}. Correct "
            "the table, leave them out by `query`, or write why the split is not used: `override` "
            "under table.split of the card"
        )
    split = np.full(len(manifest), "", dtype=object)
    for official in pairs["official_split"].unique():
        names = [name for name in sorted(official.split("+")) if fractions.get(name, 0) > 0]
        if not names:
            given = ", ".join(f"{name} {share:g}" for name, share in fractions.items())
            raise ManifestError(
                f"the official split {official!r} has no share in fractions ({given}): give it one "
                "in `data` of the preset, or write `override` under table.split of the card"
            )
        own = (manifest["official_split"] == official).to_numpy()
        shares = np.cumsum([fractions[name] for name in names])
        index = np.searchsorted(shares[:-1] / shares[-1], position[own], side="right")
        split[own] = np.array(names, dtype=object)[index]
    return split


def nested_subset(manifest: pd.DataFrame, n_images: int, *, seed: int = 0) -> pd.DataFrame:
    """Return the first ``n_images`` rows in the order of a seeded hash of their patient.

    Subsets of one manifest and seed are strictly nested (arXiv 2509.12818) and exactly
    ``n_images`` long. All images of a patient are together; only the last patient may be cut.

    Raises:
        ValueError: there are fewer images.
    """
    if not 0 < n_images <= len(manifest):
        raise ValueError(
            f"n_images is {n_images}, but there are {len(manifest)} images to choose from: give 1 "
            f"to {len(manifest)}, or n_images: 0 in a preset's `data` for all"
        )
    patient = unit_hash(manifest["patient_id"], f"subset:{seed}")
    rows = np.flatnonzero(patient <= np.partition(patient, n_images - 1)[n_images - 1])
    ids = (manifest[name].iloc[rows].to_numpy(str) for name in ("image_id", "patient_id"))
    order = np.lexsort((*ids, patient[rows]))[:n_images]
    return manifest.iloc[rows[order]].reset_index(drop=True)


def label_names(manifest: pd.DataFrame, prefix: str = "label") -> list[str]:
    """Return names with a column ``prefix:NAME``: the vocabulary's in its order, then others."""
    names = [name.split(":", 1)[1] for name in manifest.columns if name.startswith(f"{prefix}:")]
    return sorted(names, key=lambda n: LABELS.index(n) if n in LABELS else len(LABELS))


def label_array(manifest: pd.DataFrame, names: Sequence[str], *, truth: bool = False) -> np.ndarray:
    """Return labels as float32 (N, len(names)) in {0, 1, NaN}.

    Args:
        manifest: N images.
        names: labels, in the order of the columns.
        truth: prefer ``truth:NAME`` to ``label:NAME`` if the data set has it.

    Raises:
        ManifestError: a label has no column.
    """
    columns = []
    for name in names:
        column = f"truth:{name}" if truth and f"truth:{name}" in manifest else f"label:{name}"
        if column not in manifest:
            known = ", ".join(label_names(manifest)) or "none (its card has no `labels`)"
            raise ManifestError(f"no label {name!r}; this data set has {known}")
        columns.append(pd.to_numeric(manifest[column]).to_numpy(np.float32, na_value=np.nan))
    return np.stack(columns, axis=1) if columns else np.zeros((len(manifest), 0), np.float32)


def has_report(manifest: pd.DataFrame) -> np.ndarray:
    """Return (N,) bool: which images have a report that is not blank."""
    if "report" not in manifest:
        return np.zeros(len(manifest), bool)
    return manifest["report"].fillna("").str.strip().ne("").to_numpy(bool)


def has_prompt(labels: np.ndarray) -> np.ndarray:
    """Return (N,) bool: for which rows of labels (N, L) in {0, 1, NaN} a prompt can be written.

    A label is present, or all are known to be absent.
    """
    return (labels == 1).any(1) | ((labels == 0).all(1) & (labels.shape[1] > 0))


def usable(manifest: pd.DataFrame, paradigm: str) -> np.ndarray:
    """Return (N,) bool: which images a paradigm can be trained on.

    ``dinov2`` takes all, ``clip`` and ``clip+labels`` those with a report, ``unicl`` those with a
    report or with labels that give a prompt.
    """
    if paradigm == "dinov2":
        return np.ones(len(manifest), bool)
    if paradigm == "unicl":
        labels = label_array(manifest, label_names(manifest))
        return has_report(manifest) | has_prompt(labels)
    return has_report(manifest)


def patients_hash(manifest: pd.DataFrame) -> str:
    """Return a short hash of the set of patients, so that two runs can prove they used the same."""
    joined = "\n".join(sorted(manifest["patient_id"].unique()))
    return hashlib.blake2b(joined.encode(), digest_size=8).hexdigest()
