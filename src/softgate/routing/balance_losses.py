"""Losses that keep the experts busy and the router's logits small; unweighted, in float32 or wider."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from softgate._checks import check_dim, check_float_tensor, check_number, check_same_device
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_value, check_choice
from softgate.registry import method
from softgate.routing._choice import widened

__all__ = ["importance_loss", "load_balancing_loss", "router_z_loss", "sequence_balance_loss"]

_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]


def _probs(dtype: torch.dtype, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator).softmax(-1).to(dtype)


def _chosen(generator: torch.Generator, *shape: int, k: int) -> Tensor:
    return torch.rand(shape, generator=generator).argsort(-1)[..., :k]


def _balance_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    keep = torch.rand(7, generator=generator) > 0.4
    yield (_probs(dtype, generator, 5, 4), _chosen(generator, 5, 4, k=2)), {}
    yield (_probs(dtype, generator, 7, 6), _chosen(generator, 7, 6, k=3), keep), {"normalise": "mixtral"}
    yield (_probs(dtype, generator, 2, 3, 4).log(), _chosen(generator, 2, 3, 4, k=1)), {"given": "logits"}
    yield (_probs(dtype, generator, 0, 4), _chosen(generator, 0, 4, k=2)), {}


def _balance_bad() -> Iterator[_Bad]:
    p, i = torch.ones(4, 3) / 3, torch.zeros(4, 2, dtype=torch.int64)
    yield (p, i.float()), {}, ArgumentTypeError, "indices"
    yield (p, [[0]]), {}, ArgumentTypeError, "indices"
    yield (p, i[:3]), {}, ArgumentValueError, "indices"
    yield (p, i, torch.ones(3, dtype=torch.bool)), {}, ArgumentValueError, "mask"
    yield (p, i, torch.ones(4)), {}, ArgumentTypeError, "mask"
    yield (p, i), {"normalise": "sum"}, ArgumentValueError, "normalise"
    yield (p, i), {"given": "scores"}, ArgumentValueError, "given"


@method(
    site="routing",
    family="custom",
    source="Switch Transformers, eq. (4)-(6); the form of Mixtral in transformers",
    samples=_balance_samples,
    bad_inputs=_balance_bad,
    output_range=(0.0, float("inf")),
    error_scale="tensor",
)
def load_balancing_loss(
    probs: Tensor,
    indices: Tensor,
    mask: Tensor | None = None,
    *,
    normalise: Literal["switch", "mixtral"] = "switch",
    given: Literal["probs", "logits"] = "probs",
    group: Any = None,
) -> Tensor:
    """``E · Σ_i f_i P_i``: the share of assignments of each expert times its mean probability.

    Equal loads give 1 with ``"switch"`` (f sums to 1) and K with ``"mixtral"`` (f sums to K). The gradient goes
    through P only.

    Args:
        probs: (…, E), probabilities of all experts, or logits with ``given="logits"``.
        indices: (…, K) int64, the chosen experts; E counts nowhere.
        mask: (…) bool, True where a token counts; None for all.
        normalise: ``"switch"`` or ``"mixtral"``.
        given: what ``probs`` holds.
        group: process group over which f is averaged (balance over the global batch); None for this process alone.

    Returns:
        Scalar; 0 without any token.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> load_balancing_loss(torch.full((2, 2), 0.5), torch.tensor([[0], [1]]))
        tensor(1.)

    Paper: Switch Transformers, arXiv 2101.03961, eq. (4)-(6).
    """
    check_choice("normalise", normalise, ("switch", "mixtral"))
    check_choice("given", given, ("probs", "logits"))
    count, p = _checked(probs, indices, mask)
    p = p.softmax(-1) if given == "logits" else p
    experts, chosen = p.shape[-1], indices.shape[-1]
    f = _share(indices, count, experts)
    if group is not None:
        torch.distributed.all_reduce(f, group=group)
        f = f / torch.distributed.get_world_size(group)
    mean = _mean(p.reshape(-1, experts), count)
    loss = experts * (f.to(mean.dtype) * mean).sum()
    return loss / chosen if normalise == "switch" else loss


def _checked(probs: Any, indices: Any, mask: Any, name: str = "probs") -> tuple[Tensor | None, Tensor]:
    """The mask as flat weights (None: all count) and the widened probabilities."""
    check_float_tensor(name, probs)
    if not isinstance(indices, Tensor) or indices.dtype is not torch.int64:
        raise ArgumentTypeError(f"indices must be an int64 tensor, got {getattr(indices, 'dtype', type(indices))}")
    check_same_device(**{name: probs, "indices": indices, "mask": mask if isinstance(mask, Tensor) else None})
    if probs.ndim < 1 or indices.ndim != probs.ndim or indices.shape[:-1] != probs.shape[:-1]:
        bad_value("indices", tuple(indices.shape), f"of shape (…, K) for {name} of shape {tuple(probs.shape)}")
    return _weights(mask, probs.shape[:-1]), widened(probs)


def _weights(mask: Any, shape: torch.Size) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        raise ArgumentTypeError(
            f"mask must be a bool tensor or None, got {getattr(mask, 'dtype', type(mask).__name__)}"
        )
    if mask.shape != shape:
        bad_value("mask", tuple(mask.shape), f"of shape {tuple(shape)}")
    return mask.reshape(-1)


def _share(indices: Tensor, mask: Tensor | None, experts: int) -> Tensor:
    """(E,): assignments of each expert per token that counts."""
    flat = indices.reshape(-1, indices.shape[-1])
    hits = (flat[..., None] == torch.arange(experts, device=flat.device)).sum(1)
    return _mean(hits.to(torch.float32), mask)


def _mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the rows that count; 0 without any. What does not count may be NaN."""
    if mask is None:
        return rows.sum(0) / max(rows.shape[0], 1)
    return torch.where(mask[:, None], rows, 0.0).sum(0) / mask.sum().clamp_min(1)


