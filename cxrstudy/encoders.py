"""Image and text encoders: built by timm and open_clip, saved as folders that timm loads back, loaded frozen.

An encoder folder holds ``model.safetensors`` and ``config.json`` (timm reads both: ``timm.create_model(
'local-dir:FOLDER')``), ``encoder.json`` (where it comes from: paradigm, base, subset, compute) and, after ``clip`` or
``unicl``, ``text.safetensors`` and ``tokenizer.json``.
"""

import contextlib
import ctypes
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from open_clip.transformer import TextTransformer
from safetensors.torch import save_file
from timm.layers import DropPath
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from cxrstudy.files import write_text
from cxrstudy.patches import next_sizes, refuse_cut, stride_of
from cxrstudy.stored import TornFile, read_facts, read_tensors, read_tokenizer

# Small architectures that learn in minutes on a CPU: (timm name, arguments).
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn_mini": (
        "resnet10t",
        {"channels": (16, 32, 64, 128), "stem_width": 8, "output_stride": 16, "in_chans": 1},
    ),
    "hybrid_mini": (  # convolutions to an eighth of the size, then two transformer blocks
        "vit_tiny_r_s16_p8_224",
        {
            "patch_size": 2,
            "embed_dim": 128,
            "depth": 2,
            "num_heads": 4,
            "in_chans": 1,
            "dynamic_img_size": True,
        },
    ),
    "davit_mini": (
        "davit_tiny",
        {
            "embed_dims": (32, 64, 128),
            "depths": (1, 1, 2),
            "num_heads": (2, 4, 8),
            "window_size": 4,
            "in_chans": 1,
        },
    ),
}
DEFAULT_STATS = (
    0.5,
    0.25,
)  # grey level and spread of a chest x-ray in [0, 1]; RAD-DINO's are 0.5307 and 0.2583


class MissingWeights(FileNotFoundError):
    """Weights are asked for that are not here; the message says what to fetch and where it goes."""


