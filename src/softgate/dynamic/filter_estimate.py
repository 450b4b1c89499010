"""What dynamic filters will save, told before any training from how a trained network fires."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.dynamic._conv_patterns import Include
from softgate.dynamic.dynamic_network import DynamicNetwork, prune_dynamic
from softgate.dynamic.filter_costs import FilterCosts
from softgate.dynamic.filter_masks import TOLERANCE, check_mass, mass_order
from softgate.errors import ArgumentValueError, bad_type

__all__ = ["choose_r", "estimate_flops"]

#: Batches of images (B, C, H, W), pairs of such with labels, or all images as one tensor or pair.
Images = Any


def image_batches(data: Images, batch_size: int = 256) -> Iterator[Tensor]:
    """The images of ``data``, batch by batch."""
    if isinstance(data, Tensor):
        yield from data.split(batch_size)
    elif isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        yield from data[0].split(batch_size)
    elif isinstance(data, Iterable) and not isinstance(data, str):
        for item in data:
            images = item[0] if isinstance(item, tuple | list) else item
            if not isinstance(images, Tensor):
                bad_type("loader", images, "batches of images, or of images with labels")
            yield images
    else:
        bad_type("loader", data, "a tensor, a pair (images, labels) or an iterable of batches")


class FiringTable:
    """How every layer of a network fires for every sample: running sums of the shares, strongest filter first.

    Args:
        model: a trained network, dynamic or not.
        loader: see :data:`Images`.
        include: see :func:`softgate.dynamic.prune_dynamic`.
    """

    def __init__(self, model: nn.Module, loader: Images, include: Include = "auto") -> None:
        batches = image_batches(loader)
        first = next(batches, None)
        if first is None or len(first) == 0:
            raise ArgumentValueError("loader must hold at least one sample, got none")
        made = model if isinstance(model, DynamicNetwork) else prune_dynamic(model, 1.0, first[:1], include)
        self.network, self.wiring = made, made.wiring
        self.alive: dict[str, list[Tensor]] = {name: [] for name in made.layers}
        self.sums: dict[str, list[Tensor]] = {name: [] for name in made.layers}
        modes = {module: module.training for module in made.modules()}
        counter = made.counter
        try:
            made.eval()
            with torch.no_grad(), made.masking("none"):
                self._add(first)
                for batch in batches:
                    self._add(batch)
        finally:
            for module, mode in modes.items():
                module.training = mode
            made.counter = counter  # an estimate is no statistic of masks

    def _add(self, images: Tensor) -> None:
        weight = next(self.network.parameters())
        self.network(images.to(device=weight.device, dtype=weight.dtype))
        for name, layer in self.network.layers.items():
            assert layer.last is not None
            scores = layer.last.scores
            _, mass = mass_order(scores)
            spared = (~scores.isfinite()).sum(1)  # these are kept, and rank last among the shares
            self.alive[name].append((mass > TOLERANCE).sum(1) + spared)
            self.sums[name].append(mass.cumsum(-1))

    def active(self, r: float) -> dict[str, Tensor]:
        """Filters (N,) that targets keep in every layer at ``r``."""
        found = {}
        for name, layer in self.network.layers.items():
            alive = torch.cat(self.alive[name])
            if r < 1.0:
                under = torch.cat([(sums - r <= TOLERANCE).sum(1) for sums in self.sums[name]])
                alive = torch.minimum(alive, under)
            found[name] = alive.clamp_min(layer.min_keep) * layer.block_size
        return found

    def costs(self, r: float) -> FilterCosts:
        """Mean costs of the samples at ``r``."""
        return self.wiring.costs(self.wiring.sample_costs(self.active(r)))


def estimate_flops(model: nn.Module, loader: Images, r: float, include: Include = "auto") -> FilterCosts:
    """Multiply-adds that a network will need once its filters are dynamic; nothing is trained.

    The targets of the predictors are taken on the network as it is: what predictors that find all of them would let
    run.

    Args:
        model: a trained network that ``torch.fx`` can trace, or one of :func:`softgate.dynamic.prune_dynamic`.
        loader: images as one tensor, a pair of images and labels, or an iterable of batches of either; a few hundred
            samples are enough.
        r: share of the firing to keep, in (0, 1].
        include: which convolutions of a network that is not dynamic yet, see :func:`softgate.dynamic.prune_dynamic`.

    Returns:
        :class:`softgate.dynamic.FilterCosts`, in total and layer by layer.

    Raises:
        ArgumentTypeError: data of another form.
        ArgumentValueError: no samples, ``r`` outside (0, 1], or no convolution that fits.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        >>> images = torch.randn(32, 3, 8, 8)
        >>> estimate_flops(net, images, r=0.5).reduction > estimate_flops(net, images, r=0.9).reduction
        True

    Paper: Fire Together Wire Together, arXiv 2110.08232, FLOPs reduction before training.
    """
    check_mass(r)
    return FiringTable(model, loader, include).costs(r)


def choose_r(model: nn.Module, loader: Images, target_reduction: float, include: Include = "auto") -> float:
    """The largest ``r`` with which :func:`estimate_flops` promises a reduction of at least ``target_reduction``.

    Args:
        model: see :func:`estimate_flops`.
        loader: likewise.
        target_reduction: share of the multiply-adds to save, in (0, 1).
        include: likewise.

    Returns:
        ``r`` in (0, 1], to four digits.

    Raises:
        ArgumentTypeError: data of another form, or a target that is no number.
        ArgumentValueError: no samples, a target outside (0, 1), or one that even the smallest ``r`` misses.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        >>> images = torch.randn(32, 3, 8, 8)
        >>> r = choose_r(net, images, target_reduction=0.5)
        >>> estimate_flops(net, images, r).reduction >= 0.5
        True

    Paper: Fire Together Wire Together, arXiv 2110.08232, one hyper-parameter sets the budget.
    """
    check_number("target_reduction", target_reduction, low=0.0, high=1.0, low_open=True, high_open=True)
    table = FiringTable(model, loader, include)
    steps = 10_000

    def saves(place: int) -> bool:
        return table.costs(place / steps).reduction >= target_reduction

    if not saves(1):
        most = table.costs(1 / steps).reduction
        raise ArgumentValueError(f"target_reduction must be at most {most:.4f} for this model, got {target_reduction}")
    low, high = 1, steps  # a larger r saves less
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if saves(middle) else (low, middle - 1)
    return low / steps
