"""Processes that share a batch: what torch.distributed is asked for, and what holds where there is but one."""

import os
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.nn.functional import all_gather


def world() -> int:
    """How many processes there are; 1 where no group was set up."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda", torch.cuda.current_device())


def gathered(x: Tensor) -> Tensor:
    """Rows of all ranks, in their order, with gradients; ``x`` itself where there is but one process."""
    return torch.cat(all_gather(x.contiguous())) if world() > 1 else x


def over_ranks(x: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """``x``, summed over all ranks in place (or as ``op`` says)."""
    if world() > 1:
        dist.all_reduce(x, op)
    return x


def average_gradients(objective: nn.Module) -> None:
    """The mean over ranks; all in one message, as they are small beside the activations."""
    gradients = [w.grad for w in objective.parameters() if w.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    flat = over_ranks(flat) / world()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def shared_statistics(objective: nn.Module, device: torch.device) -> Any:
    """Batch norms whose statistics are those of all ranks; ValueError on CPUs, where torch has none such."""
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in objective.modules()):
        return objective
    if device.type != "cuda":
        raise ValueError(
            "this encoder has batch norms, whose statistics processes on CPUs cannot share: say processes=1, or take "
            "an encoder without them (davit_mini, hybrid_mini, any ViT)"
        )
    return convert_sync_batchnorm(
        objective
    )  # timm's: torch's would drop activations that are fused into norms
