"""The anchored listwise loss of groups that are runs of rows: nothing is padded, and one array is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._math.compress import compute_dtype
from softgate.policy import anchored
from softgate.policy._candidates import reduce_contexts
from softgate.policy._runs import Runs, cross_entropy
from softgate.policy.preference_targets import CLIP, smoothed_cdf
from softgate.policy.sequences import sequence_logp

__all__: list[str] = []


def run_runs(
    logp: Tensor, anchor_logp: Tensor, scores: Tensor, group_id: Tensor, token_mask: Tensor | None, *,
    tau: float | Tensor, target: str, beta: float, length_norm: str, clamp_ratio: float | None,
    clamp_score: float | None, reduction: str, **_: Any,
) -> Tensor:  # fmt: skip
    """The loss of :func:`softgate.policy.adpo_loss`."""
    runs = Runs.of(group_id)
    policy, anchor = (
        runs.rows(p if p.ndim == 1 else sequence_logp(p, token_mask, length_norm)) for p in (logp, anchor_logp.detach())
    )
    if isinstance(tau, Tensor) and tau.ndim:
        tau = runs.spread(tau)
    u = anchored.scores_of(policy[:, None], anchor[:, None], tau, clamp_ratio, clamp_score).squeeze(1)
    ranked = runs.rows(scores.detach())
    q = target_of_runs(ranked.to(compute_dtype(ranked.dtype)), target, beta, runs)
    return reduce_contexts(cross_entropy(u, q.to(u.dtype), runs), None, reduction).to(logp.dtype)


def target_of_runs(scores: Tensor, kind: str, beta: float, runs: Runs) -> Tensor:
    """:func:`softgate.policy.preference_target` of every run, (B,) sorted -> (B,)."""
    if kind == "top1":
        best = (scores == runs.spread(runs.max(scores))).to(scores.dtype)
        return best / runs.spread(runs.sum(best))
    if kind == "zscore":
        centred = scores - runs.spread(runs.sum(scores) / runs.sizes)
        deviation = (runs.sum(centred.square()) / (runs.sizes - 1).clamp_min(1)).sqrt_()
        spread = deviation >= 1e-8
        scores = centred * runs.spread(torch.where(spread, 1 / torch.where(spread, deviation, 1.0), 0.0))
    elif kind == "kde":
        scores = torch.logit(smoothed_cdf(scores).clamp(CLIP, 1 - CLIP))
    return runs.log_softmax(scores / beta).exp_()


def runs_refuse(
    logp: Tensor, anchor_logp: Tensor, scores: Tensor, group_id: Tensor | int, token_mask: Tensor | None = None, *,
    target: str = "raw", adaptive: Any = None, nan: str = "raise", **_: Any,
) -> str | None:  # fmt: skip
    """Why groups cannot stay runs of rows, None if they can."""
    if isinstance(group_id, int):
        return "groups of one size are lists already"
    if not logp.is_cpu or logp.shape[0] == 0:
        return "it works on at least one row, on the CPU"
    if target == "plackett_luce" or adaptive is not None:
        return "rankings and adaptive temperatures are computed on lists"
    return "scores may be missing from a group" if nan == "drop" else None
