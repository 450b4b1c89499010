"""The diagonal recurrence itself: every state of h_i = λ_i ⊙ h_{i-1} + x_i."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._math.masks import without_autocast
from softgate._math.recurrence import doubling_scan
from softgate._math.scan import linear_scan
from softgate.attention.scans.checks import check_shape, check_tensors, widen, zeros_or
from softgate.dispatch import call
from softgate.errors import ArgumentValueError
from softgate.registry import Kernel, method, record_of

__all__ = ["diagonal_scan"]


def _diagonal_scan_reference(decay: Tensor, x: Tensor, state: Tensor | None = None) -> Tensor:
    """The associative scan, by recursive doubling."""
    with without_autocast(x):
        x_TD, decay_TD, first_D = _prepare(decay, x, state)
        return doubling_scan(decay_TD, x_TD, first_D).movedim(0, -2).to(x.dtype)


def _run_blocks(decay: Tensor, x: Tensor, state: Tensor | None = None) -> Tensor:
    with without_autocast(x):
        x_TD, decay_TD, first_D = _prepare(decay, x, state)
        return linear_scan(decay_TD, x_TD, first_D).movedim(0, -2).to(x.dtype)


def _prepare(decay: Tensor, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Time first, in the accumulation dtype."""
    x, decay, state = widen(x, decay, state)
    x_TD, decay_TD = x.movedim(-2, 0), decay.expand_as(x).movedim(-2, 0)
    return x_TD, decay_TD, zeros_or(state, x, tuple(x_TD.shape[1:]))


def _refuses(decay: Tensor, x: Tensor, state: Tensor | None = None) -> str | None:
    return "the sequence is empty" if x.numel() == 0 else None


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    for shape in ((2, 5, 3), (1, 1, 2), (2, 37, 3), (0, 4, 2), (2, 0, 3)):
        state = draw(*shape[:-2], shape[-1])
        yield (draw(*shape).sigmoid().to(dtype), draw(*shape).to(dtype), state.to(dtype)), {}
    yield (draw(9, 1).sigmoid().to(dtype), draw(9, 4).to(dtype)), {}


def _bad() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    ones = torch.ones(2, 5, 3)
    yield (torch.ones(2, 4, 3), ones), {}, ArgumentValueError, "decay"
    yield (ones, torch.ones(3)), {}, ArgumentValueError, "x"
    yield (ones, ones, torch.ones(2, 4)), {}, ArgumentValueError, "state"


@method(
    site="attention",
    family="custom",
    paper="dynamical-systems-framework",
    source="section 2, eq. of the linear time-varying system; execution by an associative scan",
    reference=_diagonal_scan_reference,
    kernels=(Kernel("blocks", _run_blocks, _refuses),),
    samples=_samples,
    bad_inputs=_bad,
)
def diagonal_scan(decay: Tensor, x: Tensor, state: Tensor | None = None) -> Tensor:
    """All states of ``h_i = decay_i ⊙ h_{i-1} + x_i``.

    Args:
        decay: (…, T, D) or broadcastable to it, usually in (0, 1).
        x: (…, T, D).
        state: (…, D), the state before the first token; zeros if None.

    Returns:
        (…, T, D) in the dtype of ``x``; 16-bit inputs are summed in float32. The last row continues the sequence.
        Memory is linear in T, forward and backward.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes or devices that do not fit.

    Example:
        >>> import torch
        >>> diagonal_scan(torch.full((3, 1), 0.5), torch.ones(3, 1)).flatten()
        tensor([1.0000, 1.5000, 1.7500])

    Paper: Understanding the Differences in Foundation Models, arXiv 2405.15731, section 2.
    """
    check_tensors({"x": x, "decay": decay}, {"state": state})
    if x.ndim < 2:
        raise ArgumentValueError(f"x must have shape (..., length, features), got {tuple(x.shape)}")
    try:
        fits = torch.broadcast_shapes(decay.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ArgumentValueError(f"decay must broadcast to the shape of x {tuple(x.shape)}, got {tuple(decay.shape)}")
    check_shape("state", state, (*x.shape[:-2], x.shape[-1]), "(..., features)")
    return call(record_of(diagonal_scan), decay, x, state)
