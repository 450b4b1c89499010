"""SigmoidAttention against its formula, decoding, training; LayerScale, ALiBi slopes, packed sequences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from softgate._math.masks import structural_mask
from softgate.attention import (
    KVCache,
    LayerScale,
    MultiHeadAttention,
    SigmoidAttention,
    alibi_slopes,
    sigmoid_attention,
    sigmoid_attention_varlen,
)
from softgate.models import GPT, GPTConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "rope": {"rope": 10000.0},
    "alibi": {"alibi": True, "bias_init": 0.0},
    "learned": {"learn_bias": True},
    "visible": {"bias_init": "neg_log_visible"},
    "hot": {"temperature": 0.3, "alibi": True},
    "hybrid norm": {"output_norm": True, "rope": 10000.0},
    "no norms": {"qk_norm": False},
    "row length": {"row_scale": "length"},
    "row root": {"row_scale": "sqrt_length", "bias_init": 0.0},
}
SIZES = (24, 4, 2, 6)


def layer(variant: str, **options: Any) -> SigmoidAttention:
    torch.manual_seed(1)
    made = SigmoidAttention(*SIZES, **{"seq_len": 7, "bias": True, **VARIANTS[variant], **options})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made.double()


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "rope" not in VARIANTS[v]])
def test_variant_is_its_formula(variant: str) -> None:
    m, x = layer(variant), torch.randn(2, 7, 24, dtype=torch.float64)

    def heads(flat: Tensor) -> Tensor:
        return flat.view(2, 7, -1, 6).transpose(1, 2)

    q, k, v = heads(m.q_proj(x)), heads(m.k_proj(x)), heads(m.v_proj(x))
    if variant != "no norms":
        q, k = m.q_norm(q), m.k_norm(k)  # type: ignore[misc]
        assert isinstance(m.q_norm, torch.nn.LayerNorm) and m.q_norm.eps == 1e-5
    scores = q @ k.repeat_interleave(2, 1).mT / math.sqrt(6)
    step = torch.arange(7.0)
    if "alibi" in VARIANTS[variant]:
        scores = scores - alibi_slopes(4)[:, None, None] * (step[:, None] - step).abs()
    scores = scores * math.exp(VARIANTS[variant].get("temperature", 0.0))
    if variant == "learned":
        scores = scores + m.attention_bias[:, None, None]  # type: ignore[index]
    elif variant == "visible":
        scores = scores - torch.log(step + 1)[:, None]
    else:
        scores = scores + VARIANTS[variant].get("bias_init", -math.log(7))
    weights = (1 / (1 + torch.exp(-scores))).tril()
    if "row" in variant:
        weights = weights / (step + 1)[:, None] ** (1.0 if variant == "row length" else 0.5)
    y = weights @ v.repeat_interleave(2, 1)
    expected = m.o_proj(y.transpose(1, 2).reshape(2, 7, 24))
    torch.testing.assert_close(m(x), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(m.attention_weights(x), weights, rtol=1e-6, atol=1e-7)


def test_hybrid_norm_is_a_norm_of_the_output() -> None:
    normed, bare = layer("hybrid norm"), layer("rope")
    bare.load_state_dict({k: v for k, v in normed.state_dict().items() if not k.startswith("output_norm")})
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    y = bare(x)
    expected = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * normed.output_norm.weight  # type: ignore[union-attr]
    torch.testing.assert_close(normed(x), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_decoding_equals_prefill(variant: str) -> None:
    """Beyond the length of training, too: b stays what it was."""
    m, x = layer(variant), torch.randn(2, 9, 24, dtype=torch.float64)
    expected = m(x)
    for sizes in ([1] * 9, [4, 1, 3, 1]):
        cache = KVCache(capacity=3)
        out = torch.cat([m(piece, cache=cache) for piece in x.split(sizes, dim=1)], dim=1)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_parameters_learn(variant: str) -> None:
    m = layer(variant)
    m(torch.randn(2, 7, 24, dtype=torch.float64)).square().sum().backward()
    for name, parameter in m.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_temperature_scales_a_float_mask_and_not_the_bias() -> None:
    hot, cold = layer("rope", temperature=math.log(2.0)), layer("rope")
    x = torch.zeros(1, 7, 24, dtype=torch.float64)
    mask = torch.randn(7, 7, dtype=torch.float64)
    with torch.no_grad():
        for m in (hot, cold):
            m.q_norm.bias.zero_()  # type: ignore[union-attr]
    # x = 0 leaves biases of the projections, which the norm turns into scores; the mask is all that differs.
    torch.testing.assert_close(
        hot.attention_weights(x, attn_mask=mask, is_causal=False).logit() + math.log(7),
        2 * (cold.attention_weights(x, attn_mask=mask, is_causal=False).logit() + math.log(7)),
    )


def test_bias_follows_the_length_of_training() -> None:
    m = SigmoidAttention(24, 4, seq_len=32, learn_bias=True)
    assert m.attention_bias is not None and m.attention_bias.shape == (4,)
    torch.testing.assert_close(m.attention_bias.detach(), torch.full((4,), -math.log(32)))
    with torch.no_grad():
        m.attention_bias.zero_()
    m.reset_parameters()
    assert (m.attention_bias == -math.log(32)).all()
    assert "seq_len=32" in repr(m) and "learn_bias" in repr(m)


def test_in_a_language_model() -> None:
    """As a module class with options, and as a function of MultiHeadAttention; generation matches with a cache."""
    sizes: dict[str, Any] = {"vocab_size": 11, "num_layers": 2, "num_heads": 2, "embed_dim": 16}
    options = {"seq_len": 8, "rope": 10000.0}
    model = GPT(GPTConfig(**sizes, attention=SigmoidAttention, attention_options=options))
    named = GPT(GPTConfig(**sizes, attention="sigmoid", attention_options={"seq_len": 8}, qk_norm="layer"))
    named.load_state_dict(model.state_dict())
    tokens = torch.randint(11, (2, 6))
    torch.testing.assert_close(model(tokens), named(tokens))
    with_cache, without = (model.generate(tokens, 9, temperature=0.0, cache=c) for c in ("kv", "none"))
    assert torch.equal(with_cache, without)
    # GPT's own initialisation leaves the bias of attention alone.
    learned = GPT(GPTConfig(**sizes, attention=SigmoidAttention, attention_options={**options, "learn_bias": True}))
    bias = learned.blocks[0].attention.attention_bias  # type: ignore[union-attr]
    assert (bias == -math.log(8)).all()


def test_function_and_module_agree() -> None:
    m, x = layer("rope"), torch.randn(1, 5, 24, dtype=torch.float64)
    plain = MultiHeadAttention(
        *SIZES, attention="sigmoid", attention_options={"seq_len": 7}, qk_norm="layer", rope=10000.0, bias=True
    ).double()
    plain.load_state_dict(m.state_dict())
    torch.testing.assert_close(plain(x), m(x))


def test_layer_scale() -> None:
    scale = LayerScale(3)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(scale(x), 1e-4 * x)
    scale(x).sum().backward()
    assert scale.gamma.grad is not None
    torch.testing.assert_close(scale.gamma.grad, x.sum((0, 1)))
    assert scale(x.bfloat16()).dtype is torch.bfloat16 and "init=0.0001" in repr(scale)


@pytest.mark.parametrize("heads", [1, 2, 8, 16])
def test_alibi_slopes_of_powers_of_two(heads: int) -> None:
    slopes = alibi_slopes(heads)
    assert slopes.dtype is torch.float32
    torch.testing.assert_close(slopes, 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads))


def test_alibi_slopes_between_powers_of_two() -> None:
    """12 heads: those of 8, then every other one of 16."""
    torch.testing.assert_close(alibi_slopes(12), torch.cat((alibi_slopes(8), alibi_slopes(16)[0:8:2])))
    assert (alibi_slopes(12) > 0).all() and len(set(alibi_slopes(12).tolist())) == 12


def packed(queries: list[int], keys: list[int], heads: int = 4, groups: int = 2) -> list[Tensor]:
    shapes = [(heads, sum(queries), 3), (groups, sum(keys), 3), (groups, sum(keys), 3)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def offsets(lengths: list[int]) -> list[int]:
    return [0, *torch.tensor(lengths).cumsum(0).tolist()]


@pytest.mark.parametrize("lengths", [([3, 5], [3, 5]), ([2, 0, 4, 1], [3, 2, 4, 0]), ([6], [9])], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 2])
def test_packed_sequences_are_a_block_mask(lengths: tuple[list[int], list[int]], is_causal: bool, window: Any) -> None:
    """One call on everything with a mask of blocks and a bias per row says what the packed call must give."""
    queries, keys = lengths
    inputs = packed(queries, keys)
    pairs = list(zip(queries, keys, strict=True))
    blocks = [structural_mask(t, s, is_causal=is_causal, window=window) for t, s in pairs]
    filled = [torch.ones(n, dtype=torch.bool) if b is None else b for b, n in zip(blocks, pairs, strict=True)]
    allowed = torch.block_diag(*filled).bool()
    row_bias = torch.cat([torch.full((t, 1), -math.log(max(s, 1)), dtype=torch.float64) for t, s in pairs])
    mask = row_bias.expand(allowed.shape).masked_fill(~allowed, -torch.inf)
    expected = sigmoid_attention(*inputs, mask, enable_gqa=True, bias=0.0)
    cu, cu_k = torch.tensor(offsets(queries), dtype=torch.int32), offsets(keys)
    output = sigmoid_attention_varlen(*inputs, cu, cu_k, enable_gqa=True, is_causal=is_causal, window=window)
    torch.testing.assert_close(output, expected)
    upstream = torch.randn_like(expected)
    for got, want in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (output, expected)), strict=True):
        torch.testing.assert_close(got, want)


def test_packed_biases() -> None:
    q, k, v = packed([3, 5], [3, 5])
    cu = (0, 3, 8)
    apart = [(q[:, :3], k[:, :3], v[:, :3]), (q[:, 3:], k[:, 3:], v[:, 3:])]
    options: dict[str, Any] = {"enable_gqa": True, "is_causal": True}
    biases = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    cases: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
        ({"bias": biases}, [{"bias": biases[0]}, {"bias": biases[1]}]),
        ({"bias": biases[:1]}, [{"bias": biases[0]}] * 2),
        ({"bias": biases[:, :1]}, [{"bias": biases[0, 0]}, {"bias": biases[1, 0]}]),
        ({"seq_len": 20}, [{"seq_len": 20}] * 2),
        ({"bias": "neg_log_visible"}, [{"bias": "neg_log_visible"}] * 2),
        ({}, [{"seq_len": 3}, {"seq_len": 5}]),
    ]
    for together, single in cases:
        expected = [sigmoid_attention(*x, **options, **o) for x, o in zip(apart, single, strict=True)]
        output = sigmoid_attention_varlen(q, k, v, cu, **options, **together)
        torch.testing.assert_close(output, torch.cat(expected, 1))
    sigmoid_attention_varlen(q, k, v, cu, **options, bias=biases).sum().backward()
    assert biases.grad is not None and (biases.grad != 0).all()
