"""Prediction of a word from the words before it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError
from softgate.lab import seeds

__all__ = ["WordNgrams"]

_WORD = re.compile(r"[A-Za-z']+|[^\sA-Za-z']")
_VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class WordNgrams:
    """Batches of (words before, word) as a pure function of a stream name; the last tenth is for validation.

    Words are runs of letters and apostrophes, every other visible character is a word of its own. The vocabulary is
    that of the whole text, so no word of the validation part is unknown (some are never seen in training).

    Attributes:
        text: the corpus.
        seed: seed of all batches.
        context: words before.
        words: keep only so many from the beginning of the text; all if None.
    """

    text: str = field(repr=False)
    seed: int
    context: int = 4
    words: int | None = None
    vocabulary: int = field(init=False)
    _ids: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = _WORD.findall(self.text)[: self.words]
        if len(found) < 20 * (self.context + 1):
            raise ArgumentValueError(f"text must hold at least {20 * (self.context + 1)} words, got {len(found)}")
        number = {word: index for index, word in enumerate(sorted(set(found)))}
        object.__setattr__(self, "vocabulary", len(number))
        object.__setattr__(self, "_ids", torch.tensor([number[word] for word in found]))

    @property
    def training_examples(self) -> int:
        """How many places of the training part have enough words before them."""
        return len(self._ids) - int(len(self._ids) * _VALIDATION_SHARE) - self.context

    def batch(self, *stream: int | str, size: int) -> tuple[Tensor, Tensor]:
        """Contexts (B, context) and next words (B,) at random places of the training part."""
        generator = seeds.generator(self.seed, "word-ngrams", *stream)
        return self._at(torch.randint(self.training_examples, (size,), generator=generator))

    def validation(self, size: int) -> tuple[Tensor, Tensor]:
        """The first ``size`` examples of the validation part, or all if there are fewer."""
        first = self.training_examples + self.context
        return self._at(torch.arange(first, min(first + size, len(self._ids) - self.context)))

    def _at(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        windows = self._ids[starts[:, None] + torch.arange(self.context + 1)]
        return windows[:, :-1], windows[:, -1]
