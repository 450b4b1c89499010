"""Comp-sum losses of margins: loops, neighbours in torch and in the family, bounds, soft labels, the module."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch.nn import functional as F

from softgate.losses import CompSumMarginLoss, comp_sum_loss, comp_sum_margin_loss

INNERS = {
    "hinge": lambda u, rho: max(0.0, 1.0 - u / rho),
    "squared_hinge": lambda u, rho: max(0.0, 1.0 - u / rho) ** 2,
    "rho_margin": lambda u, rho: min(1.0, max(0.0, 1.0 - u / rho)),
}
each_inner = pytest.mark.parametrize("inner", INNERS)


def outer(u: float, tau: float) -> float:
    return math.log1p(u) if tau == 1.0 else ((1.0 + u) ** (1.0 - tau) - 1.0) / (1.0 - tau)


def draw(rows: int = 9, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * torch.randn(rows, classes, dtype=torch.float64), torch.randint(classes, (rows,))


@each_inner
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.7, 2.0])
@pytest.mark.parametrize("rho", [1.0, 2.5])
def test_formula_by_loops(inner, tau, rho) -> None:
    x, y = draw()
    found = comp_sum_margin_loss(x, y, reduction="none", inner=inner, tau=tau, rho=rho)
    for row, label, value in zip(x.tolist(), y.tolist(), found.tolist(), strict=True):
        prices = [INNERS[inner](row[label] - score, rho) for j, score in enumerate(row) if j != label]
        assert value == pytest.approx(outer(sum(prices), tau), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("inner", "p"), [("hinge", 1), ("squared_hinge", 2)])
def test_order_zero_is_the_loss_of_weston_and_watkins(inner, p) -> None:
    x, y = draw()
    torch.testing.assert_close(comp_sum_margin_loss(x, y, inner=inner, tau=0.0), 5 * F.multi_margin_loss(x, y, p=p))


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5])
def test_rho_margin_lies_between_the_error_and_the_exponential(tau) -> None:
    x, y = draw(200)
    found = comp_sum_margin_loss(x, y, reduction="none", inner="rho_margin", tau=tau, rho=1.3)
    wrong = x.argmax(1) != y
    assert wrong.any() and not wrong.all()
    assert bool((found[wrong] >= outer(1.0, tau) - 1e-12).all())
    assert bool((found <= comp_sum_loss(x, y, reduction="none", tau=tau, temperature=1.3) + 1e-12).all())
    assert float(found.max()) <= outer(4.0, tau) + 1e-12


@each_inner
def test_gradients(inner) -> None:
    x, y = draw(6)
    x.requires_grad_()
    for tau in (0.0, 1.0, 1.7):
        assert torch.autograd.gradcheck(lambda z, t=tau: comp_sum_margin_loss(z, y, inner=inner, tau=t, rho=1.3), x)


def test_rivals_far_behind_or_far_ahead_get_no_gradient() -> None:
    x = torch.tensor([[2.0, 0.5, 1.8], [-3.0, 1.0, 5.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(comp_sum_margin_loss(x, torch.tensor([0, 1])), x)
    assert (slope != 0).tolist() == [[True, False, True], [False, True, True]]
    (slope,) = torch.autograd.grad(comp_sum_margin_loss(x, torch.tensor([0, 1]), inner="rho_margin"), x)
    assert (slope != 0).tolist() == [[True, False, True], [False, False, False]]


@each_inner
def test_soft_labels_are_the_expected_loss(inner) -> None:
    x, y = draw(7)
    weight = torch.rand(5, dtype=torch.float64) + 0.2
    options = {"inner": inner, "tau": 1.4, "rho": 1.5}
    costs = torch.stack(
        [comp_sum_margin_loss(x, torch.full((7,), k), weight, reduction="none", **options) for k in range(5)], dim=1
    )
    share = torch.rand(7, 5, dtype=torch.float64).softmax(1)
    found = comp_sum_margin_loss(x, share, weight, reduction="none", **options)
    torch.testing.assert_close(found, (share * costs).sum(1))
    smoothed = comp_sum_margin_loss(x, y, weight, reduction="none", label_smoothing=0.2, **options)
    torch.testing.assert_close(smoothed, 0.8 * costs.gather(1, y[:, None]).squeeze(1) + 0.2 * costs.mean(1))


def test_module() -> None:
    x, y = draw()
    weight = torch.rand(5, dtype=torch.float64)
    module = pickle.loads(pickle.dumps(CompSumMarginLoss(weight, inner="rho_margin", tau=1.5, rho=2.0)))
    assert "inner='rho_margin'" in repr(module)
    torch.testing.assert_close(module(x, y), comp_sum_margin_loss(x, y, weight, inner="rho_margin", tau=1.5, rho=2.0))
