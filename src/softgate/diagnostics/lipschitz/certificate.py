"""Bounds with what proves them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softgate.diagnostics.lipschitz.forms import Form
from softgate.diagnostics.lipschitz.networks import Network, chain_of, form_of

__all__ = ["LipschitzCertificate"]

#: What is added to every bound for the rounding of its own evaluation.
ROUNDING = 1e-10


@dataclass(frozen=True)
class Proof:
    """Multipliers that prove a bound of one network in one norm.

    Attributes:
        network: what is bounded.
        norm: ``"l2"`` or ``"linf"``.
        row: the output, None for all of them.
        multiplier: ``"full"`` or ``"diagonal"``.
        scaled: the multipliers are logarithms, for the layers one by one.
        multipliers: one per group that can change.
        weights: of the inputs, in the maximum norm.
    """

    network: Network = field(repr=False)
    norm: str
    row: int | None
    multiplier: str
    scaled: bool
    multipliers: Tensor = field(repr=False)
    weights: Tensor | None = field(default=None, repr=False)

    def bound(self) -> float:
        """What the multipliers prove, computed from the weights; infinite if they prove nothing."""
        if self.scaled:
            return chain_of(self.network, self.norm, self.row).bound(self.multipliers) * (1.0 + ROUNDING)
        if not bool((self.multipliers >= 0).all()):
            return math.inf
        form = reduced_form(self.network, self.multiplier, self.norm, self.row)
        if self.norm == "l2":
            return math.sqrt(form.least_squared(self.multipliers)) * (1.0 + ROUNDING)
        assert self.weights is not None
        return form.least_absolute(self.multipliers, self.weights) * (1.0 + ROUNDING)


def reduced_form(network: Network, multiplier: str, norm: str, row: int | None) -> Form:
    """The form without groups and inputs that play no part."""
    form = form_of(network, multiplier, norm, row).pruned()[0]
    return form if norm == "l2" else form.without_idle_inputs()


@dataclass(frozen=True)
class LipschitzCertificate:
    """Result of :func:`lipschitz_bound`.

    Attributes:
        value: upper bound of the Lipschitz constant.
        lower_bound: largest norm of a Jacobian that was found, by sampling: what ``value`` is at least above. With a
            list of weights, of the network without biases.
        product: what the norms of the layers alone give.
        rho: what the matrix inequality bounds: ``value**2`` for ``norm="l2"``, ``value`` for ``"linf"``.
        gap: ``value / lower_bound - 1``.
        norm: ``"l2"`` or ``"linf"``.
        multiplier: ``"full"`` or ``"diagonal"``.
        method: ``"barrier"``, ``"scaling"`` or ``"cvxpy"``.
        converged: whether the solver met ``tol``; the bound holds in any case.
        seconds: time taken.
        proofs: what proves the bound; several for several outputs, or for blocks.
        factor: in front of the product of the blocks' bounds; None where the largest of the proofs counts.
    """

    value: float
    lower_bound: float
    product: float
    rho: float
    gap: float
    norm: str
    multiplier: str
    method: str
    converged: bool
    seconds: float
    proofs: tuple[Proof, ...] = field(repr=False)
    factor: float | None = None

    @property
    def multipliers(self) -> tuple[Tensor, ...]:
        """The multipliers λ of each proof, one per group (their logarithms for ``method="scaling"``)."""
        return tuple(proof.multipliers for proof in self.proofs)

    @property
    def rows(self) -> tuple[float, ...]:
        """What each proof proves: the bounds of the outputs, or of the blocks."""
        return tuple(proof.bound() for proof in self.proofs)

    def verify(self) -> bool:
        """Whether the multipliers prove ``value``, from the weights alone, in float64, without the solver."""
        bounds = self.rows
        proven = max(bounds) if self.factor is None else self.factor * math.prod(bounds)
        return bool(proven <= self.value * (1.0 + ROUNDING))

    def radius(self, margin: float | Tensor) -> float | Tensor:
        """Change of the input in the Euclidean norm that a decision survives for certain, margin / (√2 · value).

        Args:
            margin: the largest logit minus the second, of a network whose outputs are bounded together in
                ``norm="l2"``.
        """
        scale = math.sqrt(2.0) * self.value
        return margin / scale if scale else torch.as_tensor(margin) * math.inf if margin else 0.0
