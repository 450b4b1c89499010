"""The verl adapter against a registry with verl's signatures, and verl's own figures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate.errors import StateError
from softgate.integrations import verl as adapter
from softgate.policy import sapo_loss


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., Any]]:
    """Stands in for ``verl.trainer.ppo.core_algos``."""
    found: dict[str, Callable[..., Any]] = {}
    stub = ModuleType("verl.trainer.ppo.core_algos")

    def register_policy_loss(name: str) -> Callable[[Any], Any]:
        return lambda function: found.setdefault(name, function)

    def agg_loss(loss_mat: Tensor, loss_mask: Tensor, loss_agg_mode: str, dp_size: int = 1) -> Tensor:
        assert loss_agg_mode == "seq-mean-token-mean"
        rows = (loss_mat * loss_mask).sum(-1) / (loss_mask.sum(-1) + 1e-8)
        return rows.mean() * dp_size

    stub.register_policy_loss, stub.agg_loss = register_policy_loss, agg_loss  # type: ignore[attr-defined]
    for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    return found


def _config(**info: Any) -> SimpleNamespace:
    return SimpleNamespace(policy_loss=SimpleNamespace(), tau_pos=1.0, tau_neg=1.05, global_batch_info=info)


@pytest.mark.parametrize("name", ["verl_small", "verl_offpolicy"])
def test_golden_values_through_the_registry(golden, registry, name) -> None:
    data = np.load(golden("sapo") / f"{name}.npz")
    old, logp, advantages, mask = (torch.tensor(data[k]) for k in ("old_logp", "logp", "advantages", "mask"))
    logp.requires_grad_()
    assert adapter.register() == "softgate_sapo"
    loss, metrics = registry["softgate_sapo"](old, logp, advantages, mask, "seq-mean-token-mean", _config())
    np.testing.assert_allclose(loss.item(), data["sapo_loss"], rtol=1e-10)
    (grad,) = torch.autograd.grad(loss, logp)
    torch.testing.assert_close(grad, torch.tensor(data["sapo_grad"]), rtol=1e-10, atol=1e-12)
    assert {"actor/ppo_kl", "actor/pg_clipfrac", "actor/pg_clipfrac_lower"} <= metrics.keys()
    kl = ((old - logp.detach()) * mask).sum() / mask.sum()
    assert metrics["actor/ppo_kl"] == pytest.approx(kl.item()) and metrics["actor/pg_clipfrac"] == 0.0


def test_sizes_weights_and_gates(registry) -> None:
    old = -torch.rand(4, 5) - 1
    logp, advantages, mask = old + 0.3, torch.randn(4, 1).expand(4, 5), torch.ones(4, 5)
    adapter.register("wide", gate="gaussian")
    run, weights = registry["wide"], torch.rand(4, 5)
    plain, _ = run(old, logp, advantages, mask, config=_config())
    torch.testing.assert_close(plain, sapo_loss(logp, old, advantages, mask, gate="gaussian"))
    assert run(old, logp, advantages, mask, config=_config(dp_size=2))[0] == pytest.approx(2 * plain.item())
    weighted, _ = run(old, logp, advantages, mask, config=_config(), rollout_is_weights=weights)
    torch.testing.assert_close(weighted, sapo_loss(logp, old, advantages * weights, mask, gate="gaussian"))
    mine = _config()
    mine.policy_loss.tau_pos = 3.0
    found, _ = run(old, logp, advantages, mask, config=mine)
    torch.testing.assert_close(found, sapo_loss(logp, old, advantages, mask, gate="gaussian", tau_pos=3.0))


def test_without_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verl", None)
    with pytest.raises(StateError, match="verl"):
        adapter.register()
    with pytest.raises(ValueError, match="gate"):
        adapter.register(gate="step")
