"""Speed of pretraining steps against lightly and open_clip, of loading, bfloat16, and a GPU.

    pip install --no-deps --target /tmp/peer lightly==1.6.0 lightly-utils aenum lightning-utilities
    PYTHONPATH=/tmp/peer python tests/benchmarks/bench_pretrain.py dinov2 clip loader bf16
    python tests/benchmarks/bench_pretrain.py gpu  # on a machine with one

Both sides run in one process on one thread, alternating, with the same trunk, batch, resolution and
head sizes. A ratio is theirs over ours, one for each round: its median, its range, and a 95%
interval by resampling rounds. Rows are written to ``book/recorded/benchmarks.csv`` (``--out``) and
replace those of the same name, setting and hardware.
"""

import argparse
import contextlib
import copy
import ctypes
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import timm
import torch
from PIL import Image
from torch import nn

from cxrstudy import encoders, study
from cxrstudy.data.sets import prepare_data
from cxrstudy.data.shardfiles import open_shard
from cxrstudy.encoders import Encoder, TextShape, TextTower, build_encoder, train_tokenizer
from cxrstudy.pretrain import flops as flop
from cxrstudy.pretrain.augment import augment
from cxrstudy.pretrain.batches import prefetch, read_batches
from cxrstudy.pretrain.build import Run, build_run, compile_encoders, precision
from cxrstudy.pretrain.clip import ImageText
from cxrstudy.pretrain.dinov2 import DinoConfig, DINOv2
from cxrstudy.pretrain.loop import train_step
from cxrstudy.pretrain.schedules import learning_rate
from cxrstudy.results import environment

ROWS: list[dict[str, Any]] = []
# the reference's default configuration; jitter and blur match it in size only
REFERENCE: dict[str, Any] = {
    "ibot_weight": 1.0,
    "koleo_weight": 0.1,
    "prototypes": 65536,
    "hidden": 2048,
    "bottleneck": 256,
    "head_std": 0.02,
    "learn_gain": True,
    "centring": "softmax",
    "teacher_temperature": (0.04, 0.07),
    "momentum": (0.992, 1.0),
    "weight_decay": (0.04, 0.4),
    "layer_decay": 0.9,
    "patch_embed_scale": 0.2,
    "global_scale": (0.32, 1.0),
    "local_crops": 8,
    "brightness": 0.4,
    "contrast": 0.4,
    "gamma": 0.0,
    "blur": 0.5,
}
VITS = {  # trunk, arguments, px, local px, local crops, batch, prototypes, hidden width of the head
    "ViT p8 d192 L6, 64 px, 2 local crops of 32 px": (
        "vit_tiny_patch16_224", {"patch_size": 8, "depth": 6}, 64, 32, 2, 32, 2048, 512
    ),
    "ViT-S/16, 224 px, 8 local crops of 96 px": (
        "vit_small_patch16_224", {}, 224, 96, 8, 4, 65536, 2048
    ),
}  # fmt: skip


def memory(kept: bool) -> None:
    """Set glibc's allocator as in our runs (``encoders.keep_memory``), or as it adapts itself."""
    libc = ctypes.CDLL("libc.so.6")
    for option, ours, theirs in ((-3, 2**30, 2**25), (-1, 2**31 - 1, 2**26)):
        libc.mallopt(option, ours if kept else theirs)


