"""The small predictor that says, from the input of a convolution, which of its filters will fire."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_float_tensor, check_sizes
from softgate._math.compress import compute_dtype
from softgate.errors import bad_value, check_choice

__all__ = ["MaskPredictor"]

POOLS = ("max", "avg")
NORMS = ("none", "softmax", "layernorm")


class MaskPredictor(nn.Module):
    r"""Logits of the filters that a layer needs, ``W e(I) + b`` on the pooled input of that layer.

    Args:
        c_in: channels of the layer's input.
        c_out: filters of the layer (or groups of filters).
        pool: ``"max"`` or ``"avg"``, over places.
        embed_norm: of the pooled input: ``"none"``, ``"layernorm"`` without weights, or ``"softmax"`` over its
            entries. Softmax makes all entries about one over their number, so that in short trainings the masks become
            the same for all inputs.
        target_dim: about how many numbers the pooled input has: it is pooled to the square grid that comes closest.
            None pools to one place.

    Shapes: (B, c_in, H, W) -> (B, c_out); a filter is kept where its logit is above 0.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a size below 1 or an unknown choice; at a call, an input of another shape.

    Example:
        >>> MaskPredictor(16, 32)(torch.randn(5, 16, 8, 8)).shape
        torch.Size([5, 32])

    Paper: Fire Together Wire Together, arXiv 2110.08232, decision head.
    """

    def __init__(
        self, c_in: int, c_out: int, pool: str = "max", embed_norm: str = "none", target_dim: int | None = None
    ) -> None:
        super().__init__()
        check_sizes(c_in=c_in, c_out=c_out)
        check_choice("pool", pool, POOLS)
        check_choice("embed_norm", embed_norm, NORMS)
        if target_dim is not None:
            check_sizes(target_dim=target_dim)
        self.c_in, self.c_out, self.pool, self.embed_norm = c_in, c_out, pool, embed_norm
        self.side = 1 if target_dim is None else max(1, round(math.sqrt(target_dim / c_in)))
        self.linear = nn.Linear(c_in * self.side**2, c_out)

    def pooled(self, x: Tensor) -> Tensor:
        """The largest or mean entry of every channel (in every cell of the grid), (B, c_in * side ** 2)."""
        if self.side == 1:
            return x.amax((-2, -1)) if self.pool == "max" else x.mean((-2, -1))
        grid = F.adaptive_max_pool2d if self.pool == "max" else F.adaptive_avg_pool2d
        return grid(x, self.side).flatten(1)

    def of_pooled(self, pooled: Tensor) -> Tensor:
        """Logits for what :meth:`pooled` gave."""
        wide = pooled.to(compute_dtype(pooled.dtype))
        if self.embed_norm == "softmax":
            pooled = wide.softmax(-1).to(pooled.dtype)
        elif self.embed_norm == "layernorm":
            pooled = F.layer_norm(wide, wide.shape[-1:]).to(pooled.dtype)
        logits: Tensor = self.linear(pooled)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of inputs."""
        check_float_tensor("x", x)
        if x.ndim != 4 or x.shape[1] != self.c_in or 0 in x.shape[2:]:
            bad_value("x", tuple(x.shape), f"of shape (B, {self.c_in}, H, W) with at least one place")
        return self.of_pooled(self.pooled(x))

    @property
    def multiply_adds(self) -> int:
        """Of one sample."""
        return self.linear.in_features * self.linear.out_features

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return f"{self.c_in}, {self.c_out}, pool={self.pool!r}, embed_norm={self.embed_norm!r}, side={self.side}"


def kept(logits: Tensor) -> Tensor:
    """The mask that follows from logits: True above 0, and where nothing is known."""
    return ~(logits.detach() <= 0.0)


class ConstantPredictor(nn.Module):
    """The same filters for all inputs: a static mask to compare with.

    Args:
        mask: (C,) bool, filters to keep.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())

    multiply_adds = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits, far from 0 on either side."""
        return torch.where(self.mask, 30.0, -30.0).to(x.dtype).expand(x.shape[0], -1)


def check_predictor(predictor: Any, c_in: int, c_out: int) -> None:
    """Raise where a :class:`MaskPredictor` has other sizes than its layer."""
    if isinstance(predictor, MaskPredictor) and (predictor.c_in, predictor.c_out) != (c_in, c_out):
        bad_value("predictor", (predictor.c_in, predictor.c_out), f"from {c_in} channels to {c_out} logits")
