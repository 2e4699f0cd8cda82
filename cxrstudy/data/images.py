"""Manifest rows to pixels, once: every image is read or drawn, resized and kept in one memory-mapped array."""

import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from PIL import Image

from cxrstudy.data import dicom, odd
from cxrstudy.data.filetypes import DICOM, is_picture, what_is
from cxrstudy.data.manifest import ManifestError, read_manifest, write_manifest
from cxrstudy.data.picturefiles import UnfitPicture, read_picture
from cxrstudy.files import write_text
from cxrstudy.progress import Progress

CHUNK = 256  # images handled at a time
REMEDY = "export the image as PNG, JPEG or DICOM, or leave it out"
LARGE = 200_000_000  # pixels: some 30 s of drawing, worth the seconds that another process takes to start


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: ``manifest`` row i is ``images[i]``, uint8 (size, size), bone bright, memory-mapped."""

    manifest: pd.DataFrame
    images: np.ndarray
    info: dict[str, Any]


def read_image(path: str | Path, size: int) -> np.ndarray:
    """One image file as uint8 (size, size), bone bright: shorter side to ``size``, centre crop (as RAD-DINO does).

    A file is known by its content: DICOM (``dicom.read_dicom``), or a picture (``picturefiles.read_picture``), taken as
    bone bright already. UnreadableImage names the path, the reason and what helps.
    """
    return read_with_notes(path, size)[0]


def read_with_notes(path: str | Path, size: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return what ``read_image`` does, and the kinds in which the image is odd (see ``odd.KINDS``)."""
    path = Path(path)
    try:
        what = what_is(path)
        if what == DICOM:
            pixels, notes = dicom.read_with_notes(path)
            image = Image.fromarray(pixels * 255)
        elif is_picture(what):
            image, notes = read_picture(path, dicom.MAX_PIXELS)
        else:
            raise dicom.UnreadableImage(
                path, f"no image: it is {what}", REMEDY, kind=what.split(" (")[0]
            )
        width, height = image.size
        scale = size / min(width, height)
        if round(max(width, height) * scale) * size > dicom.MAX_PIXELS:
            raise dicom.UnreadableImage(
                path, f"absurd dimensions: {height} rows, {width} columns", REMEDY
            )
        notes += odd.of_shape(height, width)
        image = image.resize(
            (max(size, round(width * scale)), max(size, round(height * scale))),
            Image.Resampling.BOX,
        )
    except dicom.UnreadableImage:
        raise
    except UnfitPicture as error:
        raise dicom.UnreadableImage(path, f"{error.kind}: {error.what}", error.remedy) from error
    except OSError as error:
        reason = error.strerror or f"damaged or cut short ({' '.join(str(error).split())})"
        raise dicom.UnreadableImage(path, reason) from error
    except (
        Exception
    ) as error:  # Pillow raises a dozen kinds on damaged files; one bad file must not end a run
        raise dicom.UnreadableImage(path, f"damaged ({type(error).__name__}: {error})") from error
    top, left = (image.height - size) // 2, (image.width - size) // 2
    grey = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32)
    whole = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return whole, notes + odd.of_greys(whole)


def note_root(folder: str | Path, root: str | Path) -> None:
    """Write into ``folder``, that of a data run, where its files lie now; ``open_prepared`` joins paths to it."""
    write_text(Path(folder) / "root.txt", f"{os.path.abspath(Path(root).expanduser())}\n")


def _files(manifest: pd.DataFrame) -> list[str]:
    """Columns that hold paths of files: those of the images, and of their masks."""
    return ["path", *manifest.columns[manifest.columns.str.startswith("mask:")]]


def relative_to_root(manifest: pd.DataFrame, root: str | Path) -> pd.DataFrame:
    """Return a copy whose paths start at ``root``, with '/'; drawn images and files elsewhere keep their path."""
    starts = {
        os.path.abspath(base) + os.sep
        for base in (Path(root).expanduser(), Path(root).expanduser().resolve())
    }
    starts.add(os.path.join(Path(root).expanduser(), ""))

    def cut(path: object) -> object:
        start = next((s for s in starts if isinstance(path, str) and path.startswith(s)), None)
        return path[len(start) :].replace(os.sep, "/") if start and isinstance(path, str) else path

    return manifest.assign(**{column: manifest[column].map(cut) for column in _files(manifest)})