def alternate(
    ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each side, round by round, after one round that is not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for side in (0, 1) if turn % 2 else (1, 0):
            memory(kept=side == 0)
            began = time.perf_counter()
            (ours, theirs)[side]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[side].append(time.perf_counter() - began)
    return seconds


def keep(
    name: str, setting: str, peer: str, images: int, ours: list[float], theirs: list[float]
) -> None:
    """Print a row and keep it."""
    ratios = np.array(theirs) / np.array(ours)
    draws = np.random.default_rng(0).integers(len(ratios), size=(2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
    row = {
        "benchmark": name,
        "setting": setting,
        "peer": peer,
        "images_per_second": images / statistics.median(ours),
        "peer_images_per_second": images / statistics.median(theirs),
        "ratio": statistics.median(ratios.tolist()),
        "low": low,
        "high": high,
        "rounds": len(ratios),
        "hardware": environment()["hardware"],
        "command": f"python tests/benchmarks/bench_pretrain.py {name}",
    }
    ROWS.append(row)
    own, theirs = row["images_per_second"], row["peer_images_per_second"]
    print(
        f"{name}: {setting}: {own:.1f} images/s, {peer} {theirs:.1f}: "
        f"{row['ratio']:.2f}x [{low:.2f}, {high:.2f}], {ratios.min():.2f} to {ratios.max():.2f}",
        flush=True,
    )


# ---- dinov2 beside lightly ---------------------------------------------------------------------
class Lightly:
    """The loop of lightly's DINOv2 example, with its own parts.

    These are masked timm trunk, heads, losses, momentum, masks and the image-by-image transform
    (docs.lightly.ai, self-supervised-learning/examples/dinov2).
    """

    def __init__(
        self,
        trunk: nn.Module,
        channels: int,
        size: int,
        local: int,
        crops: int,
        prototypes: int,
        hidden: int,
    ):
        from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
        from lightly.models.modules import DINOv2ProjectionHead, MaskedVisionTransformerTIMM
        from lightly.models.utils import random_block_mask, update_momentum
        from lightly.transforms.dino_transform import DINOTransform

        self.student = MaskedVisionTransformerTIMM(vit=trunk)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        sizes = {
            "input_dim": channels,
            "hidden_dim": hidden,
            "bottleneck_dim": 256,
            "output_dim": prototypes,
        }
        self.head, self.teacher_head = (DINOv2ProjectionHead(**sizes) for _ in range(2))
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher_head.requires_grad_(False)
        self.dino, self.ibot, self.koleo = (
            DINOLoss(prototypes),
            IBOTPatchLoss(prototypes),
            KoLeoLoss(),
        )
        self.optimiser = torch.optim.AdamW(
            [*self.student.parameters(), *self.head.parameters()], lr=1e-3
        )
        self.masks, self.move = random_block_mask, update_momentum
        self.transform = DINOTransform(
            global_crop_size=size, global_crop_scale=(0.32, 1.0), local_crop_size=local,
            local_crop_scale=(0.05, 0.32), n_local_views=crops,
        )  # fmt: skip

    def views(self, pictures: list[Image.Image]) -> list[torch.Tensor]:
        """Global and local views of a batch, made one by one as its data loader does."""
        return [
            torch.stack(view)
            for view in zip(*(self.transform(picture) for picture in pictures), strict=True)
        ]

    def step(self, views: list[torch.Tensor]) -> None:
        """One step of the example's loop."""
        whole, small = torch.cat(views[:2]), torch.cat(views[2:])
        side = self.student.vit.patch_embed.grid_size
        blocks = self.masks(size=(len(whole), *side))
        mask = torch.zeros(len(whole), self.student.sequence_length, dtype=torch.bool)
        mask[:, 1:] = blocks.flatten(1)
        with torch.no_grad():
            features = self.teacher.encode(whole)
            taught, taught_patches = (
                self.teacher_head(features[:, 0]),
                self.teacher_head(features[mask]),
            )
        features = self.student.encode(whole, mask=mask)
        words, patches = features[:, 0], self.head(features[mask])
        shown = torch.cat([self.head(words), self.head(self.student.encode(small)[:, 0])])
        loss = (
            self.dino(
                teacher_out=taught.chunk(2), student_out=shown.chunk(len(views)), teacher_temp=0.04
            )
            + self.ibot(
                teacher_out=taught_patches, student_out=patches, mask=blocks, teacher_temp=0.04
            )
            + 0.1 * sum(self.koleo(part) for part in words.chunk(2))
        )
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.move(self.student, self.teacher, m=0.99)
        self.move(self.head, self.teacher_head, m=0.99)


def bench_dinov2(rounds: int) -> None:
    """Time the whole loop with views, and the step alone on given views.

    lightly's example is in float32. Ours is in float32 too, then in ``precision: auto``.
    """
    for setting, case in VITS.items():
        for asked in dict.fromkeys((torch.float32, precision("auto", torch.device("cpu")))):
            dinov2_case(rounds, asked, f"{setting}, {str(asked).removeprefix('torch.')}", *case)


def dinov2_case(
    rounds: int, dtype: torch.dtype, setting: str, name: str, arguments: dict[str, Any],
    size: int, local: int, crops: int, batch: int,
    prototypes: int, hidden: int
) -> None:  # fmt: skip
    own = {**arguments, "img_size": size, "dynamic_img_size": True}
    torch.manual_seed(0)
    timm.layers.set_fused_attn(dtype == torch.float32)
    encoder = Encoder(name, own, input_size=size)
    timm.layers.set_fused_attn(True)
    heads = {"prototypes": prototypes, "hidden": hidden}
    views = {"local_crops": crops, "local_size": local, "global_size": size}
    objective = DINOv2(encoder, DinoConfig(**REFERENCE | heads | views))
    optimiser = torch.optim.AdamW(objective.param_groups(), fused=True)
    peak, rows = 4e-3 * (batch / 1024) ** 0.5, np.arange(batch)
    trunk = timm.create_model(name, num_classes=0, **own)
    peer = Lightly(trunk, encoder.channels, size, local, crops, prototypes, hidden)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size), dtype=np.uint8)
    pictures = [Image.fromarray(image).convert("RGB") for image in pixels]
    generator, steps = torch.Generator().manual_seed(0), itertools.count(10)

    def ours() -> None:
        step = next(steps)
        lr = learning_rate(step, 1000, peak, 0.1, **objective.lr_schedule)
        objective.set_learning_rates(optimiser, lr, step, 1000)
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            x = encoder.normalise(pixels)
            loss, _ = objective(objective.prepare(x, rows, 0, None, generator), step, 1000)
        loss.backward()
        optimiser.step()
        objective.on_step_end(step, 1000)

    standing = peer.views(pictures)
    seconds = alternate(ours, lambda: peer.step(peer.views(pictures)), rounds)
    keep("dinov2", f"{setting}, batch {batch}, loop with its views", "lightly 1.6", batch, *seconds)
    fixed = [view.mean(1, keepdim=True) for view in standing]
    large, small = torch.cat(fixed[:2]), torch.cat(fixed[2:])
    objective._views = lambda x, n, scale, side, *rest: large if side == size else small  # type: ignore[method-assign]
    seconds = alternate(ours, lambda: peer.step(standing), rounds)
    keep(
        "dinov2",
        f"{setting}, batch {batch}, step on standing views",
        "lightly 1.6",
        batch,
        *seconds,
    )


# ---- clip beside open_clip ---------------------------------------------------------------------
def bench_clip(rounds: int) -> None:
    """Compare our step and augmentation with open_clip's model, loss and step on the same input."""
    for name, size, batch in (("resnet18", 64, 64), ("davit_tiny", 224, 8)):
        clip_case(rounds, name, size, batch)


def clip_case(rounds: int, name: str, size: int, batch: int) -> None:
    out = f"/tmp/cxrstudy-bench/study-{size:06}"
    prepared = prepare_data(
        study.Data(n_images=256, size=size, fractions={"pretrain": 1.0}, out=out)
    )
    p = study.validated(
        "pretrain", {"n_images": 256, "samples_seen": 4096, "batch_size": batch, "data": "-"}
    )
    torch.manual_seed(0)
    encoder = Encoder(name, {}, input_size=size)
    shape = TextShape(vocabulary=512, context=96, width=256, layers=4, heads=4, dim=256)
    text = TextTower(train_tokenizer(prepared.manifest["report"].tolist()), encoder.channels, shape)
    objective = ImageText(p, encoders.LoadedCheckpoint(encoder, text=text), prepared.manifest)
    objective.train().to(memory_format=torch.channels_last)
    mine = torch.optim.AdamW(objective.param_groups(), lr=1e-4, fused=True)
    model = open_clip.CLIP(
        256,
        {"timm_model_name": name, "timm_model_pretrained": False, "timm_pool": "",
         "timm_proj": "linear", "image_size": size},
        {"context_length": 96, "vocab_size": 512, "width": 256, "heads": 4, "layers": 4,
         "no_causal_mask": True},
    ).to(memory_format=torch.channels_last)  # fmt: skip
    loss_of, take = open_clip.ClipLoss(), np.arange(batch)
    theirs_optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pixels = prepared.images[:batch]
    tokens = objective.report_tokens[0, :batch]
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    three = torch.from_numpy(pixels).float().div(255)[:, None].expand(-1, 3, -1, -1).contiguous()
    three = three.contiguous(memory_format=torch.channels_last)

    def ours() -> None:
        mine.zero_grad(set_to_none=True)
        batch = objective.prepare(encoder.normalise(pixels), take, 0, rng, generator)
        loss, _ = objective(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        mine.step()
        objective.on_step_end(0, 1)

    def theirs() -> None:
        theirs_optimiser.zero_grad()
        image, said, scale = model(three, tokens)
        loss_of(image, said, scale).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        theirs_optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))

    seconds = alternate(ours, theirs, rounds)
    setting = f"{name}, {size} px, text tower of 4 layers, batch {batch}"
    keep("clip", setting, f"open_clip {open_clip.__version__}", batch, *seconds)


