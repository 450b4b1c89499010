"""A recurrent mixer in the place of attention: the call that a transformer block makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softgate.attention.cache import StateCache
from softgate.attention.mixers.attention import LinearAttention, NormalizedAttention, SoftmaxMixer
from softgate.attention.mixers.base import CausalMixer
from softgate.attention.mixers.recurrent import QLSTM, RGLRU
from softgate.attention.mixers.ssm import SSD, SelectiveSSM
from softgate.errors import ArgumentTypeError, ArgumentValueError, check_choice

__all__ = ["MixerLayer"]

MIXERS: dict[str, type[CausalMixer]] = {
    "linear": LinearAttention,
    "normalized": NormalizedAttention,
    "softmax": SoftmaxMixer,
    "s6": SelectiveSSM,
    "ssd": SSD,
    "qlstm": QLSTM,
    "rglru": RGLRU,
}


class MixerLayer(nn.Module):
    """Adapts a causal mixer to the arguments of an attention module, e.g. ``GPTConfig(attention=MixerLayer, …)``.

    Args:
        embed_dim: width of the hidden states.
        num_heads: heads, passed on to mixers that have heads.
        num_kv_heads: key/value heads, passed on likewise.
        head_dim: not used; ``state_dim`` among the options sets the size of the state.
        mixer: ``"linear"``, ``"normalized"``, ``"softmax"``, ``"s6"``, ``"ssd"``, ``"qlstm"``, ``"rglru"`` or a class
            of such layers, called with ``dim`` and the options.
        **options: further arguments of the mixer.

    Example:
        >>> import torch
        >>> from softgate.models import GPT, GPTConfig
        >>> sizes = dict(vocab_size=16, num_layers=1, num_heads=2, embed_dim=8)
        >>> model = GPT(GPTConfig(attention=MixerLayer, attention_options={"mixer": "ssd", "state_dim": 4}, **sizes))
        >>> model.generate(torch.zeros(1, 1, dtype=torch.long), 3).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        mixer: str | Callable[..., CausalMixer],
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(mixer, str):
            check_choice("mixer", mixer, tuple(MIXERS))
            mixer = MIXERS[mixer]
        if not callable(mixer):
            raise ArgumentTypeError(f"mixer must be a name or a class of causal mixers, got {type(mixer).__name__}")
        known = inspect.signature(mixer).parameters
        heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
        self.mixer = mixer(embed_dim, **{name: n for name, n in heads.items() if name in known}, **options)

    def new_cache(self, capacity: int = 64) -> StateCache:
        """A cache for decoding; the state's size is the same for every ``capacity``."""
        return StateCache()

    def forward(
        self,
        hidden: Tensor,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = True,
        cache: StateCache | None = None,
    ) -> Tensor:
        """Mix the tokens of ``hidden``.

        Args:
            hidden: (B, T, embed_dim).
            attn_mask: bool mask of keys, (B, 1, 1, S) or (1, S), True = attend; a recurrence has no other. S counts
                cached tokens, whose part of the mask is not used again.
            is_causal: must be True.
            cache: holds the state after earlier tokens; replaced by that after these.

        Returns:
            (B, T, embed_dim).

        Raises:
            ArgumentValueError: a mask that is not one of keys, or ``is_causal=False``.
        """
        if is_causal is not True:
            raise ArgumentValueError("is_causal must be True: a recurrence sees the past only")
        keep = None if attn_mask is None else _keys_to_keep(attn_mask, hidden)
        if cache is None:
            return self.mixer(hidden, keep=keep)
        if not isinstance(cache, StateCache):
            raise ArgumentTypeError(f"cache must be a StateCache (see new_cache), got {type(cache).__name__}")
        output, state = self.mixer(hidden, cache.state, True, keep=keep)
        cache.store(state, hidden.shape[1])
        return output


def _keys_to_keep(attn_mask: Tensor, hidden: Tensor) -> Tensor:
    """(B, T) from a mask that is the same for all heads and queries."""
    if attn_mask.dtype is not torch.bool:
        raise ArgumentTypeError(f"attn_mask must be bool for a recurrent mixer, got {attn_mask.dtype}")
    batch, length = hidden.shape[:2]
    full = attn_mask.reshape((1,) * (4 - attn_mask.ndim) + attn_mask.shape)
    if full.ndim != 4 or full.shape[1:3] != (1, 1) or full.shape[0] not in (1, batch) or full.shape[3] < length:
        raise ArgumentValueError(
            f"attn_mask must be a mask of keys (batch, 1, 1, keys) for a recurrent mixer, got {tuple(attn_mask.shape)}"
        )
    return full[:, 0, 0, full.shape[3] - length :].expand(batch, length)
