"""The experts' layer as the formula says it: plain torch, for every transform and every dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from softgate._math import masks
from softgate.routing.expert_ffn.activations import activate


def moe_ffn_reference(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    activation: str = "swiglu",
) -> Tensor:
    """``y_t = Σ_i w_ti FFN_i(x_t)``, every expert computed for every token and kept where it was chosen.

    Arguments and result of :func:`softgate.routing.moe_ffn`.
    """
    x, gate_up, down = masks.cast_for_autocast(x, gate_up, down)
    with masks.without_autocast(x):
        wide = masks.accumulation_dtype(x.dtype)
        y = torch.zeros(x.shape, dtype=wide, device=x.device)
        for expert in range(gate_up.shape[0]):
            chosen = indices == expert
            weight = torch.where(chosen, weights.to(wide), 0.0).sum(-1, keepdim=True)
            # what an expert was not chosen for must not reach it: NaN there would spoil the gradients of its weights
            here = chosen.any(-1, keepdim=True)
            row = torch.where(here, x, 0.0)
            h = functional.linear(row, gate_up[expert], _of(gate_up_bias, expert, x.dtype))
            out = functional.linear(activate(activation, h), down[expert], _of(down_bias, expert, x.dtype))
            y = y + torch.where(here, weight * out.to(wide), 0.0)
        return y.to(x.dtype)


def _of(bias: Tensor | None, expert: int, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias[expert].to(dtype)
