"""DINOv2 (Oquab et al. 2023) for x-rays: the recipe, its schedules, and the student and teacher.

A student sees masked and cropped views. It predicts the prototype probabilities that its moving
average, the teacher, gives to the unmasked global views: by the class token for an image (DINO),
by each masked patch (iBOT). KoLeo spreads the class tokens. The losses are in ``dinov2_losses``.
"""

import copy
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from cxrstudy import encoders, study
from cxrstudy.encoders import Encoder
from cxrstudy.encoders.patches import refuse_cut
from cxrstudy.pretrain.augment import crops
from cxrstudy.pretrain.dinov2_losses import (
    Centring,
    Head,
    block_masks,
    dino_loss,
    ibot_loss,
    koleo,
    sinkhorn,
)
from cxrstudy.pretrain.distributed import gather_rows
from cxrstudy.pretrain.schedules import cosine_schedule, layer_decay_groups, linear_warmup

HEAD_WARMUP = 0.1  # share of the steps that train new heads alone, with the base's trunk frozen


@dataclass(frozen=True)
class DinoConfig:
    """Constants of the recipe; the defaults are a start for small encoders at 64 px, not tuned.

    Pairs are (first, last) of a schedule or (smallest, largest) of a range. Shares are of the run's
    steps. The learning rate and its warm-up are parameters of the run.
    """

    dino_weight: float = 1.0
    ibot_weight: float = 0.0
    koleo_weight: float = 0.0
    prototypes: int = 512
    hidden: int = 256
    bottleneck: int = 64
    head_std: float = 0.0  # of the head's initial weights; 0 = 1/sqrt(inputs of the layer)
    patch_head: bool = False  # a separate head for patches; otherwise they share the image head
    learn_gain: bool = False  # the reference starts the last layer's gains at 1 and trains them
    centring: Literal["sinkhorn", "softmax"] = "sinkhorn"
    centre_momentum: float = 0.9
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.03, 0.03)
    temperature_warmup: float = 0.3
    momentum: tuple[float, float] = (0.95, 1.0)
    min_lr: float = 1e-6  # at the end of the schedule
    weight_decay: tuple[float, float] = (0.05, 0.05)
    layer_decay: float = 1.0
    patch_embed_scale: float = 1.0
    freeze_prototypes: float = 0.01
    freeze_trunk: float = 0.0  # trains new heads alone first, beside a trained encoder
    global_scale: tuple[float, float] = (0.8, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    local_crops: int = 0
    global_size: int = 0  # 0 = the encoder's input size
    local_size: int = 0  # 0 = 3/7 of the global size (the reference's 96 of 224), in whole patches
    brightness: float = 0.1
    contrast: float = 0.1
    gamma: float = 0.1
    blur: float = 0.0
    mask_share: tuple[float, float] = (0.1, 0.5)
    mask_probability: float = 0.5


# ---- student and teacher -------------------------------------------------------------------------
class DINOv2(nn.Module):
    """Student and teacher: encoders with heads. The teacher's is the one to evaluate and save.

    For a timm VisionTransformer, the image feature is the class token, and a learned token replaces
    masked patches. For other encoders, it is the mean patch feature, and masked pixels are set to a
    learned grey value. Local views need an encoder that takes other image sizes (timm's ViTs:
    ``dynamic_img_size=True``).

    Args:
        encoder: the encoder to train; it becomes the student's, a copy the teacher's.
        config: constants of the recipe.
        seed: seed of the new heads.
    """

    facts: ClassVar[dict[str, float]] = {}  # the loop's own facts are all there is to record

    def __init__(self, encoder: Encoder, config: DinoConfig, *, seed: int = 0):
        super().__init__()
        self.config = config
        self.lr_schedule = {"final": config.min_lr, "from_zero": True}
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
        width = encoder.channels if isinstance(encoder.trunk, VisionTransformer) else 1
        self.mask_token = nn.Parameter(torch.zeros(width))
        self._set_sizes(encoder)
        self.train()

    def _set_sizes(self, encoder: Encoder) -> None:
        """Set the pixels of global and local views and the patches on a global view's side."""
        c = self.config
        facts: dict[str, Any] = {"in_chans": encoder.in_chans, "name": encoder.architecture}
        self.size = c.global_size or encoder.input_size
        refuse_cut(encoder.trunk, self.size, "global_size", **facts, tried=True)
        with torch.no_grad():
            blank = next(encoder.parameters()).new_zeros(1, 1, self.size, self.size)
            self.side = math.isqrt(self.eval().encoder.forward_features(blank).shape[1])
        patch = self.size // self.side
        self.local_size = c.local_size or max(1, round(self.size * 3 / 7 / patch)) * patch
        if c.local_crops:
            refuse_cut(encoder.trunk, self.local_size, "local_size", **facts, tried=True)

    @property
    def encoder(self) -> Encoder:
        """The teacher's encoder."""
        return self.teacher["trunk"]

    def train(self, mode: bool = True) -> "DINOv2":
        """Set the mode of the student; the teacher stays in evaluation mode (no drop path).

        The teacher's batch norms follow ``mode``: they use their own, unmasked batches.
        """
        super().train(mode)
        self.teacher.eval()
        for module in self.teacher.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(mode)
        return self

    # ---- what the loop calls
    def modules_to_save(self) -> nn.ModuleDict:
        """Return what is averaged and evaluated; heads are saved without averaging."""
        return nn.ModuleDict({"encoder": self.encoder})

    def param_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups: see ``layer_decay_groups``."""
        return layer_decay_groups(self, self.config.layer_decay, self.config.patch_embed_scale)

    def set_learning_rates(
        self, optimiser: torch.optim.Optimizer, lr: float, step: int, steps: int
    ) -> float:
        """Set rate and weight decay of every group from the loop's ``lr``; return the trunk's."""
        c = self.config
        rates = {
            "head": lr,
            "prototypes": lr * (step >= round(c.freeze_prototypes * steps)),
            "trunk": lr * (step >= round(c.freeze_trunk * steps)),
        }
        weight_decay = cosine_schedule(step, steps, *c.weight_decay)
        for group in optimiser.param_groups:
            group["lr"] = rates[group["part"]] * group["lr_scale"]
            group["weight_decay"] = weight_decay * group["wd_scale"]
        return rates["trunk"]

    def prepare(
        self,
        x: Tensor,
        batch: np.ndarray,
        low: int,
        rng: np.random.Generator | None,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return what ``forward`` takes: views, and the patches to mask.

        Args:
            x: (B, 1, H, W) normalised images: this rank's part of the batch, from ``low`` on.
            batch: the images of the whole batch; only their number is used.
            rng: not used.
            generator: on the CPU; the only source of randomness.

        Returns:
            ``masked`` (M,) positions among all patches, their ``weights`` (M,), ``mask`` (2B, T)
            bool, ``global_views`` (2B, 1, S, S) and, if there are any, ``local_views``
            (LB, 1, s, s).
        """
        c, n, total = self.config, len(x), len(batch)
        views = self._masks(n, low, total, generator, x.device)
        views["global_views"] = self._views(x, 2, c.global_scale, self.size, generator, low, total)
        if c.local_crops:
            views["local_views"] = self._views(
                x, c.local_crops, c.local_scale, self.local_size, generator, low, total
            )
        return views

    def forward(
        self, batch: dict[str, Tensor], step: int, steps: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a step and its parts.

        Args:
            batch: what ``prepare`` returns.
            step, steps: number of the step, and of steps in the run.

        Returns:
            The loss, and detached scalars on the device (nothing here waits for it): the unweighted
            dino, ibot and koleo, and two signs of collapse as shares of their maximum.
            ``teacher_entropy`` is the mean entropy of the teacher's probabilities; at 1 it no
            longer separates images, and dino stays at log(K). ``teacher_spread`` is the entropy of
            their mean before balancing; at 0 every image goes to one prototype.
        """
        c, student, teacher = self.config, self.student, self.teacher
        temperature = linear_warmup(
            step, round(c.temperature_warmup * steps), *c.teacher_temperature
        )
        global_views, masked, weights = (batch[k] for k in ("global_views", "masked", "weights"))
        n = len(global_views) // 2

        # 1. Teacher: probabilities of unmasked global views
        with torch.no_grad():
            cls_tokens, patch_tokens = _tokens(teacher["trunk"], global_views)  # (2B, C) (2B, T, C)
            teacher_logits = teacher["head"](cls_tokens)  # (2B, K)
            teacher_patch_logits = teacher[self.patch_head](
                patch_tokens.flatten(0, 1).index_select(0, masked)
            )  # (M, K)
            assign = (sinkhorn, sinkhorn) if c.centring == "sinkhorn" else self.centres
            teacher_probs = assign[0](teacher_logits, temperature)  # (2B, K)
            teacher_patch_probs = assign[1](teacher_patch_logits, temperature)  # (M, K)
            unbalanced = functional.softmax(teacher_logits.float() / temperature, -1)  # (2B, K)

        # 2. Student: masked global views, and local views
        cls_tokens, patch_tokens = _tokens(
            student["trunk"], global_views, (batch["mask"], self.mask_token)
        )  # (2B, C) (2B, T, C)
        all_cls_tokens = cls_tokens
        if c.local_crops:
            local_cls_tokens = _tokens(student["trunk"], batch["local_views"])[0]  # (LB, C)
            all_cls_tokens = torch.cat([cls_tokens, local_cls_tokens])  # ((2 + L)B, C)
        student_logits = student["head"](all_cls_tokens).unflatten(0, (-1, n))  # (2 + L, B, K)
        student_patch_logits = student[self.patch_head](
            patch_tokens.flatten(0, 1).index_select(0, masked)
        )  # (M, K)

        # 3. Losses
        tau = c.student_temperature
        dino = dino_loss(student_logits, teacher_probs.unflatten(0, (2, n)), tau)
        ibot = ibot_loss(student_patch_logits, teacher_patch_probs, weights, 2 * n, tau)
        spread = koleo(gather_rows(cls_tokens[:n])) + koleo(gather_rows(cls_tokens[n:]))
        loss = c.dino_weight * dino + c.ibot_weight * ibot + c.koleo_weight * spread
        parts = {"dino": dino, "ibot": ibot, "koleo": spread}
        parts["teacher_entropy"] = _entropy(teacher_probs).mean()
        parts["teacher_spread"] = _entropy(unbalanced.mean(0))
        return loss, {name: part.detach() for name, part in parts.items()}

    @torch.no_grad()
    def on_step_end(self, step: int, steps: int) -> None:
        """Move the teacher's parameters towards the student's by 1 - momentum."""
        momentum = cosine_schedule(step, steps, *self.config.momentum)
        torch._foreach_lerp_(
            list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum
        )

    def heads(self) -> dict[str, Tensor]:
        """Return the teacher's heads as a state dict."""
        state = self.teacher.state_dict()
        return {name: w for name, w in state.items() if not name.startswith("trunk.")}

    def save(self, folder: Path) -> None:
        """Write the teacher's encoder, and its heads, which a later run continues."""
        heads = self.heads() | {"mask_token": self.mask_token.data}
        save_file(
            {name: w.cpu().contiguous() for name, w in heads.items()}, folder / encoders.HEADS
        )
        encoders.save_encoder(self.encoder.cpu(), folder)

    # ---- parts of a step
    def _masks(
        self, n: int, low: int, total: int, generator: torch.Generator, device: torch.device
    ) -> dict[str, Tensor]:
        """Draw the masks of a batch of ``total`` images; return those of n images from ``low`` on.

        Returns:
            ``masked`` (M,) positions of masked patches in (2n T), ``weights`` (M,) 1 / number of
            masked patches in the same image, and ``mask`` (2n, T) bool.
        """
        c, grid = self.config, (self.side, self.side)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        blocks = np.zeros((2 * total, *grid), bool)
        if c.ibot_weight:
            blocks = block_masks(2 * total, grid, rng, c.mask_share, c.mask_probability)
        masks = blocks.reshape(2, total, -1)[:, low : low + n].reshape(2 * n, -1)  # (2n, T)
        masked = np.flatnonzero(masks)  # (M,)
        share = (1 / masks.sum(1)[masked // masks.shape[1]]).astype(np.float32)  # (M,)
        arrays = {"masked": masked, "weights": share, "mask": masks}
        return {
            name: torch.from_numpy(array).to(device, non_blocking=True)
            for name, array in arrays.items()
        }

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
        """Return n random crops of each image, (n B, 1, size, size), normalised as ``x``."""
        c, mean, std = self.config, self.encoder.mean, self.encoder.std
        grey = crops(
            x * std + mean, n, scale, size, generator, brightness=c.brightness, contrast=c.contrast,
            gamma=c.gamma, blur=c.blur, low=low, total=total,
        )  # fmt: skip
        return (grey - mean) / std


def _tokens(
    encoder: Encoder, x: Tensor, masked: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return image features (N, C) and patch tokens (N, T, C) of images (N, 1, H, W).

    The image feature is the class token, or the mean patch token of an encoder without one.
    ``masked`` is a mask (N, T) and the token, or grey value, that replaces masked patches.
    """
    patch_tokens, cls_token = encoder.intermediates(x, masked=masked)[-1]  # (N, T, C) (N, C or 0)
    return (cls_token if cls_token.shape[1] else patch_tokens.mean(1)), patch_tokens


def _entropy(p: Tensor) -> Tensor:
    """Return the entropy over the last dimension as a share of its maximum."""
    return torch.special.entr(p).sum(-1) / math.log(p.shape[-1])


# ---- set-up of a run -----------------------------------------------------------------------------
def configure(p: study.Pretrain, new_heads: bool) -> DinoConfig:
    """Return the recipe of a run: ``weight_decay`` of its parameters, changed by ``p.dino``.

    With ``new_heads`` beside a trained encoder, ``freeze_trunk`` is ``HEAD_WARMUP`` unless given.

    Raises:
        ValueError: ``p.dino`` has an unknown key.
    """
    known = {field.name for field in fields(DinoConfig)}
    unknown = sorted(set(p.dino) - known)
    if unknown:
        raise ValueError(
            f"dino: no constant {unknown[0]!r}. There are {', '.join(sorted(known))}; lr and "
            "warmup are parameters of the run"
        )
    values: dict[str, Any] = {"weight_decay": (p.weight_decay, p.weight_decay)}
    values |= {"freeze_trunk": HEAD_WARMUP} if new_heads else {}
    values |= {name: tuple(v) if isinstance(v, list) else v for name, v in p.dino.items()}
    return DinoConfig(**values)


def build(p: study.Pretrain, base: encoders.LoadedCheckpoint) -> DINOv2:
    """Return the objective of a run, with the heads and mask token of its base if it has them.

    Raises:
        ValueError: ``p.dino`` has an unknown key, or asks for heads of other shapes.
    """
    heads = dict(base.head or {})
    mask_token = heads.pop("mask_token", base.mask_token)
    objective = DINOv2(base.encoder, configure(p, bool(p.base) and not heads), seed=p.seed)
    if mask_token is not None and mask_token.shape == objective.mask_token.shape:
        objective.mask_token.data.copy_(mask_token)
    if heads:
        own = {name: w.shape for name, w in objective.heads().items()}
        if own != {name: w.shape for name, w in heads.items()}:
            raise ValueError(
                f"{p.base}: its heads have other shapes than prototypes, hidden, bottleneck and "
                "patch_head of `dino` ask for. Give the values that it was trained with, or remove "
                f"{encoders.HEADS} to start with new heads"
            )
        for side in (objective.student, objective.teacher):
            side.load_state_dict(side.state_dict() | heads)
    return objective
