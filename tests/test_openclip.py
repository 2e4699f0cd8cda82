"""Models of open_clip: equal embeddings; without a network, what is missing and the remedy."""

import json
import re
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from published import TEXTS, picture
from safetensors.torch import load_file, save_file

from cxrstudy.encoders import load_encoder
from cxrstudy.weights import MissingWeights, TornFile, UnmatchedTensors

torch.set_num_threads(1)
TOWER = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "tube", "no", "effusion", "##s"]
SIMPLE = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
PLAIN = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear"}
TIMM["image_size"] = 224


def clip_folder(folder, vision, text=SIMPLE, named=None):
    """Save a model with the text tower ``text``, which the folder calls ``named``; return it."""
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if "hf_model_name" in text else open_clip.CLIP
    model = kind(embed_dim=12, vision_cfg=vision, text_cfg=text)
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text | (named or {})}
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    facts = {"model_cfg": config, "preprocess_cfg": preprocess}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(facts))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return model.eval()


# ---- embeddings --------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize(
    "vision", [TIMM, PLAIN], ids=["timm's tower, as BiomedCLIP's", "open_clip's tower"]
)
def test_an_open_clip_folder_gives_open_clips_own_embeddings(tmp_path, vision):
    model = clip_folder(tmp_path / "clip", vision)
    ours = load_encoder(f"local-dir:{tmp_path / 'clip'}")
    x = ours.normalise(picture(vision["image_size"]))
    rgb = x.expand(-1, 3, -1, -1)
    assert ours.mean == pytest.approx(0.5) and ours.std == pytest.approx(0.25)
    assert torch.equal(ours.embed_image(x), model.encode_image(rgb, normalize=True))
    tokens = ours.tokens(TEXTS)
    assert torch.equal(ours.embed_text(tokens), model.encode_text(tokens, normalize=True))
    side = 14 if vision is TIMM else 4
    features = ours.forward_features(x)
    assert features.shape == (2, side**2, ours.channels)
    torch.testing.assert_close(ours.pool(x), features.mean(1))
    marked = x.clone()
    cell = x.shape[-1] // side
    marked[:, :, :cell, -cell:] += 2  # top right: the patch that ends the first row changes most
    assert ((ours.forward_features(marked) - features).norm(dim=2).argmax(1) == side - 1).all()
    assert not any(weight.requires_grad for weight in ours.parameters())


@torch.no_grad()
@pytest.mark.parametrize("vision", [TIMM, PLAIN], ids=["timm's tower", "open_clip's tower"])
def test_the_last_of_several_layers_is_the_one_and_class_tokens_come_with_each(tmp_path, vision):
    clip_folder(tmp_path / "clip", vision)
    ours = load_encoder(f"local-dir:{tmp_path / 'clip'}")
    x = ours.normalise(picture(vision["image_size"]))
    two, one = ours.intermediates(x, 2), ours.intermediates(x)
    assert len(two) == 2 and len(one) == 1
    for found, expected in zip(two[-1], one[0], strict=True):
        assert torch.equal(found, expected)
    assert two[0][1].shape == (2, ours.channels)
    assert not torch.allclose(two[0][0], two[1][0])
    if vision is TIMM:
        assert torch.equal(
            one[0][1], ours.model.visual.trunk.forward_features(x.expand(-1, 3, -1, -1))[:, 0]
        )


@pytest.mark.parametrize("how", ["missing", "left over", "no file", "no folder"])
def test_an_open_clip_folder_that_is_not_whole_is_refused(tmp_path, how):
    clip_folder(tmp_path / "clip", PLAIN)
    path = tmp_path / "clip" / "open_clip_model.safetensors"
    state = load_file(path)
    if how == "missing":
        del state["visual.ln_post.weight"]
    state |= {"stranger": torch.zeros(1)} if how == "left over" else {}
    save_file(state, path)
    name = {"missing": "visual.ln_post.weight", "left over": "stranger"}.get(how, "local-dir")
    if how == "no file":
        path.unlink()
    folder = tmp_path / ("gone" if how == "no folder" else "clip")
    with pytest.raises((UnmatchedTensors, MissingWeights), match=name) as caught:
        load_encoder(f"local-dir:{folder}")
    assert isinstance(caught.value, UnmatchedTensors) == (how in ("missing", "left over"))


def test_an_open_clip_model_of_the_hub_is_missing_offline_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("CXRSTUDY_WEIGHTS", str(tmp_path))
    name = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
    with pytest.raises(MissingWeights, match="hf download") as caught:
        load_encoder(f"hf-hub:{name}")
    assert f"hf download {name} --local-dir {tmp_path / Path(name).name}," in str(caught.value)


