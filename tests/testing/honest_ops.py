"""Correct ops, one per signature family, from which the mutants are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softgate._checks import check_dim, check_float_tensor
from softgate.registry import Method, method


def softmax_reference(x: Tensor, dim: int = -1) -> Tensor:
    return x.softmax(dim)


@method(
    site="normalizers",
    family="row_map",
    source="textbook",
    reference=softmax_reference,
    register=False,
    laws=(
        "sums_to_one",
        "nonnegative",
        "shift_invariant",
        "permutation_equivariant",
        "order_preserving",
        "masked_equals_removed",
        "gradient_sums_to_zero",
    ),
    output_range=(0.0, 1.0),
    masked_rows="nan",
)
def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Softmax along ``dim``."""
    if isinstance(x, Tensor) and x.dtype.itemsize == 1 and x.is_floating_point():
        raise_float8(x)
    check_float_tensor("x", x)
    return x.softmax(check_dim(dim, x.ndim))


def raise_float8(x: Tensor) -> None:
    from softgate.errors import ArgumentTypeError

    raise ArgumentTypeError(f"x must have a dtype that can be computed in, got {x.dtype}")


def softmax_zeros_reference(x: Tensor, dim: int = -1) -> Tensor:
    if x.ndim == 0 or x.shape[dim] == 0:
        return x.softmax(dim)
    masked = (x == float("-inf")).all(dim, keepdim=True)
    return x.masked_fill(masked, 0.0).softmax(dim).masked_fill(masked, 0.0)


@method(
    site="normalizers",
    family="row_map",
    source="textbook",
    reference=softmax_zeros_reference,
    register=False,
    output_range=(0.0, 1.0),
    masked_rows="zeros",
)
def softmax_zeros(x: Tensor, dim: int = -1) -> Tensor:
    """Softmax along ``dim`` that gives zeros where everything is masked."""
    return softmax_zeros_reference(x, dim)


@method(
    site="normalizers",
    family="row_reduction",
    source="textbook",
    register=False,
    laws=("shift_equivariant", "permutation_invariant", "maximum_bounds", "masked_equals_removed"),
)
def logsumexp(x: Tensor, dim: int = -1) -> Tensor:
    """Logarithm of the sum of exponentials along ``dim``."""
    return x.logsumexp(dim)


@method(
    site="activations",
    family="scalar_map",
    source="textbook",
    register=False,
    laws=("odd", "order_preserving"),
    output_range=(-1.0, 1.0),
)
def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / (1 + x.abs())


@method(
    site="losses",
    family="loss",
    source="textbook",
    register=False,
    laws=("nonnegative", "class_permutation_invariant", "shift_invariant"),
    output_range=(0.0, float("inf")),
)
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of torch, without any validation of its own."""
    return functional.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - scores.shape[-2])
        scores = scores.masked_fill(~allowed, float("-inf"))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return softmax_zeros_reference(scores) @ value


@method(
    site="attention",
    family="attention",
    source="textbook",
    reference=attention_reference,
    register=False,
    masked_rows="zeros",
    laws=("decode_equals_prefill", "value_linear"),
)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Softmax attention, without any validation of its own."""
    return attention_reference(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


def with_function(base: Any, function: Callable[..., Any], *, reference: Any = None, **fields: Any) -> Method:
    """The record of ``base`` with another function; ``reference=function`` lets only the laws object."""
    record: Method = base.__softgate__
    return replace(record, function=function, reference=reference or record.reference, **fields)
