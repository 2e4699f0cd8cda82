"""The manifest: one Parquet table, a row an image, that every data set is turned into; splits and nested subsets.

Columns: image_id, patient_id, study_id, path (strings; image_id unique); view, sex (strings or missing); age (years);
report (string or missing); pixel_spacing (mm); ``label:NAME`` (structured labels as recorded: 1, 0 or missing =
unknown); ``side:NAME`` (right, left, bilateral or empty, as recorded); ``malposition:NAME`` (1: a device's tip lies
wrong); ``mask:NAME`` (path of a device's mask, or empty); ``truth:NAME`` (where the truth is known, as it is of the
synthetic institution); split (after ``assign_splits``).
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from cxrstudy.data.vocabulary import LABELS, VIEWS
from cxrstudy.files import replacing

REQUIRED = ("image_id", "patient_id", "study_id", "path")
ALLOWED = {"view": VIEWS, "sex": ("F", "M")}


class ManifestError(ValueError):
    """A manifest breaks its contract; the message names file, row and column."""


def validate(
    manifest: pd.DataFrame, where: str = "manifest", place: Callable[[int], str] | None = None
) -> pd.DataFrame:
    """``manifest`` itself when it holds; ManifestError naming ``where``, row (from 0) and column when not.

    ``place`` names a row otherwise, by the file and line that it came from.
    """

    def refuse(bad: pd.Series, column: str, why: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad.to_numpy())[0])
            value = manifest[column].iloc[row]
            told = place(row) if place else f"{where}, row {row}"
            raise ManifestError(
                f"{told}, column {column!r}: {value!r} {why} ({int(bad.sum())} such rows)"
            )

    missing = [column for column in REQUIRED if column not in manifest]
    if missing:
        raise ManifestError(
            f"{where}: column {missing[0]!r} is missing; a manifest needs {', '.join(REQUIRED)}"
        )
    if manifest.empty:
        raise ManifestError(f"{where}: holds no rows")
    for column in REQUIRED:
        text = manifest[column].map(lambda value: isinstance(value, str) and value != "")
        refuse(~text, column, "is not a non-empty string")
    refuse(
        manifest["image_id"].duplicated(),
        "image_id",
        "appears a second time; image ids must be unique",
    )
    for column, allowed in ALLOWED.items():
        if column in manifest:
            refuse(
                manifest[column].notna() & ~manifest[column].isin(allowed),
                column,
                f"is not one of {allowed}",
            )
    if "age" in manifest:
        age = pd.to_numeric(manifest["age"], errors="coerce")
        refuse(manifest["age"].notna() & ~age.between(0, 130), "age", "is not an age in years")
    for column in manifest.columns[manifest.columns.str.match("(label|truth|malposition):")]:
        refuse(
            manifest[column].notna() & ~manifest[column].isin([0, 1]),
            column,
            "is not 0, 1 or missing",
        )
    for column in manifest.columns[manifest.columns.str.match("side:")]:
        known = manifest[column].isna() | manifest[column].isin(["right", "left", "bilateral", ""])
        refuse(~known, column, "is not right, left, bilateral or empty")
    return manifest


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Read and validate a manifest (Parquet); ManifestError naming the file when it cannot be read."""
    try:
        manifest = pd.read_parquet(path)
    except Exception as error:
        raise ManifestError(f"{path}: not a readable Parquet table: {error}") from error
    return validate(manifest, str(path))


def write_manifest(manifest: pd.DataFrame, path: str | Path) -> None:
    """Validate and write a manifest atomically."""
    with replacing(path) as scratch:
        validate(manifest, str(path)).to_parquet(scratch, index=False)


def _unit_hash(values: pd.Series, key: str) -> np.ndarray:
    """A number in [0, 1) for each value that depends on (key, value) alone."""
    codes, unique = pd.factorize(values.astype(str))
    salt = hashlib.blake2b(key.encode(), digest_size=32).digest()
    digests = [hashlib.blake2b(name.encode(), digest_size=8, key=salt).digest() for name in unique]
    numbers = np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64) >> np.uint64(11)
    return (numbers.astype(np.float64) * 2.0**-53)[codes]


