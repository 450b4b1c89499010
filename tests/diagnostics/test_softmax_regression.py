"""Softmax regression: derivatives, shifts with their bounds, solvers, query inversion."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from softgate.attention import solve_query
from softgate.diagnostics import softmax_regression as sr
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError

D = torch.float64
SOLVERS = ("lm", "newton", "gd", "lbfgs")


def problem(n: int, d: int, *batch: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, weight and a distribution that no weight attains."""
    return (
        scale * torch.randn(*batch, n, d, dtype=D),
        torch.randn(*batch, d, dtype=D),
        torch.randn(*batch, n, dtype=D).softmax(-1),
    )


def loops(A: Tensor, x: Tensor, b: Tensor) -> float:
    """The definition, with an explicit partition function."""
    e = [math.exp(sum(float(a) * float(v) for a, v in zip(row, x, strict=True))) for row in A]
    return 0.5 * sum((v / sum(e) - float(t)) ** 2 for v, t in zip(e, b, strict=True))


def test_the_loss_is_the_definition() -> None:
    A, x, b = problem(6, 3)
    assert float(sr.loss(A, x, b)) == pytest.approx(loops(A, x, b), rel=1e-12)
    w = torch.rand(6, dtype=D)
    extra = 0.5 * float(((w * (A @ x)) ** 2).sum())
    assert float(sr.loss(A, x, b, w)) == pytest.approx(loops(A, x, b) + extra, rel=1e-12)


