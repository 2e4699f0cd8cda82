"""Features of a frozen encoder: one forward pass, pooled in the ways an evaluation asks for."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from cxrstudy import study
from cxrstudy.data.images import Prepared
from cxrstudy.evaluate.embeddings import TABLES as TABLES  # of which callers ask this module
from cxrstudy.evaluate.embeddings import Embeddings as Embeddings
from cxrstudy.evaluate.embeddings import read_embeddings as read_embeddings
from cxrstudy.progress import Progress

BATCH = 256  # images encoded at a time


# ---- pooling -------------------------------------------------------------------------------------------------------
def pool_tokens(tokens: Tensor, pooling: str, classes: Tensor | None = None) -> Tensor:
    """(N,T,C) patch features of a square grid -> (N,F): the parts of ``pooling`` joined by '+', side by side.

    Parts: ``mean``, ``max``, ``gridK`` (the mean within each cell of a K x K grid, which keeps place: thin tubes
    gain by it) and ``class`` (``classes`` (N,K), the class token). A feature without patches (T = 1) is itself.
    ValueError names an unknown part, or ``class`` where the encoder has no such token.
    """
    if tokens.shape[1] == 1:
        return tokens[:, 0]
    side = int(tokens.shape[1] ** 0.5)
    parts = []
    for part in pooling.split("+"):
        if part == "mean":
            parts.append(tokens.mean(1))
        elif part == "max":
            parts.append(tokens.amax(1))
        elif part == "class":
            if classes is None or not classes.shape[1]:
                raise ValueError(
                    "pooling 'class' needs an encoder with a class token; this one has none"
                )
            parts.append(classes)
        elif part.startswith("grid") and part[4:].isdigit():
            if side * side != tokens.shape[1]:
                raise ValueError(
                    f"pooling {part!r} needs a square grid of patches, not {tokens.shape[1]}"
                )
            grid = tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
            parts.append(functional.adaptive_avg_pool2d(grid, int(part[4:])).flatten(1))
        else:
            raise ValueError(
                f"pooling: unknown part {part!r}; parts are mean, max, class and gridK, joined by '+'"
            )
    return torch.cat(parts, 1)


# ---- one forward pass ----------------------------------------------------------------------------------------------
def extract(encoder: Any, x: Tensor, layers: int = 1) -> tuple[Tensor, Tensor]:
    """Normalised images (N,1,H,W) -> patch features (N,T,C) and class tokens (N,K), K = 0 where there are none.

    ``layers`` > 1 joins the last n blocks of a ViT (each through its final norm, as DINOv2's linear evaluation does) or
    the last n stages of a hierarchical trunk, averaged onto the last one's grid; the last comes first. ValueError where
    the encoder shows no inner layers.
    """
    trunk: Any = getattr(encoder, "trunk", None)
    prefix = getattr(trunk, "num_prefix_tokens", 0)
    if layers == 1 and not prefix:
        return encoder.forward_features(x), x.new_zeros(len(x), 0)
    if not hasattr(trunk, "forward_intermediates"):
        raise ValueError(
            f"layers={layers}: encoder {encoder.info.get('encoder')} shows no inner layers; say layers=1"
        )
    how: dict[str, Any] = {"norm": True, "return_prefix_tokens": True} if prefix else {}
    x = x.expand(-1, encoder.in_chans, -1, -1) if encoder.in_chans != 1 else x
    maps = trunk.forward_intermediates(x, indices=layers, intermediates_only=True, **how)[::-1]
    classes = x.new_zeros(len(x), 0)
    if prefix:
        if getattr(trunk, "cls_token", None) is not None:
            classes = torch.cat([tokens[:, 0] for _, tokens in maps], 1)
        maps = [patches for patches, _ in maps]
    size = maps[0].shape[-2:]
    joined = torch.cat(
        [functional.adaptive_avg_pool2d(m, size) if m.shape[-2:] != size else m for m in maps], 1
    )
    return joined.flatten(2).transpose(1, 2), classes


def _forward(
    encoder: Any, prepared: Prepared, rows: np.ndarray, layers: int = 1
) -> tuple[Tensor, Tensor]:
    """Return what `extract` gives for some rows of a data set, float32, on the encoder's device."""
    order = np.sort(rows)
    patch_tokens, cls_tokens = extract(encoder, inputs(encoder, prepared, order), layers)
    if (np.diff(rows) < 0).any():
        back = torch.from_numpy(np.searchsorted(order, rows)).to(patch_tokens.device)
        patch_tokens, cls_tokens = patch_tokens[back], cls_tokens[back]
    return patch_tokens.float().contiguous(), cls_tokens.float()  # contiguous: pools twice as fast


def inputs(encoder: Any, prepared: Prepared, rows: np.ndarray) -> Tensor:
    """Normalised images (n,1,H,W) of some rows, at the encoder's own size (the control ``pixels``: as they are)."""
    images = torch.from_numpy(np.array(prepared.images[rows]))
    x = encoder.normalise(images.to(device(), non_blocking=True))
    if x.shape[-1] != encoder.input_size and encoder.info.get("encoder") != "pixels":
        x = functional.interpolate(
            x, size=(encoder.input_size,) * 2, mode="bilinear", antialias=True
        )
    return x


def device() -> torch.device:
    """Where encoders run: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# ---- memory-mapped features ------------------------------------------------------------------------
@torch.inference_mode()
def write_features(
    encoder: Any,
    prepared: Prepared,
    rows: np.ndarray,
    extract_batch: Callable[[Any, Prepared, np.ndarray], list[Tensor]],
    *,
    home: Path | None = None,
    batch: int = BATCH,
    progress: Progress = iter,
) -> list[np.ndarray]:
    """Encode some rows, a batch in memory at a time, into memory-mapped half-precision arrays.

    Args:
        rows: Rows of the data set that are encoded, in ascending order and each once.
        extract_batch: Takes encoder, data and rows, and returns tensors of shape (n,...).
        home: Folder (by default the folder of runs) whose unnamed files hold the arrays. Their
            space is free again when the arrays are deleted.

    Returns:
        Arrays (N,...) float16 for all N images of the data set; only ``rows`` are filled.

    Raises:
        ValueError: A feature is not finite in half precision. The message names the image.
    """
    home = home or study.runs_root()
    home.mkdir(parents=True, exist_ok=True)
    encoder, rows, arrays = encoder.to(device()), np.unique(rows), []
    with tempfile.TemporaryDirectory(prefix="features-", dir=home) as folder:
        for start in progress(range(0, len(rows), batch)):
            part = rows[start : start + batch]
            found = [x.half().cpu().numpy() for x in extract_batch(encoder, prepared, part)]
            for k, values in enumerate(found):
                finite = np.isfinite(values).reshape(len(part), -1).all(1)
                if not finite.all():
                    name = prepared.manifest["image_id"].iloc[part[np.argmin(finite)]]
                    raise ValueError(f"features of image {name} are not finite in half precision")
                if len(arrays) <= k:
                    shape = (len(prepared.manifest), *values.shape[1:])
                    how: Any = {"mode": "w+", "dtype": np.float16, "shape": shape}
                    arrays.append(np.lib.format.open_memmap(f"{folder}/{k}.npy", **how))
                arrays[k][part] = values
    return arrays


# ---- what evaluations read -----------------------------------------------------------------------------------------
def encode(
    encoder: Any, prepared: Prepared, rows: np.ndarray, *, pooling: str, **how: Any
) -> np.ndarray:
    """Pooled features (len(rows), F) float32 of rows of a prepared data set; ``how`` as ``encode_batches``."""
    return encode_each(encoder, prepared, rows, [pooling], **how)[0]


@torch.inference_mode()
def encode_each(
    encoder: Any, prepared: Prepared, rows: np.ndarray, poolings: Sequence[str], **how: Any
) -> list[np.ndarray]:
    """As ``encode``, once a pooling, from one pass."""
    batches = encode_batches(encoder, prepared, rows, **how)
    pooled = [
        [pool_tokens(patches, one, classes).cpu().numpy() for one in poolings]
        for patches, classes in batches
    ]
    return [np.concatenate(found) for found in zip(*pooled, strict=True)]


@torch.inference_mode()
def encode_batches(
    encoder: Any,
    prepared: Prepared,
    rows: np.ndarray,
    *,
    layers: int = 1,
    batch: int = BATCH,
    progress: Progress = iter,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield patch tokens (n,T,C) and class tokens (n,K) of the given rows in their order, float32."""
    rows, encoder = np.asarray(rows), encoder.to(device())
    for start in progress(range(0, len(rows), batch)):
        yield _forward(encoder, prepared, rows[start : start + batch], layers)


def patches(
    encoder: Any,
    prepared: Prepared,
    rows: np.ndarray,
    *,
    layers: int = 1,
    home: Path | None = None,
    progress: Progress = iter,
) -> np.ndarray:
    """Return patch tokens of some rows, memory-mapped: see `write_features`; (N,T,C) float16."""

    def extract_batch(encoder: Any, prepared: Prepared, few: np.ndarray) -> list[Tensor]:
        return [_forward(encoder, prepared, few, layers)[0]]

    return write_features(encoder, prepared, rows, extract_batch, home=home, progress=progress)[0]


# ---- a control -----------------------------------------------------------------------------------------------------
def covariates(manifest: pd.DataFrame) -> np.ndarray:
    """View, age and sex as features (N,5): what could be guessed without looking at the image."""
    age = pd.to_numeric(manifest.get("age", pd.Series(np.nan, manifest.index))).astype(float)
    age = age.fillna(age.median() if age.notna().any() else 0.0) / 50
    view = manifest.get("view", pd.Series("", manifest.index))
    sex = manifest.get("sex", pd.Series("", manifest.index))
    columns = [view == "AP", view == "LATERAL", sex == "M", age, age**2]
    return np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)
