"""Convex sets that online learners play in: Euclidean projections, and projections in another norm where they exist."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_sizes
from softgate.errors import ArgumentValueError, bad_type, bad_value

__all__ = ["AffineSet", "Ball", "Box", "Domain", "Simplex", "Unconstrained"]

Map = Callable[[Tensor], Tensor]


class Domain:
    """A convex set given by its projection; the sets below are the common ones.

    Args:
        project: maps points ``(…, d)`` to the nearest points of the set.
        diameter: largest distance of two points of the set, or of those that matter; None if it is unbounded.
        dim: d, where the set knows it.
        project_in_norm: maps ``(x, H)`` to the point of the set with the smallest ``(y - x)ᵀH(y - x)``; H is
            ``(…, d, d)``, or ``(…, d)`` for a diagonal. Only the regime ``"exp_concave"`` needs it.

    Raises:
        ArgumentTypeError: ``project`` is not callable, or a number has the wrong type.
        ArgumentValueError: ``diameter`` is not positive and finite.

    Example:
        >>> half_space = Domain(lambda x: x - x.sum(-1, keepdim=True).clamp(min=0) / x.shape[-1], diameter=2.0)
        >>> half_space.project(torch.tensor([2.0, 0.0])).tolist()
        [1.0, -1.0]
    """

    def __init__(
        self,
        project: Map,
        diameter: float | None = None,
        dim: int | None = None,
        project_in_norm: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        for name, value in (("project", project), ("project_in_norm", project_in_norm)):
            if not callable(value) and (value is not None or name == "project"):
                bad_type(name, value, "a function of a tensor")
        self._project, self._in_norm = project, project_in_norm
        self._describe(diameter, dim)

    def _describe(self, diameter: float | None, dim: int | None) -> None:
        if diameter is not None:
            check_number("diameter", diameter, low=0.0, low_open=True, high_open=True)
        if dim is not None:
            check_sizes(dim=dim)
        self.diameter, self.dim = diameter, dim

    def project(self, x: Tensor) -> Tensor:
        """The nearest points of the set to ``x``, ``(…, d)``."""
        return self._project(x)

    def project_in_norm(self, x: Tensor, H: Tensor) -> Tensor:
        """The points of the set nearest to ``x`` in the norm of ``H``, ``(…, d, d)`` or, for a diagonal, ``(…, d)``."""
        if self._in_norm is None:
            form = "a diagonal" if H.shape == x.shape else "a full"
            raise ArgumentValueError(
                f"domain must know its projection in the norm of {form} matrix for regime 'exp_concave', "
                f"{type(self).__name__} does not: give Domain(project, diameter, project_in_norm=...)"
            )
        return self._in_norm(x, H)

    def start(self, dim: int) -> Tensor:
        """A point of the set to begin with: the projection of the origin, ``(d,)``, float64."""
        return self.project(torch.zeros(dim, dtype=torch.float64))


class Ball(Domain):
    """All points within ``radius`` of the origin.

    Args:
        radius: positive.
        dim: d, if it shall be known without a point.

    Example:
        >>> Ball(1.0).project(torch.tensor([3.0, 4.0])).tolist()
        [0.6000000238418579, 0.800000011920929]
    """

    def __init__(self, radius: float, dim: int | None = None) -> None:
        self.radius = check_number("radius", radius, low=0.0, low_open=True, high_open=True)
        self._describe(2.0 * self.radius, dim)

    def project(self, x: Tensor) -> Tensor:
        """The nearest points of the ball."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.where(norm > self.radius, x * (self.radius / norm), x)

    def project_in_norm(self, x: Tensor, H: Tensor) -> Tensor:
        r"""``(H + μI)^{-1} H x`` with the smallest ``μ >= 0`` that is inside, by Newton's method on ``1/R - 1/‖y(μ)‖``.

        That function is convex in μ, so the iteration rises from 0 to the root without overshooting.
        """
        if bool((torch.linalg.vector_norm(x, dim=-1) <= self.radius).all()):
            return x
        if H.shape == x.shape:
            values, c = H, H * x
        else:
            values, vectors = torch.linalg.eigh(H)
            c = values * (vectors.mT @ x.unsqueeze(-1)).squeeze(-1)
        mu = torch.zeros_like(x[..., :1])
        for _ in range(100):
            y = c / (values + mu)
            norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
            slope = (y.square() / (values + mu)).sum(-1, keepdim=True) / norm.square()
            rise = ((norm - self.radius) / (self.radius * slope)).clamp(min=0.0).nan_to_num()
            mu = mu + rise
            if bool((rise <= 1e-15 * mu).all()):
                break
        y = c / (values + mu)
        y = y if H.shape == x.shape else (vectors @ y.unsqueeze(-1)).squeeze(-1)
        return self.project(y)  # what rounding leaves outside


