"""Facts of the Z-loss and its relatives that the generated checks cannot know."""

from __future__ import annotations

from functools import partial
from math import inf, sqrt

import pytest
import torch
from torch.nn import functional as F

from softgate.losses import (
    ZLoss,
    spherical_softmax_loss,
    spherical_softmax_loss_from_stats,
    taylor_softmax_loss,
    taylor_softmax_loss_from_stats,
    z_loss,
    z_loss_from_stats,
)


def logits(rows: int = 6, classes: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, classes, dtype=torch.float64), torch.randint(classes, (rows,))


def stats(o: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    return o.gather(1, target[:, None])[:, 0], o.square().sum(1), o.sum(1), o.shape[1]


@pytest.mark.parametrize(("alpha", "b"), [(1.0, 0.0), (0.1, 28.0), (7.0, 2.0)])
def test_formula(alpha: float, b: float) -> None:
    o, target = logits()
    z = ((o - o.mean(1, keepdim=True)) / o.std(1, correction=0, keepdim=True)).gather(1, target[:, None])[:, 0]
    expected = torch.log(1 + torch.exp(alpha * (b - z))) / alpha
    torch.testing.assert_close(z_loss(o, target, reduction="none", alpha=alpha, b=b), expected)
    torch.testing.assert_close(z_loss(o, target, alpha=alpha, b=b), expected.mean())


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 5.0), (1e-3, 0.0), (1e6, -3e6), (37.0, 0.1)])
def test_shift_and_positive_scale_do_not_matter(factor: float, shift: float) -> None:
    o, target = logits()
    torch.testing.assert_close(z_loss(factor * o + shift, target), z_loss(o, target), rtol=1e-9, atol=0.0)


def test_a_negative_factor_turns_the_ranking_round() -> None:
    o, target = logits()
    assert (z_loss(-o, target, reduction="none") - z_loss(o, target, reduction="none")).abs().min() > 1e-3


def test_a_large_offset_costs_no_precision_in_float32() -> None:
    o = torch.randint(-8, 9, (4, 50)).float()  # exact after adding 2^16
    target = torch.randint(50, (4,))
    assert torch.equal(z_loss(o + 2**16, target), z_loss(o, target))


def test_gradient_is_orthogonal_to_offset_and_logits() -> None:
    o, target = logits()
    o.requires_grad_()
    (g,) = torch.autograd.grad(z_loss(o, target, reduction="sum", alpha=2.0, b=1.0, eps=0.0), o)
    assert g.sum(1).abs().max() < 1e-14 and (g * o.detach()).sum(1).abs().max() < 1e-14
    assert g.abs().max() > 1e-2


def test_gradients_by_the_statistics() -> None:
    o, target = logits()
    a, q, s, classes = stats(o, target)
    values = [x.requires_grad_() for x in (a, q, s)]
    g_a, g_q, g_s = torch.autograd.grad(z_loss_from_stats(a, q, s, classes, reduction="sum", eps=0.0), values)
    mean, variance = s / classes, q / classes - (s / classes) ** 2
    z = (a - mean) / variance.sqrt()
    p = torch.sigmoid(-z)
    torch.testing.assert_close(g_a, -p / variance.sqrt())
    torch.testing.assert_close(g_q, p * z / (2 * classes * variance))
    torch.testing.assert_close(g_s, p / classes * (1 / variance.sqrt() - z * mean / variance))
    assert (g_a + 2 * g_q * s + classes * g_s).abs().max() < 1e-14  # an offset of the logits changes nothing


def test_sharp_limit_is_the_hinge() -> None:
    o, target = logits()
    z = -torch.log(torch.expm1(z_loss(o, target, reduction="none")))
    torch.testing.assert_close(
        z_loss(o, target, reduction="none", alpha=1e6, b=0.7), (0.7 - z).clamp(min=0), atol=1e-6, rtol=0
    )


def test_the_score_is_largest_when_all_others_are_equal() -> None:
    o = torch.zeros(1, 10, dtype=torch.float64)
    o[0, 3] = 1.0
    b = 1.5
    found = z_loss(o, torch.tensor([3]), b=b)
    torch.testing.assert_close(found, F.softplus(torch.tensor(b - sqrt(9), dtype=torch.float64)))


def test_loss_falls_as_the_score_rises() -> None:
    o, target = logits(1)
    raised = o.repeat(20, 1)
    raised[:, target] += torch.linspace(0, 5, 20, dtype=torch.float64)[:, None]
    losses = z_loss(raised, target.expand(20), reduction="none")
    assert (losses.diff() < 0).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
def test_equal_logits_give_a_finite_loss_and_gradient(value: float) -> None:
    o = torch.full((2, 7), value, requires_grad=True)
    target = torch.tensor([0, 4])
    loss = z_loss(o, target, reduction="sum", b=1.0)
    torch.testing.assert_close(loss, 2 * F.softplus(torch.tensor(1.0)))
    loss.backward()
    assert o.grad.isfinite().all() and o.grad.abs().max() < 1.0
    a, q, s, classes = stats(o.detach(), target)
    assert torch.allclose(z_loss_from_stats(a, q, s, classes, reduction="sum", b=1.0), loss, atol=2e-2)


def test_tiny_and_huge_logits_neither_underflow_nor_overflow() -> None:
    o, target = logits()
    expected = z_loss(o, target).float()
    for factor in (1e-8, 1e30):
        torch.testing.assert_close(z_loss((o * factor).float(), target), expected, rtol=2e-4, atol=0)


