"""Minimisers of the softmax regression loss, many problems at once, in float64.

All but :func:`gradient_descent` work in coordinates y = Vᵀx along the singular directions of the rows without their
mean, A - 1āᵀ = U S Vᵀ: what they see is the matrix U S, whose columns are orthogonal, and zero where A says nothing
about x. Steps never leave the span of V, so solutions have the smallest norm. P counts problems.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_sizes
from softgate.diagnostics.softmax_regression.objective import ABSENT, check_problem, softmax_jacobian_product
from softgate.errors import ArgumentValueError, bad_type

__all__ = ["SOLVERS", "Limits", "Outcome", "gradient_descent"]

#: Damping of Levenberg-Marquardt at the start, and at least, relative to the mean diagonal of the Gauss-Newton matrix:
#: that of the first iteration or of the present one, whichever is smaller.
_FIRST_DAMPING, _LEAST_DAMPING = 1e-3, 1e-14
#: Problems that have stopped are left out as soon as no more than this share of a batch runs.
_FEW = 0.8


class Limits(NamedTuple):
    """When a solver stops."""

    max_iter: int
    tol: float
    max_norm: float


class Outcome(NamedTuple):
    """Where a solver stopped.

    Attributes:
        y: (P, k) solutions.
        losses: (iterations + 1, P) losses, of which those of a problem that has stopped stay as they were.
        iterations: (P,) iterations of each problem.
        settled: (P,) whether the last step was shorter than ``tol * (1 + ‖y‖)``.
    """

    y: Tensor
    losses: Tensor
    iterations: Tensor
    settled: Tensor


class _State:
    """Which problems still run, which of all are worked on (``rows``), and what has been recorded of them."""

    def __init__(self, y: Tensor, loss: Tensor, limits: Limits) -> None:
        self.y, self.limits, self.losses = y.clone(), limits, [loss]
        self.running = torch.ones_like(loss, dtype=torch.bool)
        self.settled = torch.zeros_like(self.running)
        self.iterations = torch.zeros_like(loss, dtype=torch.int64)
        self.rows: Tensor | slice = slice(None)

    def advance(self, step: Tensor, accepted: Tensor, proposed: Tensor, loss: Tensor) -> Tensor:
        """Take accepted steps, note stops. ``proposed``: the step means something. Returns which steps were taken."""
        rows = self.rows
        y, running, last = self.y[rows], self.running[rows], self.losses[-1]
        taken = accepted & running
        small = step.norm(dim=-1) <= self.limits.tol * (1.0 + y.norm(dim=-1))
        settled = running & proposed & small
        y = torch.where(taken[:, None], y + step, y)
        self.losses.append(last.clone())
        self.losses[-1][rows] = torch.where(taken, loss, last[rows])
        self.y[rows] = y
        self.iterations[rows] += running
        self.settled[rows] |= settled
        self.running[rows] = running & ~settled & (y.norm(dim=-1) <= self.limits.max_norm)
        return taken

    def shrink(self) -> Tensor | None:
        """Go on without the problems that have stopped, once they are many: which of those worked on are left."""
        running = self.running[self.rows]
        left = running.nonzero().squeeze(1)
        if len(left) > _FEW * len(running):
            return None
        self.rows = left if isinstance(self.rows, slice) else self.rows[left]
        return left

    def outcome(self) -> Outcome:
        return Outcome(self.y, torch.stack(self.losses), self.iterations, self.settled)


def _softmax(A: Tensor, y: Tensor) -> Tensor:
    return (y[:, None, :] @ A.mT)[:, 0].softmax(-1)


def _loss(f: Tensor, b: Tensor) -> Tensor:
    return 0.5 * (f - b).square().sum(-1)


def _damped_newton(A: Tensor, b: Tensor, y: Tensor, limits: Limits, full: bool) -> Outcome:
    """Levenberg-Marquardt on the Gauss-Newton matrix or, if ``full``, on the Hessian.

    The damping falls to a third after a step that lowers the loss, and grows fourfold where it does not or where the
    damped matrix is indefinite.
    """
    f = _softmax(A, y)
    state = _State(y, _loss(f, b), limits)
    damping = torch.full_like(state.losses[0], _FIRST_DAMPING)
    first_size = torch.full_like(damping, torch.inf)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    both = A.new_empty(*A.shape[:-1], A.shape[-1] + 1)
    for _ in range(limits.max_iter):
        # the Jacobian with the residual as one more column: one product for the matrix and the gradient
        both = both[: len(A)]
        torch.sub(A, f[:, None, :] @ A, out=both[:, :, :-1]).mul_(f[:, :, None])
        torch.sub(f, b, out=both[:, :, -1])
        products = both.mT @ both
        matrix, gradient = products[:, :-1, :-1], products[:, :-1, -1]
        present = matrix.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(A.dtype).tiny / _LEAST_DAMPING)
        first_size = torch.where(first_size.isinf(), present, first_size)
        shift = damping * torch.minimum(first_size, present)
        if full:
            centred = A - f[:, None, :] @ A
            matrix = matrix + centred.mT @ (softmax_jacobian_product(f, f - b)[:, :, None] * centred)
        factor, failed = torch.linalg.cholesky_ex(matrix + shift[:, None, None] * eye)
        definite = failed == 0
        factor = torch.where(definite[:, None, None], factor, eye)
        step = -torch.cholesky_solve(gradient[:, :, None], factor)[:, :, 0]
        tried = _softmax(A, state.y[state.rows] + step)
        loss = _loss(tried, b)
        taken = state.advance(step, definite & (loss < state.losses[-1][state.rows]), definite, loss)
        f = torch.where(taken[:, None], tried, f)
        damping = torch.where(taken, damping / 3.0, damping * 4.0).clamp(min=_LEAST_DAMPING)
        if not bool(state.running.any()):
            break
        left = state.shrink()
        if left is not None:
            A, b, f, damping, first_size = (x[left] for x in (A, b, f, damping, first_size))
    return state.outcome()


def _levenberg_marquardt(A: Tensor, b: Tensor, y: Tensor, limits: Limits) -> Outcome:
    return _damped_newton(A, b, y, limits, full=False)


def _newton(A: Tensor, b: Tensor, y: Tensor, limits: Limits) -> Outcome:
    return _damped_newton(A, b, y, limits, full=True)


def _gradient(A: Tensor, f: Tensor, b: Tensor) -> Tensor:
    return (A.mT @ softmax_jacobian_product(f, f - b)[:, :, None])[:, :, 0]


def _descent(A: Tensor, b: Tensor, y: Tensor, limits: Limits) -> Outcome:
    """Gradient descent with step 4/‖A‖²: the largest curvature seen in random problems is 0.2‖A‖²."""
    largest = torch.linalg.matrix_norm(A, 2).square()
    rate = torch.where(largest > 0, 4.0 / largest, 0.0)[:, None]
    f = _softmax(A, y)
    state = _State(y, _loss(f, b), limits)
    always = torch.ones_like(state.running)
    for _ in range(limits.max_iter):
        step = -rate * _gradient(A, f, b)
        f = _softmax(A, state.y + step)
        state.advance(step, always, always, _loss(f, b))
        f = torch.where(state.running[:, None], f, _softmax(A, state.y))
        if not bool(state.running.any()):
            break
    return state.outcome()


def _lbfgs(A: Tensor, b: Tensor, y: Tensor, limits: Limits) -> Outcome:
    """L-BFGS of torch with a strong Wolfe line search, one problem after the other."""
    solved, losses, iterations, settled = [], [], [], []
    for A_p, b_p, y_p in zip(A, b, y, strict=True):
        parameter = y_p.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [parameter], max_iter=limits.max_iter, tolerance_grad=limits.tol * float(A_p.norm() / len(A_p)),
            tolerance_change=limits.tol**2, line_search_fn="strong_wolfe", history_size=20,
        )  # fmt: skip

        def closure(A_p: Tensor = A_p, b_p: Tensor = b_p, parameter: Tensor = parameter) -> Tensor:
            with torch.enable_grad():
                loss = 0.5 * ((A_p @ parameter).softmax(-1) - b_p).square().sum()
                (parameter.grad,) = torch.autograd.grad(loss, parameter)
            return loss.detach()

        first = closure()
        optimizer.step(closure)
        solved.append(parameter.detach())
        losses.append(torch.stack((first, closure())))
        iterations.append(optimizer.state_dict()["state"].get(0, {}).get("n_iter", 0))
        settled.append(iterations[-1] < limits.max_iter)
    device = y.device
    return Outcome(
        torch.stack(solved), torch.stack(losses, 1), torch.tensor(iterations, device=device),
        torch.tensor(settled, device=device),
    )  # fmt: skip


#: Solvers by name. ``gauss_newton`` is ``lm``.
SOLVERS: dict[str, Callable[[Tensor, Tensor, Tensor, Limits], Outcome]] = {
    "lm": _levenberg_marquardt,
    "gauss_newton": _levenberg_marquardt,
    "newton": _newton,
    "gd": _descent,
    "lbfgs": _lbfgs,
}


def gradient_descent(A: Tensor, b: Tensor, *, steps: int, lr: float | Tensor, x0: Tensor | None = None) -> Tensor:
    """Plain gradient descent on :func:`softmax_regression_loss`: what a transformer layer is compared with.

    From x = 0 the first step is (lr/n)·Σ_i b_i (a_i - ā).

    Args:
        A: rows, (…, n, d).
        b: targets, (…, n).
        steps: positive.
        lr: step size, a number or a tensor that broadcasts to (…).
        x0: start, (…, d), or None for 0.

    Returns:
        x, (…, d); differentiable.

    Raises:
        ArgumentTypeError: wrong types, or dtypes that differ.
        ArgumentValueError: shapes that do not fit, or ``steps`` is not positive.

    Example:
        >>> import torch
        >>> gradient_descent(torch.eye(2), torch.tensor([1.0, 0.0]), steps=1, lr=4.0)
        tensor([ 1., -1.])

    Paper: arXiv 2304.13276, sec. 5.
    """
    check_sizes(steps=steps)
    check_problem(A, ABSENT if x0 is None else x0, b)
    if isinstance(lr, bool) or not isinstance(lr, int | float | Tensor):
        bad_type("lr", lr, "a number or a tensor")
    rate = torch.as_tensor(lr, dtype=A.dtype, device=A.device).unsqueeze(-1)
    x = A.new_zeros(A.shape[-1]) if x0 is None else x0
    for _ in range(steps):
        f = (A @ x.unsqueeze(-1)).squeeze(-1).softmax(-1)
        slope = softmax_jacobian_product(f, f - b)
        x = x - rate * (A.mT @ slope.unsqueeze(-1)).squeeze(-1)
    return x


def reduced(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows without their mean as (U S, V, rank): (P, n, k), (P, d, k), (P,)."""
    centred = A - A.mean(-2, keepdim=True)
    U, S, Vh = torch.linalg.svd(centred, full_matrices=False)
    # relative to A, not to what is left without the mean: equal rows leave only rounding errors
    scale = A.abs().amax((-2, -1))
    kept = max(A.shape[-2:]) * torch.finfo(A.dtype).eps * torch.maximum(S.amax(-1), scale)
    S = torch.where(kept[:, None] < S, S, 0.0)
    return U * S[:, None, :], Vh.mT, (S > 0).sum(-1)


def log_start(A: Tensor, b: Tensor, floor: float) -> Tensor:
    """Least squares A y ≈ log b without its mean; exact where b is attainable. Columns of ``A`` are orthogonal."""
    target = b.clamp(min=floor).log()
    target = target - target.mean(-1, keepdim=True)
    size = A.square().sum(-2)
    projected = (A.mT @ target[:, :, None])[:, :, 0]
    return torch.where(size > 0, projected / size.clamp(min=torch.finfo(A.dtype).tiny), 0.0)


def check_limits(max_iter: Any, tol: Any, max_norm: Any) -> Limits:
    """The limits, or an error that names the wrong one."""
    check_sizes(max_iter=max_iter)
    for name, value in (("tol", tol), ("max_norm", max_norm)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            bad_type(name, value, "a positive number")
        if not value > 0:
            raise ArgumentValueError(f"{name} must be a positive number, got {value!r}")
    return Limits(max_iter, float(tol), float(max_norm))
