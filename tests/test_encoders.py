"""Encoders: saved and loaded to the bit, frozen; missing weights are never random ones."""

import json
from functools import partial

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cxrstudy.data import synthetic
from cxrstudy.encoders import (
    SMALL,
    Encoder,
    MissingWeights,
    TextShape,
    build_encoder,
    build_text,
    load_encoder,
    load_text,
    save_encoder,
)

torch.set_num_threads(1)
REPORTS = list(synthetic.describe(range(80)).report)
VIT = "vit_tiny_patch16_224"
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"embed_dim": 24, "depths": (1, 1, 1), "num_heads": (2, 2, 2), "window_size": 4},
)


def make(kind, size=64, seed=0):
    """Make a small encoder, its running means and variances not at their initial values."""
    if kind in SMALL:
        encoder = build_encoder(kind, size, seed=seed)
    elif kind == "vit":
        encoder = build_encoder(VIT, size, seed=seed)
    else:
        name, more = (VIT, {"reg_tokens": 4}) if kind == "vit with registers" else SWIN
        torch.manual_seed(seed)
        encoder = Encoder(name, {"img_size": size, **more}, input_size=size, info={"encoder": kind})
    encoder.mean, encoder.std, encoder.info = 0.41, 0.27, encoder.info | {"n_images": 7}
    with torch.no_grad():
        for name, tensor in encoder.trunk.state_dict().items():
            if "running_var" in name:
                tensor.mul_(1.5)
            elif "running_mean" in name:
                tensor.add_(0.01)
    return encoder.eval()


KINDS = [*SMALL, "vit", "vit with registers", "swin"]
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def images():
    return synthetic.sample(range(3), size=64).image


