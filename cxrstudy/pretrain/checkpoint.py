"""State of a run on disk: tensors as safetensors, and a small file read with ``weights_only``.

The file of tensors has the step in its name and is written first. The small file names it and is
replaced in one operation. A run that is killed at any moment finds either the old pair or the new
one. If a pair cannot be read (a full disk, a power failure), the run starts from its beginning with
a warning.
"""

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cxrstudy.files import replacing
from cxrstudy.weights import TornFile, read_tensors, read_torch

STATE = "checkpoint.pt"


def save(
    out: Path, model: nn.Module, optimiser: torch.optim.Optimizer, facts: dict[str, Any]
) -> None:
    """Save model, optimiser and ``facts`` in ``out``, in place of an earlier checkpoint.

    ``facts`` are plain values; ``step`` and ``key`` are among them.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    packed = optimiser.state_dict()
    for index, moments in packed["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in moments.items()}
    file = f"checkpoint-{facts['step']}.safetensors"
    with replacing(out / file) as scratch:
        save_file({name: w.detach().cpu().contiguous() for name, w in tensors.items()}, scratch)
        facts |= {"file": file, "sum": digest_of(scratch), "groups": packed["param_groups"]}
        _sync(scratch)
    with replacing(out / STATE) as scratch:
        torch.save(facts, scratch)
        _sync(scratch)
    for old in [*out.glob("checkpoint-*.safetensors"), *out.glob(".checkpoint-*")]:
        if old.name != file:
            old.unlink()


def load(
    out: Path, key: str, model: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Load a checkpoint into model and optimiser, if it is of the run with this ``key``.

    Returns:
        The facts that were saved, or None without a checkpoint of this run. If the checkpoint
        cannot be read or does not fit, nothing is loaded: a warning is given, and ``torn`` is the
        only fact, the reason.
    """
    if not (out / STATE).is_file():
        return None
    try:
        facts = _read_facts(out / STATE)
        if facts["key"] != key:
            return None
        tensors = _read_tensors(out, facts, model, optimiser)
    except (TornFile, FileNotFoundError) as error:
        torn = f"cannot read the checkpoint in {out}; the run starts from its beginning: {error}"
        warnings.warn(torn, stacklevel=2)
        return {"torn": torn}
    model.load_state_dict(
        {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, moment = name.split(".", 2)
            state.setdefault(int(index), {})[moment] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": facts.pop("groups")})
    for parameter, moments in optimiser.state.items():
        for name, tensor in moments.items():
            # fused kernels need the memory layout of the parameter; "step" is no moment
            if name != "step" and tensor.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(tensor)
    return {name: value for name, value in facts.items() if name not in ("file", "sum")}


def remove(out: Path) -> None:
    """Delete the checkpoint of a finished run."""
    for file in [out / STATE, *out.glob("checkpoint-*.safetensors"), *out.glob(".checkpoint*")]:
        file.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """Return a digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _read_facts(path: Path) -> dict[str, Any]:
    facts = read_torch(path)
    if not isinstance(facts, dict) or not {"key", "step", "file", "groups"} <= facts.keys():
        raise TornFile(f"{path} is not the state of a run")
    return facts


def _read_tensors(
    out: Path, facts: dict[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return the tensors that ``facts`` name; TornFile if they were changed or do not fit."""
    path = out / facts["file"]
    if path.is_file() and "sum" in facts and facts["sum"] != digest_of(path):
        raise TornFile(f"{path} is not the file that was saved at step {facts['step']}")
    tensors = read_tensors(path)
    own = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in tensors.items() if name.startswith("model.")}:
        raise TornFile(f"{path} has other tensors than the model")
    sizes = [
        [len(group["params"]) for group in groups]
        for groups in (facts["groups"], optimiser.param_groups)
    ]
    if sizes[0] != sizes[1]:
        raise TornFile(f"{out / STATE} has other parameter groups than the optimiser")
    return tensors


def _sync(path: Path) -> None:
    """Write a file's bytes to the disk, before it replaces another file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
