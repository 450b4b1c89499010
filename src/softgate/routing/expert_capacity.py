"""Dropping what is beyond an expert's capacity, as Switch and GShard do."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["within_capacity"]


def within_capacity(indices: Tensor, weights: Tensor, n_experts: int, limit: int) -> Tensor:
    """Keep for every expert the ``limit`` assignments with the largest weights; the others become "no expert".

    Args:
        indices: (T, K) int64 in [0, E].
        weights: (T, K).
        n_experts: E.
        limit: how many assignments an expert takes, at least 0.

    Returns:
        (T, K); dropped entries hold E. Of equal weights the earlier token stays.

    Example:
        >>> import torch
        >>> within_capacity(torch.tensor([[0], [0]]), torch.tensor([[0.1], [0.9]]), 2, 1).flatten()
        tensor([2, 0])

    Paper: Switch Transformers, arXiv 2101.03961, eq. (3).
    """
    flat = indices.reshape(-1)
    by_weight = torch.sort(weights.detach().reshape(-1), descending=True, stable=True).indices
    sorted_experts, order = torch.sort(flat[by_weight], stable=True)
    first = torch.searchsorted(sorted_experts, torch.arange(n_experts + 1, device=flat.device))
    rank = torch.arange(flat.numel(), device=flat.device) - first[sorted_experts]
    kept = torch.where(rank < limit, sorted_experts, n_experts)
    return torch.empty_like(flat).scatter(0, by_weight[order], kept).view(indices.shape)
