"""Spiking neurons with their gradient written out: only the input is kept, and the membrane computed once more.

Shape suffixes: T steps, N everything else.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from softgate._math import masks
from softgate._math.double_backward import differentiable_gradients
from softgate.activations.spiking.reference import Neuron, lif_reference, slope_of
from softgate.dispatch import is_batched_gradient, transform_reason

__all__: list[str] = []

#: Spikes, and the membrane after the last step in the dtype that it is computed in.
Pair = tuple[Tensor, Tensor]


class Passes(Protocol):
    """The two passes over the data, by whatever computes them."""

    def forward(self, x_TN: Tensor, state: Tensor | None, neuron: Neuron) -> Pair:
        """Spikes and last membrane."""

    def backward(
        self, x_TN: Tensor, state: Tensor | None, neuron: Neuron, grad_TN: Tensor, grad_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the input and of the first membrane."""


class TorchPasses:
    """See :class:`Passes`."""

    def forward(self, x_TN: Tensor, state: Tensor | None, neuron: Neuron) -> Pair:
        """One step after the other, nothing kept."""
        dtype = masks.accumulation_dtype(x_TN.dtype)
        s_TN = torch.empty_like(x_TN)
        v_N = _first(x_TN, state, dtype)
        for x_N, s_N in zip(x_TN, s_TN, strict=True):
            u_N = _charged(v_N, x_N.to(dtype), neuron)
            fired_N = u_N >= neuron.v_threshold
            s_N.copy_(fired_N)
            v_N = _after(u_N, fired_N, neuron)
        return s_TN, v_N

    def backward(
        self, x_TN: Tensor, state: Tensor | None, neuron: Neuron, grad_TN: Tensor, grad_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Backpropagation through time."""
        dtype = masks.accumulation_dtype(x_TN.dtype)
        u_TN, v_N = [], _first(x_TN, state, dtype)
        for x_N in x_TN:
            u_TN.append(_charged(v_N, x_N.to(dtype), neuron))
            v_N = _after(u_TN[-1], u_TN[-1] >= neuron.v_threshold, neuron)
        grad_x_TN, gv_N = torch.empty_like(x_TN), grad_state
        for t in range(len(u_TN) - 1, -1, -1):
            u_N = u_TN.pop()
            finite_N = u_N.isfinite()
            slope_N = torch.where(finite_N, slope_of(u_N - neuron.v_threshold, neuron), 0.0)
            to_spike_N = grad_TN[t].to(dtype)
            kept_N = gv_N
            if neuron.reset == "hard":
                kept_N = gv_N.masked_fill(u_N >= neuron.v_threshold, 0.0)
            if not neuron.detach_reset:
                taken = torch.where(finite_N, u_N, 0.0) if neuron.reset == "hard" else neuron.v_threshold
                to_spike_N = to_spike_N - gv_N * taken
            gu_N = torch.addcmul(kept_N, to_spike_N, slope_N)
            grad_x_TN[t] = neuron.gain * gu_N
            gv_N = neuron.decay * gu_N
        return grad_x_TN, gv_N


def _first(x_TN: Tensor, state: Tensor | None, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(x_TN[0], dtype=dtype) if state is None else state.to(dtype)


def _charged(v_N: Tensor, x_N: Tensor, neuron: Neuron) -> Tensor:
    return neuron.decay * v_N + neuron.gain * x_N  # rounded as the reference is


def _after(u_N: Tensor, fired_N: Tensor, neuron: Neuron) -> Tensor:
    if neuron.reset == "hard":
        return u_N.masked_fill(fired_N, 0.0)
    return u_N - neuron.v_threshold * fired_N.to(u_N.dtype)


class _Spiking(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TN: Tensor, state: Tensor | None, neuron: Neuron, passes: Passes) -> Pair:
        ctx.save_for_backward(x_TN, state)
        ctx.neuron, ctx.passes = neuron, passes
        return passes.forward(x_TN, state, neuron)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x_TN, state), (grad_TN, grad_state) = ctx.saved_tensors, grads
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or transform_reason(x_TN, *grads) is not None or is_batched_gradient(grad_TN):
            found = _again(ctx.neuron, x_TN, state, wanted, grad_TN, grad_state)
        else:
            grad_x_TN, grad_first = ctx.passes.backward(x_TN, state, ctx.neuron, grad_TN, grad_state)
            found = (grad_x_TN, None if state is None else grad_first.to(state.dtype))
        return *(g if need else None for g, need in zip(found, wanted, strict=True)), None, None


def _again(
    neuron: Neuron, x_TN: Tensor, state: Tensor | None, wanted: Any, grad_TN: Tensor, grad_state: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: those of the reference, whose two results make one."""

    def joined(x_TN: Tensor, state: Tensor | None) -> Tensor:
        s_TN, v_N = lif_reference(x_TN, **neuron._asdict(), state=state, return_state=True)
        return torch.cat((s_TN.to(v_N.dtype), v_N.unsqueeze(0)))

    grad = torch.cat((grad_TN.to(grad_state.dtype), grad_state.unsqueeze(0)))
    return differentiable_gradients(joined, (x_TN, state), wanted, grad)


def run(
    passes: Passes,
    x_TN: Tensor,
    tau: float | None = 2.0,
    v_threshold: float = 1.0,
    *,
    state: Tensor | None = None,
    return_state: bool = False,
    **options: Any,
) -> Tensor | Pair:
    """The neurons by ``passes``, with a graph where one is wanted."""
    neuron = Neuron(tau, v_threshold, **options)
    given = [t for t in (x_TN, state) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        s_TN, v_N = _Spiking.apply(x_TN, state, neuron, passes)  # type: ignore[no-untyped-call]
    else:
        s_TN, v_N = passes.forward(x_TN, state, neuron)
    return (s_TN, v_N) if return_state else s_TN
