"""``backend="triton"`` of the public functions: the same as their references, and refusals in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from softgate.attention import (
    clipped_softmax_attention,
    gated_attention,
    norm_aware_linear_attention,
    sigmoid_attention,
    softplus_attention,
)
from softgate.errors import StateError

pytest.importorskip("triton")
from softgate._triton import interpreting

pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")


def qkv(heads: int = 2, groups: int = 1, queries: int = 9, keys: int = 11, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, heads, queries, 8), (1, groups, keys, 8), (1, groups, keys, 8))
    return tuple(torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes)


KEEP = torch.rand(1, 1, 9, 11, generator=torch.Generator().manual_seed(1)) < 0.7

CALLS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "sigmoid": (sigmoid_attention, {"seq_len": 8, "is_causal": True}),
    "sigmoid-per-head": (sigmoid_attention, {"bias": torch.tensor([-1.0, -2.0]), "attn_mask": KEEP}),
    "sigmoid-alibi": (sigmoid_attention, {"bias": 0.0, "alibi_slopes": torch.tensor([0.5, 0.25]), "window": (3, 1)}),
    "clipped": (clipped_softmax_attention, {"alpha": 2.0, "max_seq_len": 8, "is_causal": True}),
    "clipped-both": (clipped_softmax_attention, {"gamma": -0.1, "zeta": 1.1, "attn_mask": KEEP, "scale": 1.0}),
    "lssar": (softplus_attention, {"is_causal": True}),
    "lssar-mask": (softplus_attention, {"attn_mask": KEEP, "reweight_power": 3, "offset_min_keys": 5}),
    "lssa": (softplus_attention, {"reweight_power": None, "window": 4, "is_causal": True}),
    "lssar-raw": (softplus_attention, {"normalize_qk": False, "length_scale": "none", "scale": 0.5}),
}

LINEAR_CALLS: dict[str, dict[str, Any]] = {
    "polarity": {},
    "cosine": {"direction": "cosine", "power": 2.0},
    "padded": {"key_padding_mask": torch.arange(11)[None] > 2},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_reference(name: str, dtype: torch.dtype) -> None:
    function, options = CALLS[name]
    equals_the_reference(function, qkv(dtype=dtype), options)


@pytest.mark.parametrize("name", ["sigmoid", "lssar", "lssar-raw"])
def test_equals_the_reference_in_half_precision(name: str) -> None:
    function, options = CALLS[name]
    equals_the_reference(function, qkv(dtype=torch.float16), options)


@pytest.mark.parametrize("name", LINEAR_CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_aware_equals_the_reference(name: str, dtype: torch.dtype) -> None:
    options = {"is_causal": True, **LINEAR_CALLS[name]}
    equals_the_reference(norm_aware_linear_attention, qkv(queries=11, dtype=dtype), options)


def equals_the_reference(function: Callable[..., Tensor], tensors: Any, options: dict[str, Any]) -> None:
    dtype = tensors[0].dtype
    wide = tuple(x.detach().double().requires_grad_() for x in tensors)
    options = dict(options, enable_gqa=True)
    out = function(*tensors, backend="triton", **options)
    truth = function(*wide, backend="reference", **options)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    got = torch.autograd.grad(out, tensors, upstream)
    expected = torch.autograd.grad(truth, wide, upstream.double())
    budget = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}[dtype]
    for a, b in zip((out.detach(), *got), (truth.detach(), *expected), strict=True):
        assert a.dtype is dtype
        assert float((a.double() - b).abs().max()) <= budget * max(float(b.abs().max()), 1.0)


@pytest.mark.parametrize("gate_width", [1, 8])
def test_the_gate_is_fused(gate_width: int) -> None:
    tensors = (*qkv(), torch.randn(1, 2, 9, gate_width, requires_grad=True))
    out = gated_attention(*tensors, is_causal=True, enable_gqa=True, backend="triton")
    truth = gated_attention(*tensors, is_causal=True, enable_gqa=True, backend="reference")
    torch.testing.assert_close(out, truth)
    upstream = torch.randn_like(out)
    pairs = (torch.autograd.grad(y, tensors, upstream) for y in (out, truth))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_bias_that_is_learned_gets_its_gradient() -> None:
    tensors = qkv()
    bias = torch.tensor([-1.0, -2.0], requires_grad=True)
    pairs = [
        torch.autograd.grad(sigmoid_attention(*tensors, bias=bias, enable_gqa=True, backend=b).square().sum(), bias)[0]
        for b in ("triton", "reference")
    ]
    torch.testing.assert_close(*pairs)


@pytest.mark.parametrize(
    ("function", "options", "word"),
    [
        (sigmoid_attention, {"bias": 0.0, "softcap": 1.0}, "softcap"),
        (sigmoid_attention, {"bias": "neg_log_visible"}, "per query"),
        (sigmoid_attention, {"bias": torch.zeros(1, 2)}, "per head"),
        (sigmoid_attention, {"bias": 0.0, "dropout_p": 0.5}, "dropout"),
        (softplus_attention, {"phi": "relu"}, "softplus"),
        (clipped_softmax_attention, {"gamma": -0.1, "attn_mask": torch.zeros(9, 11, requires_grad=True)}, "attn_mask"),
        (gated_attention, {"gate_activation": "silu"}, "sigmoid gate"),
        (norm_aware_linear_attention, {"is_causal": True}, "as many queries as keys"),
    ],
)
def test_what_the_kernels_cannot_do_is_said(function, options, word) -> None:
    tensors = qkv(groups=2)
    extra = (torch.zeros(1, 2, 9, 1),) if function is gated_attention else ()
    with pytest.raises(StateError, match=word):
        function(*tensors, *extra, backend="triton", **options)


def test_float64_is_refused() -> None:
    with pytest.raises(StateError, match="float64"):
        sigmoid_attention(*qkv(groups=2, dtype=torch.float64), bias=0.0, backend="triton")


def test_auto_does_not_take_the_interpreter() -> None:
    import softgate

    record = softgate.registry.record_of(sigmoid_attention)
    kernel = next(k for k in record.kernels if k.name == "triton")
    assert "interpreter" in str(kernel.refuses(*qkv(groups=2), bias=0.0))
    assert softgate.explain(sigmoid_attention, *qkv(groups=2), bias=0.0).chosen != "triton"
