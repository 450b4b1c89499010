"""Walking the T × S score matrix of an attention in tiles, so that it is never held as a whole.

A tiled forward or backward pass is two loops over :class:`Tiles`:

    for rows in tiles.rows():
        for cols in tiles.cols(rows):
            mask = tiles.mask(rows, cols)
            scores = tiles.scores(query[..., rows, :], key[..., cols, :], mask)

Only tiles that causality and window leave alive are visited. What is held at a time is one tile for all heads, a
constant amount of memory; inputs, outputs and row statistics are O(T).

Shape suffixes: B batch (any number of leading dimensions), H query heads, G key/value heads, T queries, S keys, D
features; t and s are the rows and columns of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from softgate._math import masks
from softgate._math.masks import Mask

__all__ = ["Tiles", "fold_kv_heads", "worthwhile"]

#: Scores of one tile over all heads; enough for large matrix products, few enough for a cache or two.
_TILE_ENTRIES = 1 << 20
_SMALLEST, _LARGEST = 64, 512
#: Score matrices from this size on are worth walking: smaller ones cost less whole.
_WORTHWHILE_ENTRIES = 1 << 18


def worthwhile(query: Tensor, key: Tensor) -> bool:
    """Whether the score matrix of one head is so large that tiles pay."""
    return query.shape[-2] * key.shape[-2] >= _WORTHWHILE_ENTRIES


@dataclass(frozen=True)
class Tiles:
    """The tiles of one attention call.

    Attributes:
        queries: T.
        keys: S.
        left: how far a query sees back, in keys before its own position; None without a limit.
        right: how far it sees ahead; None without a limit, 0 if causal.
        attn_mask: bool (True = attend) or float (added), broadcastable to (…, H, T, S), or None.
        block: rows and columns of a tile.
        device: of the tensors.
    """

    queries: int
    keys: int
    left: int | None
    right: int | None
    attn_mask: Tensor | None
    block: int
    device: torch.device

    @classmethod
    def of(
        cls,
        query: Tensor,
        key: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        window: masks.Window | None = None,
        block: int | None = None,
    ) -> Tiles:
        """The tiles of an attention call with these arguments.

        Args:
            query: (…, H, T, D), only its shape and device are read.
            key: (…, G, S, D), likewise.
            attn_mask: as in :func:`softgate._math.masks.resolve_mask`.
            is_causal: aligned at the bottom right.
            window: as in :func:`softgate._math.masks.causal_mask`.
            block: rows and columns of a tile; chosen by the number of heads if None.
        """
        left, right = masks.window_bounds(window, is_causal)
        if block is None:
            heads = max(math.prod(query.shape[:-2]), 1)
            ideal = math.isqrt(max(_TILE_ENTRIES // heads, 1))
            block = min(max(1 << (ideal.bit_length() - 1), _SMALLEST), _LARGEST)
        return cls(query.shape[-2], key.shape[-2], left, right, attn_mask, block, query.device)

    def rows(self) -> Iterator[slice]:
        """Blocks of queries."""
        for start in range(0, self.queries, self.block):
            yield slice(start, min(start + self.block, self.queries))

    def cols(self, rows: slice) -> Iterator[slice]:
        """Blocks of keys that some query of ``rows`` may see."""
        offset = self.keys - self.queries  # query i stands at position i + offset
        first = 0 if self.left is None else max(rows.start + offset - self.left, 0)
        end = self.keys if self.right is None else min(rows.stop + offset + self.right, self.keys)
        for start in range(first // self.block * self.block, end, self.block):
            yield slice(start, min(start + self.block, self.keys))

    def distance(self, rows: slice, cols: slice) -> Tensor:
        """(t, s) position of the query less that of the key."""
        position = torch.arange(rows.start, rows.stop, device=self.device)[:, None] + (self.keys - self.queries)
        return position - torch.arange(cols.start, cols.stop, device=self.device)

    def mask(self, rows: slice, cols: slice) -> Mask:
        """The tile of the mask; ``allowed`` is None where every pair of the tile exists."""
        part = None if self.attn_mask is None else self.part(self.attn_mask, rows, cols)
        return masks.split_mask(part, self._structure(rows, cols))

    def _structure(self, rows: slice, cols: slice) -> Tensor | None:
        offset = self.keys - self.queries
        left = self.left if self.left is not None else self.queries + self.keys
        right = self.right if self.right is not None else self.queries + self.keys
        back = rows.stop - 1 + offset - cols.start > left
        ahead = cols.stop - 1 - rows.start - offset > right
        if not back and not ahead:
            return None
        distance = self.distance(rows, cols)
        return (distance <= left) & (-distance <= right)

    @staticmethod
    def part(mask: Tensor, rows: slice, cols: slice) -> Tensor:
        """A view of what a tensor that broadcasts to (…, T, S) has for this tile."""
        if mask.shape[-2] != 1:
            mask = mask[..., rows, :]
        return mask if mask.shape[-1] == 1 else mask[..., cols]

    @staticmethod
    def scores(query: Tensor, key: Tensor, mask: Mask) -> Tensor:
        """``q kᵀ + bias`` (…, H, t, s) of a tile; the caller has scaled ``query`` and widened both."""
        scores = query @ masks.expand_kv_heads(key, query.shape[-3]).transpose(-1, -2)
        return scores if mask.bias is None else scores + mask.bias.to(scores.dtype)


def fold_kv_heads(tensor: Tensor, groups: int) -> Tensor:
    """(…, H, S, D) -> (…, G, S, D): the sum over the query heads that share a key/value head."""
    heads = tensor.shape[-3]
    return tensor if heads == groups else tensor.unflatten(-3, (groups, heads // groups)).sum(-3)
