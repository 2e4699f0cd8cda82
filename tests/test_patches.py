"""An encoder sees the whole image or is refused with the sizes at which it would."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy import encoders, study
from cxrstudy.data.sets import prepare_data
from cxrstudy.encoders import Encoder, build_encoder, load_encoder
from cxrstudy.encoders.patches import grid_side
from cxrstudy.pretrain.dinov2 import DinoConfig, DINOv2
from cxrstudy.pretrain.loop import pretrain

torch.set_num_threads(1)
SHORT = {"depth": 1, "embed_dim": 24, "num_heads": 2}
SWIN = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 4}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}


def vit(size, patch, **more):
    return Encoder(
        "vit_tiny_patch16_224",
        {"img_size": size, "patch_size": patch, **SHORT, **more},
        input_size=size,
    )


def sees_all(encoder):
    """Whether the last row and column of pixels, and the first, move the features."""
    x = torch.rand(1, 1, encoder.input_size, encoder.input_size, requires_grad=True)
    features = encoder.eval().forward_features(x)
    (features * torch.randn(features.shape)).sum().backward()
    edges = (x.grad[..., 0, :], x.grad[..., -1, :], x.grad[..., :, 0], x.grad[..., :, -1])
    return all(bool(edge.abs().sum() > 0) for edge in edges)


@settings(deadline=None, max_examples=40)
@given(size=st.integers(32, 120), patch=st.integers(7, 24), dynamic=st.booleans())
def test_a_vit_sees_every_edge_or_is_refused_with_the_two_next_sizes_that_it_sees(
    size, patch, dynamic
):
    more = {"dynamic_img_size": True} if dynamic else {}
    if size % patch == 0:
        encoder = vit(size, patch, **more)
        assert sees_all(encoder)
        assert grid_side(encoder.trunk, size) == size // patch
        return
    with pytest.raises(ValueError, match=f"size={size}: vit_tiny_patch16_224") as caught:
        vit(size, patch, **more)
    told = [int(found) for found in re.findall(r"size=(\d+)", str(caught.value))[1:]]
    assert told == [size // patch * patch, (size // patch + 1) * patch]
    for fits in told:
        assert sees_all(vit(fits, patch, **more))


MADE = {
    "swin": lambda size: Encoder(
        "swin_tiny_patch4_window7_224", {"img_size": size, **SWIN}, input_size=size
    ),
    "convnext": lambda size: Encoder("convnext_atto", CONVNEXT, input_size=size),
    "densenet": lambda size: Encoder(
        "densenet121", {"block_config": (1, 1, 1, 1)}, input_size=size
    ),
    **{
        name: lambda size, name=name: build_encoder(name, size)
        for name in (*encoders.SMALL, "resnet10t")
    },
    "efficientnet": lambda size: build_encoder("tf_efficientnet_lite0", size),
}


@pytest.mark.parametrize("size", [64, 70, 72, 77, 98, 100])
@pytest.mark.parametrize("name", MADE)
def test_other_families_see_every_edge_or_are_refused(name, size):
    if name in ("cnn_mini", "davit_mini", "resnet10t", "efficientnet"):
        assert sees_all(MADE[name](size))
    sizes, error = [size], None
    try:
        MADE[name](size)
    except ValueError as caught:
        error = str(caught)
        sizes = [int(fits) for fits in re.findall(r"use size=(\d+) or size=(\d+)", error)[0]]
    assert error is None or f"size={size}: " in error
    assert all(sees_all(MADE[name](fits)) for fits in sizes)


@pytest.mark.parametrize(
    "name", ["random:vit_small_patch14_dinov2", "random:eva02_tiny_patch14_224"]
)
def test_patch_14_at_64_px_is_refused_by_every_way_in_with_56_and_70(name):
    message = "right and bottom 8 px would never be seen; use size=56 or size=70"
    with pytest.raises(ValueError, match=message):
        load_encoder(name, size=64)
    assert sees_all(build_encoder(name.removeprefix("random:"), 56))


def test_a_run_with_a_patch_that_does_not_divide_its_data_is_refused(tmp_path):
    prepare_data(
        study.Data(n_images=40, size=64, fractions={"pretrain": 1.0}, out=str(tmp_path / "data"))
    )
    own = {
        "data": str(tmp_path / "data"),
        "out": str(tmp_path / "run"),
        "n_images": 16,
        "samples_seen": 16,
    }
    p = study.validated(
        "pretrain",
        own | {"batch_size": 8, "encoder": "vit_small_patch14_dinov2", "paradigm": "dinov2"},
    )
    with pytest.raises(ValueError, match="use size=56 or size=70"):
        pretrain(p, tmp_path / "data")


def test_crops_that_the_patch_does_not_divide_are_refused_by_their_name():
    dynamic = vit(64, 16, dynamic_img_size=True)
    assert DINOv2(dynamic, DinoConfig(local_crops=2)).local_size == 32
    for changes, said in [
        ({"global_size": 56}, "global_size=56: .*use global_size=48 or global_size=64"),
        (
            {"local_size": 40, "local_crops": 1},
            "local_size=40: .*use local_size=32 or local_size=48",
        ),
    ]:
        with pytest.raises(ValueError, match=said):
            DINOv2(dynamic, DinoConfig(**changes))
    assert DINOv2(dynamic, DinoConfig(local_size=40)).local_size == 40  # no local crops: never used
    with pytest.raises(ValueError, match=r"local_size=32: .*own size only"):
        DINOv2(vit(64, 16), DinoConfig(local_crops=2))


def test_looking_leaves_the_encoder_and_the_random_state_as_they_were():
    encoder = build_encoder("cnn_mini", 64).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    state = torch.get_rng_state()
    assert grid_side(encoder.trunk, 100, 1) == 7
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert all(module.training for module in encoder.modules())