def assign_splits(
    manifest: pd.DataFrame, *, fractions: dict[str, float], seed: int = 0
) -> pd.DataFrame:
    """A copy with column ``split``: each patient wholly in one split, by a keyed hash of the patient id.

    A patient's split depends on (patient id, fractions, seed) alone, so it stays when images or patients are added.
    ``fractions`` maps split to its share of patients, summing to 1, in any order: a plan's parameters come sorted, a
    notebook's as they were written, and both must mean the same. ValueError if they do not sum to 1.
    """
    fractions = dict(sorted(fractions.items()))
    shares = np.array(list(fractions.values()), dtype=float)
    if (
        not len(shares)
        or (shares < 0).any()
        or not np.isclose(shares.sum(), 1.0, rtol=0, atol=1e-9)
    ):
        raise ValueError(
            f"fractions must be at least 0 and sum to 1, not {fractions}, which sum to {shares.sum():g}"
        )
    edges = np.cumsum(shares)[:-1]
    place = np.searchsorted(
        edges, _unit_hash(manifest["patient_id"], f"split:{seed}"), side="right"
    )
    return manifest.assign(split=np.array(list(fractions), dtype=object)[place])


def nested_subset(manifest: pd.DataFrame, n_images: int, *, seed: int = 0) -> pd.DataFrame:
    """The first ``n_images`` rows in the order of a seeded hash of their patient.

    Subsets of one manifest and seed are strictly nested and exactly ``n_images`` long; patients come whole, but for
    the last (paper: strictly nested subsets, arXiv 2509.12818). ValueError if there are fewer images than asked for.
    """
    if not 0 < n_images <= len(manifest):
        raise ValueError(
            f"n_images is {n_images}, but there are {len(manifest)} images to choose from: give 1 to {len(manifest)}, "
            "or n_images: 0 in a preset's `data` for all"
        )
    patient = _unit_hash(manifest["patient_id"], f"subset:{seed}")
    order = np.lexsort(
        (manifest["image_id"].to_numpy(str), manifest["patient_id"].to_numpy(str), patient)
    )
    return manifest.iloc[order[:n_images]].reset_index(drop=True)


def label_names(manifest: pd.DataFrame, prefix: str = "label") -> list[str]:
    """Names with a ``prefix:NAME`` column: those of the vocabulary in its order, then others in the table's."""
    names = [
        column.split(":", 1)[1] for column in manifest.columns if column.startswith(f"{prefix}:")
    ]
    return [name for name in LABELS if name in names] + [
        name for name in names if name not in LABELS
    ]


def label_array(
    manifest: pd.DataFrame, names: list[str] | tuple[str, ...], *, truth: bool = False
) -> np.ndarray:
    """(N, len(names)) float32 in {0, 1, NaN}; ``truth`` prefers ``truth:NAME`` where the data set knows it."""
    columns = []
    for name in names:
        column = f"truth:{name}" if truth and f"truth:{name}" in manifest else f"label:{name}"
        if column not in manifest:
            names_ = ", ".join(label_names(manifest)) or "none (its card has no `labels`)"
            raise ManifestError(f"no label {name!r}; this data set has {names_}")
        columns.append(pd.to_numeric(manifest[column]).to_numpy(np.float32, na_value=np.nan))
    return np.stack(columns, axis=1) if columns else np.zeros((len(manifest), 0), np.float32)


def patients_hash(manifest: pd.DataFrame) -> str:
    """A short hash of the set of patients, so that two runs can prove they used the same."""
    joined = "\n".join(sorted(manifest["patient_id"].unique()))
    return hashlib.blake2b(joined.encode(), digest_size=8).hexdigest()
