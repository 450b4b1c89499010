"""The modules of norm-aware linear attention: over maps, along texts, in the GPT and the ViT; what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from softgate.attention import (
    CausalNormAwareAttention,
    KVCache,
    LinearAttentionCache,
    NormAwareLinearAttention,
    map_rope,
    norm_aware_linear_attention,
)
from softgate.errors import ArgumentTypeError, ArgumentValueError, SoftgateError, StateError
from softgate.models import GPT, GPTConfig, ViT, ViTConfig


@pytest.mark.parametrize("parts", [{}, {"gate": False}, {"lepe": 0}, {"rope2d": False}, {"direction": "cosine"}])
def test_parts_of_the_map_module_can_be_left_out(parts: dict[str, Any]) -> None:
    layer = NormAwareLinearAttention(16, 2, **parts).double()
    names = {name.split(".")[0] for name, _ in layer.named_parameters()}
    assert names == {"qkvg", "ln", "out_proj"} | ({"lepe"} if parts.get("lepe") != 0 else set())
    assert layer.qkvg.out_features == (48 if parts.get("gate") is False else 64)
    x = torch.randn(2, 12, 16, dtype=torch.float64, requires_grad=True)
    y = layer(x, 3, 4)
    assert y.shape == x.shape
    y[0, 0].sum().backward()
    assert x.grad is not None and bool((x.grad[0].abs().sum(-1) > 0).all()) and x.grad[1].abs().max() == 0


def test_padding_and_order_of_tokens_without_positions() -> None:
    layer = NormAwareLinearAttention(16, 2, lepe=0, rope2d=False).double()
    x = torch.randn(1, 12, 16, dtype=torch.float64)
    order = torch.randperm(12)
    torch.testing.assert_close(layer(x, 3, 4)[:, order], layer(x[:, order], 4, 3))
    keep = torch.arange(12) < 8
    torch.testing.assert_close(layer(x, 3, 4, key_padding_mask=keep[None])[:, :8], layer(x[:, :8], 2, 4))


def test_the_saturation_is_the_mean_tanh_of_the_query_norms() -> None:
    layer = NormAwareLinearAttention(16, 2)
    with torch.no_grad():
        layer.qkvg.weight.zero_()
        layer.qkvg.bias.fill_(0.5)  # norm of 8 features: sqrt(2)
    x = torch.randn(2, 6, 16)
    assert layer.saturation(x) == pytest.approx(float(torch.tanh(torch.tensor(2.0).sqrt())))
    layer.options["norm_scale"] = 0.0
    assert layer.saturation(x) == 0.0


def test_map_positions_turn_with_row_and_column() -> None:
    cos, sin = map_rope(2, 3, 8)
    assert cos.shape == sin.shape == (6, 8)
    torch.testing.assert_close(sin[:, 0], torch.sin(torch.tensor([0.0, 0, 0, 1, 1, 1])))  # rows, in the first half
    torch.testing.assert_close(sin[:, 4], torch.sin(torch.tensor([0.0, 1, 2, 0, 1, 2])))
    torch.testing.assert_close(cos[:, 2], torch.cos(1e-4 * torch.tensor([0.0, 0, 0, 1, 1, 1])))


def test_the_vit_takes_function_and_module() -> None:
    images = torch.randn(2, 1, 8, 8)
    for attention in ("norm_aware_linear", NormAwareLinearAttention):
        model = ViT(ViTConfig(image_size=8, patch_size=2, depth=1, embed_dim=16, attention=attention))
        model(images).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("rope", [None, 10000.0])
def test_decoding_with_a_constant_state_equals_one_causal_call(rope: float | None) -> None:
    layer = CausalNormAwareAttention(24, 6, 2, rope=rope, qk_norm="rms", chunk_size=2).double()
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    whole = layer(x)
    for sizes in ([1] * 9, [5, 1, 3]):
        cache = layer.new_cache()
        pieces = [layer(piece, cache=cache) for piece in x.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, 1), whole)
        assert cache.length == 9 and cache.state is not None and cache.state.kv.shape == (2, 2, 8, 4)


def test_later_tokens_change_nothing_earlier_and_positions_matter() -> None:
    layer = CausalNormAwareAttention(16, 2).double()
    x = torch.randn(1, 70, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 66:] = 5.0
    assert torch.equal(layer(x)[:, :66], layer(changed)[:, :66])
    swapped = x[:, [1, 0, *range(2, 70)]]
    assert (layer(x)[:, 2:] - layer(swapped)[:, 2:]).abs().max() > 1e-6  # the same set of tokens, in another order


def test_the_gpt_trains_and_decodes_with_the_module_and_with_the_function() -> None:
    tokens = torch.randint(11, (2, 12))
    for attention, cache in ((CausalNormAwareAttention, LinearAttentionCache), ("norm_aware_linear", KVCache)):
        config = GPTConfig(vocab_size=11, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=16, attention=attention)
        model = GPT(config).double()
        model(tokens, tokens)[1].backward()
        assert all(p.grad is not None for p in model.parameters())
        assert all(isinstance(made, cache) for made in model.new_cache())
        cached = model.generate(tokens[:, :5], 6, temperature=0.0)
        assert torch.equal(cached, model.generate(tokens[:, :5], 6, temperature=0.0, cache="none"))


def test_padding_in_front_of_a_prompt_changes_nothing() -> None:
    layer = CausalNormAwareAttention(16, 2, rope=None).double()
    x = torch.randn(1, 7, 16, dtype=torch.float64)
    keep = (torch.arange(7) >= 3)[None, None, None]
    cache = layer.new_cache()
    first = layer(x[:, :6], attn_mask=keep[..., :6], cache=cache)
    last = layer(x[:, 6:], attn_mask=keep, cache=cache)  # the mask counts all tokens so far
    torch.testing.assert_close(torch.cat((first[:, 3:], last), 1), layer(x[:, 3:]))


def test_a_cache_forgets_all_or_nothing() -> None:
    layer, x = CausalNormAwareAttention(16, 2), torch.randn(1, 3, 16)
    cache = layer.new_cache()
    layer(x, cache=cache)
    cache.truncate(3)
    assert cache.length == 3
    with pytest.raises(StateError, match="length"):
        cache.truncate(2)
    cache.truncate(0)
    assert (cache.length, cache.state) == (0, None)
    with pytest.raises(ArgumentTypeError, match="state"):
        cache.advance("state", 1)  # type: ignore[arg-type]


BAD: list[tuple[Any, dict[str, Any], type[SoftgateError], str]] = [
    ((15, 2), {}, ArgumentValueError, "dim"),
    ((12, 2), {}, ArgumentValueError, "rope2d"),
    ((16.0, 2), {}, ArgumentTypeError, "dim"),
    ((16, 0), {}, ArgumentValueError, "num_heads"),
    ((16, 2), {"lepe": 4}, ArgumentValueError, "lepe"),
    ((16, 2), {"lepe": -1}, ArgumentValueError, "lepe"),
    ((16, 2), {"gate": 1}, ArgumentTypeError, "gate"),
    ((16, 2), {"rope2d": None}, ArgumentTypeError, "rope2d"),
    ((16, 2), {"power": 0.0}, ArgumentValueError, "power"),
    ((16, 2), {"direction": "sine"}, ArgumentValueError, "direction"),
    ((16, 2), {"is_causal": True}, ArgumentValueError, "is_causal"),
]


@pytest.mark.parametrize(("args", "options", "error", "word"), BAD)
def test_bad_options_of_the_map_module(args: Any, options: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        NormAwareLinearAttention(*args, **options)


def test_bad_calls_of_the_modules() -> None:
    layer = NormAwareLinearAttention(16, 2)
    for shape in ((2, 13, 16), (2, 12, 8), (2, 16, 3, 4)):
        with pytest.raises(ArgumentValueError, match="x must"):
            layer(torch.zeros(shape), 3, 4)
    causal = CausalNormAwareAttention(16, 2)
    with pytest.raises(ArgumentTypeError, match="cache"):
        causal(torch.zeros(1, 2, 16), cache=KVCache())
    with pytest.raises(ArgumentValueError, match="attn_mask"):
        causal(torch.zeros(1, 2, 16), attn_mask=torch.ones(2, 2, dtype=torch.bool).tril())
    with pytest.raises(ArgumentValueError, match="even"):
        CausalNormAwareAttention(6, 2)
    with pytest.raises(ArgumentValueError, match="gate"):
        CausalNormAwareAttention(16, 2, gate=True)


def test_the_core_is_the_function() -> None:
    """The layer norm after mixing hides errors of scale, so the mixing is compared by itself."""
    layer = NormAwareLinearAttention(16, 2, power=2.0, norm_scale=0.25).double()
    q, k, v = (torch.randn(1, 2, 6, 8, dtype=torch.float64) for _ in range(3))
    rope = map_rope(2, 3, 8)
    expected = norm_aware_linear_attention(q, k, v, rope=rope, power=2.0, norm_scale=0.25, backend="reference")
    torch.testing.assert_close(layer.mix(q, k, v, rope, None), expected)
