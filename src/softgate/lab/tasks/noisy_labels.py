"""Small classification tables whose training labels may be wrong, and tables with very many classes."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate.lab import data, seeds
from softgate.lab.tasks.split import Split, divide

__all__ = ["digits", "gaussian_classes", "with_label_noise"]


def digits(seed: int, rows: int = 1200) -> Split:
    """The 8×8 digits that scikit-learn brings along, in [0, 1]: ``rows`` of 1,797 to train on.

    Args:
        seed: chooses the training rows.
        rows: their number.
    """
    table = data.bundled("digits")
    return divide(table.features.float() / 16.0, table.labels, rows / len(table), seed)


def gaussian_classes(seed: int, classes: int = 200, dim: int = 40, rows: int = 30, spread: float = 0.3) -> Split:
    """Gaussian clouds around random unit-variance centres: easy to tell apart, but many.

    Args:
        seed: draws centres and points.
        classes: number of clouds.
        dim: number of features.
        rows: points per class; two thirds of all are to train on.
        spread: standard deviation of a cloud in every feature, where the centres have 1.
    """
    stream = seeds.generator(seed, "gaussian-classes")
    centres = torch.randn(classes, dim, generator=stream)
    labels = torch.arange(classes).repeat(rows)
    points = centres[labels] + spread * torch.randn(len(labels), dim, generator=stream)
    return divide(points, labels, 2 / 3, seed)


def with_label_noise(split: Split, rate: float, seed: int) -> Split:
    """Replace a share of the training labels by labels drawn from all classes alike; test labels stay right.

    Args:
        split: the data; classes are counted from its labels.
        rate: probability that a label is drawn anew (and may come out right), in [0, 1].
        seed: of the draws.
    """
    check_number("rate", rate, low=0.0, high=1.0)
    inputs, labels = split.train
    stream = seeds.generator(seed, "label-noise")
    drawn = torch.randint(int(labels.max()) + 1, labels.shape, generator=stream)
    replaced: Tensor = torch.rand(labels.shape, generator=stream) < rate
    return split._replace(train=(inputs, torch.where(replaced, drawn, labels)))
