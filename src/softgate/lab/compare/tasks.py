"""Batches of a data set as pure functions of seed and step, and its held-out parts, the same for every variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError
from softgate.lab import seeds
from softgate.lab.compare.dataset import TEST, TRAIN, VALIDATION, Dataset, Kind, spread
from softgate.lab.compare.sizes import Size
from softgate.lab.tasks.character_lm import CharacterLM

__all__ = ["Shape", "Task", "make_task"]

_FEWEST_WINDOWS = 4


@dataclass(frozen=True)
class Shape:
    """What a network must know about the data.

    Attributes:
        kind: of the data.
        classes: number of classes, or of tokens.
        inputs: (length,) of a text, (channels, height, width) of images, (features,) of a table.
    """

    kind: Kind
    classes: int
    inputs: tuple[int, ...]


class Task(Protocol):
    """Data to train and test on.

    Attributes:
        shape: what a network must know.
        validation: inputs and targets of the part that learning rates are chosen on.
        test: inputs and targets of the part that the table is measured on.
    """

    shape: Shape
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of update ``step``; the seed is that of the task."""


def make_task(data: Dataset, size: Size, seed: int) -> Task:
    """The task of ``data`` with the batches of ``seed``."""
    return _TextTask(data, size, seed) if data.kind == "text" else _RowTask(data, size, seed)


class _TextTask:
    """Next-byte prediction: the last tenth is held out, its first half for validation and its second for the test."""

    def __init__(self, data: Dataset, size: Size, seed: int) -> None:
        length, content = size.model["length"], data.arrays["bytes"].tobytes()
        held_out = len(content) // 10
        available = held_out // (2 * length)
        if available < _FEWEST_WINDOWS:
            raise ArgumentValueError(
                f"--text: {data.name} holds {len(content)} bytes, at least {20 * _FEWEST_WINDOWS * length} are needed "
                f"for sequences of {length} (a tenth is held out); give a longer text"
            )
        # one character per byte, whatever the encoding
        self._text = CharacterLM(content.decode("latin-1"), seed, length)
        self._size = size.batch
        self.shape = Shape("text", self._text.vocabulary, (length,))
        tokens, targets = self._text.segments(length, 2 * available * length)
        first = torch.from_numpy(spread(available, size.curve))
        second = available + torch.from_numpy(spread(available, size.tested))
        self.validation = tokens[first], targets[first]
        self.test = tokens[second], targets[second]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self._text.batch("train", step, size=self._size)


class _RowTask:
    """Classification of images or table rows, scaled by mean and deviation of the training rows."""

    def __init__(self, data: Dataset, size: Size, seed: int) -> None:
        part = torch.from_numpy(data.arrays["part"])
        labels = torch.from_numpy(data.arrays["labels"])
        inputs = _images(data, part) if data.kind == "images" else _features(data, part)
        rows = {name: (part == name).nonzero()[:, 0] for name in (TRAIN, VALIDATION, TEST)}
        self._inputs, self._labels, self._rows = inputs[rows[TRAIN]], labels[rows[TRAIN]], len(rows[TRAIN])
        self._seed, self._size = seed, min(size.batch, len(rows[TRAIN]))
        self.shape = Shape(data.kind, len(data.classes), tuple(inputs.shape[1:]))
        validation = rows[VALIDATION][spread(len(rows[VALIDATION]), size.curve)]
        test = rows[TEST][spread(len(rows[TEST]), size.tested)]
        self.validation = inputs[validation], labels[validation]
        self.test = inputs[test], labels[test]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = seeds.generator(self._seed, "compare", "train", step)
        index = torch.randint(self._rows, (self._size,), generator=generator)
        return self._inputs[index], self._labels[index]


def _images(data: Dataset, part: Tensor) -> Tensor:
    images = torch.from_numpy(data.arrays["images"]).float()
    train = images[part == TRAIN]
    mean, std = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    return (images - mean) / std.clamp_min(1.0)


def _features(data: Dataset, part: Tensor) -> Tensor:
    """Numbers standardised; one-hot columns as they are; a column that never changes becomes 0."""
    features = torch.from_numpy(data.arrays["features"]).double()
    train = features[part == TRAIN]
    std = train.std(0)
    scaled = (features - train.mean(0)) / torch.where(std > 0, std, 1.0)
    return torch.where(torch.from_numpy(data.arrays["numeric"]), scaled, features).float()