# ---- features ----------------------------------------------------------------------------------
@kinds
@torch.no_grad()
def test_patch_features_come_row_by_row_of_the_image(kind, images):
    encoder = make(kind)
    plain = encoder.forward_features(encoder.normalise(images[:1]))
    side = round(plain.shape[1] ** 0.5)
    assert plain.shape == (1, side**2, encoder.channels)
    assert side in (4, 8)
    axis, cell, centres = torch.arange(side).float(), 64 // side, {}
    for row in range(side):
        for column in range(side):
            marked = images[:1].clone()
            place = marked[:, :, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            place.copy_(1 - place)
            change = (
                (encoder.forward_features(encoder.normalise(marked)) - plain)
                .norm(dim=2)
                .reshape(side, side)
            )
            share = change / change.sum()
            centres[row, column] = share.sum(1) @ axis, share.sum(0) @ axis
    downs = torch.tensor([[centres[r, c][0] for c in range(side)] for r in range(side)])
    acrosses = torch.tensor([[centres[r, c][1] for c in range(side)] for r in range(side)])
    for found, along in (
        (downs, axis[:, None].expand(side, side)),
        (acrosses, axis.expand(side, side)),
    ):
        assert torch.corrcoef(torch.stack([found.flatten(), along.flatten()]))[0, 1] > 0.3
    if kind == "hybrid_mini":  # its norms see all of the image: a mark changes every patch
        return
    # A mark that moves also moves what it changes, in the same direction only.
    assert (downs.diff(dim=0) > 0.1).all()
    assert (acrosses.diff(dim=1) > 0.1).all()
    for (row, column), (down, across) in centres.items():
        assert abs(down - centres[row, side - 1 - column][0]) < 1
        assert abs(across - centres[side - 1 - row, column][1]) < 1


@kinds
@torch.no_grad()
def test_the_last_of_several_layers_is_the_one_that_pooling_takes(kind, images):
    encoder = make(kind)
    x = encoder.normalise(images)
    found, class_tokens = encoder.intermediates(x, 99), kind.startswith(("vit", "hybrid"))
    assert len(found) == len(encoder.trunk.feature_info)
    assert torch.equal(found[-1][0], encoder.forward_features(x))
    for tokens, cls_token in found:
        assert tokens.ndim == 3 and len(tokens) == len(cls_token) == 3
        assert cls_token.shape[1] == (tokens.shape[2] if class_tokens else 0)
    if class_tokens:
        rgb = x.expand(-1, encoder.in_chans, -1, -1)
        assert torch.equal(found[-1][1], encoder.trunk.forward_features(rgb)[:, 0])


@pytest.mark.parametrize("kind", ["hybrid_mini", "vit", "cnn_mini", "davit_mini"])
def test_masked_patches_are_replaced_before_the_first_layer_that_mixes_patches(kind, images):
    encoder = make(kind)
    x, trunk = encoder.normalise(images), encoder.trunk
    side = int(encoder.forward_features(x).shape[1] ** 0.5)
    mask = torch.rand(3, side**2, generator=torch.Generator().manual_seed(0)) < 0.4
    vit = kind in ("vit", "hybrid_mini")
    token = torch.randn(encoder.channels if vit else 1, requires_grad=True)
    patch_tokens, _ = encoder.intermediates(x, masked=(mask, token))[-1]
    if vit:
        y = trunk.patch_embed(x.expand(-1, encoder.in_chans, -1, -1))
        y = torch.where(mask.view(*y.shape[:-1], 1), token, y)
        y = trunk.norm(trunk.blocks(trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(y)))))
        expected = y[:, trunk.num_prefix_tokens :]
    else:
        pixels = mask.view(3, 1, side, side).repeat_interleave(64 // side, 2)
        pixels = pixels.repeat_interleave(64 // side, 3)
        expected = encoder.forward_features(torch.where(pixels, token, x))
    assert torch.equal(patch_tokens, expected)
    patch_tokens.sum().backward()
    assert token.grad.abs().sum() > 0
    assert not torch.equal(encoder.forward_features(x), patch_tokens)  # and only where asked for


@kinds
@torch.no_grad()
def test_pooling_is_the_mean_of_the_patches_and_images_do_not_meet(kind, images):
    encoder = make(kind)
    x = encoder.normalise(images)
    pooled = encoder.pool(x)
    assert pooled.shape == (3, encoder.channels)
    torch.testing.assert_close(pooled, encoder.forward_features(x).mean(1))
    torch.testing.assert_close(encoder(x[1:2]), pooled[1:2], rtol=1e-3, atol=1e-4)


def test_bytes_and_fractions_are_normalised_alike(images):
    encoder = make("cnn_mini")
    as_bytes = np.rint(images[:, 0].numpy() * 255).astype(np.uint8)
    x = encoder.normalise(as_bytes)
    assert x.shape == (3, 1, 64, 64)
    assert x.dtype == torch.float32
    torch.testing.assert_close(
        x, (torch.from_numpy(as_bytes / 255.0).float()[:, None] - 0.41) / 0.27
    )
    torch.testing.assert_close(encoder.normalise(as_bytes[:, None] / 255.0), x)
    assert np.abs((encoder.normalise(images) - x).numpy()).max() < 0.01


@torch.no_grad()
def test_the_pixels_control_is_the_image_itself():
    control = load_encoder("pixels")
    tiles = torch.rand(2, 1, control.input_size, control.input_size)
    large = tiles.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(control.pool(large), tiles.flatten(1))
    assert control.forward_features(tiles).shape == (2, 1, control.input_size**2)
    assert not list(control.parameters())


# ---- folders -----------------------------------------------------------------------------------
@kinds
@torch.no_grad()
def test_a_saved_encoder_comes_back_to_the_bit_frozen_and_with_its_facts(kind, images, tmp_path):
    encoder = make(kind)
    save_encoder(encoder, tmp_path / "deep" / "encoder")
    back = load_encoder(tmp_path / "deep" / "encoder")
    x = encoder.normalise(images)
    assert torch.equal(back.normalise(images), x)
    assert encoder.forward_features(x).std(dim=(0, 1)).max() > 0.01  # else equal would say little
    assert torch.equal(back.forward_features(x), encoder.forward_features(x))
    for name in ("input_size", "mean", "std", "architecture", "channels", "in_chans", "info"):
        assert getattr(back, name) == getattr(encoder, name), name
    assert (back.input_size, back.mean, back.std) == (64, 0.41, 0.27)
    assert not back.training
    assert not any(weight.requires_grad for weight in back.parameters())
    assert load_text(tmp_path / "deep" / "encoder", back.channels) is None


@kinds
@torch.no_grad()
def test_timm_itself_loads_the_folder(kind, images, tmp_path):
    encoder = make(kind)
    save_encoder(encoder, tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert list(model.pretrained_cfg["input_size"]) == [encoder.in_chans, 64, 64]
    assert list(model.pretrained_cfg["mean"]) == [0.41] * encoder.in_chans
    x = encoder.normalise(images).expand(-1, encoder.in_chans, -1, -1)
    assert torch.equal(model.forward_features(x), encoder.trunk.forward_features(x))


def test_a_text_tower_comes_back_to_the_bit_with_its_tokenizer(tmp_path):
    encoder, text = make("cnn_mini"), build_text(REPORTS, 128, seed=3).eval()
    save_encoder(encoder, tmp_path, text)
    back = load_text(tmp_path, 128).eval()
    assert torch.equal(back.tokens(REPORTS), text.tokens(REPORTS))
    assert back.state_dict().keys() == text.state_dict().keys()
    assert all(
        torch.equal(a, b)
        for a, b in zip(back.state_dict().values(), text.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("file", ["model.safetensors", "text.safetensors"])
@pytest.mark.parametrize("how", ["lacks", "has more", "of another shape"])
def test_a_folder_with_other_tensors_than_its_own_is_refused_by_their_name(tmp_path, file, how):
    save_encoder(make("cnn_mini"), tmp_path, build_text(REPORTS, 128))
    tensors = load_file(tmp_path / file)
    name = sorted(tensors)[len(tensors) // 2]
    if how == "lacks":
        del tensors[name]
    elif how == "has more":
        name = "stranger.weight"
        tensors[name] = torch.zeros(3)
    else:
        tensors[name] = torch.zeros(*tensors[name].shape, 2)
    save_file(tensors, tmp_path / file)
    load = load_encoder if file.startswith("model") else partial(load_text, channels=128)
    with pytest.raises(RuntimeError) as caught:
        load(tmp_path)
    assert name in str(caught.value)


def test_a_folder_that_a_failed_save_left_is_not_taken_for_an_encoder(tmp_path):
    (tmp_path / "text.safetensors").mkdir()  # so that the text tower cannot be written
    with pytest.raises(Exception, match=r"text\.safetensors|directory"):
        save_encoder(make("cnn_mini"), tmp_path, build_text(REPORTS, 128))
    with pytest.raises(MissingWeights):
        load_encoder(tmp_path)


# ---- names -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*SMALL, VIT])
@torch.no_grad()
def test_random_weights_are_drawn_from_the_seed_alone(name, images):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = load_encoder(f"random:{name}", size=64, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other = (load_encoder(f"random:{name}", size=64, seed=seed) for seed in (5, 6))
    x = one.normalise(images)
    assert torch.equal(one.forward_features(x), again.forward_features(x))
    assert not torch.allclose(one.pool(x), other.pool(x))
    assert one.input_size == 64
    assert one.info["encoder"] == name
    assert not one.training
    assert not any(weight.requires_grad for weight in one.parameters())


@pytest.mark.parametrize(
    "name", [*SMALL, "runs/mini/pretrain/gone/encoder", "resnet_of_dreams", "hospital-v2", ""]
)
def test_a_name_or_path_without_weights_is_refused_by_its_name(name):
    with pytest.raises(MissingWeights) as caught:
        load_encoder(name)
    assert repr(name) in str(caught.value)
    assert "random:" in str(caught.value)


def test_a_folder_without_an_encoder_is_refused_by_its_path(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingWeights) as caught:
        load_encoder(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_an_architecture_that_nobody_has_is_refused_by_its_name():
    with pytest.raises(ValueError, match="resnet_of_dreams") as caught:
        load_encoder("random:resnet_of_dreams")
    assert all(name in str(caught.value) for name in SMALL)


def test_published_weights_that_cannot_be_fetched_are_missing_and_not_random(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingWeights) as caught:
        load_encoder(VIT)
    assert VIT in str(caught.value)
    assert f"timm.create_model('{VIT}', pretrained=True)" in str(caught.value)


# ---- text --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def text():
    return build_text(REPORTS, 128, seed=1, shape=TextShape(context=24)).eval()


words = st.lists(
    st.sampled_from([*" ".join(REPORTS).split(), "zzz", "é", "心", "7.5", ".", ""]), max_size=60
)
sentences = words.map(" ".join)


@settings(deadline=None, max_examples=40)
@given(sentences)
def test_tokens_end_with_the_end_token_cut_or_not_and_zeros_follow(text, sentence):
    (row,) = text.tokens([sentence]).tolist()
    end = text.tokenizer.token_to_id("<end>")
    ids = text.tokenizer.encode(sentence).ids
    assert len(row) == 24
    assert row == ids[:23] + [end] + [0] * (24 - min(len(ids), 23) - 1)
    assert row.count(end) == 1
    assert max(row) == end  # argmax finds it
    assert 0 not in row[: row.index(end)]


@settings(deadline=None, max_examples=25)
@given(sentences, st.lists(sentences, min_size=1, max_size=4))
@torch.no_grad()
def test_a_texts_embedding_hangs_on_neither_padding_nor_the_batch(text, sentence, others):
    alone = text.tokens([sentence])
    short = text.embed_text(alone[:, : int((alone != 0).sum())])
    torch.testing.assert_close(short.norm(), torch.tensor(1.0))
    torch.testing.assert_close(text.embed_text(alone), short, atol=1e-5, rtol=1e-4)
    batch = text.embed_text(text.tokens([*others, sentence]))
    torch.testing.assert_close(batch[-1:], short, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_texts_that_differ_embed_differently_and_images_as_unit_rows(text):
    rows = text.embed_text(text.tokens(["no pneumothorax", "pneumothorax", "no edema"]))
    assert (torch.cdist(rows, rows) + torch.eye(3) > 1e-3).all()
    image = text.embed_image(torch.randn(5, 128))
    assert image.shape == (5, 128)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(5))


def test_a_text_tower_is_drawn_from_its_seed_and_as_large_as_its_tokenizer():
    one, again, other = (build_text(REPORTS, 64, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.image_projection.weight, other.image_projection.weight)
    assert one.shape["vocabulary"] == one.tokenizer.get_vocab_size() <= TextShape().vocabulary
    assert one.image_projection.weight.shape == (TextShape().dim, 64)
    json.dumps(one.shape)


@torch.no_grad()
def test_the_logit_scale_starts_at_clips_and_stops_at_a_hundred():
    text = build_text(REPORTS, 64)
    assert float(text.scale()) == pytest.approx(1 / 0.07)
    text.log_scale.fill_(9.0)
    assert float(text.scale()) == 100
