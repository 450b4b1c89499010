"""Causal token mixers as layers with a state: linear and normalised attention, state spaces, gated recurrences."""

from __future__ import annotations

from softgate.attention.mixers.attention import LinearAttention, NormalizedAttention, SoftmaxMixer
from softgate.attention.mixers.layer import MixerLayer
from softgate.attention.mixers.recurrent import QLSTM, RGLRU
from softgate.attention.mixers.ssm import SSD, SelectiveSSM

__all__ = [
    "QLSTM",
    "RGLRU",
    "SSD",
    "LinearAttention",
    "MixerLayer",
    "NormalizedAttention",
    "SelectiveSSM",
    "SoftmaxMixer",
]
