"""Text towers: byte-pair tokenizer, transformer, projections to a space shared with images."""

from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn


@dataclass(frozen=True)
class TextShape:
    """Size of a text tower; ``dim`` is the dimension of the space shared with images."""

    vocabulary: int = 512
    context: int = 96
    width: int = 64
    layers: int = 1
    heads: int = 4
    dim: int = 128


class TextTower(nn.Module):
    """A text transformer on byte-pair tokens, and projections of texts and images.

    As in MedImageInsight, attention is not causal, padding is masked, and the feature of a text is
    that of its end token.

    Args:
        tokenizer: Its vocabulary has 0 as padding and ``<end>`` as the highest id.
        channels: Length C of pooled image features.
        shape: Sizes.
    """

    def __init__(self, tokenizer: Tokenizer, channels: int, shape: TextShape):
        super().__init__()
        self.tokenizer, self.shape = tokenizer, asdict(shape)
        self.tower = self._transformer(shape)
        self.image_projection = nn.Linear(channels, shape.dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07)))

    def _transformer(self, shape: TextShape) -> TextTransformer:
        return TextTransformer(
            **_sizes(shape), no_causal_mask=True, use_pad_mask=True, pool_type="argmax", pad_id=0
        )

    def tokens(self, texts: list[str]) -> Tensor:
        """Return token ids (N, context) int64: the text cut to the context, end, zeros."""
        context = self.shape["context"]
        out = torch.zeros(len(texts), context, dtype=torch.long)
        end = self.tokenizer.token_to_id("<end>")
        for row, encoded in enumerate(self.tokenizer.encode_batch(texts)):
            ids = [*encoded.ids[: context - 1], end]
            out[row, : len(ids)] = torch.tensor(ids)
        return out

    def cut(self, texts: list[str]) -> float:
        """Return the fraction of non-empty texts that are longer than the context."""
        encoded = self.tokenizer.encode_batch([text for text in texts if text])
        return float(np.mean([len(e.ids) >= self.shape["context"] for e in encoded] or [0.0]))

    def scale(self) -> Tensor:
        """Return the factor of the logits, at most 100 as in CLIP."""
        return self.log_scale.exp().clamp(max=100)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Return unit rows (N, dim) of token ids (N, context)."""
        return nn.functional.normalize(self.tower(tokens), dim=-1)

    def embed_image(self, pooled: Tensor) -> Tensor:
        """Return unit rows (N, dim) of pooled image features (N, C)."""
        return nn.functional.normalize(self.image_projection(pooled), dim=-1)


def _sizes(shape: TextShape) -> dict[str, int]:
    """Return the sizes as open_clip's TextTransformer names them."""
    sizes = {"context_length": shape.context, "vocab_size": shape.vocabulary, "width": shape.width}
    return sizes | {"heads": shape.heads, "layers": shape.layers, "output_dim": shape.dim}


def train_tokenizer(corpus: list[str], vocabulary: int = 512) -> Tokenizer:
    """Return a byte-pair tokenizer of ``corpus``; ``<end>`` has the highest id, for pooling."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    words = [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
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
) -> TextTower:
    """Return a new text tower with a tokenizer of ``corpus`` and weights drawn from ``seed``."""
    sizes = asdict(shape or TextShape())
    tokenizer = train_tokenizer(corpus, sizes["vocabulary"])
    sizes["vocabulary"] = tokenizer.get_vocab_size()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TextTower(tokenizer, channels, TextShape(**sizes))


# ---- MedImageInsight -----------------------------------------------------------------------------
class ClipTextTower(TextTower):
    """MedImageInsight's text tower as published (arXiv 2410.06542): CLIP's tokens and QuickGELU.

    Pooled image features, the plain mean of the patches, pass the image tower's last norm before
    their projection.
    """

    def __init__(self, tokenizer: Tokenizer, channels: int, shape: TextShape):
        super().__init__(tokenizer, channels, shape)
        self.shape |= {"clip": True}
        self.image_norm = nn.LayerNorm(channels)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def _transformer(self, shape: TextShape) -> TextTransformer:
        kinds = {"act_layer": QuickGELU, "norm_layer": partial(LayerNorm, eps=1e-12)}
        return _ClipTransformer(no_causal_mask=True, **_sizes(shape), **kinds)

    def tokens(self, texts: list[str]) -> Tensor:
        """Return token ids (N, context) int64: start, the text cut to the context, end, zeros."""
        start, end = (self.tokenizer.token_to_id(f"<|{name}oftext|>") for name in ("start", "end"))
        out = torch.zeros(len(texts), self.shape["context"], dtype=torch.long)
        for row, encoded in enumerate(self.tokenizer.encode_batch(texts)):
            ids = [start, *encoded.ids[: out.shape[1] - 2], end]
            out[row, : len(ids)] = torch.tensor(ids)
        return out

    def embed_image(self, pooled: Tensor) -> Tensor:
        """Return unit rows (N, dim) of pooled image features (N, C)."""
        return super().embed_image(self.image_norm(pooled))


class _ClipTransformer(TextTransformer):
    """Masks by position what follows the end token: id 0 is a word of CLIP's ("!"), not padding."""

    def forward(self, text: Tensor) -> Tensor:
        length, end = text.shape[1], text.argmax(1)
        after = torch.arange(length, device=text.device) > end[:, None]  # (N, length)
        x = self.token_embedding(text) + self.positional_embedding[:length]
        mask = torch.zeros(after.shape, dtype=x.dtype, device=x.device)
        mask = mask.masked_fill(after, -torch.inf)[:, None].expand(-1, length, -1)
        x = self.transformer(x, attn_mask=mask.repeat_interleave(self.heads, 0))
        return self.ln_final(x)[torch.arange(len(x), device=x.device), end] @ self.text_projection


def clip_tokenizer() -> Tokenizer:
    """Return CLIP's byte-pair tokenizer, equal to transformers', from open_clip's vocabulary."""
    plain, end = SimpleTokenizer(), "<|endoftext|>"
    words = [*list(plain.encoder)[:-2], "<|startoftext|>", end]
    vocabulary = {word: i for i, word in enumerate(words)}
    merges = list(plain.bpe_ranks)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=end)
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Lowercase()]
    )
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(pattern, "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer
