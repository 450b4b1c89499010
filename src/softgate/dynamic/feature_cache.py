"""The features of a frozen backbone, computed once, and batches of them or of inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_sizes
from softgate.dynamic._state import count_rows, leaves, mapped, take
from softgate.dynamic.early_exit import EarlyExit, ExitFeatures
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type

__all__ = ["cache_features"]

#: Inputs (or features) with labels (N,), or an iterable of such pairs, batch by batch.
Data = tuple[Any, Tensor] | Iterable[tuple[Any, Tensor]]


def is_pair(data: Any) -> bool:
    """Whether ``data`` is (inputs or features, labels) rather than an iterable of batches."""
    return isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor) and data[1].ndim == 1


@torch.no_grad()
def cache_features(model: EarlyExit, data: Data, batch_size: int = 256) -> tuple[ExitFeatures, Tensor]:
    """Run the frozen backbone over ``data`` once; heads and gates then train on the result at next to no cost.

    Args:
        model: a network with exits and a frozen backbone.
        data: (inputs, labels), inputs batch-first, or an iterable of such pairs such as a ``DataLoader``.
        batch_size: rows of ``inputs`` at a time.

    Returns:
        Features of all samples and labels (N,), on the device of the model. They hold N times the widths of all exits.

    Raises:
        ArgumentTypeError: ``data`` is neither.
        ArgumentValueError: no samples.
        StateError: the backbone is not frozen, so that its features would change.

    Example:
        >>> from softgate.dynamic import EarlyExit
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        >>> model = EarlyExit.from_sequential(net, cuts=[2], example=torch.zeros(1, 8))
        >>> features, labels = cache_features(model, (torch.randn(10, 8), torch.zeros(10, dtype=torch.int64)))
        >>> [z.shape for z in features.pooled], features.final_logits.shape
        ([torch.Size([10, 4])], torch.Size([10, 3]))

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, training on a frozen
    backbone.
    """
    if not model.frozen:
        raise StateError("features can be cached only for a frozen backbone: EarlyExit(..., freeze=True)")
    check_sizes(batch_size=batch_size)
    device = next(model.parameters()).device
    parts, labels = [], []
    for x, y in _batches(data, batch_size):
        parts.append(model.features(_moved(x, device)))
        labels.append(y.to(device))
    if not parts:
        raise ArgumentValueError("data must hold at least one sample, got none")
    pooled = tuple(torch.cat(columns) for columns in zip(*(part.pooled for part in parts), strict=True))
    return ExitFeatures(pooled, torch.cat([part.final_logits for part in parts])), torch.cat(labels)


def _batches(data: Any, batch_size: int) -> Iterable[tuple[Any, Tensor]]:
    if not is_pair(data):
        if not isinstance(data, Iterable) or isinstance(data, Tensor | str):
            bad_type("data", data, "a pair (inputs, labels) or an iterable of such pairs")
        yield from data
        return
    x, y = data
    if count_rows(x, "inputs") != len(y):
        raise ArgumentValueError(f"inputs and labels must be as many, got {count_rows(x)} and {len(y)}")
    places = torch.arange(len(y))
    for rows in places.split(batch_size):
        yield take(x, rows.to(_device(x))), y[rows.to(y.device)]


def _device(x: Any) -> torch.device:
    return next(leaves(x)).device


def _moved(x: Any, device: torch.device) -> Any:
    return mapped(x, lambda tensor: tensor.to(device))


class FeatureSource:
    """Samples to train on, as features: cached, or computed from inputs whenever they are asked for.

    Args:
        model: the network with exits.
        data: (features, labels) of :func:`cache_features`, (inputs, labels), or an iterable of batches.
        cache: compute the features of all inputs now.
        batch_size: rows at a time.
    """

    def __init__(self, model: EarlyExit, data: Data, *, cache: bool, batch_size: int = 256) -> None:
        self.model = model
        pair: Any = data
        if not is_pair(data) and not cache:
            raise ArgumentTypeError("without cache_features, data must be a pair (inputs, labels) of tensors")
        if cache and not (is_pair(data) and isinstance(pair[0], ExitFeatures)):
            pair = cache_features(model, data, batch_size)
        self.x: Any = pair[0]
        self.y: Tensor = pair[1]
        self.cached = isinstance(self.x, ExitFeatures)

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, rows: Tensor) -> tuple[ExitFeatures, Tensor]:
        """Features and labels of the samples ``rows``."""
        y = self.y[rows.to(self.y.device)]
        if self.cached:
            places = rows.to(self.y.device)
            return ExitFeatures(tuple(z[places] for z in self.x.pooled), self.x.final_logits[places]), y
        device = next(self.model.parameters()).device
        return self.model.features(_moved(take(self.x, rows.to(_device(self.x))), device)), y.to(device)
