"""Clipped softmax: where it is exactly 0 and 1, its gradient, the rule for the length."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from softgate.dispatch import explain
from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.normalizers import ClippedSoftmax, clipped_softmax, softmax

PAIRS = [(-0.03, 1.0), (-0.1, 1.1), (0.0, 1.03), (-0.2, 1.0)]


def rows() -> Tensor:
    return 3 * torch.randn(50, 9, dtype=torch.float64)


def test_gamma_zero_and_zeta_one_is_softmax_bit_for_bit() -> None:
    for x in (rows(), rows().float()):
        assert torch.equal(clipped_softmax(x, gamma=0.0), softmax(x))


@pytest.mark.parametrize(("gamma", "zeta"), PAIRS)
def test_exactly_zero_and_one_beyond_the_thresholds(gamma: float, zeta: float) -> None:
    x = rows()
    p = x.softmax(-1)
    y = clipped_softmax(x, gamma=gamma, zeta=zeta)
    low, high = -gamma / (zeta - gamma), (1 - gamma) / (zeta - gamma)
    assert torch.equal(y == 0, p <= low) and (gamma == 0 or (y == 0).any())
    if zeta > 1:
        x[:, 0] = 12.0  # something large enough
        p = x.softmax(-1)
        y = clipped_softmax(x, gamma=gamma, zeta=zeta)
        assert torch.equal(y == 1, p >= high) and (y == 1).any()
    else:
        assert (y.sum(-1) <= 1 + 1e-12).all()
        alive = y > 0  # every alive entry loses -γ(1 - p), every other all it had
        lost = torch.where(alive, -gamma * (1 - p), p).sum(-1)
        torch.testing.assert_close(y.sum(-1), 1 - lost)


@pytest.mark.parametrize(("gamma", "zeta"), PAIRS)
def test_gradient_by_finite_differences(gamma: float, zeta: float) -> None:
    x = rows()[:6].requires_grad_()
    assert torch.autograd.gradcheck(lambda t: clipped_softmax(t, gamma=gamma, zeta=zeta), x, check_forward_ad=True)


def test_a_dead_entry_has_no_gradient_but_moves_the_others() -> None:
    x = torch.tensor([3.0, 1.0, -4.0], dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda t: clipped_softmax(t, gamma=-0.03))(x)
    assert clipped_softmax(x, gamma=-0.03)[2] == 0
    assert (jacobian[2] == 0).all()
    assert (jacobian[:2, 2] != 0).all()


def test_a_single_key() -> None:
    x = torch.randn(4, 1)
    assert (clipped_softmax(x, gamma=-0.1) == 1).all()
    assert (clipped_softmax(x, gamma=-0.1, zeta=1.5) == 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_threshold_is_compared_in_float32(dtype: torch.dtype) -> None:
    """1.001 p - 0.001 rounds to p in bfloat16 for most p: the stretch would vanish."""
    x = torch.linspace(-3, 3, 64).to(dtype)
    exact = clipped_softmax(x.double(), gamma=-0.001)
    y = clipped_softmax(x, gamma=-0.001)
    assert y.dtype is dtype
    assert torch.equal(y == 0, exact == 0) and (y == 0).any()
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-7)
    assert clipped_softmax(x, dtype=torch.float32).dtype is torch.float32


def test_masked_and_finfo_min_scores() -> None:
    x = torch.tensor([[1.0, 0.0, torch.finfo(torch.float32).min], [1.0, 0.0, -torch.inf]])
    y = clipped_softmax(x, gamma=-0.05)
    assert torch.equal(y[0], y[1]) and (y[:, 2] == 0).all()
    nothing = torch.full((2, 3), -torch.inf, requires_grad=True)
    z = clipped_softmax(nothing, gamma=-0.05, zeta=1.1)
    assert (z == 0).all()
    assert (torch.autograd.grad(z.sum(), nothing)[0] == 0).all()


def test_the_length_rule() -> None:
    """A uniform row of T keys has weights 1/T; weights below alpha / (T + alpha) are zeroed."""
    layer = ClippedSoftmax(alpha=3.2, max_seq_len=128)
    assert layer.gamma == pytest.approx(-0.025)
    assert repr(layer) == "ClippedSoftmax(dim=-1, gamma=-0.025, zeta=1)"
    threshold = 3.2 / (128 + 3.2)
    for length in (64, 128, 500):
        p = torch.rand(length, dtype=torch.float64)
        p = p / p.sum()
        assert torch.equal(layer(p.log()) == 0, p < threshold)
    x = rows()
    torch.testing.assert_close(ClippedSoftmax(0, gamma=-0.1)(x), clipped_softmax(x.mT, gamma=-0.1).mT)


def test_eta_is_zeta() -> None:
    x = rows()
    assert torch.equal(clipped_softmax(x, gamma=-0.1, eta=1.1), clipped_softmax(x, gamma=-0.1, zeta=1.1))


def test_the_kernel_is_used_where_there_is_one() -> None:
    choice = explain(clipped_softmax, torch.zeros(3, 5))
    assert choice.chosen in ("native", "reference")
    assert explain(clipped_softmax, torch.zeros(3, 5, dtype=torch.float64)).chosen == "reference"


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({}, ArgumentValueError, "gamma or alpha"),
        ({"gamma": -0.1, "alpha": 2.0, "max_seq_len": 8}, ArgumentValueError, "alpha"),
        ({"alpha": 2.0}, ArgumentValueError, "max_seq_len"),
        ({"gamma": -0.1, "max_seq_len": 8}, ArgumentValueError, "max_seq_len"),
        ({"gamma": 0.1}, ArgumentValueError, "gamma"),
        ({"gamma": -0.1, "zeta": 0.5}, ArgumentValueError, "zeta"),
        ({"alpha": -1.0, "max_seq_len": 8}, ArgumentValueError, "alpha"),
        ({"alpha": 1.0, "max_seq_len": 0}, ArgumentValueError, "max_seq_len"),
        ({"alpha": 1.0, "max_seq_len": 8.0}, ArgumentTypeError, "max_seq_len"),
        ({"gamma": "-0.1"}, ArgumentTypeError, "gamma"),
        ({"dim": 1.0, "gamma": -0.1}, ArgumentTypeError, "dim"),
    ],
)
def test_bad_input(options: dict[str, object], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        ClippedSoftmax(**options)  # type: ignore[arg-type]
