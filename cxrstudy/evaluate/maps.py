"""What a frozen encoder sees of an image, map by map, and where its devices truly are.

An image is encoded once: its maps lie in memory-mapped half precision beside its true masks.
"""

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
from cxrstudy.evaluate.features import device, inputs
from cxrstudy.progress import Progress

CHUNK = 64  # images handled at a time


# ---- masks ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Masks:
    """True masks of n images and D devices, in the order of DEVICES."""

    masks: np.ndarray  # bool (n,D,size,size), empty where not known
    known: np.ndarray  # bool (n,D): whether anyone has said where the device is, or that it is absent
    tips: np.ndarray  # float64 (n,D,2): column and row in px; NaN where absent, unknown, or outside the image
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
    sources = [path.split(":") if path.startswith("synthetic:") else ["", "", ""] for path in manifest["path"]]
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
    image = Image.fromarray(on.astype(np.float32)).resize((width, height), Image.Resampling.BOX)  # shares
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
        raise ValueError(f"encoder {name}: {type(trunk).__name__} gives no feature maps (no forward_intermediates)")
    x = x.expand(-1, encoder.in_chans, -1, -1)
    count = min(layers, len(trunk.feature_info))
    how = {"indices": count, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
    return list(trunk.forward_intermediates(x, **how))


@torch.inference_mode()
def maps_of(encoder: Any, prepared: Prepared, rows: np.ndarray, layers: int) -> list[Tensor]:
    """Feature maps of some rows, float32, on the encoder's device."""
    x = inputs(encoder.to(device()), prepared, rows)
    return [found.float() for found in feature_maps(encoder, x, layers)]


@dataclass(frozen=True)
class Store:
    """Images encoded once: maps and masks lie in memory-mapped files."""

    maps: list[np.ndarray]  # float16 (n,C,h,w) each
    truth: Masks

    def __len__(self) -> int:
        return len(self.truth.known)

    def batch(self, index: np.ndarray) -> list[Tensor]:
        """Maps of some images, float32."""
        return [torch.from_numpy(np.asarray(kept[index])).to(device()).float() for kept in self.maps]

    def target(self, index: np.ndarray, devices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Masks (n,D',H,W) and what is known (n,D') of some images and devices, bool."""
        masks, known = self.truth.masks[index][:, devices], self.truth.known[index][:, devices]
        return torch.from_numpy(masks).to(device()), torch.from_numpy(known).to(device())


def encode_maps(
    encoder: Any, prepared: Prepared, rows: np.ndarray, layers: int, folder: Path, *, progress: Progress = iter
) -> Store:
    """Feature maps and masks of some rows, written once below ``folder``; memory stays that of a chunk of images."""
    folder.mkdir(parents=True)
    files: list[np.ndarray] = []
    told: list[tuple[np.ndarray, ...]] = []  # not the masks, whose chunks could not be freed then
    for start in progress(range(0, len(rows), CHUNK)):
        few = rows[start : start + CHUNK]
        maps, truth = maps_of(encoder, prepared, few, layers), load_masks(prepared, few)
        parts = [m.clamp(-65504, 65504).half().cpu().numpy() for m in maps] + [truth.masks]
        for k, part in enumerate(parts):
            if start == 0:
                shape = (len(rows), *part.shape[1:])
                files.append(np.lib.format.open_memmap(folder / f"{k}.npy", mode="w+", dtype=part.dtype, shape=shape))
            files[k][start : start + CHUNK] = part
        told.append((truth.known, truth.tips, truth.spacing))
    return Store(files[:-1], Masks(files[-1], *(np.concatenate(parts) for parts in zip(*told, strict=True))))
