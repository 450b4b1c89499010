"""Solvers agree with each other, curvatures with the Hessians they stand for, identities of the paper."""

from __future__ import annotations

import pytest
import torch

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.optim import (
    BandedCurvature,
    BlockDiagCurvature,
    ChebyshevChain,
    DenseCurvature,
    LinearPowerResidual,
    LogisticRegression,
    LogSumExp,
    LowRankCurvature,
    MatVecCurvature,
    PowerResidual,
    RankOneCurvature,
    Rosenbrock,
    SoftmaxRegression,
)
from softgate.optim._metric import as_metric

F64 = torch.float64


def randn(*shape):
    return torch.randn(*shape, dtype=F64)


def spd(n):
    rows = randn(n + 2, n)
    return rows.mT @ rows + 0.1 * torch.eye(n, dtype=F64)


def metrics(n):
    return {"identity": None, "diagonal": torch.rand(n, dtype=F64) + 0.5, "dense": spd(n)}


def curvatures():
    """One of each class, of size 12; the band crosses blocks where n is larger, see the next test."""
    G, v = randn(4, 12), randn(12)
    rows = randn(3, 6, 4)
    bands = randn(3, 12)
    bands[0] += 8.0
    tall = randn(20, 12)
    return {
        "dense": DenseCurvature(spd(12)),
        "wide": LowRankCurvature(G, torch.rand(4, dtype=F64)),
        "tall": LowRankCurvature(tall, torch.rand(20, dtype=F64)),
        "shifted": LowRankCurvature(G, None, torch.rand(12, dtype=F64)),
        "rows": LowRankCurvature(G).woodbury(),
        "rank one": RankOneCurvature(0.7, v),
        "blocks": BlockDiagCurvature(rows.mT @ rows),
        "banded": BandedCurvature(bands, 0.3, v),
        "cg": MatVecCurvature(LowRankCurvature(G).matvec, 12, tol=1e-12),
        "lanczos": MatVecCurvature(LowRankCurvature(G).matvec, 12, "lanczos", tol=1e-12),
    }


@pytest.mark.parametrize("metric", ["identity", "diagonal", "dense"])
@pytest.mark.parametrize("name", list(curvatures()))
def test_every_solver_solves(name, metric):
    curvature, B = curvatures()[name], metrics(12)[metric]
    H, rhs = curvature.dense(), randn(12)
    torch.testing.assert_close(H, H.mT)
    torch.testing.assert_close(curvature.matvec(rhs), H @ rhs)
    matrix = torch.eye(12, dtype=F64) if B is None else (B if B.ndim == 2 else torch.diag(B))
    made = as_metric(B, 12, rhs)  # one object, as in a search: parts that hold for every λ are kept
    for lam in (2.0, 0.5, 1e-3, 0.1):
        found = curvature.solve(rhs, lam, made)
        torch.testing.assert_close(found, torch.linalg.solve(H + lam * matrix, rhs), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("width", "n"), [(1, 100), (3, 70), (40, 90), (1, 33), (0, 50)])
def test_a_band_is_solved_across_blocks(width, n):
    bands = randn(width + 1, n)
    bands[0] += 4.0 * (width + 1)
    curvature, rhs = BandedCurvature(bands), randn(n)
    expected = torch.linalg.solve(curvature.dense() + 0.5 * torch.eye(n, dtype=F64), rhs)
    torch.testing.assert_close(curvature.solve(rhs, 0.5), expected)


@pytest.mark.parametrize("lam", [1e-9, 1e-6, 1.0])
def test_low_rank_solves_keep_their_digits_where_lambda_is_small(lam):
    G = randn(3, 8)
    truth = LowRankCurvature(G.double(), None).cholesky()
    rhs = G.mT @ randn(3)  # gradients of such functions lie in the span of the rows
    expected = torch.linalg.lstsq(truth.dense() + lam * torch.eye(8, dtype=F64), rhs[:, None]).solution[:, 0]
    torch.testing.assert_close(LowRankCurvature(G).solve(rhs, lam), expected, rtol=1e-6, atol=1e-6)
    v = randn(8)
    parallel = RankOneCurvature(2.0, v).solve(3.0 * v, lam)
    torch.testing.assert_close(parallel, 3.0 * v / (lam + 2.0 * v.dot(v)), rtol=1e-13 / lam, atol=0.0)


