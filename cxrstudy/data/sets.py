"""A data run: card to manifest, patients to splits, images to one array; what every other notebook then reads."""

import hashlib
import json
import os
import unicodedata
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data import cards
from cxrstudy.data.images import Prepared, note_root, open_prepared, prepare, relative_to_root
from cxrstudy.data.language import not_english
from cxrstudy.data.manifest import assign_splits
from cxrstudy.progress import Progress

__all__ = ["content_digest", "note_root", "open_data", "prepare_data"]


def content_digest(card: str, *, root: str, n_images: int, seed: int) -> str:
    """Return a short name of what a data set holds: of its card, the rows of its table, the sizes of its files.

    Neither where the files lie nor their order counts, so that the same data on another disk, or through a link, have
    the same name. A synthetic card that draws its images has no files: the card alone counts. CardError as
    ``cards.load_manifest``. The table is read once a process, and again when it or the card has changed.
    """
    described = cards.read_card(card)
    own = [described.model_dump(), n_images, seed]
    if described.table is None:
        return study.digest(own, 12)
    base = Path(root).expanduser()
    stamp = study.digest(
        [own, str(base.resolve()), _changes(described, base) if root and base.is_dir() else 0], 32
    )
    rows, files = _rows(card, str(root), n_images, seed, stamp)
    sizes = np.array([os.stat(file).st_size if os.path.isfile(file) else -1 for file in files])
    return study.digest(
        [own, rows, hashlib.blake2b(sizes.tobytes(), digest_size=16).hexdigest()], 12
    )


def _changes(card: cards.Card, base: Path) -> list[tuple[int, int]]:
    """When the tables were last written, and a file last added to or taken from the folders of the images."""
    tables = sorted(base.glob(card.table.path)) if card.table else []
    parts = {part.as_posix() for pattern in card.images for part in Path(pattern).parents}
    few = sorted(
        part for part in parts - {".", "/"} if part.count("*") <= 1 and not part.startswith("/")
    )
    folders = [
        base,
        *(folder for part in few for folder in sorted(base.glob(part)) if folder.is_dir()),
    ]
    return [(stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, [*tables, *folders])]


@lru_cache(maxsize=8)
def _rows(
    card: str, root: str, n_images: int, seed: int, stamp: str
) -> tuple[str, tuple[str, ...]]:
    """A hash of the rows, ordered by image id, and all files they name; ``stamp`` tells when to read them again."""
    manifest = cards.load_manifest(card, root=root, n_images=n_images, seed=seed)
    manifest = manifest.sort_values("image_id", kind="stable", ignore_index=True)
    below = relative_to_root(manifest, root)
    text = below.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in below.dtypes]]
    below[text] = below[text].map(
        lambda v: unicodedata.normalize("NFC", v) if isinstance(v, str) else None
    )
    hashed = hashlib.blake2b("\0".join(below.columns).encode(), digest_size=16)
    hashed.update(pd.util.hash_pandas_object(below, index=False).to_numpy().tobytes())
    columns = [
        column for column in manifest.columns if column == "path" or column.startswith("mask:")
    ]
    files = manifest[columns].fillna("").to_numpy().ravel()
    return hashed.hexdigest(), tuple(file for file in files if file)


def prepare_data(p: study.Data, *, progress: Progress = iter) -> Prepared:
    """Prepare the data set that ``p`` describes in ``p.out`` (see ``images.prepare``), or open it if it stands."""
    from cxrstudy.data import synthetic  # imports torch, which naming a run does without

    card = cards.read_card(p.card)
    if card.table is not None and p.n_images == study.Data().n_images:
        there = len(cards.load_manifest(p.card, root=p.root))
        if (
            there < p.n_images
        ):  # as a notebook has it by default, not as a number that somebody chose
            warnings.warn(
                f"n_images is {p.n_images} by default; all {there} images are taken", stacklevel=2
            )
            p = p.model_copy(update={"n_images": 0})
    manifest = cards.load_manifest(
        p.card, root=p.root, institution=p.institution, n_images=p.n_images, seed=p.seed
    )
    told: dict[str, dict[str, Any]] = {
        name: manifest.attrs.get(name, {}) for name in ("left_out", "not_understood")
    }
    drawn = card.kind == "synthetic" and card.table is None  # an export of it is read as files are
    if not drawn and "report" in manifest and (other := not_english(manifest["report"])):
        told["not_understood"] = told["not_understood"] | {"report": other}
    told = json.loads(
        json.dumps(told, default=int)
    )  # as it will be read again: names are text, counts are numbers
    manifest = assign_splits(manifest, fractions=p.fractions, seed=p.seed)
    asked: list[Any] = [
        p.model_copy(update={"root": "", "card": card.name}).model_dump(exclude={"out"}),
        card.model_dump(),
    ]
    if not drawn:
        asked.append(content_digest(p.card, root=p.root, n_images=p.n_images, seed=p.seed))
    info = {
        "card": card.name,
        "kind": card.kind,
        "institution": f"{card.name}:{p.institution}" if drawn else card.name,
        "rows": int(manifest.attrs.get("rows", len(manifest) + sum(told["left_out"].values()))),
        **told,
        "show_images": drawn or card.show_images,
        "generator": synthetic.VERSION if drawn else None,
        "asked": study.digest(asked, 12),
    }
    root = "" if drawn else p.root
    return prepare(
        manifest, study.resolve(p.out), size=p.size, info=info, root=root, progress=progress
    )


def open_data(folder: str, *, progress: Progress = iter) -> tuple[Prepared, Path]:
    """The prepared data in ``folder``; for an empty name the small synthetic default, made on the spot once."""
    if folder:
        path = study.resolve(folder)
        return open_prepared(path), path
    from cxrstudy.data import synthetic

    default = study.Data()
    name = f"data-{study.digest([default.model_dump(), synthetic.VERSION])}"
    default = default.model_copy(update={"out": f"runs/scratch/data/{name}"})
    return prepare_data(default, progress=progress), study.resolve(default.out)
