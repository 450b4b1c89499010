"""Against arrays that transformers' Mixtral and DeepSeek-V3 modules gave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate.routing import MoE, SigmoidBias, load_balancing_loss, router_z_loss


def _load(path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 + 1e-6 * float(b.abs().max()))


@pytest.mark.parametrize("backend", ["loop", "sorted", "grouped", "bmm"])
def test_mixtral_layer(golden, backend) -> None:
    g = _load(golden("_moe-layer") / "mixtral_layer.npz")
    experts, width = g["router_weight"].shape
    layer = MoE(width, g["down_proj"].shape[2], experts, top_k=int(g["top_k"]), backend=backend)
    weights = {"gate.weight": "router_weight", "experts.gate_up_proj": "gate_up_proj", "experts.down_proj": "down_proj"}
    layer.load_state_dict({name: g[source] for name, source in weights.items()})
    x = g["x"].requires_grad_()
    routed = layer.gate(x)
    assert torch.equal(routed.indices, g["topk_indices"])
    _close(routed.logits, g["router_logits"])
    _close(routed.weights, g["topk_weights"])
    y = layer(x)
    _close(y, g["output"])
    parameters = [x, layer.gate.weight, layer.experts.gate_up_proj, layer.experts.down_proj]
    found = torch.autograd.grad(y, parameters, g["grad_output"])
    for gradient, name in zip(found, ("grad_x", "grad_router", "grad_gate_up", "grad_down"), strict=True):
        _close(gradient, g[name])


def test_mixtral_losses(golden) -> None:
    g = _load(golden("_moe-layer") / "mixtral_layer.npz")
    logits = g["router_logits"].requires_grad_()
    loss = load_balancing_loss(logits, g["topk_indices"], normalise="mixtral", given="logits")
    _close(loss, g["load_balance_loss"])
    _close(torch.autograd.grad(loss, logits)[0], g["grad_load_balance_logits"])
    mask = g["attention_mask"][0].bool()
    masked = load_balancing_loss(logits, g["topk_indices"], mask, normalise="mixtral", given="logits")
    _close(masked, g["load_balance_loss_masked"])
    z = router_z_loss(logits)
    _close(z, g["router_z_loss"])
    _close(torch.autograd.grad(z, logits)[0], g["grad_z_logits"])


def test_deepseek_v3_router(golden) -> None:
    g = _load(golden("_moe-layer") / "deepseek_v3_router.npz")
    experts, width = g["weight"].shape
    gate = SigmoidBias(
        width,
        experts,
        int(g["top_k"]),
        n_groups=int(g["n_group"]),
        topk_groups=int(g["topk_group"]),
        scale=float(g["scale"]),
    )
    gate.load_state_dict({"weight": g["weight"], "bias": g["bias"]})
    routed = gate(g["x"])
    _close(routed.logits, g["router_logits"])
    order, expected = routed.indices.argsort(-1), g["topk_indices"].argsort(-1)
    assert torch.equal(routed.indices.gather(-1, order), g["topk_indices"].gather(-1, expected))
    _close(routed.weights.gather(-1, order), g["topk_weights"].gather(-1, expected))
