"""Restoring degraded images: batches of crops, degraded and clean, and fixed crops to test on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate._checks import check_sizes
from softgate.errors import bad_value, check_choice
from softgate.lab import data, seeds
from softgate.lab.data.photographs import PhotographPairs, sample_photograph
from softgate.lab.data.store import data_folders

__all__ = ["DEGRADATIONS", "PairedRestoration", "RestorationTask", "SyntheticRestoration"]

#: Half the shift of a ghost along the columns, in pixels, is that along the rows.
_SHIFT = 16
_TESTED = (10, 16)


class RestorationTask(Protocol):
    """What a restoring network is trained and tested on."""

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Degraded and clean images (size, 3, H, W) of update ``step``."""

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Degraded and clean test images (B, 3, H, W)."""


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return _noisy(x, 50.0, generator)


def _ghost(x: Tensor, generator: torch.Generator) -> Tensor:
    return _noisy(0.55 * x + 0.45 * x.roll((_SHIFT // 2, _SHIFT), (-2, -1)), 3.0, generator)


def _blur(x: Tensor, generator: torch.Generator) -> Tensor:
    padded = F.pad(x, (4, 4, 0, 0), mode="reflect")
    return _noisy(padded.unfold(-1, 9, 1).mean(-1), 1.0, generator)


def _rain(x: Tensor, generator: torch.Generator) -> Tensor:
    """One pixel in 200 begins a bright streak that falls for nine rows and drifts by three columns."""
    drops = (torch.rand(x[:, :1].shape, generator=generator) < 0.005).to(x.dtype)
    streaks = torch.stack([drops.roll((t, t // 3), (-2, -1)) for t in range(9)]).amax(0)
    return (x + 0.4 * streaks).clamp(0.0, 1.0)


def _low_light(x: Tensor, generator: torch.Generator) -> Tensor:
    gain, power = torch.rand(2, len(x), 1, 1, 1, generator=generator)
    return _noisy((x.clamp(min=0.0) ** (1.0 + power)) * (0.2 + 0.4 * gain), 3.0, generator)


def _noisy(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """With Gaussian noise of ``sigma`` of 255 grey levels."""
    return x + sigma / 255.0 * torch.randn(x.shape, generator=generator)


#: Ways to degrade images in [0, 1]. ``ghost`` adds a copy shifted by half the image: undoing it needs what is far away.
DEGRADATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "ghost": _ghost,
    "rain": _rain,
    "low_light": _low_light,
}


@dataclass(frozen=True)
class SyntheticRestoration:
    """Crops of photographs, degraded by a known operation.

    Attributes:
        task: one of :data:`DEGRADATIONS`.
        seed: of crops, flips, turns and noise in training; the test crops and their noise are the same for every seed.
        images: ``"photographs"`` trains on a temple and a portrait and tests on a flower, the photographs that come
            with scikit-learn and matplotlib; ``"cifar10"`` takes training and test images of CIFAR-10.
        size: side of the crops; at most 32 for CIFAR-10, whose test images stay whole.
    """

    task: str
    seed: int
    images: Literal["photographs", "cifar10"] = "photographs"
    size: int = 32
    _train: Sequence[Tensor] = field(init=False, repr=False)
    _clean: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("task", self.task, tuple(DEGRADATIONS))
        check_choice("images", self.images, ("photographs", "cifar10"))
        check_sizes(size=self.size)
        if self.images == "photographs":
            train: Sequence[Tensor] = [sample_photograph(name) for name in ("china", "portrait")]
            test = sample_photograph("flower")[None]
        else:
            train, test = list(data.cifar10("train").images), data.cifar10("test").images
        smallest = min(side for image in (train[0], train[1], test[0]) for side in image.shape[1:])
        if not 2 <= self.size <= smallest:
            bad_value("size", self.size, f"from 2 to {smallest}")
        clean = _grid(test[0], self.size) if len(test) == 1 else _spread(test)
        object.__setattr__(self, "_train", train)
        object.__setattr__(self, "_clean", clean.float() / 255.0)

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Degraded and clean crops of update ``step``, flipped and turned at random."""
        check_sizes(size=size)
        generator = seeds.generator(self.seed, "restoration", self.task, step)
        clean = torch.stack([self._crop(generator) for _ in range(size)])
        return DEGRADATIONS[self.task](clean, generator), clean

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """160 crops with their degradation, always the same."""
        generator = seeds.generator(0, "restoration-test", self.task)
        yield DEGRADATIONS[self.task](self._clean, generator), self._clean

    def _crop(self, generator: torch.Generator) -> Tensor:
        def draw(below: int) -> int:
            return int(torch.randint(below, (), generator=generator))

        image = self._train[draw(len(self._train))]
        top, left = (draw(side - self.size + 1) for side in image.shape[1:])
        crop = image[:, top : top + self.size, left : left + self.size].float() / 255.0
        return torch.rot90(crop.flip(2) if draw(2) else crop, draw(4), (1, 2))


@dataclass(frozen=True)
class PairedRestoration:
    """Crops of pairs of photographs in ``train/input`` and ``train/target``; whole ones from ``test`` to test on.

    Attributes:
        name: folder below a data folder.
        seed: of photographs, crops, flips and turns.
        size: side of the crops.
    """

    name: str
    seed: int
    size: int = 256
    _train: PhotographPairs | None = field(init=False, repr=False)
    _test: PhotographPairs = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = [folder / self.name for folder in data_folders() if (folder / self.name).is_dir()]
        if not found:
            places = ", ".join(str(folder / self.name) for folder in data_folders())
            raise data.MissingDataError(f"{self.name} was not found; looked in: {places}")
        has_training = (found[0] / "train").is_dir()
        object.__setattr__(self, "_train", PhotographPairs(found[0] / "train") if has_training else None)
        object.__setattr__(self, "_test", PhotographPairs(found[0] / "test"))

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Degraded and clean crops of update ``step``, flipped and turned alike."""
        if self._train is None:
            raise data.MissingDataError(f"{self.name} has no folder train")
        generator = seeds.generator(self.seed, "paired-restoration", step)
        pairs = [self._crop(self._train, generator) for _ in range(size)]
        return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole photographs, one at a time."""
        for index in range(len(self._test)):
            degraded, clean = self._test[index]
            yield degraded[None].float() / 255.0, clean[None].float() / 255.0

    def _crop(self, pairs: PhotographPairs, generator: torch.Generator) -> Tensor:
        def draw(below: int) -> int:
            return int(torch.randint(below, (), generator=generator))

        both = torch.stack(pairs[draw(len(pairs))])
        if min(both.shape[2:]) < self.size:
            bad_value("size", self.size, f"at most the sides of the photographs, {tuple(both.shape[2:])}")
        top, left = (draw(side - self.size + 1) for side in both.shape[2:])
        crop = both[:, :, top : top + self.size, left : left + self.size].float() / 255.0
        return torch.rot90(crop.flip(3) if draw(2) else crop, draw(4), (2, 3))


def _spread(images: Tensor) -> Tensor:
    """160 images from everywhere: some copies of CIFAR-10 are sorted by class."""
    count = _TESTED[0] * _TESTED[1]
    return images[torch.arange(count) * len(images) // count]


def _grid(photograph: Tensor, size: int) -> Tensor:
    """160 crops spread evenly over a photograph."""
    rows, columns = (
        [(side - size) * place // (count - 1) for place in range(count)]
        for side, count in zip(photograph.shape[1:], _TESTED, strict=True)
    )
    return torch.stack([photograph[:, r : r + size, c : c + size] for r in rows for c in columns])
