"""Norm-aware linear attention against the authors' module, with its intermediates, and a public cosine core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from softgate.attention import NormAwareLinearAttention, map_rope, norm_aware_features, norm_aware_linear_attention

CORES = ("core_cosine", "core_cosine_smallnorm")
MODULES = {"module_polarity_h1": (6, 4, 1), "module_polarity_h2": (4, 5, 2)}  # height, width, heads
TOLERANCE = {"rtol": 2e-6, "atol": 2e-6}  # the arrays are stored in float32


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def same(actual: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual.float() / scale, expected / scale, **TOLERANCE)


@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_the_cosine_core(name: str, backend: str, golden: Callable[[str], Path]) -> None:
    arrays = load(golden("nalaformer") / f"{name}.npz")
    q, k, v = (arrays[x].double().requires_grad_() for x in "qkv")
    same(norm_aware_features(q, "query", direction="cosine"), arrays["phi_q"])
    same(norm_aware_features(k, "key", direction="cosine"), arrays["phi_k"])
    y = norm_aware_linear_attention(q, k, v, direction="cosine", backend=backend)
    same(y, arrays["out"])
    y.backward(arrays["grad_out"].double())
    for tensor, grad in ((q, "dq"), (k, "dk"), (v, "dv")):
        assert tensor.grad is not None
        same(tensor.grad, arrays[grad])


@pytest.mark.parametrize("name", MODULES)
def test_the_authors_features_rotation_and_core(name: str, golden: Callable[[str], Path]) -> None:
    arrays = load(golden("nalaformer") / f"{name}.npz")
    height, width, _ = MODULES[name]
    q, k, v = (arrays[x].double() for x in "qkv")
    same(norm_aware_features(q, "query"), arrays["phi_q"])
    same(norm_aware_features(k, "key"), arrays["phi_k"])
    cos, sin = map_rope(height, width, q.shape[-1])
    same(cos, arrays["rope_cos"])
    same(sin, arrays["rope_sin"])
    y = norm_aware_linear_attention(q, k, v, rope=(cos.double(), sin.double()))
    core = arrays["core"]
    same(y, core)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_the_authors_module(
    name: str, kernels: str, golden: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
    arrays = load(golden("nalaformer") / f"{name}.npz")
    height, width, heads = MODULES[name]
    layer = NormAwareLinearAttention(arrays["x"].shape[1], heads).double()
    layer.load_state_dict({key.removeprefix("p__"): value for key, value in arrays.items() if key.startswith("p__")})
    x = arrays["x"].double().requires_grad_()
    out = layer(x.flatten(2).mT, height, width).mT.unflatten(-1, (height, width))
    same(out, arrays["out"])
    out.backward(arrays["grad_out"].double())
    assert x.grad is not None
    same(x.grad, arrays["grad_x"])
    stored = {key.removeprefix("g__"): value for key, value in arrays.items() if key.startswith("g__")}
    parameters = dict(layer.named_parameters())
    assert parameters.keys() == stored.keys()
    for key, expected in stored.items():
        gradient = parameters[key].grad
        assert gradient is not None
        same(gradient, expected)
