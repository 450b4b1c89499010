"""Keys and values of the tokens seen so far, for decoding one token at a time."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError, StateError, bad_type, bad_value

__all__ = ["KVCache", "LayerCache", "StateCache"]


class LayerCache(Protocol):
    """What a layer keeps between calls: keys and values of the tokens so far, or a state of constant size."""

    @property
    def length(self) -> int:
        """Number of tokens seen."""


class KVCache:
    """Keys and values of one attention layer; grows by doubling, so appending T tokens one by one copies O(T) of them.

    A model keeps one cache per layer. Nothing gate-related is stored for a gate on the output of attention: it depends
    on the current query token alone. A gate on values (or keys) is applied before they are stored.

    Args:
        capacity: number of tokens to allocate for at the first append.

    Example:
        >>> import torch
        >>> cache = KVCache()
        >>> keys, values = cache.append(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
        >>> cache.length, keys.shape
        (3, torch.Size([1, 2, 3, 4]))
    """

    def __init__(self, capacity: int = 64) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int):
            bad_type("capacity", capacity, "a positive int")
        if capacity < 1:
            bad_value("capacity", capacity, "a positive int")
        self._capacity = capacity
        self._length = 0
        self._key: Tensor | None = None
        self._value: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens stored."""
        return self._length

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens and return those of all tokens so far.

        Args:
            key: (B, G, T, D).
            value: (B, G, T, Dv).

        Returns:
            (B, G, length, D) and (B, G, length, Dv). Without gradients they are views of the storage: use them before
            the next append.

        Raises:
            ArgumentValueError: shape, dtype or device differ from those of the tokens stored before.
        """
        if key.ndim != 4 or value.ndim != 4 or key.shape[:-1] != value.shape[:-1]:
            raise ArgumentValueError(
                f"key and value must be (batch, heads, length, features) of equal batch, heads and length, "
                f"got {tuple(key.shape)} and {tuple(value.shape)}"
            )
        self._key = self._extend("key", self._key, key)
        self._value = self._extend("value", self._value, value)
        self._length += key.shape[-2]
        return self._key[:, :, : self._length], self._value[:, :, : self._length]

    def _extend(self, name: str, stored: Tensor | None, new: Tensor) -> Tensor:
        if stored is not None:
            had, got = (stored.shape[:2], stored.shape[-1]), (new.shape[:2], new.shape[-1])
            if had != got or stored.dtype != new.dtype or stored.device != new.device:
                raise ArgumentValueError(
                    f"{name} must continue {tuple(stored.shape)} {stored.dtype} on {stored.device}, "
                    f"got {tuple(new.shape)} {new.dtype} on {new.device}"
                )
        needed = self._length + new.shape[-2]
        past = None if stored is None else stored[:, :, : self._length]
        if torch.is_grad_enabled() and (new.requires_grad or (past is not None and past.requires_grad)):
            # Writing into storage that a graph has saved would invalidate that graph.
            return new if past is None else torch.cat((past, new), dim=-2)
        if stored is None or stored.shape[-2] < needed or stored.requires_grad:
            room = max(self._capacity, needed, 2 * self._length)
            grown = new.new_empty((*new.shape[:2], room, new.shape[-1]))
            if past is not None:
                grown[:, :, : self._length] = past.detach()
            stored = grown
        stored[:, :, self._length : needed] = new.detach()
        return stored

    def truncate(self, length: int) -> None:
        """Forget all tokens after the first ``length``, as speculative decoding does with rejected ones."""
        if isinstance(length, bool) or not isinstance(length, int):
            bad_type("length", length, "an int")
        if not 0 <= length <= self._length:
            raise StateError(f"length must be between 0 and the {self._length} tokens stored, got {length}")
        self._length = length


class StateCache:
    """The state of one recurrent layer between calls; its size does not depend on the number of tokens seen.

    Example:
        >>> import torch
        >>> cache = StateCache()
        >>> cache.store((torch.zeros(1, 2),), tokens=3)
        >>> cache.length
        3
    """

    def __init__(self) -> None:
        self._length = 0
        self._state: tuple[Tensor, ...] | None = None

    @property
    def length(self) -> int:
        """Number of tokens seen."""
        return self._length

    @property
    def state(self) -> tuple[Tensor, ...] | None:
        """What was stored last, None before the first token."""
        return self._state

    def store(self, state: tuple[Tensor, ...], tokens: int) -> None:
        """Replace the state by that after ``tokens`` further tokens."""
        self._state = state
        self._length += tokens

    def truncate(self, length: int) -> None:
        """Forget everything (``length`` 0); a state cannot forget its last tokens."""
        if length not in (0, self._length):
            raise StateError(f"length must be 0 or {self._length}: a state over tokens cannot forget some of them")
        if length == 0:
            self._length, self._state = 0, None
