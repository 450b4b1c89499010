"""Per-token estimates of the KL divergence between the policy and a reference."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number
from softgate._math.compress import compute_dtype
from softgate.errors import bad_value, check_choice

__all__ = ["KL_KINDS", "kl_estimate"]

#: Names of the estimators.
KL_KINDS = ("k1", "k2", "k3", "abs")

KLKind = Literal["k1", "k2", "k3", "abs"]


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: KLKind = "k3", *, max_log_ratio: float = 20.0) -> Tensor:
    r"""Estimate of ``KL(π ‖ π_ref)`` at each sampled token, with ``d = log π_ref - log π``.

    ``k1`` :math:`= -d`, ``k2`` :math:`= d^2 / 2`, ``k3`` :math:`= e^d - d - 1`, ``abs`` :math:`= |d|`. k1 and k3 are
    unbiased for tokens drawn from the policy, k3 is never negative and has less variance. verl calls them ``kl``,
    ``mse``, ``low_var_kl`` (there also cut at 10) and ``abs``. The gradient of an estimate is not an estimate of the
    gradient of the divergence: that of k1 has mean 0, that of k3 points to the reference with the weight of the
    reverse divergence. They are used all the same, as penalties.

    Args:
        logp: log-probabilities of the tokens under the policy, any shape.
        ref_logp: under the reference, of the same shape; gets no gradient.
        kind: the estimator.
        max_log_ratio: d is cut at this absolute value, in (0, 80].

    Returns:
        Tensor of the shape of ``logp``, in float32 or wider, in nats.

    Raises:
        ArgumentTypeError: a tensor is not floating point, or an option has another type.
        ArgumentValueError: shapes differ, ``kind`` is unknown or ``max_log_ratio`` out of range.

    Example:
        >>> kl_estimate(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -2.0]))
        tensor([0.0000, 0.3679])

    Paper: SAPO, arXiv 2511.20347, uses none; GRPO uses k3.
    """
    check_choice("kind", kind, KL_KINDS)
    limit = check_number("max_log_ratio", max_log_ratio, low=0.0, low_open=True, high=80.0)
    check_float_tensor("logp", logp)
    check_float_tensor("ref_logp", ref_logp)
    if logp.shape != ref_logp.shape:
        bad_value("ref_logp", tuple(ref_logp.shape), f"of the shape of logp {tuple(logp.shape)}")
    dtype = compute_dtype(torch.promote_types(logp.dtype, ref_logp.dtype))
    return kl_of((ref_logp.detach().to(dtype) - logp.to(dtype)).clamp(-limit, limit), kind)


def kl_of(d: Tensor, kind: str) -> Tensor:
    """The estimate from ``d = ref_logp - logp``."""
    if kind == "k1":
        return -d
    if kind == "k2":
        return d.square() / 2
    if kind == "abs":
        return d.abs()
    # exp(d) - d - 1 would lose all digits near 0, where the policy usually is
    return (torch.expm1(d) - d).clamp(min=0.0)
