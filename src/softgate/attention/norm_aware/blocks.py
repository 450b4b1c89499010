"""How the chunked form walks a call: blocks of heads and tokens that fit the cache, and their mapped features.

Shape suffixes as in ``chunked``; a block of rows is held as (M, N, C, …): chunks, heads, rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from softgate.attention.norm_aware import block_features
from softgate.attention.norm_aware.features import FeatureMap
from softgate.attention.norm_aware.rotation import Rope

#: Numbers in the features of one block: 1 MB in float32, what a core's cache holds beside the products.
_BLOCK = 2**18
#: So many times more elsewhere than on the CPU: an accelerator wants few and large products.
_LARGER = 64
#: Rows per product where chunks are not needed.
_ROWS = 128


class Unit(NamedTuple):
    """The heads of one block: batch entries and key/value heads; all heads of several entries or some of one."""

    batch: slice
    heads: slice


class Span(NamedTuple):
    """Tokens of one block, ``start`` to ``stop``, in chunks of ``chunk``."""

    start: int
    stop: int
    chunk: int


class Keys(NamedTuple):
    """A block of keys: raw rows, features, features turned to their positions, values."""

    rows: Tensor
    phi_MNCF: Tensor
    turned_MNCF: Tensor
    v_MNCD: Tensor


class Queries(NamedTuple):
    """A block of queries: features, and features turned to their positions."""

    phi_MNCF: Tensor
    turned_MNCF: Tensor


@dataclass
class Problem:
    """One call with four-dimensional tensors.

    Attributes:
        q_BHTD: queries.
        k_BGSD: keys, as given.
        v_BGSD: values.
        keep_BS: which keys are real, None for all.
        shrink_BG11: what keys are multiplied with before they are cubed, None for nothing.
        floor_BHT: eps times the number of keys a query sees, broadcastable.
        constants: of the feature map.
        turns_SP: complex factors of the feature pairs of each position, None without rotary positions.
        chunk: rows of a chunk.
        dtype: in which everything is computed.
    """

    q_BHTD: Tensor
    k_BGSD: Tensor
    v_BGSD: Tensor
    keep_BS: Tensor | None
    shrink_BG11: Tensor | None
    floor_BHT: Tensor
    constants: FeatureMap
    turns_SP: Tensor | None
    chunk: int
    dtype: torch.dtype

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.q_BHTD.shape[1] // self.k_BGSD.shape[1]

    def units(self, is_causal: bool) -> Iterator[tuple[Unit, int]]:
        """Blocks of heads, with the number of chunks (or of rows) of each that make a block of tokens."""
        batch, kv_heads = self.k_BGSD.shape[:2]
        block = _BLOCK if self.q_BHTD.device.type == "cpu" else _LARGER * _BLOCK
        each = self.group * (self.chunk if is_causal else _ROWS) * 2 * self.k_BGSD.shape[-1]
        heads = min(kv_heads, max(1, block // each))
        entries = 1 if heads < kv_heads else min(batch, max(1, block // (each * heads)))
        chunks = max(1, block // (each * heads * entries))
        for b in range(0, batch, entries):
            for g in range(0, kv_heads, heads):
                yield Unit(slice(b, b + entries), slice(g, g + heads)), chunks

    def whole_spans(self, start: int, stop: int, chunks: int) -> Iterator[Span]:
        """Blocks of one chunk each, for rows that all see the same keys."""
        step = chunks * _ROWS
        for first in range(start, stop, step):
            last = min(first + step, stop)
            yield Span(first, last, last - first)

    def chunked_spans(self, start: int, stop: int, chunks: int) -> Iterator[Span]:
        """Blocks of several chunks; what does not fill a chunk comes last, as one of its own."""
        full = stop - (stop - start) % self.chunk
        for first in range(start, full, chunks * self.chunk):
            yield Span(first, min(first + chunks * self.chunk, full), self.chunk)
        if full < stop:
            yield Span(full, stop, stop - full)

    def keys(self, unit: Unit, span: Span) -> Keys:
        """The keys of a block."""
        rows = self.rows(self.k_BGSD, unit, span, 1).to(self.dtype)
        if self.keep_BS is not None:
            rows = rows.masked_fill(~self.kept(unit, span), 0.0)
        if self.shrink_BG11 is not None:
            rows = rows * self.shrink_BG11[unit.batch, unit.heads, :, :, None]
        phi = rows.new_empty((*rows.shape[:-1], 2 * rows.shape[-1]))
        block_features.key_features_into(phi, rows, self.constants)
        v = self.rows(self.v_BGSD, unit, span, 1).to(self.dtype)
        return Keys(rows, merged(phi), merged(self.turned(phi, span.start)), merged(v))

    def kept(self, unit: Unit, span: Span) -> Tensor:
        """Which keys of a block are real, broadcastable to its rows."""
        assert self.keep_BS is not None
        kept = self.keep_BS[unit.batch, span.start : span.stop].unflatten(-1, (-1, span.chunk))
        return kept.transpose(0, 1)[:, :, None, None, :, None]

    def queries(self, unit: Unit, span: Span, shift: int) -> Queries:
        """The queries of a block; query i stands at position i + ``shift``."""
        rows = self.query_rows(unit, span)
        phi = rows.new_empty((*rows.shape[:-1], 2 * rows.shape[-1]))
        block_features.query_features_into(phi, rows, self.constants)
        return Queries(merged(phi), merged(self.turned(phi, span.start + shift)))

    def query_rows(self, unit: Unit, span: Span) -> Tensor:
        """The queries themselves, (M, batch, key heads, group, C, D)."""
        return self.rows(self.q_BHTD, unit, span, self.group).to(self.dtype)

    def rows(self, x_BHTD: Tensor, unit: Unit, span: Span, group: int) -> Tensor:
        """View (M, batch, key heads, group, C, …) of a block of a (B, heads, tokens, …) tensor."""
        heads = slice(unit.heads.start * group, unit.heads.stop * group)
        block = x_BHTD[unit.batch, heads, span.start : span.stop]
        return block.unflatten(1, (-1, group)).unflatten(3, (-1, span.chunk)).movedim(3, 0)

    def floor(self, unit: Unit, span: Span) -> Tensor:
        """The block of ``floor_BHT``, (M, batch, key heads, group, C)."""
        full = self.floor_BHT.expand(self.q_BHTD.shape[:-1])
        return self.rows(full, unit, span, self.group)

    def turned(self, x: Tensor, position: int, *, back: bool = False) -> Tensor:
        """Features (M, …, C, 2D) turned to the positions from ``position`` on, or back; the same without rotation."""
        if self.turns_SP is None:
            return x
        chunks, rows, width = x.shape[0], x.shape[-2], x.shape[-1]
        factors = self.turns_SP[position : position + chunks * rows]
        factors = factors.view(chunks, *(1,) * (x.ndim - 3), rows, 1, width // 4)
        pairs = torch.view_as_complex(x.unflatten(-1, (2, width // 4, 2)))
        return torch.view_as_real(pairs * (factors.conj() if back else factors)).flatten(-3)


def turns(rope: Rope | None, dtype: torch.dtype) -> Tensor | None:
    """Rotary tables as complex numbers, one for each pair of features."""
    if rope is None:
        return None
    cos, sin = (table.to(dtype)[:, ::2] for table in rope)
    return torch.complex(cos, sin)


def merged(x: Tensor) -> Tensor:
    """(M, batch, key heads, group, C, F) -> (M, N, group · C, F), contiguous."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3] * x.shape[4], x.shape[5])
