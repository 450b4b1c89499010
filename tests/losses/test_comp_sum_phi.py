"""The scalar part of the comp-sum family, which references and fused heads share."""

from __future__ import annotations

import math

import pytest
import torch

from softgate.losses._comp_sum_phi import phi, phi_weight

TAUS = [0.0, 0.5, 1.0 - 1e-7, 1.0, 1.0 + 1e-7, 1.5, 2.0, 3.0]
LOG_P = [-0.0, -1e-30, -1e-9, -1e-3, -0.3, -0.499, -0.501, -1.0, -5.0, -40.0, -80.0]


def slope(tau: float, log_p: torch.Tensor, **options: float) -> torch.Tensor:
    leaf = log_p.clone().requires_grad_()
    return torch.autograd.grad(phi(leaf, tau, **options).sum(), leaf)[0]


def exact(tau: float, log_p: float) -> float:
    return -log_p if tau == 1.0 else math.expm1((tau - 1.0) * log_p) / (1.0 - tau)


@pytest.mark.parametrize("tau", TAUS)
def test_float32_has_full_relative_precision(tau) -> None:
    log_p = torch.tensor(LOG_P)
    want = torch.tensor([exact(tau, float(value)) for value in log_p], dtype=torch.float64)
    torch.testing.assert_close(phi(log_p, tau).double(), want, rtol=2e-5, atol=1e-45)
    weights = torch.tensor([math.exp((tau - 1.0) * float(value)) for value in log_p], dtype=torch.float64)
    torch.testing.assert_close(phi_weight(log_p, tau).double(), weights, rtol=2e-5, atol=1e-45)
    torch.testing.assert_close(-slope(tau, log_p).double(), weights, rtol=2e-5, atol=1e-45)


def test_members_of_the_family() -> None:
    p = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)
    torch.testing.assert_close(phi(p.log(), 0.0), 1 / p - 1)
    torch.testing.assert_close(phi(p.log(), 1.0), -p.log())
    torch.testing.assert_close(phi(p.log(), 1.7), (1 - p**0.7) / 0.7)
    torch.testing.assert_close(phi(p.log(), 2.0), 1 - p)


@pytest.mark.parametrize("tau", TAUS)
def test_impossible_target(tau) -> None:
    log_p = torch.tensor([float("-inf"), float("nan")])
    loss, grad = phi(log_p, tau), slope(tau, log_p)
    if tau > 1:
        assert float(loss[0]) == pytest.approx(1 / (tau - 1)) and float(grad[0]) == 0.0
    else:
        assert float(loss[0]) == math.inf
    assert math.isnan(loss[1])


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0, 1.5])
def test_max_weight_caps_the_weight_and_the_loss_is_its_integral(tau) -> None:
    log_p = torch.linspace(-100, -0.01, 4000, dtype=torch.float64)
    capped = phi(log_p, tau, max_weight=20.0)
    torch.testing.assert_close(-slope(tau, log_p, max_weight=20.0), phi_weight(log_p, tau).clamp(max=20.0))
    torch.testing.assert_close(phi_weight(log_p, tau, max_weight=20.0), phi_weight(log_p, tau).clamp(max=20.0))
    area = torch.trapezoid(phi_weight(log_p, tau, max_weight=20.0), log_p)
    torch.testing.assert_close(capped[0] - capped[-1], area, rtol=1e-4, atol=1e-4)
    inside = phi_weight(log_p, tau) <= 20.0
    torch.testing.assert_close(capped[inside], phi(log_p, tau)[inside])


@pytest.mark.parametrize("tau", TAUS)
def test_derivatives_of_second_order(tau) -> None:
    log_p = torch.tensor([-0.02, -0.6, -3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: phi(x, tau), log_p, check_fwd_over_rev=True)
    assert torch.autograd.gradgradcheck(lambda x: phi(x, tau, max_weight=4.0), log_p)
