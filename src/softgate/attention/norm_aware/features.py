"""The feature maps of norm-aware linear attention, in plain torch: direction of a vector, sharpened by its norm.

Shape suffixes: D features of a head; every feature map gives 2D.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate.errors import check_choice

Direction = Literal["polarity", "cosine"]

DIRECTIONS = ("polarity", "cosine")
#: Norms are not taken smaller than this: the direction of a vector of zeros is 0, not 0/0.
SMALLEST_NORM = 1e-6


class FeatureMap(NamedTuple):
    """The constants of a feature map.

    Attributes:
        direction: ``"polarity"`` or ``"cosine"``.
        power: λ, exponent of the keys and factor of the queries' exponent.
        tau: τ, the queries' exponent at norm 0 over ``power``.
        alpha: α, steepness of the angle (``"cosine"`` only).
        norm_scale: factor of the query's norm inside tanh.
    """

    direction: str
    power: float
    tau: float
    alpha: float
    norm_scale: float


def check_feature_map(direction: Any, power: Any, tau: Any, alpha: Any, norm_scale: Any) -> FeatureMap:
    """The constants as a :class:`FeatureMap`, after checking each."""
    check_choice("direction", direction, DIRECTIONS)
    return FeatureMap(
        direction,
        check_number("power", power, low=0.0, low_open=True, high_open=True),
        check_number("tau", tau, low=0.0, low_open=True, high_open=True),
        check_number("alpha", alpha, low=0.0, low_open=True, high_open=True),
        1.0 if norm_scale is None else check_number("norm_scale", norm_scale, low=0.0, high_open=True),
    )


def query_features(q: Tensor, constants: FeatureMap) -> Tensor:
    """φ(q), (…, 2D): ``|u|^p`` of the direction u = q/‖q‖, with p = λ (τ + tanh ‖q‖), split by sign or angle."""
    norm = clamped_norm(q)
    u = q / norm
    exponent = constants.power * (constants.tau + torch.tanh(constants.norm_scale * norm))
    return _split(positive_power(u.abs(), exponent), u, u, constants)


def key_features(k: Tensor, constants: FeatureMap) -> Tensor:
    """φ(k), (…, 2D): ``|k|^λ``, split by sign or angle."""
    size = k.abs()
    power = size * size * size if constants.power == 3.0 else positive_power(size, constants.power)
    return _split(power, k, k / clamped_norm(k) if constants.direction == "cosine" else k, constants)


def clamped_norm(x: Tensor) -> Tensor:
    """‖x‖ over the last dimension, which is kept; at least :data:`SMALLEST_NORM`, with gradient 0 below."""
    return x.square().sum(-1, keepdim=True).clamp_min(SMALLEST_NORM**2).sqrt()


def positive_power(base: Tensor, exponent: Tensor | float) -> Tensor:
    """``base ** exponent`` for bases ≥ 0 by one logarithm and one exponential; 0 with derivative 0 at exactly 0."""
    nonzero = base != 0
    # log2(0) would be -inf and its derivative NaN, so zeros are replaced before and after.
    return torch.where(nonzero, torch.exp2(exponent * torch.log2(torch.where(nonzero, base, 1.0))), 0.0)


def _split(power: Tensor, sign: Tensor, unit: Tensor, constants: FeatureMap) -> Tensor:
    """Two features ≥ 0 per coordinate, which keep the sign that the power has lost.

    The paper's pair for an angle θ in (-π/4, π/4) is (cos θ, sin θ). Turned by π/4 it is sin(π/4 + θ), sin(π/4 - θ):
    the same products, but both are ≥ 0, so that coordinates of opposite sign do not leave a rounding error.
    """
    if constants.direction == "polarity":
        signed = power * torch.sign(sign)
        return torch.cat((torch.relu(signed), torch.relu(-signed)), dim=-1)
    steep = 2 * constants.alpha * unit  # π/4 ± θ = π/2 · sigmoid(±2 α u), as θ = π/4 · tanh(α u)
    angles = torch.cat((torch.sigmoid(steep), torch.sigmoid(-steep)), dim=-1) * (math.pi / 2)
    return torch.cat((power, power), dim=-1) * torch.sin(angles)


def in_paper_basis(phi: Tensor, constants: FeatureMap) -> Tensor:
    """Features as the paper writes them: with ``"cosine"`` the halves are |x|^p cos θ and |x|^p sin θ."""
    if constants.direction == "polarity":
        return phi
    plus, minus = phi.chunk(2, dim=-1)
    return torch.cat((plus + minus, plus - minus), dim=-1) * math.sqrt(0.5)
