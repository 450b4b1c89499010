"""Rotary position embedding (RoPE) in the half-split layout that Llama and Qwen checkpoints use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.errors import ArgumentValueError, bad_type, bad_value

__all__ = ["RotaryEmbedding", "apply_rotary"]


class RotaryEmbedding(nn.Module):
    """Tables cos(p·θ_i), sin(p·θ_i) with θ_i = base^(-2i/D), i < D/2, for positions p.

    Paper: RoFormer, arXiv 2104.09864, eq. 15; feature i is paired with feature i + D/2, as in Llama, not with i + 1.

    Args:
        head_dim: even number of features D that turn, per head.
        base: 10000 in the paper; larger values stretch the wavelengths for long contexts.
    """

    frequencies: Tensor

    def __init__(self, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        if isinstance(head_dim, bool) or not isinstance(head_dim, int):
            bad_type("head_dim", head_dim, "an even int")
        if head_dim < 2 or head_dim % 2:
            bad_value("head_dim", head_dim, "an even int of at least 2")
        self.base = check_number("base", base, low=0.0, low_open=True)
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("frequencies", self.base**-exponents, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin for integer ``positions`` (…, T), each (…, T, D), in float32."""
        if not isinstance(positions, Tensor) or positions.is_floating_point():
            bad_type("positions", positions, "an integer tensor")
        # Half precision cannot count: above 256 (bf16) or 2048 (fp16) neighbouring positions coincide.
        angles = positions[..., None].to(torch.float32) * self.frequencies.to(torch.float32)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def extra_repr(self) -> str:
        """Show the number of features and the base."""
        return f"head_dim={2 * len(self.frequencies)}, base={self.base:g}"


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x`` (B, H, T, D) by tables ``cos``, ``sin`` of shape (T, R) or (B, T, R); the dtype of ``x`` is kept.

    With R < D only the first R features turn (partial rotation, as in Qwen3-Next).

    Raises:
        ArgumentValueError: shapes that do not fit.
    """
    rotated = cos.shape[-1]
    if cos.shape != sin.shape or cos.shape[-2] != x.shape[-2] or rotated > x.shape[-1] or rotated % 2:
        raise ArgumentValueError(
            f"cos and sin must have shape (..., {x.shape[-2]}, R) with R even and at most {x.shape[-1]}, "
            f"got {tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    if cos.ndim == 3:  # one table per sequence: broadcast over heads
        cos, sin = cos[:, None], sin[:, None]
    x, rest = x[..., :rotated], x[..., rotated:]
    first, second = x.chunk(2, dim=-1)
    turned = (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
    return turned if rest.shape[-1] == 0 else torch.cat((turned, rest), dim=-1)