def test_one_krylov_space_serves_every_lambda():
    H, calls = spd(30), []

    def product(v):
        calls.append(1)
        return H @ v

    curvature, rhs = MatVecCurvature(product, 30, "lanczos", tol=1e-10), randn(30)
    metric = as_metric(None, 30, rhs)
    curvature.solve(rhs, 0.01, metric)
    spent = len(calls)
    for lam in (0.02, 0.5, 8.0):
        found = curvature.solve(rhs, lam, metric)
        torch.testing.assert_close(found, DenseCurvature(H).solve(rhs, lam), rtol=1e-8, atol=1e-8)
    assert len(calls) == spent <= 30


def test_what_is_not_positive_definite_is_said_to_be_so():
    H = torch.diag(torch.tensor([1.0, -2.0, 3.0], dtype=F64))
    rhs = torch.ones(3, dtype=F64)
    bands = H.diagonal()[None].clone()
    blocks = H.diagonal()[:, None, None].clone()
    for curvature in (DenseCurvature(H), MatVecCurvature(lambda v: H @ v, 3), BandedCurvature(bands),
                      MatVecCurvature(lambda v: H @ v, 3, "lanczos"), BlockDiagCurvature(blocks)):  # fmt: skip
        with pytest.raises(StateError, match="positive definite"):
            curvature.solve(rhs, 1.0)
        torch.testing.assert_close(curvature.solve(rhs, 4.0), rhs / (H.diagonal() + 4.0), rtol=0.15, atol=0.0)
    clipped = DenseCurvature(H).clipped().dense()
    torch.testing.assert_close(clipped, torch.diag(torch.tensor([1.0, 0.0, 3.0], dtype=F64)))


def objectives():
    A, b = randn(9, 4), randn(9)
    X, y = randn(11, 3), torch.arange(11) % 3
    return {
        "lse": LogSumExp(A, b, 0.4),
        "logistic": LogisticRegression(X, y > 0, 0.1),
        "softmax": SoftmaxRegression(X, y, None, torch.tensor([0.1, 0.0, 0.3], dtype=F64)),
        "linear": LinearPowerResidual(A, b, 3.0),
        "wide": LinearPowerResidual(randn(2, 4), randn(2), 4.0),
        "residual": PowerResidual(lambda x: torch.cat([x.sin(), x.square()]), 3.0, 3),
        "rosenbrock": Rosenbrock(5.0),
        "chebyshev": ChebyshevChain(5, 4.0),
    }


@pytest.mark.parametrize("name", list(objectives()))
def test_gradients_and_hessians_are_those_of_the_value(name):
    f = objectives()[name]
    x = randn(f.dim)
    value, grad = f.value_and_grad(x)
    torch.testing.assert_close(f(x), value)
    torch.testing.assert_close(grad, torch.func.grad(f)(x))
    torch.testing.assert_close(f.curvature("exact", x).dense(), torch.func.hessian(f)(x), rtol=1e-9, atol=1e-10)
    v = randn(f.dim)
    for kind in f.curvatures:
        curvature = f.curvature(kind, x)
        torch.testing.assert_close(curvature.matvec(v), curvature.dense() @ v)
        if kind != "exact":
            assert float(torch.linalg.eigvalsh(curvature.dense()).min()) > -1e-9


def test_weighted_gauss_newton_exceeds_the_hessian_by_the_gradient_alone():
    f = objectives()["lse"]
    x = randn(4)
    _, grad = f.value_and_grad(x)
    gap = f.curvature("wgn", x).dense() - f.curvature("exact", x).dense()
    torch.testing.assert_close(gap, torch.outer(grad, grad) / f.mu, rtol=0.0, atol=1e-12)
    B = as_metric(f.metric(), 4, x)
    assert max(B.dual(row) for row in f.A) <= 1.0 + 1e-12


def test_fisher_and_majorizers_bound_the_hessian():
    X, y = randn(11, 3), torch.arange(11) % 2
    f, w = LogisticRegression(X, y), randn(3)
    H = f.curvature("exact", w).dense()
    off = float(torch.linalg.matrix_norm(H - f.curvature("fisher", w).dense(), 2))
    assert off <= float(f(w)) * float(X.square().sum(1).max())
    assert float(torch.linalg.eigvalsh(f.curvature("majorizer", w).dense() - H).min()) > -1e-12
    g = objectives()["softmax"]
    W = randn(9)
    gap = g.curvature("majorizer", W).dense() - g.curvature("exact", W).dense()
    assert float(torch.linalg.eigvalsh(gap).min()) > -1e-12


