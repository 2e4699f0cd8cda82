"""Learning rate and other schedules of a run, and parameter groups with layer-wise decay."""

import math
from typing import Any

from torch import nn

from cxrstudy.pretrain.dinov2_losses import Head

STEM = frozenset({"pos_embed", "patch_embed", "cls_token", "reg_token", "mask_token", "norm_pre"})


def learning_rate(
    step: int,
    steps: int,
    peak: float,
    warmup: float,
    *,
    final: float = 0.0,
    from_zero: bool = False,
) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine.

    Args:
        step: number of the step, from 0.
        steps: number of steps of the run.
        peak: rate at the end of the warm-up.
        warmup: share of the steps.
        final: rate after the last step.
        from_zero: start the warm-up at 0, as the reference of DINOv2 does; otherwise at ``peak``
            divided by the number of warm-up steps.
    """
    ramp = round(warmup * steps) if from_zero else max(1, round(warmup * steps))
    if step < ramp:
        return peak * step / max(1, ramp - 1) if from_zero else peak * (step + 1) / ramp
    angle = math.pi * (step - ramp) / max(1, steps - ramp)
    return final + (peak - final) * 0.5 * (1 + math.cos(angle))


def cosine_schedule(step: int, steps: int, first: float, last: float) -> float:
    """Return the value at ``step`` of a cosine from ``first`` to ``last``, which it then keeps."""
    if step >= steps:
        return last
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def linear_warmup(step: int, steps: int, first: float, last: float) -> float:
    """Return the value at ``step`` of a line from ``first`` to ``last``, which it then keeps."""
    return last if step >= steps else first + (last - first) * step / max(1, steps - 1)


def layer_decay_groups(
    model: nn.Module, layer_decay: float = 1.0, patch_embed_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Return AdamW's groups of the trainable parameters, with the factors of their schedules.

    A transformer's learning rate falls by ``layer_decay`` per layer from the last block down, and
    by ``patch_embed_scale`` in its patch embedding. Other trunks have one rate. One-dimensional
    parameters (biases, norms, LayerScale) have no weight decay.

    timm's ``param_groups_layer_decay`` is not used: it puts the final norm into the layer of the
    last block, so that in a ViT-B/14 172 of 174 parameters get another rate than the reference's.

    Returns:
        Groups with ``params``, ``part`` (trunk, head or prototypes), ``lr_scale`` and ``wd_scale``.
    """
    heads = [module for module in model.modules() if isinstance(module, Head)]
    in_prototypes = {id(w) for head in heads for w in (head.prototypes, head.gain)}
    in_heads = {id(w) for head in heads for w in head.parameters()}
    towers: list[Any] = [
        m for m in model.modules() if hasattr(m, "blocks") and hasattr(m, "patch_embed")
    ]
    depth = max((len(tower.blocks) for tower in towers), default=0)
    groups: dict[tuple[str, float, int], dict[str, Any]] = {}
    for name, w in model.named_parameters():
        if not w.requires_grad:
            continue
        path = name.split(".")
        part = "prototypes" if id(w) in in_prototypes else "head" if id(w) in in_heads else "trunk"
        layer = depth + 1  # the last, whose rate is the full one
        if depth and part == "trunk":
            if not STEM.isdisjoint(path):
                layer = 0
            elif "blocks" in path:
                layer = int(path[path.index("blocks") + 1]) + 1
        lr_scale = layer_decay ** (depth + 1 - layer)
        lr_scale *= patch_embed_scale if "patch_embed" in path else 1.0
        wd_scale = int(w.ndim > 1)
        new = {"params": [], "part": part, "lr_scale": lr_scale, "wd_scale": wd_scale}
        groups.setdefault((part, lr_scale, wd_scale), new)["params"].append(w)
    return list(groups.values())
