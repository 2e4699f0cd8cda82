"""Augmentation of a batch of x-rays at once, on the device they are on.

Small shifts, scale, rotation, brightness and contrast. No flips (they break laterality) and no solarisation or blur
(they hide thin tubes): MedImageInsight's recipe has no flips, RAD-DINO's drops blur.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def augment(
    x: Tensor,
    generator: torch.Generator,
    *,
    shift: float = 0.06,
    scale: float = 0.1,
    degrees: float = 6.0,
    brightness: float = 0.2,
    contrast: float = 0.2,
) -> Tensor:
    """(N,1,H,W) normalised images -> the same shape, each moved and regraded by its own draw.

    ``shift`` in image widths, ``scale`` and ``contrast`` as relative changes, ``brightness`` in standard deviations;
    each draw is uniform within plus or minus its value.
    """
    draws = torch.rand(6, len(x), generator=generator, device=generator.device).to(x.device) * 2 - 1
    angle = draws[0] * math.radians(degrees)
    zoom = 1 + draws[1] * scale
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    across, down = draws[2] * 2 * shift, draws[3] * 2 * shift
    theta = torch.stack([torch.stack([cos, -sin, across], 1), torch.stack([sin, cos, down], 1)], 1)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    moved = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    gain = (1 + draws[4] * contrast).view(-1, 1, 1, 1)
    return moved * gain + (draws[5] * brightness).view(-1, 1, 1, 1)
