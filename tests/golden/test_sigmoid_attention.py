"""sigmoid_attention and SigmoidAttention against arrays made by the authors' reference and simulator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate._math import tiles
from softgate._math.masks import key_padding_mask
from softgate.attention import SigmoidAttention, alibi_slopes, sigmoid_attention

FUNCTIONS = ("full", "causal", "causal_gqa_crosslen", "alibi_full", "window_alibi", "keypad")
OUTPUT = {"rtol": 1e-5, "atol": 1e-5}
GRADIENT = {"rtol": 1e-4, "atol": 1e-4}


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def options_of(arrays: dict[str, Tensor]) -> dict[str, Any]:
    left, right = arrays["window"].tolist()
    return {
        "bias": float(arrays["bias"]),
        "is_causal": bool(arrays["causal"]),
        "window": (left, right),
        "alibi_slopes": arrays.get("alibi_slopes"),
        "attn_mask": key_padding_mask(arrays["key_keep"]) if "key_keep" in arrays else None,
        "enable_gqa": arrays["q"].shape[2] != arrays["k"].shape[2],
    }


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_function(
    name: str, dtype: torch.dtype, backend: str, golden: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_LARGEST", 4)  # several tiles even at these lengths
    arrays = load(golden("sigmoid-attention") / f"func_{name}.npz")
    q, k, v = (arrays[n].transpose(1, 2).to(dtype).requires_grad_() for n in "qkv")
    options = {**options_of(arrays), "backend": backend}
    out = sigmoid_attention(q, k, v, **options)
    out.backward(arrays["grad_out"].transpose(1, 2).to(dtype))
    torch.testing.assert_close(out.transpose(1, 2).float(), arrays["out"], **OUTPUT)
    for tensor, expected in ((q, "dq"), (k, "dk"), (v, "dv")):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad.transpose(1, 2).float(), arrays[expected], **GRADIENT)
    # The weights are the result for the identity as values.
    eye = torch.eye(k.shape[-2], dtype=dtype).expand(*k.shape[:2], -1, -1)
    torch.testing.assert_close(sigmoid_attention(q, k, eye, **options).detach().float(), arrays["attn"], **OUTPUT)


@pytest.mark.parametrize("name", ["alibi_full", "window_alibi"])
def test_alibi_is_the_exact_distance(name: str, golden: Callable[[str], Path]) -> None:
    """Their bias as an additive mask gives what the slopes give."""
    arrays = load(golden("sigmoid-attention") / f"func_{name}.npz")
    q, k, v = (arrays[n].transpose(1, 2) for n in "qkv")
    options = options_of(arrays)
    a = sigmoid_attention(q, k, v, **options)
    b = sigmoid_attention(q, k, v, **{**options, "alibi_slopes": None, "attn_mask": arrays["alibi_bias"]})
    torch.testing.assert_close(a, b, **OUTPUT)


MODULES: dict[str, dict[str, Any]] = {
    "alibi": {"alibi": True, "qk_norm": False},
    "rope_qknorm_b10": {"rope": 10000.0},
    "seqlen_norm": {"row_scale": "length"},
}


def build(name: str, arrays: dict[str, Tensor]) -> SigmoidAttention:
    layer = SigmoidAttention(
        32,
        4,
        seq_len=14,
        bias=True,
        bias_init=float(arrays["attn_bias"]),
        temperature=float(arrays["attn_temp"]),
        **MODULES[name],
    )
    parameters = {key[3:]: value for key, value in arrays.items() if key.startswith("p__")}
    layer.load_state_dict({key: value.double() for key, value in split(parameters).items()})
    return layer.double()


def split(fused: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their fused projection as three, under our names.

    They rotate neighbouring features together, we rotate feature i with i + D/2: the same after one reordering of the
    features of queries and keys, which no score notices.
    """
    state = {}
    for key, value in fused.items():
        kind = key.rpartition(".")[2]
        if key.startswith("qkv"):
            state |= {f"{n}_proj.{kind}": part for n, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            state[key.replace("proj.", "o_proj.")] = value
    halves = torch.cat((torch.arange(0, 8, 2), torch.arange(1, 8, 2)))
    for key in state:
        if key[:2] in ("q_", "k_"):
            state[key] = state[key].unflatten(0, (-1, 8))[:, halves].flatten(0, 1)
    return state


@pytest.mark.parametrize("name", MODULES)
def test_module(name: str, golden: Callable[[str], Path]) -> None:
    arrays = load(golden("sigmoid-attention") / f"module_{name}.npz")
    layer = build(name, arrays)
    x = arrays["x"].double().requires_grad_()
    masked: dict[str, Any] = {"attn_mask": arrays["mask"], "is_causal": False}
    out = layer(x, **masked)
    out.backward(arrays["grad_out"].double())
    torch.testing.assert_close(out.float(), arrays["out"], **OUTPUT)
    torch.testing.assert_close(layer.attention_weights(x.detach(), **masked).float(), arrays["attn"], **OUTPUT)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), arrays["grad_x"], **GRADIENT)
    gradients = {key: p.grad.float() for key, p in layer.named_parameters() if p.grad is not None}
    stored = split({key[3:]: value for key, value in arrays.items() if key.startswith("g__")})
    assert gradients.keys() == stored.keys()
    for key, expected in stored.items():
        torch.testing.assert_close(gradients[key], expected, **GRADIENT, msg=lambda m, key=key: f"{key}: {m}")


def test_module_bias_is_the_released_one() -> None:
    """n = 2048 gives -7.62, the number in the released configuration."""
    layer = SigmoidAttention(8, 2, seq_len=2048, learn_bias=True)
    assert layer.attention_bias is not None
    torch.testing.assert_close(layer.attention_bias.detach(), torch.full((2,), -7.6246))
    torch.testing.assert_close(alibi_slopes(8), 0.5 ** torch.arange(1.0, 9))
