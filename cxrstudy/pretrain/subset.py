"""Which images a run shows: a nested subset of those that its paradigm can use, in which order."""

import functools
import warnings

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data import manifest as manifests
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import has_prompt, has_report, label_array, label_names, nested_subset


# ---- which images --------------------------------------------------------------------------------
def subset_rows(prepared: Prepared, p: study.Pretrain) -> np.ndarray:
    """Return the rows (n_images,) of the nested subset in the prepared data.

    Raises:
        ValueError: the splits cannot serve the run.
    """
    pool, left = usable(prepared, p)
    counts = f"splits {p.splits} of {p.data} hold {len(pool)} images"
    if missing := left.get("left_out", 0):
        text = "a report or a known label" if p.paradigm == "unicl" else "a report"
        counts += f" that {p.paradigm} can use ({missing} of {len(pool) + missing} lack {text})"
    if p.n_images > len(pool):
        raise ValueError(f"n_images is {p.n_images}, but {counts}: lower n_images")
    if p.n_images < p.batch_size:
        raise ValueError(
            f"batch_size {p.batch_size} exceeds n_images {p.n_images}: a batch would hold images "
            "twice; lower batch_size or raise n_images"
        )
    if missing:
        warnings.warn(f"{counts}; the others are left out at every n_images", stacklevel=2)
    return nested_subset(pool, p.n_images, seed=p.seed)["row"].to_numpy()


def usable(prepared: Prepared, p: study.Pretrain) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the images that the paradigm can use, and counts for the record.

    See ``cxrstudy.data.manifest.usable``. The pool is the same at every ``n_images``, so that
    subsets are nested.

    Returns:
        The manifest of these images with their row numbers (column ``row``), and the counts
        ``without_report`` and ``left_out`` (no counts for ``dinov2``).

    Raises:
        ValueError: a split does not exist, or the paradigm needs labels or reports that are
            missing.
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
    labels = label_array(pool, label_names(pool))  # (N, L)
    has_label = has_prompt(labels) if p.paradigm == "unicl" else ~np.isnan(labels).all(1)
    if p.paradigm != "clip" and not has_label.any():
        raise ValueError(
            f"paradigm {p.paradigm!r} needs structured labels; the {whose} of {p.data} has no "
            f"known label in splits {p.splits}: name them under `labels` of the card, or set "
            "paradigm='clip', which needs only reports, or 'dinov2', which needs neither"
        )
    can_use = manifests.usable(pool, p.paradigm)  # (N,)
    if not can_use.any():
        raise ValueError(
            f"paradigm {p.paradigm!r} needs reports; the {whose} of {p.data} has none in splits "
            f"{p.splits}: name their column under `table` of the card (report: COLUMN), or set "
            "paradigm='dinov2', which needs none"
        )
    without_report = int((~has_report(pool)).sum())
    return pool[can_use], {"without_report": without_report, "left_out": int((~can_use).sum())}


# ---- in which order ------------------------------------------------------------------------------
@functools.lru_cache(4)
def _order(n_images: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_images)


def positions(n_images: int, start: int, stop: int, seed: int) -> np.ndarray:
    """Return the images at ``start`` to ``stop`` of an endless order, a permutation per epoch."""
    epochs = range(start // n_images, (stop - 1) // n_images + 1)
    orders = np.concatenate([_order(n_images, epoch, seed) for epoch in epochs])
    return orders[np.arange(start, stop) - epochs.start * n_images]


def batch_positions(n_images: int, start: int, stop: int, seed: int) -> np.ndarray:
    """Return the images of one batch, without duplicates.

    A batch that reaches into the next epoch may hold an image twice. As its own negative it would
    disturb the loss, more often in small subsets, so another image replaces the duplicate.
    """
    batch = positions(n_images, start, stop, seed)
    duplicate = np.ones(len(batch), bool)
    duplicate[np.unique(batch, return_index=True)[1]] = False
    if duplicate.any() and len(batch) <= n_images:
        others = np.setdiff1d(np.arange(n_images), batch)
        drawn = np.random.default_rng([seed, start, 2]).permutation(others)
        batch[duplicate] = drawn[: duplicate.sum()]
    return batch


def batch_edges(samples_seen: int, batch_size: int) -> list[int]:
    """Return the positions at which batches start, and the end.

    All batches are full but the last. A single last sample would have no negative: it takes one
    more from the batch before it, or joins it if that would leave one sample there.
    """
    edges = [*range(0, samples_seen, batch_size), samples_seen]
    if edges[-1] - edges[-2] == 1 and len(edges) > 2:
        edges[-2] -= 1
        if edges[-2] - edges[-3] < 2:
            del edges[-2]
    return edges
