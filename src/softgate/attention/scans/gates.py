"""Decays and input factors of gated recurrences, as logarithms where they are products.

Key identity: e^{-A softplus(x)} = σ(-x)^A, so the decay of a selective state space model is a reversed sigmoid to the
power A, and so is the forget gate of a reversed qLSTM.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Power of the RG-LRU's decay, and what its code adds under the root.
RGLRU_POWER = 8.0
RGLRU_EPS = 1e-6


def qlstm_log_decay(forget: Tensor, alpha: Tensor | None) -> Tensor:
    """Log σ(f), or with ``alpha`` the reversed log σ(-f)^relu(α)."""
    return F.logsigmoid(forget) if alpha is None else F.relu(alpha) * F.logsigmoid(-forget)


def rglru_log_decay(recurrence: Tensor, a: Tensor) -> Tensor:
    """-8 softplus(a) σ(r)."""
    return -RGLRU_POWER * F.softplus(a) * torch.sigmoid(recurrence)


def rglru_input_factor(log_decay: Tensor, input_gate: Tensor) -> Tensor:
    """sqrt(1 - Λ²) σ(i), with 1 - Λ² formed without cancellation."""
    return (-torch.expm1(2.0 * log_decay) + RGLRU_EPS).sqrt() * torch.sigmoid(input_gate)
