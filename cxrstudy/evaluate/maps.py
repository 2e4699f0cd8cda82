"""What a frozen encoder sees of an image, map by map, and where its devices truly are.

An image is encoded once: its maps lie in memory-mapped half precision in the run's folder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from cxrstudy.data import synthetic
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import ManifestError, label_array
from cxrstudy.data.vocabulary import DEVICES
from cxrstudy.evaluate import masks as measures
from cxrstudy.evaluate.features import device, inputs, patches, write_features
from cxrstudy.progress import Progress

CHUNK = 64  # images handled at a time


# ---- masks ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Masks:
    """True masks of n images and D devices, in the order of DEVICES."""

    masks: np.ndarray  # bool (n,D,size,size), empty where not known
    known: (
        np.ndarray
    )  # bool (n,D): whether anyone has said where the device is, or that it is absent
    tips: (
        np.ndarray
    )  # float64 (n,D,2): column and row in px; NaN where absent, unknown, or outside the image
    spacing: np.ndarray  # float64 (n,), mm a pixel; NaN where not known


def known_devices(manifest: pd.DataFrame) -> np.ndarray:
    """(n,D) bool: whose masks `load_masks` can tell, from the manifest alone. Synthetic rows: all. Others: those with a
    path in ``mask:NAME``, and, where a data set has that column, those whose label says that the device is absent."""
    known = np.zeros((len(manifest), len(DEVICES)), bool)
    for k, name in enumerate(DEVICES):
        if f"mask:{name}" in manifest:
            known[:, k] = manifest[f"mask:{name}"].fillna("") != ""
            if f"label:{name}" in manifest:
                known[:, k] |= label_array(manifest, [name], truth=True)[:, 0] == 0
    known[manifest["path"].str.startswith("synthetic:").to_numpy()] = True
    return known


def load_masks(prepared: Prepared, rows: np.ndarray) -> Masks:
    """True masks of some rows of a prepared data set, at its size.

    Synthetic rows are drawn again. Others: ``mask:NAME`` holds the path of an 8-bit image (not zero = device) of the
    x-ray's own size, brought to ours as ``read_image`` does: a pixel is on where any of the file's pixels in it is, so
    that a thin line stays whole. The tip is found by the rule of `masks.tips`; spacing comes from the column
    ``pixel_spacing`` (mm a pixel of that file), where there is one.
    ManifestError names file, row and column where a mask cannot be read.
    """
    manifest, size = prepared.manifest.iloc[rows], int(prepared.info["size"])
    shape = (len(manifest), len(DEVICES), size, size)
    tips, spacing = np.full((*shape[:2], 2), np.nan), np.full(len(manifest), np.nan)
    found = Masks(np.zeros(shape, bool), known_devices(manifest), tips, spacing)
    drawn = manifest["path"].str.startswith("synthetic:").to_numpy()
    sources = [
        path.split(":") if path.startswith("synthetic:") else ["", "", ""]
        for path in manifest["path"]
    ]
    for institution, seed in sorted({(source[1], source[2]) for source in sources} - {("", "")}):
        here = np.flatnonzero([source[1:3] == [institution, seed] for source in sources])
        index = [int(sources[k][3]) for k in here]
        batch = synthetic.sample(index, institution=institution, size=size, seed=int(seed))
        found.masks[here], found.tips[here] = np.asarray(batch.masks), batch.tips
        found.spacing[here] = batch.pixel_spacing
    for place in np.flatnonzero(~drawn).tolist():
        row = manifest.iloc[place]
        for k, name in enumerate(DEVICES):
            path = row.get(f"mask:{name}")
            if isinstance(path, str) and path:
                where = f"row {int(np.asarray(rows)[place])} (image {row['image_id']}), column 'mask:{name}'"
                found.masks[place, k], scale = _read_mask(path, size, where)
                found.spacing[place] = float(row.get("pixel_spacing", np.nan)) * scale
        found.tips[place] = measures.tips(found.masks[place])
    with np.errstate(invalid="ignore"):
        found.tips[~((found.tips >= 0) & (found.tips <= size - 1)).all(2)] = np.nan
    return found


def _read_mask(path: str, size: int, where: str) -> tuple[np.ndarray, float]:
    """A mask file as bool (size,size), and how many of the file's pixels one of ours is wide."""
    try:
        with Image.open(path) as file:
            on = np.asarray(file if file.mode in ("1", "L", "P") else file.convert("L")) != 0
    except Exception as error:  # Pillow raises a dozen kinds
        raise ManifestError(
            f"mask {path}, {where}: cannot be read ({type(error).__name__}: {error}); give an 8-bit image, not zero "
            "where the device is, or leave the place empty where nobody has drawn it"
        ) from error
    scale = min(on.shape) / size
    width, height = (max(size, round(side / scale)) for side in (on.shape[1], on.shape[0]))
    image = Image.fromarray(on.astype(np.float32)).resize(
        (width, height), Image.Resampling.BOX
    )  # shares
    top, left = (height - size) // 2, (width - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size))) > 0, scale


