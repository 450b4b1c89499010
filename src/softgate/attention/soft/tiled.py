"""Softmax-free attention in tiles of tokens: the N x M kernel P is never kept for backward.

With C the core (the M x M matrix between the two kernels, ordinary autograd) and O = P C S, S = Pᵀ V, two sweeps over
the tokens give the output, and two more the gradients:

    Z = Pᵀ dO,   dC = Z Sᵀ,   dS = Cᵀ Z,   dV = P dS,   dP = dO (C S)ᵀ + V dSᵀ,   G = dP ⊙ P,
    dq_i = Σ_j G_ij (b_j - q_i),   db_j = Σ_i G_ij (q_i - b_j)      (b: the landmarks)

Heads are taken in groups that are small enough for the P of a group to be held between its two sweeps; where one head
alone is too large, the second sweep computes P again. Memory beyond inputs and outputs is thus bounded, and time grows
linearly with the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._math import masks
from softgate._math.double_backward import differentiable_gradients
from softgate._math.pages import in_large_pages
from softgate.attention.soft.newton import Alpha
from softgate.attention.soft.reference import Inverse, landmark_core, nystrom, output_and_working_dtype

#: Entries of P that a group of heads holds between its sweeps (8 MiB of float32).
HELD_ENTRIES = 2**21
#: Entries of P in one tile: about a second-level cache on a CPU, enough work for one launch on a GPU.
TILE_ENTRIES = {"cpu": 2**17, "cuda": 2**23}
#: Tokens that a tile should have, where there are as many.
_TILE_TOKENS = 512
#: A P smaller than this stays in the caches of a CPU anyway.
_WORTHWHILE_ENTRIES = 2**17
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def refuses(query: Tensor, value: Tensor, landmarks: Tensor, *, backend: str = "auto", **options: Any) -> str | None:
    """Say why this call cannot run here, None if it can."""
    if backend not in ("auto", "tiled"):
        return f"backend={backend!r} was asked for"
    if query.device.type not in TILE_ENTRIES:
        return f"it runs on {' and '.join(TILE_ENTRIES)}, the tensors are on {query.device}"
    if query.dtype not in _DTYPES:
        return f"no kernel for {query.dtype}"
    entries = query[..., 0].numel() * landmarks.shape[-2]
    if backend == "auto" and query.device.type == "cpu" and entries < _WORTHWHILE_ENTRIES:
        return f"with {entries} entries P fits a cache, and the reference has fewer steps"
    return None


def run(
    query: Tensor,
    value: Tensor,
    landmarks: Tensor,
    *,
    normalized: bool = True,
    inverse: Inverse = "newton",
    newton_iters: int = 20,
    ridge: float = 0.01,
    alpha: Alpha = "per_matrix",
    implicit_grad: bool = True,
    key_padding_mask: Tensor | None = None,
    key: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Arguments and result of :func:`softgate.attention.softmax_free_attention`."""
    result, dtype = output_and_working_dtype(query, value, landmarks)
    with masks.without_autocast(query):
        wide = landmarks.to(dtype)
        core_BMM = landmark_core(
            wide,
            normalized=normalized,
            inverse=inverse,
            newton_iters=newton_iters,
            ridge=ridge,
            alpha=alpha,
            implicit_grad=implicit_grad,
        )
        output: Tensor = _Nystrom.apply(query, value, wide, core_BMM, key_padding_mask, result)
        return output


