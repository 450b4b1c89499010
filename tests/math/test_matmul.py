"""The compiled products against float64, in every layout and dtype, and when they stand back."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from softgate import native
from softgate._math.matmul import multiply, suits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
needs_products = pytest.mark.skipif(
    not (native.available() and native.kernels().has_matmul()), reason="no compiled products on this machine"
)


def matrix(rows: int, columns: int, dtype: torch.dtype, transposed: bool) -> Tensor:
    """Random, in a larger matrix: rows have gaps between them."""
    if transposed:
        return torch.randn(columns, rows + 3).to(dtype)[:, 2 : rows + 2].t()
    return torch.randn(rows, columns + 3).to(dtype)[:, 2 : columns + 2]


def exact(a: Tensor, b: Tensor) -> Tensor:
    return a.double() @ b.double()


@needs_products
@pytest.mark.parametrize("shape", [(64, 8, 64), (67, 9, 70), (151, 261, 300), (300, 70, 513)], ids=str)
@pytest.mark.parametrize("transposed", itertools.product((False, True), repeat=2), ids=str)
def test_every_layout_equals_float64(shape: tuple[int, int, int], transposed: tuple[bool, bool]) -> None:
    m, n, k = shape
    torch.manual_seed(m)
    a, b = matrix(m, k, torch.float32, transposed[0]), matrix(k, n, torch.float32, transposed[1])
    out = torch.full((m, n + 2), 7.0)[:, 1 : n + 1]
    assert suits(a, b, out)
    multiply(a, b, out)
    torch.testing.assert_close(out.double(), exact(a, b), rtol=0, atol=5e-6 * k**0.5)
    multiply(a, b, out, add=True)
    torch.testing.assert_close(out.double(), 2 * exact(a, b), rtol=0, atol=1e-5 * k**0.5)
    assert (out._base[:, 0] == 7).all()
    assert (out._base[:, n + 1] == 7).all()


@needs_products
@pytest.mark.parametrize("dtypes", itertools.product(DTYPES, repeat=3), ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_dtypes_mix_and_results_are_rounded_once(dtypes: tuple[torch.dtype, ...], transposed: bool) -> None:
    torch.manual_seed(0)
    a, b = matrix(80, 300, dtypes[0], transposed), matrix(300, 34, dtypes[1], not transposed)
    before = torch.randn(80, 34).to(dtypes[2])
    out, added = torch.empty_like(before), before.clone()
    multiply(a, b, out)
    multiply(a, b, added, add=True)
    rtol = torch.finfo(dtypes[2]).eps / 2 * 1.001
    torch.testing.assert_close(out.double(), exact(a, b), rtol=rtol, atol=5e-5)
    torch.testing.assert_close(added.double(), before.double() + exact(a, b), rtol=rtol, atol=5e-5)


@needs_products
@pytest.mark.parametrize("shape", [(1200, 40, 100), (40, 1200, 100)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_depend_on_no_thread_and_no_neighbour(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, n, k = shape
    a, b = matrix(m, k, dtype, False), matrix(k, n, dtype, True)
    whole, parts = torch.empty(m, n, dtype=dtype), torch.empty(m, n, dtype=dtype)
    multiply(a, b, whole)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for rows in (slice(0, 13), slice(13, m)):
            for columns in (slice(0, 17), slice(17, n)):
                multiply(a[rows], b[:, columns], parts[rows, columns])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole, parts)


@needs_products
def test_infinities_and_nan_stay_in_their_row() -> None:
    a, b = torch.ones(70, 64), torch.ones(64, 20)
    a[3, 5], a[9, 0] = float("inf"), float("nan")
    out = torch.empty(70, 20)
    multiply(a, b, out)
    assert torch.isinf(out[3]).all()
    assert torch.isnan(out[9]).all()
    others = [row for row in range(70) if row not in (3, 9)]
    assert (out[others] == 64).all()


@pytest.mark.parametrize("terms", [0, 3])
def test_nothing_to_sum_or_to_write(terms: int) -> None:
    out = torch.full((9, 12), 7.0, dtype=torch.bfloat16)
    multiply(torch.ones(9, terms, dtype=out.dtype), torch.ones(terms, 12, dtype=out.dtype), out)
    assert (out == terms).all()
    multiply(torch.ones(9, terms, dtype=out.dtype), torch.ones(terms, 12, dtype=out.dtype), out, add=True)
    assert (out == 2 * terms).all()
    multiply(torch.ones(0, terms), torch.ones(terms, 12), torch.empty(0, 12))


def test_what_does_not_suit_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(80, 80, dtype=torch.float64), torch.randn(80, 80, dtype=torch.float64)
    out = torch.empty_like(a)
    assert not suits(a, b, out)
    multiply(a, b, out)
    assert torch.equal(out, a @ b)
    a, b, out = a.float(), b.float(), out.float()
    gaps = torch.randn(80, 160)[:, ::2]
    assert not suits(a, b, torch.empty(80, 160)[:, ::2])
    assert not suits(gaps, b, out)
    monkeypatch.setattr(native, "available", lambda: False)
    multiply(a, b, out)
    multiply(a, b, out, add=True)
    assert torch.equal(out, torch.addmm(a @ b, a, b))
