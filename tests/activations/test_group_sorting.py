"""GroupSort, MaxMin and Householder: closed forms, what they keep, NaN, layouts, the modules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import softgate
from softgate.activations import GroupSort, Householder, MaxMin, group_sort, householder


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 12])
def test_groups_are_sorted(size: int) -> None:
    x = _draw(5, 12)
    y = group_sort(x, size)
    assert torch.equal(y, torch.cat([part.sort(-1).values for part in x.split(size, -1)], -1))
    assert torch.equal(group_sort(x, size, descending=True), y.unflatten(-1, (-1, size)).flip(-1).flatten(-2))


def test_any_axis_can_be_cut() -> None:
    x = _draw(2, 6, 3, 4)
    assert torch.equal(MaxMin(dim=1)(x), group_sort(x.movedim(1, -1)).movedim(-1, 1))
    v = _draw(2, 3)
    torch.testing.assert_close(householder(x, v, 1), householder(x.movedim(1, -1), v).movedim(-1, 1))


def test_no_difference_gets_longer_in_any_norm() -> None:
    x, y = _draw(500, 12), _draw(500, 12)
    for size in (2, 3, 4):
        for p in (1.0, 2.0, math.inf):
            after = (group_sort(x, size) - group_sort(y, size)).norm(p, dim=-1)
            assert bool((after <= (x - y).norm(p, dim=-1) + 1e-12).all())
    v = _draw(4, 3)
    assert bool(((householder(x, v) - householder(y, v)).norm(dim=-1) <= (x - y).norm(dim=-1) + 1e-12).all())


def test_the_householder_activation_is_the_reflection_of_the_paper() -> None:
    x, v = _draw(200, 12), _draw(4, 3)
    u = (v / v.norm(dim=-1, keepdim=True))[None]
    groups = x.unflatten(-1, (4, 3))
    mirror = torch.eye(3, dtype=torch.float64) - 2 * u[0, :, :, None] * u[0, :, None, :]
    reflected = torch.einsum("gij,bgj->bgi", mirror, groups)
    expected = torch.where(((groups * u).sum(-1, keepdim=True)) > 0, groups, reflected).flatten(-2)
    torch.testing.assert_close(householder(x, v), expected)
    torch.testing.assert_close(householder(x, 7.0 * v), householder(x, v))


def test_maxmin_is_a_householder_activation() -> None:
    x = _draw(30, 8)
    torch.testing.assert_close(householder(x, torch.tensor([1.0, -1.0]).double()), group_sort(x, descending=True))
    torch.testing.assert_close(Householder(8, dtype=torch.float64)(x).detach(), group_sort(x, descending=True))
    torch.testing.assert_close(Householder(dtype=torch.float64)(x).detach(), group_sort(x, descending=True))


def test_gradients_are_those_of_a_permutation() -> None:
    x = _draw(2, 12).requires_grad_()
    for size in (2, 4):
        assert torch.autograd.gradcheck(lambda x, size=size: group_sort(x, size), (x,))
    jacobian = torch.autograd.functional.jacobian(lambda x: group_sort(x, 4), x[0].detach())
    assert torch.equal(jacobian @ jacobian.T, torch.eye(12, dtype=torch.float64))
    assert torch.autograd.gradcheck(householder, (x, _draw(4, 3).requires_grad_()))


@pytest.mark.parametrize("size", [2, 4])
def test_a_nan_makes_its_group_nan(size: int) -> None:
    x = torch.arange(8.0).flip(0)
    x[1] = math.nan
    y = group_sort(x, size)
    assert bool(y[:size].isnan().all()) and torch.equal(y[size:], group_sort(x[size:], size))
    assert group_sort(torch.tensor([math.inf, -math.inf])).tolist() == [-math.inf, math.inf]


def test_modules_are_exchanged_by_name_and_remember_their_vectors() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    for name, kind, options in (
        ("maxmin", MaxMin, {}),
        ("groupsort", GroupSort, {"group_size": 4}),
        ("householder", Householder, {}),
    ):
        softgate.swap(model, activation=name, activation_options=options)
        assert type(model[1]) is kind and type(model[3]) is kind and model(torch.randn(5, 3)).shape == (5, 2)
        softgate.unswap(model)
    learned, fixed = Householder(6, 3), Householder(6, 3, learnable=False)
    assert [name for name, _ in learned.named_parameters()] == ["v"] and not list(fixed.parameters())
    nn.init.normal_(learned.v)
    fixed.load_state_dict(learned.state_dict())
    assert torch.equal(fixed.v, learned.v)
    assert repr(MaxMin(1)) == "MaxMin(dim=1)" and "descending=True" in repr(GroupSort(4, descending=True))


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: GroupSort(0), ValueError, "group_size"),
        (lambda: GroupSort(2, dim=0.5), TypeError, "dim"),
        (lambda: GroupSort(2, descending="no"), TypeError, "descending"),
        (lambda: Householder(6, 4), ValueError, "channels"),
        (lambda: Householder(6, 1), ValueError, "group_size"),
        (lambda: Householder(0), ValueError, "channels"),
        (lambda: Householder(6, learnable=1), TypeError, "learnable"),
        (lambda: Householder(6, dim="last"), TypeError, "dim"),
        (lambda: MaxMin()(torch.ones(3)), ValueError, "group_size"),
        (lambda: Householder(6)(torch.ones(4)), ValueError, "v"),
    ],
    ids=["size", "dim", "descending", "channels", "one", "zero", "learnable", "householder dim", "odd", "other width"],
)  # fmt: skip
def test_bad_settings(make, error, word) -> None:
    with pytest.raises(error, match=word):
        make()
