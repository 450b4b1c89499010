"""Selective state space models: S6 (a decay per channel and state) and SSD (one decay per head)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softgate._math.masks import without_autocast
from softgate._math.recurrence import CHUNK, doubling_scan, quadratic_recurrence
from softgate._math.scan import linear_scan
from softgate._math.segments import in_segments
from softgate.attention.scans.checks import (
    ScanOutput,
    check_shape,
    check_stable,
    check_tensors,
    widen,
    zeros_or,
)
from softgate.attention.separable.forms import SHORT, recur
from softgate.dispatch import call
from softgate.errors import ArgumentValueError, bad_type, bad_value
from softgate.registry import Kernel, method, record_of

__all__ = ["selective_scan", "ssd_scan"]

Calls = Iterator[tuple[tuple[Any, ...], dict[str, Any]]]
BadCalls = Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]

#: Tokens whose states of all channels are held at once.
_SEGMENT = 64


def _s6_step(
    state_DN: Tensor, sequences: Sequence[Tensor], constants: Sequence[Tensor], *, scan: Any
) -> tuple[Tensor, Tensor]:
    """h_i = e^{-Δ_i A} ⊙ h_{i-1} + Δ_i u_i b_iᵀ and y_i = h_i c_i for the tokens of one segment."""
    u_TD, delta_TD, B_TN, C_TN = sequences
    decay = (-delta_TD[..., None] * constants[0]).exp().movedim(-3, 0)
    added = ((delta_TD * u_TD)[..., None] * B_TN[..., None, :]).movedim(-3, 0)
    states = scan(decay, added, state_DN)
    y_TD = (states * C_TN[..., None, :].movedim(-3, 0)).sum(-1).movedim(0, -2)
    return y_TD, states[-1] if len(states) else state_DN


def _selective_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    *,
    allow_unstable: bool = False,
) -> ScanOutput:
    """All states of all channels, by the associative scan."""
    with without_autocast(u):
        x, steps, A, B, C, D, state = widen(u, delta, A, B, C, D, state)
        first = zeros_or(state, x, (*x.shape[:-2], *A.shape))
        y, last = _s6_step(first, (x, steps, B, C), (A,), scan=doubling_scan)
        y = y if D is None else y + D * x
        return ScanOutput(y.to(u.dtype), last.clone())


def _run_selective(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    *,
    allow_unstable: bool = False,
) -> ScanOutput:
    """The states of one segment at a time."""
    with without_autocast(u):
        x, steps, A, B, C, D, state = widen(u, delta, A, B, C, D, state)
        first = zeros_or(state, x, (*x.shape[:-2], *A.shape))
        y, last = in_segments(partial(_s6_step, scan=linear_scan), first, (x, steps, B, C), (A,), length=_SEGMENT)
        y = y if D is None else y + D * x
        return ScanOutput(y.to(u.dtype), last.clone())


def _selective_refuses(u: Tensor, *rest: Any, **options: Any) -> str | None:
    return "the sequence is empty" if u.numel() == 0 else None


def _draw(dtype: torch.dtype, generator: torch.Generator) -> Any:
    return lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def _selective_samples(dtype: torch.dtype, generator: torch.Generator) -> Calls:
    draw = _draw(dtype, generator)

    def inputs(batch: int, length: int) -> tuple[Tensor, ...]:
        A = draw(3, 2).abs() + 0.3
        return draw(batch, length, 3), draw(batch, length, 3).abs(), A, draw(batch, length, 2), draw(batch, length, 2)

    yield (*inputs(2, 4), draw(3), draw(2, 3, 2)), {}
    yield inputs(1, 1), {}
    yield (*inputs(1, 70), draw(3)), {}
    yield inputs(2, 0), {}


def _selective_bad() -> BadCalls:
    u, A, b = torch.ones(2, 5, 3), torch.ones(3, 4), torch.ones(2, 5, 4)
    yield (torch.ones(3), u, A, b, b), {}, ArgumentValueError, "u"
    yield (u, torch.ones(2, 4, 3), A, b, b), {}, ArgumentValueError, "delta"
    yield (u, u, torch.ones(2, 4), b, b), {}, ArgumentValueError, "A"
    yield (u, u, -A, b, b), {}, ArgumentValueError, "A"
    yield (u, u, A, u, b), {}, ArgumentValueError, "B"
    yield (u, u, A, b, u), {}, ArgumentValueError, "C"
    yield (u, u, A, b, b, torch.ones(2)), {}, ArgumentValueError, "D"
    yield (u, u, A, b, b, None, torch.ones(2, 3)), {}, ArgumentValueError, "state"


@method(
    site="attention",
    family="custom",
    paper="dynamical-systems-framework",
    source="section 2, S6 as a dynamical system",
    reference=_selective_reference,
    kernels=(Kernel("segments", _run_selective, _selective_refuses),),
    samples=_selective_samples,
    bad_inputs=_selective_bad,
)
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    *,
    allow_unstable: bool = False,
) -> ScanOutput:
    """S6, the recurrence of Mamba: ``h_i = e^{-Δ_i A} ⊙ h_{i-1} + Δ_i u_i B_iᵀ``, ``y_i = h_i C_i + D ⊙ u_i``.

    Args:
        u: (…, T, D) inputs.
        delta: (…, T, D) step sizes, not negative (softplus of logits). A step of 0 leaves a token out: padding.
        A: (D, N), positive.
        B: (…, T, N), how a token is written.
        C: (…, T, N), how the state is read.
        D: (D,), direct path; None for none.
        state: (…, D, N), the state before the first token; zeros if None.
        allow_unstable: accept A that is not positive. It is checked on the CPU only, where that costs nothing.

    Returns:
        ``output`` (…, T, D) in the dtype of ``u`` and the last ``state`` (…, D, N), at least float32. Memory is linear
        in T D: states are held for one segment at a time and computed again in the backward pass (under
        ``torch.compile`` and ``torch.func`` all T D N states are held).

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes or devices that do not fit, or A that is not positive.

    Example:
        >>> import torch
        >>> one = torch.ones(3, 1)
        >>> half = torch.full((1, 1), 0.693147)
        >>> selective_scan(one, one, half, one, one).output.flatten()
        tensor([1.0000, 1.5000, 1.7500])

    Paper: Understanding the Differences in Foundation Models, arXiv 2405.15731, section 2.
    """
    check_tensors({"u": u, "delta": delta, "A": A, "B": B, "C": C}, {"D": D, "state": state})
    if u.ndim < 2:
        raise ArgumentValueError(f"u must have shape (..., length, channels), got {tuple(u.shape)}")
    if A.ndim != 2 or A.shape[0] != u.shape[-1]:
        raise ArgumentValueError(
            f"A must have shape (channels, state) with {u.shape[-1]} channels, got {tuple(A.shape)}"
        )
    check_shape("delta", delta, tuple(u.shape), "of u")
    for name, tensor in (("B", B), ("C", C)):
        check_shape(name, tensor, (*u.shape[:-1], A.shape[1]), "(..., length, state)")
    check_shape("D", D, (A.shape[0],), "(channels,)")
    check_shape("state", state, (*u.shape[:-2], *A.shape), "(..., channels, state)")
    check_stable(A, allow_unstable)
    return call(record_of(selective_scan), u, delta, A, B, C, D, state, allow_unstable=allow_unstable)


def _ssd_parts(
    value: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values, logarithms of decays and first state of the recurrence."""
    heads = value.shape[-3]
    shared = heads // B.shape[-3]
    k_HTN, q_HTN = (x if shared == 1 else x.repeat_interleave(shared, -3) for x in (B, C))
    log_decay = -(delta * A[:, None])[..., None]
    first = zeros_or(state, value, (*value.shape[:-2], B.shape[-1], value.shape[-1]))
    return q_HTN[..., None, :, :], k_HTN, value * delta[..., None], log_decay, first


