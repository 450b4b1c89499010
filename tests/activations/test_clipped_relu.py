"""HyReLU and the clipped ReLUs: limits, faults, gradients, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from softgate.activations import ClippedReLU, hyrelu

FAULTY = torch.tensor([math.inf, -math.inf, math.nan, 3e38, -3e38, 1e-40])


def test_limits_of_bound_and_steepness() -> None:
    x = torch.randn(500, dtype=torch.float64) * 3
    assert torch.equal(hyrelu(x, torch.tensor(math.inf)), F.relu(x))
    hard = ClippedReLU(torch.tensor(1.5, dtype=torch.float64), "zero")(x)
    torch.testing.assert_close(hyrelu(x, torch.tensor(1.5, dtype=torch.float64), k=1e6), hard)
    at = torch.tensor(2.0, dtype=torch.float64)
    assert float(hyrelu(at, at)) == 1.0
    assert not hyrelu(-x.abs(), at).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_fault_passes(dtype: torch.dtype) -> None:
    x = FAULTY.to(dtype).requires_grad_()
    bound = torch.tensor(2.0, requires_grad=True)
    y = hyrelu(x, bound)
    assert y.dtype is dtype and bool((y[:5] == 0).all())
    grads = torch.autograd.grad(y.sum(), (x, bound))
    assert bool(grads[0].isfinite().all()) and bool(grads[1].isfinite())
    assert ClippedReLU(2.0, "zero")(x)[:5].tolist() == [0.0] * 5
    assert ClippedReLU(2.0, "saturate")(x)[:5].tolist() == [2.0, 0.0, 0.0, 2.0, 0.0]
    assert not ClippedReLU(math.inf, "zero")(x)[0]


@pytest.mark.parametrize("shape", [(), (4,), (3, 1)], ids=str)
def test_finite_differences(shape: tuple[int, ...]) -> None:
    x = torch.tensor([-1.0, 0.3, 0.8, 1.0, 1.3, 2.0, 0.9, 1.1, -0.2, 0.5, 1.6, 0.7], dtype=torch.float64)
    x = x.reshape(3, 4).requires_grad_()
    bound = torch.rand(shape, dtype=torch.float64).add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: hyrelu(a, b, 4.0), (x, bound))
    assert torch.autograd.gradgradcheck(lambda a, b: hyrelu(a, b, 4.0), (x, bound))


def test_only_x_and_the_bound_are_kept() -> None:
    saved: list[torch.Tensor] = []
    x = torch.randn(50, 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        hyrelu(x, torch.tensor(1.0, requires_grad=True))
    assert [t.numel() for t in saved] == [1000, 1]


@pytest.mark.parametrize("mode", ["zero", "saturate"])
def test_a_larger_bound_clips_less(mode: str) -> None:
    x = torch.rand(1000) * 5
    clipped = [(ClippedReLU(b, mode)(x) != x) for b in (1.0, 2.0, 4.0)]
    assert bool((clipped[1] <= clipped[0]).all()) and bool((clipped[2] <= clipped[1]).all())
    assert clipped[2].any() and torch.equal(ClippedReLU(5.0, mode)(x), x)


def test_a_dead_neuron_stays_dead() -> None:
    bound = torch.tensor([0.0, 1.0])
    for mode in ("hyrelu", "zero", "saturate"):
        y = ClippedReLU(bound, mode)(torch.full((3, 2), 0.5))
        assert not ((mode != "hyrelu") and y[:, 0].any()) and float(y[0, 0]) < 1e-4 and float(y[0, 1]) > 0.49


def test_module_state_and_repr() -> None:
    module = ClippedReLU(torch.tensor([1.0, 2.0]))
    assert not module.bound.requires_grad and list(module.state_dict()) == ["bound"]
    assert "2 bounds up to 2" in repr(module) and "k=20" in repr(module)


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: ClippedReLU(-1.0), ValueError, "bound"),
        (lambda: ClippedReLU(math.nan), ValueError, "bound"),
        (lambda: ClippedReLU("6"), TypeError, "bound"),
        (lambda: ClippedReLU(torch.tensor(1)), TypeError, "bound"),
        (lambda: ClippedReLU(1.0, "clip"), ValueError, "mode"),
        (lambda: ClippedReLU(1.0, k=0.0), ValueError, "k"),
        (lambda: ClippedReLU(torch.ones(3), "zero")(torch.ones(2)), ValueError, "bounds"),
        (lambda: ClippedReLU(torch.ones(3))(torch.ones(2)), ValueError, "bound"),
    ],
    ids=["negative", "nan", "text", "integer", "mode", "k", "shape", "smooth shape"],
)
def test_bad_input(make, error, word) -> None:
    with pytest.raises(error, match=word):
        make()
