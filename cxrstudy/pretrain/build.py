"""Build a run: its images, base model, objective and optimiser."""

import copy
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.layers import set_fused_attn
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cxrstudy import encoders, study
from cxrstudy.data import images as stores
from cxrstudy.pretrain import checkpoint, dinov2, distributed
from cxrstudy.pretrain.clip import ImageText
from cxrstudy.pretrain.subset import batch_edges, batch_positions, subset_rows


@dataclass
class Run:
    """The data, models and optimiser of one run, and its progress."""

    p: study.Pretrain
    out: Path
    prepared: stores.Prepared
    rows: np.ndarray  # (n_images,) rows of the prepared data that are shown
    patients: set[str]  # of these images and of the base's
    edges: list[int]  # position of the first image of each batch, and of the end
    key: str  # of the checkpoint
    device: torch.device
    dtype: torch.dtype  # of autocast
    objective: Any
    parallel: nn.Module  # the objective, or what exchanges its gradients between ranks
    optimiser: torch.optim.Optimizer
    ema_model: ModelEmaV3 | None
    initial_params: list[Tensor]  # of the encoder, on the CPU
    base_state: dict[str, Tensor]  # for WiSE-FT, on the CPU; empty without it
    resumed_from: int = 0
    torn: str = ""  # why a checkpoint was not used
    processes_changed: str = ""  # what that means, if the checkpoint had another number of them
    curve: list[dict[str, float]] = field(default_factory=list)
    checks: list[dict[str, float]] = field(default_factory=list)
    probes: list[dict[str, float]] = field(default_factory=list)  # with keep="best"
    best: dict[str, Tensor] = field(default_factory=dict)  # weights of the best, on the CPU
    flops: float = 0.0  # per sample
    seconds: float = 0.0  # before this process
    started: float = field(default_factory=time.monotonic)
    last_checkpoint: int = 0
    losses: list[tuple[int, Tensor]] = field(default_factory=list)  # not yet read from the device

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return len(self.edges) - 1

    @property
    def checkpointed(self) -> nn.ModuleDict:
        """The modules whose state a checkpoint holds."""
        ema = {} if self.ema_model is None else {"ema_model": self.ema_model}
        return nn.ModuleDict({"objective": self.objective} | ema)

    def batch(self, step: int) -> np.ndarray:
        """Return the images of a batch, as positions in ``rows``."""
        first, end = self.edges[step], self.edges[step + 1]
        return batch_positions(self.p.n_images, first, end, self.p.seed)

    def seconds_training(self) -> float:
        """Return the seconds spent on training, before a resumption too."""
        return self.seconds + time.monotonic() - self.started


def build_run(p: study.Pretrain, prepared: stores.Prepared, out: Path) -> Run:
    """Return a run at step 0: its images, objective and optimiser.

    Raises:
        ValueError: the data cannot serve the run, or batches do not divide into equal parts.
    """
    torch.set_num_threads(p.threads)
    encoders.keep_memory()
    device = distributed.device()
    dtype = precision(p.precision, device)
    if device.type == "cpu":  # the backward pass of fused attention is slow in half precision
        set_fused_attn(dtype == torch.float32)
    rows = subset_rows(prepared, p)
    edges = batch_edges(p.samples_seen, p.batch_size)
    _require_equal_parts(edges, p.accumulate * distributed.world_size())
    subset = prepared.manifest.iloc[rows]
    patients = set(subset["patient_id"]) | set(seen_patients(p.base))
    base = open_base(p, prepared)
    initial_params = [w.detach().clone() for w in base.encoder.parameters()]
    objective, base_state = build_objective(p, base, subset, device)
    optimiser = torch.optim.AdamW(objective.param_groups(), lr=p.lr, fused=True)
    model = objective.modules_to_save()
    ema_model = ModelEmaV3(model, exclude_buffers=True) if p.ema else None
    return Run(
        p=p, out=out, prepared=prepared, rows=rows, patients=patients, edges=edges,
        key=run_key(p, prepared), device=device, dtype=dtype, objective=objective,
        parallel=distributed.parallel(objective), optimiser=optimiser, ema_model=ema_model,
        initial_params=initial_params, base_state=base_state,
    )  # fmt: skip


def run_key(p: study.Pretrain, prepared: stores.Prepared) -> str:
    """Return a digest of all that a resumed run must share: parameters, data, base weights."""
    where = {"out", "data", "threads", "checkpoint_seconds", "checkpoint_steps", "processes"}
    folder = encoders.encoder_folder(study.resolve(p.base)) if p.base else None
    base = checkpoint.digest_of(folder / "model.safetensors") if folder else ""
    return study.digest([p.model_dump(exclude=where), prepared.info, base], 16)


