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
import warnings
from collections.abc import Iterator
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
from cxrstudy.pretrain.batches import prefetch, read_batches, step_draws
from cxrstudy.pretrain.build import Run, build_run
from cxrstudy.pretrain.kept import Chooser, Probe, choose_weights
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

TABLES = ("curve", "checks", "probes")  # of a result; the last with keep="best"
LOG_STEPS = 10  # steps between two points of the learning curve; only these wait for the device


def pretrain(
    p: study.Pretrain,
    data: str | Path,
    *,
    progress: Progress = iter,
    score: Score | None = None,
    probe: Probe | None = None,
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
        probe: chooses the step with ``keep="best"`` (see ``kept``); as ``score``.

    Returns:
        The run's info: samples_seen, unique_images, epochs, flops, images_per_second,
        seconds_training, loss, relative_weight_change, resumed_from, the share of
        reports that the context cuts, images ``without_report`` and ``left_out``; where they apply
        ``heldout_score``, ``hardly_trained``, ``torn_checkpoint`` and ``processes_changed``. Also
        ``subject``, and the DataFrames ``curve`` and ``checks`` (in ``<out>/curve.csv`` and
        ``checks.csv`` too). With ``keep="best"`` also the facts of ``kept.Chooser.keep``, and the
        DataFrame ``probes``.

    Raises:
        FloatingPointError: the loss is not finite; the message names step, images and checkpoint.
        monitor.Collapsed: the encoder is being destroyed.
    """
    out = study.resolve(p.out)
    out.mkdir(parents=True, exist_ok=True)
    if p.processes > 1 and distributed.world_size() == 1:
        return _launch(p, Path(data), out, progress, score, probe)

    # ---- set-up
    run = build_run(p, stores.open_prepared(data), out)
    resume(run)
    monitor = Monitor(p, run.prepared, run.rows, score, run.checks)
    chooser = Chooser(run, probe) if p.keep == "best" else None
    saved = run.started = time.monotonic()

    # ---- training: the operations of the first step are counted, in this thread
    with contextlib.closing(prefetch(read_batches(run), p.accumulate)) as batches:
        for step in progress(range(run.resumed_from, run.steps)):
            if step % max(1, run.steps // CHECKS) == 0 and distributed.rank() == 0:
                monitor.check(run.objective.encoder, run.edges[step], run.curve)
            with _memory_named(p):
                lr, loss, parts = train_step(run, step, batches)
            # reading a value waits for the device, so it is done at few steps
            log = step % LOG_STEPS == 0 or step == run.steps - 1
            save = time.monotonic() - saved > p.checkpoint_seconds
            save = save or bool(p.checkpoint_steps and (step + 1) % p.checkpoint_steps == 0)
            if log or save:
                flush_losses(run)
            if log:
                log_step(run, step, lr, loss, parts)
            if chooser and chooser.due(step + 1) and distributed.rank() == 0:
                chooser.check(step + 1)
            if save:
                saved = time.monotonic()
                save_checkpoint(run, step + 1)
    seconds = run.seconds_training()
    save_checkpoint(run, run.steps)

    # ---- results
    result: dict[str, Any] = {}
    if distributed.rank() == 0:
        choose_weights(run)
        chosen = chooser.keep(seconds) if chooser else {}
        monitor.check(run.objective.encoder, p.samples_seen, run.curve)
        result = save_results(run, seconds, monitor.unmeasured | chosen)
    if distributed.world_size() > 1:
        dist.barrier()
    return result


# ---- one step ------------------------------------------------------------------------------------
def log_step(run: Run, step: int, lr: float, loss: Tensor, parts: dict[str, Tensor]) -> None:
    """Add a point to the learning curve: means over processes."""
    values = distributed.mean_over_ranks([loss, *parts.values()])
    point = {"step": step, "samples_seen": run.edges[step + 1], "loss": values[0]}
    run.curve.append(point | {"lr": lr} | dict(zip(parts, values[1:], strict=True)))


@contextlib.contextmanager
def _memory_named(p: study.Pretrain) -> Iterator[None]:
    """Name the batch, and the parameter to change, where the GPU's memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        part = p.batch_size // (p.accumulate * distributed.world_size())
        raise torch.OutOfMemoryError(
            f"the GPU's memory is too small for {part} images at a time (batch_size "
            f"{p.batch_size}, accumulate {p.accumulate}, {distributed.world_size()} processes): "
            f"set accumulate to {2 * p.accumulate}, or halve batch_size. {error}"
        ) from error


def train_step(
    run: Run, step: int, batches: Iterator[dict[str, Tensor]]
) -> tuple[float, Tensor, dict[str, Tensor]]:
    """Take one step of the optimiser, on the next ``accumulate`` parts from ``batches``.

    Returns:
        Learning rate, loss, and parts of the loss, the last two as scalars on the device.
    """
    p, objective, world = run.p, run.objective, distributed.world_size()

    # 1. Learning rate, and the random state of this step
    lr = learning_rate(step, run.steps, p.lr, p.warmup, **objective.lr_schedule)
    lr = objective.set_learning_rates(run.optimiser, lr, step, run.steps)
    torch.manual_seed(step_draws(p, step)[2])  # for drop path

    # 2. Gradients of the batch, part by part
    run.optimiser.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=run.device)
    with contextlib.nullcontext() if run.flops else flops.counter() as counter:
        for k in range(p.accumulate):
            batch, last = next(batches), k == p.accumulate - 1
            with contextlib.nullcontext() if last else distributed.without_exchange(run.parallel):
                with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
                    part_loss, parts = run.parallel(batch, step, run.steps)
                (part_loss / p.accumulate).backward()
            loss += part_loss.detach() / p.accumulate
    if counter:  # counted once: steps differ only in the length of texts
        run.flops = counter.get_total_flops() * world / (run.edges[step + 1] - run.edges[step])

    # 3. Update of the weights
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
    world = distributed.world_size()
    if (before := state.get("processes", world)) != world:
        run.processes_changed = (
            f"the steps before {run.resumed_from} had {before} processes, the others {world}: the "
            "same images and the same loss, but sums in another order"
            + (", and drop path drops other samples" if run.p.drop_path else "")
            + ", so the weights are not those of an undisturbed run to the bit"
        )
        warnings.warn(run.processes_changed, stacklevel=2)
    run.curve, run.checks = state.get("curve", []), state.get("checks", [])
    run.probes, run.best = state.get("probes", []), state.get("best", {})
    run.flops, run.seconds = state.get("flops", 0.0), state.get("seconds", 0.0)


