"""Calls of the C++ attention kernels (``native/attention.hpp``), without autograd.

A :class:`Plan` says what is computed, :class:`Inputs` hold the tensors. :func:`forward` returns the output and what the
gradient needs besides (a few numbers per row, never a matrix over the keys), :func:`backward` the gradients.

Shape suffixes: B batch, H query heads, G key/value heads, T queries, S keys, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from softgate import native
from softgate._math import masks

Weights = Literal["softmax", "sigmoid", "clipped", "softplus", "reweighted"]

#: Weight map -> its number in the kernels, and how many numbers per row it keeps for the gradient.
_WEIGHTS: dict[str, tuple[int, int]] = {
    "softmax": (0, 2),
    "sigmoid": (1, 0),
    "clipped": (2, 2),
    "softplus": (3, 1),
    "reweighted": (4, 4),
}
_GATES = {"sigmoid": 1, "ns_sigmoid": 2}


@dataclass(frozen=True)
class Plan:
    """What is computed.

    Attributes:
        weights: how scores become weights.
        scale: factor of the scores.
        is_causal: query i sees key j where j <= i + S - T.
        window: how many keys a query sees, as a number or (left, right); None for all.
        gamma: lower end of ``clipped``.
        zeta: upper end of ``clipped``.
        power: exponent of ``reweighted``, at least 1.
        gate: activation of the gate's logits, None if there is no gate.
    """

    weights: Weights
    scale: float
    is_causal: bool = False
    window: masks.Window | None = None
    gamma: float = 0.0
    zeta: float = 1.0
    power: int = 1
    gate: str | None = None


class Inputs(NamedTuple):
    """The tensors of a call: float32, (B, H, T, D), (B, G, S, D), (B, G, S, Dv), with any strides.

    Attributes:
        query: (B, H, T, D).
        key: (B, G, S, D).
        value: (B, G, S, Dv).
        mask: bool or float32, broadcastable to (B, H, T, S).
        head_bias: (B, H), added to the scores of ``sigmoid``.
        slopes: (B, H), ALiBi: ``-slope * |i + S - T - j|`` is added to the scores.
        row_scale: (B, H, T), a factor of each row of scores.
        counts: (B, H, T), N of ``reweighted``.
        offset: (B, H, T), o of ``reweighted``.
        gate: broadcastable to (B, H, T, Dv).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    head_bias: Tensor | None = None
    slopes: Tensor | None = None
    row_scale: Tensor | None = None
    counts: Tensor | None = None
    offset: Tensor | None = None
    gate: Tensor | None = None


class Kept(NamedTuple):
    """What :func:`forward` keeps for :func:`backward`: numbers per row (B, H, T) and a second output, or none."""

    rows: tuple[Tensor, ...]
    second: Tensor | None


def forward(plan: Plan, inputs: Inputs, keep: bool) -> tuple[Tensor, Kept]:
    """Output (B, H, T, Dv), and what the gradient needs if ``keep``."""
    call, alive = _prepare(plan, inputs)
    output_BHTD = inputs.query.new_empty((*inputs.query.shape[:-1], inputs.value.shape[-1]))
    rows = tuple(
        inputs.query.new_empty(inputs.query.shape[:-1]) for _ in range(_WEIGHTS[plan.weights][1] if keep else 0)
    )
    second = torch.empty_like(output_BHTD) if keep and plan.weights in ("clipped", "reweighted") else None
    call.output(output_BHTD.data_ptr())
    for number, row in enumerate(rows):
        call.row(number, row.data_ptr())
    if second is not None:
        call.second(second.data_ptr())
    native.kernels().attend(call)
    del alive
    return output_BHTD, Kept(rows, second)


class Gradients(NamedTuple):
    """Gradients of query, key, value and, for ``sigmoid``, of the bias of each batch entry's heads (B, H)."""

    query: Tensor
    key: Tensor
    value: Tensor
    head_bias: Tensor


