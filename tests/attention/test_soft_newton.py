"""Newton's inverse and the Gaussian kernel: convergence, gradients, what the papers' codes do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from softgate.attention import gaussian_kernel, newton_residual, newton_schulz_pinv


def gram(spread: float, marks: int = 49, dim: int = 8, batch: int = 2) -> Tensor:
    """Gram matrices of landmarks with standard deviation ``spread``."""
    points = spread * torch.randn(batch, marks, dim, dtype=torch.float64)
    return gaussian_kernel(points, points)


def test_the_kernel_is_a_gram_matrix():
    a = gram(0.7)
    torch.testing.assert_close(a, a.mT)
    torch.testing.assert_close(a.diagonal(dim1=-2, dim2=-1), torch.ones(2, 49, dtype=torch.float64))
    assert torch.linalg.eigvalsh(a).min() > -1e-12


def test_the_kernel_moves_and_turns_with_its_points():
    a, b = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    torch.testing.assert_close(gaussian_kernel(a @ turn + 100.0, b @ turn + 100.0), gaussian_kernel(a, b))
    explicit = torch.exp(-0.5 * (a[:, None] - b).square().sum(-1))
    torch.testing.assert_close(gaussian_kernel(a, b), explicit)


def test_close_points_far_away_keep_their_digits():
    """The three-term form without moving the points first is off by more than 0.1 here."""
    a = 1000.0 + 0.3 * torch.randn(20, 8)
    exact = gaussian_kernel(a.double(), a.double())
    torch.testing.assert_close(gaussian_kernel(a, a).double(), exact, rtol=1e-5, atol=1e-6)
    square = a.square().sum(-1)
    plain = torch.exp(-0.5 * (square[:, None] + square - 2 * a @ a.mT).clamp_min(0.0))
    assert (plain - exact).abs().max() > 0.01


def test_separated_landmarks_converge_in_a_few_steps():
    a = gram(2.0)
    assert newton_residual(a, newton_schulz_pinv(a, iters=10)).max() < 1e-8
    torch.testing.assert_close(newton_schulz_pinv(a, iters=12), torch.linalg.inv(a))


def test_clustered_landmarks_need_more_steps_than_twenty():
    """The paper's 20 steps are no inverse then, and the residual says so."""
    a = gram(0.2)
    assert newton_residual(a, newton_schulz_pinv(a)).min() > 1.0
    assert newton_residual(a, newton_schulz_pinv(a, iters=50)).max() < 1e-3
    assert newton_residual(a, newton_schulz_pinv(a, iters=30, ridge=0.01), ridge=0.01).max() < 1e-3


def test_every_step_squares_the_error():
    a = gram(1.0)
    eye = torch.eye(49, dtype=torch.float64)
    before = eye - newton_schulz_pinv(a, iters=8) @ a
    after = eye - newton_schulz_pinv(a, iters=9) @ a
    torch.testing.assert_close(after, before @ before)


def test_iterates_stay_symmetric():
    for iters in (1, 5, 20):
        v = newton_schulz_pinv(gram(0.5), iters=iters)
        torch.testing.assert_close(v, v.mT)


def test_the_ridge_is_inverted_too():
    a = gram(1.0)
    eye = torch.eye(49, dtype=torch.float64)
    found = newton_schulz_pinv(a, iters=40, ridge=0.25)
    torch.testing.assert_close(found, torch.linalg.inv(a + 0.25 * eye))
    assert newton_residual(a, found).min() > 0.1 > 1e-6 > newton_residual(a, found, ridge=0.25).max()


@pytest.mark.parametrize("implicit", [True, False])
def test_gradients_are_those_of_the_inverse_once_converged(implicit: bool):
    a = gram(1.5, marks=6).requires_grad_()
    upstream = torch.randn(2, 6, 6, dtype=torch.float64)
    found = newton_schulz_pinv(a, iters=30, implicit_grad=implicit)
    (ours,) = torch.autograd.grad(found, a, upstream, create_graph=True)
    (exact,) = torch.autograd.grad(torch.linalg.inv(a), a, upstream, create_graph=True)
    torch.testing.assert_close(ours, exact)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), a)[0], torch.autograd.grad(exact.square().sum(), a)[0]
    )


def test_before_convergence_the_implicit_gradient_takes_the_iterate_for_the_inverse():
    a = gram(0.3).requires_grad_()
    upstream = torch.randn_like(a)
    v = newton_schulz_pinv(a, iters=5)
    (grad,) = torch.autograd.grad(v, a, upstream)
    torch.testing.assert_close(grad, -v.mT @ upstream @ v.mT)
    (unrolled,) = torch.autograd.grad(newton_schulz_pinv(a, iters=5, implicit_grad=False), a, upstream)
    assert (unrolled - grad).abs().max() > 0.1 * grad.abs().max()


def test_the_implicit_gradient_keeps_no_iterates():
    a = gram(1.0).requires_grad_()
    counts = []
    for iters in (5, 50):
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=saved: to.append(1) or t, lambda t: t):
            newton_schulz_pinv(a, iters=iters)
        counts.append(len(saved))
    assert counts[0] == counts[1] <= 8


def test_one_step_size_for_all_couples_the_batch():
    easy, hard = gram(1.5, batch=1), gram(0.2, batch=1)
    together = torch.cat((easy, hard))
    torch.testing.assert_close(newton_schulz_pinv(together, iters=4)[:1], newton_schulz_pinv(easy, iters=4))
    coupled = newton_schulz_pinv(together, iters=4, alpha="global")[:1]
    assert (coupled - newton_schulz_pinv(easy, iters=4, alpha="global")).abs().max() > 0.1


def test_singular_and_asymmetric_matrices_converge_to_the_pseudo_inverse():
    ones = torch.ones(3, 3, dtype=torch.float64)
    torch.testing.assert_close(newton_schulz_pinv(ones, iters=40), ones / 9)
    assert newton_schulz_pinv(torch.zeros(3, 3)).abs().max() == 0.0
    skewed = torch.randn(4, 4, dtype=torch.float64) + 3 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(newton_schulz_pinv(skewed, iters=40), torch.linalg.inv(skewed))


def test_nan_fills_its_matrix_and_no_other():
    a = gram(1.0)
    a[0, 1, 2] = float("nan")
    nan = newton_schulz_pinv(a).isnan()
    assert nan[0].all() and not nan[1].any()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"matrix": torch.ones(2, 3)}, "matrix"),
        ({"matrix": 1.0}, "matrix"),
        ({"inverse": torch.eye(2)}, "inverse"),
        ({"inverse": torch.eye(3).double()}, "inverse"),
        ({"ridge": -1.0}, "ridge"),
        ({"ridge": "0"}, "ridge"),
    ],
)
def test_bad_input_of_the_residual_is_named(change: dict[str, Any], word: str):
    arguments: dict[str, Any] = {"matrix": torch.eye(3), "inverse": torch.eye(3), **change}
    with pytest.raises((ValueError, TypeError), match=word):
        newton_residual(arguments.pop("matrix"), arguments.pop("inverse"), **arguments)
