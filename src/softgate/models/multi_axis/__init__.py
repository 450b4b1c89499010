"""MAXIM and its blocks: gated MLPs that mix the pixels of a map along two axes, and maps that gate each other."""

from __future__ import annotations

from softgate.models.multi_axis.config import MAXIM_CONFIGS, MAXIMConfig
from softgate.models.multi_axis.cross_gating import CrossGatingBlock, SpatialGate
from softgate.models.multi_axis.flax_weights import load_flax_checkpoint
from softgate.models.multi_axis.gated_mlp import AxisGatedMLP, MultiAxisGatedMLP
from softgate.models.multi_axis.layers import RCAB, RDCAB, ChannelAttention, SupervisedAttention
from softgate.models.multi_axis.mixing import axis_mix
from softgate.models.multi_axis.model import MAXIM
from softgate.models.multi_axis.restoring import restore
from softgate.models.multi_axis.stage import MAXIMStage

__all__ = [
    "MAXIM",
    "MAXIM_CONFIGS",
    "RCAB",
    "RDCAB",
    "AxisGatedMLP",
    "ChannelAttention",
    "CrossGatingBlock",
    "MAXIMConfig",
    "MAXIMStage",
    "MultiAxisGatedMLP",
    "SpatialGate",
    "SupervisedAttention",
    "axis_mix",
    "load_flax_checkpoint",
    "restore",
]
