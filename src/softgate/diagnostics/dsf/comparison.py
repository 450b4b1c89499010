"""Comparing two token mixers by their matrices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softgate.diagnostics.dsf.system import System
from softgate.errors import ArgumentValueError, bad_type

__all__ = ["Comparison", "compare_systems", "effective_rank", "memory_length"]


class Comparison(NamedTuple):
    """What :func:`compare_systems` returns; pairs are (first system, second system).

    Attributes:
        max_difference: largest entry of ``|Φ_a - Φ_b|``; 0 means that the mixers are equal.
        output_difference: ``‖y_a - y_b‖ / ‖y_b‖`` on the stream, NaN without one.
        effective_rank: exponential of the entropy of Φ's normalised singular values, mean over heads and channels:
            how many directions of the past reach the outputs; at most min(T, …) and about n for a finite state.
        memory_length: mean distance in tokens at which outputs weigh their inputs, see :func:`memory_length`.
    """

    max_difference: float
    output_difference: float
    effective_rank: tuple[float, float]
    memory_length: tuple[float, float]


@torch.no_grad()
def compare_systems(a: System, b: System, u: Tensor | None = None) -> Comparison:
    """Compare two systems of equal length.

    Args:
        a: a system.
        b: another one; channels and leading dimensions may broadcast.
        u: (…, T, d) stream for ``output_difference``; that of ``b`` or ``a`` if they have one.

    Raises:
        ArgumentTypeError: not systems.
        ArgumentValueError: lengths that differ.

    Example:
        >>> import torch
        >>> one = torch.ones(4, 1, 1)
        >>> compare_systems(System(one, one, one), System(0.5 * one, one, one)).max_difference
        0.875
    """
    for name, system in (("a", a), ("b", b)):
        if not isinstance(system, System):
            bad_type(name, system, "a System")
    if a.length != b.length:
        raise ArgumentValueError(f"a and b must have one length, got {a.length} and {b.length}")
    first, second = a.matrix(), b.matrix()
    u = next((x for x in (u, b.u, a.u) if x is not None), None)
    difference = float("nan")
    if u is not None:
        y_b = b.quadratic(u)
        difference = float((a.quadratic(u) - y_b).norm() / y_b.norm())
    return Comparison(
        max_difference=float((first - second).abs().max()) if first.numel() else 0.0,
        output_difference=difference,
        effective_rank=(effective_rank(first), effective_rank(second)),
        memory_length=(memory_length(first), memory_length(second)),
    )


def effective_rank(matrix: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values, mean over leading dimensions.

    A matrix of k equal singular values has effective rank k.
    """
    values = torch.linalg.svdvals(matrix)
    shares = values / values.sum(-1, keepdim=True)
    return float(torch.special.entr(shares).sum(-1).exp().mean())


def memory_length(matrix: Tensor) -> float:
    """Mean of ``i - j`` weighted with ``|Φ_ij|``, in tokens, over rows and then leading dimensions."""
    weights = matrix.abs()
    positions = torch.arange(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    distance = (positions[:, None] - positions).clamp_min(0.0)
    rows = (weights * distance).sum(-1) / weights.sum(-1).clamp_min(torch.finfo(matrix.dtype).tiny)
    return float(rows.mean())
