"""Norm-aware linear attention in blocks of rows: time and memory linear in the length, features never kept.

Bidirectional: one sweep over the keys sums S = Σ φ(k) vᵀ and z = Σ φ(k), a second over the queries applies them.
Causal: a query meets the keys of its own chunk through a C x C product and all earlier ones through the running S and
z; the chunks of a block share batched products, their states are running sums. Blocks are as large as the cache likes.

Shape suffixes: B batch, H query heads, G key/value heads, T queries, S keys; M chunks of a block, N heads of a block
(batch and key/value heads together), C rows of a chunk (of all query heads that share a key head), D features, F = 2D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor

from softgate._math import masks
from softgate._math.double_backward import differentiable_gradients
from softgate.attention.norm_aware import backward, forward
from softgate.attention.norm_aware.blocks import Problem, turns
from softgate.attention.norm_aware.features import FeatureMap
from softgate.attention.norm_aware.reference import (
    LARGEST_KEY,
    Result,
    key_counts,
    key_keep,
    norm_aware_reference,
    shrink_factor,
    tokens_kept,
)
from softgate.attention.norm_aware.rotation import Rope
from softgate.attention.norm_aware.state import LinearAttentionState


def refuses(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> str | None:
    """Say why this call cannot run here, None if it can."""
    backend = options.get("backend", "auto")
    if backend not in ("auto", "chunked"):
        return f"backend={backend!r} was asked for"
    if 0 in query.shape or 0 in key.shape or 0 in value.shape:
        return "nothing to compute"
    if torch.is_grad_enabled():
        state, rope = options.get("initial_state"), options.get("rope")
        if any(t.requires_grad for t in (*(state or ()), *(rope or ()))):
            return "it gives no gradient for initial_state and rope"
        if options.get("return_state") and any(t.requires_grad for t in (query, key, value)):
            return "the state that it returns has no gradient"
    if backend == "auto" and query.shape[-2] == 1 and key.shape[-2] <= 4:
        return "one query and few keys are faster without blocks"
    return None


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    direction: str = "polarity",
    power: float = 3.0,
    tau: float = 0.5,
    alpha: float = 20.0,
    norm_scale: float | None = None,
    eps: float = 1e-6,
    rope: Rope | None = None,
    key_padding_mask: Tensor | None = None,
    chunk_size: int = 64,
    initial_state: LinearAttentionState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Result:
    """Arguments and result of :func:`softgate.attention.norm_aware_linear_attention`."""
    query, key, value = masks.cast_for_autocast(query, key, value)
    lead, dtype = query.shape[:-3], masks.accumulation_dtype(query.dtype)
    keep = key_keep(attn_mask, key_padding_mask, key)
    options = {
        "is_causal": is_causal,
        "enable_gqa": enable_gqa,
        "constants": FeatureMap(direction, power, tau, alpha, 1.0 if norm_scale is None else norm_scale),
        "eps": eps,
        "rope": rope,
        "keep": None if keep is None else keep.reshape(-1, keep.shape[-1]),
        "chunk": chunk_size,
        "scaled": initial_state is None and not return_state,
        "state": None if initial_state is None else _flat_state(initial_state, lead, dtype),
    }
    with masks.without_autocast(query):
        flat = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
        y_BHTD, kv_BGFD, z_BGF = _Chunked.apply(*flat, options)
        y = y_BHTD.reshape(*lead, *y_BHTD.shape[1:])
        if not return_state:
            return y
        tokens = tokens_kept(key, keep, dtype)
        if initial_state is not None:
            tokens = tokens + initial_state.tokens
        kv, key_sum = (t.reshape(*lead, *t.shape[1:]) for t in (kv_BGFD, z_BGF))
        return y, LinearAttentionState(kv, key_sum, tokens)


def _flat_state(state: LinearAttentionState, lead: torch.Size, dtype: torch.dtype) -> LinearAttentionState:
    first = len(lead)
    return LinearAttentionState(
        state.kv.to(dtype).reshape(-1, *state.kv.shape[first:]),
        state.key_sum.to(dtype).reshape(-1, *state.key_sum.shape[first:]),
        state.tokens.to(dtype).reshape(-1),
    )


def _problem(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, options: dict[str, Any]) -> Problem:
    dtype, keep_BS = masks.accumulation_dtype(q_BHTD.dtype), options["keep"]
    counts_BHT1 = key_counts(q_BHTD, k_BGSD, keep_BS, options["is_causal"], options["state"], dtype)
    floor_BHT = options["eps"] * counts_BHT1.squeeze(-1)
    shrink_BG11 = None
    if options["scaled"] and not _all_small(k_BGSD):
        visible = k_BGSD if keep_BS is None else k_BGSD.masked_fill(~keep_BS[:, None, :, None], 0.0)
        shrink_BG11 = shrink_factor(visible).to(dtype)
        if bool((shrink_BG11 == 1).all()):
            shrink_BG11 = None
        else:
            factor_BH11 = masks.expand_kv_heads(shrink_BG11, q_BHTD.shape[1])
            floor_BHT = floor_BHT * factor_BH11.squeeze(-1) ** options["constants"].power
    factors = turns(options["rope"], dtype)
    return Problem(
        q_BHTD, k_BGSD, v_BGSD, keep_BS, shrink_BG11, floor_BHT, options["constants"], factors, options["chunk"], dtype
    )


def _all_small(k_BGSD: Tensor) -> bool:
    """Whether no key need be scaled down; one look at all heads together costs a fifth of one at each."""
    return bool((k_BGSD.amax() <= LARGEST_KEY) & (k_BGSD.amin() >= -LARGEST_KEY))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        problem = _problem(query, key, value, options)
        # Backward subtracts dO·O from terms of its own size, so a 16-bit O would not do there.
        kept = problem.dtype if any(ctx.needs_input_grad) else query.dtype
        y_BHTD, *results = forward.sweep(problem, options["is_causal"], options["state"], kept)
        ctx.save_for_backward(query, key, value, y_BHTD, *results)
        ctx.options = options
        ctx.mark_non_differentiable(*results[1:])
        return y_BHTD.to(query.dtype), *results[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *results = ctx.saved_tensors
        # With create_graph=True, and for batches of gradients, ordinary operations: the sweeps write in place.
        if torch.is_grad_enabled() or is_batchedtensor(grads[0]) or is_legacy_batchedtensor(grads[0]):
            return (*_plain_backward(ctx, (query, key, value), grads[0]), None)
        problem = _problem(query, key, value, ctx.options)
        found = backward.sweep(problem, ctx.options["is_causal"], ctx.options["state"], grads[0], *results)
        return (*found, None)


def _plain_backward(ctx: Any, inputs: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of q, k, v by way of the reference; differentiable themselves if the inputs are."""
    options = ctx.options

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        y = norm_aware_reference(
            query,
            key,
            value,
            is_causal=options["is_causal"],
            enable_gqa=options["enable_gqa"],
            key_padding_mask=options["keep"],
            initial_state=options["state"],
            rope=options["rope"],
            eps=options["eps"],
            **options["constants"]._asdict(),
        )
        assert isinstance(y, Tensor)
        return y

    with masks.without_autocast(inputs[0]):
        return differentiable_gradients(plain, inputs, ctx.needs_input_grad[:3], grad)