class Box(Domain):
    """All points between ``low`` and ``high``, entry by entry.

    Args:
        low: a number, or a tensor ``(d,)``.
        high: the same, nowhere below ``low``; both finite.

    Example:
        >>> Box(0.0, 1.0).project(torch.tensor([-1.0, 0.5, 3.0])).tolist()
        [0.0, 0.5, 1.0]
    """

    def __init__(self, low: float | Tensor, high: float | Tensor) -> None:
        bounds = []
        for name, value in (("low", low), ("high", high)):
            if isinstance(value, Tensor):
                bounds.append(check_float_tensor(name, value).double())
            else:
                bounds.append(torch.tensor(check_number(name, value, low=-math.inf), dtype=torch.float64))
            if not bool(bounds[-1].isfinite().all()) or bounds[-1].ndim > 1:
                bad_value(name, value, "a finite number or a finite tensor (d,)")
        self.low, self.high = torch.broadcast_tensors(*bounds)
        if not bool((self.low <= self.high).all()):
            bad_value("high", high, "nowhere below low")
        dim = len(self.low) if self.low.ndim else None
        side = torch.linalg.vector_norm(self.high - self.low)
        self._side = float(side)
        self._describe(float(side) if dim and side > 0 else None, dim)

    def diameter_in(self, dim: int) -> float:
        """Length of the diagonal in ``dim`` dimensions; the box of two numbers has no dimension of its own."""
        return self._side if self.dim else self._side * math.sqrt(dim)

    def project(self, x: Tensor) -> Tensor:
        """Every entry clamped."""
        return torch.clamp(x, self.low.to(x), self.high.to(x))

    def project_in_norm(self, x: Tensor, H: Tensor) -> Tensor:
        """Every entry clamped, which is right in the norm of a diagonal only; a full matrix is refused."""
        if H.shape != x.shape:
            raise ArgumentValueError("domain must not be a Box where the norm is that of a full matrix (regime "
                                     "'exp_concave'): use memory='diagonal' or a Ball")  # fmt: skip
        return self.project(x)


class Simplex(Domain):
    """Probability vectors of ``n`` entries.

    Args:
        n: number of entries, positive.

    Example:
        >>> Simplex(3).project(torch.tensor([0.75, 0.75, -1.0])).tolist()
        [0.5, 0.5, 0.0]
    """

    def __init__(self, n: int) -> None:
        check_sizes(n=n)
        self._describe(math.sqrt(2.0), n)

    def project(self, x: Tensor) -> Tensor:
        """The nearest probability vectors: entries lowered by one threshold and cut at 0, found by sorting."""
        falling = x.sort(-1, descending=True).values
        excess = falling.cumsum(-1) - 1.0
        count = torch.arange(1, x.shape[-1] + 1, device=x.device)
        kept = (falling * count > excess).sum(-1, keepdim=True).clamp(min=1)
        threshold = excess.gather(-1, kept - 1) / kept
        return (x - threshold).clamp(min=0.0)

    def project_in_norm(self, x: Tensor, H: Tensor) -> Tensor:
        """Refused: it is a quadratic program."""
        raise ArgumentValueError("domain must not be a Simplex for regime 'exp_concave': a projection in another norm "
                                 "is a quadratic program; use regime 'simplex' or 'convex'")  # fmt: skip

    def start(self, dim: int) -> Tensor:
        """The uniform distribution."""
        return torch.full((dim,), 1.0 / dim, dtype=torch.float64)


