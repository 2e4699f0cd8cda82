"""Turn manifest rows into pixels once: every image is read or drawn and kept in one array."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from PIL import Image

from cxrstudy.data import dicom, odd
from cxrstudy.data.dicom import UnreadableImage
from cxrstudy.data.filetypes import DICOM, what_is
from cxrstudy.data.manifest import ManifestError, read_manifest, write_manifest
from cxrstudy.data.picturefiles import UnfitPicture, read_picture
from cxrstudy.data.shapes import map_files
from cxrstudy.files import write_text
from cxrstudy.progress import Progress

CHUNK = 256  # images handled at a time
REMEDY = "export the image as PNG, JPEG or DICOM, or leave it out"
LARGE = 200_000_000  # pixels: some 30 s of drawing, worth the start of other processes


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: ``manifest`` row i is ``images[i]``.

    ``images`` is a memory-mapped uint8 array (N, size, size), bone bright.
    """

    manifest: pd.DataFrame
    images: np.ndarray
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
    with _one_error(path):
        image, notes = _open(Path(path))
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
    except UnreadableImage:
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
    write_text(Path(folder) / "root.txt", f"{os.path.abspath(Path(root).expanduser())}\n")


def file_columns(manifest: pd.DataFrame) -> list[str]:
    """Return the columns with paths of files: images and masks (or references, see shapes)."""
    return ["path", *manifest.columns[manifest.columns.str.startswith("mask:")]]


def relative_to_root(manifest: pd.DataFrame, root: str | Path) -> pd.DataFrame:
    """Return a copy whose paths start below ``root``, with '/'; other paths stay."""
    base = Path(root).expanduser()
    starts = {os.path.abspath(each) + os.sep for each in (base, base.resolve())}
    starts.add(os.path.join(base, ""))

    def cut(path: str) -> str:
        for start in starts:
            if path.startswith(start):
                return path[len(start) :].replace(os.sep, "/")
        return path

    files = file_columns(manifest)
    return manifest.assign(**{c: manifest[c].map(lambda v: map_files(v, cut)) for c in files})


def _draw(paths: pd.Series, size: int) -> np.ndarray:
    """Draw synthetic rows, all of one institution and seed, together."""
    from cxrstudy.data import synthetic  # imports torch, not needed to open prepared data

    parts = paths.str.split(":", expand=True)
    institution, seed = parts.iloc[0, 1], int(parts.iloc[0, 2])
    index = parts[3].astype(int).to_numpy()
    batch = synthetic.sample(index, institution=institution, size=size, seed=seed)
    return np.rint(np.asarray(batch.image)[:, 0] * 255).astype(np.uint8)


def prepare(
    manifest: pd.DataFrame,
    out: str | Path,
    *,
    size: int,
    info: dict[str, Any],
    root: str | Path = "",
    progress: Progress = iter,
) -> Prepared:
    """Write ``manifest.parquet``, ``images.npy`` (N, size, size) and ``prepared.json`` to ``out``.

    Unreadable images, and copies of images of another split, are left out and listed in
    ``quarantine.csv`` (image_id, path, reason). Odd ones stay and are listed in ``odd.csv``
    (image_id, path, kind; an image may have several). ``prepared.json`` counts both by kind:
    ``set_aside``, ``odd``. A warning is given on copies, and if many images are lost. Paths are
    stored relative to ``root`` (see ``note_root``). A complete folder with the same ``info`` and
    size is returned unchanged.

    Raises:
        ManifestError: no image can be read.
    """
    out = Path(out)
    done = out / "prepared.json"
    if done.is_file():
        if (info | {"size": size}).items() <= json.loads(done.read_text()).items():
            if root:
                note_root(out, root)
            return open_prepared(out)
        done.unlink()
    out.mkdir(parents=True, exist_ok=True)
    scratch = out / f".images.{os.getpid()}.npy"
    shape = (len(manifest), size, size)
    images = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=shape)
    unreadable: dict[int, UnreadableImage] = {}
    kept: list[int] = []
    kinds: list[tuple[int, str]] = []
    for row, found in enumerate(_without_copies(manifest, _pixels(manifest, size, progress))):
        if isinstance(found, UnreadableImage):
            unreadable[row] = found
            continue
        images[len(kept)], notes = found
        kinds += [(row, kind) for kind in dict.fromkeys(notes)]
        kept.append(row)
    if not kept:
        scratch.unlink()
        raise ManifestError(f"none of {len(manifest)} images could be read; first: {unreadable[0]}")
    mean, std = _mean_and_std(images[: len(kept)])
    if unreadable:
        np.save(out / "images.npy", images[: len(kept)])
        scratch.unlink()
    else:
        images.flush()
        os.replace(scratch, out / "images.npy")
    aside = pd.DataFrame({"image_id": manifest["image_id"].iloc[list(unreadable)]})
    aside["path"] = [str(error.path) for error in unreadable.values()]
    aside["reason"] = [str(error.reason) for error in unreadable.values()]
    aside.to_csv(out / "quarantine.csv", index=False)
    listed = manifest.iloc[[row for row, _ in kinds]][["image_id", "path"]]
    listed.assign(kind=[kind for _, kind in kinds]).to_csv(out / "odd.csv", index=False)
    rows = manifest.iloc[kept].reset_index(drop=True)
    if root:
        note_root(out, root)
        rows = relative_to_root(rows, root)
    write_manifest(rows, out / "manifest.parquet")
    info = info | {
        "size": size,
        "mean": mean,
        "std": std,
        "quarantined": len(unreadable),
        "set_aside": odd.count(error.kind for error in unreadable.values()),
        "odd": odd.count(kind for _, kind in kinds),
    }
    write_text(done, json.dumps(info, indent=1))
    copies = [str(error.reason) for error in unreadable.values() if error.kind == odd.COPY]
    for sentence in [*odd.copied(copies), *odd.losses(info, len(kept))]:
        warnings.warn(sentence, stacklevel=2)
    return open_prepared(out)


