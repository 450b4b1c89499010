"""OptimisticOMD: bounds that hold for every sequence, exact special cases, state, batches and bad input."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.optim import Ball, Box, Domain, OptimisticOMD, Simplex, Unconstrained

F64 = torch.float64
#: What every regime needs, for points of three entries.
REGIMES = {
    "convex": {"domain": Ball(1.0), "G": 10.0},
    "running": {"domain": Box(-1.0, 1.0), "G": "running"},
    "strongly": {"domain": Ball(1.0), "regime": "strongly_convex", "lam": 0.5},
    "exp": {"domain": Ball(1.0), "regime": "exp_concave", "G": 10.0, "alpha": 0.5},
    "diagonal": {"domain": Box(-1.0, 1.0), "regime": "exp_concave", "G": 10.0, "beta": 4.0, "memory": "diagonal"},
    "simplex": {"domain": Simplex(3), "regime": "simplex"},
    "constant": {"domain": Simplex(3), "eta": 0.3},
}


def play(learner, gradients, loss=None):
    """Points and centres over fixed gradients."""
    points, centers = [], []
    for g in gradients:
        centers.append(learner.center)
        points.append(learner.predict())
        learner.update(g, loss)
    return torch.stack(points), torch.stack(centers)


def drifting(rounds: int, *shape: int, seed: int = 0) -> torch.Tensor:
    steps = torch.randn(rounds, *shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return 0.3 * steps.cumsum(0) / math.sqrt(rounds) + 0.1 * steps


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.01, 10.0), st.sampled_from(["last", "zero"]), st.booleans())
def test_regret_is_below_the_bound_by_variation(seed, eta, hint, smooth):
    """RVU: D²/(2η) + η Σ‖g - m‖² - Σ‖x_t - x_{t-1}‖²/(4η) for every sequence of linear losses and every comparator."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(30, 3, dtype=F64, generator=generator)
    gradients = gradients.cumsum(0) / 5 if smooth else gradients
    points, _ = play(OptimisticOMD(3, Ball(1.0), eta=eta, hint=hint), gradients)
    total = gradients.sum(0)
    regret = (points * gradients).sum() + total.norm()  # the best point is -total / ‖total‖
    hints = torch.cat((torch.zeros(1, 3), gradients[:-1])) if hint == "last" else torch.zeros_like(gradients)
    steady = (points[1:] - points[:-1]).square().sum() / (4 * eta)
    assert regret <= 2.0 / eta + eta * (gradients - hints).square().sum() - steady + 1e-9


@pytest.mark.parametrize("kind", ["constant", "random", "rotating"])
def test_adaptive_step_keeps_its_bound(kind):
    """Σ over the convex step: regret ≤ (D + 2D) √(δ + 4G² + V_T), as the sum of η_t‖g - m‖² telescopes."""
    t = torch.arange(2000, dtype=F64)
    gradients = {
        "constant": torch.tensor([0.6, 0.8], dtype=F64).expand(2000, 2),
        "random": torch.nn.functional.normalize(torch.randn(2000, 2, dtype=F64), dim=-1),
        "rotating": torch.stack((torch.cos(0.3 * t), torch.sin(0.3 * t)), -1),
    }[kind]
    points, _ = play(OptimisticOMD(2, Ball(1.0), G=1.0), gradients)
    missed = (gradients[1:] - gradients[:-1]).square().sum() + 1.0
    regret = (points * gradients).sum() + gradients.sum(0).norm()
    assert regret <= 6.0 * math.sqrt(1.0 + 4.0 + missed)


def test_a_perfect_hint_costs_a_constant():
    gradients = torch.randn(2000, 3, dtype=F64)
    learner = OptimisticOMD(3, Ball(1.0), eta=0.5, hint=lambda t: gradients[t - 1])
    points, _ = play(learner, gradients)
    regret = (points * gradients).sum(-1).cumsum(0) + gradients.cumsum(0).norm(dim=-1)
    assert regret.max() <= 2.0 / 0.5
    given = OptimisticOMD(3, Ball(1.0), eta=0.5)
    for t in range(20):
        torch.testing.assert_close(given.predict(gradients[t]), points[t], rtol=0, atol=0)
        given.update(gradients[t])


def test_without_a_hint_it_is_projected_gradient_descent():
    gradients, x = drifting(50, 3), torch.zeros(3, dtype=F64)
    points, centers = play(OptimisticOMD(3, Ball(1.0), eta=0.7, hint="zero"), gradients)
    assert torch.equal(points, centers)
    for point, g in zip(points, gradients, strict=True):
        assert torch.equal(point, x)
        x = Ball(1.0).project(x - 0.7 * g)


