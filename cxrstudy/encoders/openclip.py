"""Models of open_clip's: both towers, frozen, or what their folder lacks.

BiomedCLIP's folder names its text tower by a repository of Hugging Face, and open_clip downloads
that repository's configuration. Without a network the configuration must be in the subfolder
``text_tower`` of the model's folder or in Hugging Face's cache.
"""

from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import torch
from torch import Tensor

from cxrstudy import study
from cxrstudy.encoders.image import ImageEncoder, Tokens
from cxrstudy.weights import (
    UNVERIFIED,
    MissingWeights,
    UnmatchedTensors,
    folder_of,
    read,
    read_facts,
)

CONFIG = "open_clip_config.json"
TOWER = "text_tower"
WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # open_clip takes the first of these
TOKENIZER = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model"),
    "sentencepiece.bpe.model",
)


class OpenClip(ImageEncoder):
    """An open_clip model, such as BiomedCLIP, by ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``.

    As an image encoder it gives patch tokens. As a text tower it gives ``tokens``, ``embed_text``
    and ``embed_image``, which takes normalised images and not pooled features, because these
    models pool in different ways.

    Raises:
        MissingWeights: A file is missing; the message says how to get it.
        UnmatchedTensors: The file holds other tensors than the model.
    """

    def __init__(self, name: str):
        super().__init__()
        kind, _, place = name.partition(":")
        if kind == "local-dir" and not Path(place).is_dir():
            name = f"local-dir:{study.resolve(place)}"  # like other paths in parameters
        try:
            how: dict[str, Any] = {"return_transform": False, **_text_tower(name)}
            self.model: Any = open_clip.create_model_from_pretrained(name, **how)
            self.tokens = open_clip.get_tokenizer(name)  # texts -> (N, context)
        except Exception as error:  # of open_clip, transformers or torch
            if "state_dict" in str(error):
                raise UnmatchedTensors(f"{name}: {error}") from error
            raise _explained(name, error) from error
        facts = self.model.visual.preprocess_cfg
        self.mean, self.std = (sum(facts[key]) / 3 for key in ("mean", "std"))
        self.input_size = int(torch.tensor(facts["size"]).max())
        self.info = {"encoder": name, "source": name, "licence": "see its model card"}
        self.info["checked"] = UNVERIFIED
        with torch.no_grad():
            blank = torch.zeros(1, 1, self.input_size, self.input_size)
            self.channels = int(self.eval().forward_features(blank).shape[2])

    def intermediates(self, x: Tensor, layers: int = 1) -> list[Tokens]:
        """Return patch tokens (N,T,C) and class token (N,C) of the last layers, last one last."""
        trunk = getattr(self.model.visual, "trunk", None)  # of timm
        classes = trunk is None or getattr(trunk, "cls_token", None) is not None
        how = {"normalize_intermediates": True, "intermediates_only": True}
        how |= {"output_extra_tokens": True} if classes else {}
        x = x.expand(-1, 3, -1, -1)
        out = self.model.visual.forward_intermediates(x, indices=layers, **how)
        empty = x.new_zeros(len(x), 1, 0)
        maps = out["image_intermediates"]
        prefixes = out.get("image_intermediates_prefix", [empty] * len(maps))
        return [
            (one.flatten(2).transpose(1, 2), prefix[:, 0])
            for one, prefix in zip(maps, prefixes, strict=True)
        ]

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Return unit rows (N, dim) of token ids (N, context)."""
        return self.model.encode_text(tokens, normalize=True)

    def embed_image(self, x: Tensor) -> Tensor:
        """Return unit rows (N, dim) of normalised images (N,1,H,W)."""
        return self.model.encode_image(x.expand(-1, 3, -1, -1), normalize=True)


# ---- what is missing -----------------------------------------------------------------------------
def _explained(name: str, error: Exception) -> Exception:
    """Return an error that says what a model lacks here, or why it could not be opened."""
    kind, _, place = name.partition(":")
    if found := _missing(name, folder_of(Path(place).name)):
        return MissingWeights(
            f"{name!r} is not complete on this machine: {'; '.join(found)} (needs a network; size "
            "and licence: see its model card)"
        )
    files = [file for pattern in WEIGHTS for file in sorted(Path(place).glob(pattern))]
    if kind == "local-dir" and files:
        read(files[0])  # raises TornFile if the file is cut short
    return MissingWeights(f"{name!r} could not be opened: {type(error).__name__}: {error}")


def _missing(name: str, folder: Path) -> list[str]:
    """Return what a model lacks on this machine, each with the command that downloads it.

    Args:
        name: ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``.
        folder: Where a model of the hub should be downloaded to.

    Raises:
        TornFile: The model's configuration is damaged.
    """
    kind, _, place = name.partition(":")
    local, here = kind == "local-dir", Path(place)
    if local and not here.is_dir():
        return [f"there is no folder {here}: run hf download OWNER/NAME --local-dir {here}"]
    if not _config_file(name):
        if local:
            return [f"{CONFIG} is missing: run hf download OWNER/NAME --local-dir {here}"]
        command = f"hf download {place} --local-dir {folder}"
        return [f"{CONFIG} is missing: run {command}, then use local-dir:{folder}"]
    text, found = _text_config(name), []
    if local and not any(file for pattern in WEIGHTS for file in here.glob(pattern)):
        command = f"hf download OWNER/NAME --local-dir {here}"
        found.append(f"its weights ({', '.join(WEIGHTS)}) are missing: run {command}")
    tower, tokenizer = text.get("hf_model_name", ""), text.get("hf_tokenizer_name", "")
    copy = "copy ~/.cache/huggingface here"
    if tower and not _text_tower(name) and not _available(tower, ("config.json",)):
        command = f"hf download {tower} config.json"
        remedy = f"{command} --local-dir {here / TOWER}" if local else f"{command} and {copy}"
        found.append(f"config.json of its text tower {tower} is missing: run {remedy}")
    if local and tokenizer and not any((here / file).is_file() for file in TOKENIZER):
        source = tokenizer if "/" in tokenizer else tower or "OWNER/NAME"
        files = "tokenizer.json tokenizer_config.json vocab.txt"
        command = f"hf download {source} {files} --local-dir {here}"
        found.append(f"the text tower's tokenizer is missing: run {command}")
    elif tokenizer and not local and not _available(tokenizer, TOKENIZER):
        command = f"hf download {tokenizer} and {copy}"
        found.append(f"the text tower's tokenizer {tokenizer} is missing: run {command}")
    return found


def _text_tower(name: str) -> dict[str, Any]:
    """Return open_clip's arguments for a text tower in the model's folder."""
    kind, _, place = name.partition(":")
    tower, text = Path(place) / TOWER, _text_config(name)
    if kind == "local-dir" and "hf_model_name" in text and (tower / "config.json").is_file():
        return {"text_cfg": text | {"hf_model_name": str(tower), "hf_model_pretrained": False}}
    return {}


def _text_config(name: str) -> dict[str, Any]:
    """Return the text tower's configuration of a model; empty if it is not on this machine."""
    path = _config_file(name)
    facts = read_facts(path) if path else {}
    return dict((facts.get("model_cfg") or {}).get("text_cfg") or {})


def _config_file(name: str) -> Path | None:
    kind, _, place = name.partition(":")
    path = Path(place) / CONFIG if kind == "local-dir" else _cached(place, CONFIG)
    return path if path and path.is_file() else None


def _available(source: str, files: tuple[str, ...]) -> bool:
    """Return whether a folder, or Hugging Face's cache of a repository, has one of the files."""
    return any((Path(source) / file).is_file() or _cached(source, file) for file in files)


def _cached(repository: str, file: str) -> Path | None:
    try:
        found = huggingface_hub.try_to_load_from_cache(repository, file)
    except ValueError:  # not the name of a repository
        return None
    return Path(found) if isinstance(found, str) else None
