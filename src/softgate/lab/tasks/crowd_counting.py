"""Crowd counting: batches of images with density maps, and test images with counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from softgate._checks import check_sizes
from softgate.lab import seeds
from softgate.lab.data import Crowd, CrowdFolder, MissingDataError, density_map, synthetic_crowd
from softgate.lab.data.store import data_folders

__all__ = ["CrowdPhotographs", "CrowdTask", "SyntheticCrowds"]

#: Mean and standard deviation of the colours of ImageNet, which pretrained encoders expect.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Sides of training images are cut to multiples of it.
_STRIDE = 16


class CrowdTask(Protocol):
    """What a counter is trained and tested on."""

    @property
    def channels(self) -> int:
        """Channels of the images."""

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Images (size, channels, H, W) and densities (size, 1, H, W) of update ``step``."""

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Test images with their densities, in groups of one size."""


@dataclass(frozen=True)
class SyntheticCrowds:
    """Training and test sets of :func:`softgate.lab.data.synthetic_crowd`; batches go through shuffled epochs.

    Attributes:
        seed: of images and batches.
        training: number of training images.
        testing: number of test images.
        size: side of an image.
    """

    seed: int
    training: int = 384
    testing: int = 256
    size: int = 64
    _train: Crowd = field(init=False, repr=False)
    _test: Crowd = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_sizes(training=self.training, testing=self.testing)
        for name, count in (("_train", self.training), ("_test", self.testing)):
            crowd = synthetic_crowd(count, self.size, seeds.derive(self.seed, name))
            object.__setattr__(self, name, crowd)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return 1

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Images and densities of update ``step``; an epoch has ``training // size`` of them."""
        check_sizes(size=size)
        rows = _epoch_rows(self.seed, step, size, self.training)
        return self._train.images[rows], self._train.density[rows]

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Test images and densities, 64 at a time."""
        yield from zip(self._test.images.split(64), self._test.density.split(64), strict=True)


@dataclass(frozen=True)
class CrowdPhotographs:
    """Photographs in the layout of ShanghaiTech, normalised as for ImageNet and mirrored at random in training.

    Attributes:
        name: folder below a data folder, such as ``"shanghaitech/part_A_final"``.
        seed: of order, crops and mirroring.
        crop: side of the random crops; None for whole photographs, which take batches of one.
        sigma: of the Gaussians of the densities.
    """

    name: str
    seed: int
    crop: int | None = 128
    sigma: float = 4.0
    _train: CrowdFolder = field(init=False, repr=False)
    _test: CrowdFolder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        path = _found(self.name)
        for name, split in (("_train", "train"), ("_test", "test")):
            object.__setattr__(self, name, CrowdFolder(path, "shanghaitech", split))

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return 3

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Images and densities of update ``step``; sides of whole photographs are cut to multiples of 16."""
        check_sizes(size=size)
        generator = seeds.generator(self.seed, "crowd-photographs", step)
        rows = _epoch_rows(self.seed, step, size, len(self._train))
        pairs = [self._piece(int(row), generator) for row in rows]
        return torch.stack([image for image, _ in pairs]), torch.stack([density for _, density in pairs])

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole test photographs and densities, one at a time."""
        for index in range(len(self._test)):
            image, density = self._whole(self._test, index)
            yield image[None], density[None]

    def _whole(self, folder: CrowdFolder, index: int) -> tuple[Tensor, Tensor]:
        image, points = folder[index]
        mean, std = torch.tensor(_MEAN)[:, None, None], torch.tensor(_STD)[:, None, None]
        density = density_map(points, (image.shape[1], image.shape[2]), self.sigma)
        return (image.float() / 255.0 - mean) / std, density[None].float()

    def _piece(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        image, density = self._whole(self._train, index)
        sides = [side // _STRIDE * _STRIDE if self.crop is None else self.crop for side in image.shape[1:]]
        for axis, side in enumerate(sides, start=1):
            spare = image.shape[axis] - side
            start = int(torch.randint(spare + 1, (), generator=generator))
            image, density = image.narrow(axis, start, side), density.narrow(axis, start, side)
        if bool(torch.rand((), generator=generator) < 0.5):
            image, density = image.flip(-1), density.flip(-1)
        return image, density


def _found(name: str) -> Path:
    for folder in data_folders():
        if (folder / name).is_dir():
            return folder / name
    places = ", ".join(str(folder / name) for folder in data_folders())
    raise MissingDataError(f"{name} was not found; looked in: {places}. Its authors give it out for research.")


def _epoch_rows(seed: int, step: int, size: int, count: int) -> Tensor:
    """Rows of update ``step``: every epoch walks all rows in an order of its own, the rest of a batch left out."""
    epoch, place = divmod(step, max(1, count // size))
    order = torch.randperm(count, generator=seeds.generator(seed, "epoch", epoch))
    return order[place * size : (place + 1) * size]
