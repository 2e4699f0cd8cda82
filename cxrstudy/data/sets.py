"""A data run: card to manifest, patients to splits, images to one array; what every other notebook then reads."""

from pathlib import Path

from cxrstudy import study
from cxrstudy.data import cards, synthetic
from cxrstudy.data.images import Prepared, open_prepared, prepare
from cxrstudy.data.manifest import assign_splits
from cxrstudy.progress import Progress


def prepare_data(p: study.Data, *, progress: Progress = iter) -> Prepared:
    """Prepare the data set that ``p`` describes in ``p.out`` (see ``images.prepare``), or open it if it stands."""
    card = cards.read_card(p.card)
    manifest = cards.load_manifest(p.card, root=p.root, institution=p.institution, n_images=p.n_images, seed=p.seed)
    without = manifest.attrs.get("without_image", 0)
    manifest = assign_splits(manifest, fractions=p.fractions, seed=p.seed)
    drawn = card.kind == "synthetic" and card.table is None  # an export of it is read as files are
    info = {
        "card": card.name,
        "kind": card.kind,
        "institution": f"{card.name}:{p.institution}" if drawn else card.name,
        "without_image": without,
        "show_images": drawn or card.show_images,
        "generator": synthetic.FINGERPRINT if drawn else None,
        "asked": study.digest([p.model_dump(exclude={"out"}), card.model_dump()], 12),
    }
    return prepare(manifest, study.resolve(p.out), size=p.size, info=info, progress=progress)


def open_data(folder: str, *, progress: Progress = iter) -> tuple[Prepared, Path]:
    """The prepared data in ``folder``; for an empty name the small synthetic default, made on the spot once."""
    if folder:
        path = study.resolve(folder)
        return open_prepared(path), path
    default = study.Data()
    name = f"data-{study.digest([default.model_dump(), synthetic.FINGERPRINT])}"
    default = default.model_copy(update={"out": f"runs/scratch/data/{name}"})
    return prepare_data(default, progress=progress), study.resolve(default.out)
