"""The one compute-matched pretraining loop: ``samples_seen`` images are shown whatever the subset's size.

Which sample stands at position p of the order is a pure function of (seed, p), and so is every random draw of a step:
a checkpoint is weights, optimiser and one integer, and a killed run resumes where it was. On several processes every
rank draws the whole batch's numbers and keeps its part, so that they do what one process would.

    torchrun --nproc-per-node 8 --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m cxrstudy.pretrain.loop RUN/parameters.yml     # on each of two machines that share the run's folder
"""

import contextlib
import copy
import functools
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from timm.layers import set_fused_attn
from torch import Tensor, nn
from torch import distributed as dist

from cxrstudy import encoders, study
from cxrstudy.data import images as stores
from cxrstudy.files import write_text
from cxrstudy.pretrain import checkpoint, outcome, ranks
from cxrstudy.pretrain import flops as flop
from cxrstudy.pretrain.clip import ImageText
from cxrstudy.pretrain.distil import SelfDistilled
from cxrstudy.pretrain.monitor import CHECKS, Monitor, Score
from cxrstudy.pretrain.subset import subset_rows, usable
from cxrstudy.progress import Progress
from cxrstudy.results import window

LOGGED = (
    10  # steps between two points of the learning curve, at which alone the device is waited for
)


def precision(asked: str, device: torch.device) -> torch.dtype:
    """bfloat16 where asked for, or where ``auto`` finds hardware that gains by it; float32 elsewhere.

    A CPU with neither AMX nor AVX-512's bfloat16 emulates it: measured 12x slower than float32 on AVX2, while AVX-512's
    trained a ViT 1.9x and the small CNN 1.3x as fast.
    """
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if asked == "bf16" or (asked == "auto" and has) else torch.float32


@functools.lru_cache(4)
def _order(n_images: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_images)


