"""Encoder folders: damaged files are refused by name; the model card; copies to ship."""

import dataclasses
import json

import open_clip
import pytest
import timm
import torch
from published import damage, draw, picture, put, rad_dino_shapes, small_registry

from cxrstudy import encoders, modelcard, study
from cxrstudy.data import synthetic
from cxrstudy.data.sets import prepare_data
from cxrstudy.encoders import save_encoder
from cxrstudy.evaluate.subjects import LeakError, open_subject
from cxrstudy.pretrain.loop import pretrain
from cxrstudy.weights import UNVERIFIED, TornFile

torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path):
    encoder = encoders.build_encoder("cnn_mini", 32)
    encoder.info["n_images"] = 7
    text = encoders.build_text(list(synthetic.describe(range(20)).report), encoder.channels)
    encoders.save_encoder(encoder, tmp_path / "encoder", text)
    (tmp_path / "encoder" / "patients.txt").write_text("a\nb")
    return tmp_path / "encoder"


@pytest.mark.parametrize("how", ["empty", "cut", "zeros", "words"])
@pytest.mark.parametrize(
    "file", ["model.safetensors", "encoder.json", "text.safetensors", "tokenizer.json"]
)
def test_a_torn_file_of_an_encoder_is_named_with_the_remedy(folder, file, how):
    damage(folder / file, how)
    message = r"is cut short or damaged .*download it again, or delete .* and rerun"
    with pytest.raises(TornFile, match=message) as caught:
        encoders.open_base(str(folder))
    assert f"{folder / file} (" in str(caught.value)
    if file in ("model.safetensors", "encoder.json"):
        with pytest.raises(TornFile):
            open_subject(str(folder), 32, 0)


def test_facts_of_something_else_and_files_that_are_gone_are_named(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing: .*copy it again"):
        encoders.load_text(folder, 128)
    (folder / "encoder.json").write_text(json.dumps({"architecture": "resnet10t"}))
    for call in (encoders.load_encoder, modelcard.model_card):
        with pytest.raises(
            TornFile,
            match=r"encoder\.json lacks arguments, .*not describe an encoder, or is damaged",
        ):
            call(folder)


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_an_encoder_whose_list_of_patients_is_lost_neither_judges_nor_goes_on(
    folder, tmp_path, how
):
    (folder / "patients.txt").write_text("")
    if how == "gone":
        (folder / "patients.txt").unlink()
    with pytest.raises(LeakError, match=r"patients\.txt"):
        open_subject(str(folder), 32, 0)
    data = tmp_path / "data"
    prepare_data(study.Data(n_images=20, size=32, fractions={"pretrain": 1.0}, out=str(data)))
    values = {"data": str(data), "base": str(folder), "out": str(tmp_path / "run")}
    values |= {"n_images": 16, "samples_seen": 16, "batch_size": 8}
    with pytest.raises(ValueError, match=r"patients\.txt is missing or empty"):
        pretrain(study.validated("pretrain", values), data)


# ---- model cards and copies --------------------------------------------------------------------
@torch.no_grad()
def test_a_folders_card_says_what_it_is_and_its_line_loads_it(tmp_path, monkeypatch):
    put(small_registry(tmp_path, monkeypatch), "rad-dino", draw(rad_dino_shapes()))
    encoder = encoders.load_pretrained("rad-dino").encoder
    facts = {"n_images": 30, "samples_seen": 900, "seed": 0, "flops": 1.5e9}
    encoder.info |= {"paradigm": "dinov2", "base": "rad-dino", **facts}
    folder = tmp_path / "run" / "encoder"
    save_encoder(encoder, folder)
    (folder / "patients.txt").write_text("a\nb")
    card = modelcard.model_card(folder)
    assert (folder / "README.md").read_text() == card
    parts = [f"{name}: {value}" for name, value in facts.items()]
    parts += ["dinov2", "2, listed in patients.txt", "MIMIC-CXR", UNVERIFIED, "MIT by the card"]
    for part in [*parts, "Not for clinical use", "microsoft/rad-dino"]:
        assert part in card
    monkeypatch.chdir(folder.parent)
    model = eval(card.split("```python\nmodel = ")[1].split("\n")[0], {"timm": timm}).eval()
    x = encoder.normalise(picture(70)).expand(-1, 3, -1, -1)
    assert torch.equal(model.forward_features(x), encoder.trunk.forward_features(x))


def test_a_card_of_an_encoder_trained_from_nothing_claims_no_base(tmp_path):
    save_encoder(encoders.build_encoder("cnn_mini", 64), tmp_path)
    card = modelcard.model_card(tmp_path)
    assert "none, trained from random weights" in card
    assert "patients: not recorded" in card


def test_open_clips_folders_cannot_hold_our_text_towers_yet():
    """If this fails, open_clip can: write ``open_clip_config.json`` in `model_card`."""
    fields = {field.name for field in dataclasses.fields(open_clip.model.CLIPTextCfg)}
    assert "use_pad_mask" not in fields
    vision = {field.name for field in dataclasses.fields(open_clip.model.CLIPVisionCfg)}
    assert not any("timm_kwargs" in name or "in_chans" in name for name in vision)


def test_a_shipped_encoder_is_the_runs_own_in_half_precision(tmp_path):
    encoder = encoders.build_encoder("cnn_mini", 32, seed=3)
    text = encoders.build_text(["no finding", "a tube"], encoder.channels)
    (tmp_path / "run" / "encoder").mkdir(parents=True)
    (tmp_path / "run" / "encoder" / "patients.txt").write_text("a\nb")
    encoders.save_encoder(encoder, tmp_path / "run" / "encoder", text)
    out = modelcard.ship(tmp_path / "run", tmp_path / "out")
    kept = encoders.load_encoder(out)
    for ours, theirs in zip(encoder.parameters(), kept.parameters(), strict=True):
        assert theirs.dtype == torch.float32
        torch.testing.assert_close(theirs, ours, rtol=2e-3, atol=1e-4)
    assert encoders.load_text(out, kept.channels) is not None
    assert encoders.listed_patients(out) == {"a", "b"}
    assert (out / "README.md").is_file()
    size, before = (
        sum(file.stat().st_size for file in folder.iterdir())
        for folder in (out, tmp_path / "run" / "encoder")
    )
    assert size < 0.6 * before
    with pytest.raises(FileNotFoundError, match="no encoder"):
        modelcard.ship(tmp_path, tmp_path / "out")