# ---- loading, bfloat16 -------------------------------------------------------------------------
def bench_loader(rounds: int) -> None:
    """Compare 20 steps whose images are read from disk with 20 on the same batches in memory."""
    dino = {"prototypes": 64, "ibot_weight": 1.0, "local_crops": 2}
    for encoder, size, batch, own in (
        ("cnn_mini", 64, 64, {}),
        ("cnn_mini", 224, 16, {}),
        ("hybrid_mini", 64, 16, {"paradigm": "dinov2", "dino": dino}),
    ):
        n = 4096 if size == 64 else 512
        folder = f"/tmp/cxrstudy-bench/study-{size:06}-{n}"
        fractions = {"pretrain": 1.0}
        prepared = prepare_data(study.Data(n_images=n, size=size, fractions=fractions, out=folder))
        own = own | {"encoder": encoder, "n_images": n, "samples_seen": max(n, 20 * batch)}
        own |= {"batch_size": batch, "data": folder, "out": f"{folder}-run"}
        run = build_run(study.validated("pretrain", own), prepared, Path(folder + "-run"))
        held = list(itertools.islice(read_batches(run), 20))
        calls = partial(from_disk, run), partial(twenty_steps, run, held)
        setting = f"{own.get('paradigm', 'clip')}, {encoder}, {size} px, batch {batch}"
        seconds = alternate(*calls, rounds)
        keep("loader", setting, "the same batches in memory", 20 * batch, *seconds)


