"""Streams of losses and their best points, restarts, and the curves of regret."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from softgate.lab.online_rounds import Restarting, best_losses, checkpoints, play, regrets
from softgate.lab.tasks import online_streams as streams
from softgate.optim import Ball, OptimisticOMD

RUN = SimpleNamespace(log=lambda *args, **figures: None)


def some_streams():
    rows = torch.randn(40, 3, dtype=torch.float64)
    signs = torch.where(rows[:, 0] + 0.5 * torch.randn(40) > 0, 1.0, -1.0).double()
    return {
        "linear": streams.LinearStream(streams.switching_costs(40, 3, 0.5, 2, 0)),
        "quadratic": streams.QuadraticStream(rows, 0.7),
        "regression": streams.switching_regression(40, 3, 4, 0),
        "logistic": streams.LogisticStream(rows / rows.norm(dim=1).max(), signs, 3.0),
    }


@pytest.mark.parametrize("name", ["linear", "quadratic", "regression", "logistic"])
def test_gradients_are_those_of_the_losses_and_no_point_is_better_than_the_best(name):
    stream = some_streams()[name]
    points = Ball(1.0).project(torch.randn(stream.rounds, stream.dim, dtype=torch.float64)).requires_grad_()
    (expected,) = torch.autograd.grad(stream.losses(points).sum(), points)
    found = torch.stack([stream.grad(t, points[t].detach()) for t in range(stream.rounds)])
    torch.testing.assert_close(found, expected)
    best, rounds = float(best_losses(stream, 25)), stream.rounds
    assert stream.best(25).norm() <= 1 + 1e-12
    for other in (*Ball(1.0).project(torch.randn(200, stream.dim, dtype=torch.float64)), 0.99 * stream.best(25)):
        assert float(stream.losses(other.expand(rounds, -1))[:25].sum()) >= best - 1e-6


def test_regret_is_measured_against_the_best_point_so_far():
    stream = some_streams()["regression"]
    points = play(RUN, OptimisticOMD(3, G=2.0), stream)
    curve = regrets(stream, points, [10, 40])
    assert float(curve[1]) == pytest.approx(float(stream.losses(points).sum() - best_losses(stream, 40)))
    assert float(curve[0]) == pytest.approx(float(stream.losses(points)[:10].sum() - best_losses(stream, 10)))
    assert checkpoints(4000, 4) == [500, 1000, 2000, 4000]


def test_means_switch_as_often_as_told():
    costs = streams.switching_costs(1000, 4, 0.0, 3, 1, size=0.5)
    assert len(costs.unique(dim=0)) == 4
    torch.testing.assert_close(costs.norm(dim=1), torch.full((1000,), 0.5, dtype=torch.float64))
    noise = streams.switching_costs(20_000, 4, 2.0, 0, 1, size=0.0)
    assert float(noise.square().sum(1).mean()) == pytest.approx(4.0, rel=0.05)
    turned = streams.rotating_costs(3, 2, torch.pi / 2)
    torch.testing.assert_close(turned, torch.tensor([[1.0, 0], [0, 1], [-1, 0]], dtype=torch.float64))


def test_restarting_forgets():
    goal = torch.tensor([0.5, 0.0], dtype=torch.float64)
    learner = Restarting(lambda: OptimisticOMD(2, eta=0.3), period=5)
    points = play(RUN, learner, streams.QuadraticStream(goal.expand(12, 2), 1.0))
    assert points[[0, 5, 10]].abs().sum() == 0
    assert (points[[4, 9]] - goal).norm(dim=1).max() < 0.2