def _ssd_reference(
    value: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    *,
    chunk: int = CHUNK,
    allow_unstable: bool = False,
) -> ScanOutput:
    """The masked matrix product C Bᵀ ⊙ decays."""
    with without_autocast(value):
        v, delta, A, B, C, D, state = widen(value, delta, A, B, C, D, state)
        y_RTD, last = quadratic_recurrence(*_ssd_parts(v, delta, A, B, C, state))
        y = y_RTD[..., 0, :, :] if D is None else y_RTD[..., 0, :, :] + D[:, None, None] * v
        return ScanOutput(y.to(value.dtype), last)


def _run_ssd(
    value: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    *,
    chunk: int = CHUNK,
    allow_unstable: bool = False,
) -> ScanOutput:
    with without_autocast(value):
        v, delta, A, B, C, D, state = widen(value, delta, A, B, C, D, state)
        y_RTD, last = recur(*_ssd_parts(v, delta, A, B, C, state), chunk)
        y = y_RTD[..., 0, :, :] if D is None else y_RTD[..., 0, :, :] + D[:, None, None] * v
        return ScanOutput(y.to(value.dtype), last)


def _ssd_refuses(value: Tensor, *rest: Any, chunk: int = CHUNK, **options: Any) -> str | None:
    length = value.shape[-2]
    if length <= chunk:
        return "the sequence fits into one chunk: the quadratic form itself"
    # A chunk of its own choice shows that the caller wants the chunked form.
    return "a short sequence: the quadratic form is as fast" if length < SHORT and chunk == CHUNK else None


