"""Image encoders: any architecture of timm's on grey images, and the image itself as a baseline."""

import contextlib
import ctypes
import functools
from typing import Any

import numpy as np
import timm
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cxrstudy.encoders.patches import next_sizes, refuse_cut, stride_of
from cxrstudy.weights import MissingWeights

# Small architectures that learn in minutes on a CPU: (timm name, arguments).
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn_mini": (
        "resnet10t",
        {"channels": (16, 32, 64, 128), "stem_width": 8, "output_stride": 16, "in_chans": 1},
    ),
    "hybrid_mini": (  # convolutions to an eighth of the size, then two transformer blocks
        "vit_tiny_r_s16_p8_224",
        {"patch_size": 2, "embed_dim": 128, "depth": 2, "num_heads": 4}
        | {"in_chans": 1, "dynamic_img_size": True},
    ),
    "vit_mini": (  # a ViT with a class token, for clip and dinov2 alike: ViT-Ti of half the depth
        "vit_tiny_patch16_224",
        {"patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3}
        | {"in_chans": 1, "dynamic_img_size": True},
    ),
    "davit_mini": (
        "davit_tiny",
        {"embed_dims": (32, 64, 128), "depths": (1, 1, 2), "num_heads": (2, 4, 8)}
        | {"window_size": 4, "in_chans": 1},
    ),
}
# Mean and standard deviation of a chest x-ray in [0, 1]; RAD-DINO's are 0.5307 and 0.2583.
DEFAULT_STATS = (0.5, 0.25)
Tokens = tuple[Tensor, Tensor]  # patch tokens (N,T,C) and class token (N,C) or (N,0)


