"""Lower bounds of a Lipschitz constant: Jacobians at points that a random search finds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__: list[str] = []

_POINTS, _KEPT, _ROUNDS = 64, 8, 12


def sampled_constant(function: Callable[[Tensor], Tensor], inputs: int, norm: str, row: int | None) -> float:
    """The largest norm of the Jacobian of ``function`` that was found; every such norm is a lower bound.

    Args:
        function: (batch, inputs) -> (batch, outputs), row by row, in float64.
        inputs: number of inputs.
        norm: ``"l2"`` for the spectral norm, ``"linf"`` for the largest sum of absolute values of a row.
        row: the only output that counts, None for all.
    """
    stream = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=stream, dtype=torch.float64)

    points = normal(_POINTS, inputs) * torch.logspace(-2, 1, _POINTS, dtype=torch.float64)[:, None]
    sizes = _sizes(function, points, norm, row)
    for round_number in range(_ROUNDS):
        sizes, best = sizes.topk(min(_KEPT, len(sizes)))
        points = points[best]
        spread = points.norm(dim=1, keepdim=True) * 0.5 ** (round_number / 2) / inputs**0.5
        near = points.repeat(4, 1) + spread.repeat(4, 1) * normal(4 * len(points), inputs)
        points = torch.cat((points, near))
        sizes = torch.cat((sizes, _sizes(function, near, norm, row)))
    return float(sizes.max())


def _sizes(function: Callable[[Tensor], Tensor], points: Tensor, norm: str, row: int | None) -> Tensor:
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        outputs = function(points)
        chosen = range(outputs.shape[1]) if row is None else (row,)
        rows = [torch.autograd.grad(outputs[:, i].sum(), points, retain_graph=True)[0] for i in chosen]
    jacobian = torch.stack(rows, 1)
    if norm == "linf":
        return jacobian.abs().sum(2).amax(1)
    gram = jacobian @ jacobian.mT if len(rows) <= points.shape[1] else jacobian.mT @ jacobian
    return torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0.0).sqrt()
