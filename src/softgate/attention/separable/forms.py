"""Attention with a separable similarity φ(q)·φ(k): the quadratic form for any mask, and the one with a state.

Shape suffixes: B batch (any number of leading dimensions), H query heads, G key/value heads, T queries, S keys, N
features of queries and keys, D features of values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from softgate._math import masks
from softgate._math.recurrence import CHUNK, chunked_recurrence
from softgate._math.recurrence_forward import forward_in_segments
from softgate._math.segments import in_segments
from softgate.dispatch import transform_reason

#: Below this many queries or keys the quadratic form is as fast as the one with a state.
SHORT = 4 * CHUNK
#: Tokens whose intermediate values the backward pass holds at once.
_SEGMENT = 16 * CHUNK


def quadratic(
    q_BHTN: Tensor,
    k_BGSN: Tensor,
    v_BGSD: Tensor,
    mask: masks.Mask,
    *,
    dropout_p: float,
    normaliser: float | None,
) -> Tensor:
    """Σ_j w_ij v_j with w_ij = (q_i·k_j) e^{bias_ij} where allowed; with a ``normaliser``, over Σ_j w_ij + it."""
    heads = q_BHTN.shape[-3]
    weights = q_BHTN @ masks.expand_kv_heads(k_BGSN, heads).transpose(-1, -2)
    if mask.bias is not None:
        weights = weights * mask.bias.to(weights.dtype).exp()
    weights = masks.masked_weights(weights, mask.allowed)
    if normaliser is not None:
        weights = weights / nonzero(weights.sum(-1, keepdim=True) + normaliser)
    if dropout_p > 0.0:
        weights = F.dropout(weights, dropout_p)
    return weights @ masks.expand_kv_heads(v_BGSD, heads)


def nonzero(total: Tensor) -> Tensor:
    """``total`` with 1 where it is 0 or below the normal range: a row without any allowed key is 0/1."""
    return total.masked_fill(total.abs() < torch.finfo(total.dtype).tiny, 1.0)


def state_refuses(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool, wanted: bool
) -> str | None:
    """Say why the form with a state cannot (or, unless it is ``wanted``, should not) run; None if it runs."""
    queries, keys = query.shape[-2], key.shape[-2]
    if dropout_p > 0.0:
        return "it has no attention weights to drop"
    if attn_mask is not None and (attn_mask.shape[-2] != 1 or (attn_mask.ndim > 2 and attn_mask.shape[-3] != 1)):
        return "attn_mask differs between queries or heads, which no shared state can express"
    if is_causal and queries > keys:
        return "there are more queries than keys"
    if not wanted and (queries < SHORT or keys < SHORT):
        return f"fewer than {SHORT} queries or keys: the quadratic form is as fast"
    return None


def with_state(
    q_BHTN: Tensor,
    k_BGSN: Tensor,
    v_BGSD: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    *,
    normaliser: float | None,
) -> Tensor:
    """The same as :func:`quadratic` for masks of keys only, in memory linear in T."""
    k_BGSN = mask_keys(k_BGSN, attn_mask)
    if normaliser is not None:  # the row sum is one more feature of the values, which are 1 there
        v_BGSD = F.pad(v_BGSD, (0, 1), value=1.0)
    q_BGRTN = q_BHTN.unflatten(-3, (k_BGSN.shape[-3], -1))
    if is_causal:
        earlier = k_BGSN.shape[-2] - q_BHTN.shape[-2]
        state_BGND = k_BGSN[..., :earlier, :].transpose(-1, -2) @ v_BGSD[..., :earlier, :]
        y_BGRTD, _ = recur(q_BGRTN, k_BGSN[..., earlier:, :], v_BGSD[..., earlier:, :], None, state_BGND)
    else:
        y_BGRTD = q_BGRTN @ (k_BGSN.transpose(-1, -2) @ v_BGSD)[..., None, :, :]
    y_BHTD = y_BGRTD.flatten(-4, -3)
    return y_BHTD if normaliser is None else y_BHTD[..., :-1] / nonzero(y_BHTD[..., -1:] + normaliser)


def mask_keys(k_BGSN: Tensor, attn_mask: Tensor | None) -> Tensor:
    """Put a mask over keys into the keys' features: 0 where not allowed, times e^bias elsewhere."""
    if attn_mask is None:
        return k_BGSN
    column = attn_mask.transpose(-1, -2)
    if attn_mask.dtype is torch.bool:
        return k_BGSN.masked_fill(~column, 0.0)
    return (k_BGSN * column.to(k_BGSN.dtype).exp()).masked_fill(column == float("-inf"), 0.0)


def recur(
    q_RTN: Tensor, k_TN: Tensor, v_TD: Tensor, log_decay_T1: Tensor | None, state_ND: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """:func:`softgate._math.recurrence.chunked_recurrence`, in segments where the sequence is long."""
    segment = max(_SEGMENT // chunk, 1) * chunk
    tensors = [x for x in (q_RTN, k_TN, v_TD, log_decay_T1, state_ND) if x is not None]
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if transform_reason(*tensors) is not None or 0 in state_ND.shape or (k_TN.shape[-2] <= segment and recorded):
        return chunked_recurrence(q_RTN, k_TN, v_TD, log_decay_T1, state_ND, chunk=chunk)
    reads = q_RTN.shape[-3]

    def step(state: Tensor, pieces: Sequence[Tensor], constants: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        q = pieces[0].unflatten(-1, (reads, -1)).movedim(-2, -3)
        decay = pieces[3] if len(pieces) == 4 else None
        y_RTD, after = chunked_recurrence(q, pieces[1], pieces[2], decay, state, chunk=chunk)
        return y_RTD.movedim(-3, -2).flatten(-2), after

    def forward(state: Tensor, pieces: Sequence[Tensor], constants: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        q = pieces[0].unflatten(-1, (reads, -1)).movedim(-2, -3)
        lead = state.shape[:-2]
        q, k, v, first, *decay = (x.reshape(-1, *x.shape[len(lead) :]) for x in (q, *pieces[1:3], state, *pieces[3:]))
        log_decay = decay[0] if decay else None
        y_BRTD, borders = forward_in_segments(q, k, v, log_decay, first, chunk=chunk, segment=segment)
        y_RTD = y_BRTD.reshape(*lead, *y_BRTD.shape[1:])
        return y_RTD.movedim(-3, -2).flatten(-2), [x.reshape(state.shape) for x in borders]

    sequences = (q_RTN.movedim(-3, -2).flatten(-2), k_TN, v_TD) + (() if log_decay_T1 is None else (log_decay_T1,))
    quick = forward if k_TN.device.type == "cpu" else None
    y_TX, state = in_segments(step, state_ND, sequences, length=segment, forward=quick)
    return y_TX.unflatten(-1, (reads, -1)).movedim(-2, -3), state
