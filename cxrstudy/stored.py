"""Files of weights and facts, read whole or refused by their name: a copy that was cut short ends in odd errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor


class TornFile(ValueError):
    """A file is cut short, empty or damaged; the message names it and says what to do."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    return _whole(path, load_file)


def read_torch(path: Path) -> Any:
    """What a file of torch's holds; no code in it is run."""
    return _whole(path, lambda file: torch.load(file, map_location="cpu", weights_only=True))


def read_facts(path: Path) -> dict[str, Any]:
    """The fields of a JSON file."""
    facts: dict[str, Any] = _whole(
        path, lambda file: dict(json.loads(file.read_text(encoding="utf-8")))
    )
    return facts


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer of the tokenizers library."""
    return _whole(path, lambda file: Tokenizer.from_file(str(file)))


def _whole(path: Path, read: Callable[[Path], Any]) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {path.parent} is not whole; copy it again, or run again what wrote it"
        )
    try:
        return read(path)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # each library has its own dozen
        raise TornFile(
            f"{path} ({path.stat().st_size:,} bytes) is cut short or damaged ({type(error).__name__}: {error}): copy "
            f"or download it again, or delete {path.parent} and run again what wrote it"
        ) from error
