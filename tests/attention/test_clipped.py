"""clipped_softmax_attention: the tiled passes against the formula, limits, decoding, memory, the module."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from softgate.attention import KVCache, MultiHeadAttention, clipped_softmax_attention, gated_attention
from softgate.attention.clipped import tiled
from softgate.dispatch import explain
from softgate.errors import ArgumentValueError, StateError
from softgate.models import GPT, GPTConfig
from softgate.normalizers import clipped_softmax

GAMMA = -0.06


def qkv(heads: int = 2, kv_heads: int = 2, queries: int = 9, keys: int = 9, dim: int = 4) -> list[Tensor]:
    shapes = [(2, heads, queries, dim), (2, kv_heads, keys, dim), (2, kv_heads, keys, 3)]
    return [(1.5 * torch.randn(shape, dtype=torch.float64)).requires_grad_() for shape in shapes]


def masked(kind: str) -> Tensor:
    keep = torch.rand(2, 1, 9, 9) > 0.4
    keep[0, :, 3] = False
    return keep if kind == "bool" else torch.randn(1, 2, 9, 9).double().masked_fill(~keep, -torch.inf)


CASES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "plain": ({}, {}),
    "causal": ({}, {"is_causal": True}),
    "grouped": ({"heads": 4, "queries": 5}, {"enable_gqa": True, "is_causal": True}),
    "more queries than keys": ({"queries": 11, "keys": 6}, {"is_causal": True}),
    "window": ({}, {"window": 3, "is_causal": True}),
    "two-sided window": ({}, {"window": 3, "scale": 0.7}),
    "bool mask": ({}, {"attn_mask": "bool"}),
    "float mask": ({}, {"attn_mask": "float", "is_causal": True}),
    "both ends": ({}, {"gamma": -0.1, "zeta": 1.2}),
    "softmax": ({}, {"gamma": 0.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_tiled_passes_are_the_formula(case: str) -> None:
    """Forward and gradients against autograd through the dense formula in float64, with tiles smaller than the rows."""
    sizes, options = CASES[case]
    options = {"gamma": GAMMA, **options}
    if "attn_mask" in options:
        options["attn_mask"] = masked(options["attn_mask"])
    inputs = qkv(**sizes)
    expected = clipped_softmax_attention(*inputs, **options, backend="reference")
    output = tiled.run(*inputs, **options, block=4)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, upstream)
    for got, want in zip(torch.autograd.grad(output, inputs, upstream), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert (expected == 0).sum() < expected.numel() / 2  # the case is not empty


def test_delta_leaves_the_constant_out() -> None:
    """With rowsum(dO ⊙ O), softmax's Δ, the gradient would be another one."""
    query, key, value = qkv()
    output = clipped_softmax_attention(query, key, value, gamma=GAMMA)
    scores = query @ key.mT / 2
    p = scores.softmax(-1)
    d_weights = (torch.ones_like(output) @ value.mT) * (clipped_softmax(scores, gamma=GAMMA) > 0) * (1 - GAMMA)
    wrong = p * (d_weights - output.sum(-1, keepdim=True)) @ key / 2
    right = p * (d_weights - (p * d_weights).sum(-1, keepdim=True)) @ key / 2
    (found,) = torch.autograd.grad(output.sum(), query)
    torch.testing.assert_close(found, right)
    assert (found - wrong).abs().max() > 1e-3


