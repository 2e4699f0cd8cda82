"""Runs that are killed, or have several processes, end with the weights of an undisturbed run."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from made_runs import Killed, killed_after, parameters
from safetensors.torch import load_file
from torch import distributed as dist
from torch.distributed.run import get_args_parser

from cxrstudy import study
from cxrstudy.data.images import open_prepared
from cxrstudy.evaluate.metrics import knn_auroc
from cxrstudy.pretrain import loop
from cxrstudy.pretrain.batches import read_batches
from cxrstudy.pretrain.build import build_run
from cxrstudy.pretrain.clip import clip_loss, unicl_loss
from cxrstudy.pretrain.distributed import gather_rows, mean_over_ranks
from cxrstudy.pretrain.loop import pretrain, train_step

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


WHOLE_DINO = {"prototypes": 64, "ibot_weight": 1.0, "koleo_weight": 0.1, "local_crops": 2}
GRADIENTS = {
    "clip": {"encoder": "hybrid_mini", "accumulate": 2},
    "unicl": {"paradigm": "unicl", "encoder": "hybrid_mini"},
    "dinov2": {"paradigm": "dinov2", "encoder": "vit_mini", "dino": WHOLE_DINO},
    "softmax": {
        "paradigm": "dinov2",
        "encoder": "hybrid_mini",
        "accumulate": 2,
        "dino": WHOLE_DINO | {"centring": "softmax", "patch_head": True},
    },
}


def gradients(rank: int, p: study.Pretrain, data: Path, folder: Path) -> None:
    """Save loss and gradients of two steps: DDP arranges its buckets anew after the first."""
    run = build_run(p, open_prepared(data), folder)
    batches, found = read_batches(run), {}
    for step in range(2):
        _, loss, _ = train_step(run, step, batches)
        found[f"{step} loss"] = torch.tensor(mean_over_ranks([loss]))
        named = run.objective.named_parameters()
        found |= {f"{step} {name}": w.grad.clone() for name, w in named if w.grad is not None}
    torch.save(found, folder / f"gradients-{dist.is_initialized()}-{rank}")


@pytest.mark.parametrize("case", GRADIENTS)
def test_gloo_gradients_of_two_ranks_are_those_of_the_joined_batch(data, tmp_path, case) -> None:
    own = GRADIENTS[case] | {"lr": 1e-12, "grad_clip_norm": 1e9}
    p = parameters(data, tmp_path / "run", **own)
    gradients(0, p, data, tmp_path)
    ranks(2, tmp_path / "meet", gradients, p, data, tmp_path)
    one, two, other = (
        torch.load(tmp_path / f"gradients-{name}") for name in ("False-0", "True-0", "True-1")
    )
    assert one.keys() == two.keys() == other.keys()
    assert any(name.startswith("1 ") and "loss" not in name for name in one)
    assert not any("teacher" in name for name in one)
    for name, gradient in one.items():
        assert torch.equal(two[name], other[name])
        # sums of float32 in another order: relative to the largest entry of the step
        scale = max(float(g.abs().max()) for key, g in one.items() if key[:2] == name[:2])
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-6 * scale)


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


def saved_run(rank: int, p: study.Pretrain, data: Path) -> None:
    with pytest.raises(Killed):
        pretrain(p, data, progress=killed_after(3))


def test_a_run_resumes_with_another_number_of_processes_and_says_what_changes(
    data, tmp_path
) -> None:
    own = {"encoder": "hybrid_mini", "lr": 1e-4, "drop_path": 0.1}
    whole = parameters(data, tmp_path / "whole", **own | {"drop_path": 0.0})
    pretrain(whole, data)
    plain = parameters(data, tmp_path / "cut", checkpoint_steps=1, **own | {"drop_path": 0.0})
    ranks(2, tmp_path / "meet", saved_run, plain, data)
    with pytest.warns(UserWarning, match="had 2 processes, the others 1") as caught:
        result = pretrain(plain, data)
    assert result["resumed_from"] == 3
    assert result["processes_changed"] in {str(warning.message) for warning in caught}
    assert "drop path" not in result["processes_changed"]
    assert "processes_changed" not in pretrain(plain, data)  # the last checkpoint is of one
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-3


def torchrun_and_workers() -> list[int]:
    """Return the process ids of this process's torchrun and of its ranks."""
    for child in psutil.Process().children():
        if "torch.distributed.run" in child.cmdline():
            return [child.pid, *sorted(worker.pid for worker in child.children())]
    raise AssertionError("torchrun does not run")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "torchrun"])
def test_a_worker_or_torchrun_killed_ends_the_run_with_its_reason_and_the_run_resumes(
    data, tmp_path, victim
) -> None:
    own = {"encoder": "hybrid_mini", "lr": 1e-4, "checkpoint_steps": 1, "samples_seen": 24 * 16}
    p, killed = parameters(data, tmp_path / "two", processes=2, **own), []

    def kill(steps):
        for step in steps:
            if step == 3:
                killed.extend(torchrun_and_workers())
                os.kill(killed[2 if victim == "worker" else 0], signal.SIGKILL)
            yield step

    reason = "one was ended by SIGKILL" if victim == "worker" else "processes failed"
    with pytest.raises(RuntimeError, match=f"{reason}.*goes on from its last checkpoint"):
        pretrain(p, data, progress=kill)
    patience = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in killed) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) for pid in killed)
    result = pretrain(p, data)
    assert 1 <= result["resumed_from"] < 24
    whole = pretrain(parameters(data, tmp_path / "one", **own), data)
    assert result["loss"] == pytest.approx(whole["loss"], rel=1e-2)


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