class Encoder(nn.Module):
    """An image encoder. ``forward_features`` and ``pool`` take normalised grey images (N,1,H,W).

    ValueError where it would not see the whole of an image of ``input_size`` (see ``patches``).

    Attributes: ``input_size`` (px), ``mean`` and ``std`` of the grey level in [0, 1] used by ``normalise``,
    ``architecture`` (timm name), ``arguments`` (timm's), ``info`` (provenance).
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
        self.architecture, self.arguments, self.input_size = (
            architecture,
            dict(arguments),
            input_size,
        )
        self.mean, self.std, self.info = mean, std, dict(info or {})
        try:
            trunk: Any = timm.create_model(
                architecture, num_classes=0, pretrained=pretrained, **arguments
            )
        except AssertionError as error:  # timm's way to say that windows or blocks do not fit
            plain = {name: value for name, value in arguments.items() if name != "img_size"}
            stride = stride_of(timm.create_model(architecture, num_classes=0, **plain)) or 32
            why, remedy = (
                str(error) or "its patches do not fit",
                next_sizes("size", input_size, stride),
            )
            raise ValueError(
                f"size={input_size}: {architecture} takes no such images ({why}); {remedy}"
            ) from error
        self.trunk, self.channels = trunk, int(trunk.num_features)
        self.in_chans = int(arguments.get("in_chans", 3))
        refuse_cut(trunk, input_size, "size", self.in_chans, name=architecture)

    def normalise(self, images: Any) -> Tensor:
        """uint8 (N,H,W) or float in [0,1] (N,1,H,W) to normalised float32 (N,1,H,W)."""
        x = torch.as_tensor(
            np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images
        )
        x = x.float().div(255) if x.dtype == torch.uint8 else x.float()
        x = x.unsqueeze(1) if x.ndim == 3 else x
        return (x - self.mean) / self.std

    def forward_features(self, x: Tensor) -> Tensor:
        """(N,1,H,W) -> patch features (N,T,C), row by row of the image; class and register tokens left out."""
        if self.in_chans != 1:
            x = x.expand(-1, self.in_chans, -1, -1)
        y = self.trunk.forward_features(x)
        if y.ndim == 3:
            return y[:, getattr(self.trunk, "num_prefix_tokens", 0) :]
        channels_last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
        return y.flatten(1, 2) if channels_last else y.flatten(2).transpose(1, 2)

    def pool(self, x: Tensor) -> Tensor:
        """(N,1,H,W) -> (N,C): the mean of the patch features."""
        return self.forward_features(x).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        """As ``pool``."""
        return self.pool(x)


@functools.cache
def keep_memory() -> None:
    """Let this process keep freed blocks: glibc gives large ones back to the system, and has each page cleared anew.

    A training step on a CPU frees and asks for the same blocks again and again: EfficientNet-Lite0 at 128 px trained at
    31 images/s without and 44 with, for 8% more memory. Where there is no glibc, nothing is done.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, size in ((-3, 2**30), (-1, 2**31 - 1)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(option, size)


def drop_paths(trunk: nn.Module, rate: float) -> None:
    """Let samples skip residual branches while training: none the first, a share ``rate`` the last, in timm's ramp.

    Stochastic depth (Huang et al. 2016), as DINOv2 and UniCL train; set on a model that stands, since its weights and
    what is saved of it are the same with and without. ValueError where the trunk has no such branches.
    """
    names = ("drop_path", "drop_path1", "drop_path2")
    blocks = [m for m in trunk.modules() if any(n in vars(m) or n in m._modules for n in names)]
    if not blocks:
        raise ValueError(
            f"drop_path: {type(trunk).__name__} has no residual branches that samples could skip"
        )
    for block, share in zip(blocks, np.linspace(0, rate, len(blocks)).tolist(), strict=True):
        for name in names:
            if hasattr(block, name):
                setattr(block, name, DropPath(share).train(block.training))


class Pixels(nn.Module):
    """The control that has learned nothing: the image itself, averaged to ``side`` x ``side``, as one feature row."""

    def __init__(self, side: int = 32):
        super().__init__()
        self.side, self.input_size = side, side
        self.mean, self.std = DEFAULT_STATS
        self.channels = side * side
        self.info: dict[str, Any] = {"encoder": "pixels"}

    normalise = Encoder.normalise

    def forward_features(self, x: Tensor) -> Tensor:
        """(N,1,H,W) -> (N,1,side*side): one "patch" that is the whole image."""
        return nn.functional.adaptive_avg_pool2d(x, self.side).flatten(1).unsqueeze(1)

    def pool(self, x: Tensor) -> Tensor:
        """(N,1,H,W) -> (N,side*side)."""
        return self.forward_features(x)[:, 0]


def build_encoder(name: str, size: int, *, seed: int = 0, pretrained: bool = False) -> Encoder:
    """A new encoder by name (``SMALL`` or any of timm's) with weights drawn from ``seed``.

    ``pretrained`` asks timm for its published weights instead; MissingWeights when they are not here.
    """
    architecture, arguments = SMALL.get(name, (name, {}))
    if not timm.is_model(architecture):
        raise ValueError(
            f"no encoder {name!r}: neither ours ({', '.join(SMALL)}) nor one of timm's"
        )
    arguments = _sized(architecture, size) | arguments
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            encoder = Encoder(
                architecture,
                arguments,
                input_size=size,
                pretrained=pretrained,
                info={"encoder": name},
            )
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise MissingWeights(
                f"timm's published weights of {name!r} are not on this machine and could not be fetched ({error}). "
                f"Where there is a network, run once: python -c \"import timm; timm.create_model('{name}', "
                'pretrained=True)", then copy ~/.cache/huggingface here; or say random:NAME for random weights'
            ) from error
    if (
        pretrained
    ):  # timm keeps the RGB statistics of its training images; a grey image has one level
        cfg = encoder.trunk.pretrained_cfg
        encoder.mean, encoder.std = float(np.mean(cfg["mean"])), float(np.mean(cfg["std"]))
    return encoder


def _sized(architecture: str, size: int) -> dict[str, Any]:
    """timm's transformers with position embeddings must be told the image size; its convolutional ones refuse it."""
    fixed = timm.get_pretrained_cfg(architecture)
    return {"img_size": size} if fixed is not None and fixed.fixed_input_size else {}


def load_encoder(name_or_path: str | Path, *, size: int = 64, seed: int = 0) -> Any:
    """A frozen encoder with ``forward_features``, ``pool``, ``input_size``, ``mean``, ``std``.

    ``name_or_path``: an encoder folder; ``random:NAME`` (random weights, said so); ``pixels`` (the control); or a timm
    name, for its published weights. MissingWeights when weights are not here: never a silent random initialisation.
    """
    text = str(name_or_path)
    if text == "pixels":
        encoder: Any = Pixels()
    elif text.startswith("random:"):
        encoder = build_encoder(text.removeprefix("random:"), size, seed=seed)
    elif (Path(text) / "encoder.json").is_file():
        encoder = _load_folder(Path(text))
    elif text in SMALL:
        raise MissingWeights(
            f"{text!r} is one of our small architectures and ships no weights; say random:{text}"
        )
    elif timm.is_model(text):
        encoder = build_encoder(text, size, pretrained=True)
    else:
        raise MissingWeights(
            f"no encoder at {text!r}: an encoder folder holds encoder.json and model.safetensors (a pretrain run "
            "writes them); a name is random:NAME, pixels, or one of timm's"
        )
    return encoder.eval().requires_grad_(False)


def encoder_folder(path: Path) -> Path | None:
    """The encoder folder that ``path`` is, or holds as a run's folder does; None where there is none."""
    return next(
        (folder for folder in (path / "encoder", path) if (folder / "encoder.json").is_file()), None
    )


def listed_patients(folder: Path) -> set[str] | None:
    """Patients whose images an encoder was pretrained on, its base's included; None where nothing, or an empty file,
    says so."""
    listed = folder / "patients.txt"
    text = listed.read_text(encoding="utf-8") if listed.is_file() else ""
    return set(text.split("\n")) if text.strip() else None


def facts_of(folder: Path) -> dict[str, Any]:
    """What ``encoder.json`` says; TornFile where it is not whole."""
    facts = read_facts(folder / "encoder.json")
    lacking = {
        "architecture",
        "arguments",
        "input_size",
        "mean",
        "std",
        "text",
        "info",
    } - facts.keys()
    if lacking:
        raise TornFile(
            f"{folder / 'encoder.json'} lacks {', '.join(sorted(lacking))}: it is no encoder's, or damaged"
        )
    return facts


def _load_folder(folder: Path) -> Encoder:
    facts = facts_of(folder)
    encoder = Encoder(
        facts["architecture"],
        facts["arguments"],
        input_size=facts["input_size"],
        mean=facts["mean"],
        std=facts["std"],
        info=facts["info"],
    )
    encoder.trunk.load_state_dict(
        read_tensors(folder / "model.safetensors")
    )  # strict: every tensor or an error
    return encoder


def save_encoder(encoder: Encoder, folder: str | Path, text: "Text | None" = None) -> None:
    """Write an encoder folder; ``encoder.json`` comes last, so that a folder which has it is whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in encoder.trunk.state_dict().items()},
        folder / "model.safetensors",
    )
    side, grey = encoder.input_size, encoder.in_chans
    config = {
        "architecture": encoder.architecture,
        "num_classes": 0,
        "model_args": encoder.arguments,
        "pretrained_cfg": {
            "input_size": [grey, side, side],
            "mean": [encoder.mean] * grey,
            "std": [encoder.std] * grey,
            "num_classes": 0,
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if text is not None:
        save_file(
            {k: v.contiguous() for k, v in text.state_dict().items()}, folder / "text.safetensors"
        )
        text.tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "architecture": encoder.architecture,
        "arguments": encoder.arguments,
        "input_size": side,
        "mean": encoder.mean,
        "std": encoder.std,
        "text": None if text is None else text.shape,
        "info": encoder.info,
    }
    write_text(folder / "encoder.json", json.dumps(facts, indent=1))


@dataclass(frozen=True)
class TextShape:
    """Size of a text tower; ``dim`` is that of the space shared with images."""

    vocabulary: int = 512
    context: int = 96
    width: int = 64
    layers: int = 1
    heads: int = 4
    dim: int = 128


class Text(nn.Module):
    """MI2's text side: a transformer tower over byte-pair tokens, and both projections into the shared space.

    Non-causal with a key padding mask and pooled at the end token, as MedImageInsight's.
    """

    def __init__(self, tokenizer: Tokenizer, channels: int, shape: TextShape):
        super().__init__()
        self.tokenizer, self.shape = tokenizer, dict(shape.__dict__)
        self.tower = TextTransformer(
            context_length=shape.context,
            vocab_size=shape.vocabulary,
            width=shape.width,
            heads=shape.heads,
            layers=shape.layers,
            output_dim=shape.dim,
            no_causal_mask=True,
            use_pad_mask=True,
            pool_type="argmax",
            pad_id=0,
        )
        self.image_projection = nn.Linear(channels, shape.dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07)))

    def tokens(self, texts: list[str]) -> Tensor:
        """(N, context) int64; cut at the context, the end token kept; 0 pads."""
        context = self.shape["context"]
        out = torch.zeros(len(texts), context, dtype=torch.long)
        end = self.tokenizer.token_to_id("<end>")
        for row, encoded in enumerate(self.tokenizer.encode_batch(texts)):
            ids = [*encoded.ids[: context - 1], end]
            out[row, : len(ids)] = torch.tensor(ids)
        return out

    def cut(self, texts: list[str]) -> float:
        """The share of texts, of those that say anything, whose end the context does not hold."""
        long = [
            len(e.ids) >= self.shape["context"]
            for e in self.tokenizer.encode_batch([t for t in texts if t])
        ]
        return float(np.mean(long or [0.0]))

    def scale(self) -> Tensor:
        """The logit scale as it multiplies, clamped at 100 as CLIP's."""
        return self.log_scale.exp().clamp(max=100)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """(N, context) -> unit rows (N, dim)."""
        return nn.functional.normalize(self.tower(tokens), dim=-1)

    def embed_image(self, pooled: Tensor) -> Tensor:
        """(N, C) pooled image features -> unit rows (N, dim)."""
        return nn.functional.normalize(self.image_projection(pooled), dim=-1)


def train_tokenizer(corpus: list[str], vocabulary: int = 512) -> Tokenizer:
    """A byte-pair tokenizer trained on ``corpus``; ``<end>`` bears the highest id, so that argmax finds it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)]
    )
    tokenizer.decoder = decoders.BPEDecoder()
    special = ["<pad>", "<unknown>"]
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(vocab_size=vocabulary - 1, special_tokens=special, show_progress=False),
    )
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def build_text(
    corpus: list[str], channels: int, *, seed: int = 0, shape: TextShape | None = None
) -> Text:
    """A new text tower with a tokenizer trained on ``corpus`` and weights drawn from ``seed``."""
    shape = shape or TextShape()
    tokenizer = train_tokenizer(corpus, shape.vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Text(
            tokenizer,
            channels,
            TextShape(**{**shape.__dict__, "vocabulary": tokenizer.get_vocab_size()}),
        )


def load_text(folder: str | Path, channels: int) -> Text | None:
    """The text tower of an encoder folder, or None where there is none."""
    folder = Path(folder)
    shape = facts_of(folder)["text"]
    if shape is None:
        return None
    text = Text(read_tokenizer(folder / "tokenizer.json"), channels, TextShape(**shape))
    text.load_state_dict(read_tensors(folder / "text.safetensors"))
    return text
