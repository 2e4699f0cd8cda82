"""From images to features: one pass of a frozen encoder, kept on disk where asked, pooled in the parts asked for.

Asked for by ``kept`` (``keep_features`` of a run, off by default), features lie in half precision below
``runs/features/KEY``, KEY being a digest of encoder, prepared data and what is kept: patches, which classification and
reports share, or the feature maps of ``maps``. A row is encoded when it is first asked for, and read by whoever asks
for kept features after that. Patches cost N x T x C x 2 bytes an encoder (17,600 images x 16 x 128: 72 MB); the folder
may be deleted at any time. A row whose bytes do not fit their checksum (a crash, a bad disk) is encoded again.
"""

import fcntl
import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
from cxrstudy.files import write_text
from cxrstudy.progress import Progress

BATCH = 256  # images encoded at a time
Look = Callable[
    [Any, Prepared, np.ndarray], dict[str, Tensor]
]  # encoder, data, rows: features (n,...) by name


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
) -> dict[str, Tensor]:
    """``extract`` of some rows of a prepared data set, at the encoder's own size and on its device; float32."""
    take = np.sort(rows)
    x = inputs(encoder, prepared, take)
    patches, classes = extract(encoder, x, layers)
    back = torch.from_numpy(np.searchsorted(take, rows)).to(x.device)
    if (np.diff(rows) < 0).any():
        patches, classes = patches[back], classes[back]
    return {
        "patches": patches.float().contiguous(),
        "classes": classes.float(),
    }  # contiguous: pooled twice as fast


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


# ---- kept on disk --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Kept:
    """Memory-mapped features of N images: ``parts`` (N,...) float16 by name, ``sums`` (N,) checksums (0: not there)."""

    parts: dict[str, np.ndarray]
    sums: np.ndarray

    def checksum(self, row: int) -> int:
        """Of a row's bytes as they stand; never 0."""
        found = 0
        for part in self.parts.values():
            found = zlib.crc32(part[row].tobytes(), found)
        return found or 1

    def stands(self, rows: np.ndarray) -> np.ndarray:
        """Which of ``rows`` are there, byte for byte as they were written: (len(rows),) bool."""
        return np.array(
            [self.sums[row] != 0 and self.sums[row] == self.checksum(row) for row in rows],
            dtype=bool,
        )


def features_folder(encoder: Any, prepared: Prepared, what: Any = 1) -> Path:
    """Where features of this encoder on this data are kept: ``runs/features/KEY``.

    KEY: a digest of every tensor of the encoder, its architecture, size and grey levels; of the manifest's image ids,
    the data's ``info`` and every pixel (about a second a GB); and of ``what`` is kept (a number: patches of so many
    layers), a JSON-like value.
    """
    key = hashlib.blake2b(digest_size=12)
    for name, tensor in encoder.state_dict().items():
        key.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        key.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    made = [
        getattr(encoder, name, None)
        for name in ("architecture", "arguments", "input_size", "mean", "std")
    ]
    key.update(
        json.dumps(
            [type(encoder).__name__, made, prepared.info, what], sort_keys=True, default=str
        ).encode()
    )
    key.update("\n".join(prepared.manifest["image_id"]).encode())
    for start in range(0, len(prepared.images), 1024):
        key.update(np.ascontiguousarray(prepared.images[start : start + 1024]).data)
    return study.runs_root() / "features" / key.hexdigest()


