"""A plain multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from softgate.errors import ArgumentValueError, bad_type

__all__ = ["MLP"]


class MLP(nn.Module):
    """Linear layers with an activation between them; PyTorch's default initialisation.

    Args:
        widths: sizes from input to output, at least two, e.g. ``(226, 200, 200, 113)``.
        bias: give the layers biases. Without biases and with ReLU the network is homogeneous: scaling all weights of
            L layers by c scales the outputs by ``c**L``.
        activation: makes the module between two layers.
    """

    def __init__(
        self, widths: Sequence[int], *, bias: bool = True, activation: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        if isinstance(widths, str) or not isinstance(widths, Sequence):
            bad_type("widths", widths, "a sequence of ints")
        sizes: list[Any] = list(widths)
        if len(sizes) < 2 or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise ArgumentValueError(f"widths must be at least two positive ints, got {sizes!r}")
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(pairwise(sizes)):
            layers += [activation()] if index else []
            layers.append(nn.Linear(inputs, outputs, bias=bias))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(..., widths[-1])`` of ``x`` ``(..., widths[0])``."""
        output: Tensor = self.layers(x)
        return output
