"""Which images a run is shown: of its splits those that its paradigm can use, and of these a nested subset."""

import warnings

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data import manifest as manifests
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import has_prompt, has_report, label_array, label_names, nested_subset


def subset_rows(prepared: Prepared, p: study.Pretrain) -> np.ndarray:
    """Row numbers of the nested subset in the prepared data; ValueError when the splits cannot serve it."""
    pool, left = usable(prepared, p)
    counts = f"splits {p.splits} of {p.data} hold {len(pool)} images"
    if lacking := left.get("left_out", 0):
        text = "a report or a known label" if p.paradigm == "unicl" else "a report"
        counts += f" that {p.paradigm} can show ({lacking} of {len(pool) + lacking} lack {text})"
    if p.n_images > len(pool):
        raise ValueError(f"n_images is {p.n_images}, but {counts}: lower n_images")
    if p.n_images < p.batch_size:
        raise ValueError(
            f"batch_size {p.batch_size} exceeds n_images {p.n_images}: a batch would hold images twice; lower "
            "batch_size or raise n_images"
        )
    if lacking:
        warnings.warn(f"{counts}; the others are left out, at every n_images alike", stacklevel=2)
    return nested_subset(pool, p.n_images, seed=p.seed)["row"].to_numpy()


def usable(prepared: Prepared, p: study.Pretrain) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows of the splits that the paradigm can show, with their numbers (column ``row``), and counts for the record.

    ``dinov2`` takes all, ``clip`` and ``clip+labels`` those with a report, ``unicl`` those with a report or with labels
    of which something true can be said. The pool is the same at every ``n_images``, so that subsets stay nested. Counts
    (none for ``dinov2``): ``without_report``, and ``left_out``. ValueError for a split that there is not, and where the
    paradigm needs labels, or reports, and there are none.
    """
    manifest = prepared.manifest.assign(row=np.arange(len(prepared.manifest)))
    unknown = sorted(set(p.splits) - set(manifest["split"]))
    if unknown:
        raise ValueError(
            f"splits: no split {unknown[0]!r} in {p.data}; it has {sorted(set(manifest['split']))}"
        )
    pool = manifest[manifest["split"].isin(p.splits)]
    if p.paradigm == "dinov2":
        return pool, {}
    whose = f"card {prepared.info['card']!r}" if "card" in prepared.info else "data"
    labels = label_array(pool, label_names(pool))
    known = has_prompt(labels) if p.paradigm == "unicl" else ~np.isnan(labels).all(1)
    if p.paradigm != "clip" and not known.any():
        raise ValueError(
            f"paradigm {p.paradigm!r} needs structured labels; the {whose} of {p.data} has none that is known in "
            f"splits {p.splits}: name them under `labels` of the card, or say paradigm='clip', which needs reports "
            "alone, or 'dinov2', which needs neither"
        )
    shown = manifests.usable(pool, p.paradigm)
    if not shown.any():
        raise ValueError(
            f"paradigm {p.paradigm!r} needs reports; the {whose} of {p.data} has none in splits {p.splits}: name their "
            "column under `table` of the card (report: COLUMN), or say paradigm='dinov2', which needs none"
        )
    return pool[shown], {
        "without_report": int((~has_report(pool)).sum()),
        "left_out": int((~shown).sum()),
    }
