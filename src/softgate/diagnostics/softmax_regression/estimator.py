"""Fit a query to prescribed softmax weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from softgate.diagnostics.softmax_regression.objective import ABSENT, check_problem
from softgate.diagnostics.softmax_regression.solvers import SOLVERS, Outcome, check_limits, log_start, reduced
from softgate.errors import ArgumentValueError, StateError, check_choice

__all__ = ["FitInfo", "SoftmaxRegression"]

#: Entries of the target below it count as zero: their logarithm starts the solver here.
FLOOR = 1e-12
#: A zero of the target that is fitted below this has its optimum at infinity.
_VANISHED = 1e-6


@dataclass(frozen=True)
class FitInfo:
    """How a fit of :class:`SoftmaxRegression` ended; batched problems have one entry each, in row-major order.

    Attributes:
        status: ``"converged"`` (the last step was shorter than ``tol * (1 + ‖x‖)``), ``"max_iter"``, or
            ``"diverging"``: the optimum is at infinity (a zero of the target that can be fitted), or ‖x‖ passed
            ``max_norm``.
        iterations: number of iterations, (…).
        loss: ½‖softmax(A x) - b‖², (…), float64.
        residual: ‖softmax(A x) - b‖, (…), float64; 0 where the target is attainable.
        rank: rank of the rows of A without their mean, (…).
        rank_deficient: rank < d, (…): x is then the solution of smallest norm.
        losses: loss after every iteration, (iterations + 1, …); first and last only with L-BFGS.
    """

    status: tuple[str, ...]
    iterations: Tensor
    loss: Tensor
    residual: Tensor
    rank: Tensor
    rank_deficient: Tensor
    losses: Tensor


class SoftmaxRegression:
    """Least squares for a softmax: the ``x`` for which ``softmax(A x)`` is nearest to ``b``.

    Solved in float64 whatever the input. ``x`` is determined up to the null space of the rows' differences; the
    solution of smallest norm is returned. The loss is not convex: the result is a local minimum, in practice the global
    one where the target is attainable.

    Args:
        solver: ``"lm"`` (Levenberg-Marquardt, also called ``"gauss_newton"``), ``"newton"`` (damped, full Hessian),
            ``"gd"`` (step 4/‖A‖²) or ``"lbfgs"``.
        max_iter: most iterations.
        tol: a problem is solved once a step is shorter than ``tol * (1 + ‖x‖)``.
        warm_start: ``"log"`` starts from the least-squares solution of A x = log b, exact where b is attainable, if it
            is better than 0; ``"zero"`` starts from 0.
        max_norm: a problem whose ‖x‖ passes it has diverged.

    Attributes:
        x_: solution of the last fit.
        info_: its :class:`FitInfo`.

    Raises:
        ArgumentTypeError: an option has the wrong type.
        ArgumentValueError: an option is not allowed.

    Example:
        >>> import torch
        >>> A = torch.tensor([[1.0], [0.0]])
        >>> x, info = SoftmaxRegression().fit(A, torch.tensor([0.9, 0.1]))
        >>> x, info.status
        (tensor([2.1972]), ('converged',))

    Paper: arXiv 2304.13276 poses the problem; the solvers are this library's.
    """

    def __init__(
        self,
        solver: str = "lm",
        max_iter: int = 100,
        tol: float = 1e-10,
        warm_start: str = "log",
        max_norm: float = 1e4,
    ) -> None:
        check_choice("solver", solver, tuple(SOLVERS))
        check_choice("warm_start", warm_start, ("log", "zero"))
        self.solver, self.warm_start = solver, warm_start
        self.limits = check_limits(max_iter, tol, max_norm)

    @torch.no_grad()
    def fit(self, A: Tensor, b: Tensor) -> tuple[Tensor, FitInfo]:
        """Solve one problem or a batch.

        Args:
            A: rows (keys), (…, n, d), finite.
            b: targets, (…, n), finite: distributions, or any vectors. Leading dimensions broadcast.

        Returns:
            x, (…, d), in the dtype of ``A``, and how it was found.

        Raises:
            ArgumentTypeError: wrong types, or dtypes that differ.
            ArgumentValueError: shapes that do not fit, n or d of 0, NaN or infinities.

        Warns:
            UserWarning: a target is not a distribution and no x attains it, or has zeros, whose logarithms are
                clamped at 1e-12 for the start.
        """
        check_problem(A, ABSENT, b)
        for name, tensor in (("A", A), ("b", b)):
            if not bool(tensor.isfinite().all()):
                raise ArgumentValueError(f"{name} must be finite, got NaN or an infinity")
        batch = torch.broadcast_shapes(A.shape[:-2], b.shape[:-1])
        rows = A.double().expand(*batch, *A.shape[-2:]).reshape(-1, *A.shape[-2:])
        target = b.double().expand(*batch, b.shape[-1]).reshape(-1, b.shape[-1])
        scaled, directions, rank = reduced(rows)
        start = torch.zeros_like(scaled[:, 0])
        if self.warm_start == "log":
            start = _better_start(scaled, target, start)
        found = SOLVERS[self.solver](scaled, target, start, self.limits)
        x = (directions @ found.y[:, :, None])[:, :, 0].reshape(*batch, -1)
        info = self._info(scaled, target, found, rank, A.shape[-1], batch)
        _warn_of_targets(target, info.residual, max(1e-3, torch.finfo(A.dtype).eps))
        self.x_, self.info_ = x.to(A.dtype), info
        return self.x_, info

    def predict(self, A: Tensor) -> Tensor:
        """softmax(A x) of the last fit, (…, n), for any rows ``A`` (…, n, d).

        Raises:
            StateError: nothing has been fitted.
        """
        if not hasattr(self, "x_"):
            raise StateError("predict needs a fit: call fit(A, b) first")
        check_problem(A, self.x_)
        return (A @ self.x_.unsqueeze(-1)).squeeze(-1).softmax(-1)

    def _info(self, A: Tensor, b: Tensor, found: Outcome, rank: Tensor, width: int, batch: torch.Size) -> FitInfo:
        f = (A @ found.y[:, :, None])[:, :, 0].softmax(-1)
        residual = (f - b).norm(dim=-1)
        vanished = ((b <= FLOOR) & (f <= _VANISHED)).any(-1)
        diverging = vanished | (found.y.norm(dim=-1) > self.limits.max_norm)
        status = tuple(
            "diverging" if far else "converged" if done else "max_iter"
            for far, done in zip(diverging.tolist(), found.settled.tolist(), strict=True)
        )
        return FitInfo(
            status=status,
            iterations=found.iterations.reshape(batch),
            loss=(0.5 * residual.square()).reshape(batch),
            residual=residual.reshape(batch),
            rank=rank.reshape(batch),
            rank_deficient=(rank < width).reshape(batch),
            losses=found.losses.reshape(-1, *batch),
        )


def _better_start(A: Tensor, b: Tensor, zero: Tensor) -> Tensor:
    warm = log_start(A, b, FLOOR)
    loss = ((A @ warm[:, :, None])[:, :, 0].softmax(-1) - b).square().sum(-1)
    uniform = (1.0 / A.shape[-2] - b).square().sum(-1)
    return torch.where((loss < uniform)[:, None], warm, zero)


def _warn_of_targets(b: Tensor, residual: Tensor, rounding: float) -> None:
    off = ((b.sum(-1) - 1.0).abs() > rounding) | (b < 0).any(-1)
    if bool(off.any()):
        largest = float(residual.reshape(-1)[off].max())
        message = "b is not a distribution, so no x attains it; the nearest softmax leaves a residual of"
        warnings.warn(f"{message} {largest:.3g}", UserWarning, stacklevel=4)
    elif bool((b <= FLOOR).any()):
        message = "b has zeros, which softmax reaches only at infinity; their logarithms start at"
        warnings.warn(f"{message} {FLOOR:g}", UserWarning, stacklevel=4)
