"""The sweeps of the fused linear losses in Triton: one program per row of a block of logits, in place.

The products around them are torch's. Each program walks its row twice at most, in the same order whatever else runs, so
results are deterministic.
"""

# mypy: disable-error-code="no-untyped-def"
# Functions that Triton compiles take no annotations but tl.constexpr.
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from softgate._triton import interpreting
from softgate._triton.scalars import expm1_of, log1p_of
from softgate.losses.fused_linear.passes import Classes, put_target
from softgate.losses.fused_linear.rows import Slopes, Statistics
from softgate.losses.fused_linear.settings import Settings

__all__: list[str] = []


@triton.jit
def scores_of(z, softcap, temperature, CAPPED: tl.constexpr, COMPRESSED: tl.constexpr):
    """Soft-capping (tanh by a series near 0), temperature, link of StableMax."""
    if CAPPED:
        x = z / softcap
        w = x * x
        series = x * (1.0 + w * (-1.0 / 3.0 + w * (2.0 / 15.0 + w * (-17.0 / 315.0 + w * (62.0 / 2835.0)))))
        e = tl.exp(-2.0 * tl.abs(x))
        size = (1.0 - e) / (1.0 + e)
        z = softcap * tl.where(w < 0.04, series, tl.where(x < 0.0, -size, size))
    z = z / temperature
    if COMPRESSED:
        size = log1p_of(tl.abs(z))
        z = tl.where(z < 0.0, -size, size)
    return z


@triton.jit
def slope_of(u, softcap, temperature, CAPPED: tl.constexpr, COMPRESSED: tl.constexpr):
    """Derivative of the score with respect to the logit, from the score."""
    slope = tl.zeros_like(u) + 1.0 / temperature
    if COMPRESSED:
        slope = slope * tl.exp(-tl.abs(u))
    if CAPPED:
        capped = u
        if COMPRESSED:
            capped = expm1_of(tl.abs(u))
        t = capped * temperature / softcap
        slope = slope * (1.0 - t * t)
    return slope