def _ssd_samples(dtype: torch.dtype, generator: torch.Generator) -> Calls:
    draw = _draw(dtype, generator)

    def inputs(heads: int, groups: int, length: int) -> tuple[Tensor, ...]:
        a = draw(heads).abs() + 0.3
        b, c = draw(1, groups, length, 2), draw(1, groups, length, 2)
        return draw(1, heads, length, 3), draw(1, heads, length).abs(), a, b, c

    yield (*inputs(2, 1, 4), draw(2), draw(1, 2, 2, 3)), {}
    yield inputs(2, 2, 1), {}
    yield (*inputs(2, 1, 11), draw(2)), {"chunk": 4}
    yield (*inputs(1, 1, 300), None, draw(1, 1, 2, 3)), {}
    yield inputs(2, 1, 0), {}


def _ssd_bad() -> BadCalls:
    v, d, a, b = torch.ones(2, 4, 5, 3), torch.ones(2, 4, 5), torch.ones(4), torch.ones(2, 2, 5, 6)
    yield (torch.ones(3), d, a, b, b), {}, ArgumentValueError, "value"
    yield (v, v, a, b, b), {}, ArgumentValueError, "delta"
    yield (v, d, torch.ones(3), b, b), {}, ArgumentValueError, "A"
    yield (v, d, -a, b, b), {}, ArgumentValueError, "A"
    yield (v, d, a, torch.ones(2, 3, 5, 6), b), {}, ArgumentValueError, "B"
    yield (v, d, a, b, torch.ones(2, 2, 5, 5)), {}, ArgumentValueError, "C"
    yield (v, d, a, b, b, torch.ones(2)), {}, ArgumentValueError, "D"
    yield (v, d, a, b, b, None, torch.ones(2, 4, 6)), {}, ArgumentValueError, "state"
    yield (v, d, a, b, b), {"chunk": 0}, ArgumentValueError, "chunk"


@method(
    site="attention",
    family="custom",
    paper="dynamical-systems-framework",
    source="section 2, SSD as linear attention with decay and η = 1",
    reference=_ssd_reference,
    kernels=(Kernel("chunked", _run_ssd, _ssd_refuses),),
    samples=_ssd_samples,
    bad_inputs=_ssd_bad,
)
def ssd_scan(
    value: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    *,
    chunk: int = CHUNK,
    allow_unstable: bool = False,
) -> ScanOutput:
    """SSD, the recurrence of Mamba-2: ``h_i = e^{-Δ_i A} h_{i-1} + Δ_i B_i v_iᵀ``, ``y_i = C_i h_i + D v_i``, per head.

    Args:
        value: (…, H, T, D).
        delta: (…, H, T) step sizes, not negative. A step of 0 leaves a token out: padding.
        A: (H,), positive.
        B: (…, G, T, N), how a token is written; H a multiple of G, head h uses h // (H/G).
        C: (…, G, T, N), how the state is read.
        D: (H,), direct path; None for none.
        state: (…, H, N, D), the state before the first token; zeros if None.
        chunk: tokens per chunk; changes rounding and speed only.
        allow_unstable: accept A that is not positive. It is checked on the CPU only, where that costs nothing.

    Returns:
        ``output`` (…, H, T, D) in the dtype of ``value`` and the last ``state`` (…, H, N, D), at least float32.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes or devices that do not fit, or A that is not positive.

    Example:
        >>> import torch
        >>> v, one = torch.ones(1, 3, 1), torch.ones(1, 3)
        >>> ssd_scan(v, one, torch.tensor([0.693147]), v, v).output.flatten()
        tensor([1.0000, 1.5000, 1.7500])

    Paper: Understanding the Differences in Foundation Models, arXiv 2405.15731, section 2.
    """
    check_tensors({"value": value, "delta": delta, "A": A, "B": B, "C": C}, {"D": D, "state": state})
    if value.ndim < 3:
        raise ArgumentValueError(f"value must have shape (..., heads, length, features), got {tuple(value.shape)}")
    heads, length = value.shape[-3:-1]
    check_shape("delta", delta, tuple(value.shape[:-1]), "(..., heads, length)")
    check_shape("A", A, (heads,), "(heads,)")
    groups = B.shape[-3] if B.ndim == value.ndim else 0
    if groups == 0 or heads % groups or B.shape[:-3] != value.shape[:-3] or B.shape[-2] != length:
        raise ArgumentValueError(
            f"B must have shape (..., groups, length, state) with groups dividing {heads} heads, got {tuple(B.shape)}"
        )
    check_shape("C", C, tuple(B.shape), "of B")
    check_shape("D", D, (heads,), "(heads,)")
    check_shape("state", state, (*value.shape[:-2], B.shape[-1], value.shape[-1]), "(..., heads, state, features)")
    if isinstance(chunk, bool) or not isinstance(chunk, int):
        bad_type("chunk", chunk, "a positive int")
    if chunk < 1:
        bad_value("chunk", chunk, "a positive int")
    check_stable(A, allow_unstable)
    return call(record_of(ssd_scan), value, delta, A, B, C, D, state, chunk=chunk, allow_unstable=allow_unstable)
