"""What linear attention must remember of the tokens seen so far: sums of constant size."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._math import masks
from softgate.attention.cache import StateCache
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type


class LinearAttentionState(NamedTuple):
    """Sums over the tokens seen so far, per key/value head; their size does not grow with the length.

    Attributes:
        kv: (…, G, 2D, Dv) sum of φ(k) vᵀ, with rotated features where rotary positions are used.
        key_sum: (…, G, 2D) sum of φ(k), never rotated.
        tokens: (…) how many tokens are in the sums, as floats.
    """

    kv: Tensor
    key_sum: Tensor
    tokens: Tensor


class LinearAttentionCache(StateCache):
    """The state of one attention layer while it decodes: what a KV cache is to softmax attention, of constant size.

    Example:
        >>> cache = LinearAttentionCache()
        >>> cache.length, cache.state
        (0, None)
    """

    @property
    def state(self) -> LinearAttentionState | None:
        """Sums over the tokens seen, None before the first."""
        stored = super().state
        return None if stored is None else LinearAttentionState(*stored)

    def advance(self, state: LinearAttentionState, tokens: int) -> None:
        """Replace the state by one that holds ``tokens`` more tokens."""
        if not isinstance(state, LinearAttentionState):
            bad_type("state", state, "a LinearAttentionState")
        if isinstance(tokens, bool) or not isinstance(tokens, int):
            bad_type("tokens", tokens, "an int")
        self.store(state, tokens)


def check_state(state: Any, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise unless ``state`` is None or one that these keys and values can continue."""
    if state is None:
        return
    if not isinstance(state, LinearAttentionState):
        bad_type("initial_state", state, "a LinearAttentionState or None")
    lead = key.shape[:-2]
    features = 2 * key.shape[-1]
    shapes = {"kv": (*lead, features, value.shape[-1]), "key_sum": (*lead, features), "tokens": tuple(lead[:-1])}
    dtype = masks.accumulation_dtype(query.dtype)
    for name, expected in shapes.items():
        tensor = getattr(state, name)
        if not isinstance(tensor, Tensor) or tensor.dtype not in (dtype, torch.float32):
            raise ArgumentTypeError(f"initial_state.{name} must be a tensor of {dtype}, got {_kind(tensor)}")
        if tuple(tensor.shape) != expected or tensor.device != query.device:
            raise ArgumentValueError(
                f"initial_state.{name} must have shape {expected} on {query.device}, got {tuple(tensor.shape)} on "
                f"{tensor.device}"
            )


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
