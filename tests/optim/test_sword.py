"""Sword++ and its relatives, beside the golden arrays: members, horizon, state, batches, bad input."""

from __future__ import annotations

import math

import pytest
import torch

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.optim import Ball, Box, Doubling, OptimisticOMD, Simplex, SwordPP, Unconstrained

F64 = torch.float64


def targets(rounds: int, *shape: int) -> torch.Tensor:
    steps = torch.randn(rounds, *shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(steps.cumsum(0), dim=-1) * 0.8


def follow(learner, goals):
    """Half squared distances to moving goals."""
    points = []
    for goal in goals:
        points.append(learner.predict())
        learner.update(lambda x, goal=goal: x - goal)
    return torch.stack(points)


def test_one_member_is_optimistic_gradient_descent():
    goals = targets(80, 3)
    alone = follow(SwordPP(Ball(1.0), 80, 2.0, 1.0, pool=[0.2], dim=3), goals)
    torch.testing.assert_close(alone, follow(OptimisticOMD(3, Ball(1.0), eta=0.2), goals), rtol=1e-13, atol=1e-15)
    extra = follow(SwordPP(Ball(1.0), 80, 2.0, 1.0, pool=[0.2], dim=3, method="sword"), goals)
    middle = follow(OptimisticOMD(3, Ball(1.0), eta=0.2, hint="middle"), goals)
    torch.testing.assert_close(extra, middle, rtol=1e-13, atol=1e-15)


def test_pools_double_until_past_the_largest_step():
    learner = SwordPP(Ball(0.5, dim=2), horizon=10_000, G=2.0, L=0.5)
    assert learner.pool.tolist() == pytest.approx([1.0 / 200 * 2**i for i in range(7)])
    assert learner.pool[-2] <= 1 / 4 < learner.pool[-1]
    assert len(SwordPP(Ball(0.5, dim=2), 10_000, 2.0, 0.5, eta_min=0.3).pool) == 1
    assert SwordPP(Simplex(4), 10, 1.0, 1.0).dim == 4
    assert SwordPP(Box(0.0, 1.0), 10, 1.0, 1.0, dim=4).pool[0] == pytest.approx(2.0 / math.sqrt(10))


def test_the_step_that_suits_the_drift_gets_the_weight():
    goals = targets(1500, 3)
    learner = SwordPP(Ball(1.0), 1500, 2.0, 1.0, pool=[1e-3, 0.3], dim=3)
    points = follow(learner, goals)
    assert learner.weights[1] > 0.7
    error = (points - goals).square().sum(-1)[200:].mean()
    stiff = follow(OptimisticOMD(3, Ball(1.0), eta=1e-3), goals)
    assert error < 0.25 * (stiff - goals).square().sum(-1)[200:].mean()


@pytest.mark.parametrize("method", ["sword++", "sword", "sword_best"])
def test_batches_and_states(method):
    goals = targets(30, 2, 3)
    options = {"dim": 3, "method": method, "eta_min": 0.01}
    points = follow(SwordPP(Ball(1.0), 30, 2.0, 1.0, batch_shape=(2,), **options), goals)
    for stream in range(2):
        alone = follow(SwordPP(Ball(1.0), 30, 2.0, 1.0, **options), goals[:, stream])
        torch.testing.assert_close(points[:, stream], alone, rtol=1e-12, atol=1e-14)
    assert (points.norm(dim=-1) <= 1 + 1e-12).all()
    first, second = (SwordPP(Ball(1.0), 30, 2.0, 1.0, **options) for _ in range(2))
    follow(first, goals[:15, 0])
    second.load_state_dict(first.state_dict())
    assert torch.equal(follow(first, goals[15:, 0]), follow(second, goals[15:, 0]))


def test_after_the_horizon_it_warns_once_and_goes_on():
    learner = SwordPP(Ball(1.0), 2, 1.0, 1.0, dim=2)
    follow(learner, targets(2, 2))
    with pytest.warns(UserWarning, match="horizon=2"):
        follow(learner, targets(3, 2))
    assert learner.rounds == 5


def test_doubling_restarts():
    made = []

    def make(rounds):
        made.append(rounds)
        return SwordPP(Ball(1.0), rounds, 1.0, 1.0, dim=2)

    learner = Doubling(make, first=2)
    follow(learner, targets(13, 2))
    assert made == [2, 4, 8] and learner.rounds == 13 and learner.learner.rounds == 7
    for wrong, error in ((3, ArgumentTypeError), (make, ArgumentValueError)):
        with pytest.raises(error, match=r"make|first"):
            Doubling(wrong, first=0)


def test_bad_arguments_and_rounds():
    good = {"domain": Ball(1.0), "horizon": 5, "G": 1.0, "L": 1.0, "dim": 2}
    for options, error, word in (
        ({"domain": Unconstrained()}, ArgumentValueError, "domain"),
        ({"domain": None}, ArgumentTypeError, "domain"),
        ({"dim": None}, ArgumentValueError, "dim"),
        ({"horizon": 0}, ArgumentValueError, "horizon"),
        ({"G": None}, ArgumentTypeError, "G"),
        ({"L": 0.0}, ArgumentValueError, "L"),
        ({"eta_min": -1.0}, ArgumentValueError, "eta_min"),
        ({"pool": []}, ArgumentValueError, "pool"),
        ({"pool": [0.1, -0.1]}, ArgumentValueError, "pool"),
        ({"pool": "all"}, ArgumentTypeError, "pool"),
        ({"method": "swordpp"}, ArgumentValueError, "sword"),
        ({"start": [3.0, 0.0]}, ArgumentValueError, "start"),
    ):
        with pytest.raises(error, match=word):
            SwordPP(**{**good, **options})
    learner = SwordPP(**good, method="sword")
    with pytest.raises(ArgumentValueError, match="hint"):
        learner.predict([0.0, 0.0])
    learner.predict()
    with pytest.raises(StateError, match="function"):
        learner.update([0.0, 0.0])
    with pytest.raises(StateError, match="finished"):
        learner.state_dict()
