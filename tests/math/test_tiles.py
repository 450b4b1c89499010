"""Tiles cover the score matrix exactly: nothing twice, nothing missing, nothing that causality or window forbids."""

from __future__ import annotations

import pytest
import torch

from softgate._math import masks
from softgate._math.tiles import Tiles, fold_kv_heads, worthwhile

SIZES = [(5, 5), (3, 9), (9, 3), (1, 7), (16, 16), (17, 4), (4, 0), (0, 4)]


def tensors(queries: int, keys: int, heads: int = 4, groups: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, heads, queries, 3, dtype=torch.float64, generator=generator)
    return q, torch.randn(2, groups, keys, 3, dtype=torch.float64, generator=generator)


def attn_mask(kind: str, queries: int, keys: int) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(2, 1, queries, keys, generator=generator) < 0.7
    if kind == "none":
        return None
    if kind == "padding":
        return torch.rand(2, 1, 1, keys, generator=generator) < 0.7
    if kind == "bool":
        return keep
    bias = torch.randn(2, 4, queries, keys, generator=generator, dtype=torch.float64)
    return bias.masked_fill(~keep, float("-inf"))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 100, (2, 0), (-1, 0), (0, -1)])
@pytest.mark.parametrize("kind", ["none", "padding", "bool", "float"])
def test_the_tiles_put_together_are_the_masked_scores(sizes, is_causal, window, kind) -> None:
    q, k = tensors(*sizes)
    mask = attn_mask(kind, *sizes)
    whole = masks.resolve_mask(mask, q, k, is_causal, window)
    expected = masks.attention_scores(q, k, 1.0, whole)
    if whole.allowed is not None:
        expected = expected.masked_fill(~whole.allowed, float("-inf"))

    tiles = Tiles.of(q, k, mask, is_causal, window, block=4)
    got = torch.full_like(expected, float("-inf"))
    seen = torch.zeros(sizes, dtype=torch.int64)
    for rows in tiles.rows():
        for cols in tiles.cols(rows):
            part = tiles.mask(rows, cols)
            scores = tiles.scores(q[..., rows, :], k[..., cols, :], part)
            got[..., rows, cols] = scores if part.allowed is None else scores.masked_fill(~part.allowed, float("-inf"))
            seen[rows, cols] += 1

    assert seen.le(1).all()
    torch.testing.assert_close(got, expected)


def test_tiles_without_an_allowed_pair_are_not_visited() -> None:
    q, k = tensors(64, 64)
    tiles = Tiles.of(q, k, is_causal=True, window=4, block=8)
    visited = [(rows.start, cols.start) for rows in tiles.rows() for cols in tiles.cols(rows)]
    assert visited == [(0, 0)] + [(r, c) for r in range(8, 64, 8) for c in (r - 8, r)]


def test_distance_is_aligned_at_the_bottom_right() -> None:
    q, k = tensors(3, 5)
    tiles = Tiles.of(q, k, block=2)
    assert tiles.distance(slice(2, 3), slice(3, 5)).tolist() == [[1, 0]]


@pytest.mark.parametrize("heads", [1, 8, 10_000])
def test_a_tile_of_all_heads_has_bounded_size(heads) -> None:
    q = torch.empty(1, 1, 1).expand(heads, 4096, 8)
    block = Tiles.of(q, q).block
    assert block == 512 if heads == 1 else block >= 64
    assert heads * block**2 <= 1 << 20 or block == 64


def test_folding_heads_is_the_transpose_of_expanding_them() -> None:
    k = torch.randn(2, 3, 5, 4)
    dk = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close((masks.expand_kv_heads(k, 6) * dk).sum(), (k * fold_kv_heads(dk, 3)).sum())


def test_small_score_matrices_are_not_worth_tiles() -> None:
    q = torch.empty(1, 1, 512, 4)
    assert worthwhile(q, q) and not worthwhile(q[..., :100, :], q)