def backward(plan: Plan, inputs: Inputs, grad_BHTD: Tensor, delta_BHT: Tensor, kept: Kept) -> Gradients:
    """Gradients for the gradient of the ungated output; ``delta_BHT`` from :func:`row_delta`."""
    call, alive = _prepare(plan, inputs)
    call.grad_output(_operand(grad_BHTD))
    for number, row in enumerate(kept.rows):
        call.row(number, row.data_ptr())
    delta_BHT = delta_BHT.contiguous()
    call.delta(delta_BHT.data_ptr())
    if plan.weights == "reweighted":
        assert kept.second is not None and inputs.offset is not None
        along = (grad_BHTD * kept.second).sum(-1) - delta_BHT * kept.rows[3]
        extra_BHT = (plan.power * inputs.offset * along).contiguous()
        call.extra(extra_BHT.data_ptr())
    grads = Gradients(
        torch.zeros(inputs.query.shape),  # added to, chunk of keys by chunk
        torch.empty(inputs.key.shape),
        torch.empty(inputs.value.shape),
        torch.zeros(inputs.query.shape[:2], dtype=torch.float64),
    )
    call.grad_query(grads.query.data_ptr())
    call.grad_key(grads.key.data_ptr())
    call.grad_value(grads.value.data_ptr())
    if plan.weights == "sigmoid":
        call.grad_bias(grads.head_bias.data_ptr())
    native.kernels().attend_backward(call)
    del alive
    return grads


def row_delta(plan: Plan, grad_BHTD: Tensor, output_BHTD: Tensor, kept: Kept) -> Tensor:
    """What a row's score gradients have in common, (B, H, T): the output's part of the normalisation."""
    if plan.weights == "clipped":
        assert kept.second is not None
        return (grad_BHTD * kept.second).sum(-1) * (plan.zeta - plan.gamma)
    return (grad_BHTD * output_BHTD).sum(-1)


def count_keys(plan: Plan, inputs: Inputs) -> Tensor:
    """How many keys each query sees after causality, window and mask, (B, H, T), without a matrix over them."""
    call, alive = _prepare(plan, inputs)
    counts_BHT = inputs.query.new_empty(inputs.query.shape[:-1])
    call.row(0, counts_BHT.data_ptr())
    native.kernels().count_keys(call)
    del alive
    return counts_BHT


def _prepare(plan: Plan, inputs: Inputs) -> tuple[Any, list[Tensor]]:
    """The call's description, and the tensors it points into: they must outlive the call."""
    call, alive = native.kernels().Attention(), []
    batch, heads, queries, dim = inputs.query.shape
    groups, keys, features = inputs.value.shape[1:]
    call.sizes((batch, heads, groups, queries, keys, dim, features))
    call.query(_operand(inputs.query))
    call.key(_operand(inputs.key))
    call.value(_operand(inputs.value))
    call.weights(_WEIGHTS[plan.weights][0])
    call.scale, call.gamma, call.zeta, call.power = plan.scale, plan.gamma, plan.zeta, plan.power
    left, right = masks.window_bounds(plan.window, plan.is_causal)
    call.left = -1 if left is None else left
    call.right = 0 if plan.is_causal else -1 if right is None else right
    call.threads = torch.get_num_threads()
    if inputs.mask is not None:
        mask = inputs.mask.expand(batch, heads, queries, keys)
        call.mask(_operand(mask), mask.dtype is torch.bool)
    for name in ("slopes", "head_bias", "row_scale", "counts", "offset"):
        tensor = getattr(inputs, name)
        if tensor is not None:
            alive.append(tensor.contiguous())
            getattr(call, name)(alive[-1].data_ptr())
    if inputs.gate is not None and plan.gate is not None:
        call.gate(_operand(inputs.gate.expand(batch, heads, queries, features)), _GATES[plan.gate])
    return call, alive


def _operand(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.data_ptr(), *tensor.stride())
