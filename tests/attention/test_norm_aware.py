"""norm_aware_linear_attention: its forms against each other, invariants of the paper, edge cases, memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from softgate.attention import (
    LinearAttentionState,
    line_rope,
    norm_aware_features,
    norm_aware_linear_attention,
    relu_linear_attention,
)
from softgate.attention.norm_aware import chunked
from softgate.attention.norm_aware.linear import norm_aware_linear_plain
from softgate.dispatch import explain
from softgate.errors import StateError


def qkv(
    heads: int = 2, kv_heads: int = 2, queries: int = 7, keys: int = 7, dim: int = 8, batch: int = 2,
    dtype: torch.dtype = torch.float64, features: int | None = None,
) -> list[Tensor]:  # fmt: skip
    shapes = ((heads, queries, dim), (kv_heads, keys, dim), (kv_heads, keys, features or dim))
    return [torch.randn((batch, *shape), dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def formula(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """The specification's formula, loop over queries; eps is relative to the mean."""
    y = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for i in range(q.shape[-2]):
        norm = q[..., i, :].norm(dim=-1, keepdim=True)
        p = 3 * (0.5 + norm.tanh())
        u, seen = q[..., i, :] / norm, allowed[i]
        phi = torch.cat((u.relu() ** p, (-u).relu() ** p), -1)
        phi_k = torch.cat((k.relu() ** 3, (-k).relu() ** 3), -1)[..., seen, :]
        weights = (phi_k @ phi[..., None]).squeeze(-1) / max(int(seen.sum()), 1)
        y[..., i, :] = (weights[..., None] * v[..., seen, :]).sum(-2) / (weights.sum(-1, True) + 1e-6)
    return y


