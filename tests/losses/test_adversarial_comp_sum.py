"""The PGD attack and the smooth adversarial comp-sum loss."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import nn

from softgate.losses import PGD, AdvCompSumLoss, comp_sum_loss, margin_shift, pgd_attack


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()


X = torch.rand(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_attack_stays_in_the_ball_and_in_the_box_and_raises_the_loss(norm) -> None:
    net = model()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return comp_sum_loss(net(x), Y, reduction="none")

    moved = pgd_attack(loss, X, eps=0.2, steps=8, norm=norm)
    length = torch.linalg.vector_norm(moved - X, ord=float(norm), dim=1)
    assert float(length.max()) <= 0.2 + 1e-12 and float(length.min()) > 0.05
    assert float(moved.min()) >= 0.0 and float(moved.max()) <= 1.0
    assert bool((loss(moved) > loss(X)).all())
    assert not moved.requires_grad and all(p.grad is None for p in net.parameters())


def test_attack_finds_the_worst_point_of_a_linear_objective() -> None:
    slope = torch.tensor([3.0, -4.0, 0.0])
    x = torch.tensor([[0.5, 0.5, 0.5], [0.05, 0.95, 0.5]])
    far = pgd_attack(lambda z: z @ slope, x, eps=0.1, steps=20, random_start=False)
    torch.testing.assert_close(far, torch.tensor([[0.6, 0.4, 0.5], [0.15, 0.85, 0.5]]))
    round_ = pgd_attack(lambda z: z @ slope, x[:1], eps=0.1, steps=20, norm="2", bounds=None, random_start=False)
    torch.testing.assert_close(round_, x[:1] + 0.1 * slope / 5)
    free = pgd_attack(lambda z: z @ slope, x[1:], eps=0.5, steps=20, bounds=(0.0, 1.0), random_start=False)
    torch.testing.assert_close(free, torch.tensor([[0.55, 0.45, 0.5]]))


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_random_start_fills_the_ball_and_obeys_the_generator(norm) -> None:
    x = torch.zeros(400, 3)
    settings = PGD(eps=0.5, steps=0, norm=norm, bounds=None)
    start = settings(lambda z: z.sum(1), x, torch.Generator().manual_seed(3))
    assert torch.equal(start, settings(lambda z: z.sum(1), x, torch.Generator().manual_seed(3)))
    length = torch.linalg.vector_norm(start, ord=float(norm), dim=1)
    assert 0.48 < float(length.max()) <= 0.5 + 1e-6 and float(length.min()) < 0.2
    assert torch.equal(PGD(eps=0.0, bounds=None)(lambda z: z.sum(1), x), x)


def test_attack_on_an_empty_batch_and_with_a_flat_objective() -> None:
    assert pgd_attack(lambda z: z.sum(1), torch.zeros(0, 3)).shape == (0, 3)
    x = torch.full((2, 3), 0.5)
    assert torch.equal(pgd_attack(lambda z: 0 * z.sum(1), x, norm="2", random_start=False), x)


def test_margin_shift_is_the_norm_of_the_margins() -> None:
    a, b = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 3])
    for row in range(5):
        others = [j for j in range(4) if j != int(y[row])]
        delta = [(b[row, y[row]] - b[row, j]) - (a[row, y[row]] - a[row, j]) for j in others]
        want = math.sqrt(sum(float(d) ** 2 for d in delta))
        assert float(margin_shift(a, b, y)[row]) == pytest.approx(want)
    torch.testing.assert_close(margin_shift(a, b + 7.0, y), margin_shift(a, b, y))
    leaf = a.clone().requires_grad_()
    assert torch.autograd.grad(margin_shift(leaf, a, y).sum(), leaf)[0].abs().max() == 0.0
    assert torch.autograd.gradcheck(lambda p, q: margin_shift(p, q, y), (leaf, b.requires_grad_()))


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5])
def test_without_perturbation_it_is_the_clean_loss_at_temperature_rho(tau) -> None:
    net = model()
    clean = comp_sum_loss(net(X), Y, tau=tau, temperature=2.0)
    torch.testing.assert_close(AdvCompSumLoss(tau, 2.0, nu=0.0)(net, X, Y), clean)
    torch.testing.assert_close(AdvCompSumLoss(tau, 2.0, nu=3.0, attack=PGD(eps=0.0))(net, X, Y), clean)
    rows = AdvCompSumLoss(tau, 2.0, nu=3.0, reduction="none")(net, X, Y)
    assert rows.shape == (8,) and bool(
        (rows > comp_sum_loss(net(X), Y, None, -100, "none", tau=tau, temperature=2.0)).all()
    )


def test_it_bounds_the_adversarial_margin_loss() -> None:
    """nu = sqrt(n - 1) / rho: for no point of the ball is the rho-margin comp-sum loss above it."""
    net, rho, tau = model(1), 0.7, 1.0
    attack = PGD(eps=0.15, steps=40)
    bound = AdvCompSumLoss(tau, rho, math.sqrt(3) / rho, attack, "none")(net, X, Y)
    for seed in range(20):
        moved = PGD(eps=0.15, steps=5)(
            lambda x: comp_sum_loss(net(x), Y, reduction="none"), X, torch.Generator().manual_seed(seed)
        )
        z = net(moved)
        margins = z.gather(1, Y[:, None]) - z
        u = (1 - margins / rho).clamp(0, 1).sum(1) - 1  # the class itself has margin 0 and counts 1
        assert bool((torch.log1p(u) <= bound).all())


def test_gradient_flows_through_both_inputs() -> None:
    net = model(2)
    loss = AdvCompSumLoss(1.5, 1.0, 0.5, PGD(eps=0.1, steps=3))
    value = loss(net, X, Y, torch.Generator().manual_seed(0))
    value.backward()
    # by hand, with the point that the same attack finds
    other = model(2)
    logits = other(X)
    moved = loss.attack(lambda x: margin_shift(logits.detach(), other(x), Y), X, torch.Generator().manual_seed(0))
    by_hand = comp_sum_loss(logits, Y, tau=1.5) + 0.5 * margin_shift(logits, other(moved), Y).mean()
    torch.testing.assert_close(value, by_hand)
    by_hand.backward()
    for got, want in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)


def test_training_with_it_makes_margins_move_less() -> None:
    shifts = []
    for nu in (0.0, 2.0):
        net = model(3)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
        loss = AdvCompSumLoss(nu=nu, attack=PGD(eps=0.1, steps=3))
        for _ in range(60):
            optimizer.zero_grad()
            loss(net, X, Y).backward()
            optimizer.step()
        with torch.no_grad():
            shifts.append(float(AdvCompSumLoss(nu=1.0, attack=PGD(eps=0.1))(net, X, Y) - comp_sum_loss(net(X), Y)))
    assert shifts[1] < 0.5 * shifts[0]


def test_module() -> None:
    loss = AdvCompSumLoss(1.5, 2.0, 0.3, PGD(eps=0.1, steps=2), "sum")
    assert "nu=0.3" in repr(loss) and "eps=0.1" in repr(loss)
    again = pickle.loads(pickle.dumps(loss))
    net, seed = model(), torch.Generator
    assert torch.equal(again(net, X, Y, seed().manual_seed(1)), loss(net, X, Y, seed().manual_seed(1)))


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        *((lambda v=v: PGD(eps=v), ValueError, "eps") for v in (-0.1, math.nan, math.inf)),
        (lambda: PGD(steps=1.5), TypeError, "steps"),
        (lambda: PGD(steps=-1), ValueError, "steps"),
        (lambda: PGD(step_size=-1.0), ValueError, "step_size"),
        (lambda: PGD(norm="1"), ValueError, "norm"),
        (lambda: PGD(bounds=0.5), TypeError, "bounds"),
        (lambda: PGD(bounds=(1.0, 0.0)), ValueError, "bounds"),
        (lambda: pgd_attack(lambda x: x.sum(1), X + 1.0), ValueError, "bounds"),
        (lambda: pgd_attack(lambda x: x.sum(1), [0.5]), TypeError, "x must"),
        (lambda: pgd_attack(lambda x: x, X), ValueError, "objective"),
        (lambda: AdvCompSumLoss(tau=-1.0), ValueError, "tau"),
        (lambda: AdvCompSumLoss(rho=0.0), ValueError, "rho"),
        (lambda: AdvCompSumLoss(nu=-1.0), ValueError, "nu"),
        (lambda: AdvCompSumLoss(attack="pgd"), TypeError, "attack"),
        (lambda: AdvCompSumLoss(attack=PGD(random_start=False)), ValueError, "attack"),
        (lambda: AdvCompSumLoss(reduction="average"), ValueError, "reduction"),
        (lambda: margin_shift(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2).long()), ValueError, "shifted"),
        (lambda: margin_shift(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3).long()), ValueError, "target"),
        (lambda: margin_shift(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)), TypeError, "target"),
    ],
)
def test_bad_calls_name_the_argument(call, error, word) -> None:
    with pytest.raises(error, match=word):
        call()
