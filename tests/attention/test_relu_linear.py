"""The ReLU linear attention baseline: against the quadratic formula, padding, gradients, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from softgate.attention import ReLULinearAttention, relu_linear_attention


def qkv(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6))
    return tuple(torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)  # type: ignore[return-value]


def quadratic(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
    weights = q.relu() @ k.relu().mT
    if keep is not None:
        weights = weights * keep[:, None, None, :]
    return weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)


def test_it_is_the_quadratic_formula_summed_in_the_other_order():
    q, k, v = qkv()
    torch.testing.assert_close(relu_linear_attention(q, k, v), quadratic(q, k, v))


def test_padded_keys_change_nothing_and_get_no_gradient():
    q, k, v = qkv()
    keep = torch.ones(2, 7, dtype=torch.bool)
    keep[0, 4:] = False
    torch.testing.assert_close(relu_linear_attention(q, k, v, key_padding_mask=keep), quadratic(q, k, v, keep))
    k.requires_grad_()
    relu_linear_attention(q, k, v, key_padding_mask=keep).sum().backward()
    assert k.grad is not None and k.grad[0, :, 4:].abs().max() == 0 < k.grad[1, :, 4:].abs().max()


def test_a_query_without_positive_features_gets_zero():
    q, k, v = qkv()
    assert relu_linear_attention(-q.abs(), k, v).abs().max() == 0


def test_sixteen_bit_inputs_are_summed_in_float32():
    q, k, v = (torch.ones(1, 1, 1000, 4, dtype=torch.float16),) * 3  # the normaliser, 4000, times v overflows nothing
    torch.testing.assert_close(relu_linear_attention(q * 8, k * 8, v), v)


def test_gradients():
    q, k, v = (t[:1, :1, :3].requires_grad_() for t in qkv())
    assert torch.autograd.gradcheck(relu_linear_attention, (q, k, v), check_forward_ad=True)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"key": torch.ones(2, 3, 7, 5)}, "key"),
        ({"value": torch.ones(2, 3, 6, 6)}, "value"),
        ({"query": [1.0]}, "query"),
        ({"eps": 0.0}, "eps"),
        ({"key_padding_mask": torch.ones(2, 7)}, "key_padding_mask"),
        ({"key_padding_mask": torch.ones(2, 6, dtype=torch.bool)}, "key_padding_mask"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], word: str):
    q, k, v = qkv(torch.float32)
    with pytest.raises((ValueError, TypeError), match=word):
        relu_linear_attention(**{"query": q, "key": k, "value": v, **change})


def test_the_module_mixes_all_tokens_of_a_map():
    layer = ReLULinearAttention(16, 2).double()
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    order = torch.randperm(12)
    torch.testing.assert_close(layer(x, 3, 4)[:, order], layer(x[:, order], 4, 3))
    x.requires_grad_()
    layer(x, 3, 4)[0, 0].sum().backward()
    assert bool((x.grad[0].abs().sum(-1) > 0).all()) and x.grad[1].abs().max() == 0
    for sizes, word in (((15, 2), "embed_dim"), ((16, 0), "num_heads"), ((16.0, 2), "embed_dim")):
        with pytest.raises((ValueError, TypeError), match=word):
            ReLULinearAttention(*sizes)
