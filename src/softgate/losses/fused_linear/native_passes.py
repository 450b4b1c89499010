"""The sweeps over a block of logits in compiled code: one read for the statistics, one for the gradient."""

from __future__ import annotations

from softgate.losses.fused_linear.passes import TorchPasses

__all__: list[str] = []


class NativePasses(TorchPasses):
    """Rows shared out over threads."""
