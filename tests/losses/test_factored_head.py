"""FactoredSphericalLinear against the dense SGD step, and everything that guards its state."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from softgate.errors import StateError
from softgate.losses import (
    FactoredSphericalLinear,
    HierarchicalSoftmax,
    spherical_linear,
    taylor_softmax_loss_from_stats,
    z_loss,
    z_loss_from_stats,
)
from softgate.losses.factored.linear_algebra import condition_estimate, divide_near_identity, factor, refined_inverse

DENSE = torch.float64


def head_of(classes: int = 40, features: int = 6, lr: float = 0.05, **options) -> FactoredSphericalLinear:
    return FactoredSphericalLinear(features, classes, lr=lr, **{"dtype": DENSE, **options})


def dense_gradient(w: Tensor, h: Tensor, target: Tensor, slopes: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Gradients by ``h`` and W of the loss whose derivatives by a, q and s are ``slopes``."""
    g_a, g_q, g_s = (x.double() for x in slopes)
    logits = h.double() @ w.T
    g = 2 * g_q[:, None] * logits + g_s[:, None]
    g.scatter_add_(1, target.reshape(len(h), -1), g_a.reshape(len(h), -1))
    return g @ w, g.T @ h.double()


def random_step(head: FactoredSphericalLinear, rows: int, count: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Push random gradients through the head; returns rows, targets and those gradients."""
    h = torch.randn(rows, head.in_features, dtype=head.V.dtype, requires_grad=True)
    shape = (rows,) if count == 1 else (rows, count)
    target = torch.randint(min(head.num_classes, 1 + rows // 2), shape)  # some classes occur more than once
    stats = head(h, target)
    slopes = tuple(scale * torch.randn_like(x) for scale, x in zip((1.0, 0.02, 0.05), stats, strict=True))
    slopes[1][0] = 0.0
    torch.autograd.backward(stats, slopes)
    return h, target, slopes


def test_shapes_values_and_upcast() -> None:
    head = head_of()
    h = torch.randn(2, 3, 6, dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(40, (2, 3, 4))
    a, q, s = head(h, target)
    logits = h.detach().double() @ head.weight.T
    torch.testing.assert_close(a, logits.gather(-1, target))
    torch.testing.assert_close(q, logits.square().sum(-1))
    torch.testing.assert_close(s, logits.sum(-1))
    (a.sum() + 0.01 * q.sum()).backward()
    assert h.grad is not None and h.grad.dtype == torch.bfloat16 and head.steps == 1


@pytest.mark.parametrize("inverse", ["woodbury", "solve"])
@pytest.mark.parametrize(
    ("classes", "features", "rows", "count"),
    [(40, 6, 5, 1), (40, 6, 5, 3), (40, 6, 1, 1), (40, 6, 9, 1), (4, 6, 5, 1), (4, 6, 9, 3)],
    ids=lambda value: str(value),
)
def test_equals_dense_sgd(inverse: str, classes: int, features: int, rows: int, count: int) -> None:
    head = head_of(classes, features, inverse=inverse, weight_decay=0.1, refactor_every=7)
    w = head.weight
    for _ in range(10):  # from the second step on U is not the identity and omega not zero; the seventh re-factors
        h, target, slopes = random_step(head, rows, count)
        d_h, d_w = dense_gradient(w, h.detach(), target, slopes)
        torch.testing.assert_close(h.grad, d_h)
        w = w - head.lr * (d_w + 0.1 * w)
        torch.testing.assert_close(head.weight, w)
    torch.testing.assert_close(head.Q, w.T @ w)
    torch.testing.assert_close(head.w_bar, w.sum(0))
    assert head.steps == 10 and head.refactorings == 2


@pytest.mark.parametrize("inverse", ["woodbury", "solve"])
def test_a_thousand_steps_in_float32_do_not_drift(inverse: str) -> None:
    head = FactoredSphericalLinear(8, 100, lr=0.02, inverse=inverse, refactor_every=None)
    w = head.weight.double()
    for _ in range(1000):
        h, target = torch.randn(6, 8), torch.randint(100, (6,))
        a, q, s = head(h, target)
        slopes = torch.autograd.grad(z_loss_from_stats(a, q, s, 100), (a, q, s), retain_graph=True)
        torch.autograd.backward((a, q, s), slopes)
        w -= head.lr * dense_gradient(w, h, target, slopes)[1]
    drift = head.stats()
    assert drift["q_drift"] < 1e-5 and drift["w_bar_drift"] < 1e-5 and drift["cond_u"] < 1e3
    assert (head.weight - w).norm() / w.norm() < 1e-4
    before = head.logits(torch.eye(8))
    head.refactor()
    torch.testing.assert_close(head.logits(torch.eye(8)), before, rtol=1e-5, atol=1e-6 * float(before.abs().max()))
    assert head.stats()["cond_u"] == 1.0


def test_z_loss_leaves_column_sums_and_only_grows_the_weights() -> None:
    head = head_of()
    w_bar, w = head.w_bar.clone(), head.weight
    for _ in range(5):
        trace = head.Q.trace()
        h, target = torch.randn(5, 6, dtype=DENSE), torch.randint(40, (5,))
        a, q, s = head(h, target)
        slopes = torch.autograd.grad(z_loss_from_stats(a, q, s, 40), (a, q, s), retain_graph=True)
        gradient = dense_gradient(w, h, target, slopes)[1]
        torch.autograd.backward((a, q, s), slopes)
        w = head.weight
        torch.testing.assert_close(head.Q.trace() - trace, head.lr**2 * gradient.square().sum())
    torch.testing.assert_close(head.w_bar, w_bar)


def test_centred_training_has_the_same_losses() -> None:
    plain, centred = head_of(), head_of(centre=True)
    centred.set_weight(plain.weight)
    torch.testing.assert_close(centred.weight.mean(0), torch.zeros(6, dtype=DENSE))
    for _ in range(20):
        h, target = torch.randn(5, 6, dtype=DENSE), torch.randint(40, (5,))
        losses = []
        for head in (plain, centred):
            loss = z_loss_from_stats(*head(h, target), 40, b=1.0)
            loss.backward()
            losses.append(float(loss.detach()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    torch.testing.assert_close(centred.weight.mean(0), torch.zeros(6, dtype=DENSE))
    torch.testing.assert_close(plain.weight - plain.weight.mean(0), centred.weight)


def test_centre_refuses_a_loss_that_offsets_change() -> None:
    head = head_of(centre=True)
    before = copy.deepcopy(head.state_dict())
    loss = taylor_softmax_loss_from_stats(*head(torch.randn(5, 6), torch.randint(40, (5,))), 40)
    with pytest.raises(StateError, match="centre"):
        loss.backward()
    assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())


def test_whole_network_trains_as_with_dense_sgd() -> None:
    body = nn.Sequential(nn.Linear(5, 6, dtype=DENSE), nn.Tanh())
    twin, head = copy.deepcopy(body), head_of(30, lr=0.5)
    w = nn.Parameter(head.weight)
    ours, dense = torch.optim.SGD(body.parameters(), 0.5), torch.optim.SGD([*twin.parameters(), w], 0.5)
    for _ in range(10):
        x, target = torch.randn(8, 5, dtype=DENSE), torch.randint(30, (8,))
        for optimizer in (ours, dense):
            optimizer.zero_grad()
        loss = z_loss_from_stats(*head(body(x), target), 30, alpha=2.0, b=1.0)
        other = z_loss(twin(x) @ w.T, target, alpha=2.0, b=1.0)
        torch.testing.assert_close(loss, other)
        loss.backward()
        other.backward()
        ours.step()
        dense.step()
    torch.testing.assert_close(head.weight, w.detach())
    torch.testing.assert_close(body[0].weight, twin[0].weight)


def test_gradient_by_rows_is_right_and_nothing_else_happens_without_update() -> None:
    head = head_of()
    before = copy.deepcopy(head.state_dict())
    h = torch.randn(4, 6, dtype=DENSE, requires_grad=True)
    target = torch.randint(40, (4, 2))
    with head.no_update():
        assert torch.autograd.gradcheck(lambda x: head(x, target), (h,))
    head.eval()
    head(h, target)[1].sum().backward()
    head.train()
    with torch.no_grad():
        assert not head(h, target)[0].requires_grad
    assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())


def test_ignored_rows_and_empty_batches() -> None:
    one, other = head_of(), head_of()
    other.set_weight(one.weight)
    h, target = torch.randn(5, 6, dtype=DENSE), torch.tensor([3, -100, 0, 39, -100])
    kept = target != -100
    z_loss_from_stats(*one(h, target), 40, target, reduction="sum").backward()
    z_loss_from_stats(*other(h[kept], target[kept]), 40, reduction="sum").backward()
    torch.testing.assert_close(one.weight, other.weight)
    before = one.weight
    loss = z_loss_from_stats(*one(h, torch.full((5,), -100)), 40, torch.full((5,), -100), reduction="sum")
    loss.backward()
    z_loss_from_stats(*one(h[:0], target[:0]), 40, reduction="sum").backward()
    assert float(loss.detach()) == 0.0 and one.steps == 1 and torch.equal(one.weight, before)


def test_singular_step_is_taken_densely() -> None:
    """2 lr g_q |h|^2 = 1 makes U exactly singular; W itself is an ordinary matrix."""
    for inverse in ("woodbury", "solve"):
        head = head_of(lr=0.5, inverse=inverse)
        w = head.weight
        h = torch.zeros(2, 6, dtype=DENSE)
        h[0, 0], h[1, 1] = 1.0, 2.0
        target = torch.tensor([7, 7])
        stats = head(h, target)
        slopes = (
            torch.tensor([0.3, 0.4]).double(),
            torch.tensor([1.0, 0.0]).double(),
            torch.tensor([0.1, 0.2]).double(),
        )
        torch.autograd.backward(stats, slopes)
        expected = w - 0.5 * dense_gradient(w, h, target, slopes)[1]
        torch.testing.assert_close(head.weight, expected)
        assert head.dense_steps == 1 and head.stats()["q_drift"] < 1e-12


def test_ill_conditioned_u_is_refactored() -> None:
    for inverse in ("woodbury", "solve"):
        head = head_of(lr=0.05, inverse=inverse, refactor_every=None, cond_limit=3.0)
        h, target = torch.eye(6, dtype=DENSE)[:1], torch.tensor([0])
        for _ in range(100):
            stats = head(h, target)
            torch.autograd.backward(
                stats, [torch.zeros_like(x) + (0.2 if i == 1 else 0.0) for i, x in enumerate(stats)]
            )
        assert head.refactorings == 2 and head.stats()["cond_u"] == 1.0


def test_max_grad_norm_clips_the_gradient_of_the_weights() -> None:
    head = head_of(max_grad_norm=0.01)
    w = head.weight
    h, target, slopes = random_step(head, 5, 1)
    gradient = dense_gradient(w, h.detach(), target, slopes)[1]
    assert gradient.norm() > 0.1
    torch.testing.assert_close(head.weight, w - head.lr * gradient * 0.01 / (gradient.norm() + 1e-6))


def test_hooks_on_the_statistics_act_before_the_step() -> None:
    head = head_of()
    w = head.weight
    a, q, s = head(torch.randn(5, 6, dtype=DENSE), torch.randint(40, (5,)))
    for x in (a, q, s):
        x.register_hook(torch.zeros_like)
    z_loss_from_stats(a, q, s, 40).backward()
    torch.testing.assert_close(head.weight, w)


def test_second_backward_and_stale_forward_are_refused() -> None:
    head = head_of()
    h, target = torch.randn(5, 6, dtype=DENSE, requires_grad=True), torch.randint(40, (5,))
    first = z_loss_from_stats(*head(h, target), 40)
    second = z_loss_from_stats(*head(h, target), 40)
    first.backward(retain_graph=True)
    before = head.weight
    for stale in (first, second):
        with pytest.raises(StateError, match="call forward again"):
            stale.backward()
    with pytest.raises(StateError, match="second derivatives"):
        torch.autograd.grad(z_loss_from_stats(*head(h, target), 40), h, create_graph=True)
    assert torch.equal(head.weight, before) and head.steps == 1
    with head.no_update():
        kept = z_loss_from_stats(*head(h, target), 40)
    head.refactor()  # the same weights, but other factors than the forward pass used
    with pytest.raises(StateError, match="call forward again"):
        kept.backward()


def test_the_layer_can_be_pickled_and_moved_to_another_precision() -> None:
    head = head_of()
    random_step(head, 5, 1)
    twin = pickle.loads(pickle.dumps(head))
    assert torch.equal(twin.weight, head.weight) and twin.steps == 1
    random_step(twin.float(), 5, 1)
    assert twin.steps == 2 and twin.weight.dtype == torch.float32
    with pytest.raises(TypeError, match="float32"):
        twin.half()(torch.randn(5, 6), torch.randint(40, (5,)))


def test_nothing_else_may_own_or_change_the_weights() -> None:
    head = head_of()
    assert not list(head.parameters())
    h, target = torch.randn(5, 6), torch.randint(40, (5,))
    head.U.requires_grad_()
    with pytest.raises(StateError, match="U must stay a buffer"):
        head(h, target)
    head.U.requires_grad_(False)
    head.V.mul_(0.9)
    with pytest.raises(StateError, match="V was changed from outside"):
        head(h, target)
    head = head_of()
    del head._buffers["V"]
    head.V = nn.Parameter(torch.randn(40, 6, dtype=DENSE))
    with pytest.raises(StateError, match="V must stay a buffer"):
        head(h, target)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_never_reach_the_state(bad: float) -> None:
    head = head_of()
    before = copy.deepcopy(head.state_dict())
    h, target = torch.randn(5, 6, dtype=DENSE), torch.randint(40, (5,))
    h[2, 3] = bad
    with pytest.raises(ValueError, match="h must be finite"):
        head(h, target)
    for place in range(3):
        stats = head(torch.randn(5, 6), target)
        slopes = [torch.ones_like(x) for x in stats]
        slopes[place][1] = bad
        with pytest.raises(ValueError, match="must be finite"):
            torch.autograd.backward(stats, slopes)
    stats = head(torch.randn(5, 6, dtype=DENSE) * 1e200, target)
    with pytest.raises(StateError, match="overflows"):
        torch.autograd.backward(stats, [1e200 * torch.ones_like(x) for x in stats])
    assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())


def test_state_dict_round_trip_continues_bit_by_bit() -> None:
    head = head_of(weight_decay=0.01)
    for _ in range(3):
        random_step(head, 5, 1)
    head.set_lr(0.01)
    twin = head_of(weight_decay=0.01, lr=0.9)
    twin.load_state_dict(head.state_dict())
    assert (twin.lr, twin.steps, twin.since_refactor) == (0.01, 3, 3)
    for each in (head, twin, cloned := copy.deepcopy(head)):
        torch.manual_seed(5)
        random_step(each, 5, 1)
    assert torch.equal(head.weight, twin.weight) and torch.equal(head.weight, cloned.weight)


def test_logits_and_topk() -> None:
    head = head_of(50)
    random_step(head, 5, 1)
    h = torch.randn(2, 4, 6, dtype=DENSE)
    logits = h @ head.weight.T
    torch.testing.assert_close(head.logits(h), logits)
    chosen = torch.tensor([4, 0, 49, 4])
    torch.testing.assert_close(head.logits(h, chosen), logits[..., chosen])
    for k, chunk in ((1, 7), (9, 7), (50, 64), (50, 13)):
        values, classes = head.topk(h, k, chunk)
        torch.testing.assert_close(values, logits.topk(k, dim=-1).values)
        torch.testing.assert_close(logits.gather(-1, classes), values)
    for k in (0, 51):
        with pytest.raises(ValueError, match="k must be"):
            head.topk(h, k)


BAD_ARGUMENTS = [
    ({"num_classes": 1}, ValueError, "num_classes"),
    ({"in_features": 0}, ValueError, "in_features"),
    ({"lr": -1.0}, ValueError, "lr"),
    ({"lr": "0.1"}, TypeError, "lr"),
    ({"weight_decay": float("nan")}, ValueError, "weight_decay"),
    ({"inverse": "lu"}, ValueError, "inverse"),
    ({"refactor_every": 0}, ValueError, "refactor_every"),
    ({"cond_limit": 0.5}, ValueError, "cond_limit"),
    ({"centre": 1}, TypeError, "centre"),
    ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm"),
    ({"dtype": torch.bfloat16}, TypeError, "dtype"),
    ({"ignore_index": 1.0}, TypeError, "ignore_index"),
]


@pytest.mark.parametrize(("options", "error", "word"), BAD_ARGUMENTS, ids=lambda value: str(value))
def test_bad_arguments(options, error, word) -> None:
    with pytest.raises(error, match=word):
        FactoredSphericalLinear(**{"in_features": 6, "num_classes": 40, "lr": 0.1, **options})


@pytest.mark.parametrize(
    "make", [head_of, lambda: HierarchicalSoftmax(6, 40, lr=0.1)], ids=["factored", "hierarchical"]
)
def test_bad_calls(make) -> None:
    head = make()
    h, target = torch.randn(5, 6), torch.randint(40, (5,))
    for bad_h, bad_target, error, word in (
        (h[:, :5], target, ValueError, "h must have shape"),
        (h.long(), target, TypeError, "h must"),
        ([1.0], target, TypeError, "h must"),
        (h, target.float(), TypeError, "target"),
        (h, target[:4], ValueError, "target"),
        (h, target + 40, ValueError, "target"),
        (h, target - 40, ValueError, "target"),
        (h, None, TypeError, "target"),
    ):
        with pytest.raises(error, match=word):
            head(bad_h, bad_target)


def test_series_and_factors_invert() -> None:
    a, b = torch.randn(7, 7, dtype=DENSE), torch.randn(7, 4, dtype=DENSE)
    for scale in (1e-12, 0.01, 0.03, 0.2, 3.0):
        x = divide_near_identity(scale * a, b)
        torch.testing.assert_close(x - scale * a @ x, b, rtol=1e-12, atol=1e-12)
    factors = factor(a)
    torch.testing.assert_close(a @ factors.solve_left(b), b)
    torch.testing.assert_close(factors.solve_right(b.T) @ a, b.T)
    torch.testing.assert_close(factors.inverse(), torch.linalg.inv(a))
    rough = torch.linalg.inv(a) * (1 + 1e-5)
    torch.testing.assert_close(refined_inverse(a, rough), torch.linalg.inv(a), rtol=1e-9, atol=1e-9)
    assert condition_estimate(a, torch.linalg.inv(a)) == pytest.approx(float(torch.linalg.cond(a)), rel=0.05)
    assert factor(torch.ones(3, 3)) is None and factor(torch.full((2, 2), float("nan"))) is None


def test_statistics_agree_with_the_dense_head() -> None:
    head = head_of()
    h, target = torch.randn(9, 6, dtype=DENSE), torch.randint(40, (9,))
    for got, expected in zip(head(h, target), spherical_linear(h, head.weight, target), strict=True):
        torch.testing.assert_close(got, expected)
