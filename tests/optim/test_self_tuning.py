"""Hyper-parameters, dropout per example, and the alternation: what moves, what does not, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.optim import (
    BestResponseLinear,
    HyperDropout,
    HyperParam,
    HyperSpace,
    ScheduledDropout,
    SelfTuner,
    hyper,
    per_example_dropout,
)

INF = math.inf


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.9), (-3.0, 25.0), (2.0, INF), (-INF, 1.0), (-INF, INF)])
def test_there_and_back(low: float, high: float) -> None:
    left, right = max(low, -40.0), min(high, 40.0)
    values = torch.linspace(left + 1e-6, right - 1e-6, 101, dtype=torch.float64)
    param = HyperParam("h", float(values[50]), low, high)
    torch.testing.assert_close(param.value(param.raw(values)), values, rtol=1e-9, atol=1e-9)
    raw = torch.linspace(-30, 30, 61, dtype=torch.float64)
    found = param.value(raw)
    assert bool((found.diff() * (1 if low > -INF or high == INF else -1) > -1e-12).all())


def test_rounded_values_have_no_gradient_but_the_response_has() -> None:
    space = HyperSpace([HyperParam("holes", 1.5, 0.0, 5.0, discrete=True), HyperParam("rate", 0.3)])
    assert space.current()["holes"] == 1.0
    raw = space.perturbed(space.noise(4))
    assert (
        torch.autograd.grad(space.values(raw)["holes"].sum(), space.raw, allow_unused=True, retain_graph=True)[0][0]
        == 0
    )
    layer = BestResponseLinear(3, 2, 2)
    (slope,) = torch.autograd.grad(layer(torch.randn(4, 3), space.response(raw)).sum(), space.raw)
    assert bool((slope != 0).all())


def test_samples() -> None:
    space = HyperSpace([HyperParam("own", 0.5, scale=0.7), HyperParam("shared", 0.5, scale=0.2, per_example=False)])
    sample = space.sample(4000, torch.Generator().manual_seed(0))
    own, shared = sample.raw.unbind(1)
    assert float(own.std()) == pytest.approx(0.7, rel=0.05) and shared.unique().numel() == 1
    assert not sample.raw.requires_grad and sample.values["own"].shape == (4000,)
    again = space.sample(4000, torch.Generator().manual_seed(0))
    assert torch.equal(again.raw, sample.raw) and space.sample(0).raw.shape == (0, 2)
    assert float(space.entropy().detach()) == pytest.approx(math.log(0.7 * 0.2) + math.log(2 * math.pi * math.e))


def test_gradient_of_the_scale_by_differences() -> None:
    space, layer = (
        HyperSpace([HyperParam("a", 0.3), HyperParam("b", 0.6)]).double(),
        BestResponseLinear(3, 2, 2).double(),
    )
    x, eps = torch.randn(6, 3).double(), torch.randn(6, 2).double()

    def loss(rho: Tensor) -> Tensor:
        noisy = space.raw.detach() + F.softplus(rho) * eps
        entropy = (F.softplus(rho).log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
        return layer(x, noisy).square().sum() - 0.1 * entropy

    rho = space.rho.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, rho)
    ours = layer(x, space.perturbed(eps)).square().sum() - 0.1 * space.entropy()
    torch.testing.assert_close(torch.autograd.grad(ours, space.rho)[0], torch.autograd.grad(loss(rho), rho)[0])


@pytest.mark.parametrize("mask_dims", [None, "channel"])
def test_dropout(mask_dims: str | None) -> None:
    x = torch.ones(3, 400, 25)
    p = torch.tensor([0.0, 0.5, 0.9])
    y = per_example_dropout(x, p, mask_dims, generator=torch.Generator().manual_seed(1))
    assert torch.equal(y[0], x[0])
    masks = 400 if mask_dims else 10_000
    for row, rate in ((1, 0.5), (2, 0.9)):
        sd = math.sqrt(rate / (1 - rate) / masks)
        assert abs(float(y[row].mean()) - 1.0) < 5 * sd
        assert sorted(set(y[row].flatten().tolist())) == pytest.approx([0.0, 1 / (1 - rate)])
    if mask_dims:
        assert torch.equal(y, y[..., :1].expand_as(y))
    again = per_example_dropout(x, p, mask_dims, generator=torch.Generator().manual_seed(1))
    assert torch.equal(y, again)
    both = per_example_dropout(x[:2], 0.5, mask_dims, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(both[0], both[1])
    assert per_example_dropout(x, p, training=False) is x


def test_scheduled_dropout() -> None:
    layer, x = ScheduledDropout([0, 5, 9], [0.0, 0.5, 0.9]), torch.ones(2000)
    rates = []
    for step in (0, 4, 5, 8, 100):
        layer.step.fill_(step)
        rates.append(layer.rate)
    assert rates == [0.0, 0.0, 0.5, 0.5, 0.9]
    assert 0.85 < float((layer(x) == 0).float().mean()) < 0.95 and torch.equal(layer.eval()(x), x)
    other = ScheduledDropout([0, 5, 9], [0.0, 0.5, 0.9])
    other.load_state_dict(layer.state_dict())
    assert other.rate == 0.9


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.first, self.second = HyperDropout("p"), BestResponseLinear(4, 6, 1), BestResponseLinear(6, 2, 1)
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.second(self.first(self.drop(x)).relu())


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor], values: object = None) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _tuner(**options: object) -> SelfTuner:
    model, space = _Net(), HyperSpace([HyperParam("p", 0.3, high=0.9)])
    return SelfTuner(model, space, _loss, _loss, torch.optim.SGD(model.parameters(), 0.1),
                     torch.optim.SGD([space.raw], 1.0), **options)  # fmt: skip


def _batch(rows: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 4), torch.arange(rows) % 2


def test_each_step_moves_its_own() -> None:
    tuner = _tuner(train_steps=1, warmup=1)
    tuner.scale_opt = torch.optim.SGD([tuner.space.rho], 1.0)

    def state() -> tuple[list[Tensor], Tensor, Tensor]:
        return [p.detach().clone() for p in tuner.model.parameters()], tuner.space.raw.detach().clone(), \
            tuner.space.rho.detach().clone()  # fmt: skip

    before = state()
    assert set(tuner.step(_batch(), None)) == {"train_loss"}  # the warm-up
    after = state()
    assert torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])
    assert not any(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    tuner.opt.zero_grad()
    assert math.isfinite(tuner._validate(_batch(5)))
    moved = state()
    assert all(torch.equal(a, b) for a, b in zip(after[0], moved[0], strict=True))
    assert not torch.equal(after[1], moved[1]) and not torch.equal(after[2], moved[2])
    assert all(p.grad is None for p in tuner.model.parameters()) and tuner.space.raw.grad is None
    assert tuner.model.modes == [True, False] and tuner.model.training


def test_turns() -> None:
    tuner, calls = _tuner(train_steps=3, valid_steps=2, warmup=4), []

    def valid() -> tuple[Tensor, Tensor]:
        calls.append(tuner.steps)
        return _batch(3)

    for _ in range(10):
        tuner.step(_batch(), valid)
    assert calls == [7, 7, 10, 10] and [step for step, _ in tuner.schedule] == [0, 7, 10]
    values = [v["p"] for _, v in tuner.schedule]
    assert len(set(values)) == 3 and all(0 < v < 0.9 for v in values)
    other = _tuner()
    other.load_state_dict(tuner.state_dict())
    assert other.steps == 10 and other.schedule == tuner.schedule


def test_the_schedule_as_a_file(tmp_path: Path) -> None:
    tuner = _tuner(train_steps=1)
    tuner.step(_batch(), _batch())
    tuner.save_schedule(tmp_path / "a.json")
    tuner.save_schedule(tmp_path / "a.csv")
    rows = json.loads((tmp_path / "a.json").read_text())
    assert rows[1] == {"step": 1, **tuner.schedule[1][1]}
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "step,p"
    replay = ScheduledDropout([row["step"] for row in rows], [row["p"] for row in rows])
    assert replay.rate == rows[0]["p"]
    with pytest.raises(ValueError, match="path"):
        tuner.save_schedule(tmp_path / "a.txt")


@pytest.mark.parametrize("not_finite", ["raise", "skip"])
def test_numbers_that_are_not_finite(not_finite: str) -> None:
    tuner = _tuner(train_steps=1, not_finite=not_finite)
    before = [p.detach().clone() for p in (*tuner.model.parameters(), tuner.space.raw)]
    bad = (torch.full((8, 4), math.nan), torch.zeros(8, dtype=torch.long))
    if not_finite == "raise":
        with pytest.raises(FloatingPointError, match="training loss is nan at step 0"):
            tuner.step(bad, bad)
        with pytest.raises(FloatingPointError, match="validation"):
            tuner._validate(bad)
    else:
        assert all(map(math.isnan, tuner.step(bad, bad).values()))
    assert all(torch.equal(a, b) for a, b in zip(before, (*tuner.model.parameters(), tuner.space.raw), strict=True))
    with torch.no_grad():
        tuner.space.raw.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="'p'"):
        tuner.step(_batch(), _batch())


def test_bad_input() -> None:
    for fields in (
        {"init": 0.0}, {"init": 1.5}, {"low": 2.0, "init": 2.5}, {"scale": 0.0}, {"init": math.nan}, {"response": "x"},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            HyperParam(**{"name": "h", "init": 0.5, **fields})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name"):
        HyperParam("", 0.5)
    param = HyperParam("h", 0.5)
    for params in ([], [param, param]):
        with pytest.raises(ValueError, match="params"):
            HyperSpace(params)
    with pytest.raises(TypeError, match="params"):
        HyperSpace(["h"])  # type: ignore[list-item]
    x = torch.ones(3, 4)
    for p in (1.0, -0.1, torch.tensor([0.1, 0.2]), torch.zeros(3, 4)):
        with pytest.raises(ValueError, match="p must"):
            per_example_dropout(x, p)
    for steps, rates in (([], []), ([0], [0.1, 0.2]), ([3, 1], [0.1, 0.2]), ([0], [1.0])):
        with pytest.raises(ValueError):
            ScheduledDropout(steps, rates)
    for options in ({"train_steps": 0}, {"warmup": -1}, {"entropy_weight": -1.0}, {"not_finite": "ignore"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            _tuner(**options)
    tuner = _tuner(train_steps=1)
    with pytest.raises(TypeError, match="batch"):
        tuner.step({}, None)
    with pytest.raises(RuntimeError, match="no hyper-parameter 'p'"):
        tuner.model.train()(x)
    plain = nn.Sequential(nn.Linear(4, 2))
    lost = SelfTuner(plain, tuner.space, _loss, _loss, torch.optim.SGD(plain.parameters(), 0.1),
                     torch.optim.SGD([tuner.space.raw], 1.0), train_steps=1)  # fmt: skip
    with pytest.raises(TypeError, match="best-response"):
        lost.step(_batch(), _batch())
    with hyper(torch.ones(1), {"p": torch.tensor([0.5])}):
        assert tuner.model.drop(x).shape == x.shape
