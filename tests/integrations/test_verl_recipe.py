"""The configuration for verl says what the adapter reads, and its figures are those of the recipe."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from softgate.errors import StateError
from softgate.policy import sapo_loss

yaml = pytest.importorskip("yaml")
RECIPE = Path(__file__).resolve().parents[2] / "examples" / "verl" / "sapo_qwen3_30b.yaml"


def _namespace(value: Any) -> Any:
    """As verl hands it over: fields, not keys."""
    if not isinstance(value, dict):
        return value
    return SimpleNamespace(**{name: _namespace(part) for name, part in value.items()})


@pytest.fixture
def recipe() -> Any:
    return _namespace(yaml.safe_load(RECIPE.read_text(encoding="utf-8")))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for ``verl.trainer.ppo.core_algos``, with the aggregations that verl has."""
    found: dict[str, Any] = {}
    stub = ModuleType("verl.trainer.ppo.core_algos")

    def agg_loss(loss_mat: Tensor, loss_mask: Tensor, loss_agg_mode: str) -> Tensor:
        if loss_agg_mode != "seq-mean-token-mean":
            raise ValueError(loss_agg_mode)
        return ((loss_mat * loss_mask).sum(-1) / loss_mask.sum(-1)).mean()

    stub.agg_loss = agg_loss  # type: ignore[attr-defined]
    stub.register_policy_loss = lambda name: lambda f: found.setdefault(name, f)  # type: ignore[attr-defined]
    for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    return found


def test_workers_import_the_loss_that_the_recipe_names(monkeypatch, recipe, registry) -> None:
    name = recipe.actor_rollout_ref.model.external_lib
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    actor = recipe.actor_rollout_ref.actor
    run = registry[actor.policy_loss.loss_mode]
    old = -torch.rand(4, 6) - 1
    logp, advantages, mask = old + 0.4 * torch.randn(4, 6), torch.randn(4, 1).expand(4, 6), torch.ones(4, 6)
    loss, _ = run(old, logp, advantages, mask, actor.loss_agg_mode, actor)
    torch.testing.assert_close(loss, sapo_loss(logp, old, advantages, mask, tau_pos=1.0, tau_neg=1.05))
    actor.tau_neg = 3.0
    other, _ = run(old, logp, advantages, mask, actor.loss_agg_mode, actor)
    torch.testing.assert_close(other, sapo_loss(logp, old, advantages, mask, tau_neg=3.0))


def test_figures_of_the_recipe(recipe) -> None:
    model, actor, rollout = (getattr(recipe.actor_rollout_ref, part) for part in ("model", "actor", "rollout"))
    assert "30B-A3B" in model.path
    assert recipe.data.train_batch_size == 4 * actor.ppo_mini_batch_size * actor.ppo_epochs
    assert (recipe.data.train_batch_size, rollout.n, rollout.val_kwargs.n) == (256, 16, 16)
    assert isinstance(actor.optim.lr, float) and actor.optim.lr == 1e-6
    longest = recipe.data.max_prompt_length + recipe.data.max_response_length
    assert min(actor.ppo_max_token_len_per_gpu, rollout.log_prob_max_token_len_per_gpu) >= longest
    assert not actor.use_kl_loss and not recipe.algorithm.use_kl_in_reward
    gpus = recipe.trainer.nnodes * recipe.trainer.n_gpus_per_node
    assert gpus % rollout.tensor_model_parallel_size == 0 and actor.ppo_mini_batch_size * rollout.n % gpus == 0
    assert recipe.trainer.total_training_steps == 2000


def test_without_verl_the_import_says_so(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "softgate.integrations.verl_sapo", raising=False)
    monkeypatch.setitem(sys.modules, "verl", None)
    with pytest.raises(StateError, match="verl"):
        importlib.import_module("softgate.integrations.verl_sapo")
