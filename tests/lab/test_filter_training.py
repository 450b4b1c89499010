"""The parts of the study of dynamic filters: its networks, static masks of equal cost, planned masks, one small run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from softgate.dynamic import prune_dynamic
from softgate.lab.cell import CellRun
from softgate.lab.data import MissingDataError
from softgate.lab.filter_networks import VGG16, filter_network
from softgate.lab.filter_speed import layer_candidates, network_candidates
from softgate.lab.filter_training import measure_filters, static_masks
from softgate.lab.training import TrainConfig, fit

STACK = {"network": "stack", "widths": (8, 0, 16, 0, 16)}


@pytest.mark.parametrize(
    ("config", "layers", "millions"),
    [
        ({"network": "stack", "widths": VGG16}, 13, 313.2),
        ({"network": "resnet", "blocks": 9}, 55, 125.5),
        ({"network": "mobilenet"}, 27, 46.3),
    ],
)
def test_networks_are_those_of_the_paper(config, layers, millions) -> None:
    model = prune_dynamic(filter_network(config, 3, 10), 0.9, torch.zeros(1, 3, 32, 32))
    assert len(model.layers) == layers
    assert model.wiring.total / 1e6 == pytest.approx(millions, rel=0.002)


def test_planned_masks_keep_their_share_and_follow_the_input() -> None:
    model, runs = network_candidates({**STACK, "widths": (32, 0, 64)}, 16, 0.6)
    stats = model.dynamic_stats()
    assert stats.samples == 8 and stats.dynamic_fraction > 0.9
    assert list(stats.active.values()) == pytest.approx([0.6, 0.6], abs=0.01)
    with torch.no_grad():
        for run in runs.values():
            run()


def test_all_plans_of_a_layer_compute_the_same() -> None:
    runs = layer_candidates(32, 6, 0.25)
    with torch.no_grad():
        both, rows, pick = (runs[plan]().x for plan in ("both", "rows", "pick"))
        kept = both.shape[1]
        assert kept == 8 and runs["bare"]().shape == both.shape == rows.shape
        torch.testing.assert_close(both, rows, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both, pick, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(runs["dense"]()[:, runs["both"]().which], both, rtol=1e-4, atol=1e-5)


def test_static_masks_are_as_many_filters_as_run_on_average() -> None:
    torch.manual_seed(0)
    model = prune_dynamic(filter_network(STACK, 3, 4), 0.8, torch.zeros(1, 3, 16, 16)).eval()
    x = torch.randn(20, 3, 16, 16)
    masks = static_masks(model, x)
    model.eval()
    model(x)
    for name, layer in model.layers.items():
        assert int(masks[name].sum()) == round(float(layer.last.mask.double().sum(1).mean()))
        mean = layer.last.scores.mean(0)
        assert mean[masks[name]].min() >= mean[~masks[name]].max()


def test_a_group_may_keep_its_rate() -> None:
    net = nn.Linear(2, 1)
    groups = [{"params": [net.weight]}, {"params": [net.bias], "schedule": "constant"}]
    seen = []

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        seen.append([group["lr"] for group in optimizer.param_groups])
        return model(batch).square().mean()

    optimizer = torch.optim.SGD(groups, lr=0.5)
    fit(net, loss, TrainConfig(steps=3, lr=0.5), batches=lambda _: torch.ones(4, 2), optimizer=optimizer)
    assert [rates[1] for rates in seen] == [0.5] * 3
    assert seen[0][0] == 0.5 and seen[2][0] < seen[1][0] < 0.5


def test_a_small_run_measures_everything(tmp_path: Path) -> None:
    config = {
        "dataset": "mnist", "side": 14, "sizes": {"train": 256, "validation": 64, "calibration": 0, "test": 100},
        **STACK, "dense": {"steps": 20, "batch": 32, "lr": 0.05}, "rs": [0.95, 0.8], "epochs": 1, "warm_up": 5,
        "batch": 32, "lr": 0.01, "mode": "joint", "official": 0.8, "static": True,
    }  # fmt: skip
    try:
        found = measure_filters(CellRun("fire-together-wire-together", "smoke", "images", config, 0, tmp_path))
    except MissingDataError as error:
        pytest.skip(str(error))
    assert found["r"] == [0.95, 0.8] and found["estimate"][0] < found["estimate"][1]
    assert max(found["skipping_differs"]) < 1e-4
    assert found["reduction"] == pytest.approx(found["static_reduction"], abs=0.15)
    assert found["official_dynamic_fraction"] <= max(found["dynamic_fraction"])
    assert found["drop_at_quarter"] == min(
        (found["tuned_accuracy"] - a for a, r in zip(found["accuracy"], found["reduction"], strict=True) if r >= 0.25),
        default=1.0,
    )