def _z_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    keep = torch.rand(2, 3, generator=generator) > 0.4
    draw = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    yield (draw.to(dtype),), {}
    yield (draw.to(dtype), keep), {}
    yield (torch.zeros(0, 4, dtype=dtype),), {}


def _z_bad() -> Iterator[_Bad]:
    yield (torch.ones(4, 3), torch.ones(3, dtype=torch.bool)), {}, ArgumentValueError, "mask"
    yield (torch.ones(4, 3), torch.ones(4)), {}, ArgumentTypeError, "mask"
    yield (torch.tensor(1.0),), {}, ArgumentValueError, "logits"


@method(
    site="routing",
    family="custom",
    source="ST-MoE, eq. (5)",
    samples=_z_samples,
    bad_inputs=_z_bad,
    output_range=(0.0, float("inf")),
    error_scale="tensor",
)
def router_z_loss(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the tokens of ``logsumexp(logits)²``: keeps router logits small, where rounding is harmless.

    Args:
        logits: (…, E).
        mask: (…) bool, True where a token counts; None for all.

    Returns:
        Scalar; 0 without any token.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> router_z_loss(torch.tensor([[0.5, 0.5]]).log())
        tensor(0.)

    Paper: ST-MoE, arXiv 2202.08906, eq. (5).
    """
    check_float_tensor("logits", logits)
    if logits.ndim < 1:
        bad_value("logits", tuple(logits.shape), "of shape (…, E)")
    count = _weights(mask, logits.shape[:-1])
    rows = widened(logits).logsumexp(-1).square().reshape(-1, 1)
    return _mean(rows, count)[0]


def _importance_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    yield (_probs(dtype, generator, 5, 4),), {}
    yield (_probs(dtype, generator, 2, 3, 4, 4), 1), {"eps": 1e-6}


def _importance_bad() -> Iterator[_Bad]:
    yield (torch.ones(4, 3), 2), {}, ArgumentValueError, "expert_dim"
    yield (torch.ones(4, 1),), {}, ArgumentValueError, "weights"
    yield (torch.ones(4, 3),), {"eps": -1.0}, ArgumentValueError, "eps"


@method(
    site="routing",
    family="custom",
    source="Outrageously Large Neural Networks, eq. (6)-(7)",
    samples=_importance_samples,
    bad_inputs=_importance_bad,
    output_range=(0.0, float("inf")),
    error_scale="tensor",
)
def importance_loss(weights: Tensor, expert_dim: int = 1, *, eps: float = 1e-10) -> Tensor:
    """Squared coefficient of variation of the experts' importance, the sum of an expert's weights over all else.

    ``Var(importance) / (mean(importance)² + eps)`` with the unbiased variance: 0 for equal importance,
    2((v₁ - v₂)/(v₁ + v₂))² for two experts, the same when all weights are scaled.

    Args:
        weights: gate weights of all experts, such as (T, E) or (B, E, H, W).
        expert_dim: the axis of the experts, at least two.
        eps: keeps the quotient finite where all weights are 0.

    Returns:
        Scalar.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: an axis or number out of range, fewer than two experts.

    Example:
        >>> import torch
        >>> importance_loss(torch.tensor([[3.0, 1.0]]))
        tensor(0.5000)

    Paper: arXiv 1701.06538, eq. (6)-(7).
    """
    check_float_tensor("weights", weights)
    dim = check_dim(expert_dim, weights.ndim, "expert_dim")
    check_number("eps", eps, low=0.0, high_open=True)
    if weights.ndim < 1 or weights.shape[dim] < 2:
        bad_value("weights", tuple(weights.shape), f"at least two experts along dimension {expert_dim}")
    importance = widened(weights).movedim(dim, 0).flatten(1).sum(1) if weights.ndim > 1 else widened(weights)
    # (1,), not a scalar: the forward derivative of scalar + number is float64 under vmap
    mean = importance.mean(0, keepdim=True)
    return (importance.var(0, keepdim=True) / (mean.square() + eps))[0]


def _sequence_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    keep = torch.rand(2, 5, generator=generator) > 0.4
    yield (_probs(dtype, generator, 2, 5, 4), _chosen(generator, 2, 5, 4, k=2)), {}
    yield (_probs(dtype, generator, 2, 5, 4), _chosen(generator, 2, 5, 4, k=2), keep), {}


def _sequence_bad() -> Iterator[_Bad]:
    p, i = torch.ones(2, 4, 3) / 3, torch.zeros(2, 4, 2, dtype=torch.int64)
    yield (p[0], i[0]), {}, ArgumentValueError, "scores"
    yield (p, i.int()), {}, ArgumentTypeError, "indices"
    yield (p, i[:, :3]), {}, ArgumentValueError, "indices"
    yield (p, i, torch.ones(2, 3, dtype=torch.bool)), {}, ArgumentValueError, "mask"


@method(
    site="routing",
    family="custom",
    source="DeepSeek-V3, eq. (17)-(20)",
    samples=_sequence_samples,
    bad_inputs=_sequence_bad,
    output_range=(0.0, float("inf")),
    error_scale="tensor",
)
def sequence_balance_loss(scores: Tensor, indices: Tensor, mask: Tensor | None = None) -> Tensor:
    """Balance within each sequence: ``Σ_i f_i P_i``, averaged over the sequences.

    ``f_i = E / (K L) · count_i`` over the L tokens of a sequence that count, ``P_i`` the mean of ``s_i / Σ_j s_j``.
    Equal loads give 1. The gradient goes through P only.

    Args:
        scores: (B, L, E), positive scores such as sigmoids; shares that sum to one are taken as they are.
        indices: (B, L, K) int64, the chosen experts; E counts nowhere.
        mask: (B, L) bool, True where a token counts; None for all.

    Returns:
        Scalar; 0 without any token.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> sequence_balance_loss(torch.ones(1, 2, 2), torch.tensor([[[0], [1]]]))
        tensor(1.)

    Paper: DeepSeek-V3 Technical Report, arXiv 2412.19437, eq. (17)-(20).
    """
    count, s = _checked(scores, indices, mask, "scores")
    if scores.ndim != 3:
        bad_value("scores", tuple(scores.shape), "of shape (B, L, E)")
    experts, chosen = s.shape[-1], indices.shape[-1]
    keep = torch.ones(s.shape[:2], dtype=torch.bool, device=s.device) if count is None else count.view(s.shape[:2])
    length = keep.sum(1, keepdim=True).clamp_min(1)
    share = torch.where(keep[..., None], s / (s.sum(-1, keepdim=True) + 1e-20), 0.0).sum(1) / length
    hits = (indices[..., None] == torch.arange(experts, device=s.device)).sum(2) * keep[..., None]
    f = hits.sum(1).to(s.dtype) * (experts / chosen) / length
    return (f * share).sum() / max(s.shape[0], 1)
