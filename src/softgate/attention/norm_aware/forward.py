"""The forward sweeps of the chunked form; see ``chunked``."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate._math.pages import in_large_pages
from softgate.attention.norm_aware.blocks import Keys, Problem, Queries, Span, Unit
from softgate.attention.norm_aware.state import LinearAttentionState


def sweep(
    problem: Problem, is_causal: bool, state: LinearAttentionState | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (B, H, T, Dv) in ``dtype``, its denominators (B, H, T); S (B, G, F, Dv) and z (B, G, F) over all keys."""
    q_BHTD, v_BGSD = problem.q_BHTD, problem.v_BGSD
    y_BHTD = in_large_pages(q_BHTD.new_empty((*q_BHTD.shape[:-1], v_BGSD.shape[-1]), dtype=dtype))
    normaliser_BHT = q_BHTD.new_empty(q_BHTD.shape[:-1], dtype=problem.dtype)
    kv_BGFD, z_BGF = starting_sums(problem, state)
    queries, keys = q_BHTD.shape[2], v_BGSD.shape[2]
    for unit, chunks in problem.units(is_causal):
        kv_NFD, z_NF = of_unit(kv_BGFD, unit), of_unit(z_BGF, unit)
        # Causality is aligned at the last token: what stands before the common part comes first.
        common = min(queries, keys) if is_causal else 0
        for span in problem.whole_spans(0, keys - common, chunks):
            add_keys(problem.keys(unit, span), kv_NFD, z_NF)
        if is_causal:
            shift = keys - queries
            y_BHTD[unit.batch, query_heads(problem, unit), : queries - common] = 0
            normaliser_BHT[unit.batch, query_heads(problem, unit), : queries - common] = 1
            for span in problem.chunked_spans(queries - common, queries, chunks):
                k = problem.keys(unit, Span(span.start + shift, span.stop + shift, span.chunk))
                q = problem.queries(unit, span, shift)
                _write(problem, unit, span, *_causal_block(problem, q, k, kv_NFD, z_NF), y_BHTD, normaliser_BHT)
        else:
            for span in problem.whole_spans(0, queries, chunks):
                q = problem.queries(unit, span, keys - queries)
                mixed, sums = q.turned_MNCF @ kv_NFD, q.phi_MNCF @ z_NF.unsqueeze(-1)
                _write(problem, unit, span, mixed, sums, y_BHTD, normaliser_BHT)
    return y_BHTD, normaliser_BHT, kv_BGFD, z_BGF


def starting_sums(problem: Problem, state: LinearAttentionState | None) -> tuple[Tensor, Tensor]:
    """S and z before the first key, new tensors."""
    if state is not None:
        return state.kv.clone(), state.key_sum.clone()
    lead, features = problem.k_BGSD.shape[:2], 2 * problem.k_BGSD.shape[-1]
    kv_BGFD = problem.k_BGSD.new_zeros((*lead, features, problem.v_BGSD.shape[-1]), dtype=problem.dtype)
    return kv_BGFD, kv_BGFD.new_zeros((*lead, features))


def of_unit(x_BG: Tensor, unit: Unit) -> Tensor:
    """View (N, …) of the unit's heads in a (B, G, …) tensor: they lie side by side."""
    return x_BG[unit.batch, unit.heads].flatten(0, 1)


def query_heads(problem: Problem, unit: Unit) -> slice:
    """The query heads that share the unit's key/value heads."""
    return slice(unit.heads.start * problem.group, unit.heads.stop * problem.group)


def add_keys(k: Keys, kv_NFD: Tensor, z_NF: Tensor) -> None:
    """Add a block of one chunk to the running sums."""
    kv_NFD.baddbmm_(k.turned_MNCF[0].mT, k.v_MNCD[0])
    z_NF.add_(k.phi_MNCF[0].sum(-2))


def running_sums(k: Keys, kv_NFD: Tensor, z_NF: Tensor) -> tuple[Tensor, Tensor]:
    """S and z before each chunk of the block, (M, N, F, Dv) and (M, N, F); the arguments move on to its end."""
    chunks = k.phi_MNCF.shape[0]
    kv, z = kv_NFD.new_empty((chunks + 1, *kv_NFD.shape)), z_NF.new_empty((chunks + 1, *z_NF.shape))
    kv[0], z[0] = kv_NFD, z_NF
    torch.bmm(k.turned_MNCF.flatten(0, 1).mT, k.v_MNCD.flatten(0, 1), out=kv[1:].flatten(0, 1))
    torch.sum(k.phi_MNCF, -2, out=z[1:])
    for i in range(chunks):
        kv[i + 1] += kv[i]
        z[i + 1] += z[i]
    kv_NFD.copy_(kv[chunks])
    z_NF.copy_(z[chunks])
    return kv[:chunks], z[:chunks]


def products_within(problem: Problem, a_MNCF: Tensor, b_MNCF: Tensor) -> Tensor:
    """Products of rows of ``a`` (queries) with those of ``b`` (keys) of the same chunk that they see; 0 elsewhere."""
    products = torch.bmm(a_MNCF.flatten(0, 1), b_MNCF.flatten(0, 1).mT)
    products.unflatten(1, (problem.group, -1)).tril_()
    return products


def _causal_block(problem: Problem, q: Queries, k: Keys, kv_NFD: Tensor, z_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Numerators and sums of weights of a block of queries and keys; the running sums move on."""
    kv_MNFD, z_MNF = running_sums(k, kv_NFD, z_NF)
    weights = products_within(problem, q.turned_MNCF, k.turned_MNCF)
    mixed = torch.bmm(weights, k.v_MNCD.flatten(0, 1)).unflatten(0, kv_MNFD.shape[:2])
    mixed.flatten(0, 1).baddbmm_(q.turned_MNCF.flatten(0, 1), kv_MNFD.flatten(0, 1))
    if problem.turns_SP is not None:
        weights = products_within(problem, q.phi_MNCF, k.phi_MNCF)
    sums = weights.sum(-1, keepdim=True).unflatten(0, kv_MNFD.shape[:2])
    return mixed, sums.add_(q.phi_MNCF @ z_MNF.unsqueeze(-1))


def _write(
    problem: Problem, unit: Unit, span: Span, mixed: Tensor, sums: Tensor, y_BHTD: Tensor, normaliser_BHT: Tensor
) -> None:
    """Divide the numerators of a block and put them, and the denominators, in their places."""
    target = problem.rows(y_BHTD, unit, span, problem.group)
    sums = sums.view(target.shape[:-1]) + problem.floor(unit, span)
    target.copy_(mixed.view(target.shape).div_(sums.unsqueeze(-1)))
    problem.rows(normaliser_BHT, unit, span, problem.group).copy_(sums)
