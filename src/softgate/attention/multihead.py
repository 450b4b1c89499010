"""Multi-head attention around any function of this room: projections, normalised queries and keys, rotation, cache."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.attention.cache import KVCache
from softgate.attention.gated import gated_attention
from softgate.attention.rotary import RotaryEmbedding, apply_rotary
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice

__all__ = ["BaseAttention", "MultiHeadAttention"]

QKNorm = Literal["none", "rms", "layer"] | bool

_INIT_STD = 0.02


class BaseAttention(nn.Module):
    """What the attention modules of this room share; a subclass adds its parts and then calls ``reset_parameters``.

    The parts to override are :meth:`_attend` (weights and values of heads), :meth:`_map_output` (what happens to each
    head's output before the output projection) and, for a change of queries, keys or values, :meth:`_project`.

    Args:
        embed_dim: width of the hidden states.
        num_heads: query heads H.
        num_kv_heads: key/value heads G, H if None; H must be a multiple of it.
        head_dim: features d per head, embed_dim / H if None.
        attention: ``"softmax"``, the name of another function ``softgate.attention.<name>_attention``, or a callable
            with the signature of scaled_dot_product_attention, bottom-right causal.
        attention_options: further keyword arguments of that function.
        qk_norm: ``"rms"`` (or True) or ``"layer"`` normalises queries and keys per head before the rotation; ``"none"``
            (or False) does not.
        rope: base of rotary positions (10000.0, …), a :class:`RotaryEmbedding` (which may turn a part of the features
            only), or None for none.
        bias: biases of all projections.
        dropout: dropout of attention weights while training.

    Raises:
        ArgumentValueError: sizes that do not fit.
        ArgumentTypeError: wrong types.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        attention: str | Callable[..., Tensor] = "softmax",
        attention_options: Mapping[str, Any] | None = None,
        qk_norm: QKNorm = "none",
        rope: float | RotaryEmbedding | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        head_dim = _check_sizes(embed_dim, num_heads, num_kv_heads, head_dim)
        if not isinstance(bias, bool):
            bad_type("bias", bias, "a bool")
        if isinstance(rope, bool) or not isinstance(rope, float | int | RotaryEmbedding | None):
            bad_type("rope", rope, "a base, a RotaryEmbedding or None")
        self.embed_dim, self.num_heads, self.num_kv_heads, self.head_dim = embed_dim, num_heads, num_kv_heads, head_dim
        self.dropout = check_number("dropout", dropout, low=0.0, high=1.0, high_open=True)
        self.attention, self._function = attention, _attention_function(attention)
        self.attention_options = dict(attention_options or {})
        self.q_proj = nn.Linear(embed_dim, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(embed_dim, num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(embed_dim, num_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(num_heads * head_dim, embed_dim, bias=bias)
        self.q_norm = _make_norm(qk_norm, head_dim)
        self.k_norm = _make_norm(qk_norm, head_dim)
        self.rotary = RotaryEmbedding(head_dim, rope) if isinstance(rope, float | int) else rope

    def reset_parameters(self) -> None:
        """Draw all weights from N(0, 0.02²), zero the biases, reset the norms."""
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
                module.reset_parameters()

    def forward(
        self,
        hidden: Tensor,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = True,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``hidden`` to itself (and the cached tokens), or to ``context``.

        Args:
            hidden: (B, T, embed_dim), after the block's norm.
            attn_mask: bool or float, broadcastable to (B, H, T, S), S counting cached tokens.
            is_causal: bottom-right aligned, so a chunk that follows cached tokens sees all of them.
            cache: keys and values of earlier tokens; this call's are appended.
            positions: integer positions of ``hidden`` for the rotation, (T,) or (B, T); by default they count on from
                the cache.
            context: (B, S, embed_dim) to attend to (cross attention); pass ``is_causal=False`` with it.

        Returns:
            (B, T, embed_dim).
        """
        q_BHTD, k_BGSD, v_BGSD = self._project(hidden, cache, positions, context)
        y_BHTD = self._attend(
            q_BHTD,
            k_BGSD,
            v_BGSD,
            attn_mask=attn_mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        return self.o_proj(self._map_output(y_BHTD, hidden).transpose(1, 2).flatten(2))

    def _attend(self, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, **masked: Any) -> Tensor:
        """The heads' outputs (B, H, T, d); ``masked`` are the common arguments of an attention function."""
        return self._function(q_BHTD, k_BGSD, v_BGSD, **masked, **self.attention_options)

    def _map_output(self, y_BHTD: Tensor, hidden: Tensor) -> Tensor:
        """What becomes of the heads' outputs before they are concatenated and projected."""
        return y_BHTD

    def _project(
        self, hidden: Tensor, cache: KVCache | None, positions: Tensor | None, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ready for attention, the cached tokens included."""
        source = self._source(hidden, cache, context)
        q_BHTD = self._heads(self.q_proj(hidden), self.num_heads)
        k_BGSD = self._heads(self.k_proj(source), self.num_kv_heads)
        v_BGSD = self._heads(self.v_proj(source), self.num_kv_heads)
        return self._place(q_BHTD, k_BGSD, v_BGSD, cache, positions)

    def _source(self, hidden: Tensor, cache: KVCache | None, context: Tensor | None) -> Tensor:
        """Where keys and values come from, after checking that the arguments of forward fit together."""
        if hidden.ndim != 3 or hidden.shape[-1] != self.embed_dim:
            raise ArgumentValueError(
                f"hidden must have shape (batch, length, {self.embed_dim}), got {tuple(hidden.shape)}"
            )
        if context is not None and (self.rotary is not None or cache is not None):
            raise ArgumentValueError("context cannot be combined with rotary positions or a cache")
        return hidden if context is None else context

    def _heads(self, flat: Tensor, heads: int) -> Tensor:
        return flat.unflatten(-1, (heads, -1)).transpose(1, 2)

    def _place(
        self, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, cache: KVCache | None, positions: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise queries and keys, rotate them to their positions, and put the cached tokens in front."""
        if self.q_norm is not None and self.k_norm is not None:
            q_BHTD, k_BGSD = normalise(self.q_norm, q_BHTD), normalise(self.k_norm, k_BGSD)
        if self.rotary is not None:
            if positions is None:
                start = 0 if cache is None else cache.length
                positions = torch.arange(start, start + q_BHTD.shape[2], device=q_BHTD.device)
            cos, sin = self.rotary(positions)
            q_BHTD, k_BGSD = apply_rotary(q_BHTD, cos, sin), apply_rotary(k_BGSD, cos, sin)
        if cache is not None:
            k_BGSD, v_BGSD = cache.append(k_BGSD, v_BGSD)
        return q_BHTD, k_BGSD, v_BGSD

    @torch.no_grad()
    def attention_weights(
        self,
        hidden: Tensor,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = True,
        positions: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """The weights (B, H, T, S) of :meth:`forward` on the same arguments, without any gate, for looking at."""
        q_BHTD, k_BGSD, _ = self._project(hidden, None, positions, context)
        # Attention is linear in the values, so the identity matrix as values gives the weights of any attention.
        keys = k_BGSD.shape[-2]
        eye = torch.eye(keys, dtype=k_BGSD.dtype, device=k_BGSD.device)
        eye_BGSS = eye.expand(*k_BGSD.shape[:2], keys, keys)
        gqa = self.num_heads != self.num_kv_heads
        return self._attend(
            q_BHTD, k_BGSD, eye_BGSS, attn_mask=attn_mask, dropout_p=0.0, is_causal=is_causal, enable_gqa=gqa
        )

    def extra_repr(self) -> str:
        """Show the sizes."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"head_dim={self.head_dim}"
        )


class MultiHeadAttention(BaseAttention):
    """Multi-head attention with any attention function of the library, or one of your own.

    Arguments, shapes and errors are those of :class:`BaseAttention`. Weights start from N(0, 0.02²), biases at 0.

    Example:
        >>> import torch
        >>> layer = MultiHeadAttention(32, 4, num_kv_heads=2, qk_norm="rms", rope=10000.0)
        >>> layer(torch.randn(2, 5, 32)).shape
        torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(embed_dim, num_heads, num_kv_heads, head_dim, **options)
        self.reset_parameters()


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply ``norm`` in the dtype of its weight, which autocast leaves at float32 while ``x`` is 16-bit."""
    return norm(x.to(norm.weight.dtype)).to(x.dtype)  # type: ignore[arg-type]


def _make_norm(kind: QKNorm, head_dim: int) -> nn.RMSNorm | nn.LayerNorm | None:
    if not isinstance(kind, bool | str):
        bad_type("qk_norm", kind, "a bool, 'rms', 'layer' or 'none'")
    if kind is False or kind == "none":
        return None
    if kind is True or kind == "rms":
        return nn.RMSNorm(head_dim, eps=1e-6)
    check_choice("qk_norm", kind, ("none", "rms", "layer"))
    return nn.LayerNorm(head_dim, eps=1e-5)


def _softmax_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    return gated_attention(query, key, value, None, **options)


def _attention_function(attention: str | Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function behind ``attention``: a name of this room without its ending, or the callable itself."""
    if callable(attention):
        return attention
    if attention == "softmax":
        return _softmax_attention
    room = importlib.import_module("softgate.attention")
    function = getattr(room, f"{attention}_attention") if f"{attention}_attention" in room.__all__ else None
    if function is None or not _takes_query_key_value(function):
        functions = {name: getattr(room, name) for name in room.__all__ if name.endswith("_attention")}
        known = [name.removesuffix("_attention") for name, f in functions.items() if _takes_query_key_value(f)]
        check_choice("attention", attention, ["softmax", *known])
    return function  # type: ignore[return-value]


def _takes_query_key_value(function: Callable[..., Any]) -> bool:
    """Whether an attention of this room can be called with queries, keys and values alone, masked as SDPA is."""
    record = getattr(function, "__softgate__", None)
    if record is None or record.family != "attention":
        return False
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is inspect.Parameter.empty]
    return len(needed) == 3


def _check_sizes(embed_dim: Any, num_heads: Any, num_kv_heads: Any, head_dim: Any) -> int:
    """Return the head size, after checking that the four sizes are positive ints that fit."""
    sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    if head_dim is not None:
        sizes["head_dim"] = head_dim
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            bad_type(name, size, "a positive int")
        if size < 1:
            bad_value(name, size, "a positive int")
    if num_heads % num_kv_heads:
        bad_value("num_kv_heads", num_kv_heads, f"a divisor of num_heads={num_heads}")
    if head_dim is not None:
        return head_dim
    if embed_dim % num_heads:
        bad_value("embed_dim", embed_dim, f"a multiple of num_heads={num_heads}, unless head_dim is given")
    return embed_dim // num_heads
