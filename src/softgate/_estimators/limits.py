"""Deep kernels in logarithms: at depth 100 the kernel of distinct points is far below what a float can hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softgate.activations.dual import DualActivation

#: Correlations within this of ±1 are those of equal (opposite) points: their cosine may round so far.
COINCIDENCE = 4 * torch.finfo(torch.float64).eps
#: Relative error of a kernel whose last layers are computed with the lowest power of the dual alone.
_TAIL_ERROR = 1e-10


def log_nngp(xi: Tensor, dual: DualActivation, depth: int) -> tuple[Tensor, Tensor]:
    """Logarithm of ``|S_depth|`` and sign of ``S_depth``; one correlation at a time leaves the iteration when small."""
    return _iterate(xi, dual, depth)


def log_limit(xi: Tensor, dual: DualActivation) -> tuple[Tensor, Tensor]:
    """Logarithm of ``|w|`` and sign of ``w = lim S_L / a^L``; equal points get ``+inf``."""
    return _iterate(xi, dual, None)


def _iterate(xi: Tensor, dual: DualActivation, depth: int | None) -> tuple[Tensor, Tensor]:
    flat = xi.flatten()
    log_size, sign = torch.zeros_like(flat), flat.sign()
    degree, power = dual.leading
    small = _small(dual)
    # ±1 is the correlation of equal points at every depth; of opposite ones only for an odd activation
    endless = flat.abs() >= 1.0 - COINCIDENCE
    if depth is None:
        fixed = endless & (dual(flat.round()).abs() >= 1.0 - COINCIDENCE)
        log_size[fixed] = math.inf
        active = (~fixed).nonzero().squeeze(1)
    else:
        active = torch.arange(flat.numel())
    values, layer = flat[active], 0
    while active.numel() and (depth is None or layer < depth):
        done = values.abs() < small
        if bool(done.any()):
            where = active[done]
            sign[where] = values[done].sign()
            log_size[where] = _tail(values[done].abs().log(), degree, power, layer, depth)
            if degree % 2 == 0 and depth is not None:
                sign[where] = sign[where].abs()
            active, values = active[~done], values[~done]
        values = dual(values).clamp(-1.0, 1.0)
        layer += 1
    if active.numel():
        log_size[active], sign[active] = values.abs().log(), values.sign()
    return log_size.reshape(xi.shape), sign.reshape(xi.shape)


def _small(dual: DualActivation) -> float:
    """Below this the lowest power of the dual serves for all further layers; negative if it never does."""
    (degree, power), (gap, ratio) = dual.leading, dual.correction
    if degree == 0:
        return -1.0
    if ratio == 0.0:
        return math.inf
    # the errors r S^g of the layers fall like a^g, or faster
    falling = 1.0 - power**gap if degree == 1 else 0.5
    return float(min(0.1, (_TAIL_ERROR * falling / ratio) ** (1.0 / gap)))


def _tail(log_size: Tensor, degree: int, power: float, layer: int, depth: int | None) -> Tensor:
    """What the remaining layers make of a small correlation: ``S -> power S^degree``."""
    if depth is None:
        return log_size - layer * math.log(power)
    left = depth - layer
    if degree == 1:
        return log_size + left * math.log(power)
    # the fixed point of the logarithm's recursion; beyond float64 the size is 0 beside every other
    fixed = -math.log(power) / (degree - 1)
    return (
        (log_size - fixed) * min(float(degree) ** left, 1e300) + fixed
        if left * math.log(degree) < 690
        else (log_size - math.inf)
    )


def scaled_ntk(xi: Tensor, dual: DualActivation, depth: int) -> Tensor:
    """``K_depth(ξ) / K_depth(1)``: the diagonal, which grows like ``b^depth``, is 1."""
    kernel, inverse, stretch = xi, 1.0, dual.stretch
    for _ in range(depth):
        following = dual(xi).clamp(-1.0, 1.0)
        # D_l = 1 + b D_{l-1} is the diagonal, inverse = 1 / D
        ratio = 1.0 / (inverse + stretch)
        inverse = inverse * ratio
        kernel, xi = following * inverse + kernel * dual.derivative(xi) * ratio, following
    return kernel
