"""Processes that share each batch: calls to torch.distributed that also work in one process."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from cxrstudy import study
from cxrstudy.files import write_text
from cxrstudy.progress import Progress


def world_size() -> int:
    """Return the number of processes: 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process: 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def device() -> torch.device:
    """Return this process's GPU, or the CPU of a machine without one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda", torch.cuda.current_device())


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all ranks, in order, with gradients; one process returns ``x``."""
    return torch.cat(all_gather(x.contiguous())) if world_size() > 1 else x


def all_reduce(x: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Reduce ``x`` over all ranks, in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(x, op)
    return x


def mean_over_ranks(values: list[Tensor]) -> list[float]:
    """Return the means over ranks of some scalars, in a single message."""
    means: list[float] = all_reduce(torch.stack(values)).div(world_size()).tolist()
    return means


def parallel(objective: nn.Module) -> nn.Module:
    """Return the objective as torch's DistributedDataParallel; in one process, as it is.

    Gradients are averaged over ranks, in buckets, while the backward pass computes the others. The
    objectives gather what their losses compare, so this is the gradient of the joined batch.
    Parameters without gradients (DINOv2's teacher) take no part.
    """
    if world_size() == 1:
        return objective
    return DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=True)


def without_exchange(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return a context in which backward passes only add to the gradients of this rank."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def sync_batchnorm(objective: nn.Module, device: torch.device) -> Any:
    """Return the objective with batch norms that use the statistics of all ranks.

    Raises:
        ValueError: there are batch norms and no GPU; torch has none of this kind for CPUs.
    """
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in objective.modules()):
        return objective
    if device.type != "cuda":
        raise ValueError(
            "this encoder has batch norms, and processes on CPUs cannot share their statistics. "
            "Set processes=1, or choose an encoder without them (davit_mini, hybrid_mini, any ViT)"
        )
    # timm's version: torch's own would drop the activations that timm fuses into its norms
    return convert_sync_batchnorm(objective)


# ---- start of the processes ----------------------------------------------------------------------
def launch(
    p: study.Pretrain,
    data: Path,
    out: Path,
    steps: int,
    progress: Progress,
    calls: dict[str, str],
) -> dict[str, Any]:
    """Run ``loop.pretrain`` on ``p.processes`` processes of this machine, and return its info.

    Args:
        p: the parameters of the run.
        data: folder of the prepared data.
        out: folder of the run.
        steps: number of steps, for the progress bar.
        progress: wrapper of the iterator over the steps.
        calls: arguments of ``loop.pretrain`` as ``module:name``, which the workers import.

    Raises:
        RuntimeError: a process failed; the message ends with its log.
    """
    parameters, log, count = out / "launch.yml", out / "launch.log", out / "steps"
    write_text(parameters, yaml.safe_dump(p.model_dump() | {"data": str(data.resolve())}))
    write_text(count, "0")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    worker = ["-m", "cxrstudy.pretrain.loop", str(parameters), f"--launcher={os.getpid()}"]
    named = [f"--{argument}={name}" for argument, name in calls.items()]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*torchrun, f"--nproc-per-node={p.processes}", *worker, *named],
            stdout=stream,
            stderr=stream,
            env=os.environ | {"OMP_NUM_THREADS": str(p.threads)},
        )
        try:
            for step in progress(range(steps)):
                while process.poll() is None and int(count.read_text() or 0) <= step:
                    time.sleep(0.1)
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
    if code:
        raise RuntimeError(failure(p.processes, log))
    result = json.loads((out / "result.json").read_text())
    for path in (parameters, count, out / "result.json"):
        path.unlink()
    return result


def failure(processes: int, log: Path) -> str:
    """Return why torchrun's processes failed, from its log, and the remedy."""
    text = log.read_text(errors="replace")
    signals = [int(n) for n in re.findall(r"exitcode\s*: -(\d+)", text)]
    why = ""
    if ended := [signal.Signals(n).name for n in signals if n != signal.SIGTERM]:
        why = f": one was ended by {ended[0]}"
        why += " (no memory left, or by hand)" if ended[0] == "SIGKILL" else ""
    return (
        f"{processes} processes failed{why}. Start the run again: it goes on from its last "
        f"checkpoint. {log} ends: {text[-1500:]}"
    )


def report_steps(steps: Iterable[int], out: Path, launcher: int) -> Iterator[int]:
    """Iterate over the steps; rank 0 writes each one to a file that ``launch`` reads.

    Stops the worker with ProcessLookupError if the process ``launcher`` or torchrun has ended.
    """
    torchrun = os.getppid()
    for step in steps:
        yield step
        if os.getppid() != torchrun:
            raise ProcessLookupError("torchrun has ended")
        if rank() == 0:
            os.kill(launcher, 0)  # signal 0 only checks that the process exists
            (out / "steps").write_text(str(step + 1))
