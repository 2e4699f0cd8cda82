"""The state of a run on disk: tensors as safetensors, the little else in a file that is read with weights_only.

The tensors' file bears the step in its name and is written first; the small file, replaced in one act, names it. A run
that is killed at any moment finds either the old pair or the new one. A pair that does not read back (a full disk, a
machine that lost power) is no reason to fail for ever: the run starts from its beginning, and says so.
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
    """Keep model, optimiser and ``facts`` (plain values; ``step`` among them) in ``out``, in place of what was kept."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    packed = optimiser.state_dict()
    for index, moments in packed["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in moments.items()}
    file = f"checkpoint-{facts['step']}.safetensors"
    with replacing(out / file) as scratch:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch
        )
        kept = facts | {"file": file, "sum": digest_of(scratch), "groups": packed["param_groups"]}
        _to_disk(scratch)
    with replacing(out / STATE) as scratch:
        torch.save(kept, scratch)
        _to_disk(scratch)
    for old in [*out.glob("checkpoint-*.safetensors"), *out.glob(".checkpoint-*")]:
        if old.name != file:
            old.unlink()


def load(
    out: Path, key: str, model: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Put back what ``save`` kept, if it is of the run that ``key`` names; the facts, or None where nothing was.

    Of a pair that does not read back, or does not fit, nothing is put back: a warning says so, and the facts are
    ``torn`` alone, the reason.
    """
    if not (out / STATE).is_file():
        return None
    try:
        facts = _read_facts(out / STATE)
        if facts["key"] != key:
            return None
        tensors = _read_tensors(out, facts, model, optimiser)
    except (TornFile, FileNotFoundError) as error:
        torn = f"the checkpoint in {out} does not read back, so the run starts from its beginning: {error}"
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
    for (
        parameter,
        moments,
    ) in optimiser.state.items():  # fused kernels read memory as it lies: alike in both
        for name, tensor in moments.items():
            if (
                name != "step" and tensor.shape == parameter.shape
            ):  # the count of a 0-d parameter is no moment of it
                moments[name] = torch.empty_like(parameter).copy_(tensor)
    return {name: value for name, value in facts.items() if name not in ("file", "sum")}


def remove(out: Path) -> None:
    """Drop what was kept: the run is done."""
    for file in [out / STATE, *out.glob("checkpoint-*.safetensors"), *out.glob(".checkpoint*")]:
        file.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """A digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _read_facts(path: Path) -> dict[str, Any]:
    facts = read_torch(path)
    if not isinstance(facts, dict) or not {"key", "step", "file", "groups"} <= facts.keys():
        raise TornFile(f"{path} holds no state of a run")
    return facts


def _read_tensors(
    out: Path, facts: dict[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The tensors that go with ``facts``; TornFile unless they are those that were kept, and fit."""
    path = out / facts["file"]
    if path.is_file() and "sum" in facts and facts["sum"] != digest_of(path):
        raise TornFile(f"{path} is not the file that was kept at step {facts['step']}")
    tensors = read_tensors(path)
    own = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in tensors.items() if name.startswith("model.")}:
        raise TornFile(f"{path} holds other tensors than the model")
    sizes = [
        [len(group["params"]) for group in groups]
        for groups in (facts["groups"], optimiser.param_groups)
    ]
    if sizes[0] != sizes[1]:
        raise TornFile(f"{out / STATE} holds other groups of parameters than the optimiser")
    return tensors


def _to_disk(path: Path) -> None:
    """Have a file's bytes on the disk before another is replaced by it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
