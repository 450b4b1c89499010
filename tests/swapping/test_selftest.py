"""No swap of attention is kept that sees more than the original did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attentions import blind, broken, causal_only, no_masks, over_queries, softmax_then_mask, squared
from tiny_models import MODELS, build, inputs, timm_vit
from torch import nn

import softgate
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.swapping import transformers_models
from softgate.swapping.selftest import Probe, check_reach, frozen

pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("name", "method", "reason"),
    [
        ("llama", blind, "see future tokens"),
        ("gpt2", blind, "see future tokens"),
        ("t5", blind, "see future tokens"),
        ("bert", blind, "see padding"),
        ("qwen3_moe", causal_only, "see padding"),
        ("llama", softmax_then_mask, "see future tokens"),
        ("bert", softmax_then_mask, "see padding"),
        ("qwen3", over_queries, "decoding from a cache"),
        ("vit", broken, "NaN"),
        ("llama", no_masks, "sums over all keys"),
        ("bert", no_masks, "sums over all keys"),
    ],
)
def test_what_leaks_is_refused_and_leaves_no_trace(name: str, method: Any, reason: str) -> None:
    model, batch = build(name), inputs(name)
    base, attributes = model(**batch).logits.detach(), {key: set(vars(m)) for key, m in model.named_modules()}
    with pytest.raises(StateError, match=f"{method.__name__}.*{reason}"):
        softgate.swap(model, attention=method)
    assert torch.equal(model(**batch).logits, base)
    assert {key: set(vars(m)) for key, m in model.named_modules()} == attributes
    assert model.config._attn_implementation == "sdpa"
    softgate.swap(model, attention="gated")  # the model is free for another swap


def test_dropout_that_a_method_does_not_have_is_found_before_training() -> None:
    model = build("bert")
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.1
    with pytest.raises(StateError, match="dropout_p must be 0"):
        softgate.swap(model, attention="norm_aware_linear")
    with pytest.raises(StateError, match="dropout_p must be 0"):
        softgate.swap(nn.MultiheadAttention(8, 2, dropout=0.1), attention=_no_dropout)


def _no_dropout(*tensors: Any, dropout_p: float = 0.0, **options: Any) -> torch.Tensor:
    if dropout_p:
        raise ArgumentValueError("dropout_p must be 0")
    return squared(*tensors, **options)


def test_a_linear_attention_is_welcome_where_there_is_no_mask() -> None:
    model, batch = build("vit"), inputs("vit")
    base = model(**batch).logits
    assert (softgate.swap(model, attention=no_masks)(**batch).logits - base).abs().max() > 1e-3


@pytest.mark.parametrize(("method", "reason"), [(blind, "see future"), (causal_only, "see padding")])
def test_modules_of_torch_and_timm_are_tested_too(method: Any, reason: str) -> None:
    layer = nn.MultiheadAttention(8, 2)
    with pytest.raises(StateError, match=reason):
        softgate.swap(layer, attention=method)
    assert type(layer) is nn.MultiheadAttention and "softgate_choice" not in vars(layer)
    pytest.importorskip("timm")
    model = timm_vit()
    with pytest.raises(StateError, match=reason):
        softgate.swap(model, attention=method)
    assert type(model.blocks[1].attn).__name__ == "Attention"


def test_without_a_mask_function_the_future_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap of registering the attention function alone: the self-test must notice it."""
    monkeypatch.setattr(transformers_models, "register", lambda choice, base: _register_without_mask(choice))
    with pytest.raises(StateError, match=r"no mask function|see future tokens"):
        softgate.swap(build("llama"), attention=blind)


def _register_without_mask(choice: Any) -> str:
    from transformers import AttentionInterface

    from softgate.swapping.attention_interface import interface_function

    AttentionInterface.register("softgate:maskless", interface_function(choice))
    return "softgate:maskless"


def test_the_callers_state_is_untouched() -> None:
    model = build("bert").train()
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    softgate.swap(model, attention=squared)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(KeyError), frozen(model):
        raise KeyError
    assert [module.training for module in model.modules()] == modes


def test_a_test_that_shows_nothing_is_no_proof() -> None:
    nowhere = [("attention", torch.zeros(1, 3, dtype=torch.bool))]
    with pytest.raises(StateError, match="shows nothing"):
        check_reach("attention='x'", Probe("future tokens", {}, {}), nowhere, nowhere)


def test_every_attention_must_be_reached() -> None:
    reached = [("attention", torch.ones(1, 3, dtype=torch.bool))]
    with pytest.raises(StateError, match="0 of 1"):
        check_reach("attention='x'", Probe("future tokens", {}, {}), reached, [])


def test_own_positions_may_be_seen_and_others_not() -> None:
    own = torch.tensor([[False, False, True]])
    probe = Probe("padding", {}, {}, own=own)
    some = [("attention", torch.tensor([[True, False, False]]))]
    check_reach("x", probe, some, [("attention", torch.tensor([[True, False, True]]))])
    with pytest.raises(StateError, match="see padding"):
        check_reach("x", probe, some, [("attention", torch.tensor([[False, True, False]]))])


def test_other_inputs_need_a_sample() -> None:
    model = build("llama")
    type_of = type("Odd", (type(model.model),), {"main_input_name": "input_features"})
    model.model.__class__ = type_of
    with pytest.raises(ArgumentTypeError, match=r"input_features.*sample="):
        softgate.swap(model, attention="gated")
    embeddings = torch.randn(1, 4, 32)
    softgate.swap(model, attention="gated", sample={"inputs_embeds": embeddings})
    assert "softgate_gate" in dict(model.model.layers[0].self_attn.named_children())


def test_meta_models_cannot_be_tested() -> None:
    with torch.device("meta"):
        model = MODELS["llama"][0]()
    with pytest.raises(StateError, match="meta"):
        softgate.swap(model, attention="gated")