def from_disk(run: Run) -> None:
    forget(run.prepared.images)
    with contextlib.closing(prefetch(read_batches(run))) as batches:
        twenty_steps(run, batches)


def twenty_steps(run: Run, batches: Iterable[Any]) -> None:
    batches = iter(batches)
    for step in range(20):
        train_step(run, step, batches)


def forget(images: Any) -> None:
    """Drop the shards of a data run from the memory of this process and of the machine."""
    open_shard.cache_clear()
    for path in images.files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bench_bf16(rounds: int) -> None:
    """Compare training steps of a ViT and of the small CNN in bfloat16 autocast and in float32."""
    for name, arguments, size, batch in (
        ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 6, "img_size": 64}, 64, 64),
        ("vit_small_patch16_224", {}, 224, 8),
        ("cnn_mini", None, 64, 64),
    ):
        encoder = (
            build_encoder(name, size)
            if arguments is None
            else Encoder(name, arguments, input_size=size)
        )
        timm.layers.set_fused_attn(
            False
        )  # the backward of the CPU's fused attention is slow in half precision
        half = (
            build_encoder(name, size)
            if arguments is None
            else Encoder(name, arguments, input_size=size)
        )
        timm.layers.set_fused_attn(True)
        x = torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(0))

        def step(
            model: Encoder,
            dtype: torch.dtype,
            optimiser: torch.optim.Optimizer,
            x: torch.Tensor = x,
        ) -> None:
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model.pool(x).float().square().mean()
            loss.backward()
            optimiser.step()

        sides = [(half, torch.bfloat16), (encoder, torch.float32)]
        calls = [
            partial(step, m, d, torch.optim.AdamW(m.parameters(), fused=True)) for m, d in sides
        ]
        keep(
            "bf16",
            f"{name}, {size} px, batch {batch}, one thread",
            "float32",
            batch,
            *alternate(*calls, rounds),
        )


# ---- a GPU -------------------------------------------------------------------------------------
def bench_gpu(rounds: int) -> None:
    """Time dinov2 (ViT-B/14, 224 and 518 px) and clip's image tower (DaViT-base, 224 px).

    In bfloat16, compiled and not: images/s, share of the card's measured matrix rate (MFU), memory,
    and the three costliest kernels.
    """
    if not torch.cuda.is_available():
        sys.exit("gpu: no GPU is visible to torch")
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    seconds, _ = alternate(lambda: [a @ a for _ in range(20)], lambda: None, 5)
    rate = 20 * 2 * 8192**3 / statistics.median(seconds)
    print(
        f"{torch.cuda.get_device_name()}: {rate / 1e12:.0f} TFLOP/s in bfloat16 products of 8,192",
        flush=True,
    )
    for make in (
        partial(gpu_dinov2, 224, 64),
        partial(gpu_clip, 128),
        partial(gpu_dinov2, 518, 16),
    ):
        for compiled in (False, True):
            gpu_step(rounds, rate, compiled, *make())


