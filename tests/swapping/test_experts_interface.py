"""transformers' experts computed by softgate, and its routers by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import build, mixtral, tokens

import softgate

pytest.importorskip("transformers")

from softgate.swapping.experts_interface import activation_name, register_experts


def _model(name: str) -> Any:
    torch.manual_seed(0)
    return mixtral().eval() if name == "mixtral" else build(name)


def _run(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = tokens()
    model.zero_grad()
    output = model(ids, labels=ids, output_router_logits=True)
    output.loss.backward()
    return output.logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_give_what_transformers_gives(name: str) -> None:
    model = _model(name)
    model.set_experts_implementation("eager")
    expected, gradients = _run(model)
    model.set_experts_implementation(register_experts())
    logits, found = _run(model)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-8)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_the_default_router_changes_nothing(name: str) -> None:
    model, ids = _model(name), tokens()
    base = model(ids).logits
    softgate.swap(model, router="softmax")
    assert torch.equal(model(ids).logits, base)
    softgate.unswap(model)


@pytest.mark.parametrize(
    ("router", "options"),
    [
        ("sigmoid", {"scale": 2.5}),
        ("sigmoid", {"n_groups": 2, "topk_groups": 1}),
        ("dense_to_sparse", {"temperature": 0.5}),
        ("activation", {"activation": "tanh"}),
        ("softmax", {"renorm": "none"}),
    ],
)
def test_routers_by_name_route_otherwise_and_train(router: str, options: dict[str, Any]) -> None:
    model, ids = _model("qwen3_moe"), tokens()
    base = model(ids).logits
    softgate.swap(model, router=router, router_options=options)
    model.set_experts_implementation(register_experts())
    output = model(ids, labels=ids)
    assert (output.logits - base).abs().max() > 1e-3
    output.loss.backward()
    assert float(model.model.layers[0].mlp.gate.weight.grad.abs().max()) > 0


class _Experts(torch.nn.Module):
    """What transformers' decorator gives a module, for cases no tiny model has."""

    def __init__(self, transposed: bool, gate: bool, act: torch.nn.Module) -> None:
        super().__init__()
        rows = 8 if gate else 4
        up = torch.randn(3, 6, rows) if transposed else torch.randn(3, rows, 6)
        self.register_parameter("gate_up_proj" if gate else "up_proj", torch.nn.Parameter(up))
        self.down_proj = torch.nn.Parameter(torch.randn(3, 4, 6) if transposed else torch.randn(3, 6, 4))
        for name, width in (("gate_up_proj" if gate else "up_proj", rows), ("down_proj", 6)):
            self.register_parameter(f"{name}_bias", torch.nn.Parameter(torch.randn(3, width)))
        self.act_fn, self.num_experts, self.has_gate, self.has_bias = act, 3, gate, True
        self.is_transposed, self.is_concatenated, self.has_post_expert_norm = transposed, True, False
        self._is_expert_parallel = True


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("gate", [False, True])
def test_layouts_biases_and_foreign_experts(transposed: bool, gate: bool) -> None:
    from transformers.integrations import moe

    from softgate.swapping.experts_interface import experts_forward

    _Experts._apply_gate = moe._default_apply_gate  # type: ignore[attr-defined]
    experts = _Experts(transposed, gate, torch.nn.GELU())
    x, index = torch.randn(5, 6), torch.tensor([[0, 1], [1, 3], [3, 3], [2, 0], [1, 2]])
    weights = torch.rand(5, 2).masked_fill(index == 3, 0.0)
    with torch.no_grad():
        expected = moe.batched_mm_experts_forward(experts, x, index, weights)
        torch.testing.assert_close(experts_forward(experts, x, index, weights), expected, rtol=1e-5, atol=1e-5)


def test_experts_with_a_gate_of_their_own_are_left_to_transformers() -> None:
    from transformers.integrations import moe

    _Experts._apply_gate = lambda self, h: h[:, :4].tanh() * h[:, 4:]  # type: ignore[attr-defined]
    experts = _Experts(False, True, torch.nn.SiLU())
    assert activation_name(experts) is None
    x, index, weights = torch.randn(8, 8), torch.randint(3, (8, 2)), torch.rand(8, 2)
    experts.gate_up_proj = torch.nn.Parameter(torch.randn(3, 8, 8))
    experts.down_proj = torch.nn.Parameter(torch.randn(3, 8, 4))
    experts.down_proj_bias = torch.nn.Parameter(torch.randn(3, 8))
    from softgate.swapping.experts_interface import experts_forward

    with torch.no_grad():
        expected = moe.batched_mm_experts_forward(experts, x, index, weights)
        torch.testing.assert_close(experts_forward(experts, x, index, weights), expected, rtol=1e-5, atol=1e-5)
