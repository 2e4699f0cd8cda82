"""Count what an ingest holds, for the data-quality page: ``quality.json``. No ids but our own."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.data import manifest as manifests
from cxrstudy.data.language import not_english
from cxrstudy.data.mining import read_statuses
from cxrstudy.data.reports import NAMES, sections
from cxrstudy.evaluate.agreement import cohens_kappa
from cxrstudy.ingest import pixels
from cxrstudy.ingest.views import features

AGES = (0, 1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 131)  # limits of bands, in years
WORDS = (1, 10, 25, 50, 100, 200, 400, 10**9)  # limits of bands, in words
ODDEST = 40  # images
NEIGHBOURS = 5
MOST = 10_000  # images that are compared with each other
SAMPLE = 5_000  # reports whose sections are counted


def collect(manifest: pd.DataFrame, frame: pd.DataFrame, private: Path) -> dict[str, Any]:
    """Return counts of an ingest.

    Args:
        manifest: as the card reads it.
        frame: the same images with their tags, what ``pixels.look`` saw, and ``image_id``.
        private: folder of the ingest with small copies of the images.
    """
    frame = frame[frame["image_id"].isin(manifest["image_id"])]
    has_report = manifests.has_report(manifest)
    found: dict[str, Any] = {
        "images": len(manifest),
        "patients": manifest["patient_id"].nunique(),
        "studies": manifest["study_id"].nunique(),
        "views": _counts(manifest, "view"),
        "sexes": _counts(manifest, "sex"),
        "ages": _bands(manifest.get("age"), AGES),
        "scanners": _scanners(frame),
        "spacing": _counts(manifest.assign(s=manifest["pixel_spacing"].round(2)), "s")
        if "pixel_spacing" in manifest
        else {},
        "grey": _greys(frame),
        "labels": {
            name: _three(manifest[f"label:{name}"]) for name in manifests.label_names(manifest)
        },
        "mined": manifest.attrs.get("mined"),
        "left_out": manifest.attrs.get("left_out", {}),
        "odd": oddest(frame, private),
        "reports": {},
        "agreement": {},
    }
    if has_report.any():
        texts = manifest["report"].where(has_report)
        found["reports"] = _reports(texts)
        if not found["mined"]:
            found["agreement"] = agreement(manifest, texts)
    return found


def _counts(frame: pd.DataFrame, column: str) -> dict[str, int]:
    """Return value -> images, most first; "unknown" for missing ones."""
    if column not in frame:
        return {"unknown": len(frame)}
    found = frame[column].astype(object).where(frame[column].notna(), "unknown")
    return {str(value): int(n) for value, n in found.value_counts().items()}


def _bands(values: pd.Series | None, limits: tuple[int, ...]) -> dict[str, int]:
    """Return band -> images, in order; "unknown" for missing values."""
    if values is None:
        return {}
    names = [f"{a} to {b - 1}" for a, b in pairwise(limits[:-1])] + [f"{limits[-2]} or more"]
    names = [name.replace("0 to 0", "0") for name in names]
    bands = pd.cut(pd.to_numeric(values), limits, right=False, labels=names)
    counts = {str(name): int(n) for name, n in bands.value_counts(sort=False).items()}
    return counts | {"unknown": int(values.isna().sum())}


def _scanners(frame: pd.DataFrame) -> dict[str, int]:
    tags = [frame[name].fillna("") for name in ("Manufacturer", "ManufacturerModelName")]
    named = (tags[0] + " " + tags[1]).str.split().str.join(" ")
    return _counts(pd.DataFrame({"scanner": named.where(named != "")}), "scanner")


def _greys(frame: pd.DataFrame) -> dict[str, list[float]]:
    """Return the share of pixels in each bin of grey values: mean, 5th and 95th percentile."""
    shares = np.stack(list(frame["grey"]))
    low, high = np.percentile(shares, [5, 95], axis=0)
    rows = {"mean": shares.mean(0), "low": low, "high": high}
    return {"edges": pixels.BINS.tolist()} | {k: np.round(v, 5).tolist() for k, v in rows.items()}


def _three(label: pd.Series) -> dict[str, int]:
    return {"present": int((label == 1).sum()), "absent": int((label == 0).sum())} | {
        "unknown": int(label.isna().sum())
    }


def _reports(texts: pd.Series) -> dict[str, Any]:
    """Return number, lengths, languages and sections of reports."""
    there = texts.dropna().drop_duplicates()
    sample = there.iloc[:: max(1, len(there) // SAMPLE)]
    headed: Counter[str] = Counter()
    for text in sample:
        headed.update(name for name, part in sections(text).items() if part.strip())
    other = not_english(there)
    return {
        "images": int(texts.notna().sum()),
        "different": len(there),
        "words": _bands(there.str.split().str.len(), WORDS),
        "languages": {"English": len(there) - sum(other.values())} | other,
        "sections": dict(headed.most_common()),
        "sections_of": len(sample),
    }


def agreement(manifest: pd.DataFrame, texts: pd.Series) -> dict[str, dict[str, Any]]:
    """Return how labels of tables agree with what their English reports say, label by label.

    Images count whose report says present or absent, and whose label is known: ``both``,
    ``report_only``, ``table_only``, ``neither``, and Cohen's ``kappa``.
    """
    names = [name for name in manifests.label_names(manifest) if name in NAMES]
    codes = read_statuses(texts, {name: [name] for name in names}) if names else pd.DataFrame()
    found = {}
    for name in names:
        label, said = manifest[f"label:{name}"], codes[name].map({1: 0.0, 3: 1.0})
        known = label.notna() & said.notna()
        if not known.any():
            continue
        pairs = (2 * label[known] + said[known]).to_numpy(int)
        counts = np.bincount(pairs, minlength=4)  # neither, report only, table only, both
        kappa = float(cohens_kappa(counts.reshape(2, 2)))
        found[name] = {
            "both": int(counts[3]),
            "report_only": int(counts[1]),
            "table_only": int(counts[2]),
            "neither": int(counts[0]),
            "kappa": None if np.isnan(kappa) else round(kappa, 3),
        }
    return found


def oddest(frame: pd.DataFrame, private: Path) -> list[dict[str, Any]]:
    """Return the images farthest from their nearest neighbours in features of the shipped base.

    ``distance`` is the mean cosine distance to the ``NEIGHBOURS`` nearest. Of more than ``MOST``
    images, those with the first ids are compared, which are a random sample.
    """
    few = frame.sort_values("image_id").head(MOST)
    if len(few) <= NEIGHBOURS:
        return []
    rows = features(pixels.thumbs(few, private))
    rows = (rows - rows.mean(0)) / (rows.std(0) + 1e-6)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9
    far = np.empty(len(rows))
    for start in range(0, len(rows), 1024):
        near = rows[start : start + 1024] @ rows.T  # (n,N)
        top = -np.partition(-near, NEIGHBOURS, axis=1)[:, : NEIGHBOURS + 1]
        far[start : start + 1024] = 1 - (top.sum(1) - top.max(1)) / NEIGHBOURS
    first = np.argsort(-far)[:ODDEST]
    pairs = zip(few["image_id"].iloc[first], far[first], strict=True)
    return [{"image_id": name, "distance": round(float(value), 4)} for name, value in pairs]


def flow(frame: pd.DataFrame, steps: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what is left after each step, and what it dropped by reason.

    Args:
        frame: a row a file with ``drop_step`` and ``drop_reason``, empty where it is kept.
        steps: name of a step -> what is left after it, in words.
    """
    left = len(frame)
    found = [{"step": "files found", "left": left, "dropped": {}}]
    for name, words in steps.items():
        dropped = frame.loc[frame["drop_step"] == name, "drop_reason"].value_counts()
        left -= int(dropped.sum())
        reasons = {str(reason): int(n) for reason, n in dropped.items()}
        found.append({"step": words, "left": left, "dropped": reasons})
    return found