class _Heads:
    """A group of heads whose tokens are visited in tiles.

    Points carry two more columns, queries (q, 1, -|q|²/2) and landmarks (b, -|b|²/2, 1), so that one matrix product
    gives the exponent -|q - b|²/2, and in backward the sums of G beside the products with it. All points are moved by
    the mean of the landmarks first, as in the reference.
    """

    def __init__(self, q_GND: Tensor, b_GMD: Tensor, padded_GN: Tensor | None) -> None:
        self.q_GND, self.padded_GN = q_GND, padded_GN
        self.centre_G1D = b_GMD.mean(-2, keepdim=True)
        b_GMD = b_GMD - self.centre_G1D
        half_GM1 = b_GMD.square().sum(-1, keepdim=True).mul_(-0.5)
        self.b_GME = torch.cat((b_GMD, half_GM1, torch.ones_like(half_GM1)), -1)
        heads, tokens, landmarks = q_GND.shape[0], q_GND.shape[1], b_GMD.shape[1]
        size = max(1, TILE_ENTRIES[q_GND.device.type] // (heads * landmarks))
        self.tiles = [slice(at, min(at + size, tokens)) for at in range(0, tokens, size)]
        self.held: dict[int, Tensor] | None = {} if heads * tokens * landmarks <= HELD_ENTRIES else None

    def points(self, tile: slice) -> Tensor:
        """Queries of the tile with their two columns, (G, tile, D + 2)."""
        q_GND = self.q_GND[:, tile]
        x_GNE = self.b_GME.new_empty(*q_GND.shape[:-1], self.b_GME.shape[-1])
        moved_GND = torch.sub(q_GND, self.centre_G1D, out=x_GNE[..., :-2])
        x_GNE[..., -2] = 1.0
        torch.sum(moved_GND.square(), -1, out=x_GNE[..., -1]).mul_(-0.5)
        return x_GNE

    def kernel(self, tile: slice, *, last: bool = False) -> Tensor:
        """P of the tile, (G, tile, M); ``last``: no further sweep follows, nothing need be held."""
        if self.held is not None and tile.start in self.held:
            return self.held.pop(tile.start) if last else self.held[tile.start]
        p_GNM = torch.bmm(self.points(tile), self.b_GME.mT).clamp_max_(0.0).exp_()
        if self.padded_GN is not None:
            p_GNM.masked_fill_(self.padded_GN[:, tile, None], 0.0)
        if self.held is not None and not last:
            self.held[tile.start] = p_GNM
        return p_GNM


def _groups(q_BND: Tensor, b_BMD: Tensor, padded_BN: Tensor | None) -> Iterator[tuple[slice, _Heads]]:
    """Groups of heads, each with its slice of the leading dimension."""
    tokens, landmarks = q_BND.shape[1], b_BMD.shape[1]
    held = HELD_ENTRIES // max(1, tokens * landmarks)
    # Matrix products of a few rows are slow: rather fewer heads at a time, with tiles of many tokens each.
    together = TILE_ENTRIES[q_BND.device.type] // max(1, min(tokens, _TILE_TOKENS) * landmarks)
    size = max(1, min(held, together))
    for at in range(0, len(q_BND), size):
        heads = slice(at, at + size)
        yield heads, _Heads(q_BND[heads], b_BMD[heads], None if padded_BN is None else padded_BN[heads])


def _flat(x: Tensor) -> Tensor:
    """(…, N, D) -> (B, N, D)."""
    return x.flatten(0, -3)


def _padded(keep: Tensor | None, query: Tensor) -> Tensor | None:
    """Of the mask (…, N): which tokens of every head are padding, (B, N)."""
    return None if keep is None else (~keep).unsqueeze(-2).expand(query.shape[:-1]).flatten(0, -2)


class _Nystrom(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        value: Tensor,
        landmarks: Tensor,
        core: Tensor,
        keep: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        q_BND, v_BNV, b_BMD, core_BMM = (_flat(x) for x in (query, value, landmarks, core))
        summed_BMV = b_BMD.new_zeros(*b_BMD.shape[:2], v_BNV.shape[-1])
        out_BNV = in_large_pages(v_BNV.new_empty(v_BNV.shape, dtype=dtype))
        for heads, group in _groups(q_BND, b_BMD, _padded(keep, query)):
            for tile in group.tiles:
                summed_BMV[heads].baddbmm_(group.kernel(tile).mT, v_BNV[heads, tile].to(b_BMD.dtype))
            mixed_GMV = core_BMM[heads] @ summed_BMV[heads]
            for tile in group.tiles:
                _product_into(out_BNV[heads, tile], group.kernel(tile, last=True), mixed_GMV)
        ctx.save_for_backward(query, value, landmarks, core, keep, summed_BMV)
        return out_BNV.reshape(value.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, value, landmarks, core, keep, summed_BMV = ctx.saved_tensors
        if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(grads[0]):
            return _differentiable_backward(ctx.needs_input_grad, query, value, landmarks, core, keep, grads[0])
        q_BND, v_BNV, b_BMD, core_BMM, do_BNV = (_flat(x) for x in (query, value, landmarks, core, grads[0]))
        dq_BND, dv_BNV = (in_large_pages(torch.empty_like(x)) for x in (q_BND, v_BNV))
        db_BMD, dcore_BMM = torch.zeros_like(b_BMD), torch.empty_like(core_BMM)
        for heads, group in _groups(q_BND, b_BMD, _padded(keep, query)):
            pulled_GMV = torch.zeros_like(summed_BMV[heads])
            for tile in group.tiles:
                pulled_GMV.baddbmm_(group.kernel(tile).mT, do_BNV[heads, tile].to(b_BMD.dtype))
            torch.bmm(pulled_GMV, summed_BMV[heads].mT, out=dcore_BMM[heads])
            mixed_GMV = core_BMM[heads] @ summed_BMV[heads]
            dsummed_GMV = core_BMM[heads].mT @ pulled_GMV
            for tile in group.tiles:
                p_GNM, v_GNV = group.kernel(tile, last=True), v_BNV[heads, tile].to(b_BMD.dtype)
                _product_into(dv_BNV[heads, tile], p_GNM, dsummed_GMV)
                weighted_GNM = torch.bmm(do_BNV[heads, tile].to(b_BMD.dtype), mixed_GMV.mT)
                weighted_GNM.baddbmm_(v_GNV, dsummed_GMV.mT).mul_(p_GNM)
                dq_BND[heads, tile] = _through_kernel(group, tile, weighted_GNM, db_BMD[heads])
        shapes = (query.shape, value.shape, landmarks.shape, core.shape)
        found = (dq_BND, dv_BNV, db_BMD, dcore_BMM)
        return (*(grad.reshape(shape) for grad, shape in zip(found, shapes, strict=True)), None, None)


def _through_kernel(group: _Heads, tile: slice, weighted_GNM: Tensor, db_GMD: Tensor) -> Tensor:
    """From G = dP ⊙ P: the gradient of the tile's queries; that of the landmarks is added to ``db_GMD``."""
    x_GNE, b_GME = group.points(tile), group.b_GME
    pulled_GME = torch.bmm(weighted_GNM.mT, x_GNE)  # (Gᵀ q, Gᵀ 1, …)
    db_GMD.add_(pulled_GME[..., :-2]).addcmul_(pulled_GME[..., -2:-1], b_GME[..., :-2], value=-1.0)
    pushed_GNE = torch.bmm(weighted_GNM, b_GME)  # (G b, …, G 1)
    return pushed_GNE[..., :-2].addcmul_(pushed_GNE[..., -1:], x_GNE[..., :-2], value=-1.0)


def _product_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    """``out = left @ right``, rounded to the dtype of ``out``."""
    if out.dtype == left.dtype:
        torch.bmm(left, right, out=out)
    else:
        out.copy_(torch.bmm(left, right))


def _differentiable_backward(needed: tuple[bool, ...], *arguments: Any) -> tuple[Tensor | None, ...]:
    """The gradients by way of the reference: for ``create_graph`` (functions of all inputs) and batched gradients."""
    query, value, landmarks, core, keep, grad = arguments
    keep_BN = None if keep is None else keep.unsqueeze(-2)

    def plain(q_BND: Tensor, v_BNV: Tensor, b_BMD: Tensor, core_BMM: Tensor) -> Tensor:
        q_BND, v_BNV, b_BMD = (x.to(core.dtype) for x in (q_BND, v_BNV, b_BMD))
        return nystrom(q_BND, v_BNV, b_BMD, core_BMM, keep_BN).to(grad.dtype)

    with masks.without_autocast(query):
        found = differentiable_gradients(plain, (query, value, landmarks, core), needed[:4], grad)
    return (*found, None, None)
