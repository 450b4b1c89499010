"""gated_attention: its laws, kernels against the reference, transforms, edge cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softgate.attention import gated_attention
from softgate.attention.gated.reference import gated_attention_reference
from softgate.dispatch import explain

# torch's own forward-mode decompositions are loaded through torch.jit.script, which it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")

INF = float("inf")
BACKENDS = ["reference", "flash_cpu", "sdpa"]


def qkvg(
    heads: int = 2, kv_heads: int = 2, queries: int = 5, keys: int = 5, dim: int = 4, features: int | None = None,
    batch: int = 2, dtype: torch.dtype = torch.float64,
) -> list[Tensor]:  # fmt: skip
    shapes = [
        (batch, heads, queries, dim),
        (batch, kv_heads, keys, dim),
        (batch, kv_heads, keys, dim),
        (batch, heads, queries, features or dim),
    ]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def gradients(output: Tensor, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output, inputs, upstream.to(output.dtype)))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "headwise causal": ({"features": 1}, {"is_causal": True}),
    "grouped": ({"heads": 6, "queries": 3, "keys": 7}, {"enable_gqa": True, "is_causal": True}),
    "multi-query": ({"heads": 4, "kv_heads": 1, "features": 1}, {"enable_gqa": True}),
    "decode": ({"queries": 1, "keys": 9}, {"is_causal": True}),
    "more queries than keys": ({"queries": 7, "keys": 3}, {"is_causal": True}),
    "window": ({}, {"window": 2, "is_causal": True}),
    "two-sided window": ({}, {"window": 2}),
    "odd sizes": ({"queries": 13, "keys": 17, "dim": 7, "heads": 3, "kv_heads": 3}, {"scale": 0.21}),
    "ns": ({}, {"gate_activation": "ns_sigmoid"}),
    "ns headwise": ({"features": 1}, {"gate_activation": "ns_sigmoid", "is_causal": True}),
    "silu": ({}, {"gate_activation": "silu"}),
    "callable": ({}, {"gate_activation": torch.tanh}),
    "factor": ({}, {"gate_is_logit": False}),
}


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_the_reference(case: str, backend: str) -> None:
    sizes, options = CASES[case]
    inputs = qkvg(**sizes)
    expected, output = (gated_attention(*inputs, **options, backend=b) for b in ("reference", backend))
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-13)
    upstream = torch.randn_like(expected)
    for got, want in zip(*(gradients(y, inputs, upstream) for y in (output, expected)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_formula(case: str) -> None:
    """Loops over heads and queries, straight from the definition."""
    sizes, options = CASES[case]
    query, key, value, gate = (x.detach() for x in qkvg(**sizes))
    output = gated_attention(query, key, value, gate, **options, backend="reference")
    scale = options.get("scale", query.shape[-1] ** -0.5)
    share = query.shape[1] // key.shape[1]
    offset = key.shape[2] - query.shape[2]
    activation = options.get("gate_activation", "sigmoid")
    if options.get("gate_is_logit") is False:
        factor = gate
    elif callable(activation):
        factor = activation(gate)
    else:
        sigma = 1 / (1 + torch.exp(-gate))
        factor = {"sigmoid": sigma, "ns_sigmoid": 0.5 + 0.5 * sigma, "silu": gate * sigma}[activation]
    for head in range(query.shape[1]):
        for i in range(query.shape[2]):
            position = i + offset
            window = options.get("window", 10**9)
            seen = [
                j
                for j in range(key.shape[2])
                if abs(position - j) < window and (j <= position or not options.get("is_causal"))
            ]
            scores = query[:, head, i, None] @ key[:, head // share, seen].mT * scale
            expected = (scores.softmax(-1) @ value[:, head // share, seen])[:, 0] * factor[:, head, i]
            torch.testing.assert_close(output[:, head, i], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_open_gate_is_plain_attention(backend: str) -> None:
    query, key, value, _ = qkvg()
    plain = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    for logit in (INF, 45.0):
        gate = torch.full((2, 2, 5, 1), logit, dtype=torch.float64)
        output = gated_attention(query, key, value, gate, is_causal=True, backend=backend)
        torch.testing.assert_close(output, plain)
    torch.testing.assert_close(gated_attention(query, key, value, None, is_causal=True, backend=backend), plain)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_closed_gate_gives_zero_and_no_gradient(backend: str, dtype: torch.dtype) -> None:
    query, key, value, _ = qkvg(dtype=dtype)
    gate = torch.full((2, 2, 5, 4), -INF, dtype=dtype, requires_grad=True)
    output = gated_attention(query, key, value, gate, backend=backend)
    assert (output == 0).all()
    output.sum().backward()
    assert all((x.grad == 0).all() for x in (query, key, value, gate))


@pytest.mark.parametrize("logit", [-200.0, -90.0, -60.0, -20.0, 60.0])
def test_nearly_closed_gates_have_exact_gradients(logit: float) -> None:
    """Y is recovered as Y'/g in backward: a gate that underflows must not spoil the gradients of the others."""
    inputs = [x.detach().float().requires_grad_() for x in qkvg(queries=6, keys=6)]
    with torch.no_grad():
        inputs[3][..., ::2] = logit
    expected_inputs = [x.detach().double().requires_grad_() for x in inputs]
    upstream = torch.randn(2, 2, 6, 4)
    got = gradients(gated_attention(*inputs, backend="flash_cpu"), inputs, upstream)
    want = gradients(gated_attention(*expected_inputs, backend="reference"), expected_inputs, upstream.double())
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_laws(backend: str) -> None:
    query, key, value, _ = (x.detach() for x in qkvg())
    plain = gated_attention(query, key, value, None, backend=backend)
    headwise = torch.randn(2, 2, 5, 1, dtype=torch.float64)

    def run(gate: Tensor, v: Tensor = value, **options: Any) -> Tensor:
        return gated_attention(query, key, v, gate, backend=backend, **options)

    torch.testing.assert_close(run(headwise), run(headwise.expand(2, 2, 5, 4).contiguous()))
    torch.testing.assert_close(run(headwise), plain * headwise.sigmoid())
    constant = torch.full_like(headwise, 0.7)
    torch.testing.assert_close(run(constant), torch.tensor(0.7, dtype=torch.float64).sigmoid() * plain)
    torch.testing.assert_close(run(headwise, 3 * value), 3 * run(headwise))
    shared = headwise[:, :1]
    torch.testing.assert_close(run(shared), run(shared.expand(2, 2, 5, 1).contiguous()))
    squeezed = run(headwise, gate_activation="ns_sigmoid") / plain
    assert (squeezed > 0.5).all() and (squeezed < 1).all()
    order = torch.randperm(5)
    permuted = gated_attention(query, key[:, :, order], value[:, :, order], headwise, backend=backend)
    torch.testing.assert_close(permuted, run(headwise))


