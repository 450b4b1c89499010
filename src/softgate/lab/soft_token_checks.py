"""Identities of soft-thinking tokens, tried on random logits in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from softgate.lab.cell import CellRun
from softgate.lab.seeds import generator
from softgate.policy import SoftToken, mixed_log_prob, sample_soft_token, soft_token_log_prob

__all__ = ["measure_identities"]

_UNTRUNCATED = (-math.inf, math.inf)


def measure_identities(run: CellRun) -> Mapping[str, float | Sequence[float]]:
    """Errors of the identities that make the likelihood of a soft token exact.

    Returns:
        ``round_trip_error`` of the noise that is recovered from a stored token, ``selected_error`` of log-probability
        and gradients from K rows of the output matrix against all of them, ``score_z``, how many standard errors the
        mean score on policy is from 0, and ``gumbel_max_z``, the same for how often each token has nearly all weight
        at a small temperature.
    """
    draws, source = int(run.config["draws"]), generator(run.seed, "identities")
    return {
        "round_trip_error": _round_trip_error(source),
        "selected_error": _selected_error(source),
        "score_z": _score_z(draws, source),
        "gumbel_max_z": _gumbel_max_z(draws, source),
    }


def _logits(source: torch.Generator, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=source, dtype=torch.float64)


def _round_trip_error(source: torch.Generator) -> float:
    logits = _logits(source, 500, 20)
    token = sample_soft_token(logits, top_p=1.0, generator=source)
    p = logits.softmax(-1).gather(-1, token.ids)
    noise = (token.g - torch.log(p / p.sum(-1, keepdim=True) + 1e-6)).clamp(-1.5, 3.0)
    counts = p / p.sum(-1, keepdim=True) + 1e-6 > math.exp(-3)
    density = torch.where(counts, -noise - torch.exp(-noise), 0.0).sum(-1) / counts.sum(-1)
    return float((soft_token_log_prob(logits, token.ids, token.g) - density).abs().max())


def _selected_error(source: torch.Generator) -> float:
    hidden, head = _logits(source, 40, 8).requires_grad_(), _logits(source, 50, 8).requires_grad_()
    token = sample_soft_token(hidden @ head.T, generator=source)
    ordinary = SoftToken.discrete(token.ids[:, 1], 5, torch.float64)
    token = token.where(torch.arange(40) % 3 > 0, ordinary)
    worst = 0.0
    found = []
    for log_p in (mixed_log_prob(hidden, head, token), mixed_log_prob(hidden @ head.T, None, token)):
        found.append((log_p, *torch.autograd.grad(log_p.sum(), (hidden, head))))
    for rows, all_rows in zip(*found, strict=True):
        worst = max(worst, float((rows - all_rows).abs().max().detach()))
    return worst


def _score_z(draws: int, source: torch.Generator) -> float:
    logits = _logits(source, 1, 4).expand(draws, 4)
    token = sample_soft_token(logits, k=4, top_p=1.0, clamp=_UNTRUNCATED, generator=source)
    rows = logits.detach().clone().requires_grad_()
    log_p = soft_token_log_prob(rows, token.ids, token.g, clamp=_UNTRUNCATED)
    (score,) = torch.autograd.grad(log_p.sum(), rows)
    error = score.std(0) / math.sqrt(draws)
    return float((score.mean(0).abs() / error.clamp_min(1e-12)).max())


def _gumbel_max_z(draws: int, source: torch.Generator) -> float:
    logits = _logits(source, 4)
    token = sample_soft_token(
        logits.expand(draws, 4), k=4, top_p=1.0, tau=1e-4, clamp=_UNTRUNCATED, generator=source
    )  # fmt: skip
    p = logits.softmax(-1)
    share = torch.bincount(token.ids[:, 0], minlength=4).double() / draws
    return float(((share - p).abs() / (p * (1 - p) / draws).sqrt()).max())
