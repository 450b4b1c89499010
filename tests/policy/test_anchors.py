"""The moving anchor: what every mode does to parameters and buffers, and its state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.policy import Anchor


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def step(model):
    """Stands for an optimizer step: every parameter moves, and the statistics do."""
    model.train()
    model(torch.randn(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def same(anchor, model):
    own, new = anchor.model.state_dict(), model.state_dict()
    return all(torch.equal(own[name], new[name]) for name in own)


def test_fixed_never_moves_and_on_policy_always():
    model = network()
    fixed, moving = Anchor(model), Anchor(model, "on_policy")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        step(model)
        assert not fixed.update(model) and moving.update(model)
    assert all(torch.equal(value, start[name]) for name, value in fixed.model.state_dict().items())
    assert same(moving, model)


def test_ends_of_the_average_are_the_other_modes():
    model = network()
    stays, follows = Anchor(model, "ema", rate=0.0), Anchor(model, "ema", rate=1.0)
    fixed = Anchor(model)
    step(model)
    assert not stays.update(model) and follows.update(model)
    assert same(follows, model)
    assert all(torch.equal(a, b) for a, b in zip(stays.parameters(), fixed.parameters(), strict=True))


def test_average_is_the_recursion():
    model = nn.Linear(2, 2).double()
    anchor, expected = Anchor(model, "ema", rate=0.3), model.weight.detach().clone()
    for _ in range(4):
        step_weights = torch.randn(2, 2, dtype=torch.float64)
        model.weight.data.copy_(step_weights)
        anchor.update(model)
        expected = 0.7 * expected + 0.3 * step_weights
    torch.testing.assert_close(anchor.model.weight.data, expected)


def test_refresh_every_so_often():
    model = network()
    anchor = Anchor(model, "refresh", every=3)
    moved = []
    for _ in range(7):
        step(model)
        moved.append(anchor.update(model))
    assert moved == [False, False, True, False, False, True, False]


def test_refresh_by_distance():
    model = network()
    anchor = Anchor(model, "kl", threshold=0.5)
    step(model)
    assert not anchor.update(model, torch.tensor([0.5, -0.5]))
    assert anchor.update(model, torch.tensor([0.6, -0.5]))
    assert same(anchor, model)
    with pytest.raises(ArgumentTypeError, match="log_ratio"):
        anchor.update(model)
    with pytest.raises(ArgumentValueError, match="log_ratio"):
        anchor.update(model, torch.tensor([float("nan")]))


def test_the_copy_is_frozen_and_in_evaluation_mode():
    model = network()
    anchor = Anchor(model)
    outer = nn.ModuleList([anchor]).train()
    assert not any(module.training for module in anchor.model.modules())
    x = torch.randn(4, 3, requires_grad=True)
    assert not anchor(x).requires_grad
    assert torch.equal(anchor(x), anchor(x))  # no dropout
    assert not any(p.requires_grad for p in outer.parameters()) and all(p.requires_grad for p in model.parameters())


def test_state_continues():
    model = network()
    first = Anchor(model, "refresh", every=3)
    step(model)
    first.update(model)
    first.update(model)
    second = Anchor(network(), "refresh", every=3)
    second.load_state_dict(first.state_dict())
    assert second.update(model)


def test_another_model_is_refused():
    anchor = Anchor(nn.Linear(2, 3), "ema")
    for other in (nn.Linear(3, 2), nn.Linear(2, 3, bias=False)):
        with pytest.raises(ArgumentValueError, match="model"):
            anchor.update(other)
    with pytest.raises(ArgumentValueError, match="rate"):
        Anchor(nn.Linear(2, 3), rate=1.5)