def test_the_second_derivative_of_the_tiled_pass() -> None:
    inputs = [x[:1, :1, :3].detach().requires_grad_() for x in qkv()]
    op = partial(tiled.run, gamma=GAMMA, block=2)
    assert torch.autograd.gradcheck(op, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(op, inputs)


def test_gamma_zero_is_softmax_attention() -> None:
    inputs = qkv()
    expected = gated_attention(*inputs, None, is_causal=True)
    for backend in ("reference", "tiled"):
        output = clipped_softmax_attention(*inputs, is_causal=True, gamma=0.0, backend=backend)
        torch.testing.assert_close(output, expected)


def test_weights_are_those_of_the_bare_function() -> None:
    query, key, value = qkv()
    weights = clipped_softmax(query @ key.mT / 2, gamma=GAMMA)
    assert 0.2 < (weights == 0).double().mean() < 0.9
    torch.testing.assert_close(clipped_softmax_attention(query, key, value, gamma=GAMMA), weights @ value)


def test_alpha_counts_the_training_length_not_the_keys() -> None:
    query, key, value = qkv()
    expected = clipped_softmax_attention(query, key, value, gamma=-2 / 32, is_causal=True)
    for keys in (9, 4):
        short = clipped_softmax_attention(
            query[..., :keys, :], key[..., :keys, :], value[..., :keys, :], alpha=2.0, max_seq_len=32, is_causal=True
        )
        torch.testing.assert_close(short, expected[..., :keys, :])


def test_early_causal_rows_are_not_clipped() -> None:
    """With few keys every weight is large: a uniform row of n keys is zeroed only where 1/n <= -γ/(1 - γ)."""
    zeros = torch.zeros(1, 1, 20, 2, dtype=torch.float64)
    value = torch.ones(1, 1, 20, 1, dtype=torch.float64)
    output = clipped_softmax_attention(zeros, zeros, value, gamma=-0.1, is_causal=True)[0, 0, :, 0]
    alive = torch.arange(1, 21) < 11  # 1/11 = 0.1/1.1, where rounding decides
    dead = torch.arange(1, 21) > 11
    assert (output[alive] > 0).all() and (output[dead] == 0).all()
    torch.testing.assert_close(output[0], torch.tensor(1.0, dtype=torch.float64))


def test_dropout_comes_after_the_clip() -> None:
    """What is kept is a clipped weight divided by 1 - p: with one alive key per row the output has two values."""
    query = key = 20 * torch.eye(6).double()[None, None]
    value = torch.ones(1, 1, 6, 1, dtype=torch.float64)
    output = clipped_softmax_attention(query, key, value, dropout_p=0.5, gamma=-0.1).flatten()
    assert set(output.round(decimals=9).tolist()) <= {0.0, 2.0}
    with pytest.raises(StateError, match="dropout"):
        clipped_softmax_attention(query, key, value, dropout_p=0.5, gamma=-0.1, backend="tiled")


def test_which_implementation_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    # float64, for which there are no native kernels
    small, large = (torch.zeros(1, 1, length, 2, dtype=torch.float64) for length in (8, 512))
    assert explain(clipped_softmax_attention, small, small, small, gamma=-0.1).chosen == "reference"
    assert explain(clipped_softmax_attention, large, large, large, gamma=-0.1).chosen == "tiled"
    bias = torch.zeros(8, 8, requires_grad=True)
    with pytest.raises(StateError, match="attn_mask"):
        clipped_softmax_attention(small, small, small, bias, gamma=-0.1, backend="tiled")
    monkeypatch.setenv("SOFTGATE_KERNELS", "tiled")
    assert explain(clipped_softmax_attention, small, small, small, gamma=-0.1).chosen == "tiled"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_compares_with_the_threshold_in_float32(dtype: torch.dtype) -> None:
    """γ = -0.001 is below the resolution of bfloat16 near 1."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in qkv(queries=40, keys=40)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = clipped_softmax_attention(*exact, gamma=-0.001, backend="reference")
    for backend in ("reference", "tiled"):
        output = clipped_softmax_attention(*inputs, gamma=-0.001, backend=backend)
        assert output.dtype is dtype
        torch.testing.assert_close(output.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
        grads = torch.autograd.grad(output.sum(), inputs)
        wanted = torch.autograd.grad(expected.sum(), exact, retain_graph=True)
        for got, want in zip(grads, wanted, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_nothing_to_attend_to(backend: str) -> None:
    query, key, value = qkv()
    output = clipped_softmax_attention(query, key[..., :0, :], value[..., :0, :], gamma=GAMMA, backend=backend)
    assert output.shape == (2, 2, 9, 3) and (output == 0).all()
    mask = torch.zeros(9, 9, dtype=torch.bool)
    output = clipped_softmax_attention(query, key, value, mask, gamma=GAMMA, backend=backend)
    grads = torch.autograd.grad(output.sum(), (query, key, value))
    assert (output == 0).all() and all((g == 0).all() for g in grads)
    empty = clipped_softmax_attention(*(x[:0] for x in (query, key, value)), gamma=GAMMA, backend=backend)
    assert empty.shape == (0, 2, 9, 3)


MEMORY = """
import resource, torch
from softgate.attention import clipped_softmax_attention as attend

torch.set_num_threads(1)
q, k, v = (torch.randn(1, 1, 8192, 16, requires_grad=True) for _ in range(3))
small = [x[..., :1024, :] for x in (q, k, v)]
attend(*small, alpha=4.0, max_seq_len=8192, is_causal=True).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attend(q, k, v, alpha=4.0, max_seq_len=8192, is_causal=True).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_grows_with_the_length_only() -> None:
    """T = 8,192: one score matrix in float32 would be 256 MiB, several would be held by the reference."""
    found = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=300, check=True)
    assert float(found.stdout) < 64, found.stdout


def test_decoding_with_a_cache_is_the_causal_call() -> None:
    layer = MultiHeadAttention(
        16, 4, 2, attention="clipped_softmax", attention_options={"alpha": 2.0, "max_seq_len": 12}, rope=10000.0
    ).double()
    torch.nn.init.normal_(layer.q_proj.weight, std=1.0)
    torch.nn.init.normal_(layer.k_proj.weight, std=1.0)
    hidden = torch.randn(2, 12, 16, dtype=torch.float64)
    weights = layer.attention_weights(hidden)
    assert (weights[:, :, -1] == 0).double().mean() > 0.05
    for chunk in (1, 5):
        cache = KVCache(capacity=2)
        pieces = [layer(piece, cache=cache) for piece in hidden.split(chunk, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), layer(hidden))


def test_a_gpt_needs_gamma_or_alpha() -> None:
    sizes = {"vocab_size": 8, "num_layers": 1, "num_heads": 2, "embed_dim": 8}
    tokens = torch.zeros(1, 5, dtype=torch.long)
    with pytest.raises(ArgumentValueError, match="gamma or alpha must be given"):
        GPT(GPTConfig(attention="clipped_softmax", **sizes))(tokens)
    options = {"alpha": 4.0, "max_seq_len": 5}
    model = GPT(GPTConfig(attention="clipped_softmax", attention_options=options, **sizes))
    assert model(tokens).shape == (1, 5, 8)
    assert torch.equal(model.generate(tokens, 4, 0.0), model.generate(tokens, 4, 0.0, cache="none"))
