r"""What is known of how an activation changes when its input changes.

Every activation here is written as

    Δφ = through Δa + carry δ,    |δ of group j| ≤ |look Δa of group j|,

with fixed matrices: a part that passes straight through, and for every group a part of which only a length is known.
GroupSort keeps the sum of each group, so the sum passes through and of the differences only their length is bounded.
A Householder activation passes what is orthogonal to its vector. A slope in [α, β] passes its mean slope. The quadratic
constraints of arXiv 2401.14033 with all multipliers say the same (Finsler's lemma); with S = P = 0 nothing passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__: list[str] = []

KINDS = ("relu", "slope", "groupsort", "maxmin", "householder", "maxmin_rr")


@dataclass(frozen=True)
class Increments:
    """One layer of activations of width n; see the module.

    Attributes:
        through: (n, n).
        carry: (n, k).
        look: (k, n).
        group: (k,), the number of each entry's group, 0, 1, ….
    """

    through: Tensor
    carry: Tensor
    look: Tensor
    group: Tensor


@dataclass(frozen=True)
class Activation:
    """An activation between two layers.

    Attributes:
        kind: one of :data:`KINDS`; ``maxmin_rr`` is MaxMin written with ReLU, the baseline of the paper.
        group_size: entries per group.
        vectors: for ``householder``, unit vectors, (groups, group_size).
        slope: for ``slope``, its least and largest value.
        order: position of the entry that is k-th when groups are consecutive; None if they are so already.
    """

    kind: str
    group_size: int = 1
    vectors: Tensor | None = None
    slope: tuple[float, float] = (0.0, 1.0)
    order: Tensor | None = field(default=None, repr=False)

    @property
    def stretch(self) -> float:
        """Lipschitz constant in the Euclidean norm."""
        return max(map(abs, self.slope)) if self.kind == "slope" else 1.0

    @property
    def stretch_of_largest(self) -> float:
        """Lipschitz constant in the maximum norm."""
        if self.kind != "householder":
            return self.stretch
        assert self.vectors is not None
        mirrors = torch.eye(self.group_size) - 2.0 * self.vectors[:, :, None] * self.vectors[:, None, :]
        return max(1.0, float(mirrors.abs().sum(2).max()))

    @property
    def is_elementwise(self) -> bool:
        """Whether it is described by its slope."""
        return self.kind in ("relu", "slope")

    def unknowns(self, width: int, multiplier: str) -> int:
        """How many entries δ has for ``width`` outputs."""
        if multiplier == "diagonal" or self.kind not in ("groupsort", "householder"):
            return width
        return width // self.group_size * (1 if self.kind == "householder" else self.group_size - 1)

    def increments(self, width: int, multiplier: str) -> Increments:
        """What is known of ``width`` outputs, with the ``"full"`` multipliers or the ``"diagonal"`` ones."""
        if self.is_elementwise:
            return _of_slope(self.slope, width)
        if self.kind == "maxmin_rr":
            return _of_rewritten_pairs(width)
        free, tied = self._bases(width // self.group_size)
        if multiplier == "full":
            return self._ordered(_with_bases(free, tied))
        return self._ordered(_without_passing(free, tied))

    def _bases(self, groups: int) -> tuple[Tensor, Tensor]:
        """Orthonormal bases of what passes and of what does not, (groups, group_size, ·)."""
        size = self.group_size
        if self.kind == "householder":
            assert self.vectors is not None
            across = self.vectors[:, :, None]
            return _complement(across), across
        along = torch.full((groups, size, 1), 1.0 / math.sqrt(size), dtype=torch.float64)
        return along, _complement(along)

    def _ordered(self, found: Increments) -> Increments:
        if self.order is None:
            return found
        back = self.order.argsort()
        through = found.through[back][:, back]
        return Increments(through, found.carry[back], found.look[:, back], found.group)


def _complement(vectors: Tensor) -> Tensor:
    """Orthonormal bases of the complements of unit vectors (groups, size, 1): (groups, size, size - 1)."""
    return torch.linalg.qr(vectors, mode="complete").Q[:, :, 1:]


def _with_bases(free: Tensor, tied: Tensor) -> Increments:
    carry = torch.block_diag(*tied)
    through = torch.block_diag(*(free @ free.mT))
    groups = torch.arange(len(tied)).repeat_interleave(tied.shape[-1])
    return Increments(through, carry, carry.mT, groups)


def _without_passing(free: Tensor, tied: Tensor) -> Increments:
    """S = P = 0: of both parts of every group only the lengths are known, each with a multiplier of its own."""
    carry = torch.block_diag(*torch.cat((free, tied), -1))
    parts = torch.tensor([0] * free.shape[-1] + [1] * tied.shape[-1])
    groups = (2 * torch.arange(len(tied))[:, None] + parts).flatten()
    used = groups.unique(return_inverse=True)[1]  # groups of one have no second part
    return Increments(torch.zeros(len(carry), len(carry), dtype=torch.float64), carry, carry.mT, used)


def _of_slope(slope: tuple[float, float], width: int) -> Increments:
    eye = torch.eye(width, dtype=torch.float64)
    low, high = slope
    return Increments(0.5 * (low + high) * eye, 0.5 * (high - low) * eye, eye, torch.arange(width))


def _of_rewritten_pairs(width: int) -> Increments:
    """MaxMin(x) = H x + G relu(R x), where ReLU is only known to have slopes in [0, 1]."""
    look = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    plain = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    bent = torch.tensor([[-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    pairs = width // 2
    blocks = (plain + 0.5 * bent @ look, 0.5 * bent, look)
    through, carry, seen = (torch.block_diag(*([block] * pairs)) for block in blocks)
    return Increments(through, carry, seen, torch.arange(width))
