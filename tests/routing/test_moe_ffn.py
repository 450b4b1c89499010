"""The experts' operator: backends agree, nothing leaks, nothing is lost, memory stays bounded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from softgate import explain
from softgate.errors import StateError
from softgate.routing import moe_ffn
from softgate.routing.expert_ffn import compute
from softgate.routing.expert_ffn.activations import NAMES, is_gated
from softgate.routing.expert_ffn.op import backward_op, forward_op
from softgate.routing.expert_ffn.plan import Segment, blocks
from softgate.routing.expert_ffn.products import grouped_refuses

BACKENDS = ("loop", "sorted", "grouped", "bmm")


def case(tokens=37, width=16, hidden=24, experts=8, k=2, dtype=torch.float32, activation="swiglu", bias=True):
    """Leaves x, gate_up, down, weights, biases; and indices with empty experts and "no expert" among them."""
    rows = 2 * hidden if is_gated(activation) else hidden
    shapes = [(tokens, width), (experts, rows, width), (experts, width, hidden)]
    leaves = [(torch.randn(shape, dtype=torch.float64) / 3).to(dtype) for shape in shapes]
    leaves.append(torch.rand(tokens, k, dtype=torch.float64).to(dtype if dtype.itemsize > 2 else torch.float32))
    leaves += [torch.randn(experts, n, dtype=torch.float64).to(dtype) for n in (rows, width)] if bias else []
    indices = torch.rand(tokens, experts).argsort(-1)[:, :k]
    indices[indices == 3] = 4  # an empty expert, and a token that has one expert twice
    indices[::5, -1] = experts
    return [leaf.requires_grad_() for leaf in leaves], indices


def run(leaves, indices, **options) -> list[Tensor]:
    """The output and all gradients for a fixed seed."""
    x, gate_up, down, weights, *biases = leaves
    y = moe_ffn(x, gate_up, down, indices, weights, *biases, **options)
    seed = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, seed)]


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).detach().abs().max() / b.detach().abs().max().clamp_min(1e-30)) for a, b in pairs)


@pytest.mark.parametrize("activation", NAMES)
def test_backends_agree(activation) -> None:
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        leaves, indices = case(activation=activation, dtype=dtype)
        expected = run(leaves, indices, activation=activation, backend="loop")
        # rounding h to bfloat16 before or after the bias puts it on either side of a kink
        compared = 1 if dtype is torch.bfloat16 and activation in ("relu", "reglu") else None
        for backend in BACKENDS[1:]:
            if backend == "grouped" and dtype is torch.float64:
                continue
            for recompute in (False, True):
                found = run(leaves, indices, activation=activation, backend=backend, recompute=recompute)
                assert error(found[:compared], expected[:compared]) < bound, (backend, dtype, recompute)


@pytest.mark.parametrize("tokens", [3, 21])  # one after the other, and sorted
@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck_with_router_weights(tokens, bias) -> None:
    leaves, indices = case(tokens, 3, 2, 4, 2, torch.float64, bias=bias)

    def f(x, gate_up, down, weights, *biases):
        return moe_ffn(x, gate_up, down, indices, weights, *biases, backend="sorted")

    assert torch.autograd.gradcheck(f, leaves)


def test_every_split_into_blocks_gives_the_same(monkeypatch) -> None:
    leaves, indices = case(300, experts=3, dtype=torch.float64)
    expected = run(leaves, indices, backend="loop")
    for elements in (1, 2**14, 2**15):
        monkeypatch.setattr(compute, "_BLOCK", elements)
        assert error(run(leaves, indices, backend="sorted"), expected) < 1e-13


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("lengths", [(5, 1, 900, 3, 200), (128,), (1, 1, 1), (1000, 1000), (127, 2, 127)])
def test_blocks_cover_every_row_once(lengths, split) -> None:
    segments, start = [], 0
    for expert, length in enumerate(lengths):
        segments.append(Segment(expert, start, start + length))
        start += length
    found = list(blocks(segments, 128, split=split))
    rows = [(s.expert, row) for block in found for s in block for row in range(s.start, s.end)]
    assert rows == [(s.expert, row) for s in segments for row in range(s.start, s.end)]
    if split:
        assert max(block[-1].end - block[0].start for block in found) <= 128


def test_all_experts_are_a_dense_mixture() -> None:
    leaves, _ = case(bias=False, dtype=torch.float64)
    x, gate_up, down, _ = leaves
    everyone = torch.arange(8).expand(37, 8)
    share = torch.randn(37, 8, dtype=torch.float64).softmax(-1)
    h = torch.einsum("td,ehd->teh", x, gate_up)
    outputs = torch.einsum("tef,edf->ted", functional.silu(h[..., :24]) * h[..., 24:], down)
    torch.testing.assert_close(moe_ffn(x, gate_up, down, everyone, share), (share[..., None] * outputs).sum(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_experts_get_zero_and_no_tokens_work(backend) -> None:
    leaves, indices = case()
    found = run(leaves, indices, backend=backend)
    for gradient in (found[2], found[3], found[5], found[6]):
        assert torch.equal(gradient[3], torch.zeros_like(gradient[3])) and gradient[4].abs().max() > 0
    leaves, indices = case(tokens=0)
    found = run(leaves, indices, backend=backend)
    assert found[0].shape == (0, 16) and all(not g.any() for g in found[1:])
    leaves, indices = case()
    found = run(leaves, torch.full_like(indices, 8), backend=backend)  # no token has an expert
    assert all(not part.any() for part in found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_without_numbers_stays_alone(backend) -> None:
    leaves, indices = case()
    clean = run(leaves, indices, backend=backend)
    indices[7] = 8
    expected = run(leaves, indices, backend=backend)
    with torch.no_grad():
        leaves[0][7] = float("nan")
    found = run(leaves, indices, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))  # no expert: nothing is spoilt
    indices[7] = 0
    y = moe_ffn(leaves[0], *leaves[1:3], indices, *leaves[3:], backend=backend)
    others = torch.arange(37) != 7
    assert y[7].isnan().all() and torch.allclose(y[others], clean[0][others], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_change_and_permuted_tokens_give_permuted_results(dtype) -> None:
    leaves, indices = case(200, dtype=dtype)
    first = run(leaves, indices)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(leaves, indices), strict=True))
    order = torch.randperm(200)
    moved = moe_ffn(leaves[0][order], *leaves[1:3], indices[order], leaves[3][order], *leaves[4:])
    torch.testing.assert_close(moved, first[0][order])


def test_permuted_experts_give_the_same() -> None:
    leaves, indices = case(dtype=torch.float64)
    order = torch.randperm(8)
    renamed = torch.cat((order.argsort(), torch.tensor([8])))[indices]
    x, gate_up, down, weights, up_bias, down_bias = leaves
    moved = moe_ffn(x, gate_up[order], down[order], renamed, weights, up_bias[order], down_bias[order])
    torch.testing.assert_close(moved, run(leaves, indices)[0])


def test_frozen_parameters_get_no_gradient() -> None:
    leaves, indices = case(bias=False)
    expected = run(leaves, indices)
    leaves[1].requires_grad_(False)
    x, gate_up, down, weights = leaves
    y = moe_ffn(x, gate_up, down, indices, weights)
    seed = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).float()
    found = torch.autograd.grad(y, [x, down, weights], seed)
    assert all(torch.equal(a, b) for a, b in zip(found, (expected[1], expected[3], expected[4]), strict=True))


def test_shapes_and_strides() -> None:
    leaves, indices = case(24)
    x, gate_up, down, weights, *biases = (leaf.detach() for leaf in leaves)
    flat = moe_ffn(x, gate_up, down, indices, weights, *biases)
    cube = moe_ffn(x.view(2, 3, 4, 16), gate_up, down, indices.view(2, 3, 4, 2), weights.view(2, 3, 4, 2), *biases)
    assert torch.equal(cube.view(24, 16), flat)
    one = moe_ffn(x[0], gate_up, down, indices[0], weights[0], *biases)
    torch.testing.assert_close(one, flat[0])
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (x, gate_up, down)]
    torch.testing.assert_close(moe_ffn(*strided, indices, weights, *biases), flat)


def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients() -> None:
    leaves, indices = case()
    with torch.autocast("cpu", torch.bfloat16):
        y = moe_ffn(leaves[0], *leaves[1:3], indices, *leaves[3:])
    assert y.dtype is torch.bfloat16
    gradients = torch.autograd.grad(y.float().sum(), leaves)
    assert all(g.dtype is torch.float32 for g in gradients)
    assert error([y.float()], [moe_ffn(leaves[0], *leaves[1:3], indices, *leaves[3:])]) < 2e-2


# What torch's grouped_mm cannot do is known before it is asked.


def test_grouped_is_refused_where_torch_would_fail() -> None:
    leaves, indices = case(width=7)
    with pytest.raises(StateError, match="16 bytes"):
        run(leaves, indices, backend="grouped")
    leaves, indices = case(width=12, dtype=torch.bfloat16)
    with pytest.raises(StateError, match="16 bytes"):
        run(leaves, indices, backend="grouped")
    leaves, indices = case(dtype=torch.float64)
    with pytest.raises(StateError, match="float64"):
        run(leaves, indices, backend="grouped")
    x, gate_up, down = (torch.ones(4, 8), torch.ones(2, 8, 8), torch.ones(2, 8, 4))
    assert grouped_refuses(x, gate_up, down) is None
    assert "one dtype" in str(grouped_refuses(x, gate_up.bfloat16(), down))


def test_grouped_takes_gradients_without_strides() -> None:
    leaves, indices = case(dtype=torch.float32)
    x, gate_up, down, weights, *biases = leaves
    for backend in ("grouped", "sorted"):
        y = moe_ffn(x, gate_up, down, indices, weights, *biases, backend=backend)
        y.sum().backward()  # an expanded gradient: torch's own backward refuses it
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_explain_says_what_runs() -> None:
    leaves, indices = case()
    choice = explain(moe_ffn, leaves[0], leaves[1], leaves[2], indices, *leaves[3:])
    assert choice.chosen == "sorted" and "grouped" in choice.refused


# One operator for compilers and exporters.


@pytest.mark.parametrize("recompute", [False, True])
def test_operators_keep_torchs_rules(recompute) -> None:
    leaves, indices = case(9)
    x, gate_up, down, weights, *biases = leaves
    arguments = (x, gate_up, down, *biases, indices, weights, "swiglu", "sorted", not recompute, True)
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(forward_op, arguments, test_utils=rules)
    plain = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    y, h, order, ends = forward_op(*plain)
    again = (torch.ones_like(y), *plain[:7], h, order, ends, "swiglu", "sorted", [True] * 6)
    torch.library.opcheck(backward_op, again, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_compile_has_one_graph_for_every_number_of_tokens() -> None:
    compiled = torch.compile(moe_ffn, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (37, 12, 3):
        leaves, indices = case(tokens)
        expected = run(leaves, indices)
        x, gate_up, down, weights, *biases = leaves
        y = compiled(x, gate_up, down, indices, weights, *biases)
        seed = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).float()
        found = [y.detach(), *torch.autograd.grad(y, leaves, seed)]
        assert error(found, expected) < 1e-6
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 1


def _peak(step) -> int:
    """Highest sum of live allocations of torch while ``step`` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("recompute", [False, True])
