"""Apply an operation to a list of digits; downstream the operations have names that were never seen before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError
from softgate.lab import seeds

__all__ = ["OPERATIONS", "RenamedOperations"]

#: What can be done to digits (B, L); each is different from all others on most lists.
OPERATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: (x + 1) % 10,
    lambda x: (x + 2) % 10,
    lambda x: (x + 3) % 10,
    lambda x: (x + 5) % 10,
    lambda x: x.flip(1),
    lambda x: x.roll(1, 1),
    lambda x: 9 - x,
    lambda x: x.sort(1).values,
    lambda x: x.roll(2, 1),
    lambda x: 9 - x.flip(1),
    lambda x: (x.flip(1) + 1) % 10,
    lambda x: (x.roll(1, 1) + 1) % 10,
    lambda x: x.sort(1, descending=True).values,
    lambda x: x.cumsum(1) % 10,
    lambda x: 3 * x % 10,
    lambda x: 7 * x % 10,
)
_DIGITS, _IGNORED = 10, -100


@dataclass(frozen=True)
class RenamedOperations:
    """Sequences ``digits, word, word, =, answer``; loss and metric look at the answer alone.

    Tokens: the digits, ``=``, one word per operation, and one new word per operation. Which new word stands for which
    operation is a random permutation.

    Attributes:
        seed: of the permutation and all batches.
        operations: how many of :data:`OPERATIONS` there are.
        length: digits L per list.
        permutation: new word -> operation.
    """

    seed: int
    operations: int = 8
    length: int = 3
    permutation: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 2 <= self.operations <= len(OPERATIONS) or self.length < 2:
            raise ArgumentValueError(
                f"operations must be in [2, {len(OPERATIONS)}] and length at least 2, got {self.operations} and "
                f"{self.length}"
            )
        order = torch.randperm(self.operations, generator=seeds.generator(self.seed, "renaming"))
        object.__setattr__(self, "permutation", order)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return _DIGITS + 1 + 2 * self.operations

    @property
    def prompt(self) -> int:
        """Tokens before the answer."""
        return self.length + 3

    @property
    def new_words(self) -> slice:
        """Tokens of the new words."""
        return slice(self.vocabulary - self.operations, self.vocabulary)

    def batch(self, *stream: int | str, size: int, renamed: bool) -> tuple[Tensor, Tensor]:
        """Tokens and labels (B, T), the same for the same ``stream``; labels are -100 before the answer."""
        generator = seeds.generator(self.seed, "renamed-operations", *stream)
        digits = torch.randint(_DIGITS, (size, self.length), generator=generator)
        words = torch.randint(self.operations, (size,), generator=generator)
        chosen = self.permutation[words] if renamed else words
        answers = torch.stack([operation(digits) for operation in OPERATIONS[: self.operations]])
        answer = answers[chosen, torch.arange(size)]
        named = (words + _DIGITS + 1 + (self.operations if renamed else 0))[:, None]
        tokens = torch.cat((digits, named, named, torch.full_like(named, _DIGITS), answer), 1)
        labels = tokens.clone()
        labels[:, : self.prompt] = _IGNORED
        return tokens, labels

    def exact(self, logits: Tensor, tokens: Tensor) -> float:
        """Share of answers without a wrong digit, for logits (B, T, V) of ``tokens``: what greedy decoding gets."""
        guesses = logits[:, self.prompt - 1 : -1].argmax(-1)
        return float((guesses == tokens[:, self.prompt :]).all(1).float().mean())
