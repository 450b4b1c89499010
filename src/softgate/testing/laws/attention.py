"""Laws of attention functions with the signature of ``scaled_dot_product_attention``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate.testing.budgets import band
from softgate.testing.inputs import extras_like
from softgate.testing.laws._law import law
from softgate.testing.report import fail
from softgate.testing.strategies import AttentionDraw
from softgate.testing.subject import Subject

__all__ = [
    "all_masked_rows_zero",
    "batch_entries_are_independent",
    "batch_invariant",
    "bool_mask_equals_float_mask",
    "causal_equals_mask",
    "causal_no_future_leak",
    "decode_equals_prefill",
    "gqa_equals_repeat",
    "key_permutation_invariant",
    "masked_keys_do_not_matter",
    "masked_keys_equal_absent_keys",
    "scale_argument",
    "value_linear",
]


def _free(*names: str) -> Any:
    return lambda op: op.is_free(*names)


def agree(op: Subject, draw: AttentionDraw, got: Tensor, expected: Tensor, message: str) -> None:
    """Fail unless equal up to rounding: of the weights, growing with the scores, and of the sum over values."""
    width = draw.query.shape[-1]
    scores = (draw.query.double().norm(dim=-1).max() * draw.key.double().norm(dim=-1).max()).item()
    rounding = 2 * band(torch.float32, width * draw.key.shape[-2]) * (1 + scores) * draw.value.abs().max().item()
    growth = max(expected.abs().max().item() / max(draw.value.abs().max().item(), 1e-30), 1.0)
    if got.shape != expected.shape or not bool(((got - expected).abs() <= rounding * growth).all()):
        fail(message, query=draw.query, key=draw.key, value=draw.value, extras=draw.extras, got=got, expected=expected)


def _mask(draw: AttentionDraw) -> Tensor:
    allowed = torch.rand(draw.query.shape[-2], draw.key.shape[-2], generator=draw.generator) < 0.6
    allowed[:, 0] = True
    return allowed


def _lower_right(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def _non_causal(op: Subject) -> dict[str, Any]:
    return {"is_causal": False} if op.accepts("is_causal") else {}


@law("attention", draws="attention", always=True, applies=lambda op: op.accepts("is_causal"))
def causal_no_future_leak(op: Subject, draw: AttentionDraw) -> None:
    """With ``is_causal``, keys and values after query i (aligned at the last key) change nothing up to query i."""
    q, k, v = draw.query, draw.key, draw.value
    before = op(q, k, v, *draw.extras, is_causal=True)
    offset = k.shape[-2] - q.shape[-2]
    for i in range(q.shape[-2] - 1):
        future = max(i + offset + 1, 0)
        changed_k, changed_v = k.clone(), v.clone()
        changed_k[..., future:, :] = -3 * changed_k[..., future:, :] + 1
        changed_v[..., future:, :] = 1e3
        after = op(q, changed_k, changed_v, *draw.extras, is_causal=True)
        if not torch.equal(before[..., : i + 1, :], after[..., : i + 1, :]):
            fail(f"queries up to {i} see keys from {future} on", query=q, key=k, value=v, before=before, after=after)


@law("attention", draws="attention", always=True, applies=_free("is_causal", "attn_mask"))
def causal_equals_mask(op: Subject, draw: AttentionDraw) -> None:
    """``is_causal`` equals the explicit mask aligned at the lower right corner."""
    mask = _lower_right(draw.query.shape[-2], draw.key.shape[-2])
    a = op(draw.query, draw.key, draw.value, *draw.extras, is_causal=True)
    b = op(draw.query, draw.key, draw.value, *draw.extras, attn_mask=mask)
    agree(op, draw, a, b, "is_causal is not the lower-right aligned mask")


@law("attention", draws="attention", always=True, applies=_free("attn_mask"))
def bool_mask_equals_float_mask(op: Subject, draw: AttentionDraw) -> None:
    """False in a bool mask equals -inf in an additive mask, and True equals 0."""
    mask = _mask(draw)
    bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    a = op(draw.query, draw.key, draw.value, *draw.extras, attn_mask=mask, **_non_causal(op))
    b = op(draw.query, draw.key, draw.value, *draw.extras, attn_mask=bias, **_non_causal(op))
    agree(op, draw, a, b, "a bool mask and its additive form differ")


@law("attention", draws="attention", always=True, applies=lambda op: op.accepts("attn_mask"))
def masked_keys_do_not_matter(op: Subject, draw: AttentionDraw) -> None:
    """Keys and values that no query may attend to change nothing, and get no gradient."""
    keys = draw.key.shape[-2]
    allowed = torch.arange(keys) < max(keys // 2, 1)
    mask = allowed.expand(draw.query.shape[-2] if op.is_free("attn_mask") else 1, keys)
    k, v = draw.key.clone().requires_grad_(), draw.value.clone().requires_grad_()
    before = op(draw.query, k, v, *draw.extras, attn_mask=mask, **_non_causal(op))
    other_k = torch.where(allowed[:, None], draw.key, 7 - draw.key)
    other_v = torch.where(allowed[:, None], draw.value, torch.tensor(1e6))
    after = op(draw.query, other_k, other_v, *draw.extras, attn_mask=mask, **_non_causal(op))
    if not torch.equal(before.detach(), after):
        fail(
            "masked keys change the result",
            query=draw.query,
            key=draw.key,
            value=draw.value,
            before=before,
            after=after,
        )
    for name, g in zip(("key", "value"), torch.autograd.grad(before.sum(), (k, v), allow_unused=True), strict=True):
        if g is not None and bool((g[..., ~allowed, :] != 0).any()):
            fail(f"a masked {name} has a gradient", gradient=g)


@law("attention", draws="attention", always=True, applies=lambda op: op.accepts("attn_mask"))
def masked_keys_equal_absent_keys(op: Subject, draw: AttentionDraw) -> None:
    """Keys masked for every query might as well not be there."""
    keys = draw.key.shape[-2]
    allowed = torch.arange(keys) < (keys + 1) // 2
    q, k, v = draw.query, draw.key, draw.value
    a = op(q, k, v, *draw.extras, attn_mask=allowed[None], **_non_causal(op))
    b = op(q, k[..., allowed, :], v[..., allowed, :], *draw.extras, **_non_causal(op))
    agree(op, draw, a, b, "masked keys differ from absent ones")


@law("attention", draws="attention", always=True)
def key_permutation_invariant(op: Subject, draw: AttentionDraw) -> None:
    """The order of the keys (with their values) does not matter without a causal mask."""
    order = torch.randperm(draw.key.shape[-2], generator=draw.generator)
    a = op(draw.query, draw.key, draw.value, *draw.extras, **_non_causal(op))
    b = op(draw.query, draw.key[..., order, :], draw.value[..., order, :], *draw.extras, **_non_causal(op))
    agree(op, draw, b, a, "the order of the keys matters")


@law("attention", draws="attention", always=True, applies=_free("enable_gqa"))
def gqa_equals_repeat(op: Subject, draw: AttentionDraw) -> None:
    """Query head h uses key/value head h // (query heads / key heads), as if those were repeated."""
    groups = 2
    q = torch.cat([draw.query, draw.query.flip(-1)], dim=1)
    extras = extras_like(op, q, draw.generator)
    a = op(q, draw.key, draw.value, *extras, enable_gqa=True)
    k, v = (t.repeat_interleave(groups, dim=1) for t in (draw.key, draw.value))
    agree(op, draw, a, op(q, k, v, *extras), "grouped queries differ from repeated keys and values")


