"""softmax_free_attention: what the papers say of it, its tiles against the reference, memory, edge cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from softgate.attention import gaussian_kernel, softmax_free_attention
from softgate.attention.soft import tiled
from softgate.dispatch import explain
from softgate.errors import StateError

TILED_CASES: dict[str, dict[str, Any]] = {
    "soft++": {},
    "soft": {"normalized": False},
    "unrolled": {"implicit_grad": False, "alpha": "global", "ridge": 0.1},
    "cholesky": {"inverse": "cholesky"},
    "padded": {"key_padding_mask": torch.arange(37) < torch.tensor([[30], [0]])},
}


def inputs(
    tokens: int = 37, marks: int = 5, dim: int = 4, width: int = 3, batch: int = 2, heads: int = 3
) -> list[Tensor]:
    """Spread landmarks, so that every inverse is well conditioned."""
    shapes = ((batch, heads, tokens, dim), (batch, heads, tokens, width), (batch, heads, marks, dim))
    q, v, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return [q.requires_grad_(), v.requires_grad_(), (2.0 * b).requires_grad_()]


def dense(q: Tensor, v: Tensor, b: Tensor, ridge: float = 0.0, normalized: bool = False) -> Tensor:
    """The formula by explicit distances and inverses."""
    p = torch.exp(-0.5 * (q[..., :, None, :] - b[..., None, :, :]).square().sum(-1))
    a = torch.exp(-0.5 * (b[..., :, None, :] - b[..., None, :, :]).square().sum(-1))
    core = torch.linalg.inv(a + ridge * torch.eye(a.shape[-1], dtype=a.dtype))
    if normalized:
        scale = torch.diag_embed(a.sum(-1) ** -0.5)
        core = scale @ core @ scale
    return p @ core @ p.mT @ v


@pytest.mark.parametrize("inverse", ["newton", "cholesky", "pinv"])
@pytest.mark.parametrize("normalized", [True, False])
def test_the_formula(inverse: str, normalized: bool):
    q, v, b = inputs()
    options: dict[str, Any] = {"inverse": inverse, "newton_iters": 40, "ridge": 0.05, "normalized": normalized}
    expected = dense(q, v, b, 0.05, normalized)
    found = softmax_free_attention(q, v, b, **options)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    upstream = torch.randn_like(expected)
    for ours, exact in zip(
        torch.autograd.grad(found, (q, v, b), upstream), torch.autograd.grad(expected, (q, v, b), upstream), strict=True
    ):
        torch.testing.assert_close(ours, exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("case", TILED_CASES)
@pytest.mark.parametrize("held", [True, False], ids=["held", "recomputed"])
def test_tiles_are_the_reference(case: str, held: bool, monkeypatch: pytest.MonkeyPatch):
    """With tiles of 7 tokens, and groups of one head whose P is held between the sweeps or not."""
    monkeypatch.setattr(tiled, "TILE_ENTRIES", {"cpu": 7 * 5})
    monkeypatch.setattr(tiled, "HELD_ENTRIES", 37 * 5 if held else 1)
    arguments, options = inputs(), TILED_CASES[case]
    found = softmax_free_attention(*arguments, **options, backend="tiled")
    expected = softmax_free_attention(*arguments, **options, backend="reference")
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    for ours, reference in zip(
        torch.autograd.grad(found, arguments, upstream), torch.autograd.grad(expected, arguments, upstream), strict=True
    ):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiles_of_sixteen_bits_far_from_the_origin(dtype: torch.dtype):
    """Distances come from float32 differences to the landmarks' mean: only the rounding of the inputs is left."""
    q, v, b = (t.detach().to(dtype) for t in inputs(tokens=100))
    q, b = q + 8.0, b + 8.0
    exact = softmax_free_attention(q.double(), v.double(), b.double())
    for backend in ("tiled", "reference"):
        found = softmax_free_attention(q, v, b, backend=backend)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=0.01, atol=0.01 * float(exact.abs().max()))


def test_large_problems_run_in_tiles_and_small_ones_do_not():
    small, large = inputs(), inputs(tokens=4096, marks=49)
    assert explain(softmax_free_attention, *small).chosen == "reference"
    assert explain(softmax_free_attention, *large).chosen == "tiled"
    assert "fits a cache" in explain(softmax_free_attention, *small).refused["tiled"]


def test_landmarks_at_all_tokens_give_the_dense_kernel():
    """P A⁻¹ Pᵀ = A where the landmarks are the tokens themselves."""
    q, v, _ = inputs(tokens=9)
    found = softmax_free_attention(q, v, q, inverse="pinv", ridge=0.0, normalized=False)
    torch.testing.assert_close(found, gaussian_kernel(q, q) @ v, rtol=1e-6, atol=1e-7)


def test_one_landmark():
    """A = 1, so that SOFT and SOFT++ are both p pᵀ v, up to the ridge."""
    q, v, b = inputs(marks=1)
    p = gaussian_kernel(q, b)
    for normalized in (True, False):
        found = softmax_free_attention(q, v, b, ridge=0.0, newton_iters=30, normalized=normalized)
        torch.testing.assert_close(found, p @ (p.mT @ v))


