"""Which remedy of this library fits a kind of finding, and the one line that puts it into this very model."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from softgate.diagnostics._observe.interface import is_transformers_model

__all__: list[str] = []

#: The losses of transformers that ``softgate.swap(model, loss=...)`` can exchange.
_LOSSES = ("ForCausalLMLoss", "ForMaskedLMLoss", "ForSequenceClassificationLoss")
_LENGTHS = ("max_position_embeddings", "n_positions", "image_size")

#: topic -> (place, method, what to build with where there is no place for a swap)
REMEDIES: dict[str, tuple[str, str, str]] = {
    "sink": ("attention", "gated", "softgate.attention.GatedAttention(embed_dim, num_heads)"),
    "massive": ("attention", "gated", "softgate.attention.GatedAttention(embed_dim, num_heads)"),
    "outliers": ("attention", "gated", "softgate.attention.GatedAttention(embed_dim, num_heads)"),
    "saturation": (
        "attention",
        "clipped_softmax",
        "softgate.attention.clipped_softmax_attention(query, key, value, alpha=4.0, max_seq_len={length})",
    ),
    "diffuse": ("attention", "softplus", "softgate.attention.softplus_attention(query, key, value)"),
    "collapse": ("loss", "stablemax", "softgate.losses.stablemax_cross_entropy(logits, target)"),
    "routing": ("router", "sigmoid", "softgate.routing.balance_after(optimizer, model)"),
    "lipschitz": ("", "", "softgate.losses.SVMHead(features, classes)"),
}


def line_for(model: nn.Module, topic: str, length: int) -> tuple[str, dict[str, Any]]:
    """The line of code for ``topic``, and the arguments of ``softgate.swap`` in it (empty: it is no swap)."""
    place, name, otherwise = REMEDIES[topic]
    if not place or not _has_place(model, place, name):
        return otherwise.format(length=length), {}
    arguments: dict[str, Any] = {place: name}
    if name == "clipped_softmax" and not _says_its_length(model):
        arguments["attention_options"] = {"max_seq_len": length}
    return (
        f"softgate.swap(model, {', '.join(f'{key}={_quoted(value)}' for key, value in arguments.items())})",
        arguments,
    )


def is_swapped(model: nn.Module, place: str) -> bool:
    """Whether something is swapped into ``place`` already."""
    applied: Mapping[str, Any] = getattr(vars(model).get("softgate_swaps"), "applied", {})
    taken = {"attention", "normalizer"} if place == "attention" else {place}
    return bool(taken & set(applied))


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value).replace("'", '"')


def _has_place(model: Any, place: str, name: str) -> bool:
    if is_swapped(model, place):
        return False
    if place == "attention":
        if is_transformers_model(model):
            return bool(model._can_set_attn_implementation())
        return _known_attention(model, name)
    if not is_transformers_model(model):
        return False
    if place == "router":
        return any(type(module).__name__.endswith("TopKRouter") for module in model.modules())
    known = getattr(getattr(model, "loss_function", None), "__name__", "") in _LOSSES
    return known and "self.loss_function(" in inspect.getsource(type(model).forward)


def _known_attention(model: nn.Module, name: str) -> bool:
    """Whether every attention inside ``model`` is one of the classes that swap knows, and there is one."""
    timm = sys.modules.get("timm.layers")
    known = [nn.MultiheadAttention] if timm is None else [nn.MultiheadAttention, timm.Attention]
    found = [module for module in model.modules() if type(module) in known]
    for module in model.modules():
        looks_so = any(mark in type(module).__name__ for mark in ("Attention", "Attn"))
        if is_transformers_model(module) or (looks_so and not any(type(part) in known for part in module.modules())):
            return False
    extra_keys = any(getattr(m, "bias_k", None) is not None or getattr(m, "add_zero_attn", False) for m in found)
    gated = name == "gated" and any(getattr(m, "gate", None) is not None for m in found)
    return bool(found) and not extra_keys and not gated


def _says_its_length(model: Any) -> bool:
    if is_transformers_model(model):
        return any(isinstance(getattr(model.config, name, None), int) for name in _LENGTHS)
    return isinstance(getattr(getattr(model, "patch_embed", None), "num_patches", None), int)
