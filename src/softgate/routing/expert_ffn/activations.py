"""Nonlinearities of experts, with derivatives that write where they are told to.

A gated one takes h = [gate; up] and gives f(gate) ⊙ up, the others give f(h).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from softgate._math.masks import accumulation_dtype
from softgate.routing.expert_ffn import native_rows

_aten = torch.ops.aten


class Scalar(NamedTuple):
    """An elementwise function: as torch computes it, into ``out``, and its derivative times ``grad`` into ``out``."""

    function: Callable[[Tensor], Tensor]
    into: Callable[[Tensor, Tensor], object]
    backward: Callable[[Tensor, Tensor, Tensor], object]


def _relu2_backward(grad: Tensor, x: Tensor, out: Tensor) -> None:
    torch.clamp_min(x, 0.0, out=out)
    out.mul_(grad).mul_(2.0)


def _relu2_into(x: Tensor, out: Tensor) -> None:
    torch.clamp_min(x, 0.0, out=out)
    out.mul_(out)


def _gelu(approximate: str) -> Scalar:
    return Scalar(
        lambda x: functional.gelu(x, approximate=approximate),
        lambda x, out: _aten.gelu.out(x, approximate=approximate, out=out),
        lambda grad, x, out: _aten.gelu_backward.grad_input(grad, x, approximate=approximate, grad_input=out),
    )


_SILU = Scalar(
    functional.silu,
    lambda x, out: _aten.silu.out(x, out=out),
    lambda grad, x, out: _aten.silu_backward.grad_input(grad, x, grad_input=out),
)
_RELU = Scalar(
    functional.relu,
    lambda x, out: torch.clamp_min(x, 0.0, out=out),
    lambda grad, x, out: _aten.threshold_backward.grad_input(grad, x, 0.0, grad_input=out),
)
_RELU2 = Scalar(lambda x: functional.relu(x).square(), _relu2_into, _relu2_backward)
_GATED = {"swiglu": _SILU, "geglu": _gelu("none"), "geglu_tanh": _gelu("tanh"), "reglu": _RELU}
_PLAIN = {"silu": _SILU, "gelu": _gelu("none"), "gelu_tanh": _gelu("tanh"), "relu": _RELU, "relu2": _RELU2}
#: All names, the gated ones first.
NAMES = (*_GATED, *_PLAIN)


def is_gated(name: str) -> bool:
    """Whether the activation takes [gate; up], twice as many features as it gives."""
    return name in _GATED


def activate(name: str, h: Tensor) -> Tensor:
    """(…, H) -> (…, F), by ordinary differentiable operations."""
    if name in _GATED:
        gate, up = h.chunk(2, -1)
        return _GATED[name].function(gate) * up
    return _PLAIN[name].function(h)


def forward_into(name: str, h: Tensor, a: Tensor, spare: Tensor | None = None) -> None:
    """Write the activations of ``h`` (n, H) to ``a`` (n, F).

    ``spare`` (n, H) is what a backward pass will fill: f(gate) may wait for it in the upper half.
    """
    if name not in _GATED:
        _PLAIN[name].into(h, a)
        return
    if name == "swiglu" and spare is None and native_rows.suits(h, a):
        native_rows.swiglu(h, a)
        return
    gate, up = h.chunk(2, -1)
    inner = a if spare is None else spare.chunk(2, -1)[1]
    _GATED[name].into(gate, inner)
    torch.mul(inner, up, out=a)


def backward_into(name: str, h: Tensor, da: Tensor, w: Tensor, a: Tensor, dh: Tensor) -> Tensor:
    """From ``da``, the gradient of ``w`` times the activations: that of w, (n, 1), as wide as sums are.

    Args:
        name: the activation.
        h: (n, H).
        da: (n, F); it is used up.
        w: (n, 1), a factor for each row.
        a: (n, F), for ``w`` times the activations.
        dh: (n, H), for the gradient of ``h``.
    """
    if name == "swiglu" and native_rows.suits(h, da, a, dh):
        return native_rows.swiglu_backward(h, da, w[:, 0], a, dh)[:, None]
    forward_into(name, h, a, dh)
    wide = accumulation_dtype(a.dtype)
    dw = (da.to(wide) * a.to(wide)).sum(-1, keepdim=True)
    a.mul_(w)
    da.mul_(w)
    _slope_into(name, h, da, dh)
    return dw


def _slope_into(name: str, h: Tensor, da: Tensor, dh: Tensor) -> None:
    """Write the gradient of ``h`` to ``dh``, which :func:`forward_into` had as ``spare``."""
    if name not in _GATED:
        _PLAIN[name].backward(da, h, dh)
        return
    gate, up = h.chunk(2, -1)
    dgate, dup = dh.chunk(2, -1)
    dup.mul_(da)
    _GATED[name].backward(da.mul_(up), gate, dgate)
