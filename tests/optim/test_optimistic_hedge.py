"""Optimistic Hedge: the identity with softmax, laws of weights, extreme losses, games."""

from __future__ import annotations

import pytest
import torch

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.optim import OptimisticHedge, OptimisticOMD, optimistic_softmax, play_game

F64 = torch.float64


def play(learner, losses):
    points = []
    for loss in losses:
        points.append(learner.predict())
        learner.update(loss)
    return torch.stack(points)


@pytest.mark.parametrize("form", ["omd", "ftrl"])
def test_a_constant_step_gives_softmax_of_sum_and_hint(form):
    losses = torch.randn(60, 5, dtype=F64)
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0], dtype=F64)
    points = play(OptimisticHedge(5, 0.7, prior, form), losses)
    sums = torch.cat((torch.zeros(1, 5, dtype=F64), losses.cumsum(0)[:-1]))
    hints = torch.cat((torch.zeros(1, 5, dtype=F64), losses[:-1]))
    torch.testing.assert_close(points, optimistic_softmax(sums - prior.log() / 0.7, hints, 0.7), rtol=1e-11, atol=1e-15)
    assert (points[:, 4] == 0).all()


def test_with_a_step_that_falls_the_forms_differ_and_both_follow_their_formula():
    losses, step, root2 = torch.randn(40, 4, dtype=F64), [], 1.0
    hints = torch.cat((torch.zeros(1, 4, dtype=F64), losses[:-1]))
    for g, m in zip(losses, hints, strict=True):
        step.append(min(0.6, 0.9 / root2**0.5))
        root2 += float((g - m).abs().max() ** 2)
    options = {"scale": 0.9, "eta_max": 0.6}
    greedy, lazy = (play(OptimisticHedge(4, form=form, **options), losses) for form in ("omd", "ftrl"))
    logits, total = torch.zeros(4, dtype=F64), torch.zeros(4, dtype=F64)
    for t, (g, m) in enumerate(zip(losses, hints, strict=True)):
        torch.testing.assert_close(greedy[t], (logits - step[t] * m).softmax(-1))
        torch.testing.assert_close(lazy[t], (-step[t] * (total + m)).softmax(-1))
        logits, total = logits - step[t] * g, total + g
    assert (greedy - lazy).abs().max() > 1e-2
    torch.testing.assert_close(play(OptimisticOMD(4, regime="simplex"), losses), play(OptimisticHedge(4), losses))


def test_shifts_do_not_count_and_experts_have_no_order():
    losses = torch.randn(30, 6, dtype=F64)
    points = play(OptimisticHedge(6), losses)
    constant = play(OptimisticHedge(6, 0.5), losses + torch.randn(30, 1, dtype=F64))
    torch.testing.assert_close(constant, play(OptimisticHedge(6, 0.5), losses))
    order = torch.randperm(6)
    torch.testing.assert_close(play(OptimisticHedge(6), losses[:, order]), points[:, order])


def test_small_and_large_steps():
    losses = torch.tensor([[3.0, 1.0, 2.0]], dtype=F64).expand(3, 3)
    assert (play(OptimisticHedge(3, 1e-9), losses) - 1 / 3).abs().max() < 1e-8
    assert play(OptimisticHedge(3, 1e9), losses)[-1].tolist() == [0.0, 1.0, 0.0]
    assert play(OptimisticHedge(1), torch.randn(5, 1)).tolist() == [[1.0]] * 5


@pytest.mark.parametrize("form", ["omd", "ftrl"])
@pytest.mark.parametrize("eta", [1.0, "auto"])
def test_huge_losses_and_a_comeback(form, eta):
    hedge = OptimisticHedge(2, eta, form=form)
    points = play(hedge, torch.tensor([[1e300, 0.0], [1e300, 1.0], [0.0, 1e300], [0.0, 1e300], [0.0, 0.0]], dtype=F64))
    assert points.isfinite().all()
    dead = OptimisticHedge(2, 1.0, form=form)
    points = play(dead, torch.tensor([[2000.0, 0.0]] + [[0.0, 1.0]] * 2100, dtype=F64))
    assert points[2, 0] == 0.0 and points[-1, 0] > 0.99  # a weight below the smallest number is not lost


def test_correction_moves_the_centre_only():
    losses = torch.randn(10, 3, dtype=F64)
    hedge, logits, last = OptimisticHedge(3, 0.4, correction=True), torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)
    for g in losses:
        torch.testing.assert_close(hedge.predict(), (logits - 0.4 * last).softmax(-1))
        hedge.update(g)
        logits, last = logits - 0.4 * (g + 0.4 * (g - last).square()), g


def test_batches_are_loops_over_streams():
    losses = torch.randn(20, 3, 2, 5, dtype=F64)
    points = play(OptimisticHedge(5, batch_shape=(3, 2)), losses)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(points[:, i, j], play(OptimisticHedge(5), losses[:, i, j]))


def test_self_play_settles_as_one_over_t_where_hedge_does_not():
    A = torch.tensor([[2.0, -1.0], [-1.0, 1.0]])
    t = torch.arange(1, 801, dtype=F64)
    gaps, plain = play_game(A, 800, 0.5), play_game(A, 800, 0.5, hint="zero")
    assert (gaps > -1e-12).all()
    assert gaps[-1] < 0.05 * plain[-1]
    assert (gaps * t).max() < 2.0 and (plain * t)[-1] > 20.0


def test_optimistic_softmax_has_the_gradient_of_softmax():
    loss, hint = (torch.randn(3, 4, dtype=F64, requires_grad=True) for _ in range(2))
    weights = optimistic_softmax(loss, hint, 2.0)
    torch.testing.assert_close(weights, (-2.0 * (loss + hint)).softmax(-1))
    one, other = torch.autograd.grad(weights[:, 0].sum(), (loss, hint))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one[:, 0], -2.0 * weights[:, 0] * (1 - weights[:, 0]))


def test_bad_arguments():
    for options, error, word in (
        ({"n": 0}, ArgumentValueError, "n"),
        ({"eta": -1.0}, ArgumentValueError, "eta"),
        ({"eta": "big"}, ArgumentValueError, "eta"),
        ({"prior": [0.5, 0.6, 0.0]}, ArgumentValueError, "prior"),
        ({"prior": [1.0, 1.0, -1.0]}, ArgumentValueError, "prior"),
        ({"prior": "uniform"}, ArgumentTypeError, "prior"),
        ({"form": "lazy"}, ArgumentValueError, "form"),
        ({"correction": 1}, ArgumentTypeError, "correction"),
        ({"scale": 0.0}, ArgumentValueError, "scale"),
    ):
        with pytest.raises(error, match=word):
            OptimisticHedge(**{"n": 3, **options})
    with pytest.raises(ArgumentValueError, match="A must"):
        play_game(torch.zeros(3), 2, 0.5)
    with pytest.raises(ArgumentTypeError, match="A must"):
        play_game([[1.0]], 2, 0.5)
