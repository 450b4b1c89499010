"""The noises of soft-thinking tokens: how each is drawn, how it becomes weights, and its log-density.

Shapes: ``p`` holds the renormalised probabilities of the K candidates, ``g`` their noisy values, both ``(..., K)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate.errors import bad_type, bad_value, check_choice

__all__: list[str] = []

#: Standard deviation of the Gaussian noise on probabilities.
GAUSSIAN_STD = 0.05
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class NoiseSettings:
    """What a density and its sampler have in common.

    Attributes:
        scale: size of the noise.
        tau: temperature of the Gumbel-softmax.
        clamp: what cuts the tails, see :class:`Noise`.
        eps: added to a probability before its logarithm.
    """

    scale: float
    tau: float
    clamp: tuple[float, float]
    eps: float


class Noise(Protocol):
    """A family of noise.

    Attributes:
        clamp: default bounds: of the noise itself (Gumbel), of the noise in standard deviations (Gaussian, density
            only), of the log-density (Dirichlet).
        threshold: candidates of at most this probability do not count in the log-probability.
        absent: value of a candidate that is no candidate, whose weight is 0.
    """

    clamp: tuple[float, float]
    threshold: float
    absent: float

    def draw(self, p: Tensor, settings: NoiseSettings, generator: torch.Generator | None) -> Tensor:
        """Noisy values ``g``."""

    def weights(self, g: Tensor, tau: float) -> Tensor:
        """Mixture weights, which sum to 1."""

    def log_density(self, p: Tensor, g: Tensor, settings: NoiseSettings) -> Tensor:
        """Log-density of every ``g_k`` given ``p_k``."""


class Gumbel:
    """Truncated Gumbel noise on log-probabilities: ``g = log(p + eps) + scale * clamp(Gumbel)``."""

    clamp = (-1.5, 3.0)
    threshold = math.exp(-3.0)
    absent = -math.inf

    def draw(self, p: Tensor, settings: NoiseSettings, generator: torch.Generator | None) -> Tensor:
        """Noisy log-probabilities."""
        gumbel = -torch.empty_like(p).exponential_(generator=generator).log()
        return torch.log(p + settings.eps) + settings.scale * gumbel.clamp(*settings.clamp)

    def weights(self, g: Tensor, tau: float) -> Tensor:
        """``softmax(g / tau)``."""
        return torch.softmax(g / tau, -1)

    def log_density(self, p: Tensor, g: Tensor, settings: NoiseSettings) -> Tensor:
        """``-e - exp(-e) - log(scale)`` at the residual ``e``, clamped as the noise was."""
        residual = ((g - torch.log(p + settings.eps)) / settings.scale).clamp(*settings.clamp)
        return -residual - torch.exp(-residual) - math.log(settings.scale)


class Gaussian:
    """Gaussian noise on probabilities: ``g = p + 0.05 scale * n``; weights may leave [0, 1]."""

    clamp = (-3.0, 3.0)
    threshold = 0.05
    absent = 0.0

    def draw(self, p: Tensor, settings: NoiseSettings, generator: torch.Generator | None) -> Tensor:
        """Noisy probabilities."""
        return p + GAUSSIAN_STD * settings.scale * torch.empty_like(p).normal_(generator=generator)

    def weights(self, g: Tensor, tau: float) -> Tensor:
        """``g / sum(g)``."""
        return g / g.sum(-1, keepdim=True)

    def log_density(self, p: Tensor, g: Tensor, settings: NoiseSettings) -> Tensor:
        """Normal log-density, the distance clamped in standard deviations."""
        std = GAUSSIAN_STD * settings.scale
        distance = ((g - p) / std).clamp(*settings.clamp)
        return -0.5 * distance.square() - math.log(std) - _LOG_SQRT_2PI


class Dirichlet:
    """Gamma draws of shape ``p / scale``, whose shares are Dirichlet distributed."""

    clamp = (-5.0, 3.0)
    threshold = 0.05
    absent = 0.0

    def draw(self, p: Tensor, settings: NoiseSettings, generator: torch.Generator | None) -> Tensor:
        """Gamma draws; 0 where ``p`` is 0."""
        tiny = torch.finfo(p.dtype).tiny
        shape = (p / settings.scale).clamp_min(tiny)
        return torch.where(p > 0, torch._standard_gamma(shape, generator=generator).clamp_min(tiny), 0.0)

    def weights(self, g: Tensor, tau: float) -> Tensor:
        """``g / sum(g)``."""
        return g / g.sum(-1, keepdim=True)

    def log_density(self, p: Tensor, g: Tensor, settings: NoiseSettings) -> Tensor:
        """Log-density of Gamma(p / scale, 1), clamped."""
        tiny = torch.finfo(p.dtype).tiny
        shape, draw = (p / settings.scale).clamp_min(tiny), g.clamp_min(tiny)
        return ((shape - 1) * draw.log() - draw - torch.lgamma(shape)).clamp(*settings.clamp)


NOISES: dict[str, Noise] = {"gumbel": Gumbel(), "gaussian": Gaussian(), "dirichlet": Dirichlet()}


def noise_named(name: Any) -> Noise:
    """The noise called ``name``."""
    check_choice("noise", name, tuple(NOISES))
    return NOISES[name]


def check_noise(
    name: Any, scale: Any, tau: Any, clamp: Any, eps: Any, *, may_be_silent: bool = False
) -> tuple[Noise, NoiseSettings]:
    """The noise and its settings, or an error; a sampler (``may_be_silent``) may also add none."""
    noise = noise_named(name)
    silent = may_be_silent and name != "dirichlet"
    check_number("noise_scale", scale, low=0.0, low_open=not silent, high_open=True)
    check_number("tau", tau, low=0.0, low_open=True, high_open=True)
    check_number("eps", eps, low=0.0, low_open=True, high=1.0)
    return noise, NoiseSettings(float(scale), float(tau), _check_clamp(clamp, noise.clamp), float(eps))


def _check_clamp(clamp: Any, default: tuple[float, float]) -> tuple[float, float]:
    if clamp is None:
        return default
    if not isinstance(clamp, tuple | list) or len(clamp) != 2:
        bad_type("clamp", clamp, "None or a pair (low, high)")
    low, high = (check_number("clamp", value) for value in clamp)
    if low >= high:
        bad_value("clamp", clamp, "a pair (low, high) with low < high")
    return low, high
