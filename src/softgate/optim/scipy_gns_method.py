"""Gradient-normalized smoothness as a method of ``scipy.optimize.minimize``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgate.errors import ArgumentTypeError, ArgumentValueError, MissingExtraError, bad_type
from softgate.optim._curvature import Curvature, DenseCurvature
from softgate.optim._curvature_operators import MatVecCurvature
from softgate.optim.gns import minimize_gns
from softgate.optim.objectives import Objective

__all__ = ["scipy_gns"]

MESSAGES = {
    "gradient": "The norm of the gradient is below gtol.",
    "value": "The value is within ftol of f_star.",
    "change": "The value fell by no more than ftol.",
    "precision": "No progress that double precision can show.",
    "max_iter": "Maximum number of iterations has been exceeded.",
    "unbounded": "The function falls without end.",
    "search_failed": "No radius gave a step that lowers the function enough.",
    "callback": "The callback asked to stop.",
}


class _NumpyObjective(Objective):
    """Functions of arrays as an objective; counts what is evaluated."""

    curvatures = ("exact",)

    def __init__(self, fun: Any, jac: Any, hess: Any, hessp: Any, args: tuple[Any, ...], dim: int) -> None:
        self.fun, self.jac, self.hess, self.hessp, self.args, self.dim = fun, jac, hess, hessp, args, dim
        self.size, self.hessians = dim, 0

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        array = x.numpy()
        value = torch.as_tensor(np.asarray(self.fun(array, *self.args), dtype=np.float64).reshape(()))
        grad = np.array(self.jac(array, *self.args), dtype=np.float64)  # a copy: some functions reuse their memory
        return value, torch.from_numpy(grad.reshape(-1))

    def _curvature(self, name: str, x: Tensor) -> Curvature:
        self.hessians += 1
        array = x.numpy()
        if self.hess is None:
            return self._by_products(lambda v: self.hessp(array, v, *self.args))
        made = self.hess(array, *self.args)
        if hasattr(made, "toarray"):  # sparse
            made = made.toarray()
        if isinstance(made, np.ndarray):
            return DenseCurvature(torch.from_numpy(np.array(made, dtype=np.float64)))
        if hasattr(made, "__matmul__"):
            return self._by_products(lambda v: made @ v)
        bad_type("hess", made, "a function that gives an array, a sparse matrix or a LinearOperator")

    def _by_products(self, product: Callable[[Any], Any]) -> Curvature:
        def matvec(v: Tensor) -> Tensor:
            return torch.from_numpy(np.array(product(v.numpy()), dtype=np.float64).reshape(-1))

        return MatVecCurvature(matvec, self.size)


def scipy_gns(
    fun: Callable[..., Any],
    x0: Any,
    args: tuple[Any, ...] = (),
    jac: Callable[..., Any] | None = None,
    hess: Callable[..., Any] | None = None,
    hessp: Callable[..., Any] | None = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[[Any], Any] | None = None,
    *,
    tol: float | None = None,
    gtol: float = 1e-8,
    maxiter: int = 1000,
    **options: Any,
) -> Any:
    """:func:`minimize_gns` for ``scipy.optimize.minimize(fun, x0, method=scipy_gns, jac=…, hess=…)``.

    Args:
        fun: value at an array (n,).
        x0: start.
        args: further arguments of the functions.
        jac: gradient; needed.
        hess: Hessian or a positive semidefinite approximation: an array, a sparse matrix or a ``LinearOperator``.
        hessp: its product with a vector, ``hessp(x, v)``. Without either the normalised gradient method runs.
        bounds: none can be kept.
        constraints: none can be kept.
        callback: called with every new point; a ``StopIteration`` ends the search.
        tol: the same as ``gtol``.
        gtol: stop at this norm of the gradient.
        maxiter: most steps.
        **options: ``gamma0``, ``rule``, ``solver``, ``test``, ``f_star``, ``ftol``, ``metric``, ``max_trials`` of
            :func:`minimize_gns`; a metric is an array.

    Returns:
        A ``scipy.optimize.OptimizeResult``, with ``grad_norm`` and ``gamma`` beside the usual fields.

    Raises:
        ArgumentTypeError: ``jac`` is no function.
        ArgumentValueError: there are bounds or constraints.
        MissingExtraError: SciPy is not installed.

    Example:
        >>> from scipy.optimize import minimize, rosen, rosen_der, rosen_hess
        >>> minimize(rosen, [-1.2, 1.0], method=scipy_gns, jac=rosen_der, hess=rosen_hess).x.round(6)
        array([1., 1.])

    Paper: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, arXiv 2506.13710.
    """
    try:
        from scipy.optimize import OptimizeResult
    except ImportError:
        raise MissingExtraError("scipy", "data", "scipy_gns") from None
    if not callable(jac):
        raise ArgumentTypeError(f"jac must be a function that gives the gradient, or True, got {jac!r}")
    if bounds is not None or constraints:
        raise ArgumentValueError("bounds and constraints must be absent: this method is for unconstrained problems")
    start = torch.from_numpy(np.array(x0, dtype=np.float64).reshape(-1))
    problem = _NumpyObjective(fun, jac, hess, hessp, args, len(start))
    if options.get("metric") is not None:
        options["metric"] = torch.as_tensor(np.asarray(options["metric"], dtype=np.float64))

    def report(x: Tensor, value: float, norm: float) -> bool:
        try:
            if callback is not None:
                callback(x.numpy().copy())
        except StopIteration:
            return True
        return False

    found = minimize_gns(
        problem, start, curvature="none" if hess is None and hessp is None else "exact",
        grad_tol=gtol if tol is None else tol, max_iter=maxiter, callback=report, **options,
    )  # fmt: skip
    x = found.x.numpy()
    return OptimizeResult(
        x=x, fun=found.fun, jac=problem.value_and_grad(found.x)[1].numpy(), nit=found.n_iter, nfev=found.n_fev + 1,
        njev=found.n_fev + 1, nhev=problem.hessians, success=found.success, status=list(MESSAGES).index(found.status),
        message=MESSAGES[found.status], grad_norm=found.grad_norm, gamma=found.gamma,
    )  # fmt: skip
