"""Bounds of the entropy of noisy samples: closed forms, brute force, blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import softgate
from softgate.diagnostics import density_entropy, kde_entropy


def _by_hand(x: list[list[float]], variance: float) -> float:
    """Two loops over the samples, in Python's floats."""
    total, n, d = 0.0, len(x), len(x[0])
    for a in x:
        inner = sum(math.exp(-sum((s - t) ** 2 for s, t in zip(a, b, strict=True)) / (2 * variance)) for b in x)
        total += math.log(inner / n)
    return d / 2 + d / 2 * math.log(2 * math.pi * variance) - total / n


@pytest.mark.parametrize("variance", [1e-6, 0.01, 0.3, 50.0])
def test_two_loops(variance: float) -> None:
    x = torch.randn(70, 3, dtype=torch.float64)
    x[5] = x[6]
    expected = _by_hand(x.tolist(), variance)
    wide = _by_hand(x.tolist(), 4 * variance) + 1.5 * math.log(0.25)
    for samples in (x, x.clone().requires_grad_()):  # by blocks, and by the formula
        assert kde_entropy(samples, variance).item() == pytest.approx(expected, abs=1e-9)
        assert kde_entropy(samples, variance, bound="lower").item() == pytest.approx(wide, abs=1e-9)
    single = kde_entropy(x.float(), variance)
    assert float(single) == pytest.approx(expected, abs=1e-5)
    assert float(kde_entropy(x.float() + 1000.0, variance)) == pytest.approx(expected, abs=1e-3)  # centred


def test_what_runs() -> None:
    x = torch.randn(100, 2)
    assert softgate.explain(kde_entropy, x, 1.0).chosen == "blocks"
    assert "gradient" in softgate.explain(kde_entropy, x.clone().requires_grad_(), 1.0).refused["blocks"]
    assert "fewer" in softgate.explain(kde_entropy, x[:9], 1.0).refused["blocks"]


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_the_size_of_a_block_does_not_matter(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(150, 4, dtype=torch.float64)
    expected = [s.clone() for s in density_entropy.similarity_sums(x, 0.2)]
    monkeypatch.setattr(density_entropy, "_BLOCK", size)
    for found, sums in zip(density_entropy.similarity_sums(x, 0.2), expected, strict=True):
        torch.testing.assert_close(found, sums, rtol=1e-12, atol=0)


def test_one_gaussian_and_many_alike() -> None:
    noise = 1.5 * (1 + math.log(2 * math.pi * 0.7))
    for samples in (torch.zeros(1, 3), torch.ones(90, 3)):
        for bound in ("upper", "lower"):
            assert float(kde_entropy(samples, 0.7, bound=bound)) == pytest.approx(noise, abs=1e-5)


def test_between_the_bounds() -> None:
    x, variance = torch.tensor([[0.0], [1.7]], dtype=torch.float64), 1.0
    line = torch.linspace(-12, 14, 20001, dtype=torch.float64)
    density = torch.exp(-0.5 * (line - x).square()).mean(0) / math.sqrt(2 * math.pi)
    entropy = -float(torch.trapezoid(torch.special.xlogy(density, density), line))
    lower, upper = (float(kde_entropy(x, variance, bound=bound)) for bound in ("lower", "upper"))
    assert lower < entropy < upper and upper - lower < 0.4


def test_it_can_be_a_loss() -> None:
    x = torch.randn(30, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(kde_entropy(x, 0.1), x)
    assert float(kde_entropy(x.detach() + 0.01 * slope / slope.norm(), 0.1)) > float(kde_entropy(x.detach(), 0.1))


def test_memory_is_that_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    exponents = density_entropy._exponents

    def counted(x: Tensor, variance: float):
        inner = exponents(x, variance)

        def block(i: slice, j: slice) -> Tensor:
            result = inner(i, j)
            seen.append(result.numel())
            return result

        return block

    monkeypatch.setattr(density_entropy, "_exponents", counted)
    kde_entropy(torch.randn(1000, 2), 0.1)
    assert max(seen) == 256**2 and sum(seen) < 1000**2  # half of the matrix and its diagonal blocks
