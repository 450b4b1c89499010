"""All states of a diagonal linear recurrence, with few passes over memory and an explicit backward scan."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softgate._math.recurrence import doubling_scan
from softgate.dispatch import transform_reason

#: Entries per token from which a plain walk over the tokens is faster than walking over blocks side by side.
_WIDE = 16384


def linear_scan(decay: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """States h_i = decay_i ⊙ h_{i-1} + x_i along dimension 0, from h_0 = ``initial``.

    The gradient is the same recurrence backwards, g_i = dh_i + decay_{i+1} ⊙ g_{i+1}, so nothing but decays and states
    is kept. Differentiable any number of times; under transforms it is :func:`doubling_scan`.

    Args:
        decay: (T, …), broadcastable to ``x``.
        x: (T, …).
        initial: (…).
    """
    if transform_reason(decay, x, initial) is not None:
        return doubling_scan(decay, x, initial)
    result: Tensor = _LinearScan.apply(decay.expand_as(x), x, initial.expand_as(x[0]))
    return result


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, x: Tensor, initial: Tensor) -> Tensor:
        states = _scan(decay, x, initial)
        ctx.save_for_backward(decay, initial, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, initial, states = ctx.saved_tensors
        # In reversed order, token i is multiplied by the decay of token i + 1; the last token has no follower.
        following = torch.cat((decay[1:], torch.zeros_like(decay[:1]))).flip(0)
        scan = linear_scan if torch.is_grad_enabled() else _scan
        grad_x = scan(following, grads[0].flip(0), torch.zeros_like(initial)).flip(0)
        before = torch.cat((initial[None], states[:-1]))
        return grad_x * before, grad_x, grad_x[0] * decay[0]


def _scan(decay: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """Walk through blocks of about √T tokens side by side, then carry the blocks' last states through."""
    length = x.shape[0]
    block = length if x[0].numel() >= _WIDE else math.isqrt(length - 1) + 1
    count = -(-length // block)
    if count == 1:
        return _walk(decay, x, initial)
    missing = count * block - length
    if missing:  # tokens that change nothing
        decay = torch.cat((decay, decay.new_ones(missing, *decay.shape[1:])))
        x = torch.cat((x, x.new_zeros(missing, *x.shape[1:])))
    # reshape, not unflatten: batched gradients (vmap over backward) know only the former
    decay_CK, x_CK = (t.reshape(count, block, *t.shape[1:]).transpose(0, 1) for t in (decay, x))
    states_CK = _walk(decay_CK, x_CK, torch.zeros_like(x_CK[0]))
    kept_CK = decay_CK.cumprod(0)
    start_K = _walk(kept_CK[-1, :-1], states_CK[-1, :-1], initial)
    states_CK[:, 1:].addcmul_(kept_CK[:, 1:], start_K)
    states_CK[:, 0].addcmul_(kept_CK[:, 0], initial)
    return states_CK.transpose(0, 1).reshape(count * block, *x.shape[1:]).narrow(0, 0, length)


def _walk(decay: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    states = [initial]
    for token in range(x.shape[0]):
        states.append(torch.addcmul(x[token], decay[token], states[-1]))
    return torch.stack(states[1:])
