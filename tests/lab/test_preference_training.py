"""The bandit with corrupted ratings, the stack of scorers, and what is counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softgate.errors import ArgumentValueError
from softgate.lab.anchored_checks import measure_identities
from softgate.lab.cell import CellRun
from softgate.lab.preference_llm import correct_number
from softgate.lab.preference_training import METHODS, Scorers, _report, measure_bandits
from softgate.lab.tasks.preference_bandit import SCENARIOS, PreferenceBandit


def test_ratings_are_corrupted_as_the_scenario_says():
    bandit = PreferenceBandit(0)
    contexts = bandit.draw(4000, "train")
    u = contexts.utility
    assert contexts.pairs.shape == (4000, 4, 20) and len(SCENARIOS) == 12
    assert torch.equal(bandit.draw(4000, "train").pairs, contexts.pairs)
    error = {scenario: bandit.ratings(contexts, scenario) - u for scenario in SCENARIOS}
    assert 0.5 < float(error["heavy-0"].abs().median()) / 0.6745 < 0.65 and float(error["heavy-0"].abs().max()) > 8
    spurious = contexts.pairs[..., 10]
    torch.testing.assert_close((error["shift-2"] - 2 * spurious).std(), torch.tensor(0.3), rtol=0.05, atol=0)
    negated = (bandit.ratings(contexts, "adv-2") + u).abs().mean(1) < (
        bandit.ratings(contexts, "adv-2") - u
    ).abs().mean(1)
    assert float(negated.float().mean()) == pytest.approx(0.35, abs=0.05)
    assert float(error["cauchy-1"].abs().median()) == pytest.approx(0.7, rel=0.1)


def test_stacked_scorers_train_as_each_alone():
    torch.manual_seed(0)
    start = Scorers((20, 8, 8), 1)
    stack, alone = Scorers(start, 3), [Scorers(start, 1) for _ in range(3)]
    pairs = torch.randn(5, 4, 20)
    first = [nn.Linear(20, 8), nn.Linear(8, 8), nn.Linear(8, 1)]
    for layer, weight, bias in zip(first, list(start.tensors)[::2], list(start.tensors)[1::2], strict=True):
        layer.weight.data, layer.bias.data = weight.data[0].t().clone(), bias.data[0, 0].clone()
    network = nn.Sequential(first[0], nn.ReLU(), first[1], nn.ReLU(), first[2])
    torch.testing.assert_close(stack(pairs), network(pairs).squeeze(-1).expand(3, 5, 4))
    targets = torch.randn(3, 5, 4)
    for model, target in ((stack, targets), *((m, targets[i : i + 1]) for i, m in enumerate(alone))):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            (model(pairs) - target).square().mean((1, 2)).sum().backward()
            optimizer.step()
    torch.testing.assert_close(stack(pairs), torch.cat([m(pairs) for m in alone]))


def test_every_method_trains(tmp_path):
    config = {"hidden": 8, "methods": list(METHODS), "worlds": 1, "steps": 3, "pretraining": 2, "lr": 1e-3,
              "weight_decay": 0.01}  # fmt: skip
    figures = measure_bandits(CellRun("adpo", "smoke", "h8", config, 0, tmp_path / "a"))
    assert sum(figures[f"wins_{name}"] for name in METHODS) == 12
    curves = [tuple(figures[f"win_mass_{name}"]) for name in METHODS]
    assert len(set(curves)) == len(METHODS)  # no method is another one under a second name
    assert all(0.2 < value < 0.4 for curve in curves for value in curve)
    with pytest.raises(ArgumentValueError, match="methods"):
        measure_bandits(CellRun("adpo", "smoke", "h8", {**config, "methods": ["ppo"]}, 0, tmp_path / "b"))


def test_what_is_counted():
    base = torch.full((2, 12), 0.4, dtype=torch.float64)
    raw, ema = base.clone(), base.clone()
    raw[0, 3:5] = 0.44  # 10 % under two shifts
    ema[0, :3] = 0.5  # 25 % under heavy tails
    figures = _report({"dpo": base + 0.001, "list_raw": raw, "list_kde_ema": ema}, ("dpo", "list_raw", "list_kde_ema"))
    assert (figures["wins_dpo"], figures["wins_list_raw"], figures["wins_list_kde_ema"]) == (7, 2, 3)
    assert (figures["wins_listwise"], figures["gains_of_12"]) == (5, 3)
    assert (figures["wins_moving_outside_shift"], figures["wins_fixed_under_shift"]) == (3, 2)


def test_identities(tmp_path):
    config = {"contexts": 20, "candidates": 5}
    figures = measure_identities(CellRun("adpo", "smoke", "identities", config, 0, tmp_path))
    assert 0 < figures["largest_error"] < 1e-13 and figures["optimum_error"] < 1e-13
    assert figures["curvature_error"] < 1e-12


def test_reward_of_a_number():
    answers = ["so #### 1,200", "#### 7", "#### -3.5", "#### 7"]
    said = ["first 3, then 1200", [{"role": "assistant", "content": "it is 8"}], "-3.50", "no number"]
    assert correct_number(said, answers) == [1.0, 0.0, 1.0, 0.0]
