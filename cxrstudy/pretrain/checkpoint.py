"""The state of a run on disk: tensors as safetensors, the little else in a file that is read with weights_only.

The tensors' file bears the step in its name and is written first; the small file, replaced in one act, names it. A run
that is killed at any moment finds either the old pair or the new one.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cxrstudy.files import replacing

STATE = "checkpoint.pt"


def save(out: Path, model: nn.Module, optimiser: torch.optim.Optimizer, facts: dict[str, Any]) -> None:
    """Keep model, optimiser and ``facts`` (plain values; ``step`` among them) in ``out``, in place of what was kept."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    packed = optimiser.state_dict()
    for index, moments in packed["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in moments.items()}
    file = f"checkpoint-{facts['step']}.safetensors"
    with replacing(out / file) as scratch:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch)
    with replacing(out / STATE) as scratch:
        torch.save(facts | {"file": file, "groups": packed["param_groups"]}, scratch)
    for old in [*out.glob("checkpoint-*.safetensors"), *out.glob(".checkpoint-*")]:
        if old.name != file:
            old.unlink()


def load(out: Path, key: str, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Put back what ``save`` kept, if it is of the run that ``key`` names; the facts, or None where nothing was."""
    if not (out / STATE).is_file():
        return None
    facts = torch.load(out / STATE, weights_only=True)
    if facts["key"] != key:
        return None
    tensors = load_file(out / facts.pop("file"))
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, moment = name.split(".", 2)
            state.setdefault(int(index), {})[moment] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": facts.pop("groups")})
    for parameter, moments in optimiser.state.items():  # fused kernels read memory as it lies: alike in both
        for name, tensor in moments.items():
            if name != "step" and tensor.shape == parameter.shape:  # the count of a 0-d parameter is no moment of it
                moments[name] = torch.empty_like(parameter).copy_(tensor)
    return facts


def remove(out: Path) -> None:
    """Drop what was kept: the run is done."""
    for file in [out / STATE, *out.glob("checkpoint-*.safetensors"), *out.glob(".checkpoint*")]:
        file.unlink(missing_ok=True)
