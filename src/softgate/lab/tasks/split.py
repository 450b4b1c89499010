"""A data set small enough to be one batch, divided into training and test rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError
from softgate.lab import seeds

__all__ = ["Split", "divide"]


class Split(NamedTuple):
    """Training and test rows.

    Attributes:
        train: inputs (N, F) and labels (N,) to train on.
        test: inputs and labels to test on.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def divide(inputs: Tensor, labels: Tensor, fraction: float, seed: int) -> Split:
    """Give a random ``fraction`` of the rows to training and the rest to testing."""
    if not 0.0 < fraction < 1.0:
        raise ArgumentValueError(f"fraction must be in (0, 1), got {fraction!r}")
    order = torch.randperm(len(labels), generator=seeds.generator(seed, "split"))
    count = int(fraction * len(labels))
    train, test = order[:count], order[count:]
    return Split((inputs[train], labels[train]), (inputs[test], labels[test]))
