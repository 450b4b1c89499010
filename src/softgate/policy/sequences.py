"""From log-probabilities of tokens to those of answers."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate._checks import check_float_tensor
from softgate._math.compress import compute_dtype
from softgate.errors import bad_value, check_choice
from softgate.policy._candidates import as_mask

__all__ = ["sequence_logp"]

LENGTH_NORMS = ("mean", "sum")


def sequence_logp(logp: Tensor, token_mask: Tensor | None = None, length_norm: str = "mean") -> Tensor:
    """Log-probability of a sequence from those of its tokens: their mean, or their sum.

    The sum makes the effective tau smaller by the length, tens to hundreds of times.

    Args:
        logp: (B, T) log-probabilities of the tokens.
        token_mask: (B, T), True (or not 0) at the tokens that count; None for all.
        length_norm: ``"mean"`` or ``"sum"``.

    Returns:
        (B,) in float32 or wider; 0 for a sequence without tokens.

    Raises:
        ArgumentTypeError: ``logp`` is no floating-point tensor, or ``token_mask`` no mask.
        ArgumentValueError: shapes do not fit, or ``length_norm`` is not allowed.

    Example:
        >>> import torch
        >>> sequence_logp(torch.tensor([[-1.0, -3.0, -9.0]]), torch.tensor([[1, 1, 0]]))
        tensor([-2.])

    Paper: ADPO, arXiv 2510.18913 (token means); its TRL fork has sums.
    """
    if check_float_tensor("logp", logp).ndim != 2:
        bad_value("logp", tuple(logp.shape), "of shape (B, T)")
    check_choice("length_norm", length_norm, LENGTH_NORMS)
    kept = as_mask("token_mask", token_mask, logp)
    wide = logp.to(compute_dtype(logp.dtype))
    total = (wide if kept is None else torch.where(kept, wide, 0.0)).sum(-1)
    if length_norm == "sum":
        return total
    return total / (max(logp.shape[1], 1) if kept is None else kept.sum(-1).clamp_min(1))
