"""Linear recurrences with a diagonal transition: h_i = λ_i ⊙ h_{i-1} + (what token i adds), in three plain-torch forms.

Decays are handled as logarithms and only ever as products over a segment of tokens, so no factor exceeds 1 for decays
up to 1, and a decay of 0 (logarithm -inf) is as good as any other. Powers of two are taken rather than exponentials:
exp takes forty times as long where its result is subnormal or 0, as products of many decays are, and exp2 does not.

Shape suffixes: leading dimensions first, then R queries that share a state, T tokens, N state features, D value
features. In chunks: B all leading dimensions, P all chunks of all B, C tokens, X = R C queries of a chunk, S states at
the borders of chunks, F = N D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Tokens per chunk: inside a chunk the quadratic form is used, between chunks the state is passed on.
CHUNK = 64
#: Stands for log2(0): 2 to this power is 0 in every dtype, and unlike -inf it gives 0 times 0.
_LOG_ZERO = -4096.0
#: Products of decays below this multiple of the smallest normal number are 0.
_SMALLEST = 2.0**16


def doubling_scan(decay: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """All states of h_i = decay_i ⊙ h_{i-1} + x_i with h_0 = ``initial``, along dimension 0, in log2(T) passes.

    Each pass composes neighbouring steps, (l2, x2)∘(l1, x1) = (l1 l2, l2 x1 + x2), over twice the distance.
    """
    x = torch.cat((x[:1] + decay[:1] * initial, x[1:]))
    offset = 1
    while offset < x.shape[0]:
        x = torch.cat((x[:offset], x[offset:] + decay[offset:] * x[:-offset]))
        decay = torch.cat((decay[:offset], decay[offset:] * decay[:-offset]))
        offset *= 2
    return x


def segment_products(log2_T: Tensor, out: Tensor | None = None) -> Tensor:
    """Products of decays over segments, (…, T) -> (…, T, T): entry (i, j) is that of j + 1, …, i, and 0 for j > i.

    Each is the power of a sum of its own terms. Differences of cumulative sums would cancel. Terms are left out by
    factors 0, several times faster than by filling under a mask.

    Args:
        log2_T: finite logarithms to base 2, see :func:`log2`.
        out: room for the result, where no gradient is recorded.
    """
    past_TT = log2_T.new_ones(log2_T.shape[-1], log2_T.shape[-1]).tril()
    sums_TT = torch.mul(log2_T.unsqueeze(-1), past_TT.tril(-1), out=out).cumsum_(-2)
    return torch.mul(exp2(sums_TT, out=out), past_TT, out=out)


def log2(log: Tensor) -> Tensor:
    """Logarithms to base 2 from natural ones, finite."""
    return (log * math.log2(math.e)).clamp_min(_LOG_ZERO)


def exp2(log: Tensor, out: Tensor | None = None) -> Tensor:
    """Powers of two; those near the end of the normal range are 0.

    Subnormal products of theirs with what a token adds would not change a sum, but processors need a hundred times as
    long for them, in every matrix product that they enter.
    """
    smallest = torch.finfo(log.dtype).tiny * _SMALLEST
    powers = torch.exp2(log, out=out)
    return torch.threshold(powers, smallest, 0.0) if out is None else torch.threshold_(powers, smallest, 0.0)


def quadratic_recurrence(
    q_RTN: Tensor, k_TN: Tensor, v_TD: Tensor, log_decay_T1: Tensor | None, state_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence of :func:`chunked_recurrence` as one masked product of queries and keys: the formula itself."""
    length = k_TN.shape[-2]
    scores_RTT = q_RTN @ k_TN[..., None, :, :].transpose(-1, -2)
    if log_decay_T1 is None:
        past = torch.ones(length, length, dtype=torch.bool, device=k_TN.device).tril()
        y_RTD = scores_RTT.masked_fill(~past, 0.0) @ v_TD[..., None, :, :] + q_RTN @ state_ND[..., None, :, :]
        return y_RTD, state_ND + k_TN.transpose(-1, -2) @ v_TD
    from_start_T1 = exp2(log2(log_decay_T1).cumsum(-2))
    kept_TT = segment_products(log2(log_decay_T1[..., 0]))
    y_RTD = (scores_RTT * kept_TT[..., None, :, :]) @ v_TD[..., None, :, :]
    y_RTD = y_RTD + (q_RTN * from_start_T1[..., None, :, :]) @ state_ND[..., None, :, :]
    to_end_T1 = kept_TT[..., -1, :, None] if length else from_start_T1
    whole = from_start_T1[..., -1:, :] if length else torch.ones_like(state_ND[..., :1, :1])
    return y_RTD, whole * state_ND + (k_TN * to_end_T1).transpose(-1, -2) @ v_TD


