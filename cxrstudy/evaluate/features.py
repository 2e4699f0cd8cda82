"""From images to feature rows: one pass of a frozen encoder, patch features pooled in the parts asked for."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from cxrstudy.data.images import Prepared
from cxrstudy.progress import Progress


def pool_tokens(tokens: Tensor, pooling: str) -> Tensor:
    """(N,T,C) patch features of a square grid -> (N,F): the parts of ``pooling`` joined by '+', side by side.

    Parts: ``mean``, ``max``, and ``gridK`` (the mean within each cell of a K x K grid, which keeps place: thin tubes
    gain by it). A feature without patches (T = 1) is itself. ValueError names an unknown part.
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
        elif part.startswith("grid") and part[4:].isdigit():
            if side * side != tokens.shape[1]:
                raise ValueError(f"pooling {part!r} needs a square grid of patches, not {tokens.shape[1]}")
            grid = tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
            parts.append(functional.adaptive_avg_pool2d(grid, int(part[4:])).flatten(1))
        else:
            raise ValueError(f"pooling: unknown part {part!r}; parts are mean, max and gridK, joined by '+'")
    return torch.cat(parts, 1)


@torch.inference_mode()
def encode(
    encoder: Any, prepared: Prepared, rows: np.ndarray, *, pooling: str, batch: int = 256, progress: Progress = iter
) -> np.ndarray:
    """Pooled features (len(rows), F) float32 of the given rows of a prepared data set."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder.to(device)
    out = []
    for start in progress(range(0, len(rows), batch)):
        take = np.sort(rows[start : start + batch])
        x = encoder.normalise(np.asarray(prepared.images[take])).to(device)
        if x.shape[-1] != encoder.input_size and encoder.info.get("encoder") != "pixels":
            x = functional.interpolate(x, size=(encoder.input_size,) * 2, mode="bilinear", antialias=True)
        features = pool_tokens(encoder.forward_features(x).float(), pooling).cpu().numpy()
        out.append(features[np.argsort(np.argsort(rows[start : start + batch]))])
    return np.concatenate(out)


def covariates(manifest: pd.DataFrame) -> np.ndarray:
    """View, age and sex as features (N,5): what could be guessed without looking at the image."""
    age = pd.to_numeric(manifest.get("age", pd.Series(np.nan, manifest.index))).astype(float)
    age = age.fillna(age.median() if age.notna().any() else 0.0) / 50
    view = manifest.get("view", pd.Series("", manifest.index))
    sex = manifest.get("sex", pd.Series("", manifest.index))
    columns = [view == "AP", view == "LATERAL", sex == "M", age, age**2]
    return np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)
