"""Losses of one preferred and one rejected answer: DPO and its relatives, on log-ratios to a reference policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softgate._checks import check_number, check_same_device
from softgate.dispatch import call
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type
from softgate.policy._candidates import can_read, reduce_contexts
from softgate.policy._pairs import (
    Bad,
    Sample,
    bad_pairs,
    bad_smoothing,
    check_beta,
    check_pairs,
    log_ratios,
    margin,
    pair_samples,
    pairs,
)
from softgate.registry import method, record_of

__all__ = ["dpo_loss", "exo_pair_loss", "hinge_pair_loss", "ipo_loss", "robust_dpo_loss"]


def _ipo_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[Sample]:
    yield from pair_samples(dtype, generator)
    lengths = torch.tensor([3, 7, 1]), torch.tensor([4, 0, 9])
    yield (*pairs(dtype, generator, 3), *lengths), {}


def _ipo_bad() -> Iterator[Bad]:
    yield from bad_pairs()
    p, n = torch.zeros(3), torch.ones(3, dtype=torch.int64)
    yield (p, p, p, p, n), {}, ArgumentTypeError, "rejected_length"
    yield (p, p, p, p, None, n), {}, ArgumentTypeError, "chosen_length"
    yield (p, p, p, p, n[:2], n), {}, ArgumentValueError, "chosen_length"
    yield (p, p, p, p, n, -n), {}, ArgumentValueError, "rejected_length"


def _dpo(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor, *,
    beta: float = 0.1, label_smoothing: float = 0.0, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """``-(1 - eps) log sigmoid(beta D) - eps log sigmoid(-beta D)`` with the margin D of the log-ratios."""
    x = beta * margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    rows = -functional.logsigmoid(x)
    if label_smoothing:
        rows = (1.0 - label_smoothing) * rows - label_smoothing * functional.logsigmoid(-x)
    return reduce_contexts(rows, None, reduction).to(chosen_logp.dtype)


@method(
    site="policy",
    family="custom",
    source="DPO, eq. (7); label smoothing as in conservative DPO",
    reference=_dpo,
    samples=pair_samples,
    bad_inputs=bad_smoothing(1.1),
    variants={"default": {}, "smooth": {"label_smoothing": 0.2}},
    output_range=(0.0, float("inf")),
    error_scale="tensor",
)
def dpo_loss(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor, *,
    beta: float = 0.1, label_smoothing: float = 0.0, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Direct preference optimisation: the logistic loss of the margin between two log-ratios.

    It is :func:`softgate.policy.anchored_cross_entropy` of the two answers with q = (1 - eps, eps) and tau = 1 / beta.

    Args:
        chosen_logp: (…) log-probability of the preferred answer, summed over its tokens.
        rejected_logp: (…) that of the rejected one.
        ref_chosen_logp: (…) the same under the reference policy, no gradient.
        ref_rejected_logp: (…) likewise.
        beta: how closely the policy is tied to the reference, positive.
        label_smoothing: probability that a pair is the wrong way round, in [0, 1].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        0-d tensor, or (…) with ``reduction="none"``, in the dtype of ``chosen_logp``; at least 0. Without any pair 0.

    Raises:
        ArgumentTypeError: a tensor or option has the wrong type.
        ArgumentValueError: shapes differ, or an option is not allowed.

    Example:
        >>> import torch
        >>> p = torch.tensor([-10.0])
        >>> dpo_loss(p, p - 5, p, p, beta=0.1)
        tensor(0.4741)

    Paper: Rafailov et al., Direct Preference Optimization, arXiv 2305.18290, eq. (7).
    """
    logps = (chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    check_pairs(reduction, *logps)
    smoothing = check_number("label_smoothing", label_smoothing, low=0.0, high=1.0)
    return call(record_of(dpo_loss), *logps, beta=check_beta(beta), label_smoothing=smoothing, reduction=reduction)


def _robust(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor, *,
    beta: float = 0.1, label_smoothing: float = 0.1, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """``[-(1 - eps) log sigmoid(beta D) + eps log sigmoid(-beta D)] / (1 - 2 eps)``."""
    x = beta * margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    eps = label_smoothing
    rows = (eps * functional.logsigmoid(-x) - (1.0 - eps) * functional.logsigmoid(x)) / (1.0 - 2.0 * eps)
    return reduce_contexts(rows, None, reduction).to(chosen_logp.dtype)


@method(
    site="policy",
    family="custom",
    source="robust DPO: unbiased under a known rate of flipped pairs",
    reference=_robust,
    samples=pair_samples,
    bad_inputs=bad_smoothing(0.5),
    error_scale="tensor",
)
def robust_dpo_loss(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor, *,
    beta: float = 0.1, label_smoothing: float = 0.1, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """DPO whose mean over randomly flipped pairs is the loss of the pairs before flipping.

    Args:
        chosen_logp: (…) log-probability of the preferred answer, summed over its tokens.
        rejected_logp: (…) that of the rejected one.
        ref_chosen_logp: (…) the same under the reference policy, no gradient.
        ref_rejected_logp: (…) likewise.
        beta: how closely the policy is tied to the reference, positive.
        label_smoothing: rate of flipped pairs, in [0, ½).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        0-d tensor, or (…) with ``reduction="none"``, in the dtype of ``chosen_logp``. It can be negative and has no
        lower bound for a rate above 0.

    Raises:
        ArgumentTypeError: a tensor or option has the wrong type.
        ArgumentValueError: shapes differ, or an option is not allowed.

    Example:
        >>> import torch
        >>> p = torch.tensor([-10.0])
        >>> robust_dpo_loss(p, p - 5, p, p, label_smoothing=0.1)
        tensor(0.4116)

    Paper: Chowdhury et al., Provably Robust DPO, arXiv 2403.00409.
    """
    logps = (chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    check_pairs(reduction, *logps)
    eps = check_number("label_smoothing", label_smoothing, low=0.0, high=0.5, high_open=True)
    return call(record_of(robust_dpo_loss), *logps, beta=check_beta(beta), label_smoothing=eps, reduction=reduction)


def _ipo(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor,
    chosen_length: Tensor | None = None, rejected_length: Tensor | None = None, *,
    beta: float = 0.1, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """``(D - 1 / (2 beta))²`` with the margin D of the log-ratios, per token where lengths are given."""
    chosen, rejected = log_ratios(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    if chosen_length is not None and rejected_length is not None:
        chosen, rejected = chosen / chosen_length.clamp_min(1), rejected / rejected_length.clamp_min(1)
    rows = (chosen - rejected - 1.0 / (2.0 * beta)).square()
    return reduce_contexts(rows, None, reduction).to(chosen_logp.dtype)


@method(
    site="policy",
    family="custom",
    source="IPO, eq. (17), on token means where lengths are given",
    reference=_ipo,
    samples=_ipo_samples,
    bad_inputs=_ipo_bad,
    output_range=(0.0, float("inf")),
    error_scale="tensor",
)
def ipo_loss(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor,
    chosen_length: Tensor | None = None, rejected_length: Tensor | None = None, *,
    beta: float = 0.1, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Identity preference optimisation: the margin of the log-ratios is drawn to 1 / (2 beta) and no further.

    Args:
        chosen_logp: (…) log-probability of the preferred answer, summed over its tokens.
        rejected_logp: (…) that of the rejected one.
        ref_chosen_logp: (…) the same under the reference policy, no gradient.
        ref_rejected_logp: (…) likewise.
        chosen_length: (…) number of tokens of the preferred answer; its log-ratio is divided by it (by 1 if it is 0),
            as trainers do. None for sums.
        rejected_length: (…) likewise; give both or neither.
        beta: positive.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        0-d tensor, or (…) with ``reduction="none"``, in the dtype of ``chosen_logp``; at least 0.

    Raises:
        ArgumentTypeError: a tensor or option has the wrong type, or only one of the lengths is given.
        ArgumentValueError: shapes differ, or an option is not allowed.

    Example:
        >>> import torch
        >>> p = torch.tensor([-10.0])
        >>> ipo_loss(p, p - 5, p, p, beta=0.1)
        tensor(0.)

    Paper: Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences, arXiv 2310.12036.
    """
    logps = (chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    check_pairs(reduction, *logps)
    lengths = (chosen_length, rejected_length)
    if lengths != (None, None):
        for name, length in zip(("chosen_length", "rejected_length"), lengths, strict=True):
            _check_length(name, length, chosen_logp)
    return call(record_of(ipo_loss), *logps, *lengths, beta=check_beta(beta), reduction=reduction)


def _check_length(name: str, length: Any, like: Tensor) -> None:
    if not isinstance(length, Tensor) or length.is_complex() or length.layout is not torch.strided:
        bad_type(name, length, "a dense tensor of numbers; give both lengths or neither")
    if length.shape != like.shape:
        raise ArgumentValueError(f"{name} must have shape {tuple(like.shape)}, got {tuple(length.shape)}")
    check_same_device(chosen_logp=like, **{name: length})
    if can_read(length) and bool((length < 0).any()):
        raise ArgumentValueError(f"{name} must not be negative, got {length.min().item()}")


def _hinge(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor, *,
    beta: float = 0.1, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """``max(0, 1 - beta D)`` with the margin D of the log-ratios."""
    rows = torch.relu(1.0 - beta * margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp))
    return reduce_contexts(rows, None, reduction).to(chosen_logp.dtype)


@method(
    site="policy",
    family="custom",
    source="SLiC, the hinge loss, on log-ratios to the reference",
    reference=_hinge,
    samples=pair_samples,
    bad_inputs=bad_pairs,
    output_range=(0.0, float("inf")),
    error_scale="tensor",
)
def hinge_pair_loss(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor, *,
    beta: float = 0.1, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Hinge loss of the margin between two log-ratios; a margin beyond 1 / beta has no gradient.

    Args:
        chosen_logp: (…) log-probability of the preferred answer, summed over its tokens.
        rejected_logp: (…) that of the rejected one.
        ref_chosen_logp: (…) the same under the reference policy, no gradient.
        ref_rejected_logp: (…) likewise.
        beta: positive.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        0-d tensor, or (…) with ``reduction="none"``, in the dtype of ``chosen_logp``; at least 0.

    Raises:
        ArgumentTypeError: a tensor or option has the wrong type.
        ArgumentValueError: shapes differ, or an option is not allowed.

    Example:
        >>> import torch
        >>> p = torch.tensor([-10.0])
        >>> hinge_pair_loss(p, p - 5, p, p, beta=0.1)
        tensor(0.5000)

    Paper: Zhao et al., SLiC-HF, arXiv 2305.10425; the anchored form of Liu et al., arXiv 2309.06657.
    """
    logps = (chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    check_pairs(reduction, *logps)
    return call(record_of(hinge_pair_loss), *logps, beta=check_beta(beta), reduction=reduction)


def _exo(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor, *,
    beta: float = 0.1, label_smoothing: float = 1e-3, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """KL(p ‖ (1 - eps, eps)) with p = softmax of beta times both log-ratios."""
    x = beta * margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    goal = torch.tensor([1.0 - label_smoothing, label_smoothing], dtype=x.dtype, device=x.device).log()
    log_p = torch.stack((functional.logsigmoid(x), functional.logsigmoid(-x)), -1)
    rows = (log_p.exp() * (log_p - goal)).sum(-1)
    return reduce_contexts(rows, None, reduction).to(chosen_logp.dtype)


@method(
    site="policy",
    family="custom",
    source="EXO for two answers, eq. (16)",
    reference=_exo,
    samples=pair_samples,
    bad_inputs=bad_smoothing(1.0),
    error_scale="tensor",
)
def exo_pair_loss(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor, *,
    beta: float = 0.1, label_smoothing: float = 1e-3, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Reverse KL divergence of a pair: KL(softmax(beta ρ) ‖ (1 - eps, eps)) with the log-ratios ρ of both answers.

    DPO with label smoothing is the other direction of the same divergence, up to a constant.

    Args:
        chosen_logp: (…) log-probability of the preferred answer, summed over its tokens.
        rejected_logp: (…) that of the rejected one.
        ref_chosen_logp: (…) the same under the reference policy, no gradient.
        ref_rejected_logp: (…) likewise.
        beta: positive.
        label_smoothing: eps, in (0, 1).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        0-d tensor, or (…) with ``reduction="none"``, in the dtype of ``chosen_logp``; at least 0 but for rounding.

    Raises:
        ArgumentTypeError: a tensor or option has the wrong type.
        ArgumentValueError: shapes differ, or an option is not allowed.

    Example:
        >>> import torch
        >>> p = torch.tensor([-10.0])
        >>> exo_pair_loss(p, p, p, p, label_smoothing=0.5)
        tensor(0.)

    Paper: Ji et al., Towards Efficient Exact Optimization of Language Model Alignment, arXiv 2402.00856, eq. (16).
    """
    logps = (chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    check_pairs(reduction, *logps)
    eps = check_number("label_smoothing", label_smoothing, low=0.0, high=1.0, low_open=True, high_open=True)
    return call(record_of(exo_pair_loss), *logps, beta=check_beta(beta), label_smoothing=eps, reduction=reduction)
