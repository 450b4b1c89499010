"""Checks that all policy objectives share, and the clamped log-ratio."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentValueError, bad_value
from softgate.policy.aggregation import check_mask, check_mask_type

__all__: list[str] = []

#: exp(80) is finite in float32, and so is its product with an advantage.
LARGEST_LOG_RATIO = 80.0


class PolicyInputs(NamedTuple):
    """Inputs of an objective, all ``(B, T)``, in float32 or wider, with 0 at masked positions."""

    logp: Tensor
    old_logp: Tensor
    advantages: Tensor
    mask: Tensor
    ref_logp: Tensor | None = None

    def log_ratio(self, limit: float) -> Tensor:
        """``logp - old_logp``, cut at ``limit`` on both sides; the gradient beyond is 0."""
        return (self.logp - self.old_logp).clamp(-limit, limit)


def check_policy_inputs(
    logp: Any, old_logp: Any, advantages: Any, mask: Any, ref_logp: Any = None, *, check: bool = False
) -> PolicyInputs:
    """Check and prepare the tensors of an objective.

    Args:
        logp: log-probabilities of the tokens under the policy, ``(B, T)``; the only one that gets a gradient.
        old_logp: under the policy that sampled them.
        advantages: ``(B,)``, ``(B, 1)`` or ``(B, T)``.
        mask: bool or 0/1, ``(B, T)``; masked positions may hold anything.
        ref_logp: under the reference policy, or None.
        check: also look at the values, which costs a pass and a synchronisation: NaN, infinities, positive
            log-probabilities, masks other than 0/1; warn of 16-bit log-probabilities.

    Returns:
        The tensors ready to compute with.

    Raises:
        ArgumentTypeError: something is no dense floating-point tensor.
        ArgumentValueError: shapes or devices do not match, or, with ``check``, a value is impossible.
    """
    check_tensors(logp, old_logp, advantages, mask, ref_logp, check=check)
    return prepare_inputs(logp, old_logp, advantages, mask, ref_logp)


def check_tensors(
    logp: Any, old_logp: Any, advantages: Any, mask: Any, ref_logp: Any = None, *, check: bool = False
) -> None:
    """The checks of :func:`check_policy_inputs` alone."""
    shape = check_float_tensor("logp", logp).shape
    if logp.ndim != 2:
        bad_value("logp", tuple(shape), "of shape (B, T)")
    check_mask_type(mask)
    others = {"old_logp": old_logp} if ref_logp is None else {"old_logp": old_logp, "ref_logp": ref_logp}
    for name, tensor in others.items():
        if check_float_tensor(name, tensor).shape != shape:
            bad_value(name, tuple(tensor.shape), f"of the shape of logp {tuple(shape)}")
    if mask.shape != shape:
        bad_value("mask", tuple(mask.shape), f"of the shape of logp {tuple(shape)}")
    check_float_tensor("advantages", advantages)
    check_same_device(logp=logp, advantages=advantages, mask=mask, **others)
    wide_advantages = _per_token(advantages, shape)
    if old_logp.requires_grad and not torch.compiler.is_compiling():
        warnings.warn("old_logp requires grad; it is detached, as the sampling policy is a constant", stacklevel=4)
    if check:
        _check_values({"logp": logp, **others}, wide_advantages, mask, check_mask(mask))


def prepare_inputs(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, ref_logp: Tensor | None = None
) -> PolicyInputs:
    """Tensors that have been checked in one dtype and shape, with 0 at masked positions; constants detached."""
    keep, dtype = mask if mask.dtype == torch.bool else mask != 0, loss_dtype(logp, old_logp)

    def prepare(tensor: Tensor) -> Tensor:
        return torch.where(keep, tensor.to(dtype), 0.0)

    return PolicyInputs(
        logp=prepare(logp),
        old_logp=prepare(old_logp.detach()),
        advantages=prepare(_per_token(advantages.detach(), logp.shape)),
        mask=keep,
        ref_logp=None if ref_logp is None else prepare(ref_logp.detach()),
    )


def loss_dtype(logp: Tensor, old_logp: Tensor) -> torch.dtype:
    """What an objective computes in: float32, or float64 if a log-probability has it."""
    return compute_dtype(torch.promote_types(logp.dtype, old_logp.dtype))


def check_max_log_ratio(value: Any) -> float:
    """The limit of the log-ratio as a float in (0, 80]."""
    return check_number("max_log_ratio", value, low=0.0, low_open=True, high=LARGEST_LOG_RATIO)


def _per_token(advantages: Tensor, shape: torch.Size) -> Tensor:
    rows, length = shape
    if advantages.shape == (rows,):
        advantages = advantages[:, None]
    if advantages.shape not in ((rows, 1), (rows, length)):
        bad_value(
            "advantages", tuple(advantages.shape), f"of shape ({rows},), ({rows}, 1) or {tuple(shape)} beside logp"
        )
    return advantages.expand(rows, length)


def _check_values(log_probs: dict[str, Tensor], advantages: Tensor, mask: Tensor, keep: Tensor) -> None:
    narrow = [name for name, tensor in log_probs.items() if tensor.dtype.itemsize == 2]
    if narrow:
        warnings.warn(
            f"{', '.join(narrow)} in 16 bits: at -4 the spacing of bfloat16 is 0.03, ratios mean little; compute "
            "log-probabilities in float32",
            stacklevel=5,
        )
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ArgumentValueError("mask must hold 0 and 1 only, got other values")
    for name, tensor in (*log_probs.items(), ("advantages", advantages)):
        if not bool((tensor.isfinite() | ~keep).all()):
            raise ArgumentValueError(f"{name} must be finite where the mask is set, got NaN or infinity there")
    for name, tensor in log_probs.items():
        largest = torch.where(keep, tensor, 0.0).max().item() if keep.numel() else 0.0
        if largest > 1e-3:  # a rounding above 0 is no mistake
            raise ArgumentValueError(f"{name} must hold log-probabilities, at most 0, got {largest:g}")
