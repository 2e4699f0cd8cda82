"""The pretraining loop: it shows ``samples_seen`` images, whatever the size of the subset.

The image at each position of the order depends only on (seed, position), and every random draw of a
step on (seed, step). A checkpoint is therefore weights, optimiser and one number, and a killed run
resumes exactly. With several processes, every rank draws the numbers of the whole batch and uses
its part, so that together they do what one process would do.

    torchrun --nproc-per-node 8 --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m cxrstudy.pretrain.loop RUN/parameters.yml     # on each of two machines with one RUN
"""

import argparse
import contextlib
import functools
import importlib
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor, nn
from torch import distributed as dist

from cxrstudy import modelcard, study
from cxrstudy.data import images as stores
from cxrstudy.files import write_text
from cxrstudy.pretrain import checkpoint, distributed, flops
from cxrstudy.pretrain.build import Run, build_run
from cxrstudy.pretrain.monitor import (
    CHECKS,
    Monitor,
    Score,
    relative_weight_change,
    training_progress,
)
from cxrstudy.pretrain.schedules import learning_rate
from cxrstudy.pretrain.subset import batch_edges, usable
from cxrstudy.progress import Progress
from cxrstudy.results import window

LOG_STEPS = 10  # steps between two points of the learning curve; only these wait for the device


