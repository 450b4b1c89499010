"""Training in turns: who learns when, early stopping of the warm-up, and a state that can be saved anywhere."""

from __future__ import annotations

import pytest
import torch
from exit_nets import mlp, with_exits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from softgate.dynamic import EarlyExit, JEITrainer, cache_features
from softgate.dynamic._warm_up import WarmUp
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError

OPTIONS = {"epochs": 4, "warmup_epochs": 2, "batch_size": 16, "swap_every": 3}


def _data(rows: int = 96, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 12, generator=generator)
    with torch.no_grad():
        return x, mlp(scale=3.0)(x).argmax(-1)


def _model() -> EarlyExit:
    torch.manual_seed(3)
    return EarlyExit.from_sequential(mlp(scale=3.0), [2, 4, 6], torch.zeros(1, 12))


def _learned(model: EarlyExit) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if n.startswith(("heads", "gates"))}


def test_only_the_part_whose_turn_it_is_moves() -> None:
    model = _model()
    backbone = {n: p.clone() for n, p in model.named_parameters() if not n.startswith(("heads", "gates"))}
    trainer = JEITrainer(model, 0.3, **OPTIONS)
    trainer.prepare(_data(), _data(40, 2))
    phases = []
    for step in range(trainer.steps):
        before, phase = _learned(model), trainer.phase(step)
        trainer.update()  # momentum of both parts is there after the first epochs; decay always is
        moved = {n.split(".")[0] for n, p in _learned(model).items() if not torch.equal(p, before[n])}
        assert moved == ({"gates"} if phase == "gate" else {"heads"})
        phases.append(phase)
        if (step + 1) % trainer.epoch_steps == 0:
            trainer.end_epoch()
    assert phases == ["warmup"] * 12 + (["gate"] * 3 + ["inference"] * 3) * 2
    assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in backbone.items())


def test_a_head_that_stopped_in_the_warm_up_stands_still() -> None:
    model = _model()
    trainer = JEITrainer(model, 0.3, **{**OPTIONS, "epochs": 9, "warmup_epochs": 8, "patience": 1})
    trainer.prepare(_data(), _data(40, 2))
    for _ in range(7):
        trainer.update()
    trainer.warm_up.stale[1] = 1
    before = _learned(model)
    trainer.update()
    moved = {n for n, p in _learned(model).items() if not torch.equal(p, before[n])}
    assert moved == {f"heads.{place}.{kind}" for place in (0, 2) for kind in ("weight", "bias")}


def test_training_lowers_the_objective_and_more_so_the_cost_with_its_price() -> None:
    data, test = _data(400), _data(400, 2)
    found = {}
    for lam in (0.0, 3.0):
        model = _model()
        history = JEITrainer(model, lam, epochs=12, warmup_epochs=4, swap_every=5, batch_size=32).fit(data, data)
        assert [h["phase"] for h in history].count("warmup") <= 4 and not model.training
        with torch.no_grad():
            out = model(test[0])
        found[lam] = out.mean_cost, float((out.y_logits.argmax(-1) == test[1]).float().mean())
        assert history[-1]["exit_accuracy"][0] > history[0]["exit_accuracy"][0] - 0.05
    assert found[3.0][0] < found[0.0][0] - 0.2 and found[3.0][1] > 0.3


@pytest.mark.parametrize("stop", [5, 12, 15])
def test_a_training_that_was_stopped_is_the_one_that_was_not(stop) -> None:
    whole = _model()
    expected = JEITrainer(whole, 0.3, pos_weight="cumulative", **OPTIONS).fit(_data(), _data(40, 2))
    first = _model()
    trainer = JEITrainer(first, 0.3, pos_weight="cumulative", **OPTIONS)
    trainer.prepare(_data(), _data(40, 2))
    for _ in range(stop):
        trainer.update()
        if trainer.step % trainer.epoch_steps == 0:
            trainer.history.append(trainer.end_epoch())
    state = trainer.state_dict()
    second = _model()
    again = JEITrainer(second, 0.3, pos_weight="cumulative", **OPTIONS)
    again.load_state_dict(state)
    assert again.fit(_data(), _data(40, 2)) == expected
    for name, value in _learned(whole).items():
        assert torch.equal(value, _learned(second)[name]), name


