"""How published checkpoints name their tensors: each layout's names to ours. ``weights`` reads the files."""

import re
from collections.abc import Callable


def _renamer(*rules: tuple[str, str]) -> Callable[[str], str]:
    def rename(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return rename


# RAD-DINO: Hugging Face's published layout, transformers 5's own names, and the original repository's (already timm's)
DINOV2 = _renamer(
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.(\w+)$", r".attn.qkv.\2#\1"),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
DINO_HEAD = _renamer(("^last_layer.weight_v$", "prototypes"), ("^last_layer.weight_g$", "gain"))
MEDIMAGEINSIGHT = _renamer(
    (r"^image_encoder\.convs\.0\.", "trunk.stem."),
    (r"^image_encoder\.convs\.(\d+)\.", r"trunk.stages.\1.downsample."),
    (r"^(trunk\.stem|trunk\.stages\.\d+\.downsample)\.proj\.", r"\1.conv."),
    (r"^image_encoder\.blocks\.(\d+)\.", r"trunk.stages.\1.blocks."),
    (r"^image_encoder\.norms\.", "trunk.head.norm."),
    (r"\.conv([12])\.fn\.dw\.", r".cpe\1.proj."),
    (r"\.(?:window|channel)_attn\.norm\.", ".norm1."),
    (r"\.(?:window|channel)_attn\.fn\.", ".attn."),
    (r"\.ffn\.norm\.", ".norm2."),
    (r"\.ffn\.fn\.net\.", ".mlp."),
    (r"^lang_encoder\.resblocks\.", "text.tower.transformer.resblocks."),
    (r"^lang_encoder\.", "text.tower."),
    (r"^lang_projection$", "text.tower.text_projection"),
    (r"^image_projection$", "text.image_projection.weight"),
    (r"^logit_scale$", "text.log_scale"),
)


def efficientnet_lite(name: str) -> str:
    """Names of efficientnet_lite_pytorch to timm's: blocks in stages, norms counted from 1."""
    name = re.sub(r"^_bn([01])", lambda m: f"bn{int(m[1]) + 1}", name)
    if not (match := re.match(r"_blocks\.(\d+)\._(\w+?)\.(.*)", name)):
        return name.replace("_conv_", "conv_").replace("_fc.", "classifier.")
    index, layer = int(match[1]), match[2]
    start = max(first for first in (0, 1, 3, 5, 8, 11, 15) if first <= index)
    stage, alone = (
        (0, 1, 3, 5, 8, 11, 15).index(start),
        index == 0,
    )  # the first block does not expand
    convs = {
        "expand_conv": "conv_pw",
        "depthwise_conv": "conv_dw",
        "project_conv": "conv_pw" if alone else "conv_pwl",
    }
    ours = convs.get(layer) or f"bn{int(layer[2:]) + (not alone)}"
    return f"blocks.{stage}.{index - start}.{ours}.{match[3]}"
