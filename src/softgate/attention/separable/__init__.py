"""Attention with a separable similarity, in a state of constant size: linear and normalised attention."""

from __future__ import annotations

from softgate.attention.separable.linear import linear_attention
from softgate.attention.separable.normalized import normalized_attention

__all__ = ["linear_attention", "normalized_attention"]
