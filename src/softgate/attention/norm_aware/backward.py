"""The backward sweeps of the chunked form: features are mapped again block by block, nothing of size T x S exists.

With D_i the denominator of query i, G_i = dO_i / D_i and g_i = -dO_i·O_i / D_i, over the pairs that see each other:

    dφ(q_i) = Σ_j φ(k_j) (v_j·G_i + g_i),   dφ(k_j) = Σ_i φ(q_i) (v_j·G_i + g_i),   dv_j = Σ_i (φ(q_i)·φ(k_j)) G_i

Where positions turn the features of the numerator, the part with v_j·G_i is of turned features, and is turned back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softgate._math.pages import in_large_pages
from softgate.attention.norm_aware import block_features
from softgate.attention.norm_aware.blocks import Keys, Problem, Queries, Span, Unit, merged
from softgate.attention.norm_aware.forward import add_keys, of_unit, products_within, running_sums, starting_sums
from softgate.attention.norm_aware.state import LinearAttentionState


class Upstream(NamedTuple):
    """What arrives at the queries, divided by their denominators: dO (…, Dv), and -dO·O (…, 1)."""

    of_output: Tensor
    of_sum: Tensor


class Sweep:
    """One backward pass; gradients are written block by block."""

    def __init__(self, problem: Problem, grad_BHTD: Tensor, y_BHTD: Tensor, normaliser_BHT: Tensor) -> None:
        self.problem, self.grad_BHTD, self.y_BHTD, self.normaliser_BHT = problem, grad_BHTD, y_BHTD, normaliser_BHT
        self.dq_BHTD, self.dk_BGSD, self.dv_BGSD = (
            in_large_pages(torch.empty_like(x, memory_format=torch.contiguous_format)).zero_()
            for x in (problem.q_BHTD, problem.k_BGSD, problem.v_BGSD)
        )

    def upstream(self, unit: Unit, span: Span) -> Upstream:
        """G and g of a block of queries."""
        problem = self.problem
        y, grad, normaliser = (
            problem.rows(x, unit, span, problem.group).to(problem.dtype)
            for x in (self.y_BHTD, self.grad_BHTD, self.normaliser_BHT.unsqueeze(-1))
        )
        grad = grad / normaliser
        return Upstream(merged(grad), merged((grad * y).sum(-1, True).neg_()))

    def write_queries(self, unit: Unit, span: Span, shift: int, dturned: Tensor, dphi: Tensor) -> None:
        """From the gradients of a block's features, turned ones and others, to those of the queries."""
        rows = self.problem.query_rows(unit, span)
        dphi = self._together(rows, dturned, dphi, span.start + shift)
        target = self.problem.rows(self.dq_BHTD, unit, span, self.problem.group)
        target.copy_(block_features.query_gradient(rows, dphi, self.problem.constants))

    def write_keys(self, unit: Unit, span: Span, k: Keys, dturned: Tensor, dphi: Tensor, dv: Tensor) -> None:
        """The same for keys; and the gradient of the values."""
        problem = self.problem
        dphi = self._together(k.rows, dturned, dphi, span.start)
        dk = block_features.key_gradient(k.rows, dphi, problem.constants)
        if problem.shrink_BG11 is not None:
            dk *= problem.shrink_BG11[unit.batch, unit.heads, :, :, None]
        if problem.keep_BS is not None:
            dk.masked_fill_(~problem.kept(unit, span), 0.0)
        problem.rows(self.dk_BGSD, unit, span, 1).copy_(dk)
        target = problem.rows(self.dv_BGSD, unit, span, 1)
        target.copy_(dv.view(target.shape))

    def _together(self, rows: Tensor, dturned: Tensor, dphi: Tensor, position: int) -> Tensor:
        shape = (*rows.shape[:-1], 2 * rows.shape[-1])
        return self.problem.turned(dturned.reshape(shape), position, back=True) + dphi.reshape(shape)


