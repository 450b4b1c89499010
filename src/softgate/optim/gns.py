"""Newton's method with one adaptive scalar, for exact and approximate Hessians."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_number, check_sizes
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, check_choice
from softgate.optim._autograd import CURVATURES, AutogradProblem
from softgate.optim._curvature import Curvature
from softgate.optim._curvature_operators import MatVecCurvature, as_curvature
from softgate.optim._metric import as_metric
from softgate.optim._rules import RULES, TESTS, make_rule
from softgate.optim._search import Point, Search, SearchOptions
from softgate.optim.objectives import Objective

__all__ = ["OptimizeResult", "minimize_gns"]

SOLVERS = ("auto", "cholesky", "woodbury", "cg", "lanczos")
#: Why a search ended -> whether that is a success.
ENDS = {"gradient": True, "value": True, "change": True, "precision": True, "max_iter": False, "unbounded": False,
        "search_failed": False, "callback": False}  # fmt: skip


@dataclass(frozen=True)
class OptimizeResult:
    """What :func:`minimize_gns` found.

    Attributes:
        x: the last point, in the shape and dtype of ``x0``.
        fun: its value.
        grad_norm: dual norm of its gradient.
        gamma: the last radius γ (of a baseline, its last constant).
        n_iter: accepted steps.
        n_solves: linear systems solved.
        n_fev: evaluations of the function and its gradient.
        status: why it ended: ``"gradient"`` (grad_tol), ``"value"`` (f_star), ``"change"`` (ftol), ``"precision"`` (no
            progress that the dtype can show), ``"max_iter"``, ``"unbounded"`` (steps of the largest γ lower the value
            without end), ``"search_failed"`` (no radius is accepted) or ``"callback"``.
        success: True for the first four.
        history: name -> one number per point visited, the first that of ``x0``: ``"fun"``, ``"grad_norm"``,
            ``"n_solves"`` and ``"gamma"``, or ``"H"``, ``"M"``, ``"L"`` of a baseline.
    """

    x: Tensor
    fun: float
    grad_norm: float
    gamma: float
    n_iter: int
    n_solves: int
    n_fev: int
    status: str
    success: bool
    history: Mapping[str, list[float]]


def minimize_gns(
    fun: Objective | Callable[[Tensor], Any],
    x0: Tensor,
    *,
    curvature: str | Curvature | Callable[[Tensor], Any] = "exact",
    metric: Any = None,
    rule: str = "adaptive",
    gamma0: float = 1.0,
    grad_tol: float = 1e-8,
    ftol: float = 0.0,
    f_star: float | None = None,
    max_iter: int = 1000,
    max_trials: int = 100,
    solver: str = "auto",
    test: str = "function",
    callback: Callable[[Tensor, float, float], Any] | None = None,
) -> OptimizeResult:
    r"""Minimise with Newton steps that are regularised by the gradient's norm over an adaptive radius γ.

    .. math:: h_k = -\Big(H(x_k) + \frac{\lVert\nabla f(x_k)\rVert_*}{\gamma_k} B\Big)^{-1} \nabla f(x_k)

    A step is accepted if ``f(x) - f(x + h) ≥ ‖∇f(x + h)‖²_*/(8λ)``, and γ doubles; otherwise γ halves. H is any
    positive semidefinite approximation; an indefinite exact Hessian is regularised until it is positive definite. No
    constant of the function is needed. For functions with softmax inside whose smoothing is small, where L-BFGS takes
    thousands of steps; not for mini-batches, whose values cannot be compared.

    Args:
        fun: an :class:`Objective`, or a function of a tensor in the shape of ``x0`` that gives a scalar; for curvature
            ``"ggn"`` a pair (loss, logits), for ``"fisher"`` the losses of the samples (N,), whose mean is minimised.
        x0: start, float32 or float64. The test of values needs float64 close to the minimum.
        curvature: a name that the objective knows (for functions ``"exact"``, ``"ggn"``, ``"fisher"``), ``"none"`` for
            H = 0 (the normalised gradient method), a :class:`Curvature` that never changes, or a function of x that
            gives a curvature, a matrix (d, d), or an operator with ``@``; vectors are ``x.flatten()``.
        metric: B: None for the identity, a diagonal (d,), a matrix (d, d), or an operator with ``@``. The steps are the
            same in any coordinates if the metric is changed with them.
        rule: ``"adaptive"``, or for comparison ``"preconditioned"`` (``-(H + 1e-8 I)⁻¹g/λ``), ``"fixed"`` (γ stays,
            every step is taken), ``"super_newton"``, ``"cubic"``, ``"gradient_descent"`` (with backtracking).
        gamma0: first γ > 0, in the unit of x.
        grad_tol: stop at ``‖∇f‖_* ≤ grad_tol``.
        ftol: with ``f_star`` stop at ``f - f_star ≤ ftol``; without, at a step that gains no more. 0 is off.
        f_star: the minimum, where known.
        max_iter: most accepted steps.
        max_trials: most trials of one step; γ has 84 halvings from its largest value 1e16 to its smallest 1e-9.
        solver: ``"auto"`` takes that of the curvature's structure; ``"cholesky"`` writes it out, ``"woodbury"`` solves
            low-rank ones in the space of their rows, ``"cg"`` and ``"lanczos"`` use products with vectors alone.
        test: ``"function"``, or ``"gradient"`` (``⟨∇f(x + h), -h⟩ ≥ ‖∇f(x + h)‖²_*/(2λ)``), which convex functions
            keep and rounding of values does not disturb.
        callback: ``callback(x, value, gradient norm)`` after every step; the search ends where it returns True.

    Returns:
        The last point and how it was reached.

    Raises:
        ArgumentTypeError: an argument has the wrong type, or ``x0`` is a 16-bit tensor.
        ArgumentValueError: an option is not allowed, a shape does not fit, ``metric`` is not positive definite, or the
            function at ``x0`` or a curvature is not finite.

    Example:
        >>> A = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
        >>> found = minimize_gns(lambda x: torch.logsumexp(A @ x, 0), torch.ones(2, dtype=torch.float64))
        >>> found.status, round(found.fun, 6)
        ('gradient', 1.098612)

    Paper: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, arXiv 2506.13710.
    """
    x0 = _check_start(x0)
    options = _check_options(rule, gamma0, solver, test, grad_tol, ftol, f_star, max_iter, max_trials)
    if callback is not None and not callable(callback):
        bad_type("callback", callback, "a function of the point, its value and its gradient's norm")
    if not callable(fun):
        bad_type("fun", fun, "an Objective or a function")
    flat = x0.detach().clone().reshape(-1)
    evaluate, build = _problem(fun, x0, curvature, solver)
    made = make_rule(rule, gamma0, test)
    made.uses_curvature = made.uses_curvature and not (isinstance(curvature, str) and curvature == "none")
    if not made.uses_curvature and rule not in ("adaptive", "fixed", "gradient_descent"):
        raise ArgumentValueError(f"curvature must not be 'none' for rule {rule!r}")
    search = Search(evaluate, build, as_metric(metric, flat.numel(), flat), made, options)

    def report(point: Point) -> bool:
        return callback is not None and callback(point.x.reshape(x0.shape), point.value, point.dual) is True

    with torch.no_grad():
        end = search.run(flat, report)
    return OptimizeResult(
        x=end.x.reshape(x0.shape), fun=end.value, grad_norm=end.dual, gamma=made.value, n_iter=search.n_iter,
        n_solves=made.solves, n_fev=search.n_fev, status=search.status, success=ENDS[search.status],
        history=search.history,
    )  # fmt: skip


def _check_start(x0: Any) -> Tensor:
    if not isinstance(x0, Tensor):
        bad_type("x0", x0, "a tensor")
    if x0.dtype not in (torch.float32, torch.float64):
        raise ArgumentTypeError(f"x0 must have dtype float32 or float64, got {x0.dtype}: convert it first")
    if x0.numel() == 0:
        raise ArgumentValueError(f"x0 must have at least one entry, got shape {tuple(x0.shape)}")
    if not bool(x0.isfinite().all()):
        raise ArgumentValueError("x0 must be finite")
    return x0


def _check_options(
    rule: Any, gamma0: Any, solver: Any, test: Any, grad_tol: Any, ftol: Any, f_star: Any, max_iter: Any,
    max_trials: Any,
) -> SearchOptions:  # fmt: skip
    check_choice("rule", rule, RULES)
    check_choice("solver", solver, SOLVERS)
    check_choice("test", test, TESTS)
    check_number("gamma0", gamma0, low=0.0, low_open=True, high_open=True)
    for name, value in (("grad_tol", grad_tol), ("ftol", ftol)):
        check_number(name, value, low=0.0, high_open=True)
    if f_star is not None:
        check_number("f_star", f_star, low=-math.inf, low_open=True, high_open=True)
    check_sizes(max_iter=max_iter, max_trials=max_trials)
    return SearchOptions(grad_tol, ftol, f_star, max_iter, max_trials)


def _problem(fun: Any, x0: Tensor, curvature: Any, solver: str) -> tuple[Any, Callable[[Tensor], Curvature]]:
    """How to evaluate, and how to build the curvature at a point."""
    dim, named = x0.numel(), isinstance(curvature, str)
    if not named and not isinstance(curvature, Curvature) and not callable(curvature):
        bad_type("curvature", curvature, "a name, a Curvature or a function")
    if isinstance(fun, Objective):
        if fun.dim is not None and fun.dim != dim:
            raise ArgumentValueError(f"x0 must have {fun.dim} entries, got shape {tuple(x0.shape)}")
        if named:
            check_choice("curvature", curvature, (*fun.curvatures, "none"))
        evaluate: Any = fun.value_and_grad
        by_name: Callable[[Tensor], Any] = lambda x: fun.curvature(curvature, x)  # noqa: E731
    else:
        if named:
            check_choice("curvature", curvature, CURVATURES)
        leaf = x0.detach().clone().requires_grad_()
        problem = AutogradProblem(lambda: fun(leaf), [leaf], curvature if named else "none", "fun")
        evaluate = problem.value_and_grad
        written_out = solver in ("auto", "cholesky")
        by_name = lambda x: problem.curvature(curvature, x, dense=written_out)  # noqa: E731

    def build(x: Tensor) -> Curvature:
        if named:
            made = by_name(x)
        else:
            made = curvature if isinstance(curvature, Curvature) else curvature(x.reshape(x0.shape))
        return with_solver(as_curvature(made, dim, x), solver, x)

    return evaluate, build


def with_solver(curvature: Curvature, solver: str, like: Tensor) -> Curvature:
    """The same matrix, solved as ``solver`` says."""
    if solver == "cholesky":
        return curvature.cholesky()
    if solver == "woodbury":
        return curvature.woodbury()
    if solver == "auto" or (isinstance(curvature, MatVecCurvature) and curvature.solver == solver):
        return curvature
    return MatVecCurvature(curvature.matvec, curvature.dim, solver, dtype=like.dtype, device=like.device)
