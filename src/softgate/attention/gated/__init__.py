"""Gated attention: softmax attention whose output is multiplied by a gate computed from the query's hidden state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate._math import masks
from softgate.attention.gated import flash_cpu, native, triton
from softgate.attention.gated.reference import (
    GateActivation,
    activation_function,
    gated_attention_reference,
    gated_attention_sdpa,
)
from softgate.dispatch import call
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type, check_choice
from softgate.registry import Kernel, method, record_of

__all__ = ["gated_attention"]

_BACKENDS = ("auto", "reference", "native", "flash_cpu", "triton", "sdpa")


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Inputs for the conformance suite: gate shapes, masks, lengths and head counts."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    def qkv(heads: int, kv_heads: int, queries: int, keys: int, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
        return draw(2, heads, queries, dim), draw(2, kv_heads, keys, dim), draw(2, kv_heads, keys, dim)

    yield (*qkv(2, 2, 5, 5), draw(2, 2, 5, 4)), {}
    yield (*qkv(2, 2, 5, 5), draw(2, 2, 5, 1)), {"is_causal": True}
    yield (*qkv(4, 2, 3, 6), draw(2, 4, 3, 1)), {"enable_gqa": True, "is_causal": True}
    yield (*qkv(2, 2, 3, 5, 3), draw(2, 1, 3, 3)), {"scale": 0.3, "gate_activation": "ns_sigmoid"}
    keep = torch.rand(2, 1, 4, 4, generator=generator) > 0.4
    keep[0, :, 1] = False  # a query without any key
    yield (*qkv(2, 2, 4, 4), draw(2, 2, 4, 4)), {"attn_mask": keep}
    yield (*qkv(2, 2, 4, 4), draw(2, 2, 4, 4)), {"attn_mask": draw(4, 4), "window": 2, "is_causal": True}
    yield (*qkv(2, 2, 1, 5), draw(2, 2, 1, 1)), {"gate_activation": "silu"}
    yield (*qkv(1, 1, 4, 4), draw(2, 1, 4, 4).sigmoid()), {"gate_is_logit": False}


def _sdpa_refuses(query: Tensor, *rest: Any, backend: str = "auto", **options: Any) -> str | None:
    if backend == "sdpa":
        return None
    if backend != "auto":
        return f"backend={backend!r} was asked for"
    # Where torch's CPU flash kernel cannot run, torch falls back to the same arithmetic as the reference.
    return "on the CPU it has no advantage over the reference" if query.device.type == "cpu" else None


@method(
    site="attention",
    family="attention",
    paper="gated-attention",
    source="section 2.2 and eq. 5 (position G1), gate variants of tables 1, 3 and 4",
    reference=gated_attention_reference,
    kernels=(
        Kernel("native", native.run, native.refuses),
        Kernel("flash_cpu", flash_cpu.run, flash_cpu.refuses),
        Kernel("triton", triton.run, triton.refuses),
        Kernel("sdpa", gated_attention_sdpa, _sdpa_refuses),
    ),
    variants={
        "default": {},
        "ns_sigmoid": {"gate_activation": "ns_sigmoid"},
        "silu": {"gate_activation": "silu"},
    },
    masked_rows="zeros",
    samples=_samples,
    deviations=("the gate is applied before the output is rounded to 16 bits, the authors' code rounds twice",),
)
def gated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor | None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    gate_activation: GateActivation = "sigmoid",
    gate_is_logit: bool = True,
    window: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention, each output multiplied by a gate: ``softmax(q kᵀ/√D + mask) v ⊙ act(gate)``.

    Called like :func:`torch.nn.functional.scaled_dot_product_attention`, with the gate logits after ``value``. They
    come from the hidden state of the query (a linear map of it); a gate near 0 lets a head do nothing for a token,
    so the head need not park its attention on the first token.

    Args:
        query: (…, H, T, D).
        key: (…, G, S, D); G = H, or H a multiple of G with ``enable_gqa``.
        value: (…, G, S, Dv).
        gate: (…, H, T, Dv) elementwise or (…, H, T, 1) headwise; a head dimension of 1 is shared by all heads. Its
            dtype is the query's or float32. None leaves the gate out (plain softmax attention).
        attn_mask: broadcastable to (…, H, T, S); bool (True = attend) or float (added to the scores).
        dropout_p: probability of dropping an attention weight, in [0, 1).
        is_causal: query i sees key j where j <= i + S - T (aligned at the bottom right, unlike torch, so that a
            single query sees the whole cache). Combines with ``attn_mask``.
        scale: factor of the scores, 1/√D if None.
        enable_gqa: query head h uses key/value head h // (H/G).
        gate_activation: ``"sigmoid"``, ``"ns_sigmoid"`` (0.5 + 0.5σ, cannot close), ``"silu"``, ``"identity"`` or a
            callable on the float32 logits.
        gate_is_logit: False if ``gate`` is already the factor; ``gate_activation`` is then not applied.
        window: each query sees its last ``window`` keys only (itself included); without ``is_causal`` to both sides.
        backend: ``"auto"``, ``"reference"`` (plain torch), ``"native"``, ``"flash_cpu"``, ``"triton"``
            or ``"sdpa"``.

    Returns:
        (…, H, T, Dv) in the dtype of ``query`` (autocast's dtype inside autocast). 16-bit inputs are gated in float32.
        A query without any allowed key gives 0 and zero gradients, and so does S = 0. NaN in query reaches its row,
        in key or value its head, in the gate its element.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes, devices or numbers that do not fit.
        StateError: ``backend`` names a kernel that cannot run this call.

    Example:
        >>> import torch
        >>> q = k = v = torch.ones(1, 2, 3, 4)
        >>> closed = torch.full((1, 2, 3, 1), float("-inf"))
        >>> gated_attention(q, k, v, closed, is_causal=True).abs().sum()
        tensor(0.)

    Paper: Gated Attention for Large Language Models, arXiv 2505.06708, section 2.2, eq. 5.
    """
    masks.check_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window)
    activation_function(gate_activation)
    check_choice("backend", backend, _BACKENDS)
    if not isinstance(gate_is_logit, bool):
        bad_type("gate_is_logit", gate_is_logit, "a bool")
    if gate is not None:
        _check_gate(gate, query, value)
    arguments = (query, key, value, gate, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    options: dict[str, Any] = {
        "gate_activation": gate_activation,
        "gate_is_logit": gate_is_logit,
        "window": window,
        "backend": backend,
    }
    if backend == "reference":
        return gated_attention_reference(*arguments, **options)
    if torch.compiler.is_compiling():  # traceable, and unlike the reference it needs no T x S memory
        return gated_attention_sdpa(*arguments, **options)
    if backend != "auto":
        kernel = next(k for k in record_of(gated_attention).kernels if k.name == backend)
        reason = kernel.refuses(*arguments, **options)
        if reason is not None:
            raise StateError(f"backend={backend!r} cannot run this call: {reason}")
    return call(record_of(gated_attention), *arguments, **options)


def _check_gate(gate: Any, query: Tensor, value: Tensor) -> None:
    check_float_tensor("gate", gate)
    check_same_device(query=query, gate=gate)
    if gate.dtype not in (query.dtype, masks.accumulation_dtype(query.dtype)) and masks.autocast_dtype(query) is None:
        raise ArgumentTypeError(f"gate must have the dtype of query ({query.dtype}) or float32, got {gate.dtype}")
    batch, heads, queries, features = query.shape[:-3], query.shape[-3], query.shape[-2], value.shape[-1]
    fits = (
        gate.ndim == query.ndim
        and gate.shape[:-3] == batch
        and gate.shape[-3] in (1, heads)
        and gate.shape[-2] == queries
        and gate.shape[-1] in (1, features)
    )
    if not fits:
        raise ArgumentValueError(
            f"gate must have shape (..., query heads or 1, query length, features or 1), here "
            f"{(*batch, heads, queries, features)}, got {tuple(gate.shape)}"
        )
