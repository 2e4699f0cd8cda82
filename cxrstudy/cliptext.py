"""MedImageInsight's text side: CLIP's byte pairs and its transformer, as published (arXiv 2410.06542)."""

from functools import partial
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn

from cxrstudy.encoders import Text, TextShape


class _Tower(TextTransformer):
    """open_clip's, but what comes after a text's end is hidden by its place: CLIP's 0 is a word ("!"), no padding."""

    def _build_additive_mask(self, text: Tensor, seq_len: int, dtype: torch.dtype) -> Tensor:
        after = torch.arange(seq_len, device=text.device) > text.argmax(1, keepdim=True)
        mask = torch.zeros(after.shape, dtype=dtype, device=text.device).masked_fill(
            after, -torch.inf
        )
        return mask[:, None].expand(-1, seq_len, -1).repeat_interleave(self.heads, 0)


class ClipText(Text):
    """MedImageInsight's text side: CLIP's byte pairs, QuickGELU, and the image tower's last norm before projection.

    It stands between ``Encoder.pool``, which is the plain mean of the patches, and the shared space.
    """

    def __init__(self, tokenizer: Tokenizer, channels: int, shape: TextShape):
        nn.Module.__init__(self)
        self.tokenizer, self.shape = tokenizer, {**shape.__dict__, "clip": True}
        sizes = {
            "context_length": shape.context,
            "vocab_size": shape.vocabulary,
            "output_dim": shape.dim,
        }
        sizes |= {"width": shape.width, "heads": shape.heads, "layers": shape.layers}
        kinds: Any = {"act_layer": QuickGELU, "norm_layer": partial(LayerNorm, eps=1e-12)}
        self.tower = _Tower(no_causal_mask=True, use_pad_mask=True, **sizes, **kinds)
        self.image_norm = nn.LayerNorm(channels)
        self.image_projection = nn.Linear(channels, shape.dim, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def tokens(self, texts: list[str]) -> Tensor:
        """(N, context) int64: start, the text cut to the context, end, zeros."""
        start, end = (self.tokenizer.token_to_id(f"<|{word}oftext|>") for word in ("start", "end"))
        out = torch.zeros(len(texts), self.shape["context"], dtype=torch.long)
        for row, encoded in enumerate(self.tokenizer.encode_batch(texts)):
            ids = [start, *encoded.ids[: out.shape[1] - 2], end]
            out[row, : len(ids)] = torch.tensor(ids)
        return out

    def embed_image(self, pooled: Tensor) -> Tensor:
        """(N, C) pooled image features -> unit rows (N, dim)."""
        return super().embed_image(self.image_norm(pooled))


def clip_tokenizer() -> Tokenizer:
    """CLIP's byte-pair tokenizer, as transformers' CLIPTokenizer, from the vocabulary that open_clip carries."""
    plain, end = SimpleTokenizer(), "<|endoftext|>"
    vocabulary = {
        word: i for i, word in enumerate([*list(plain.encoder)[:-2], "<|startoftext|>", end])
    }
    pairs = models.BPE(
        vocab=vocabulary, merges=list(plain.bpe_ranks), end_of_word_suffix="</w>", unk_token=end
    )
    tokenizer = Tokenizer(pairs)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer
