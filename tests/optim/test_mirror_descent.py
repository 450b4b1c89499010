"""OptimisticMirrorDescent: the learner it came from, games, being an optimizer in every respect, bad input."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.optim import OptimisticHedge, OptimisticMirrorDescent, OptimisticOMD, Unconstrained

F64 = torch.float64


def gradients(rounds: int, *shape: int) -> torch.Tensor:
    return torch.randn(rounds, *shape, dtype=F64, generator=torch.Generator().manual_seed(2)).cumsum(0) / 5


def run(optimizer, parameters, rows):
    """Parameters after every step of given gradients."""
    points = []
    for row in rows:
        for p, g in zip(parameters, row, strict=True):
            p.grad = g.to(p.dtype).clone()
        optimizer.step()
        points.append(torch.cat([p.detach().double().flatten() for p in parameters]))
    return torch.stack(points)


def learner_points(learner, rows):
    points = []
    for row in rows:
        points.append(learner.predict())
        learner.update(torch.cat([g.flatten() for g in row]))
    return torch.stack([*points, learner.predict()])[1:]


@pytest.mark.parametrize("lr", [0.3, "sea"])
@pytest.mark.parametrize("device_path", [False, True], ids=["numbers", "tensors"])
def test_parameters_are_the_points_of_the_learner(lr, device_path, monkeypatch):
    if device_path:  # what accelerators take, where step sizes stay tensors
        from softgate.optim import mirror_descent

        inner = mirror_descent._move

        def move(params, grads, hints, before, after, subtracted):
            inner(params, grads, hints, *(torch.tensor(eta, dtype=F64) for eta in (before, after)), subtracted)

        monkeypatch.setattr(mirror_descent, "_move", move)
    rows = list(zip(gradients(40, 3), gradients(40, 2, 2), strict=True))
    parameters = [nn.Parameter(torch.zeros(3, dtype=F64)), nn.Parameter(torch.zeros(2, 2, dtype=F64))]
    optimizer = OptimisticMirrorDescent(parameters, lr, diameter=2.0, G=3.0, delta=0.5)
    options = {"eta": 0.3} if lr == 0.3 else {"G": 3.0, "delta": 0.5}
    with pytest.warns(UserWarning, match="G is 3") if lr == "sea" else _nothing():
        expected = learner_points(OptimisticOMD(7, Unconstrained(2.0), **options), rows)
    torch.testing.assert_close(run(optimizer, parameters, rows), expected, rtol=1e-11, atol=1e-13)


def _nothing():
    import contextlib

    return contextlib.nullcontext()


@pytest.mark.parametrize("lr", [0.3, "sea"])
def test_distributions_are_the_weights_of_hedge(lr):
    rows = [(g,) for g in gradients(40, 4)]
    p = nn.Parameter(torch.tensor([0.1, 0.2, 0.7, 0.0], dtype=F64))
    optimizer = OptimisticMirrorDescent([p], lr, mirror="entropy")
    hedge = OptimisticHedge(4, "auto" if lr == "sea" else lr, prior=p.detach().clone())
    torch.testing.assert_close(run(optimizer, [p], rows), learner_points(hedge, rows), rtol=1e-11, atol=1e-15)
    assert p[3] == 0


def test_a_constant_step_and_a_schedule():
    g, p = gradients(6, 3), nn.Parameter(torch.zeros(3, dtype=F64))
    points = run(OptimisticMirrorDescent([p], lr=0.1), [p], [(row,) for row in g])
    moves = points.diff(dim=0)
    torch.testing.assert_close(moves, -0.2 * g[1:] + 0.1 * g[:-1])
    p = nn.Parameter(torch.zeros(3, dtype=F64))
    optimizer = OptimisticMirrorDescent([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (step + 1))
    eta, x, hint, center = [0.1 / (t + 1) for t in range(6)], p.detach().clone(), 0.0, p.detach().clone()
    for t in range(6):
        run(optimizer, [p], [(g[t],)])
        used = eta[max(t - 1, 0)]  # the step that led here moves the centre; the scheduled one looks ahead
        center = x + used * hint - used * g[t]
        x, hint = center - eta[t] * g[t], g[t]
        torch.testing.assert_close(p.detach(), x)
        scheduler.step()


def test_a_game_comes_to_its_equilibrium_where_gradient_descent_runs_away():
    def distance(make) -> float:
        x, y = (nn.Parameter(torch.ones(3, dtype=F64)) for _ in range(2))
        optimizers = make(x, y)
        A = torch.eye(3, dtype=F64)
        for _ in range(400):
            for optimizer in optimizers:
                optimizer.zero_grad()
            (x @ A @ y).backward()
            for optimizer in optimizers:
                optimizer.step()
        return float(x.detach().norm() + y.detach().norm())

    ours = distance(
        lambda x, y: [OptimisticMirrorDescent([{"params": [x]}, {"params": [y], "maximize": True}], lr=0.2)]
    )
    plain = distance(lambda x, y: [torch.optim.SGD([x], lr=0.2), torch.optim.SGD([y], lr=0.2, maximize=True)])
    assert ours < 1e-2 < 10 < plain


def test_matrix_game_of_distributions():
    """Rock, paper, scissors with a loaded throw: the last iterate reaches the equilibrium."""
    A = torch.tensor([[0.0, 2.0, -1.0], [-2.0, 0.0, 1.0], [1.0, -1.0, 0.0]], dtype=F64)
    p, q = (nn.Parameter(torch.tensor([0.6, 0.3, 0.1], dtype=F64)) for _ in range(2))
    optimizer = OptimisticMirrorDescent([{"params": [p]}, {"params": [q], "maximize": True}], lr=0.2, mirror="entropy")
    for _ in range(1500):
        optimizer.zero_grad()
        (p @ A @ q).backward()
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.25, 0.25, 0.5], dtype=F64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("mirror", ["euclidean", "entropy"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_saved_and_loaded_it_continues_bit_by_bit(mirror, dtype):
    rows = [(g, 2 * g) for g in gradients(12, 2, 4)]
    parameters = [nn.Parameter(torch.full((2, 4), 0.25, dtype=dtype)) for _ in range(2)]
    optimizer = OptimisticMirrorDescent(parameters, mirror=mirror)
    run(optimizer, parameters, rows[:6])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = copy.deepcopy(parameters)
    resumed = OptimisticMirrorDescent(others, mirror=mirror) if mirror == "euclidean" else None
    if resumed is None:
        fresh = [nn.Parameter(torch.full((2, 4), 0.25, dtype=dtype)) for _ in range(2)]
        resumed = OptimisticMirrorDescent(fresh, mirror=mirror)
        for new, old in zip(fresh, others, strict=True):
            new.data.copy_(old)
        others = fresh
    resumed.load_state_dict(torch.load(file))
    assert torch.equal(run(optimizer, parameters, rows[6:]), run(resumed, others, rows[6:]))


def test_bfloat16_rounds_once_a_step():
    g = gradients(1, 50)[0]
    p = nn.Parameter(torch.linspace(0, 1, 50, dtype=torch.bfloat16))
    expected = (p.detach().float() - 0.2 * g.bfloat16().float()).bfloat16()
    run(OptimisticMirrorDescent([p], lr=0.1), [p], [(g,)])
    assert torch.equal(p.detach(), expected)


def test_closures_missing_gradients_and_networks():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1), nn.Linear(1, 1))
    inputs = torch.randn(64, 3)
    goal = inputs[:, :1] * inputs[:, 1:2]
    optimizer = OptimisticMirrorDescent(model.parameters(), lr=0.1)
    model[3].requires_grad_(False)

    def closure():
        optimizer.zero_grad()
        loss = (model(inputs) - goal).square().mean()
        loss.backward()
        return loss.item()

    first = optimizer.step(closure)
    assert all(optimizer.step(closure) < 10 for _ in range(200))
    assert closure() < 0.7 * first
    assert "hint" not in optimizer.state[model[3].weight]
    late = nn.Parameter(torch.zeros(2))
    optimizer.add_param_group({"params": [late], "lr": "sea"})
    late.grad = torch.ones(2)
    optimizer.step()
    assert late.detach().tolist() == pytest.approx([late.detach()[0].item()] * 2) and late.detach()[0] < 0


def test_bad_arguments():
    p = nn.Parameter(torch.ones(3))
    for options, error, word in (
        ({"lr": -1.0}, ArgumentValueError, "lr"),
        ({"lr": "auto"}, ArgumentValueError, "lr"),
        ({"lr": torch.tensor(0.1)}, ArgumentTypeError, "lr"),
        ({"mirror": "simplex"}, ArgumentValueError, "mirror"),
        ({"delta": 0.0}, ArgumentValueError, "delta"),
        ({"diameter": None}, ArgumentTypeError, "diameter"),
        ({"G": 0.0}, ArgumentValueError, "G"),
        ({"maximize": 1}, ArgumentTypeError, "maximize"),
        ({"mirror": "entropy"}, ArgumentValueError, "probability"),
        ({"params": []}, ArgumentValueError, "params"),
        ({"params": p}, ArgumentTypeError, "params"),
        ({"params": 3}, ArgumentTypeError, "params"),
        ({"params": [{"params": [p], "lr": "often"}]}, ArgumentValueError, "lr"),
    ):
        with pytest.raises(error, match=word):
            OptimisticMirrorDescent(**{"params": [p], **options})
    p.grad = torch.ones(3).to_sparse()
    with pytest.raises(ArgumentTypeError, match="sparse"):
        OptimisticMirrorDescent([p], lr=0.1).step()
