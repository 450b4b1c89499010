"""The trainer: its phases and rates, what each trains, the same bits after a stop, and that it learns its budget."""

from __future__ import annotations

import copy

import pytest
import torch
from filter_nets import plain
from torch import Tensor, nn

from softgate.dynamic import DynamicNetwork, DynamicTrainer, estimate_flops, prune_dynamic
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError


def _data(count: int = 96) -> tuple[Tensor, Tensor]:
    """Coloured squares: the class is where the bright one is."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (count,), generator=generator)
    x = 0.3 * torch.randn(count, 3, 8, 8, generator=generator)
    for place in range(4):
        rows, columns = slice(4 * (place // 2), 4 * (place // 2) + 4), slice(4 * (place % 2), 4 * (place % 2) + 4)
        x[y == place, :, rows, columns] += 1.0
    return x, y


def _model(**options) -> DynamicNetwork:
    torch.manual_seed(0)
    return prune_dynamic(plain(8, 4), 0.8, torch.zeros(1, 3, 8, 8), **options)


def _trainer(model: DynamicNetwork, **options) -> DynamicTrainer:
    return DynamicTrainer(model, **{"epochs": 4, "batch_size": 32, "warm_up": 5, **options})


def test_phases_and_rates() -> None:
    trainer = _trainer(_model(), lr=0.01, milestones=(0.25, 0.75))
    trainer.prepare(_data())
    assert trainer.epoch_steps == 3 and trainer.steps == 17
    assert [trainer.phase(step) for step in (0, 4, 5, 10, 11, 16)] == [
        "warm_up", "warm_up", "masks", "masks", "cooldown", "cooldown",
    ]  # fmt: skip
    assert [trainer.rate(step) for step in (0, 5, 8, 13, 14, 16)] == pytest.approx([1e-2] * 2 + [1e-3] * 2 + [1e-4] * 2)
    groups = trainer.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    trainer.fit(_data())
    assert groups[1]["lr"] == 0.1 and [entry["phase"] for entry in trainer.history] == ["masks"] * 2 + ["cooldown"] * 2


def _changed(model: DynamicNetwork, before: dict[str, Tensor]) -> set[str]:
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    return {"predictor" if "predictor" in name else "network" for name in changed}


def test_each_phase_trains_its_part() -> None:
    trainer = _trainer(_model())
    trainer.prepare(_data())
    seen = {}
    while trainer.step < trainer.steps:
        before, phase = copy.deepcopy(trainer.model.state_dict()), trainer.phase(trainer.step)
        trainer.update()
        seen[phase] = _changed(trainer.model, before)
    assert seen == {"warm_up": {"predictor"}, "masks": {"predictor", "network"}, "cooldown": {"network"}}


def test_a_stop_changes_no_bit() -> None:
    data = _data()
    whole = _trainer(_model(), augment=_noise)
    states: list[dict] = []
    whole.fit(data, data, on_epoch=lambda _: states.append(copy.deepcopy(whole.state_dict())))
    again = _trainer(_model(), augment=_noise)
    again.load_state_dict(states[1])
    assert again.fit(data, data) == whole.history and len(whole.history) == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def _noise(images: Tensor, generator: torch.Generator) -> Tensor:
    return images + 0.1 * torch.randn(images.shape, generator=generator)


@pytest.mark.parametrize("mode", ["decoupled", "joint"])
def test_it_learns_the_task_and_its_budget(mode) -> None:
    data = _data(256)
    torch.manual_seed(0)
    dense = plain(8, 4)
    optimizer = torch.optim.Adam(dense.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(dense(data[0]), data[1]).backward()
        optimizer.step()
    dense.eval()
    estimate = estimate_flops(dense, data, 0.8).reduction
    model = prune_dynamic(dense, 0.8, data[0][:1], mode=mode)
    figures = _trainer(model, epochs=8, warm_up=20).fit(data, data)[-1]
    assert figures["accuracy"] > 0.95 and figures["mask_accuracy"] > 0.8
    assert 0.1 < figures["reduction"] < 0.9 and abs(figures["reduction"] - estimate) < 0.1
    logits = model.infer(data[0][:64])
    assert float((logits.argmax(-1) == data[1][:64]).float().mean()) > 0.9


def test_bad_arguments() -> None:
    model = _model()
    for options, word in (
        ({"cooldown": 1.5}, "cooldown"), ({"predictor_lr": -0.1}, "predictor_lr"), ({"warm_up": -1}, "warm_up"),
        ({"milestones": (0.5, 0.2)}, "milestones"), ({"epochs": 0}, "epochs"),
    ):  # fmt: skip
        with pytest.raises(ArgumentValueError, match=word):
            _trainer(model, **options)
    with pytest.raises(ArgumentTypeError, match="model"):
        DynamicTrainer(plain())
    with pytest.raises(StateError, match="no data"):
        _ = _trainer(model).steps
    with pytest.raises(StateError, match="no state"):
        _trainer(model).state_dict()
    with pytest.raises(ArgumentTypeError, match="data"):
        _trainer(model).fit([_data()])
    with pytest.raises(ArgumentValueError, match="data"):
        _trainer(model).fit((_data()[0], _data()[1][:3]))
