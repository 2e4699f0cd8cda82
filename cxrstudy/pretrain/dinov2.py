"""DINOv2 (Oquab et al. 2023) for x-rays: the recipe's constants, heads, teacher assignments, losses and masks.

A student sees masked and cropped views and predicts what its own moving average, the teacher, assigns to the whole:
for the image by the class token (DINO), for each masked patch (iBOT), with a spread of the class tokens (KoLeo).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from cxrstudy.pretrain.ranks import over_ranks


@dataclass(frozen=True)
class DinoConfig:
    """Every constant of the recipe; the defaults are a start for small encoders at 64 px, not yet a tuned recipe.

    Pairs are (first, last) of a schedule or (least, most) of a range; shares are of the run's steps.
    """

    dino_weight: float = 1.0
    ibot_weight: float = 0.0
    koleo_weight: float = 0.0
    prototypes: int = 512
    hidden: int = 256
    bottleneck: int = 64
    head_std: float = 0.0  # of the head's first weights; 0 = one by the root of a layer's inputs
    patch_head: bool = False  # a head of its own for the patches; else they share the class token's
    learn_gain: bool = False  # the reference starts the last layer's gains at 1 and lets them learn
    centring: Literal["sinkhorn", "softmax"] = "sinkhorn"
    centre_momentum: float = 0.9
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.03, 0.03)
    temperature_warmup: float = 0.3
    momentum: tuple[float, float] = (0.95, 1.0)
    lr: float = 1e-3
    least_lr: float = 1e-6
    warmup: float = 0.1
    weight_decay: tuple[float, float] = (0.05, 0.05)
    layer_decay: float = 1.0
    patch_embed_scale: float = 1.0
    freeze_prototypes: float = 0.01
    freeze_trunk: float = (
        0.0  # continuing an encoder whose heads were not published: let the heads settle first
    )
    global_scale: tuple[float, float] = (0.8, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    local_crops: int = 0
    global_size: int = 0  # 0 = the encoder's input size
    local_size: int = 0  # 0 = 3/7 of the global size (the reference's 96 of 224), in whole patches
    brightness: float = 0.1
    contrast: float = 0.1
    gamma: float = 0.1
    blur: float = 0.0
    mask_share: tuple[float, float] = (0.1, 0.5)
    mask_probability: float = 0.5

    @classmethod
    def reference(cls, batch_size: int = 1024, **changes: Any) -> "DinoConfig":
        """The reference's default configuration, by which a ViT-B trains; its flips and solarisation are left out.

        It asks for ``drop_path_rate=0.3, init_values=1e-5`` of the encoder. Its jitter and blur are met in size only.
        """
        values: dict[str, Any] = {
            "ibot_weight": 1.0,
            "koleo_weight": 0.1,
            "prototypes": 65536,
            "hidden": 2048,
            "bottleneck": 256,
            "head_std": 0.02,
            "learn_gain": True,
            "centring": "softmax",
            "teacher_temperature": (0.04, 0.07),
            "momentum": (0.992, 1.0),
            "lr": 4e-3 * math.sqrt(batch_size / 1024),
            "weight_decay": (0.04, 0.4),
            "layer_decay": 0.9,
            "patch_embed_scale": 0.2,
            "global_scale": (0.32, 1.0),
            "local_crops": 8,
            "brightness": 0.4,
            "contrast": 0.4,
            "gamma": 0.0,
            "blur": 0.5,
        }
        return cls(**values | changes)


# ---- head, teacher assignments, losses -----------------------------------------------------------------------------
class Head(nn.Module):
    """Scores (N, prototypes) of features (N, channels): cosines of a three-layer MLP's output and the prototypes.

    The cosines are times a gain a prototype, which is 1 and, but for ``learn_gain``, stays so. ``std`` is of the first
    weights: the reference's 0.02 suits its 2,048 wide layers; in narrow ones what tells images apart would be lost
    beside the first steps of the biases, and 0 asks for one by the root of a layer's inputs instead.
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
        first, second, third = (
            nn.Linear(channels, hidden),
            nn.Linear(hidden, hidden),
            nn.Linear(hidden, bottleneck),
        )
        for layer in (first, second, third):
            nn.init.trunc_normal_(layer.weight, std=std or layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(first, nn.GELU(), second, nn.GELU(), third)
        self.prototypes = nn.Parameter(
            torch.empty(prototypes, bottleneck).uniform_(-1, 1) / math.sqrt(bottleneck)
        )
        self.gain = nn.Parameter(torch.ones(prototypes, 1), requires_grad=learn_gain)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels) -> (N, prototypes); both sides are normalised in float32, or in float64 if they come in it."""
        wide = torch.promote_types(self.prototypes.dtype, torch.float32)
        unit = functional.normalize(self.mlp(x).to(wide), dim=-1)
        return functional.linear(
            unit, self.gain * functional.normalize(self.prototypes.to(wide), dim=-1)
        )


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Teacher assignment by Sinkhorn-Knopp: softmax-like rows, every prototype given the same weight over all ranks.

    Args: ``scores`` (N,K) of class tokens or of masked patches; N may differ between ranks and be 0. Returns (N,K)
    float32, rows sum to 1. How many rows there are on all ranks, which the reference carries along, cancels out.
    """
    scores = scores.float()
    top = over_ranks(
        torch.cat([scores.flatten(), scores.new_full((1,), -torch.inf)]).max(), dist.ReduceOp.MAX
    )
    q = torch.exp((scores - top) / temperature)
    for _ in range(iterations):
        q = q / over_ranks(q.sum(0)).clamp_min(torch.finfo(q.dtype).tiny)
        q = q / q.sum(1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
    return q


class Centring(nn.Module):
    """The older teacher assignment: a softmax of scores less their running mean, which is updated afterwards."""

    def __init__(self, prototypes: int, momentum: float = 0.9):
        super().__init__()
        self.momentum, self.centre = momentum, nn.Buffer(torch.zeros(1, prototypes))

    @torch.no_grad()
    def forward(self, scores: Tensor, temperature: float) -> Tensor:
        """(N,K) scores -> (N,K) float32, rows sum to 1; the running mean is over all ranks' rows."""
        scores = scores.float()
        assigned = functional.softmax((scores - self.centre) / temperature, -1)
        count = over_ranks(scores.new_full((1,), len(scores)))
        mean = over_ranks(scores.sum(0, keepdim=True)) / count.clamp_min(1)
        self.centre.lerp_(torch.where(count > 0, mean, self.centre), 1 - self.momentum)
        return assigned


def dino_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of class tokens: each global crop against the other one's assignment, local crops against both.

    Args: ``student`` (2 + locals, B, K) scores, the two global crops first; ``teacher`` (2, B, K) assignments. Returns
    the sum of the terms by their number, 2 + 2 x locals (18 with 8 local crops).
    """
    logs = functional.log_softmax(student.float() / temperature, -1)
    terms = 2 + 2 * (len(student) - 2)
    crossed = (teacher.flip(0) * logs[:2]).sum() + (teacher.sum(0) * logs[2:].sum(0)).sum()
    return -crossed / (terms * student.shape[1])


def ibot_loss(
    student: Tensor, teacher: Tensor, weights: Tensor, n_images: int, temperature: float = 0.1
) -> Tensor:
    """Cross-entropy of masked patches: the mean over each image's, then over all images, those without a mask too.

    Args: ``student`` scores and ``teacher`` assignments (M,K) of the M masked patches; ``weights`` (M,) 1 by the
    number of masked patches in the patch's image; ``n_images`` global crops in the batch.
    """
    logs = functional.log_softmax(student.float() / temperature, -1)
    return -((teacher * logs).sum(-1) * weights).sum() / n_images


def koleo(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Minus the mean log distance of each row to its nearest on the sphere (Sablayrolles et al. 2018), in float32.

    Args: ``x`` (N,C). Finite for duplicates, whose distance counts as about ``eps``.
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = functional.normalize(x.float(), dim=-1, eps=eps)
        with torch.no_grad():
            nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
        return -torch.log(functional.pairwise_distance(unit, unit[nearest], eps=eps) + eps).mean()


# ---- masks ---------------------------------------------------------------------------------------------------------
def block_masks(
    n: int,
    grid: tuple[int, int],
    rng: Any,
    share: tuple[float, float] = (0.1, 0.5),
    probability: float = 0.5,
) -> np.ndarray:
    """(n, *grid) bool: a ``probability`` of the n images with blocks masked, in a random order.

    The share masked rises evenly over them within ``share``; blocks have at least 4 patches while so many are wanted,
    and sides within 0.3 of each other. A mask falls short where ten tries place no further block (often on small
    grids). ``rng``: a numpy Generator, which alone decides.
    """
    masks = np.zeros((n, *grid), bool)
    edges = np.linspace(*share, int(n * probability) + 1)
    for mask, low, high in zip(masks, edges[:-1], edges[1:], strict=False):
        left = int(mask.size * (low + (high - low) * rng.random()))
        while left > 0 and (new := _mask_block(mask, left, rng)):
            left -= new
    return masks[rng.permutation(n)]


def _mask_block(mask: np.ndarray, most: int, rng: Any, least: int = 4, aspect: float = 0.3) -> int:
    """Mask one block more, of at most ``most`` and half the patches; how many are newly masked, 0 for no success."""
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