def save_checkpoint(run: Run, step: int) -> None:
    """Save the state after ``step`` steps; rank 0 writes."""
    run.last_checkpoint = step
    if distributed.rank() == 0:
        facts = {
            "key": run.key,
            "step": step,
            "processes": distributed.world_size(),
            "curve": run.curve,
            "checks": run.checks,
            "flops": run.flops,
            "seconds": run.seconds_training(),
        }
        facts |= {"probes": run.probes, "best": run.best} if run.probes else {}
        checkpoint.save(run.out, run.checkpointed, run.optimiser, facts)


# ---- results -------------------------------------------------------------------------------------
def save_results(run: Run, seconds: float, more: dict[str, Any]) -> dict[str, Any]:
    """Save the encoder and the tables; return what ``pretrain`` returns, with ``more`` info."""
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
        **more,
        **({"torn_checkpoint": run.torn} if run.torn else {}),
        **({"processes_changed": run.processes_changed} if run.processes_changed else {}),
    }
    subject = subject_of(p, run.prepared, objective.encoder.info["encoder"])
    spent = ("unique_images", "epochs", "flops", "seconds_training", "precision", "processes")
    objective.encoder.info |= subject | {name: info[name] for name in spent}
    for name in ("kept_step", "validation_auroc"):  # not those of the base
        objective.encoder.info.pop(name, None)
        objective.encoder.info |= {name: info[name]} if name in info else {}
    save_encoder(objective, run.out / "encoder", run.patients)
    tables = {"curve": pd.DataFrame(run.curve), "checks": pd.DataFrame(run.checks)}
    tables |= {"probes": pd.DataFrame(run.probes)} if run.probes else {}
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
    p: study.Pretrain,
    data: Path,
    out: Path,
    progress: Progress,
    score: Score | None,
    probe: Probe | None,
) -> dict[str, Any]:
    steps = len(batch_edges(p.samples_seen, p.batch_size)) - 1
    calls: dict[str, Any] = {"score": score, "probe": probe}
    named = {name: f"{f.__module__}:{f.__name__}" for name, f in calls.items() if f}
    info = distributed.launch(p, data, out, steps, progress, named)
    tables = TABLES if p.keep == "best" else TABLES[:2]
    return info | {table: pd.read_csv(out / f"{table}.csv") for table in tables}


def _imported(named: str) -> Any:
    """Return a function by its ``module:name``; None if there is no name."""
    module, _, name = named.partition(":")
    return getattr(importlib.import_module(module), name) if module else None


def main() -> None:
    """Run one rank, started by torchrun."""
    parser = argparse.ArgumentParser(description="One process of a pretraining run.")
    parser.add_argument("parameters", type=Path, help="YAML file with the run's parameters")
    parser.add_argument("--score", default="", help="score of held-out images, as module:name")
    parser.add_argument("--probe", default="", help="linear probe, as module:name")
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
    score, probe = _imported(asked.score), _imported(asked.probe)
    result = pretrain(p, study.resolve(p.data), progress=progress, score=score, probe=probe)
    if distributed.rank() == 0:
        plain = {name: value for name, value in result.items() if name not in TABLES}
        write_text(out / "result.json", json.dumps(plain))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
