"""Gated MLPs that mix pixels along the block axis, the grid axis, or both at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from softgate._checks import check_sizes
from softgate._math.gelu import tanh_gelu
from softgate.errors import bad_value, check_choice
from softgate.models.multi_axis.layers import EPS, check_map, first, last, small_normal
from softgate.models.multi_axis.mixing import AXES, Axis, axis_first, axis_last, check_size, in_cells, mix_positions

__all__ = ["AxisGatedMLP", "MultiAxisGatedMLP"]


class AxisGatedMLP(nn.Module):
    """Gated MLP along one axis: ``x + W_out(u * (M LN(v) + 1))`` with ``u, v`` the halves of ``gelu(W_in LN x)``.

    M mixes the pixels of a window (``axis="block"``) or the pixels at one place of all cells (``axis="grid"``), see
    :func:`softgate.models.axis_mix`; all channels share it.

    Args:
        channels: of the map.
        size: rows and columns of a window, or of the grid.
        axis: ``"block"`` or ``"grid"``.

    Shapes: (B, channels, H, W), H and W multiples of ``size`` -> the same. ``channels_last`` memory saves copies.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed, or the map does not fit.

    Example:
        >>> AxisGatedMLP(8, (4, 4), "grid")(torch.rand(1, 8, 8, 12)).shape
        torch.Size([1, 8, 8, 12])

    Paper: MAXIM, arXiv 2201.02973, section 3.2; gMLP, arXiv 2105.08050.
    """

    def __init__(self, channels: int, size: Sequence[int], axis: Axis) -> None:
        super().__init__()
        check_sizes(channels=channels)
        check_choice("axis", axis, AXES)
        self.channels, self.size, self.axis = channels, check_size("size", size), axis
        positions = self.size[0] * self.size[1]
        self.norm, self.gate_norm = nn.LayerNorm(channels, EPS), nn.LayerNorm(channels, EPS)
        self.w_in, self.w_out = nn.Linear(channels, 2 * channels), nn.Linear(channels, channels)
        self.mix = nn.Linear(positions, positions)
        small_normal(self.w_in, self.w_out, self.mix)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` plus the block."""
        check_map("x", x, self.channels)
        check_divisible("x", x, self.size)
        x_BHWC = last(x)
        u, v = tanh_gelu(self.w_in(self.norm(x_BHWC))).chunk(2, -1)
        # The norm writes v with the positions first: what the product needs, without a copy of its own.
        v = self.gate_norm(axis_first(v, self.size, self.axis))
        gate = mix_positions(v, self.mix.weight, self.mix.bias + 1.0)
        gated = in_cells(u, self.size, self.axis) * axis_last(gate, self.axis)
        return first(x_BHWC + self.w_out(gated.reshape(x_BHWC.shape)))


class MultiAxisGatedMLP(nn.Module):
    """Multi-axis gated MLP: half of the channels is mixed across the grid, the other half inside windows.

    ``x + W_out concat(grid(a), block(b))`` with ``a, b`` the halves of ``gelu(W_in LN x)``: global and local mixing
    whose cost is linear in the number of pixels.

    Args:
        channels: of the map.
        block: rows and columns of a window.
        grid: rows and columns of the grid.
        expansion: the branches have ``channels * expansion / 2`` channels each.

    Shapes: (B, channels, H, W), H and W multiples of ``block`` and of ``grid`` -> the same.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed, or the map does not fit.

    Example:
        >>> MultiAxisGatedMLP(8, block=(4, 4), grid=(2, 2))(torch.rand(1, 8, 8, 12)).shape
        torch.Size([1, 8, 8, 12])

    Paper: MAXIM, arXiv 2201.02973, section 3.2, figure 3.
    """

    def __init__(
        self, channels: int, block: Sequence[int] = (16, 16), grid: Sequence[int] = (16, 16), expansion: int = 2
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, expansion=expansion)
        if channels * expansion % 2:
            bad_value("expansion", expansion, f"even for an odd number of channels, {channels}")
        width = channels * expansion
        self.channels = channels
        self.norm = nn.LayerNorm(channels, EPS)
        self.w_in, self.w_out = nn.Linear(channels, width), nn.Linear(width, channels)
        self.grid = AxisGatedMLP(width // 2, check_size("grid", grid), "grid")
        self.block = AxisGatedMLP(width // 2, check_size("block", block), "block")
        small_normal(self.w_in, self.w_out)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` plus the block."""
        check_map("x", x, self.channels)
        x_BHWC = last(x)
        across, inside = first(tanh_gelu(self.w_in(self.norm(x_BHWC)))).chunk(2, 1)
        mixed = torch.cat((last(self.grid(across)), last(self.block(inside))), -1)
        return first(x_BHWC + self.w_out(mixed))


def check_divisible(name: str, x: Tensor, size: tuple[int, int]) -> None:
    """Refuse maps whose sides are no multiples of ``size``."""
    if x.shape[2] % size[0] or x.shape[3] % size[1]:
        bad_value(name, tuple(x.shape), f"a map whose sides are multiples of {size[0]} and {size[1]}")
