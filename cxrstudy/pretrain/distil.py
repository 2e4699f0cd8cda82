"""``dinov2`` as it is run: schedules, a student and its teacher, and what the loop asks of an objective."""

import copy
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from cxrstudy import encoders, study
from cxrstudy.encoders import Encoder
from cxrstudy.encoders.patches import refuse_cut
from cxrstudy.pretrain.augment import crops
from cxrstudy.pretrain.dinov2 import (
    Centring,
    DinoConfig,
    Head,
    block_masks,
    dino_loss,
    ibot_loss,
    koleo,
    sinkhorn,
)
from cxrstudy.pretrain.ranks import gathered

SETTLE = 0.1  # share of the steps in which new heads settle before the trunk of a continued encoder moves


# ---- schedules and parameter groups ----------------------------------------------------------------------------------
def cosine(
    step: int, steps: int, first: float, last: float, *, warmup: int = 0, start: float = 0.0
) -> float:
    """A line from ``start`` to ``first`` over ``warmup`` steps, then a cosine that is at ``last`` from ``steps`` on."""
    if step >= steps:
        return last
    if step < warmup:
        return start + (first - start) * step / max(1, warmup - 1)
    return last + (first - last) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


@dataclass(frozen=True)
class Rates:
    """What the schedules say at one step; the two frozen rates are 0 while their part is frozen."""

    lr: float
    prototypes_lr: float
    trunk_lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float


def rates(config: DinoConfig, step: int, steps: int) -> Rates:
    """The schedules at ``step`` of ``steps``, as the reference has them."""
    warm = round(config.temperature_warmup * steps)
    cold, hot = config.teacher_temperature
    lr = cosine(step, steps, config.lr, config.least_lr, warmup=round(config.warmup * steps))
    return Rates(
        lr=lr,
        prototypes_lr=lr * (step >= round(config.freeze_prototypes * steps)),
        trunk_lr=lr * (step >= round(config.freeze_trunk * steps)),
        weight_decay=cosine(step, steps, *config.weight_decay),
        momentum=cosine(step, steps, *config.momentum),
        teacher_temperature=cosine(step, warm, hot, hot, warmup=warm, start=cold),
    )


