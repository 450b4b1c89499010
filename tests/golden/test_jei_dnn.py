"""Against the authors' code on random features: gates, exits, both losses, conformal sets, budgeted thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate.dynamic import (
    ConformalExit,
    UncertaintyGate,
    best_exit,
    exit_gate_loss,
    exit_inference_loss,
    exit_level,
    exit_probabilities,
    uncertainty_features,
)
from softgate.dynamic.conformal_sets import conformal_quantile
from softgate.dynamic.thresholds import budgeted_thresholds


@pytest.fixture(params=["a", "b"])
def g(request, golden) -> dict[str, Tensor]:
    with np.load(golden("jei-dnn") / f"gates_{request.param}.npz") as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}


def _logits(g: dict[str, Tensor], weight: Tensor | None = None) -> Tensor:
    weight = g["head_W"] if weight is None else weight
    return torch.einsum("end,ecd->enc", g["Z"], weight) + g["head_b"][:, None]


def _close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-5, atol=2e-6)


def test_features_gates_and_exits(g) -> None:
    logits = _logits(g)[:-1]
    _close(uncertainty_features(logits), g["gate_features"])
    gates = [UncertaintyGate() for _ in logits]
    for gate, weight, bias in zip(gates, g["gate_W"], g["gate_b"], strict=True):
        gate.linear.weight.data.copy_(weight[None])
        gate.linear.bias.data.fill_(bias)
    gate_logits = torch.stack([gate(z) for gate, z in zip(gates, logits, strict=True)], -1)
    _close(gate_logits, g["gate_logits"].T)
    _close(exit_probabilities(gate_logits)[:, :-1], g["p_exit"])
    level = exit_level(gate_logits)
    assert torch.equal(level, g["weighted_exit_level"])
    assert torch.equal(level.bincount(minlength=len(g["Z"])), g["weighted_num_exits"])
    _close(_logits(g)[level, torch.arange(len(level))], g["weighted_gated_logits"])


@pytest.mark.parametrize(("weighting", "name"), [("uniform", "weighted"), ("hard", "single")])
def test_inference_loss(g, weighting, name) -> None:
    weight = g["head_W"].clone().requires_grad_()
    probabilities = exit_probabilities(g["gate_logits"].T)
    loss = exit_inference_loss(_logits(g, weight), g["y"], probabilities, weighting)
    _close(loss, g[f"{name}_loss"])
    loss.backward()
    _close(weight.grad[:-1], g[f"{name}_gW"])


@pytest.mark.parametrize("objective", ["ce", "prob"])
def test_gate_loss(g, objective) -> None:
    best = best_exit(_logits(g), g["y"], g["cost"], float(g["lam"]), objective)
    assert torch.equal(best.bincount(minlength=len(g["Z"]))[:-1], g[f"gate_{objective}_optimal_counts"])
    weight, bias = g["gate_W"].clone().requires_grad_(), g["gate_b"].clone().requires_grad_()
    gate_logits = torch.einsum("lnf,lf->nl", g["gate_features"].float(), weight) + bias
    loss = exit_gate_loss(gate_logits, best, g["pos_weights"].float())
    _close(loss, g[f"gate_{objective}_loss"])
    loss.backward()
    _close(weight.grad, g[f"gate_{objective}_gW"])
    _close(bias.grad, g[f"gate_{objective}_gb"])


def test_conformal_sets(g) -> None:
    alphas = g["conf_alphas"].tolist()
    quantiles = [conformal_quantile(g["conf_scores"].numpy(), alpha) for alpha in alphas]
    _close(torch.tensor(quantiles, dtype=torch.float64), g["conf_qhat"])
    sets = ConformalExit()
    sets.thresholds = g["conf_qhat"][2].expand(len(g["Z"]))
    level = torch.full(g["y"].shape, len(g["Z"]) - 1)
    assert torch.equal(sets.predict(_logits(g)[-1], level), g["conf_sets_at_0.05"])


def test_budgeted_thresholds(g) -> None:
    ratio = float(g["thr_probs"][1] / g["thr_probs"][0])
    found = budgeted_thresholds(_logits(g)[:-1].amax(-1).double(), ratio)
    _close(found, g["thr_T"][:-1])