@pytest.mark.parametrize("regularised", [False, True], ids=["plain", "regularised"])
def test_closed_forms_are_the_derivatives(regularised: bool) -> None:
    A, x, b = problem(7, 4)
    w = torch.rand(7, dtype=D) if regularised else None
    gradient, by_A = torch.func.grad(lambda x, A: sr.loss(A, x, b, w), argnums=(0, 1))(x, A)
    torch.testing.assert_close(sr.grad(A, x, b, w), gradient, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(sr.grad_A(A, x, b, w), by_A, rtol=1e-10, atol=1e-14)
    second = torch.func.hessian(lambda x: sr.loss(A, x, b, w))(x)
    torch.testing.assert_close(sr.hessian(A, x, b, w), second, rtol=1e-10, atol=1e-14)


def test_gradient_by_finite_differences() -> None:
    A, x, b = problem(5, 3)
    step = 1e-6
    numeric = [(sr.loss(A, x + step * e, b) - sr.loss(A, x - step * e, b)) / (2 * step) for e in torch.eye(3, dtype=D)]
    torch.testing.assert_close(sr.grad(A, x, b), torch.stack(numeric), rtol=0, atol=1e-9)


def test_the_hessian_is_the_papers_matrix() -> None:
    A, x, b = problem(7, 4)
    f = (A @ x).softmax(-1)
    c, J = f - b, f.diag() - f.outer(f)
    fc = f * c
    D_ = fc.diag() - fc.outer(f) - f.outer(fc) - f.dot(c) * f.diag() + 2 * f.dot(c) * f.outer(f)
    torch.testing.assert_close(sr.hessian(A, x, b), A.T @ (J @ J + D_) @ A)
    torch.testing.assert_close(sr.hessian(A, x, b, gauss_newton=True), A.T @ J @ J @ A)


def test_the_hessian_may_be_indefinite_and_the_regulariser_repairs_it() -> None:
    torch.manual_seed(1)
    A, x, b = problem(7, 4, 500)
    lowest = torch.linalg.eigvalsh(sr.hessian(A, x, b))[:, 0]
    assert float(lowest.min()) < -1e-3
    gauss_newton = torch.linalg.eigvalsh(sr.hessian(A, x, b, gauss_newton=True))
    assert float(gauss_newton.min()) > -1e-12
    w = torch.full((7,), 2.0, dtype=D)
    assert float(torch.linalg.eigvalsh(sr.hessian(A, x, b, w))[:, 0].min()) > 0


def test_a_common_vector_on_all_rows_changes_nothing_but_its_own_gradient() -> None:
    A, x, b = problem(6, 3)
    moved = A + torch.tensor([5.0, -2.0, 1.0], dtype=D)
    for function in (sr.loss, sr.grad, sr.grad_A, sr.hessian):
        torch.testing.assert_close(function(moved, x, b), function(A, x, b))
    torch.testing.assert_close(sr.grad_A(A, x, b).sum(-2), torch.zeros(3, dtype=D), rtol=0, atol=1e-15)


def test_an_orthogonal_change_of_basis_turns_the_gradient_with_it() -> None:
    A, x, b = problem(6, 3)
    Q = torch.linalg.qr(torch.randn(3, 3, dtype=D)).Q
    assert float(sr.loss(A @ Q, Q.T @ x, b)) == pytest.approx(float(sr.loss(A, x, b)), rel=1e-12)
    torch.testing.assert_close(sr.grad(A @ Q, Q.T @ x, b), Q.T @ sr.grad(A, x, b))


def test_scores_that_overflow_the_exponential_do_no_harm() -> None:
    A = torch.tensor([[200.0], [0.0]])
    assert float(sr.loss(A, torch.tensor([10.0]), torch.tensor([1.0, 0.0]))) == 0.0


def test_one_row_has_nothing_to_fit() -> None:
    A, x, b = problem(1, 3)
    assert float(sr.loss(A, x, torch.ones(1, dtype=D))) == 0.0
    assert not sr.grad(A, x, b).any() and not sr.hessian(A, x, b).any()
    found, info = sr.SoftmaxRegression().fit(A, torch.ones(1, dtype=D))
    assert not found.any() and info.status == ("converged",) and int(info.rank) == 0


@pytest.mark.parametrize("change", ["x", "A"])
def test_the_shifted_target_has_the_same_residual(change: str) -> None:
    A, x, b = problem(6, 3)
    new_x, new_A = x + torch.randn(3, dtype=D), A + 0.3 * torch.randn(6, 3, dtype=D)
    if change == "x":
        shift, after = sr.target_shift(A, x, x_new=new_x), (A @ new_x).softmax(-1)
    else:
        shift, after = sr.target_shift(A, x, A_new=new_A), (new_A @ x).softmax(-1)
    torch.testing.assert_close((A @ x).softmax(-1) - (b + shift), after - b, rtol=0, atol=1e-15)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_bounds_hold_in_their_order(scale: float) -> None:
    A, x, _ = problem(6, 3, 3000, scale=scale)
    size = 10 ** (-3 + 4 * torch.rand(3000, 1, dtype=D))
    dx = size * torch.randn(3000, 3, dtype=D)
    dA = 0.3 * size[..., None] * torch.randn(3000, 6, 3, dtype=D)
    for change in ({"dx": dx}, {"dA": dA}, {"dx": dx, "dA": dA}):
        new_x, new_A = x + change.get("dx", 0.0), A + change.get("dA", 0.0)
        moved = sr.target_shift(A, x, x_new=new_x, A_new=new_A).norm(dim=-1)
        local, sharp, paper = (sr.shift_bound(A, x, **change, kind=kind) for kind in ("local", "sharp", "paper"))
        assert bool((moved <= local * (1 + 1e-9)).all())
        assert bool((local <= sharp * (1 + 1e-9)).all())
        assert bool((sharp <= paper * (1 + 1e-9)).all())


def test_the_local_bound_sees_an_entry_that_is_large_only_on_the_way() -> None:
    # f is (0, .5, .5, 0, 0) at one end and (0, 0, 0, .5, .5) at the other, and almost (1, 0, 0, 0, 0) between them
    before, change = torch.tensor([0.0, 20.0, 20.0, -60.0, -60.0], dtype=D), torch.tensor(80.0, dtype=D)
    direction = torch.tensor([0.0, -1.0, -1.0, 1.0, 1.0], dtype=D)
    A, x, dx = torch.stack((before, direction), 1), torch.tensor([1.0, 0.0], dtype=D), torch.stack((change * 0, change))
    moved = float(sr.target_shift(A, x, x_new=x + dx).norm())
    assert 0.9 < moved <= float(sr.shift_bound(A, x, dx=dx, kind="local"))


def test_two_equal_entries_attain_the_sharp_constant() -> None:
    A = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], dtype=D)
    A[2, 1] = -60.0  # leaves ½ and ½
    x, dx = torch.tensor([0.0, 1.0], dtype=D), torch.tensor([1e-4, 0.0], dtype=D)
    moved = float(sr.target_shift(A, x, x_new=x + dx).norm())
    half = 0.5 * float(torch.linalg.matrix_norm(A[:2], 2)) * 1e-4
    assert moved == pytest.approx(half, rel=0.01)
    assert moved <= float(sr.shift_bound(A[:2], x, dx=dx)) * (1 + 1e-9)


