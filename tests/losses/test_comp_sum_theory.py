"""Best risks, read-outs and bounds of the comp-sum losses, against brute-force minimisation and random draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from softgate.losses import (
    HConsistencyBound,
    comp_sum_conditional_risk,
    comp_sum_loss,
    comp_sum_probabilities,
    h_consistency_bound,
    minimizability_gap,
    minimizability_gap_bound,
)

TAUS = [0.0, 0.5, 1.0, 1.5, 1.9, 2.0, 2.5]


def best_scores(p: torch.Tensor, tau: float) -> torch.Tensor:
    """Scores of least expected loss for label distributions ``p``, by L-BFGS."""
    z = torch.zeros_like(p, requires_grad=True)
    search = torch.optim.LBFGS([z], max_iter=300, tolerance_grad=1e-10, tolerance_change=1e-14,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> torch.Tensor:
        search.zero_grad()
        loss = comp_sum_loss(z, p, tau=tau, reduction="sum")
        loss.backward()
        return loss

    search.step(closure)
    return z.detach()


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 1.7])
def test_best_risk_and_read_out_are_those_of_brute_force_minimisation(tau) -> None:
    p = torch.rand(4, 3, dtype=torch.float64) + 0.1
    p /= p.sum(1, keepdim=True)
    z = best_scores(p, tau)
    found = comp_sum_loss(z, p, tau=tau, reduction="none")
    torch.testing.assert_close(comp_sum_conditional_risk(p, tau), found, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(comp_sum_probabilities(z, tau), p, rtol=1e-3, atol=1e-4)
    if tau != 1.0:  # softmax itself is not the label distribution
        assert float((z.softmax(1) - p).abs().max()) > 0.02


@pytest.mark.parametrize("tau", TAUS)
def test_no_scores_are_better_than_the_best_risk(tau) -> None:
    p = torch.rand(2000, 4, dtype=torch.float64) ** 3
    p /= p.sum(1, keepdim=True)
    z = 4 * torch.randn(2000, 4, dtype=torch.float64)
    excess = comp_sum_loss(z, p, tau=tau, reduction="none") - comp_sum_conditional_risk(p, tau)
    assert float(excess.min()) >= -1e-12
    if tau >= 2:  # attained in the limit of one-hot scores
        sure = 200.0 * torch.nn.functional.one_hot(p.argmax(1), 4).double()
        torch.testing.assert_close(comp_sum_loss(sure, p, tau=tau, reduction="none"), comp_sum_conditional_risk(p, tau))


def test_best_risk_in_closed_form() -> None:
    p = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    assert float(comp_sum_conditional_risk(p, 1.0)) == pytest.approx(1.5 * math.log(2))
    assert float(comp_sum_conditional_risk(p, 0.0)) == pytest.approx((math.sqrt(0.5) + 1) ** 2 - 1)
    assert float(comp_sum_conditional_risk(p, 3.0)) == pytest.approx(0.25)
    near = [float(comp_sum_conditional_risk(p, 1 + step)) for step in (-1e-7, 1e-7)]
    assert near == pytest.approx([1.5 * math.log(2)] * 2, rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("tau", TAUS)
def test_bound_holds_on_random_draws(tau, n) -> None:
    p = torch.rand(20_000, n, dtype=torch.float64) ** 4 + 1e-9
    p /= p.sum(1, keepdim=True)
    z = torch.randn(20_000, n, dtype=torch.float64) * (3 * torch.rand(20_000, 1, dtype=torch.float64))
    excess = comp_sum_loss(z, p, tau=tau, reduction="none") - comp_sum_conditional_risk(p, tau)
    regret = p.amax(1) - p.gather(1, z.argmax(1, keepdim=True))[:, 0]
    bound = h_consistency_bound(tau, n)
    assert bool((excess >= bound.transform(regret) - 1e-12).all())
    assert bool((regret <= bound(excess.clamp(min=0.0)) + 1e-9).all())


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5])
def test_bound_is_tight_for_two_classes(tau) -> None:
    """Labels (1 + t, 1 - t)/2 and equal scores: the excess is T(t), and a tie may fall on the wrong side."""
    t = torch.linspace(0.0, 0.99, 12, dtype=torch.float64)
    p = torch.stack([1 + t, 1 - t], 1) / 2
    excess = comp_sum_loss(torch.zeros_like(p), p, tau=tau, reduction="none") - comp_sum_conditional_risk(p, tau)
    torch.testing.assert_close(h_consistency_bound(tau, 2).transform(t), excess, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [2, 7])
@pytest.mark.parametrize("tau", TAUS)
def test_bound_inverts_its_transform_and_lies_below_the_simple_form(tau, n) -> None:
    bound = HConsistencyBound(tau, n)
    t = torch.linspace(0.01, 1.0, 30, dtype=torch.float64)
    torch.testing.assert_close(bound(bound.transform(t)), t, rtol=1e-7, atol=1e-9)
    assert bool((bound.simple(bound.transform(t)) >= t - 1e-9).all())
    assert bool((bound.transform(t).diff() > 0).all())
    assert float(bound(torch.tensor(1e9))) == 1.0 and float(bound(0.0)) < 1e-7


def test_bound_takes_floats_arrays_and_tensors() -> None:
    bound = h_consistency_bound(1.0, 5)
    assert isinstance(bound(0.1), float)
    array = bound(np.array([0.1, 0.2], dtype=np.float32))
    assert isinstance(array, np.ndarray) and array[0] == pytest.approx(bound(0.1))
    assert bound(torch.tensor([0.1])).dtype == torch.float32
    assert "tau=1.0, n=5" in repr(bound)
    # the transform of cross-entropy at regret 1/2, by hand
    assert bound.transform(0.5) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert bound.transform(1.0) == pytest.approx(math.log(2))


def test_minimizability_gap_of_constant_models() -> None:
    """A constant model sees the mean label distribution: its best risk, and so the gap, is known."""
    labels = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2]]
    for tau in TAUS:
        mean = labels.mean(0, keepdim=True)
        best = float(comp_sum_conditional_risk(mean, tau))
        torch.testing.assert_close(float(minimizability_gap(best, labels, tau)), best)
        assert float(minimizability_gap(best, mean.expand(4, 3), tau)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5, 2.0])
def test_gap_bound_holds_for_constant_models_with_bounded_scores(tau) -> None:
    """Two inputs of different class, scores (s, -s) with |s| <= 1: brute force over s."""
    s = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    z = torch.stack([s, -s], 1)

    def risks(order: float) -> torch.Tensor:
        labels = [torch.full((2001,), y) for y in (0, 0, 1)]
        return torch.stack([comp_sum_loss(z, y, tau=order, reduction="none") for y in labels]).mean(0)

    gap = float(risks(tau).min() - comp_sum_loss(torch.tensor([[1.0, -1.0]]).double(), torch.tensor([0]), tau=tau))
    bound = minimizability_gap_bound(float(risks(0.0).min()), tau, n=2, score_bound=1.0)
    assert 0.0 <= gap <= bound + 1e-9


def test_gap_bound_falls_with_tau() -> None:
    values = [minimizability_gap_bound(2.0, tau, n=4, score_bound=2.0) for tau in TAUS]
    assert all(a > b for a, b in itertools.pairwise(values))
    least = 3 * math.exp(-4.0)
    assert minimizability_gap_bound(least, 1.0, n=4, score_bound=2.0) == 0.0
    assert minimizability_gap_bound(2.0, 0.0, n=4, score_bound=math.inf) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: h_consistency_bound(-1.0, 3), ValueError, "tau"),
        (lambda: h_consistency_bound(1.0, 1), ValueError, "n must"),
        (lambda: h_consistency_bound(1.0, 2.0), TypeError, "n must"),
        (lambda: h_consistency_bound(1.0, 2)(-0.1), ValueError, "excess"),
        (lambda: h_consistency_bound(1.0, 2)(math.nan), ValueError, "excess"),
        (lambda: h_consistency_bound(1.0, 2)("1"), TypeError, "excess"),
        (lambda: h_consistency_bound(1.0, 2)(np.array([-1.0])), ValueError, "excess"),
        (lambda: h_consistency_bound(1.0, 2).transform(1.5), ValueError, "regret"),
        (lambda: comp_sum_conditional_risk(torch.tensor([-0.1, 1.1])), ValueError, "probabilities"),
        (lambda: comp_sum_conditional_risk([0.5, 0.5]), TypeError, "probabilities"),
        (lambda: minimizability_gap_bound(0.0, 1.0, n=2, score_bound=1.0), ValueError, "best_sum_exponential_risk"),
        (lambda: minimizability_gap_bound(1.0, 1.0, n=2, score_bound=0.0), ValueError, "score_bound"),
    ],
)
def test_bad_calls_name_the_argument(call, error, word) -> None:
    with pytest.raises(error, match=word):
        call()
