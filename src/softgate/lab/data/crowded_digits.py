"""Scenes of handwritten digits that hide behind each other: detection that a small network learns in a minute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softgate._checks import check_sizes
from softgate.errors import ArgumentValueError, check_choice
from softgate.lab import seeds
from softgate.lab.data.images import mnist

__all__ = ["DetectionScenes", "crowded_digits"]

SPLITS = ("train", "val", "test")
#: Training digits are those before it, validation digits the rest of MNIST's training set.
_FIRST_VALIDATION = 50_000
_INK = 30
_SHIFT_X, _SHIFT_Y = 14, 6
_LARGEST_OVERLAP, _TRIES = 0.75, 20
_CLUSTERS = (2, 4)
_NOISE = 0.05

Glyphs = NDArray[np.uint8]
Corners = tuple[int, int, int, int]


@dataclass(frozen=True)
class DetectionScenes:
    """Images with the boxes of their objects.

    Attributes:
        images: (n, 1, size, size), values near [0, 1].
        boxes: of each image (objects, 4), corners in pixels.
        labels: of each image (objects,) int64, the digits.
    """

    images: Tensor
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.images)


def crowded_digits(
    split: str,
    n: int,
    seed: int = 0,
    *,
    size: int = 96,
    cluster: tuple[int, int] = (2, 3),
    one_label: bool = False,
    download: bool = False,
) -> DetectionScenes:
    """Scenes with two to four clusters of MNIST digits.

    The first digit of a cluster lies anywhere, each next one at most 14 pixels to the side of and 6 above or below the
    one before, and overlaps no placed box by more than 0.75 (it is left out after 20 tries). Digits are cut at their
    ink and laid over each other by the larger grey value; then comes normal noise of 0.05.

    Args:
        split: ``"train"`` (the first 50,000 training digits), ``"val"`` (the other 10,000) or ``"test"``.
        n: number of scenes.
        seed: of everything that is drawn.
        size: side of a scene in pixels, at least 32.
        cluster: fewest and most digits of a cluster; (1, 1) gives sparse scenes.
        one_label: the digits of a cluster are of one kind, so that neighbours of one class compete.
        download: MNIST may be downloaded if it is not on this machine.

    Returns:
        Images, boxes and labels.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a number or the split is not allowed.
        MissingDataError: MNIST is not on this machine.

    Source: this library's own stand-in for photographs of crowds.
    """
    check_choice("split", split, SPLITS)
    check_sizes(n=n, size=size, **{"cluster[0]": cluster[0], "cluster[1]": cluster[1]})
    if size < 32 or cluster[0] > cluster[1]:
        raise ArgumentValueError(f"size must be at least 32 and cluster a range, got {size} and {cluster}")
    digits = mnist("test" if split == "test" else "train", download=download)
    part = {"train": slice(0, _FIRST_VALIDATION), "val": slice(_FIRST_VALIDATION, None), "test": slice(None)}[split]
    glyphs, labels = digits.images[part].numpy(), digits.labels[part].numpy()
    by_label = [np.flatnonzero(labels == digit) for digit in range(10)]
    random = np.random.default_rng(seeds.derive(seed, "crowded-digits", split))
    images, boxes, kinds = [], [], []
    for _ in range(n):
        scene = _Scene(random, size)
        for _ in range(int(random.integers(_CLUSTERS[0], _CLUSTERS[1] + 1))):
            among = by_label[random.integers(10)] if one_label else None
            chosen = random.integers(len(glyphs), size=int(random.integers(cluster[0], cluster[1] + 1)))
            rows = chosen if among is None else among[chosen % len(among)]
            scene.add_cluster([(glyphs[row], int(labels[row])) for row in rows])
        images.append(torch.from_numpy(scene.finished()).float())
        boxes.append(torch.tensor(scene.boxes, dtype=torch.float32).reshape(-1, 4))
        kinds.append(torch.tensor(scene.labels, dtype=torch.int64))
    return DetectionScenes(torch.stack(images)[:, None], tuple(boxes), tuple(kinds))


class _Scene:
    """A scene while digits are placed in it."""

    def __init__(self, random: np.random.Generator, size: int) -> None:
        self.random, self.size = random, size
        self.pixels = np.zeros((size, size))
        self.boxes: list[Corners] = []
        self.labels: list[int] = []

    def add_cluster(self, digits: list[tuple[Glyphs, int]]) -> None:
        """Place ``digits`` next to each other; one that finds no place is left out."""
        before: tuple[int, int] | None = None
        for glyph, label in digits:
            cut = _cut(glyph)
            for _ in range(_TRIES):
                x, y = self._somewhere(before, cut.shape)
                box = (x, y, x + cut.shape[1], y + cut.shape[0])
                if all(_iou(box, other) <= _LARGEST_OVERLAP for other in self.boxes):
                    break
            else:
                continue
            before = (x, y)
            place = self.pixels[y : box[3], x : box[2]]
            np.maximum(place, cut / 255.0, out=place)
            self.boxes.append(box)
            self.labels.append(label)

    def _somewhere(self, before: tuple[int, int] | None, shape: tuple[int, ...]) -> tuple[int, int]:
        most_x, most_y = self.size - shape[1], self.size - shape[0]
        if before is None:
            return int(self.random.integers(most_x + 1)), int(self.random.integers(most_y + 1))
        x = before[0] + int(self.random.integers(-_SHIFT_X, _SHIFT_X + 1))
        y = before[1] + int(self.random.integers(-_SHIFT_Y, _SHIFT_Y + 1))
        return min(max(x, 0), most_x), min(max(y, 0), most_y)

    def finished(self) -> NDArray[np.float64]:
        """The picture with noise."""
        return self.pixels + _NOISE * self.random.standard_normal(self.pixels.shape)


def _cut(glyph: Glyphs) -> Glyphs:
    """The part of a digit that has ink."""
    ink = glyph > _INK
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _iou(a: Corners, b: Corners) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)
