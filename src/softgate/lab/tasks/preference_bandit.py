"""A contextual bandit with four items per context, whose ratings are corrupted in one of twelve ways."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softgate.errors import check_choice
from softgate.lab import seeds

__all__ = ["SCENARIOS", "PreferenceBandit"]

#: (standard deviation of the noise, probability of an outlier, its scale)
_HEAVY = ((0.5, 0.1, 5.0), (1.0, 0.2, 8.0), (2.0, 0.3, 10.0))
_SHIFT, _ADVERSARIAL, _CAUCHY = (0.5, 1.0, 2.0), (0.1, 0.2, 0.35), (0.3, 0.7, 1.5)
_NOISE = 0.3

#: Corruptions, each at three levels.
SCENARIOS = tuple(f"{kind}-{level}" for kind in ("heavy", "shift", "adv", "cauchy") for level in range(3))


class Contexts(NamedTuple):
    """Contexts with their items.

    Attributes:
        pairs: (N, 4, 20) context and item side by side, what a scorer sees.
        utility: (N, 4) the true utility.
    """

    pairs: Tensor
    utility: Tensor


class PreferenceBandit:
    """Utility ``x W z / sqrt(10) + b z / sqrt(10)`` of an item z in context x; every seed is another world.

    Args:
        seed: of the world and of all draws.
        items: number of items per context.
        dim: number of features of a context and of an item.
    """

    def __init__(self, seed: int, items: int = 4, dim: int = 10) -> None:
        self.seed, self.items, self.dim = seed, items, dim
        stream = seeds.generator(seed, "bandit-world")
        self._bilinear = torch.randn(dim, dim, generator=stream) / math.sqrt(dim)
        self._linear = 0.5 * torch.randn(dim, generator=stream)

    def draw(self, count: int, *stream: int | str) -> Contexts:
        """``count`` fresh contexts; equal ``stream`` gives equal ones."""
        generator = seeds.generator(self.seed, "bandit-contexts", *stream)
        x = torch.randn(count, 1, self.dim, generator=generator)
        z = torch.randn(count, self.items, self.dim, generator=generator)
        utility = ((x @ self._bilinear) * z).sum(-1) + z @ self._linear
        return Contexts(torch.cat((x.expand_as(z), z), -1), utility / math.sqrt(self.dim))

    def ratings(self, contexts: Contexts, scenario: str) -> Tensor:
        """Corrupted ratings (N, 4) of the items: ``heavy`` tails, a spurious feature (``shift``), negation, Cauchy."""
        check_choice("scenario", scenario, SCENARIOS)
        kind, number = scenario.split("-")
        level, u = int(number), contexts.utility
        generator = seeds.generator(self.seed, "bandit-noise", scenario)

        def normal() -> Tensor:
            return torch.randn(u.shape, generator=generator)

        if kind == "heavy":
            width, share, scale = _HEAVY[level]
            outlier = torch.rand(u.shape, generator=generator) < share
            return u + width * normal() + torch.where(outlier, scale * normal(), 0.0)
        if kind == "shift":  # raters like the first feature of an item, whatever it is worth
            return u + _NOISE * normal() + _SHIFT[level] * contexts.pairs[..., self.dim]
        if kind == "adv":
            negated = torch.rand(len(u), 1, generator=generator) < _ADVERSARIAL[level]
            return torch.where(negated, -u, u) + _NOISE * normal()
        return u + _CAUCHY[level] * torch.tan(math.pi * (torch.rand(u.shape, generator=generator) - 0.5))
