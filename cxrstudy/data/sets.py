"""Make a data run: card to manifest, patients to splits, images to shards for all notebooks."""

import hashlib
import json
import os
import re
import unicodedata
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data import cards, images, mining
from cxrstudy.data.images import Prepared, note_root, open_prepared
from cxrstudy.data.language import not_english
from cxrstudy.data.manifest import assign_splits
from cxrstudy.data.remote import local, view
from cxrstudy.data.shapes import files_of
from cxrstudy.progress import Progress

__all__ = ["content_digest", "note_root", "open_data", "prepare_data"]
Contents = tuple[str, tuple[str, ...]]  # a hash of the rows, and all files they name


def content_digest(card: str, *, root: str, n_images: int, seed: int) -> str:
    """Return a short hash of what a data set holds: card, rows of its table, sizes of its files.

    Neither the place nor the order of the files counts, so the same data on another disk, or
    through a link, have the same digest. For a synthetic card that draws its images only the card
    counts. A process reads the table again only if it or the card has changed.

    Raises:
        CardError: as ``cards.load_manifest``.
    """
    described = cards.read_card(card)
    if described.table is None:
        return study.digest([described.model_dump(), n_images, seed], 12)
    base = view(root, described.copied) if root else Path()
    changes = _changes(described, base) if root and base.is_dir() else 0
    stamp = study.digest([described.model_dump(), str(base.resolve()), changes], 32)
    contents = _read_contents(card, str(root), n_images, seed, stamp)
    return _digest(described, n_images, seed, contents)


def _digest(card: cards.Card, n_images: int, seed: int, contents: Contents) -> str:
    rows, files = contents
    sizes = np.array([os.stat(file).st_size if os.path.isfile(file) else -1 for file in files])
    hashed = hashlib.blake2b(sizes.tobytes(), digest_size=16).hexdigest()
    return study.digest([[card.model_dump(), n_images, seed], rows, hashed], 12)


def _changes(card: cards.Card, base: Path) -> list[tuple[int, int]]:
    """Return time stamps and sizes of the tables and of the folders of the images."""
    sources = [part for part in (card.table, *card.tables, card.polylines, card.boxes) if part]
    tables = [path for source in sources for path in sorted(base.glob(source.path))]
    patterns = [re.sub(r"\{[^}]*\}", "*", pattern) for pattern in card.images]
    parts = {part.as_posix() for pattern in patterns for part in Path(pattern).parents}
    few = [p for p in sorted(parts - {".", "/"}) if p.count("*") <= 1 and not p.startswith("/")]
    folders = [folder for part in few for folder in sorted(base.glob(part)) if folder.is_dir()]
    stats = map(os.stat, [*tables, base, *folders])
    return [(stat.st_mtime_ns, stat.st_size) for stat in stats]


@lru_cache(maxsize=8)
def _read_contents(card: str, root: str, n_images: int, seed: int, stamp: str) -> Contents:
    """Read the contents of a data set; another ``stamp`` reads them again."""
    manifest = cards.load_manifest(card, root=root, n_images=n_images, seed=seed)
    return _contents(manifest, root)


def _contents(manifest: pd.DataFrame, root: str) -> Contents:
    """Return a hash of the rows, ordered by image id, and all files they name."""
    manifest = manifest.sort_values("image_id", kind="stable", ignore_index=True)
    below = images.relative_to_root(manifest, root)
    text = below.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in below.dtypes]]
    below[text] = below[text].map(
        lambda v: unicodedata.normalize("NFC", v) if isinstance(v, str) else None
    )
    hashed = hashlib.blake2b("\0".join(below.columns).encode(), digest_size=16)
    hashed.update(pd.util.hash_pandas_object(below, index=False).to_numpy().tobytes())
    files = manifest[images.file_columns(manifest)].fillna("").to_numpy().ravel()
    named = (local(file, root) for cell in files for file in files_of(cell))
    return hashed.hexdigest(), tuple(named)


def prepare_data(p: study.Data, *, progress: Progress = iter) -> Prepared:
    """Prepare the data set that ``p`` describes in ``p.out`` (``images.prepare``), or open it."""
    from cxrstudy.data import synthetic  # imports torch, not needed to name a run

    card = cards.read_card(p.card)
    root = "" if card.is_drawn else p.root
    if card.is_drawn:
        manifest = cards.load_manifest(
            p.card, institution=p.institution, n_images=p.n_images, seed=p.seed
        )
    else:
        manifest = cards.load_manifest(p.card, root=root)
        if len(manifest) < p.n_images == study.Data().n_images:  # the notebook's default
            message = f"n_images is {p.n_images} by default; all {len(manifest)} images are taken"
            warnings.warn(message, stacklevel=2)
            p = p.model_copy(update={"n_images": 0})
        manifest = cards.first_images(card, manifest, p.n_images, p.seed)
    lost: dict[str, Any] = {
        name: manifest.attrs.get(name, {}) for name in ("left_out", "not_understood")
    }
    if not card.is_drawn and "report" in manifest and (other := not_english(manifest["report"])):
        lost["not_understood"] = lost["not_understood"] | {"report": other}
    if notes := manifest.attrs.get("notes"):
        lost["notes"] = notes
    if mined := manifest.attrs.get("mined"):
        lost["mined"] = mined
        if mined["not_english"]:
            warnings.warn(mining.in_words(mined), stacklevel=2)
    lost = json.loads(json.dumps(lost, default=int))  # as it is read again: text and numbers
    parameters = p.model_copy(update={"root": "", "card": card.name}).model_dump(exclude={"out"})
    asked: list[Any] = [parameters, card.model_dump()]
    if not card.is_drawn:
        asked.append(_digest(card, p.n_images, p.seed, _contents(manifest, root)))
    rows = manifest.attrs.get("rows", len(manifest) + sum(lost["left_out"].values()))
    info = {
        "card": card.name,
        "kind": card.kind,
        "institution": f"{card.name}:{p.institution}" if card.is_drawn else card.name,
        "rows": int(rows),
        **lost,
        "show_images": card.is_drawn or card.show_images,
        "generator": synthetic.VERSION if card.is_drawn else None,
        "asked": study.digest(asked, 12),
    }
    manifest = assign_splits(manifest, fractions=p.fractions, seed=p.seed)
    out = study.resolve(p.out)
    how: Any = {"seed": p.seed, "image_format": p.image_format, "progress": progress}
    return images.prepare(manifest, out, size=p.size, info=info, root=root, **how)


def open_data(folder: str, *, progress: Progress = iter) -> tuple[Prepared, Path]:
    """Open the prepared data in ``folder``; an empty name makes a small synthetic default once."""
    if folder:
        path = study.resolve(folder)
        return open_prepared(path), path
    from cxrstudy.data import synthetic

    default = study.Data()
    name = f"data-{study.digest([default.model_dump(), synthetic.VERSION])}"
    default = default.model_copy(update={"out": f"runs/scratch/data/{name}"})
    return prepare_data(default, progress=progress), study.resolve(default.out)