@law("attention", draws="attention", always=True, applies=_free("attn_mask"))
def all_masked_rows_zero(op: Subject, draw: AttentionDraw) -> None:
    """A query without any allowed key gives zeros (NaN if the record says so) and zero gradients."""
    mask = _mask(draw)
    mask[0] = False
    tensors = [t.clone().requires_grad_() for t in (draw.query, draw.key, draw.value)]
    y = op(*tensors, *draw.extras, attn_mask=mask, **_non_causal(op))
    if op.record.masked_rows == "nan":
        if not bool(y[..., 0, :].isnan().all()):
            fail("a fully masked row is not NaN", y=y)
        return
    if bool((y[..., 0, :] != 0).any()):
        fail("a fully masked row is not zero", mask=mask, query=draw.query, key=draw.key, value=draw.value, y=y)
    for name, g in zip("qkv", torch.autograd.grad(y[..., 0, :].sum(), tensors, allow_unused=True), strict=True):
        if g is not None and bool((g != 0).any()):
            fail(f"a fully masked row gives {name} a gradient", gradient=g)
    every = torch.autograd.grad(op(*tensors, *draw.extras, attn_mask=mask, **_non_causal(op)).sum(), tensors)
    if not all(bool(g.isfinite().all()) for g in every):
        fail("a fully masked row makes a gradient infinite or NaN", mask=mask)