# ---- feature maps --------------------------------------------------------------------------------------------------
def feature_maps(encoder: Any, x: Tensor, layers: int) -> list[Tensor]:
    """Feature maps (N,C,h,w), in the order of the trunk (a CNN's: fine to coarse), of normalised images (N,1,H,W).

    A trunk with stages (CNN, DaViT, Swin): the last ``layers`` stages. A ViT: the patch tokens of its last ``layers``
    blocks as a square grid, through its last norm. All of them where there are fewer. The control ``pixels``: the
    image itself. By timm's ``forward_intermediates``; ValueError where the trunk has none.
    """
    if encoder.info.get("encoder") == "pixels":
        return [x]
    trunk: Any = getattr(encoder, "trunk", None)
    if not hasattr(trunk, "forward_intermediates"):
        name = encoder.info.get("encoder", type(encoder).__name__)
        raise ValueError(
            f"encoder {name}: {type(trunk).__name__} gives no feature maps (no forward_intermediates)"
        )
    x = x.expand(-1, encoder.in_chans, -1, -1)
    count = min(layers, len(trunk.feature_info))
    how = {"indices": count, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
    return list(trunk.forward_intermediates(x, **how))


@dataclass(frozen=True)
class Seen:
    """Feature maps of some images of a data set, encoded once; stands where an encoder would in `maps_of`."""

    maps: list[np.ndarray]  # float16 (N,C,h,w) each, memory-mapped, N images in the data set
    rows: np.ndarray  # of those that were encoded
    layers: int  # as they were asked for

    def of(self, rows: np.ndarray, layers: int) -> list[Tensor]:
        """Their maps, float32; ValueError for a row, or a number of layers, that was not encoded."""
        if layers != self.layers or not np.isin(rows, self.rows).all():
            raise ValueError(
                f"layers={layers}, rows {rows}: only {len(self.rows)} are here, with {self.layers}"
            )
        return [torch.from_numpy(np.asarray(one[rows])).to(device()).float() for one in self.maps]


@torch.inference_mode()
def maps_of(encoder: Any, prepared: Prepared, rows: np.ndarray, layers: int) -> list[Tensor]:
    """Feature maps of some rows, float32, on the encoder's device."""
    if isinstance(encoder, Seen):
        return encoder.of(rows, layers)
    x = inputs(encoder.to(device()), prepared, rows)
    return [found.float() for found in feature_maps(encoder, x, layers)]


def encode_maps(
    encoder: Any, prepared: Prepared, rows: np.ndarray, layers: int, **how: Any
) -> Seen:
    """Return `feature_maps` of some rows in half precision; ``how`` as ``features.write_features``.

    Values are cut to the range of half precision, except a ViT's, which are refused beyond it.
    """
    trunk: Any = getattr(encoder, "trunk", None)
    depth = min(layers, len(getattr(trunk, "feature_info", ())))
    if getattr(trunk, "num_prefix_tokens", 0):
        tokens = patches(encoder, prepared, rows, layers=depth, **how)
        side = math.isqrt(tokens.shape[1])
        last_first = tokens.reshape(len(tokens), side, side, depth, -1).transpose(3, 0, 4, 1, 2)
        return Seen(list(last_first[::-1]), rows, layers)

    def extract_batch(encoder: Any, prepared: Prepared, few: np.ndarray) -> list[Tensor]:
        return [one.clamp(-65504, 65504) for one in maps_of(encoder, prepared, few, layers)]

    found = write_features(encoder, prepared, rows, extract_batch, batch=CHUNK, **how)
    return Seen(found, rows, layers)


# ---- maps beside masks ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Chosen:
    """Some rows of a mapped array, read as they are asked for."""

    whole: np.ndarray
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return (len(self.rows), *self.whole.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.whole[self.rows[index]])


@dataclass(frozen=True)
class Store:
    """Images to learn from or to be judged on: maps and masks lie in memory-mapped files."""

    maps: list[Chosen]  # float16 (n,C,h,w) each
    truth: Masks

    def __len__(self) -> int:
        return len(self.truth.known)

    def batch(self, index: np.ndarray) -> list[Tensor]:
        """Maps of some images, float32."""
        return [torch.from_numpy(chosen[index]).to(device()).float() for chosen in self.maps]

    def target(self, index: np.ndarray, devices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Masks (n,D',H,W) and what is known (n,D') of some images and devices, bool."""
        masks, known = self.truth.masks[index][:, devices], self.truth.known[index][:, devices]
        return torch.from_numpy(masks).to(device()), torch.from_numpy(known).to(device())


def with_masks(
    seen: Seen, prepared: Prepared, rows: np.ndarray, folder: Path, *, progress: Progress = iter
) -> Store:
    """Maps and true masks of some rows; masks are written once below ``folder``, a chunk of images in memory."""
    folder.mkdir(parents=True)
    size, told = int(prepared.info["size"]), []
    shape = (len(rows), len(DEVICES), size, size)
    masks = np.lib.format.open_memmap(folder / "masks.npy", mode="w+", dtype=bool, shape=shape)
    for start in progress(range(0, len(rows), CHUNK)):
        truth = load_masks(prepared, rows[start : start + CHUNK])
        masks[start : start + CHUNK] = truth.masks
        told.append(
            (truth.known, truth.tips, truth.spacing)
        )  # not the masks, whose chunk could not be freed then
    truth = Masks(masks, *(np.concatenate(parts) for parts in zip(*told, strict=True)))
    return Store([Chosen(one, rows) for one in seen.maps], truth)