def test_tokens_may_be_permuted_and_space_moved_and_turned():
    q, v, b = inputs()
    expected = softmax_free_attention(q, v, b)
    order = torch.randperm(37)
    torch.testing.assert_close(softmax_free_attention(q[:, :, order], v[:, :, order], b), expected[:, :, order])
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    torch.testing.assert_close(softmax_free_attention(q @ turn + 3.0, v, b @ turn + 3.0), expected)


def test_coinciding_landmarks_stay_finite_with_a_ridge():
    """Identical tokens: A is all ones, singular."""
    ones = torch.ones(1, 1, 64, 4, requires_grad=True)
    v = torch.randn(1, 1, 64, 2)
    for inverse in ("newton", "cholesky", "pinv"):
        y = softmax_free_attention(ones, v, ones[:, :, :9], inverse=inverse, normalized=True)
        (grad,) = torch.autograd.grad(y.sum(), ones)
        assert y.isfinite().all() and grad.isfinite().all(), inverse


def test_singular_landmarks_without_a_ridge_are_refused_by_cholesky():
    q, v, _ = inputs()
    with pytest.raises(StateError, match="ridge=0"):
        softmax_free_attention(q, v, torch.zeros_like(q[:, :, :3]) + 1e4 * q[:, :, :1], inverse="cholesky", ridge=0.0)


def test_queries_far_from_every_landmark_give_zero():
    q, v, b = inputs()
    assert softmax_free_attention(q + 1e4, v, b).abs().max() == 0.0


def test_queries_far_from_each_other_see_themselves_alone():
    """Huge norms, landmarks at the tokens: the kernel underflows to the identity."""
    q, v, _ = inputs(tokens=6)
    far = 1e3 * q
    torch.testing.assert_close(softmax_free_attention(far, v, far, ridge=0.0, newton_iters=40, normalized=False), v)


def test_padded_tokens_get_zero_and_count_nowhere():
    q, v, b = inputs()
    keep = torch.ones(2, 37, dtype=torch.bool)
    keep[0, 20:] = False
    found = softmax_free_attention(q, v, b, key_padding_mask=keep)
    alone = softmax_free_attention(q[:1, :, :20], v[:1, :, :20], b[:1])
    torch.testing.assert_close(found[:1, :, :20], alone)
    assert found[0, :, 20:].abs().max() == 0.0
    gradients = torch.autograd.grad(found.sum(), (q, v))
    assert all(g[0, :, 20:].abs().max() == 0.0 < g[1].abs().max() for g in gradients)


def test_nan_stays_in_its_head():
    q, v, b = (t.detach().clone() for t in inputs())
    q[0, 1, 3, 0] = float("nan")
    for backend in ("reference", "tiled"):
        nan = softmax_free_attention(q, v, b, backend=backend).isnan()
        assert nan[0, 1].all() and nan.sum() == nan[0, 1].sum()


def test_more_landmarks_than_tokens_warn():
    q, v, b = inputs(tokens=4)
    with pytest.warns(UserWarning, match="5 landmarks for 4 tokens"):
        softmax_free_attention(q, v, b)


def test_the_query_itself_is_accepted_as_key():
    q, v, b = inputs()
    torch.testing.assert_close(softmax_free_attention(q, v, b, key=q), softmax_free_attention(q, v, b))


def test_autocast_rounds_the_result_only():
    q, v, b = (t.detach().float() for t in inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = softmax_free_attention(q, v.bfloat16(), b)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found, softmax_free_attention(q, v.bfloat16().float(), b).bfloat16(), rtol=0.01, atol=0.01
    )


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes that were allocated at a time, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


@pytest.mark.parametrize(("backend", "bounded"), [("tiled", True), ("reference", False)])
def test_memory_of_16384_tokens(backend: str, bounded: bool):
    """Forward and backward of the tiles take results and gradients and a constant; the reference holds P, and more."""
    q, v, b = (t.detach().float().requires_grad_() for t in inputs(16384, 64, 8, 8, 1, 16))
    whole = 4 * 16 * 16384 * 64  # P
    results = 4 * 16 * 16384 * 8 * 4  # the output, its gradient, and the gradients of queries and values

    def step() -> None:
        softmax_free_attention(q, v, b, backend=backend).sum().backward()

    peak = peak_bytes(step)
    limit = results + 4 * tiled.HELD_ENTRIES
    assert limit < whole
    assert (peak < limit) is bounded, f"{peak / 2**20:.1f} MiB, limit {limit / 2**20:.1f}, P {whole / 2**20:.1f}"


def test_nothing_of_the_size_of_p_is_saved_for_backward():
    q, v, b = inputs(4096, 49)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        softmax_free_attention(q, v, b)
    assert max(saved) <= max(q.numel(), v.numel())
