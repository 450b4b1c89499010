"""The objective of SofT-GRPO is GRPO with other defaults."""

from __future__ import annotations

import pytest
import torch

from softgate.errors import ArgumentValueError
from softgate.policy import SoftGRPOLoss, grpo_loss, soft_grpo_loss


@pytest.fixture
def batch() -> tuple[torch.Tensor, ...]:
    old = -1 - torch.rand(4, 6)
    mask = torch.arange(6) < torch.tensor([6, 3, 5, 1])[:, None]
    return old + torch.randn(4, 6), old, torch.tensor([1.0, -1.0, 0.5, -2.0]), mask


def test_by_hand(batch: tuple[torch.Tensor, ...]) -> None:
    logp, old, advantages, mask = batch
    total = 0.0
    for i, t in mask.nonzero().tolist():
        ratio, a = float((logp - old)[i, t].exp()), float(advantages[i])
        loss = -min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        total += min(loss, -3.0 * a) if a < 0 else loss
    assert float(soft_grpo_loss(*batch)) == pytest.approx(total / int(mask.sum()), rel=1e-5)


def test_a_reference_adds_a_small_kl_estimate(batch: tuple[torch.Tensor, ...]) -> None:
    logp, _, _, mask = batch
    d = torch.randn(4, 6)
    k3 = (d.exp() - d - 1)[mask].mean()
    more = soft_grpo_loss(*batch, ref_logp=logp + d) - soft_grpo_loss(*batch)
    torch.testing.assert_close(more, 0.001 * k3, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        soft_grpo_loss(*batch, ref_logp=logp + d, beta=0.0), grpo_loss(*batch, dual_clip=3.0, aggregation="token_mean")
    )


def test_the_module_takes_densities_above_one(batch: tuple[torch.Tensor, ...]) -> None:
    logp, old, advantages, mask = batch
    module = SoftGRPOLoss(eps_high=0.28, aggregation="seq_mean_token_mean")
    shifted = (logp + 5, old + 5, advantages, mask)
    torch.testing.assert_close(
        module(*shifted), soft_grpo_loss(*batch, eps_high=0.28, aggregation="seq_mean_token_mean")
    )
    with pytest.raises(ArgumentValueError, match="logp"):
        module(*shifted, check=True)
