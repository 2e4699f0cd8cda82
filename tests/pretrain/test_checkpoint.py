"""A checkpoint that does not read back is told and left behind; the run starts from its beginning and ends the same."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from cxrstudy import study
from cxrstudy.data.sets import prepare_data
from cxrstudy.pretrain import checkpoint
from cxrstudy.pretrain.loop import pretrain

torch.set_num_threads(1)


class Killed(Exception):
    pass


def killed_after(k):
    def progress(steps):
        for step in steps:
            if step == k:
                raise Killed
            yield step

    return progress


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "study"
    prepare_data(study.Data(n_images=40, size=32, fractions={"pretrain": 1.0}, out=str(folder)))
    return folder


def go(data, out, progress=iter, **changes):
    own = {
        "n_images": 32,
        "samples_seen": 64,
        "batch_size": 16,
        "precision": "fp32",
        "checkpoint_seconds": 1e-9,
    }
    p = study.validated("pretrain", own | {"data": str(data), "out": str(out)} | changes)
    return pretrain(p, data, progress=progress)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    go(data, out)
    return weights(out)


def weights(out):
    return [(out / "encoder" / f"{name}.safetensors").read_bytes() for name in ("model", "text")]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another(path):
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)


def fewer(path):
    save_file(dict(list(load_file(path).items())[1:]), path)


def not_facts(path):
    torch.save({"key": 1}, path)


DAMAGE = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "a byte": lambda path: path.write_bytes(b"\x00"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "words": lambda path: path.write_text("no checkpoint"),
    "gone": lambda path: path.unlink(),
    "another's": another,
    "fewer": fewer,
    "no facts": not_facts,
}


@pytest.mark.parametrize(
    ("file", "how"),
    [
        *(("checkpoint-2.safetensors", how) for how in DAMAGE if how != "no facts"),
        *(("checkpoint.pt", how) for how in DAMAGE if how not in ("gone", "another's", "fewer")),
    ],
)
def test_a_torn_checkpoint_is_told_by_its_file_and_the_run_ends_as_one_that_was_never_killed(
    data, whole, tmp_path, file, how
):
    with pytest.raises(Killed):
        go(data, tmp_path, killed_after(2))
    DAMAGE[how](tmp_path / file)
    with pytest.warns(
        UserWarning, match="does not read back, so the run starts from its beginning"
    ) as caught:
        result = go(data, tmp_path)
    assert any(str(tmp_path / file) in str(warning.message) for warning in caught)
    assert str(tmp_path / file) in result["torn_checkpoint"]
    assert result["resumed_from"] == 0
    assert weights(tmp_path) == whole
    assert sorted(path.name for path in tmp_path.glob("checkpoint*")) == [
        "checkpoint-4.safetensors",
        "checkpoint.pt",
    ]
    again = go(data, tmp_path)
    assert again["resumed_from"] == 4 and "torn_checkpoint" not in again


def test_nothing_is_put_back_of_a_pair_that_does_not_fit(tmp_path):
    def made(width):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, width))
        return model, torch.optim.AdamW(model.parameters())

    checkpoint.save(tmp_path, *made(5), {"key": "this", "step": 1})
    model, optimiser = made(6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match="holds other tensors than the model"):
        assert set(checkpoint.load(tmp_path, "this", model, optimiser)) == {"torn"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert checkpoint.load(tmp_path, "that", model, optimiser) is None


def test_a_checkpoint_of_before_it_was_summed_is_resumed(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    checkpoint.save(tmp_path, model, optimiser, {"key": "this", "step": 3})
    facts = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save(
        {name: value for name, value in facts.items() if name != "sum"}, tmp_path / "checkpoint.pt"
    )
    assert checkpoint.load(tmp_path, "this", model, optimiser) == {"key": "this", "step": 3}


def test_running_out_of_memory_is_no_torn_checkpoint(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    checkpoint.save(tmp_path, model, optimiser, {"key": "this", "step": 3})

    def full(_):
        raise MemoryError

    monkeypatch.setattr("cxrstudy.weights.load_file", full)
    with pytest.raises(MemoryError):
        checkpoint.load(tmp_path, "this", model, optimiser)
