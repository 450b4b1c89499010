"""The C++ attention kernels against the references: outputs, gradients, masks, strides, threads, instruction sets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from softgate import native
from softgate.attention import clipped_softmax_attention, gated_attention, sigmoid_attention, softplus_attention
from softgate.dispatch import explain

pytestmark = pytest.mark.skipif(not native.available(), reason=native.unavailable_reason() or "native kernels")

INF = float("inf")


def _gated(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    gate = (query * 0.5).mean(-1, keepdim=True)  # headwise, and a path of its own to the gradient of the queries
    return gated_attention(query, key, value, gate, **options)


def _elementwise(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    gate = query.mean(-1, keepdim=True) * torch.linspace(-2.0, 2.0, value.shape[-1], dtype=query.dtype)
    return gated_attention(query, key, value, gate, gate_activation="ns_sigmoid", **options)


OPS: dict[str, Callable[..., Tensor]] = {
    "gated": _gated,
    "gated elementwise": _elementwise,
    "ungated": lambda q, k, v, **options: gated_attention(q, k, v, None, **options),
    "sigmoid": functools.partial(sigmoid_attention, seq_len=20),
    "clipped": functools.partial(clipped_softmax_attention, gamma=-0.03, zeta=1.02),
    "lssa": functools.partial(softplus_attention, reweight_power=None),
    "lssar 15": softplus_attention,
    "lssar 2": functools.partial(softplus_attention, reweight_power=2, length_scale="none", scale=2.0),
}

#: name -> sizes (batch, query heads, key heads, T, S, D, Dv) and options. The lengths straddle the kernels' blocks
#: (72 and 192 queries, 128 and 256 keys) and their register tiles.
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "one pair": ((1, 1, 1, 1, 1, 3, 2), {}),
    "odd sizes": ((2, 3, 3, 13, 37, 7, 5), {}),
    "causal": ((1, 2, 2, 75, 75, 16, 16), {"is_causal": True}),
    "blocks": ((1, 1, 1, 200, 530, 8, 24), {}),
    "causal, more keys": ((1, 1, 1, 197, 300, 8, 8), {"is_causal": True}),
    "causal, more queries": ((1, 1, 1, 40, 9, 8, 8), {"is_causal": True}),
    "grouped": ((2, 4, 2, 20, 33, 9, 8), {"enable_gqa": True, "is_causal": True}),
    "window": ((1, 2, 2, 300, 300, 8, 8), {"is_causal": True, "window": 70}),
    "two-sided window": ((1, 1, 1, 90, 301, 8, 8), {"window": 5}),
    "chunks of keys": ((1, 1, 1, 9, 2300, 8, 8), {"is_causal": True}),
}


def draw(sizes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    batch, heads, groups, queries, keys, dim, features = sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, queries, dim), (batch, groups, keys, dim), (batch, groups, keys, features)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def assert_agrees(op: Callable[..., Tensor], inputs: list[Tensor], options: dict[str, Any]) -> None:
    """Against the float64 reference, no further off than a few times the float32 reference."""
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact_options = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in options.items()
    }
    output = op(*inputs, **options, backend="native")
    exact = op(*exact_inputs, **exact_options, backend="reference")
    plain = op(*inputs, **options, backend="reference")
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    results = [(output, exact, plain)]
    grads = [
        torch.autograd.grad(y, x, upstream.to(y.dtype))
        for y, x in ((output, inputs), (exact, exact_inputs), (plain, inputs))
    ]
    results += zip(*grads, strict=True)
    for got, want, rounded in results:
        assert got.isfinite().all()
        size = want.abs().max().item()
        allowed = 4 * (rounded - want).abs().max().item() + 64 * 2.0**-23 * max(size, 0.1)
        assert (got - want).abs().max().item() <= allowed


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OPS)
def test_agrees_with_the_reference(name: str, case: str) -> None:
    sizes, options = CASES[case]
    assert_agrees(OPS[name], draw(sizes), options)


def masks_of(batch: int, heads: int, queries: int, keys: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(2)
    pairs = torch.rand(batch, 1, queries, keys, generator=generator) > 0.4
    pairs[0, :, 1] = False  # a query without any key
    yield pairs
    yield torch.rand(batch, 1, 1, keys, generator=generator) > 0.3  # padding, the same for all queries
    yield (torch.rand(keys, queries, generator=generator) > 0.3).T  # transposed
    additive = torch.randn(heads, queries, keys, generator=generator)
    yield additive.masked_fill(torch.rand(queries, keys, generator=generator) < 0.2, -INF)
    yield torch.randn(queries, 1, generator=generator)  # one number for all keys


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("name", OPS)
def test_masks(name: str, number: int) -> None:
    mask = list(masks_of(2, 3, 21, 39))[number]
    assert_agrees(OPS[name], draw((2, 3, 3, 21, 39, 8, 8)), {"attn_mask": mask, "is_causal": number == 0})


def test_alibi_biases_and_window_pairs() -> None:
    inputs = draw((2, 3, 3, 90, 140, 8, 8))
    slopes, bias = torch.tensor([0.5, 0.1, 0.02]), torch.tensor([[-1.0, 0.5, 0.0], [-2.0, 0.1, 3.0]])
    for options in ({"window": (20, 3)}, {"window": (-1, 0)}, {"is_causal": True}):
        assert_agrees(sigmoid_attention, inputs, {"alibi_slopes": slopes, "bias": bias, **options})


def test_gradient_of_the_bias() -> None:
    inputs = draw((2, 3, 3, 90, 140, 8, 8))
    found = []
    for backend, dtype in (("native", torch.float32), ("reference", torch.float64)):
        bias = torch.tensor([-1.0, 0.5, 0.0], dtype=dtype, requires_grad=True)
        sigmoid_attention(*(x.detach().to(dtype) for x in inputs), bias=bias, backend=backend).square().sum().backward()
        found.append(bias.grad)
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPS)
def test_any_strides_and_leading_dimensions(name: str) -> None:
    q, k, v = (x.detach() for x in draw((2, 3, 3, 20, 30, 6, 6)))
    expected = OPS[name](q, k, v, backend="native")
    strided = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v)]
    torch.testing.assert_close(OPS[name](*strided, backend="native"), expected, rtol=1e-5, atol=1e-6)
    deep = OPS[name](*(x.unflatten(0, (1, 2)) for x in (q, k, v)), backend="native")
    assert torch.equal(deep.flatten(0, 1), expected)
    shallow = OPS[name](q[0], k[0], v[0], backend="native")
    assert torch.equal(shallow, expected[0])


@pytest.mark.parametrize("name", OPS)
def test_bits_depend_neither_on_threads_nor_on_the_batch(name: str) -> None:
    inputs = draw((2, 2, 1, 150, 2304, 16, 16))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            output = OPS[name](*inputs, enable_gqa=True, is_causal=True, backend="native")
            found.append((output, *torch.autograd.grad(output.sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    alone = OPS[name](*(x[1:] for x in inputs), enable_gqa=True, is_causal=True, backend="native")
    assert torch.equal(alone[0], found[0][0][1])


@pytest.mark.parametrize("isa", native.info()["isas"])
@pytest.mark.parametrize("name", OPS)
def test_every_instruction_set(name: str, isa: str) -> None:
    with native.use_isa(isa):
        assert_agrees(OPS[name], draw((1, 2, 1, 77, 141, 9, 10)), {"is_causal": True, "enable_gqa": True})


@pytest.mark.parametrize("name", OPS)
def test_nan_stays_in_its_row(name: str) -> None:
    q, k, v = (x.detach() for x in draw((1, 2, 2, 20, 30, 6, 6)))
    clean = OPS[name](q, k, v, backend="native")
    q[0, 1, 4, 2] = float("nan")
    output = OPS[name](q, k, v, backend="native")
    assert output[0, 1, 4].isnan().all()
    output[0, 1, 4] = clean[0, 1, 4]
    assert torch.equal(output, clean)
    k[0, 0, 3, 1] = float("nan")
    assert OPS[name](q, k, v, backend="native")[0, 0].isnan().all()


@pytest.mark.parametrize("name", ["gated", "sigmoid", "clipped"])
@pytest.mark.parametrize("factor", [1e4, 1e38])
def test_huge_scores(name: str, factor: float) -> None:
    q, k, v = (x.detach() for x in draw((1, 1, 1, 5, 40, 4, 4)))
    q = q.sign() * factor
    k = k.sign()  # exact products, so that maxima tie as in the reference
    output, expected = (OPS[name](q, k, v, backend=b) for b in ("native", "reference"))
    torch.testing.assert_close(output, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_rows_of_minus_infinity_are_nan_only_if_they_see_a_key() -> None:
    q, k, v = torch.full((1, 1, 3, 1), INF), -torch.ones(1, 1, 5, 1), torch.ones(1, 1, 5, 1)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    output = gated_attention(q, k, v, None, mask, backend="native")
    assert output.flatten().isnan().tolist() == [True, False, True]
    assert output[0, 0, 1] == 0.0


@pytest.mark.parametrize("name", OPS)
def test_fully_masked_rows_have_no_gradient(name: str) -> None:
    inputs = draw((1, 2, 2, 20, 30, 6, 6))
    mask = torch.ones(20, 30, dtype=torch.bool)
    mask[7] = False
    output = OPS[name](*inputs, attn_mask=mask, backend="native")
    assert (output[:, :, 7] == 0.0).all()
    grads = torch.autograd.grad(output[:, :, 7].sum(), inputs)
    assert all((grad == 0.0).all() for grad in grads)


@pytest.mark.parametrize("name", OPS)
def test_second_derivatives(name: str) -> None:
    inputs = draw((1, 1, 1, 6, 7, 3, 3))
    found = []
    for backend in ("native", "reference"):
        first = torch.autograd.grad(OPS[name](*inputs, backend=backend).square().sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-4 * max(1.0, want.abs().max().item()))


@pytest.mark.parametrize("name", OPS)
def test_nothing_kept_grows_with_the_product_of_lengths(name: str) -> None:
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        OPS[name](*draw((1, 1, 1, 512, 512, 8, 8)), is_causal=True, backend="native")
    assert max(sizes) <= 512 * 8


def test_auto_takes_it_where_it_is_faster() -> None:
    q, k, v = (x.detach() for x in draw((1, 1, 1, 64, 64, 8, 8)))
    expected = "native" if native.kernels().isa() != "scalar" else "reference"
    assert explain(clipped_softmax_attention, q, k, v, gamma=-0.1).chosen == expected
    few = explain(clipped_softmax_attention, q[:, :, :1], k.repeat(1, 1, 9, 1), v.repeat(1, 1, 9, 1), gamma=-0.1)
    assert few.chosen == "reference"
    assert (
        "float32"
        in explain(clipped_softmax_attention, q.double(), k.double(), v.double(), gamma=-0.1).refused["native"]
    )
    assert "softcap" in explain(sigmoid_attention, q, k, v, bias=-1.0, softcap=2.0).refused["native"]