# ---- a text tower of Hugging Face's, without a network -----------------------------------------
@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder as ``hf download`` leaves it: its text tower is named by a repository."""
    here = tmp_path_factory.mktemp("made")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(WORDS), intermediate_size=16, **sizes)
    config.save_pretrained(here / "bert")
    text = {"hf_model_name": str(here / "bert"), "hf_model_pretrained": False}
    text |= {"hf_tokenizer_name": TOWER, "hf_proj_type": "mlp", "context_length": 12}
    text |= {"hf_pooler_type": "cls_last_hidden_state_pooler"}
    model = clip_folder(here / "biomedclip", PLAIN, text, {"hf_model_name": TOWER})
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(here / "biomedclip")
    return here / "biomedclip", here / "bert" / "config.json", model


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True, raising=False)
    return Path(shutil.copytree(whole[0], tmp_path / "biomedclip"))


def refused(name, kind=MissingWeights):
    with pytest.raises(kind) as caught:
        load_encoder(name)
    return str(caught.value)


def test_a_missing_text_tower_is_named_with_the_command_and_what_it_says_mends_it(folder, whole):
    message = refused(f"local-dir:{folder}")
    assert f"config.json of its text tower {TOWER} is missing" in message
    command = re.search(r"run (hf download \S+ config\.json --local-dir (\S+))", message)
    assert command[1] == f"hf download {TOWER} config.json --local-dir {folder}/text_tower"
    assert message.count("hf download") == 1  # not the folder that is here already
    Path(command[2]).mkdir()
    shutil.copy(whole[1], command[2])  # as the command would
    ours, x = load_encoder(f"local-dir:{folder}"), torch.rand(2, 1, 32, 32)
    tokens, rgb = ours.tokens(["no tubes", "effusion"]), x.expand(-1, 3, -1, -1)
    assert tokens[0, :5].tolist() == [2, 6, 5, 8, 3]
    with torch.no_grad():
        assert torch.equal(ours.embed_text(tokens), whole[2].encode_text(tokens, normalize=True))
        assert torch.equal(ours.embed_image(x), whole[2].encode_image(rgb, normalize=True))


def test_a_missing_tokenizer_weights_and_configuration_are_named_each_with_its_command(
    folder, whole
):
    (folder / "text_tower").mkdir()
    shutil.copy(whole[1], folder / "text_tower")
    for file in [*folder.glob("*token*"), *folder.glob("vocab*")]:
        file.unlink()
    message = refused(f"local-dir:{folder}")
    assert f"tokenizer is missing: run hf download {TOWER} tokenizer.json" in message
    assert f"--local-dir {folder}" in message
    (folder / "open_clip_model.safetensors").unlink()
    message = refused(f"local-dir:{folder}")
    assert "its weights" in message and "tokenizer is missing" in message
    assert "text tower " not in message
    (folder / "open_clip_config.json").unlink()
    message = refused(f"local-dir:{folder}")
    assert "open_clip_config.json is missing: run hf download OWNER/NAME" in message
    assert f"there is no folder {folder}-not" in refused(f"local-dir:{folder}-not")


@pytest.mark.parametrize("file", ["open_clip_config.json", "open_clip_model.safetensors"])
@pytest.mark.parametrize("kept", [0, 40])
def test_a_torn_file_of_the_folder_is_named(folder, whole, file, kept):
    (folder / "text_tower").mkdir()
    shutil.copy(whole[1], folder / "text_tower")
    (folder / file).write_bytes((folder / file).read_bytes()[:kept])
    message = refused(f"local-dir:{folder}", TornFile)
    assert f"{folder / file} ({kept} bytes) is cut short or damaged" in message


def test_a_folder_is_found_below_the_repository_as_other_paths_are(folder, whole, monkeypatch):
    (folder / "text_tower").mkdir()
    shutil.copy(whole[1], folder / "text_tower")
    monkeypatch.setenv("CXRSTUDY_ROOT", str(folder.parent))
    assert load_encoder("local-dir:biomedclip").input_size == 32


def test_a_hub_model_whose_text_tower_is_not_in_the_cache_is_told_so(folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "cache" / "models--ward--clip" / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    (tmp_path / "cache" / "models--ward--clip" / "refs").mkdir()
    (tmp_path / "cache" / "models--ward--clip" / "refs" / "main").write_text("abc")
    download = "open_clip.pretrained.hf_hub_download"
    monkeypatch.setattr(download, lambda _, name, **__: str(snapshot / name), raising=False)
    message = refused("hf-hub:ward/clip")
    missing = f"config.json of its text tower {TOWER} is missing"
    assert f"{missing}: run hf download {TOWER} config.json" in message
    assert f"tokenizer {TOWER} is missing" in message
    assert "hf download ward/clip" not in message
