"""Which filters are kept: the rule by hand and by brute force, its laws, samples in which nothing or too much fires."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate.dynamic import filter_scores, mask_prediction_loss, topk_mass_mask, uniform_mask


def _scores(rows: int = 40, filters: int = 17) -> Tensor:
    return torch.randn(rows, filters, dtype=torch.float64).relu()


def _by_hand(score: list[float], r: float, min_keep: int) -> list[bool]:
    """One sample, one filter after the other."""
    total = sum(score)
    order = sorted(range(len(score)), key=lambda c: (-score[c], c))
    keep, mass = [False] * len(score), 0.0
    for place, c in enumerate(order):
        share = score[c] / total if total else 0.0
        mass += share
        keep[c] = place < min_keep or (share > 1e-5 and (r == 1.0 or mass <= r + 1e-5))
    return keep


def test_the_worked_example() -> None:
    q = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1, 0.03, 0.01])
    assert topk_mass_mask(q, 0.95).tolist() == [True] * 4 + [False] * 3


@pytest.mark.parametrize("r", [0.05, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("min_keep", [0, 1, 3])
def test_mass_by_brute_force(r, min_keep) -> None:
    score = _scores()
    assert topk_mass_mask(score, r, min_keep).tolist() == [_by_hand(row, r, min_keep) for row in score.tolist()]


@pytest.mark.parametrize("prune", [0.0, 0.29, 0.5, 0.95])
def test_uniform_by_brute_force(prune) -> None:
    score = _scores(filters=100)
    for row, mask in zip(score.numpy(), uniform_mask(score, prune).numpy(), strict=True):
        order = np.lexsort((np.arange(100), -row))
        expected = np.zeros(100, bool)
        expected[order[: 100 - round(100 * prune)]] = True
        assert (mask == (expected & (row > 1e-5))).all()


def test_a_larger_share_keeps_what_a_smaller_one_keeps() -> None:
    score = _scores()
    score[3] = torch.tensor([1.0] + [1e-6] * 16)
    masks = [topk_mass_mask(score, r) for r in (0.01, 0.3, 0.6, 0.95, 0.9999, 0.999999, 1.0)]
    for less, more in pairwise(masks):
        assert bool((more | ~less).all())


@pytest.mark.parametrize("mask", [lambda s: topk_mass_mask(s, 0.8), lambda s: uniform_mask(s, 0.4)])
def test_order_of_filters_and_scale_do_not_matter(mask) -> None:
    score = _scores() + 0.01 * torch.rand(40, 17, dtype=torch.float64)
    order = torch.randperm(score.shape[1])
    assert torch.equal(mask(score)[:, order], mask(score[:, order]))
    assert torch.equal(mask(score), mask(score * 2.0**40))
    for huge in (torch.tensor([3e38, 2e38, 3e38]), torch.tensor([3e-40, 1e-45, 3e-40])):
        assert topk_mass_mask(huge, 0.9).tolist() == topk_mass_mask(huge.double(), 0.9).tolist()


def test_ties_are_broken_by_place() -> None:
    assert topk_mass_mask(torch.ones(4), 0.5).tolist() == [True, True, False, False]
    assert uniform_mask(torch.ones(4), 0.5).tolist() == [True, True, False, False]


def test_nothing_fires_or_something_is_not_finite() -> None:
    nan, inf = float("nan"), float("inf")
    assert topk_mass_mask(torch.zeros(1, 3), 0.5).tolist() == [[True, False, False]]
    assert not topk_mass_mask(torch.zeros(1, 3), 0.5, min_keep=0).any()
    assert topk_mass_mask(torch.tensor([9.0, 1.0]), 0.5).tolist() == [True, False]  # one alone exceeds r
    assert not topk_mass_mask(torch.tensor([9.0, 1.0]), 0.5, min_keep=0).any()
    assert topk_mass_mask(torch.tensor([nan, 1.0, 1.0, inf]), 0.6).tolist() == [True, True, False, True]
    assert uniform_mask(torch.tensor([nan, 1.0, 2.0, 0.0]), 0.25).tolist() == [True, True, True, False]


def test_scores_are_largest_magnitudes_without_gradient() -> None:
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    score = filter_scores(x)
    assert not score.requires_grad
    assert torch.equal(score, x.detach().abs().flatten(2).max(-1).values)
    assert filter_scores(x.detach().bfloat16()).dtype is torch.float32
    assert filter_scores(torch.zeros(0, 3, 1, 1)).shape == (0, 3)
    with pytest.raises(ValueError, match="x must be of shape"):
        filter_scores(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one place"):
        filter_scores(torch.zeros(2, 3, 0, 4))


def test_mask_loss_by_hand() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(3, 4) < 0.5
    p = logits.detach().sigmoid()
    by_hand = -torch.where(target, p.log(), (1 - p).log()).sum() / 3
    loss = mask_prediction_loss(logits, target)
    torch.testing.assert_close(loss, by_hand)
    loss.backward()
    torch.testing.assert_close(logits.grad, (p - target.double()) / 3)
