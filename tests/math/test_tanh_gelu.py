"""GELU through a sigmoid is torch's GELU in its tanh approximation, with all derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu

from softgate._math.gelu import tanh_gelu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients_are_those_of_torch(dtype) -> None:
    x = torch.cat((torch.linspace(-12, 12, 401), torch.tensor([0.0, 1e-30, -1e10, 1e10]))).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = tanh_gelu(ours), gelu(theirs, approximate="tanh")
    # below -3 torch subtracts tanh from 1 and loses what the sigmoid keeps
    close = {"rtol": 2e-6, "atol": 1e-6} if dtype is torch.float32 else {}
    torch.testing.assert_close(found, expected, **close)
    found[:401].sum().backward()
    expected[:401].sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **close)
    assert bool(torch.isnan(tanh_gelu(torch.tensor([float("nan")], dtype=dtype))).all())


def test_huge_arguments_stay_finite() -> None:
    x = torch.tensor([-1e30, 1e30])  # their squares are infinite
    assert tanh_gelu(x).tolist() == [0.0, x[1].item()]


def test_derivatives_of_all_kinds() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tanh_gelu, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(tanh_gelu, x)
    turned = x.detach().mT.requires_grad_()
    (gradient,) = torch.autograd.grad(tanh_gelu(turned).sum(), turned)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda y: tanh_gelu(y).sum()))(turned), gradient)
