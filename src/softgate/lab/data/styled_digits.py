"""Coloured MNIST digits in five styles, with captions: a world in which a small CLIP can be trained in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from softgate.errors import check_choice
from softgate.lab import seeds
from softgate.lab.data.images import SPLITS, mnist

__all__ = ["StyledDigits"]

STYLES = ("clear", "blurry", "noisy", "dark", "inverted")
COLOURS = {
    "red": (1.0, 0.15, 0.15), "green": (0.15, 1.0, 0.15), "blue": (0.2, 0.3, 1.0),
    "yellow": (1.0, 1.0, 0.15), "purple": (0.8, 0.15, 1.0), "cyan": (0.15, 1.0, 1.0),
}  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = tuple(f"{colour} {digit}" for colour in COLOURS for digit in DIGITS)
#: Every word of the captions, and the full stop.
WORDS = ("a", "photo", "image", "of", "the", ".", *STYLES, *COLOURS, *DIGITS)
SIZE = 14
_NOISE, _DARK = 0.6, 0.2
_NO_STYLE, _NO_COLOUR = 0.4, 0.3


@dataclass(frozen=True)
class StyledDigits:
    """Images (N, 3, 14, 14) with values near [0, 1] of 60 classes, "red three" and so on, and captions of them.

    A style is drawn on the coloured digit: nothing, a 5×5 mean taken twice, normal noise of 0.6, a fifth of the light,
    or the negative.

    Attributes:
        seed: of everything that is drawn.
        download: MNIST may be downloaded if it is not on this machine.
    """

    seed: int
    download: bool = False
    _digits: dict[str, Tensor] = field(init=False, repr=False)
    _places: dict[str, list[Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sets = {"train": mnist("train", download=self.download), "test": mnist("test", download=self.download)}
        object.__setattr__(self, "_digits", {split: s.images for split, s in sets.items()})
        places = {split: [(s.labels == digit).nonzero()[:, 0] for digit in range(10)] for split, s in sets.items()}
        object.__setattr__(self, "_places", places)

    def images(self, split: Literal["train", "test"], classes: Tensor, styles: Tensor, *stream: int | str) -> Tensor:
        """One image for every class (N,) and style (N,); equal streams give equal digits and noise."""
        check_choice("split", split, SPLITS)
        generator = seeds.generator(self.seed, "styled-digits", split, *stream)
        places = self._places[split]
        chance = torch.rand(len(classes), generator=generator).tolist()
        rows = [
            int(places[c % 10][int(u * len(places[c % 10]))]) for c, u in zip(classes.tolist(), chance, strict=True)
        ]
        grey = functional.avg_pool2d(self._digits[split][torch.tensor(rows, dtype=torch.int64)].float() / 255.0, 2)
        colours = torch.tensor(list(COLOURS.values()))[classes // 10]
        return _styled(grey[:, None] * colours[:, :, None, None], styles, generator)

    def captions(self, classes: Tensor, styles: Tensor, *stream: int | str) -> list[str]:
        """A caption for every image; the style is left out of 40 % of them, the colour of 30 %."""
        generator = seeds.generator(self.seed, "captions", *stream)
        chances = torch.rand(len(classes), 3, generator=generator).tolist()
        drawn = zip(classes.tolist(), styles.tolist(), chances, strict=True)
        return [_caption(CLASSES[c], STYLES[s], *chance) for c, s, chance in drawn]

    def pairs(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        """Training images of random classes and styles with their captions; the same for the same ``step``."""
        generator = seeds.generator(self.seed, "pairs", step)
        classes = torch.randint(len(CLASSES), (size,), generator=generator)
        styles = torch.randint(len(STYLES), (size,), generator=generator)
        return self.images("train", classes, styles, "pairs", step), self.captions(classes, styles, step)


def _caption(name: str, style: str, without_style: float, without_colour: float, form: float) -> str:
    shown = name.split()[1] if without_colour < _NO_COLOUR else name
    word = "" if without_style < _NO_STYLE else f"{style} "
    return f"a {word}photo of a {shown}." if form < 0.5 else f"a {word}image of the {shown}."


def _styled(images: Tensor, styles: Tensor, generator: torch.Generator) -> Tensor:
    blurry = images
    for _ in range(2):
        blurry = functional.avg_pool2d(blurry, 5, stride=1, padding=2)
    noisy = images + _NOISE * torch.randn(images.shape, generator=generator)
    drawn = torch.stack([images, blurry, noisy, _DARK * images, 1.0 - images])
    return drawn[styles, torch.arange(len(styles))]
