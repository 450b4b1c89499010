"""Prompts as a prefix of keys and values in one layer of a transformers model.

Only keys and values of the prompts matter, since their outputs are thrown away. They are computed by the layer itself,
at position 0, and stand before those of the tokens: in the layer's cache where there is one, which then counts the
tokens alone, so that positions, masks and ``generate`` of the model stay as they are.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import StateError

__all__ = ["Prefix", "bind", "cache_name", "insert", "is_prefixed", "parameter_names", "unbind"]

#: Attribute by which a layer of transformers keeps its cache under gradient checkpointing, as one that is only read.
_KEEPS_CACHE = "_can_checkpoint_with_cache"


class Prefix:
    """Keys and values of the prompts, as the cache of a layer that keeps nothing else.

    Args:
        keys: (B, G, L, K).
        values: (B, G, L, V).
        visible: (B, L) bool, where rows have different numbers of prompts; None if all are there.
    """

    def __init__(self, keys: Tensor, values: Tensor, visible: Tensor | None) -> None:
        self.prefix_keys, self.prefix_values, self.visible = keys, values, visible

    @property
    def prefix_length(self) -> int:
        """Number L of prompts."""
        return self.prefix_keys.shape[-2]

    def get_seq_length(self) -> int:
        """Tokens before those of this call."""
        return 0

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values that the layer attends to."""
        return torch.cat((self.prefix_keys, keys), -2), torch.cat((self.prefix_values, values), -2)


@functools.cache
def _prefixed_layer() -> type:
    """The cache of a layer that begins with a prefix; a function, since transformers is optional."""
    from transformers.cache_utils import DynamicLayer

    class PrefixedLayer(DynamicLayer):  # type: ignore[misc,unused-ignore]
        """A growing cache whose first entries are prompts and do not count as tokens."""

        def __init__(self, prefix: Prefix) -> None:
            super().__init__()
            self.lazy_initialization(prefix.prefix_keys, prefix.prefix_values)
            self.keys, self.values = prefix.prefix_keys, prefix.prefix_values
            self.prefix_length, self.visible = prefix.prefix_length, prefix.visible

        def get_seq_length(self) -> int:
            return 0 if self.keys is None else self.keys.shape[-2] - self.prefix_length

        def reset(self) -> None:
            super().reset()
            self.prefix_length, self.visible = 0, None

        def reorder_cache(self, beam_idx: Any) -> None:
            super().reorder_cache(beam_idx)
            if self.visible is not None:
                self.visible = self.visible.index_select(0, beam_idx.to(self.visible.device))

        def batch_repeat_interleave(self, repeats: int) -> None:
            super().batch_repeat_interleave(repeats)
            if self.visible is not None:
                self.visible = self.visible.repeat_interleave(repeats, dim=0)

        def batch_select_indices(self, indices: Tensor) -> None:
            super().batch_select_indices(indices)
            if self.visible is not None:
                self.visible = self.visible[indices]

    return PrefixedLayer


def is_prefixed(cache: Any) -> bool:
    """Whether any layer of ``cache`` begins with prompts."""
    return any(getattr(layer, "prefix_length", 0) for layer in getattr(cache, "layers", ()))


def parameter_names(kind: Any) -> tuple[str, ...]:
    """Names of what the forward of a layer class takes, without ``self``."""
    return _parameter_names(kind)