def _without_copies(manifest: pd.DataFrame, found: Iterable[Any]) -> Iterator[Any]:
    """Yield what was read of each row; an UnreadableImage for copies of images of another split.

    Copies in two splits would be tested on what was learned. They are set aside, and do not end the
    run, since one pair among 100,000 images is no reason to read all of them again. Within a split
    they stay. Pictures of one grey are no copies.
    """
    first: dict[bytes, int] = {}
    names = manifest.get("split", manifest["image_id"]).to_numpy()
    ids, paths = manifest["image_id"].to_numpy(), manifest["path"].to_numpy()
    for row, each in enumerate(found):
        if isinstance(each, UnreadableImage) or "split" not in manifest or np.ptp(each[0]) == 0:
            yield each
            continue
        other = first.setdefault(hashlib.blake2b(each[0], digest_size=16).digest(), row)
        alike = f"{ids[row]} of {names[row]} has the pixels of {ids[other]} of {names[other]}"
        copy = UnreadableImage(paths[row], alike, REMEDY, kind=odd.COPY)
        yield each if names[row] == names[other] else copy


def _mean_and_std(images: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of intensities in [0, 1], over chunks that fit memory."""
    chunks = np.array_split(images, 1 + len(images) // 4096)
    moments = [np.array([c.mean(dtype=float), c.astype(float).var()]) for c in chunks]
    mean, variance = np.mean(moments, axis=0) / [255, 255**2]
    return float(mean), float(variance**0.5)


def _pixels(manifest: pd.DataFrame, size: int, progress: Progress) -> Iterator[Any]:
    """Yield of each row its pixels and notes, or the UnreadableImage."""
    is_drawn = manifest["path"].str.startswith("synthetic:")

    def read(row: int) -> tuple[np.ndarray, tuple[str, ...]] | UnreadableImage:
        try:
            return read_with_notes(manifest["path"].iloc[row], size)
        except UnreadableImage as error:
            return error

    starts = range(0, len(manifest), CHUNK)
    many = len(manifest) * size**2 > LARGE
    drawn = Parallel(n_jobs=-1 if many else 1, return_as="generator")(
        delayed(_draw)(manifest["path"].iloc[start : start + CHUNK], size)
        for start in starts
        if is_drawn.iloc[start]
    )
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for start in progress(starts):
            if is_drawn.iloc[start]:
                yield from ((image, ()) for image in next(drawn))
            else:
                yield from pool.map(read, range(start, min(start + CHUNK, len(manifest))))


def open_prepared(folder: str | Path) -> Prepared:
    """Open what ``prepare`` wrote; FileNotFoundError names the folder and the remedy."""
    folder = Path(folder)
    if not (folder / "prepared.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no prepared data set; run data.ipynb with out={folder} first"
        )
    images = np.load(folder / "images.npy", mmap_mode="r")
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
