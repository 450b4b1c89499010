"""The parts of the study of exits: divided images, planned gates, curves at equal cost."""

from __future__ import annotations

import pytest
import torch

from softgate.dynamic import EarlyExit, ExitOutput
from softgate.errors import ArgumentValueError
from softgate.lab.data import MissingDataError
from softgate.lab.exit_networks import cnn, mlp, plan_gates
from softgate.lab.exit_training import at_cost, judge, modes_differ, threshold_curve
from softgate.lab.tasks.exit_images import exit_images


def test_planned_gates_let_out_their_shares() -> None:
    seq, cuts = mlp(8, 8, 4, 3)
    x = torch.randn(200, 8)
    model = EarlyExit.from_sequential(seq.eval(), cuts, x[:1]).eval()
    for head in model.heads:
        torch.nn.init.normal_(head.weight)
    plan_gates(model, x, (0.5, 0.0, 0.25))
    assert model(x).level.bincount(minlength=4).tolist() == [100, 0, 50, 50]
    assert modes_differ(model, x) < 1e-5


def test_networks_cost_what_they_should() -> None:
    seq, cuts = cnn(3, 16, 10)
    model = EarlyExit.from_sequential(seq, cuts, torch.zeros(1, 3, 16, 16))
    assert model.costs.tolist() == pytest.approx([0.24, 0.35, 0.56, 0.67, 0.89, 1.0], abs=0.03)
    torch.testing.assert_close(model.eval()(torch.ones(2, 3, 16, 16)).logits[-1], seq.eval()(torch.ones(2, 3, 16, 16)))


def test_a_curve_is_read_at_equal_cost() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(3, (400,), generator=generator)
    right = torch.nn.functional.one_hot(target, 3) * 2.0
    noise = torch.randn(2, 400, 3, generator=generator) * torch.tensor([1.5, 0.1])[:, None, None]
    level, costs = torch.ones(400, dtype=torch.int64), torch.tensor([0.4, 1.0], dtype=torch.float64)
    out = ExitOutput(right + noise, torch.zeros(400, 1), torch.full((400, 2), 0.5), level, right, costs)
    curve = threshold_curve(out, out, target)
    assert curve == sorted(curve) and curve[0].cost == pytest.approx(0.4, abs=0.02)
    assert at_cost(curve, 1.0).accuracy == judge(out, target, level).accuracy == 1.0
    low, middle = at_cost(curve, 0.4).accuracy, at_cost(curve, 0.7).accuracy
    # at half of the cost in between the surest half has left: better than as many at random
    assert low < 1.0 and middle > 0.5 * (low + 1.0)


def test_images_are_divided_without_overlap() -> None:
    sizes = {"train": 300, "validation": 200, "calibration": 100, "test": 50}
    try:
        task = exit_images("mnist", 0, sizes, side=14)
    except MissingDataError as error:
        pytest.skip(str(error))
    assert {name: tuple(x.shape) for name, (x, _) in task.parts.items()} == {
        name: (count, 1, 14, 14) for name, count in sizes.items()
    }
    everything = torch.cat([task.parts[name][0].flatten(1) for name in ("train", "validation", "calibration")])
    assert len(everything.unique(dim=0)) == 600
    x, y = task.batch(3, 16)
    assert torch.equal(task.batch(3, 16)[0], x) and x.shape == (16, 1, 14, 14) and y.shape == (16,)
    assert float(task.parts["train"][0].mean().abs()) < 1e-5
    other = exit_images("mnist", 1, sizes, side=14)
    assert torch.equal(other.parts["test"][1], task.parts["test"][1])
    assert not torch.equal(other.parts["train"][1], task.parts["train"][1])
    with pytest.raises(ArgumentValueError, match="sizes"):
        exit_images("mnist", 0, {**sizes, "train": 60_000})
