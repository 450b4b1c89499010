"""Two levels of pixel-wise gates: every pair of scales first, then the mixtures of the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_float_tensor, check_sizes
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice
from softgate.routing._choice import widened
from softgate.routing._pixel_logits import PixelLogits
from softgate.routing.balance_losses import importance_loss
from softgate.routing.pixel_gate import PixelwiseGate
from softgate.routing.pixel_mixture import pixelwise_mixture

__all__ = ["HierarchicalMixture", "MixtureOutput"]

Pairs = Literal["all"] | Sequence[tuple[int, int]]


@dataclass(frozen=True)
class MixtureOutput:
    """What :class:`HierarchicalMixture` makes of n maps, by way of P pairs.

    Attributes:
        maps: n + P + 1 maps (B, 1, H, W): the experts' own, the pairs' mixtures, the final one.
        levels: 0, 1 or 2 for each of ``maps``.
        pair_weights: (B, P, 2, h, w), summing to one over the two.
        weights: (B, P, h, w), summing to one over the pairs.
        attention: (B, 1, h, w) in (0, 1), how crowded a pixel seems to the second gate; None without a mask.
        importance: scalar, the importance losses of the pairs, summed.
    """

    maps: tuple[Tensor, ...]
    levels: tuple[int, ...]
    pair_weights: Tensor
    weights: Tensor
    attention: Tensor | None
    importance: Tensor

    @property
    def final(self) -> Tensor:
        """The final map (B, 1, H, W)."""
        return self.maps[-1]


class HierarchicalMixture(nn.Module):
    """Merges maps of several scales pixel by pixel: within pairs of scales, and then over the pairs.

    Every scale competes with every other one in a pair of its own, so none can starve at the first level. The second
    gate sees the features times an attention mask, to be trained to mark crowded pixels. The merge is generic: maps
    of density, depth or logits of one class.

    Args:
        n_scales: number of maps, at least two.
        feature_channels: channels of the features that the gates see.
        pairs: ``"all"``, or pairs of indices into the maps.
        mask: use the attention mask.
        gate_hidden: channels of the first gate's 3×3 convolutions; by default a half of ``feature_channels``.
        top_hidden: those of the second gate; by default 2, 4, 2, 1 and 1/2 times ``feature_channels``.
        mask_hidden: those of the attention mask; by default a half and a quarter.
        relu_logits: as in :class:`PixelwiseGate`.
        strict: as in :class:`PixelwiseGate`.

    Shapes: n_scales maps (B, 1, H_i, W_i), the first one the largest, and features (B, feature_channels, h, w) with
    h ≤ H_1, w ≤ W_1 -> :class:`MixtureOutput`, all maps of the size of the first.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a size or a pair is not allowed, or shapes do not fit.
        StateError: with ``strict``, logits that are not finite.

    Example:
        >>> import torch
        >>> merge = HierarchicalMixture(3, 8)
        >>> found = merge([torch.rand(2, 1, s, s) for s in (16, 8, 4)], torch.randn(2, 8, 4, 4))
        >>> len(found.maps), found.final.shape, found.pair_weights.shape
        (7, torch.Size([2, 1, 16, 16]), torch.Size([2, 3, 2, 4, 4]))

    Paper: Redesigning Multi-Scale Neural Network for Crowd Counting, arXiv 2208.02894, section 3.
    """

    def __init__(
        self,
        n_scales: int,
        feature_channels: int,
        pairs: Pairs = "all",
        mask: bool = True,
        *,
        gate_hidden: Sequence[int] | None = None,
        top_hidden: Sequence[int] | None = None,
        mask_hidden: Sequence[int] | None = None,
        relu_logits: bool = False,
        strict: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(n_scales=n_scales, feature_channels=feature_channels)
        if n_scales < 2:
            bad_value("n_scales", n_scales, "at least 2")
        if not isinstance(mask, bool):
            bad_type("mask", mask, "a bool")
        self.n_scales, self.pairs = n_scales, _checked_pairs(pairs, n_scales)
        whole, half, count = feature_channels, max(1, feature_channels // 2), len(self.pairs)
        if gate_hidden is None:
            gate_hidden = (half,)
        if top_hidden is None:
            top_hidden = (2 * whole, 4 * whole, 2 * whole, whole, half)
        if mask_hidden is None:
            mask_hidden = (half, max(1, whole // 4))
        self.pair_gate = PixelwiseGate(whole, 2 * count, gate_hidden, count, relu_logits, strict=strict)
        self.top_gate = PixelwiseGate(whole, count, top_hidden, 1, relu_logits, strict=strict)
        self.mask = PixelLogits(whole, 1, mask_hidden) if mask else None

    def forward(self, maps: Sequence[Tensor], features: Tensor) -> MixtureOutput:
        """Merge ``maps`` by gates on ``features``."""
        experts = self._aligned(maps)
        pair_weights = self.pair_gate(features)
        mixed = [_merge([experts[i], experts[j]], pair_weights[:, place]) for place, (i, j) in enumerate(self.pairs)]
        attention = None if self.mask is None else torch.sigmoid(widened(self.mask(features)))
        weights = self.top_gate(features if attention is None else attention.to(features.dtype) * features)[:, 0]
        importance = torch.stack([importance_loss(w) for w in pair_weights.unbind(1)]).sum()
        found = (*experts, *mixed, _merge(mixed, weights))
        levels = (*(0 for _ in experts), *(1 for _ in mixed), 2)
        return MixtureOutput(found, levels, pair_weights, weights, attention, importance)

    def _aligned(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps at the size of the first."""
        if isinstance(maps, Tensor) or len(maps) != self.n_scales:
            raise ArgumentValueError(f"maps must be {self.n_scales} tensors, got {len(maps)}")
        for index, item in enumerate(maps):
            check_float_tensor(f"maps[{index}]", item)
            if (
                item.ndim != 4
                or item.shape[1] != 1
                or any(low > high for low, high in zip(item.shape[-2:], maps[0].shape[-2:], strict=True))
            ):
                bad_value(f"maps[{index}]", tuple(item.shape), "of shape (B, 1, H, W), no larger than maps[0]")
        size = maps[0].shape[-2:]
        return [item if item.shape[-2:] == size else F.interpolate(item, size, mode="nearest-exact") for item in maps]

    def extra_repr(self) -> str:
        """Sizes."""
        return f"n_scales={self.n_scales}, pairs={self.pairs}"


def _merge(maps: Sequence[Tensor], weights: Tensor) -> Tensor:
    return pixelwise_mixture(torch.cat(list(maps), 1), weights)


def _checked_pairs(pairs: Any, n_scales: int) -> tuple[tuple[int, int], ...]:
    if isinstance(pairs, str):
        check_choice("pairs", pairs, ("all",))
        return tuple(combinations(range(n_scales), 2))
    if not isinstance(pairs, Sequence) or not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs):
        bad_type("pairs", pairs, "'all' or a sequence of pairs of indices")
    for i, j in pairs:
        if not (isinstance(i, int) and isinstance(j, int) and 0 <= i < n_scales and 0 <= j < n_scales and i != j):
            bad_value("pairs", tuple(pairs), f"pairs of two different indices in [0, {n_scales - 1}]")
    if not pairs:
        bad_value("pairs", pairs, "at least one pair")
    return tuple((i, j) for i, j in pairs)
