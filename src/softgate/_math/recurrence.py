"""Linear recurrences with a diagonal transition: h_i = λ_i ⊙ h_{i-1} + (what token i adds), in three plain-torch forms.

Decays are handled as logarithms and only ever as products over a segment of tokens, so no factor exceeds 1 for decays
up to 1, and a decay of 0 (logarithm -inf) is as good as any other.

Shape suffixes: leading dimensions first, then K chunks of C tokens, R queries that share a state, T tokens, N state
features, D value features.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Tokens per chunk: inside a chunk the quadratic form is used, between chunks the state is passed on.
CHUNK = 64


def segment_sums(x: Tensor) -> Tensor:
    """Sums over segments, (…, T) -> (…, T, T): entry (i, j) is ``x[j + 1] + … + x[i]``, -inf for j > i.

    Each sum is formed from its own terms. Differences of cumulative sums would cancel, and give NaN for -inf.
    """
    length = x.shape[-1]
    ones = torch.ones(length, length, dtype=torch.bool, device=x.device)
    terms = x[..., :, None].expand(*x.shape, length).masked_fill(~ones.tril(-1), 0.0)
    return terms.cumsum(-2).masked_fill(~ones.tril(), float("-inf"))


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
    log_decay = log_decay_T1[..., 0]
    from_start_T1 = log_decay_T1.cumsum(-2).exp()
    kept_TT = segment_sums(log_decay).exp()
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
    reads = q_RTN.shape[-3]
    q_KRCN = _cut(q_RTN, chunk).transpose(-4, -3)
    k_KCN, v_KCD = _cut(k_TN, chunk), _cut(v_TD, chunk)
    log_KC1 = None if log_decay_T1 is None else _cut(log_decay_T1, chunk)
    q_KXN = q_KRCN.flatten(-3, -2)  # X: all queries of a chunk, so that the keys need not be repeated
    scores_KRCC = (q_KXN @ k_KCN.transpose(-1, -2)).unflatten(-2, (reads, chunk))
    if log_KC1 is None:
        past = torch.ones(chunk, chunk, dtype=torch.bool, device=k_TN.device).tril()
        scores_KRCC = scores_KRCC.masked_fill(~past, 0.0)
        added_KND = k_KCN.transpose(-1, -2) @ v_KCD
        states = torch.cat((state_ND[..., None, :, :], added_KND), -3).cumsum(-3)
        reading_KXN = q_KXN
    else:
        kept_KCC = segment_sums(log_KC1[..., 0]).exp()
        scores_KRCC = scores_KRCC * kept_KCC[..., None, :, :]
        added_KND = (k_KCN * kept_KCC[..., -1, :, None]).transpose(-1, -2) @ v_KCD
        states = _pass_states(torch.cat((state_ND[..., None, :, :], added_KND), -3), log_KC1.sum((-2, -1)))
        reading_KXN = (q_KRCN * log_KC1.cumsum(-2).exp()[..., None, :, :]).flatten(-3, -2)
    y_KXD = scores_KRCC.flatten(-3, -2) @ v_KCD + reading_KXN @ states[..., :-1, :, :]
    y_RTD = y_KXD.unflatten(-2, (reads, chunk)).transpose(-4, -3).flatten(-3, -2)
    return y_RTD[..., :length, :], states[..., -1, :, :]


def _cut(x_TF: Tensor, chunk: int) -> Tensor:
    """(…, T, F) -> (…, K, C, F), filled up with zeros: tokens that add nothing and (as log-decays) keep everything."""
    missing = -x_TF.shape[-2] % chunk
    if missing:
        x_TF = torch.cat((x_TF, x_TF.new_zeros(*x_TF.shape[:-2], missing, x_TF.shape[-1])), -2)
    return x_TF.unflatten(-2, (-1, chunk))


def _pass_states(added_SND: Tensor, log_K: Tensor) -> Tensor:
    """States at the chunk borders, from the initial state followed by what each chunk adds, and the chunks' decays."""
    kept_SS = segment_sums(torch.cat((torch.zeros_like(log_K[..., :1]), log_K), -1)).exp()
    return (kept_SS @ added_SND.flatten(-2)).unflatten(-1, added_SND.shape[-2:])
