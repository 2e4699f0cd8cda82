"""Encoders by name or folder: saved, loaded frozen, and opened to continue their training."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from cxrstudy import study
from cxrstudy.encoders.image import SMALL, Encoder, ImageEncoder, Pixels, build_encoder
from cxrstudy.encoders.openclip import OpenClip
from cxrstudy.encoders.text import ClipTextTower, TextShape, TextTower, clip_tokenizer
from cxrstudy.files import write_text
from cxrstudy.weights import (
    DINOV2,
    MEDIMAGEINSIGHT,
    REGISTRY,
    KeyMapReport,
    MissingWeights,
    TornFile,
    convert,
    dino_head,
    efficientnet_lite,
    find,
    read,
    read_facts,
    read_tensors,
    read_tokenizer,
)

HEADS = "dino.safetensors"  # in an encoder folder: the heads that `dinov2` trains


def load_encoder(name_or_path: str | Path, *, size: int = 64, seed: int = 0) -> ImageEncoder:
    """Return a frozen encoder.

    Args:
        name_or_path: An encoder folder; published weights by their name in ``weights.REGISTRY``;
            an open_clip model as ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``; a timm name, for
            timm's published weights; ``random:NAME`` for random weights; or ``pixels``.
        size: Side of the images in px, where the encoder takes more than one size.
        seed: Of random weights.

    Raises:
        MissingWeights: The weights are not on this machine. They are never replaced by random ones.
    """
    name = str(name_or_path)
    encoder: ImageEncoder
    if name == "pixels":
        encoder = Pixels()
    elif name.startswith("random:"):
        encoder = build_encoder(name.removeprefix("random:"), size, seed=seed)
    elif (Path(name) / "encoder.json").is_file():
        encoder = _load_folder(Path(name))
    elif name in REGISTRY:
        encoder = load_pretrained(name, size=size).encoder
    elif name.startswith(("hf-hub:", "local-dir:")):
        encoder = OpenClip(name)
    elif name in SMALL:
        raise MissingWeights(
            f"{name!r} is one of our small architectures and has no published weights; use "
            f"random:{name}"
        )
    elif timm.is_model(name):
        encoder = build_encoder(name, size, pretrained=True)
    else:
        raise MissingWeights(
            f"no encoder at {name!r}: an encoder folder holds encoder.json and model.safetensors "
            "(a pretrain run writes them); a name is random:NAME, pixels, or one of timm's"
        )
    return encoder.eval().requires_grad_(False)


# ---- folders -------------------------------------------------------------------------------------
def encoder_folder(path: Path) -> Path | None:
    """Return the encoder folder that ``path`` is or contains (as a run's folder does), or None."""
    folders = (path / "encoder", path)
    return next((folder for folder in folders if (folder / "encoder.json").is_file()), None)


def listed_patients(folder: Path) -> set[str] | None:
    """Return the patients of an encoder's and its base's pretraining; None if not recorded."""
    listed = folder / "patients.txt"
    text = listed.read_text(encoding="utf-8") if listed.is_file() else ""
    return set(text.split("\n")) if text.strip() else None


def facts_of(folder: Path) -> dict[str, Any]:
    """Return the fields of ``encoder.json``; TornFile if it is incomplete."""
    path = folder / "encoder.json"
    facts = read_facts(path)
    needed = {"architecture", "arguments", "input_size", "mean", "std", "text", "info"}
    if lacking := sorted(needed - facts.keys()):
        raise TornFile(
            f"{path} lacks {', '.join(lacking)}: it does not describe an encoder, or is damaged"
        )
    return facts


def save_encoder(encoder: Encoder, folder: str | Path, text: TextTower | None = None) -> None:
    """Write an encoder folder, ``encoder.json`` last: a folder that has it is complete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _save(encoder.trunk, folder / "model.safetensors")
    side, channels = encoder.input_size, encoder.in_chans
    stats = {"mean": [encoder.mean] * channels, "std": [encoder.std] * channels}
    config = {
        "architecture": encoder.architecture,
        "num_classes": 0,
        "model_args": encoder.arguments,
        "pretrained_cfg": {"input_size": [channels, side, side], **stats, "num_classes": 0},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if text is not None:
        _save(text, folder / "text.safetensors")
        text.tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "architecture": encoder.architecture,
        "arguments": encoder.arguments,
        "input_size": side,
        "mean": encoder.mean,
        "std": encoder.std,
        "text": None if text is None else text.shape,
        "info": encoder.info,
    }
    write_text(folder / "encoder.json", json.dumps(facts, indent=1))


def _save(module: nn.Module, path: Path) -> None:
    save_file({name: x.contiguous() for name, x in module.state_dict().items()}, path)


def _load_folder(folder: Path) -> Encoder:
    facts = facts_of(folder)
    how = {name: facts[name] for name in ("input_size", "mean", "std", "info")}
    encoder = Encoder(facts["architecture"], facts["arguments"], **how)
    encoder.trunk.load_state_dict(read_tensors(folder / "model.safetensors"))  # strict
    return encoder


def load_text(folder: str | Path, channels: int) -> TextTower | None:
    """Return the text tower of an encoder folder, or None if it has none."""
    folder = Path(folder)
    shape = facts_of(folder)["text"]
    if not shape:
        return None
    kind = ClipTextTower if shape.pop("clip", False) else TextTower
    text = kind(read_tokenizer(folder / "tokenizer.json"), channels, TextShape(**shape))
    text.load_state_dict(read_tensors(folder / "text.safetensors"))
    return text


# ---- published weights and base models -----------------------------------------------------------
@dataclass
class LoadedCheckpoint:
    """An image encoder and what else its files hold.

    Attributes:
        encoder: Not frozen.
        report: What was done with each published tensor.
        text: The text tower.
        head: State dict of DINOv2's heads (see ``pretrain``).
        mask_token: DINOv2's (C,).
    """

    encoder: Encoder
    report: KeyMapReport = field(default_factory=KeyMapReport)
    text: TextTower | None = None
    head: dict[str, Tensor] | None = None
    mask_token: Tensor | None = None


def open_base(name_or_path: str, *, size: int = 64) -> LoadedCheckpoint:
    """Return a base model whose training continues.

    Args:
        name_or_path: An encoder folder (or a run's), or a name as for `load_encoder`.
        size: Side of the images in px.

    Returns:
        With the text tower, and the heads that `dinov2` saved: ``head.`` and ``patch_head.``
        before their names.
    """
    folder = encoder_folder(study.resolve(name_or_path))
    if folder is None and name_or_path in REGISTRY:
        vit = REGISTRY[name_or_path].architecture.startswith("vit_")
        how = {"dynamic_img_size": True} if vit else {}  # small crops are encoded at their own size
        loaded = load_pretrained(name_or_path, size=size, **how)
        loaded.head = {f"head.{name}": tensor for name, tensor in (loaded.head or {}).items()}
        return loaded
    encoder = load_encoder(folder or name_or_path, size=size)
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"{name_or_path!r} can be evaluated but not trained further: it is not a timm encoder"
        )
    text = load_text(folder, encoder.channels) if folder else None
    heads = folder / HEADS if folder else Path()
    head = read_tensors(heads) if heads.is_file() else {}
    return LoadedCheckpoint(encoder, text=text, head=head)


def load_pretrained(name: str, *, size: int | None = None, **arguments: Any) -> LoadedCheckpoint:
    """Return published weights as an encoder, not frozen.

    Args:
        name: In ``weights.REGISTRY``.
        size: Side of the images in px; by default that of the published encoder.
        arguments: Of ``timm.create_model``.

    Raises:
        MissingWeights: The file is not on this machine.
        UnmatchedTensors: The file holds other tensors than the encoder.
    """
    spec, path = REGISTRY[name], find(name)
    size, vit = size or spec.input_size, spec.architecture.startswith("vit_")
    info: dict[str, Any] = {"encoder": name, "source": f"{spec.repository}: {path.name}"}
    info |= {"licence": spec.licence, "contamination": list(spec.contamination)}
    info |= {"checked": spec.checked}
    made = {**spec.arguments, **({"img_size": size} if vit else {}), **arguments}
    mean, std = spec.stats
    with torch.random.fork_rng(devices=[]):
        encoder = Encoder(spec.architecture, made, input_size=size, mean=mean, std=std, info=info)
        if spec.text:
            text = ClipTextTower(clip_tokenizer(), encoder.channels, TextShape(**spec.text))
    if spec.text:
        loaded = _image_and_text(read(path), encoder, text)
    elif vit:
        loaded = _dinov2(read(path), encoder)
        head = path.parent / "dino_head.safetensors"
        loaded.head = dino_head(read(head), encoder.channels) if head.is_file() else None
    else:
        classes = {"_fc.*": "ImageNet's classes"}
        target = encoder.trunk.state_dict()
        tensors, report = convert(read(path), target, efficientnet_lite, classes)
        encoder.trunk.load_state_dict(tensors)
        loaded = LoadedCheckpoint(encoder, report)
    encoder.info["tensors"] = {fate: len(notes) for fate, notes in vars(loaded.report).items()}
    encoder.eval()
    return loaded


def _dinov2(state: dict[str, Tensor], encoder: Encoder) -> LoadedCheckpoint:
    """Load RAD-DINO's tensors; position embeddings are resampled to the encoder's image size."""
    trunk, resized = encoder.trunk, {}
    for name in {"pos_embed", "embeddings.position_embeddings"} & state.keys():
        old = state[name]
        if old.ndim == 3 and math.isqrt(old.shape[1] - 1) ** 2 == old.shape[1] - 1:
            state[name] = resample_abs_pos_embed(old, trunk.patch_embed.grid_size)
        if state[name] is not old:
            resized["pos_embed"] = f"{tuple(old.shape)} to {tuple(state[name].shape)}"
    ignored = {"*mask_token": "for masked patches in training; kept aside"}
    tensors, report = convert(state, trunk.state_dict(), DINOV2, ignored)
    report.resized = resized
    trunk.load_state_dict(tensors)
    mask = next((state[name].flatten() for name in report.ignored), None)
    return LoadedCheckpoint(encoder, report, mask_token=mask)


def _image_and_text(
    state: dict[str, Tensor], encoder: Encoder, text: ClipTextTower
) -> LoadedCheckpoint:
    """Load MedImageInsight's tensors into both towers."""
    if (projection := state.get("image_projection")) is not None and projection.ndim == 2:
        state["image_projection"] = projection.T.contiguous()
    both = nn.ModuleDict({"trunk": encoder.trunk, "text": text})
    absent = {"text.image_norm.*": "the image tower's last norm, which the text tower has as well"}
    tensors, report = convert(state, both.state_dict(), MEDIMAGEINSIGHT, absent=absent)
    for name in report.absent:
        tensors[name] = tensors[name.replace("text.image_norm", "trunk.head.norm")]
    both.load_state_dict(tensors)
    return LoadedCheckpoint(encoder, report, text.eval())
