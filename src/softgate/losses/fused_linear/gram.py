"""The Z-loss of a linear layer without any logits: it needs their sum, their sum of squares and the target's.

With ``C = W^T W``, ``q = rowsum((X C) * X)`` and ``s = X W^T 1``: 4 V d^2 operations with the backward pass, where the
logits alone cost 2 N V d. Ordinary torch operations, so every transform works.

Shape suffixes: N rows, V classes, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._math.masks import without_autocast
from softgate.errors import bad_value
from softgate.losses.fused_linear.settings import Settings
from softgate.losses.z_score import z_loss_from_stats

__all__: list[str] = []

#: What :func:`softgate.losses.z_loss` adds to the standard deviation of the logits.
EPS = 1e-12


def check(return_lse: Any, return_accuracy: Any, process_group: Any) -> None:
    """Raise where a sweep over the logits, or another process's classes, would be needed."""
    for name, value in (("return_lse", return_lse), ("return_accuracy", return_accuracy)):
        if value:
            bad_value(name, value, "False with loss='zloss', which computes no logits")
    if process_group is not None:
        bad_value("process_group", process_group, "None with loss='zloss'")


def z_loss_rows(
    x_ND: Tensor,
    weight_VD: Tensor,
    y_N: Tensor,
    keep_N: Tensor,
    bias_V: Tensor | None,
    class_weight_V: Tensor | None,
    settings: Settings,
) -> Tensor:
    """Z-loss of every row, 0 where ``keep`` is False, in the wide dtype."""
    with without_autocast(x_ND):  # a variance taken from sums of squares does not survive products in 16 bits
        dtype = settings.wide(torch.promote_types(x_ND.dtype, weight_VD.dtype))
        x_ND, w_VD = torch.where(keep_N[:, None], x_ND, 0.0).to(dtype), weight_VD.to(dtype)
        y_N = torch.where(keep_N, y_N, 0)
        a_N = (w_VD[y_N] * x_ND).sum(1)
        q_N = ((x_ND @ (w_VD.t() @ w_VD)) * x_ND).sum(1)
        s_N = x_ND @ w_VD.sum(0)
        if bias_V is not None:
            b_V = bias_V.to(dtype)
            a_N = a_N + b_V[y_N]
            q_N = q_N + 2.0 * (x_ND @ (w_VD.t() @ b_V)) + b_V.square().sum()
            s_N = s_N + b_V.sum()
        # dividing all logits by T changes nothing but the weight of eps
        eps = EPS * settings.temperature
        rows_N = z_loss_from_stats(a_N, q_N, s_N, weight_VD.shape[0], reduction="none", eps=eps)
        if class_weight_V is not None:
            rows_N = rows_N * class_weight_V.to(dtype)[y_N]
        return torch.where(keep_N, rows_N, 0.0)
