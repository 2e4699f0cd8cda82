"""A step's operations are counted: backward costs about twice forward in any architecture."""

import pytest
import torch

from cxrstudy.encoders import build_encoder
from cxrstudy.pretrain.flops import counter


@pytest.mark.parametrize("name", ["cnn_mini", "davit_mini", "hybrid_mini", "tf_efficientnet_lite0"])
def test_backward_costs_about_twice_forward(name) -> None:
    encoder, x = build_encoder(name, 64), torch.rand(2, 1, 64, 64)
    with torch.no_grad(), counter() as forward:
        encoder.pool(x)
    with counter() as both:
        encoder.pool(x).sum().backward()
    assert 2.5 < both.get_total_flops() / forward.get_total_flops() < 3.1


def test_attention_on_a_cpu_is_counted() -> None:
    q = torch.rand(1, 2, 16, 8, requires_grad=True)
    with counter() as found:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert (
        found.get_total_flops() == 2 * 2 * 2 * 16 * 16 * 8
    )  # two products, two heads, a multiply and an add each