class Unconstrained(Domain):
    """The whole space; ``diameter`` says how far apart the start and the comparators may be.

    Args:
        diameter: positive, or None where no step size asks for it.
    """

    def __init__(self, diameter: float | None = None) -> None:
        self._describe(diameter, None)

    def project(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x

    def project_in_norm(self, x: Tensor, H: Tensor) -> Tensor:
        """``x`` itself."""
        return x


class AffineSet(Domain):
    """Solutions of ``A x = b``; the projection is prepared once.

    Args:
        A: ``(m, d)``.
        b: ``(m,)``; the equations must have a solution.
        diameter: as for :class:`Unconstrained`.
    """

    def __init__(self, A: Tensor, b: Tensor, diameter: float | None = None) -> None:
        A, b = check_float_tensor("A", A).double(), check_float_tensor("b", b).double()
        if A.ndim != 2 or b.shape != A.shape[:1]:
            raise ArgumentValueError(f"A and b must be (m, d) and (m,), got {tuple(A.shape)} and {tuple(b.shape)}")
        self.A, self.b, self._inverse = A, b, torch.linalg.pinv(A)
        left = A @ (self._inverse @ b) - b
        if float(left.abs().max()) > 1e-8 * (1.0 + float(b.abs().max())):
            raise ArgumentValueError("b must make A x = b solvable, but no x comes closer than "
                                     f"{float(left.abs().max()):.2e}")  # fmt: skip
        self._describe(diameter, A.shape[1])

    def project(self, x: Tensor) -> Tensor:
        """``x - A⁺(Ax - b)``."""
        A, b, inverse = (t.to(x) for t in (self.A, self.b, self._inverse))
        return x - (x @ A.mT - b) @ inverse.mT

    def project_in_norm(self, x: Tensor, H: Tensor) -> Tensor:
        """``x - H⁻¹Aᵀ(A H⁻¹ Aᵀ)⁺(Ax - b)``."""
        A, b = self.A.to(x), self.b.to(x)
        spread = A.mT / H.unsqueeze(-1) if H.shape == x.shape else torch.linalg.solve(H, A.mT.expand(*H.shape[:-1], -1))
        weights = torch.linalg.pinv(A @ spread) @ (x @ A.mT - b).unsqueeze(-1)
        return x - (spread @ weights).squeeze(-1)


def check_domain(domain: Any, dim: int | None) -> int:
    """Return the dimension of the points, refuse a domain of another one.

    Raises:
        ArgumentTypeError: ``domain`` is no :class:`Domain`.
        ArgumentValueError: its dimension is not ``dim``, or neither says it.
    """
    if not isinstance(domain, Domain):
        bad_type("domain", domain, "a Domain such as Ball(1.0)")
    if dim is not None:
        check_sizes(dim=dim)
    if dim is None and domain.dim is None:
        raise ArgumentValueError("dim must be given: neither domain nor start says how many entries a point has")
    if dim is not None and domain.dim not in (None, dim):
        raise ArgumentValueError(f"dim must be {domain.dim}, the dimension of domain, got {dim}")
    return dim if dim is not None else int(domain.dim or 0)


def diameter_of(domain: Domain, dim: int) -> float | None:
    """Diameter of ``domain`` in ``dim`` dimensions, None if it is unbounded."""
    return domain.diameter_in(dim) if isinstance(domain, Box) else domain.diameter
