"""Norm-aware linear attention as modules: over the tokens of a map, and along a text with a state of constant size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.attention.multihead import BaseAttention, QKNorm
from softgate.attention.norm_aware import (
    LinearAttentionCache,
    line_rope,
    map_rope,
    norm_aware_linear_attention,
)
from softgate.attention.norm_aware.features import check_feature_map
from softgate.errors import ArgumentValueError, bad_type, bad_value

__all__ = ["CausalNormAwareAttention", "MapAttention", "NormAwareLinearAttention"]


class MapAttention(nn.Module):
    """What the attention layers of NaLaFormer share: one projection, gate, local enhancement, rotary positions.

    For tokens X of a map: ``out_proj(LN(mix(q, k, v) + LePE(v)) ⊙ SiLU(g))``, with q, k, v and g from one projection
    and LePE a depth-wise convolution of the values over the map. A subclass says how q, k and v are mixed.

    Args:
        dim: width of the tokens.
        num_heads: heads; must divide ``dim``.
        gate: whether the output is multiplied by SiLU of a fourth projection.
        lepe: odd size of the depth-wise convolution of the values, 0 for none.
        rope2d: rotary positions from row and column; needs a multiple of 4 features per head.

    Raises:
        ArgumentValueError: sizes that do not fit.
        ArgumentTypeError: wrong types.
    """

    def __init__(self, dim: int, num_heads: int, *, gate: bool = True, lepe: int = 5, rope2d: bool = True) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("num_heads", num_heads), ("lepe", lepe)):
            if isinstance(size, bool) or not isinstance(size, int):
                bad_type(name, size, "an int")
            if size < (name != "lepe"):
                bad_value(name, size, "a positive int" if name != "lepe" else "an odd int, or 0 for none")
        for name, flag in (("gate", gate), ("rope2d", rope2d)):
            if not isinstance(flag, bool):
                bad_type(name, flag, "a bool")
        if dim % num_heads:
            bad_value("dim", dim, f"a multiple of num_heads={num_heads}")
        if lepe and lepe % 2 == 0:
            bad_value("lepe", lepe, "an odd int, or 0 for none")
        if rope2d and dim // num_heads % 4:
            bad_value("dim", dim, f"a multiple of 4 * num_heads = {4 * num_heads}, for rope2d")
        self.dim, self.num_heads, self.gate, self.rope2d = dim, num_heads, gate, rope2d
        self.qkvg = nn.Linear(dim, (4 if gate else 3) * dim)
        self.lepe = nn.Conv2d(dim, dim, lepe, padding=lepe // 2, groups=dim) if lepe else None
        self.ln = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, height: int, width: int, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Mix the tokens of a map.

        Args:
            x: (B, height · width, dim), row by row.
            height: rows of the map.
            width: columns of the map.
            key_padding_mask: bool (B, height · width), True = real token.

        Returns:
            (B, height · width, dim).
        """
        if x.ndim != 3 or x.shape[1] != height * width or x.shape[2] != self.dim:
            raise ArgumentValueError(
                f"x must have shape (batch, height * width, dim) = (batch, {height * width}, {self.dim}), "
                f"got {tuple(x.shape)}"
            )
        parts = self.qkvg(x).unflatten(-1, (-1, self.num_heads, self.dim // self.num_heads))
        q_BHTD, k_BHTD, v_BHTD = parts[:, :, :3].permute(2, 0, 3, 1, 4).unbind(0)
        rope = map_rope(height, width, q_BHTD.shape[-1], device=x.device) if self.rope2d else None
        y = self.mix(q_BHTD, k_BHTD, v_BHTD, rope, key_padding_mask).transpose(1, 2).flatten(2)
        if self.lepe is not None:
            values = v_BHTD.transpose(1, 2).flatten(2).mT.unflatten(-1, (height, width))
            y = y + self.lepe(values).flatten(2).mT
        y = self.ln(y)
        if self.gate:
            y = y * nn.functional.silu(parts[:, :, 3].flatten(2))
        output: Tensor = self.out_proj(y)
        return output

    def mix(
        self,
        q_BHTD: Tensor,
        k_BHTD: Tensor,
        v_BHTD: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        key_padding_mask: Tensor | None,
    ) -> Tensor:
        """The heads' outputs (B, H, T, D)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Show the sizes and parts."""
        return f"dim={self.dim}, num_heads={self.num_heads}, gate={self.gate}, rope2d={self.rope2d}"


class NormAwareLinearAttention(MapAttention):
    """Norm-aware linear attention over the tokens of a map, with gate, LePE and rotary positions as in NaLaFormer.

    ``out_proj(LN(norm_aware_linear_attention(q, k, v) + LePE(v)) ⊙ SiLU(g))``. Parameters are named as in the authors'
    code. Bidirectional; along a text use :class:`CausalNormAwareAttention`.

    Args:
        dim: width of the tokens.
        num_heads: heads; must divide ``dim``.
        gate: whether the output is multiplied by SiLU of a fourth projection.
        lepe: odd size of the depth-wise convolution of the values, 0 for none.
        rope2d: rotary positions of the features; needs a multiple of 4 features per head.
        **options: ``direction``, ``power``, ``tau``, ``alpha``, ``norm_scale`` of
            :func:`norm_aware_linear_attention`.

    Shapes: (B, height · width, dim) -> (B, height · width, dim).

    Raises:
        ArgumentValueError: sizes that do not fit, numbers out of range.
        ArgumentTypeError: wrong types.

    Example:
        >>> import torch
        >>> NormAwareLinearAttention(16, 2)(torch.randn(2, 12, 16), 3, 4).shape
        torch.Size([2, 12, 16])

    Paper: arXiv 2506.21137 (NaLaFormer), the authors' NALA.py.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        gate: bool = True,
        lepe: int = 5,
        rope2d: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_heads, gate=gate, lepe=lepe, rope2d=rope2d)
        self.options = _map_options(options)

    def mix(
        self,
        q_BHTD: Tensor,
        k_BHTD: Tensor,
        v_BHTD: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        key_padding_mask: Tensor | None,
    ) -> Tensor:
        """The heads' outputs (B, H, T, D)."""
        y = norm_aware_linear_attention(
            q_BHTD, k_BHTD, v_BHTD, rope=rope, key_padding_mask=key_padding_mask, **self.options
        )
        assert isinstance(y, Tensor)
        return y

    @torch.no_grad()
    def saturation(self, x: Tensor) -> float:
        """Mean of tanh(norm_scale · ‖q‖) over the queries of ``x`` (B, T, dim): near 1 the norm has no effect."""
        q = self.qkvg(x)[..., : self.dim].unflatten(-1, (self.num_heads, -1))
        scale = self.options.get("norm_scale")
        return float(torch.tanh((1.0 if scale is None else scale) * q.norm(dim=-1)).mean())


class CausalNormAwareAttention(BaseAttention):
    """Norm-aware linear attention along a text: what a GPT takes as its attention, with a state instead of a KV cache.

    Decoding keeps a :class:`LinearAttentionCache` (``new_cache``): sums of constant size, however long the text.

    Args:
        embed_dim: width of the hidden states.
        num_heads: query heads H.
        num_kv_heads: key/value heads G, H if None; H must be a multiple of it.
        head_dim: features d per head, embed_dim / H if None.
        qk_norm: see :class:`MultiHeadAttention`; it makes all queries equally long and so removes the norm's effect up
            to its weight.
        rope: base of the rotary positions of the *features* (numerator only), None for none.
        bias: biases of all projections.
        **options: ``direction``, ``power``, ``tau``, ``alpha``, ``norm_scale``, ``chunk_size`` of
            :func:`norm_aware_linear_attention`.

    Shapes: (B, T, embed_dim) -> (B, T, embed_dim).

    Raises:
        ArgumentValueError: sizes that do not fit, numbers out of range.
        ArgumentTypeError: wrong types.

    Example:
        >>> import torch
        >>> layer, x = CausalNormAwareAttention(16, 2).double(), torch.randn(1, 5, 16, dtype=torch.float64)
        >>> cache = layer.new_cache()
        >>> steps = [layer(token, cache=cache) for token in x.split(1, dim=1)]
        >>> bool(torch.allclose(torch.cat(steps, 1), layer(x))), cache.length
        (True, 5)

    Paper: arXiv 2506.21137 (NaLaFormer), the causal use.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        qk_norm: QKNorm = "none",
        rope: float | None = 10000.0,
        bias: bool = False,
        **options: Any,
    ) -> None:
        chunk = {"chunk_size": options.pop("chunk_size")} if "chunk_size" in options else {}
        super().__init__(
            embed_dim,
            num_heads,
            num_kv_heads,
            head_dim,
            attention="norm_aware_linear",
            attention_options={**_map_options(options), **chunk},
            qk_norm=qk_norm,
            bias=bias,
        )
        self.base = None if rope is None else check_number("rope", rope, low=0.0, low_open=True)
        if rope is not None and self.head_dim % 2:
            bad_value("head_dim", self.head_dim, "even, as rotary positions need (or set rope=None)")
        self.reset_parameters()

    def new_cache(self, capacity: int = 64) -> LinearAttentionCache:  # type: ignore[override]
        """An empty state; ``capacity`` makes no difference to sums of constant size."""
        return LinearAttentionCache()

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = True,
        cache: LinearAttentionCache | None = None,
    ) -> Tensor:
        """Attend from ``hidden`` to itself and to the tokens in the cache.

        Args:
            hidden: (B, T, embed_dim), after the block's norm.
            attn_mask: bool, the same for all heads and queries: broadcastable to (B, 1, 1, S). S may count earlier
                tokens, whose padding has already been left out of the cache.
            is_causal: see :func:`norm_aware_linear_attention`.
            cache: from :meth:`new_cache`; holds the sums over earlier tokens, this call's are added.

        Returns:
            (B, T, embed_dim).
        """
        if cache is not None and not isinstance(cache, LinearAttentionCache):
            bad_type("cache", cache, "a LinearAttentionCache (of new_cache) or None")
        q_BHTD, k_BGSD, v_BGSD = self._project(hidden, None, None, None)
        start, tokens = 0 if cache is None else cache.length, hidden.shape[1]
        options: dict[str, Any] = dict(self.attention_options)
        if self.base is not None:
            positions = torch.arange(start, start + tokens, device=hidden.device)
            options["rope"] = line_rope(positions, self.head_dim, self.base)
        if attn_mask is not None and attn_mask.shape[-1] != 1:
            attn_mask = attn_mask[..., -tokens:]
        options |= {"attn_mask": attn_mask, "is_causal": is_causal, "enable_gqa": True}
        if cache is None:
            y_BHTD = norm_aware_linear_attention(q_BHTD, k_BGSD, v_BGSD, **options)
        else:
            y_BHTD, state = norm_aware_linear_attention(
                q_BHTD, k_BGSD, v_BGSD, initial_state=cache.state, return_state=True, **options
            )
            cache.advance(state, tokens)
        assert isinstance(y_BHTD, Tensor)
        return self.o_proj(y_BHTD.transpose(1, 2).flatten(2))


def _map_options(options: dict[str, Any]) -> dict[str, Any]:
    """The constants of the feature map among ``options``, checked; others are refused by name."""
    known = {"direction": "polarity", "power": 3.0, "tau": 0.5, "alpha": 20.0, "norm_scale": None}
    for name in options:
        if name not in known:
            bad_value("options", name, "among " + ", ".join(known))
    given = {**known, **options}
    check_feature_map(**given)
    return given
