"""The sweeps over a block of logits in compiled code: one read for the statistics, one for the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate import native
from softgate.losses.fused_linear.passes import Classes, TorchPasses
from softgate.losses.fused_linear.rows import Slopes, Statistics
from softgate.losses.fused_linear.settings import Settings

__all__: list[str] = []

_SCAN, _SLOPES, _HINGE = range(3)


class NativePasses:
    """Rows of float32 logits on the CPU, shared out over threads; results do not depend on their number."""

    def scan(self, z: Tensor, target: Tensor, classes: Classes, settings: Settings) -> Statistics:
        """See :class:`softgate.losses.fused_linear.passes.Passes`."""
        if _needs_torch(classes, settings):
            return TorchPasses().scan(z, target, classes, settings)
        numbers = torch.empty((4, z.shape[0]), dtype=torch.float64)
        _sweep(_SCAN, z, target, classes, settings, numbers=numbers)
        return Statistics(*numbers)

    def slopes(self, u: Tensor, target: Tensor, rows: Slopes, classes: Classes, settings: Settings) -> None:
        """See :class:`softgate.losses.fused_linear.passes.Passes`."""
        if _needs_torch(classes, settings):
            return TorchPasses().slopes(u, target, rows, classes, settings)
        _sweep(_SLOPES, u, target, classes, settings, coefficients=rows.stacked)

    def hinge(self, z: Tensor, target: Tensor, scale: Tensor, classes: Classes, settings: Settings) -> Statistics:
        """See :class:`softgate.losses.fused_linear.passes.Passes`."""
        numbers = torch.empty((4, z.shape[0]), dtype=torch.float64)
        _sweep(_HINGE, z, target, classes, settings, numbers=numbers, coefficients=torch.stack((scale, scale)))
        return Statistics(*numbers)


def _needs_torch(classes: Classes, settings: Settings) -> bool:
    """StableMax is compiled in linear scale, where the logarithms that smoothing sums are not at hand."""
    return settings.compressed and classes.spread is not None


def _sweep(
    kind: int,
    z: Tensor,
    target: Tensor,
    classes: Classes,
    settings: Settings,
    numbers: Tensor | None = None,
    coefficients: Tensor | None = None,
) -> None:
    even = isinstance(classes.spread, float)
    bias, spread = (None if not isinstance(x, Tensor) else x.contiguous() for x in (classes.bias, classes.spread))
    target = target.contiguous()
    native.kernels().vocabulary(
        kind,
        z.data_ptr(),
        z.shape[0],
        z.shape[1],
        z.stride(0),
        _address(target),
        _address(bias),
        _address(spread),
        classes.spread if even else 0.0,
        settings.softcap or 0.0,
        settings.temperature,
        settings.compressed,
        _address(numbers),
        _address(coefficients),
        torch.get_num_threads(),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
