"""The compiled kernels for experts against float64, for every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softgate import native
from softgate.routing import moe_ffn
from softgate.routing.expert_ffn import native_rows

pytestmark = pytest.mark.skipif(not native.available(), reason=native.unavailable_reason() or "kernels are there")


@pytest.fixture(params=("avx512", "avx2", "scalar"))
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in native.info()["isas"]:
        pytest.skip(f"this machine has no {request.param}")
    with native.use_isa(request.param):
        yield request.param


def segments_of(*sizes: int) -> list[tuple[int, int, int]]:
    """(expert, start, end) of the given sizes, one row between them that belongs to nobody."""
    found, start = [], 0
    for expert, size in enumerate(sizes):
        found.append((expert, start, start + size))
        start += size + 1
    return found


def close(found: Tensor, expected: Tensor, terms: int, *factors: Tensor) -> None:
    """Within the rounding of sums of that many products, and of what they are stored in."""
    largest = 1.0
    for factor in factors:
        largest *= float(factor.abs().max())
    stored = 0.0 if found.dtype is torch.float32 else torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=stored, atol=1e-6 + 3e-7 * terms**0.5 * largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("inputs", [1, 15, 16, 50, 256])
@pytest.mark.parametrize("outputs", [1, 3, 4, 37])
def test_the_three_products_equal_float64(isa: str, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(inputs + outputs)
    segments = segments_of(1, 2, 3, 4, 5, 11)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, w, g, bias = draw(32, inputs), draw(6, outputs, inputs), draw(32, outputs), draw(6, outputs)
    y, dx, dw = torch.full_like(g, 7.0), torch.full_like(x, 7.0), torch.full_like(w, 7.0)
    native_rows.forward(segments, x, w, bias, y)
    native_rows.input_grad(segments, g, w, dx)
    native_rows.weight_grad(segments, {2}, g, x, dw)
    once = dw[0].clone()
    native_rows.weight_grad([segments[0]], {0}, g, x, dw)
    belongs = torch.zeros(32, dtype=torch.bool)
    for expert, start, end in segments:
        rows, matrix = slice(start, end), w[expert].double()
        belongs[rows] = True
        close(y[rows], x[rows].double() @ matrix.t() + bias[expert].double(), inputs, x, w)
        close(dx[rows], g[rows].double() @ matrix, outputs, g, w)
        expected = g[rows].double().t() @ x[rows].double()
        # one came twice, another was to be added to what was there
        expected = once.double() + expected if expert == 0 else expected + 7 if expert == 2 else expected
        close(dw[expert], expected, end - start, g, x)
    for untouched in (y, dx):
        assert (untouched[~belongs] == 7).all()


def test_without_outputs_there_is_no_input_gradient(isa: str) -> None:
    dx = torch.full((2, 5), 7.0)
    native_rows.input_grad([(0, 0, 2)], torch.empty(2, 0), torch.empty(1, 0, 5), dx)
    assert not dx.any()


@pytest.mark.parametrize(("whole", "part"), [(8, 1), (40, 10)], ids=["few", "many"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(
    isa: str, whole: int, part: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (whole, 300), (1, 520, 300), (whole, 520)
    x, w, g = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)

    def run(segments: list[tuple[int, int, int]]) -> list[Tensor]:
        y, dx, dw = torch.empty_like(g), torch.empty_like(x), torch.empty_like(w)
        native_rows.forward(segments, x, w, None, y)
        native_rows.input_grad(segments, g, w, dx)
        native_rows.weight_grad([(0, 0, whole)], set(), g, x, dw)
        return [y, dx, dw]

    threads = torch.get_num_threads()
    together = run([(0, 0, whole)])
    torch.set_num_threads(3)
    try:
        alone = run([(0, row, row + part) for row in range(0, whole, part)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))


def test_rows_with_gaps_between_them(isa: str) -> None:
    wide, out = torch.randn(5, 40), torch.zeros(5, 20)
    w = torch.randn(1, 6, 24)
    native_rows.forward([(0, 0, 5)], wide[:, 8:32], w, None, out[:, 3:9])
    torch.testing.assert_close(out[:, 3:9], wide[:, 8:32] @ w[0].t())
    assert not out[:, :3].any()
    assert not out[:, 9:].any()


def exact_gate(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, -1)
    return F.silu(gate) * up


def gate_inputs(features: int) -> Tensor:
    h = 4 * torch.randn(7, 2 * features, generator=torch.Generator().manual_seed(features))
    h[0, :features] = torch.linspace(-120, 120, features)
    return h


@pytest.mark.parametrize("features", [1, 8, 16, 19, 64])
def test_the_gate_and_its_gradients_equal_float64(isa: str, features: int) -> None:
    h = gate_inputs(features)
    a, scaled, da, dh = (
        torch.empty(7, features),
        torch.empty(7, features),
        torch.randn(7, features),
        torch.empty_like(h),
    )
    w = torch.randn(7)
    native_rows.swiglu(h, a)
    dw = native_rows.swiglu_backward(h, da, w, scaled, dh)
    wide, factor = h.double().requires_grad_(), w.double().requires_grad_()
    expected = exact_gate(wide)
    torch.testing.assert_close(a.double(), expected.detach(), rtol=6e-7, atol=1e-35)
    product = factor[:, None] * expected
    torch.testing.assert_close(scaled.double(), product.detach(), rtol=8e-7, atol=1e-35)
    slope, of_factor = torch.autograd.grad(product, (wide, factor), da.double())
    scale = float(da.abs().max() * h.abs().max() * w.abs().max())  # the slope of silu has a zero
    torch.testing.assert_close(dh.double(), slope, rtol=2e-6, atol=3e-7 * scale)
    largest = float((da.double() * expected.detach()).abs().max())
    torch.testing.assert_close(dw.double(), of_factor, rtol=0, atol=1e-6 * features**0.5 * largest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gate_in_16_bits_is_rounded_once(isa: str, dtype: torch.dtype) -> None:
    h, da, w = (torch.randn(5, size).to(dtype) for size in (38, 19, 1))
    a, dh = torch.empty_like(da), torch.empty_like(h)
    dw = native_rows.swiglu_backward(h, da, w[:, 0], a, dh)
    wide, factor = h.double().requires_grad_(), w.double().requires_grad_()
    product = factor * exact_gate(wide)
    slope, of_factor = torch.autograd.grad(product, (wide, factor), da.double())
    half = torch.finfo(dtype).eps / 2 * 1.01
    torch.testing.assert_close(a.double(), product.detach(), rtol=half, atol=1e-6)
    torch.testing.assert_close(dh.double(), slope, rtol=half, atol=1e-5)
    torch.testing.assert_close(dw.double(), of_factor[:, 0], rtol=1e-5, atol=1e-5)


def test_infinities_and_nan_are_those_of_torch(isa: str) -> None:
    gate = torch.tensor([[float("inf"), float("-inf"), float("nan"), 0.0, 3e38, -3e38]])
    h, a = torch.cat([gate, torch.ones(1, 6)], 1), torch.empty(1, 6)
    native_rows.swiglu(h, a)
    torch.testing.assert_close(a, exact_gate(h), equal_nan=True)


@pytest.mark.parametrize("tokens", [1, 3, 9, 60])
def test_the_layer_is_the_same_with_and_without_the_kernels(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 20, generator=generator)
    gate_up, down = torch.randn(6, 24, 20, generator=generator), torch.randn(6, 20, 12, generator=generator)
    indices, weights = torch.rand(tokens, 6, generator=generator).argsort(-1)[:, :2], torch.rand(tokens, 2)
    leaves = [t.requires_grad_() for t in (x, gate_up, down, weights)]

    def run() -> list[Tensor]:
        y = moe_ffn(x, gate_up, down, indices, weights)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]

    calls: list[int] = []
    products = native_rows._products
    monkeypatch.setattr(native_rows, "_products", lambda *args: (calls.append(args[0]), products(*args)))
    ours = run()
    assert (set(calls) == {0, 1, 2}) == (tokens < 60 or native.kernels().has_matmul())
    monkeypatch.setattr(native_rows, "suits", lambda *tensors: False)
    for mine, theirs in zip(ours, run(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=3e-6 * float(theirs.abs().max()))
