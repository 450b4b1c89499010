"""Mixing along two axes: closed forms, what sees what, linearity in size, and the gated blocks made of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.models import (
    RCAB,
    RDCAB,
    AxisGatedMLP,
    ChannelAttention,
    CrossGatingBlock,
    MultiAxisGatedMLP,
    SpatialGate,
    SupervisedAttention,
    axis_mix,
)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def looped(x: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int], axis: str) -> Tensor:
    """The definition, pixel by pixel."""
    result, (_, height, width, _) = torch.zeros_like(x), x.shape
    cell = size if axis == "block" else (height // size[0], width // size[1])
    for i in range(height):
        for j in range(width):
            (gi, ri), (gj, rj) = divmod(i, cell[0]), divmod(j, cell[1])
            row = ri * size[1] + rj if axis == "block" else gi * size[1] + gj
            for p in range(size[0]):
                for q in range(size[1]):
                    place = (
                        (gi * cell[0] + p, gj * cell[1] + q)
                        if axis == "block"
                        else (p * cell[0] + ri, q * cell[1] + rj)
                    )
                    result[:, i, j] += weight[row, p * size[1] + q] * x[:, place[0], place[1]]
            result[:, i, j] += bias[row]
    return result


@pytest.mark.parametrize("axis", ["block", "grid"])
def test_the_definition_pixel_by_pixel(axis) -> None:
    x, weight, bias = draw(2, 4, 9, 2), draw(6, 6), draw(6)
    torch.testing.assert_close(axis_mix(x, weight, bias, size=(2, 3), axis=axis), looped(x, weight, bias, (2, 3), axis))


def test_a_window_or_a_grid_over_the_whole_map_are_the_same() -> None:
    x, weight = draw(1, 4, 6, 3), draw(24, 24)
    block, grid = (axis_mix(x, weight, size=(4, 6), axis=axis) for axis in ("block", "grid"))
    assert torch.equal(block, grid)
    torch.testing.assert_close(block.flatten(1, 2), weight @ x.flatten(1, 2))


def test_each_axis_commutes_with_what_it_does_not_mix() -> None:
    x, weight = draw(1, 6, 8, 2), draw(4, 4)

    def rolled(y: Tensor, rows: int, columns: int, axis: str) -> Tensor:
        """Windows moved among each other, or offsets inside all cells."""
        cells = y.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)) if axis == "block" else (
            y.unflatten(2, (2, -1)).unflatten(1, (2, -1)))  # fmt: skip
        return cells.roll((rows, columns), (1, 3) if axis == "block" else (2, 4)).reshape(y.shape)

    for axis, other in (("block", "grid"), ("grid", "block")):
        mixed = axis_mix(x, weight, size=(2, 2), axis=axis)
        moved = axis_mix(rolled(x, 1, 1, axis), weight, size=(2, 2), axis=axis)
        torch.testing.assert_close(moved, rolled(mixed, 1, 1, axis))
        wrong = axis_mix(rolled(x, 1, 1, other), weight, size=(2, 2), axis=axis)
        assert float((wrong - rolled(mixed, 1, 1, other)).abs().max()) > 0.1


def seen(block: torch.nn.Module, shape: tuple[int, int], pixel: tuple[int, int]) -> Tensor:
    """Which pixels of the input change one pixel of the output."""
    x = draw(1, 4, *shape).requires_grad_()
    block.double()(x)[0, :, pixel[0], pixel[1]].sum().backward()
    return x.grad[0].abs().sum(0) > 0


def test_what_a_pixel_sees() -> None:
    window = torch.zeros(8, 12, dtype=torch.bool)
    window[4:8, 3:6] = True
    assert torch.equal(seen(AxisGatedMLP(4, (4, 3), "block"), (8, 12), (5, 4)), window)
    grid = torch.zeros(8, 12, dtype=torch.bool)
    grid[1::2, 1::4] = True  # cells of 2 × 4 pixels
    assert torch.equal(seen(AxisGatedMLP(4, (4, 3), "grid"), (8, 12), (5, 5)), grid)
    both = seen(MultiAxisGatedMLP(4, (4, 3), (4, 3)), (8, 12), (5, 5))
    window = torch.zeros(8, 12, dtype=torch.bool)
    window[4:8, 3:6] = True
    assert torch.equal(both, window | grid)


def test_without_mixing_the_gate_is_one() -> None:
    block = AxisGatedMLP(4, (2, 2), "grid").double()
    torch.nn.init.zeros_(block.mix.weight)
    x = draw(1, 4, 4, 6)
    x_BHWC = x.permute(0, 2, 3, 1)
    u = F.gelu(block.w_in(block.norm(x_BHWC)), approximate="tanh")[..., :4]
    torch.testing.assert_close(block(x), (x_BHWC + block.w_out(u)).permute(0, 3, 1, 2))


def test_cross_gating_by_its_formula_and_with_the_roles_changed() -> None:
    block = CrossGatingBlock(4, block=(2, 2), grid=(2, 3)).double()
    x, y = draw(2, 4, 4, 6), draw(2, 4, 4, 6)

    def last(z: Tensor) -> Tensor:
        return z.permute(0, 2, 3, 1)

    sx, sy = block.project_x(last(x)), block.project_y(last(y))
    hx = F.gelu(block.w_in_x(block.norm_x(sx)), approximate="tanh")
    hy = F.gelu(block.w_in_y(block.norm_y(sy)), approximate="tanh")
    y_out = block.w_out_y(hy * last(block.gate_x(hx.permute(0, 3, 1, 2)))) + sy
    x_out = block.w_out_x(hx * last(block.gate_y(hy.permute(0, 3, 1, 2)))) + y_out + sx
    found = block(x, y)
    torch.testing.assert_close(found, (x_out.permute(0, 3, 1, 2), y_out.permute(0, 3, 1, 2)))
    other = CrossGatingBlock(4, block=(2, 2), grid=(2, 3)).double()
    turned = {"x": "y", "y": "x"}
    parts = [(name, name[:-1] + turned[name[-1]]) for name, _ in block.named_children() if name != "up"]
    for name, partner in parts:
        getattr(other, partner).load_state_dict(getattr(block, name).state_dict())
    swapped_x, swapped_y = other(y, x)
    # what is gated first is a summand of the other result: x and y are not treated alike
    torch.testing.assert_close(swapped_y, found[0] - found[1])
    torch.testing.assert_close(swapped_x, found[0])


def test_spatial_gates_start_near_a_constant() -> None:
    gate = SpatialGate(8)
    assert float(gate.grid.bias.detach().min()) == 1.0 and 0.015 < float(gate.block.weight.detach().std()) < 0.025
    std = float(gate.w_out.weight.detach().std())
    assert abs(std * 16**0.5 - 1) < 0.25  # LeCun


def test_gradients_of_a_block() -> None:
    block = MultiAxisGatedMLP(2, (2, 1), (1, 2)).double()
    x = draw(1, 2, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(block, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(block, x)


def test_memory_formats_and_16_bits_agree() -> None:
    block, x = MultiAxisGatedMLP(8, (4, 4), (2, 2)), torch.randn(2, 8, 8, 12)
    plain = block(x)
    turned = block(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(turned, plain)
    assert turned.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(block.bfloat16()(x.bfloat16()).float(), plain, rtol=2e-2, atol=2e-2)


def test_channel_attention_by_hand() -> None:
    layer, x = ChannelAttention(4, 2).double(), draw(2, 4, 3, 5)
    hidden = torch.relu(x.mean((2, 3)) @ layer.squeeze.weight.T + layer.squeeze.bias)
    scale = torch.sigmoid(hidden @ layer.excite.weight.T + layer.excite.bias)
    torch.testing.assert_close(layer(x), x * scale[:, :, None, None])


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: AxisGatedMLP(4, 2, "block"), TypeError, "size"),
        (lambda: AxisGatedMLP(4, (2, 2), "rows"), ValueError, "axis"),
        (lambda: AxisGatedMLP(4, (2, 2), "grid")(torch.ones(1, 4, 3, 4)), ValueError, "multiples"),
        (lambda: AxisGatedMLP(4, (8, 8), "grid")(torch.ones(1, 4, 4, 4)), ValueError, "multiples"),
        (lambda: AxisGatedMLP(4, (2, 2), "grid")(torch.ones(1, 3, 4, 4)), ValueError, "x must"),
        (lambda: MultiAxisGatedMLP(3, expansion=1), ValueError, "expansion"),
        (lambda: MultiAxisGatedMLP(4, (2, 0)), ValueError, "block"),
        (lambda: SpatialGate(4, (2, 2), (2, 4))(torch.ones(1, 4, 4, 6)), ValueError, "multiples"),
        (lambda: CrossGatingBlock(4)(torch.ones(1, 4, 16, 16), torch.ones(1, 4, 8, 8)), ValueError, "y must"),
        (lambda: CrossGatingBlock(4)(torch.ones(1, 4, 16, 16), torch.ones(1, 3, 16, 16)), ValueError, "y must"),
        (lambda: CrossGatingBlock(4, upsample=True)(torch.ones(2, 4, 16, 16), torch.ones(1, 4, 8, 8)), ValueError, "y"),
        (lambda: ChannelAttention(2), ValueError, "reduction"),
        (lambda: RCAB(4)(torch.ones(1, 4, 4)), ValueError, "x must"),
        (lambda: RDCAB(4)(torch.ones(1, 4, 4, 4).long()), TypeError, "x must"),
        (lambda: SupervisedAttention(4)(torch.ones(1, 4, 4, 4), torch.ones(1, 3, 2, 2)), ValueError, "image"),
    ],
    ids=range(15),
)
def test_bad_arguments(make, error, word) -> None:
    with pytest.raises(error, match=word):
        make()