def test_cached_features_change_nothing() -> None:
    given = {}
    for how in ("cached", "computed", "before", "loader"):
        model = _model()
        train, validation = _data(), _data(40, 2)
        if how == "before":
            train, validation = cache_features(model, train), cache_features(model, validation)
        elif how == "loader":
            train, validation = (DataLoader(TensorDataset(*d), 32) for d in (train, validation))
        JEITrainer(model, 0.3, cache_features=how != "computed", **OPTIONS).fit(train, validation)
        given[how] = _learned(model)
    for how in ("computed", "before", "loader"):
        for name, value in given["cached"].items():
            torch.testing.assert_close(given[how][name], value)


def test_the_frozen_backbone_is_called_once() -> None:
    model, calls = _model(), []
    model.stages[0].register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    trainer = JEITrainer(model, 0.3, **OPTIONS)
    model(torch.zeros(1, 12))  # counts its costs
    calls.clear()
    trainer.fit(_data(), _data(40, 2))
    assert sum(calls) == 96 + 40


def test_warm_up_stops_each_head_and_keeps_its_best() -> None:
    heads = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(2)])
    warm = WarmUp(heads, epochs=9, patience=2)
    accuracies = [(0.5, 0.1), (0.6, 0.2), (0.6, 0.3), (0.5, 0.4), (0.9, 0.4), (0.9, 0.4)]
    for epoch, pair in enumerate(accuracies):
        for head in heads:
            head.weight.data.fill_(float(epoch))
        warm.end_epoch(pair)
        if epoch == 3:
            assert warm.active.tolist() == [False, True] and float(heads[0].weight.detach()) == 1.0
    assert not warm.running and [float(head.weight.detach()) for head in heads][1] == 3.0


def test_bad_calls() -> None:
    model = with_exits()
    for options, error in (
        ({"lam": -1.0}, ArgumentValueError), ({"swap_every": 0}, ArgumentValueError),
        ({"epochs": 2.5}, ArgumentTypeError), ({"warmup_epochs": 4}, ArgumentValueError),
        ({"weighting": "boosted"}, ArgumentValueError), ({"min_lr_ratio": 2.0}, ArgumentValueError),
    ):  # fmt: skip
        with pytest.raises(error, match=next(iter(options))):
            JEITrainer(model, **{"lam": 0.5, **OPTIONS, **options})
    with pytest.raises(ArgumentTypeError, match="model"):
        JEITrainer(nn.Linear(2, 2), 0.5)
    trainer = JEITrainer(model, 0.5, **OPTIONS)
    with pytest.raises(StateError, match="state_dict"):
        trainer.state_dict()
    with pytest.raises(ArgumentTypeError, match="data"):
        trainer.fit(torch.zeros(3, 12), _data())
    with pytest.raises(ArgumentValueError, match="as many"):
        trainer.fit((torch.zeros(3, 12), torch.zeros(2, dtype=torch.int64)), _data())
    with pytest.raises(ArgumentValueError, match="sample"):
        trainer.fit((torch.zeros(0, 12), torch.zeros(0, dtype=torch.int64)), _data())
    with pytest.raises(ArgumentTypeError, match="cache_features"):
        JEITrainer(model, 0.5, cache_features=False, **OPTIONS).fit(DataLoader(TensorDataset(*_data())), _data())
    free = EarlyExit([nn.Linear(3, 3)] * 2, [nn.Linear(3, 2)], [nn.Flatten(0)], nn.Linear(3, 2), freeze=False)
    for call in (lambda: cache_features(free, _data()), lambda: JEITrainer(free, 0.5)):
        with pytest.raises(StateError, match="frozen"):
            call()
