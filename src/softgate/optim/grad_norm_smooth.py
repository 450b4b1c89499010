"""Gradient-normalized smoothness as an optimizer of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from softgate._checks import check_number, check_sizes
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type, check_choice
from softgate.optim._autograd import CURVATURES, AutogradProblem
from softgate.optim._metric import as_metric
from softgate.optim._rules import TESTS, make_rule
from softgate.optim._search import Search, SearchOptions
from softgate.optim.gns import SOLVERS, with_solver

__all__ = ["GradNormSmooth"]


class GradNormSmooth(Optimizer):
    """Newton steps with one adaptive radius, on all parameters together; a closure as for ``torch.optim.LBFGS``.

    Every ``step(closure)`` tries steps until one lowers the loss by enough, so the closure is called several times, on
    the same data: full batches, or one fixed batch per step. It returns the loss and does **not** call ``backward``.
    Nothing random may happen in it (dropout off).

    Args:
        params: parameters, named parameters, or one group of them, all float32 or all float64, on one device.
        curvature: ``"exact"`` (Hessian, written out up to 1000 parameters and by products beyond), ``"ggn"``
            (generalised Gauss-Newton, by products; the closure returns the pair (loss, logits)), ``"fisher"`` (of the
            samples' gradients; the closure returns the losses of the samples (N,), whose mean is minimised), or
            ``"none"`` (normalised gradient method).
        gamma: first radius γ > 0, in the unit of the parameters; the present one is in ``param_groups[0]["gamma"]``.
        test: ``"function"``, or ``"gradient"`` for convex losses in float32, see :func:`minimize_gns`.
        solver: see :func:`minimize_gns`.
        max_trials: most trials of one step.

    Attributes:
        status: why the last step changed nothing or could be the last, see :class:`OptimizeResult`; empty otherwise.

    Raises:
        ArgumentTypeError: a parameter or an option has the wrong type.
        ArgumentValueError: there are no parameters, more than one group, or an option is not allowed.

    Example:
        >>> x, y = torch.randn(50, 3, dtype=torch.float64), torch.arange(50) % 2
        >>> model = torch.nn.Linear(3, 2, dtype=torch.float64)
        >>> optimizer = GradNormSmooth(model.parameters())
        >>> losses = [float(optimizer.step(lambda: torch.nn.functional.cross_entropy(model(x), y))) for _ in range(10)]
        >>> losses[-1] < losses[0]
        True

    Paper: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, arXiv 2506.13710.
    """

    def __init__(
        self,
        params: Any,
        curvature: str = "exact",
        *,
        gamma: float = 1.0,
        test: str = "function",
        solver: str = "auto",
        max_trials: int = 100,
    ) -> None:
        if not isinstance(params, Iterable) or isinstance(params, Tensor):
            bad_type("params", params, "an iterable of parameters, named parameters or one group")
        params = list(params)
        if not params:
            raise ArgumentValueError("params must hold at least one parameter, got none")
        check_choice("curvature", curvature, CURVATURES)
        check_choice("test", test, TESTS)
        check_choice("solver", solver, SOLVERS)
        check_number("gamma", gamma, low=0.0, low_open=True, high_open=True)
        check_sizes(max_trials=max_trials)
        self.status = ""
        options = {"curvature": curvature, "gamma": gamma, "test": test, "solver": solver, "max_trials": max_trials}
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the first group; one radius serves all parameters, so there can be no second."""
        if self.param_groups:
            raise ArgumentValueError("params must be one group: one radius serves all parameters")
        super().add_param_group(param_group)
        params = self.param_groups[0]["params"]
        kinds = {(p.dtype, p.device) for p in params}
        if len(kinds) > 1 or params[0].dtype not in (torch.float32, torch.float64):
            listed = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ArgumentTypeError(f"params must all be float32 or all float64, on one device, got {listed}")
        if not sum(p.numel() for p in params):
            raise ArgumentValueError("params must hold at least one entry, got empty tensors alone")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Tensor:  # type: ignore[override]
        """Take one accepted step, if there is one.

        Args:
            closure: returns the loss (for ``"ggn"`` and ``"fisher"`` see the class), without ``backward``.

        Returns:
            The loss before the step, a scalar tensor.

        Raises:
            ArgumentTypeError: ``closure`` is no function, or returns something else.
            StateError: the loss or its gradient is not finite before the step.
        """
        if not callable(closure):
            bad_type("closure", closure, "a function that returns the loss")
        group = self.param_groups[0]
        named = group["curvature"]
        problem = AutogradProblem(closure, group["params"], named, "closure")
        x = problem.vector()
        rule = make_rule("adaptive", group["gamma"], group["test"])
        rule.uses_curvature = named != "none"
        written_out = group["solver"] in ("auto", "cholesky")

        def build(at: Tensor) -> Any:
            return with_solver(problem.curvature(named, at, dense=written_out), group["solver"], at)

        options = SearchOptions(grad_tol=0.0, max_trials=group["max_trials"])
        search = Search(problem.value_and_grad, build, as_metric(None, len(x), x), rule, options)
        here = search.point(x)
        if not here.is_finite:
            raise StateError(f"closure must return a finite loss with a finite gradient, got a loss of {here.value}")
        end = here
        self.status = "gradient" if here.dual == 0.0 else ""
        if here.dual > 0.0:
            try:
                end = search.step(here)
            finally:
                problem.assign(end.x)
            self.status = search.status
            group["gamma"] = rule.value
        return x.new_tensor(here.value)
