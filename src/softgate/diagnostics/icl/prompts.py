"""Random linear-regression prompts: labelled points, then a query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_number, check_sizes
from softgate.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["LinearRegressionPrompts"]


@dataclass(frozen=True, eq=False)
class LinearRegressionPrompts:
    """Prompts (x_1, y_1), …, (x_L, y_L), (x_q, 0), each with a regression of its own.

    β ~ N(0, I/d), x ~ N(0, Σ), y = βᵀx + N(0, σ²). With several tasks there are N labels per point, and β_n lives on
    the coordinates S_n only, β_n ~ N(0, I/|S_n|), so that every noiseless label has variance one when Σ = I.

    Args:
        d: number of covariates.
        L: number of labelled points.
        sigma2: variance of the noise on the labels, not negative.
        cov: Σ, (d, d), symmetric and positive semi-definite, or None for the identity.
        tasks: coordinates of each task, disjoint, e.g. ``[range(3), range(3, 6)]``; None for one task on all.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: sizes below 1, negative ``sigma2``, ``cov`` not positive semi-definite, tasks that overlap
            or leave the range.

    Example:
        >>> import torch
        >>> tokens, target = LinearRegressionPrompts(d=5, L=40, sigma2=0.1)(8, torch.Generator().manual_seed(0))
        >>> tokens.shape, target.shape, bool((tokens[:, -1, -1] == 0).all())
        (torch.Size([8, 41, 6]), torch.Size([8, 1]), True)

    Paper: In-Context Linear Regression Demystified, arXiv 2503.12734, sec. 2.
    """

    d: int
    L: int
    sigma2: float
    cov: Tensor | None = None
    tasks: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        check_sizes(d=self.d, L=self.L)
        check_number("sigma2", self.sigma2, low=0.0, high_open=True)
        if self.cov is not None:
            check_covariance(self.cov, self.d)
        check_tasks(self.tasks, self.d)

    @property
    def supports(self) -> tuple[tuple[int, ...], ...]:
        """Coordinates of each task."""
        return (tuple(range(self.d)),) if self.tasks is None else tuple(tuple(task) for task in self.tasks)

    @property
    def n_tasks(self) -> int:
        """N, labels per point."""
        return len(self.supports)

    def __call__(
        self, batch: int, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Draw ``batch`` prompts on the generator's device.

        Args:
            batch: number of prompts, positive.
            generator: source of randomness; None for torch's global one.
            dtype: of the result.

        Returns:
            Tokens (batch, L + 1, d + N), the last with zeros for its labels, and its (noisy) labels, (batch, N).
        """
        check_sizes(batch=batch)
        options: dict[str, Any] = {"generator": generator, "dtype": dtype}
        options["device"] = "cpu" if generator is None else generator.device
        x = torch.randn(batch, self.L + 1, self.d, **options)
        if self.cov is not None:
            x = x @ _square_root(self.cov).to(x)
        scale = torch.zeros(self.d, self.n_tasks, dtype=dtype, device=x.device)
        for n, support in enumerate(self.supports):
            scale[list(support), n] = len(support) ** -0.5
        beta = scale * torch.randn(batch, self.d, self.n_tasks, **options)
        noise = self.sigma2**0.5 * torch.randn(batch, self.L + 1, self.n_tasks, **options)
        y = x @ beta + noise
        target = y[:, -1].clone()
        y[:, -1] = 0.0
        return torch.cat((x, y), -1), target


def _square_root(cov: Tensor) -> Tensor:
    """The symmetric square root, which exists for singular covariances too."""
    values, vectors = torch.linalg.eigh(cov.double())
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.mT


def check_covariance(cov: Any, d: int) -> None:
    """Raise unless ``cov`` is a covariance matrix of ``d`` variables."""
    if not isinstance(cov, Tensor) or not cov.is_floating_point():
        raise ArgumentTypeError(f"cov must be a floating-point tensor or None, got {type(cov).__name__}")
    if cov.shape != (d, d):
        raise ArgumentValueError(f"cov must have shape ({d}, {d}), got {tuple(cov.shape)}")
    if not bool(cov.isfinite().all()) or not torch.allclose(cov, cov.mT):
        raise ArgumentValueError("cov must be finite and symmetric, it is not")
    lowest, highest = torch.linalg.eigvalsh(cov.double())[[0, -1]].tolist()
    if lowest < -1e-6 * max(highest, 0.0):
        raise ArgumentValueError(f"cov must be positive semi-definite, its smallest eigenvalue is {lowest:.3g}")


def check_tasks(tasks: Any, d: int) -> None:
    """Raise unless ``tasks`` is None or a sequence of disjoint, non-empty sequences of coordinates below ``d``."""
    if tasks is None:
        return
    listed = list(_coordinates(tasks))
    if not listed:
        raise ArgumentValueError("tasks must name at least one task, got none")
    wrong = [i for i in listed if not 0 <= i < d]
    if wrong:
        raise ArgumentValueError(f"tasks must name coordinates in [0, {d}), got {wrong[0]}")
    if len(set(listed)) < len(listed):
        repeated = next(i for i in listed if listed.count(i) > 1)
        raise ArgumentValueError(f"tasks must be disjoint, coordinate {repeated} is named twice")


def _coordinates(tasks: Any) -> Iterator[int]:
    if isinstance(tasks, str) or not isinstance(tasks, Sequence):
        raise ArgumentTypeError(f"tasks must be a sequence of sequences of ints or None, got {type(tasks).__name__}")
    for task in tasks:
        if isinstance(task, str) or not isinstance(task, Sequence):
            raise ArgumentTypeError(f"tasks must be a sequence of sequences of ints, got {task!r} in it")
        if not task:
            raise ArgumentValueError("tasks must have at least one coordinate each, got an empty one")
        for i in task:
            if isinstance(i, bool) or not isinstance(i, int):
                raise ArgumentTypeError(f"tasks must name coordinates by ints, got {i!r}")
            yield i
