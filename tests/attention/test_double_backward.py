"""Second gradients where one tensor is query, key and value at once: no way through it may be counted twice."""

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


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    return gated_attention(query, key, value, query[..., :1], **options)


CALLS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "gated": (softmax_attention, {}),
    "sigmoid": (sigmoid_attention, {"bias": -1.0}),
    "clipped": (clipped_softmax_attention, {"gamma": -0.05}),
    "softplus": (softplus_attention, {"reweight_power": 3.0}),
    "lssa": (softplus_attention, {"reweight_power": None}),
    "norm_aware": (norm_aware_linear_attention, {}),
}
BACKENDS = {
    "gated": ("native", "flash_cpu", "triton"),
    "sigmoid": ("native", "tiled", "triton"),
    "clipped": ("native", "tiled", "triton"),
    "softplus": ("native", "tiled", "triton"),
    "lssa": ("native", "tiled", "triton"),
    "norm_aware": ("chunked", "triton"),
}


def gradients(name: str, backend: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second gradient of a scalar of the output."""
    function, options = CALLS[name]
    x = x.clone().requires_grad_()
    y = function(x, x, x, is_causal=True, backend=backend, **options)
    (first,) = torch.autograd.grad((y * torch.linspace(-1.0, 1.0, y.numel()).view(y.shape)).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return first.detach(), second


@pytest.mark.parametrize(("name", "backend"), [(name, b) for name, backends in BACKENDS.items() for b in backends])
def test_one_tensor_in_three_places(name: str, backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    if backend == "native":
        from softgate import native

        if not native.available():
            pytest.skip(native.unavailable_reason())
    x = torch.randn(1, 2, 9, 6, generator=torch.Generator().manual_seed(0))
    truth = gradients(name, "reference", x)
    for got, expected in zip(gradients(name, backend, x), truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
