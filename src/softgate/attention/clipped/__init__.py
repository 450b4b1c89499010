"""Clipped softmax attention: weights stretched beyond [0, 1] and clipped, so that a head can give exact zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._math import masks
from softgate._math.clipping import check_stretch, resolve_gamma
from softgate.attention.clipped import native, tiled, triton
from softgate.attention.clipped.reference import clipped_softmax_attention_reference
from softgate.dispatch import call
from softgate.errors import StateError, check_choice
from softgate.registry import Kernel, method, record_of

__all__ = ["clipped_softmax_attention"]

_BACKENDS = ("auto", "reference", "native", "tiled", "triton")


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    qkv = tuple(torch.ones(1, 2, 3, 4) for _ in range(3))
    wrong: dict[str, tuple[dict[str, Any], tuple[Any, ...], tuple[Any, ...]]] = {  # name: others, ValueError, TypeError
        "gamma": ({}, (0.1, float("nan"), float("-inf")), ("-0.1", True, torch.tensor(-0.1))),
        "alpha": ({"gamma": None, "max_seq_len": 8}, (-1.0, float("nan"), float("inf")), ("2", True)),
        "max_seq_len": ({"gamma": None, "alpha": 2.0}, (None, 0, -3), (8.0, "8", True)),
        "zeta": ({"gamma": -0.1}, (0.9, float("nan"), float("inf")), ()),
        "window": ({"gamma": -0.1}, (0, -1), (1.5, "2", True)),
    }
    neither = {"gamma": None, "alpha": None}
    for name in ("gamma", "alpha"):
        yield qkv, neither, ValueError, name
        yield qkv, {"gamma": -0.1, "alpha": 4.0}, ValueError, name
    yield qkv, {"gamma": -0.1, "alpha": None, "max_seq_len": 8}, ValueError, "max_seq_len"
    for name, (others, values, types) in wrong.items():
        for value in values:
            yield qkv, {**neither, "max_seq_len": None, **others, name: value}, ValueError, name
        for value in types:
            yield qkv, {**neither, "max_seq_len": None, **others, name: value}, TypeError, name


@method(
    site="attention",
    family="attention",
    paper="quantizable-transformers",
    source="eq. 4 in place of softmax; gamma = -alpha / T of section 5.2",
    reference=clipped_softmax_attention_reference,
    kernels=(
        Kernel("native", native.run, native.refuses),
        Kernel("triton", triton.run, triton.refuses),
        Kernel("tiled", tiled.run, tiled.refuses),
    ),
    variants={
        "gamma": {"gamma": -0.03},
        "alpha": {"alpha": 2.0, "max_seq_len": 8},
        "both_ends": {"gamma": -0.1, "zeta": 1.1},
        "tiled": {"gamma": -0.03, "backend": "tiled"},
    },
    laws=("decode_equals_prefill", "value_linear"),
    masked_rows="zeros",
    bad_inputs=_bad_inputs,
    deviations=("16-bit inputs are clipped and summed in float32; the authors' code rounds the weights to 16 bits",),
)
def clipped_softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    gamma: float | None = None,
    alpha: float | None = None,
    max_seq_len: int | None = None,
    zeta: float = 1.0,
    window: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention with clipped softmax: ``clip((ζ - γ) softmax(q kᵀ/√D + mask) + γ, 0, 1) v``.

    Called like :func:`torch.nn.functional.scaled_dot_product_attention`, with the lower end γ of the stretch given as
    ``gamma`` or by ``alpha`` and ``max_seq_len``. A weight becomes exactly 0 where softmax is at most -γ/(ζ - γ), so
    a head can do nothing for a token without pushing its scores apart. Weights are not normalised again.

    Args:
        query: (…, H, T, D).
        key: (…, G, S, D); G = H, or H a multiple of G with ``enable_gqa``.
        value: (…, G, S, Dv).
        attn_mask: broadcastable to (…, H, T, S); bool (True = attend) or float (added to the scores).
        dropout_p: probability of dropping a clipped weight, in [0, 1).
        is_causal: query i sees key j where j <= i + S - T (aligned at the bottom right, unlike torch, so that a
            single query sees the whole cache). Combines with ``attn_mask``.
        scale: factor of the scores, 1/√D if None.
        enable_gqa: query head h uses key/value head h // (H/G).
        gamma: γ, finite and at most 0 (0 with ζ = 1 is softmax attention).
        alpha: sets γ = -alpha / max_seq_len; the paper recommends 2 to 4. Exactly one of ``gamma`` and ``alpha``.
        max_seq_len: the length the model is trained at, also when it later sees more or fewer keys.
        zeta: ζ, at least 1.
        window: each query sees its last ``window`` keys only (itself included); without ``is_causal`` to both sides.
        backend: ``"auto"``, ``"reference"`` (plain torch), ``"tiled"`` (memory grows with T, not with T·S),
            ``"native"`` (likewise, C++, float32 on the CPU) or ``"triton"``.

    Returns:
        (…, H, T, Dv) in the dtype of ``query`` (autocast's dtype inside autocast). 16-bit inputs are clipped and summed
        in float32. A query without any allowed key gives 0 and zero gradients, and so does S = 0.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes, devices or numbers that do not fit; neither or both of ``gamma`` and ``alpha``.
        StateError: ``backend`` names a kernel that cannot run this call.

    Example:
        >>> import torch
        >>> q = k = v = torch.ones(1, 1, 8, 4)
        >>> clipped_softmax_attention(q, k, v, alpha=4.0, max_seq_len=8).sum()  # uniform weights: all are clipped
        tensor(0.)

    Paper: Quantizable Transformers, arXiv 2306.12929, eq. 4 and section 5.2.
    """
    masks.check_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window)
    check_stretch(resolve_gamma(gamma, alpha, max_seq_len), zeta)
    check_choice("backend", backend, _BACKENDS)
    arguments = (query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    options: dict[str, Any] = {
        "gamma": gamma,
        "alpha": alpha,
        "max_seq_len": max_seq_len,
        "zeta": zeta,
        "window": window,
        "backend": backend,
    }
    if backend == "reference":
        return clipped_softmax_attention_reference(*arguments, **options)
    if backend != "auto":
        kernel = next(k for k in record_of(clipped_softmax_attention).kernels if k.name == backend)
        reason = kernel.refuses(*arguments, **options)
        if reason is not None:
            raise StateError(f"backend={backend!r} cannot run this call: {reason}")
    result: Tensor = call(record_of(clipped_softmax_attention), *arguments, **options)
    return result
