"""From per-token losses to one number: the five normalisations that trainers use under a dozen names."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_sizes
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice

__all__ = ["AGGREGATIONS", "aggregate"]

#: Names of the normalisations.
AGGREGATIONS = ("seq_mean_token_mean", "token_mean", "token_mean_global", "token_sum_norm", "seq_mean_token_sum")

Aggregation = Literal["seq_mean_token_mean", "token_mean", "token_mean_global", "token_sum_norm", "seq_mean_token_sum"]
Empty = Literal["keep", "drop"]


def aggregate(
    losses_BT: Tensor,
    mask: Tensor,
    how: Aggregation = "seq_mean_token_mean",
    *,
    empty: Empty = "keep",
    max_length: int | None = None,
    num_tokens: float | Tensor | None = None,
) -> Tensor:
    r"""Reduce per-token losses to a scalar; masked positions count for nothing, whatever they hold.

    With :math:`n_i = \sum_t m_{it}` tokens in row i of B:

    ======================= ================================================= ========================= ================
    ``how``                 value                                             TRL ``loss_type``         verl
    ======================= ================================================= ========================= ================
    ``seq_mean_token_mean`` mean over rows of the mean over their tokens      grpo, sapo                same name
    ``token_mean``          mean over all tokens of this call                 bnpo                      token-mean
    ``token_mean_global``   sum over tokens / ``num_tokens``                  dapo, cispo               token-mean
    ``token_sum_norm``      sum over tokens / (B ``max_length``)              dr_grpo                   times B
    ``seq_mean_token_sum``  mean over rows of the sum over their tokens       none                      same name
    ======================= ================================================= ========================= ================

    Args:
        losses_BT: losses, ``(B, T)``, or ``(B, 1)`` for one value per sequence, which then stands at every token.
        mask: ``(B, T)``, true or nonzero where a token counts.
        how: the normalisation.
        empty: whether rows without any token count as rows (``"keep"``, as in TRL) or not (``"drop"``, as in verl).
        max_length: constant of ``"token_sum_norm"``: the longest completion that is allowed, in tokens.
        num_tokens: divisor of ``"token_mean_global"``: tokens of the whole accumulation window, over all micro-batches,
            divided by the number of processes whose gradients are averaged.

    Returns:
        0-d tensor in the dtype of ``losses_BT``; 0 without tokens, connected to the graph.

    Raises:
        ArgumentTypeError: a tensor has the wrong type, or an option.
        ArgumentValueError: shapes do not match, ``how`` or ``empty`` is unknown, or its divisor is missing.

    Example:
        >>> losses, mask = torch.tensor([[1.0, 1.0], [4.0, 9.0]]), torch.tensor([[1, 1], [1, 0]])
        >>> aggregate(losses, mask), aggregate(losses, mask, "token_mean")
        (tensor(2.5000), tensor(2.))

    Paper: SAPO, arXiv 2511.20347 (``seq_mean_token_mean``); the others as TRL and verl have them.
    """
    check_aggregation(how, empty, max_length, num_tokens)
    check_float_tensor("losses_BT", losses_BT)
    keep = check_mask(mask)
    if losses_BT.ndim != 2 or losses_BT.shape[0] != keep.shape[0] or losses_BT.shape[1] not in (1, keep.shape[1]):
        bad_value("losses_BT", tuple(losses_BT.shape), f"of shape (B, T) or (B, 1) for a mask {tuple(keep.shape)}")
    return reduce_tokens(losses_BT, keep, how, empty=empty, max_length=max_length, num_tokens=num_tokens)


def reduce_tokens(
    losses_BT: Tensor,
    keep_BT: Tensor,
    how: str,
    *,
    empty: str = "keep",
    max_length: int | None = None,
    num_tokens: float | Tensor | None = None,
) -> Tensor:
    """:func:`aggregate` of arguments that have been checked, with a bool mask."""
    sums_B = torch.where(keep_BT, losses_BT, 0.0).sum(-1)
    return reduce_sums(sums_B, keep_BT.sum(-1), how, empty=empty, max_length=max_length, num_tokens=num_tokens)


def reduce_sums(
    sums_B: Tensor,
    lengths_B: Tensor,
    how: str,
    *,
    empty: str,
    max_length: int | None,
    num_tokens: float | Tensor | None,
) -> Tensor:
    """:func:`reduce_tokens` of losses that have been summed over the tokens of each row, of which there are so many."""
    if how == "token_mean_global":
        assert num_tokens is not None
        return sums_B.sum() / num_tokens
    if how == "token_mean":
        return sums_B.sum() / lengths_B.sum().clamp(min=1)
    if how == "seq_mean_token_mean":
        sums_B = sums_B / lengths_B.clamp(min=1)
    if empty == "drop":
        total = sums_B.sum() / (lengths_B > 0).sum().clamp(min=1)
    else:
        total = sums_B.sum() / max(lengths_B.shape[0], 1)
    if how == "token_sum_norm":
        assert max_length is not None
        return total / max_length
    return total


def check_aggregation(how: Any, empty: Any, max_length: Any, num_tokens: Any) -> None:
    """Raise unless the four options make a normalisation."""
    check_choice("aggregation", how, AGGREGATIONS)
    check_choice("empty", empty, ("keep", "drop"))
    if max_length is not None:
        check_sizes(max_length=max_length)
    elif how == "token_sum_norm":
        raise ArgumentValueError("max_length must be given for 'token_sum_norm', got None")
    if isinstance(num_tokens, Tensor):
        if num_tokens.ndim != 0:
            bad_value("num_tokens", tuple(num_tokens.shape), "a number or a 0-d tensor")
    elif num_tokens is not None:
        check_number("num_tokens", num_tokens, low=0.0, low_open=True, high_open=True)
    elif how == "token_mean_global":
        raise ArgumentValueError("num_tokens must be given for 'token_mean_global', got None")


def check_mask(mask: Any, name: str = "mask") -> Tensor:
    """The mask as bool ``(B, T)``: nonzero entries count."""
    check_mask_type(mask, name)
    return mask if mask.dtype == torch.bool else mask != 0


def check_mask_type(mask: Any, name: str = "mask") -> None:
    """Raise unless ``mask`` is a dense real matrix."""
    if not isinstance(mask, Tensor):
        bad_type(name, mask, "a torch.Tensor")
    if mask.layout is not torch.strided or mask.dtype.is_complex:
        raise ArgumentTypeError(f"{name} must be a dense real tensor, got {mask.dtype}, layout {mask.layout}")
    if mask.ndim != 2:
        bad_value(name, tuple(mask.shape), "of shape (B, T)")
