"""The search: its inequalities, its arithmetic, invariances, where it stops, and bad input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.optim import (
    DenseCurvature,
    LinearPowerResidual,
    LogisticRegression,
    LogSumExp,
    LowRankCurvature,
    Rosenbrock,
    SoftmaxRegression,
    gns_step,
    minimize_gns,
)
from softgate.optim import _search as search

F64 = torch.float64
START = torch.tensor([-1.2, 1.0], dtype=F64)


def randn(*shape):
    return torch.randn(*shape, dtype=F64)


def smooth_maximum(m=20, n=6, mu=0.3):
    A = 2 * torch.rand(m, n, dtype=F64) - 1
    return LogSumExp.with_optimum_at_zero(A, randn(m), mu), A.mT @ A


def test_the_step_is_the_formula_and_never_longer_than_gamma():
    g, rows = randn(3, 5), randn(3, 5, 4)
    H = rows @ rows.mT
    for gamma in (1e-3, 1.0, 1e3):
        h = gns_step(g, H, gamma)
        assert bool((h.norm(dim=-1) <= gamma * (1 + 1e-10)).all())
        for g_i, H_i, h_i in zip(g, H, h, strict=True):
            lam = float(g_i.norm()) / gamma
            torch.testing.assert_close(DenseCurvature(H_i).solve(-g_i, lam), h_i)
    torch.testing.assert_close(gns_step(torch.zeros(2), torch.zeros(2, 2), 1.0), torch.zeros(2))


@pytest.mark.parametrize("curvature", ["exact", "wgn", "none"])
def test_accepted_steps_keep_the_inequality_and_radii_are_powers_of_two(curvature, monkeypatch):
    f, B = smooth_maximum()
    kept = []
    plain = search.Search._move

    def move(self, here, there, h, change):
        kept.append((here, there, self.metric.norm(h), self.rule.value, here.dual / self.rule.value, change))
        return plain(self, here, there, h, change)

    monkeypatch.setattr(search.Search, "_move", move)
    found = minimize_gns(f, torch.ones(6, dtype=F64), curvature=curvature, metric=B, max_iter=60, grad_tol=1e-6)
    assert found.history["fun"] == sorted(found.history["fun"], reverse=True)
    assert len(kept) == found.n_iter == len(found.history["fun"]) - 1
    for here, there, length, gamma, lam, change in kept:
        assert length <= gamma * (1 + 1e-10)
        assert math.log2(gamma).is_integer() and gamma >= search.GAMMA_MIN
        if abs(here.value - there.value) > here.resolution():
            assert change == "accept" and here.value - there.value >= there.dual**2 / (8 * lam)


def test_a_quadratic_is_solved_as_newton_does():
    rows = randn(8, 5)
    H, x0 = rows.mT @ rows + torch.eye(5, dtype=F64), randn(5)
    found = minimize_gns(lambda x: 0.5 * x @ H @ x, x0, curvature=DenseCurvature(H), grad_tol=1e-10)
    assert found.status == "gradient" and found.n_solves == found.n_iter < 15
    for before, after in itertools.pairwise(found.history["gamma"]):
        assert after == 2 * before
    assert float(found.x.norm()) < 1e-9


def test_without_curvature_lambda_settles_at_the_smoothness_of_the_gradient():
    L = 7.0
    scales = torch.linspace(0.5, L, 10, dtype=F64)
    found = minimize_gns(
        lambda x: 0.5 * (scales * x * x).sum(), randn(10), curvature="none", max_iter=80, grad_tol=1e-5
    )
    grads, gammas = found.history["grad_norm"][:-1], found.history["gamma"][1:]  # γ was doubled after the step
    lams = [grad / (gamma / 2) for grad, gamma in zip(grads, gammas, strict=True)]
    assert len(lams) > 20 and all(L / 8 <= lam <= 4 * L for lam in lams[8:])


def test_smoothness_is_at_least_what_the_class_of_the_function_promises():
    """γ of a cubic in one variable: |f'(x+h) - f'(x) - f''(x)h| = h²/2 · L₂, so γ² = 2|f'|/L₂ exactly."""
    f, x0 = (lambda x: (x**3).sum() / 6 + x.sum()), torch.tensor([2.0], dtype=F64)
    grad = float(2.0**2 / 2 + 1)
    promised = math.sqrt(2 * grad / 1.0)
    first = minimize_gns(f, x0, gamma0=promised, max_iter=1, grad_tol=0.0)
    assert first.n_fev == 2  # accepted at once


