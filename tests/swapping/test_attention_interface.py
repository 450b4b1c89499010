"""Names in transformers' attention and mask interfaces, and what the functions behind them do with arguments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from attentions import squared
from tiny_models import build, inputs, llama, tokens

import softgate
from softgate.errors import ArgumentValueError, StateError
from softgate.swapping import attention_interface as interface
from softgate.swapping.attention_methods import AttentionChoice, attention_methods, choose_attention

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def names() -> list[str]:
    return interface.register_all()


def test_both_spellings_of_every_method_are_registered_with_a_mask(names: list[str]) -> None:
    expected = {"softmax", "stablemax", "lssar", *attention_methods()}
    for name in expected:
        assert {f"softgate:{name}", f"softgate_{name}"} <= set(names)
    attention, masks = transformers.AttentionInterface(), transformers.AttentionMaskInterface()
    assert all(name in attention and name in masks for name in names)
    assert not any("gated" in name for name in names)


@pytest.mark.parametrize("key", ["softgate:sigmoid", "softgate_lssar"])
def test_models_take_the_names(names: list[str], key: str, tmp_path: Path) -> None:
    model, ids = build("llama"), tokens()
    base = model(ids).logits
    model.set_attn_implementation(key)
    assert model.config._attn_implementation == key
    changed = model(ids).logits
    assert (changed - base).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, attn_implementation=key)
    assert torch.equal(again(ids).logits, changed)
    last = torch.cat([ids[:, :-1], ids[:, -1:] - 1], 1)
    assert torch.equal(model(last).logits[:, :-1], changed[:, :-1])


def test_a_name_gives_what_swap_gives(names: list[str]) -> None:
    named, batch = build("qwen3"), inputs("qwen3")
    named.set_attn_implementation("softgate_sigmoid")
    swapped = softgate.swap(build("qwen3"), attention="sigmoid")
    assert torch.equal(named(**batch).logits, swapped(**batch).logits)


def _call(choice: AttentionChoice, module: Any = None, mask: Any = None, **options: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(1, 2, 4, 3, generator=generator) for _ in range(3))
    function = interface.interface_function(choice)
    return function(module or torch.nn.Module(), q, k, v, mask, **options)[0]


SOFTMAX = choose_attention("softmax", {})


@pytest.mark.parametrize("name", ["softcap", "s_aux", "head_mask", "cu_seq_lens_q", "cache", "something_new"])
def test_unknown_arguments_are_refused_unless_none(name: str) -> None:
    _call(SOFTMAX, **{name: None})
    with pytest.raises(StateError, match=name):
        _call(SOFTMAX, **{name: torch.ones(1)})


def test_harmless_arguments_are_not() -> None:
    plain = _call(SOFTMAX)
    assert torch.equal(_call(SOFTMAX, position_ids=torch.arange(4), use_cache=True, num_items_in_batch=3), plain)


def test_position_bias_is_added_to_the_scores() -> None:
    bias = torch.randn(1, 2, 4, 4)
    keep = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    expected = _call(SOFTMAX, mask=bias.masked_fill(~keep, float("-inf")))
    torch.testing.assert_close(_call(SOFTMAX, mask=keep, position_bias=bias), expected)
    most_negative = torch.zeros(1, 1, 4, 4).masked_fill(~keep, torch.finfo(torch.float32).min)
    torch.testing.assert_close(_call(SOFTMAX, mask=most_negative, position_bias=bias), expected)
    torch.testing.assert_close(_call(SOFTMAX, position_bias=bias), _call(SOFTMAX, mask=bias))


def test_t5_with_softmax_is_t5() -> None:
    model, batch = build("t5"), inputs("t5")
    for block in (*model.encoder.block, *model.decoder.block):
        bias = getattr(block.layer[0].SelfAttention, "relative_attention_bias", None)
        if bias is not None:
            torch.nn.init.normal_(bias.weight, std=2.0)
    base = model(**batch).logits
    assert (softgate.swap(model, attention="softmax")(**batch).logits - base).abs().max() < 1e-4


def test_the_most_negative_number_means_hidden() -> None:
    """Masks of floats hold finfo.min, which a method that is not a softmax must not take for a score."""
    keep = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    choice = choose_attention(squared, {})
    for dtype in (torch.float32, torch.bfloat16):
        floats = torch.zeros(1, 1, 4, 4, dtype=dtype).masked_fill(~keep, torch.finfo(dtype).min)
        torch.testing.assert_close(_call(choice, mask=floats), _call(choice, mask=keep))


class _Causal(torch.nn.Module):
    is_causal = True


def test_causality_without_a_mask() -> None:
    keep = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    torch.testing.assert_close(_call(SOFTMAX, _Causal()), _call(SOFTMAX, mask=keep))
    torch.testing.assert_close(_call(SOFTMAX, _Causal(), is_causal=False), _call(SOFTMAX))
    function = interface.interface_function(SOFTMAX)
    q, k = torch.randn(1, 2, 2, 3), torch.randn(1, 2, 4, 3)
    with pytest.raises(StateError, match="2 queries and 4 keys"):
        function(_Causal(), q, k, k, None)
    torch.testing.assert_close(function(_Causal(), q[:, :, :1], k, k, None)[0], _one_query(q[:, :, :1], k))


def _one_query(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, k).transpose(1, 2)


def test_the_mask_is_never_left_out_of_a_causal_model() -> None:
    mask = interface.boolean_mask(batch_size=1, q_length=4, kv_length=4, allow_is_causal_skip=True)
    assert mask is not None and mask.dtype is torch.bool and torch.equal(mask[0, 0], torch.ones(4, 4).tril().bool())


def test_a_mask_of_padding_alone_has_one_row() -> None:
    from transformers.masking_utils import bidirectional_mask_function

    options = {"batch_size": 2, "q_length": 3, "kv_length": 3, "mask_function": bidirectional_mask_function}
    keep = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.equal(interface.boolean_mask(**options, attention_mask=keep), keep[:, None, None])
    assert interface.boolean_mask(**options, allow_is_bidirectional_skip=True) is None


def test_a_linear_attention_goes_where_only_padding_is_masked() -> None:
    batch = inputs("bert")
    softgate.swap(build("bert"), attention="norm_aware_linear")(**batch)
    with pytest.raises(StateError, match="do not factor over the keys"):
        softgate.swap(build("llama"), attention="norm_aware_linear")
    with pytest.raises(StateError, match="nothing can be added to scores"):
        softgate.swap(build("t5"), attention="norm_aware_linear")


def test_gated_has_no_name_of_its_own() -> None:
    with pytest.raises(StateError, match=r"softgate\.swap"):
        interface.gated_function("sdpa", 2.0)(torch.nn.Module(), *(torch.ones(1, 1, 1, 1),) * 3, None)


@pytest.mark.parametrize(("name", "length"), [("llama", 24), ("gpt2", 24), ("bert", 24), ("t5", 24), ("vit", 17)])
def test_the_length_a_model_is_made_for(name: str, length: int) -> None:
    module = build(name)
    assert interface.context_length(module) == length
    assert interface.context_length(torch.nn.Linear(1, 1)) is None


def test_methods_that_need_a_length_get_it_or_ask_for_it() -> None:
    choice = choose_attention("sigmoid", {})
    assert choice.with_length(7) == {"seq_len": 7}
    with pytest.raises(ArgumentValueError, match="seq_len"):
        choice.with_length(None)
    for given in ({"seq_len": 5}, {"bias": -2.0}, {"seq_len": 5, "bias": "neg_log_n"}):
        assert choose_attention("sigmoid", given).with_length(7) == given
    assert choose_attention("clipped", {}).with_length(7) == {"alpha": 4.0, "max_seq_len": 7}
    assert choose_attention("clipped", {"gamma": -0.03}).with_length(7) == {"gamma": -0.03}
    assert choose_attention("lssa", {}).with_length(None) == {"reweight_power": None}


@pytest.mark.parametrize(("name", "n"), [("llama", 24), ("vit", 17)])
def test_sigmoid_attention_in_a_model_has_the_models_length(name: str, n: int) -> None:
    batch = inputs(name)
    implied = softgate.swap(build(name), attention="sigmoid")(**batch).logits
    explicit = softgate.swap(build(name), attention="sigmoid", attention_options={"bias": -math.log(n)})(**batch).logits
    torch.testing.assert_close(implied, explicit)
    with pytest.raises(StateError, match="seq_len"):
        softgate.swap(torch.nn.MultiheadAttention(8, 2), attention="sigmoid")
    softgate.swap(torch.nn.MultiheadAttention(8, 2), attention="sigmoid", attention_options={"seq_len": 9})


def test_options_are_part_of_the_key() -> None:
    plain = AttentionChoice("sigmoid", "attention", squared, {}).implementation
    biased = AttentionChoice("sigmoid", "attention", squared, {"bias": -1.0}).implementation
    assert plain == "softgate:sigmoid" and biased.startswith("softgate:sigmoid#") and "/" not in biased
    assert biased == AttentionChoice("sigmoid", "attention", squared, {"bias": -1.0}).implementation


def test_a_normalizer_and_an_attention_of_one_name_stay_apart() -> None:
    model, ids = softgate.swap(build("llama"), attention="clipped_softmax"), tokens()
    expected = model(ids).logits.detach()
    other = softgate.swap(build("llama"), normalizer="clipped_softmax")
    assert (other(ids).logits - expected).abs().max() > 1e-3 and torch.equal(model(ids).logits, expected)


def test_two_models_may_have_different_options() -> None:
    one = softgate.swap(build("llama"), attention=squared, attention_options={"power": 2.0})
    ids = tokens()
    expected = one(ids).logits.detach()
    other = softgate.swap(build("llama"), attention=squared, attention_options={"power": 1.0})
    assert (other(ids).logits - expected).abs().max() > 1e-3
    assert torch.equal(one(ids).logits, expected)


def test_loading_transformers_twice_is_fine() -> None:
    assert interface.load_transformers() is interface.load_transformers()
    assert llama().config._attn_implementation == "sdpa"