def sweep(
    problem: Problem,
    is_causal: bool,
    state: LinearAttentionState | None,
    grad_BHTD: Tensor,
    y_BHTD: Tensor,
    normaliser_BHT: Tensor,
    kv_BGFD: Tensor,
    z_BGF: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, from that of the output and what the forward sweep returned."""
    work = Sweep(problem, grad_BHTD, y_BHTD, normaliser_BHT)
    start = starting_sums(problem, state)
    for unit, chunks in problem.units(is_causal):
        if is_causal:
            _causal_queries(work, unit, chunks, of_unit(start[0], unit), of_unit(start[1], unit))
            _causal_keys(work, unit, chunks)
        else:
            _all_pairs(work, unit, chunks, of_unit(kv_BGFD, unit), of_unit(z_BGF, unit))
    return work.dq_BHTD, work.dk_BGSD, work.dv_BGSD


def _all_pairs(work: Sweep, unit: Unit, chunks: int, kv_NFD: Tensor, z_NF: Tensor) -> None:
    """Bidirectional: the queries' gradients need S and z, and add up what the keys' need."""
    problem = work.problem
    queries, keys = problem.q_BHTD.shape[2], problem.k_BGSD.shape[2]
    dkv_NFD, dz_NF = torch.zeros_like(kv_NFD), torch.zeros_like(z_NF)
    for span in problem.whole_spans(0, queries, chunks):
        q, up = problem.queries(unit, span, keys - queries), work.upstream(unit, span)
        _add_queries(q, up, dkv_NFD, dz_NF)
        work.write_queries(unit, span, keys - queries, up.of_output @ kv_NFD.mT, up.of_sum * z_NF[:, None])
    _keys_of_all(work, unit, 0, keys, chunks, dkv_NFD, dz_NF)


def _add_queries(q: Queries, up: Upstream, dkv_NFD: Tensor, dz_NF: Tensor) -> None:
    """Add a block of one chunk to the gradients of S and z."""
    dkv_NFD.baddbmm_(q.turned_MNCF[0].mT, up.of_output[0])
    dz_NF.add_((q.phi_MNCF[0].mT @ up.of_sum[0]).squeeze(-1))


def _keys_of_all(work: Sweep, unit: Unit, start: int, stop: int, chunks: int, dkv_NFD: Tensor, dz_NF: Tensor) -> None:
    """Gradients of keys and values that every query sees."""
    for span in work.problem.whole_spans(start, stop, chunks):
        k = work.problem.keys(unit, span)
        dturned = k.v_MNCD @ dkv_NFD.mT
        work.write_keys(unit, span, k, dturned, dz_NF[:, None].expand_as(dturned), k.turned_MNCF @ dkv_NFD)


def _causal_spans(problem: Problem, chunks: int) -> list[tuple[Span, Span]]:
    """Blocks of queries with the blocks of keys that stand at the same positions."""
    queries, keys = problem.q_BHTD.shape[2], problem.k_BGSD.shape[2]
    shift = keys - queries
    spans = problem.chunked_spans(max(-shift, 0), queries, chunks)
    return [(span, Span(span.start + shift, span.stop + shift, span.chunk)) for span in spans]


def _causal_queries(work: Sweep, unit: Unit, chunks: int, kv_NFD: Tensor, z_NF: Tensor) -> None:
    """First to last: the running sums are those of the forward sweep."""
    problem = work.problem
    shift = problem.k_BGSD.shape[2] - problem.q_BHTD.shape[2]
    for span in problem.whole_spans(0, max(shift, 0), chunks):
        add_keys(problem.keys(unit, span), kv_NFD, z_NF)
    for q_span, k_span in _causal_spans(problem, chunks):
        k, up = problem.keys(unit, k_span), work.upstream(unit, q_span)
        kv_MNFD, z_MNF = running_sums(k, kv_NFD, z_NF)
        pairs = products_within(problem, up.of_output, k.v_MNCD)
        dturned = up.of_output @ kv_MNFD.mT
        dturned.flatten(0, 1).baddbmm_(pairs, k.turned_MNCF.flatten(0, 1))
        before = k.phi_MNCF.cumsum(-2) + z_MNF.unsqueeze(-2)
        dphi = up.of_sum.unflatten(2, (problem.group, -1)) * before.unsqueeze(2)
        work.write_queries(unit, q_span, shift, dturned, dphi)


def _causal_keys(work: Sweep, unit: Unit, chunks: int) -> None:
    """Last to first: the gradients of S and z are sums over the queries that follow."""
    problem = work.problem
    shift = problem.k_BGSD.shape[2] - problem.q_BHTD.shape[2]
    dkv_NFD, dz_NF = (of_unit(x, unit) for x in starting_sums(problem, None))
    for q_span, k_span in reversed(_causal_spans(problem, chunks)):
        k, q, up = problem.keys(unit, k_span), problem.queries(unit, q_span, shift), work.upstream(unit, q_span)
        dkv_MNFD, dz_MNF = _later_sums(q, up, dkv_NFD, dz_NF)
        pairs = products_within(problem, up.of_output, k.v_MNCD)
        dturned = k.v_MNCD @ dkv_MNFD.mT
        dturned.flatten(0, 1).baddbmm_(pairs.mT, q.turned_MNCF.flatten(0, 1))
        own = (q.phi_MNCF * up.of_sum).unflatten(2, (problem.group, -1)).sum(2)
        after = own.flip(-2).cumsum(-2).flip(-2) + dz_MNF.unsqueeze(-2)
        weights = products_within(problem, q.turned_MNCF, k.turned_MNCF)
        dv = k.turned_MNCF @ dkv_MNFD
        dv.flatten(0, 1).baddbmm_(weights.mT, up.of_output.flatten(0, 1))
        work.write_keys(unit, k_span, k, dturned, after, dv)
    _keys_of_all(work, unit, 0, max(shift, 0), chunks, dkv_NFD, dz_NF)


def _later_sums(q: Queries, up: Upstream, dkv_NFD: Tensor, dz_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of S and z after each chunk; the arguments move on to the block's start."""
    chunks = q.phi_MNCF.shape[0]
    dkv, dz = dkv_NFD.new_empty((chunks + 1, *dkv_NFD.shape)), dz_NF.new_empty((chunks + 1, *dz_NF.shape))
    dkv[chunks], dz[chunks] = dkv_NFD, dz_NF
    torch.bmm(q.turned_MNCF.flatten(0, 1).mT, up.of_output.flatten(0, 1), out=dkv[:chunks].flatten(0, 1))
    dz[:chunks] = (q.phi_MNCF.mT @ up.of_sum).squeeze(-1)
    for i in reversed(range(chunks)):
        dkv[i] += dkv[i + 1]
        dz[i] += dz[i + 1]
    dkv_NFD.copy_(dkv[0])
    dz_NF.copy_(dz[0])
    return dkv[1:], dz[1:]
