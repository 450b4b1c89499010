"""Images in four parts: to train on, to choose with, to calibrate with, to report on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.errors import ArgumentValueError, check_choice
from softgate.lab import data, seeds

__all__ = ["ExitImages", "exit_images"]

_LOADERS = {"mnist": data.mnist, "cifar10": data.cifar10}
PARTS = ("train", "validation", "calibration", "test")


@dataclass(frozen=True)
class ExitImages:
    """Normalised images and labels of a classification task.

    Attributes:
        parts: name of :data:`PARTS` -> images (N, channels, side, side) and labels (N,).
        seed: of the batches.
        channels: of the images.
        classes: number of classes.
        note: what must be said beside a figure measured on these files; empty if nothing.
    """

    parts: Mapping[str, tuple[Tensor, Tensor]]
    seed: int
    channels: int
    classes: int
    note: str = ""

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """``size`` training images drawn with replacement, each mirrored or not where they have colours."""
        images, labels = self.parts["train"]
        generator = seeds.generator(self.seed, "exit-images", step)
        rows = torch.randint(len(labels), (size,), generator=generator)
        picked = images[rows]
        if self.channels == 3:
            mirrored = torch.rand(size, generator=generator) < 0.5
            picked = torch.where(mirrored[:, None, None, None], picked.flip(-1), picked)
        return picked, labels[rows]


def exit_images(
    dataset: str, seed: int, sizes: Mapping[str, int], *, side: int | None = None, download: bool = False
) -> ExitImages:
    """Load and divide a data set.

    Args:
        dataset: ``"mnist"`` or ``"cifar10"``.
        seed: of the division; the test images are spread evenly over the official test set and are the same for all.
        sizes: how many images each of :data:`PARTS` gets.
        side: height and width that the images are averaged (or enlarged) to; their own if None.
        download: the data may be downloaded.

    Returns:
        :class:`ExitImages`, every channel with mean 0 and deviation 1 over the training part.
    """
    check_choice("dataset", dataset, tuple(_LOADERS))
    train, test = (_LOADERS[dataset](split, download=download) for split in ("train", "test"))
    wanted = [sizes[part] for part in PARTS[:-1]]
    if sum(wanted) > len(train) or sizes["test"] > len(test):
        raise ArgumentValueError(f"sizes must fit {len(train)} training and {len(test)} test images, got {dict(sizes)}")
    order = torch.randperm(len(train), generator=seeds.generator(seed, "exit-images", "division"))
    rows = dict(zip(PARTS, order[: sum(wanted)].split(wanted), strict=False))
    found = {part: (_resized(train.images[chosen], side), train.labels[chosen]) for part, chosen in rows.items()}
    spread = torch.arange(sizes["test"]) * len(test) // sizes["test"]
    found["test"] = (_resized(test.images[spread], side), test.labels[spread])
    images = found["train"][0]
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    parts = {part: ((x - mean) / std, y) for part, (x, y) in found.items()}
    return ExitImages(parts, seed, images.shape[1], len(train.classes), train.note)


def _resized(images: Tensor, side: int | None) -> Tensor:
    floats = (images if images.ndim == 4 else images[:, None]).float() / 255.0
    if side is None or side == floats.shape[-1]:
        return floats
    mode = "area" if side < floats.shape[-1] else "bilinear"
    return torch.cat([F.interpolate(part, (side, side), mode=mode) for part in floats.split(1000)])
