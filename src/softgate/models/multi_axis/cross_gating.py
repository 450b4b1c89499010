"""Two maps that gate each other: the part that stands in for cross-attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from softgate._checks import check_sizes
from softgate._math.gelu import tanh_gelu
from softgate.errors import ArgumentValueError
from softgate.models.multi_axis.gated_mlp import check_divisible
from softgate.models.multi_axis.layers import EPS, check_map, first, last, lecun_normal, small_normal
from softgate.models.multi_axis.mixing import check_size, mix_axis

__all__ = ["CrossGatingBlock", "SpatialGate"]


class SpatialGate(nn.Module):
    """Weights for another map: ``W_out concat(M_grid u, M_block v)`` with ``u, v`` the halves of ``gelu(W_in LN x)``.

    Args:
        channels: of the map.
        block: rows and columns of a window.
        grid: rows and columns of the grid.

    Shapes: (B, channels, H, W), H and W multiples of ``block`` and of ``grid`` -> the same.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed, or the map does not fit.

    Example:
        >>> SpatialGate(8, block=(4, 4), grid=(2, 2))(torch.rand(1, 8, 8, 12)).shape
        torch.Size([1, 8, 8, 12])

    Paper: MAXIM, arXiv 2201.02973, section 3.3.
    """

    def __init__(self, channels: int, block: Sequence[int] = (16, 16), grid: Sequence[int] = (16, 16)) -> None:
        super().__init__()
        check_sizes(channels=channels)
        self.channels = channels
        self.block_size, self.grid_size = check_size("block", block), check_size("grid", grid)
        self.norm = nn.LayerNorm(channels, EPS)
        self.w_in, self.w_out = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.grid, self.block = (nn.Linear(h * w, h * w) for h, w in (self.grid_size, self.block_size))
        lecun_normal(self.w_in, self.w_out)
        small_normal(self.grid, self.block, bias=1.0)  # the gates start near 1

    def forward(self, x: Tensor) -> Tensor:
        """The weights that ``x`` gives to another map."""
        check_map("x", x, self.channels)
        check_divisible("x", x, self.grid_size)
        check_divisible("x", x, self.block_size)
        x_BHWC = last(x)
        u, v = tanh_gelu(self.w_in(self.norm(x_BHWC))).chunk(2, -1)
        across = mix_axis(u, self.grid.weight, self.grid.bias, self.grid_size, "grid")
        inside = mix_axis(v, self.block.weight, self.block.bias, self.block_size, "block")
        return first(self.w_out(torch.cat((across, inside), -1)))


class CrossGatingBlock(nn.Module):
    """Two maps are brought to one width and gated by spatial weights made from each other.

    With ``x' = gelu(W LN x)`` and ``y' = gelu(W LN y)``: ``y_out = W(y' * gate(x')) + y`` and
    ``x_out = W(x' * gate(y')) + y_out + x``.

    Args:
        channels: of both results.
        in_x: channels of ``x``; ``channels`` if None.
        in_y: channels of ``y``; ``channels`` if None.
        block: rows and columns of a window.
        grid: rows and columns of the grid.
        upsample: ``y`` has half the sides of ``x`` and is brought to its size by a transposed convolution.

    Shapes: x (B, in_x, H, W), y (B, in_y, H, W) or half of it -> two maps (B, channels, H, W).

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed, or the maps do not fit.

    Example:
        >>> block = CrossGatingBlock(8, in_y=4, block=(4, 4), grid=(2, 2), upsample=True)
        >>> x, y = block(torch.rand(1, 8, 8, 12), torch.rand(1, 4, 4, 6))
        >>> x.shape, y.shape
        (torch.Size([1, 8, 8, 12]), torch.Size([1, 8, 8, 12]))

    Paper: MAXIM, arXiv 2201.02973, section 3.3, figure 4.
    """

    def __init__(
        self,
        channels: int,
        in_x: int | None = None,
        in_y: int | None = None,
        *,
        block: Sequence[int] = (16, 16),
        grid: Sequence[int] = (16, 16),
        upsample: bool = False,
    ) -> None:
        super().__init__()
        in_x, in_y = channels if in_x is None else in_x, channels if in_y is None else in_y
        check_sizes(channels=channels, in_x=in_x, in_y=in_y)
        self.in_x, self.in_y = in_x, in_y
        self.up = nn.ConvTranspose2d(in_y, channels, 2, 2) if upsample else None
        self.project_x, self.project_y = nn.Linear(in_x, channels), nn.Linear(channels if upsample else in_y, channels)
        self.norm_x, self.norm_y = nn.LayerNorm(channels, EPS), nn.LayerNorm(channels, EPS)
        self.w_in_x, self.w_in_y = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.gate_x, self.gate_y = (SpatialGate(channels, block, grid) for _ in range(2))
        self.w_out_x, self.w_out_y = nn.Linear(channels, channels), nn.Linear(channels, channels)
        linears = (self.project_x, self.project_y, self.w_in_x, self.w_in_y, self.w_out_x, self.w_out_y)
        lecun_normal(*linears, *(() if self.up is None else (self.up,)))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` gated by ``y``, and ``y`` gated by ``x``."""
        check_map("x", x, self.in_x)
        check_map("y", y, self.in_y)
        times = 1 if self.up is None else 2
        if [times * side for side in y.shape[2:]] != list(x.shape[2:]) or len(x) != len(y):
            raise ArgumentValueError(
                f"y must have the batch and {'half ' if times == 2 else ''}the sides of x, {tuple(x.shape)}, got "
                f"{tuple(y.shape)}"
            )
        if self.up is not None:
            y = self.up(y)
        x_BHWC, y_BHWC = self.project_x(last(x)), self.project_y(last(y))
        hidden_x, hidden_y = tanh_gelu(self.w_in_x(self.norm_x(x_BHWC))), tanh_gelu(self.w_in_y(self.norm_y(y_BHWC)))
        from_x, from_y = last(self.gate_x(first(hidden_x))), last(self.gate_y(first(hidden_y)))
        y_out = self.w_out_y(hidden_y * from_x) + y_BHWC
        x_out = self.w_out_x(hidden_x * from_y) + y_out + x_BHWC
        return first(x_out), first(y_out)