def test_first_order_small_changes_move_the_target_linearly() -> None:
    A, x, _ = problem(8, 4)
    dx = torch.randn(4, dtype=D)
    moved = [float(sr.target_shift(A, x, x_new=x + size * dx).norm()) for size in (1e-4, 1e-5)]
    assert math.log10(moved[0] / moved[1]) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_finds_an_attainable_target(solver: str) -> None:
    A, x, _ = problem(5, 2)
    x = 0.3 * x  # gradient descent gets nowhere where the softmax is steep
    fit = sr.SoftmaxRegression(solver, max_iter=3000, warm_start="zero")
    found, info = fit.fit(A, (A @ x).softmax(-1))
    torch.testing.assert_close(found, x, rtol=0, atol=1e-6)
    assert info.status == ("converged",) and float(info.residual) < 1e-6


def test_levenberg_marquardt_converges_to_rounding_within_a_few_iterations() -> None:
    A, x, _ = problem(50, 10)
    x = 0.5 * x
    found, info = sr.SoftmaxRegression(warm_start="zero").fit(A, (A @ x).softmax(-1))
    assert int(info.iterations) <= 25 and float(info.loss) < 1e-20
    torch.testing.assert_close(found, x, rtol=0, atol=1e-8)


def test_the_log_start_is_exact_where_the_target_is_attainable() -> None:
    A, x, _ = problem(50, 10)
    found, info = sr.SoftmaxRegression(max_iter=2).fit(A, (A @ x).softmax(-1))
    assert float(info.losses[0]) < 1e-28
    torch.testing.assert_close(found, x, rtol=0, atol=1e-10)


def test_an_unattainable_target_ends_where_scipy_ends_with_falling_losses() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    A, _, b = problem(9, 3)
    found, info = sr.SoftmaxRegression(max_iter=300).fit(A, b)
    oracle = optimize.least_squares(
        lambda x: ((A @ torch.from_numpy(x)).softmax(-1) - b).numpy(), found.numpy() + 0.05, xtol=1e-14, gtol=1e-14
    )
    torch.testing.assert_close(found, torch.from_numpy(oracle.x), rtol=0, atol=1e-4)
    assert float(info.loss) == pytest.approx(oracle.cost, rel=1e-9)
    assert bool((info.losses.diff() <= 0).all())
    torch.testing.assert_close(sr.grad(A, found, b), torch.zeros(3, dtype=D), rtol=0, atol=1e-9)


def test_a_batch_is_its_problems_one_by_one() -> None:
    A, _, b = problem(8, 3, 2, 3)
    together, info = sr.SoftmaxRegression().fit(A, b)
    assert together.shape == (2, 3, 3) and info.loss.shape == (2, 3) and len(info.status) == 6
    for i in range(2):
        for j in range(3):
            alone, one = sr.SoftmaxRegression().fit(A[i, j], b[i, j])
            torch.testing.assert_close(together[i, j], alone, rtol=0, atol=1e-8)
            assert int(one.iterations) == int(info.iterations[i, j])


