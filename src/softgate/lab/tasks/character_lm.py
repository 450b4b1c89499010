"""Next-character prediction on a text, every sequence opened by a BOS token."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError
from softgate.lab import seeds

__all__ = ["CharacterLM"]

_VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class CharacterLM:
    """Batches of a text as a pure function of a stream name; the last tenth of the text is for validation.

    Attributes:
        text: the corpus.
        seed: seed of all batches.
        length: tokens per sequence, BOS included.
        characters: the characters that occur, in order; BOS is the token after the last of them.
    """

    text: str = field(repr=False)
    seed: int
    length: int = 128
    characters: str = field(init=False)
    _training: Tensor = field(init=False, repr=False)
    _validation: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        characters = "".join(sorted(set(self.text)))
        number = {character: index for index, character in enumerate(characters)}
        ids = torch.tensor([number[character] for character in self.text], dtype=torch.long)
        cut = len(ids) - int(len(ids) * _VALIDATION_SHARE)
        if self.length < 2 or len(ids) - cut < self.length:
            raise ArgumentValueError(
                f"text must hold at least {10 * self.length} characters for sequences of {self.length}, "
                f"got {len(self.text)}"
            )
        for name, value in (("characters", characters), ("_training", ids[:cut]), ("_validation", ids[cut:])):
            object.__setattr__(self, name, value)

    @property
    def vocabulary(self) -> int:
        """Number of tokens: the characters and BOS."""
        return len(self.characters) + 1

    def batch(self, *stream: int | str, size: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) from random places of the training part, the same for the same ``stream``."""
        return self._windows(self._training, size, *stream)

    def validation(self, size: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) from random places of the validation part, the same at every call."""
        return self._windows(self._validation, size, "validation")

    def segments(self, length: int, total: int) -> tuple[Tensor, Tensor]:
        """The first ``total`` validation characters cut into windows of ``length``: inputs and targets (B, T).

        Whatever the length, the targets are the same characters, so losses at different lengths can be compared. Each
        window is opened by BOS.

        Args:
            length: tokens per window, BOS included; a divisor of ``total``.
            total: targets in all, at most the length of the validation part.
        """
        if not 2 <= length <= total <= len(self._validation) or total % length:
            raise ArgumentValueError(
                f"length must be at least 2 and divide total, and total be at most {len(self._validation)}, "
                f"got length {length} and total {total}"
            )
        targets = self._validation[:total].view(-1, length)
        bos = torch.full((len(targets), 1), len(self.characters))
        return torch.cat((bos, targets[:, :-1]), dim=1), targets

    def _windows(self, ids: Tensor, size: int, *stream: int | str) -> tuple[Tensor, Tensor]:
        generator = seeds.generator(self.seed, "character-lm", *stream)
        starts = torch.randint(len(ids) - self.length + 1, (size, 1), generator=generator)
        targets = ids[starts + torch.arange(self.length)]
        bos = torch.full((size, 1), len(self.characters))
        return torch.cat((bos, targets[:, :-1]), dim=1), targets
