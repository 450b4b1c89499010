"""Projections: nearest, idempotent, non-expansive, and equal to a general solver where they have another norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.optim import AffineSet, Ball, Box, Domain, Simplex, Unconstrained

A = torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
SETS = {
    "ball": Ball(0.7),
    "box": Box(-0.3, torch.tensor([0.1, 0.5, 0.0, 2.0])),
    "simplex": Simplex(4),
    "affine": AffineSet(A, torch.tensor([1.0, -2.0], dtype=torch.float64)),
    "space": Unconstrained(),
}


@pytest.mark.parametrize("name", SETS)
def test_projections_are_idempotent_and_no_other_point_is_nearer(name):
    domain = SETS[name]
    x, y = 2.0 * torch.randn(2, 500, 4, dtype=torch.float64)
    px, py = domain.project(x), domain.project(y)
    torch.testing.assert_close(domain.project(px), px, rtol=1e-12, atol=1e-12)
    assert ((px - py).norm(dim=-1) <= (x - y).norm(dim=-1) + 1e-12).all()
    # the obtuse angle that characterises a projection, with every other projected point as a witness
    assert ((x - px).unsqueeze(1) * (py.unsqueeze(0) - px.unsqueeze(1))).sum(-1).max() <= 1e-10


def test_simplex_projection_sums_to_one_and_handles_one_entry():
    p = Simplex(6).project(100.0 * torch.randn(50, 6, dtype=torch.float64))
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(50, dtype=torch.float64))
    assert Simplex(1).project(torch.tensor([-3.0])).tolist() == [1.0]


def spd(n: int, d: int) -> torch.Tensor:
    factor = torch.randn(n, d, d, dtype=torch.float64)
    return factor @ factor.mT + 0.05 * torch.eye(d, dtype=torch.float64)


def test_ball_in_the_norm_of_a_matrix_equals_a_general_solver():
    optimize = pytest.importorskip("scipy.optimize")
    H, x = spd(8, 4), 3.0 * torch.randn(8, 4, dtype=torch.float64)
    ours = Ball(0.7).project_in_norm(x, H)
    for h, z, found in zip(H.numpy(), x.numpy(), ours.numpy(), strict=True):
        solved = optimize.minimize(
            lambda y, h=h, z=z: 0.5 * (y - z) @ h @ (y - z),
            np.zeros(4),
            jac=lambda y, h=h, z=z: h @ (y - z),
            constraints={"type": "ineq", "fun": lambda y: 0.49 - y @ y, "jac": lambda y: -2 * y},
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        # the solver stops at its own accuracy; ours must be as good and as near
        assert 0.5 * (found - z) @ h @ (found - z) <= solved.fun + 1e-8
        np.testing.assert_allclose(found, solved.x, atol=1e-5)


def test_ball_in_a_norm_meets_its_optimality_condition():
    """H(x - y) = μ y with μ ≥ 0 and ‖y‖ = R, to rounding, for matrices of any condition; and points inside stay."""
    H = spd(200, 5) * torch.logspace(-4, 6, 200, dtype=torch.float64)[:, None, None]
    x = 10.0 * torch.randn(200, 5, dtype=torch.float64)
    y = Ball(0.7).project_in_norm(x, H)
    pull = (H @ (x - y).unsqueeze(-1)).squeeze(-1)
    mu = (pull * y).sum(-1, keepdim=True) / y.square().sum(-1, keepdim=True)
    outside = x.norm(dim=-1) > 0.7
    assert (mu >= 0).all() and outside.any()
    assert ((pull - mu * y).norm(dim=-1) <= 1e-8 * pull.norm(dim=-1))[outside].all()
    torch.testing.assert_close(y.norm(dim=-1)[outside], torch.full_like(y[outside][:, 0], 0.7), rtol=1e-12, atol=0)
    torch.testing.assert_close(Ball(0.7).project_in_norm(0.01 * x / x.norm(dim=-1, keepdim=True), H).norm(dim=-1),
                               torch.full((200,), 0.01, dtype=torch.float64))  # fmt: skip


@pytest.mark.parametrize("name", ["ball", "affine", "space"])
def test_a_diagonal_is_the_matrix_it_stands_for(name):
    h, x = torch.rand(20, 4, dtype=torch.float64) + 0.1, torch.randn(20, 4, dtype=torch.float64)
    found = SETS[name].project_in_norm(x, h)
    torch.testing.assert_close(found, SETS[name].project_in_norm(x, torch.diag_embed(h)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(SETS[name].project_in_norm(x, torch.ones_like(x)), SETS[name].project(x))


def test_affine_set_in_a_norm_is_feasible_and_optimal():
    H, x = spd(10, 4), torch.randn(10, 4, dtype=torch.float64)
    y = SETS["affine"].project_in_norm(x, H)
    torch.testing.assert_close(y @ A.mT, torch.tensor([1.0, -2.0], dtype=torch.float64).expand(10, 2))
    null = torch.linalg.svd(A).Vh[2:]
    assert ((H @ (x - y).unsqueeze(-1)).squeeze(-1) @ null.mT).abs().max() < 1e-9


def test_bad_sets_and_projections_that_do_not_exist():
    for make, error, word in (
        (lambda: Ball(0.0), ArgumentValueError, "radius"),
        (lambda: Ball("1"), ArgumentTypeError, "radius"),
        (lambda: Box(1.0, 0.0), ArgumentValueError, "high"),
        (lambda: Box(float("-inf"), 0.0), ArgumentValueError, "low"),
        (lambda: Simplex(0), ArgumentValueError, "n"),
        (lambda: Domain("x"), ArgumentTypeError, "project"),
        (lambda: Domain(abs, diameter=-1.0), ArgumentValueError, "diameter"),
        (lambda: AffineSet(A, torch.zeros(3)), ArgumentValueError, "A and b"),
        (lambda: AffineSet(torch.ones(2, 2), torch.tensor([0.0, 1.0])), ArgumentValueError, "solvable"),
    ):
        with pytest.raises(error, match=word):
            make()
    x, H = torch.ones(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    for domain in (SETS["box"], SETS["simplex"], Domain(abs, 1.0)):
        with pytest.raises(ArgumentValueError, match="domain"):
            domain.project_in_norm(x, H)
