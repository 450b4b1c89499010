"""Sigmoid attention over sequences of different lengths that are packed one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from softgate._math import masks
from softgate.attention.sigmoid import sigmoid_attention
from softgate.attention.sigmoid.arguments import check_bias, check_seq_len
from softgate.attention.sigmoid.reference import Bias
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value
from softgate.registry import method

__all__ = ["sigmoid_attention_varlen"]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Inputs for the conformance suite: empty sequences, other keys than queries, grouped heads, biases."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    yield (draw(2, 5, 3), draw(2, 5, 3), draw(2, 5, 3), (0, 2, 5)), {"is_causal": True}
    yield (draw(4, 4, 3), draw(2, 7, 3), draw(2, 7, 2), (0, 1, 1, 4), (0, 3, 4, 7)), {"enable_gqa": True}
    yield (draw(2, 2, 4, 3), draw(2, 2, 4, 3), draw(2, 2, 4, 3), (0, 3, 4)), {"bias": "neg_log_visible", "window": 2}
    slopes = torch.tensor([0.5, 0.25])
    yield (draw(2, 5, 3), draw(2, 5, 3), draw(2, 5, 3), (0, 2, 5)), {"alibi_slopes": slopes, "seq_len": 9}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    q = torch.ones(2, 5, 3)
    for offsets in ((0, 2, 4), (1, 5), (0, 3, 2, 5), (), (5,)):
        yield (q, q, q, offsets), {}, ArgumentValueError, "cu_seqlens"
    for wrong in (5, "05", (0, 2.0, 5), torch.tensor([0.0, 5.0]), None, (0, True, 5)):
        yield (q, q, q, wrong), {}, ArgumentTypeError, "cu_seqlens"
    yield (q, q, q, torch.tensor([[0, 5]])), {}, ArgumentValueError, "cu_seqlens"
    yield (q, q, q, (0, 5), (0, 2, 5)), {}, ArgumentValueError, "cu_seqlens_k"
    yield (q, q, q, (0, 2, 5)), {"bias": torch.zeros(3, 2)}, ArgumentValueError, "bias"
    yield (q, q, q, (0, 2, 5)), {"bias": "log_n"}, ArgumentValueError, "bias"
    yield (q, q, q, (0, 2, 5)), {"seq_len": 0}, ArgumentValueError, "seq_len"
    yield (q, q, q, (0, 2, 5)), {"window": (1, 1), "is_causal": True}, ArgumentValueError, "window"


@method(
    site="attention",
    family="custom",
    paper="sigmoid-attention",
    source="section 2 (sigma(q k^T / sqrt d + b) v) for each packed sequence",
    masked_rows="zeros",
    samples=_samples,
    bad_inputs=_bad_inputs,
)
def sigmoid_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor | Sequence[int],
    cu_seqlens_k: Tensor | Sequence[int] | None = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    bias: Bias | None = None,
    seq_len: int | None = None,
    alibi_slopes: Tensor | None = None,
    window: masks.Window | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Sigmoid attention within each of N sequences that lie one after the other along the length.

    Sequence i is ``query[..., cu_seqlens[i] : cu_seqlens[i + 1], :]``; nothing is computed between sequences. Arguments
    not listed here are those of :func:`softgate.attention.sigmoid_attention`.

    Args:
        query: (…, H, total, D), usually without batch dimensions.
        key: (…, G, total keys, D).
        value: (…, G, total keys, Dv).
        cu_seqlens: N + 1 integers that start at 0 and never fall, the last one the total: where each sequence starts
            and ends. A tensor on an accelerator is read once, which waits for it.
        cu_seqlens_k: the same for keys and values, if they are not as long as the queries.
        dropout_p: see there.
        is_causal: aligned at the bottom right of each sequence.
        scale: see there.
        enable_gqa: see there.
        bias: a number or ``"neg_log_visible"`` as there; ``"neg_log_n"`` (also None): -ln n with n = ``seq_len``, or
            else each sequence's own number of keys; a tensor broadcastable to (N, H).
        seq_len: the length of training.
        alibi_slopes: (H,) or (…, H) float32.
        window: see there.
        softcap: see there.
        backend: see there.

    Returns:
        (…, H, total, Dv) in the dtype of ``query``.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes or numbers that do not fit, such as offsets that do not end at the total.
        StateError: ``backend`` names a kernel that cannot run this call.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 3, 2)  # sequences of one and two tokens
        >>> sigmoid_attention_varlen(x, x, torch.ones(1, 3, 2), (0, 1, 3), bias=0.0)[0, :, 0].tolist()
        [0.5, 1.0, 1.0]

    Paper: arXiv 2409.04431, section 2.
    """
    masks.check_attention(query, key, value, None, dropout_p, is_causal, scale, enable_gqa)
    lengths = _lengths("cu_seqlens", cu_seqlens, query.shape[-2])
    lengths_k = lengths
    if cu_seqlens_k is not None or key.shape[-2] != query.shape[-2]:
        lengths_k = _lengths("cu_seqlens_k", cu_seqlens_k, key.shape[-2])
    if len(lengths_k) != len(lengths):
        bad_value("cu_seqlens_k", cu_seqlens_k, f"offsets of {len(lengths)} sequences, as cu_seqlens")
    check_seq_len(seq_len)
    biases = _biases(bias, len(lengths), query)
    pieces = zip(query.split(lengths, -2), key.split(lengths_k, -2), value.split(lengths_k, -2), biases, strict=True)
    outputs = [
        sigmoid_attention(
            q,
            k,
            v,
            None,
            dropout_p,
            is_causal,
            scale,
            enable_gqa,
            bias=b,
            seq_len=k.shape[-2] or 1 if seq_len is None else seq_len,
            alibi_slopes=alibi_slopes,
            window=window,
            softcap=softcap,
            backend=backend,
        )
        for q, k, v, b in pieces
    ]
    return torch.cat(outputs, dim=-2)


def _biases(bias: Any, sequences: int, query: Tensor) -> list[Any]:
    """The bias of each sequence."""
    if not isinstance(bias, Tensor) or bias.ndim == 0:
        check_bias(query, bias)
        return [bias] * sequences
    heads = query.shape[-3]
    if bias.ndim > 2 or bias.shape[-1] not in (1, heads) or (bias.ndim == 2 and bias.shape[0] not in (1, sequences)):
        raise ArgumentValueError(f"bias must broadcast to ({sequences}, {heads}), got shape {tuple(bias.shape)}")
    return list(bias.expand(sequences, heads).unbind(0))


def _lengths(name: str, offsets: Any, total: int) -> list[int]:
    """Lengths of the sequences between ``offsets``."""
    allowed = f"integers that start at 0, never fall and end at {total}"
    if isinstance(offsets, Tensor):
        if offsets.is_floating_point() or offsets.is_complex() or offsets.dtype is torch.bool:
            raise ArgumentTypeError(f"{name} must be {allowed}, got a tensor of {offsets.dtype}")
        if offsets.ndim != 1:
            raise ArgumentValueError(f"{name} must be a vector of {allowed}, got shape {tuple(offsets.shape)}")
        offsets = offsets.tolist()
    if not isinstance(offsets, tuple | list) or any(isinstance(x, bool) or not isinstance(x, int) for x in offsets):
        bad_type(name, offsets, allowed)
    lengths = [end - start for start, end in itertools.pairwise(offsets)]
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != total or min(lengths) < 0:
        bad_value(name, offsets, allowed)
    return lengths
