"""The mixture of maps band by band: what a band holds stays in the cache, and no weights of the maps' size are formed.

Weights are widened along rows only. One row of them then serves all pixel rows of its block, as a broadcast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate._math.masks import accumulation_dtype
from softgate.dispatch import is_batched_gradient, transform_reason

#: Bytes of one map in a band; with the running sum and the map that is added, a band fits a second-level cache.
_BAND_BYTES = 2**18
#: Entries of the maps below which the few operations of the reference are quicker than the way through here.
_FEW = 2**13


def refuses(maps: Tensor, weights: Tensor, *, upsample: str = "nearest") -> str | None:
    """Why this call is the reference's."""
    if maps.numel() < _FEW:
        return f"fewer than {_FEW} entries"
    if upsample != "nearest":
        return f"upsample={upsample!r} gives every pixel weights of its own"
    if maps.dtype is not accumulation_dtype(maps.dtype):
        return f"sums of {maps.dtype} maps are float32, which takes a copy"
    if any(high % low for low, high in zip(weights.shape[-2:], maps.shape[-2:], strict=True)):
        return "the maps are no whole multiple of the weights' grid"
    return None


def run(maps: Tensor, weights: Tensor, *, upsample: str = "nearest") -> Tensor:
    """Run the kernel on checked arguments."""
    return _Mixture.apply(maps, weights)  # type: ignore[no-any-return]


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(maps, weights)
        blocks_BEChsW, rows_BE1h1W = _blocks(maps, weights), _rows(maps, weights)
        out_BChsW = torch.empty_like(blocks_BEChsW[:, 0], memory_format=torch.contiguous_format)
        for batch, rows in _bands(blocks_BEChsW):
            m, w, out = blocks_BEChsW[batch, :, :, rows], rows_BE1h1W[batch, :, :, rows], out_BChsW[batch, :, rows]
            torch.mul(m[:, 0], w[:, 0], out=out)
            for expert in range(1, m.shape[1]):
                out.addcmul_(m[:, expert], w[:, expert])
        return out_BChsW.flatten(2, 3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        maps, weights = ctx.saved_tensors
        grad = grads[0]
        if torch.is_grad_enabled() or transform_reason(maps, grad) is not None or is_batched_gradient(grad):
            return differentiable_gradients(_plain, (maps, weights), ctx.needs_input_grad, grad)
        blocks_BEChsW, rows_BE1h1W = _blocks(maps, weights), _rows(maps, weights)
        grad_BChsW = grad.unflatten(2, (weights.shape[2], -1))
        wants_maps, wants_weights = ctx.needs_input_grad
        dmaps = torch.empty_like(blocks_BEChsW, memory_format=torch.contiguous_format) if wants_maps else None
        dweights = torch.empty_like(weights) if wants_weights else None
        for batch, rows in _bands(blocks_BEChsW):
            g = grad_BChsW[batch, :, rows]
            for expert in range(maps.shape[1]):
                if dmaps is not None:
                    torch.mul(g, rows_BE1h1W[batch, expert, :, rows], out=dmaps[batch, expert, :, rows])
                if dweights is not None:
                    # over the rows of a block first: long rows are what sums are fast along
                    of_rows = (g * blocks_BEChsW[batch, expert, :, rows]).sum(-2)
                    dweights[batch, expert, rows] = of_rows.sum(1).unflatten(-1, (weights.shape[3], -1)).sum(-1)
        return None if dmaps is None else dmaps.view(maps.shape), dweights


def _blocks(maps: Tensor, weights: Tensor) -> Tensor:
    """(B, E, C, h, s, W): the rows of the maps in blocks of one row of weights."""
    wide = maps.unsqueeze(2) if maps.ndim == 4 else maps
    return wide.unflatten(3, (weights.shape[2], -1))


def _rows(maps: Tensor, weights: Tensor) -> Tensor:
    """(B, E, 1, h, 1, W): every weight once per pixel of a row."""
    return weights.repeat_interleave(maps.shape[-1] // weights.shape[3], -1)[:, :, None, :, None]


def _bands(blocks_BEChsW: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of the batch and of the rows of blocks: all at once where that is little."""
    batch, _, channels, height, step, width = blocks_BEChsW.shape
    row = channels * step * width * blocks_BEChsW.element_size()
    images = max(1, _BAND_BYTES // (row * height))
    rows = height if images > 1 else max(1, _BAND_BYTES // row)
    for image in range(0, batch, images):
        for start in range(0, height, rows):
            yield slice(image, image + images), slice(start, start + rows)


def _plain(maps: Tensor, weights: Tensor) -> Tensor:
    """The same in operations that can be differentiated again."""
    return (_blocks(maps, weights) * _rows(maps, weights)).sum(1).flatten(2, 3)