def test_one_matrix_serves_many_targets() -> None:
    A, _, _ = problem(8, 3)
    x = torch.randn(5, 3, dtype=D)
    found, _ = sr.SoftmaxRegression().fit(A, (x @ A.T).softmax(-1))
    torch.testing.assert_close(found, x, rtol=0, atol=1e-9)


def test_more_features_than_rows_give_the_solution_of_smallest_norm() -> None:
    A, x, _ = problem(4, 9)
    b = (A @ x).softmax(-1)
    for solver in ("lm", "newton"):
        found, info = sr.SoftmaxRegression(solver).fit(A, b)
        assert int(info.rank) == 3 and bool(info.rank_deficient)
        centred = A - A.mean(0)
        torch.testing.assert_close(found, torch.linalg.pinv(centred) @ (centred @ x), rtol=0, atol=1e-9)
        torch.testing.assert_close((A @ found).softmax(-1), b, rtol=0, atol=1e-12)


def test_equal_columns_share_the_weight() -> None:
    column = torch.randn(6, 1, dtype=D)
    found, info = sr.SoftmaxRegression().fit(column.expand(6, 2), (2 * column[:, 0]).softmax(-1))
    torch.testing.assert_close(found, torch.ones(2, dtype=D), rtol=0, atol=1e-9)
    assert bool(info.rank_deficient)


@pytest.mark.parametrize("start", ["log", "zero"])
def test_a_zero_of_the_target_that_can_be_fitted_is_at_infinity(start: str) -> None:
    A, b = torch.eye(3, dtype=D), torch.tensor([0.5, 0.5, 0.0], dtype=D)
    with pytest.warns(UserWarning, match="b has zeros"):
        _, info = sr.SoftmaxRegression(warm_start=start).fit(A, b)
    assert info.status == ("diverging",) and float(info.residual) < 1e-5


def test_a_target_that_is_no_distribution_is_met_as_nearly_as_possible() -> None:
    A = torch.eye(2, dtype=D)
    with pytest.warns(UserWarning, match="residual of 0.141"):
        x, info = sr.SoftmaxRegression().fit(A, torch.tensor([0.6, 0.6], dtype=D))
    torch.testing.assert_close(x, torch.zeros(2, dtype=D), rtol=0, atol=1e-9)
    assert float(info.residual) == pytest.approx(math.sqrt(0.02))


def test_too_few_iterations_are_reported() -> None:
    A, x, _ = problem(20, 5)
    _, info = sr.SoftmaxRegression("gd", max_iter=3, warm_start="zero").fit(A, (A @ x).softmax(-1))
    assert info.status == ("max_iter",) and int(info.iterations) == 3 and len(info.losses) == 4


def test_half_precision_is_solved_in_float64() -> None:
    A, x, _ = problem(12, 3)
    found, info = sr.SoftmaxRegression().fit(
        A.bfloat16(), (A.bfloat16() @ x.bfloat16()).double().softmax(-1).bfloat16()
    )
    assert found.dtype == torch.bfloat16 and info.loss.dtype == D
    torch.testing.assert_close(found.double(), x, rtol=0, atol=0.05)


def test_predict_is_the_softmax_of_new_rows() -> None:
    A, x, _ = problem(12, 3)
    fit = sr.SoftmaxRegression()
    with pytest.raises(StateError, match="fit"):
        fit.predict(A)
    fit.fit(A, (A @ x).softmax(-1))
    new = torch.randn(5, 3, dtype=D)
    torch.testing.assert_close(fit.predict(new), (new @ x).softmax(-1), rtol=0, atol=1e-9)


