"""How the balancing bias evens out a skewed router, without any training."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate.routing._choice import check_count
from softgate.routing.sigmoid_bias import balanced_bias, loads, max_violation
from softgate.routing.top_k import topk_sigmoid

__all__ = ["simulate_balancing"]


def simulate_balancing(
    n_experts: int = 16,
    k: int = 2,
    *,
    tokens: int = 2048,
    steps: int = 600,
    rate: float = 1e-3,
    centre: bool = True,
    skew: float = 0.6,
    width: int = 16,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """MaxVio after each step of a fixed router on skewed inputs whose bias follows the load.

    Args:
        n_experts: E.
        k: experts per token.
        tokens: tokens per step, drawn anew: N(mean, 1) with one mean for all steps.
        steps: updates of the bias.
        rate: size of an update; 0 shows the router alone.
        centre: as in :func:`softgate.routing.balanced_bias`.
        skew: size of the mean, which makes the router prefer some experts.
        width: features of the inputs.
        seed: of router and inputs.

    Returns:
        MaxVio (steps,) before each update, and the last bias (E,).

    Example:
        >>> violation, _ = simulate_balancing(steps=3, rate=0.0)
        >>> violation.shape
        torch.Size([3])

    Paper: Auxiliary-Loss-Free Load Balancing, arXiv 2408.15664, section 3.
    """
    check_count("n_experts", n_experts)
    check_count("k", k, high=n_experts, what=", n_experts")
    for name, value in (("tokens", tokens), ("steps", steps), ("width", width)):
        check_count(name, value)
    check_number("rate", rate, low=0.0, high_open=True)
    check_number("skew", skew, low=0.0, high_open=True)
    generator = torch.Generator().manual_seed(seed)
    router = torch.randn(n_experts, width, generator=generator) / width**0.5
    mean = skew * torch.randn(width, generator=generator)
    bias, found = torch.zeros(n_experts), []
    for _ in range(steps):
        x = mean + torch.randn(tokens, width, generator=generator)
        load = loads(topk_sigmoid(x @ router.t(), k, bias)[1], n_experts)
        found.append(max_violation(load))
        bias = balanced_bias(bias, load, rate, centre=centre)
    return torch.stack(found), bias
