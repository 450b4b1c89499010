"""Entropy of outputs: closed forms, samples, non-monotone activations, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from softgate.activations import CRReLU, crrelu, worst_activation
from softgate.diagnostics import activation_entropy

NORMAL = 0.5 * math.log(2 * math.pi * math.e)


@pytest.mark.parametrize(
    ("density", "entropy"),
    [
        ("normal", NORMAL),
        ("half_normal", 0.5 * math.log(math.pi * math.e / 2)),
        ("logistic", 2.0),
        ("uniform", math.log(2 * math.sqrt(3))),
    ],
)
def test_the_identity_leaves_the_entropy_of_the_input(density: str, entropy: float) -> None:
    found = activation_entropy(lambda x: x, density)
    assert found.whole == pytest.approx(entropy, abs=1e-5)
    assert found.increasing == pytest.approx(entropy, abs=1e-5) and found.share == pytest.approx(1.0)


def test_scale_and_direction() -> None:
    doubled = activation_entropy(lambda x: 2 * x)
    reversed_ = activation_entropy(lambda x: -2 * x)
    assert doubled.whole == pytest.approx(NORMAL + math.log(2), abs=1e-5)
    assert reversed_.whole == pytest.approx(doubled.whole, abs=1e-9)
    assert reversed_.share == 0.0 and math.isnan(reversed_.increasing)


def test_the_worst_activation_is_uniform() -> None:
    for density in ("normal", "logistic", "uniform"):
        found = activation_entropy(worst_activation(density, -1.0, 3.0), density)
        assert found.whole == pytest.approx(math.log(4), abs=1e-6)


def test_mean_of_the_logarithm_of_the_slope() -> None:
    x = torch.linspace(-8, 8, 400_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(F.softplus(x).sum(), x)
    p = torch.exp(-0.5 * x.detach() ** 2) / math.sqrt(2 * math.pi)
    expected = NORMAL + float(torch.trapezoid(p * slope.log(), x.detach()))
    assert activation_entropy(F.softplus).whole == pytest.approx(expected, abs=1e-5)


def test_what_relu_does_to_a_normal_variable() -> None:
    found = activation_entropy(nn.ReLU())
    assert found.whole == -math.inf and found.share == pytest.approx(0.5)
    assert found.increasing == pytest.approx(NORMAL - math.log(2), abs=1e-5)


def test_densities_of_all_branches_are_added() -> None:
    # |x| of a normal variable, and the square: chi-squared with one degree of freedom
    assert activation_entropy(torch.abs).whole == pytest.approx(NORMAL - math.log(2), abs=1e-5)
    chi = 0.5 + math.log(2 * math.gamma(0.5)) + 0.5 * float(torch.digamma(torch.tensor(0.5)))
    assert activation_entropy(torch.square).whole == pytest.approx(chi, abs=2e-3)
    gelu = activation_entropy(F.gelu)
    assert -math.inf < gelu.whole < NORMAL and 0.7 < gelu.share < 0.8


@pytest.mark.parametrize("eps", [-0.01, -0.003, 0.003, 0.01])
def test_the_sign_of_the_correction(eps: float) -> None:
    def entropy(value: float) -> float:
        return activation_entropy(lambda x: crrelu(x, torch.tensor(value, dtype=x.dtype)), "half_normal").whole

    assert entropy(eps) - entropy(0.0) == pytest.approx(math.sqrt(2) / 4 * eps, rel=0.02)


def test_a_sample_in_the_place_of_a_density() -> None:
    sample = torch.randn(40_000)
    for function in (lambda x: x, F.leaky_relu):
        expected = activation_entropy(function)
        found = activation_entropy(function, sample)
        assert found.whole == pytest.approx(expected.whole, abs=0.03)
        assert found.share == pytest.approx(1.0)
    tied = torch.cat((torch.zeros(50_000), torch.randn(50_000).abs()))
    found = activation_entropy(lambda x: x, tied)
    assert found.whole == -math.inf and found.share == pytest.approx(0.5, abs=0.01)
    assert found.increasing == pytest.approx(NORMAL - math.log(2), abs=0.03)


def test_modules_stay_as_they_are() -> None:
    module = CRReLU(0.2)
    activation_entropy(module)
    assert module.eps.dtype is torch.float32 and module.eps.grad is None


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ((3.0,), TypeError, "activation"),
        ((torch.relu, "gaussian"), ValueError, "normal"),
        ((torch.relu, 1.0), TypeError, "density"),
        ((torch.relu, torch.arange(200)), TypeError, "density"),
        ((torch.relu, torch.randn(5)), ValueError, "100"),
        ((torch.relu, torch.full((200,), math.nan)), ValueError, "finite"),
        ((torch.log,), ValueError, "finite"),
        ((torch.sum,), ValueError, "entry by entry"),
    ],
    ids=["number", "unknown", "no density", "integers", "few", "nan", "not finite", "reduces"],
)
def test_bad_input(arguments: tuple[object, ...], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        activation_entropy(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cells"):
        activation_entropy(torch.relu, cells=0)
