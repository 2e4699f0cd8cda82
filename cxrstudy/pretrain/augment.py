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
    low: int = 0,
    total: int = 0,
) -> Tensor:
    """(N,1,H,W) normalised images -> the same shape, each moved and regraded by its own draw.

    Where ``x`` is a rank's part of a batch of ``total`` images, ``low`` is where it begins: the draws are the batch's.

    ``shift`` in image widths, ``scale`` and ``contrast`` as relative changes, ``brightness`` in standard deviations;
    each draw is uniform within plus or minus its value.
    """
    draws = _uniform((6,), x, generator, low, total) * 2 - 1
    angle = draws[0] * math.radians(degrees)
    zoom = 1 + draws[1] * scale
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    across, down = draws[2] * 2 * shift, draws[3] * 2 * shift
    theta = torch.stack([torch.stack([cos, -sin, across], 1), torch.stack([sin, cos, down], 1)], 1)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    moved = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    gain = (1 + draws[4] * contrast).view(-1, 1, 1, 1)
    return moved * gain + (draws[5] * brightness).view(-1, 1, 1, 1)


def _uniform(
    lead: tuple[int, ...], x: Tensor, generator: torch.Generator, low: int, total: int
) -> Tensor:
    """Numbers in [0,1), (*lead, len(x)): those of ``x``'s part of the batch, on its device."""
    draws = torch.rand(*lead, total or len(x), generator=generator, device=generator.device)
    return draws[..., low : low + len(x)].to(x.device, non_blocking=True)


def crops(
    x: Tensor,
    n: int,
    scale: tuple[float, float],
    out_size: int,
    generator: torch.Generator,
    *,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    brightness: float = 0.1,
    contrast: float = 0.1,
    gamma: float = 0.1,
    blur: float = 0.0,
    low: int = 0,
    total: int = 0,
) -> Tensor:
    """n random crops of each x-ray, resized and regraded, in one go on the images' device.

    Area within ``scale`` and aspect within ``ratio`` are DINOv2's random resized crops (a side beyond the image is cut
    to it). No flips, as in MedImageInsight's recipe: they swap left and right. Our own choices: no solarisation
    (it inverts tissue), no rotation, ``gamma``, and blur (it hides thin tubes) only as asked; RAD-DINO, too, is said to
    have larger crops and no blur, which nobody checked here. Where crops shrink by 1.5 or more on average, the images
    are averaged down first, against aliasing.

    Args: ``x`` (N,1,H,W) grey in [0,1]; ``brightness`` added, ``contrast`` and ``gamma`` relative, each drawn
    uniformly within plus or minus its value; ``blur`` the probability of a Gaussian of 0.1 to 2 pixels. Where ``x`` is
    a rank's part of a batch of ``total`` images, ``low`` is where it begins: the draws are the batch's. Returns
    (n*N,1,out_size,out_size) in [0,1]: every image's first crop, then every image's second, and so on.
    """
    shrink = round(x.shape[-1] * math.sqrt(sum(scale) / 2) / out_size)
    if shrink > 1:
        x = functional.interpolate(x, [side // shrink for side in x.shape[-2:]], mode="area")
    draws = _uniform((9, n), x, generator, low, total)
    signed = draws * 2 - 1
    area = scale[0] + draws[0] * (scale[1] - scale[0])
    aspect = (math.log(ratio[0]) + draws[1] * math.log(ratio[1] / ratio[0])).exp()
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    line = (
        torch.arange(out_size, device=x.device) * 2 + 1
    ) / out_size - 1  # pixel centres, as align_corners=False
    across = wide[..., None] * line + (signed[2] * (1 - wide))[..., None]
    down = high[..., None] * line + (signed[3] * (1 - high))[..., None]
    grid = torch.stack(
        torch.broadcast_tensors(across[..., None, :], down[..., None]), -1
    )  # (n,N,out,out,2)
    tall = grid.transpose(0, 1).flatten(
        1, 2
    )  # an image's crops below each other: the image is read in place
    y = functional.grid_sample(x, tall, padding_mode="border", align_corners=False)
    y = y.view(len(x), n, out_size, out_size).transpose(0, 1)
    y = y.clamp(0, 1) ** (1 + signed[4] * gamma)[..., None, None] if gamma else y
    mean = y.mean((2, 3), keepdim=True)
    y = (
        (y - mean) * (1 + signed[5] * contrast)[..., None, None]
        + mean
        + (signed[6] * brightness)[..., None, None]
    )
    y = y.flatten(0, 1).unsqueeze(1).clamp(0, 1)
    return _blurred(y, draws[7].flatten() < blur, 0.1 + 1.9 * draws[8].flatten()) if blur else y


def _blurred(y: Tensor, chosen: Tensor, sigma: Tensor, reach: int = 4) -> Tensor:
    """(N,1,H,W) with the ``chosen`` images smoothed by a Gaussian of ``sigma`` pixels each, sides in turn."""
    offsets = torch.arange(-reach, reach + 1, device=y.device)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma[:, None] ** 2), 1)
    kernel = torch.where(chosen[:, None], kernel, (offsets == 0).float())[:, None]
    y = functional.pad(y.transpose(0, 1), [reach] * 4, mode="reflect")
    y = functional.conv2d(y, kernel[:, :, None], groups=len(sigma))
    return functional.conv2d(y, kernel[..., None], groups=len(sigma)).transpose(0, 1)
