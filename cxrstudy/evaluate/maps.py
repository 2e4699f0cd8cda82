"""Memory-mapped feature maps of a frozen encoder, and true masks of devices."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from cxrstudy.data import shapes, synthetic
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import ManifestError, label_array
from cxrstudy.data.remote import fetched
from cxrstudy.data.vocabulary import DEVICES
from cxrstudy.encoders import ImageEncoder, Pixels
from cxrstudy.evaluate import masks as measures
from cxrstudy.evaluate.features import as_map, device, inputs
from cxrstudy.progress import Progress

CHUNK = 64  # images handled at a time


# ---- masks ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Masks:
    """True masks of n images and D devices, in the order of DEVICES.

    Attributes:
        masks: bool (n,D,size,size), empty where not known.
        known: bool (n,D), whether the device's mask, or its absence, is recorded.
        tips: float64 (n,D,2), column and row in px; NaN if absent, unknown or outside the image.
        spacing: float64 (n,), mm a pixel; NaN if not known.
    """

    masks: np.ndarray
    known: np.ndarray
    tips: np.ndarray
    spacing: np.ndarray


def known_devices(manifest: pd.DataFrame) -> np.ndarray:
    """Return (n,D) bool: whose masks `load_masks` knows, from the manifest alone.

    All of a synthetic image. Of others: those with a path in ``mask:NAME``, and, if the data set
    has that column, those whose label says that the device is absent.
    """
    known = np.zeros((len(manifest), len(DEVICES)), bool)
    for k, name in enumerate(DEVICES):
        if f"mask:{name}" in manifest:
            known[:, k] = manifest[f"mask:{name}"].fillna("") != ""
            if f"label:{name}" in manifest:
                known[:, k] |= label_array(manifest, [name], truth=True)[:, 0] == 0
    known[manifest["path"].str.startswith("synthetic:").to_numpy()] = True
    return known


def load_masks(prepared: Prepared, rows: np.ndarray) -> Masks:
    """Return true masks of some rows of a prepared data set, at its size.

    Those of synthetic rows are rendered again. For others ``mask:NAME`` holds the path of an 8-bit
    image of the x-ray's own size (not zero = device), or a reference to run lengths or a polyline
    (`data.shapes`); of several, a line each, the union is taken. It is resized as ``read_image``
    does. A pixel is on if any of the mask's pixels in it is, so that thin lines are not
    interrupted. The tip is found by `masks.tips`. Spacing comes from ``pixel_spacing`` (mm a pixel
    of that file), if any.

    Raises:
        ManifestError: A mask cannot be read; the message names file, row and column.
    """
    manifest, size = prepared.manifest.iloc[rows], int(prepared.info["size"])
    shape = (len(manifest), len(DEVICES), size, size)
    tips, spacing = np.full((*shape[:2], 2), np.nan), np.full(len(manifest), np.nan)
    found = Masks(np.zeros(shape, bool), known_devices(manifest), tips, spacing)
    synthetic_row = manifest["path"].str.startswith("synthetic:").to_numpy()
    _render_masks(found, manifest["path"][synthetic_row], np.flatnonzero(synthetic_row), size)
    for k in np.flatnonzero(~synthetic_row).tolist():
        row = manifest.iloc[k]
        for d, name in enumerate(DEVICES):
            cell = row.get(f"mask:{name}")
            for mask in cell.split("\n") if isinstance(cell, str) and cell else ():
                image = f"row {int(np.asarray(rows)[k])} (image {row['image_id']})"
                where = f"{image}, column 'mask:{name}'"
                on, scale = _read_mask(mask, row["path"], size, where)
                found.masks[k, d] |= on
                found.spacing[k] = float(row.get("pixel_spacing", np.nan)) * scale
        found.tips[k] = measures.tips(found.masks[k])
    with np.errstate(invalid="ignore"):
        found.tips[~((found.tips >= 0) & (found.tips <= size - 1)).all(2)] = np.nan
    return found


def _render_masks(found: Masks, paths: pd.Series, places: np.ndarray, size: int) -> None:
    """Fill in masks, tips and spacing of images with paths synthetic:INSTITUTION:SEED:INDEX."""
    sources = [path.split(":")[1:] for path in paths]
    for institution, seed in sorted({(source[0], source[1]) for source in sources}):
        chosen = [k for k, source in enumerate(sources) if source[:2] == [institution, seed]]
        index, rows = [int(sources[k][2]) for k in chosen], places[chosen]
        batch = synthetic.sample(index, institution=institution, size=size, seed=int(seed))
        found.masks[rows], found.tips[rows] = np.asarray(batch.masks), batch.tips
        found.spacing[rows] = batch.pixel_spacing


def _read_mask(mask: str, image: str, size: int, where: str) -> tuple[np.ndarray, float]:
    """Return a mask of ``image`` as bool (size,size), and how many of its pixels are one of ours.

    Args:
        mask: path of its file, or a reference of `shapes`.
        image: path of the x-ray.
        size: height and width of the result.
        where: row and column, for messages.
    """
    try:
        if shapes.is_reference(mask):
            on = shapes.draw(mask, image)
        else:
            with fetched(mask) as here, Image.open(here) as file:
                on = np.asarray(file if file.mode in ("1", "L", "P") else file.convert("L")) != 0
    except Exception as error:  # of a dozen kinds
        raise ManifestError(
            f"mask {mask:.80}, {where}: cannot be read ({type(error).__name__}: {error}); give an "
            "8-bit image, not zero where the device is, or run lengths or a polyline within the "
            "image, or leave the cell empty if there is no mask"
        ) from error
    scale = min(on.shape) / size
    width, height = (max(size, round(side / scale)) for side in (on.shape[1], on.shape[0]))
    fractions = Image.fromarray(on.astype(np.float32))
    resized = fractions.resize((width, height), Image.Resampling.BOX)
    top, left = (height - size) // 2, (width - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size))) > 0, scale


# ---- feature maps --------------------------------------------------------------------------------
def feature_maps(encoder: ImageEncoder, x: Tensor, layers: int) -> list[Tensor]:
    """Return feature maps (N,C,h,w) of the last layers, in the order of the trunk.

    Args:
        encoder: An image encoder. The map of the baseline ``pixels`` is the image itself.
        x: Normalised images (N,1,H,W).
        layers: Number of layers, as `Encoder.intermediates` counts them.

    Raises:
        ValueError: More than one layer of an encoder that gives its last only.
    """
    if isinstance(encoder, Pixels):
        return [x]
    return [as_map(patch_tokens) for patch_tokens, _ in encoder.intermediates(x, layers)]


@dataclass(frozen=True)
class FeatureMaps:
    """Feature maps of some images of a data set; `maps_of` takes it in place of an encoder.

    Attributes:
        maps: Memory-mapped float16 (N,C,h,w), one a layer, for all N images of the data set.
        rows: The images that were encoded; the others are zero.
        layers: Number of layers asked for.
    """

    maps: list[np.ndarray]
    rows: np.ndarray
    layers: int

    def of(self, rows: np.ndarray, layers: int) -> list[Tensor]:
        """Return maps of some images, float32; ValueError if they were not encoded."""
        if layers != self.layers or not np.isin(rows, self.rows).all():
            raise ValueError(
                f"layers={layers}, rows {rows}: only {len(self.rows)} images are encoded, with "
                f"layers={self.layers}"
            )
        return [torch.from_numpy(np.asarray(one[rows])).to(device()).float() for one in self.maps]


@torch.inference_mode()
def maps_of(
    encoder: ImageEncoder | FeatureMaps, prepared: Prepared, rows: np.ndarray, layers: int
) -> list[Tensor]:
    """Return feature maps of some rows, float32, on the encoder's device."""
    if isinstance(encoder, FeatureMaps):
        return encoder.of(rows, layers)
    x = inputs(encoder.to(device()), prepared, rows)
    return [found.float() for found in feature_maps(encoder, x, layers)]