@law("attention", draws="attention")
def decode_equals_prefill(op: Subject, draw: AttentionDraw) -> None:
    """One query at a time against the keys so far gives what one causal call gives."""
    length = min(draw.query.shape[-2], draw.key.shape[-2])
    q, k, v = (t[..., :length, :] for t in (draw.query, draw.key, draw.value))
    rows = [e[..., :length, :] if _is_per_query(e, draw) else e for e in draw.extras]
    whole = op(q, k, v, *rows, is_causal=True)
    steps = []
    for t in range(length):
        extras = [e[..., t : t + 1, :] if _is_per_query(d, draw) else e for e, d in zip(rows, draw.extras, strict=True)]
        steps.append(op(q[..., t : t + 1, :], k[..., : t + 1, :], v[..., : t + 1, :], *extras, is_causal=True))
    agree(op, draw, torch.cat(steps, dim=-2), whole, "decoding step by step differs from one causal call")


def _is_per_query(extra: Any, draw: AttentionDraw) -> bool:
    return isinstance(extra, Tensor) and extra.shape[:-1] == draw.query.shape[:-1]


@law("attention", draws="attention", always=True, applies=_free("scale"))
def scale_argument(op: Subject, draw: AttentionDraw) -> None:
    """``scale=s`` multiplies the scores: it equals queries multiplied by s with ``scale=1``; None is 1/sqrt(width)."""
    q, k, v = draw.query, draw.key, draw.value
    agree(
        op,
        draw,
        op(q, k, v, *draw.extras, scale=0.5),
        op(q * 0.5, k, v, *draw.extras, scale=1.0),
        "scale is not applied",
    )
    default = op(q, k, v, *draw.extras, scale=q.shape[-1] ** -0.5)
    agree(op, draw, op(q, k, v, *draw.extras), default, "the default scale is not 1/sqrt(width)")


def _first_batch_entry(op: Subject, draw: AttentionDraw) -> tuple[Tensor, Tensor]:
    """Result of the first batch entry in a batch of twice the size, and alone."""
    q, k, v = (torch.cat([t, t.flip(0)]) for t in (draw.query, draw.key, draw.value))
    extras = [torch.cat([e, e.flip(0)]) if _is_per_query(e, draw) else e for e in draw.extras]
    first = [e[:1] if _is_per_query(d, draw) else e for e, d in zip(extras, draw.extras, strict=True)]
    return op(q, k, v, *extras)[:1], op(q[:1], k[:1], v[:1], *first)


@law("attention", draws="attention", always=True)
def batch_entries_are_independent(op: Subject, draw: AttentionDraw) -> None:
    """A batch entry alone gives what it gives in a batch, up to the rounding of matrix products of another shape."""
    together, alone = _first_batch_entry(op, draw)
    agree(op, draw, together, alone, "a batch entry depends on the batch")


@law("attention", draws="attention")
def batch_invariant(op: Subject, draw: AttentionDraw) -> None:
    """A batch entry alone gives what it gives in a batch, bit for bit (torch's own attention does not promise this)."""
    together, alone = _first_batch_entry(op, draw)
    if not torch.equal(together, alone):
        fail("a batch entry depends on the batch size", query=draw.query, together=together, alone=alone)


@law("attention", draws="attention")
def value_linear(op: Subject, draw: AttentionDraw) -> None:
    """The result is linear in the values."""
    other = draw.value.flip(-1)
    combined = op(draw.query, draw.key, 2 * draw.value - other, *draw.extras)
    parts = [op(draw.query, draw.key, v, *draw.extras) for v in (draw.value, other)]
    agree(op, draw, combined / 4, (2 * parts[0] - parts[1]) / 4, "the result is not linear in the values")
