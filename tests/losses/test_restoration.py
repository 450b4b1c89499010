"""Losses of restoration: bounds and limits, Parseval, the sum over stages and scales, what is refused."""

from __future__ import annotations

import pytest
import torch

from softgate.losses import MaximLoss, charbonnier, frequency_l1


def test_charbonnier_lies_above_the_absolute_error() -> None:
    x, y = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = charbonnier(x, y, 0.1, "none")
    assert bool((found > (x - y).abs()).all()) and bool((found <= (x - y).abs() + 0.1).all())
    torch.testing.assert_close(charbonnier(x, x, 0.1, "sum"), torch.tensor(0.1 * x.numel(), dtype=torch.float64))
    torch.testing.assert_close(charbonnier(x, y, 0.1), found.mean())
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: charbonnier(z, y, 0.1), x)
    assert float(torch.autograd.grad(charbonnier(x, x.detach()), x)[0].abs().max()) == 0.0


def test_spectra_add_up_to_the_squared_difference() -> None:
    x, y = (torch.randn(2, 3, 6, 10, dtype=torch.float64) for _ in range(2))
    amplitudes = frequency_l1(x, y, "none")
    torch.testing.assert_close(amplitudes.square().sum((-2, -1)), (x - y).square().sum((-2, -1)))
    plain, divided = (frequency_l1(x, y, "none", fft_norm=norm) for norm in ("backward", "forward"))
    torch.testing.assert_close(plain, 60**0.5 * amplitudes)
    torch.testing.assert_close(divided, amplitudes / 60**0.5)
    assert float(frequency_l1(x, x)) == 0.0 and float(frequency_l1(x, y)) > 0.0
    constant = frequency_l1(x + 2.0, x, "none")
    assert float(constant[..., 0, 0].mean()) == pytest.approx(2 * 60**0.5)
    assert float(constant.flatten(-2)[..., 1:].max()) < 1e-12


def test_gradient_of_the_spectral_loss() -> None:
    x, y = (torch.randn(1, 1, 3, 4, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda z: frequency_l1(z, y), x.requires_grad_())


def test_the_sum_over_stages_and_scales() -> None:
    target = torch.rand(2, 3, 8, 12)
    fine, coarse = torch.rand(2, 3, 8, 12), torch.rand(2, 3, 4, 6)
    small = target[..., 1::2, 1::2]  # halfway between two pixels the later one is nearest
    by_hand = sum(
        charbonnier(x, y) + 0.1 * frequency_l1(x, y) for x, y in ((fine, target), (coarse, small), (target, target))
    )
    torch.testing.assert_close(MaximLoss()([[coarse, fine], [target]], target), by_hand)
    torch.testing.assert_close(MaximLoss(0.0, 0.5)(fine, target), charbonnier(fine, target, 0.5))
    assert MaximLoss()(fine.bfloat16(), target.bfloat16()).dtype is torch.float32


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda x: charbonnier(x, x[:1]), ValueError, "target"),
        (lambda x: charbonnier(x, x.double()), TypeError, "target"),
        (lambda x: charbonnier(x.long(), x), TypeError, "input"),
        (lambda x: charbonnier(x, x, 0.0), ValueError, "eps"),
        (lambda x: charbonnier(x, x, 1.0, "max"), ValueError, "reduction"),
        (lambda x: frequency_l1(x[0, 0, 0], x[0, 0, 0]), ValueError, "input"),
        (lambda x: frequency_l1(x, x, fft_norm="none"), ValueError, "fft_norm"),
        (lambda x: MaximLoss(-1.0), ValueError, "lambda_freq"),
        (lambda x: MaximLoss()([], x), ValueError, "outputs"),
        (lambda x: MaximLoss()(3, x), TypeError, "outputs"),
        (lambda x: MaximLoss()([[x[..., :3, :4]]], x), ValueError, "outputs"),
        (lambda x: MaximLoss()(x, x[0]), ValueError, "target"),
    ],
    ids=range(12),
)
def test_bad_arguments(call, error, word) -> None:
    with pytest.raises(error, match=word):
        call(torch.ones(2, 3, 8, 8))
