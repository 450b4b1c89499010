"""Projected gradient ascent in a ball around an input: the search for the worst perturbation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice

__all__ = ["PGD", "pgd_attack"]

_NORMS = ("inf", "2")


@dataclass(frozen=True)
class PGD:
    """Settings of :func:`pgd_attack`; calling it with ``(objective, x)`` runs the attack.

    Attributes:
        eps: radius of the ball, at least 0, in units of the input.
        steps: ascent steps, at least 0 (0 gives the random start).
        step_size: length of a step in the norm; None takes ``2.5 eps / steps``.
        norm: ``"inf"`` (every entry moves by at most eps) or ``"2"`` (Euclidean length of a sample).
        bounds: smallest and largest value that an input can have, or None.
        random_start: start anywhere in the ball; False starts at the input.

    Raises:
        ArgumentTypeError: a setting has the wrong type.
        ArgumentValueError: a setting is not allowed.

    Example:
        >>> PGD(eps=0.1, steps=1, step_size=0.1, bounds=None, random_start=False)(lambda x: x.sum(1), torch.zeros(1, 2))
        tensor([[0.1000, 0.1000]])
    """

    eps: float = 8 / 255
    steps: int = 10
    step_size: float | None = None
    norm: str = "inf"
    bounds: tuple[float, float] | None = (0.0, 1.0)
    random_start: bool = True

    def __post_init__(self) -> None:
        check_number("eps", self.eps, low=0.0, high_open=True)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            bad_type("steps", self.steps, "an int")
        if self.steps < 0:
            bad_value("steps", self.steps, "at least 0")
        if self.step_size is not None:
            check_number("step_size", self.step_size, low=0.0, high_open=True)
        check_choice("norm", self.norm, _NORMS)
        if self.bounds is not None:
            if not isinstance(self.bounds, tuple) or len(self.bounds) != 2:
                bad_type("bounds", self.bounds, "None or a pair of numbers")
            low, high = (check_number("bounds", bound) for bound in self.bounds)
            if low > high:
                bad_value("bounds", self.bounds, "a pair (smallest, largest)")

    def __call__(
        self, objective: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """See :func:`pgd_attack`."""
        check_float_tensor("x", x)
        centre = x.detach()
        if self.bounds is not None and centre.numel():
            low, high = (float(value) for value in centre.aminmax())
            if low < self.bounds[0] or high > self.bounds[1]:
                raise ArgumentValueError(f"x must lie within bounds={self.bounds}, got values in [{low}, {high}]")
        step = 2.5 * self.eps / max(self.steps, 1) if self.step_size is None else self.step_size
        moved = centre + self._random(centre, generator) if self.random_start else centre.clone()
        moved = self._project(moved, centre)
        for _ in range(self.steps):
            with torch.enable_grad():
                leaf = moved.requires_grad_()
                (slope,) = torch.autograd.grad(_summed(objective(leaf), leaf), leaf)
            moved = self._project(leaf.detach() + step * self._direction(slope), centre)
        return moved

    def _random(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.norm == "inf":
            return self.eps * (2.0 * torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) - 1.0)
        direction = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        count = x[0].numel() if len(x) else 1
        radius = torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device) ** (1.0 / max(count, 1))
        return self.eps * self._direction(direction) * _per_sample(radius, x)

    def _direction(self, slope: Tensor) -> Tensor:
        """The step of length one along which a linear objective grows fastest."""
        if self.norm == "inf":
            return slope.sign()
        length = slope.flatten(1).norm(dim=1)
        return slope / _per_sample(length.clamp_min(torch.finfo(slope.dtype).tiny), slope)

    def _project(self, moved: Tensor, centre: Tensor) -> Tensor:
        """The nearest point of the ball, then of the box: for a centre in the box that stays in the ball."""
        offset = moved - centre
        if self.norm == "inf":
            offset = offset.clamp(-self.eps, self.eps)
        else:
            length = offset.flatten(1).norm(dim=1).clamp_min(torch.finfo(offset.dtype).tiny)
            offset = offset * _per_sample((self.eps / length).clamp(max=1.0), offset)
        moved = centre + offset
        return moved if self.bounds is None else moved.clamp(*self.bounds)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def _summed(objective: Any, x: Tensor) -> Tensor:
    if not isinstance(objective, Tensor) or objective.shape not in (x.shape[:1], torch.Size(())):
        bad_value("objective", getattr(objective, "shape", objective), f"one number per sample, shape ({len(x)},)")
    return objective.sum()


def pgd_attack(
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    eps: float = 8 / 255,
    steps: int = 10,
    step_size: float | None = None,
    norm: str = "inf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Perturb every sample within a ball so that ``objective`` grows: projected gradient descent (ascent).

    The model keeps its mode (call ``model.eval()`` first if batch statistics and dropout shall not take part), and its
    parameters get no gradient.

    Args:
        objective: perturbed inputs -> one number per sample, ``(N,)``, such as the loss with ``reduction="none"``.
        x: inputs, samples first, within ``bounds``.
        eps: radius of the ball, at least 0.
        steps: ascent steps.
        step_size: length of a step; None takes ``2.5 eps / steps``.
        norm: ``"inf"`` or ``"2"``.
        bounds: smallest and largest value of an input, or None.
        random_start: start anywhere in the ball; an objective that is smallest at ``x`` has no slope there.
        generator: source of randomness of the start, on the device of ``x``.

    Returns:
        The last iterate, same shape and dtype as ``x``, detached; within ``eps`` of it (up to rounding) and in
        ``bounds``.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a setting is not allowed, ``x`` is outside ``bounds``, or ``objective`` gives another shape.

    Example:
        >>> pgd_attack(lambda x: -x[:, 0], torch.tensor([[0.5, 0.05]]), eps=0.1, steps=3, random_start=False)
        tensor([[0.4000, 0.0500]])

    Source: Madry et al., arXiv 1706.06083, eq. 2.3; used in arXiv 2304.07288, sec. 6.
    """
    return PGD(eps, steps, step_size, norm, bounds, random_start)(objective, x, generator)
