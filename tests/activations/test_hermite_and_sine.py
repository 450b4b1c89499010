"""Hermite and sine activations against numpy's polynomials and their Gaussian moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermeval

from softgate.activations import HermiteActivation, SineActivation, hermite_activation, sine_activation
from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.models import GPT, MLP, GPTConfig

#: Gauss-Hermite nodes and weights of the standard normal; exact for polynomials of degree 79.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
U, W = torch.tensor(NODES), torch.tensor(WEIGHTS / WEIGHTS.sum())


@pytest.mark.parametrize("coefficients", [(0.0, 1.0), (0.3, -0.2, 0.0, 1.5), (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 1.0)])
def test_the_polynomial_is_numpys(coefficients: tuple[float, ...]) -> None:
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)
    unnormalised = [c / math.sqrt(math.factorial(k)) for k, c in enumerate(coefficients)]
    torch.testing.assert_close(hermite_activation(x, coefficients), torch.tensor(hermeval(x.numpy(), unnormalised)))


def test_the_polynomials_are_orthonormal() -> None:
    basis = torch.stack([hermite_activation(U, [0.0] * k + [1.0]) for k in range(1, 9)])
    torch.testing.assert_close((basis * W) @ basis.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-10)
    assert float((basis @ W).abs().max()) < 1e-10  # orthogonal to he_0 too


@pytest.mark.parametrize("name", ["2d_opt", "3d_opt", "5d_opt", "9d_opt"])
def test_named_activations_have_mean_0_and_mean_square_1(name: str) -> None:
    values = hermite_activation(U, name)
    assert float(W @ values) == pytest.approx(0.0, abs=1e-10)
    assert float(W @ values.square()) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("c", [0.1, 2.676, 6.0])
def test_the_sine_has_mean_square_1(c: float) -> None:
    assert float(W @ sine_activation(U, c).square()) == pytest.approx(1.0, abs=1e-8)


def test_modules_are_the_functions_and_stand_in_networks() -> None:
    x = torch.randn(5, 4)
    assert torch.equal(HermiteActivation("5d_opt")(x), hermite_activation(x, "5d_opt"))
    assert torch.equal(HermiteActivation(torch.tensor([0.0, 1.0, 0.5]))(x), hermite_activation(x, (0.0, 1.0, 0.5)))
    assert torch.equal(SineActivation(1.5)(x), sine_activation(x, 1.5))
    assert repr(HermiteActivation("3d_opt")) == "HermiteActivation((0, 0.7071, 0, 0.7071))"
    assert repr(SineActivation(1.5)) == "SineActivation(c=1.5)"
    assert MLP((4, 8, 2), activation=HermiteActivation)(x).shape == (5, 2)
    for name in ("hermite_activation", "SineActivation"):
        model = GPT(GPTConfig(vocab_size=5, num_layers=1, num_heads=1, embed_dim=4, activation=name))
        assert model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize(
    ("coefficients", "error"),
    [("4d_opt", ArgumentValueError), ((), ArgumentValueError), ((1.0,), ArgumentValueError),
     ((1.0, 0.0), ArgumentValueError), ((0.0, float("nan")), ArgumentValueError), (3.0, ArgumentTypeError),
     ((0.0, "1"), ArgumentTypeError)],
)  # fmt: skip
def test_bad_coefficients(coefficients: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="coefficients"):
        HermiteActivation(coefficients)


@pytest.mark.parametrize("c", [0.0, -1.0, 301.0, float("nan"), "1", None])
def test_bad_frequencies(c: object) -> None:
    with pytest.raises((ArgumentValueError, ArgumentTypeError), match="c must be"):
        SineActivation(c)
