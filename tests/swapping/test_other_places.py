"""Activations, losses, routers, normalizers; several at once; and the errors of swap itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from attentions import squared
from tiny_models import MODELS, build, inputs, mixtral, timm_vit, tokens
from torch import Tensor, nn

import softgate
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.losses import stablemax_cross_entropy
from softgate.normalizers import stablemax
from softgate.swapping.api import swaps

pytest.importorskip("transformers")


class Scaled(nn.Module):
    """An activation with a parameter."""

    def __init__(self, slope: float = 0.3) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x.clamp(min=0)


# Activations.


@pytest.mark.parametrize(("name", "places"), [("llama", 2), ("gpt2", 2), ("bert", 2), ("vit", 2), ("t5", 4)])
def test_activations_are_replaced_and_come_back(name: str, places: int) -> None:
    model, batch = build(name), inputs(name)
    base, modules = model(**batch).logits.detach(), dict(model.named_modules())
    softgate.swap(model, activation=Scaled, activation_options={"slope": 0.1})
    assert sum(type(module) is Scaled for module in model.modules()) == places
    assert (model(**batch).logits - base).abs().max() > 1e-3
    model(**batch).loss.backward()
    slopes = [parameter for key, parameter in model.named_parameters() if key.endswith(".slope")]
    assert len(slopes) == places and all(slope.grad is not None and slope.grad != 0 for slope in slopes)
    softgate.unswap(model)
    assert torch.equal(model(**batch).logits, base)
    after = dict(model.named_modules())
    assert after.keys() == modules.keys() and all(after[key] is module for key, module in modules.items())


def test_experts_compute_with_the_new_activation() -> None:
    model, ids = build("qwen3_moe"), tokens()
    base = model(ids).logits
    assert (softgate.swap(model, activation=torch.relu)(ids).logits - base).abs().max() > 1e-3


def test_poolers_and_gates_keep_their_tanh() -> None:
    model = softgate.swap(build("bert"), activation=nn.ReLU)
    assert type(model.bert.pooler.activation) is nn.Tanh


def test_a_module_is_copied_to_every_place() -> None:
    own = Scaled(0.7)
    model = softgate.swap(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.GELU())), activation=own)
    first, second = model[1], model[2][0]
    assert type(first) is type(second) is Scaled and len({id(first), id(second), id(own)}) == 3
    assert first.slope == own.slope
    with pytest.raises(StateError, match="module has its own"):
        softgate.swap(nn.Sequential(nn.ReLU()), activation=own, activation_options={"slope": 1.0})


def test_dtype_and_mode_follow_the_model() -> None:
    model = softgate.swap(nn.Sequential(nn.Linear(2, 2), nn.ReLU()).double().eval(), activation=Scaled)
    assert model[1].slope.dtype is torch.float64 and not model[1].training


def test_timm_activations() -> None:
    pytest.importorskip("timm")
    model, images = timm_vit().eval(), torch.randn(1, 3, 16, 16)
    base = model(images)
    assert (softgate.swap(model, activation=Scaled)(images) - base).abs().max() > 1e-3
    assert torch.equal(softgate.unswap(model)(images), base)


def test_functions_get_their_options() -> None:
    model = nn.Sequential(nn.ReLU())
    softgate.swap(model, activation=nn.functional.leaky_relu, activation_options={"negative_slope": 0.5})
    assert model(torch.tensor([-2.0])) == -1.0 and "leaky_relu" in repr(model)


def test_a_model_without_activations_is_refused() -> None:
    with pytest.raises(StateError, match="no activation module"):
        softgate.swap(nn.Linear(2, 2), activation=nn.ReLU)


# Losses.


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_a_causal_loss_is_shifted(name: str) -> None:
    model, batch = build(name), inputs(name)
    softgate.swap(model, loss="stablemax")
    output = model(**batch)
    expected = stablemax_cross_entropy(output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    scored = int((batch["labels"][:, 1:] != -100).sum())
    torch.testing.assert_close(model(**batch, num_items_in_batch=torch.tensor(2 * scored)).loss, expected / 2)
    output.loss.backward()
    softgate.unswap(model)
    assert not torch.isclose(model(**batch).loss, expected)


def test_a_classifiers_loss_is_not_shifted() -> None:
    model, batch = build("vit"), inputs("vit")
    output = softgate.swap(model, loss=stablemax_cross_entropy, loss_options={"label_smoothing": 0.1})(**batch)
    expected = stablemax_cross_entropy(output.logits, batch["labels"], label_smoothing=0.1)
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(StateError, match="single-label"):
        model(pixel_values=batch["pixel_values"], labels=torch.rand(2, 5))


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_loss_that_is_written_into_the_forward_is_refused(name: str) -> None:
    with pytest.raises(StateError, match="does not use an exchangeable loss_function"):
        softgate.swap(build(name), loss="stablemax")


def test_models_without_a_loss_are_refused() -> None:
    with pytest.raises(StateError, match="computes no loss itself"):
        softgate.swap(nn.Linear(2, 2), loss="stablemax")


# Routers.


def sigmoid_top_k(logits: Tensor, top_k: int, *, normalise: bool = True) -> tuple[Tensor, Tensor]:
    scores, indices = logits.sigmoid().topk(top_k, dim=-1)
    return (scores / scores.sum(-1, keepdim=True) if normalise else scores), indices


class OwnRouter(nn.Module):
    def __init__(self, features: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.linear, self.top_k = nn.Linear(features, experts), top_k

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.linear(hidden)
        scores, indices = logits.softmax(-1).topk(self.top_k, dim=-1)
        return logits, scores, indices


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_routers_route_otherwise_and_keep_their_logits(name: str) -> None:
    torch.manual_seed(0)
    model, ids = (mixtral().eval() if name == "mixtral" else build(name)), tokens()
    base = model(ids, output_router_logits=True, labels=ids)
    softgate.swap(model, router=sigmoid_top_k, router_options={"normalise": False})
    routed = model(ids, output_router_logits=True, labels=ids)
    assert (routed.logits - base.logits).abs().max() > 1e-3
    assert torch.equal(routed.router_logits[0], base.router_logits[0])  # before the first exchanged mixture
    assert torch.isclose(routed.aux_loss, base.aux_loss, rtol=0.3) and routed.aux_loss > 0
    routed.loss.backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids).logits, routed.logits)
    assert torch.equal(softgate.unswap(twin)(ids).logits, base.logits)
    softgate.unswap(model)
    assert type(model.model.layers[0].mlp.gate).__name__.endswith(
        "MoeTopKRouter" if name != "mixtral" else "TopKRouter"
    )
    assert torch.equal(model(ids).logits, base.logits)


def test_a_router_of_your_own() -> None:
    model, ids = build("qwen3_moe"), tokens()
    softgate.swap(model, router=OwnRouter)
    output = model(ids, labels=ids, output_router_logits=True)
    output.loss.backward()
    gates = [m for m in model.modules() if isinstance(m, OwnRouter)]
    assert len(gates) == 2 and all(gate.linear.weight.grad.abs().max() > 0 for gate in gates)
    assert len(output.router_logits) == 2
    keys = set(model.state_dict())
    softgate.unswap(model)
    assert keys - set(model.state_dict()) == {
        f"model.layers.{i}.mlp.gate.softgate_router.linear.{part}" for i in (0, 1) for part in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (lambda logits, k: sigmoid_top_k(logits, k + 1), "shapes"),
        (lambda logits, k: (logits[:, :k], torch.full((len(logits), k), 9)), "expert indices"),
        (lambda logits, k: (logits[:, :k], torch.zeros(len(logits), k, dtype=torch.int64)), "twice"),
        (lambda logits, k: (logits[:, :k] / 0, torch.arange(k).expand(len(logits), k)), "finite"),
        (lambda logits, k: logits, "not enough|expected|too many|shapes"),
    ],
)
def test_routers_that_break_the_contract_are_refused(route: Any, reason: str) -> None:
    model, ids = build("qwen3_moe"), tokens()
    base = model(ids).logits
    with pytest.raises((StateError, ValueError), match=reason):
        softgate.swap(model, router=route)
    assert torch.equal(model(ids).logits, base)


def test_probabilities_in_the_place_of_logits_are_refused() -> None:
    class Double(OwnRouter):
        def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, scores, indices = super().forward(hidden)
            return logits.softmax(-1), scores, indices

    with pytest.raises(ArgumentValueError, match="probabilities"):
        softgate.swap(build("qwen3_moe"), router=Double)


def test_a_dense_model_has_no_router() -> None:
    with pytest.raises(StateError, match="Qwen3-MoE and Mixtral"):
        softgate.swap(build("llama"), router=sigmoid_top_k)


# Normalizers.


@pytest.mark.parametrize("name", MODELS)
def test_normalizers_replace_the_softmax_of_attention(name: str) -> None:
    model, batch = build(name), inputs(name)
    base = model(**batch).logits.detach()
    softgate.swap(model, normalizer="stablemax")
    assert (model(**batch).logits - base).abs().max() > 1e-3
    assert torch.equal(softgate.unswap(model)(**batch).logits, base)
    softgate.swap(model, normalizer=torch.softmax)  # the map it had
    torch.testing.assert_close(model(**batch).logits, base, rtol=1e-3, atol=1e-4)


def test_softmax_modules_are_replaced_along_their_axis() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=0)), torch.randn(5, 3)
    softgate.swap(model, normalizer="stablemax")
    assert torch.equal(model(x), stablemax(model[0](x), 0)) and "stablemax" in repr(model)
    assert type(softgate.unswap(model)[1]) is nn.Softmax
    with pytest.raises(StateError, match="without a dim"):
        softgate.swap(nn.Sequential(nn.Softmax()), normalizer="stablemax")
    with pytest.raises(StateError, match="no attention"):
        softgate.swap(nn.Linear(2, 2), normalizer="stablemax")


def test_softmax_modules_beside_attention_are_replaced_too() -> None:
    model = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.Softmax(-1)])
    softgate.swap(model, normalizer="stablemax")
    assert type(model[0]).__name__ == "SwappedMultiheadAttention" and type(model[1]).__name__ == "RowMap"


# Several at once, and errors.


def test_places_stack_and_come_back_together() -> None:
    model, batch = build("qwen3_moe"), inputs("qwen3_moe")
    base = model(**batch)
    softgate.swap(model, attention="gated", loss="stablemax")
    softgate.swap(model, activation=Scaled, router=sigmoid_top_k)
    assert list(swaps(model)) == ["attention", "loss", "router", "activation"]
    model(**batch).loss.backward()
    softgate.unswap(model)
    again = model(**batch)
    assert torch.equal(again.logits, base.logits) and torch.equal(again.loss, base.loss)
    assert swaps(model) == {}


def test_a_failing_swap_takes_the_others_of_its_call_back() -> None:
    model, ids = build("llama"), tokens()
    base = model(ids).logits
    with pytest.raises(ArgumentValueError, match="loss must be one of"):
        softgate.swap(model, attention="gated", activation=Scaled, loss="nonsense")
    assert torch.equal(model(ids).logits, base) and swaps(model) == {}
    assert not any("softgate" in key for key in model.state_dict())


def test_swapping_twice_is_refused() -> None:
    model = softgate.swap(build("llama"), attention="gated")
    with pytest.raises(StateError, match=r"attention is swapped already \('gated'\).*unswap"):
        softgate.swap(model, attention=squared)
    with pytest.raises(StateError, match="only one of them"):
        softgate.swap(model, normalizer="stablemax")
    softgate.swap(softgate.unswap(model), attention=squared)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ArgumentValueError, "attention=.*normalizer="),
        ({"attention": "nonsense"}, ArgumentValueError, "'gated'.*'softmax'.*got 'nonsense'"),
        ({"attention": "../gated"}, ArgumentValueError, "must be one of"),
        ({"attention": 3}, ArgumentTypeError, "attention must be a name"),
        ({"activation": "nonsense"}, ArgumentValueError, "activation must be one of"),
        ({"loss": "nonsense"}, ArgumentValueError, "'collapse_free'.*'stablemax'"),
        ({"loss": 1}, ArgumentTypeError, "loss must be a name"),
        ({"router": "nonsense"}, ArgumentValueError, "router must be one of"),
        ({"normalizer": "nonsense"}, ArgumentValueError, "'softmax'.*'stablemax'"),
        ({"normalizer": "log_softmax"}, ArgumentValueError, "normalizer must be one of"),
        ({"attention": "gated", "attention_options": 3}, ArgumentTypeError, "attention_options"),
        ({"attention": "gated", "attention_options": {"gamma": 1}}, ArgumentValueError, "'granularity', 'scale'"),
        ({"attention": "gated", "attention_options": {"scale": -1.0}}, ArgumentValueError, "scale"),
        ({"attention": "gated", "attention_options": {"granularity": "x"}}, ArgumentValueError, "'headwise'"),
        ({"loss": "stablemax", "attention_options": {"scale": 1.0}}, ArgumentValueError, "attention_options needs"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        softgate.swap(build("llama"), **options)


def test_bad_models() -> None:
    with pytest.raises(ArgumentTypeError, match="model must be"):
        softgate.swap("llama", attention="gated")
    for nothing in (build("llama"), nn.Linear(2, 2), None):
        with pytest.raises(StateError, match="nothing is swapped"):
            softgate.unswap(nothing)
    wrapper = nn.ModuleDict({"model": build("llama")})
    with pytest.raises(StateError, match=r"LlamaForCausalLM \(model: call swap on this part itself\)"):
        softgate.swap(wrapper, attention="gated")
