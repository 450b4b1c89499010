"""ReLU linear attention: the baseline that papers on linear attention compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate._math import masks
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value

__all__ = ["ReLULinearAttention", "relu_linear_attention"]


def relu_linear_attention(
    query: Tensor, key: Tensor, value: Tensor, *, key_padding_mask: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Linear attention with the feature map ReLU: ``y_i = φ(q_i) Σ_j φ(k_j) v_jᵀ / (φ(q_i)·Σ_j φ(k_j) + eps)``.

    Bidirectional; keys and values are summed first, so time and memory grow linearly with the length.

    Args:
        query: (…, H, T, D).
        key: (…, H, S, D).
        value: (…, H, S, Dv).
        key_padding_mask: bool (…, S) without the head dimension, True = real token; None keeps every key.
        eps: added to the normaliser, positive. A query whose features are all negative gets 0.

    Returns:
        (…, H, T, Dv) in the dtype of ``query``; 16-bit inputs are summed in float32.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes, devices or numbers that do not fit.

    Example:
        >>> import torch
        >>> q = k = torch.eye(3)[None, None]
        >>> relu_linear_attention(q, k, torch.arange(3.0).reshape(1, 1, 3, 1), eps=1e-9).flatten()
        tensor([0., 1., 2.])

    Paper: Transformers are RNNs, arXiv 2006.16236, eq. 5, with ReLU in place of ELU + 1.
    """
    masks.check_attention(query, key, value)
    check_number("eps", eps, low=0.0, low_open=True, high_open=True)
    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        dtype = masks.accumulation_dtype(query.dtype)
        phi_q_BHTD, phi_k_BHSD = torch.relu(query.to(dtype)), torch.relu(key.to(dtype))
        if key_padding_mask is not None:
            keep_BS = check_key_padding(key_padding_mask, key)
            phi_k_BHSD = phi_k_BHSD.masked_fill(~keep_BS[..., None, :, None], 0.0)
        summed_BHDV = phi_k_BHSD.mT @ value.to(dtype)
        normaliser_BHT1 = phi_q_BHTD @ phi_k_BHSD.sum(-2).unsqueeze(-1)
        return ((phi_q_BHTD @ summed_BHDV) / (normaliser_BHT1 + eps)).to(query.dtype)


def check_key_padding(mask: Any, key: Tensor) -> Tensor:
    """Return the mask if it is bool with the shape of ``key`` (…, H, S, D) without heads and features."""
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        raise ArgumentTypeError(
            f"key_padding_mask must be a bool tensor (True = real token) or None, got "
            f"{mask.dtype if isinstance(mask, Tensor) else type(mask).__name__}"
        )
    expected = (*key.shape[:-3], key.shape[-2])
    if mask.shape != expected:
        raise ArgumentValueError(f"key_padding_mask must have shape {tuple(expected)}, got {tuple(mask.shape)}")
    if mask.device != key.device:
        raise ArgumentValueError(f"key_padding_mask must be on {key.device}, got {mask.device}")
    return mask


class ReLULinearAttention(nn.Module):
    """Multi-head ReLU linear attention over the tokens of a map, the plain baseline of the image models.

    Args:
        embed_dim: width of the tokens.
        num_heads: heads; must divide ``embed_dim``.
        bias: biases of the projections.
        eps: see :func:`relu_linear_attention`.

    Shapes: (B, T, embed_dim) -> (B, T, embed_dim).

    Raises:
        ArgumentValueError: sizes that do not fit.
        ArgumentTypeError: wrong types.

    Example:
        >>> import torch
        >>> ReLULinearAttention(16, 2)(torch.randn(2, 12, 16), 3, 4).shape
        torch.Size([2, 12, 16])

    Paper: Transformers are RNNs, arXiv 2006.16236, eq. 5, with ReLU in place of ELU + 1.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        for name, size in (("embed_dim", embed_dim), ("num_heads", num_heads)):
            if isinstance(size, bool) or not isinstance(size, int):
                bad_type(name, size, "a positive int")
            if size < 1:
                bad_value(name, size, "a positive int")
        if embed_dim % num_heads:
            bad_value("embed_dim", embed_dim, f"a multiple of num_heads={num_heads}")
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.eps = check_number("eps", eps, low=0.0, low_open=True, high_open=True)
        self.qkv_proj = nn.Linear(embed_dim, 3 * embed_dim, bias=bias)
        self.o_proj = nn.Linear(embed_dim, embed_dim, bias=bias)

    def forward(
        self,
        x: Tensor,
        height: int | None = None,
        width: int | None = None,
        *,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend among all tokens; the size of the map makes no difference and is accepted so that mixers look alike.

        Args:
            x: (B, T, embed_dim).
            height: ignored.
            width: ignored.
            key_padding_mask: bool (B, T), True = real token.
        """
        batch, length, _ = x.shape
        heads = self.qkv_proj(x).view(batch, length, 3, self.num_heads, -1)
        q_BHTD, k_BHTD, v_BHTD = heads.permute(2, 0, 3, 1, 4).unbind(0)
        y_BHTD = relu_linear_attention(q_BHTD, k_BHTD, v_BHTD, key_padding_mask=key_padding_mask, eps=self.eps)
        output: Tensor = self.o_proj(y_BHTD.transpose(1, 2).reshape(batch, length, self.embed_dim))
        return output

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"
