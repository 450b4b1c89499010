"""The Triton kernel of causal linear attention in the interpreter, against the quadratic form in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from softgate._triton import interpreting
from softgate._triton.linear import causal_linear_attention

pytestmark = pytest.mark.skipif(
    not (interpreting() or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)

DEVICE = "cpu" if interpreting() else "cuda"
EPS = 1e-2


def quadratic(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    pairs = (query @ key.mT).tril()
    return pairs @ value / (pairs.sum(-1, keepdim=True) + floor(query)[..., None])


def floor(query: Tensor) -> Tensor:
    """What is added to the denominators: grows with the number of keys."""
    counts = torch.arange(1, query.shape[2] + 1, device=query.device)
    return EPS * counts.expand(query.shape[:3])


@pytest.mark.parametrize(("dtype", "budget"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("length", [1, 16, 37])
@pytest.mark.parametrize("groups", [1, 2])
def test_outputs_and_gradients(dtype, budget, length, groups) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 2, length, 20), (1, groups, length, 20), (1, groups, length, 12))
    tensors = [torch.rand(s, generator=generator).to(dtype).to(DEVICE).requires_grad_() for s in shapes]
    wide = [x.detach().cpu().double().requires_grad_() for x in tensors]
    out = causal_linear_attention(*tensors, floor(tensors[0]), quadratic, rounded_to=dtype)
    expected = quadratic(*wide)
    upstream = torch.randn(out.shape, generator=generator)
    got = torch.autograd.grad(out, tensors, upstream.to(DEVICE))
    truth = torch.autograd.grad(expected, wide, upstream.double())
    for a, b in zip((out.detach(), *got), (expected.detach(), *truth), strict=True):
        assert float((a.cpu().double() - b).abs().max()) <= budget * max(float(b.abs().max()), 1.0)


def test_second_derivatives_go_through_the_reference() -> None:
    tensors = [torch.rand(1, 1, 5, 4, device=DEVICE, requires_grad=True) for _ in range(3)]
    (first,) = torch.autograd.grad(
        causal_linear_attention(*tensors, floor(tensors[0]), quadratic).sum(), tensors[0], create_graph=True
    )
    (expected,) = torch.autograd.grad(quadratic(*tensors).sum(), tensors[0], create_graph=True)
    second, truth = (torch.autograd.grad(g.square().sum(), tensors[1])[0] for g in (first, expected))
    torch.testing.assert_close(second, truth)
