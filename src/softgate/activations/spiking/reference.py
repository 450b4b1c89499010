"""Spiking neurons in plain torch operations, step by step; their gradient is a surrogate's.

Shape suffixes: T steps, N everything else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softgate._math import masks

__all__: list[str] = []

RESETS = ("hard", "soft")
SURROGATES = ("sigmoid", "atan")


class Neuron(NamedTuple):
    """The numbers of a neuron; see :func:`softgate.activations.lif`."""

    tau: float | None = 2.0
    v_threshold: float = 1.0
    reset: str = "hard"
    surrogate: str = "sigmoid"
    alpha: float = 4.0
    detach_reset: bool = True

    @property
    def decay(self) -> float:
        """What a step keeps of the membrane."""
        return 1.0 if self.tau is None else 1.0 - 1.0 / self.tau

    @property
    def gain(self) -> float:
        """What a step takes of the input."""
        return 1.0 if self.tau is None else 1.0 / self.tau


def smooth_spike(excess: Tensor, neuron: Neuron) -> Tensor:
    """The function whose derivative stands for that of the step, of ``u - v_threshold``."""
    if neuron.surrogate == "sigmoid":
        return torch.sigmoid(neuron.alpha * excess)
    return torch.atan(0.5 * math.pi * neuron.alpha * excess) / math.pi


def slope_of(excess: Tensor, neuron: Neuron) -> Tensor:
    """Derivative of :func:`smooth_spike`."""
    if neuron.surrogate == "sigmoid":
        decayed = torch.exp(-neuron.alpha * excess.abs())
        return neuron.alpha * decayed / (1.0 + decayed).square()
    return 0.5 * neuron.alpha / (1.0 + (0.5 * math.pi * neuron.alpha * excess).square())


def lif_reference(
    x_TN: Tensor,
    tau: float | None = 2.0,
    v_threshold: float = 1.0,
    *,
    reset: str = "hard",
    surrogate: str = "sigmoid",
    alpha: float = 4.0,
    detach_reset: bool = True,
    state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``u = decay v + gain x; s = [u >= v_threshold]; v = u (1 - s)`` for every step, in float32 at least.

    A spike is the step plus a difference that is always 0 and whose derivative is that of the smooth function.
    """
    neuron = Neuron(tau, v_threshold, reset, surrogate, alpha, detach_reset)
    with masks.without_autocast(x_TN):
        dtype = masks.accumulation_dtype(x_TN.dtype)
        v_N = torch.zeros_like(x_TN[0], dtype=dtype) if state is None else state.to(dtype)
        spikes = []
        for x_N in x_TN.to(dtype).unbind(0):
            u_N = neuron.decay * v_N + neuron.gain * x_N
            fired_N = u_N >= v_threshold
            safe_N = torch.where(u_N.isfinite(), u_N, 0.0)  # where nothing depends on u, nor does a gradient
            smooth_N = smooth_spike(safe_N - v_threshold, neuron)
            nothing_N = smooth_N - smooth_N.detach()
            spikes.append((fired_N.to(dtype) + nothing_N).to(x_TN.dtype))
            if reset == "hard":
                v_N, taken_N = torch.where(fired_N, 0.0, u_N), safe_N
            else:
                v_N, taken_N = u_N - v_threshold * fired_N.to(dtype), torch.full_like(u_N, v_threshold)
            if not detach_reset:
                v_N = v_N - taken_N * nothing_N
        s_TN = torch.stack(spikes)
    return (s_TN, v_N) if return_state else s_TN
