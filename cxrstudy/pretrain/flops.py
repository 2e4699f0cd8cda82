"""Floating-point operations of a step: torch's counter, with two of its errors corrected.

It counts the backward pass of grouped convolutions as if they were dense (14 times too much for an
EfficientNet's step), and leaves out attention on CPUs.
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
    """Return the forward count for each gradient that is asked for, of input and weight."""
    transposed, wanted = rest[4], rest[7]
    return conv_flop_count(x, w, grad, transposed) * (bool(wanted[0]) + bool(wanted[1]))


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def counter() -> FlopCounterMode:
    """Return a context that counts; ``get_total_flops()`` is the result."""
    mapping: dict[Any, Any] = {
        _ATEN.convolution_backward: _conv_backward,
        _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
        _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)