def test_gate_makes_the_value_path_nonlinear() -> None:
    """Without a gate W_V and W_O merge into one map of rank <= d; the gate, a function of X too, ends that."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 5, 8, dtype=torch.float64)
    w_v, w_g = torch.randn(8, 2, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    query = key = torch.zeros(1, 1, 5, 2, dtype=torch.float64)  # uniform weights: only the value path remains

    def path(states: Tensor, gated: bool) -> Tensor:
        return gated_attention(query, key, states @ w_v, states @ w_g if gated else None)

    def rank(gated: bool) -> int:  # of the outputs of one head in the residual stream
        w_o = torch.randn(2, 8, dtype=torch.float64)
        outputs = [path(torch.randn_like(x), gated)[0, 0, 0] @ w_o for _ in range(20)]
        return int(torch.linalg.matrix_rank(torch.stack(outputs)))

    assert rank(gated=False) == 2
    a, b = x, torch.randn_like(x)
    torch.testing.assert_close(path(a + b, False), path(a, False) + path(b, False))
    assert (path(a + b, True) - path(a, True) - path(b, True)).abs().max() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_keys_give_zero(backend: str) -> None:
    inputs = qkvg()
    keep = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    keep[0, :, 1] = False
    for mask in (keep, torch.zeros(2, 1, 5, 5, dtype=torch.float64).masked_fill(~keep, -INF)):
        output = gated_attention(*inputs, attn_mask=mask, backend=backend)
        assert (output[0, :, 1] == 0).all() and output.isfinite().all()
        grads = gradients(output, inputs, torch.ones_like(output))
        assert all(g.isfinite().all() for g in grads)
        assert (grads[0][0, :, 1] == 0).all() and (grads[3][0, :, 1] == 0).all()


@pytest.mark.parametrize("masked", [torch.bool, torch.float64])
def test_masked_equals_removed(masked: torch.dtype) -> None:
    query, key, value, gate = qkvg(keys=6)
    keep = torch.tensor([True, True, False, True, False, True])
    mask = keep if masked is torch.bool else torch.zeros(6, dtype=masked).masked_fill(~keep, -INF)
    output = gated_attention(query, key, value, gate, attn_mask=mask.expand(5, 6))
    torch.testing.assert_close(output, gated_attention(query, key[:, :, keep], value[:, :, keep], gate))


def test_causal_combines_with_a_mask() -> None:
    inputs = qkvg()
    keep = torch.rand(2, 1, 1, 5) > 0.3
    output = gated_attention(*inputs, attn_mask=keep, is_causal=True)
    both = keep & torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(output, gated_attention(*inputs, attn_mask=both))


def test_learned_bias_gets_a_gradient() -> None:
    inputs = qkvg()
    bias = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert "gradient for attn_mask" in explain(gated_attention, *inputs, attn_mask=bias).refused["flash_cpu"]
    assert torch.autograd.gradcheck(lambda b: gated_attention(*inputs, attn_mask=b), bias)


@pytest.mark.parametrize("shape", [(2, 2, 0, 5), (2, 2, 5, 0), (0, 2, 5, 5), (2, 0, 5, 5), (1, 1, 1, 1)], ids=str)
def test_empty_and_tiny(shape: tuple[int, int, int, int]) -> None:
    batch, heads, queries, keys = shape
    inputs = qkvg(heads, heads, queries, keys, batch=batch)
    output = gated_attention(*inputs, is_causal=True)
    assert output.shape == (batch, heads, queries, 4) and output.isfinite().all()
    if keys == 0:
        assert (output == 0).all()
    output.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


def test_layouts_do_not_matter() -> None:
    inputs = qkvg(queries=6, keys=6)
    expected = gated_attention(*inputs, is_causal=True, backend="reference")
    projected = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    columns = [x.detach().mT.contiguous().mT for x in inputs]
    spaced = [torch.stack((x.detach(), x.detach()), -1)[..., 0] for x in inputs]
    for layout in (projected, columns, spaced):
        assert not layout[0].is_contiguous()
        for backend in BACKENDS:
            torch.testing.assert_close(gated_attention(*layout, is_causal=True, backend=backend), expected)


def test_value_may_have_other_features() -> None:
    query, key, _, _ = qkvg()
    value, gate = torch.randn(2, 2, 5, 3, dtype=torch.float64), torch.randn(2, 2, 5, 3, dtype=torch.float64)
    plain = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(gated_attention(query, key, value, gate), plain * gate.sigmoid())


@pytest.mark.parametrize("length", [4, 5, 15, 16, 40])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_nan_stays_where_it_belongs(length: int, backend: str) -> None:
    """torch's CPU kernel turns a NaN query into zeros below 16 keys; nothing of that may show."""
    query, key, value, gate = (x.detach() for x in qkvg(queries=length, keys=length))

    def poisoned(which: int) -> Tensor:
        inputs = [x.clone() for x in (query, key, value, gate)]
        inputs[which][0, 1, 2, 3] = float("nan")
        return gated_attention(*inputs, backend=backend).isnan()

    row = torch.zeros(2, 2, length, 4, dtype=torch.bool)
    row[0, 1, 2] = True
    head = torch.zeros_like(row)
    head[0, 1] = True
    element = torch.zeros_like(row)
    element[0, 1, 2, 3] = True
    assert torch.equal(poisoned(0), row)
    assert torch.equal(poisoned(1), head)
    assert not (poisoned(2) & ~head).any() and poisoned(2).any()
    assert torch.equal(poisoned(3), element)


