"""The entropy-based search: closed forms of the correction, and that it lowers the entropy."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from softgate.activations import eafo_correction, worst_activation
from softgate.diagnostics import activation_entropy

C = 1 / math.sqrt(2 * math.pi)


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


def test_the_correction_of_the_identity() -> None:
    found = eafo_correction(_identity, step=1e-3)
    x = found.grid
    torch.testing.assert_close(found.eta, C * x * torch.exp(-x.square() / 2), rtol=0, atol=1e-14)
    inside = torch.linspace(-4, 4, 801, dtype=torch.float64)
    expected = inside - 1e-3 * C * inside * torch.exp(-inside.square() / 2)
    torch.testing.assert_close(found(inside), expected, rtol=0, atol=1e-6)  # c² = 1e-6


def test_the_correction_of_the_identity_under_a_logistic_density() -> None:
    found = eafo_correction(_identity, "logistic")
    s = torch.sigmoid(found.grid)
    torch.testing.assert_close(found.eta, -s * (1 - s) * (1 - 2 * s), rtol=0, atol=1e-14)


@pytest.mark.parametrize("density", ["normal", "logistic", "uniform"])
def test_the_worst_activation_has_no_direction(density: str) -> None:
    found = eafo_correction(worst_activation(density, -1.0, 2.0), density, reach=4.0)
    slope = float((found.grid.diff() / found.inverse.diff()).max())
    assert float(found.eta.abs().max()) < 1e-9 / slope


@pytest.mark.parametrize("function", [_identity, torch.tanh, F.softplus, torch.asinh], ids=lambda f: f.__name__)
def test_a_step_lowers_the_entropy(function) -> None:
    before = activation_entropy(function).whole
    after = activation_entropy(eafo_correction(function, step=1e-2)).whole
    assert after < before
    rate = eafo_correction(function, step=1e-4)
    change = activation_entropy(rate).whole - before
    # the slope of the entropy along its own negative gradient: minus the squared length of η
    assert change == pytest.approx(-1e-4 * float(torch.trapezoid(rate.eta.square(), rate.grid)), rel=0.05)


def test_a_large_step_stays_increasing() -> None:
    found = eafo_correction(_identity)
    assert found.step == 1.0
    steep = eafo_correction(torch.sinh, reach=2.0)
    x = torch.linspace(-3, 3, 5001, dtype=torch.float64)
    assert bool((steep(x).diff() > 0).all()) and steep.step <= 1.0
    with pytest.raises(ValueError, match="step must be below"):
        eafo_correction(_identity, step=1e3)


def test_it_keeps_dtype_shape_and_gradients() -> None:
    found = eafo_correction(torch.tanh, reach=3.0, step=0.05)
    x = torch.randn(3, 4, requires_grad=True)
    y = found(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.shape == x.shape and y.dtype is torch.float32 and bool((slope > 0).all())
    assert found(torch.zeros(0)).shape == (0,) and math.isnan(float(found(torch.tensor(math.nan))))
    assert float(found(torch.tensor(50.0))) > float(found(torch.tensor(3.0)))


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: eafo_correction(torch.relu), ValueError, "strictly increasing"),
        (lambda: eafo_correction(torch.sum), ValueError, "entry by entry"),
        (lambda: eafo_correction(torch.log), ValueError, "finite"),
        (lambda: eafo_correction("gelu"), TypeError, "activation"),
        (lambda: eafo_correction(torch.tanh, "cauchy"), ValueError, "density"),
        (lambda: eafo_correction(torch.tanh, step=0.0), ValueError, "step"),
        (lambda: eafo_correction(torch.tanh, reach=-1.0), ValueError, "reach"),
        (lambda: eafo_correction(torch.tanh, points=0), ValueError, "points"),
        (lambda: worst_activation("normal", 1.0, 1.0), ValueError, "high"),
        (lambda: worst_activation("normal", "0"), TypeError, "low"),
    ],
    ids=["relu", "reduces", "infinite", "name", "density", "step", "reach", "points", "bounds", "type"],
)
def test_bad_input(call, error, word) -> None:
    with pytest.raises(error, match=word):
        call()
