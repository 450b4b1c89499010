"""Exact statements of the framework, checked on random systems: forms that agree, mixers that are one and the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softgate.attention.scans.selective import selective_scan, ssd_scan
from softgate.attention.separable.features import elu_plus_one
from softgate.diagnostics.dsf.builders import (
    from_linear_attention,
    from_normalized_attention,
    from_qlstm,
    from_rglru,
    from_s6,
    from_softmax,
    from_ssd,
)
from softgate.diagnostics.dsf.comparison import compare_systems
from softgate.diagnostics.dsf.system import System

__all__ = ["identities"]


def identities(seed: int = 0) -> dict[str, float]:
    """Errors of the framework's exact statements on random float64 systems; all are rounding.

    Args:
        seed: of the systems.

    Returns:
        ``form_error_MIXER``: outputs token by token against those in chunks and as a matrix, the largest of them as
        ``form_error``. ``reversed_sigmoid_error``: exp(-A softplus(x)) against σ(-x)^A. ``row_sum_error`` and
        ``eta_ratio_error``: linear attention against normalised attention with the row sum as η, and against the
        system with decays η_(i-1)/η_i. ``undecayed_error``: SSD without decay against unnormalised linear attention.
        ``s6_ssd_error``: S6 with one decay for all against SSD.

    Paper: arXiv 2405.15731, sections 3 and 4.
    """
    generator = torch.Generator().manual_seed(seed)
    errors: dict[str, float] = {}
    for name, system in _systems(generator):
        first = system.scan()
        others = (system.quadratic(), system.chunked(chunk=5), system.chunked(chunk=64))
        errors[f"form_error_{name}"] = max(float((first - y).abs().max()) for y in others)
    return {"form_error": max(errors.values()), **errors, **_equivalences(generator)}


def _draws(generator: torch.Generator) -> Any:
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def _systems(generator: torch.Generator) -> Iterator[tuple[str, System]]:
    draw = _draws(generator)
    q, k, v, eta = draw(2, 2, 19, 4), draw(2, 2, 19, 4), draw(2, 2, 19, 3), draw(2, 2, 19, 1)
    yield "softmax", from_softmax(q, k, v, order=4)
    yield "linear", from_linear_attention(q, k, v)
    for norm in ("exp", "softplus", "sigmoid"):
        yield f"normalized_{norm}", from_normalized_attention(q, k, v, eta, norm=norm)
    u, A, B, C = draw(2, 19, 3), draw(3, 4).abs(), draw(2, 19, 4), draw(2, 19, 4)
    yield "s6", from_s6(u, u.exp(), A, B, C, draw(3))
    yield "ssd", from_ssd(v, v[..., 0].exp(), A[:2, 0], q, k, draw(2))
    forget, write, read = draw(2, 19, 3), draw(2, 19, 3), draw(2, 19, 3)
    yield "qlstm", from_qlstm(u, forget, write, read)
    yield "qlstm_reversed", from_qlstm(u, forget, write, read, torch.tensor(1.3, dtype=torch.float64))
    yield "rglru", from_rglru(u, forget, write, draw(3))


def _equivalences(generator: torch.Generator) -> dict[str, float]:
    """Mixers that are the same system: largest difference of their matrices or outputs."""
    draw = _draws(generator)
    q, k, v, x = draw(1, 2, 17, 4), draw(1, 2, 17, 4), draw(1, 2, 17, 3), 4.0 * draw(1000)
    power = draw(1000).abs()
    s6_gate = (-power * F.softplus(x)).exp()
    linear = from_linear_attention(q, k, v)
    row_sum = (elu_plus_one(q) * elu_plus_one(k).cumsum(-2)).sum(-1, keepdim=True)
    with_row_sum = from_normalized_attention(q, k, v, row_sum.log(), feature_map="elu")
    one = torch.ones(1, 2, 17, dtype=torch.float64)
    nothing = torch.zeros(2, dtype=torch.float64)
    undecayed = ssd_scan(v, one, nothing, k, q, allow_unstable=True).output
    u, delta, a, B, C = draw(1, 17, 3), draw(1, 17, 1).abs(), draw(1).abs(), draw(1, 17, 4), draw(1, 17, 4)
    s6 = selective_scan(u, delta.expand_as(u), a.expand(3, 4), B, C).output
    ssd = ssd_scan(u[:, None], delta.mT, a, B[:, None], C[:, None]).output[:, 0]
    return {
        "reversed_sigmoid_error": float((s6_gate - torch.sigmoid(-x) ** power).abs().max()),
        "row_sum_error": compare_systems(with_row_sum, linear).max_difference,
        "eta_ratio_error": compare_systems(_with_eta_ratios(q, k, v, row_sum), linear).max_difference,
        "undecayed_error": float((undecayed - (q @ k.mT).tril() @ v).abs().max()),
        "s6_ssd_error": float((s6 - ssd).abs().max()),
    }


def _with_eta_ratios(q: Tensor, k: Tensor, v: Tensor, eta: Tensor) -> System:
    """Linear attention as the paper writes it, with decays eta_(i-1) / eta_i; the first decay acts on a zero state."""
    ratios = torch.cat((torch.ones_like(eta[..., :1, :]), eta[..., :-1, :] / eta[..., 1:, :]), -2)
    return System(ratios[..., None], (elu_plus_one(k) / eta)[..., None, :], elu_plus_one(q)[..., None, :], u=v)