def test_nan_does_not_change_a_bit_elsewhere() -> None:
    query, key, value, gate = (x.detach() for x in qkvg())
    clean = gated_attention(query, key, value, gate)
    query[0, 1, 2, 3] = float("nan")
    rest = torch.ones(2, 2, 5, dtype=torch.bool)
    rest[0, 1, 2] = False
    assert torch.equal(gated_attention(query, key, value, gate)[rest], clean[rest])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gate_dtype", ["same", "float32"])
def test_half_precision_gates_in_float32(backend: str, dtype: torch.dtype, gate_dtype: str) -> None:
    exact = [x.detach().to(dtype).double().requires_grad_() for x in qkvg(queries=33, keys=33, dim=16)]
    half = [x.detach().to(dtype).requires_grad_() for x in exact]
    if gate_dtype == "float32":
        half[3] = exact[3].detach().float().requires_grad_()
    expected = gated_attention_reference(*exact, is_causal=True)
    output = gated_attention(*half, is_causal=True, backend=backend)
    assert output.dtype is dtype
    eager = F.scaled_dot_product_attention(*half[:3], is_causal=True) * half[3].to(dtype).sigmoid()
    budget = 2 * ((eager.double() - expected).abs().max() + torch.finfo(dtype).eps * expected.abs().max())
    assert (output.double() - expected).abs().max() <= budget
    upstream = torch.randn_like(expected).to(dtype)
    wanted = gradients(expected, exact, upstream)
    plain = gradients(eager, half, upstream)
    for got, other, want in zip(gradients(output, half, upstream), plain, wanted, strict=True):
        budget = 2 * ((other.double() - want).abs().max() + torch.finfo(dtype).eps * want.abs().max())
        assert (got.double() - want).abs().max() <= budget


