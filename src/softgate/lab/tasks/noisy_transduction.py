"""Translate a sequence of symbols by a fixed rule, from training targets in which symbols were replaced at random."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.errors import ArgumentValueError
from softgate.lab import seeds

__all__ = ["NoisyTransduction", "Transducer"]


@dataclass(frozen=True)
class NoisyTransduction:
    """Input: uniform symbols. Clean target: the reversed input under a fixed permutation of the symbols.

    Attributes:
        seed: of the permutation and all batches.
        vocabulary: number of symbols.
        length: symbols per sequence.
        noise: probability that a training target's symbol is drawn anew from all symbols.
        permutation: what symbol stands for what.
    """

    seed: int
    vocabulary: int = 12
    length: int = 6
    noise: float = 0.25
    permutation: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.vocabulary < 2 or self.length < 1:
            raise ArgumentValueError(
                f"vocabulary must be at least 2 and length at least 1, got {self.vocabulary} and {self.length}"
            )
        check_number("noise", self.noise, low=0.0, high=1.0)
        order = torch.randperm(self.vocabulary, generator=seeds.generator(self.seed, "permutation"))
        object.__setattr__(self, "permutation", order)

    def batch(self, *stream: int | str, size: int, clean: bool = False) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T), the same for the same ``stream``; ``clean`` leaves the noise out."""
        generator = seeds.generator(self.seed, "noisy-transduction", *stream)
        x = torch.randint(self.vocabulary, (size, self.length), generator=generator)
        y = self.permutation[x.flip(1)]
        if clean:
            return x, y
        drawn = torch.randint(self.vocabulary, y.shape, generator=generator)
        return x, torch.where(torch.rand(y.shape, generator=generator) < self.noise, drawn, y)


class Transducer(nn.Module):
    """Bidirectional GRU encoder and a GRU decoder that attends to it (dot product, after the recurrence).

    Args:
        task: sizes of the vocabulary.
        width: of embeddings, states and encodings; even.

    Shapes: inputs (B, T) and the targets before each position -> logits (B, T, V).
    """

    def __init__(self, task: NoisyTransduction, width: int = 96) -> None:
        super().__init__()
        self.start = task.vocabulary
        self.source = nn.Embedding(task.vocabulary, width)
        self.target = nn.Embedding(task.vocabulary + 1, width)
        self.places = nn.Embedding(task.length, width)
        self.encoder = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.mix = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, task.vocabulary)

    def encode(self, inputs: Tensor) -> Tensor:
        """Encodings (B, T, width)."""
        places = self.places(torch.arange(inputs.shape[1], device=inputs.device))
        encoded: Tensor = self.encoder(self.source(inputs) + places)[0]
        return encoded + places

    def decode(self, encoded: Tensor, before: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, T', V) after the symbols ``before`` (B, T'), and the decoder's state."""
        hidden, state = self.decoder(self.target(before), state)
        weights = torch.softmax(hidden @ encoded.transpose(1, 2) * encoded.shape[-1] ** -0.5, -1)
        mixed = torch.tanh(self.mix(torch.cat((hidden, weights @ encoded), -1)))
        assert state is not None
        return self.head(mixed), state

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, T, V) of every target symbol given those before it."""
        first = torch.full_like(targets[:, :1], self.start)
        return self.decode(self.encode(inputs), torch.cat((first, targets[:, :-1]), 1))[0]
