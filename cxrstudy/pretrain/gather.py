"""Rows of all ranks as one batch, with gradients."""

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.nn.functional import all_gather


def gathered(x: Tensor) -> Tensor:
    """Rows of all ranks, in their order, with gradients; ``x`` itself where there is but one process."""
    return torch.cat(all_gather(x.contiguous())) if dist.is_available() and dist.is_initialized() else x