def test_autocast() -> None:
    query, key, value, gate = (x.detach().float().requires_grad_() for x in qkvg())
    outside = gated_attention(query, key, value, gate)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for backend in ("auto", "reference", "sdpa"):
            output = gated_attention(query, key, value.bfloat16(), gate, backend=backend)
            assert output.dtype is torch.bfloat16
            torch.testing.assert_close(output.float(), outside, rtol=0.05, atol=0.05)
    output.sum().backward()
    assert query.grad is not None and query.grad.dtype is torch.float32


@pytest.mark.parametrize("case", ["headwise causal", "grouped", "ns", "silu", "decode"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradcheck_and_double_backward(case: str, backend: str) -> None:
    sizes, options = CASES[case]
    inputs = qkvg(**{"queries": 3, "keys": 3, "dim": 2, "batch": 1, **{k: min(v, 4) for k, v in sizes.items()}})
    forward_ad = backend == "reference"

    def op(*x: Tensor) -> Tensor:
        return gated_attention(*x, **options, backend=backend)

    assert torch.autograd.gradcheck(op, inputs, check_forward_ad=forward_ad, check_batched_grad=forward_ad)
    assert torch.autograd.gradgradcheck(op, inputs)


def test_partial_gradients_and_double_backward() -> None:
    """Only some inputs need a gradient, and the first gradient is differentiated again."""
    query, key, value, gate = qkvg()
    for wanted in ([query], [gate], [key, gate], [value]):
        inputs = [x if any(x is w for w in wanted) else x.detach() for x in (query, key, value, gate)]
        expected = torch.autograd.grad(gated_attention(*inputs, backend="reference").square().sum(), wanted)
        first = torch.autograd.grad(gated_attention(*inputs).square().sum(), wanted, create_graph=True)
        for got, want in zip(first, expected, strict=True):
            torch.testing.assert_close(got, want)
        assert all(g.isfinite().all() for g in torch.autograd.grad(sum(g.sum() for g in first), wanted))


def test_transforms() -> None:
    inputs = [x.detach() for x in qkvg(batch=3)]
    expected = gated_attention(*inputs, is_causal=True)
    mapped = torch.func.vmap(lambda *x: gated_attention(*x, is_causal=True))(*inputs)
    torch.testing.assert_close(mapped, expected)

    def loss(*x: Tensor) -> Tensor:
        return gated_attention(*x, is_causal=True).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2, 3)))(*inputs)
    leaves = [x.clone().requires_grad_() for x in inputs]
    for got, want in zip(per_sample, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        torch.testing.assert_close(got, want)
    tangents = tuple(torch.randn_like(x) for x in inputs)
    _, forward = torch.func.jvp(loss, tuple(inputs), tangents)
    backward = sum((g * t).sum() for g, t in zip(per_sample, tangents, strict=True))
    torch.testing.assert_close(forward, backward)


def test_dispatch_says_why() -> None:
    inputs = qkvg()
    assert explain(gated_attention, *inputs).chosen == "flash_cpu"
    assert explain(gated_attention, *inputs, dropout_p=0.1).refused["flash_cpu"] == "it has no dropout"
    assert explain(gated_attention, *(x.to("meta") for x in inputs)).chosen == "reference"
    assert gated_attention(*(x.to("meta") for x in inputs)).shape == (2, 2, 5, 4)


def test_dropout() -> None:
    query, key, _, gate = (x.detach() for x in qkvg(queries=40, keys=40))
    value = torch.ones(2, 2, 40, 4, dtype=torch.float64)
    output = gated_attention(query, key, value, torch.full_like(gate, 50.0), dropout_p=0.5)
    assert output.std() > 0.05 and 0.8 < output.mean() < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(gated_attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (5, 7):
        inputs = [x.detach().float().requires_grad_() for x in qkvg(4, 2, length, length)]
        expected = gated_attention(*inputs, is_causal=True, enable_gqa=True)
        output = compiled(*inputs, is_causal=True, enable_gqa=True)
        torch.testing.assert_close(output, expected)
        upstream = torch.randn_like(expected)
        for got, want in zip(*(gradients(y, inputs, upstream) for y in (output, expected)), strict=True):
            torch.testing.assert_close(got, want)


@given(
    batch=st.integers(0, 2), groups=st.integers(1, 2), share=st.integers(1, 3), queries=st.integers(0, 6),
    keys=st.integers(0, 6), dim=st.integers(1, 5), headwise=st.booleans(), causal=st.booleans(),
    window=st.none() | st.integers(1, 6), seed=st.integers(0, 2**20), large=st.sampled_from([1.0, 30.0, 1e4]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_sizes_agree_with_the_reference(
    batch: int, groups: int, share: int, queries: int, keys: int, dim: int, headwise: bool, causal: bool,
    window: int | None, seed: int, large: float,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    inputs = qkvg(groups * share, groups, queries, keys, dim, 1 if headwise else dim, batch)
    inputs[3] = (inputs[3].detach() * large).requires_grad_()
    options: dict[str, Any] = {"is_causal": causal, "window": window, "enable_gqa": True}
    output = gated_attention(*inputs, **options)
    expected = gated_attention(*inputs, **options, backend="reference")
    torch.testing.assert_close(output, expected, rtol=1e-11, atol=1e-12)
    upstream = torch.randn_like(expected)
    for got, want in zip(*(gradients(y, inputs, upstream) for y in (output, expected)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
