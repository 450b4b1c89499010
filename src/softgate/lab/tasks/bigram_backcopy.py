"""Bigram-Backcopy: sequences in which an attention head is needed at a few known positions only.

Symbols follow a Markov chain, except that after a *trigger* symbol comes a copy of the symbol before the trigger. An
attention head is needed on trigger queries and nowhere else; softmax must still spend its weight somewhere, and the
BOS token at position 0 becomes the place to park it: an attention sink. See "Active-dormant attention heads" (Guo et
al., arXiv 2410.13835) for the task and its analysis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError
from softgate.lab import seeds

__all__ = ["Batch", "BigramBackcopy"]


class Batch(NamedTuple):
    """One batch of sequences.

    Attributes:
        tokens: (B, T) inputs; ``tokens[:, 0]`` is BOS.
        targets: (B, T) next symbols.
        on_trigger: (B, T) bool, True where the input is a trigger, so that the target is a copy.
    """

    tokens: Tensor
    targets: Tensor
    on_trigger: Tensor


@dataclass(frozen=True)
class BigramBackcopy:
    """The task for one seed: its transition rows, and batches as a pure function of a stream name.

    Attributes:
        seed: seed of the transition rows and of all batches.
        symbols: number of ordinary symbols V; BOS is token V.
        triggers: symbols 0, …, triggers - 1 are triggers.
        concentration: of the Dirichlet distribution that each row is drawn from; small makes the chain predictable.
    """

    seed: int
    symbols: int = 32
    triggers: int = 3
    concentration: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.triggers < self.symbols:
            raise ArgumentValueError(f"triggers must be between 1 and symbols - 1, got {self.triggers}")

    @property
    def vocabulary(self) -> int:
        """Number of tokens: the symbols and BOS."""
        return self.symbols + 1

    def transitions(self) -> Tensor:
        """Rows (V, V): probability of the next symbol after each one; rows of triggers are never used."""
        generator = seeds.generator(self.seed, "bigram-backcopy", "transitions")
        gamma = torch._standard_gamma(
            torch.full((self.symbols, self.symbols), self.concentration, dtype=torch.float64), generator=generator
        )
        return gamma / gamma.sum(-1, keepdim=True)

    def batch(self, *stream: int | str, size: int = 32, length: int = 64) -> Batch:
        """Draw ``size`` sequences of ``length`` tokens; the same for the same ``stream``, e.g. ``("train", step)``."""
        if size < 1 or length < 2:
            raise ArgumentValueError(f"size must be at least 1 and length at least 2, got {size} and {length}")
        draws = torch.rand(
            (length, size), generator=seeds.generator(self.seed, "bigram-backcopy", *stream), dtype=torch.float64
        )
        cumulative = self.transitions().cumsum(-1)
        symbols = torch.empty((length + 1, size), dtype=torch.long)
        symbols[0] = self.symbols
        # The first symbol is no trigger: there would be nothing but BOS to copy.
        symbols[1] = self.triggers + (draws[0] * (self.symbols - self.triggers)).long()
        for step in range(1, length):
            sampled = (draws[step, :, None] > cumulative[symbols[step]]).sum(-1).clamp_max_(self.symbols - 1)
            symbols[step + 1] = torch.where(symbols[step] < self.triggers, symbols[step - 1], sampled)
        tokens = symbols[:-1].T.contiguous()
        return Batch(tokens, symbols[1:].T.contiguous(), tokens < self.triggers)

    def best_loss(self, batch: Batch) -> float:
        """Mean negative log-likelihood of ``batch`` under the true process, in nats: no model beats on average."""
        rows = self.transitions().log()
        ordinary = ~batch.on_trigger & (batch.tokens < self.symbols)
        nats = -rows[batch.tokens[ordinary], batch.targets[ordinary]].sum()
        first = torch.log(torch.tensor(float(self.symbols - self.triggers))) * batch.tokens.shape[0]
        return float((nats + first) / batch.tokens.numel())
