"""Sigmoid attention: every pair of query and key is weighed on its own, without normalisation over the keys."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._math import masks
from softgate.attention.sigmoid import native, tiled, triton
from softgate.attention.sigmoid.arguments import check_options
from softgate.attention.sigmoid.reference import Bias, sigmoid_attention_reference
from softgate.dispatch import call
from softgate.errors import StateError, check_choice
from softgate.registry import Kernel, method, record_of

__all__ = ["sigmoid_attention"]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Inputs for the conformance suite: windows, ALiBi, caps, biases and masks with every alignment."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    def qkv(heads: int, kv_heads: int, queries: int, keys: int, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
        return draw(2, heads, queries, dim), draw(2, kv_heads, keys, dim), draw(2, kv_heads, keys, dim)

    slopes = torch.tensor([0.5, 0.25])
    yield qkv(2, 2, 5, 5), {"window": (2, 1)}
    yield qkv(2, 2, 4, 6), {"window": (3, -1), "is_causal": True}
    yield qkv(2, 2, 6, 6), {"window": 2, "is_causal": True}
    yield qkv(2, 2, 3, 6), {"alibi_slopes": slopes}
    yield qkv(4, 2, 3, 6), {"alibi_slopes": slopes.repeat(2, 2), "enable_gqa": True, "is_causal": True}
    yield qkv(2, 2, 5, 3), {"softcap": 0.8, "scale": 1.5}
    yield qkv(2, 2, 4, 5), {"bias": torch.tensor([[-1.0, 0.5], [-2.0, 0.0]])}
    keep = torch.rand(2, 1, 4, 4, generator=generator) > 0.4
    keep[0, :, 1] = False  # a query without any key
    yield qkv(2, 2, 4, 4), {"attn_mask": keep}
    yield qkv(2, 2, 4, 4), {"attn_mask": draw(4, 4), "window": (2, 0), "alibi_slopes": slopes, "softcap": 2.0}


@method(
    site="attention",
    family="attention",
    paper="sigmoid-attention",
    source="section 2 (sigma(q k^T / sqrt d + b) v, b = -ln n), section 4 (kernel: windows, ALiBi, soft cap)",
    reference=sigmoid_attention_reference,
    kernels=(
        Kernel("native", native.run, native.refuses),
        Kernel("triton", triton.run, triton.refuses),
        Kernel("tiled", tiled.run, tiled.refuses),
    ),
    variants={
        "default": {"seq_len": 8},
        "no_bias": {"bias": 0.0},
        "neg_log_visible": {"bias": "neg_log_visible"},
    },
    laws=("decode_equals_prefill", "value_linear"),
    masked_rows="zeros",
    samples=_samples,
    deviations=("bias='neg_log_visible' and dropout are not in the paper",),
)
def sigmoid_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    bias: Bias | None = None,
    seq_len: int | None = None,
    alibi_slopes: Tensor | None = None,
    window: masks.Window | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention with a sigmoid for each pair: ``O_i = sum_j m_ij · σ(q_i·k_j·scale + e_ij + b) v_j``.

    Called like :func:`torch.nn.functional.scaled_dot_product_attention`. The weights of a row lie in (0, 1) and need
    not sum to one: what a key gets does not depend on the others, so results over disjoint sets of keys add up. With
    ``b = -ln n``, n the length of training, a fresh model's rows weigh about 1 in all, as with softmax. Training,
    prefill and decoding must be given the same n (or b).

    Args:
        query: (…, H, T, D).
        key: (…, G, S, D); G = H, or H a multiple of G with ``enable_gqa``.
        value: (…, G, S, Dv).
        attn_mask: broadcastable to (…, H, T, S); bool (True = attend) or float (e, added to the scores; -inf removes).
        dropout_p: probability of dropping an attention weight, in [0, 1); kept ones are divided by 1 - p.
        is_causal: query i sees key j where j <= i + S - T (aligned at the bottom right, unlike torch, so that a
            single query sees the whole cache). Combines with ``attn_mask``.
        scale: factor of q·k, 1/√D if None.
        enable_gqa: query head h uses key/value head h // (H/G).
        bias: b. A number; a tensor of one per head, broadcastable to (…, H), which gets a gradient; ``"neg_log_n"``
            (also None): -ln n with n = ``seq_len``; ``"neg_log_visible"`` (ours, not in the paper): for each query -ln
            of the number of keys it may see.
        seq_len: the length of training. Without it ``"neg_log_n"`` takes S and warns once, because S differs between
            prefill and decoding.
        alibi_slopes: (H,) or (…, H) float32: ``-slope · |i + S - T - j|`` is added to the scores; see
            :func:`softgate.attention.alibi_slopes`. A constant: it gets no gradient from kernels.
        window: an int w: each query sees its last w keys only (itself included), without ``is_causal`` to both sides;
            or a pair (left, right): keys from ``left`` before to ``right`` after its own position, -1 for all.
        softcap: c replaces q·k·scale by ``c · tanh(q·k·scale / c)``, before anything is added.
        backend: ``"auto"``, ``"reference"`` (plain torch, holds all T·S weights), ``"tiled"`` (never holds them; what
            ``"auto"`` takes for long sequences), ``"native"`` (C++, float32 on the CPU, never holds them either) or
            ``"triton"``.

    Returns:
        (…, H, T, Dv) in the dtype of ``query`` (autocast's dtype inside autocast); 16-bit inputs are summed in float32.
        A query without any allowed key gives 0 and zero gradients, and so does S = 0.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes, devices or numbers that do not fit, or a window that looks ahead with ``is_causal``.
        StateError: ``backend`` names a kernel that cannot run this call.

    Example:
        >>> import torch
        >>> q, k, v = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 3, 4)
        >>> sigmoid_attention(q, k, v, bias=0.0)  # three keys of weight one half
        tensor([[[[1.5000, 1.5000, 1.5000, 1.5000]]]])

    Paper: Theory, Analysis, and Best Practices for Sigmoid Self-Attention, arXiv 2409.04431, sections 2, 4 and 5.
    """
    masks.check_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    check_options(query, bias, seq_len, alibi_slopes, window, softcap, is_causal)
    record = record_of(sigmoid_attention)
    kernels = {kernel.name: kernel for kernel in record.kernels}
    check_choice("backend", backend, ("auto", "reference", *kernels))
    arguments = (query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    options: dict[str, Any] = {
        "bias": bias,
        "seq_len": seq_len,
        "alibi_slopes": alibi_slopes,
        "window": window,
        "softcap": softcap,
        "backend": backend,
    }
    if seq_len is None and (bias is None or (isinstance(bias, str) and bias == "neg_log_n")):
        _warn_of_moving_length()
    if backend == "reference":
        return sigmoid_attention_reference(*arguments, **options)
    if backend in kernels:
        reason = kernels[backend].refuses(*arguments, **options)
        if reason is not None:
            raise StateError(f"backend={backend!r} cannot run this call: {reason}")
    return call(record, *arguments, **options)


def _warn_of_moving_length() -> None:
    if not torch.compiler.is_compiling():  # a warning would break the graph
        _warn_once()


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "sigmoid_attention without seq_len takes b = -ln of the present number of keys, which differs between "
        "training, prefill and decoding; pass the length of training as seq_len, or a bias",
        stacklevel=4,
    )
