r"""The exact SGD step of a factored output layer in O(d^2) per row, as pure functions.

The weights are ``W = V U + 1 omega^T``; beside them stand ``Q = W^T W`` and ``w_bar = W^T 1``. A loss that depends on
the logits ``O = H W^T`` through ``a`` (some selected logits), ``q`` (sum of squares) and ``s`` (sum) has the gradient
``G = Y + diag(2 g_q) O + g_s 1^T``, with the sparse ``Y`` holding ``g_a``. The step ``W - eta G^T H`` multiplies W by a
(d, d) matrix from the right (into U and omega), adds to every row the same vector (into omega), and changes the rows of
the selected classes (into V, once U is divided out).

Names end in their shape: M rows, K selected classes, d features, D classes.

Paper: Vincent, de Brébisson, Bouthillier, Efficient Exact Gradient Update for training Deep Networks with Very Large
Sparse Targets, arXiv 1412.7091.
"""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from softgate.losses.factored.linear_algebra import divide_near_identity, factor

__all__: list[str] = []


class Weights(NamedTuple):
    """State of the layer; ``u_inverse`` only where the inverse of U is stored."""

    v_Dd: Tensor
    u_dd: Tensor
    omega_d: Tensor
    q_dd: Tensor
    w_bar_d: Tensor
    u_inverse_dd: Tensor | None


class Rows(NamedTuple):
    """A batch and what its forward pass computed for the backward pass."""

    h_Md: Tensor
    classes_MK: Tensor
    hq_Md: Tensor
    hu_Md: Tensor
    v_MKd: Tensor


class Slopes(NamedTuple):
    """Gradient of the loss by the selected logits, the sum of squares and the sum."""

    a_MK: Tensor
    q_M: Tensor
    s_M: Tensor


class Step(NamedTuple):
    """All that one step changes, computed before anything is written.

    Where the inverse of U is stored, U' is not needed beforehand and ``u_dd`` is None.
    """

    eta: float
    b_Md: Tensor
    x_Md: Tensor
    v_change_MKd: Tensor
    s_Md: Tensor
    omega_d: Tensor
    w_bar_d: Tensor
    u_dd: Tensor | None
    u_inverse_dd: Tensor | None


def forward(w: Weights, h_Md: Tensor, classes_MK: Tensor, centred: bool) -> tuple[Tensor, Tensor, Tensor, Rows]:
    """Selected logits (M, K), sums of squares (M,), sums (M,), and the rows for the backward pass."""
    rows, count = classes_MK.shape
    hq_Md = h_Md @ w.q_dd
    hu_Md = h_Md @ w.u_dd.T
    v_MKd = w.v_Dd.index_select(0, classes_MK.reshape(-1)).view(rows, count, h_Md.shape[1])
    a_MK = torch.linalg.vecdot(v_MKd, hu_Md.unsqueeze(1)) + (h_Md @ w.omega_d).unsqueeze(1)
    q_M = torch.linalg.vecdot(h_Md, hq_Md)
    s_M = torch.zeros_like(q_M) if centred else h_Md @ w.w_bar_d
    return a_MK, q_M, s_M, Rows(h_Md, classes_MK, hq_Md, hu_Md, v_MKd)


class Gradient(NamedTuple):
    """Gradient by the rows; ``half`` holds the part of ``g_q`` once where the gradient holds it twice."""

    h_Md: Tensor
    half_Md: Tensor


def input_gradient(w: Weights, rows: Rows, g: Slopes, centred: bool) -> Gradient:
    """``G W``: the gradient by the hidden rows, with the weights of the forward pass."""
    y_M = g.a_MK.sum(1)
    selected_Md = g.a_MK * rows.v_MKd.squeeze(1) if g.a_MK.shape[1] == 1 else _combine(g.a_MK, rows.v_MKd)
    half_Md = torch.addcmul(selected_Md @ w.u_dd, y_M.unsqueeze(1), w.omega_d)
    if not centred:
        half_Md.addcmul_(g.s_M.unsqueeze(1), w.w_bar_d)
    quadratic_Md = rows.hq_Md * g.q_M.unsqueeze(1)
    half_Md += quadratic_Md
    return Gradient(half_Md + quadratic_Md, half_Md)


def _combine(g_MK: Tensor, v_MKd: Tensor) -> Tensor:
    return torch.bmm(g_MK.unsqueeze(1), v_MKd).squeeze(1)


def half_gram(rows: Rows, g: Slopes, half_Md: Tensor, classes: int) -> Tensor:
    """``R H`` (M, d) with ``R + R^T = G G^T``: half of what the gradient of W does to ``Q`` in second order."""
    h_Md, g2_M = rows.h_Md, 2.0 * g.q_M
    gram_MM = torch.mm(g2_M.unsqueeze(1) * h_Md, half_Md.T)
    gram_MM.addcmul_(g.s_M.unsqueeze(1), (0.5 * classes) * g.s_M + g.a_MK.sum(1))
    if g.a_MK.shape[1] == 1:
        gram_MM.addcmul_(g.a_MK * g.a_MK.T, (rows.classes_MK == rows.classes_MK.T).to(h_Md.dtype), value=0.5)
        return gram_MM @ h_Md
    # Y Y^T H by way of Y^T H, which has a row per distinct class only
    distinct, index = rows.classes_MK.reshape(-1).unique(return_inverse=True)
    scattered = h_Md.new_zeros(len(distinct), h_Md.shape[1])
    scattered.index_add_(0, index, (g.a_MK.unsqueeze(2) * h_Md.unsqueeze(1)).flatten(0, 1))
    gathered_MKd = scattered.index_select(0, index).view(*g.a_MK.shape, h_Md.shape[1])
    return (gram_MM @ h_Md).add_(_combine(g.a_MK, gathered_MKd), alpha=0.5)


