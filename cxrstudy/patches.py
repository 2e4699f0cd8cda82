"""Does an encoder see the whole image? A patch that does not divide it leaves pixels at the right and bottom unseen."""

import math
from typing import Any

import torch
from torch import Tensor, nn


def refuse_cut(
    trunk: Any, size: int, what: str, in_chans: int = 3, *, name: str = "", tried: bool = False
) -> None:
    """ValueError, with the next sizes that fit, where a trunk of timm's would not see all of a ``size`` px image.

    A ViT's patch that does not divide the image, or a stage that halves an odd map without padding, drops pixels at the
    right and bottom: what lies there is never seen, and maps shift against masks. Trunks that pad (ResNet,
    EfficientNet, DaViT, Swin's merging) see all. ``what`` is the parameter that the size is of; ``tried``: whether the
    trunk takes the size at all is looked at even where nothing can be cut.
    """
    stride, name = stride_of(trunk), name or type(trunk).__name__
    if not tried and (not stride or size % stride == 0):
        return
    remedy = next_sizes(what, size, stride)
    try:
        side = grid_side(trunk, size, in_chans)
    except Exception as error:  # timm asserts and reshapes in a dozen ways
        why = str(error) or "a map does not divide"
        if stride and size % stride == 0:
            remedy = (
                "it takes its own size alone; a ViT built with dynamic_img_size=True takes others"
            )
        raise ValueError(
            f"{what}={size}: {name} takes no images of {size} px ({why}); {remedy}"
        ) from error
    patch = _patch(trunk)
    cut = size % patch if patch else 0
    if not cut and stride and side == size // stride:
        patch, cut = stride, size % stride
    if cut:
        raise ValueError(
            f"{what}={size}: {name} has patches of {patch} px, which do not divide {size} px: the right and bottom "
            f"{cut} px would never be seen; {remedy}"
        )


def next_sizes(what: str, size: int, stride: int) -> str:
    """The two multiples of ``stride`` beside ``size``, as a remedy."""
    return f"say {' or '.join(f'{what}={k * stride}' for k in (size // stride, size // stride + 1) if k)}"


def stride_of(trunk: Any) -> int:
    """Pixels between two features of the last map of a trunk of timm's; 0 where it does not say."""
    try:
        return int(trunk.feature_info[-1]["reduction"])
    except (AttributeError, IndexError, KeyError, TypeError):
        return 0


def grid_side(trunk: Any, size: int, in_chans: int = 3) -> int:
    """The side of the last map of a ``size`` px image, by a pass without numbers."""
    whole = _Features(trunk)
    modes = [(module, module.training) for module in trunk.modules()]
    trunk.eval()  # batch norms would ask for more than one image
    try:
        shapes = {
            name: tensor.to("meta")
            for name, tensor in [*whole.named_parameters(), *whole.named_buffers()]
        }
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
    """The side of patches that neither overlap nor are padded, by the first convolution; 0 where there are none."""
    first = next((module for module in trunk.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or getattr(getattr(trunk, "patch_embed", None), "dynamic_img_pad", False):
        return 0
    plain = (
        first.kernel_size == first.stride
        and first.padding in ((0, 0), 0, "valid")
        and first.stride[0] > 1
    )
    return int(first.stride[0]) if plain else 0
