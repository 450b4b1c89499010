"""Attention of transformers models: every model, every method that has a name, forward, backward, back again."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attentions import squared
from tiny_models import DECODERS, MODELS, build, inputs, tokens

import softgate
from softgate.errors import StateError
from softgate.swapping.attention_methods import attention_methods
from softgate.swapping.hf_probes import configurations

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
swap_table = importlib.import_module("swap_table")

METHODS = ["gated", "softmax", *attention_methods()]
#: A method that is not softmax stands for all of them where trying each would only cost time.
SOME = ["gated", squared]


def _id(method: Any) -> str:
    return method if isinstance(method, str) else method.__name__


@pytest.mark.parametrize("method", [*METHODS, squared], ids=_id)
@pytest.mark.parametrize("name", MODELS)
def test_forward_and_backward(name: str, method: Any) -> None:
    model, batch = build(name), inputs(name)
    base = model(**batch).logits.detach()
    if method is not squared and not swap_table.read()[method][name]:  # docs/swap.md says that it is refused
        with pytest.raises(StateError, match="cannot be put into"):
            softgate.swap(model, attention=method)
        return
    softgate.swap(model, attention=method)
    output = model.train()(**batch)
    output.loss.backward()
    assert output.logits.isfinite().all()
    own = [p for p in model.parameters() if p.grad is not None]
    assert len(own) > 10 and all(p.grad.isfinite().all() for p in own)
    changed = float((model.eval()(**batch).logits - base).detach().abs().max())
    assert changed == 0.0 if method == "gated" else changed < 1e-5 if method == "softmax" else changed > 1e-3


def test_the_page_lists_every_method() -> None:
    assert list(swap_table.read()) == swap_table.rows(), "run: python tools/swap_table.py"


@pytest.mark.parametrize("row", swap_table.rows())
def test_the_page_is_right_about_timm_and_torch(row: str) -> None:
    for model in ("torch", "timm"):
        if model == "timm":
            pytest.importorskip("timm")
        assert swap_table.can(row, model) == swap_table.read()[row][model], "run: python tools/swap_table.py"


@pytest.mark.parametrize("name", MODELS)
def test_a_gate_starts_at_one_exactly_and_learns(name: str) -> None:
    model, batch = build(name), inputs(name)
    base = model(**batch).logits.detach()
    softgate.swap(model, attention="gated")
    assert torch.equal(model(**batch).logits, base)
    gates = {key: value for key, value in model.named_parameters() if "softgate_gate" in key}
    assert len(gates) == {"t5": 6}.get(name, 2)
    model(**batch).loss.backward()
    assert all(gate.grad is not None and gate.grad.abs().max() > 0 for gate in gates.values())
    with torch.no_grad():
        for gate in gates.values():
            gate.normal_()
    assert (model(**batch).logits - base).abs().max() > 1e-3


def test_the_gate_is_what_it_says() -> None:
    """σ gates of value s/2 on every head scale the attention output, which o_proj maps linearly."""
    model, ids = build("llama"), tokens()
    base = model.model.layers[0].self_attn(
        torch.ones(1, 3, 32), position_embeddings=model.model.rotary_emb(torch.ones(1, 3, 32), torch.arange(3)[None])
    )[0]
    softgate.swap(model, attention="gated", attention_options={"granularity": "headwise", "scale": 1.0})
    attention = model.model.layers[0].self_attn
    assert attention.softgate_gate.weight.shape == (4, 32)
    halved = attention(
        torch.ones(1, 3, 32), position_embeddings=model.model.rotary_emb(torch.ones(1, 3, 32), torch.arange(3)[None])
    )[0]
    torch.testing.assert_close(halved, base / 2)
    assert model(ids).logits.isfinite().all()


@pytest.mark.parametrize("base", ["eager", "sdpa"])
def test_a_gate_keeps_the_softmax_the_model_had(base: str) -> None:
    model, batch = build("gpt2"), inputs("gpt2")
    model.set_attn_implementation(base)
    logits = model(**batch).logits.detach()
    softgate.swap(model, attention="gated")
    assert model.config._attn_implementation.endswith(f"+{base}")
    assert torch.equal(model(**batch).logits, logits)
    assert softgate.unswap(model).config._attn_implementation == base


@pytest.mark.parametrize("method", [*SOME, "softmax"], ids=_id)
@pytest.mark.parametrize("name", MODELS)
def test_unswap_restores_the_very_objects(name: str, method: Any) -> None:
    model, batch = build(name), inputs(name)
    logits = model(**batch).logits.detach()
    parts = {key: (id(module), type(module)) for key, module in model.named_modules()}
    attributes = {key: set(vars(module)) for key, module in model.named_modules()}
    weights = {key: (id(p), p.detach().clone()) for key, p in model.named_parameters()}
    implementations = [config._attn_implementation for config in configurations(model)]
    assert softgate.unswap(softgate.swap(model, attention=method)) is model
    assert {key: (id(module), type(module)) for key, module in model.named_modules()} == parts
    assert {key: set(vars(module)) for key, module in model.named_modules()} == attributes
    assert [config._attn_implementation for config in configurations(model)] == implementations
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    for key, parameter in model.named_parameters():
        assert id(parameter) == weights[key][0] and torch.equal(parameter, weights[key][1])
    assert torch.equal(model(**batch).logits, logits)


def test_unswap_keeps_the_training_of_the_models_own_weights() -> None:
    model = softgate.swap(build("llama"), attention="gated")
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    trained = model.lm_head.weight.detach().clone()
    assert torch.equal(softgate.unswap(model).lm_head.weight, trained)


def _greedy(model: Any, ids: torch.Tensor, keep: torch.Tensor, steps: int) -> torch.Tensor:
    """Decode by computing everything anew for every token."""
    for _ in range(steps):
        positions = (keep.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=keep, position_ids=positions, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        keep = torch.cat([keep, torch.ones_like(keep[:, :1])], 1)
    return ids


@pytest.mark.parametrize("method", [*SOME, "softmax"], ids=_id)
@pytest.mark.parametrize("name", DECODERS)
def test_generating_from_a_cache_is_computing_everything(name: str, method: Any) -> None:
    model = softgate.swap(build(name), attention=method)
    if method == "gated":
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "softgate_gate" in key:
                    parameter.normal_()
    batch = inputs(name)
    ids, keep = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        out = model.generate(input_ids=ids, attention_mask=keep, **options)
        assert torch.equal(out, _greedy(model, ids, keep, 6))
        static = model.generate(input_ids=ids, attention_mask=keep, cache_implementation="static", **options)
    assert torch.equal(static, out)


@pytest.mark.parametrize("method", SOME, ids=_id)
def test_t5_generates_from_a_cache_too(method: Any) -> None:
    model, batch = softgate.swap(build("t5"), attention=method), inputs("t5")
    del batch["labels"]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with torch.no_grad():
        assert torch.equal(
            model.generate(**batch, **options, use_cache=True), model.generate(**batch, **options, use_cache=False)
        )


@pytest.mark.parametrize("method", SOME, ids=_id)
@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_gradient_checkpointing_changes_no_gradient(name: str, method: Any) -> None:
    model, batch = softgate.swap(build(name), attention=method), inputs(name)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout"):
            module.dropout = module.dropout if isinstance(module.dropout, torch.nn.Module) else 0.0
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model.train()(**batch, **({} if name == "bert" else {"use_cache": False})).loss.backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "t5"])
def test_weights_come_out_when_asked_for(name: str) -> None:
    eager, batch = build(name), inputs(name)
    eager.set_attn_implementation("eager")
    expected = eager(**batch, output_attentions=True)
    for method in ("softmax", "gated"):
        got = softgate.swap(build(name), attention=method)(**batch, output_attentions=True)
        for field in ("attentions", "decoder_attentions", "cross_attentions", "encoder_attentions"):
            pairs = zip(getattr(got, field, None) or (), getattr(expected, field, None) or (), strict=True)
            for weights, reference in pairs:
                seen = weights.sum(-1) > 0  # a query without any key: 0 here, uniform there
                torch.testing.assert_close(weights[seen], reference[seen], rtol=1e-4, atol=1e-5)
                assert seen.float().mean() > 0.5


@pytest.mark.parametrize("method", SOME, ids=_id)
def test_a_deep_copy_is_swapped_and_unswaps_by_itself(method: Any) -> None:
    model, batch = build("qwen3"), inputs("qwen3")
    base = model(**batch).logits.detach()
    softgate.swap(model, attention=method)
    swapped = model(**batch).logits.detach()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**batch).logits, swapped)
    softgate.unswap(twin)
    assert torch.equal(twin(**batch).logits, base)
    assert torch.equal(model(**batch).logits, swapped)
    softgate.unswap(model)
    assert torch.equal(model(**batch).logits, base)


def test_half_precision_and_autocast() -> None:
    for method in SOME:
        model = softgate.swap(build("llama").to(torch.bfloat16), attention=method)
        assert model(tokens()).logits.dtype is torch.bfloat16
        model = softgate.swap(build("llama"), attention=method)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(tokens()).logits.isfinite().all()


def test_packed_rows_stay_apart() -> None:
    """Two texts in one row, told apart by their positions alone, as trainers pack them."""
    model = softgate.swap(build("llama"), attention=squared)
    ids, positions = tokens(1, 8), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    packed = model(ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed[:, 4:], model(ids[:, 4:], use_cache=False).logits, rtol=1e-4, atol=1e-5)


def test_a_sliding_window_is_kept() -> None:
    model = build("qwen3")
    model.config.use_sliding_window, model.config.sliding_window = True, 3
    model.config.layer_types = ["sliding_attention"] * 2
    torch.manual_seed(0)
    model = softgate.swap(type(model)(model.config).eval(), attention=squared)
    ids = tokens(1, 9)
    other = torch.cat([(ids[:, :1] - 3 + 1) % 50 + 3, ids[:, 1:]], 1)
    difference = (model(ids).logits - model(other).logits).abs().amax(-1)[0]
    assert (difference[:5] > 1e-5).all()  # two layers of three keys each reach four tokens back
    assert (difference[5:] < 1e-5).all()
