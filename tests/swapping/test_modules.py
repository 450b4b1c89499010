"""nn.MultiheadAttention, nn.Transformer layers and timm's attention."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attentions import squared
from tiny_models import timm_vit
from torch import Tensor, nn

import softgate
from softgate.errors import ArgumentTypeError, StateError

METHODS = ["gated", "softmax", squared]


@pytest.fixture(autouse=True)
def _ordinary_path() -> Iterator[None]:
    """torch's C++ inference path rounds differently; the tests that are about it turn it on."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def _masks(batch: int, length: int, heads: int) -> dict[str, dict[str, Any]]:
    causal = torch.ones(length, length, dtype=torch.bool).triu(1)
    padding = torch.zeros(batch, length, dtype=torch.bool)
    padding[0, -2:] = True
    floats = torch.zeros(length, length).masked_fill(causal, float("-inf"))
    return {
        "none": {},
        "causal": {"attn_mask": causal},
        "hint": {"attn_mask": causal, "is_causal": True},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
        "floats": {"attn_mask": floats, "key_padding_mask": torch.zeros(batch, length).masked_fill(padding, -1e9)},
        "bias": {"attn_mask": torch.randn(batch * heads, length, length)},
    }


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("mask", list(_masks(1, 3, 1)))
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("method", ["gated", "softmax"])
def test_multihead_attention_keeps_its_arguments_and_results(method: str, batch_first: bool, mask: str) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    x = torch.randn(3, 5, 8)
    x = x if batch_first else x.transpose(0, 1)
    options = _masks(3, 5, 2)[mask]
    expected = layer(x, x, x, need_weights=False, **options)[0]
    expected_weights = layer(x, x, x, average_attn_weights=False, **options)[1]
    softgate.swap(layer, attention=method)
    out, nothing = layer(x, x, x, need_weights=False, **options)
    assert nothing is None
    if method == "gated":
        assert torch.equal(out, expected)
    torch.testing.assert_close(out, expected)
    out, weights = layer(x, x, x, average_attn_weights=False, **options)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights, expected_weights)
    torch.testing.assert_close(layer(x, x, x, **options)[1], expected_weights.mean(1))


def test_cross_attention_of_other_widths_and_single_sequences() -> None:
    layer = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True, bias=False)
    q, k, v = torch.randn(2, 3, 8), torch.randn(2, 5, 6), torch.randn(2, 5, 4)
    expected, single = layer(q, k, v), layer(q[0], k[0], v[0])
    for method in ("gated", "softmax"):
        softgate.swap(layer, attention=method)
        for got, wanted in zip((*layer(q, k, v), *layer(q[0], k[0], v[0])), (*expected, *single), strict=True):
            torch.testing.assert_close(got, wanted)
        softgate.unswap(layer)


def test_a_query_without_keys_gives_zero_before_the_projection() -> None:
    layer = softgate.swap(nn.MultiheadAttention(8, 2, batch_first=True), attention="softmax")
    nn.init.ones_(layer.out_proj.bias)
    x, all_padding = torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(layer(x, x, x, key_padding_mask=all_padding)[0], torch.ones(1, 3, 8))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: getattr(method, "__name__", method))
@pytest.mark.parametrize("build", ["encoder", "decoder", "timm"])
def test_swap_and_unswap_whole_models(build: str, method: Any) -> None:
    model, call = _whole(build)
    base = call(model)
    parts = {key: (id(module), type(module), set(vars(module))) for key, module in model.named_modules()}
    weights = {key: id(p) for key, p in model.named_parameters()}
    softgate.swap(model, attention=method)
    out = call(model)
    difference = float((out - base).detach().abs().max())
    assert difference == 0.0 if method == "gated" else difference < 1e-4 if method == "softmax" else difference > 1e-3
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    twin = copy.deepcopy(model)
    softgate.unswap(twin)
    assert torch.equal(call(twin), base) and torch.equal(call(model), out)
    softgate.unswap(model)
    assert torch.equal(call(model), base)
    assert {key: (id(m), type(m), set(vars(m))) for key, m in model.named_modules()} == parts
    assert {key: id(p) for key, p in model.named_parameters()} == weights


def _whole(build: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    if build == "timm":
        pytest.importorskip("timm")
        images = torch.randn(2, 3, 16, 16)
        return timm_vit().eval(), lambda model: model(images)
    x, memory = torch.randn(2, 6, 16), torch.randn(2, 4, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    if build == "encoder":
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        encoder: nn.Module = nn.TransformerEncoder(layer, 2)
        return _spread(encoder), lambda model: model(x, mask=mask)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, 0.0, batch_first=True), 2)
    return _spread(decoder), lambda model: model(x, memory, tgt_mask=mask)