FORMS = {
    "reference": lambda *a, **o: norm_aware_linear_attention(*a, **o, backend="reference"),
    "chunked": lambda *a, **o: norm_aware_linear_attention(*a, **o, backend="chunked"),
    "plain": norm_aware_linear_plain,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 7), (7, 3)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_every_form_is_the_formula(form: str, queries: int, keys: int, is_causal: bool) -> None:
    q, k, v = qkv(queries=queries, keys=keys)
    allowed = torch.ones(queries, keys, dtype=torch.bool)
    allowed = allowed.tril(keys - queries) if is_causal else allowed
    y = FORMS[form](q, k, v, is_causal=is_causal, chunk_size=2)
    torch.testing.assert_close(y, formula(q, k, v, allowed), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("direction", ["polarity", "cosine"])
@pytest.mark.parametrize(("heads", "kv_heads", "queries", "keys"), [(2, 2, 150, 150), (6, 2, 37, 150), (4, 1, 70, 33)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_chunked_and_plain_equal_quadratic(
    direction: str, heads: int, kv_heads: int, queries: int, keys: int, is_causal: bool
) -> None:
    """Outputs and all gradients, in float64 to 1e-10 and float32 to 1e-5 of the largest entry."""
    for padded, turned, dtype in itertools.product((False, True), (False, True), (torch.float64, torch.float32)):
        if turned and queries > keys:
            continue
        q, k, v = qkv(heads, kv_heads, queries, keys, dtype=dtype, features=5)
        options: dict[str, Any] = {"is_causal": is_causal, "enable_gqa": True, "direction": direction, "chunk_size": 16}
        if turned:
            options["rope"] = line_rope(torch.arange(keys), 8)
        if padded:
            options["key_padding_mask"] = torch.rand(2, keys) > torch.tensor([[0.3], [2.0]])
        upstream = torch.randn(2, heads, queries, 5, dtype=dtype)
        found = {}
        for form, run in FORMS.items():
            y = run(q, k, v, **options)
            found[form] = (y, *torch.autograd.grad(y, (q, k, v), upstream))
        tolerance = 1e-10 if dtype is torch.float64 else 1e-5
        for form in ("chunked", "plain"):
            for got, expected in zip(found[form], found["reference"], strict=True):
                assert (got - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1e-30)


@pytest.mark.parametrize("memory", [2**10, 2**14])
def test_blocks_of_any_size_give_the_same(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks walk batch entries, heads and spans one by one; large ones take all at once."""
    q, k, v = qkv(6, 3, 90, 90, batch=3)
    options: dict[str, Any] = {"enable_gqa": True, "chunk_size": 8}
    for is_causal in (False, True):
        expected = norm_aware_linear_attention(q, k, v, is_causal=is_causal, **options)
        gradients = torch.autograd.grad(expected.square().sum(), (q, k, v))
        with monkeypatch.context() as small:
            small.setattr("softgate.attention.norm_aware.blocks._BLOCK", memory)
            y = norm_aware_linear_attention(q, k, v, is_causal=is_causal, **options)
            torch.testing.assert_close(y, expected)
            torch.testing.assert_close(torch.autograd.grad(y.square().sum(), (q, k, v)), gradients)


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("steps", [[1] * 9, [4, 5], [9]])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_state_continues_where_the_last_call_ended(rope: bool, steps: list[int], backend: str) -> None:
    q, k, v = (x.detach() for x in qkv(4, 2, 9, 9))
    cos, sin = line_rope(torch.arange(9), 8)
    keep = torch.rand(2, 9) > 0.4
    options: dict[str, Any] = {"is_causal": True, "enable_gqa": True, "chunk_size": 2, "backend": backend}
    whole = norm_aware_linear_attention(q, k, v, **options, key_padding_mask=keep, rope=(cos, sin) if rope else None)
    state, pieces, start = None, [], 0
    for step in steps:
        now = slice(start, start + step)
        y, state = norm_aware_linear_attention(
            q[:, :, now], k[:, :, now], v[:, :, now], **options, key_padding_mask=keep[:, now],
            rope=(cos[now], sin[now]) if rope else None, initial_state=state, return_state=True,
        )  # fmt: skip
        pieces.append(y)
        start += step
    torch.testing.assert_close(torch.cat(pieces, 2), whole)
    assert state is not None and state.kv.shape == (2, 2, 16, 8) and state.key_sum.shape == (2, 2, 16)
    torch.testing.assert_close(state.tokens, keep.double().sum(-1))
    if not rope:
        torch.testing.assert_close(state.kv, norm_aware_features(k * keep[:, None, :, None], "key").mT @ v)


def test_a_state_serves_bidirectional_queries_and_has_gradients_in_the_reference() -> None:
    q, k, v = qkv(keys=9)
    _, state = norm_aware_linear_attention(q, k[:, :, :4], v[:, :, :4], return_state=True)
    assert state.kv.requires_grad
    y = norm_aware_linear_attention(q, k[:, :, 4:], v[:, :, 4:], initial_state=state)
    expected = norm_aware_linear_attention(q, k, v)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), k)[0] for x in (y, expected)))


def weights(q: Tensor, k: Tensor, **options: Any) -> Tensor:
    """The weights, by values that are unit vectors."""
    eye = torch.eye(k.shape[-2], dtype=k.dtype).expand(*k.shape[:2], -1, -1)
    return norm_aware_linear_attention(q, k, eye, **options)


@pytest.mark.parametrize("direction", ["polarity", "cosine"])
def test_laws_of_the_weights(direction: str) -> None:
    q, k, _ = (x.detach() for x in qkv(queries=20, keys=30))
    options: dict[str, Any] = {"direction": direction, "eps": 1e-12}
    w = weights(q, k, **options)
    assert w.min() >= 0
    torch.testing.assert_close(w.sum(-1), torch.ones_like(w[..., 0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(weights(q, 7.0 * k, **options), w)
    torch.testing.assert_close(weights(-q, -k, **options), w)
    saturated = weights(50.0 * q, k, **options)
    torch.testing.assert_close(weights(99.0 * q, k, **options), saturated)  # only the direction is left
    assert (saturated - weights(0.1 * q, k, **options)).abs().max() > 1e-3
    order = torch.randperm(20)
    torch.testing.assert_close(weights(q[:, :, order], k, **options), w[:, :, order])


def test_the_norm_sharpens_and_relu_linear_attention_forgets_it() -> None:
    """Entropy of the weights falls with the norm of the query, as in softmax attention; the measured table."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(1, 1, 256, 32, generator=generator)
    u = torch.nn.functional.normalize(torch.randn(1, 1, 64, 32, generator=generator), dim=-1)
    eye = torch.eye(256)[None, None]

    def entropy(attend: Any, norm: float) -> float:
        w = attend(norm * u, k, eye)
        return float(torch.special.entr(w).sum(-1).mean())

    table = [entropy(norm_aware_linear_attention, norm) for norm in (0.1, 0.6, 1.0, 2.0, 4.0, 16.0)]
    assert all(a >= b - 1e-4 for a, b in itertools.pairwise(table)) and table[0] - table[-1] > 0.3
    relu = [entropy(relu_linear_attention, norm) for norm in (0.6, 16.0)]
    assert math.isclose(*relu, abs_tol=1e-4)
    fixed = [entropy(lambda *a: norm_aware_linear_attention(*a, norm_scale=0.0), norm) for norm in (0.6, 16.0)]
    assert math.isclose(*fixed, abs_tol=1e-5)


def test_cosine_tends_to_polarity_and_norm_scale_zero_fixes_the_power() -> None:
    q, k, v = (x.detach() for x in qkv())
    sharp = norm_aware_linear_attention(q, k, v, direction="cosine", alpha=1e6)
    torch.testing.assert_close(sharp, norm_aware_linear_attention(q, k, v))
    u = q / q.norm(dim=-1, keepdim=True)
    phi = torch.cat((u.relu(), (-u).relu()), -1) ** 3
    torch.testing.assert_close(norm_aware_features(q, tau=1.0, norm_scale=0.0), phi)


def test_cosine_features_have_the_products_of_the_formula() -> None:
    q, k, _ = (x.detach() for x in qkv())
    theta_q, theta_k = (math.pi / 4 * (20 * x / x.norm(dim=-1, keepdim=True)).tanh() for x in (q, k))
    phi_q, phi_k = norm_aware_features(q, direction="cosine"), norm_aware_features(k, "key", direction="cosine")
    assert phi_q[..., :8].min() >= 0
    angles = torch.cos(theta_q[..., :, None, :] - theta_k[..., None, :, :])
    p = 3 * (0.5 + q.norm(dim=-1, keepdim=True).tanh())
    sizes = ((q / q.norm(dim=-1, keepdim=True)).abs() ** p)[..., :, None, :] * (k.abs() ** 3)[..., None, :, :]
    torch.testing.assert_close(phi_q @ phi_k.mT, (sizes * angles).sum(-1))


@pytest.mark.parametrize("direction", ["polarity", "cosine"])
@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_zeros(direction: str, backend: str, is_causal: bool) -> None:
    """Queries of norm 0, coordinates of 0 and keys of 0 give 0, never NaN, with zero gradients."""
    q, k, v = (x.detach() for x in qkv())
    q[:, :, 1] = 0.0
    q[:, :, 2, 3:6] = 0.0
    k[:, 1] = 0.0
    k[:, 0, 2:4, 5] = 0.0
    tensors = [x.requires_grad_() for x in (q, k, v)]
    y = norm_aware_linear_attention(*tensors, direction=direction, backend=backend, is_causal=is_causal)
    assert y[:, :, 1].abs().max() == 0 and y[:, 1].abs().max() == 0 < y[:, 0, 3:].abs().min()
    dq, dk, dv = torch.autograd.grad(y.square().sum(), tensors)
    assert all(bool(g.isfinite().all()) for g in (dq, dk, dv))
    assert dq[:, :, 1].abs().max() == 0 and dk[:, 1].abs().max() == 0
    if direction == "polarity":  # a smooth angle has a slope at 0, a power above 1 has none
        assert dq[:, 0, 2, 3:6].abs().max() < 1e-12 * dq.abs().max() or dq[:, 0, 2, 3:6].abs().max() == 0
        assert dk[:, 0, 2:4, 5].abs().max() == 0


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_huge_keys_and_sixteen_bit_inputs_do_not_overflow(backend: str, is_causal: bool) -> None:
    q, k, v = (x.detach().float() for x in qkv())
    options: dict[str, Any] = {"backend": backend, "is_causal": is_causal, "eps": 1e-30}
    expected = norm_aware_linear_attention(q, k, v, **options)
    huge = norm_aware_linear_attention(q, k * 2.0**60, v, **options)
    torch.testing.assert_close(huge, expected)
    leaf = (k * 2.0**60).requires_grad_()
    (dk,) = torch.autograd.grad(norm_aware_linear_attention(q, leaf, v, **options).square().sum(), leaf)
    leaf = k.clone().requires_grad_()
    (expected_dk,) = torch.autograd.grad(norm_aware_linear_attention(q, leaf, v, **options).square().sum(), leaf)
    torch.testing.assert_close(dk * 2.0**60, expected_dk, rtol=1e-4, atol=1e-5)
    half = [x.half() for x in (q, 100 * k, v)]  # the cube of 100 is beyond float16
    y = norm_aware_linear_attention(*half, backend=backend, is_causal=is_causal)
    assert y.dtype is torch.float16
    torch.testing.assert_close(y.float(), norm_aware_linear_attention(q, k, v, is_causal=is_causal), rtol=0, atol=0.02)


def test_autocast_keeps_float32_inside() -> None:
    q, k, v = (x.detach().float() for x in qkv())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm_aware_linear_attention(q, 300 * k, v)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), norm_aware_linear_attention(q, 300 * k, v), rtol=0, atol=0.05)


@pytest.mark.parametrize("options", [{}, {"direction": "cosine"}, {"power": 2.0, "tau": 0.8}, {"norm_scale": 0.3}])
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_of_the_kernel_against_finite_differences(options: dict[str, Any], is_causal: bool) -> None:
    q, k, v = qkv(2, 1, 5, 6, dim=2, batch=1)

    def run(*tensors: Tensor) -> Tensor:
        return norm_aware_linear_attention(
            *tensors, backend="chunked", is_causal=is_causal, enable_gqa=True, chunk_size=2, **options
        )

    assert torch.autograd.gradcheck(run, (q, k, v))
    if not options:
        assert torch.autograd.gradgradcheck(run, (q, k, v), fast_mode=True)


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 3, 4, 5, 8), (0, 2, 5, 8), (2, 2, 0, 8)])
def test_any_number_of_leading_dimensions_and_empty_tensors(shape: tuple[int, ...]) -> None:
    q = torch.randn(shape, dtype=torch.float64)
    y = norm_aware_linear_attention(q, q, q, is_causal=True)
    assert y.shape == shape
    torch.testing.assert_close(y, norm_aware_linear_attention(q, q, q, is_causal=True, backend="reference"))


