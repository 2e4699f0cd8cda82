"""Parts of DINOv2 (Oquab et al. 2023): the head, teacher probabilities, the three losses, masks.

Shapes: B images, K prototypes, C channels, M masked patches of a batch. Reference code:
https://github.com/facebookresearch/dinov2 (dinov2/loss, dinov2/layers/dino_head.py,
dinov2/data/masking.py).
"""

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from cxrstudy.pretrain.distributed import all_reduce


# ---- head ----------------------------------------------------------------------------------------
class Head(nn.Module):
    """Map features to prototype logits: a three-layer MLP, then cosines with the prototypes.

    Args:
        channels: width of the features.
        prototypes: number of prototypes.
        hidden: width of the two hidden layers.
        bottleneck: width of the MLP's output and of a prototype.
        learn_gain: train the factor of each prototype's cosine; otherwise it stays 1.
        std: standard deviation of the initial weights; 0 = 1/sqrt(inputs of the layer). The
            reference's 0.02 suits its 2,048 wide layers. In narrow layers it is too small: early
            updates of the biases dominate the signal.
    """

    def __init__(
        self,
        channels: int,
        prototypes: int,
        hidden: int,
        bottleneck: int,
        *,
        learn_gain: bool = False,
        std: float = 0.02,
    ):
        super().__init__()
        widths = [channels, hidden, hidden, bottleneck]
        layers = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=std or layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        directions = torch.empty(prototypes, bottleneck).uniform_(-1, 1)
        self.prototypes = nn.Parameter(directions / math.sqrt(bottleneck))
        self.gain = nn.Parameter(torch.ones(prototypes, 1), requires_grad=learn_gain)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K) of features (N, C), normalised in float32 or wider."""
        dtype = torch.promote_types(self.prototypes.dtype, torch.float32)
        unit = functional.normalize(self.mlp(x).to(dtype), dim=-1)  # (N, bottleneck)
        prototypes = functional.normalize(self.prototypes.to(dtype), dim=-1)  # (K, bottleneck)
        return functional.linear(unit, self.gain * prototypes)  # (N, K)


# ---- teacher probabilities -----------------------------------------------------------------------
@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Return teacher probabilities by Sinkhorn-Knopp: every prototype gets the same total weight.

    Args:
        logits: (N, K) of class tokens or of masked patches. N may differ between ranks and be 0.
        temperature: divides the logits.
        iterations: rounds of normalising columns, then rows.

    Returns:
        (N, K) float32; rows sum to 1. Columns are normalised over all ranks. The reference also
        carries the total number of rows, which cancels out.
    """
    logits = logits.float()
    padded = torch.cat([logits.flatten(), logits.new_full((1,), -torch.inf)])  # N may be 0
    q = torch.exp((logits - all_reduce(padded.max(), dist.ReduceOp.MAX)) / temperature)  # (N, K)
    tiny = torch.finfo(q.dtype).tiny
    for _ in range(iterations):
        q = q / all_reduce(q.sum(0)).clamp_min(tiny)  # columns
        q = q / q.sum(1, keepdim=True).clamp_min(tiny)  # rows
    return q


