"""Turn manifest rows into pixels once: every image is read or drawn and kept in shards."""

import fcntl
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import cpu_count
from PIL import Image

from cxrstudy.data import dicom, odd, shards
from cxrstudy.data.dicom import UnreadableImage
from cxrstudy.data.filetypes import DICOM, what_is
from cxrstudy.data.manifest import ManifestError, read_manifest, write_manifest
from cxrstudy.data.picturefiles import UnfitPicture, read_picture
from cxrstudy.data.remote import fetched, local
from cxrstudy.data.shapes import map_files
from cxrstudy.data.shardfiles import Images
from cxrstudy.files import is_remote, write_text
from cxrstudy.progress import Progress
from cxrstudy.study import StudyError

REMEDY = "export the image as PNG, JPEG or DICOM, or leave it out"
LARGE = 200_000_000  # pixels: some 30 s of drawing, worth the start of other processes
MANY = 500  # files: some 10 s of reading


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: ``manifest`` row i is ``images[i]``.

    ``images`` is uint8 (N, size, size), bone bright: an array, or read from shards as if it were.
    """

    manifest: pd.DataFrame
    images: np.ndarray | Images
    info: dict[str, Any]


def read_image(path: str | Path, size: int) -> np.ndarray:
    """Read one image file as uint8 (size, size), bone bright.

    The shorter side is resized to ``size``, then the centre is cropped, as RAD-DINO does. The
    content decides what a file is: DICOM (``dicom.read_dicom``), or a picture
    (``picturefiles.read_picture``), which is taken as bone bright already.

    Raises:
        UnreadableImage: naming the path, the reason and the remedy.
    """
    return read_with_notes(path, size)[0]


def read_with_notes(path: str | Path, size: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the image as ``read_image`` does, and how it is odd (see ``odd.KINDS``)."""
    image, notes = read_whole(path)
    height, width = image.height, image.width
    with _one_error(path):
        pixels = square(image, size)
    return pixels, (*notes, *odd.of_shape(height, width), *odd.of_greys(pixels))


def read_whole(path: str | Path) -> tuple[Image.Image, tuple[str, ...]]:
    """Return an image file as a picture of its own size, 0 to 255, bone bright, and its notes.

    Raises:
        UnreadableImage: as ``read_image``.
    """
    with _one_error(path), fetched(path) as file:
        image, notes = _open(file)
        image.load()
    return image, notes


def square(image: Image.Image, size: int) -> np.ndarray:
    """Return a picture as uint8 (size, size): the shorter side resized, the centre cropped."""
    width, height = image.size
    scale = size / min(width, height)
    if round(max(width, height) * scale) * size > dicom.MAX_PIXELS:
        raise UnfitPicture("absurd dimensions", f"{height} rows, {width} columns", REMEDY)
    resized = max(size, round(width * scale)), max(size, round(height * scale))
    image = image.resize(resized, Image.Resampling.BOX)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    grey = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


@contextmanager
def _one_error(path: str | Path) -> Iterator[None]:
    """Turn every error into UnreadableImage: one bad file must not end a run."""
    try:
        yield
    except (UnreadableImage, StudyError):
        raise
    except UnfitPicture as error:
        raise UnreadableImage(path, f"{error.kind}: {error.what}", error.remedy) from error
    except OSError as error:
        reason = error.strerror or f"damaged or cut short ({' '.join(str(error).split())})"
        raise UnreadableImage(path, reason) from error
    except Exception as error:  # Pillow raises a dozen kinds
        raise UnreadableImage(path, f"damaged ({type(error).__name__}: {error})") from error


