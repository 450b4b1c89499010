"""SphericalLinear and HierarchicalSoftmax."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import softgate
from softgate.errors import StateError
from softgate.losses import HierarchicalSoftmax, SphericalLinear, spherical_linear, z_loss, z_loss_from_stats


def test_gram_form_runs_for_many_rows_only() -> None:
    w, target = torch.randn(9, 3), torch.zeros(2, dtype=torch.int64)
    assert (
        softgate.explain(spherical_linear, torch.randn(5, 3), w, target.expand(1, 2)[0].repeat(3)[:5]).chosen == "gram"
    )
    assert softgate.explain(spherical_linear, torch.randn(2, 3), w, target).chosen == "reference"


def test_gram_gradients() -> None:
    h = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 8, 3, 3, 3, 1, 0])
    function = lambda x, y: spherical_linear(x, y, target)  # noqa: E731
    assert torch.autograd.gradcheck(function, (h, w)) and torch.autograd.gradgradcheck(function, (h, w))


def test_spherical_linear_trains_as_dense_logits_do_with_adam() -> None:
    head = SphericalLinear(4, 30, dtype=torch.float64)
    w = torch.nn.Parameter(head.weight.detach().clone())
    optimizers = torch.optim.Adam(head.parameters(), 0.01), torch.optim.Adam([w], 0.01)
    for _ in range(5):
        h, target = torch.randn(12, 4, dtype=torch.float64), torch.randint(30, (12,))
        target[0] = -100
        losses = z_loss_from_stats(*head(h, target), 30, target), z_loss(h @ w.T, target)
        torch.testing.assert_close(*losses)
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(head.weight, w)
    torch.testing.assert_close(head.logits(h), h @ w.T)
    assert "num_classes=30" in repr(head)


@pytest.mark.parametrize(("classes", "groups"), [(23, None), (16, None), (5, 5), (10, 7), (6, 1)])
def test_hierarchical_softmax_sums_to_one(classes: int, groups: int | None) -> None:
    head = HierarchicalSoftmax(4, classes, lr=0.1, num_groups=groups, dtype=torch.float64)
    h = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(head.log_prob(h).exp().sum(-1), torch.ones(3, dtype=torch.float64))
    every = torch.arange(classes)
    torch.testing.assert_close(head(h[:1].expand(classes, 4), every), -head.log_prob(h[0]))


def test_hierarchical_softmax_takes_the_exact_sgd_step() -> None:
    head = HierarchicalSoftmax(5, 23, lr=0.1, dtype=torch.float64)
    group_w, class_w = (x.clone().requires_grad_() for x in (head.group_weight, head.class_weight))
    h = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    twin = h.detach().clone().requires_grad_()
    target = torch.randint(23, (9,))
    target[3], target[5] = -100, target[4]
    of_group = torch.log_softmax(twin @ group_w.T, 1)
    parts = [
        of_group[:, i, None] + torch.log_softmax(twin @ w.T, 1) for i, w in enumerate(class_w.split(head.group_size))
    ]
    expected = F.nll_loss(torch.cat(parts, 1), target, reduction="none")
    losses, weight = head(h, target), torch.randn(9, dtype=torch.float64)
    torch.testing.assert_close(losses, expected)
    (losses * weight).sum().backward(retain_graph=True)
    (expected * weight).sum().backward()
    torch.testing.assert_close(h.grad, twin.grad)
    torch.testing.assert_close(head.group_weight, group_w.detach() - 0.1 * group_w.grad)
    torch.testing.assert_close(head.class_weight, class_w.detach() - 0.1 * class_w.grad)
    with pytest.raises(StateError, match="call forward again"):
        losses.sum().backward()


def test_hierarchical_softmax_learns_and_round_trips() -> None:
    head = HierarchicalSoftmax(8, 100, lr=0.5)
    h, target = torch.randn(20, 8), torch.randint(100, (20,))
    first = head(h, target).mean()
    for _ in range(50):
        head(h, target).mean().backward()
    assert head(h, target).mean() < 0.5 * first
    twin = HierarchicalSoftmax(8, 100, lr=0.1)
    twin.load_state_dict(head.state_dict())
    assert torch.equal(twin.log_prob(h), head.log_prob(h)) and twin.lr == 0.5 and twin.steps == 50
    with pytest.raises(ValueError, match="num_groups"):
        HierarchicalSoftmax(8, 100, lr=0.1, num_groups=101)
