"""Manifest rows to pixels, once: every image is read or drawn, resized and kept in one memory-mapped array."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from PIL import Image

from cxrstudy.data import dicom
from cxrstudy.data.manifest import ManifestError, read_manifest, write_manifest
from cxrstudy.files import write_text
from cxrstudy.progress import Progress

CHUNK = 256  # images handled at a time
LARGE = 200_000_000  # pixels: some 30 s of drawing, worth the seconds that another process takes to start


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: ``manifest`` row i is ``images[i]``, uint8 (size, size), bone bright, memory-mapped."""

    manifest: pd.DataFrame
    images: np.ndarray
    info: dict[str, Any]


def read_image(path: str | Path, size: int) -> np.ndarray:
    """One image file as uint8 (size, size), bone bright: shorter side to ``size``, centre crop (as RAD-DINO does).

    DICOM by content; PNG and JPEG taken as bone bright already. UnreadableImage names the path and the reason.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
            with Image.open(path) as file:
                deep = file.mode.startswith("I")  # 16-bit greyscale; Pillow's own conversion to 8 bit clips it
                image = file.convert("F") if deep else file.convert("L")
                if deep:
                    image = image.point(lambda value: value * (255 / 65535))
        else:
            image = Image.fromarray(dicom.read_dicom(path) * 255)
        width, height = image.size
        scale = size / min(width, height)
        image = image.resize((max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BOX)
    except dicom.UnreadableImage:
        raise
    except Exception as error:  # Pillow raises a dozen kinds on damaged files; one bad file must not end a run
        raise dicom.UnreadableImage(path, f"{type(error).__name__}: {error}") from error
    top, left = (image.height - size) // 2, (image.width - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def note_root(folder: str | Path, root: str | Path) -> None:
    """Write into ``folder``, that of a data run, where its files lie now; ``open_prepared`` joins paths to it."""
    write_text(Path(folder) / "root.txt", f"{os.path.abspath(Path(root).expanduser())}\n")


def _files(manifest: pd.DataFrame) -> list[str]:
    """Columns that hold paths of files: those of the images, and of their masks."""
    return ["path", *manifest.columns[manifest.columns.str.startswith("mask:")]]


def relative_to_root(manifest: pd.DataFrame, root: str | Path) -> pd.DataFrame:
    """Return a copy whose paths start at ``root``, with '/'; drawn images and files elsewhere keep their path."""
    starts = {os.path.abspath(base) + os.sep for base in (Path(root).expanduser(), Path(root).expanduser().resolve())}
    starts.add(os.path.join(Path(root).expanduser(), ""))

    def cut(path: object) -> object:
        start = next((s for s in starts if isinstance(path, str) and path.startswith(s)), None)
        return path[len(start) :].replace(os.sep, "/") if start and isinstance(path, str) else path

    return manifest.assign(**{column: manifest[column].map(cut) for column in _files(manifest)})


def _draw(paths: pd.Series, size: int) -> np.ndarray:
    """Synthetic rows, all of one institution and seed, drawn together."""
    from cxrstudy.data import synthetic  # imports torch, which opening what was prepared does without

    parts = paths.str.split(":", expand=True)
    institution, seed = parts.iloc[0, 1], int(parts.iloc[0, 2])
    batch = synthetic.sample(parts[3].astype(int).to_numpy(), institution=institution, size=size, seed=seed)
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

    Unreadable images are left out and listed in ``quarantine.csv`` (image_id, path, reason). A folder that stands
    whole with the same ``info`` and size is returned as it is. ManifestError when no image at all can be read.
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
    images = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=(len(manifest), size, size))
    is_drawn = manifest["path"].str.startswith("synthetic:")
    quarantine: list[dict[str, str]] = []
    kept: list[int] = []

    def read(row: int) -> np.ndarray | dicom.UnreadableImage:
        try:
            return read_image(manifest["path"].iloc[row], size)
        except dicom.UnreadableImage as error:
            return error

    starts = range(0, len(manifest), CHUNK)
    many = len(manifest) * size**2 > LARGE
    drawn = Parallel(n_jobs=-1 if many else 1, return_as="generator")(
        delayed(_draw)(manifest["path"].iloc[start : start + CHUNK], size) for start in starts if is_drawn.iloc[start]
    )
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for start in progress(starts):
            rows = range(start, min(start + CHUNK, len(manifest)))
            pixels: Iterable[Any] = next(drawn) if is_drawn.iloc[start] else pool.map(read, rows)
            for row, image in zip(rows, pixels, strict=True):
                if isinstance(image, dicom.UnreadableImage):
                    names = manifest.iloc[row]
                    quarantine.append(
                        {"image_id": names["image_id"], "path": str(image.path), "reason": str(image.reason)}
                    )
                else:
                    images[len(kept)] = image
                    kept.append(row)
    if not kept:
        scratch.unlink()
        raise ManifestError(f"none of {len(manifest)} images could be read; the first: {quarantine[0]}")
    whole = images[: len(kept)]
    sums = [
        np.array([c.mean(dtype=float), c.astype(float).var()]) for c in np.array_split(whole, 1 + len(kept) // 4096)
    ]
    mean, variance = np.mean(sums, axis=0) / [255, 255**2]
    if len(kept) < len(manifest):
        np.save(out / "images.npy", whole)
        scratch.unlink()
    else:
        images.flush()
        os.replace(scratch, out / "images.npy")
    pd.DataFrame(quarantine, columns=["image_id", "path", "reason"]).to_csv(out / "quarantine.csv", index=False)
    rows = manifest.iloc[kept].reset_index(drop=True)
    if root:
        note_root(out, root)
        rows = relative_to_root(rows, root)
    write_manifest(rows, out / "manifest.parquet")
    facts = {"size": size, "mean": float(mean), "std": float(variance**0.5), "quarantined": len(quarantine)}
    write_text(done, json.dumps(info | facts, indent=1))
    return open_prepared(out)


def open_prepared(folder: str | Path) -> Prepared:
    """Open what ``prepare`` wrote; FileNotFoundError naming the folder and the remedy."""
    folder = Path(folder)
    if not (folder / "prepared.json").is_file():
        raise FileNotFoundError(f"{folder} holds no prepared data set; run data.ipynb with out={folder} first")
    images = np.load(folder / "images.npy", mmap_mode="r")
    info = json.loads((folder / "prepared.json").read_text())
    manifest = read_manifest(folder / "manifest.parquet")
    if (folder / "root.txt").is_file():
        root = (folder / "root.txt").read_text(encoding="utf-8").removesuffix("\n")
        named = {column: manifest[column].map(lambda path: _join(root, path)) for column in _files(manifest)}
        manifest = manifest.assign(**named)
    return Prepared(manifest, images, info)


def _join(root: str, path: object) -> object:
    drawn = not isinstance(path, str) or not path or path.startswith("synthetic:")
    return path if drawn else os.path.join(root, str(path))
