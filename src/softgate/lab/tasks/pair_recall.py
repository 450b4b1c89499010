"""Recall in one layer: each token shows a key and its value at once, then the keys come alone, to be answered.

Unlike MQAR it needs no second layer that joins a key with the value after it, so that what is measured is the state of
one token mixer: how many pairs it holds and how exactly they can be read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from softgate.errors import ArgumentValueError
from softgate.lab import seeds

__all__ = ["PairBatch", "PairRecall", "RecallNetwork"]


class PairBatch(NamedTuple):
    """Sequences of pairs, then questions.

    Attributes:
        keys: (B, 2m) keys; the second half repeats the first in random order.
        values: (B, 2m) values; the null value (``PairRecall.values``) in the second half.
        answers: (B, m) values of the keys in the second half.
    """

    keys: Tensor
    values: Tensor
    answers: Tensor


@dataclass(frozen=True)
class PairRecall:
    """The task for one seed; batches are a pure function of a stream name.

    Attributes:
        seed: of all batches.
        pairs: m, distinct keys per sequence.
        keys: number of keys.
        values: number of values, drawn independently.
    """

    seed: int
    pairs: int = 16
    keys: int = 64
    values: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= self.keys or self.values < 2:
            raise ArgumentValueError(
                f"pairs must be between 1 and keys={self.keys} and values at least 2, got {self.pairs}, {self.values}"
            )

    def batch(self, *stream: int | str, size: int = 64) -> PairBatch:
        """Draw ``size`` sequences; the same for the same ``stream``, e.g. ``("train", step)``."""
        generator = seeds.generator(self.seed, "pair-recall", *stream)
        keys = torch.rand(size, self.keys, generator=generator).topk(self.pairs).indices
        values = torch.randint(self.values, keys.shape, generator=generator)
        order = torch.rand(keys.shape, generator=generator).argsort(-1)
        null = torch.full_like(values, self.values)
        return PairBatch(
            torch.cat((keys, keys.gather(1, order)), 1), torch.cat((values, null), 1), values.gather(1, order)
        )


class RecallNetwork(nn.Module):
    """Embeddings, LayerNorm, a mixer beside a residual path, LayerNorm, Linear: one layer and no positions.

    Args:
        task: sizes of the embeddings and of the output.
        dim: width.
        mixer: makes the mixer from the width.
    """

    def __init__(self, task: PairRecall, dim: int, mixer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.key_embedding = nn.Embedding(task.keys, dim)
        self.value_embedding = nn.Embedding(task.values + 1, dim)
        self.mixer_norm, self.mixer = nn.LayerNorm(dim), mixer(dim)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, task.values)
        nn.init.normal_(self.head.weight, std=dim**-0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: PairBatch) -> Tensor:
        """Logits (B, m, values) of the questions."""
        x = self.key_embedding(batch.keys) + self.value_embedding(batch.values)
        x = x + self.mixer(self.mixer_norm(x))
        return self.head(self.norm(x[:, batch.keys.shape[1] // 2 :]))

    def loss(self, batch: PairBatch) -> Tensor:
        """Mean cross-entropy of the answers, in nats."""
        return cross_entropy(self(batch).flatten(0, 1), batch.answers.flatten())

    @torch.no_grad()
    def accuracy(self, batch: PairBatch) -> float:
        """Share of questions answered right."""
        return float((self(batch).argmax(-1) == batch.answers).float().mean())