def test_changed_coordinates_change_nothing():
    f, B = smooth_maximum()
    T = randn(6, 6) + 3 * torch.eye(6, dtype=F64)
    x0 = torch.ones(6, dtype=F64)
    moved = LogSumExp(f.A @ T, f.b, f.mu)
    plain = minimize_gns(f, x0, metric=B, max_iter=6)
    other = minimize_gns(moved, torch.linalg.solve(T, x0), metric=T.mT @ B @ T, max_iter=6)
    torch.testing.assert_close(T @ other.x, plain.x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(other.history["fun"], plain.history["fun"])
    scaled = minimize_gns(
        lambda x: 3.0 * f(x), x0, metric=B, max_iter=6, curvature=lambda x: 3.0 * f.curvature("exact", x).dense()
    )
    torch.testing.assert_close(scaled.x, plain.x)
    assert scaled.history["gamma"] == plain.history["gamma"]


def test_every_solver_takes_the_same_path():
    A, b = randn(4, 9), randn(4)
    f, x0 = LinearPowerResidual(A, b, 4.0), torch.ones(9, dtype=F64)
    B = f.metric()
    options = {"metric": B, "max_iter": 12, "curvature": "ggn"}
    ours = minimize_gns(f, x0, **options)
    for solver in ("cholesky", "woodbury"):
        other = minimize_gns(f, x0, solver=solver, **options)
        torch.testing.assert_close(other.history["fun"], ours.history["fun"], rtol=1e-6, atol=1e-12)
    for solver in ("cg", "lanczos"):  # inexact, and still a descent to the same minimum
        other = minimize_gns(f, x0, solver=solver, metric=B, curvature="ggn", ftol=1e-12, f_star=0.0)
        assert other.status in ("value", "gradient")


def test_functions_get_the_curvatures_of_their_objectives():
    X, y = randn(30, 4), torch.arange(30) % 3
    f, x0 = SoftmaxRegression(X, y, 3, 0.1), torch.zeros(3, 4, dtype=F64)

    def logits_and_loss(W):
        logits = X @ W.mT
        return torch.nn.functional.cross_entropy(logits, y) + 0.05 * W.square().sum(), logits

    def losses(W):
        return torch.nn.functional.cross_entropy(X @ W.mT, y, reduction="none")

    ours = minimize_gns(f, x0, max_iter=6)
    exact = minimize_gns(lambda W: logits_and_loss(W)[0], x0, max_iter=6)
    assert exact.x.shape == (3, 4)
    torch.testing.assert_close(exact.x, ours.x)
    ggn = minimize_gns(logits_and_loss, x0, curvature="ggn")  # the penalty is not seen by the curvature
    assert ggn.success
    best = minimize_gns(f, x0)
    torch.testing.assert_close(ggn.x, best.x, rtol=1e-6, atol=1e-6)
    plain = SoftmaxRegression(X, y, 3)
    fisher = minimize_gns(losses, x0, curvature="fisher", max_iter=10)
    torch.testing.assert_close(fisher.x, minimize_gns(plain, x0, curvature="fisher", max_iter=10).x)


def test_callables_and_operators_serve_as_curvature_and_metric():
    f, B = smooth_maximum()
    x0 = torch.ones(6, dtype=F64)

    class Operator:
        def __init__(self, matrix):
            self.matrix = matrix

        def __matmul__(self, v):
            return self.matrix @ v

    ours = minimize_gns(f, x0, metric=B, curvature="wgn", ftol=1e-9, f_star=float(f(torch.zeros(6, dtype=F64))))
    for made in (lambda x: LowRankCurvature(f.A, f.probabilities(x) / f.mu),
                 lambda x: Operator(f.curvature("wgn", x).dense())):  # fmt: skip
        other = minimize_gns(f, x0, metric=Operator(B), curvature=made, ftol=1e-9, f_star=ours.fun)
        assert other.success and other.fun == pytest.approx(ours.fun, abs=1e-8)


@pytest.mark.parametrize(
    ("rule", "curvature"), [("adaptive", "ggn"), ("preconditioned", "exact"), ("super_newton", "exact"),
                            ("cubic", "exact"), ("gradient_descent", "exact"), ("fixed", "exact")]
)  # fmt: skip
def test_every_rule_finds_the_minimum(rule, curvature):
    X = randn(40, 3)
    f = LogisticRegression(X, X[:, 0] + randn(40) > 0, 0.05)
    found = minimize_gns(f, torch.zeros(3, dtype=F64), rule=rule, curvature=curvature, grad_tol=1e-7)
    assert found.status == "gradient" and found.grad_norm <= 1e-7
    torch.testing.assert_close(found.x, minimize_gns(f, torch.zeros(3, dtype=F64)).x, rtol=1e-5, atol=1e-6)


def test_an_indefinite_hessian_is_regularised_until_it_is_definite():
    found = minimize_gns(Rosenbrock(), START, gamma0=1e4)
    assert found.status == "gradient"
    torch.testing.assert_close(found.x, torch.ones(2, dtype=F64))
    saddle = torch.tensor([0.1, 1e-3], dtype=F64)
    away = minimize_gns(lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, saddle)
    assert away.success and away.fun == pytest.approx(-0.25)


def test_where_it_stops():
    f, B = smooth_maximum()
    zero, x0 = torch.zeros(6, dtype=F64), torch.ones(6, dtype=F64)
    optimal = minimize_gns(lambda x: x.square().sum(), zero)
    assert optimal.success and (optimal.n_iter, optimal.n_solves, optimal.status) == (0, 0, "gradient")
    assert minimize_gns(f, x0, metric=B, max_iter=2).status == "max_iter"
    assert minimize_gns(f, x0, metric=B, ftol=1e-3).status == "change"
    assert minimize_gns(f, x0, metric=B, ftol=1e-8, f_star=float(f(zero))).status == "value"
    assert minimize_gns(f, x0, metric=B, callback=lambda x, value, norm: True).n_iter == 1
    end = minimize_gns(f, x0, metric=B, grad_tol=0.0)
    assert end.status in ("precision", "gradient") and end.success and end.gamma >= search.GAMMA_MIN
    line = minimize_gns(LogSumExp(randn(1, 3)), torch.zeros(3, dtype=F64), metric=None)
    assert line.status == "unbounded" and not line.success and line.gamma == search.GAMMA_MAX
    lost = minimize_gns(lambda x: x.square().sum(), x0, curvature="none", max_trials=1, gamma0=1e9)
    assert lost.status == "search_failed" and torch.equal(lost.x, x0)


def test_the_other_side_of_a_valley_is_not_the_bottom():
    mirrored = minimize_gns(lambda x: x.square().sum(), torch.ones(1, dtype=F64), curvature="none", gamma0=2.0)
    assert mirrored.status == "gradient" and abs(float(mirrored.x)) < 1e-8


def test_separable_data_end_where_the_gradient_is_small():
    X = torch.cat([randn(20, 2) + 4.0, randn(20, 2) - 4.0])
    found = minimize_gns(LogisticRegression(X, torch.arange(40) < 20), torch.zeros(2, dtype=F64), grad_tol=1e-6)
    assert found.status == "gradient" and found.fun < 1e-5


def test_non_finite_trials_are_rejected():
    def f(x):
        return x.log().sum().neg() + x.sum()

    found = minimize_gns(f, torch.tensor([5.0, 0.1], dtype=F64), gamma0=100.0, curvature="none")
    assert found.success
    torch.testing.assert_close(found.x, torch.ones(2, dtype=F64), rtol=1e-6, atol=1e-6)


def test_float32_and_duplicated_rows():
    f, _ = smooth_maximum()
    single = LogSumExp(torch.cat([f.A, f.A]).float(), torch.cat([f.b, f.b]).float(), f.mu)
    found = minimize_gns(single, torch.ones(6), test="gradient", grad_tol=1e-4)
    assert found.success and found.x.dtype == torch.float32
    assert float(found.x.abs().max()) < 1e-2


BAD = [
    ({"metric": torch.tensor([[1.0, 2.0], [0.0, 1.0]])}, ArgumentValueError, "metric must be symmetric"),
    ({"metric": -torch.eye(2)}, ArgumentValueError, "metric must be positive definite"),
    ({"metric": torch.tensor([1.0, -1.0])}, ArgumentValueError, "metric must be positive definite"),
    ({"metric": torch.eye(3)}, ArgumentValueError, "metric must have shape"),
    ({"metric": torch.eye(2, dtype=torch.int64)}, ArgumentTypeError, "metric"),
    ({"metric": "I"}, ArgumentTypeError, "metric"),
    ({"gamma0": 0.0}, ArgumentValueError, "gamma0"),
    ({"grad_tol": -1.0}, ArgumentValueError, "grad_tol"),
    ({"max_iter": 0}, ArgumentValueError, "max_iter"),
    ({"curvature": "wgn"}, ArgumentValueError, "curvature"),
    ({"curvature": 3}, ArgumentTypeError, "curvature"),
    ({"curvature": lambda x: torch.eye(3)}, ArgumentValueError, "curvature must give a matrix"),
    ({"curvature": lambda x: torch.eye(2) * math.nan}, ArgumentValueError, "curvature must be finite"),
    (
        {"curvature": lambda x: torch.tensor([[1.0, 2.0], [0.0, 1.0]])},
        ArgumentValueError,
        "curvature must be symmetric",
    ),
    ({"curvature": lambda x: None}, ArgumentTypeError, "curvature"),
    ({"curvature": "none", "rule": "cubic"}, ArgumentValueError, "curvature"),
    ({"curvature": DenseCurvature(torch.eye(3))}, ArgumentValueError, "curvature must be of size 2"),
    ({"solver": "woodbury"}, ArgumentValueError, "woodbury"),
    ({"solver": "qr"}, ArgumentValueError, "solver"),
    ({"rule": "newton"}, ArgumentValueError, "rule"),
    ({"test": "both"}, ArgumentValueError, "test"),
    ({"callback": 3}, ArgumentTypeError, "callback"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        minimize_gns(lambda x: x.pow(4).sum(), START, **options)


def test_bad_functions_and_starts():
    for x0, error in (([1.0], ArgumentTypeError), (START.half(), ArgumentTypeError), (START[:0], ArgumentValueError),
                      (START * math.inf, ArgumentValueError)):  # fmt: skip
        with pytest.raises(error, match="x0"):
            minimize_gns(lambda x: x.sum(), x0)
    with pytest.raises(ArgumentValueError, match="x0 must have 3 entries"):
        minimize_gns(LogSumExp(torch.eye(3, dtype=F64)), START)
    for fun, error, message in (
        (3, ArgumentTypeError, "fun"), (lambda x: x, ArgumentValueError, "scalar"),
        (lambda x: 3.0, ArgumentTypeError, "fun must return a tensor"),
        (lambda x: x.detach().sum(), ArgumentValueError, "differentiable"),
        (lambda x: x.sum() * math.nan, ArgumentValueError, "finite value"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            minimize_gns(fun, START)
    with pytest.raises(ArgumentTypeError, match="pair"):
        minimize_gns(lambda x: x.square().sum(), START, curvature="ggn")
    with pytest.raises(ArgumentValueError, match="losses of the samples"):
        minimize_gns(lambda x: x.square().sum(), START, curvature="fisher")
