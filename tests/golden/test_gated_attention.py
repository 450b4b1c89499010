"""GatedAttention against arrays made by the authors' Qwen3Attention: outputs, weights, all gradients, decoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate._math.masks import key_padding_mask
from softgate.attention import GatedAttention, KVCache, export_gated_state_dict, import_gated_state_dict

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 16
FILES = ("baseline_nogate", "elementwise_causal", "headwise_causal", "headwise_padmask")
SIZES = (HEADS, KV_HEADS)
# The authors' class takes the softmax in float32 even when everything else is float64.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def build(name: str, arrays: dict[str, Tensor]) -> GatedAttention:
    parameters = {key.removeprefix("p__"): value for key, value in arrays.items() if key.startswith("p__")}
    layer = GatedAttention(
        48,
        HEADS,
        KV_HEADS,
        HEAD_DIM,
        gate_position="none" if name == "baseline_nogate" else "sdpa",
        granularity="elementwise" if name.startswith("elementwise") else "headwise",
        qk_norm="q_norm.weight" in parameters,
        rope=10000.0,
        bias="q_proj.bias" in parameters,
    )
    if name != "baseline_nogate":
        parameters = import_gated_state_dict(parameters, *SIZES, head_dim=HEAD_DIM)
    layer.load_state_dict({key: value.double() for key, value in parameters.items()})
    return layer.double()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_output_weights_and_gradients(
    name: str, kernels: str, golden: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
    arrays = load(golden("gated-attention") / f"{name}.npz")
    layer = build(name, arrays)
    x = arrays["x"].double().requires_grad_()
    mask = key_padding_mask(arrays["keep"])
    # A padded query at the front would see nothing; these files pad keys at the end only.
    out = layer(x, attn_mask=mask)
    weights = layer.attention_weights(x.detach(), attn_mask=mask)
    out.backward(arrays["grad_out"].double())

    torch.testing.assert_close(out.float(), arrays["out"], **TOLERANCE)
    torch.testing.assert_close(weights.float(), arrays["attn_probs"], **TOLERANCE)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), arrays["grad_x"], **TOLERANCE)
    gradients = {key: p.grad for key, p in layer.named_parameters() if p.grad is not None}
    if name != "baseline_nogate":
        gradients = export_gated_state_dict(gradients, *SIZES, head_dim=HEAD_DIM)
    stored = {key.removeprefix("g__"): value for key, value in arrays.items() if key.startswith("g__")}
    assert gradients.keys() == stored.keys()
    for key, expected in stored.items():
        torch.testing.assert_close(gradients[key].float(), expected, **TOLERANCE, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("chunk", [1, 5])
@torch.no_grad()
def test_decoding_with_a_growing_cache(name: str, chunk: int, golden: Callable[[str], Path]) -> None:
    arrays = load(golden("gated-attention") / f"{name}.npz")
    layer, cache = build(name, arrays), KVCache(capacity=2)
    pieces = arrays["x"].double().split(chunk, dim=1)
    out = torch.cat([layer(piece, cache=cache) for piece in pieces], dim=1)
    torch.testing.assert_close(out.float(), arrays["out_decode"], **TOLERANCE)


def test_rotary_tables(golden: Callable[[str], Path]) -> None:
    arrays = load(golden("gated-attention") / "elementwise_causal.npz")
    layer = build("elementwise_causal", arrays)
    assert layer.rotary is not None
    cos, sin = layer.rotary(torch.arange(12))
    torch.testing.assert_close(cos.expand_as(arrays["cos"]).float(), arrays["cos"])
    torch.testing.assert_close(sin.expand_as(arrays["sin"]).float(), arrays["sin"])


def test_cutting_the_projection_in_halves_is_wrong(golden: Callable[[str], Path]) -> None:
    """The pitfall that the converters exist for: [queries | gates] loads without error and computes something else."""
    arrays = load(golden("gated-attention") / "elementwise_causal.npz")
    layer = build("elementwise_causal", arrays)
    with torch.no_grad():
        half = HEADS * HEAD_DIM
        layer.q_proj.weight.copy_(arrays["p__q_proj.weight"][:half])
        layer.gate_proj.weight.copy_(arrays["p__q_proj.weight"][half:])  # type: ignore[union-attr]
        out = layer(arrays["x"].double())
    assert (out.float() - arrays["out"]).abs().max() > 0.1