def positions(n_images: int, start: int, stop: int, seed: int) -> np.ndarray:
    """Which of ``n_images`` stand at positions start..stop of the endless order: a fresh permutation each epoch."""
    place = np.arange(start, stop)
    epochs = range(start // n_images, (stop - 1) // n_images + 1)
    orders = np.concatenate([_order(n_images, epoch, seed) for epoch in epochs])
    return orders[place - epochs.start * n_images]


def batch_positions(n_images: int, start: int, stop: int, seed: int) -> np.ndarray:
    """The images of one batch. Where it reaches into the next epoch, those of it that it holds already give way to
    others: twice in a batch, an image would be its own negative, the more often the smaller the subset."""
    take = positions(n_images, start, stop, seed)
    again = np.ones(len(take), bool)
    again[np.unique(take, return_index=True)[1]] = False
    if again.any() and len(take) <= n_images:
        rest = np.setdiff1d(np.arange(n_images), take)
        take[again] = np.random.default_rng([seed, start, 2]).permutation(rest)[: again.sum()]
    return take


def batch_edges(samples_seen: int, batch_size: int) -> list[int]:
    """Where batches begin and end: full ones, but a last one of a single sample, which has no negative, takes one more
    from the batch before it (or joins it, where that would then be alone)."""
    edges = [*range(0, samples_seen, batch_size), samples_seen]
    if edges[-1] - edges[-2] == 1 and len(edges) > 2:
        edges[-2] -= 1
        if edges[-2] - edges[-3] < 2:
            del edges[-2]
    return edges


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then a cosine to zero."""
    ramp = max(1, round(warmup * steps))
    if step < ramp:
        return peak * (step + 1) / ramp
    return peak * 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def hold_norms(objective: nn.Module) -> None:
    """Batch norms keep the base's statistics, as He et al. (2016, appendix A) fine-tune: measured anew on a few hundred
    x-rays they cost a real ImageNet encoder .03 of AUROC before any weight had moved."""
    for module in objective.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def pretrain(
    p: study.Pretrain, data: str | Path, *, progress: Progress = iter, score: Score | None = None
) -> dict[str, Any]:
    """Run or resume one pretraining run; the encoder is saved in ``<out>/encoder``.

    Args: ``data`` is a prepared folder; ``score`` judges the features of held-out images while the run goes on (see
    ``monitor``). The last checkpoint stays, and the same call made again goes on from it, until who has recorded the
    result calls ``checkpoint.remove``. ``base_share`` mixes the base's weights into the kept ones, which keeps what
    narrow training would lose (WiSE-FT, Wortsman et al., CVPR 2022). Returns info (samples_seen, unique_images, epochs,
    flops, images_per_second, seconds_training, loss, moved, resumed_from, of reports the share cut at the context,
    images ``without_report`` and ``left_out``; ``heldout_score`` and ``torn_checkpoint`` where there is something to
    say), ``subject``, ``curve`` and ``checks`` (DataFrames, also in ``<out>/curve.csv`` and ``checks.csv``).
    FloatingPointError, naming step, images and the last good checkpoint, when the loss is no longer finite;
    ``monitor.Collapsed`` when the encoder is being destroyed.
    """
    out = study.resolve(p.out)
    out.mkdir(parents=True, exist_ok=True)
    world = ranks.world()
    if p.processes > 1 and world == 1:
        return _launch(p, Path(data), out, progress, score)
    torch.set_num_threads(p.threads)
    encoders.keep_memory()
    rank, device = (dist.get_rank() if world > 1 else 0), ranks.device()
    dtype = precision(p.precision, device)
    if device.type == "cpu":  # the backward of whose fused attention is slow in half precision
        set_fused_attn(dtype == torch.float32)
    prepared = stores.open_prepared(data)
    rows = subset_rows(prepared, p)
    subset = prepared.manifest.iloc[rows]
    patients = set(subset["patient_id"]) | set(seen_patients(p.base))
    base = _base(p, prepared)
    encoder = base.encoder
    began_as = [w.detach().clone() for w in encoder.parameters()]
    if p.drop_path:
        encoders.drop_paths(encoder.trunk, p.drop_path)
    objective: Any = (SelfDistilled if p.paradigm == "dinov2" else ImageText)(p, base, subset)
    began_with = copy.deepcopy(objective.kept().state_dict()) if p.base and p.base_share else {}
    objective.train().to(device).to(memory_format=torch.channels_last)
    if p.base:
        hold_norms(objective)
    if p.gradient_checkpointing:
        encoder.trunk.set_grad_checkpointing(True)
    if world > 1 and not p.base:
        objective = ranks.shared_statistics(objective, device)
    if p.compile:
        _compile(objective)
    live = objective.kept()
    average = copy.deepcopy(live).requires_grad_(False) if p.ema else None
    whole = nn.ModuleDict(
        {"objective": objective} | ({"average": average} if average is not None else {})
    )
    optimiser = torch.optim.AdamW(objective.groups(), lr=p.lr, fused=True)
    edges = batch_edges(p.samples_seen, p.batch_size)
    steps = len(edges) - 1
    _divisible(edges, p.accumulate * world)
    key = _key(p, prepared)
    fresh: dict[str, Any] = {"step": 0, "curve": [], "checks": [], "flops": 0.0, "seconds": 0.0}
    state = fresh | (checkpoint.load(out, key, whole, optimiser) or {})
    monitor = Monitor(p, prepared, rows, score, state["checks"])
    curve, flops, began = state["curve"], state["flops"], time.monotonic()
    saved, good = began, state["step"]
    generator = torch.Generator()
    pending: list[tuple[int, Tensor]] = []

    def settle() -> None:
        """Read the losses of the steps since this was last done; the first that is not finite ends the run."""
        values = torch.stack([value for _, value in pending]).tolist()  # the device is asked once
        for (at, _), value in zip(pending, values, strict=True):
            if not math.isfinite(value):
                shown = (
                    subset["image_id"]
                    .iloc[batch_positions(p.n_images, edges[at], edges[at + 1], p.seed)]
                    .tolist()
                )
                kept = (
                    f"the last good checkpoint is of step {good}"
                    if good
                    else "no checkpoint was kept yet"
                )
                raise FloatingPointError(
                    f"loss is {value} at step {at} (images {shown[:5]} ...); {kept}; lower lr or look at them"
                )
        pending.clear()

    def keep(done: int) -> None:
        if rank == 0:
            spent = state["seconds"] + time.monotonic() - began
            facts = {
                "key": key,
                "step": done,
                "curve": curve,
                "checks": monitor.checks,
                "flops": flops,
            }
            checkpoint.save(out, whole, optimiser, facts | {"seconds": spent})

    for step in progress(range(state["step"], steps)):
        if step % max(1, steps // CHECKS) == 0 and rank == 0:
            monitor.check(objective.encoder, edges[step], curve)
        rate = objective.set_rates(
            optimiser, learning_rate(step, steps, p.lr, p.warmup), step, steps
        )
        rng = np.random.default_rng([p.seed, step, 1])
        generator.manual_seed(int(rng.integers(2**62)))
        torch.manual_seed(int(rng.integers(2**62)))  # of layers that drop at random
        total = torch.zeros((), device=device)
        optimiser.zero_grad(set_to_none=True)
        batch = batch_positions(p.n_images, edges[step], edges[step + 1], p.seed)
        with flop.counter() if flops == 0 else contextlib.nullcontext() as counter:
            for take in np.split(batch, p.accumulate):
                low, high = rank * len(take) // world, (rank + 1) * len(take) // world
                raw = torch.from_numpy(
                    prepared.images[rows[take[low:high]]]
                )  # a byte a pixel to the device
                x = encoder.normalise(raw.to(device, non_blocking=True))
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss, parts = objective.step_loss(x, take, low, rng, generator, step, steps)
                (loss / p.accumulate).backward()
                total += loss.detach() / p.accumulate
        if counter:
            flops = (
                counter.get_total_flops() * world / len(batch)
            )  # a sample; alike at every step but for text length
        if world > 1:
            ranks.average_gradients(objective)
        norm = nn.utils.clip_grad_norm_(objective.parameters(), p.clip)
        optimiser.step()
        objective.after(step, steps)
        if average is not None:
            blend = min(
                p.ema, (1 + step) / (10 + step)
            )  # the first steps' weights are soon forgotten
            torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), 1 - blend)
            for mine, now in zip(average.buffers(), live.buffers(), strict=True):
                mine.copy_(now)
        pending.append(
            (step, total + 0 * norm)
        )  # a gradient that is not finite counts as such a loss
        due = time.monotonic() - saved > p.checkpoint_seconds
        due = due or bool(p.checkpoint_steps and (step + 1) % p.checkpoint_steps == 0)
        logged = step % LOGGED == 0 or step == steps - 1
        if logged or due:
            settle()
        if logged:
            point = {
                "step": step,
                "samples_seen": edges[step + 1],
                "loss": float(total),
                "lr": rate,
            }
            curve.append(point | {name: float(part) for name, part in parts.items()})
        if due:
            saved, good = time.monotonic(), step + 1
            keep(good)
    seconds = state["seconds"] + time.monotonic() - began
    keep(steps)
    result: dict[str, Any] = {}
    if rank == 0:
        if average is not None:
            live.load_state_dict(average.state_dict())
        if began_with:
            for name, tensor in live.state_dict().items():
                if tensor.is_floating_point():
                    tensor.lerp_(began_with[name].to(tensor.device), p.base_share)
        monitor.check(objective.encoder, p.samples_seen, curve)
        loss = float(np.mean([point["loss"] for point in curve[-window(len(curve)) :]]))
        far = outcome.moved(began_as, objective.encoder)
        info = {
            "samples_seen": p.samples_seen,
            "unique_images": int(min(p.n_images, p.samples_seen)),
            "epochs": p.samples_seen / p.n_images,
            "flops": flops * p.samples_seen,
            "seconds_training": seconds,
            "images_per_second": p.samples_seen / seconds,
            "precision": str(dtype).removeprefix("torch."),
            "processes": world,
            "loss": loss,
            "moved": far,
            **outcome.how_far(p, loss, far),
            "resumed_from": state["step"],
            **objective.facts,
            **usable(prepared, p)[1],
            **monitor.unmeasured,
            **({"torn_checkpoint": state["torn"]} if "torn" in state else {}),
        }
        subject = outcome.subject_of(p, prepared, encoder.info["encoder"])
        spent = ("unique_images", "epochs", "flops", "seconds_training", "precision", "processes")
        objective.encoder.info |= subject | {name: info[name] for name in spent}
        outcome.finish(objective, out, patients)
        tables = {"curve": pd.DataFrame(curve), "checks": pd.DataFrame(monitor.checks)}
        for name, table in tables.items():
            table.to_csv(out / f"{name}.csv", index=False)
        result = info | {"subject": subject} | tables
    if world > 1:
        dist.barrier()
    return result


def seen_patients(encoder: str) -> list[str]:
    """Patients whose images an encoder was pretrained on, its base's included; none are known of a mere name.

    ValueError where the folder of a pretrained encoder lists none: who continues it could not tell whom it has seen.
    """
    folder = encoders.encoder_folder(study.resolve(encoder)) if encoder else None
    listed = encoders.listed_patients(folder) if folder else None
    if folder and listed is None and encoders.facts_of(folder)["info"].get("n_images"):
        raise ValueError(
            f"base {folder}: patients.txt is missing or empty, so nobody can tell whom it was trained on"
        )
    return sorted(listed or ())


def _base(p: study.Pretrain, prepared: stores.Prepared) -> encoders.LoadedCheckpoint:
    """What the run continues, or a new encoder with the grey statistics of the data."""
    if p.base:
        size = prepared.info["size"]
        base = encoders.open_base(p.base, size=size)
        if base.encoder.input_size != size:
            raise ValueError(
                f"base {p.base} sees images of {base.encoder.input_size} px, {p.data} holds {size} px: prepare the "
                f"data at size={base.encoder.input_size}, or continue another base"
            )
        base.encoder.requires_grad_(True)
        return base
    encoder = encoders.build_encoder(p.encoder, prepared.info["size"], seed=p.seed)
    encoder.mean, encoder.std = prepared.info["mean"], prepared.info["std"]
    return encoders.LoadedCheckpoint(encoder)


def _key(p: study.Pretrain, prepared: stores.Prepared) -> str:
    """What a checkpoint must agree on to be resumed: parameters, data and the base's weights."""
    where = {"out", "data", "threads", "checkpoint_seconds", "checkpoint_steps", "processes"}
    folder = encoders.encoder_folder(study.resolve(p.base)) if p.base else None
    base = ""
    if folder:
        base = checkpoint.digest_of(folder / "model.safetensors")
    return study.digest([p.model_dump(exclude=where), prepared.info, base], 16)


# ---- several processes ---------------------------------------------------------------------------------------------
def _divisible(edges: list[int], parts: int) -> None:
    """ValueError unless every batch falls into equal parts."""
    odd = next((b - a for a, b in itertools.pairwise(edges) if (b - a) % parts), 0)
    if odd:
        raise ValueError(
            f"a batch of {odd} does not fall into {parts} equal parts (accumulate x processes): let batch_size be a "
            "multiple of them, and samples_seen a multiple of batch_size"
        )


def _compile(objective: nn.Module) -> None:
    """Compile the encoders' blocks, which are alike, or a whole trunk that has none."""
    for module in objective.modules():
        if isinstance(module, encoders.Encoder):
            blocks = getattr(module.trunk, "blocks", None)
            if blocks is None:
                module.trunk.forward_features = torch.compile(module.trunk.forward_features)
            for block in blocks or ():
                block.compile()


def _launch(
    p: study.Pretrain, data: Path, out: Path, progress: Progress, score: Score | None
) -> dict[str, Any]:
    """``pretrain`` on ``p.processes`` processes of this machine through torch's elastic launcher."""
    file, log, done = out / "launch.yml", out / "launch.log", out / "steps"
    write_text(file, yaml.safe_dump(p.model_dump() | {"data": str(data.resolve())}))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={p.processes}",
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(p.threads),
        "CXRSTUDY_STEPS": f"{os.getpid()}:{done}",
    }
    if score is not None:  # by name: the workers import it, this package knows no judge
        environment["CXRSTUDY_SCORE"] = f"{score.__module__}:{score.__name__}"
    write_text(done, "0")
    with log.open("w") as stream:
        run = subprocess.Popen(
            [*command, "-m", "cxrstudy.pretrain.loop", str(file)],
            stdout=stream,
            stderr=stream,
            env=environment,
        )
        try:
            for step in progress(range(len(batch_edges(p.samples_seen, p.batch_size)) - 1)):
                while run.poll() is None and int(done.read_text() or 0) <= step:
                    time.sleep(0.1)
            code = run.wait()
        finally:
            if run.poll() is None:
                run.terminate()
    if code:
        raise RuntimeError(f"{p.processes} processes failed; {log} ends: {log.read_text()[-1500:]}")
    result = json.loads((out / "result.json").read_text())
    for left in (file, done, out / "result.json"):
        left.unlink()
    return result | {name: pd.read_csv(out / f"{name}.csv") for name in ("curve", "checks")}


def _worker(file: str) -> None:
    """One rank, started by torchrun."""
    p = study.validated("pretrain", yaml.safe_load(Path(file).read_text(encoding="utf-8")), file)
    ranks.device()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    launcher, _, note = os.environ.get("CXRSTUDY_STEPS", "").partition(":")

    def progress(steps: Any) -> Any:
        for step in steps:
            yield step
            if launcher and dist.get_rank() == 0:
                os.kill(
                    int(launcher), 0
                )  # raises where a killed notebook would have left its workers running
                Path(note).write_text(str(step + 1))

    module, _, name = os.environ.get("CXRSTUDY_SCORE", "").partition(":")
    score = getattr(importlib.import_module(module), name) if module else None
    result = pretrain(p, study.resolve(p.data), progress=progress, score=score)
    if dist.get_rank() == 0:
        plain = {name: value for name, value in result.items() if name not in ("curve", "checks")}
        write_text(study.resolve(p.out) / "result.json", json.dumps(plain))
    dist.destroy_process_group()


if __name__ == "__main__":
    _worker(sys.argv[1])
