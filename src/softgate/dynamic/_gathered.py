"""Convolutions that compute only the filters that a sample needs, from only the channels that it has."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: How a layer may run: gather filters and channels, gather filters only, or compute all and pick.
PLANS = ("both", "rows", "dense")
#: Numbers of filters are filled up to multiples of this, for which vectorised convolutions are made; each new number
#: also costs the time to compile one.
_ROUND = 16


class Compact(NamedTuple):
    """Some channels of one sample, the others being zero.

    Attributes:
        x: (1, k, H, W), the channels.
        which: (k,) int64, their places; ``channels`` for one that only fills up and is zero.
        channels: how many there are in all.
    """

    x: Tensor
    which: Tensor
    channels: int

    def spread(self) -> Tensor:
        """(1, channels, H, W), zeros included."""
        full = self.x.new_zeros(1, self.channels + 1, *self.x.shape[2:])
        return full.index_copy_(1, self.which, self.x)[:, : self.channels]

    def spread_vector(self, vector: Tensor) -> Tensor:
        """(1, channels), zeros included, for one number a channel that is here, (1, k)."""
        full = vector.new_zeros(1, self.channels + 1)
        return full.index_copy_(1, self.which, vector)[:, : self.channels]

    def added_to(self, other: Tensor) -> Tensor:
        """``other + self``, touching only these channels; ``other`` is (1, channels, H, W)."""
        real = self.which < self.channels
        if bool(real.all()):
            return other.index_add(1, self.which, self.x)
        return other.index_add(1, self.which[real], self.x[:, real])


class Folded(NamedTuple):
    """A convolution with its batch normalisation folded in, and a filter of zeros at the end.

    Attributes:
        weight: (C_out + 1, C_in, kh, kw), or (C_out + 1, 1, kh, kw) for a depthwise convolution.
        bias: (C_out + 1,).
        rounds: whether filters may be filled up: the activation maps 0 to 0.
    """

    weight: Tensor
    bias: Tensor
    rounds: bool


def source_tensors(conv: nn.Conv2d, bn: nn.Module | None) -> list[Tensor]:
    """All tensors that a folded convolution is made of."""
    found: list[Any] = [conv.weight, conv.bias]
    if bn is not None:
        found += [bn.weight, bn.bias, bn.running_mean, bn.running_var]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


@torch.no_grad()
def fold(conv: nn.Conv2d, bn: nn.Module | None, act: nn.Module | None) -> Folded:
    """Fold ``bn`` into ``conv``; computed in float64, which costs nothing and rounds once."""
    weight = conv.weight.double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()
    if isinstance(bn, nn.modules.batchnorm._BatchNorm):
        assert bn.running_mean is not None and bn.running_var is not None
        scale = (bn.running_var.double() + bn.eps).rsqrt()
        if bn.weight is not None:
            scale = scale * bn.weight.double()
        bias = (bias - bn.running_mean.double()) * scale
        if bn.bias is not None:
            bias = bias + bn.bias.double()
        weight = weight * scale[:, None, None, None]
    weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, 1))
    dtype = conv.weight.dtype
    zero = bias.new_zeros(1, 1, 1, 1).to(dtype)
    return Folded(weight.to(dtype), F.pad(bias, (0, 1)).to(dtype), act is None or bool((act(zero) == 0).all()))


def filled_up(index: Tensor, channels: int) -> Tensor:
    """``index`` with the place of the zero filter added up to a round number, unless that takes more than all."""
    more = -len(index) % _ROUND
    if more == 0 or len(index) + more > channels:
        return index
    return F.pad(index, (0, more), value=channels)


def no_filters(conv: nn.Conv2d, state: Tensor | Compact) -> Compact:
    """What is handed on where no filter is needed: a channel that only fills up, since none at all is refused."""
    x = (state.x if isinstance(state, Compact) else state)[:, :1]
    sized = _convolve(conv, x, x.new_zeros(1, 1, *conv.kernel_size), x.new_zeros(1))
    which = torch.full((1,), conv.out_channels, device=x.device)
    return Compact(torch.zeros_like(sized), which, conv.out_channels)


def run_filters(conv: nn.Conv2d, folded: Folded, state: Tensor | Compact, index: Tensor, plan: str) -> Compact:
    """Filters ``index`` of a folded ``conv`` on one sample, before the activation.

    Args:
        conv: gives stride, padding and dilation.
        folded: its weights.
        state: (1, C_in, H, W), or some channels of it.
        index: filters to compute, at least one.
        plan: one of :data:`PLANS`.
    """
    channels = conv.out_channels
    x = state.x if isinstance(state, Compact) and plan == "both" and conv.groups == 1 else _full(state)
    if plan == "dense" and conv.groups == 1:
        y = _convolve(conv, x, folded.weight[:channels], folded.bias[:channels])
        return Compact(y if len(index) == channels else y.index_select(1, index), index, channels)
    weight, bias = folded.weight.index_select(0, index), folded.bias.index_select(0, index)
    if conv.groups > 1:
        return Compact(_convolve(conv, x.index_select(1, index), weight, bias, len(index)), index, channels)
    if isinstance(state, Compact) and plan == "both":
        # what only fills up is zero: any channel's weights do for it
        weight = weight.index_select(1, state.which.clamp_max(conv.in_channels - 1))
    return Compact(_convolve(conv, x, weight, bias), index, channels)


def _full(state: Tensor | Compact) -> Tensor:
    return state.spread() if isinstance(state, Compact) else state


def _convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor, groups: int = 1) -> Tensor:
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, groups)
