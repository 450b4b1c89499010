"""Rational activations: the four denominators, derivatives, starts, and what is kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.activations import RationalActivation, rational
from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.models import GPT, MLP, GPTConfig

X = torch.linspace(-4.0, 4.0, 41, dtype=torch.float64)
A = torch.tensor([0.2, -0.5, 1.0, 0.3], dtype=torch.float64)
B = torch.tensor([0.7, -0.4], dtype=torch.float64)
TARGETS = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh, "silu": F.silu, "identity": lambda x: x}
#: Largest error on [-3, 3] of a start with degrees (5, 4) in version B.
ERRORS = {"gelu": 1e-3, "relu": 3.5e-2, "tanh": 4e-6, "silu": 2e-6, "identity": 1e-14}


def by_hand(x: float, a: Tensor, b: Tensor, version: str) -> float:
    top = sum(float(c) * x**j for j, c in enumerate(a))
    terms = [float(c) * x ** (i + (version != "C")) for i, c in enumerate(b)]
    bottom = {
        "A": 1 + sum(map(abs, terms)), "B": 1 + abs(sum(terms)), "C": 0.1 + abs(sum(terms)), "N": 1 + sum(terms),
    }[version]  # fmt: skip
    return top / bottom


@pytest.mark.parametrize("version", ["A", "B", "C", "N"])
def test_the_formula(version: str) -> None:
    b = torch.cat((torch.tensor([-0.3], dtype=torch.float64), B)) if version == "C" else B
    expected = torch.tensor([by_hand(float(x), A, b, version) for x in X], dtype=torch.float64)
    torch.testing.assert_close(rational(X, A, b, version), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("version", ["A", "B", "C", "N"])
def test_derivatives_away_from_kinks(version: str) -> None:
    x = torch.tensor([[-2.3, 0.4, 0.9], [1.3, 2.9, -0.6]], dtype=torch.float64, requires_grad=True)
    a = A.repeat(3, 1).requires_grad_()
    b = (B.abs() if version == "N" else B).repeat(3, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: rational(*t, version), (x, a, b))
    assert torch.autograd.gradgradcheck(lambda *t: rational(*t, version), (x, a, b))


def test_denominators_are_at_least_one_and_nothing_overflows_up_to_1e4() -> None:
    x = torch.cat((-torch.logspace(-6, 4, 200), torch.logspace(-6, 4, 200)))
    for version in ("A", "B", "C"):
        g = RationalActivation(version=version)
        one = torch.tensor([1.0])
        bottom = 1 / rational(x, one, g.denominator, version)
        assert float(bottom.detach().min()) >= (1.0 if version != "C" else 0.1)
        y = x.clone().requires_grad_()
        g(y).sum().backward()
        assert all(t.grad.isfinite().all() for t in (y, g.numerator, g.denominator))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("version", ["A", "B", "C"])
def test_starts(name: str, version: str) -> None:
    x = torch.linspace(-3, 3, 1001)
    error = (RationalActivation(version=version, init=name)(x) - TARGETS[name](x)).abs().max()
    assert float(error.detach()) < ERRORS[name] * (4 if version == "A" else 1) + 1e-6


def test_own_functions_and_other_degrees() -> None:
    x = torch.linspace(-3, 3, 101)
    torch.testing.assert_close(RationalActivation((7, 6), init=torch.sin)(x), x.sin(), rtol=0, atol=1e-3)
    torch.testing.assert_close(RationalActivation((2, 0), init=lambda t: t**2)(x), x**2, rtol=0, atol=1e-5)
    assert RationalActivation((5, 4), version="C").denominator.shape == (5,)
    assert RationalActivation((3, 0), init="identity").denominator.shape == (0,)
    with pytest.raises(ArgumentValueError, match=r"degrees \(1, 0\).*'relu'.*0\.43"):
        RationalActivation((1, 0), init="relu")


def test_a_function_for_every_feature() -> None:
    g = RationalActivation(dim=3)
    x = torch.randn(5, 3)
    torch.testing.assert_close(g(x), RationalActivation()(x))
    g(x)[:, 1].sum().backward()
    assert g.numerator.grad[1].abs().min() > 0 and not g.numerator.grad[[0, 2]].any()
    assert repr(g) == "RationalActivation(degrees=(5, 4), version='B', dim=3)"


def test_only_the_input_is_kept() -> None:
    g, x = RationalActivation(), torch.randn(1000, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = g(x)
    assert sorted(t.numel() for t in kept) == [4, 6, 1000]
    assert any(t.data_ptr() == x.data_ptr() for t in kept)
    y.sum().backward()


def test_half_precision_and_mixed_dtypes() -> None:
    x = torch.randn(64)
    g = RationalActivation()
    for dtype in (torch.float16, torch.bfloat16):
        y = g(x.to(dtype))
        assert y.dtype is dtype
        torch.testing.assert_close(y, g(x.to(dtype).float()).to(dtype), rtol=0, atol=0)
    assert g(x.double()).dtype is torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(g(x), g(x.clone()), rtol=0, atol=0)


def test_it_stands_in_networks_and_learns() -> None:
    assert MLP((4, 8, 2), activation=RationalActivation)(torch.randn(5, 4)).shape == (5, 2)
    model = GPT(GPTConfig(vocab_size=5, num_layers=2, num_heads=1, embed_dim=4, activation="RationalActivation"))
    model(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    learned = [p for name, p in model.named_parameters() if "numerator" in name]
    assert len(learned) == 2 and all(p.grad is not None and p.grad.any() for p in learned)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"degrees": (-1, 4)}, ArgumentValueError, "degrees"),
        ({"degrees": 5}, ArgumentTypeError, "degrees"),
        ({"degrees": (5.0, 4)}, ArgumentTypeError, "degrees"),
        ({"version": "Z"}, ArgumentValueError, "version"),
        ({"init": "step"}, ArgumentValueError, "init"),
        ({"init": 3}, ArgumentTypeError, "init"),
        ({"init": torch.log}, ArgumentValueError, "init must be finite"),
        ({"init": torch.sum}, ArgumentValueError, "init must be finite"),
        ({"dim": 0}, ArgumentValueError, "dim"),
        ({"dim": 2.0}, ArgumentTypeError, "dim"),
    ],
)
def test_bad_arguments(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        RationalActivation(**options)
