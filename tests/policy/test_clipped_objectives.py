"""GRPO, GSPO and CISPO: where gradients pass and where they do not, and what the modules do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from softgate.policy import (
    CISPOLoss,
    GRPOLoss,
    GSPOLoss,
    aggregate,
    cispo_loss,
    grpo_loss,
    gspo_loss,
    kl_estimate,
    reinforce_loss,
)

RATIOS = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 1.4, 1.6, 2.9, 3.1, 6.0], dtype=torch.float64)


def _slopes(loss, ratios: Tensor, sign: float, **options) -> Tensor:
    """Gradient of one token per row by its log-probability, over that of the unclipped objective."""
    old = torch.full((len(ratios), 1), -3.0, dtype=torch.float64)
    logp = (old + ratios.log()[:, None]).requires_grad_()
    advantages = torch.full((len(ratios),), sign, dtype=torch.float64)
    value = loss(logp, old, advantages, torch.ones_like(old), **options)
    (grad,) = torch.autograd.grad(value, logp)
    return grad.squeeze(1) * len(ratios) / (-sign * ratios)


@pytest.mark.parametrize(
    ("options", "cut_negative"),
    [({}, 0.0), ({"delta": 1.5}, 1.5), ({"dual_clip": 3.0}, 3.0), ({"delta": 5.0, "dual_clip": 1.3}, 1.3)],
    ids=["plain", "delta", "dual_clip", "both"],
)
def test_regions_without_gradient(options: dict, cut_negative: float) -> None:
    positive = _slopes(grpo_loss, RATIOS, 1.0, **options)
    torch.testing.assert_close(positive, (RATIOS <= 1.2).double())
    passes = (RATIOS >= 0.8) & ((cut_negative > RATIOS) if cut_negative else torch.ones_like(RATIOS, dtype=torch.bool))
    torch.testing.assert_close(_slopes(grpo_loss, RATIOS, -1.0, **options), passes.double())
    for sign, expected in ((1.0, RATIOS <= 1.2), (-1.0, passes)):
        old = torch.full((len(RATIOS), 1), -3.0, dtype=torch.float64)
        advantages = torch.full((len(RATIOS),), sign, dtype=torch.float64)
        _, stats = grpo_loss(
            old + RATIOS.log()[:, None], old, advantages, torch.ones_like(old), return_stats=True, **options
        )
        assert stats.zero_grad_fraction.item() == pytest.approx(1 - expected.double().mean().item())


def test_dual_clip_caps_the_loss() -> None:
    old = torch.full((1, 1), -5.0)
    for ratio in (2.0, 4.0, 50.0):
        loss = grpo_loss(old + math.log(ratio), old, torch.tensor([-2.0]), torch.ones(1, 1), dual_clip=3.0)
        assert loss.item() == pytest.approx(2 * min(ratio, 3.0))


def test_cispo_gives_every_token_a_gradient() -> None:
    for sign in (1.0, -1.0):
        slopes = _slopes(cispo_loss, RATIOS, sign, eps_max=2.0)
        torch.testing.assert_close(slopes, RATIOS.clamp(max=2.0) / RATIOS)
    torch.testing.assert_close(_slopes(reinforce_loss, RATIOS, -1.0), torch.ones_like(RATIOS))


def test_forms_of_gspo_have_one_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    old = -torch.rand(5, 7, generator=generator, dtype=torch.float64) - 2
    logp = old + 0.1 * torch.randn(5, 7, generator=generator, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5, 0])[:, None]
    advantages = torch.randn(5, generator=generator, dtype=torch.float64)
    grads = []
    for level in ("sequence", "token"):
        leaf = logp.clone().requires_grad_()
        loss = gspo_loss(leaf, old, advantages, mask, eps_low=0.02, eps_high=0.03, level=level)
        grads.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(*grads)
    assert ((grads[0] == 0).all(1) & mask.any(1)).any() and (grads[0] != 0).any()  # some sequences are cut, not all
    ratio = ((logp - old) * mask).sum(1) / mask.sum(1).clamp(min=1)
    by_hand = -torch.min(ratio.exp() * advantages, ratio.exp().clamp(0.98, 1.03) * advantages) * mask.any(1)
    torch.testing.assert_close(gspo_loss(logp, old, advantages, mask, eps_low=0.02, eps_high=0.03), by_hand.mean())


def test_penalty_is_added_before_the_aggregation() -> None:
    generator = torch.Generator().manual_seed(2)
    logp, old, ref = (-torch.rand(4, 6, generator=generator, dtype=torch.float64) - 1 for _ in range(3))
    mask = torch.arange(6) < torch.tensor([6, 2, 4, 1])[:, None]
    advantages = torch.randn(4, generator=generator, dtype=torch.float64)
    plain = grpo_loss(logp, old, advantages, mask)
    for kind in ("k1", "k2", "k3", "abs"):
        penalty = kl_estimate(logp, ref, kind)
        found = grpo_loss(logp, old, advantages, mask, ref_logp=ref, beta=0.3, kl=kind)
        torch.testing.assert_close(found, plain + 0.3 * aggregate(penalty, mask))
        corrected = grpo_loss(logp, old, advantages, mask, ref_logp=ref, beta=0.3, kl=kind, correct_kl=True)
        torch.testing.assert_close(corrected, plain + 0.3 * aggregate(penalty * (logp - old).exp(), mask))


@pytest.mark.parametrize(
    ("module", "function", "options"),
    [
        (GRPOLoss(0.1, 0.28, dual_clip=3.0), grpo_loss, {"eps_low": 0.1, "eps_high": 0.28, "dual_clip": 3.0}),
        (GSPOLoss(0.03, 0.04), gspo_loss, {"eps_low": 0.03, "eps_high": 0.04}),
        (CISPOLoss(2.0), cispo_loss, {"eps_max": 2.0}),
    ],
    ids=["grpo", "gspo", "cispo"],
)
def test_modules(module, function, options) -> None:
    old = -torch.rand(4, 6) - 1
    logp, advantages, mask = old + 0.5 * (torch.rand(4, 6) - 0.5), torch.randn(4), torch.ones(4, 6, dtype=torch.int64)
    torch.testing.assert_close(
        module(logp, old, advantages, mask), function(logp, old, advantages, mask, **options), rtol=0, atol=0
    )


def test_an_unknown_option_is_refused() -> None:
    logp = -torch.ones(2, 3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'eps'"):
        reinforce_loss(logp, logp, torch.ones(2), torch.ones(2, 3), eps=0.1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="eps_max"):
        cispo_loss(logp, logp, torch.ones(2), torch.ones(2, 3), eps_max=0.0)
