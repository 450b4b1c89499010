"""What the masks of a network did over the samples that went through it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from softgate.dynamic.dynamic_conv import DynamicConv2d
from softgate.dynamic.filter_costs import FilterCosts, Wiring
from softgate.errors import StateError

__all__ = ["DynamicStats"]


@dataclass(frozen=True)
class DynamicStats:
    """Figures of the samples that a dynamic network has seen in eval mode since it was last set to it.

    Attributes:
        samples: how many.
        active: name of a layer -> mean share of its filters that ran.
        flops: mean multiply-adds of a sample, predictors included.
        costs: the same layer by layer, :class:`softgate.dynamic.FilterCosts`.
        mask_accuracy: share of filters about which predictors and targets agree.
        dynamic_fraction: share of filters that ran for some samples and not for others.
        not_finite: how many scores of filters were NaN or infinite; such filters are kept.
        silent: name of a layer -> for how many samples it ran no filter at all; layers without such are left out.

    Paper: arXiv 2110.08232.
    """

    samples: int
    active: dict[str, float]
    flops: float
    costs: FilterCosts
    mask_accuracy: float
    dynamic_fraction: float
    not_finite: int
    silent: dict[str, int]

    @property
    def reduction(self) -> float:
        """Share of the dense network's multiply-adds that was saved."""
        return self.costs.reduction


class FilterCounter:
    """Sums over the batches of a network in eval mode."""

    def __init__(self) -> None:
        self.samples = 0
        self.counts: dict[str, Tensor] = {}
        self.costs: dict[str, Tensor] = {}
        self.agreed: list[Tensor] = []
        self.asked = 0
        self.not_finite: list[Tensor] = []
        self.silent: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, layers: Mapping[str, DynamicConv2d], wiring: Wiring) -> None:
        """Count what the layers remember of a batch; nothing waits for a device here."""
        active: dict[str, Tensor] = {}
        for name, layer in layers.items():
            last = layer.last
            assert last is not None
            active[name] = last.mask.sum(1)
            count = last.mask.sum(0)
            self.counts[name] = self.counts[name] + count if name in self.counts else count
            self.silent.setdefault(name, []).append((active[name] == 0).sum())
            agreed = (last.logits <= 0.0) != last.target
            self.agreed.append(agreed.sum())
            self.asked += agreed.numel()
            self.not_finite.append((~last.scores.isfinite()).sum())
        self.samples += len(next(iter(active.values())))
        for name, costs in wiring.sample_costs(active).items():
            total = costs.sum()
            self.costs[name] = self.costs[name] + total if name in self.costs else total

    def summary(self, wiring: Wiring) -> DynamicStats:
        """The figures."""
        if self.samples == 0:
            raise StateError("there are no statistics yet: call the model on samples in eval mode")
        costs = wiring.costs({name: total[None] / self.samples for name, total in self.costs.items()})
        counts = torch.cat([count for count in self.counts.values()])
        silent = {name: int(torch.stack(found).sum()) for name, found in self.silent.items()}
        silent = {name: found for name, found in silent.items() if found}
        if silent:
            warnings.warn(
                f"no filter ran for some samples, so that what follows sees zeros: {silent} (layer: samples)",
                stacklevel=3,
            )
        varies = (counts > 0) & (counts < self.samples)
        return DynamicStats(
            samples=self.samples,
            active={name: float(count.double().mean()) / self.samples for name, count in self.counts.items()},
            flops=costs.total * (1.0 - costs.reduction),
            costs=costs,
            mask_accuracy=float(torch.stack(self.agreed).sum()) / self.asked,
            dynamic_fraction=float(varies.double().mean()),
            not_finite=int(torch.stack(self.not_finite).sum()),
            silent=silent,
        )
