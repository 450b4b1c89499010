"""Multi-head sigmoid attention: the paper's recipe as one module."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.attention.alibi import alibi_slopes
from softgate.attention.cache import KVCache
from softgate.attention.multihead import BaseAttention, QKNorm, normalise
from softgate.attention.rotary import RotaryEmbedding
from softgate.attention.sigmoid import sigmoid_attention
from softgate.attention.sigmoid.arguments import check_seq_len
from softgate.errors import ArgumentValueError, bad_type, check_choice

__all__ = ["SigmoidAttention"]

RowScale = Literal["none", "length", "sqrt_length"]


class SigmoidAttention(BaseAttention):
    """Multi-head attention with sigmoid weights, ``O = concat_h(σ(q kᵀ/√d + b) v) W_O``.

    The bias b keeps the length of training, whatever the length of a call: prefill, decoding with a cache and training
    agree. At contexts longer than that the weights of a row add up to more and quality falls, more so than with
    softmax.

    Best practice of the paper: language models take ``rope`` and ``bias_init="neg_log_n"``, or ``alibi=True`` and
    ``bias_init=0.0``, both with norms of queries and keys, and from 4096 tokens on ``output_norm=True``; vision takes
    :class:`softgate.attention.LayerScale` after the module.

    Args:
        embed_dim: width of the hidden states.
        num_heads: query heads H.
        num_kv_heads: key/value heads G, H if None; H must be a multiple of it.
        head_dim: features d per head, embed_dim / H if None.
        seq_len: the length n of training.
        bias_init: b: ``"neg_log_n"`` for -ln n, a number, or ``"neg_log_visible"`` (ours, not in the paper) for -ln of
            the number of keys that a query sees.
        learn_bias: make b a parameter of each head, ``attention_bias`` (H,), that starts at ``bias_init``.
        qk_norm: ``"layer"`` (or True) or ``"rms"`` normalises queries and keys per head, ``"none"`` (or False) neither.
        output_norm: an RMSNorm on the module's output ("hybrid norm", x + norm(attention(norm(x)))).
        rope: base of rotary positions (10000.0, …), a :class:`RotaryEmbedding`, or None.
        alibi: add ``-slope · distance`` to the scores.
        temperature: the logarithm t of a factor ``exp(t)`` of all that is added up before b: scores, ALiBi and a float
            mask.
        row_scale: ``"length"`` or ``"sqrt_length"`` divides row i by i + 1 or its root, the paper's ablations (for both
            directions of attention by the same i, as in the authors' code).
        bias: biases of all projections.
        dropout: dropout of attention weights while training.

    Shapes: (B, T, embed_dim) -> (B, T, embed_dim).

    Raises:
        ArgumentValueError: sizes or numbers that do not fit, or ``learn_bias`` with ``"neg_log_visible"``.
        ArgumentTypeError: wrong types.

    Example:
        >>> import torch
        >>> layer = SigmoidAttention(32, 4, seq_len=128, rope=10000.0)
        >>> layer(torch.randn(2, 5, 32)).shape
        torch.Size([2, 5, 32])

    Paper: arXiv 2409.04431, sections 2 and 5.
    """

    slopes: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        seq_len: int,
        bias_init: float | Literal["neg_log_n", "neg_log_visible"] = "neg_log_n",
        learn_bias: bool = False,
        qk_norm: QKNorm = "layer",
        output_norm: bool = False,
        rope: float | RotaryEmbedding | None = None,
        alibi: bool = False,
        temperature: float = 0.0,
        row_scale: RowScale = "none",
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            num_kv_heads,
            head_dim,
            attention=sigmoid_attention,
            qk_norm="layer" if qk_norm is True else qk_norm,
            rope=rope,
            bias=bias,
            dropout=dropout,
        )
        for name, flag in (("learn_bias", learn_bias), ("output_norm", output_norm), ("alibi", alibi)):
            if not isinstance(flag, bool):
                bad_type(name, flag, "a bool")
        if seq_len is None:
            bad_type("seq_len", seq_len, "the length of training, a positive int")
        check_seq_len(seq_len)
        check_choice("row_scale", row_scale, ("none", "length", "sqrt_length"))
        self.seq_len, self.bias_init, self.row_scale = seq_len, bias_init, row_scale
        self.temperature = check_number("temperature", temperature, low_open=True, high_open=True)
        self._first_bias = _bias_value(bias_init, seq_len, learn_bias)
        self.attention_bias = nn.Parameter(torch.empty(num_heads)) if learn_bias else None
        self.register_buffer("slopes", alibi_slopes(num_heads) if alibi else None, persistent=False)
        self.output_norm = nn.RMSNorm(embed_dim, eps=1e-6) if output_norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights from N(0, 0.02²), zero the projections' biases, reset norms and a learned b."""
        super().reset_parameters()
        if self.attention_bias is not None and not isinstance(self._first_bias, str):
            nn.init.constant_(self.attention_bias, self._first_bias)

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
        """Attend from ``hidden`` to itself (and the cached tokens), or to ``context``; see :class:`BaseAttention`."""
        out = super().forward(
            hidden, attn_mask=attn_mask, is_causal=is_causal, cache=cache, positions=positions, context=context
        )
        return out if self.output_norm is None else normalise(self.output_norm, out)

    def _attend(self, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, **masked: Any) -> Tensor:
        heat, attn_mask = math.exp(self.temperature), masked.pop("attn_mask")
        if heat != 1.0 and attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask * heat
        y_BHTD = sigmoid_attention(
            q_BHTD,
            k_BGSD,
            v_BGSD,
            attn_mask,
            scale=heat / math.sqrt(self.head_dim),
            bias=self._first_bias if self.attention_bias is None else self.attention_bias,
            seq_len=self.seq_len,
            alibi_slopes=None if self.slopes is None else self.slopes.float() * heat,
            **masked,
        )
        return self._divide_rows(y_BHTD, k_BGSD.shape[-2])

    def _divide_rows(self, y_BHTD: Tensor, keys: int) -> Tensor:
        if self.row_scale == "none":
            return y_BHTD
        queries = y_BHTD.shape[-2]
        length_T = torch.arange(keys - queries + 1, keys + 1, device=y_BHTD.device).clamp_min(1)
        divisor_T = length_T if self.row_scale == "length" else length_T.sqrt()
        return (y_BHTD / divisor_T[:, None]).to(y_BHTD.dtype)

    def extra_repr(self) -> str:
        """Show the sizes and the bias."""
        learned = ", learn_bias=True" if self.attention_bias is not None else ""
        return f"{super().extra_repr()}, seq_len={self.seq_len}, bias_init={self.bias_init!r}{learned}"


def _bias_value(bias_init: Any, seq_len: int, learn_bias: bool) -> float | Literal["neg_log_visible"]:
    """The number that ``bias_init`` stands for; ``"neg_log_visible"`` is none."""
    if not isinstance(bias_init, str):
        return check_number("bias_init", bias_init)
    check_choice("bias_init", bias_init, ("neg_log_n", "neg_log_visible"))
    if bias_init == "neg_log_n":
        return -math.log(seq_len)
    if learn_bias:
        raise ArgumentValueError("bias_init='neg_log_visible' has nothing to learn, got learn_bias=True with it")
    return "neg_log_visible"