def _draw(paths: pd.Series, size: int) -> np.ndarray:
    """Synthetic rows, all of one institution and seed, drawn together."""
    from cxrstudy.data import (
        synthetic,
    )  # imports torch, which opening what was prepared does without

    parts = paths.str.split(":", expand=True)
    institution, seed = parts.iloc[0, 1], int(parts.iloc[0, 2])
    batch = synthetic.sample(
        parts[3].astype(int).to_numpy(), institution=institution, size=size, seed=seed
    )
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
    """Write ``manifest.parquet``, ``images.npy`` (N,size,size) uint8 and ``prepared.json`` into ``out``.

    Unreadable images are left out and listed in ``quarantine.csv`` (image_id, path, reason); odd ones stay and are
    listed in ``odd.csv`` (image_id, path, kind; one image may have several). ``prepared.json`` counts both by kind:
    ``set_aside``, ``odd``. A warning says where many are not there. Paths below ``root`` are kept without it (see
    ``note_root``). A folder that stands whole with the same ``info`` and size is returned as it is. ManifestError when
    no image at all can be read.
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
    images = np.lib.format.open_memmap(
        scratch, mode="w+", dtype=np.uint8, shape=(len(manifest), size, size)
    )
    quarantine: list[dicom.UnreadableImage] = []
    kept: list[int] = []
    odds: list[tuple[int, str]] = []
    for row, found in enumerate(_pixels(manifest, size, progress)):
        if isinstance(found, dicom.UnreadableImage):
            quarantine.append(found)
            continue
        images[len(kept)], notes = found
        odds += [(row, kind) for kind in dict.fromkeys(notes)]
        kept.append(row)
    aside = manifest.iloc[sorted(set(range(len(manifest))) - set(kept))]
    if not kept:
        scratch.unlink()
        raise ManifestError(
            f"none of {len(manifest)} images could be read; the first: {quarantine[0]}"
        )
    whole = images[: len(kept)]
    sums = [
        np.array([c.mean(dtype=float), c.astype(float).var()])
        for c in np.array_split(whole, 1 + len(kept) // 4096)
    ]
    mean, variance = np.mean(sums, axis=0) / [255, 255**2]
    if len(kept) < len(manifest):
        np.save(out / "images.npy", whole)
        scratch.unlink()
    else:
        images.flush()
        os.replace(scratch, out / "images.npy")
    listed = {"image_id": aside["image_id"], "path": [str(e.path) for e in quarantine]}
    pd.DataFrame(listed | {"reason": [str(e.reason) for e in quarantine]}).to_csv(
        out / "quarantine.csv", index=False
    )
    strange = manifest.iloc[[row for row, _ in odds]][["image_id", "path"]].assign(
        kind=[kind for _, kind in odds]
    )
    strange.to_csv(out / "odd.csv", index=False)
    rows = manifest.iloc[kept].reset_index(drop=True)
    if root:
        note_root(out, root)
        rows = relative_to_root(rows, root)
    write_manifest(rows, out / "manifest.parquet")
    facts: dict[str, Any] = {"size": size, "mean": float(mean), "std": float(variance**0.5)}
    facts |= {
        "quarantined": len(quarantine),
        "set_aside": odd.count(error.kind for error in quarantine),
    }
    facts |= {"odd": odd.count(kind for _, kind in odds)}
    write_text(done, json.dumps(info | facts, indent=1))
    for sentence in odd.losses(info | facts, len(kept)):
        warnings.warn(sentence, stacklevel=2)
    return open_prepared(out)


def _pixels(manifest: pd.DataFrame, size: int, progress: Progress) -> Iterator[Any]:
    """Of each row its pixels and notes, or why it cannot be read."""
    is_drawn = manifest["path"].str.startswith("synthetic:")

    def read(row: int) -> tuple[np.ndarray, tuple[str, ...]] | dicom.UnreadableImage:
        try:
            return read_with_notes(manifest["path"].iloc[row], size)
        except dicom.UnreadableImage as error:
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
    """Open what ``prepare`` wrote; FileNotFoundError naming the folder and the remedy."""
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
        named = {
            column: manifest[column].map(lambda path: _join(root, path))
            for column in _files(manifest)
        }
        manifest = manifest.assign(**named)
    return Prepared(manifest, images, info)


def _join(root: str, path: object) -> object:
    drawn = not isinstance(path, str) or not path or path.startswith("synthetic:")
    return path if drawn else os.path.join(root, str(path))