STEM = frozenset(
    {"pos_embed", "patch_embed", "cls_token", "reg_token", "mask_token", "norm_pre"}
)  # layer 0


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    patch_embed_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """AdamW's groups of what trains: a transformer's rates fall by ``layer_decay`` a layer from the last block down.

    No decay on what is one-dimensional: biases, norms, LayerScale's gains. ``lr_scale``, ``wd_scale`` and ``part``
    (trunk, head or prototypes) of a group tell ``set_rates`` how it follows the schedule.
    """
    heads = [module for module in model.modules() if isinstance(module, Head)]
    last = {id(tensor) for head in heads for tensor in (head.prototypes, head.gain)}
    within = {id(tensor) for head in heads for tensor in head.parameters()}
    towers: list[Any] = [
        m for m in model.modules() if hasattr(m, "blocks") and hasattr(m, "patch_embed")
    ]
    depth = max((len(tower.blocks) for tower in towers), default=0)
    groups: dict[tuple[str, float, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        layer = depth + 1
        if depth and id(parameter) not in within:
            if not STEM.isdisjoint(words):
                layer = 0
            elif "blocks" in words:
                layer = int(words[words.index("blocks") + 1]) + 1
        part = (
            "prototypes"
            if id(parameter) in last
            else "head"
            if id(parameter) in within
            else "trunk"
        )
        lr_scale = layer_decay ** (depth + 1 - layer) * (
            patch_embed_scale if "patch_embed" in words else 1.0
        )
        decayed = int(parameter.ndim > 1)
        scales = {"part": part, "lr_scale": lr_scale, "wd_scale": decayed}
        new = {"params": [], "lr": lr * lr_scale, "weight_decay": weight_decay * decayed, **scales}
        if parameter.requires_grad:
            groups.setdefault((part, lr_scale, decayed), new)["params"].append(parameter)
    return list(groups.values())


def set_rates(optimiser: torch.optim.Optimizer, now: Rates) -> None:
    """Give ``parameter_groups``' groups the rates of a step."""
    base = {"trunk": now.trunk_lr, "head": now.lr, "prototypes": now.prototypes_lr}
    for group in optimiser.param_groups:
        group["lr"] = base[group["part"]] * group["lr_scale"]
        group["weight_decay"] = now.weight_decay * group["wd_scale"]


# ---- the step --------------------------------------------------------------------------------------------------------
class Dino(nn.Module):
    """Student and teacher, both an encoder with heads, started alike; what is kept in the end is the teacher's.

    timm's VisionTransformers show their class token, and a learnt token stands for their masked patches. Any other
    encoder shows the mean of its patches, and the masked ones' pixels are a learnt grey. Local crops need an encoder
    that takes other sizes (timm's ViTs: ``dynamic_img_size=True``).
    """

    def __init__(self, encoder: Encoder, config: DinoConfig, *, seed: int = 0):
        super().__init__()
        self.config = config
        self.student: Any = nn.ModuleDict({"trunk": encoder})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = encoder.channels, config.prototypes, config.hidden, config.bottleneck
            for name in ("head", "patch_head") if config.patch_head else ("head",):
                self.student[name] = Head(*sizes, learn_gain=config.learn_gain, std=config.head_std)
        self.teacher: Any = copy.deepcopy(self.student).requires_grad_(False)
        self.patch_head = "patch_head" if config.patch_head else "head"
        self.centres: Any = nn.ModuleList(
            [Centring(config.prototypes, config.centre_momentum) for _ in range(2)]
        )
        self.mask_token = nn.Parameter(
            torch.zeros(encoder.channels if isinstance(encoder.trunk, VisionTransformer) else 1)
        )
        self.size = config.global_size or encoder.input_size
        tried: dict[str, Any] = {
            "in_chans": encoder.in_chans,
            "name": encoder.architecture,
            "tried": True,
        }
        refuse_cut(encoder.trunk, self.size, "global_size", **tried)
        with torch.no_grad():
            blank = next(encoder.parameters()).new_zeros(1, 1, self.size, self.size)
            self.side = math.isqrt(
                self.eval().encoder.forward_features(blank).shape[1]
            )  # of the grid of patches
        patch = self.size // self.side
        self.local_size = config.local_size or max(1, round(self.size * 3 / 7 / patch)) * patch
        if config.local_crops:
            refuse_cut(encoder.trunk, self.local_size, "local_size", **tried)
        self.train()

    @property
    def encoder(self) -> Encoder:
        """The teacher's encoder, the one to save."""
        return self.teacher["trunk"]

    def train(self, mode: bool = True) -> "Dino":
        """The teacher stays in evaluation (no drop path) but for batch norms, which see its own, unmasked batches."""
        super().train(mode)
        self.teacher.eval()
        for module in self.teacher.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(mode)
        return self

    def step_loss(
        self,
        x: Tensor,
        step: int,
        steps: int,
        generator: torch.Generator,
        *,
        low: int = 0,
        total: int = 0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one step, and its parts (detached scalars on the device: nothing here waits for it).

        Args: ``x`` (N,1,H,W) normalised as the encoder's; ``generator`` on the CPU, which all of the step's draws come
        from. Parts: dino, ibot, koleo (unweighted), and two signs of collapse as shares of their maximum: the mean
        entropy of the teacher's assignments (``teacher_entropy``: 1 = it tells images apart no more, and dino stays at
        the log of the number of prototypes), and the entropy of their mean before any balancing (``teacher_spread``:
        0 = every image goes to one prototype).
        """
        c, n, total = self.config, len(x), total or len(x)
        temperature = rates(c, step, steps).teacher_temperature
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        blocks = np.zeros((2 * total, self.side, self.side), bool)
        if c.ibot_weight:
            blocks = block_masks(
                2 * total, (self.side, self.side), rng, c.mask_share, c.mask_probability
            )
        masks = blocks.reshape(2, total, -1)[:, low : low + n].reshape(2 * n, -1)
        where = np.flatnonzero(masks)
        share = (1 / masks.sum(1)[where // masks.shape[1]]).astype(np.float32)
        index, weights, mask = (
            torch.from_numpy(a).to(x.device, non_blocking=True) for a in (where, share, masks)
        )
        with torch.no_grad():
            large = self._views(x, 2, c.global_scale, self.size, generator, low, total)
            words, patches = _tokens(self.teacher["trunk"], large)
            taught = self.teacher["head"](words)
            taught_patches = self.teacher[self.patch_head](
                patches.flatten(0, 1).index_select(0, index)
            )
            assign = (sinkhorn, sinkhorn) if c.centring == "sinkhorn" else self.centres
            assigned, assigned_patches = (
                assign[0](taught, temperature),
                assign[1](taught_patches, temperature),
            )
            plain = functional.softmax(taught.float() / temperature, -1).mean(0)
        words, patches = _tokens(self.student["trunk"], large, (mask, self.mask_token))
        shown = words
        if c.local_crops:
            small = self._views(
                x, c.local_crops, c.local_scale, self.local_size, generator, low, total
            )
            shown = torch.cat([words, _tokens(self.student["trunk"], small)[0]])
        scores = self.student["head"](shown).unflatten(0, (-1, n))
        patch_scores = self.student[self.patch_head](patches.flatten(0, 1).index_select(0, index))
        parts = {
            "dino": dino_loss(scores, assigned.unflatten(0, (2, n)), c.student_temperature),
            "ibot": ibot_loss(
                patch_scores, assigned_patches, weights, 2 * n, c.student_temperature
            ),
            "koleo": koleo(gathered(words[:n])) + koleo(gathered(words[n:])),
        }
        loss = (
            c.dino_weight * parts["dino"]
            + c.ibot_weight * parts["ibot"]
            + c.koleo_weight * parts["koleo"]
        )
        parts |= {"teacher_entropy": _entropy(assigned).mean(), "teacher_spread": _entropy(plain)}
        return loss, {name: part.detach() for name, part in parts.items()}

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher's parameters to the student's by 1 - ``momentum``; call after the optimiser's step."""
        torch._foreach_lerp_(
            list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum
        )

    def _views(
        self,
        x: Tensor,
        n: int,
        scale: tuple[float, float],
        size: int,
        generator: torch.Generator,
        low: int,
        total: int,
    ) -> Tensor:
        c, mean, std = self.config, self.encoder.mean, self.encoder.std
        grades: dict[str, Any] = {
            name: getattr(c, name) for name in ("brightness", "contrast", "gamma", "blur")
        }
        return (
            crops(x * std + mean, n, scale, size, generator, **grades, low=low, total=total) - mean
        ) / std


def _tokens(
    encoder: Any, x: Tensor, hide: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """(N,1,H,W) -> class tokens (N,C) and patch features (N,T,C); ``hide``: a mask (N,T) and the token in its place."""
    trunk = encoder.trunk
    if not isinstance(trunk, VisionTransformer):
        if hide:
            side = math.isqrt(hide[0].shape[1])
            hidden = functional.interpolate(hide[0].view(-1, 1, side, side).float(), x.shape[-2:])
            x = torch.where(hidden > 0, hide[1], x)
        patches = encoder.forward_features(x)
        return patches.mean(1), patches
    y = trunk.patch_embed(x.expand(-1, encoder.in_chans, -1, -1))
    if hide:
        y = torch.where(hide[0].view(*y.shape[:-1], 1), hide[1].to(y.dtype), y)
    y = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(y)))
    y = trunk.norm(checkpoint_seq(trunk.blocks, y) if trunk.grad_checkpointing else trunk.blocks(y))
    patches = y[:, trunk.num_prefix_tokens :]
    return (y[:, 0] if trunk.cls_token is not None else patches.mean(1)), patches


def _entropy(p: Tensor) -> Tensor:
    """Entropy of the last dimension as a share of its maximum."""
    return torch.special.entr(p).sum(-1) / math.log(p.shape[-1])


# ---- a run -----------------------------------------------------------------------------------------------------------
def configure(p: study.Pretrain, new_heads: bool) -> DinoConfig:
    """The recipe of a run: ``lr``, ``warmup``, ``weight_decay`` as its parameters say, the rest from ``p.dino``.

    Heads that must be learnt anew beside a trained encoder get ``SETTLE`` of the steps with the trunk frozen, unless
    ``freeze_trunk`` says otherwise. ValueError naming a constant that there is not.
    """
    known = {field.name for field in fields(DinoConfig)}
    unknown = sorted(set(p.dino) - known)
    if unknown:
        raise ValueError(f"dino: no constant {unknown[0]!r}; there are {', '.join(sorted(known))}")
    values: dict[str, Any] = {
        "lr": p.lr,
        "warmup": p.warmup,
        "weight_decay": (p.weight_decay, p.weight_decay),
    }
    values |= {"freeze_trunk": SETTLE} if new_heads else {}
    return DinoConfig(
        **values | {k: tuple(v) if isinstance(v, list) else v for k, v in p.dino.items()}
    )


class SelfDistilled(Dino):
    """Student and teacher of one run; ``encoder``, the teacher's, is what is judged and kept."""

    facts: dict[str, float] = {}  # noqa: RUF012  nothing to tell beside the loop's own

    def __init__(self, p: study.Pretrain, base: encoders.LoadedCheckpoint, subset: pd.DataFrame):
        kept = dict(base.head or {})
        mask = kept.pop("mask_token", base.mask_token)
        super().__init__(base.encoder, configure(p, bool(p.base) and not kept), seed=p.seed)
        if mask is not None and mask.shape == self.mask_token.shape:
            self.mask_token.data.copy_(mask)
        own = self._heads()
        if kept and {n: t.shape for n, t in kept.items()} == {n: t.shape for n, t in own.items()}:
            for side in (self.student, self.teacher):
                state = side.state_dict()
                side.load_state_dict(state | kept)
        elif kept:
            raise ValueError(
                f"{p.base}: its heads are of another shape than prototypes, hidden, bottleneck and patch_head of "
                f"`dino` ask for; give what it was trained with, or remove {encoders.HEADS} to begin with new heads"
            )

    def kept(self) -> nn.ModuleDict:
        """What is judged and saved; heads, which no one judges, are saved as they are."""
        return nn.ModuleDict({"encoder": self.encoder})

    def _heads(self) -> dict[str, Tensor]:
        return {
            name: tensor
            for name, tensor in self.teacher.state_dict().items()
            if not name.startswith("trunk.")
        }

    def groups(self) -> list[dict[str, Any]]:
        """AdamW's groups: rates fall from the last block down, heads and prototypes have schedules of their own."""
        c = self.config
        return parameter_groups(self, c.lr, c.weight_decay[0], c.layer_decay, c.patch_embed_scale)

    def set_rates(
        self, optimiser: torch.optim.Optimizer, rate: float, step: int, steps: int
    ) -> float:
        """Give every group the rates of a step, and say the trunk's."""
        now = rates(self.config, step, steps)
        set_rates(optimiser, now)
        return now.trunk_lr

    def step_loss(  # type: ignore[override]
        self,
        x: Tensor,
        take: np.ndarray,
        low: int,
        rng: np.random.Generator,
        generator: torch.Generator,
        step: int,
        steps: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step and its parts, for a rank's part ``x`` (from ``low`` on) of the batch ``take``."""
        return super().step_loss(x, step, steps, generator, low=low, total=len(take))

    def after(self, step: int, steps: int) -> None:
        """Move the teacher."""
        self.update_teacher(rates(self.config, step, steps).momentum)

    def save(self, folder: Path) -> None:
        """Write the teacher's encoder and its heads, from which a later run can go on."""
        heads = self._heads() | {"mask_token": self.mask_token.data}
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in heads.items()},
            folder / encoders.HEADS,
        )
        encoders.save_encoder(self.encoder.cpu(), folder)
