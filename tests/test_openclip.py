"""BiomedCLIP's kind of folder without a network: what is missing is named, and what the message says to do mends it."""

import json
import re
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from safetensors.torch import save_file

from cxrstudy.encoders import load_encoder
from cxrstudy.weights import MissingWeights, TornFile

torch.set_num_threads(1)
TOWER = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "tube", "no", "effusion", "##s"]
VISION = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder as ``hf download`` leaves it, the text tower named by its repository; and that tower's configuration."""
    here = tmp_path_factory.mktemp("made")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    transformers.BertConfig(vocab_size=len(WORDS), **sizes).save_pretrained(here / "bert")
    text = {
        "hf_model_name": str(here / "bert"),
        "hf_model_pretrained": False,
        "hf_tokenizer_name": TOWER,
    }
    text |= {
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 12,
    }
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(embed_dim=12, vision_cfg=VISION, text_cfg=text)
    folder = here / "biomedclip"
    folder.mkdir()
    config = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": text | {"hf_model_name": TOWER}}
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder, here / "bert" / "config.json", model.eval()


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
    tokens = ours.tokens(["no tubes", "effusion"])
    with torch.no_grad():
        assert torch.equal(ours.embed_text(tokens), whole[2].encode_text(tokens, normalize=True))
        assert torch.equal(
            ours.embed_image(x), whole[2].encode_image(x.expand(-1, 3, -1, -1), normalize=True)
        )


def test_a_missing_tokenizer_weights_and_configuration_are_named_each_with_its_command(
    folder, whole
):
    (folder / "text_tower").mkdir()
    shutil.copy(whole[1], folder / "text_tower")
    for file in folder.glob("*token*"):
        file.unlink()
    for file in folder.glob("vocab*"):
        file.unlink()
    message = refused(f"local-dir:{folder}")
    assert f"tokenizer is missing: run hf download {TOWER} tokenizer.json" in message
    assert f"--local-dir {folder}" in message
    (folder / "open_clip_model.safetensors").unlink()
    message = refused(f"local-dir:{folder}")
    assert (
        "its weights" in message
        and "tokenizer is missing" in message
        and "text tower " not in message
    )
    (folder / "open_clip_config.json").unlink()
    assert "open_clip_config.json is missing: run hf download OWNER/NAME" in refused(
        f"local-dir:{folder}"
    )
    assert f"there is no folder {folder}-not" in refused(f"local-dir:{folder}-not")


@pytest.mark.parametrize("file", ["open_clip_config.json", "open_clip_model.safetensors"])
@pytest.mark.parametrize("kept", [0, 40])
def test_a_torn_file_of_the_folder_is_named(folder, whole, file, kept):
    (folder / "text_tower").mkdir()
    shutil.copy(whole[1], folder / "text_tower")
    (folder / file).write_bytes((folder / file).read_bytes()[:kept])
    assert f"{folder / file} ({kept} bytes) is cut short or damaged" in refused(
        f"local-dir:{folder}", TornFile
    )


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
    monkeypatch.setattr(
        "open_clip.pretrained.hf_hub_download",
        lambda repo, name, **_: str(snapshot / name),
        raising=False,
    )
    message = refused("hf-hub:ward/clip")
    assert (
        f"config.json of its text tower {TOWER} is missing: run hf download {TOWER} config.json"
        in message
    )
    assert f"tokenizer {TOWER} is missing" in message
    assert "hf download ward/clip" not in message
