"""From sums over forward passes to the figures of a report."""

from __future__ import annotations

import math

import torch

from softgate.diagnostics._observe.attention import AttentionSums
from softgate.diagnostics._observe.heads import lipschitz_product, small_heads
from softgate.diagnostics._observe.hidden import ActivationSums, LogitSums, RouterSums
from softgate.diagnostics._observe.observer import Observer
from softgate.diagnostics.figures import (
    ActivationFigures,
    AttentionFigures,
    HeadFigures,
    LogitFigures,
    RouterFigures,
)
from softgate.routing.sigmoid_bias import max_violation

__all__: list[str] = []


def attention_figures(sums: AttentionSums) -> AttentionFigures:
    """Means over the rows of one attention; at least one row has counted."""
    assert sums.sink is not None and sums.entropy is not None and sums.top is not None
    pairs = sums.rows * len(sums.sink)
    return AttentionFigures(
        name=sums.name,
        keys=sums.keys,
        rows=sums.rows,
        sink_share=(sums.sink / sums.rows).tolist(),
        uniform_share=sums.uniform / sums.rows,
        top_share=(sums.top / sums.sequences).tolist(),
        top_key=sums.top_key,
        entropy=(sums.entropy / sums.rows).tolist(),
        max_logit=None if sums.largest is None else sums.largest.tolist(),
        logit_std=None if sums.largest is None else sums.deviation / pairs,
        collapse={name: count / pairs for name, count in sums.collapsed.items()},
    )


def activation_figures(sums: ActivationSums) -> ActivationFigures:
    """Means over the tokens of one module; at least one token has counted."""
    return ActivationFigures(
        name=sums.name,
        width=sums.width,
        tokens=sums.tokens,
        max_abs=sums.largest,
        median_abs=sums.median / sums.batches,
        inf_norm=sums.inf_norm / sums.tokens,
        kurtosis=sums.kurtosis / sums.tokens,
        peak_kurtosis=sums.peak,
    )


def router_figures(sums: RouterSums) -> RouterFigures:
    """The balance of one router; at least one token was routed."""
    assert sums.load is not None
    share = sums.load.double() / sums.load.sum().clamp_min(1)
    largest = math.log(max(len(share), 2))
    return RouterFigures(
        name=sums.name,
        tokens=sums.tokens,
        load=sums.load.tolist(),
        max_violation=float(max_violation(sums.load)),
        load_entropy=float(-torch.special.xlogy(share, share).sum()) / largest,
        router_entropy=sums.entropy / sums.tokens / largest,
        dead=[int(i) for i in (sums.load == 0).nonzero().flatten()],
    )


def logit_figures(sums: LogitSums, loss_dtype: str) -> LogitFigures | None:
    """Means over the rows of logits, None if there were none."""
    if not sums.rows:
        return None
    return LogitFigures(
        dtype=sums.dtype,
        loss_dtype=loss_dtype,
        classes=sums.classes,
        rows=sums.rows,
        std=sums.deviation / sums.rows,
        max_abs=sums.largest,
        median_margin=float(torch.cat(sums.margins).median()),
        collapse={name: count / sums.rows for name, count in sums.collapsed.items()},
    )


def head_figures(observer: Observer, logits: LogitFigures | None) -> list[HeadFigures]:
    """Lipschitz bounds of the small heads."""
    found = []
    for name, module, weights in small_heads(observer.model):
        bound = lipschitz_product(module, weights)
        fits = logits is not None and weights[-1].shape[0] == logits.classes and bound > 0.0
        radius = logits.median_margin / (math.sqrt(2) * bound) if logits is not None and fits else None
        found.append(HeadFigures(name, bound, exact=len(weights) == 1, radius=radius))
    return found
