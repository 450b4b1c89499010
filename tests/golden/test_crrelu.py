"""Parity with arrays of the formula in float32 and float64: values, gradients, second derivatives."""

from __future__ import annotations

import numpy as np
import torch

from softgate.activations import crrelu


def test_values_and_derivatives(golden) -> None:
    files = sorted(golden("crrelu").glob("*.npz"))
    assert len(files) >= 4
    for file in files:
        with np.load(file) as data:
            arrays = {key: torch.tensor(value) for key, value in data.items()}
        x = arrays["x"].requires_grad_()
        eps = arrays["eps"].float().to(x.dtype).reshape(()).requires_grad_()  # the ports keep it in float32
        tolerance = {"rtol": 1e-12, "atol": 1e-13} if x.dtype is torch.float64 else {"rtol": 2e-6, "atol": 1e-6}
        y = crrelu(x, eps)
        torch.testing.assert_close(y.detach(), arrays["y"], **tolerance)
        grad_x, grad_eps = torch.autograd.grad((arrays["w"] * y).sum(), (x, eps))
        torch.testing.assert_close(grad_x, arrays["gx"], **tolerance)
        torch.testing.assert_close(grad_eps, arrays["geps"].reshape(()), **tolerance)
        (slope,) = torch.autograd.grad(crrelu(x, eps).sum(), x, create_graph=True)
        torch.testing.assert_close(slope.detach(), arrays["gx_unit"], **tolerance)
        (second,) = torch.autograd.grad(slope.sum(), x)
        torch.testing.assert_close(second, arrays["second_derivative"], **tolerance)