def test_steps_are_those_of_the_paper():
    learner = OptimisticOMD(3, Ball(2.0), G=3.0, delta=0.5)
    assert float(learner.step_size) == pytest.approx(4.0 / math.sqrt(0.5 + 36.0))
    gradients, last, steps, sum_of_misses = drifting(30, 3), torch.zeros(3), [], 0.0
    for g in gradients:
        steps.append(float(learner.step_size))
        assert steps[-1] == pytest.approx(4.0 / math.sqrt(36.5 + sum_of_misses), rel=1e-12)
        learner.predict()
        learner.update(g)
        sum_of_misses += float((g - last).square().sum())
        last = g
    assert steps == sorted(steps, reverse=True)
    assert OptimisticOMD(3, Ball(1.0), "strongly_convex", lam=0.5).step_size == 4.0


def test_a_step_of_ones_own():
    gradients = drifting(20, 3)
    learner = OptimisticOMD(3, Ball(1.0), eta=lambda t: 1.0 / t)
    points, centers = play(learner, gradients)
    assert learner.step_size == 1.0 / 21
    for t in range(1, 20):
        torch.testing.assert_close(points[t], Ball(1.0).project(centers[t] - gradients[t - 1] / (t + 1)))
        torch.testing.assert_close(centers[t], Ball(1.0).project(centers[t - 1] - gradients[t - 1] / t))


def test_newton_step_against_matrices_formed_anew():
    gradients, G, beta = drifting(300, 3), 2.0, 3.0
    learner = OptimisticOMD(3, Ball(0.5), "exp_concave", G=G, beta=beta)
    points, _ = play(learner, gradients)
    H = (1 + 0.5 * beta * G**2) * torch.eye(3, dtype=F64)
    center, last = torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)
    for point, g in zip(points, gradients, strict=True):
        expected = Ball(0.5).project_in_norm(center - torch.linalg.solve(H, last), H)
        torch.testing.assert_close(point, expected, rtol=1e-9, atol=1e-11)
        center = Ball(0.5).project_in_norm(center - torch.linalg.solve(H, g), H)
        H, last = H + 0.5 * beta * torch.outer(g, g), g
    theory = OptimisticOMD(3, Ball(1.0), "exp_concave", G=2.0, alpha=100.0)
    assert theory.regime.beta == pytest.approx(0.5 / (4 * 2.0 * 2.0))


def test_middle_hint_is_the_extra_gradient_method():
    A = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    learner, center = (
        OptimisticOMD(2, Unconstrained(), eta=0.5, hint="middle", start=[1.0, 0.0]),
        torch.tensor([1.0, 0]),
    )
    center, hint = center.double(), torch.zeros(2, dtype=F64)
    for _ in range(40):
        x = learner.predict()
        torch.testing.assert_close(x, center - 0.5 * hint)
        learner.update(lambda p: A @ p)
        center = center - 0.5 * A @ x
        hint = A @ center
    assert float(center.norm()) < 0.1  # and it comes to the equilibrium, where plain gradient descent runs away
    with pytest.raises(StateError, match="function"):
        learner.predict()
        learner.update([0.0, 1.0])


@pytest.mark.parametrize("name", REGIMES)
def test_batches_are_loops_over_streams_and_points_stay_inside(name):
    options = dict(REGIMES[name])
    gradients = drifting(40, 2, 3)
    batched = OptimisticOMD(3, batch_shape=(2,), **options)
    points, _ = play(batched, gradients)
    for stream in range(2):
        alone, _ = play(OptimisticOMD(3, **options), gradients[:, stream])
        torch.testing.assert_close(points[:, stream], alone, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(options["domain"].project(points), points, rtol=1e-12, atol=1e-12)
    assert len(points.unique(dim=0)) > 20


@pytest.mark.parametrize("name", REGIMES)
def test_a_loaded_state_continues_bit_by_bit(name):
    gradients = drifting(30, 3)
    first, second = (OptimisticOMD(3, **REGIMES[name]) for _ in range(2))
    play(first, gradients[:15])
    first.predict()  # in the middle of a round
    second.load_state_dict(first.state_dict())
    for g in gradients[15:]:
        assert torch.equal(first.predict(), second.predict())
        first.update(g)
        second.update(g)
    with pytest.raises(ArgumentValueError, match="state_dict"):
        OptimisticOMD(4, eta=1.0).load_state_dict(first.state_dict())


def test_float32_follows_float64():
    gradients = drifting(100, 3)
    for name, options in REGIMES.items():
        wide, _ = play(OptimisticOMD(3, **options), gradients)
        narrow, _ = play(OptimisticOMD(3, dtype=torch.float32, **options), gradients)
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=2e-4, msg=name)