def encode_maps(
    encoder: ImageEncoder,
    prepared: Prepared,
    rows: np.ndarray,
    layers: int,
    *,
    home: Path,
    progress: Progress = iter,
) -> FeatureMaps:
    """Return `feature_maps` of some rows, clipped to the range of half precision.

    They are stored in unnamed files of the folder ``home``. Their space is free again when the
    result is deleted. Memory holds one chunk of images.

    Raises:
        ValueError: Feature maps of an image are not numbers; the message names the image.
    """
    arrays: list[np.ndarray] = []
    # Recorded runs stored a ViT's maps as tokens. Convolutions round differently in another layout.
    channels_last = bool(getattr(getattr(encoder, "trunk", None), "num_prefix_tokens", 0))
    home.mkdir(parents=True, exist_ok=True)
    distinct = np.unique(rows)
    with tempfile.TemporaryDirectory(prefix="maps-", dir=home) as folder:
        for start in progress(range(0, len(distinct), CHUNK)):
            part = distinct[start : start + CHUNK]
            for k, found in enumerate(maps_of(encoder, prepared, part, layers)):
                values = found.clamp(-65504, 65504).half().cpu().numpy()
                if not (finite := np.isfinite(values).all((1, 2, 3))).all():
                    name = prepared.manifest["image_id"].iloc[part[np.argmin(finite)]]
                    raise ValueError(f"feature maps of image {name} are not finite")
                if len(arrays) <= k:
                    shape = (len(prepared.manifest), *values.shape[1:])
                    arrays.append(_mapped(Path(folder, f"{k}.npy"), shape, channels_last))
                arrays[k][part] = values
    return FeatureMaps(arrays, rows, layers)


