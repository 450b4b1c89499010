"""Rotary positions and the key/value cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from softgate.attention import KVCache, RotaryEmbedding, apply_rotary
from softgate.errors import SoftgateError


def test_rotation_depends_on_distance_alone() -> None:
    rotary = RotaryEmbedding(8, 100.0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(i: int, j: int) -> float:
        (cos_i, sin_i), (cos_j, sin_j) = (tuple(t.double() for t in rotary(torch.tensor([p]))) for p in (i, j))
        return float((apply_rotary(q, cos_i, sin_i) * apply_rotary(k, cos_j, sin_j)).sum())

    assert score(3, 1) == pytest.approx(score(9, 7), abs=1e-5)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_rotation_keeps_lengths_and_starts_at_zero() -> None:
    x = torch.randn(2, 3, 5, 8)
    cos, sin = RotaryEmbedding(8)(torch.arange(5))
    turned = apply_rotary(x, cos, sin)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    per_sequence = apply_rotary(x, cos.expand(2, 5, 8), sin.expand(2, 5, 8))
    assert torch.equal(per_sequence, turned)


def test_partial_rotation_leaves_the_rest() -> None:
    x = torch.randn(1, 1, 5, 8)
    cos, sin = RotaryEmbedding(4)(torch.arange(5))
    turned = apply_rotary(x, cos, sin)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned[..., :4], apply_rotary(x[..., :4], cos, sin))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_modules_still_count(dtype: torch.dtype) -> None:
    """In 16 bits positions 4096 and 4097 would coincide."""
    rotary = RotaryEmbedding(8).to(dtype)
    cos, _ = rotary(torch.tensor([4096, 4097]))
    assert cos.dtype is torch.float32 and (cos[0, 0] - cos[1, 0]).abs() > 0.1
    cos, sin = rotary(torch.arange(3))
    assert apply_rotary(torch.ones(1, 1, 3, 8, dtype=dtype), cos, sin).dtype is dtype


@pytest.mark.parametrize("head_dim", [0, 3, -2, 2.0, True, None])
def test_bad_head_dim(head_dim: Any) -> None:
    with pytest.raises(SoftgateError, match="head_dim"):
        RotaryEmbedding(head_dim)


@pytest.mark.parametrize("base", [0.0, -1.0, float("nan"), "1e4", None])
def test_bad_base(base: Any) -> None:
    with pytest.raises(SoftgateError, match="base"):
        RotaryEmbedding(4, base)


@pytest.mark.parametrize("length", [2, 4])
def test_tables_must_fit(length: int) -> None:
    cos, sin = RotaryEmbedding(4)(torch.arange(length))
    with pytest.raises(SoftgateError, match="cos and sin"):
        apply_rotary(torch.ones(1, 1, 3, 4), cos, sin)
    with pytest.raises(SoftgateError, match="cos and sin"):
        apply_rotary(torch.ones(1, 1, length, 2), cos, sin)
    with pytest.raises(SoftgateError, match="positions"):
        RotaryEmbedding(4)(torch.ones(3))


@pytest.mark.parametrize("capacity", [1, 4, 64])
def test_cache_returns_everything_so_far(capacity: int) -> None:
    cache = KVCache(capacity)
    key, value = torch.randn(2, 3, 11, 4), torch.randn(2, 3, 11, 5)
    end = 0
    for size in (1, 3, 0, 1, 6):
        end += size
        keys, values = cache.append(key[:, :, end - size : end], value[:, :, end - size : end])
        assert torch.equal(keys, key[:, :, :end]) and torch.equal(values, value[:, :, :end])
        assert cache.length == end


def test_cache_copies_little() -> None:
    """Growing by doubling: one token at a time must not move the storage every time."""
    cache, places = KVCache(1), set()
    for _ in range(1000):
        keys, _ = cache.append(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
        places.add(keys.data_ptr())
    assert len(places) <= 11


def test_cache_truncates() -> None:
    cache = KVCache()
    key = torch.arange(5.0).view(1, 1, 5, 1)
    cache.append(key, key)
    cache.truncate(2)
    keys, _ = cache.append(key[:, :, 4:], key[:, :, 4:])
    assert keys.flatten().tolist() == [0.0, 1.0, 4.0]
    for length in (-1, 4, 1.0, True):
        with pytest.raises(SoftgateError, match="length"):
            cache.truncate(length)  # type: ignore[arg-type]


def test_cache_is_differentiable() -> None:
    cache = KVCache()
    first, second = (torch.randn(1, 1, 2, 3, requires_grad=True) for _ in range(2))
    cache.append(first, first)
    keys, values = cache.append(second, second)
    (keys.sum() + 2 * values.sum()).backward()
    assert first.grad is not None and second.grad is not None
    assert (first.grad == 3).all() and (second.grad == 3).all()
    with torch.no_grad():
        keys, _ = cache.append(second, second)
    assert not keys.requires_grad and keys.shape[2] == 6
    torch.testing.assert_close(keys[:, :, :2], first.detach())


def tensors(*shape: int, **options: Any) -> torch.Tensor:
    return torch.ones(shape, **options)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (tensors(1, 2, 3), tensors(1, 2, 3)),
        (tensors(1, 2, 3, 4), tensors(1, 2, 2, 4)),
        (tensors(1, 1, 1, 4), tensors(1, 1, 1, 4)),
        (tensors(2, 2, 1, 4), tensors(2, 2, 1, 4)),
        (tensors(1, 2, 1, 5), tensors(1, 2, 1, 4)),
        (tensors(1, 2, 1, 4).double(), tensors(1, 2, 1, 4).double()),
        (tensors(1, 2, 1, 4, device="meta"), tensors(1, 2, 1, 4, device="meta")),
    ],
)
def test_cache_refuses_what_does_not_continue(key: torch.Tensor, value: torch.Tensor) -> None:
    cache = KVCache()
    cache.append(tensors(1, 2, 3, 4), tensors(1, 2, 3, 4))
    with pytest.raises(SoftgateError, match="key"):
        cache.append(key, value)
    assert cache.length == 3


@pytest.mark.parametrize("capacity", [0, -1, 1.5, True, None])
def test_bad_capacity(capacity: Any) -> None:
    with pytest.raises(SoftgateError, match="capacity"):
        KVCache(capacity)
