"""Targets from scores: closed forms, the smoothed CDF against brute force, outliers, ragged lists."""

from __future__ import annotations

import pytest
import torch

from softgate.errors import ArgumentValueError
from softgate.policy import group_z_scores, preference_target, smoothed_cdf


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_two_candidates_are_the_pairwise_targets():
    scores = draw(20, 2)
    soft = torch.sigmoid((scores[:, 0] - scores[:, 1]) / 0.4)
    torch.testing.assert_close(preference_target(scores, beta=0.4)[:, 0], soft)
    hard = (scores[:, 0] > scores[:, 1]).double()
    torch.testing.assert_close(preference_target(scores, "top1")[:, 0], hard)


def test_top1_shares_ties_evenly():
    scores = torch.tensor([[1.0, 2.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(preference_target(scores, "top1"), torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.25] * 4]))


def test_z_scores_are_those_of_bessel():
    scores = 3 * draw(6, 5) + 7
    expected = (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)
    torch.testing.assert_close(group_z_scores(scores), expected)
    torch.testing.assert_close(preference_target(scores, "zscore", 0.5), (expected / 0.5).softmax(-1))


def test_equal_scores_are_exactly_zero_and_uniform():
    scores = torch.tensor([[0.1, 0.1, 0.1], [5e7, 5e7, 5e7]])
    assert bool((group_z_scores(scores) == 0).all())
    for kind in ("raw", "zscore", "top1"):
        torch.testing.assert_close(preference_target(scores, kind), torch.full((2, 3), 1 / 3))


def brute_force_cdf(values):
    n, ordered = len(values), values.sort().values
    quartiles = torch.quantile(ordered, torch.tensor([0.25, 0.75], dtype=values.dtype))
    h = 0.9 * min(float(values.std()), float(quartiles[1] - quartiles[0]) / 1.349) * n ** (-0.2)
    normal = torch.distributions.Normal(0.0, 1.0)
    return torch.stack([torch.stack([normal.cdf((r - other) / h) for other in values]).mean() for r in values])


def test_smoothed_cdf_against_brute_force():
    scores = draw(5, 4) ** 3
    torch.testing.assert_close(smoothed_cdf(scores).flatten(), brute_force_cdf(scores.flatten()), rtol=1e-12, atol=0)


def test_smoothed_cdf_of_many_scores_is_that_of_one_block(monkeypatch):
    scores = draw(9, 4)
    whole = smoothed_cdf(scores)
    monkeypatch.setattr("softgate.policy.preference_targets._BLOCK", 100)
    torch.testing.assert_close(smoothed_cdf(scores), whole, rtol=1e-14, atol=0)


def test_smoothed_cdf_leaves_masked_scores_out():
    scores = draw(5, 4)
    kept = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) > 0.3
    got = smoothed_cdf(scores.masked_fill(~kept, float("nan")), kept)
    torch.testing.assert_close(got[kept], brute_force_cdf(scores[kept]), rtol=1e-12, atol=0)


def test_smoothed_cdf_without_spread_counts_ties_half():
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(smoothed_cdf(scores), torch.tensor([[7 / 16] * 7 + [15 / 16]]))


def test_an_outlier_counts_as_the_best_of_the_batch_however_far_out():
    scores = draw(8, 4)
    scores[0, 0] = 30.0
    far = scores.clone()
    far[0, 0] = 1e6
    kde, kde_far = (preference_target(values, "kde") for values in (scores, far))
    assert float((kde - kde_far).abs().max()) < 1e-6
    raw_far = preference_target(far)[0]
    assert float(raw_far[0]) == 1.0 and float(kde_far[0, 0]) < 0.999


def test_kde_keeps_the_order_of_scores():
    scores = draw(6, 5) ** 5
    order = scores.argsort(-1)
    q = preference_target(scores, "kde").gather(-1, order)
    assert bool((q.diff(dim=-1) >= 0).all())


@pytest.mark.parametrize("kind", ["raw", "zscore", "kde", "top1"])
def test_masked_lists_equal_shorter_lists(kind):
    scores = draw(1, 5)
    mask = torch.tensor([[1, 0, 1, 1, 0]])
    short = preference_target(scores[:, mask[0] == 1], kind, 0.7)
    q = preference_target(scores.masked_fill(mask == 0, float("inf")), kind, 0.7, mask)
    torch.testing.assert_close(q[:, mask[0] == 1], short)
    assert bool((q[mask == 0] == 0).all())


def test_scores_that_are_missing():
    scores = draw(2, 3)
    scores[0, 1] = float("nan")
    with pytest.raises(ArgumentValueError, match="nan='drop'"):
        preference_target(scores)
    q = preference_target(scores, nan="drop")
    torch.testing.assert_close(q[0, [0, 2]], preference_target(scores[:1, [0, 2]])[0])
    assert float(q[0, 1]) == 0.0


def test_no_gradient_reaches_the_scores():
    scores = draw(2, 3).requires_grad_()
    for kind in ("raw", "zscore", "kde", "top1"):
        assert not preference_target(scores, kind).requires_grad
