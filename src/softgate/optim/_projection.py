"""The arithmetic of perpGrad: dot products, coefficients and the in-place update of lists of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgate._math.compress import compute_dtype
from softgate.dispatch import transform_reason
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
    ready = [group for group in groups.values() if _is_readable(group)]
    if together:
        if len(ready) == len(groups):
            _update_together(ready, rescale)
        else:
            _update_by_tensors(list(groups.values()), rescale, together=True)
        return
    for group in groups.values():
        if _is_readable(group):
            _update_by_numbers(group, rescale)
        else:
            _update_by_tensors([group], rescale, together=False)


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


def _is_readable(group: _Group) -> bool:
    """Whether coefficients can be read on the host without stalling an accelerator or breaking a trace."""
    return group.pairs[0][1].is_cpu and transform_reason(group.pairs[0][1]) is None


def _flat(tensor: Tensor) -> Tensor:
    """The local values as a real tensor; a complex one is the real vector of its parts, as for every optimizer."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
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
    w, g = w.reshape(-1), g.reshape(-1)
    if not w.dtype == g.dtype == dtype:
        w, g = w.to(dtype), g.to(dtype)
    return torch.dot(w, g), torch.dot(w, w), torch.dot(g, g)


def _moments(pairs: Sequence[Pair]) -> Tensor:
    """Local dot products; float32 for 16-bit gradients, float64 where float32 over- or underflows (on the CPU)."""
    dtype = compute_dtype(pairs[0][1].dtype)
    moments = torch.stack([value for w, g in pairs for value in _dots(w, g, dtype)]).double().view(-1, 3)
    if dtype == torch.float32 and moments.is_cpu and transform_reason(moments) is None:
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


def _update_by_tensors(groups: Sequence[_Group], rescale: bool, together: bool) -> None:
    """The same without reading a value on the host: an accelerator's queue never drains, a trace never breaks."""
    moments = [group.moments() for group in groups]
    moments = _totals(moments) if together else moments
    wides = []
    for group, rows in zip(groups, moments, strict=True):
        coefficients = -rows[:, 0] / (rows[:, 1] + _TINY)
        dtype = compute_dtype(group.pairs[0][1].dtype)
        wides.append([g.to(dtype) for _, g in group.pairs])
        for (w, _), g, coefficient in zip(group.pairs, wides[-1], coefficients.to(dtype).unbind(), strict=True):
            g.addcmul_(w.to(dtype), coefficient)
    if rescale:
        norms = [torch.stack(torch._foreach_norm(wide)).double() for wide in wides]
        left = [group.reduce(norm.square()) for group, norm in zip(groups, norms, strict=True)]
        left = _totals(left) if together else left
        for group, wide, rows, squares in zip(groups, wides, moments, left, strict=True):
            sine = (squares / rows[:, 2]).sqrt()
            scale = torch.where(sine > _negligible(group.pairs[0][1].dtype), 1.0 / sine, 0.0)
            scale = torch.where(rows[:, 2] == 0.0, 1.0, torch.where(sine.isnan(), sine, scale))
            torch._foreach_mul_(wide, list(scale.to(wide[0].dtype).unbind()))
    for group, wide in zip(groups, wides, strict=True):
        if wide[0].dtype != group.pairs[0][1].dtype:
            torch._foreach_copy_([g for _, g in group.pairs], wide)


def _totals(parts: Sequence[Tensor]) -> list[Tensor]:
    """Every row replaced by the sum over all rows of all parts."""
    home = parts[0].device
    whole = torch.stack([part.sum(0).to(home) for part in parts]).sum(0)
    return [whole.to(part.device).expand_as(part) for part in parts]