def chunked_recurrence(
    q_RTN: Tensor,
    k_TN: Tensor,
    v_TD: Tensor,
    log_decay_T1: Tensor | None,
    state_ND: Tensor,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Outputs y_i = q_i h_i and the last state of h_i = exp(log_decay_i) h_{i-1} + k_iᵀ v_i, without T x T memory.

    Args:
        q_RTN: (…, R, T, N), R queries read each state.
        k_TN: (…, T, N).
        v_TD: (…, T, D).
        log_decay_T1: (…, T, 1), or None for no decay.
        state_ND: (…, N, D), the state before the first token.
        chunk: tokens per chunk; the result does not depend on it but for rounding.

    Returns:
        y (…, R, T, D) and the state (…, N, D) after the last token.
    """
    length = k_TN.shape[-2]
    if length <= chunk:
        return quadratic_recurrence(q_RTN, k_TN, v_TD, log_decay_T1, state_ND)
    reads, lead, chunks = q_RTN.shape[-3], k_TN.shape[:-2], -(-length // chunk)
    q_PXN, k_PCN, v_PCD = (cut(x, chunk) for x in (q_RTN, k_TN, v_TD))
    if reads > 1:  # all queries of a chunk together, beside the same keys
        q_PXN = q_PXN.unflatten(0, (-1, reads, chunks)).transpose(1, 2).reshape(-1, reads * chunk, q_PXN.shape[-1])
    scores_PXC = torch.bmm(q_PXN, k_PCN.mT)
    if log_decay_T1 is None:
        kept_PCC, kept_SS = k_TN.new_ones(chunk, chunk).tril(), k_TN.new_ones(chunks + 1, chunks + 1).tril()
    else:
        log_PC = log2(cut(log_decay_T1, chunk).squeeze(-1))
        kept_PCC = segment_products(log_PC)
        kept_SS = segment_products(torch.nn.functional.pad(log_PC.sum(-1).unflatten(0, (-1, chunks)), (1, 0)))
        k_PCN = k_PCN * kept_PCC[:, -1, :, None]
        q_PXN = _times(q_PXN, exp2(log_PC.cumsum(-1)).unsqueeze(-1), reads)
    # The states at the chunks' borders: the first one and what each chunk adds, as far as it is kept until there.
    added_PND, flat = torch.bmm(k_PCN.mT, v_PCD), state_ND.shape[-2] * state_ND.shape[-1]
    added_BSF = torch.cat((state_ND.flatten(-2).reshape(-1, 1, flat), added_PND.reshape(-1, chunks, flat)), 1)
    states_BSF = kept_SS @ added_BSF
    before_PND = states_BSF[:, :-1].reshape(added_PND.shape)
    y_PXD = torch.baddbmm(torch.bmm(_times(scores_PXC, kept_PCC, reads), v_PCD), q_PXN, before_PND)
    y_RTD = y_PXD.unflatten(0, (-1, chunks)).unflatten(2, (reads, chunk)).transpose(1, 2)
    y_RTD = y_RTD.reshape(*lead, reads, chunks * chunk, y_PXD.shape[-1])[..., :length, :]
    return y_RTD, states_BSF[:, -1].reshape(state_ND.shape)


def _times(x_PXF: Tensor, factor_PCF: Tensor, reads: int) -> Tensor:
    """Rows of all queries times the factors of their tokens, which queries of one token share."""
    if reads == 1:
        return x_PXF * factor_PCF
    return (x_PXF.unflatten(1, (reads, -1)) * factor_PCF.unsqueeze(-3)).flatten(1, 2)


def cut(x_TF: Tensor, chunk: int) -> Tensor:
    """(…, T, F) -> (P, C, F), filled up with zeros: tokens that add nothing and (as log-decays) keep everything."""
    missing = -x_TF.shape[-2] % chunk
    if missing:
        x_TF = torch.nn.functional.pad(x_TF, (0, 0, 0, missing))
    return x_TF.reshape(-1, chunk, x_TF.shape[-1])
