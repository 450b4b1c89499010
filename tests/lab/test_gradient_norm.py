"""The gradient norm that the training loop's hooks add up."""

from __future__ import annotations

import torch
from torch import nn

from softgate.lab.gradient_norm import GradientNorm
from softgate.lab.training import TrainConfig, fit


def test_it_is_the_norm_of_all_gradients_before_clipping():
    model, seen, expected = nn.Linear(3, 2), [], []
    watch = GradientNorm(model)
    x = torch.randn(8, 3)

    def step_loss(model: nn.Module, scale: float) -> torch.Tensor:
        seen.append(watch.next())
        loss = scale * model(x).square().mean()
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        expected.append(float(torch.cat([g.flatten() for g in grads]).norm()))
        return loss

    fit(model, step_loss, TrainConfig(steps=4, lr=0.1, clip=1e-3), batches=lambda step: 1.0 + step)
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([0.0, *expected[:3]]))
    assert watch.next() > 0.0
    torch.testing.assert_close(watch.largest, max(expected), rtol=1e-5, atol=0)


def test_its_state_goes_through_a_checkpoint():
    model = nn.Linear(3, 2)
    watch, other = GradientNorm(model), GradientNorm(nn.Linear(1, 1))
    model(torch.randn(4, 3)).sum().backward()
    other.load_state_dict(watch.state_dict())
    assert other.next() == watch.next() > 0.0