def test_one_step_of_descent_from_zero_is_linear_attention_over_the_labels() -> None:
    A, _, b = problem(9, 4)
    step = sr.gradient_descent(A, b, steps=1, lr=2.0)
    torch.testing.assert_close(step, 2.0 / 9 * (b @ (A - A.mean(0))))
    second = sr.gradient_descent(A, b, steps=1, lr=2.0, x0=step)
    torch.testing.assert_close(sr.gradient_descent(A, b, steps=2, lr=2.0), second)
    torch.testing.assert_close(second, step - 2.0 * sr.grad(A, step, b))


def test_solve_query_inverts_real_attention_rows() -> None:
    keys, queries = torch.randn(2, 1, 16, 8, dtype=D), torch.randn(2, 5, 8, dtype=D)
    weights = (queries @ keys.squeeze(1).mT / math.sqrt(8)).softmax(-1)
    torch.testing.assert_close(solve_query(keys, weights), queries, rtol=0, atol=1e-7)
    torch.testing.assert_close(solve_query(keys, weights, 1.0), queries / math.sqrt(8), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("A", "b", "error", "word"),
    [
        (torch.ones(3, 2), torch.ones(2) / 2, ArgumentValueError, "b"),
        (torch.ones(0, 2), torch.ones(0), ArgumentValueError, "A"),
        (torch.full((3, 2), torch.nan), torch.ones(3) / 3, ArgumentValueError, "A must be finite"),
        (torch.ones(3, 2), torch.tensor([1.0, torch.inf, 0.0]), ArgumentValueError, "b must be finite"),
        (torch.ones(3, 2, dtype=torch.int64), torch.ones(3) / 3, ArgumentTypeError, "A"),
    ],
    ids=["shape", "empty", "nan", "infinity", "integers"],
)
def test_bad_problems_are_refused(A: Tensor, b: Tensor, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        sr.SoftmaxRegression().fit(A, b)


def test_bad_options_are_refused() -> None:
    A, x, b = problem(4, 2)
    for options in ({"solver": "adam"}, {"max_iter": 0}, {"tol": 0.0}, {"warm_start": "exp"}, {"max_norm": -1.0}):
        with pytest.raises(ArgumentValueError, match=next(iter(options))):
            sr.SoftmaxRegression(**options)
    with pytest.raises(ArgumentValueError, match="dx or dA"):
        sr.shift_bound(A, x)
    with pytest.raises(ArgumentValueError, match="kind"):
        sr.shift_bound(A, x, dx=x, kind="tight")
    with pytest.raises(ArgumentValueError, match="dA"):
        sr.shift_bound(A, x, dA=A[:2])
    with pytest.raises(ArgumentTypeError, match="x_new"):
        sr.target_shift(A, x, x_new=x.float())
    with pytest.raises(ArgumentTypeError, match="gauss_newton"):
        sr.hessian(A, x, b, gauss_newton=1)  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="keys"):
        solve_query(A[:0], b[:0])
    with pytest.raises(ArgumentTypeError, match="lr"):
        sr.gradient_descent(A, b, steps=1, lr="1")  # type: ignore[arg-type]


def test_an_attainable_target_gives_no_warning() -> None:
    A, x, _ = problem(6, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sr.SoftmaxRegression().fit(A, (A @ x).softmax(-1))


@pytest.mark.parametrize("solver", ["lm", "newton"])
def test_problems_that_stop_early_leave_the_others_alone(solver: str) -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(12, 9, 3, generator=generator, dtype=torch.float64)
    noise = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]
    b = (a.sum(-1) + noise * torch.randn(12, 9, generator=generator, dtype=torch.float64)).softmax(-1)
    x, info = sr.SoftmaxRegression(solver).fit(a, b)
    assert len(info.iterations.unique()) > 3
    for i in range(12):
        alone, other = sr.SoftmaxRegression(solver).fit(a[i], b[i])
        torch.testing.assert_close(x[i], alone, rtol=1e-7, atol=1e-9)
        assert info.status[i] == other.status[0] and bool(info.iterations[i] > 0)
        assert (info.losses[int(info.iterations[i]) :, i] == info.losses[-1, i]).all()
