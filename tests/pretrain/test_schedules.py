"""The learning rate, other schedules, and layer-wise decay."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dinov2 import small_encoder

from cxrstudy.encoders import build_encoder
from cxrstudy.pretrain.dinov2 import DinoConfig, DINOv2
from cxrstudy.pretrain.schedules import (
    cosine_schedule,
    layer_decay_groups,
    learning_rate,
    linear_warmup,
)

torch.set_num_threads(1)
quick = settings(deadline=None, max_examples=40)


@quick
@given(steps=st.integers(1, 3000), peak=st.floats(1e-6, 1.0), warmup=st.floats(0, 0.99))
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(steps, peak, warmup):
    rates = np.array([learning_rate(step, steps, peak, warmup) for step in range(steps)])
    ramp = max(1, round(warmup * steps))
    np.testing.assert_allclose(rates[:ramp], peak * np.arange(1, ramp + 1) / ramp)
    assert rates.max() == pytest.approx(peak)
    assert (np.diff(rates[ramp:]) <= 0).all()
    assert (rates > 0).all()
    end = 0 if steps > ramp else peak
    assert learning_rate(steps, steps, peak, warmup) == pytest.approx(end, abs=1e-12)


@quick
@given(
    steps=st.integers(1, 500),
    warmup=st.integers(0, 500),
    first=st.floats(0, 1),
    last=st.floats(0, 1),
)
def test_schedules_go_from_their_first_to_their_last_value(steps, warmup, first, last):
    warmup = min(warmup, steps)
    values = [cosine_schedule(step, steps, first, last) for step in range(steps + 3)]
    assert values[steps:] == [last] * 3
    assert values[0] == pytest.approx(first)
    line = [linear_warmup(step, warmup, first, last) for step in range(warmup + 3)]
    assert line[warmup:] == [last] * 3
    if warmup > 1:
        assert line[0] == first
        assert line[warmup - 1] == pytest.approx(last)
    for rest in (np.diff(values), np.diff(line)):
        assert (rest <= 1e-12).all() or (rest >= -1e-12).all()


@quick
@given(steps=st.integers(1, 500), warmup=st.floats(0, 1), final=st.floats(0, 1))
def test_a_rate_from_zero_reaches_its_peak_and_ends_at_its_final_value(steps, warmup, final):
    call = {"final": final, "from_zero": True}
    values = [learning_rate(step, steps, 1.0, warmup, **call) for step in range(steps + 1)]
    ramp = round(warmup * steps)
    if ramp > 1:
        assert values[0] == 0
        assert values[ramp - 1] == pytest.approx(1.0)
    if ramp < steps:
        assert values[ramp] == pytest.approx(1.0)
        assert values[steps] == pytest.approx(final)
        assert (np.diff(values[ramp:]) <= 1e-12).all()


def test_prototypes_and_trunk_are_frozen_for_their_shares():
    config = DinoConfig(freeze_prototypes=0.1, freeze_trunk=0.2)
    model = DINOv2(small_encoder(), config)
    optimiser = torch.optim.AdamW(model.param_groups())
    for step, frozen in (
        (0, {"prototypes", "trunk"}),
        (9, {"prototypes", "trunk"}),
        (10, {"trunk"}),
        (20, set()),
    ):
        lr = learning_rate(step, 100, 1e-3, 0.0, **model.lr_schedule)
        assert model.set_learning_rates(optimiser, lr, step, 100) == lr * ("trunk" not in frozen)
        assert {group["part"] for group in optimiser.param_groups if group["lr"] == 0} == frozen


def test_parameter_groups_are_the_references():
    groups = pytest.importorskip(
        "dinov2.utils.param_groups", reason="the reference is not installed"
    )
    trunk = small_encoder(init_values=1e-5, depth=3).trunk
    wanted = groups.get_params_groups_with_decay(trunk, 0.9, 0.2)
    found = {id(p): g for g in layer_decay_groups(trunk, 0.9, 0.2) for p in g["params"]}
    assert len(found) == len(wanted)
    for group in wanted:
        ours = found[id(group["params"])]
        assert ours["lr_scale"] == pytest.approx(group["lr_multiplier"]), group["name"]
        assert ours["wd_scale"] == group["wd_multiplier"], group["name"]


def test_rates_fall_from_the_last_block_down_and_vectors_do_not_decay():
    config = DinoConfig(layer_decay=0.5, patch_embed_scale=0.2, weight_decay=(0.1, 0.1))
    model = DINOv2(small_encoder(depth=2), config)
    named = {id(p): name for name, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.param_groups())
    model.set_learning_rates(optimiser, 1.0, 50, 100)
    groups = optimiser.param_groups
    found = {named[id(p)]: group for group in groups for p in group["params"]}
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("teacher") for name in found)
    wanted = {
        "mask_token": ("trunk", 0.125, 0),
        "student.trunk.trunk.cls_token": ("trunk", 0.125, 1),
        "student.trunk.trunk.pos_embed": ("trunk", 0.125, 1),
        "student.trunk.trunk.patch_embed.proj.weight": ("trunk", 0.025, 1),
        "student.trunk.trunk.patch_embed.proj.bias": ("trunk", 0.025, 0),
        "student.trunk.trunk.blocks.0.attn.qkv.weight": ("trunk", 0.25, 1),
        "student.trunk.trunk.blocks.1.norm1.weight": ("trunk", 0.5, 0),
        "student.trunk.trunk.norm.bias": ("trunk", 1.0, 0),
        "student.head.mlp.0.weight": ("head", 1.0, 1),
        "student.head.prototypes": ("prototypes", 1.0, 1),
    }
    for name, (part, lr_scale, wd_scale) in wanted.items():
        group = found[name]
        assert (group["part"], group["wd_scale"]) == (part, wd_scale), name
        assert group["lr"] == group["lr_scale"] == pytest.approx(lr_scale), name
        assert group["weight_decay"] == pytest.approx(0.1 * wd_scale), name
    groups = layer_decay_groups(build_encoder("davit_mini", 64), 0.5)
    assert {group["lr_scale"] for group in groups} == {1.0}