def _open(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    what = what_is(path)
    if what == DICOM:
        pixels, notes = dicom.read_with_notes(path)
        return Image.fromarray(pixels * 255), notes
    if what.endswith("picture"):
        return read_picture(path, dicom.MAX_PIXELS)
    raise UnreadableImage(path, f"no image: it is {what}", REMEDY, kind=what.split(" (")[0])


def note_root(folder: str | Path, root: str | Path) -> None:
    """Write into a data run's ``folder`` where its files are, for ``open_prepared``."""
    where = root if is_remote(root) else os.path.abspath(Path(root).expanduser())
    write_text(Path(folder) / "root.txt", f"{where}\n")


def file_columns(manifest: pd.DataFrame) -> list[str]:
    """Return the columns with paths of files: images and masks (or references, see shapes)."""
    return ["path", *manifest.columns[manifest.columns.str.startswith("mask:")]]


def relative_to_root(manifest: pd.DataFrame, root: str | Path) -> pd.DataFrame:
    """Return a copy whose paths start below ``root``, with '/'; other paths stay."""
    base = Path(root).expanduser()
    starts = {os.path.abspath(each) + os.sep for each in (base, base.resolve())}
    starts.add(os.path.join(base, ""))
    if is_remote(root):
        starts = {os.path.join(root, "")}

    def cut(path: str) -> str:
        for start in starts:
            if path.startswith(start):
                return path[len(start) :].replace(os.sep, "/")
        return path

    files = file_columns(manifest)
    return manifest.assign(**{c: manifest[c].map(lambda v: map_files(v, cut)) for c in files})


def _draw(paths: Sequence[str], size: int) -> np.ndarray:
    """Draw synthetic rows, all of one institution and seed, together."""
    from cxrstudy.data import synthetic  # imports torch, not needed to open prepared data

    _, institution, seed, _ = paths[0].split(":")
    index = np.array([int(path.rsplit(":", 1)[1]) for path in paths])
    batch = synthetic.sample(index, institution=institution, size=size, seed=int(seed))
    return np.rint(np.asarray(batch.image)[:, 0] * 255).astype(np.uint8)


def _read_paths(paths: Sequence[str], size: int) -> Iterator[shards.Found]:
    """Yield of each path its pixels and notes, or the UnreadableImage."""
    if paths and paths[0].startswith("synthetic:"):
        yield from ((image, ()) for image in _draw(paths, size))
        return
    for path in paths:
        try:
            yield read_with_notes(path, size)
        except UnreadableImage as error:
            yield error


def prepare(
    manifest: pd.DataFrame,
    out: str | Path,
    *,
    size: int,
    info: dict[str, Any],
    root: str | Path = "",
    seed: int = 0,
    image_format: str = "raw",
    progress: Progress = iter,
) -> Prepared:
    """Write ``shards``, ``manifest.parquet`` and ``prepared.json`` of a data run to ``out``.

    Unreadable images, and copies of images of another split, are left out and listed in
    ``quarantine.csv`` (image_id, path, reason). Odd ones stay and are listed in ``odd.csv``
    (image_id, path, kind; an image may have several). ``prepared.json`` counts both by kind:
    ``set_aside``, ``odd``. A warning is given on copies, and if many images are lost. Paths are
    stored relative to ``root`` (see ``note_root``). A complete folder with the same ``info`` and
    size is returned unchanged; in another, only shards that are missing or changed are made.

    Args:
        seed: of the nested subset whose order the shards follow.
        image_format: raw, or jpeg (quality 95).

    Raises:
        ManifestError: no image can be read.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        if (whole := _complete(out, info | {"size": size}, root)) is not None:
            return whole
        below = relative_to_root(manifest, root) if root else manifest
        paths = manifest["path"].tolist()
        is_drawn = paths[0].startswith("synthetic:")
        made_by = f"{info.get('generator') if is_drawn else ''} {size} {image_format}"
        worth = len(paths) * size**2 > LARGE if is_drawn else len(paths) > MANY
        facts, listed = shards.make(
            out,
            paths,
            shards.image_keys(
                [local(path, root) for path in paths], below["path"].tolist(), made_by
            ),
            shards.shard_numbers(manifest, seed),
            read=_read_paths,
            size=size,
            image_format=image_format,
            jobs=cpu_count() if worth else 1,
            root="" if is_remote(root) else str(root),
            progress=progress,
        )
        facts = _without_copies(manifest, facts)
        kept = np.flatnonzero(facts["reason"].to_numpy() == "")
        if not len(kept):
            raise ManifestError(
                f"none of {len(manifest)} images could be read; first: {paths[0]}: "
                f"{facts['reason'].iloc[0]}"
            )
        counted = _list_left_out(out, manifest, facts)
        if root:
            note_root(out, root)
        write_manifest(below.iloc[kept].reset_index(drop=True), out / "manifest.parquet")
        shards.finish(out, facts.iloc[kept], listed, size, image_format)
        mean, std = _mean_and_std(facts.iloc[kept], size)
        info = info | {"size": size, "mean": mean, "std": std} | counted
        write_text(out / "prepared.json", json.dumps(info, indent=1))
    copies = facts["reason"][facts["kind"] == odd.COPY].tolist()
    for sentence in [*odd.copied(copies), *odd.losses(info, len(kept))]:
        warnings.warn(sentence, stacklevel=2)
    return open_prepared(out)


def _list_left_out(out: Path, manifest: pd.DataFrame, facts: pd.DataFrame) -> dict[str, Any]:
    """Write ``quarantine.csv`` and ``odd.csv``, and return the counts of both by kind."""
    is_lost = facts["reason"].to_numpy() != ""
    lost, kept = np.flatnonzero(is_lost), np.flatnonzero(~is_lost)
    aside = manifest.iloc[lost][["image_id", "path"]]
    aside = aside.assign(reason=facts["reason"].iloc[lost].to_numpy())
    aside.to_csv(out / "quarantine.csv", index=False)
    kinds = facts["notes"].iloc[kept].str.split("|").explode()
    kinds = kinds[kinds != ""]
    listed = manifest.iloc[kinds.index][["image_id", "path"]]
    listed.assign(kind=kinds.to_numpy()).to_csv(out / "odd.csv", index=False)
    counts = {"set_aside": odd.count(facts["kind"].iloc[lost]), "odd": odd.count(kinds)}
    return {"quarantined": len(lost)} | counts


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold a data run's lock; wait, with a warning, for another process that prepares it."""
    with (out / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            warnings.warn(f"another process prepares {out}: waiting for it", stacklevel=3)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield


def _complete(out: Path, asked: dict[str, Any], root: str | Path) -> Prepared | None:
    """Return the data run in ``out`` if it is whole and is what was asked for."""
    done = out / "prepared.json"
    if not done.is_file():
        return None
    if asked.items() <= json.loads(done.read_text()).items():
        if root:
            note_root(out, root)
        try:
            return open_prepared(out)
        except FileNotFoundError as error:
            warnings.warn(f"{error}; it is made now", stacklevel=3)
    done.unlink()
    return None


def _without_copies(manifest: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """Return facts in which copies of images of another split are set aside.

    Copies in two splits would be tested on what was learned. They are set aside, and do not end the
    run, since one pair among 100,000 images is no reason to read all of them again. Within a split
    they stay. Pictures of one grey are no copies.
    """
    if "split" not in manifest:
        return facts
    rows = np.flatnonzero(facts["digest"] != 0)
    _, first, inverse = np.unique(
        facts["digest"].iloc[rows], return_index=True, return_inverse=True
    )
    other = rows[first[inverse]]  # the first image with the same pixels
    names, ids = (manifest[name].to_numpy() for name in ("split", "image_id"))
    twice = names[rows] != names[other]
    pairs = zip(rows[twice], other[twice], strict=True)
    alike = [f"{ids[a]} of {names[a]} has the pixels of {ids[b]} of {names[b]}" for a, b in pairs]
    facts.loc[rows[twice], "reason"] = alike
    facts.loc[rows[twice], "kind"] = odd.COPY
    return facts


def _mean_and_std(facts: pd.DataFrame, size: int) -> tuple[float, float]:
    """Return mean and standard deviation of intensities in [0, 1], from exact sums."""
    n = len(facts) * size**2
    total, squares = (sum(facts[name].tolist()) for name in ("total", "squares"))
    return total / n / 255, ((n * squares - total**2) / n**2 / 255**2) ** 0.5


def open_prepared(folder: str | Path) -> Prepared:
    """Open what ``prepare`` wrote; FileNotFoundError names the folder and the remedy."""
    folder = Path(folder)
    if not (folder / "prepared.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no prepared data set; run data.ipynb with out={folder} first"
        )
    older = folder / "images.npy"  # of data runs before there were shards
    images: Any = np.load(older, mmap_mode="r") if older.exists() else Images(folder)
    info = json.loads((folder / "prepared.json").read_text())
    manifest = read_manifest(folder / "manifest.parquet")
    if (folder / "root.txt").is_file():
        root = (folder / "root.txt").read_text(encoding="utf-8").removesuffix("\n")

        def join(path: str) -> str:
            return path if path.startswith("synthetic:") else os.path.join(root, path)

        files = file_columns(manifest)
        joined = {c: manifest[c].map(lambda cell: map_files(cell, join)) for c in files}
        manifest = manifest.assign(**joined)
    return Prepared(manifest, images, info)
