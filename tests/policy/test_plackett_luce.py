"""Plackett-Luce: the likelihood of a ranking by enumeration, its pair case, ragged lists."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch.nn import functional

from softgate.policy import plackett_luce_loss


def test_likelihoods_of_all_rankings_sum_to_one():
    u = torch.tensor([0.3, -1.0, 0.7, 0.1], dtype=torch.float64)
    total = 0.0
    for ranking in permutations(range(4)):
        scores = torch.empty(4, dtype=torch.float64)
        scores[list(ranking)] = torch.arange(4, 0, -1, dtype=torch.float64)
        total += float(torch.exp(-3 * plackett_luce_loss(u, scores)))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_a_pair_is_the_logistic_loss():
    u, scores = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    margin = torch.where(scores[:, 0] > scores[:, 1], 1.0, -1.0) * (u[:, 0] - u[:, 1])
    torch.testing.assert_close(plackett_luce_loss(u, scores, reduction="none"), -functional.logsigmoid(margin))


def test_first_place_is_a_softmax():
    u, scores = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    expected = functional.cross_entropy(u, scores.argmax(-1))
    torch.testing.assert_close(plackett_luce_loss(u, scores, top_k=1), expected)


def test_masked_lists_equal_shorter_lists():
    u, scores = torch.randn(1, 5, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True, False]])
    for options in ({}, {"top_k": 2, "label_smoothing": 0.2, "poly": 0.5}, {"top_k": 4}):
        short = plackett_luce_loss(u[mask][None], scores[mask][None], **options)
        dirty = u.masked_fill(~mask, float("nan")).requires_grad_()
        loss = plackett_luce_loss(dirty, scores.masked_fill(~mask, float("inf")), mask=mask, **options)
        torch.testing.assert_close(loss, short)
        (gradient,) = torch.autograd.grad(loss, dirty)
        assert bool((gradient[~mask] == 0).all())


def test_order_of_candidates_does_not_matter():
    u, scores = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(plackett_luce_loss(u[:, order], scores[:, order]), plackett_luce_loss(u, scores))


def test_one_candidate_or_none_has_no_loss():
    u = torch.randn(3, 1)
    assert float(plackett_luce_loss(u, torch.zeros(3, 1))) == 0.0
    mask = torch.zeros(3, 4, dtype=torch.bool)
    assert float(plackett_luce_loss(torch.randn(3, 4), torch.zeros(3, 4), mask=mask)) == 0.0