@triton.jit
def scan_kernel(
    z_ptr, target_ptr, bias_ptr, spread_ptr, factor_ptr, stats_ptr, stride, rows, classes, softcap, temperature, even,
    BIAS: tl.constexpr, SPREAD: tl.constexpr, CAPPED: tl.constexpr, COMPRESSED: tl.constexpr, HINGE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Scores in place and (top, total, spread, own) of a row; with HINGE the gradient in place, the loss in total."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(target_ptr + row)
    z_ptr += row * stride
    top, total = float("-inf"), 0.0
    spread, own = 0.0, 0.0
    factor = 0.0
    if HINGE:
        factor = tl.load(factor_ptr + row)
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < classes
        z = tl.load(z_ptr + columns, mask=inside, other=0.0)
        if BIAS:
            z += tl.load(bias_ptr + columns, mask=inside, other=0.0)
        u = scores_of(z, softcap, temperature, CAPPED, COMPRESSED)
        is_target = columns == target
        others = tl.where(inside & (columns != target), u, float("-inf"))
        own += tl.sum(tl.where(is_target, u, 0.0))
        high = tl.maximum(top, tl.max(others))
        if HINGE:
            h = tl.where(inside, 1.0 + tl.where(is_target, -u, u), 0.0)
            h = tl.where(h < 0.0, 0.0, h)
            total += tl.sum(h * h)
            slope = slope_of(u, softcap, temperature, CAPPED, COMPRESSED)
            tl.store(z_ptr + columns, factor * tl.where(is_target, -h, h) * slope, mask=inside)
        else:
            if SPREAD == 1:
                s = tl.zeros_like(u) + even
                counts = inside & (columns != target)
                spread += tl.sum(tl.where(counts, s * u, 0.0))
            if SPREAD == 2:
                s = tl.load(spread_ptr + columns, mask=inside, other=0.0)
                counts = (s != 0.0) & (columns != target)
                spread += tl.sum(tl.where(counts, s * u, 0.0))
            shift = tl.where(high == float("-inf"), 0.0, high)
            before = tl.where(top == float("-inf"), 0.0, tl.exp(top - shift))
            total = total * before + tl.sum(tl.exp(others - shift))
            tl.store(z_ptr + columns, others, mask=inside)
        top = high
    tl.store(stats_ptr + row, top)
    tl.store(stats_ptr + rows + row, total)
    tl.store(stats_ptr + 2 * rows + row, spread)
    tl.store(stats_ptr + 3 * rows + row, own)


@triton.jit
def slopes_kernel(
    u_ptr, top_ptr, scale_ptr, constant_ptr, spread_ptr, stride, classes, softcap, temperature, even,
    SPREAD: tl.constexpr, CAPPED: tl.constexpr, COMPRESSED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``(scale exp(u - top) - constant spread) du/dz`` of one block of one row, in place."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < classes
    u_ptr += row * stride
    u = tl.load(u_ptr + columns, mask=inside, other=0.0)
    slope = tl.load(scale_ptr + row) * tl.exp(u - tl.load(top_ptr + row))
    if SPREAD == 1:
        slope -= tl.load(constant_ptr + row) * even
    if SPREAD == 2:
        slope -= tl.load(constant_ptr + row) * tl.load(spread_ptr + columns, mask=inside, other=0.0)
    slope *= slope_of(u, softcap, temperature, CAPPED, COMPRESSED)
    tl.store(u_ptr + columns, slope, mask=inside)


class TritonPasses:
    """See :class:`softgate.losses.fused_linear.passes.Passes`."""

    def scan(self, z: Tensor, target: Tensor, classes: Classes, settings: Settings) -> Statistics:
        """Logits to scores, and statistics."""
        return self._scan(z, target, None, classes, settings)

    def hinge(self, z: Tensor, target: Tensor, scale: Tensor, classes: Classes, settings: Settings) -> Statistics:
        """Logits to ``scale`` times the gradient of the squared hinge, and statistics."""
        return self._scan(z, target, _bounded(2.0 * scale), classes, settings)

    def _scan(
        self, z: Tensor, target: Tensor, factor: Tensor | None, classes: Classes, settings: Settings
    ) -> Statistics:
        stats = torch.empty((4, z.shape[0]), dtype=torch.float32, device=z.device)
        spread, even = _spread(classes, z)
        scan_kernel[(z.shape[0],)](
            z, target.contiguous(), z if classes.bias is None else classes.bias.contiguous(), spread,
            z if factor is None else factor, stats, z.stride(0), z.shape[0], z.shape[1], settings.softcap or 1.0,
            settings.temperature, even, BIAS=classes.bias is not None, HINGE=factor is not None,
            **_constants(classes, settings),
        )  # fmt: skip
        return Statistics(*stats.double())

    def slopes(self, u: Tensor, target: Tensor, rows: Slopes, classes: Classes, settings: Settings) -> None:
        """Scores to the gradient."""
        spread, even = _spread(classes, u)
        constants = _constants(classes, settings)
        shift = torch.where(torch.isneginf(rows.top), 0.0, rows.top).float()
        slopes_kernel[(u.shape[0], triton.cdiv(u.shape[1], constants["BLOCK"]))](
            u, shift, _bounded(rows.scale), _bounded(rows.constant), spread, u.stride(0), u.shape[1],
            settings.softcap or 1.0, settings.temperature, even, **constants,
        )  # fmt: skip
        put_target(u, target, rows.at_target)


def _spread(classes: Classes, like: Tensor) -> tuple[Tensor, float]:
    """Smoothing weights as a pointer, any tensor where there are none, and as a number."""
    if isinstance(classes.spread, Tensor):
        return classes.spread.contiguous(), 0.0
    return like, classes.spread or 0.0


def _constants(classes: Classes, settings: Settings) -> dict[str, Any]:
    kind = 0 if classes.spread is None else 2 if isinstance(classes.spread, Tensor) else 1
    capped = settings.softcap is not None
    block = 64 if interpreting() else 4096
    return {"SPREAD": kind, "CAPPED": capped, "COMPRESSED": settings.compressed, "BLOCK": block}


def _bounded(values: Tensor) -> Tensor:
    largest = torch.finfo(torch.float32).max
    return values.clamp(-largest, largest).float().contiguous()
