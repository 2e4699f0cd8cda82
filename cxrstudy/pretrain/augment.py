"""Augmentation of a batch of x-rays, on its device.

Images are not mirrored, because that breaks laterality: MedImageInsight's recipe does not either.
There is no solarisation and, unless asked for, no blur, because they hide thin tubes. RAD-DINO's
recipe is said to leave out blur too.

If ``x`` is a rank's part of a batch of ``total`` images, starting at ``low``, the random numbers
are those of the whole batch.
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
    """Shift, scale, rotate and change the grey values of each image by its own random numbers.

    Args:
        x: (N, 1, H, W) normalised images.
        shift: in image widths; like all changes, uniform within plus or minus its value.
        scale, contrast: relative changes.
        brightness: in standard deviations.

    Returns:
        (N, 1, H, W).
    """
    draws = _uniform((6,), x, generator, low, total) * 2 - 1  # (6, N)
    angle = draws[0] * math.radians(degrees)
    zoom = 1 + draws[1] * scale
    cos, sin = angle.cos() * zoom, angle.sin() * zoom  # (N,)
    across, down = draws[2] * 2 * shift, draws[3] * 2 * shift
    rows = [torch.stack([cos, -sin, across], 1), torch.stack([sin, cos, down], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    y = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)  # (N, 1, H, W)
    gain = (1 + draws[4] * contrast).view(-1, 1, 1, 1)
    return y * gain + (draws[5] * brightness).view(-1, 1, 1, 1)


def _uniform(
    lead: tuple[int, ...], x: Tensor, generator: torch.Generator, low: int, total: int
) -> Tensor:
    """Return uniform numbers in [0, 1), (*lead, N), for ``x`` as a part of its batch."""
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
    """Return random crops of each image, resized, with changed grey values.

    Area within ``scale`` and aspect within ``ratio`` are DINOv2's random resized crops; a side
    beyond the image is cut to it. Our own choices are no solarisation, no rotation, ``gamma``, and
    blur only if asked for. RAD-DINO is said to use larger crops; we could not check it. If crops
    shrink by 1.5 or more on average, the images are averaged down first, against aliasing.

    Args:
        x: (N, 1, H, W) grey values in [0, 1].
        n: crops of each image.
        scale, ratio: ranges of the share of the area, and of the aspect ratio.
        brightness, contrast, gamma: added, relative and exponent; uniform within plus or minus.
        blur: probability of a Gaussian blur of 0.1 to 2 pixels.

    Returns:
        (n N, 1, out_size, out_size) in [0, 1]: the first crop of every image, then the second.
    """
    shrink = round(x.shape[-1] * math.sqrt(sum(scale) / 2) / out_size)
    if shrink > 1:
        x = functional.interpolate(x, [side // shrink for side in x.shape[-2:]], mode="area")
    draws = _uniform((9, n), x, generator, low, total)  # (9, n, N)
    signed = draws * 2 - 1
    area = scale[0] + draws[0] * (scale[1] - scale[0])
    aspect = (math.log(ratio[0]) + draws[1] * math.log(ratio[1] / ratio[0])).exp()
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)  # (n, N)
    # pixel centres in [-1, 1], as align_corners=False has them: (out,)
    line = (torch.arange(out_size, device=x.device) * 2 + 1) / out_size - 1
    across = wide[..., None] * line + (signed[2] * (1 - wide))[..., None]  # (n, N, out)
    down = high[..., None] * line + (signed[3] * (1 - high))[..., None]
    grid = torch.stack(torch.broadcast_tensors(across[..., None, :], down[..., None]), -1)
    # the crops of an image below each other, so that the image is not copied: (N, n out, out, 2)
    tall = grid.transpose(0, 1).flatten(1, 2)
    y = functional.grid_sample(x, tall, padding_mode="border", align_corners=False)
    y = y.view(len(x), n, out_size, out_size).transpose(0, 1)  # (n, N, out, out)
    y = y.clamp(0, 1) ** (1 + signed[4] * gamma)[..., None, None] if gamma else y
    mean = y.mean((2, 3), keepdim=True)
    stretched = (y - mean) * (1 + signed[5] * contrast)[..., None, None]
    y = stretched + mean + (signed[6] * brightness)[..., None, None]
    y = y.flatten(0, 1).unsqueeze(1).clamp(0, 1)  # (n N, 1, out, out)
    return _blurred(y, draws[7].flatten() < blur, 0.1 + 1.9 * draws[8].flatten()) if blur else y


def _blurred(y: Tensor, chosen: Tensor, sigma: Tensor, reach: int = 4) -> Tensor:
    """Return (N, 1, H, W) with a Gaussian blur of ``sigma`` (N,) pixels on some images."""
    offsets = torch.arange(-reach, reach + 1, device=y.device)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma[:, None] ** 2), 1)  # (N, 2 reach + 1)
    kernel = torch.where(chosen[:, None], kernel, (offsets == 0).float())[:, None]
    y = functional.pad(y.transpose(0, 1), [reach] * 4, mode="reflect")
    y = functional.conv2d(y, kernel[:, :, None], groups=len(sigma))
    return functional.conv2d(y, kernel[..., None], groups=len(sigma)).transpose(0, 1)
