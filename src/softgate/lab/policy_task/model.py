"""A transformer small enough to be trained by reinforcement on one core; it also takes vectors in place of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.attention.cache import KVCache

__all__ = ["TinyLM"]


class TinyLM(nn.Module):
    """Pre-LN decoder with learnt positions.

    Args:
        vocab_size: number of tokens V.
        length: longest sequence.
        width: of the residual stream D.
        layers: blocks.
        heads: attention heads.
    """

    def __init__(self, vocab_size: int, length: int, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def new_cache(self) -> list[KVCache]:
        """An empty cache for each block."""
        return [KVCache(self.positions.num_embeddings) for _ in self.blocks]

    def forward(self, tokens: Tensor, cache: Sequence[KVCache] | None = None) -> Tensor:
        """Logits ``(B, S, V)`` after each of the tokens ``(B, S)``, which continue those in the cache."""
        return self.decode(self.tokens(tokens), cache)

    def decode(self, vectors: Tensor, cache: Sequence[KVCache] | None = None) -> Tensor:
        """As :meth:`forward`, from token vectors ``(B, S, D)``: rows of ``tokens.weight``, or mixtures of them."""
        return self.head(self.hidden(vectors, cache))

    def hidden(self, vectors: Tensor, cache: Sequence[KVCache] | None = None) -> Tensor:
        """What the head reads, ``(B, S, D)``."""
        start = cache[0].length if cache else 0
        x = vectors + self.positions.weight[start : start + vectors.shape[1]]
        for index, block in enumerate(self.blocks):
            x = block(x, cache[index] if cache else None)
        return self.norm(x)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        query, key, value = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        first = cache is None or cache.length == 0
        if cache is not None:
            key, value = cache.append(key, value)
        assert first or x.shape[1] == 1  # a cache is continued token by token
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=first)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.ffn(self.norm_2(x))


def sample_tokens(model: TinyLM, prompt: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``count`` tokens after each prompt ``(B, S)``; tokens and their log-probabilities, ``(B, count)``."""
    tokens, logps, cache, new = [], [], model.new_cache(), prompt
    with torch.no_grad():
        for _ in range(count):
            logp = model(new, cache)[:, -1].log_softmax(-1)
            new = torch.multinomial(logp.exp(), 1, generator=generator)
            tokens.append(new)
            logps.append(logp.gather(-1, new))
    return torch.cat(tokens, 1), torch.cat(logps, 1)