@torch.inference_mode()
def keep(
    encoder: Any,
    prepared: Prepared,
    rows: np.ndarray,
    folder: Path,
    *,
    look: Look = _forward,
    batch: int = BATCH,
    progress: Progress = iter,
) -> Kept:
    """Features in ``folder``, in which ``rows`` stand: those that do not are encoded, a batch in memory at a time.

    Safe under several processes: one encodes, the others wait and find the rows. ValueError names an image whose
    features half precision cannot hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder, rows = encoder.to(device()), np.unique(rows)
    with _locked(folder / "lock"):
        kept = _open(folder, len(prepared.manifest))
        missing = rows if kept is None else rows[~kept.stands(rows)]
        for start in progress(range(0, len(missing), batch)):
            part = missing[start : start + batch]
            found = {
                name: tensor.half().cpu().numpy()
                for name, tensor in look(encoder, prepared, part).items()
            }
            finite = np.all(
                [np.isfinite(a).reshape(len(part), -1).all(1) for a in found.values()], axis=0
            )
            if not finite.all():
                name = prepared.manifest["image_id"].iloc[part[np.argmin(finite)]]
                raise ValueError(
                    f"features of image {name} are not finite in half precision, in which they are kept; a linear "
                    "probe alone can do without: say keep_features=False"
                )
            kept = kept or _made(
                folder, len(prepared.manifest), {name: a.shape[1:] for name, a in found.items()}
            )
            for name, values in found.items():
                kept.parts[name][part] = values
            kept.sums[part] = [
                kept.checksum(row) for row in part
            ]  # last: what has no sum is not there
    if kept is None:
        raise ValueError("no row to encode")
    return kept


def at_hand(
    encoder: Any,
    prepared: Prepared,
    rows: np.ndarray,
    what: Any,
    kept: bool,
    home: Path | None = None,
    **how: Any,
) -> Kept:
    """``keep`` of ``what`` in its ``features_folder``; not ``kept``: in files below ``home`` (``runs/features``)
    without a name, which are gone when the arrays are."""
    if kept:
        return keep(encoder, prepared, rows, features_folder(encoder, prepared, what), **how)
    home = home or study.runs_root() / "features"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        return keep(encoder, prepared, rows, Path(scratch), **how)


def _open(folder: Path, n: int) -> Kept | None:
    """The arrays of ``folder``; None where they are not there, or not of the shapes that they should have."""
    try:
        shapes = json.loads((folder / "shapes.json").read_text()) | {"sums": []}
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in shapes}
        whole = all(arrays[name].shape == (n, *shape) for name, shape in shapes.items())
    except (OSError, ValueError, EOFError, TypeError):
        return None
    return Kept(arrays, arrays.pop("sums")) if whole else None


def _made(folder: Path, n: int, shapes: dict[str, tuple[int, ...]]) -> Kept:
    """Empty arrays in ``folder``, of n rows of these shapes; sparse, so that rows never asked for take no space."""
    (folder / "shapes.json").unlink(missing_ok=True)
    arrays: dict[str, Any] = {}
    for name, shape in (shapes | {"sums": ()}).items():
        how: dict[str, Any] = {
            "dtype": "uint32" if name == "sums" else "float16",
            "shape": (n, *shape),
        }
        (folder / f"{name}.npy").unlink(
            missing_ok=True
        )  # another process may still read the old one
        arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", **how)
    write_text(folder / "shapes.json", json.dumps(shapes))
    return Kept(arrays, arrays.pop("sums"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, also by a crash
        yield


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
    kept: bool = False,
    batch: int = BATCH,
    progress: Progress = iter,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Patch features (n,T,C) and class tokens (n,K), float32, of the given rows in their order, batch after batch.

    ``kept``: they are read from ``features_folder`` and added to it, in half precision; else nothing is written and
    they stay in single precision.
    """
    rows = np.asarray(rows)
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    if kept:
        folder, look = features_folder(encoder, prepared, layers), partial(_forward, layers=layers)
        held = keep(encoder, prepared, rows, folder, look=look, batch=batch, progress=progress)
        for part in parts:
            patches, classes = (
                torch.from_numpy(held.parts[name][part]).float() for name in ("patches", "classes")
            )
            yield patches, classes
    else:
        encoder = encoder.to(device())
        for part in progress(parts):
            found = _forward(encoder, prepared, part, layers)
            yield found["patches"], found["classes"]


def patches(
    encoder: Any,
    prepared: Prepared,
    rows: np.ndarray,
    *,
    layers: int = 1,
    kept: bool = False,
    **how: Any,
) -> np.ndarray:
    """Patch features of the whole data set, (N,T,C) float16 memory-mapped, in which ``rows`` stand; see ``at_hand``."""
    look = partial(_forward, layers=layers)
    return at_hand(encoder, prepared, rows, layers, kept, look=look, **how).parts["patches"]


# ---- a ceiling -----------------------------------------------------------------------------------------------------
def train_supervised(
    encoder: Any,
    prepared: Prepared,
    rows: np.ndarray,
    y: np.ndarray,
    *,
    samples_seen: int,
    lr: float = 3e-3,
    seed: int = 0,
) -> Any:
    """The encoder trained end to end on the labels (n,L) of ``rows``, in place, frozen again; its head is dropped.

    What this architecture reaches when labels are its only teacher: a linear head on mean and maximum of the patches,
    masked binary cross-entropy, AdamW (one cycle), batches of 64, images shifted by up to a sixteenth. The same
    on the same machine for the same seed.
    """
    target, sure = (
        torch.from_numpy(np.nan_to_num(y)).float(),
        torch.from_numpy(~np.isnan(y)).float(),
    )
    draws, batch = np.random.default_rng(seed), min(64, len(rows))
    steps, reach = max(1, samples_seen // batch), max(1, prepared.images.shape[1] // 16)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = torch.nn.Linear(2 * encoder.channels, y.shape[1]).to(device())
        encoder = encoder.to(device()).train().requires_grad_(True)
        optimiser = torch.optim.AdamW(
            [*encoder.parameters(), *head.parameters()], lr=lr, weight_decay=0.05
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
        order = np.empty(0, dtype=np.int64)
        for _ in range(steps):
            if len(order) < batch:
                order = np.concatenate([order, draws.permutation(len(rows))])
            take, order = order[:batch], order[batch:]
            shift = tuple(int(k) for k in draws.integers(-reach, reach + 1, 2))
            x = encoder.normalise(np.stack([prepared.images[row] for row in rows[take]])).to(
                device()
            )
            tokens = encoder.forward_features(torch.roll(x, shift, (2, 3)))
            score = head(torch.cat([tokens.mean(1), tokens.amax(1)], 1))
            told, known = target[take].to(device()), sure[take].to(device())
            loss = (
                functional.binary_cross_entropy_with_logits(score, told, reduction="none") * known
            )
            optimiser.zero_grad()
            (loss.sum() / known.sum().clamp(min=1)).backward()
            optimiser.step()
            schedule.step()
    return encoder.eval().requires_grad_(False)


# ---- a control -----------------------------------------------------------------------------------------------------
def covariates(manifest: pd.DataFrame) -> np.ndarray:
    """View, age and sex as features (N,5): what could be guessed without looking at the image."""
    age = pd.to_numeric(manifest.get("age", pd.Series(np.nan, manifest.index))).astype(float)
    age = age.fillna(age.median() if age.notna().any() else 0.0) / 50
    view = manifest.get("view", pd.Series("", manifest.index))
    sex = manifest.get("sex", pd.Series("", manifest.index))
    columns = [view == "AP", view == "LATERAL", sex == "M", age, age**2]
    return np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)