class Centring(nn.Module):
    """Return teacher probabilities as DINO did: softmax of logits minus their running mean."""

    def __init__(self, prototypes: int, momentum: float = 0.9):
        super().__init__()
        self.momentum, self.centre = momentum, nn.Buffer(torch.zeros(1, prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Return probabilities (N, K) of logits (N, K), then update the mean with all ranks."""
        logits = logits.float()
        probs = functional.softmax((logits - self.centre) / temperature, -1)  # (N, K)
        count = all_reduce(logits.new_full((1,), len(logits)))  # (1,)
        mean = all_reduce(logits.sum(0, keepdim=True)) / count.clamp_min(1)  # (1, K)
        self.centre.lerp_(torch.where(count > 0, mean, self.centre), 1 - self.momentum)
        return probs


# ---- losses --------------------------------------------------------------------------------------
def dino_loss(student_logits: Tensor, teacher_probs: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the cross-entropy of class tokens between different views of an image.

    Args:
        student_logits: (2 + L, B, K); the two global views first, then L local views.
        teacher_probs: (2, B, K) of the two global views.
        temperature: of the student.

    Returns:
        The mean of 2 + 2 L terms: each global view against the other one's teacher probabilities,
        each local view against both.
    """
    log_probs = functional.log_softmax(student_logits.float() / temperature, -1)  # (2 + L, B, K)
    terms = 2 + 2 * (len(student_logits) - 2)
    cross_global = (teacher_probs.flip(0) * log_probs[:2]).sum()
    cross_local = (teacher_probs.sum(0) * log_probs[2:].sum(0)).sum()
    return -(cross_global + cross_local) / (terms * student_logits.shape[1])


def ibot_loss(
    student_logits: Tensor,
    teacher_probs: Tensor,
    weights: Tensor,
    n_images: int,
    temperature: float = 0.1,
) -> Tensor:
    """Return the cross-entropy of masked patches: the mean per image, then over all images.

    Args:
        student_logits: (M, K).
        teacher_probs: (M, K).
        weights: (M,) 1 / number of masked patches in the patch's image.
        n_images: number of global views, including those without a mask.
        temperature: of the student.
    """
    log_probs = functional.log_softmax(student_logits.float() / temperature, -1)  # (M, K)
    return -((teacher_probs * log_probs).sum(-1) * weights).sum() / n_images


def koleo(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Return the KoLeo loss: minus the mean log distance of each row to its nearest neighbour.

    Rows (N, C) are scaled to unit length, in float32 (Sablayrolles et al. 2018). The loss is finite
    for duplicates, whose distance counts as about ``eps``.
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = functional.normalize(x.float(), dim=-1, eps=eps)  # (N, C)
        with torch.no_grad():
            nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)  # (N,)
        return -torch.log(functional.pairwise_distance(unit, unit[nearest], eps=eps) + eps).mean()


# ---- masks ---------------------------------------------------------------------------------------
def block_masks(
    n: int,
    grid: tuple[int, int],
    rng: Any,
    share: tuple[float, float] = (0.1, 0.5),
    probability: float = 0.5,
) -> np.ndarray:
    """Return block masks of the patches of n images, (n, *grid) bool.

    A share ``probability`` of the images has a mask, in random order. The masked share rises evenly
    over them within ``share``. Blocks have at least 4 patches, as long as so many are wanted, and
    an aspect ratio of 0.3 to 1/0.3. A mask is smaller than wanted if ten tries place no further
    block, which is common in small grids. ``rng`` is a numpy Generator, the only source of
    randomness.
    """
    masks = np.zeros((n, *grid), bool)
    edges = np.linspace(*share, int(n * probability) + 1)
    for mask, low, high in zip(masks, edges[:-1], edges[1:], strict=False):
        left = int(mask.size * (low + (high - low) * rng.random()))
        while left > 0 and (new := _mask_block(mask, left, rng)):
            left -= new
    return masks[rng.permutation(n)]


def _mask_block(mask: np.ndarray, most: int, rng: Any, least: int = 4, aspect: float = 0.3) -> int:
    """Mask one more block of at most ``most`` patches and half the grid.

    Returns:
        The number of newly masked patches; 0 if no block fits.
    """
    height, width = mask.shape
    most = min(most, height // 2 * width)
    for _ in range(10):
        area = least + (most - least) * rng.random()
        ratio = math.exp(math.log(aspect) * (1 - 2 * rng.random()))
        high, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if high < height and wide < width:
            top, left = rng.integers(0, height - high + 1), rng.integers(0, width - wide + 1)
            block = mask[top : top + high, left : left + wide]
            new = int(block.size - block.sum())
            if 0 < new <= most:
                block[:] = True
                return new
    return 0
