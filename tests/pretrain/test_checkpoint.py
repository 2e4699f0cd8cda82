"""A checkpoint that cannot be read is reported and replaced; the run ends as if never killed."""

import pytest
import torch
from made_runs import Killed, go, killed_after, weights
from safetensors.torch import load_file, save_file

from cxrstudy.pretrain import checkpoint

torch.set_num_threads(1)


SHORT = {"n_images": 32, "samples_seen": 64, "checkpoint_seconds": 1e-9}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    go(data, out, **SHORT)
    return weights(out)


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
def test_a_torn_checkpoint_is_named_and_the_run_ends_as_one_that_was_never_killed(
    data, whole, tmp_path, file, how
):
    with pytest.raises(Killed):
        go(data, tmp_path, killed_after(2), **SHORT)
    DAMAGE[how](tmp_path / file)
    match = "cannot read the checkpoint in .*; the run starts from its beginning"
    with pytest.warns(UserWarning, match=match) as caught:
        result = go(data, tmp_path, **SHORT)
    assert any(str(tmp_path / file) in str(warning.message) for warning in caught)
    assert str(tmp_path / file) in result["torn_checkpoint"]
    assert result["resumed_from"] == 0
    assert weights(tmp_path) == whole
    files = sorted(path.name for path in tmp_path.glob("checkpoint*"))
    assert files == ["checkpoint-4.safetensors", "checkpoint.pt"]
    again = go(data, tmp_path, **SHORT)
    assert again["resumed_from"] == 4 and "torn_checkpoint" not in again


def test_an_optimiser_comes_back_from_a_checkpoint_in_the_types_it_had(tmp_path):
    """Also of a 0-d parameter: a GPU's fused step reads its count of steps as float32."""
    made = []
    for _ in range(2):
        model = torch.nn.ParameterDict(
            {"scale": torch.tensor(2.0, dtype=torch.float64), "weight": torch.ones(4, 3, 2, 2)}
        ).to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(model.parameters(), fused=True)
        (model["scale"] * model["weight"].square().sum()).backward()
        optimiser.step()
        made.append((model, optimiser))
    checkpoint.save(tmp_path, *made[0], {"key": "this", "step": 1})
    assert checkpoint.load(tmp_path, "this", *made[1])
    for before, after in zip(
        *(list(optimiser.state.values()) for _, optimiser in made), strict=True
    ):
        for name, tensor in before.items():
            assert (after[name].dtype, after[name].stride()) == (tensor.dtype, tensor.stride()), (
                name
            )
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)


def test_nothing_is_loaded_of_a_pair_that_does_not_fit(tmp_path):
    def made(width):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, width))
        return model, torch.optim.AdamW(model.parameters())

    checkpoint.save(tmp_path, *made(5), {"key": "this", "step": 1})
    model, optimiser = made(6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match="has other tensors than the model"):
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
