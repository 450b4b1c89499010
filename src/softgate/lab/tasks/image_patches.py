"""Image classification for small vision models: batches as a pure function of a stream name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from softgate.errors import ArgumentValueError, check_choice
from softgate.lab import data, seeds

__all__ = ["ImageClassification"]

_LOADERS: dict[str, Callable[..., data.ImageSet]] = {
    "mnist": data.mnist,
    "fashion-mnist": data.fashion_mnist,
    "cifar10": data.cifar10,
}


@dataclass(frozen=True)
class ImageClassification:
    """Normalised images of a real data set; training batches are drawn with replacement.

    Nothing is augmented.

    Attributes:
        dataset: ``"mnist"``, ``"fashion-mnist"`` or ``"cifar10"``.
        seed: of all training batches.
        download: the data may be downloaded if it is not on this machine.
        scaling: ``"standard"`` gives every channel mean 0 and standard deviation 1 over the training images, ``"unit"``
            divides the pixels by 255.
        channels: of the images.
        size: height and width in pixels.
        classes: number of classes.
        note: what must be said beside a figure measured on these files; empty if nothing.
    """

    dataset: Literal["mnist", "fashion-mnist", "cifar10"]
    seed: int
    download: bool = False
    scaling: Literal["standard", "unit"] = "standard"
    channels: int = field(init=False)
    size: int = field(init=False)
    classes: int = field(init=False)
    note: str = field(init=False)
    _images: dict[str, Tensor] = field(init=False, repr=False)
    _labels: dict[str, Tensor] = field(init=False, repr=False)
    _mean: Tensor = field(init=False, repr=False)
    _std: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, tuple(_LOADERS))
        check_choice("scaling", self.scaling, ("standard", "unit"))
        sets = {split: _LOADERS[self.dataset](split, download=self.download) for split in ("train", "test")}
        images = {split: s.images[:, None] if s.images.ndim == 3 else s.images for split, s in sets.items()}
        train = images["train"]
        values = {
            "channels": train.shape[1],
            "size": train.shape[-1],
            "classes": len(sets["train"].classes),
            "note": sets["train"].note,
            "_images": images,
            "_labels": {split: s.labels for split, s in sets.items()},
            "_mean": torch.zeros(1, 1, 1),
            "_std": torch.full((1, 1, 1), 255.0),
        }
        if self.scaling == "standard":
            channels = [channel.double() for channel in train.unbind(1)]
            values["_mean"] = torch.stack([c.mean() for c in channels]).float()[:, None, None]
            values["_std"] = torch.stack([c.std() for c in channels]).float()[:, None, None]
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def batch(self, *stream: int | str, size: int) -> tuple[Tensor, Tensor]:
        """``size`` training images (B, channels, H, W) and labels (B,), the same for the same ``stream``."""
        generator = seeds.generator(self.seed, "image-classification", *stream)
        return self._take("train", torch.randint(len(self._labels["train"]), (size,), generator=generator))

    def test(self, size: int | None = None) -> tuple[Tensor, Tensor]:
        """``size`` test images spread evenly over the test set (all if None), the same at every call and seed."""
        total = len(self._labels["test"])
        if size is not None and not 1 <= size <= total:
            raise ArgumentValueError(f"size must be between 1 and {total}, got {size}")
        # Some copies are sorted by class, so the images are taken from everywhere.
        return self._take("test", torch.arange(total) if size is None else torch.arange(size) * total // size)

    def _take(self, split: str, index: Tensor) -> tuple[Tensor, Tensor]:
        return (self._images[split][index].float() - self._mean) / self._std, self._labels[split][index]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, chunk: int = 500) -> float:
    """Share of ``images`` whose largest logit is at the label, computed ``chunk`` images at a time."""
    hits = sum(
        int((model(x).argmax(-1) == y).sum()) for x, y in zip(images.split(chunk), labels.split(chunk), strict=True)
    )
    return hits / len(labels)
