"""Losses of preference pairs: closed forms and the properties they were made for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from softgate.policy import (
    anchored_cross_entropy,
    dpo_loss,
    exo_pair_loss,
    hinge_pair_loss,
    ipo_loss,
    robust_dpo_loss,
)


@pytest.fixture
def logps():
    return [(3 * torch.randn(8, dtype=torch.float64) - 20).requires_grad_(i < 2) for i in range(4)]


def margin(chosen, rejected, ref_chosen, ref_rejected):
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def test_dpo_is_the_logistic_loss_of_the_margin(logps):
    torch.testing.assert_close(dpo_loss(*logps, beta=0.3), functional.softplus(-0.3 * margin(*logps)).mean())


def test_a_flipped_pair_costs_on_average_what_the_right_one_did(logps):
    eps = 0.2
    chosen, rejected, ref_chosen, ref_rejected = logps
    flipped = rejected, chosen, ref_rejected, ref_chosen
    expected = (1 - eps) * robust_dpo_loss(*logps, label_smoothing=eps) + eps * robust_dpo_loss(
        *flipped, label_smoothing=eps
    )
    torch.testing.assert_close(expected, dpo_loss(*logps))
    torch.testing.assert_close(robust_dpo_loss(*logps, label_smoothing=0.0), dpo_loss(*logps))


def test_ipo_divides_by_lengths(logps):
    lengths = torch.arange(1, 9), torch.tensor([0, 2, 3, 4, 5, 6, 7, 8])
    per_token = [p / n.clamp_min(1) for p, n in zip(logps, (*lengths, *lengths), strict=True)]
    torch.testing.assert_close(ipo_loss(*logps, *lengths, beta=0.5), ipo_loss(*per_token, beta=0.5))
    torch.testing.assert_close(ipo_loss(*logps, beta=0.5), (margin(*logps) - 1.0).square().mean())


def test_hinge_stops_beyond_its_margin():
    wide = torch.tensor([0.0, 0.0]).requires_grad_()
    low = torch.tensor([-5.0, -11.0])
    loss = hinge_pair_loss(wide, low, torch.zeros(2), torch.zeros(2), beta=0.1, reduction="none")
    torch.testing.assert_close(loss, torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), wide)[0], torch.tensor([-0.1, 0.0]))


def test_exo_is_the_reverse_divergence(logps):
    eps, beta = 0.1, 0.2
    log_p = torch.stack([beta * (logps[0] - logps[2]), beta * (logps[1] - logps[3])], -1).log_softmax(-1)
    goal = torch.tensor([1 - eps, eps], dtype=torch.float64)
    expected = functional.kl_div(goal.log().expand(8, 2), log_p.exp(), reduction="batchmean")
    torch.testing.assert_close(exo_pair_loss(*logps, beta=beta, label_smoothing=eps), expected)
    forward = anchored_cross_entropy(
        torch.stack(logps[:2], -1), torch.stack(logps[2:], -1), goal.expand(8, 2), tau=1 / beta, reduce_entropy=True
    )
    assert not torch.isclose(forward, expected)


def test_no_gradient_reaches_the_reference(logps):
    reference = [p.detach().requires_grad_() for p in logps[2:]]
    for loss_of in (dpo_loss, robust_dpo_loss, ipo_loss, hinge_pair_loss, exo_pair_loss):
        grads = torch.autograd.grad(loss_of(*logps[:2], *reference), reference, allow_unused=True)
        assert grads == (None, None)


def test_sums_of_long_answers_in_bfloat16_are_subtracted_in_float32():
    p = torch.tensor([-512.0], dtype=torch.bfloat16)
    q = torch.tensor([-510.0], dtype=torch.bfloat16)
    loss = dpo_loss(q, p, p, p, beta=1.0)
    assert loss.dtype is torch.bfloat16
    assert float(loss) == pytest.approx(float(functional.softplus(torch.tensor(-2.0))), rel=1e-2)
