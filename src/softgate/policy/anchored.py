"""Anchored cross-entropy: one loss from supervised fine-tuning over distillation to DPO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.dispatch import call
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, check_choice
from softgate.policy._candidates import (
    REDUCTIONS,
    as_mask,
    can_read,
    check_lists,
    reduce_contexts,
)
from softgate.registry import method, record_of

__all__ = ["anchored_cross_entropy", "anchored_scores"]

_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]


def anchored_scores(
    logp: Tensor,
    anchor_logp: Tensor,
    tau: float | Tensor = 1.0,
    *,
    clamp_ratio: float | None = None,
    clamp_score: float | None = None,
) -> Tensor:
    """``u = (logp - anchor_logp) / tau``: how far the policy has moved from its anchor, in units of tau.

    Args:
        logp: (…, n) log-probabilities of the policy.
        anchor_logp: (…, n) those of the anchor; no gradient goes there.
        tau: positive number, or one for each context (…).
        clamp_ratio: bound of ``|logp - anchor_logp|``; None for no bound. Beyond it the gradient is 0.
        clamp_score: bound of ``|u|``, likewise.

    Returns:
        (…, n) in float32 or wider.

    Raises:
        ArgumentTypeError: a tensor or option has the wrong type.
        ArgumentValueError: shapes do not fit, or a number is not positive.

    Example:
        >>> import torch
        >>> anchored_scores(torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -2.0]), tau=0.5)
        tensor([2., 0.])

    Paper: ADPO, arXiv 2510.18913, the anchored scores of its loss.
    """
    check_lists("logp", logp=logp, anchor_logp=anchor_logp)
    options = check_score_options(logp, tau, clamp_ratio, clamp_score)
    return scores_of(logp, anchor_logp, **options)


def check_score_options(
    logp: Tensor, tau: Any, clamp_ratio: Any, clamp_score: Any, contexts: torch.Size | None = None
) -> dict[str, Any]:
    """The options of :func:`anchored_scores`, checked, as keyword arguments of :func:`scores_of`."""
    if isinstance(tau, Tensor):
        contexts = logp.shape[:-1] if contexts is None else contexts
        if not tau.is_floating_point():
            raise ArgumentTypeError(f"tau must be a number or a floating-point tensor, got {tau.dtype}")
        if tau.shape not in (contexts, torch.Size()):
            raise ArgumentValueError(f"tau must have shape {tuple(contexts)}, got {tuple(tau.shape)}")
        check_same_device(logp=logp, tau=tau)
        if can_read(tau) and not bool((tau > 0).all()):
            raise ArgumentValueError(f"tau must be positive for every context, got {float(tau.min())}")
    else:
        tau = check_number("tau", tau, low=0.0, low_open=True, high_open=True)
    for name, bound in (("clamp_ratio", clamp_ratio), ("clamp_score", clamp_score)):
        if bound is not None:
            check_number(name, bound, low=0.0, low_open=True)
    return {"tau": tau, "clamp_ratio": clamp_ratio, "clamp_score": clamp_score}


def scores_of(
    logp: Tensor, anchor_logp: Tensor, tau: float | Tensor, clamp_ratio: float | None, clamp_score: float | None
) -> Tensor:
    """:func:`anchored_scores` without checks."""
    dtype = compute_dtype(torch.promote_types(logp.dtype, anchor_logp.dtype))
    ratio = logp.to(dtype) - anchor_logp.detach().to(dtype)
    if clamp_ratio is not None:
        ratio = ratio.clamp(-clamp_ratio, clamp_ratio)
    u = ratio / (tau.detach().to(dtype)[..., None] if isinstance(tau, Tensor) else tau)
    return u if clamp_score is None else u.clamp(-clamp_score, clamp_score)


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def lists(*shape: int) -> tuple[Tensor, ...]:
        q = draw(*shape).softmax(-1).to(dtype)
        return (draw(*shape) - 3).to(dtype).requires_grad_(), (draw(*shape) - 3).to(dtype), q

    yield lists(3, 4), {}
    keep = torch.ones(2, 3, 4, dtype=torch.bool)
    keep[0, 1, 2:] = keep[1, 0] = False
    logp, anchor, _ = lists(2, 3, 4)
    q = draw(2, 3, 4).masked_fill(~keep, float("-inf")).softmax(-1).nan_to_num(0.0).to(dtype)
    yield (logp, anchor, q), {"mask": keep, "tau": torch.rand(2, 3, generator=generator) + 0.5}
    one_hot = torch.eye(4).to(dtype)
    outside = lists(4, 4)[1].masked_fill(one_hot.roll(1, 0) > 0, float("-inf"))
    yield (lists(4, 4)[0], outside, one_hot), {"reduction": "none"}
    yield lists(5, 1), {}
    yield lists(0, 3), {}


def _bad() -> Iterator[_Bad]:
    p, q = torch.zeros(2, 3), torch.full((2, 3), 1 / 3)
    yield (p, torch.zeros(2, 4), q), {}, ArgumentValueError, "anchor_logp"
    yield (p, p, q[:1]), {}, ArgumentValueError, "target"
    yield (torch.tensor(0.0),) * 3, {}, ArgumentValueError, "logp"
    yield (torch.zeros(2, 0),) * 3, {}, ArgumentValueError, "logp"
    yield (p, p, q * 1.001), {}, ArgumentValueError, "target"
    yield (p, p, torch.tensor([[1.5, -0.5, 0.0]] * 2)), {}, ArgumentValueError, "target"
    yield (p, p, q * float("nan")), {}, ArgumentValueError, "target"
    yield (p, p.masked_fill(torch.eye(2, 3) > 0, float("-inf")), q), {}, ArgumentValueError, "target"
    numbers: tuple[Any, ...] = (0.0, -1.0, float("nan"), float("inf"), torch.zeros(2), torch.ones(3))
    others: tuple[Any, ...] = ("1", None, [1.0], torch.ones(2, dtype=torch.int64))
    for tau in numbers:
        yield (p, p, q), {"tau": tau}, ArgumentValueError, "tau"
    for tau in others:
        yield (p, p, q), {"tau": tau}, ArgumentTypeError, "tau"
    yield (p, p, q), {"mask": torch.ones(2, 2, dtype=torch.bool)}, ArgumentValueError, "mask"
    yield (p, p, q), {"mask": [[True] * 3] * 2}, ArgumentTypeError, "mask"
    yield (p, p, q), {"mask": torch.ones(2, 3, dtype=torch.bool).tril()}, ArgumentValueError, "target"
    yield (p, p, q), {"clamp_ratio": -1.0}, ArgumentValueError, "clamp_ratio"
    yield (p, p, q), {"clamp_score": 0.0}, ArgumentValueError, "clamp_score"


def reference(
    logp: Tensor,
    anchor_logp: Tensor,
    target: Tensor,
    *,
    tau: float | Tensor = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
    reduce_entropy: bool = False,
    clamp_ratio: float | None = None,
    clamp_score: float | None = None,
) -> Tensor:
    """``-sum_i q_i log softmax(u)_i`` with u of :func:`scores_of`, plus ``sum_i q_i log q_i``, a divergence."""
    allowed = as_mask("mask", mask, logp)
    u = scores_of(logp, anchor_logp, tau, clamp_ratio, clamp_score)
    q = target.detach().to(u.dtype)
    absent = anchor_logp.detach() == float("-inf")
    if allowed is not None:
        absent, q = absent | ~allowed, torch.where(allowed, q, 0.0)
    # u is linear in logp, so what a masked candidate holds (NaN, say) is gone here, its gradient too
    u = u.masked_fill(absent, float("-inf"))
    if allowed is not None:  # a list without candidates must not become 0 / 0
        u = u.masked_fill(absent.all(-1, keepdim=True), 0.0)
    rows = -torch.where(q > 0, q * u.log_softmax(-1), 0.0).sum(-1)
    if reduce_entropy:
        rows = rows + torch.xlogy(q, q).sum(-1)
    return reduce_contexts(rows, allowed, reduction).to(logp.dtype)


@method(
    site="policy",
    family="custom",
    paper="adpo",
    source="L = -sum_i q_i log softmax((l - l_ref) / tau)_i, the anchored cross-entropy",
    reference=reference,
    samples=_samples,
    bad_inputs=_bad,
    variants={"default": {}, "divergence": {"tau": 0.5, "reduce_entropy": True}},
    error_scale="tensor",
)
def anchored_cross_entropy(
    logp: Tensor,
    anchor_logp: Tensor,
    target: Tensor,
    *,
    tau: float | Tensor = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
    reduce_entropy: bool = False,
    clamp_ratio: float | None = None,
    clamp_score: float | None = None,
) -> Tensor:
    r"""Cross-entropy of a target distribution and the policy *relative to an anchor*, over a list of candidates.

    .. math:: u_i = (\ell_i - \ell^{ref}_i) / \tau, \qquad \tilde p = \mathrm{softmax}(u), \qquad
              L = -\sum_i q_i \log \tilde p_i, \qquad \partial L / \partial \ell = (\tilde p - q) / \tau

    The free optimum on the list is ``pi_ref * q ** tau``, normalised; a uniform q gives the anchor back. A larger tau
    therefore allows a *larger* departure from the anchor, while it makes every gradient smaller by 1 / tau and the
    valley flatter by 1 / tau²: the Hessian in ℓ is (diag p̃ - p̃ p̃ᵀ) / tau². Special cases: a one-hot q with a
    uniform anchor and tau = 1 is softmax cross-entropy on the list; q = softmax(z_T / T) with a uniform anchor and
    tau = T is distillation (without the factor T²); n = 2, q = (1, 0) and tau = 1 / beta is DPO, and
    q = (1 - eps, eps) its label-smoothed form.

    Args:
        logp: (…, n) log-probabilities of the n candidates under the policy. A number added to a whole row changes
            nothing, so unnormalised scores do as well.
        anchor_logp: (…, n) the same under the anchor, no gradient. A candidate at -inf is left out of the list.
        target: (…, n) q, no gradient; every row sums to 1 (to 1e-4, or to the rounding of a 16-bit dtype).
        tau: positive number, or a tensor (…) with one for each context.
        mask: (…, n), True (or not 0) where a candidate stands; None for all. What is masked may hold anything.
        reduction: ``"mean"`` over the contexts that have a candidate, ``"sum"`` or ``"none"``.
        reduce_entropy: subtract the entropy of q, which gives KL(q ‖ p̃), 0 at the optimum.
        clamp_ratio: bound of ``|logp - anchor_logp|``, None for none; it takes the gradient away beyond it.
        clamp_score: bound of ``|u|``, likewise.

    Returns:
        0-d tensor, or (…) with ``reduction="none"``, in the dtype of ``logp`` (16-bit types are computed in float32);
        at least 0. ``+inf`` where the policy gives probability 0 to a candidate with q > 0. A list of one candidate, or
        of none, has loss 0. NaN in an unmasked log-probability gives NaN.

    Raises:
        ArgumentTypeError: a tensor or option has the wrong type.
        ArgumentValueError: shapes do not fit, ``tau`` is not positive, or q is no distribution on the candidates that
            the mask and the support of the anchor leave (values are only looked at on CPU).

    Example:
        >>> import torch
        >>> logp, anchor = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.5]])
        >>> anchored_cross_entropy(logp, anchor, torch.tensor([[1.0, 0.0]]), tau=10.0)  # DPO with beta = 0.1
        tensor(0.6444)

    Paper: ADPO, arXiv 2510.18913, the anchored objective and its special cases.
    """
    check_lists("logp", logp=logp, anchor_logp=anchor_logp, target=target)
    check_choice("reduction", reduction, REDUCTIONS)
    if not isinstance(reduce_entropy, bool):
        bad_type("reduce_entropy", reduce_entropy, "a bool")
    allowed = as_mask("mask", mask, logp)
    options = check_score_options(logp, tau, clamp_ratio, clamp_score)
    if can_read(anchor_logp, target, allowed):
        _check_target(anchor_logp, target, allowed)
    record = record_of(anchored_cross_entropy)
    return call(
        record, logp, anchor_logp, target, mask=allowed, reduction=reduction, reduce_entropy=reduce_entropy, **options
    )


def _check_target(anchor_logp: Tensor, target: Tensor, allowed: Tensor | None) -> None:
    """Every row is a distribution on its candidates, and the anchor gives none of them with q > 0 probability 0."""
    if target.numel() == 0:
        return
    q = target.detach() if allowed is None else torch.where(allowed, target.detach(), 0.0)
    smallest = float(q.min())
    if smallest < 0:
        raise ArgumentValueError(f"target must not be negative, got {smallest}")
    tolerance = max(1e-4, q.shape[-1] * torch.finfo(q.dtype).eps)
    off = (q.sum(-1, dtype=compute_dtype(q.dtype)) - 1).abs()
    if allowed is not None:
        off = off.masked_fill(~allowed.any(-1), 0.0)
    if not float(off.max()) <= tolerance:  # NaN too
        raise ArgumentValueError(
            f"target must sum to 1 over the candidates of every context, got a sum that is off by {float(off.max())}"
        )
    anchor = anchor_logp.detach()
    # one pass where nothing is wrong; a masked candidate may hold NaN, which min() gives back
    if not float(anchor.min()) > float("-inf") and bool(((q > 0) & (anchor == float("-inf"))).any()):
        raise ArgumentValueError("target must be 0 outside the anchor's support: anchor_logp is -inf where q > 0")
