"""Multi-head softplus attention: LSSAR, or LSSA without re-weighting, as one module."""

from __future__ import annotations

from typing import Any

from softgate.attention.multihead import BaseAttention
from softgate.attention.rotary import RotaryEmbedding
from softgate.attention.softplus import softplus_attention
from softgate.attention.softplus.arguments import check_options
from softgate.attention.softplus.reference import LengthScale, Phi

__all__ = ["SoftplusAttention"]


class SoftplusAttention(BaseAttention):
    """Multi-head attention with re-weighted softplus weights, ``O = concat_h(A' v) W_O``.

    A model trained with it at one length keeps its loss at lengths several times that, with rotary positions and
    nothing else changed. Queries and keys are normalised inside (after the rotation), so the module has no norms for
    them. Weights start from N(0, 0.02²), biases at 0.

    Args:
        embed_dim: width of the hidden states.
        num_heads: query heads H.
        num_kv_heads: key/value heads G, H if None; H must be a multiple of it.
        head_dim: features d per head, embed_dim / H if None; at least 2 unless ``scale`` is given.
        reweight_power: p of the second stage: 15 for contexts longer than those of training, 3 for the same length;
            None leaves it out (LSSA).
        offset: the level subtracted in the second stage, in units of the row's average.
        offset_min_keys: queries that see this many keys or fewer have level 0.
        scale: factor of the cosines, ln d if None.
        length_scale: ``"log"`` multiplies the scores of a query by ln of the number of keys it sees, ``"none"`` not.
        phi: the positive map: ``"softplus"``, ``"sigmoid"``, ``"relu"`` or ``"exp"`` (softmax).
        rope: base of rotary positions (10000.0, …), a :class:`RotaryEmbedding`, or None.
        bias: biases of all projections.
        dropout: dropout of attention weights while training.

    Shapes: (B, T, embed_dim) -> (B, T, embed_dim).

    Raises:
        ArgumentValueError: sizes or numbers that do not fit.
        ArgumentTypeError: wrong types.

    Example:
        >>> import torch
        >>> layer = SoftplusAttention(32, 4, reweight_power=15, rope=10000.0)
        >>> layer(torch.randn(2, 5, 32)).shape
        torch.Size([2, 5, 32])

    Paper: arXiv 2501.13428.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        reweight_power: float | None = 15.0,
        offset: float = 1.0,
        offset_min_keys: int = 3,
        scale: float | None = None,
        length_scale: LengthScale = "log",
        phi: Phi = "softplus",
        rope: float | RotaryEmbedding | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        options: dict[str, Any] = {
            "reweight_power": reweight_power,
            "offset": offset,
            "offset_min_keys": offset_min_keys,
            "scale": scale,
            "length_scale": length_scale,
            "phi": phi,
        }
        super().__init__(
            embed_dim,
            num_heads,
            num_kv_heads,
            head_dim,
            attention=softplus_attention,
            attention_options=options,
            rope=rope,
            bias=bias,
            dropout=dropout,
        )
        check_options(self.head_dim, normalize_qk=True, **options)
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Show the sizes and what the weights are made by."""
        changed = {
            name: value for name, value in self.attention_options.items() if name != "scale" or value is not None
        }
        return ", ".join((super().extra_repr(), *(f"{name}={value!r}" for name, value in changed.items())))
