"""Small encoders and images for the tests of DINOv2."""

import numpy as np
import torch

from cxrstudy.encoders import Encoder

TINY = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 1}
GREY = {"in_chans": 1, "dynamic_img_size": True}


def small_encoder(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(
            "vit_tiny_patch16_224", TINY | GREY | {"img_size": 32} | changes, input_size=32
        )


def hybrid_encoder(size, **changes):
    """Return a ViT on a convolutional stem that reduces the side to 1/4: patches of 8 pixels."""
    arguments = GREY | {"patch_size": 2, "img_size": size}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder("vit_tiny_r_s16_p8_224", arguments | changes, input_size=size)


def blobs(n, seed=0):
    """Return images that differ in the places of a few bright spots."""
    rng = np.random.default_rng(seed)
    line = np.linspace(0, 1, 32)
    across, down, wide = rng.random((3, n, 4, 1, 1))
    squares = (line[None, :] - across) ** 2 + (line[:, None] - down) ** 2
    images = np.exp(-squares / (0.01 + 0.02 * wide)).max(1)
    return torch.from_numpy((images - 0.5) / 0.25).float().unsqueeze(1)