@functools.cache
def _parameter_names(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def cache_name(kind: Any) -> str:
    """What a layer class calls its cache; empty if it takes none."""
    known = [name for name in ("past_key_values", "layer_past") if name in parameter_names(kind)]
    return known[0] if known else ""


def bind(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call of ``layer`` by name."""
    return {**dict(zip(parameter_names(type(layer)), args, strict=False)), **kwargs}


def unbind(given: dict[str, Any], names: tuple[str, ...], positional: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inverse of :func:`bind`: the first ``positional`` arguments without their names."""
    return tuple(given[name] for name in names[:positional]), {
        name: value for name, value in given.items() if name not in names[:positional]
    }


def insert(
    layer: nn.Module,
    index: int,
    given: dict[str, Any],
    prompts: Tensor | None,
    visible: Tensor | None,
    implementation: str,
) -> bool:
    """Put the prompts of a layer before its keys and values, by changing the arguments ``given``.

    Args:
        layer: decoder layer.
        index: its number.
        given: arguments of the call by name; its cache and mask are replaced.
        prompts: (B, L, D), or None where only prompts of an earlier call may stand in the cache.
        visible: (B, L) bool, see :class:`Prefix`.
        implementation: name of the model's attention implementation.

    Returns:
        Whether there is a prefix.

    Raises:
        StateError: the layer, its mask or its cache is of a kind that cannot take a prefix.
    """
    vars(layer).pop(_KEEPS_CACHE, None)
    name = cache_name(type(layer))
    cache = given.get(name)
    stored = cache.layers[index] if cache is not None and index < len(getattr(cache, "layers", ())) else None
    if not getattr(stored, "prefix_length", 0):
        if prompts is None:
            return False
        stored = Prefix(*_keys_and_values(layer, given, prompts), visible)
        checkpointed = bool(getattr(layer, "gradient_checkpointing", False)) and layer.training
        if checkpointed:
            _check_checkpointing(layer)
            setattr(layer, _KEEPS_CACHE, True)
        if cache is None or checkpointed:  # a recomputed layer must not write into a cache twice
            given[name] = stored
        else:
            _put(cache, index, stored)
    hidden = given[parameter_names(type(layer))[0]]
    given["attention_mask"] = _extended(given.get("attention_mask"), stored, hidden, implementation)
    return True


def _check_checkpointing(layer: Any) -> None:
    options = getattr(getattr(layer, "_gradient_checkpointing_func", None), "keywords", {})
    if options.get("use_reentrant"):
        raise StateError(
            "prompts get no gradients through reentrant checkpoints: enable checkpointing with use_reentrant=False"
        )


def _put(cache: Any, index: int, prefix: Prefix) -> None:
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    while len(cache.layers) <= index:
        cache.layers.append(cache.layer_class_to_replicate())
    # a layer with a window is kept whole: its mask hides what lies outside
    if type(cache.layers[index]) not in (DynamicLayer, DynamicSlidingWindowLayer, _prefixed_layer()):
        raise StateError(
            f"a cache of {type(cache.layers[index]).__name__} cannot take a prefix of prompts; use a DynamicCache "
            "(in generate: no cache_implementation)"
        )
    cache.layers[index] = _prefixed_layer()(prefix)


class _Recorded(Exception):
    """Ends the run of a layer as soon as keys and values are there."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values


class _Recorder:
    """A cache that takes the first keys and values and ends the run."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> Any:
        raise _Recorded(keys, values)


def _keys_and_values(layer: Any, given: dict[str, Any], prompts: Tensor) -> tuple[Tensor, Tensor]:
    """What the layer's own norm and projections make of ``prompts`` at position 0."""
    inputs = {**given, cache_name(type(layer)): _Recorder(), "attention_mask": None}
    inputs[parameter_names(type(layer))[0]] = prompts
    if isinstance(inputs.get("position_ids"), Tensor):
        inputs["position_ids"] = inputs["position_ids"].new_zeros((1, prompts.shape[1]))
    if inputs.get("position_embeddings") is not None:
        inputs["position_embeddings"] = _at_position_0(inputs["position_embeddings"], prompts.shape[1])
    checkpointing = getattr(layer, "gradient_checkpointing", False)
    try:
        if checkpointing:  # which would take the recorder away
            layer.gradient_checkpointing = False
        layer.forward(**inputs)
    except _Recorded as found:
        return found.keys, found.values
    finally:
        if checkpointing:
            layer.gradient_checkpointing = True
    raise StateError(f"{type(layer).__name__} hands no keys and values to a cache: it cannot have prompts")


def _at_position_0(embeddings: Any, count: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of ``count`` rotations by nothing, with the scaling that the model's own have."""
    if not isinstance(embeddings, tuple | list) or len(embeddings) != 2 or embeddings[0].is_complex():
        raise StateError("the model's rotary positions are not cosines and sines: its layers cannot have prompts")
    cos, sin = embeddings
    scaling = (cos[:, :1].square() + sin[:, :1].square()).sqrt().expand(-1, count, -1)
    return scaling, torch.zeros_like(scaling)


def _extended(mask: Any, prefix: Any, hidden: Tensor, implementation: str) -> Any:
    """The mask of a layer with columns for the prefix, which every query sees."""
    rows, queries = hidden.shape[:2]
    visible, length = prefix.visible, prefix.prefix_length
    before = prefix.get_seq_length()
    if mask is None:
        if visible is None and (queries == 1 or "flash" in implementation):  # nothing to hide, or causal by itself
            return None
        if "flash" in implementation:
            mask = torch.ones(rows, before + queries, dtype=torch.long, device=hidden.device)
        else:
            ones = torch.ones(queries, before + queries, dtype=torch.bool, device=hidden.device)
            mask = ones.tril(before)[None, None]
    if not isinstance(mask, Tensor):
        raise StateError(f"a mask of type {type(mask).__name__} cannot take a prefix; use attn_implementation='sdpa'")
    if visible is None:
        visible = torch.ones(1, length, dtype=torch.bool, device=mask.device)
    if mask.ndim == 2:
        return torch.cat((visible.expand(rows, -1).to(mask.dtype), mask), 1)
    size = max(len(mask), len(visible))
    left = visible[:, None, None, :].expand(size, mask.shape[1], queries, length)
    if mask.dtype is not torch.bool:
        left = torch.zeros_like(left, dtype=mask.dtype).masked_fill(~left, torch.finfo(mask.dtype).min)
    return torch.cat((left, mask.expand(size, -1, -1, -1)), -1)