class ImageEncoder(nn.Module):
    """Base class: an encoder of normalised grey images (N,1,H,W).

    Attributes:
        input_size: Side of an image in px.
        mean, std: Of the grey level in [0, 1], used by `normalise`.
        channels: Length C of a patch token.
        info: Provenance.
    """

    input_size: int
    mean: float
    std: float
    channels: int
    info: dict[str, Any]

    def normalise(self, images: Any) -> Tensor:
        """Normalise uint8 (N,H,W) or float images in [0, 1] (N,1,H,W) to float32 (N,1,H,W)."""
        x = torch.as_tensor(
            np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images
        )
        x = x.float().div(255) if x.dtype == torch.uint8 else x.float()
        x = x.unsqueeze(1) if x.ndim == 3 else x
        return (x - self.mean) / self.std

    def intermediates(self, x: Tensor, layers: int = 1) -> list[Tokens]:
        """Return patch tokens and class token of the last layers, the last one last."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the patch tokens (N,T,C) of the last layer, row by row of the image."""
        return self.intermediates(x)[-1][0]

    def pool(self, x: Tensor) -> Tensor:
        """Return the mean patch token (N,C)."""
        return self.forward_features(x).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean patch token (N,C)."""
        return self.pool(x)

    def _refuse_layers(self, layers: int) -> None:
        name, trunk = self.info.get("encoder", type(self).__name__), getattr(self, "trunk", self)
        raise ValueError(
            f"layers={layers}: encoder {name}: {type(trunk).__name__} gives no feature maps (no "
            "forward_intermediates); use layers=1"
        )


class Pixels(ImageEncoder):
    """The baseline without learning: the image averaged to ``side`` x ``side`` px as one token."""

    def __init__(self, side: int = 32):
        super().__init__()
        self.side, self.input_size, self.channels = side, side, side * side
        self.mean, self.std = DEFAULT_STATS
        self.info = {"encoder": "pixels"}

    def intermediates(self, x: Tensor, layers: int = 1) -> list[Tokens]:
        """Return one token (N,1,side*side): the whole image. ValueError if ``layers`` is not 1."""
        if layers != 1:
            self._refuse_layers(layers)
        pooled = nn.functional.adaptive_avg_pool2d(x, self.side)
        return [(pooled.flatten(1).unsqueeze(1), x.new_zeros(len(x), 0))]


class Encoder(ImageEncoder):
    """A timm architecture as an encoder of grey images.

    Attributes: as `ImageEncoder`; ``trunk`` (the timm model), ``architecture`` (its name) and
    ``arguments`` (of ``timm.create_model``).

    Raises:
        ValueError: It would not see the whole of an image of ``input_size`` (see `patches`).
    """

    def __init__(
        self,
        architecture: str,
        arguments: dict[str, Any],
        *,
        input_size: int,
        mean: float = DEFAULT_STATS[0],
        std: float = DEFAULT_STATS[1],
        info: dict[str, Any] | None = None,
        pretrained: bool = False,
    ):
        super().__init__()
        self.architecture, self.arguments = architecture, dict(arguments)
        self.input_size, self.mean, self.std = input_size, mean, std
        self.info, self.in_chans = dict(info or {}), int(arguments.get("in_chans", 3))
        create = functools.partial(timm.create_model, architecture, num_classes=0)
        try:
            trunk: Any = create(pretrained=pretrained, **arguments)
        except AssertionError as error:  # how timm refuses sizes that windows or blocks do not fit
            own_size = {name: value for name, value in arguments.items() if name != "img_size"}
            remedy = next_sizes("size", input_size, stride_of(create(**own_size)) or 32)
            why = str(error) or "its patches do not fit"
            raise ValueError(
                f"size={input_size}: {architecture} takes no such images ({why}); {remedy}"
            ) from error
        self.trunk, self.channels = trunk, int(trunk.num_features)
        refuse_cut(trunk, input_size, "size", self.in_chans, name=architecture)

    def intermediates(
        self, x: Tensor, layers: int = 1, *, masked: tuple[Tensor, Tensor] | None = None
    ) -> list[Tokens]:
        """Return patch tokens (N,T,C) and class token (N,C) of the last layers, the last one last.

        The layers of a ViT are its blocks, each followed by the final norm. The layers of other
        trunks are their stages, whose T and C differ. One layer is timm's ``forward_features``.

        Args:
            x: Normalised images (N,1,H,W).
            layers: Number of layers; all of them if the trunk has fewer.
            masked: Patches to hide (N,T) bool, and what replaces them: a token (C,) in a timm ViT,
                a normalised grey level (1,) of their pixels in any other trunk.

        Returns:
            One pair a layer. The class token has shape (N,0) where the trunk has none.

        Raises:
            ValueError: More than one layer of a trunk without ``forward_intermediates``.
        """
        if masked is not None and isinstance(self.trunk, VisionTransformer):
            hook = self.trunk.patch_embed.register_forward_hook(
                lambda _, __, y: torch.where(
                    masked[0].view(*y.shape[:-1], 1), masked[1].to(y.dtype), y
                )
            )
            try:
                return self.intermediates(x, layers)
            finally:
                hook.remove()
        if masked is not None:
            side = int(masked[0].shape[1] ** 0.5)
            mask = masked[0].view(-1, 1, side, side).float()
            x = torch.where(nn.functional.interpolate(mask, x.shape[-2:]) > 0, masked[1], x)
        x = x.expand(-1, self.in_chans, -1, -1)
        prefix = getattr(self.trunk, "num_prefix_tokens", 0)
        if layers == 1:
            y = self.trunk.forward_features(x)
            if y.ndim == 3:  # (N,P+T,C), P class and register tokens first
                return [self._tokens(y[:, prefix:], y[:, :prefix])]
            last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
            return [self._tokens(y.flatten(1, 2) if last else y.flatten(2).transpose(1, 2))]
        if not hasattr(self.trunk, "forward_intermediates"):
            self._refuse_layers(layers)
        how: dict[str, Any] = {"norm": True, "intermediates_only": True}
        how |= {"return_prefix_tokens": True, "output_fmt": "NLC"} if prefix else {}
        count = min(layers, len(self.trunk.feature_info))
        found = self.trunk.forward_intermediates(x, indices=count, **how)
        if prefix:  # (N,T,C) and (N,P,C)
            return [self._tokens(*pair) for pair in found]
        return [self._tokens(one.flatten(2).transpose(1, 2)) for one in found]  # (N,C,h,w)

    def _tokens(self, patch_tokens: Tensor, prefix: Tensor | None = None) -> Tokens:
        """Return patch tokens and the class token, the first of the prefix tokens (N,P,C)."""
        if prefix is None or getattr(self.trunk, "cls_token", None) is None:
            return patch_tokens, patch_tokens.new_zeros(len(patch_tokens), 0)
        return patch_tokens, prefix[:, 0]


def build_encoder(name: str, size: int, *, seed: int = 0, pretrained: bool = False) -> Encoder:
    """Return a new encoder with weights drawn from ``seed``.

    Args:
        name: One of ``SMALL`` or of timm's architectures.
        size: Side of its images in px.
        seed: Of the random weights.
        pretrained: Take timm's published weights instead.

    Raises:
        ValueError: There is no such architecture, or it would not see the whole of an image.
        MissingWeights: The published weights are not on this machine.
    """
    architecture, arguments = SMALL.get(name, (name, {}))
    if not timm.is_model(architecture):
        raise ValueError(
            f"no encoder {name!r}: neither ours ({', '.join(SMALL)}) nor one of timm's"
        )
    fixed = timm.get_pretrained_cfg(architecture)
    if fixed is not None and fixed.fixed_input_size:  # convolutional architectures refuse img_size
        arguments = {"img_size": size} | arguments
    how: dict[str, Any] = {"input_size": size, "pretrained": pretrained, "info": {"encoder": name}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            encoder = Encoder(architecture, arguments, **how)
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise MissingWeights(
                f"timm's published weights of {name!r} are not on this machine and could not be "
                f'fetched ({error}). On a machine with a network, run once: python -c "import '
                f"timm; timm.create_model('{name}', pretrained=True)\". Then copy "
                "~/.cache/huggingface here. Or use random:NAME for random weights"
            ) from error
    if pretrained:  # timm keeps statistics of three colours, a grey image has one level
        cfg = encoder.trunk.pretrained_cfg
        encoder.mean, encoder.std = float(np.mean(cfg["mean"])), float(np.mean(cfg["std"]))
    return encoder


# ---- training ------------------------------------------------------------------------------------
@functools.cache
def keep_memory() -> None:
    """Make glibc keep freed memory in this process instead of returning it to the system.

    A training step on a CPU frees and allocates the same blocks again and again, and the system
    clears every page that it hands out. EfficientNet-Lite0 at 128 px trained at 31 images/s without
    this setting and at 44 with it, for 8% more memory. Does nothing where there is no glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, size in ((-3, 2**30), (-1, 2**31 - 1)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(option, size)


def drop_paths(trunk: nn.Module, rate: float) -> None:
    """Set stochastic depth (Huang et al. 2016), from 0 in the first block to ``rate`` in the last.

    DINOv2 and UniCL train with it. It is set on an existing model because the weights and the saved
    files are the same with and without it.

    Raises:
        ValueError: The trunk has no residual branches that could be dropped.
    """
    names = ("drop_path", "drop_path1", "drop_path2")
    blocks = [m for m in trunk.modules() if any(n in vars(m) or n in m._modules for n in names)]
    if not blocks:
        raise ValueError(f"drop_path: {type(trunk).__name__} has no residual branches to drop")
    for block, share in zip(blocks, np.linspace(0, rate, len(blocks)).tolist(), strict=True):
        for name in names:
            if hasattr(block, name):
                setattr(block, name, DropPath(share).train(block.training))
