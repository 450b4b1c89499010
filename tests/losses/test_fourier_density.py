"""The distribution behind the Fourier head: quadrature, inverses and derivatives."""

from __future__ import annotations

import math

import pytest
import torch

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.losses import FourierDensity


def density(*batch: int, order: int = 4, **options: object) -> FourierDensity:
    return FourierDensity(torch.randn(*batch, 2 * (order + 1), dtype=torch.float64), **options)


def grid(low: float = -1.0, high: float = 1.0, count: int = 4001) -> torch.Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64)


@pytest.mark.parametrize("order", [0, 1, 7])
@pytest.mark.parametrize("support", [(-1.0, 1.0), (3.0, 10.0)])
def test_it_is_a_periodic_density(order: int, support: tuple[float, float]) -> None:
    p = density(order=order, support=support)
    x = grid(*support)
    values = p.log_prob(x).exp()
    assert bool((values >= 0).all())
    assert float(torch.trapezoid(values, x)) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(values[0], values[-1])
    cdf = p.cdf(x)
    assert float(cdf[0]) == pytest.approx(0.0, abs=1e-12) and float(cdf[-1]) == pytest.approx(1.0, abs=1e-12)
    assert bool((cdf.diff() >= -1e-12).all())
    torch.testing.assert_close(cdf[1:], torch.cumulative_trapezoid(values, x), rtol=0, atol=1e-5)
    torch.testing.assert_close((cdf[2:] - cdf[:-2]) / (x[2] - x[0]), values[1:-1], rtol=0, atol=1e-3)
    assert float(p.mean) == pytest.approx(float(torch.trapezoid(x * values, x)), abs=1e-5)
    assert float(p.variance) == pytest.approx(float(torch.trapezoid((x - p.mean) ** 2 * values, x)), abs=1e-4)
    entropy = -float(torch.trapezoid(torch.special.xlogy(values, values), x))
    assert float(p.entropy()) == pytest.approx(entropy, abs=1e-4)


def test_quantiles_invert_the_distribution_function() -> None:
    p = density(3, order=6)
    u = torch.rand(50, 3, dtype=torch.float64)
    x = p.icdf(u)
    torch.testing.assert_close(p.cdf(x), u, rtol=0, atol=1e-12)
    torch.testing.assert_close(p.icdf(torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None]),
                               torch.tensor([[-1.0] * 3, [1.0] * 3], dtype=torch.float64))  # fmt: skip


def test_a_density_with_a_zero_has_quantiles_there_too() -> None:
    p = FourierDensity(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64))  # 1 + cos(πx): zero at ±1
    u = torch.tensor([0.0, 1e-12, 1e-6, 0.5, 1.0], dtype=torch.float64)
    x = p.icdf(u)
    assert bool(x.isfinite().all())
    torch.testing.assert_close(p.cdf(x), u, rtol=0, atol=1e-10)
    assert float(p.log_prob(torch.tensor(-1.0, dtype=torch.float64))) < -50


def test_quantiles_have_the_derivatives_of_the_implicit_function() -> None:
    coef = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    u = torch.rand(3, 2, dtype=torch.float64).mul(0.8).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, v: FourierDensity(c).icdf(v), (coef, u))
    assert torch.autograd.gradcheck(
        lambda c: (FourierDensity(c).mean, FourierDensity(c).variance, FourierDensity(c).entropy()), (coef,)
    )
    x = torch.rand(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, v: (FourierDensity(c).log_prob(v), FourierDensity(c).cdf(v)), (coef, x))


def test_samples_follow_the_density() -> None:
    p = density(order=3, support=(0.0, 4.0))
    draws = p.sample((20_000,))
    assert draws.shape == (20_000,) and bool(((draws >= 0) & (draws <= 4)).all())
    points = torch.tensor([0.5, 1.0, 2.0, 3.3], dtype=torch.float64)
    empirical = (draws[:, None] <= points).double().mean(0)
    assert float((empirical - p.cdf(points)).abs().max()) < 0.015  # 4 standard errors
    assert FourierDensity(torch.ones(2, 4)).rsample((5,)).shape == (5, 2)


def test_a_distribution_of_torch() -> None:
    p = density(2, validate_args=True)  # torch.compile turns torch's default off
    bigger = p.expand((3, 2))
    assert bigger.batch_shape == (3, 2) and bigger.sample().shape == (3, 2)
    x = torch.zeros(3, 2, dtype=torch.float64)
    torch.testing.assert_close(bigger.log_prob(x), p.log_prob(x))
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.tensor(1.5, dtype=torch.float64))
    assert FourierDensity(torch.zeros(4)).log_prob(torch.tensor(0.3)).item() == pytest.approx(-math.log(2))
    assert FourierDensity(torch.zeros(4, dtype=torch.bfloat16)).mean.dtype == torch.float32


@pytest.mark.parametrize(
    ("coef", "support", "error"),
    [
        (torch.ones(3), (-1.0, 1.0), ArgumentValueError),
        (torch.ones(0), (-1.0, 1.0), ArgumentValueError),
        ([1.0, 2.0], (-1.0, 1.0), ArgumentTypeError),
        (torch.ones(2), (1.0, 1.0), ArgumentValueError),
        (torch.ones(2), (0.0, math.inf), ArgumentValueError),
        (torch.ones(2), 1.0, ArgumentTypeError),
    ],
)
def test_bad_arguments(coef: object, support: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"coef|support"):
        FourierDensity(coef, support)


def test_bad_probabilities_and_points() -> None:
    p = density(validate_args=True)
    with pytest.raises(ArgumentValueError, match="value"):
        p.icdf(torch.tensor(1.5))
    with pytest.raises(ArgumentTypeError, match="value"):
        p.cdf(torch.tensor(1))
