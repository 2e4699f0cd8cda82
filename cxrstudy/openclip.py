"""What a model of open_clip's needs beside its weights: its configuration, its text tower's, and a tokenizer.

BiomedCLIP's folder names its text tower by a repository of Hugging Face's, of which open_clip fetches the
configuration: without a network it must lie in the folder, in ``text_tower``, or in Hugging Face's cache.
"""

from pathlib import Path
from typing import Any

import huggingface_hub

from cxrstudy.stored import read_facts

CONFIG = "open_clip_config.json"
TOWER = "text_tower"  # in the folder: where the text tower's config.json may lie
WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # open_clip takes the first of these
TOKENIZER = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def text_config(name: str) -> dict[str, Any]:
    """The text tower's configuration of ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``; empty where it is not here."""
    where = _config_file(name)
    facts = read_facts(where) if where else {}
    return dict((facts.get("model_cfg") or {}).get("text_cfg") or {})


def tower_here(name: str) -> dict[str, Any]:
    """What ``open_clip.create_model`` is to be told beside the name: the text tower that lies in the folder."""
    kind, _, place = name.partition(":")
    tower = Path(place) / TOWER
    text = text_config(name)
    if kind == "local-dir" and "hf_model_name" in text and (tower / "config.json").is_file():
        return {"text_cfg": text | {"hf_model_name": str(tower), "hf_model_pretrained": False}}
    return {}


def lacking(name: str, folder: Path) -> list[str]:
    """What of a model is not on this machine, each with the command that fetches it; ``folder`` is where to.

    TornFile where its configuration is damaged. Empty where nothing is known to be missing.
    """
    kind, _, place = name.partition(":")
    local, here = kind == "local-dir", Path(place)
    if local and not here.is_dir():
        return [f"there is no folder {here}: run hf download OWNER/NAME --local-dir {here}"]
    if not _config_file(name):
        fetch = f"hf download {'OWNER/NAME' if local else place} --local-dir {here if local else folder}"
        return [
            f"{CONFIG} is missing: run {fetch}"
            + ("" if local else f", then say local-dir:{folder}")
        ]
    text, found = text_config(name), []
    if local and not any(file for pattern in WEIGHTS for file in here.glob(pattern)):
        found.append(
            f"its weights ({', '.join(WEIGHTS)}) are missing: run hf download OWNER/NAME --local-dir {here}"
        )
    tower, tokenizer = text.get("hf_model_name", ""), text.get("hf_tokenizer_name", "")
    if tower and not tower_here(name) and not _at_hand(tower, ("config.json",)):
        into = f" --local-dir {here / TOWER}" if local else ""
        found.append(
            f"config.json of its text tower {tower} is missing: run hf download {tower} config.json{into}"
            + ("" if local else " and copy ~/.cache/huggingface here")
        )
    if local and tokenizer and not any((here / file).is_file() for file in TOKENIZER):
        source = tokenizer if "/" in tokenizer else tower or "OWNER/NAME"
        files = "tokenizer.json tokenizer_config.json vocab.txt"
        found.append(
            f"the text tower's tokenizer is missing: run hf download {source} {files} --local-dir {here}"
        )
    elif tokenizer and not local and not _at_hand(tokenizer, TOKENIZER):
        found.append(
            f"the text tower's tokenizer {tokenizer} is missing: run hf download {tokenizer} and copy "
            "~/.cache/huggingface here"
        )
    return found


def weights_file(name: str) -> Path | None:
    """The file of weights of a folder."""
    kind, _, place = name.partition(":")
    files = (
        [file for pattern in WEIGHTS for file in sorted(Path(place).glob(pattern))]
        if kind == "local-dir"
        else []
    )
    return files[0] if files else None


def _config_file(name: str) -> Path | None:
    kind, _, place = name.partition(":")
    path = Path(place) / CONFIG if kind == "local-dir" else _cached(place, CONFIG)
    return path if path and path.is_file() else None


def _at_hand(source: str, files: tuple[str, ...]) -> bool:
    """Whether a folder, or Hugging Face's cache of a repository, has one of the files."""
    return any((Path(source) / file).is_file() or _cached(source, file) for file in files)


def _cached(repository: str, file: str) -> Path | None:
    try:
        found = huggingface_hub.try_to_load_from_cache(repository, file)
    except ValueError:  # no name of a repository
        return None
    return Path(found) if isinstance(found, str) else None
