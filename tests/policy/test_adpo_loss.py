"""ADPO on rows with group ids: order, ragged groups, lengths, adaptive temperature, bad input."""

from __future__ import annotations

import pytest
import torch

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.policy import (
    AdaptiveTau,
    ADPOLoss,
    adpo_loss,
    anchored_cross_entropy,
    anchored_scores,
    plackett_luce_loss,
    preference_target,
    sequence_logp,
)

TARGETS = ["raw", "zscore", "kde", "top1", "plackett_luce"]


def rows(*, answers=12, tokens=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logp, anchor = torch.randn(2, answers, tokens, dtype=torch.float64, generator=generator) - 2
    scores = torch.randn(answers, dtype=torch.float64, generator=generator)
    mask = torch.rand(answers, tokens, generator=generator) > 0.3
    return logp.requires_grad_(), anchor, scores, mask


@pytest.mark.parametrize("target", TARGETS)
def test_any_order_of_rows_equals_contiguous_groups(target):
    logp, anchor, scores, mask = rows()
    contiguous = adpo_loss(logp, anchor, scores, 4, mask, target=target)
    expected = torch.autograd.grad(contiguous, logp)[0]
    ids = torch.tensor([9, 2, 5]).repeat_interleave(4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    shuffled = adpo_loss(logp[order], anchor[order], scores[order], ids[order], mask[order], target=target)
    torch.testing.assert_close(shuffled, contiguous)
    torch.testing.assert_close(torch.autograd.grad(shuffled, logp)[0], expected)


@pytest.mark.parametrize("target", ["raw", "zscore", "top1", "plackett_luce"])
def test_ragged_groups_are_single_groups_averaged(target):
    logp, anchor, scores, mask = rows()
    ids = torch.tensor([0, 1, 0, 2, 0, 1, 3, 0, 0, 2, 1, 0])
    alone = [
        adpo_loss(*(x[ids == g] for x in (logp, anchor, scores)), int((ids == g).sum()), mask[ids == g], target=target)
        for g in range(4)
    ]
    rowwise = adpo_loss(logp, anchor, scores, ids, mask, target=target, reduction="none")
    torch.testing.assert_close(rowwise, torch.stack(alone))
    torch.testing.assert_close(adpo_loss(logp, anchor, scores, ids, mask, target=target), torch.stack(alone).mean())
    assert rowwise[3].item() == 0.0  # a group of one


@pytest.mark.parametrize("length_norm", ["mean", "sum"])
def test_it_is_the_anchored_cross_entropy_of_sequences(length_norm):
    logp, anchor, scores, mask = rows()
    lengths = mask.sum(1) if length_norm == "mean" else torch.ones(12)
    policy, reference = ((torch.where(mask, p, 0.0).sum(1) / lengths).view(3, 4) for p in (logp, anchor))
    q = preference_target(scores.view(3, 4), "zscore", 0.3)
    expected = anchored_cross_entropy(policy, reference, q, tau=0.8)
    options = {"tau": 0.8, "target": "zscore", "beta": 0.3, "length_norm": length_norm}
    torch.testing.assert_close(adpo_loss(logp, anchor, scores, 4, mask, **options), expected)
    torch.testing.assert_close(sequence_logp(logp, mask, length_norm).view(3, 4), policy)
    ranking = plackett_luce_loss(anchored_scores(policy, reference, 0.8), scores.view(3, 4))
    torch.testing.assert_close(
        adpo_loss(logp, anchor, scores, 4, mask, **{**options, "target": "plackett_luce"}), ranking
    )


def test_padding_changes_nothing():
    logp, anchor, scores, mask = rows()
    wide = [torch.cat([x, torch.full((12, 3), float("nan"), dtype=x.dtype)], 1) for x in (logp, anchor)]
    loss = adpo_loss(*wide, scores, 4, torch.cat([mask, torch.zeros(12, 3, dtype=torch.bool)], 1))
    torch.testing.assert_close(loss, adpo_loss(logp, anchor, scores, 4, mask))
    torch.testing.assert_close(
        torch.autograd.grad(loss, logp)[0], torch.autograd.grad(adpo_loss(logp, anchor, scores, 4, mask), logp)[0]
    )


def test_compiled_with_group_ids_equals_eager():
    logp, anchor, scores, mask = rows()
    ids = torch.tensor([0, 1, 0, 2, 0, 1, 3, 0, 0, 2, 1, 0])
    compiled = torch.compile(adpo_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(logp, anchor, scores, ids, mask, target="kde"),
        adpo_loss(logp, anchor, scores, ids, mask, target="kde"),
    )


def test_equal_rewards_pull_back_to_the_anchor():
    logp, anchor, _, _ = rows()
    (gradient,) = torch.autograd.grad(adpo_loss(logp, anchor, torch.ones(12, dtype=torch.float64), 4), logp)
    assert float(gradient.abs().max()) > 1e-3
    at_anchor = anchor.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(adpo_loss(at_anchor, anchor, torch.ones(12, dtype=torch.float64), 4), at_anchor)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-16)


def test_missing_scores_are_dropped():
    logp, anchor, scores, mask = rows()
    scores[[1, 6]] = float("nan")
    present = ~scores.isnan()
    ids = torch.arange(12) // 4
    with pytest.raises(ArgumentValueError, match="scores"):
        adpo_loss(logp, anchor, scores, ids, mask)
    for target in TARGETS:
        torch.testing.assert_close(
            adpo_loss(logp, anchor, scores, ids, mask, target=target, nan="drop"),
            adpo_loss(*(x[present] for x in (logp, anchor, scores, ids, mask)), target=target),
        )


def test_adaptive_temperature():
    entropy, rewards = torch.tensor([0.2, 0.8, 0.5]), torch.tensor([-1.0, 3.0, 1.0])
    rule = AdaptiveTau(tau=0.8, alpha=1.0, beta=2.0, low=0.1, high=2.5)
    level = torch.tensor([0.0, 1.0, 0.5])
    expected = (0.8 * (1 + entropy + 2 * (1 - entropy) * (1 - level))).clamp(0.1, 2.5)
    torch.testing.assert_close(rule(entropy, rewards), expected)
    torch.testing.assert_close(AdaptiveTau(alpha=0.0)(entropy, torch.ones(3)), 1 + 0.5 * (1 - entropy))


def test_adaptive_loss_uses_the_temperature_of_every_group():
    logp, anchor, scores, mask = rows()
    entropy = torch.rand(12, 5, dtype=torch.float64)
    ids = torch.tensor([4, 4, 4, 4, 7, 7, 7, 1, 1, 7, 1, 7])
    rule = AdaptiveTau()
    means = [[], []]
    for g in (1, 4, 7):
        h = torch.where(mask, entropy, 0.0).sum(1) / mask.sum(1).clamp_min(1)
        means[0].append(h[ids == g].mean())
        means[1].append(scores[ids == g].mean())
    tau = rule(*map(torch.stack, means))
    torch.testing.assert_close(
        adpo_loss(logp, anchor, scores, ids, mask, adaptive=rule, entropy=entropy),
        adpo_loss(logp, anchor, scores, ids, mask, tau=tau),
    )


def test_module_checks_what_the_function_lets_pass():
    logp, anchor, scores, mask = rows()
    dirty = logp.detach().clone()
    dirty[0, 0] = float("nan")
    mask[0, 0] = True
    assert adpo_loss(dirty, anchor, scores, 4, mask).isnan()
    with pytest.raises(ArgumentValueError, match="logp must be finite"):
        ADPOLoss()(dirty, anchor, scores, 4, mask)
    assert ADPOLoss(check=False)(dirty, anchor, scores, 4, mask).isnan()
    mask[0, 0] = False
    assert ADPOLoss()(dirty, anchor, scores, 4, mask).isfinite()


def test_module_refuses_options_at_once():
    for options, error in (({"tau": 0.0}, ArgumentValueError), ({"target": "x"}, ArgumentValueError),
                           ({"beta": "1"}, ArgumentTypeError), ({"adaptive": 1}, ArgumentTypeError)):  # fmt: skip
        with pytest.raises(error, match=next(iter(options))):
            ADPOLoss(**options)
    assert "target='zscore'" in repr(ADPOLoss(target="zscore", adaptive=AdaptiveTau()))
    with pytest.raises(ArgumentValueError, match="high"):
        AdaptiveTau(low=2.0, high=1.0)
