"""Hyper-parameters as unconstrained numbers, with the noise in which a response to them is learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_number, check_sizes
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, check_choice

__all__ = ["HyperParam", "HyperSample", "HyperSpace"]

#: softplus is the identity to float32 from here on, and expm1 overflows later.
_LINEAR_FROM = 20.0


def inverse_softplus(x: Tensor) -> Tensor:
    """The number whose softplus is ``x`` > 0."""
    return torch.where(x > _LINEAR_FROM, x, torch.log(torch.expm1(x.clamp(max=_LINEAR_FROM))))


@dataclass(frozen=True)
class HyperParam:
    """One hyper-parameter and the range of its values.

    Values come from an unconstrained λ: ``low + (high - low) sigmoid(λ)``, ``low + softplus(λ)``,
    ``high - softplus(λ)`` or λ itself, as the ends are finite or not; discrete ones are rounded down.

    Attributes:
        name: by which values are found.
        init: first value, inside the range.
        low: lower end, not reached; may be ``-inf``.
        high: upper end, not reached; may be ``inf``. Dropout rates need one below 1.
        scale: standard deviation of λ's noise at the start, positive.
        discrete: whether the value is rounded down. Its gradient is then zero, the response still has one.
        per_example: whether every row of a batch may have its own value; False for what a batch shares.
        response: what the layers are given: ``"raw"`` for λ, or ``"value"`` for the value before rounding.

    Raises:
        ArgumentTypeError: a field has the wrong type.
        ArgumentValueError: an empty range, ``init`` not inside, a scale that is not positive, or an unknown response.

    Example:
        >>> HyperParam("dropout", 0.3, high=0.9).name
        'dropout'

    Paper: Self-Tuning Networks, arXiv 1903.03088, hyper-parameters.
    """

    name: str
    init: float
    low: float = 0.0
    high: float = 1.0
    scale: float = 0.5
    discrete: bool = False
    per_example: bool = True
    response: str = "raw"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            bad_type("name", self.name, "a string that is not empty")
        low, high = check_number("low", self.low), check_number("high", self.high)
        if low >= high:
            raise ArgumentValueError(f"low must be below high for {self.name!r}, got {low!r} and {high!r}")
        check_number("init", self.init, low=low, high=high, low_open=True, high_open=True)
        check_number("scale", self.scale, low_open=True, low=0.0, high_open=True)
        check_choice("response", self.response, ("raw", "value"))

    def smooth(self, raw: Tensor) -> Tensor:
        """Value of λ before rounding."""
        if math.isfinite(self.low):
            if math.isfinite(self.high):
                return self.low + (self.high - self.low) * torch.sigmoid(raw)
            return self.low + F.softplus(raw)
        return self.high - F.softplus(raw) if math.isfinite(self.high) else raw

    def value(self, raw: Tensor) -> Tensor:
        """Value of λ."""
        smooth = self.smooth(raw)
        return smooth.floor() if self.discrete else smooth

    def raw(self, value: Tensor) -> Tensor:
        """The λ of a value inside the range."""
        if math.isfinite(self.low):
            if math.isfinite(self.high):
                return torch.logit((value - self.low) / (self.high - self.low))
            return inverse_softplus(value - self.low)
        return inverse_softplus(self.high - value) if math.isfinite(self.high) else value


class HyperSample(NamedTuple):
    """Perturbed hyper-parameters of a batch.

    Attributes:
        raw: λ of every row, (B, H).
        response: what the layers are given, (B, H).
        values: name -> values, (B,).
    """

    raw: Tensor
    response: Tensor
    values: dict[str, Tensor]


class HyperSpace(nn.Module):
    """Several hyper-parameters: λ in ``raw`` and, through softplus, the standard deviations of their noise in ``rho``.

    Args:
        params: the hyper-parameters, at least one, names all different.

    Raises:
        ArgumentTypeError: not a sequence of :class:`HyperParam`.
        ArgumentValueError: none, or a name twice.

    Example:
        >>> space = HyperSpace([HyperParam("dropout", 0.3, high=0.9), HyperParam("decay", 0.01, high=float("inf"))])
        >>> sample = space.sample(4)
        >>> sample.raw.shape, sample.values["dropout"].shape, round(space.current()["decay"], 4)
        (torch.Size([4, 2]), torch.Size([4]), 0.01)

    Paper: Self-Tuning Networks, arXiv 1903.03088, algorithm 1.
    """

    def __init__(self, params: Sequence[HyperParam]) -> None:
        super().__init__()
        self.params = tuple(params)
        if not all(isinstance(param, HyperParam) for param in self.params):
            raise ArgumentTypeError("params must be HyperParam objects")
        names = [param.name for param in self.params]
        if not names or len(set(names)) < len(names):
            raise ArgumentValueError(f"params must hold at least one name and none twice, got {names}")
        inits = [param.raw(torch.tensor(param.init, dtype=torch.float64)) for param in self.params]
        scales = torch.tensor([param.scale for param in self.params], dtype=torch.float64)
        self.raw = nn.Parameter(torch.stack(inits).float())
        self.rho = nn.Parameter(inverse_softplus(scales).float())

    @property
    def names(self) -> list[str]:
        """Names in the order of λ."""
        return [param.name for param in self.params]

    def __len__(self) -> int:
        """How many hyper-parameters there are."""
        return len(self.params)

    def noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal numbers, (B, H); the rows of a hyper-parameter that is shared are alike."""
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 0:
            check_sizes(batch=batch)
        eps = torch.randn(batch, len(self), generator=generator).to(self.raw)
        if batch:
            shared = torch.tensor([not param.per_example for param in self.params], device=eps.device)
            eps = torch.where(shared, eps[:1], eps)
        return eps

    def perturbed(self, eps: Tensor) -> Tensor:
        """``λ + softplus(ρ) ε``, differentiable in both."""
        return self.raw + F.softplus(self.rho) * eps

    def response(self, raw: Tensor) -> Tensor:
        """What the layers are given for ``raw``, (…, H)."""
        columns = zip(self.params, raw.unbind(-1), strict=True)
        return torch.stack([param.smooth(c) if param.response == "value" else c for param, c in columns], -1)

    def values(self, raw: Tensor) -> dict[str, Tensor]:
        """Name -> values of ``raw``, (…, H) -> (…)."""
        return {p.name: p.value(column) for p, column in zip(self.params, raw.unbind(-1), strict=True)}

    @torch.no_grad()
    def sample(self, batch: int, generator: torch.Generator | None = None) -> HyperSample:
        """Hyper-parameters around the present ones, one draw per row, without gradients.

        Args:
            batch: B; 0 gives empty tensors.
            generator: of the noise, on the CPU.
        """
        raw = self.perturbed(self.noise(batch, generator))
        return HyperSample(raw, self.response(raw), self.values(raw))

    @torch.no_grad()
    def current(self) -> dict[str, float]:
        """Name -> present value, without noise."""
        return {name: float(value) for name, value in self.values(self.raw).items()}

    def entropy(self) -> Tensor:
        """Entropy of the noise in nats, ``Σ log(softplus(ρ) √(2πe))``."""
        return (F.softplus(self.rho).log() + 0.5 * math.log(2.0 * math.pi * math.e)).sum()
