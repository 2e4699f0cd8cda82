"""Check that an encoder sees the whole image: patches must divide it."""

import math
from typing import Any

import torch
from torch import Tensor, nn


def refuse_cut(
    trunk: Any, size: int, what: str, in_chans: int = 3, *, name: str = "", tried: bool = False
) -> None:
    """Raise if a timm trunk would not see the whole of an image of ``size`` px.

    A ViT's patch that does not divide the image, or a stage that halves an odd map without padding,
    drops pixels at the right and bottom. They are never seen, and maps shift against masks. Trunks
    that pad (ResNet, EfficientNet, DaViT, Swin's merging) see everything.

    Args:
        trunk: The timm model.
        size: Side of the image in px.
        what: The parameter that the size belongs to, for the message.
        in_chans: Input channels of the trunk.
        name: Of the trunk, for the message.
        tried: Test the size by a forward pass even where nothing can be dropped.

    Raises:
        ValueError: With the next sizes that fit.
    """
    stride, name = stride_of(trunk), name or type(trunk).__name__
    if not tried and (not stride or size % stride == 0):
        return
    remedy = next_sizes(what, size, stride)
    try:
        side = grid_side(trunk, size, in_chans)
    except Exception as error:  # timm's assertions and reshapes
        why = str(error) or "a map does not divide"
        if stride and size % stride == 0:
            remedy = "it takes its own size only; a ViT with dynamic_img_size=True takes others"
        raise ValueError(
            f"{what}={size}: {name} takes no images of {size} px ({why}); {remedy}"
        ) from error
    patch = _patch(trunk)
    cut = size % patch if patch else 0
    if not cut and stride and side == size // stride:
        patch, cut = stride, size % stride
    if cut:
        raise ValueError(
            f"{what}={size}: {name} has patches of {patch} px, which do not divide {size} px: the "
            f"right and bottom {cut} px would never be seen; {remedy}"
        )


def next_sizes(what: str, size: int, stride: int) -> str:
    """Return the remedy: the multiples of ``stride`` next to ``size``."""
    sizes = [k * stride for k in (size // stride, size // stride + 1) if k]
    return "use " + " or ".join(f"{what}={fits}" for fits in sizes)


def stride_of(trunk: Any) -> int:
    """Return the pixels between two features of a timm trunk's last map; 0 if it does not say."""
    try:
        return int(trunk.feature_info[-1]["reduction"])
    except (AttributeError, IndexError, KeyError, TypeError):
        return 0


def grid_side(trunk: Any, size: int, in_chans: int = 3) -> int:
    """Return the side of the last map of an image of ``size`` px, by a pass on the meta device."""
    whole = _Features(trunk)
    modes = [(module, module.training) for module in trunk.modules()]
    trunk.eval()  # batch norms would need more than one image
    try:
        tensors = [*whole.named_parameters(), *whole.named_buffers()]
        shapes = {name: tensor.to("meta") for name, tensor in tensors}
        blank = torch.zeros(1, in_chans, size, size, device="meta")
        found = torch.func.functional_call(whole, shapes, (blank,)).shape
    finally:
        for module, mode in modes:
            module.training = mode
    if len(found) == 3:  # tokens
        return math.isqrt(found[1] - getattr(trunk, "num_prefix_tokens", 0))
    return int(found[1 if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else 2])


class _Features(nn.Module):
    def __init__(self, trunk: Any):
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk.forward_features(x)


def _patch(trunk: Any) -> int:
    """Return the side of the first convolution's patches; 0 if they overlap or are padded."""
    first = next((module for module in trunk.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or getattr(getattr(trunk, "patch_embed", None), "dynamic_img_pad", False):
        return 0
    unpadded = first.padding in ((0, 0), 0, "valid")
    patches = unpadded and first.kernel_size == first.stride and first.stride[0] > 1
    return int(first.stride[0]) if patches else 0
