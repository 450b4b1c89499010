"""The chunked recurrence where no gradient is recorded: one state and one segment of tokens at a time, in place.

The steps are those of :func:`softgate._math.recurrence.chunked_recurrence`. Each writes over what is no longer needed,
in a workspace that all segments share and that stays in the cache of a processor; otherwise the passes over scores and
decays cost more than the matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softgate._math.recurrence import cut, exp2, log2, segment_products


@dataclass
class _Sequences:
    """Tokens in chunks, for all states B; see ``recurrence`` for the other letters.

    Attributes:
        q_BKXN: queries, those that share a state beside each other.
        k_BKCN: keys.
        v_BKCD: values.
        log2_BKC: logarithms of the decays to base 2, None for no decay.
        from_start_BKX1: what is left, at each query, of the state before its chunk.
        whole_BK: what is left of it after the chunk.
        y_BKXD: results.
    """

    q_BKXN: Tensor
    k_BKCN: Tensor
    v_BKCD: Tensor
    log2_BKC: Tensor | None
    from_start_BKX1: Tensor | None
    whole_BK: list[list[float]] | None
    y_BKXD: Tensor


class _Workspace:
    """What is held for one segment of one state."""

    def __init__(self, x: _Sequences, chunks: int) -> None:
        rows, width = x.q_BKXN.shape[-2:]
        chunk, features = x.v_BKCD.shape[-2:]
        self.kept_KCC = x.k_BKCN.new_empty(chunks, chunk, chunk)
        self.scores_KXC = x.k_BKCN.new_empty(chunks, rows, chunk)
        self.rows_KXN = x.k_BKCN.new_empty(chunks, rows, width)
        self.states_SND = x.k_BKCN.new_empty(chunks + 1, width, features)
        self.past_CC = x.k_BKCN.new_ones(chunk, chunk).tril()
        self.each_state = self.states_SND.unbind()


def forward_in_segments(
    q_BRTN: Tensor,
    k_BTN: Tensor,
    v_BTD: Tensor,
    log_decay_BT1: Tensor | None,
    state_BND: Tensor,
    *,
    chunk: int,
    segment: int,
) -> tuple[Tensor, list[Tensor]]:
    """Outputs (B, R, T, D), and the states (B, N, D) before the first segment and after each.

    Args:
        q_BRTN: queries.
        k_BTN: keys.
        v_BTD: values.
        log_decay_BT1: logarithms of the decays, or None for no decay.
        state_BND: before the first token.
        chunk: tokens per chunk.
        segment: tokens per segment, a multiple of ``chunk``.
    """
    x, reads, per_segment = _sequences(q_BRTN, k_BTN, v_BTD, log_decay_BT1, chunk), q_BRTN.shape[1], segment // chunk
    batch, chunks = x.k_BKCN.shape[:2]
    work = _Workspace(x, min(per_segment, chunks))
    starts = range(0, chunks, per_segment)
    borders_BND = [state_BND, *(torch.empty_like(state_BND) for _ in starts)]
    for b in range(batch):
        work.states_SND[0] = state_BND[b]
        for number, start in enumerate(starts):
            _segment(x, work, b, slice(start, min(start + per_segment, chunks)))
            borders_BND[number + 1][b] = work.states_SND[0]
    y_BRTD = x.y_BKXD.unflatten(2, (reads, chunk)).transpose(1, 2).flatten(2, 3)
    return y_BRTD[:, :, : k_BTN.shape[1]], borders_BND


def _sequences(q_BRTN: Tensor, k_BTN: Tensor, v_BTD: Tensor, log_decay_BT1: Tensor | None, chunk: int) -> _Sequences:
    batch, reads = q_BRTN.shape[:2]
    k_BKCN, v_BKCD = (cut(x, chunk).unflatten(0, (batch, -1)) for x in (k_BTN, v_BTD))
    q_BKXN = cut(q_BRTN, chunk).unflatten(0, (batch, reads, -1)).transpose(1, 2).flatten(2, 3)
    y_BKXD = v_BKCD.new_empty(*q_BKXN.shape[:3], v_BKCD.shape[-1])
    if log_decay_BT1 is None:
        return _Sequences(q_BKXN, k_BKCN, v_BKCD, None, None, None, y_BKXD)
    log2_BKC = log2(cut(log_decay_BT1, chunk).squeeze(-1)).unflatten(0, (batch, -1))
    from_start_BKX1 = exp2(log2_BKC.cumsum(-1)).repeat(1, 1, reads).unsqueeze(-1)
    whole_BK = exp2(log2_BKC.sum(-1)).tolist()
    return _Sequences(q_BKXN, k_BKCN, v_BKCD, log2_BKC, from_start_BKX1, whole_BK, y_BKXD)


def _segment(x: _Sequences, work: _Workspace, b: int, chunks: slice) -> None:
    """Outputs of one segment of one state; ``work.states_SND[0]`` moves on to its end."""
    q_KXN, k_KCN, v_KCD, y_KXD = (t[b, chunks] for t in (x.q_BKXN, x.k_BKCN, x.v_BKCD, x.y_BKXD))
    count, chunk = k_KCN.shape[:2]
    scores_KXC, rows_KXN = work.scores_KXC[:count], work.rows_KXN[:count]
    scores_KRCC = torch.bmm(q_KXN, k_KCN.mT, out=scores_KXC).unflatten(1, (-1, chunk))
    written_KCN = rows_KXN[:, :chunk]
    if x.log2_BKC is None or x.from_start_BKX1 is None:
        scores_KRCC.mul_(work.past_CC)
        written_KCN = k_KCN
    else:
        kept_KCC = segment_products(x.log2_BKC[b, chunks], out=work.kept_KCC[:count])
        scores_KRCC.mul_(kept_KCC.unsqueeze(1))
        torch.mul(k_KCN, kept_KCC[:, -1, :, None], out=written_KCN)
    torch.bmm(written_KCN.mT, v_KCD, out=work.states_SND[1 : count + 1])
    for i in range(count):
        left = 1.0 if x.whole_BK is None else x.whole_BK[b][chunks.start + i]
        work.each_state[i + 1].add_(work.each_state[i], alpha=left)
    torch.bmm(scores_KXC, v_KCD, out=y_KXD)
    if x.from_start_BKX1 is not None:
        q_KXN = torch.mul(q_KXN, x.from_start_BKX1[b, chunks], out=rows_KXN)
    y_KXD.baddbmm_(q_KXN, work.states_SND[:count])
    work.states_SND[0] = work.each_state[count]
