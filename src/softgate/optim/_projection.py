"""The arithmetic of perpGrad: dot products, coefficients and the in-place update of lists of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentValueError

__all__: list[str] = []

_TINY = 1e-30
#: Below this squared sine between gradient and parameter the projection is done twice ("twice is enough"): what
#: rounding leaves along the parameter, and the error of Pythagoras, are the rounding of g divided by the sine.
_SAFE_SINE = 0.25
#: Below this square a float32 sum of squares has lost terms to underflow.
_UNDERFLOW = 1e-30

Pair = tuple[Tensor, Tensor]


def project(parameters: Sequence[Tensor], *, rescale: bool, together: bool) -> None:
    """Project the gradients of ``parameters`` in place, each against its tensor or all against the whole vector.

    Tensors without gradient or entries are skipped; the caller has refused sparse gradients.
    """
    groups: dict[tuple[Any, ...], _Group] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and parameter.numel() > 0:
            key, reduce = _placement(parameter, gradient)
            groups.setdefault(key, _Group([], reduce)).pairs.append((_flat(parameter), _flat(gradient)))
    if together:
        _update_together(list(groups.values()), rescale)
        return
    for group in groups.values():
        if group.pairs[0][1].is_cpu:
            _update_by_numbers(group, rescale)
        else:
            _update_by_tensors(group, rescale)


@dataclass(frozen=True)
class _Group:
    """Parameters and gradients of one device, dtype and placement, as plain local tensors.

    ``reduce`` completes sums over the local values: an all-reduce where the tensors are sharded.
    """

    pairs: list[Pair]
    reduce: Callable[[Tensor], Tensor]

    def moments(self) -> Tensor:
        """Rows ``(<w, g>, <w, w>, <g, g>)`` in float64 over all shards."""
        return self.reduce(_moments(self.pairs))


def _flat(tensor: Tensor) -> Tensor:
    """The local values as a real tensor; a complex one is the real vector of its parts, as for every optimizer."""
    local = tensor.detach()
    if type(local) is not Tensor and hasattr(local, "to_local"):
        local = local.to_local()
    return torch.view_as_real(local) if local.is_complex() else local


def _placement(parameter: Tensor, gradient: Tensor) -> tuple[tuple[Any, ...], Callable[[Tensor], Tensor]]:
    """Key of tensors that are handled together, and the all-reduce that completes their dot products."""
    if not hasattr(parameter, "to_local"):  # a plain tensor; torch.distributed is imported only for sharded ones
        return (gradient.device, gradient.dtype, None), lambda values: values
    from torch.distributed.tensor import DTensor, Partial, Replicate

    assert isinstance(parameter, DTensor)
    if not isinstance(gradient, DTensor) or gradient.placements != parameter.placements:
        placements = getattr(gradient, "placements", "a plain tensor")
        raise ArgumentValueError(f"params must be placed like their gradients: {parameter.placements} and {placements}")
    mesh = parameter.device_mesh
    summed = tuple(Replicate() if p.is_replicate() else Partial("sum") for p in parameter.placements)

    def reduce(values: Tensor) -> Tensor:
        return DTensor.from_local(values, mesh, summed, run_check=False).full_tensor()

    return (gradient.device, gradient.dtype, mesh, summed), reduce


def _dots(w: Tensor, g: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    w, g = w.reshape(-1).to(dtype), g.reshape(-1).to(dtype)
    return torch.dot(w, g), torch.dot(w, w), torch.dot(g, g)


def _moments(pairs: Sequence[Pair]) -> Tensor:
    """Local dot products; float32 for 16-bit gradients, float64 where float32 over- or underflows (on the CPU)."""
    dtype = compute_dtype(pairs[0][1].dtype)
    moments = torch.stack([value for w, g in pairs for value in _dots(w, g, dtype)]).double().view(-1, 3)
    if moments.is_cpu and dtype == torch.float32:
        lost = (moments[:, 2] < _UNDERFLOW) | ~moments.isfinite().all(1)
        for row in lost.nonzero().flatten().tolist():
            w, g = pairs[row]
            moments[row] = torch.stack(_dots(w, g, torch.float64))
    return moments


def _negligible(dtype: torch.dtype) -> float:
    """Sine below which a projected gradient is rounding noise of a gradient parallel to its parameter."""
    return max(2.0 * torch.finfo(dtype).eps, 16.0 * torch.finfo(compute_dtype(dtype)).eps)


def _plan(moments: Sequence[float], norm: float, rescale: bool) -> tuple[float, float, bool]:
    """Factors of g and w in the update, and whether a second pass must follow because much of g cancels.

    Args:
        moments: ``(<w, g>, <w, w>, <g, g>)`` of the present gradient.
        norm: norm that the result shall have.
        rescale: False keeps the projection as it is.
    """
    wg, ww, gg = moments
    coefficient = wg / (ww + _TINY)
    # the norm of the projected gradient by Pythagoras, exact enough while little of g cancels
    left = math.sqrt(max(gg - wg * coefficient, 0.0)) if math.isfinite(gg) else math.nan
    if left * left < _SAFE_SINE * gg:
        return 1.0, -coefficient, True
    scale = norm / left if rescale else 1.0
    return scale, -coefficient * scale, False


def _update_by_numbers(group: _Group, rescale: bool) -> None:
    """One update per tensor with coefficients known on the host."""
    for (w, g), moments in zip(group.pairs, group.moments().tolist(), strict=True):
        if moments[2] == 0.0:
            continue
        norm = math.sqrt(moments[2]) if moments[2] >= 0.0 else math.nan
        a, b, again = _plan(moments, norm, rescale)
        _combine(w, g, a, b)
        if again:
            _combine(w, g, *_second(_Group([(w, g)], group.reduce).moments().tolist()[0], norm, rescale, g.dtype))


def _second(moments: Sequence[float], norm: float, rescale: bool, dtype: torch.dtype) -> tuple[float, float]:
    """Factors of the second pass: removes what rounding left along w, or everything if nothing else was left."""
    if math.sqrt(moments[2]) <= _negligible(dtype) * norm:
        return 0.0, 0.0
    a, b, _ = _plan(moments, norm, rescale)
    return a, b


def _update_together(groups: Sequence[_Group], rescale: bool) -> None:
    """One coefficient for the concatenation of all tensors."""
    moments = _sums(groups)
    if moments[2] == 0.0:
        return
    norm = math.sqrt(moments[2]) if moments[2] >= 0.0 else math.nan
    a, b, again = _plan(moments, norm, rescale)
    for pass_ in range(2 if again else 1):
        if pass_ == 1:
            narrowest = max((g.dtype for group in groups for _, g in group.pairs), key=lambda d: torch.finfo(d).eps)
            a, b = _second(_sums(groups), norm, rescale, narrowest)
        for group in groups:
            for w, g in group.pairs:
                _combine(w, g, a, b)


def _sums(groups: Sequence[_Group]) -> list[float]:
    rows = [row for group in groups for row in group.moments().tolist()]
    return [math.fsum(column) for column in zip(*rows, strict=True)] if rows else [0.0, 0.0, 0.0]


def _combine(w: Tensor, g: Tensor, a: float, b: float) -> None:
    """``g <- a g + b w`` with one rounding to a 16-bit type."""
    wide = compute_dtype(g.dtype)
    if wide == g.dtype:
        g.mul_(a).add_(w, alpha=b)
    else:
        g.copy_(g.to(wide).mul_(a).add_(w.to(wide), alpha=b))


def _update_by_tensors(group: _Group, rescale: bool) -> None:
    """The same without reading a value back to the host, so that the accelerator's queue never drains."""
    weights, gradients = zip(*group.pairs, strict=True)
    wg, ww, gg = group.moments().unbind(1)
    dtype = compute_dtype(gradients[0].dtype)
    wide = [g.to(dtype) for g in gradients]
    for w, g, coefficient in zip(weights, wide, (-wg / (ww + _TINY)).to(dtype).unbind(), strict=True):
        g.addcmul_(w.to(dtype), coefficient)
    if rescale:
        norms = torch.stack(torch._foreach_norm(wide)).double()
        sine = (group.reduce(norms.square()) / gg).sqrt()
        scale = torch.where(sine > _negligible(gradients[0].dtype), 1.0 / sine, 0.0)
        scale = torch.where(gg == 0.0, 1.0, torch.where(sine.isnan(), sine, scale))
        torch._foreach_mul_(wide, list(scale.to(dtype).unbind()))
    if dtype != gradients[0].dtype:
        torch._foreach_copy_(list(gradients), wide)
