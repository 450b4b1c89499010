"""Plackett-Luce likelihood of a ranking: a softmax over those not yet placed, one place after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_number, check_sizes
from softgate._math.compress import compute_dtype
from softgate.dispatch import call
from softgate.errors import ArgumentTypeError, ArgumentValueError, check_choice
from softgate.policy._candidates import REDUCTIONS, as_mask, check_lists, reduce_contexts
from softgate.policy.preference_targets import check_scores
from softgate.registry import method, record_of

__all__ = ["plackett_luce_loss"]

_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    def ranks(*shape: int) -> Tensor:  # without ties, whatever the dtype
        return torch.rand(shape, generator=generator).argsort(-1).to(dtype)

    yield (draw(3, 4).requires_grad_(), ranks(3, 4)), {}
    keep = torch.rand(2, 3, 5, generator=generator) > 0.4
    keep[1, 1] = False
    yield (draw(2, 3, 5).masked_fill(~keep, float("nan")).requires_grad_(), ranks(2, 3, 5)), {"mask": keep}
    yield (draw(5, 1).requires_grad_(), ranks(5, 1)), {}
    yield (draw(2, 6).requires_grad_(), ranks(2, 6)), {"reduction": "none"}
    yield (draw(0, 4).requires_grad_(), ranks(0, 4)), {}


def _bad() -> Iterator[_Bad]:
    u = torch.zeros(2, 3)
    yield (u, torch.zeros(3, 3)), {}, ArgumentValueError, "scores"
    yield (torch.tensor(0.0),) * 2, {}, ArgumentValueError, "u"
    yield (u, u * float("nan")), {}, ArgumentValueError, "scores"
    yield (u, u), {"top_k": 0}, ArgumentValueError, "top_k"
    yield (u, u), {"top_k": 1.5}, ArgumentTypeError, "top_k"
    yield (u, u), {"label_smoothing": 1.5}, ArgumentValueError, "label_smoothing"
    yield (u, u), {"temperature": 0.0}, ArgumentValueError, "temperature"
    yield (u, u), {"poly": float("inf")}, ArgumentValueError, "poly"
    yield (u, u), {"mask": torch.ones(3, dtype=torch.bool)}, ArgumentValueError, "mask"


def reference(
    u: Tensor,
    scores: Tensor,
    *,
    mask: Tensor | None = None,
    top_k: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    poly: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Mean over the places k of ``logsumexp(u_k, ..., u_n) - u_k``, candidates in the order of falling scores."""
    allowed = as_mask("mask", mask, u)
    wide = u.to(compute_dtype(u.dtype)) / temperature
    keys = scores.detach()
    if allowed is not None:
        wide, keys = torch.where(allowed, wide, 0.0), keys.masked_fill(~allowed, float("-inf"))
    order = torch.sort(keys, dim=-1, descending=True, stable=True).indices
    ranked = wide.gather(-1, order)
    n = u.shape[-1]
    places = n - 1 if top_k is None else min(top_k, n - 1)
    # row k of the table holds the candidates from place k on, the others at -inf
    later = torch.ones(n, n, dtype=torch.bool, device=u.device).triu()[:places]
    if allowed is not None:
        later = later & allowed.gather(-1, order)[..., None, :]
        later = later | torch.eye(n, dtype=torch.bool, device=u.device)[:places]  # no row may be empty
    open_places = later.sum(-1)
    own = ranked[..., :places]
    best = ranked[..., None, :].masked_fill(~later, float("-inf")).logsumexp(-1)
    terms = best - own
    if label_smoothing:
        rest = torch.where(later, ranked[..., None, :], 0.0).sum(-1) / open_places
        terms = (1.0 - label_smoothing) * terms + label_smoothing * (best - rest)
    if poly:
        terms = terms - poly * torch.expm1(-terms)
    if allowed is None:
        rows = terms.sum(-1) / max(places, 1)
    else:  # a place with one candidate left is no choice
        choices = open_places > 1
        rows = torch.where(choices, terms, 0.0).sum(-1) / choices.sum(-1).clamp_min(1)
    return reduce_contexts(rows, allowed, reduction).to(u.dtype)


@method(
    site="policy",
    family="custom",
    paper="adpo",
    source="target plackett_luce: mean_k [logsumexp(u_sigma(k..P)) - u_sigma(k)], sigma by falling score",
    reference=reference,
    samples=_samples,
    bad_inputs=_bad,
    variants={"default": {}, "smooth": {"top_k": 2, "label_smoothing": 0.1, "temperature": 2.0, "poly": 1.0}},
    output_range=(0.0, float("inf")),
    error_scale="tensor",
)
def plackett_luce_loss(
    u: Tensor,
    scores: Tensor,
    *,
    mask: Tensor | None = None,
    top_k: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    poly: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of the ranking by ``scores`` under the Plackett-Luce model with logits ``u``.

    Every place k is a softmax among the candidates from place k on: ``logsumexp(u_k, ..., u_n) - u_k``. The loss is
    the mean over the places but the last, which is no choice. With n = 2 it is the logistic loss of the pair. For the
    anchored form give it :func:`anchored_scores`.

    Args:
        u: (…, n) logits.
        scores: (…, n), finite; only their order counts, no gradient goes there. Of equal scores the earlier candidate
            comes first.
        mask: (…, n), True (or not 0) where a candidate stands; None for all.
        top_k: rank only the first ``top_k`` places; None for all.
        label_smoothing: in [0, 1]; mixes in the mean over the open candidates of every place.
        temperature: divides ``u``, positive.
        poly: weight of ``1 - exp(-term)``, added to every term; 0 for none.
        reduction: ``"mean"`` over the contexts that have a candidate, ``"sum"`` or ``"none"``.

    Returns:
        0-d tensor, or (…) with ``reduction="none"``, in the dtype of ``u``; at least 0, and 0 for a single candidate.
        Memory grows with n² per list.

    Raises:
        ArgumentTypeError: a tensor or option has the wrong type.
        ArgumentValueError: shapes do not fit, an option is not allowed, or a score is not finite (CPU only).

    Example:
        >>> import torch
        >>> plackett_luce_loss(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[3.0, 1.0, 2.0]]))
        tensor(1.3604)

    Paper: ADPO, arXiv 2510.18913 (the ranking target of its code); Plackett (1975), Luce (1959).
    """
    check_lists("u", u=u, scores=scores)
    check_choice("reduction", reduction, REDUCTIONS)
    allowed = as_mask("mask", mask, u)
    if top_k is not None:
        check_sizes(top_k=top_k)
    options = {
        "label_smoothing": check_number("label_smoothing", label_smoothing, low=0.0, high=1.0),
        "temperature": check_number("temperature", temperature, low=0.0, low_open=True, high_open=True),
        "poly": check_number("poly", poly, low=0.0, high_open=True),
    }
    check_scores(scores, allowed)
    record = record_of(plackett_luce_loss)
    return call(record, u, scores, mask=allowed, top_k=top_k, reduction=reduction, **options)