def pretrain(
    p: study.Pretrain, data: str | Path, *, progress: Progress = iter, score: Score | None = None
) -> dict[str, Any]:
    """Run or resume one pretraining run, and save the encoder in ``<out>/encoder``.

    The last checkpoint stays until the caller has recorded the result and calls
    ``checkpoint.remove``. Until then the same call resumes from it.

    Args:
        p: the parameters.
        data: folder of the prepared data.
        progress: wrapper of the iterator over the steps.
        score: evaluates the features of held-out images during the run (see ``monitor``). With
            several processes, it must be a function that a worker can import by name.

    Returns:
        The run's info: samples_seen, unique_images, epochs, flops, images_per_second,
        seconds_training, loss, relative_weight_change, resumed_from, the share of
        reports that the context cuts, images ``without_report`` and ``left_out``; where they apply
        ``heldout_score``, ``hardly_trained`` and ``torn_checkpoint``. Also ``subject``, and the
        DataFrames ``curve`` and ``checks`` (in ``<out>/curve.csv`` and ``checks.csv`` too).

    Raises:
        FloatingPointError: the loss is not finite; the message names step, images and checkpoint.
        monitor.Collapsed: the encoder is being destroyed.
    """
    out = study.resolve(p.out)
    out.mkdir(parents=True, exist_ok=True)
    if p.processes > 1 and distributed.world_size() == 1:
        return _launch(p, Path(data), out, progress, score)

    # ---- set-up
    run = build_run(p, stores.open_prepared(data), out)
    resume(run)
    monitor = Monitor(p, run.prepared, run.rows, score, run.checks)
    saved = run.started = time.monotonic()

    # ---- training
    for step in progress(range(run.resumed_from, run.steps)):
        if step % max(1, run.steps // CHECKS) == 0 and distributed.rank() == 0:
            monitor.check(run.objective.encoder, run.edges[step], run.curve)
        lr, loss, parts = train_step(run, step)
        # reading a value waits for the device, so it is done at few steps
        log = step % LOG_STEPS == 0 or step == run.steps - 1
        save = time.monotonic() - saved > p.checkpoint_seconds
        save = save or bool(p.checkpoint_steps and (step + 1) % p.checkpoint_steps == 0)
        if log or save:
            flush_losses(run)
        if log:
            point = {"step": step, "samples_seen": run.edges[step + 1], "loss": float(loss)}
            run.curve.append(point | {"lr": lr} | {n: float(part) for n, part in parts.items()})
        if save:
            saved = time.monotonic()
            save_checkpoint(run, step + 1)
    seconds = run.seconds_training()
    save_checkpoint(run, run.steps)

    # ---- results
    result: dict[str, Any] = {}
    if distributed.rank() == 0:
        choose_weights(run)
        monitor.check(run.objective.encoder, p.samples_seen, run.curve)
        result = save_results(run, seconds, monitor.unmeasured)
    if distributed.world_size() > 1:
        dist.barrier()
    return result


# ---- one step ------------------------------------------------------------------------------------
def train_step(run: Run, step: int) -> tuple[float, Tensor, dict[str, Tensor]]:
    """Take one step of the optimiser.

    Returns:
        Learning rate, loss, and parts of the loss, the last two as scalars on the device.
    """
    p, objective = run.p, run.objective
    world, rank = distributed.world_size(), distributed.rank()

    # 1. Learning rate, and the random state of this step
    lr = learning_rate(step, run.steps, p.lr, p.warmup, **objective.lr_schedule)
    lr = objective.set_learning_rates(run.optimiser, lr, step, run.steps)
    rng = np.random.default_rng([p.seed, step, 1])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    torch.manual_seed(int(rng.integers(2**62)))  # for drop path

    # 2. Gradients of the batch, part by part
    run.optimiser.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=run.device)
    batch = run.batch(step)  # (B,)
    with contextlib.nullcontext() if run.flops else flops.counter() as counter:
        for part in np.split(batch, p.accumulate):  # (B / accumulate,)
            low, high = (k * len(part) // world for k in (rank, rank + 1))
            pixels = torch.from_numpy(run.prepared.images[run.rows[part[low:high]]])  # (N, H, W)
            x = objective.encoder.normalise(pixels.to(run.device, non_blocking=True))  # (N,1,H,W)
            with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
                part_loss, parts = objective.step_loss(
                    x, part, low, rng, generator, step, run.steps
                )
            (part_loss / p.accumulate).backward()
            loss += part_loss.detach() / p.accumulate
    if counter:  # counted once: steps differ only in the length of texts
        run.flops = counter.get_total_flops() * world / len(batch)

    # 3. Update of the weights
    if world > 1:
        distributed.average_gradients(objective)
    norm = nn.utils.clip_grad_norm_(objective.parameters(), p.grad_clip_norm)
    run.optimiser.step()
    objective.on_step_end(step, run.steps)
    if run.ema_model is not None:  # a smaller decay in the first steps forgets the initial weights
        run.ema_model.decay = min(p.ema, (1 + step) / (10 + step))
        run.ema_model.update(objective.modules_to_save())
    run.losses.append((step, loss + 0 * norm))  # not finite if a gradient is not
    return lr, loss, parts


def flush_losses(run: Run) -> None:
    """Read the losses since the last call from the device, in one transfer.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    values = torch.stack([value for _, value in run.losses]).tolist()
    for (step, _), value in zip(run.losses, values, strict=True):
        if not math.isfinite(value):
            names = run.prepared.manifest["image_id"].iloc[run.rows[run.batch(step)]].tolist()
            last = f"the last good checkpoint is of step {run.last_checkpoint}"
            raise FloatingPointError(
                f"loss is {value} at step {step} (images {names[:5]} ...); "
                f"{last if run.last_checkpoint else 'there is no checkpoint yet'}; lower lr or "
                "check these images"
            )
    run.losses.clear()


# ---- checkpoints ---------------------------------------------------------------------------------
def resume(run: Run) -> None:
    """Load the run's checkpoint, if there is one that fits."""
    state = checkpoint.load(run.out, run.key, run.checkpointed, run.optimiser) or {}
    run.resumed_from = run.last_checkpoint = state.get("step", 0)
    run.torn = state.get("torn", "")
    run.curve, run.checks = state.get("curve", []), state.get("checks", [])
    run.flops, run.seconds = state.get("flops", 0.0), state.get("seconds", 0.0)


def save_checkpoint(run: Run, step: int) -> None:
    """Save the state after ``step`` steps; rank 0 writes."""
    run.last_checkpoint = step
    if distributed.rank() == 0:
        facts = {
            "key": run.key,
            "step": step,
            "curve": run.curve,
            "checks": run.checks,
            "flops": run.flops,
            "seconds": run.seconds_training(),
        }
        checkpoint.save(run.out, run.checkpointed, run.optimiser, facts)


# ---- results -------------------------------------------------------------------------------------
def choose_weights(run: Run) -> None:
    """Put the weights to save into the model: averaged if ``ema``, mixed with the base's if asked.

    The mix is WiSE-FT (Wortsman et al., CVPR 2022), which keeps what narrow training would lose.
    """
    model = run.objective.modules_to_save()
    if run.ema_model is not None:
        model.load_state_dict(run.ema_model.module.state_dict())
    if run.base_state:
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(run.base_state[name].to(tensor.device), 1 - run.p.wise_ft_alpha)


def save_results(run: Run, seconds: float, unmeasured: dict[str, str]) -> dict[str, Any]:
    """Save the encoder, curve and checks; return what ``pretrain`` returns."""
    p, objective = run.p, run.objective
    loss = float(np.mean([point["loss"] for point in run.curve[-window(len(run.curve)) :]]))
    change = relative_weight_change(run.initial_params, objective.encoder)
    info = {
        "samples_seen": p.samples_seen,
        "unique_images": int(min(p.n_images, p.samples_seen)),
        "epochs": p.samples_seen / p.n_images,
        "flops": run.flops * p.samples_seen,
        "seconds_training": seconds,
        "images_per_second": p.samples_seen / seconds,
        "precision": str(run.dtype).removeprefix("torch."),
        "processes": distributed.world_size(),
        "loss": loss,
        "relative_weight_change": change,
        **training_progress(p, loss, change),
        "resumed_from": run.resumed_from,
        **objective.facts,
        **usable(run.prepared, p)[1],
        **unmeasured,
        **({"torn_checkpoint": run.torn} if run.torn else {}),
    }
    subject = subject_of(p, run.prepared, objective.encoder.info["encoder"])
    spent = ("unique_images", "epochs", "flops", "seconds_training", "precision", "processes")
    objective.encoder.info |= subject | {name: info[name] for name in spent}
    save_encoder(objective, run.out / "encoder", run.patients)
    tables = {"curve": pd.DataFrame(run.curve), "checks": pd.DataFrame(run.checks)}
    for name, table in tables.items():
        table.to_csv(run.out / f"{name}.csv", index=False)
    return info | {"subject": subject} | tables


def save_encoder(objective: Any, folder: Path, patients: set[str]) -> None:
    """Save the encoder in an empty folder, its patients first.

    An encoder without them would pass every check for leaks.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_text(folder / "patients.txt", "\n".join(sorted(patients)))
    objective.save(folder)
    modelcard.model_card(folder)


def subject_of(p: study.Pretrain, prepared: stores.Prepared, encoder: str) -> dict[str, Any]:
    """Return what the numbers of a record are about.

    The institution bears the names of splits other than ``pretrain`` and folds: parts of one pool
    are not the same images.
    """
    parts = [name for name in p.splits if name != "pretrain" and not name.startswith("fold")]
    return {
        "paradigm": p.paradigm,
        "n_images": p.n_images,
        "samples_seen": p.samples_seen,
        "seed": p.seed,
        "institution": prepared.info["institution"] + f" ({' + '.join(parts)})" * bool(parts),
        "generator": prepared.info.get("generator"),
        "kind": prepared.info["kind"],
        "data": Path(p.data).name,
        "encoder": encoder,
        "base": Path(p.base).parent.name if Path(p.base).name == "encoder" else Path(p.base).name,
    }


# ---- several processes ---------------------------------------------------------------------------
def _launch(
    p: study.Pretrain, data: Path, out: Path, progress: Progress, score: Score | None
) -> dict[str, Any]:
    steps = len(batch_edges(p.samples_seen, p.batch_size)) - 1
    name = f"{score.__module__}:{score.__name__}" if score else ""
    info = distributed.launch(p, data, out, steps, progress, name)
    return info | {table: pd.read_csv(out / f"{table}.csv") for table in ("curve", "checks")}


def main() -> None:
    """Run one rank, started by torchrun."""
    parser = argparse.ArgumentParser(description="One process of a pretraining run.")
    parser.add_argument("parameters", type=Path, help="YAML file with the run's parameters")
    parser.add_argument("--score", default="", help="score of held-out images, as module:name")
    parser.add_argument("--launcher", type=int, help="process that reads how many steps are done")
    asked = parser.parse_args()
    text = asked.parameters.read_text(encoding="utf-8")
    p = study.validated("pretrain", yaml.safe_load(text), str(asked.parameters))
    distributed.device()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    out = study.resolve(p.out)
    progress: Progress = iter
    if asked.launcher:
        progress = functools.partial(distributed.report_steps, out=out, launcher=asked.launcher)
    module, _, name = asked.score.partition(":")
    score = getattr(importlib.import_module(module), name) if module else None
    result = pretrain(p, study.resolve(p.data), progress=progress, score=score)
    if distributed.rank() == 0:
        plain = {name: value for name, value in result.items() if name not in ("curve", "checks")}
        write_text(out / "result.json", json.dumps(plain))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
