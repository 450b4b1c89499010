"""Gated recurrent networks whose gates see the input only: qLSTM (also with a reversed forget gate) and RG-LRU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._math.masks import without_autocast
from softgate.attention.scans.checks import ScanOutput, check_shape, check_tensors, widen
from softgate.attention.scans.diagonal import diagonal_scan
from softgate.attention.scans.gates import qlstm_log_decay, rglru_input_factor, rglru_log_decay
from softgate.errors import ArgumentValueError
from softgate.registry import method

__all__ = ["qlstm_scan", "rglru_scan"]

Calls = Iterator[tuple[tuple[Any, ...], dict[str, Any]]]
BadCalls = Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]


def _qlstm_samples(dtype: torch.dtype, generator: torch.Generator) -> Calls:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    four = (2, 4, 3)
    yield (draw(*four), draw(*four), draw(*four), draw(*four), draw(1).abs()[0] + 0.5, draw(2, 3)), {}
    yield (draw(1, 19, 2), draw(1, 19, 2), draw(1, 19, 2), draw(1, 19, 2)), {}
    yield (draw(0, 3, 2), draw(0, 3, 2), draw(0, 3, 2), draw(0, 3, 2)), {}


def _qlstm_bad() -> BadCalls:
    ones, short = torch.ones(2, 5, 3), torch.ones(2, 4, 3)
    yield (torch.ones(3), ones, ones, ones), {}, ArgumentValueError, "x"
    yield (ones, short, ones, ones), {}, ArgumentValueError, "forget"
    yield (ones, ones, short, ones), {}, ArgumentValueError, "input_gate"
    yield (ones, ones, ones, short), {}, ArgumentValueError, "output_gate"
    yield (ones, ones, ones, ones, torch.ones(2)), {}, ArgumentValueError, "alpha"
    yield (ones, ones, ones, ones, None, torch.ones(2, 2)), {}, ArgumentValueError, "state"


@method(
    site="attention",
    family="custom",
    paper="dynamical-systems-framework",
    source="section 4, qLSTM and its forget gate as the reversed sigmoid of S6",
    samples=_qlstm_samples,
    bad_inputs=_qlstm_bad,
)
def qlstm_scan(
    x: Tensor,
    forget: Tensor,
    input_gate: Tensor,
    output_gate: Tensor,
    alpha: Tensor | None = None,
    state: Tensor | None = None,
) -> ScanOutput:
    """LSTM whose gates see the input only: ``h_i = λ_i ⊙ h_{i-1} + σ(input_gate_i) ⊙ x_i``.

    The output is σ(output_gate_i) ⊙ h_i. λ = σ(forget), or with ``alpha`` the reversed λ = σ(-forget)^relu(alpha).

    Args:
        x: (…, T, D).
        forget: (…, T, D) logits.
        input_gate: (…, T, D) logits.
        output_gate: (…, T, D) logits.
        alpha: scalar tensor; not positive means that nothing is forgotten. None gives the standard gate.
        state: (…, D), the state before the first token; zeros if None.

    Returns:
        ``output`` (…, T, D) in the dtype of ``x`` and the last ``state`` (…, D), at least float32.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes or devices that do not fit.

    Example:
        >>> import torch
        >>> x, open_ = torch.ones(3, 1), torch.full((3, 1), 50.0)
        >>> qlstm_scan(x, open_, open_, open_).output.flatten()
        tensor([1., 2., 3.])

    Paper: Understanding the Differences in Foundation Models, arXiv 2405.15731, section 4.
    """
    gates = {"forget": forget, "input_gate": input_gate, "output_gate": output_gate}
    check_tensors({"x": x, **gates}, {"alpha": alpha, "state": state})
    _check_sequence(x, state, gates)
    check_shape("alpha", alpha, (), "of a scalar")
    with without_autocast(x):
        wide_x, f, i, o, alpha, state = widen(x, forget, input_gate, output_gate, alpha, state)
        decay = qlstm_log_decay(f, alpha).exp()
        states = diagonal_scan(decay, torch.sigmoid(i) * wide_x, state)
        return _output(torch.sigmoid(o) * states, states, x, state)


def _rglru_samples(dtype: torch.dtype, generator: torch.Generator) -> Calls:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    yield (draw(2, 4, 3), draw(2, 4, 3), draw(2, 4, 3), draw(3), draw(2, 3)), {}
    yield (draw(1, 19, 2), draw(1, 19, 2), draw(1, 19, 2), draw(2)), {}


def _rglru_bad() -> BadCalls:
    ones, short = torch.ones(2, 5, 3), torch.ones(2, 4, 3)
    yield (torch.ones(3), ones, ones, torch.ones(3)), {}, ArgumentValueError, "x"
    yield (ones, short, ones, torch.ones(3)), {}, ArgumentValueError, "recurrence_gate"
    yield (ones, ones, short, torch.ones(3)), {}, ArgumentValueError, "input_gate"
    yield (ones, ones, ones, torch.ones(2)), {}, ArgumentValueError, "a"
    yield (ones, ones, ones, torch.ones(3), torch.ones(2, 2)), {}, ArgumentValueError, "state"


@method(
    site="attention",
    family="custom",
    paper="dynamical-systems-framework",
    source="section 2, RG-LRU as a dynamical system",
    samples=_rglru_samples,
    bad_inputs=_rglru_bad,
)
def rglru_scan(
    x: Tensor, recurrence_gate: Tensor, input_gate: Tensor, a: Tensor, state: Tensor | None = None
) -> ScanOutput:
    """Real-gated linear recurrent unit: ``h_i = λ_i ⊙ h_{i-1} + sqrt(1 - λ_i² + 1e-6) σ(input_gate_i) ⊙ x_i``, y = h.

    λ_i = exp(-8 softplus(a) σ(recurrence_gate_i)).

    Args:
        x: (…, T, D).
        recurrence_gate: (…, T, D) logits.
        input_gate: (…, T, D) logits.
        a: (D,), how fast a channel forgets; large is fast.
        state: (…, D), the state before the first token; zeros if None.

    Returns:
        ``output`` (…, T, D) in the dtype of ``x`` and the last ``state`` (…, D), at least float32.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes or devices that do not fit.

    Example:
        >>> import torch
        >>> x, gate = torch.ones(2, 1), torch.full((2, 1), 50.0)
        >>> rglru_scan(x, gate, gate, torch.full((1,), -20.0)).output.flatten() < 0.01
        tensor([True, True])

    Paper: Understanding the Differences in Foundation Models, arXiv 2405.15731, section 2.
    """
    gates = {"recurrence_gate": recurrence_gate, "input_gate": input_gate}
    check_tensors({"x": x, **gates, "a": a}, {"state": state})
    _check_sequence(x, state, gates)
    check_shape("a", a, tuple(x.shape[-1:]), "(features,)")
    with without_autocast(x):
        wide_x, r, i, a, state = widen(x, recurrence_gate, input_gate, a, state)
        log_decay = rglru_log_decay(r, a)
        states = diagonal_scan(log_decay.exp(), rglru_input_factor(log_decay, i) * wide_x, state)
        return _output(states, states, x, state)


def _check_sequence(x: Tensor, state: Tensor | None, gates: dict[str, Tensor]) -> None:
    if x.ndim < 2:
        raise ArgumentValueError(f"x must have shape (..., length, features), got {tuple(x.shape)}")
    for name, gate in gates.items():
        check_shape(name, gate, tuple(x.shape), "of x")
    check_shape("state", state, (*x.shape[:-2], x.shape[-1]), "(..., features)")


def _output(output: Tensor, states: Tensor, x: Tensor, state: Tensor | None) -> ScanOutput:
    """In the dtype of ``x``; the last state is a tensor of its own, also after no token at all."""
    before = states.sum(-2) if state is None else state
    last = states[..., -1, :] if states.shape[-2] else before
    return ScanOutput(output.to(x.dtype), last.clone())
