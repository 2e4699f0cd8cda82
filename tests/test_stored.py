"""A folder of an encoder that was copied in part is refused by the file that is not whole."""

import json

import pytest
import torch
from safetensors.torch import save_file

from cxrstudy import encoders, modelcard, study, weights
from cxrstudy.data import synthetic
from cxrstudy.data.sets import prepare_data
from cxrstudy.evaluate.subjects import LeakError, open_subject
from cxrstudy.pretrain.loop import pretrain
from cxrstudy.weights import TornFile

torch.set_num_threads(1)


def damage(path, how):
    content = path.read_bytes()
    kept = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "zeros": bytes(len(content)),
        "words": b"not this",
    }
    path.write_bytes(kept[how])


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
    with pytest.raises(
        TornFile, match=r"is cut short or damaged .*download it again, or delete .* and rerun"
    ) as caught:
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
    prepare_data(
        study.Data(n_images=20, size=32, fractions={"pretrain": 1.0}, out=str(tmp_path / "data"))
    )
    own = {
        "data": str(tmp_path / "data"),
        "base": str(folder),
        "out": str(tmp_path / "run"),
        "n_images": 16,
    }
    with pytest.raises(ValueError, match=r"patients\.txt is missing or empty"):
        pretrain(
            study.validated("pretrain", own | {"samples_seen": 16, "batch_size": 8}),
            tmp_path / "data",
        )


@pytest.mark.parametrize("how", ["empty", "cut", "zeros"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_torn_published_weights_are_named(tmp_path, name, how):
    path = tmp_path / name
    if name == "a.pth":
        torch.save({"a": torch.zeros(100)}, path)
    else:
        save_file({"a": torch.zeros(100)}, path)
    assert weights.read(path)["a"].shape == (100,)
    damage(path, how)
    with pytest.raises(TornFile, match=f"{name} .*cut short or damaged"):
        weights.read(path)
