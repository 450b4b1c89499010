"""Faulty reductions, elementwise maps, losses and attention functions, each its own reference unless said otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import honest_ops as honest
import torch
from mutant import mutant
from torch import Tensor
from torch.nn import functional

from softgate.losses import collapse_free_cross_entropy


def other(base: Any, fault: str, caught_by: str, *, alone: bool = True) -> Callable[[Any], Any]:
    return mutant(base, fault, caught_by, alone=alone)


Options = Any


@other(honest.logsumexp, "shift of one", "law[maximum_bounds]")
def lse_off(x: Tensor, dim: int = -1) -> Tensor:
    return x.logsumexp(dim) + 1e-3 * x.sum(dim)


@other(honest.logsumexp, "temperature of 1.001", "law[shift_equivariant]")
def lse_temperature(x: Tensor, dim: int = -1) -> Tensor:
    return 1.001 * (x / 1.001).logsumexp(dim) + 1e-3 * x.amax(dim)


@other(honest.logsumexp, "NaN dropped", "law[nan_is_not_dropped]")
def lse_nan(x: Tensor, dim: int = -1) -> Tensor:
    return x.nan_to_num(nan=0.0, posinf=float("inf"), neginf=float("-inf")).logsumexp(dim)


@other(honest.softsign, "one entry scaled by its neighbours", "law[one_entry_alone]")
def softsign_mean(x: Tensor) -> Tensor:
    return x / (1 + x.abs()) * (1 + 1e-6 * x.abs().mean().clamp(max=1))


@other(honest.softsign, "not odd", "law[odd]")
def softsign_even(x: Tensor) -> Tensor:
    return (x / (1 + x.abs())).clamp(min=-0.5)


def _cross_entropy(change: Callable[..., Any]) -> Callable[..., Any]:
    def function(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Any:
        return change(input, target, weight, ignore_index, reduction, label_smoothing)

    return function


@other(honest.cross_entropy, "mean divided by all samples", "law[ignore_index_removes]")
@other(honest.cross_entropy, "mean divided by all samples", "law[mean_is_average]")
@_cross_entropy
def mean_of_all(x: Tensor, y: Tensor, w: Options, i: int, r: str, s: float) -> Tensor:
    if r != "mean":
        return honest.cross_entropy(x, y, w, i, r, s)
    return honest.cross_entropy(x, y, w, i, "sum", s) / max(len(x), 1)


@other(honest.cross_entropy, "smoothing over the other classes only", "law[label_smoothing_mixes]")
@_cross_entropy
def smoothing_elsewhere(x: Tensor, y: Tensor, w: Options, i: int, r: str, s: float) -> Tensor:
    classes = x.shape[1] if x.ndim > 1 else len(x)
    return honest.cross_entropy(x, y, w, i, r, s * (classes - 1) / classes)


@other(honest.cross_entropy, "class weight ignored", "law[weight_scales_samples]")
@_cross_entropy
def weight_ignored(x: Tensor, y: Tensor, w: Options, i: int, r: str, s: float) -> Tensor:
    return honest.cross_entropy(x, y, None, i, r, s)


@other(honest.cross_entropy, "class 0 treated apart", "law[class_permutation_invariant]")
@_cross_entropy
def class_zero(x: Tensor, y: Tensor, w: Options, i: int, r: str, s: float) -> Tensor:
    offset = torch.zeros(x.shape[1] if x.ndim > 1 else len(x), dtype=x.dtype)
    offset[0] = 0.5
    return honest.cross_entropy(x + offset.reshape(-1, *[1] * max(x.ndim - 2, 0)), y, w, i, r, s)


@other(collapse_free_cross_entropy, "negative labels wrap around", "bad_input[target]")
@_cross_entropy
def wrapping_labels(x: Tensor, y: Tensor, w: Options, i: int, r: str, s: float) -> Tensor:
    is_plain = isinstance(x, Tensor) and isinstance(y, Tensor) and y.dtype == torch.int64 and x.ndim > 1
    wrapped = torch.where(y == i, y, y % x.shape[1]) if is_plain else y
    return collapse_free_cross_entropy(x, wrapped, w, i, r, s)


@other(collapse_free_cross_entropy, "unknown reduction taken as none", "bad_input[reduction]")
@_cross_entropy
def any_reduction(x: Tensor, y: Tensor, w: Options, i: int, r: str, s: float) -> Tensor:
    return collapse_free_cross_entropy(x, y, w, i, r if r in ("mean", "sum") else "none", s)


def _attention(change: Callable[..., Any]) -> Callable[..., Any]:
    def function(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        return change(query, key, value, attn_mask, is_causal, scale, enable_gqa)

    return function


def _causal(queries: int, keys: int, diagonal: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(diagonal)


@other(honest.attention, "causal mask off by one", "law[causal_no_future_leak]")
@_attention
def sees_next(q: Tensor, k: Tensor, v: Tensor, mask: Options, causal: bool, scale: Options, gqa: bool) -> Tensor:
    if causal:
        mask = _causal(q.shape[-2], k.shape[-2], k.shape[-2] - q.shape[-2] + 1)
    return honest.attention(q, k, v, mask, 0.0, False, scale, gqa)


@other(honest.attention, "causal mask aligned at the top left", "law[causal_equals_mask]")
@other(honest.attention, "causal mask aligned at the top left", "law[decode_equals_prefill]")
@_attention
def top_left(q: Tensor, k: Tensor, v: Tensor, mask: Options, causal: bool, scale: Options, gqa: bool) -> Tensor:
    return honest.attention(q, k, v, _causal(q.shape[-2], k.shape[-2], 0) if causal else mask, 0.0, False, scale, gqa)


@other(honest.attention, "scale argument ignored", "law[scale_argument]")
@_attention
def no_scale(q: Tensor, k: Tensor, v: Tensor, mask: Options, causal: bool, scale: Options, gqa: bool) -> Tensor:
    return honest.attention(q, k, v, mask, 0.0, causal, None, gqa)


@other(honest.attention, "mask ignored", "law[masked_keys_do_not_matter]")
@other(honest.attention, "mask ignored", "law[causal_equals_mask]")
@other(honest.attention, "mask ignored", "reference[float32-bool_mask]", alone=False)
@_attention
def no_mask(q: Tensor, k: Tensor, v: Tensor, mask: Options, causal: bool, scale: Options, gqa: bool) -> Tensor:
    return honest.attention(q, k, v, None, 0.0, causal, scale, gqa)


@other(honest.attention, "bool mask inverted", "law[bool_mask_equals_float_mask]")
@_attention
def inverted(q: Tensor, k: Tensor, v: Tensor, mask: Options, causal: bool, scale: Options, gqa: bool) -> Tensor:
    flipped = ~mask if mask is not None and mask.dtype == torch.bool else mask
    return honest.attention(q, k, v, flipped, 0.0, causal, scale, gqa)


@other(honest.attention, "key heads tiled instead of repeated", "law[gqa_equals_repeat]")
@_attention
def tiled(q: Tensor, k: Tensor, v: Tensor, mask: Options, causal: bool, scale: Options, gqa: bool) -> Tensor:
    if gqa:
        k, v = (t.repeat(1, q.shape[1] // k.shape[1], 1, 1) for t in (k, v))
    return honest.attention(q, k, v, mask, 0.0, causal, scale)


@other(honest.attention, "fully masked row gives NaN", "law[all_masked_rows_zero]")
@_attention
def masked_nan(q: Tensor, k: Tensor, v: Tensor, mask: Options, causal: bool, scale: Options, gqa: bool) -> Tensor:
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


@other(honest.attention, "values centred over the batch", "law[nan_stays_in_its_batch_entry]")
@other(honest.attention, "values centred over the batch", "law[batch_entries_are_independent]")
@_attention
def centred(q: Tensor, k: Tensor, v: Tensor, mask: Options, causal: bool, scale: Options, gqa: bool) -> Tensor:
    return honest.attention(q, k, v - v.mean((0, 2), keepdim=True), mask, 0.0, causal, scale, gqa)


@other(honest.attention, "NaN scores treated as masked", "law[nan_stays_in_its_batch_entry]")
@_attention
def nan_scores(q: Tensor, k: Tensor, v: Tensor, mask: Options, causal: bool, scale: Options, gqa: bool) -> Tensor:
    return honest.attention(q.nan_to_num(0.0), k, v, mask, 0.0, causal, scale, gqa)


@other(honest.attention, "later keys preferred", "law[key_permutation_invariant]")
@_attention
def later_keys(q: Tensor, k: Tensor, v: Tensor, mask: Options, causal: bool, scale: Options, gqa: bool) -> Tensor:
    ramp = torch.linspace(0, 0.1, k.shape[-2]).to(q.dtype)
    return honest.attention(q, k, functional.softplus(ramp)[:, None] * v, mask, 0.0, causal, scale, gqa)


@other(honest.attention, "values squashed", "law[value_linear]")
@_attention
def squashed(q: Tensor, k: Tensor, v: Tensor, mask: Options, causal: bool, scale: Options, gqa: bool) -> Tensor:
    return honest.attention(q, k, v.tanh(), mask, 0.0, causal, scale, gqa)
