"""Queries and gates in one projection: the layouts of published checkpoints, and conversion to and from them.

The authors widen ``q_proj`` so that it gives queries and gate logits, and interleave the two: per key/value group in
the paper's code, per query head in Qwen3-Next. Cutting the matrix into halves ``[queries | gates]`` scrambles such a
checkpoint without any error; these functions do it right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice

__all__ = ["export_gated_state_dict", "fuse_qkvg", "import_gated_state_dict", "unfuse_qkvg"]

#: ``group``: qiuzh20/gated_attention, per kv group its queries, then its gates. ``head``: transformers' Qwen3-Next.
Layout = Literal["group", "head"]
_LAYOUTS = ("group", "head")


def unfuse_qkvg(
    fused: Tensor, num_heads: int, num_kv_heads: int | None = None, *, head_dim: int, layout: Layout = "group"
) -> tuple[Tensor, Tensor]:
    """Split the weight (or bias) of a fused ``q_proj`` into that of the queries and that of the gate.

    Args:
        fused: weight (R, D) or bias (R,), with R = 2·H·d rows for elementwise gates, H·d + H for headwise ones.
        num_heads: query heads H.
        num_kv_heads: key/value heads G, H if None.
        head_dim: features d per head.
        layout: ``"group"`` (authors' code) or ``"head"`` (Qwen3-Next).

    Returns:
        ``(query, gate)`` of H·d and H·d (or H) rows, heads in order, as ``q_proj`` and ``gate_proj`` of
        :class:`softgate.attention.GatedAttention`.

    Raises:
        ArgumentValueError: the number of rows fits neither granularity.

    Source: qiuzh20/gated_attention, ``modeling_qwen3.py``, ``Qwen3Attention.forward``.
    """
    groups = _groups(num_heads, num_kv_heads, head_dim, layout)
    if not isinstance(fused, Tensor):
        bad_type("fused", fused, "a tensor")
    queries = num_heads * head_dim
    gates = {2 * queries: queries, queries + num_heads: num_heads}.get(fused.shape[0] if fused.ndim in (1, 2) else -1)
    if gates is None:
        raise ArgumentValueError(
            f"fused must have {2 * queries} rows (elementwise) or {queries + num_heads} (headwise) for "
            f"{num_heads} heads of {head_dim} features, got shape {tuple(fused.shape)}"
        )
    blocks = fused.unflatten(0, (groups, -1))
    query, gate = blocks.split((queries // groups, gates // groups), dim=1)
    return query.flatten(0, 1), gate.flatten(0, 1)


def fuse_qkvg(
    query: Tensor,
    gate: Tensor,
    num_heads: int,
    num_kv_heads: int | None = None,
    *,
    head_dim: int,
    layout: Layout = "group",
) -> Tensor:
    """Interleave the weights (or biases) of queries and gate into one ``q_proj``; inverse of :func:`unfuse_qkvg`.

    Args:
        query: weight (H·d, D) or bias (H·d,).
        gate: weight (H·d, D) or bias (H·d,) elementwise, (H, D) or (H,) headwise.
        num_heads: query heads H.
        num_kv_heads: key/value heads G, H if None.
        head_dim: features d per head.
        layout: ``"group"`` (authors' code) or ``"head"`` (Qwen3-Next).

    Returns:
        Weight (R, D) or bias (R,).

    Raises:
        ArgumentValueError: shapes that do not fit.
    """
    groups = _groups(num_heads, num_kv_heads, head_dim, layout)
    for name, tensor in (("query", query), ("gate", gate)):
        if not isinstance(tensor, Tensor):
            bad_type(name, tensor, "a tensor")
    queries = num_heads * head_dim
    fits = query.ndim in (1, 2) and query.ndim == gate.ndim and query.shape[1:] == gate.shape[1:]
    if not fits or query.shape[0] != queries or gate.shape[0] not in (queries, num_heads):
        raise ArgumentValueError(
            f"query must have {queries} rows and gate {queries} or {num_heads}, of equal width, "
            f"got {tuple(query.shape)} and {tuple(gate.shape)}"
        )
    return torch.cat((query.unflatten(0, (groups, -1)), gate.unflatten(0, (groups, -1))), dim=1).flatten(0, 1)


def import_gated_state_dict(
    state: Mapping[str, Tensor],
    num_heads: int,
    num_kv_heads: int | None = None,
    *,
    head_dim: int,
    layout: Layout = "group",
    prefix: str = "",
) -> dict[str, Tensor]:
    """Turn the state dict of a published gated attention layer into that of ``GatedAttention``.

    Args:
        state: holds ``q_proj`` (fused), ``k_proj``, ``v_proj``, ``o_proj`` and, with QK-norm, ``q_norm``, ``k_norm``.
        num_heads: query heads H.
        num_kv_heads: key/value heads G, H if None.
        head_dim: features d per head.
        layout: ``"group"`` for the authors' ``Qwen3Attention``, ``"head"`` for ``Qwen3NextAttention``; the latter
            stores its norm weights as differences from 1, which is undone here.
        prefix: of the layer's keys, e.g. ``"model.layers.3.self_attn."``; other keys are ignored.

    Returns:
        State dict for ``GatedAttention(..., gate_position="sdpa")``.

    Raises:
        ArgumentValueError: a key is missing or unknown, or a shape does not fit.
    """
    layer = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    _check_keys(layer, ("q_proj", "k_proj", "v_proj", "o_proj"), prefix)
    converted: dict[str, Tensor] = {}
    for name, tensor in layer.items():
        if name.startswith("q_proj."):
            kind = name.removeprefix("q_proj.")
            query, gate = unfuse_qkvg(tensor, num_heads, num_kv_heads, head_dim=head_dim, layout=layout)
            converted[f"q_proj.{kind}"], converted[f"gate_proj.{kind}"] = query.contiguous(), gate.contiguous()
        elif "_norm." in name and layout == "head":
            converted[name] = tensor + 1.0
        else:
            converted[name] = tensor
    return converted


def export_gated_state_dict(
    state: Mapping[str, Tensor],
    num_heads: int,
    num_kv_heads: int | None = None,
    *,
    head_dim: int,
    layout: Layout = "group",
    prefix: str = "",
) -> dict[str, Tensor]:
    """Turn the state dict of a ``GatedAttention`` into the published form; inverse of :func:`import_gated_state_dict`.

    Args:
        state: of a ``GatedAttention`` with ``gate_position="sdpa"``.
        num_heads: query heads H.
        num_kv_heads: key/value heads G, H if None.
        head_dim: features d per head.
        layout: see :func:`import_gated_state_dict`.
        prefix: put before every key.

    Raises:
        ArgumentValueError: a key is missing or unknown, or a shape does not fit.
    """
    _check_keys(state, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"), "")
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("gate_proj."):
            continue
        if name.startswith("q_proj."):
            gate = state["gate_proj." + name.removeprefix("q_proj.")]
            tensor = fuse_qkvg(tensor, gate, num_heads, num_kv_heads, head_dim=head_dim, layout=layout)
        elif "_norm." in name and layout == "head":
            tensor = tensor - 1.0
        converted[prefix + name] = tensor
    return converted


def _groups(num_heads: Any, num_kv_heads: Any, head_dim: Any, layout: Any) -> int:
    """How many interleaved blocks the fused projection has."""
    check_choice("layout", layout, _LAYOUTS)
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    for name, size in (("num_heads", num_heads), ("num_kv_heads", num_kv_heads), ("head_dim", head_dim)):
        if isinstance(size, bool) or not isinstance(size, int):
            bad_type(name, size, "a positive int")
        if size < 1:
            bad_value(name, size, "a positive int")
    if num_heads % num_kv_heads:
        bad_value("num_kv_heads", num_kv_heads, f"a divisor of num_heads={num_heads}")
    return num_heads if layout == "head" else num_kv_heads


def _check_keys(layer: Mapping[str, Tensor], projections: tuple[str, ...], prefix: str) -> None:
    if not isinstance(layer, Mapping):
        bad_type("state", layer, "a mapping from names to tensors")
    allowed = {f"{p}.{kind}" for p in projections for kind in ("weight", "bias")} | {"q_norm.weight", "k_norm.weight"}
    missing = [f"{prefix}{p}.weight" for p in projections if f"{p}.weight" not in layer]
    biased = {name for name in ("q_proj.bias", "gate_proj.bias") if name in layer}
    if "gate_proj" in projections and len(biased) == 1:
        missing.append(f"{prefix}{({'q_proj.bias', 'gate_proj.bias'} - biased).pop()}")
    unknown = [prefix + name for name in layer if name not in allowed]
    if missing or unknown:
        raise ArgumentValueError(
            f"state must hold the parameters of one gated attention layer; missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(unknown) or 'none'}"
        )