def _spread(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def test_the_inference_path_in_cpp_does_not_pass_by_the_swap() -> None:
    """It reads the weights of nn.MultiheadAttention past the module, and packs padded batches into nested tensors."""
    torch.backends.mha.set_fastpath_enabled(True)
    encoder = _spread(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), 2))
    x, padding = torch.randn(2, 6, 16), torch.zeros(2, 6, dtype=torch.bool)
    padding[0, -2:] = True
    with torch.no_grad():
        fast = encoder(x)
        softgate.swap(encoder, attention=squared)
        for options in ({}, {"src_key_padding_mask": padding}):
            with_grad_path = _with_gradients(encoder, x, options)
            torch.testing.assert_close(encoder(x, **options), with_grad_path)
        assert (encoder(x) - fast).abs().max() > 1e-3
        softgate.unswap(encoder)
        assert encoder.use_nested_tensor and torch.equal(encoder(x), fast)
        softgate.swap(encoder, attention="gated")
        torch.testing.assert_close(encoder(x), fast)


def _with_gradients(encoder: nn.Module, x: Tensor, options: dict[str, Any]) -> Tensor:
    with torch.enable_grad():
        return encoder(x, **options).detach()


def test_a_swapped_activation_also_runs_in_inference() -> None:
    torch.backends.mha.set_fastpath_enabled(True)
    encoder = _spread(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), 2))
    x = torch.randn(2, 6, 16)
    with torch.no_grad():
        base = encoder(x)
        softgate.swap(encoder, activation=torch.tanh)
        torch.testing.assert_close(encoder(x), _with_gradients(encoder, x, {}))
        assert (encoder(x) - base).abs().max() > 1e-3
        assert torch.equal(softgate.unswap(encoder)(x), base)
    assert encoder.layers[0].activation is nn.functional.relu


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_extra_keys_are_refused(options: dict[str, bool]) -> None:
    with pytest.raises(StateError, match="extra key"):
        softgate.swap(nn.MultiheadAttention(8, 2, **options), attention="gated")


def test_nested_tensors_and_lonely_hints_are_refused() -> None:
    layer = softgate.swap(nn.MultiheadAttention(8, 2, batch_first=True), attention="softmax")
    x = torch.randn(1, 3, 8)
    with pytest.raises(StateError, match="attn_mask"):
        layer(x, x, x, is_causal=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says once a process that nested tensors are a prototype
        nested = torch.nested.nested_tensor([torch.randn(3, 8)])
    with pytest.raises(ArgumentTypeError, match="nested"):
        layer(nested, nested, nested)


def test_timm_norms_and_masks_are_kept() -> None:
    pytest.importorskip("timm")
    timm_vit()
    cls = importlib.import_module("timm.layers").Attention
    layer = cls(16, num_heads=2, qk_norm=True, scale_norm=True, norm_layer=nn.LayerNorm, qkv_bias=True).eval()
    x, keep = torch.randn(2, 5, 16), torch.rand(2, 1, 5, 5) > 0.3
    keep[..., 0] = True
    expected = [layer(x), layer(x, attn_mask=keep), layer(x, is_causal=True)]
    for method in ("gated", "softmax"):
        softgate.swap(layer, attention=method)
        for got, wanted in zip([layer(x), layer(x, attn_mask=keep), layer(x, is_causal=True)], expected, strict=True):
            torch.testing.assert_close(got, wanted)
        softgate.unswap(layer)
    gated = cls(16, num_heads=2, gated=True).eval()
    expected = [gated(x)]
    torch.testing.assert_close(softgate.swap(gated, attention="softmax")(x), expected[0])
    softgate.unswap(gated)
    with pytest.raises(StateError, match="gate already"):
        softgate.swap(gated, attention="gated")


def test_unknown_attention_is_refused_with_what_is_known() -> None:
    class SpecialAttention(nn.Module):
        pass

    class Talking(nn.MultiheadAttention):
        pass

    known = r"transformers.*timm\.layers\.Attention.*torch\.nn\.MultiheadAttention"
    for model, word in (
        (nn.Sequential(SpecialAttention(), nn.MultiheadAttention(8, 2)), "SpecialAttention"),
        (nn.Sequential(nn.Linear(2, 2)), "no attention"),
    ):
        with pytest.raises(StateError, match=f"{word}.*{known}"):
            softgate.swap(model, attention="gated")
    with pytest.raises(StateError, match="no attention"):
        softgate.swap(nn.Sequential(Talking(8, 2)), attention="gated")


def test_a_part_that_is_swapped_is_seen_from_the_whole() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    softgate.swap(model[0], attention="gated")
    with pytest.raises(StateError, match="0 inside this model is swapped already"):
        softgate.swap(model, attention="gated")
