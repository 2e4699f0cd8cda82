"""Floating-point operations of a step: torch's counter, mended where it errs.

It charges the backward pass of grouped convolutions as if they were dense (an EfficientNet's step 14 times over), and
attention on CPUs not at all.
"""

from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

_ATEN = torch.ops.aten


def _conv_backward(grad: Any, x: Any, w: Any, *rest: Any, **_: Any) -> int:
    """As much as forward, for each of the gradients of input and weight that is asked for."""
    transposed, wanted = (
        rest[4],
        rest[7],
    )  # after bias, stride, padding, dilation; after output padding and groups
    return conv_flop_count(x, w, grad, transposed) * (bool(wanted[0]) + bool(wanted[1]))


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def counter() -> FlopCounterMode:
    """A context that counts; ``get_total_flops()`` tells."""
    mapping: dict[Any, Any] = {
        _ATEN.convolution_backward: _conv_backward,
        _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
        _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)
