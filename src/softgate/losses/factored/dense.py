"""Passes over all D rows of the factored weights, in chunks: re-factoring, the dense step, the largest logits.

Names end in their shape: M rows, d features, D classes, C classes of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from softgate.losses.factored.step import Rows, Slopes, Weights

__all__: list[str] = []

#: Rows of V in a chunk: 8 MB of float32 at d = 512.
CHUNK = 4096


def rows_of_w(w: Weights, chunk: int = CHUNK) -> Iterator[tuple[Tensor, Tensor]]:
    """For every chunk the rows of V (a view) and the same rows of ``W = V U + 1 omega^T``."""
    for v_Cd in w.v_Dd.split(chunk):
        yield v_Cd, torch.addmm(w.omega_d, v_Cd, w.u_dd)


def gram(w: Weights) -> tuple[Tensor, Tensor]:
    """``W^T W`` (d, d) and ``W^T 1`` (d,), chunks summed in float64."""
    return _rewritten(w, None)


def refactor(w: Weights, centred: bool, change: Callable[[int, Tensor], Tensor] | None = None) -> None:
    """Make ``V = W``, ``U = I``, ``omega = 0`` and compute ``Q`` and ``w_bar`` anew.

    Args:
        w: the weights, changed in place.
        centred: subtract the mean of the columns of W, which makes ``w_bar`` zero.
        change: takes the number of a chunk's first class and the chunk of W, and returns what to store in its place.
    """
    q_dd, w_bar_d = _rewritten(w, change or (lambda _, w_Cd: w_Cd))
    if centred:
        mean_d = w_bar_d / len(w.v_Dd)
        w.v_Dd.sub_(mean_d.to(w.v_Dd.dtype))
        q_dd -= torch.outer(w_bar_d, mean_d)
        w_bar_d.zero_()
    w.q_dd.copy_(q_dd)
    w.w_bar_d.copy_(w_bar_d)
    for identity in (w.u_dd, w.u_inverse_dd):
        if identity is not None:
            identity.zero_().diagonal().fill_(1.0)
    w.omega_d.zero_()


def _rewritten(w: Weights, change: Callable[[int, Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
    q_dd = torch.zeros_like(w.q_dd, dtype=torch.float64)
    w_bar_d = torch.zeros_like(w.w_bar_d, dtype=torch.float64)
    first = 0
    for v_Cd, w_Cd in rows_of_w(w):
        if change is not None:
            w_Cd = change(first, w_Cd)
            v_Cd.copy_(w_Cd)
        q_dd += w_Cd.T @ w_Cd
        w_bar_d += w_Cd.sum(0, dtype=torch.float64)
        first += len(v_Cd)
    return q_dd, w_bar_d


def dense_step(w: Weights, rows: Rows, g: Slopes, eta: float, keep: float, centred: bool) -> None:
    """The same SGD step in O(M D d), for the batch at which U becomes singular; re-factors at the same time."""
    h_Md, classes = rows.h_Md, rows.classes_MK

    def change(first: int, w_Cd: Tensor) -> Tensor:
        g_MC = (h_Md @ w_Cd.T).mul_(2.0 * g.q_M.unsqueeze(1)).add_(g.s_M.unsqueeze(1))
        inside = (classes >= first) & (classes < first + len(w_Cd))
        row, _ = inside.nonzero(as_tuple=True)
        g_MC.index_put_((row, classes[inside] - first), g.a_MK[inside], accumulate=True)
        return w_Cd.addmm_(g_MC.T, h_Md, alpha=-eta).mul_(keep)

    refactor(w, centred, change)


def largest(w: Weights, h_Md: Tensor, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Values and classes (M, k) of the k largest logits of every row, in descending order."""
    hu_Md = h_Md @ w.u_dd.T
    best = h_Md.new_empty(len(h_Md), 0)
    where = torch.empty(len(h_Md), 0, dtype=torch.int64, device=h_Md.device)
    for first, v_Cd in zip(range(0, len(w.v_Dd), chunk), w.v_Dd.split(chunk), strict=True):
        values, index = (hu_Md @ v_Cd.T).topk(min(k, len(v_Cd)), dim=1)
        candidates = torch.cat((where, index + first), 1)
        best, place = torch.cat((best, values), 1).topk(min(k, candidates.shape[1]), dim=1)
        where = candidates.gather(1, place)
    return best + (h_Md @ w.omega_d).unsqueeze(1), where