def weight_gradient_norm(rows: Rows, gram_Md: Tensor) -> float:
    """Frobenius norm of the gradient ``G^T H`` of W, from :func:`half_gram`."""
    return float(2.0 * torch.sum(rows.h_Md * gram_Md).clamp(min=0.0)) ** 0.5


def plan(
    w: Weights, rows: Rows, g: Slopes, gradient: Gradient, gram_Md: Tensor, eta: float, centred: bool
) -> Step | None:
    """The step of size ``eta``, not yet applied; None if ``U`` would become singular."""
    h_Md, g2_M = rows.h_Md, 2.0 * g.q_M
    b_Md = g2_M.unsqueeze(1) * h_Md
    u_dd = u_inverse_dd = None
    if w.u_inverse_dd is not None and len(h_Md) <= h_Md.shape[1]:
        # U' = U (I - eta H^T B): its inverse by way of an (M, M) system
        x_Md = divide_near_identity(torch.mm(h_Md, b_Md.T).mul_(eta), h_Md @ w.u_inverse_dd)
    else:
        u_dd = torch.addmm(w.u_dd, rows.hu_Md.T, b_Md, alpha=-eta)
        factors = factor(u_dd)
        x_Md = None if factors is None else factors.solve_right(h_Md)
        if factors is not None and w.u_inverse_dd is not None:
            u_inverse_dd = factors.inverse()
    if x_Md is None:
        return None
    omega_d = torch.addmv(w.omega_d, h_Md.T, g2_M * (h_Md @ w.omega_d) + g.s_M, alpha=-eta)
    w_bar_d = w.w_bar_d
    if not centred:
        sums_M = g2_M * (h_Md @ w.w_bar_d) + len(w.v_Dd) * g.s_M + g.a_MK.sum(1)
        w_bar_d = torch.addmv(w.w_bar_d, h_Md.T, sums_M, alpha=-eta)
    v_change_MKd = (g.a_MK.unsqueeze(2) * x_Md.unsqueeze(1)).flatten(0, 1)
    s_Md = torch.sub(gradient.h_Md, gram_Md, alpha=eta)
    return Step(eta, b_Md, x_Md, v_change_MKd, s_Md, omega_d, w_bar_d, u_dd, u_inverse_dd)


def has_overflowed(gradient: Gradient, gram_Md: Tensor) -> bool:
    """Whether the gradient is beyond the range of the dtype, of which every part of a step is made."""
    return not isfinite(float(gradient.h_Md.sum() + gram_Md.sum()))


def is_safe(rows: Rows, step: Step) -> bool:
    """Whether no entry of the weights can overflow: by Cauchy-Schwarz, an entry of ``A^T B`` is at most ``|A| |B|``."""
    sizes = [rows.h_Md, rows.hu_Md, step.b_Md, step.x_Md, step.s_Md, step.v_change_MKd, step.omega_d, step.w_bar_d]
    h, hu, b, x, s, v, *vectors = torch.stack([torch.linalg.vector_norm(t) for t in sizes]).tolist()
    largest = max(step.eta * max(h * s, hu * b, b * x, v), *vectors)
    return isfinite(h + hu + b + x + s + v) and largest < torch.finfo(step.x_Md.dtype).max / 16.0


def apply(w: Weights, rows: Rows, step: Step, keep: float) -> None:
    """Write the step into the weights; ``keep = 1 - lr * weight_decay`` then scales all of W."""
    w.v_Dd.index_add_(0, rows.classes_MK.reshape(-1), step.v_change_MKd, alpha=-step.eta)
    w.omega_d.copy_(step.omega_d)
    w.w_bar_d.copy_(step.w_bar_d)
    change_dd = rows.h_Md.T @ step.s_Md
    # a blocked transposition first: reading the transpose entry by entry takes twice as long
    w.q_dd.sub_(change_dd, alpha=step.eta).sub_(change_dd.T.contiguous(), alpha=step.eta)
    if step.u_dd is not None:
        w.u_dd.copy_(step.u_dd)
    else:
        w.u_dd.addmm_(rows.hu_Md.T, step.b_Md, alpha=-step.eta)
    if step.u_inverse_dd is not None:
        assert w.u_inverse_dd is not None
        w.u_inverse_dd.copy_(step.u_inverse_dd)
    elif w.u_inverse_dd is not None:
        w.u_inverse_dd.addmm_(step.b_Md.T, step.x_Md, alpha=step.eta)
    if keep != 1.0:
        for tensor, power in ((w.u_dd, 1), (w.omega_d, 1), (w.w_bar_d, 1), (w.q_dd, 2), (w.u_inverse_dd, -1)):
            if tensor is not None:
                tensor.mul_(keep**power)