def _mapped(file: Path, shape: tuple[int, ...], channels_last: bool) -> np.ndarray:
    """Return a memory-mapped float16 array (N,C,h,w), in memory (N,h,w,C) if asked for."""
    n, c, h, w = shape
    stored = (n, h, w, c) if channels_last else shape
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=stored)
    return array.transpose(0, 3, 1, 2) if channels_last else array


# ---- maps and masks ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Subset:
    """Some rows of a memory-mapped array, read when they are asked for."""

    whole: np.ndarray
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the array of these rows."""
        return (len(self.rows), *self.whole.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.whole[self.rows[index]])


@dataclass(frozen=True)
class SegmentationData:
    """Images to train or test a mask decoder on: memory-mapped maps (n,C,h,w) and masks."""

    maps: list[Subset]
    truth: Masks

    def __len__(self) -> int:
        return len(self.truth.known)

    def batch(self, index: np.ndarray) -> list[Tensor]:
        """Return maps of some images, float32."""
        return [torch.from_numpy(one[index]).to(device()).float() for one in self.maps]

    def target(self, index: np.ndarray, devices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return masks (n,D',H,W) and which are known (n,D') of some images and devices, bool."""
        masks, known = self.truth.masks[index][:, devices], self.truth.known[index][:, devices]
        return torch.from_numpy(masks).to(device()), torch.from_numpy(known).to(device())


def with_masks(
    encoded: FeatureMaps,
    prepared: Prepared,
    rows: np.ndarray,
    folder: Path,
    *,
    progress: Progress = iter,
) -> SegmentationData:
    """Return maps and true masks of some rows; the masks are written to ``folder``."""
    folder.mkdir(parents=True)
    size, parts = int(prepared.info["size"]), []
    shape = (len(rows), len(DEVICES), size, size)
    masks = np.lib.format.open_memmap(folder / "masks.npy", mode="w+", dtype=bool, shape=shape)
    for start in progress(range(0, len(rows), CHUNK)):
        truth = load_masks(prepared, rows[start : start + CHUNK])
        masks[start : start + CHUNK] = truth.masks
        parts.append((truth.known, truth.tips, truth.spacing))  # without the masks of the chunk
    truth = Masks(masks, *(np.concatenate(values) for values in zip(*parts, strict=True)))
    return SegmentationData([Subset(one, rows) for one in encoded.maps], truth)
