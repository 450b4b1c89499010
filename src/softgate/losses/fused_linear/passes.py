"""The sweeps over a block of logits that is in memory, in place, with torch operations.

:class:`Passes` is also what the compiled kernels offer (:mod:`softgate.losses.fused_linear.native_passes`,
:mod:`softgate._triton.fused_linear`). Blocks are (n, V) in the wide dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from softgate.losses.fused_linear.reference import scores
from softgate.losses.fused_linear.rows import Slopes, Statistics
from softgate.losses.fused_linear.settings import Settings

__all__: list[str] = []

#: Entries of the logits that are worked on at a time: with the scratch of the same size they stay in the cache. On a
#: GPU, where starting a kernel costs more, as many as leave the scratch below the logits.
_TILE, _GPU_TILE = 1 << 18, 1 << 24


@dataclass(frozen=True)
class Classes:
    """What belongs to the columns of a block.

    Attributes:
        bias: (V,) or None.
        spread: s_j of the smoothing, (V,), a number for all of them, or None.
    """

    bias: Tensor | None
    spread: Tensor | float | None

    def of(self, columns: slice) -> Classes:
        """What belongs to some of them."""
        spread = self.spread[columns] if isinstance(self.spread, Tensor) else self.spread
        return Classes(None if self.bias is None else self.bias[columns], spread)


class Passes(Protocol):
    """One way to sweep over a block."""

    def scan(self, z: Tensor, target: Tensor, classes: Classes, settings: Settings) -> Statistics:
        """Turn logits into scores u and return the rows' statistics.

        ``target`` is (n,), -1 where the target is not among the columns; its score is replaced by ``-inf``.
        """

    def slopes(self, u: Tensor, target: Tensor, rows: Slopes, classes: Classes, settings: Settings) -> None:
        """Turn scores into the gradient: ``(scale exp(u - top) - constant s) du/dz``, ``at_target`` for the target."""

    def hinge(self, z: Tensor, target: Tensor, scale: Tensor, classes: Classes, settings: Settings) -> Statistics:
        """Turn logits into ``scale`` times the gradient of the squared hinge; the loss is in ``total``."""


class TorchPasses:
    """Tiles of columns, torch operations on each."""

    def scan(self, z: Tensor, target: Tensor, classes: Classes, settings: Settings) -> Statistics:
        """See :class:`Passes`."""
        found = _empty(z, target)
        for columns in _tiles(z):
            u = _scores_(z[:, columns], classes, columns, settings)
            place, inside = _inside(target, columns)
            own = u.gather(1, place[:, None])
            found.target = torch.where(inside, own.squeeze(1).double(), found.target)
            u.scatter_(1, place[:, None], torch.where(inside[:, None], float("-inf"), own))
            if classes.spread is not None:
                s = classes.spread if isinstance(classes.spread, float) else classes.spread[columns]
                others = torch.where(inside[:, None], u.scatter(1, place[:, None], 0.0), u)
                found.spread += torch.where(_as_tensor(s, u) == 0.0, 0.0, others * s).sum(1).double()
            top = torch.maximum(found.top, u.amax(1).double())
            shift = torch.where(torch.isneginf(top), 0.0, top)
            before = torch.where(torch.isneginf(found.top), 0.0, torch.exp(found.top - shift))
            part = torch.sub(u, shift.to(u.dtype)[:, None]).exp_().sum(1)
            found.total = found.total * before + part.double()
            found.top = top
        return found

    def slopes(self, u: Tensor, target: Tensor, rows: Slopes, classes: Classes, settings: Settings) -> None:
        """See :class:`Passes`."""
        shift, scale, constant = (_column(x, u) for x in (_finite(rows.top), rows.scale, rows.constant))
        for columns in _tiles(u):
            tile = u[:, columns]
            slope = slope_of(tile, settings)
            tile.sub_(shift).exp_().mul_(scale)
            if isinstance(classes.spread, float):
                tile.sub_(constant * classes.spread)
            elif classes.spread is not None:
                tile.addcmul_(constant, classes.spread[columns], value=-1.0)
            tile.mul_(slope)
        put_target(u, target, rows.at_target)

    def hinge(self, z: Tensor, target: Tensor, scale: Tensor, classes: Classes, settings: Settings) -> Statistics:
        """See :class:`Passes`."""
        found = _empty(z, target)
        factor = _column(2.0 * scale, z)
        for columns in _tiles(z):
            u = _scores_(z[:, columns], classes, columns, settings)
            place, inside = _inside(target, columns)
            own = u.gather(1, place[:, None]).squeeze(1)
            found.target = torch.where(inside, own.double(), found.target)
            others = u.scatter(1, place[:, None], torch.where(inside, float("-inf"), own)[:, None])
            found.top = torch.maximum(found.top, others.amax(1).double())
            slope = slope_of(u, settings)
            sign = torch.where(inside, -1.0, 1.0).to(u.dtype)[:, None]
            u.scatter_(1, place[:, None], own[:, None] * sign).add_(1.0).clamp_(min=0.0)
            found.total += u.square().sum(1).double()
            u.mul_(factor).mul_(slope)
            u.scatter_(1, place[:, None], u.gather(1, place[:, None]) * sign)
        return found


def put_target(g_nV: Tensor, target: Tensor, values: Tensor) -> None:
    """Gradient of the targets that are among these columns."""
    if not g_nV.shape[1]:
        return
    place = target.clamp(min=0)[:, None]
    largest = torch.finfo(g_nV.dtype).max
    values = values.clamp(-largest, largest).to(g_nV.dtype)[:, None]
    g_nV.scatter_(1, place, torch.where(target[:, None] >= 0, values, g_nV.gather(1, place)))


def slope_of(u: Tensor, settings: Settings) -> Tensor | float:
    """``du/dz`` from the score itself: the link's ``exp(-|u|)``, the cap's ``1 - (z/c)^2``, over the temperature."""
    slope: Tensor | float = 1.0 / settings.temperature
    if settings.compressed:
        slope = torch.exp(-u.abs()) * slope
    if settings.softcap is not None:
        capped = torch.expm1(u.abs()) if settings.compressed else u
        slope = (1.0 - (capped * (settings.temperature / settings.softcap)).square()) * slope
    return slope


def _scores_(z: Tensor, classes: Classes, columns: slice, settings: Settings) -> Tensor:
    """Scores in the place of the products ``x W``."""
    if classes.bias is not None:
        z.add_(classes.bias[columns])
    if settings.softcap is not None or settings.compressed:
        return z.copy_(scores(z, settings))
    return z if settings.temperature == 1.0 else z.div_(settings.temperature)


def _tiles(z: Tensor) -> list[slice]:
    width = max((_TILE if z.is_cpu else _GPU_TILE) // max(z.shape[0], 1), 1)
    return [slice(start, min(start + width, z.shape[1])) for start in range(0, z.shape[1], width)]


def _inside(target: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Place of the target in a tile (0 if elsewhere) and whether it is there."""
    inside = (target >= columns.start) & (target < columns.stop)
    return torch.where(inside, target - columns.start, 0), inside


def _empty(z: Tensor, target: Tensor) -> Statistics:
    zeros = [torch.zeros(target.shape, dtype=torch.float64, device=z.device) for _ in range(3)]
    return Statistics(torch.full_like(zeros[0], float("-inf")), *zeros)


def _finite(top: Tensor) -> Tensor:
    return torch.where(torch.isneginf(top), 0.0, top)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """(n,) float64 as a column in the dtype of ``like``; what is too large for it becomes its largest number."""
    largest = torch.finfo(like.dtype).max
    return values.clamp(-largest, largest).to(like.dtype)[:, None]


def _as_tensor(value: Tensor | float, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else like.new_tensor(value)
