"""SoftplusAttention: equals its parts, decodes as it prefills, works in the GPT."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from softgate.attention import KVCache, RotaryEmbedding, SoftplusAttention, apply_rotary, softplus_attention
from softgate.models import GPT, GPTConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "p = 15": {},
    "p = 3, grouped": {"num_kv_heads": 2, "reweight_power": 3, "rope": 1e4},
    "first stage": {"reweight_power": None, "rope": 1e4, "bias": True},
    "ablation": {"scale": 1.0, "phi": "sigmoid", "offset": 0.5, "offset_min_keys": 0},
}


def layer(variant: str) -> SoftplusAttention:
    return SoftplusAttention(24, 4, **VARIANTS[variant]).double()


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_projections_around_the_function(variant: str) -> None:
    m, x = layer(variant), torch.randn(2, 7, 24, dtype=torch.float64)
    q, k, v = (p(x).unflatten(-1, (-1, 6)).transpose(1, 2) for p in (m.q_proj, m.k_proj, m.v_proj))
    if m.rotary is not None:
        tables = RotaryEmbedding(6, 1e4)(torch.arange(7))
        q, k = apply_rotary(q, *tables), apply_rotary(k, *tables)
    options = {name: value for name, value in VARIANTS[variant].items() if name not in ("num_kv_heads", "rope", "bias")}
    y = softplus_attention(q, k, v, is_causal=True, enable_gqa=m.num_kv_heads != 4, **options)
    torch.testing.assert_close(m(x), m.o_proj(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 5], [2, 1, 6]])
@torch.no_grad()
def test_decoding_equals_prefill(variant: str, chunks: list[int]) -> None:
    m, x, cache = layer(variant), torch.randn(2, 9, 24, dtype=torch.float64), KVCache()
    steps = torch.cat([m(piece, cache=cache) for piece in x.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(steps, m(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_gradients_and_copies(variant: str) -> None:
    m, x = layer(variant), torch.randn(2, 7, 24, dtype=torch.float64)
    weights = m.attention_weights(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7, dtype=torch.float64))
    assert bool((weights.triu(1) == 0).all())
    m(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in m.parameters())
    assert torch.equal(copy.deepcopy(m)(x), m(x))
    assert "reweight_power" in repr(m)


def test_dropout_acts_in_training_only() -> None:
    m, x = SoftplusAttention(24, 4, dropout=0.5), torch.randn(2, 7, 24)
    assert not torch.equal(m(x), m(x))
    m.eval()
    assert torch.equal(m(x), m(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    m, x = layer("first stage"), torch.randn(2, 7, 24, dtype=torch.float64)
    expected = m(x)
    out = m.to(dtype)(x.to(dtype))
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), expected, rtol=0.05, atol=0.02)


@torch.no_grad()
def test_the_gpt_finds_it_by_name_and_by_class() -> None:
    sizes: dict[str, Any] = {"vocab_size": 11, "num_layers": 2, "num_heads": 2, "embed_dim": 16}
    options = {"reweight_power": 3}
    named = GPT(GPTConfig(**sizes, attention="softplus", attention_options=options))
    built = GPT(GPTConfig(**sizes, attention=SoftplusAttention, attention_options={**options, "rope": 10000.0}))
    built.load_state_dict(named.state_dict())
    tokens: Tensor = torch.randint(11, (2, 12))
    torch.testing.assert_close(built(tokens), named(tokens))
    greedy = [named.generate(tokens, 5, temperature=0.0, cache=cache) for cache in ("kv", "none")]
    assert torch.equal(*greedy)