DENSE_AND_STATS = [
    (z_loss, z_loss_from_stats, {"alpha": 0.5, "b": 2.0}),
    (taylor_softmax_loss, taylor_softmax_loss_from_stats, {}),
    (spherical_softmax_loss, spherical_softmax_loss_from_stats, {"eps": 0.3}),
]


@pytest.mark.parametrize(("dense", "from_stats", "options"), DENSE_AND_STATS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_statistics_give_the_dense_loss(dense, from_stats, options, reduction) -> None:
    o, target = logits()
    weight = torch.rand(11, dtype=torch.float64) + 0.5
    target[2] = -7
    known = target.clamp(min=0)
    options = {**options, "weight": weight, "ignore_index": -7, "reduction": reduction}
    o.requires_grad_()
    expected, found = dense(o, target, **options), from_stats(*stats(o, known), target, **options)
    torch.testing.assert_close(found, expected)
    g, e = (torch.autograd.grad(x.sum(), o)[0] for x in (found, expected))
    torch.testing.assert_close(g, e)


def test_taylor_and_spherical_softmax_are_probabilities() -> None:
    o, _ = logits(1)
    every = torch.arange(11)
    rows = o.expand(11, 11)
    for loss in (taylor_softmax_loss, spherical_softmax_loss):
        torch.testing.assert_close(torch.exp(-loss(rows, every, reduction="none")).sum(), torch.tensor(1.0).double())
    taylor = 1 + o[0] + o[0] ** 2 / 2
    torch.testing.assert_close(taylor_softmax_loss(rows, every, reduction="none"), -torch.log(taylor / taylor.sum()))
    square = o[0] ** 2 + 0.1
    torch.testing.assert_close(spherical_softmax_loss(rows, every, reduction="none"), -torch.log(square / square.sum()))


def test_taylor_softmax_is_softmax_near_zero() -> None:
    o, target = logits()
    gap = taylor_softmax_loss(1e-3 * o, target) - F.cross_entropy(1e-3 * o, target)
    assert abs(float(gap)) < 1e-9


def test_ignored_rows_do_not_poison_gradients() -> None:
    a, q, s = (torch.tensor([1.0, float("nan")], requires_grad=True) for _ in range(3))
    with torch.no_grad():
        q[0], s[0] = 5.0, 1.0
    loss = z_loss_from_stats(a, q, s, 4, torch.tensor([2, -100]))
    loss.backward()
    assert loss.isfinite() and all(x.grad.isfinite().all() and x.grad[1] == 0 for x in (a, q, s))


def test_module_has_the_functions_defaults_and_round_trips() -> None:
    o, target = logits()
    weight = torch.rand(11, dtype=torch.float64)
    module = ZLoss(weight, alpha=2.0, b=1.0, reduction="sum")
    assert torch.equal(ZLoss()(o, target), z_loss(o, target))
    other = ZLoss(torch.zeros_like(weight), alpha=2.0, b=1.0, reduction="sum")
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(o, target), z_loss(o, target, weight, reduction="sum", alpha=2.0, b=1.0))
    assert "alpha=2.0" in repr(module)
    with pytest.raises(ValueError, match="alpha"):
        ZLoss(alpha=inf)


# --- blocks of rows --------------------------------------------------------------------------------------------------

DENSE = {
    "z": partial(z_loss, alpha=2.0, b=0.5),
    "taylor": taylor_softmax_loss,
    "spherical": partial(spherical_softmax_loss, eps=0.03),
}


def rows_and_slopes(loss, x, y, **options):
    x = x.clone().requires_grad_()
    rows = loss(x, y, **options)
    upstream = torch.linspace(-1.0, 2.0, rows.numel(), dtype=rows.dtype).reshape(rows.shape)
    return rows.detach(), torch.autograd.grad(rows, x, upstream)[0]


@pytest.mark.parametrize("loss", DENSE.values(), ids=DENSE.keys())
@pytest.mark.parametrize("shape", [(6,), (11, 6), (3, 6, 4), (2, 6, 3, 2)])
def test_blocks_are_the_reference(loss, shape, monkeypatch) -> None:
    monkeypatch.setattr("softgate.losses._row_kernel.BLOCK", 9)
    axis = min(1, len(shape) - 1)
    x = 3 * torch.randn(shape, dtype=torch.float64) + 5.0
    y = torch.randint(6, shape[:axis] + shape[axis + 1 :])
    weight = torch.rand(6, dtype=torch.float64) + 0.2
    for ignored in (False, True):
        target = y.masked_fill(torch.rand(y.shape) < 0.4, -100) if ignored else y
        for reduction in ("none", "sum"):
            found = rows_and_slopes(loss, x, target, weight=weight, reduction=reduction)
            with monkeypatch.context() as patch:
                patch.setenv("SOFTGATE_KERNELS", "reference")
                want = rows_and_slopes(loss, x, target, weight=weight, reduction=reduction)
            torch.testing.assert_close(found, want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("scale", [0.0, 1e-25, 1e25, 1e-3], ids=["equal", "tiny", "huge", "usual"])
@pytest.mark.parametrize("loss", DENSE.values(), ids=DENSE.keys())
def test_blocks_leave_what_they_cannot_hold_to_the_reference(loss, scale, monkeypatch) -> None:
    x, y = scale * torch.randn(5, 7), torch.randint(7, (5,))
    found = rows_and_slopes(loss, x, y, reduction="none")
    monkeypatch.setenv("SOFTGATE_KERNELS", "reference")
    want = rows_and_slopes(loss, x, y, reduction="none")
    assert all(bool(part.isfinite().all()) for part in found)
    for got, expected in zip(found, want, strict=True):
        size = max(float(expected.abs().max()), 1e-30)
        torch.testing.assert_close(got / size, expected / size, rtol=0.0, atol=2e-5)
