"""The fused linear losses as their formulas read, on logits that are held as a whole.

Shape suffixes: N rows, V classes, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softgate._math.compress import compress, exclusive_log_softmax
from softgate.losses.fused_linear.settings import Settings
from softgate.losses.z_score import z_loss_from_stats

__all__: list[str] = []


def scores(z_NV: Tensor, settings: Settings) -> Tensor:
    """``u = g(c tanh(z / c) / T)``: soft-capping, then the temperature, then the link g (identity or StableMax)."""
    if settings.softcap is not None:
        z_NV = settings.softcap * torch.tanh(z_NV / settings.softcap)
    if settings.temperature != 1.0:
        z_NV = z_NV / settings.temperature
    return compress(z_NV) if settings.compressed else z_NV


def row_losses(z_NV: Tensor, y_N: Tensor, settings: Settings, class_weight_V: Tensor | None) -> Tensor:
    """Loss of every row: ``(1 - eps) c_y phi(log p_y) + eps/V sum_j c_j phi(log p_j) + lambda c_y LSE^2``."""
    u_NV = scores(z_NV, settings)
    weight_N: Tensor | float = 1.0 if class_weight_V is None else class_weight_V[y_N]
    if settings.loss == "svm":
        return weight_N * (1.0 + u_NV.scatter(1, y_N[:, None], -_pick(u_NV, y_N)[:, None])).clamp(min=0).square().sum(1)
    if settings.loss == "zloss":
        return weight_N * z_loss_from_stats(
            _pick(u_NV, y_N), u_NV.square().sum(1), u_NV.sum(1), u_NV.shape[1], reduction="none"
        )
    log_p_NV = exclusive_log_softmax(u_NV, 1)
    eps = settings.label_smoothing
    rows = (1.0 - eps) * weight_N * settings.phi(_pick(log_p_NV, y_N))[0]
    if eps > 0.0:
        spread = settings.phi(log_p_NV)[0]
        if class_weight_V is not None:
            spread = spread * class_weight_V
        rows = rows + eps * spread.mean(1)
    if settings.z_penalty:
        rows = rows + settings.z_penalty * weight_N * torch.logsumexp(u_NV, 1).square()
    return rows


def dense(
    x_ND: Tensor,
    weight_VD: Tensor,
    y_N: Tensor,
    keep_N: Tensor,
    bias_V: Tensor | None,
    class_weight_V: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Row losses with 0 where ``keep`` is False, and for each row LSE and whether its target is on top.

    The log-sum-exp and the hits carry no gradient.
    """
    dtype = settings.wide(torch.promote_types(x_ND.dtype, weight_VD.dtype))
    x_ND, weight_VD = torch.where(keep_N[:, None], x_ND, 0.0).to(dtype), weight_VD.to(dtype)
    z_NV = x_ND @ weight_VD.t()
    if bias_V is not None:
        z_NV = z_NV + bias_V.to(dtype)
    y_N = torch.where(keep_N, y_N, 0)
    rows_N = row_losses(z_NV, y_N, settings, None if class_weight_V is None else class_weight_V.to(dtype))
    u_NV = scores(z_NV.detach(), settings)
    others_NV = u_NV.scatter(1, y_N[:, None], float("-inf"))
    hit_N = _pick(u_NV, y_N) > others_NV.amax(1)
    lse_N = torch.logsumexp(u_NV, 1)
    return torch.where(keep_N, rows_N, 0.0), torch.where(keep_N, lse_N, 0.0), hit_N & keep_N


def _pick(values_NV: Tensor, y_N: Tensor) -> Tensor:
    return values_NV.gather(1, y_N[:, None]).squeeze(1)