def test_attn_mask_and_key_padding_mask_combine() -> None:
    q, k, v = (x.detach() for x in qkv())
    a, b = torch.rand(2, 7) > 0.3, torch.rand(2, 7) > 0.3
    y = norm_aware_linear_attention(q, k, v, attn_mask=a[:, None, None], key_padding_mask=b)
    torch.testing.assert_close(y, norm_aware_linear_attention(q, k, v, key_padding_mask=a & b))
    torch.testing.assert_close(
        norm_aware_linear_attention(q, k, v, attn_mask=a[:1]),
        norm_aware_linear_attention(q, k, v, key_padding_mask=a[:1].expand(2, 7)),
    )


def test_dispatch_says_why() -> None:
    q, k, v = (x.detach() for x in qkv())
    assert explain(norm_aware_linear_attention, q, k, v).chosen == "chunked"
    assert "few keys" in explain(norm_aware_linear_attention, q[:, :, :1], k[:, :, :1], v[:, :, :1]).refused["chunked"]
    _, state = norm_aware_linear_attention(q, k, v, return_state=True)
    grown = LinearAttentionState(state.kv.requires_grad_(), state.key_sum, state.tokens)
    with pytest.raises(StateError, match="gradient"):
        norm_aware_linear_attention(q, k, v, initial_state=grown, backend="chunked")


