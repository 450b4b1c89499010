"""Directions of vectors and sums of products, by kernels, against their formulas in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from softgate._triton import interpreting, rows

pytestmark = pytest.mark.skipif(
    not (interpreting() or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)

DEVICE = "cpu" if interpreting() else "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_vectors_of_any_size_have_a_direction(dtype: torch.dtype) -> None:
    x = torch.randn(2, 37, 3, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.transpose(1, 2)
    largest = 1e4 if dtype is torch.float16 else 1e30  # the square of the latter is no float32
    x[0, 0, 0], x[0, 0, 1] = largest, 0.0
    out, factor, size = (y.cpu().double() for y in rows.directions(x.to(DEVICE)))
    top = x.double().abs().amax(-1)
    assert torch.equal(out, x.double() * size[..., None])
    assert bool(((top * size >= 1.0) & (top * size < 2.0) | (top == 0.0)).all())
    expected = torch.where(top > 0.0, 1.0 / out.square().sum(-1).sqrt(), 0.0)
    torch.testing.assert_close(factor, expected, rtol=3e-7, atol=0.0)
    assert float(factor[0, 0, 1]) == float(size[0, 0, 1]) == 0.0


def test_a_tangent_has_no_part_along_its_vector() -> None:
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(1, 2, 37, 20, generator=generator) for _ in range(2))
    size = torch.rand(1, 2, 37, generator=generator)
    along = (gradient.double() * x).sum(-1, keepdim=True) / x.double().square().sum(-1, keepdim=True)
    expected = (gradient - along * x) * size[..., None]
    got = rows.tangents(gradient.to(DEVICE), x.to(DEVICE), size.to(DEVICE))
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=1e-6)


def test_row_products() -> None:
    a, b = (torch.randn(1, 2, 37, 12, generator=torch.Generator().manual_seed(i)).to(torch.bfloat16) for i in range(2))
    got = rows.row_products(a.to(DEVICE), b.to(DEVICE))
    torch.testing.assert_close(got.cpu().double(), (a.double() * b.double()).sum(-1), rtol=1e-5, atol=1e-6)