def test_the_formulas_of_the_power_of_residuals():
    f = objectives()["residual"]
    x = randn(3)
    u, J = f.u(x), f.jacobian(x)
    size, pulled = u.norm(), J.mT @ u
    fisher = size ** (f.p - 4) * (f.p - 2) * torch.outer(pulled, pulled)
    torch.testing.assert_close(f.curvature("fisher", x).dense(), fisher)
    torch.testing.assert_close(f.curvature("ggn", x).dense(), size ** (f.p - 2) * J.mT @ J + fisher)
    grad = f.value_and_grad(x)[1]
    torch.testing.assert_close(fisher, (f.p - 2) / size**f.p * torch.outer(grad, grad))


@pytest.mark.parametrize("p", [2.0, 3.0, 4.0])
def test_at_a_solution_the_limits_are_taken(p):
    f = LinearPowerResidual(torch.eye(3, dtype=F64), torch.ones(3, dtype=F64), p)
    x = torch.ones(3, dtype=F64)
    value, grad = f.value_and_grad(x)
    assert float(value) == 0.0 and not grad.any()
    for kind, expected in (("fisher", 0.0), ("exact", 1.0 if p == 2.0 else 0.0)):
        torch.testing.assert_close(f.curvature(kind, x).dense(), expected * torch.eye(3, dtype=F64))


def test_the_usual_start_of_the_chain_misses_one_equation():
    f = ChebyshevChain(6, 4.0)
    torch.testing.assert_close(f.u(f.start()), torch.eye(6, dtype=F64)[0])
    assert float(f(f.start())) == 0.25


def test_log_sum_exp_approaches_the_maximum_and_stays_finite():
    A, b, x = randn(6, 3), randn(6), randn(3)
    largest = (A @ x - b).max()
    assert float(LogSumExp(A, b, 1e-6)(x) - largest) == pytest.approx(0.0, abs=1e-5)
    value, grad = LogSumExp(A, b, 1e-6).value_and_grad(1e8 * x)
    assert value.isfinite() and grad.isfinite().all()
    optimum = LogSumExp.with_optimum_at_zero(A, b, 0.5)
    assert float(optimum.value_and_grad(torch.zeros(3, dtype=F64))[1].abs().max()) < 1e-14
    wide = LogSumExp(randn(2, 5))
    torch.linalg.cholesky(wide.metric())  # singular AᵀA: the tiny diagonal makes it usable


def test_bad_input():
    A = torch.eye(3, dtype=F64)
    for wrong, word in ((lambda: LogSumExp(A, mu=0.0), "mu"), (lambda: LogSumExp(A, torch.ones(2)), "b"),
                        (lambda: LogSumExp(torch.ones(3)), "A"), (lambda: LogSumExp(A * float("nan")), "A"),
                        (lambda: LinearPowerResidual(A, torch.ones(3), 1.5), "p"),
                        (lambda: ChebyshevChain(1), "n"), (lambda: LogSumExp(A).curvature("fisher", A[0]), "wgn"),
                        (lambda: LogisticRegression(A, torch.tensor([0, 1, 2])), "y"),
                        (lambda: LogisticRegression(A, torch.tensor([0, 1])), "y"),
                        (lambda: LogisticRegression(A, torch.tensor([0, 1, 1]), -1.0), "l2"),
                        (lambda: SoftmaxRegression(A, torch.tensor([0, 1, 3]), 3), "y"),
                        (lambda: DenseCurvature(torch.ones(2, 3)), "H"),
                        (lambda: RankOneCurvature(-1.0, A[0]), "alpha"),
                        (lambda: LowRankCurvature(A, -torch.ones(3)), "weight"),
                        (lambda: BlockDiagCurvature(A), "blocks"), (lambda: BandedCurvature(A[0]), "bands"),
                        (lambda: DenseCurvature(A).woodbury(), "solver"),
                        (lambda: MatVecCurvature(lambda v: v, 3, "qr"), "solver"),
                        (lambda: MatVecCurvature(lambda v: v[:2], 3).solve(A[0], 1.0), "matvec"),
                        (lambda: MatVecCurvature(lambda v: v / 0.0, 3).solve(A[0], 1.0), "finite")):  # fmt: skip
        with pytest.raises(ArgumentValueError, match=word):
            wrong()
    for wrong, word in ((lambda: LogSumExp(A.half()), "A"), (lambda: SoftmaxRegression(A, torch.ones(3)), "y"),
                        (lambda: PowerResidual(A, 2.0), "u"), (lambda: MatVecCurvature(A, 3), "matvec")):  # fmt: skip
        with pytest.raises(ArgumentTypeError, match=word):
            wrong()
