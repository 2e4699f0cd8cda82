"""The one compute-matched pretraining loop: ``samples_seen`` images are shown whatever the subset's size.

Which sample stands at position p of the order is a pure function of (seed, p), and so is every random draw of a step:
a checkpoint is weights, optimiser and one integer, and a killed run resumes where it was.
"""

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cxrstudy import encoders, study
from cxrstudy.data import images as stores
from cxrstudy.data.manifest import nested_subset
from cxrstudy.files import replacing
from cxrstudy.pretrain.augment import augment
from cxrstudy.pretrain.clip import Captions, captions, clip_loss, mixed, target_ids, unicl_loss
from cxrstudy.progress import Progress


def precision(asked: str, device: torch.device) -> torch.dtype:
    """bfloat16 where asked for, or where ``auto`` finds hardware that gains by it; float32 elsewhere.

    A CPU without AMX emulates bfloat16: measured here 12x slower than float32 on AVX2.
    """
    has = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if asked == "bf16" or (asked == "auto" and has) else torch.float32


def positions(n_images: int, start: int, stop: int, seed: int) -> np.ndarray:
    """Which of ``n_images`` stand at positions start..stop of the endless order: a fresh permutation each epoch."""
    place = np.arange(start, stop)
    epochs = range(start // n_images, (stop - 1) // n_images + 1)
    orders = np.concatenate([np.random.default_rng([seed, epoch]).permutation(n_images) for epoch in epochs])
    return orders[place - epochs.start * n_images]


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


def subset_rows(prepared: stores.Prepared, p: study.Pretrain) -> np.ndarray:
    """Row numbers of the nested subset in the prepared data; ValueError when the splits cannot serve it."""
    manifest = prepared.manifest.assign(row=np.arange(len(prepared.manifest)))
    unknown = sorted(set(p.splits) - set(manifest["split"]))
    if unknown:
        raise ValueError(f"splits: no split {unknown[0]!r} in {p.data}; it has {sorted(set(manifest['split']))}")
    pool = manifest[manifest["split"].isin(p.splits)]
    if p.n_images > len(pool):
        raise ValueError(f"n_images is {p.n_images}, but splits {p.splits} of {p.data} hold {len(pool)} images")
    if p.n_images < p.batch_size:
        raise ValueError(f"batch_size {p.batch_size} exceeds n_images {p.n_images}: a batch would hold images twice")
    return nested_subset(pool, p.n_images, seed=p.seed)["row"].to_numpy()


def pretrain(p: study.Pretrain, data: str | Path, *, progress: Progress = iter) -> dict[str, Any]:
    """Run or resume one pretraining run; the encoder is saved in ``<out>/encoder``.

    Args: ``data`` is a prepared folder. Returns info (samples_seen, unique_images, epochs, flops, images_per_second,
    seconds_training, loss), ``subject`` and ``curve`` (DataFrame step, samples_seen, loss, lr), also in
    ``<out>/curve.csv``. FloatingPointError, naming step and images, when the loss is no longer finite.
    """
    torch.set_num_threads(p.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = study.resolve(p.out)
    out.mkdir(parents=True, exist_ok=True)
    prepared = stores.open_prepared(data)
    rows = subset_rows(prepared, p)
    subset = prepared.manifest.iloc[rows]
    texts = captions(subset)
    if p.paradigm == "clip" and not all(texts.reports):
        raise ValueError(f"paradigm 'clip' needs a report for every image; {p.data} lacks {texts.reports.count('')}")
    image_encoder, text = build(p, prepared, texts)
    model = nn.ModuleDict({"image": image_encoder, "text": text}).to(device).to(memory_format=torch.channels_last)
    decayed = [w for w in model.parameters() if w.ndim >= 2]
    others = [w for w in model.parameters() if w.ndim < 2]
    groups = [{"params": decayed, "weight_decay": p.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=p.lr, fused=True)
    edges = batch_edges(p.samples_seen, p.batch_size)
    steps = len(edges) - 1
    report_tokens, prompt_tokens = text.tokens(texts.reports), text.tokens(texts.prompts)
    has_report = np.array([bool(report) for report in texts.reports])
    key = _key(p, prepared)
    state = _resume(out, key, model, optimiser)
    curve: list[dict[str, float]] = state["curve"]
    flops, began, spent = state["flops"], time.monotonic(), state["seconds"]
    saved = began
    dtype = precision(p.precision, device)
    generator = torch.Generator()
    for step in progress(range(state["step"], steps)):
        rate = learning_rate(step, steps, p.lr, p.warmup)
        for group in optimiser.param_groups:
            group["lr"] = rate
        take = positions(p.n_images, edges[step], edges[step + 1], p.seed)
        rng = np.random.default_rng([p.seed, step, 1])
        generator.manual_seed(int(rng.integers(2**62)))
        x = augment(image_encoder.normalise(prepared.images[rows[take]]).to(device), generator)
        as_prompt = np.zeros(len(take), bool)
        if p.paradigm == "unicl":
            as_prompt = mixed(texts.label_set[take], has_report[take], p.label_share, rng)
        chosen = torch.from_numpy(as_prompt)[:, None]
        tokens = torch.where(chosen, prompt_tokens[texts.label_set[take]], report_tokens[take])
        tokens = tokens[:, : int((tokens != 0).sum(1).max())].to(device)
        optimiser.zero_grad(set_to_none=True)
        with FlopCounterMode(display=False) if flops == 0 else contextlib.nullcontext() as counter:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                pooled = image_encoder.pool(x.contiguous(memory_format=torch.channels_last))
                image_rows, text_rows = text.embed_image(pooled), text.embed_text(tokens)
            image_rows, text_rows, scale = image_rows.float(), text_rows.float(), text.scale()
            if p.paradigm == "clip":
                loss = clip_loss(image_rows, text_rows, scale)
            else:
                targets = target_ids(texts.label_set[take], as_prompt).to(device)
                loss = unicl_loss(image_rows, text_rows, targets, scale)
            loss.backward()
        if counter:
            flops = counter.get_total_flops() / len(take)  # a sample; the same at every step but for text length
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        value = loss.item() if step % 10 == 0 or step == steps - 1 else None
        if value is not None:
            if not math.isfinite(value):
                ids = subset["image_id"].iloc[take].head(5).tolist()
                raise FloatingPointError(f"loss is {value} at step {step} (images {ids} ...); lower lr or look at them")
            curve.append({"step": step, "samples_seen": edges[step + 1], "loss": value, "lr": rate})
        if time.monotonic() - saved > p.checkpoint_seconds:
            saved = time.monotonic()
            _checkpoint(out, key, model, optimiser, step + 1, curve, flops, spent + saved - began)
    seconds = spent + time.monotonic() - began
    table = pd.DataFrame(curve)
    table.to_csv(out / "curve.csv", index=False)
    info = {
        "samples_seen": p.samples_seen,
        "unique_images": int(min(p.n_images, p.samples_seen)),
        "epochs": p.samples_seen / p.n_images,
        "flops": flops * p.samples_seen,
        "seconds_training": seconds,
        "images_per_second": p.samples_seen / seconds,
        "precision": str(dtype).removeprefix("torch."),
        "loss": float(table["loss"].tail(10).mean()),
    }
    subject = {
        "paradigm": p.paradigm,
        "n_images": p.n_images,
        "samples_seen": p.samples_seen,
        "seed": p.seed,
        "institution": prepared.info["institution"],
        "kind": prepared.info["kind"],
        "data": Path(p.data).name,
        "encoder": image_encoder.info["encoder"],
        "base": Path(p.base).parent.name if Path(p.base).name == "encoder" else Path(p.base).name,
    }
    image_encoder.info |= subject
    patients = set(subset["patient_id"]) | set(seen_patients(p.base))
    (out / "encoder").mkdir(exist_ok=True)  # patients first: an encoder without them would pass every check for leaks
    (out / "encoder" / "patients.txt").write_text("\n".join(sorted(patients)), encoding="utf-8")
    encoders.save_encoder(image_encoder.cpu(), out / "encoder", text.cpu())
    (out / "checkpoint.pt").unlink(missing_ok=True)
    return info | {"subject": subject, "curve": table}


def seen_patients(encoder: str) -> list[str]:
    """Patients whose images an encoder was pretrained on, its base's included; none are known of a mere name."""
    folder = encoders.encoder_folder(study.resolve(encoder)) if encoder else None
    return sorted((encoders.listed_patients(folder) if folder else None) or ())


def build(p: study.Pretrain, prepared: stores.Prepared, texts: Captions) -> tuple[encoders.Encoder, encoders.Text]:
    """Image encoder and text tower: the base's, or new ones; a base without a text tower gets a new one."""
    corpus = texts.prompts + [report for report in texts.reports if report]
    if p.base:
        folder = encoders.encoder_folder(study.resolve(p.base)) or study.resolve(p.base)
        image_encoder = encoders.load_encoder(folder).requires_grad_(True).train()
        text = encoders.load_text(folder, image_encoder.channels)
    else:
        image_encoder = encoders.build_encoder(p.encoder, prepared.info["size"], seed=p.seed)
        image_encoder.mean, image_encoder.std = prepared.info["mean"], prepared.info["std"]
        text = None
    return image_encoder, (text or encoders.build_text(corpus, image_encoder.channels, seed=p.seed)).train()


def _key(p: study.Pretrain, prepared: stores.Prepared) -> str:
    """What a checkpoint must agree on to be resumed: parameters and data."""
    return study.digest([p.model_dump(exclude={"out", "threads", "checkpoint_seconds"}), prepared.info], 16)


def _checkpoint(
    out: Path, key: str, model: nn.Module, optimiser: Any, step: int, curve: Any, flops: float, seconds: float
) -> None:
    state = {"key": key, "step": step, "curve": curve, "flops": flops, "seconds": seconds}
    with replacing(out / "checkpoint.pt") as scratch:
        torch.save(state | {"model": model.state_dict(), "optimiser": optimiser.state_dict()}, scratch)


def _resume(out: Path, key: str, model: nn.Module, optimiser: Any) -> dict[str, Any]:
    path = out / "checkpoint.pt"
    if path.is_file():
        state = torch.load(path, weights_only=True)
        if state["key"] == key:
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            return state
    return {"step": 0, "curve": [], "flops": 0.0, "seconds": 0.0}
