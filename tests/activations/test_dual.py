"""Dual activations against integrals over Gaussian pairs, the taxonomy against its table, and the designer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from softgate.activations import (
    HermiteActivation,
    SineActivation,
    classify_activation,
    design_activation,
    dual_activation,
    hermite_activation,
    sine_activation,
)
from softgate.errors import ArgumentTypeError, ArgumentValueError

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
U, W = torch.tensor(NODES), torch.tensor(WEIGHTS / WEIGHTS.sum())
XI = torch.linspace(-1, 1, 9, dtype=torch.float64)
NAMES = ("2d_opt", "3d_opt", "5d_opt", "9d_opt", "hermite_2", "hermite_3", "sine_1", "sine_2.676", "erf", "relu")


def integral(function, xi: torch.Tensor) -> torch.Tensor:
    """E[φ(u) φ(v)] / E[φ²] by a grid of two dimensions."""
    v = xi[:, None, None] * U[:, None] + (1 - xi.square()).clamp_min(0).sqrt()[:, None, None] * U
    values = torch.einsum("i,j,i,kij->k", W, W, function(U), function(v))
    return values / (W @ function(U).square())


@pytest.mark.parametrize(
    ("name", "function"),
    [(n, lambda x, n=n: hermite_activation(x, n)) for n in ("2d_opt", "3d_opt", "5d_opt", "9d_opt")]
    + [("sine_2.676", lambda x: sine_activation(x, 2.676)), ("erf", torch.erf)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_duals_are_gaussian_integrals(name, function) -> None:
    torch.testing.assert_close(dual_activation(name)(XI), integral(function, XI), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_duals_are_bounded_with_the_stated_derivative(name: str) -> None:
    dual = dual_activation(name)
    assert float(dual(torch.tensor(1.0, dtype=torch.float64))) == pytest.approx(1.0, abs=1e-12)
    values = dual(XI)
    assert float(values.abs().max()) <= 1 + 1e-12
    inner = XI[1:-1].clone().requires_grad_()  # autograd of ReLU's square root is infinite at ±1
    (slopes,) = torch.autograd.grad(dual(inner).sum(), inner)
    torch.testing.assert_close(dual.derivative(inner), slopes)


@pytest.mark.parametrize(
    ("name", "slope", "stretch", "alpha"),
    [("2d_opt", 1 / 2, 4, 1 / 2), ("3d_opt", 1 / 2, 2, 1), ("5d_opt", 1 / 4, 2, 2), ("9d_opt", 1 / 16, 2, 4),
     ("erf", 0.9136, 1.2257, 0.444), ("sine_1", 1 / math.sinh(1), math.cosh(1) / math.sinh(1), 0.593),
     ("sine_2.676", None, None, 1), ("sine_6.13539", None, None, 2), ("sine_13.8258", None, None, 4)],
)  # fmt: skip
def test_the_table_of_singular_kernels(name, slope, stretch, alpha) -> None:
    found = classify_activation(name)
    assert found.kind == "singular" and found.constant == 0.0
    assert found.order == pytest.approx(2 * alpha, abs=1e-3)
    if slope is not None:
        assert (found.slope, found.stretch) == pytest.approx((slope, stretch), abs=1e-4)


def test_majority_and_nearest_neighbour() -> None:
    relu = classify_activation("relu")
    assert relu.kind == "majority" and relu.constant == pytest.approx(1 / math.pi) and math.isnan(relu.order)
    assert classify_activation("hermite_3").kind == classify_activation((0.0, 0.0, 0.6, 0.8)).kind == "1-nn"
    assert classify_activation((0.1, 1.0)).kind == "majority"


@pytest.mark.parametrize(
    ("function", "name"),
    [(torch.erf, "erf"), (nn.functional.relu, "relu"), (lambda x: 7 * torch.sin(x), "sine_1"),
     (lambda x: 3 * hermite_activation(x, "9d_opt"), "9d_opt"), (lambda x: x**3 - 3 * x, "hermite_3"),
     (HermiteActivation("5d_opt"), "5d_opt"), (SineActivation(2.0), "sine_2"), (nn.ReLU(), "relu"),
     (nn.Sequential(nn.ReLU()), "relu")],
)  # fmt: skip
def test_functions_are_integrated(function, name) -> None:
    found, exact = classify_activation(function), classify_activation(name)
    assert found.kind == exact.kind
    assert found[1:] == pytest.approx(exact[1:], abs=1e-6, nan_ok=True)


def test_ordinary_activations_end_as_majority_votes() -> None:
    for function in (nn.functional.gelu, nn.functional.silu, torch.sigmoid, lambda x: x.abs()):
        assert classify_activation(function).kind == "majority"
    assert classify_activation(torch.tanh).kind == "singular"


@pytest.mark.parametrize("dim", [2, 3, 5, 9, 40])
@pytest.mark.parametrize("degree", [None, 5])
def test_designed_activations_have_the_order_of_the_sphere(dim: int, degree: int | None) -> None:
    activation = design_activation(dim, degree)
    assert sum(c * c for c in activation.coefficients) == pytest.approx(1.0)
    assert classify_activation(activation).order == pytest.approx(dim - 1, rel=1e-9)


def test_the_smallest_degree_is_enforced() -> None:
    assert design_activation(3).coefficients == pytest.approx((0, math.sqrt(0.5), 0, math.sqrt(0.5)))
    with pytest.raises(ArgumentValueError, match="degree must be at least 4"):
        design_activation(2, 3)
    with pytest.raises(ArgumentValueError, match="too large"):
        design_activation(10_000)


def test_coefficients_are_normalised_and_a_dual_is_itself() -> None:
    dual = dual_activation((0.0, 3.0, 0.0, 3.0))
    torch.testing.assert_close(dual(XI), dual_activation("3d_opt")(XI))
    assert dual_activation(dual) is dual
    assert dual_activation((0.0, 1e200, 1e200)).slope == pytest.approx(0.5)
    assert dual_activation("5d_opt").leading == (1, 0.25) and dual_activation("hermite_2").leading == (2, 1.0)


@pytest.mark.parametrize("name", ["tanh", "hermite_0", "hermite_", "sine_0", "sine_", "sine_1e9", ""])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ArgumentValueError, match="activation"):
        dual_activation(name)


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentTypeError, match="activation"):
        dual_activation(3)
    with pytest.raises(ArgumentTypeError, match="activation"):
        classify_activation(3)
    with pytest.raises(ArgumentValueError, match="linear"):
        classify_activation(lambda x: 2 * x)
    with pytest.raises(ArgumentValueError, match="linear"):
        classify_activation((0.0, 1.0))
    with pytest.raises(ArgumentValueError, match="finite"):
        classify_activation(lambda x: 1 / (x - x))
    with pytest.raises(ArgumentValueError, match="entry by entry"):
        classify_activation(lambda x: x.sum())
    with pytest.raises(ArgumentTypeError, match="xi"):
        dual_activation("erf")(0.5)
    for dim, error in ((1, ArgumentValueError), (3.0, ArgumentTypeError), (True, ArgumentTypeError)):
        with pytest.raises(error, match="dim"):
            design_activation(dim)


@pytest.mark.parametrize("name", ["3d_opt", "5d_opt", "9d_opt", "hermite_2", "sine_2.676", "erf", "relu"])
def test_small_correlations_follow_the_lowest_powers(name: str) -> None:
    dual, xi = dual_activation(name), torch.tensor(1e-4, dtype=torch.float64)
    (degree, power), (gap, ratio) = dual.leading, dual.correction
    exact = float(dual(xi))
    assert exact == pytest.approx(power * 1e-4**degree * (1 + ratio * 1e-4**gap), rel=1e-7, abs=0.0)
    if ratio:
        assert exact != pytest.approx(power * 1e-4**degree, rel=0.1 * ratio * 1e-4**gap, abs=0.0)
