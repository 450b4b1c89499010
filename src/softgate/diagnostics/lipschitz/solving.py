"""Solve one problem with one of the methods; the result is always a proof."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor

from softgate.diagnostics.lipschitz import barrier, chain, forms
from softgate.diagnostics.lipschitz.certificate import Proof, reduced_form
from softgate.diagnostics.lipschitz.networks import Network, chain_of, form_of
from softgate.errors import ArgumentValueError, MissingExtraError, StateError

__all__: list[str] = []

METHODS = ("auto", "barrier", "scaling", "cvxpy")
#: Unknowns (inputs and activations) up to which the barrier method is the quicker one for layer-wise multipliers.
_SMALL = 400


def takes_scaling(network: Network, multiplier: str) -> bool:
    """Whether the layers of ``network`` can be scaled one by one."""
    known = all(a.kind in ("groupsort", "maxmin", "householder") for a in network.activations)
    return network.kind == "feedforward" and multiplier == "diagonal" and known


def chosen_method(network: Network, multiplier: str, norm: str, method: str) -> str:
    """The method behind ``"auto"``; and whether the wanted one can be used."""
    scalable = takes_scaling(network, multiplier)
    if method == "scaling" and not scalable:
        raise ArgumentValueError(
            "method='scaling' is for feed-forward networks of GroupSort, MaxMin or Householder with "
            "multiplier='diagonal'; use 'barrier'"
        )
    if method != "auto":
        return method
    inputs = network.weights[0].shape[1]
    inputs = min(inputs, len(network.weights[0])) if norm == "l2" else inputs
    return "scaling" if scalable and inputs + unknowns(network, multiplier) > _SMALL else "barrier"


def unknowns(network: Network, multiplier: str) -> int:
    """How many numbers the changes of all activations are."""
    layers = zip(network.weights, network.activations, strict=False)
    return sum(activation.unknowns(len(weight), multiplier) for weight, activation in layers)


def prove(network: Network, multiplier: str, norm: str, row: int | None, method: str, tol: float) -> tuple[Proof, bool]:
    """A proof with nearly the least bound, and whether ``tol`` was met."""
    if method == "scaling":
        problem = chain_of(network, norm, row)
        logs, converged = chain.minimise(problem, tol)
        return Proof(network, norm, row, multiplier, True, logs), converged
    form = reduced_form(network, multiplier, norm, row)
    weights = form.output[0].abs() if norm == "linf" else None
    multipliers, converged = torch.zeros(form.groups, dtype=torch.float64), True
    if form.groups and not form.is_zero:
        contraction = _contraction(network, multiplier)
        solve = _solve_cvxpy if method == "cvxpy" else barrier.minimise
        begin, asked = forms.start(form, contraction)
        inequality, theta = (euclidean if norm == "l2" else _absolute)(form, begin, asked)
        theta, converged = solve(inequality, theta, 0.1 * tol)
        multipliers = theta[-form.groups :]
        weights = theta[1 : 1 + form.inputs] if norm == "linf" else None
    proof = Proof(network, norm, row, multiplier, False, multipliers, weights)
    return proof, converged


def euclidean(form: forms.Form, begin: Tensor, asked: Tensor) -> tuple[barrier.Inequality, Tensor]:
    """The inequality for variables ρ and λ, and a feasible point, from what :func:`forms.start` returns."""
    n = form.inputs
    own = torch.cat((torch.zeros(n, dtype=torch.long), 1 + form.group))
    cost = torch.zeros(1 + form.groups, dtype=torch.float64)
    cost[0] = 1.0
    rho = 1.5 * float(torch.linalg.eigvalsh(asked)[-1])
    problem = barrier.Inequality(form.seen, own, 1 + form.group, form.output.mT @ form.output, cost)
    return problem, torch.cat((cost.new_tensor([rho]), begin))


def _absolute(form: forms.Form, begin: Tensor, asked: Tensor) -> tuple[barrier.Inequality, Tensor]:
    """One more row and column for the output; variables t, μ, λ, the bound (t + Σ μ) / 2."""
    n, size = form.inputs, 1 + form.seen.shape[1]
    own = torch.cat((torch.arange(1 + n), 1 + n + form.group))
    fixed = torch.zeros(size, size, dtype=torch.float64)
    fixed[0, 1:] = fixed[1:, 0] = form.output[0]
    cost = torch.zeros(1 + n + form.groups, dtype=torch.float64)
    cost[: 1 + n] = 0.5
    seen = torch.cat((torch.zeros(len(form.seen), 1, dtype=torch.float64), form.seen), 1)
    # Cauchy and Schwarz: x^T S x ≤ (Σ s_k |x_k|)² ≤ Σ s · Σ s_k x_k²
    root = asked.diagonal().clamp_min(0.0).sqrt()
    root = root.clamp_min(1e-6 * float(root.max()))
    weights = 1.5 * root.sum() * root
    even = math.sqrt(float(weights.sum()))
    theta = torch.cat((cost.new_tensor([even]), weights / even, begin / even))
    return barrier.Inequality(seen, own, 1 + n + form.group, fixed, cost), theta


def contracting(network: Network) -> Tensor:
    """Multipliers with which z -> φ(W z + U x) is a contraction for every x, so that there is exactly one z.

    Returns:
        One for each group of the layer-wise multipliers.

    Raises:
        StateError: none were found, so the model may have no or several solutions.
    """
    (activation,), loop = network.activations, network.weights[0]
    known = activation.increments(len(loop), "diagonal")
    look, carry = (known.look, known.look.mT) if activation.is_elementwise else (known.look, known.carry)
    factor, groups = activation.stretch * look @ loop @ carry, known.group
    logs = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
    size = float(torch.linalg.matrix_norm(factor, 2))
    if size >= 1.0:
        logs = _least_loop(factor, groups, logs)
        half = 0.5 * logs[groups]
        size = float(torch.linalg.matrix_norm(half.exp()[:, None] * factor * (-half).exp(), 2))
    if size >= 1.0:
        raise StateError(
            f"the implicit model has no certificate that its equation has one solution: the smallest scaled norm of W "
            f"that was found is {size:.4g}, which must be below 1"
        )
    return logs.exp()


def _contraction(network: Network, multiplier: str) -> Tensor | None:
    """The multipliers of :func:`contracting` for the groups of the form; None for a model without a loop."""
    if network.kind != "implicit":
        return None
    found = contracting(network)
    activation, width = network.activations[0], len(network.weights[0])
    layered, own = (activation.increments(width, kind) for kind in ("diagonal", multiplier))
    # the columns of the form are among those of the layer-wise one, in another order
    same = (own.carry.mT @ layered.carry).abs().argmax(1)
    every = found.new_zeros(int(own.group.max()) + 1).index_copy_(0, own.group, found[layered.group[same]])
    return every[form_of(network, multiplier, "l2", None).pruned()[1]]


def _least_loop(factor: Tensor, groups: Tensor, logs: Tensor) -> Tensor:
    """Logarithms with a small norm of exp(u/2) W exp(-u/2), by descent on a smoothed norm."""
    for order in (8.0, 64.0, 512.0):
        logs = logs.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([logs], max_iter=100, line_search_fn="strong_wolfe")

        def closure(logs: Tensor = logs, order: float = order) -> Tensor:
            half = 0.5 * logs.detach()[groups]
            value, left, right = chain.schatten(half.exp()[:, None] * factor * (-half).exp(), order)
            logs.grad = torch.zeros_like(logs).index_add_(0, groups, 0.5 * (left - right))
            return torch.tensor(value, dtype=torch.float64)

        optimizer.step(closure)
        logs = logs.detach()
    return logs


def _solve_cvxpy(problem: barrier.Inequality, theta: Tensor, tol: float) -> tuple[Tensor, bool]:
    """The same problem by a solver behind cvxpy; its answer is moved inside until it proves a bound."""
    try:
        cvxpy: Any = importlib.import_module("cvxpy")
    except ImportError:
        raise MissingExtraError("cvxpy", "lipschitz", "method='cvxpy'") from None
    scale = theta.numpy()  # the start has the right magnitudes
    x = cvxpy.Variable(len(theta), nonneg=True)
    values = cvxpy.multiply(scale, x)
    seen = problem.seen.numpy()
    matrix = cvxpy.diag(values[problem.own.numpy()]) - problem.fixed.numpy()
    matrix = matrix - seen.T @ cvxpy.diag(values[problem.of.numpy()]) @ seen
    shrink = problem.linear(theta).diagonal().clamp_min(1e-300).rsqrt().numpy()
    inequality = cvxpy.multiply(shrink[:, None] * shrink, 0.5 * (matrix + matrix.T)) >> 0
    solver = "CLARABEL" if "CLARABEL" in cvxpy.installed_solvers() else None
    cvxpy.Problem(cvxpy.Minimize(problem.cost.numpy() @ values), [inequality]).solve(solver=solver)
    if x.value is None:
        return theta, False
    found = torch.as_tensor(scale * x.value)
    share = 1e-9
    while share < 1.0:  # a mixture with the feasible start is feasible once the share of the start is large enough
        mixed = (1.0 - share) * found + share * theta
        if not int(torch.linalg.cholesky_ex(problem.linear(mixed) - problem.fixed).info):
            return mixed, share * float(problem.cost @ theta) <= 100.0 * tol * float(problem.cost @ mixed)
        share *= 4.0
    return theta, False