def test_regret_against_fixed_and_moving_comparators():
    targets = torch.nn.functional.normalize(drifting(20, 3), dim=-1)
    learner = OptimisticOMD(3, Ball(1.0), G=2.0)
    losses = []
    for target in targets:
        x = learner.predict()
        losses.append(0.5 * float((x - target).square().sum()))
        learner.update(x - target, losses[-1])
    static = 0.5 * (targets - targets.mean(0)).square().sum(-1)
    assert float(learner.regret(static)) == pytest.approx(sum(losses) - float(static.sum()))
    assert float(learner.regret(np.zeros(20))) == pytest.approx(sum(losses))
    with pytest.raises(ArgumentValueError, match="comparator_losses"):
        learner.regret(torch.zeros(19))


def test_zero_gradients_long_gradients_and_numpy():
    learner = OptimisticOMD(3, Ball(1.0), G=1.0)
    play(learner, np.zeros((5, 3)))
    assert learner.predict().tolist() == [0.0, 0.0, 0.0]
    learner.update([0.0, 0.0, 0.0])
    with pytest.warns(UserWarning, match="G is 1"):
        play(learner, [[5.0, 0.0, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        play(learner, [[1e200, 0.0, 0.0], [-1e200, 1.0, 1.0]])
    assert learner.predict().isfinite().all()


def test_a_set_of_ones_own():
    half = Domain(lambda x: x.clamp(min=0.0), diameter=3.0, project_in_norm=lambda x, H: x.clamp(min=0.0))
    points, _ = play(OptimisticOMD(3, half, G=10.0), drifting(20, 3))
    assert (points >= 0).all()
    play(OptimisticOMD(3, half, "exp_concave", G=10.0, alpha=1.0, memory="diagonal"), drifting(5, 3))


BAD = [
    ({"domain": Unconstrained(), "G": 1.0}, ArgumentValueError, "D must"),
    ({}, ArgumentValueError, "G must"),
    ({"regime": "strongly_convex"}, ArgumentValueError, "lam"),
    ({"regime": "strongly_convex", "lam": -1.0}, ArgumentValueError, "lam"),
    ({"regime": "exp_concave", "G": 1.0}, ArgumentValueError, "alpha"),
    ({"regime": "exp_concave", "G": 1.0, "alpha": -1.0}, ArgumentValueError, "alpha"),
    ({"regime": "exp_concave", "G": "running", "alpha": 1.0}, ArgumentValueError, "G must be a number"),
    ({"regime": "exp_concave", "eta": 1.0}, ArgumentValueError, "eta"),
    ({"regime": "convexx", "G": 1.0}, ArgumentValueError, "convex"),
    ({"regime": "simplex", "domain": Ball(1.0)}, ArgumentTypeError, "Simplex"),
    ({"G": "max"}, ArgumentValueError, "running"),
    ({"G": 1.0, "hint": "next"}, ArgumentValueError, "hint"),
    ({"G": 1.0, "hint": 3}, ArgumentTypeError, "hint"),
    ({"G": 1.0, "domain": Simplex(4)}, ArgumentValueError, "dim"),
    ({"G": 1.0, "domain": "ball"}, ArgumentTypeError, "domain"),
    ({"G": 1.0, "start": [2.0, 0.0, 0.0]}, ArgumentValueError, "start"),
    ({"G": 1.0, "start": [0.0]}, ArgumentValueError, "start"),
    ({"G": 1.0, "dtype": torch.float16}, ArgumentTypeError, "dtype"),
    ({"G": 1.0, "batch_shape": (0,)}, ArgumentValueError, "batch_shape"),
    ({"G": 1.0, "batch_shape": 2}, ArgumentTypeError, "batch_shape"),
    ({"G": 1.0, "delta": 0.0}, ArgumentValueError, "delta"),
]


@pytest.mark.parametrize(("options", "error", "word"), BAD, ids=[f"{i}-{b[2].split()[0]}" for i, b in enumerate(BAD)])
def test_bad_arguments(options, error, word):
    with pytest.raises(error, match=word):
        OptimisticOMD(3, **options)


def test_bad_rounds():
    learner = OptimisticOMD(3, eta=0.1)
    with pytest.raises(StateError, match="round 1"):
        learner.update([0.0, 0.0, 0.0])
    learner.predict()
    for wrong, error, word in (
        ([0.0], ArgumentValueError, "shape"),
        ([0.0, math.nan, 0.0], ArgumentValueError, "round 1"),
        ([0.0, math.inf, -math.inf], ArgumentValueError, "grad"),
        ("abc", ArgumentTypeError, "grad"),
    ):
        with pytest.raises(error, match=word):
            learner.update(wrong)
    with pytest.raises(StateError, match="another hint"):
        learner.predict([1.0, 0.0, 0.0])
    learner.predict([0.0, 0.0, 0.0])  # the hint that was used
    learner.update([1.0, 0.0, 0.0])
    with pytest.raises(ArgumentValueError, match="round 2"):
        learner.predict([math.nan, 0.0, 0.0])