def test_compiled_calls_need_no_pairs() -> None:
    """Traced without a graph break; the traced graph is the linear form, also causal, with gradients."""
    q, k, v = qkv(4, 2, 9, 9)

    def run(*tensors: Tensor) -> Tensor:
        return norm_aware_linear_attention(*tensors, is_causal=True, enable_gqa=True, chunk_size=4)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    y, expected = compiled(q, k, v), run(q, k, v)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (y, expected)))


@pytest.mark.parametrize("is_causal", [False, True])
def test_memory_is_linear_and_features_are_not_kept(is_causal: bool) -> None:
    """Between forward and backward only inputs, output and denominators live; beside them one block at a time."""
    q, k, v = (torch.randn(1, 2, 16384, 64, requires_grad=True) for _ in range(3))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = norm_aware_linear_attention(q, k, v, is_causal=is_causal)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert sum(held.values()) <= 4.1 * q.numel() * 4  # q, k, v, y and little else: features alone would be 4 more
    calls = {
        "forward": lambda: norm_aware_linear_attention(q, k, v, is_causal=is_causal),
        "backward": lambda: torch.autograd.grad(y, (q, k, v), torch.ones_like(y)),
    }
    results = {"forward": 1, "backward": 3}  # tensors of the size of q that a call returns; blocks take a few MB
    for name, call in calls.items():
        assert peak_memory(call) <= (results[name] * q.numel() * 4) + 24 * 2**20, name


def peak_memory(call: Callable[[], object]) -> int:
    """Largest sum of what torch's allocator held at a time during ``call``, in bytes."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(sizes))


def test_chunked_is_exported_with_the_signature_of_the_reference() -> None:
    q, k, v = (x.detach() for x in qkv())
    torch.testing.assert_close(chunked.run(q, k, v), norm_aware_linear_attention(q, k, v, backend="reference"))
