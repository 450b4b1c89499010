"""The feature maps on one block of rows, in few passes over it and without autograd; the kernel's inner loop.

Rows are (…, D), features (…, 2D). The gradients below are for the polarity map: with u = q/n, n = ‖q‖, L = log2|u| and
w = φ ⊙ dφ taken from the half that the sign selects,

    dq = p w / q - q (p Σw - λ s n sech²(s n) ln2 Σ w L) / n²,     dk = λ w / k.

Both follow from d|u|^p = p |u|^p / |u| and d|u|^p/dp = |u|^p ln|u|; a coordinate that is exactly 0 gets 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from softgate.attention.norm_aware.features import SMALLEST_NORM, FeatureMap, key_features, query_features

#: Stands for log2(0): its exponential is 0, and unlike -inf it gives 0 times 0.
_LOG_ZERO = -1e30


def query_features_into(out: Tensor, x: Tensor, constants: FeatureMap) -> None:
    """Write φ(x) of queries ``x`` into ``out``."""
    if constants.direction != "polarity":
        out.copy_(query_features(x, constants))
        return
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(SMALLEST_NORM)
    power = (x / norm).abs_().log2_().mul_(_exponent(norm, constants)).exp2_()
    _write_halves(out, power.copysign_(x))


def key_features_into(out: Tensor, x: Tensor, constants: FeatureMap) -> None:
    """Write φ(x) of keys ``x`` into ``out``."""
    if constants.direction != "polarity":
        out.copy_(key_features(x, constants))
    elif constants.power == 3.0:
        _write_halves(out, (x * x).mul_(x))
    else:
        _write_halves(out, x.abs().log2_().mul_(constants.power).exp2_().copysign_(x))


def query_gradient(x: Tensor, dphi: Tensor, constants: FeatureMap) -> Tensor:
    """Gradient of queries ``x`` from that of their features."""
    if constants.direction != "polarity":
        return _by_autograd(query_features, x, dphi, constants)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inside = norm >= SMALLEST_NORM
    norm.clamp_min_(SMALLEST_NORM)
    exponent = _exponent(norm, constants)
    logs = (x / norm).abs_().log2_().clamp_min_(_LOG_ZERO)
    w = (logs * exponent).exp2_().mul_(_of_the_sign(x, dphi))
    steepness = 1.0 - torch.tanh(constants.norm_scale * norm).square_()
    steepness *= math.log(2) * constants.power * constants.norm_scale
    along = exponent * w.sum(-1, True) - (w * logs).sum(-1, True) * steepness * norm
    along.div_(norm.square_()).mul_(inside)
    return w.mul_(exponent).div_(x + (x == 0)).addcmul_(x, along, value=-1.0)


def key_gradient(x: Tensor, dphi: Tensor, constants: FeatureMap) -> Tensor:
    """Gradient of keys ``x`` from that of their features."""
    if constants.direction != "polarity":
        return _by_autograd(key_features, x, dphi, constants)
    if constants.power == 3.0:
        return (3.0 * x).mul_(x).copysign_(x).mul_(_of_the_sign(x, dphi))
    power = x.abs().log2_().mul_(constants.power).exp2_().mul_(constants.power)
    return power.div_(x + (x == 0)).mul_(_of_the_sign(x, dphi))


def _exponent(norm: Tensor, constants: FeatureMap) -> Tensor:
    return torch.tanh(constants.norm_scale * norm).add_(constants.tau).mul_(constants.power)


def _write_halves(out: Tensor, signed: Tensor) -> None:
    width = signed.shape[-1]
    torch.clamp_min(signed, 0.0, out=out[..., :width])
    torch.clamp_max(signed, 0.0, out=out[..., width:]).neg_()


def _of_the_sign(x: Tensor, dphi: Tensor) -> Tensor:
    """The entries of the half that ``x`` feeds: the first where it is positive, the second elsewhere."""
    positive, negative = dphi.chunk(2, dim=-1)
    return torch.lerp(negative, positive, (x > 0).to(x.dtype))


def _by_autograd(
    features: Callable[[Tensor, FeatureMap], Tensor], x: Tensor, dphi: Tensor, constants: FeatureMap
) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(features(leaf, constants), leaf, dphi)[0]
