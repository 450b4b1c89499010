"""softplus_attention: the formula by loops, the paper's facts, tiles against the dense form, edge cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from softgate._math import tiles
from softgate._math.masks import causal_mask
from softgate.attention import lssa_weights, softplus_attention
from softgate.attention.softplus import tiled
from softgate.attention.softplus.reference import softplus_attention_reference
from softgate.dispatch import explain

INF = float("inf")
BACKENDS = ["reference", "tiled"]


def qkv(
    heads: int = 2, kv_heads: int = 2, queries: int = 7, keys: int = 7, dim: int = 4, features: int = 5,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:  # fmt: skip
    shapes = [(2, heads, queries, dim), (2, kv_heads, keys, dim), (2, kv_heads, keys, features)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "re-weighted": ({}, {}),
    "first stage": ({}, {"reweight_power": None}),
    "causal": ({}, {"is_causal": True, "reweight_power": 3}),
    "causal first stage": ({}, {"is_causal": True, "reweight_power": None}),
    "grouped": ({"heads": 6, "queries": 3, "keys": 9}, {"enable_gqa": True, "is_causal": True}),
    "decode": ({"queries": 1, "keys": 9}, {"is_causal": True}),
    "more queries than keys": ({"queries": 9, "keys": 5}, {"is_causal": True}),
    "window": ({"queries": 9, "keys": 9}, {"window": 4, "is_causal": True}),
    "two-sided window": ({}, {"window": 3, "reweight_power": 2}),
    "linear power": ({}, {"reweight_power": 1}),
    "fractional power": ({}, {"reweight_power": 1.5, "phi": "sigmoid"}),
    "low level": ({"keys": 9}, {"offset": 0.4, "offset_min_keys": 0, "reweight_power": 2.5}),
    "level for long rows only": ({"keys": 9}, {"offset_min_keys": 6, "is_causal": True}),
    "relu": ({"keys": 9}, {"phi": "relu", "reweight_power": 4}),
    "scale": ({}, {"scale": 1.0, "reweight_power": 3}),
    "root of d": ({}, {"scale": 2.0, "length_scale": "none"}),
    "raw products": ({}, {"normalize_qk": False, "reweight_power": 3}),
}
MASKS = ["none", "bool", "padding", "bias"]


def make_mask(kind: str, queries: int, keys: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(3)
    keep = torch.rand(2, 1, 1 if kind == "padding" else queries, keys, generator=generator) < 0.7
    if kind == "none":
        return None
    if kind != "bias":
        return keep
    return torch.randn(keep.shape, dtype=torch.float64, generator=generator).masked_fill(~keep, -INF)


def by_loops(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
    """The definition, a pair of query and key at a time."""
    phi = {"softplus": lambda z: math.log1p(math.exp(z)), "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
           "relu": lambda z: max(z, 0.0)}[options.get("phi", "softplus")]  # fmt: skip
    queries, keys, dim = query.shape[2], key.shape[2], query.shape[3]
    normalize = options.get("normalize_qk", True)
    out = query.new_zeros(*query.shape[:3], value.shape[-1])
    for b in range(2):
        for h in range(query.shape[1]):
            group = h // (query.shape[1] // key.shape[1])
            for i in range(queries):
                position = i + keys - queries
                bias = torch.zeros(keys) if mask is None else mask[b, 0, min(i, mask.shape[2] - 1)]
                if bias.dtype is torch.bool:
                    bias = torch.zeros(keys).masked_fill(~bias, -INF)
                seen = [
                    j for j in range(keys)
                    if bias[j] > -INF and (j <= position or not options.get("is_causal"))
                    and abs(position - j) < options.get("window", 10**9)
                ]  # fmt: skip
                if not seen:
                    continue
                n = len(seen)
                default = math.log(dim) if normalize else dim**-0.5
                c = options.get("scale", default) * (math.log(n) if options.get("length_scale") != "none" else 1.0)
                q, k = query[b, h, i], key[b, group, seen]
                if normalize:
                    q, k = q / q.norm(), k / k.norm(dim=-1, keepdim=True)
                f = torch.tensor(
                    [phi(c * float(s) + float(bias[j])) for s, j in zip(k @ q, seen, strict=True)]
                ).double()
                weights = f / f.sum() if f.sum() > 0 else f
                power = options.get("reweight_power", 15)
                if power is not None:
                    o = options.get("offset", 1.0) if n > options.get("offset_min_keys", 3) else 0.0
                    u = (n * weights - o).clamp(min=0) ** power
                    weights = u / u.sum() if u.sum() > 0 else weights
                out[b, h, i] = weights @ value[b, group, seen]
    return out


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("case", CASES)
def test_both_implementations_are_the_formula(case: str, kind: str) -> None:
    sizes, options = CASES[case]
    inputs = qkv(**sizes)
    mask = make_mask(kind, inputs[0].shape[2], inputs[1].shape[2])
    torch.set_default_dtype(torch.float64)
    try:
        expected = by_loops(*(x.detach() for x in inputs), mask, options)
    finally:
        torch.set_default_dtype(torch.float32)
    dense = softplus_attention_reference(*inputs, attn_mask=mask, **options)
    torch.testing.assert_close(dense, expected, rtol=1e-9, atol=1e-10)
    upstream = torch.randn_like(dense)
    wanted = torch.autograd.grad(dense, inputs, upstream)
    for block in (3, 64):  # a key block is a split of the cache: any split gives the same
        walked = tiled.run(*inputs, attn_mask=mask, block=block, **options)
        torch.testing.assert_close(walked, dense, rtol=1e-12, atol=1e-12)
        for got, want in zip(torch.autograd.grad(walked, inputs, upstream), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("power", [None, 3, 15])
def test_tiles_agree_in_float32(power: int | None) -> None:
    inputs = qkv(queries=150, keys=150, dim=16, dtype=torch.float32)
    options: dict[str, Any] = {"is_causal": True, "reweight_power": power}
    outputs = [softplus_attention(*inputs, **options, backend=backend) for backend in BACKENDS]
    exact = softplus_attention(*(x.double() for x in inputs), **options)
    for out in outputs:
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"reweight_power": None}, {"reweight_power": 1.5}])
def test_a_gradient_through_tiles_can_be_differentiated_again(options: dict[str, Any]) -> None:
    inputs = qkv(queries=5, keys=6)

    def second(run: Any) -> tuple[Tensor, ...]:
        y = run(*inputs, is_causal=True, **options)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    for got, want in zip(second(tiled.run), second(softplus_attention_reference), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("power", [15, None])
def test_memory_grows_with_the_length_only(power: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_LARGEST", 64)  # small tiles, so that a short sequence has many
    length = 1024
    inputs = [torch.randn(1, 1, length, 2, requires_grad=True) for _ in range(3)]
    with Largest() as seen:
        tiled.run(*inputs, is_causal=True, reweight_power=power).sum().backward()
    assert seen.numel <= 64**2 <= length**2 // 256  # one tile
    assert inputs[0].grad is not None and bool(inputs[0].grad.isfinite().all())


def test_which_calls_go_to_tiles() -> None:
    # float64, for which there are no native kernels
    big, small = (torch.zeros(1, 1, length, 4, dtype=torch.float64) for length in (512, 511))
    bias = torch.zeros(512, 512, requires_grad=True)
    assert explain(softplus_attention, big, big, big).chosen == "tiled"
    for word, tensor, options in [
        ("whole", small, {}),
        ("dropout", big, {"dropout_p": 0.1}),
        ("largest score", big, {"phi": "exp"}),
        ("gradient for attn_mask", big, {"attn_mask": bias}),
    ]:
        choice = explain(softplus_attention, tensor, tensor, tensor, **options)
        assert choice.chosen == "reference" and word in choice.refused["tiled"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("power", [None, 3, 15])
def test_lengths_of_queries_and_keys_do_not_matter(power: int | None, backend: str) -> None:
    inputs = qkv()
    factors = [torch.rand(2, 2, 7, 1, dtype=torch.float64) * 10 + 0.1 for _ in range(2)]
    out = softplus_attention(*inputs, reweight_power=power, backend=backend)
    stretched = [inputs[0] * factors[0], inputs[1] * factors[1], inputs[2]]
    torch.testing.assert_close(softplus_attention(*stretched, reweight_power=power, backend=backend), out)
    for x, grad in zip(inputs[:2], torch.autograd.grad(out.square().sum(), inputs[:2]), strict=True):
        torch.testing.assert_close((x * grad).sum(-1), torch.zeros(2, 2, 7, dtype=torch.float64), rtol=0, atol=1e-12)


def test_weights_sum_to_one_and_drop_what_is_below_average() -> None:
    query, key, _ = (x.detach() for x in qkv(queries=20, keys=20))
    first = lssa_weights(query, key, reweight_power=None)
    for power in (1, 3, 15):
        weights = lssa_weights(query, key, reweight_power=power)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 20, dtype=torch.float64))
        assert bool(((weights == 0) == (first <= 1 / 20)).all())
        order = first.argsort(-1)  # a larger cosine never has a smaller weight
        assert bool((weights.gather(-1, order).diff(dim=-1) >= 0).all())
    causal = lssa_weights(query, key, is_causal=True, reweight_power=1)
    torch.testing.assert_close(
        causal[..., :3, :], lssa_weights(query, key, is_causal=True, reweight_power=None)[..., :3, :]
    )
    assert bool((causal[..., 3, :4] == 0).any(-1).all())  # from four keys on the level is one


@pytest.mark.parametrize("backend", BACKENDS)
def test_limits_of_the_power(backend: str) -> None:
    query, key, value = (x.detach() for x in qkv())
    first = softplus_attention(query, key, value, reweight_power=None, backend=backend)
    torch.testing.assert_close(
        softplus_attention(query, key, value, reweight_power=1, offset=0, backend=backend), first
    )
    best = (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT).argmax(-1)
    sharp = softplus_attention(query, key, value, reweight_power=1e5, backend=backend)
    torch.testing.assert_close(sharp, value.gather(2, best[..., None].expand(2, 2, 7, 5)))


def test_a_single_key_gives_its_value() -> None:
    query, key, value = (x.detach() for x in qkv(keys=1))
    for power in (None, 15):
        out = softplus_attention(query, key, value, reweight_power=power)
        torch.testing.assert_close(out, value.expand_as(out))


def test_softmax_is_one_of_the_ablations() -> None:
    query, key, value = qkv()
    out = softplus_attention(
        query, key, value, phi="exp", normalize_qk=False, length_scale="none", reweight_power=None, is_causal=True
    )
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value, is_causal=True))
    half = softplus_attention(query / 2, key, value, normalize_qk=False, scale=1.0)
    torch.testing.assert_close(softplus_attention(query, key, value, normalize_qk=False, scale=0.5), half)


def test_a_constant_added_to_the_scores_changes_the_result() -> None:
    inputs = qkv()
    shifted = softplus_attention(*inputs, attn_mask=torch.full((7, 7), 2.0, dtype=torch.float64))
    assert (shifted - softplus_attention(*inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("left", [0, 2])
def test_masked_keys_do_not_count(left: int, backend: str) -> None:
    """N counts visible keys: padding at either end equals the shorter sequence, the rule of the first rows included."""
    query, key, value = (x.detach() for x in qkv(queries=9, keys=9))
    keep = torch.zeros(9, dtype=torch.bool)
    keep[left : left + 7] = True
    out = softplus_attention(query, key, value, keep.expand(9, 9), is_causal=True, backend=backend)
    cut = slice(left, left + 7)
    alone = softplus_attention(query[..., cut, :], key[..., cut, :], value[..., cut, :], is_causal=True)
    torch.testing.assert_close(out[..., cut, :], alone)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tied_keys_keep_their_first_stage_weights(backend: str, dtype: torch.dtype) -> None:
    """0/0 in the published formula; rounding must not be amplified either (here 11 keys, a sum that rounds)."""
    query, key, value = (x.detach() for x in qkv(queries=11, keys=11, dtype=dtype))
    key = (key[..., :1, :] * torch.linspace(0.3, 7.0, 11, dtype=dtype)[:, None]).requires_grad_()  # one direction
    query.requires_grad_()
    out = softplus_attention(query, key, value, backend=backend)
    torch.testing.assert_close(out, value.mean(-2, keepdim=True).expand_as(out))
    expected = torch.autograd.grad(softplus_attention(query, key, value, reweight_power=None).sum(), (query, key))
    for got, want in zip(torch.autograd.grad(out.sum(), (query, key)), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors(backend: str) -> None:
    inputs = qkv()
    with torch.no_grad():
        inputs[0][:, :, 2] = 0.0
        inputs[1][:, :, 4] = 0.0
    out = softplus_attention(*inputs, backend=backend)
    torch.testing.assert_close(out[:, :, 2], inputs[2].mean(-2))  # no direction, so a uniform row
    grads = torch.autograd.grad(out.sum(), inputs)
    assert all(bool(g.isfinite().all()) for g in grads)
    assert bool((grads[0][:, :, 2] == 0).all()) and bool((grads[1][:, :, 4] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-6, 1.0, "largest"])
def test_any_length_of_vectors(dtype: torch.dtype, size: Any) -> None:
    factor = torch.finfo(dtype).max / 8 if size == "largest" else size
    inputs = [x.detach() for x in qkv(dtype=dtype)]
    scaled = [(x.clamp(-4, 4).double() * factor).to(dtype) for x in inputs[:2]]
    out = softplus_attention(*scaled, inputs[2])
    exact = softplus_attention(*(x.double() / factor for x in scaled), inputs[2].double())
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_reaches_its_row_or_head_only(backend: str) -> None:
    clean = qkv()
    expected = softplus_attention(*clean, backend=backend)
    query, key, _ = (x.detach().clone() for x in clean)
    query[0, 1, 3, 0] = key[1, 0, 2, 1] = math.nan
    out = softplus_attention(query, key, clean[2], backend=backend)
    spoilt = torch.zeros(2, 2, 7, dtype=torch.bool)
    spoilt[0, 1, 3] = spoilt[1, 0] = True
    assert bool((out.isnan().any(-1) == spoilt).all())
    torch.testing.assert_close(out[~spoilt], expected[~spoilt])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_keys_and_empty_inputs(backend: str) -> None:
    inputs = qkv()
    keep = torch.ones(7, 7, dtype=torch.bool)
    keep[2] = False
    out = softplus_attention(*inputs, attn_mask=keep, backend=backend)
    grads = torch.autograd.grad(out.sum(), inputs)
    assert bool((out[:, :, 2] == 0).all()) and bool((grads[0][:, :, 2] == 0).all())
    assert all(bool(g.isfinite().all()) for g in grads)
    for queries, keys in ((0, 4), (4, 0), (0, 0)):
        empty = softplus_attention(*qkv(queries=queries, keys=keys), backend=backend)
        assert empty.shape == (2, 2, queries, 5) and bool((empty == 0).all())


def test_dropout_acts_on_the_final_weights() -> None:
    query, key, _ = (x.detach() for x in qkv())
    eye = torch.eye(7, dtype=torch.float64).expand(2, 2, 7, 7)
    weights = lssa_weights(query, key, reweight_power=None)
    dropped = softplus_attention(query, key, eye, reweight_power=None, dropout_p=0.5)
    kept = dropped != 0
    assert 0.3 < kept.double().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * weights[kept])


def test_autocast_does_not_round_the_inputs() -> None:
    inputs = [x.detach() for x in qkv(dtype=torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = softplus_attention(*inputs)
        mixed = softplus_attention(inputs[0], inputs[1], inputs[2].bfloat16())
    assert out.dtype is mixed.dtype is torch.bfloat16
    assert torch.equal(out, softplus_attention(*inputs).bfloat16())


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 9), (9, 4)])
def test_visible_keys_are_those_of_the_mask(queries: int, keys: int, window: int | None, is_causal: bool) -> None:
    q, k = torch.zeros(1, 1, queries, 2), torch.zeros(1, 1, keys, 2)
    count = tiled.visible_keys_in_tiles(tiles.Tiles.of(q, k, None, is_causal, window), q)
    expected = causal_mask(queries, keys, window=window, is_causal=is_causal)
    if not is_causal and window is None:
        expected = torch.ones_like(expected)
    assert count.dtype is q.dtype
    assert torch.equal(count, expected.sum(-1, keepdim=True).to(q.dtype))