def gpu_dinov2(size: int, batch: int) -> tuple[str, int, list[Encoder], Callable[[], None]]:
    """The whole step of DINOv2's own configuration: views, teacher, student, update of both."""
    local = 98 if size == 224 else 196
    own = {"img_size": size, "dynamic_img_size": True, "init_values": 1e-5}
    encoder = Encoder("vit_base_patch14_dinov2", own, input_size=size)
    config = DinoConfig(**REFERENCE | {"local_size": local, "global_size": size})
    objective = DINOv2(encoder, config).cuda()
    optimiser = torch.optim.AdamW(objective.param_groups(), lr=1e-4, fused=True)
    x = torch.randn(batch, 1, size, size, device="cuda")
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            views = objective.prepare(x, np.arange(batch), 0, None, generator)
            loss, _ = objective(views, 500, 1000)
        loss.backward()
        optimiser.step()
        objective.on_step_end(500, 1000)

    name = f"dinov2, ViT-B/14, {size} px, 8 local crops of {local} px, batch {batch}"
    return name, batch, [m for m in objective.modules() if isinstance(m, Encoder)], step


def gpu_clip(batch: int) -> tuple[str, int, list[Encoder], Callable[[], None]]:
    """Augmentation and the image tower's step, by far the larger part of clip's."""
    encoder = Encoder("davit_base", {}, input_size=224).cuda().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(encoder.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 1, 224, 224, device="cuda")

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        seen = augment(x, generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            loss = encoder.pool(seen).float().square().mean()
        loss.backward()
        optimiser.step()

    return f"image tower of clip, DaViT-base, 224 px, batch {batch}", batch, [encoder], step


def gpu_step(
    rounds: int,
    rate: float,
    compiled: bool,
    name: str,
    batch: int,
    towers: list[Encoder],
    step: Callable[[], None],
) -> None:
    """Time one step, count its operations without compilation, and name its costliest kernels."""
    with flop.counter() as counter:
        step()
    if compiled:
        compile_encoders(nn.ModuleList(towers))
    step()
    torch.cuda.reset_peak_memory_stats()
    seconds, _ = alternate(step, lambda: None, max(rounds, 10))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    costs = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)[:3]
    second = statistics.median(seconds)
    row = {
        "benchmark": "gpu",
        "setting": f"{name}, {'compiled' if compiled else 'not compiled'}",
        "images_per_second": batch / second,
        "mfu": counter.get_total_flops() / second / rate,
        "memory_gb": torch.cuda.max_memory_allocated() / 2**30,
        "costs": "; ".join(f"{c.key[:70]} {c.self_device_time_total / 1e3:.1f} ms" for c in costs)
        + f" of {second * 1e3:.0f} ms",
        "rounds": len(seconds),
        "hardware": environment()["hardware"],
        "command": "python tests/benchmarks/bench_pretrain.py gpu",
    }
    ROWS.append(row)
    print(row, flush=True)


def save(path: Path) -> None:
    """Keep the rows there are; those of the same name, setting and hardware give way."""
    if not ROWS:
        return
    new = pd.DataFrame(ROWS)
    if path.is_file():
        new = pd.concat([pd.read_csv(path), new])
    new = new.drop_duplicates(["benchmark", "setting", "hardware"], keep="last")
    path.parent.mkdir(parents=True, exist_ok=True)
    new.round(4).to_csv(path, index=False)


def main() -> None:
    """Run what is named and keep its rows."""
    benches = {
        "dinov2": bench_dinov2,
        "clip": bench_clip,
        "loader": bench_loader,
        "bf16": bench_bf16,
        "gpu": bench_gpu,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", nargs="+", choices=benches)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--out", type=Path, default=study.root() / "book" / "recorded" / "benchmarks.csv"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        for name in given.which:
            benches[name](given.rounds)
    finally:  # an interrupted one keeps what it has measured
        save(given.out)


if __name__ == "__main__":
    main()