def _require_equal_parts(edges: list[int], parts: int) -> None:
    """Raise ValueError unless every batch divides into ``parts`` equal parts."""
    odd = next((b - a for a, b in itertools.pairwise(edges) if (b - a) % parts), 0)
    if odd:
        raise ValueError(
            f"a batch of {odd} does not divide into {parts} equal parts (accumulate x processes): "
            "let batch_size be a multiple of them, and samples_seen a multiple of batch_size"
        )


# ---- parts of a run ------------------------------------------------------------------------------
def precision(asked: str, device: torch.device) -> torch.dtype:
    """Return bfloat16 if asked for, or if "auto" and the hardware gains by it; else float32.

    A CPU without AMX and AVX-512's bfloat16 emulates it, 12 times slower than float32 on AVX2. With
    AVX-512's bfloat16, a ViT trains 1.9 and the small CNN 1.3 times as fast.
    """
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if asked == "bf16" or (asked == "auto" and has) else torch.float32


def open_base(p: study.Pretrain, prepared: stores.Prepared) -> encoders.LoadedCheckpoint:
    """Return the base model, or a new encoder with the grey statistics of the data.

    Raises:
        ValueError: base and data have different image sizes.
    """
    size = prepared.info["size"]
    if not p.base:
        encoder = encoders.build_encoder(p.encoder, size, seed=p.seed)
        encoder.mean, encoder.std = prepared.info["mean"], prepared.info["std"]
        return encoders.LoadedCheckpoint(encoder)
    base = encoders.open_base(p.base, size=size)
    own = base.encoder.input_size
    if own != size:
        raise ValueError(
            f"base {p.base} takes images of {own} px, {p.data} has {size} px: prepare the data at "
            f"size={own}, or continue another base"
        )
    base.encoder.requires_grad_(True)
    return base


def build_objective(
    p: study.Pretrain, base: encoders.LoadedCheckpoint, subset: pd.DataFrame, device: torch.device
) -> tuple[Any, dict[str, Tensor]]:
    """Return the objective on its device, in training mode, and the base's state for WiSE-FT."""
    if p.drop_path:
        encoders.drop_paths(base.encoder.trunk, p.drop_path)
    is_dinov2 = p.paradigm == "dinov2"
    objective: Any = dinov2.build(p, base) if is_dinov2 else ImageText(p, base, subset)
    base_state: dict[str, Tensor] = {}
    if p.base and p.wise_ft_alpha < 1:
        base_state = copy.deepcopy(objective.modules_to_save().state_dict())
    objective.train().to(device).to(memory_format=torch.channels_last)
    if p.base:
        freeze_batchnorm_stats(objective)
    if p.gradient_checkpointing:
        base.encoder.trunk.set_grad_checkpointing(True)
    if distributed.world_size() > 1 and not p.base:
        objective = distributed.sync_batchnorm(objective, device)
    if p.compile:
        compile_encoders(objective)
    return objective, base_state


def freeze_batchnorm_stats(objective: nn.Module) -> None:
    """Keep the base's batch-norm statistics, as He et al. (2016, appendix A) do in fine-tuning.

    Estimated again on a few hundred x-rays, they cost a real ImageNet encoder .03 of AUROC before
    any weight changed.
    """
    for module in objective.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def compile_encoders(objective: nn.Module) -> None:
    """Compile the encoders' blocks, which are alike, or the whole of a trunk without blocks."""
    for module in objective.modules():
        if isinstance(module, encoders.Encoder):
            blocks = getattr(module.trunk, "blocks", None)
            if blocks is None:
                module.trunk.forward_features = torch.compile(module.trunk.forward_features)
            for block in blocks or ():
                block.compile()


def seen_patients(encoder: str) -> list[str]:
    """Return the patients whose images an encoder was pretrained on, its base's included.

    A name without a folder has none that are known.

    Raises:
        ValueError: the folder of a pretrained encoder lists none, so leaks cannot be excluded.
    """
    folder = encoders.encoder_folder(study.resolve(encoder)) if encoder else None
    listed = encoders.listed_patients(folder) if folder else None
    if folder and listed is None and encoders.facts_of(folder)["info"].get("n_images"):
        raise ValueError(
            f"base {folder}: patients.txt is missing or empty, so the patients that it was trained "
            "on are unknown"
        )
    return sorted(listed or ())