def test_memory_of_a_training_step(recompute) -> None:
    tokens, width, hidden, experts, k = 4096, 64, 64, 8, 2
    leaves, indices = case(tokens, width, hidden, experts, k, bias=False)
    rows = tokens * k
    run(leaves, indices, recompute=recompute)
    peak = _peak(lambda: run(leaves, indices, recompute=recompute))
    allowed = rows * (2 * hidden + hidden + 2 * width) * 4
    results = 4 * (tokens * width + sum(leaf.numel() for leaf in leaves))  # y and the gradients
    seed = 12 * tokens * width  # drawn in float64
    assert peak <= allowed + results + seed
    if recompute:
        assert peak <= allowed - rows * hidden * 4 + results + seed


def test_math_of_the_router_weights_gradient() -> None:
    """⟨g, FFN_i(x)⟩, by the definition."""
    leaves, indices = case(bias=True, dtype=torch.float64)
    x, gate_up, down, _, up_bias, down_bias = (leaf.detach() for leaf in leaves)
    found = run(leaves, indices)[4]
    seed = torch.randn(37, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for t, k in ((0, 0), (3, 1), (11, 0)):
        e = int(indices[t, k])
        if e == 8:
            assert found[t, k] == 0
            continue
        h = gate_up[e] @ x[t] + up_bias[e]
        out = down[e] @ (h[:24] / (1 + torch.exp(-h[:24])) * h[24:]) + down_bias[e]
        assert math.isclose(float(found[t, k]), float(seed[t] @ out), rel_tol=1e-10)
