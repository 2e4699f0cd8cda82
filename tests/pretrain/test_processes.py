"""Runs that are killed, or have several processes, end with the weights of an undisturbed run."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_runs import parameters
from safetensors.torch import load_file
from torch import distributed as dist
from torch.distributed.run import get_args_parser

from cxrstudy import study
from cxrstudy.evaluate.metrics import knn_auroc
from cxrstudy.pretrain import loop
from cxrstudy.pretrain.clip import clip_loss, unicl_loss
from cxrstudy.pretrain.distributed import gather_rows
from cxrstudy.pretrain.loop import pretrain

torch.set_num_threads(1)


# children of a process that has imported torch and started no thread
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["cxrstudy.pretrain.loop"])


def child(call: Callable[..., object], *arguments: object) -> Any:
    process = FORKS.Process(target=call, args=arguments)
    process.start()
    return process


def one_rank(
    rank: int, count: int, meet: Path, call: Callable[..., object], arguments: tuple
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=count)
    call(rank, *arguments)
    dist.destroy_process_group()


def ranks(count: int, meet: Path, call: Callable[..., object], *arguments: object) -> None:
    """``call(rank, ...)`` on ``count`` gloo processes."""
    children = [child(one_rank, rank, count, meet, call, arguments) for rank in range(count)]
    for process in children:
        process.join()
    assert [process.exitcode for process in children] == [0] * count


def run_rank(rank: int, p: study.Pretrain, data: Path) -> None:
    pretrain(p, data)


ROWS = torch.nn.functional.normalize(
    torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1
)
TARGETS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 4])


def loss_of(name: str, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return (
        clip_loss(image, text, 10.0) if name == "clip" else unicl_loss(image, text, TARGETS, 10.0)
    )


def loss_rank(rank: int, folder: Path) -> None:
    for name in ("clip", "unicl"):
        image, text = (part[4 * rank : 4 * rank + 4].clone().requires_grad_() for part in ROWS)
        value = loss_of(name, gather_rows(image), gather_rows(text))
        value.backward()
        torch.save((value.detach(), image.grad / 2, text.grad / 2), folder / f"{name}-{rank}")


def weights(out: Path) -> dict[str, torch.Tensor]:
    files = sorted((out / "encoder").glob("*.safetensors"))
    return {
        f"{file.stem}.{name}": weight for file in files for name, weight in load_file(file).items()
    }


def kept_steps(out: Path) -> list[int]:
    return [int(file.stem.split("-")[1]) for file in out.glob("checkpoint-*.safetensors")]


def test_a_run_killed_at_random_steps_resumes_to_the_same_weights_to_the_bit(
    data, tmp_path
) -> None:
    """Each child is killed once a random number of further steps is saved, on any machine."""
    own = {"paradigm": "unicl", "ema": 0.9, "samples_seen": 320}
    whole = parameters(data, tmp_path / "whole", **own)
    pretrain(whole, data)
    rng, steps = random.Random(0), [0]
    cut = parameters(data, tmp_path / "cut", checkpoint_steps=1, **own)
    for _ in range(4):
        process = child(pretrain, cut, data)
        target, patience = steps[-1] + rng.randint(1, 4), time.monotonic() + 120
        while max(kept_steps(tmp_path / "cut"), default=0) < target and time.monotonic() < patience:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        steps.append(max(kept_steps(tmp_path / "cut")))
        assert steps[-1] >= target
    # the last file may be written but not yet named by the state: then the step before it counts
    assert pretrain(cut, data)["resumed_from"] in (steps[-1] - 1, steps[-1])
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_gloo_losses_of_two_ranks_are_those_of_the_joined_batch(tmp_path) -> None:
    ranks(2, tmp_path / "meet", loss_rank, tmp_path)
    for name in ("clip", "unicl"):
        image, text = (part.clone().requires_grad_() for part in ROWS)
        value = loss_of(name, image, text)
        value.backward()
        parts = [torch.load(tmp_path / f"{name}-{rank}") for rank in range(2)]
        assert all(torch.allclose(part[0], value, rtol=1e-12) for part in parts)
        torch.testing.assert_close(torch.cat([part[1] for part in parts]), image.grad)
        torch.testing.assert_close(torch.cat([part[2] for part in parts]), text.grad)


@pytest.mark.parametrize("paradigm", ["unicl", "clip+labels", "dinov2"])
def test_gloo_runs_of_two_processes_have_the_weights_of_one(data, tmp_path, paradigm) -> None:
    # no batch norm, whose statistics CPUs cannot share; a low rate: Adam scales rounding errors up
    own = {"paradigm": paradigm, "encoder": "davit_mini", "lr": 1e-4}
    if paradigm == "dinov2":
        own |= {"encoder": "hybrid_mini", "n_images": 32, "samples_seen": 48}
        own |= {"dino": {"local_crops": 1, "prototypes": 64}}
    pretrain(parameters(data, tmp_path / "one", **own), data)
    two = parameters(data, tmp_path / "two", **own)
    ranks(2, tmp_path / "meet", run_rank, two, data)
    one, other = weights(tmp_path / "one"), weights(tmp_path / "two")
    idle = [name for name in one if name.endswith(("in_proj_bias", "qkv.bias"))]
    for part in (one, other):  # keys' biases have no effect: their gradients are rounding errors
        for name in idle:
            part[name].view(3, -1)[1] = 0
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5


def test_parts_of_a_batch_add_up_where_the_loss_is_a_mean_over_samples(data, tmp_path) -> None:
    with pytest.raises(ValueError, match="3 equal parts"):
        pretrain(parameters(data, tmp_path / "odd", accumulate=3), data)
    result = pretrain(parameters(data, tmp_path / "run", accumulate=4, samples_seen=64), data)
    assert result["samples_seen"] == 64


def test_the_documented_line_for_several_machines_is_one_that_torchrun_takes() -> None:
    line = loop.__doc__.split("torchrun ")[1].split("#")[0].replace("\\", " ").split()
    asked = get_args_parser().parse_args(line)
    assert (asked.nnodes, asked.nproc_per_node, asked.rdzv_backend) == ("2", "8", "c10d")
    assert asked.module
    assert asked.training_script == "cxrstudy.pretrain.loop"


@pytest.mark.slow
def test_one_parameter_launches_a_run_on_two_processes(data, tmp_path) -> None:
    shown: list[int] = []

    def progress(steps):
        for step in steps:
            yield step
            shown.append(step)

    own = {"encoder": "davit_mini"}
    two = parameters(data, tmp_path / "two", processes=2, **own)
    two = pretrain(two, data, progress=progress, score=knn_auroc)
    one = pretrain(parameters(data, tmp_path / "one", **own), data, score=knn_auroc)
    assert shown == list(range(6))
    assert (two["processes"], two["samples_seen"]) == (2, 96)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert list(two["curve"]["step"]) == list(one["curve"]["step"])
    assert two["checks"]["score"][0] == one["checks"]["score"][0]  # of the same initial weights
    with pytest.raises(RuntimeError, match="2 processes failed"):
        pretrain(parameters(data, tmp_path / "bad", processes=2, splits=["no"], **own), data)
