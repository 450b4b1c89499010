"""sigmoid_attention: the formula, additivity and its other laws, tiles against the reference, edge cases."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softgate._math import masks, tiles
from softgate.attention import alibi_slopes, sigmoid, sigmoid_attention
from softgate.attention.sigmoid import tiled
from softgate.dispatch import explain

INF = float("inf")
BACKENDS = ["reference", "tiled"]
ZERO = {"bias": 0.0}


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 4 x 4, so that small inputs have many."""
    monkeypatch.setattr(tiles, "_SMALLEST", 2)
    monkeypatch.setattr(tiles, "_LARGEST", 4)


def qkv(
    heads: int = 2, kv_heads: int = 2, queries: int = 5, keys: int = 5, dim: int = 4, batch: int = 2,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:  # fmt: skip
    shapes = [(batch, heads, queries, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, dim)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def per_head(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def keep(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.4


def float_mask(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    mask = torch.randn(shape, generator=generator, dtype=torch.float64)
    return mask.masked_fill(~keep(*shape), -INF).requires_grad_()


#: name -> (sizes, options); 13 x 10 pairs make several tiles of 4 x 4.
LONG = {"queries": 13, "keys": 10}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (LONG, {"bias": -1.0}),
    "trained at 7": (LONG, {"seq_len": 7}),
    "causal": (LONG, {"is_causal": True, "seq_len": 7}),
    "causal, more keys": ({"queries": 6, "keys": 11}, {"is_causal": True, **ZERO}),
    "grouped": ({"heads": 6, **LONG}, {"enable_gqa": True, "is_causal": True, "bias": -0.5}),
    "decode": ({"queries": 1, "keys": 9}, {"is_causal": True, "seq_len": 3}),
    "window": (LONG, {"window": 3, "is_causal": True, **ZERO}),
    "two-sided window": (LONG, {"window": 2, **ZERO}),
    "window pair": (LONG, {"window": (4, 1), **ZERO}),
    "open window": (LONG, {"window": (2, -1), **ZERO}),
    "alibi": (LONG, {"alibi_slopes": alibi_slopes(2), **ZERO}),
    "alibi per batch": (LONG, {"alibi_slopes": torch.tensor([[0.5, 0.1], [0.2, 0.9]]), "is_causal": True, **ZERO}),
    "soft cap": (LONG, {"softcap": 0.7, "scale": 1.3, "bias": 0.4}),
    "bias per head": (LONG, {"bias": per_head(-1.0, 0.5), "is_causal": True}),
    "one bias tensor": (LONG, {"bias": per_head(-1.0).squeeze()}),
    "visible": (LONG, {"bias": "neg_log_visible", "is_causal": True}),
    "visible, masked": (LONG, {"bias": "neg_log_visible", "attn_mask": keep(2, 1, 13, 10)}),
    "visible, masked rows": (LONG, {"bias": "neg_log_visible", "attn_mask": keep(13, 1), "window": (3, 3)}),
    "bool mask": (LONG, {"attn_mask": keep(2, 1, 13, 10), "seq_len": 5}),
    "float mask": (LONG, {"attn_mask": float_mask(2, 1, 13, 10), "is_causal": True, "softcap": 2.0, **ZERO}),
    "float mask per key": (LONG, {"attn_mask": float_mask(1, 10), **ZERO}),
    "everything": (
        {"heads": 4, **LONG},
        {
            "enable_gqa": True, "is_causal": True, "window": (5, 0), "alibi_slopes": alibi_slopes(4), "softcap": 3.0,
            "bias": per_head(-1.0, 0.5, -2.0, 0.0), "attn_mask": float_mask(4, 13, 10), "scale": 0.8,
        },
    ),
}  # fmt: skip


def leaves(inputs: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    return inputs + [x for x in options.values() if isinstance(x, Tensor) and x.requires_grad]


def by_pairs(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """The definition, pair by pair."""
    batch, heads, queries, dim = q.shape
    keys, share = k.shape[2], heads // k.shape[1]
    left, right = masks.window_bounds(options.get("window"), options.get("is_causal", False))
    scale, cap, bias = options.get("scale", dim**-0.5), options.get("softcap"), options.get("bias")
    mask = options.get("attn_mask")
    mask = None if mask is None else mask.expand(batch, heads, queries, keys)
    slopes = options.get("alibi_slopes")
    out = torch.zeros(batch, heads, queries, v.shape[-1], dtype=q.dtype)
    for b, h, i in ((b, h, i) for b in range(batch) for h in range(heads) for i in range(queries)):
        p = i + keys - queries
        seen = [j for j in range(keys) if (left is None or p - j <= left) and (right is None or j - p <= right)]
        if mask is not None:
            seen = [j for j in seen if (mask[b, h, i, j] if mask.dtype is torch.bool else mask[b, h, i, j] > -INF)]
        for j in seen:
            score = scale * q[b, h, i] @ k[b, h // share, j]
            score = score if cap is None else cap * torch.tanh(score / cap)
            if slopes is not None:
                score = score - float(slopes.expand(batch, heads)[b, h]) * abs(p - j)
            if mask is not None and mask.dtype is not torch.bool:
                score = score + mask[b, h, i, j]
            if bias == "neg_log_visible" if isinstance(bias, str) else False:
                score = score - math.log(len(seen))
            elif bias is None:
                score = score - math.log(options["seq_len"])
            else:
                score = score + (bias.expand(batch, heads)[b, h] if isinstance(bias, Tensor) else bias)
            out[b, h, i] += v[b, h // share, j] / (1 + torch.exp(-score))
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_the_formula_pair_by_pair(case: str, backend: str, small_tiles: None) -> None:
    sizes, options = CASES[case]
    inputs = qkv(**sizes)
    with torch.no_grad():
        output = sigmoid_attention(*inputs, **options, backend=backend)
        torch.testing.assert_close(output, by_pairs(*inputs, options), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_tiles_have_the_gradients_of_the_reference(case: str, small_tiles: None) -> None:
    sizes, options = CASES[case]
    inputs = qkv(**sizes)
    wanted = leaves(inputs, options)
    outputs = [sigmoid_attention(*inputs, **options, backend=backend) for backend in BACKENDS]
    upstream = torch.randn_like(outputs[0])
    grads = [torch.autograd.grad(output, wanted, upstream) for output in outputs]
    for expected, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_finite_differences_of_everything(backend: str, small_tiles: None) -> None:
    """Query, key, value, bias per head and additive mask, once and twice."""
    sizes = {"heads": 2, "kv_heads": 1, "queries": 3, "keys": 5, "dim": 2, "batch": 1}
    inputs = [*qkv(**sizes), per_head(-0.5, 0.3), torch.randn(1, 3, 5, dtype=torch.float64, requires_grad=True)]

    def op(q: Tensor, k: Tensor, v: Tensor, b: Tensor, m: Tensor) -> Tensor:
        return sigmoid_attention(
            q, k, v, m, is_causal=True, enable_gqa=True, bias=b, softcap=2.0, alibi_slopes=alibi_slopes(2),
            backend=backend,
        )  # fmt: skip

    assert torch.autograd.gradcheck(op, inputs)
    assert torch.autograd.gradgradcheck(op, inputs)


def test_one_tensor_as_query_key_and_value(small_tiles: None) -> None:
    x = torch.randn(1, 1, 6, 2, dtype=torch.float64, requires_grad=True)

    def gradient(backend: str, create_graph: bool) -> Tensor:
        y = sigmoid_attention(x, x, x, bias=0.0, backend=backend)
        return torch.autograd.grad(y.square().sum(), x, create_graph=create_graph)[0]

    expected = gradient("reference", False)
    torch.testing.assert_close(gradient("tiled", False), expected)
    torch.testing.assert_close(gradient("tiled", True), expected)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_the_gradients_that_are_wanted(wanted: tuple[int, ...], small_tiles: None) -> None:
    inputs = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(qkv(queries=7, keys=6))]
    chosen = [inputs[i] for i in wanted]
    a, b = (torch.autograd.grad(sigmoid_attention(*inputs, **ZERO, backend=n).sum(), chosen) for n in BACKENDS)
    for expected, got in zip(a, b, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cut", [0, 1, 4, 10])
def test_additive_over_disjoint_keys(cut: int, backend: str) -> None:
    q, k, v = (x.detach() for x in qkv(queries=3, keys=10))

    def attend(keys: slice) -> Tensor:
        return sigmoid_attention(
            q, k[:, :, keys], v[:, :, keys], bias=-1.0, backend="auto" if cut in (0, 10) else backend
        )

    torch.testing.assert_close(attend(slice(cut)) + attend(slice(cut, None)), attend(slice(None)), rtol=0, atol=1e-15)


@pytest.mark.parametrize("splits", [[19], [1] * 19, [7, 12], [4, 0, 15], [18, 1]], ids=str)
def test_any_split_of_the_cache_gives_the_same_sum(splits: list[int]) -> None:
    """One query against a cache in pieces: nothing but a sum joins them, as grouped queries too."""
    q, k, v = (x.detach() for x in qkv(heads=4, queries=1, keys=19))
    options: dict[str, Any] = {"seq_len": 32, "enable_gqa": True}
    whole = sigmoid_attention(q, k, v, is_causal=True, **options)
    pieces = zip(k.split(splits, 2), v.split(splits, 2), strict=True)
    parts = [sigmoid_attention(q, *piece, **options) for piece in pieces]
    torch.testing.assert_close(sum(parts), whole, rtol=0, atol=1e-15)


@pytest.mark.parametrize("bias", [{"seq_len": 9}, {"bias": "neg_log_visible"}, {"bias": -0.3}])
@pytest.mark.parametrize("extra", [{}, {"alibi_slopes": alibi_slopes(2)}, {"window": 3}], ids=["", "alibi", "window"])
def test_decoding_equals_prefill(bias: dict[str, Any], extra: dict[str, Any]) -> None:
    q, k, v = (x.detach() for x in qkv(queries=9, keys=9))
    options = {"is_causal": True, **bias, **extra}
    whole = sigmoid_attention(q, k, v, **options)
    for sizes in ([1] * 9, [4, 1, 4]):
        out, end = [], 0
        for size in sizes:
            start, end = end, end + size
            out.append(sigmoid_attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end], **options))
        torch.testing.assert_close(torch.cat(out, 2), whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shifting_scores_is_changing_the_bias(backend: str) -> None:
    q, k, v = (x.detach() for x in qkv())
    shifted = sigmoid_attention(q, k, v, torch.full((5, 5), 0.75, dtype=torch.float64), bias=-1.0, backend=backend)
    torch.testing.assert_close(shifted, sigmoid_attention(q, k, v, bias=-0.25, backend=backend))
    assert (shifted - sigmoid_attention(q, k, v, bias=-1.0, backend=backend)).abs().max() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_limits_of_the_bias(backend: str) -> None:
    q, k, v = (x.detach() for x in qkv())
    for bias in (-INF, -1e4):
        assert (sigmoid_attention(q, k, v, bias=bias, backend=backend) == 0).all()
    for bias in (INF, 1e4):
        output = sigmoid_attention(q, k, v, bias=bias, backend=backend)
        torch.testing.assert_close(output, v.sum(2, keepdim=True).expand_as(output))
    # Far below zero the sigmoid is an exponential: softmax without its normalisation.
    scores = q @ k.mT / 2
    ratio = sigmoid_attention(q, k, v, bias=-30.0, backend=backend) / (math.exp(-30) * scores.exp() @ v)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-9, atol=0)


def test_a_fresh_row_weighs_about_one() -> None:
    """Scores near 0 and b = -ln n: n · σ(-ln n) = n/(n + 1); without a bias it would be n/2."""
    q, k, _ = (0.05 * x.detach() for x in qkv(queries=8, keys=64, dim=16))
    ones = torch.ones(2, 2, 64, 1, dtype=torch.float64)
    mass = sigmoid_attention(q, k, ones, seq_len=64)
    torch.testing.assert_close(mass, torch.full_like(mass, 64 / 65), rtol=1e-2, atol=0)
    assert (sigmoid_attention(q, k, ones, bias=0.0) > 31).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_lie_between_zero_and_one(backend: str) -> None:
    q, k, _ = (3 * x.detach() for x in qkv(queries=6, keys=6))
    eye = torch.eye(6, dtype=torch.float64).expand(2, 2, 6, 6)
    weights = sigmoid_attention(q, k, eye, is_causal=True, bias=0.0, backend=backend)
    assert (weights.triu(1) == 0).all()
    seen = weights[..., torch.ones(6, 6).tril() > 0]
    assert (seen > 0).all() and (seen < 1).all()
    assert (weights.sum(-1) - 1).abs().max() > 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_keys_give_zero(backend: str, small_tiles: None) -> None:
    inputs = qkv()
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, :, 1] = False
    zeros = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    for given_mask in (mask, *(zeros.masked_fill(~mask, low) for low in (-INF, torch.finfo(torch.float64).min))):
        for bias in (0.0, "neg_log_visible"):
            output = sigmoid_attention(*inputs, given_mask, bias=bias, backend=backend)
            grads = torch.autograd.grad(output.sum(), inputs)
            assert (output[0, :, 1] == 0).all() and (grads[0][0, :, 1] == 0).all()
            assert all(x.isfinite().all() for x in (output, *grads))


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_and_infinite_scores(backend: str) -> None:
    q = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64).view(1, 1, 3, 1)
    v = torch.tensor([1.0, 10.0], dtype=torch.float64).view(1, 1, 2, 1)
    huge = torch.tensor([1e300, -1e300], dtype=torch.float64).view(1, 1, 2, 1)
    output = sigmoid_attention(q, huge, v, bias=0.0, backend=backend)
    assert output.flatten().tolist() == [1.0, 10.0, 5.5]
    output = sigmoid_attention(q[:, :, :2], huge * INF, v, bias=0.0, backend=backend)
    assert output.flatten().tolist() == [1.0, 10.0]


@pytest.mark.parametrize("shape", [(2, 2, 0, 5), (2, 2, 5, 0), (0, 2, 5, 5), (2, 0, 5, 5), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("bias", [-1.0, None, "neg_log_visible"])
def test_empty_and_tiny(shape: tuple[int, int, int, int], bias: Any) -> None:
    batch, heads, queries, keys = shape
    inputs = qkv(heads, heads, queries, keys, batch=batch)
    output = sigmoid_attention(*inputs, is_causal=True, bias=bias, seq_len=4)
    assert output.shape == (batch, heads, queries, 4) and output.isfinite().all()
    assert keys > 0 or (output == 0).all()
    output.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(backend: str, dtype: torch.dtype, small_tiles: None) -> None:
    half = [x.detach().to(dtype).requires_grad_() for x in qkv(queries=33, keys=33, dim=16)]
    exact = [x.detach().double().requires_grad_() for x in half]
    options: dict[str, Any] = {"is_causal": True, "seq_len": 8, "alibi_slopes": alibi_slopes(2)}
    output, expected = (sigmoid_attention(*x, **options, backend=backend) for x in (half, exact))
    upstream = torch.randn_like(expected).to(dtype)
    grads = torch.autograd.grad(output, half, upstream)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    assert output.dtype is dtype
    # Rounded once, at the end: half a unit of the largest entry.
    for got, want in zip((output, *grads), (expected, *wanted), strict=True):
        assert (got.double() - want).abs().max() <= 0.51 * torch.finfo(dtype).eps * want.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend: str) -> None:
    inputs = [x.detach().float().requires_grad_() for x in qkv()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = sigmoid_attention(*inputs, bias=per_head(0.0, -1.0), backend=backend)
    assert output.dtype is torch.bfloat16
    output.sum().backward()
    assert all(x.grad is not None and x.grad.dtype is torch.float32 for x in inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_the_mean(backend: str, small_tiles: None) -> None:
    """A kept weight is divided by 1 - p; rows are not normalised again."""
    q, k, _ = (x.detach() for x in qkv(queries=40, keys=40))
    eye = torch.eye(40, dtype=torch.float64).expand(2, 2, 40, 40).clone().requires_grad_()
    weights = sigmoid_attention(q, k, eye, bias=0.0)
    dropped = sigmoid_attention(q, k, eye, dropout_p=0.25, bias=0.0, backend=backend)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], weights[kept] / 0.75)
    assert 0.7 < float(kept.double().mean()) < 0.8
    # Backward sees the same pairs as forward.
    (gradient,) = torch.autograd.grad(dropped.sum(), eye)
    torch.testing.assert_close(gradient[..., 0], dropped.sum(2).detach())


def test_dropout_in_tiles_has_the_right_gradient(small_tiles: None) -> None:
    inputs = qkv(queries=6, keys=5, dim=2, batch=1)

    def op(*x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return sigmoid_attention(*x, dropout_p=0.5, bias=0.0, backend="tiled")

    assert torch.autograd.gradcheck(op, inputs) and torch.autograd.gradgradcheck(op, inputs)
    torch.manual_seed(8)
    other = sigmoid_attention(*inputs, dropout_p=0.5, bias=0.0, backend="tiled")
    assert not torch.equal(other, op(*inputs))


def test_long_sequences_run_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = (torch.zeros(1, 1, n, 2) for n in (64, 512))
    assert "small" in str(tiled.refuses(short, short, short, seq_len=8))
    assert tiled.refuses(long, long, long, seq_len=8) is None
    slopes = torch.ones(1, requires_grad=True)
    assert "alibi_slopes" in str(tiled.refuses(long, long, long, seq_len=8, alibi_slopes=slopes))
    monkeypatch.setenv("SOFTGATE_KERNELS", "tiled")
    assert explain(sigmoid_attention, short, short, short, seq_len=8).chosen == "tiled"


_MEMORY = """
import resource, torch
from softgate.attention import sigmoid_attention

def step(length):
    inputs = [torch.randn(1, 1, length, 8, requires_grad=True) for _ in range(3)]
    sigmoid_attention(*inputs, is_causal=True, seq_len=length, backend="tiled").sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = step(1024)
print(step(8192) - before)
"""


def test_memory_grows_with_the_length_only() -> None:
    """Forward and backward at T = 8,192: the score matrix would take 256 MiB, thrice that with its gradient."""
    result = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 64, f"{result.stdout} MiB more than at T = 1024"


def test_the_moving_length_warns_once() -> None:
    q, k, v = (x.detach() for x in qkv())
    sigmoid._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="seq_len") as caught:
        first = sigmoid_attention(q, k, v)
        sigmoid_attention(q, k, v, bias="neg_log_n")
    assert len(caught) == 1 and caught[0].filename == __file__
    torch.testing.assert_close(first, sigmoid_attention(q, k, v, bias=-math.log(5)))
    sigmoid._warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for quiet in ({"seq_len": 5}, {"bias": 0.0}, {"bias": per_head(0.0)}, {"bias": "neg_log_visible"}):
            sigmoid_attention(q, k, v, **quiet)


@given(
    groups=st.integers(1, 2), share=st.integers(1, 2), queries=st.integers(1, 9), keys=st.integers(1, 9),
    causal=st.booleans(), window=st.none() | st.integers(1, 9) | st.tuples(st.integers(-1, 9), st.integers(-1, 0)),
    bias=st.sampled_from([0.0, -2.0, "neg_log_visible"]), masked=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_any_sizes_agree_with_the_reference(
    groups: int, share: int, queries: int, keys: int, causal: bool, window: Any, bias: Any, masked: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    inputs = qkv(groups * share, groups, queries, keys, batch=1)
    options: dict[str, Any] = {"is_causal": causal, "window": window, "enable_gqa": True, "bias": bias}
    options["attn_mask"] = torch.rand(queries, keys) > 0.3 if masked else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_SMALLEST", 2)
        patch.setattr(tiles, "_LARGEST", 4)
        outputs = [sigmoid_attention(*inputs, **options, backend=backend) for backend in BACKENDS]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-11, atol=1e-12)
        upstream = torch.randn_like(outputs[0])
        for got, want in zip(*(torch.autograd.grad(y, inputs, upstream) for y in outputs[::-1]), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
