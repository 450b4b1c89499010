"""Dense spherical output layer: statistics of the logits by way of the Gram matrix of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn

from softgate._checks import check_float_tensor, check_same_device
from softgate._math.compress import compute_dtype
from softgate.dispatch import call, is_batched_gradient
from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.losses._spherical import check_class_count, check_classes
from softgate.registry import Kernel, method, record_of

__all__ = ["SphericalLinear", "spherical_linear"]

Stats = tuple[Tensor, Tensor, Tensor]


def _reference(h: Tensor, weight: Tensor, target: Tensor, ignore_index: int = -100) -> Stats:
    wide, w = h.to(compute_dtype(h.dtype)), weight.to(compute_dtype(h.dtype))
    known = torch.where(target == ignore_index, 0, target)
    logits = wide @ w.mT
    a = logits.gather(-1, known.unsqueeze(-1)).squeeze(-1)
    return a, logits.square().sum(-1), logits.sum(-1)


class _Gram(torch.autograd.Function):
    """``q = h^T (W^T W) h`` and ``s = h^T W^T 1``; the gradient of W is one product with a (d, d) matrix."""

    @staticmethod
    def forward(ctx: Any, h_Md: Tensor, w_Dd: Tensor, target_M: Tensor) -> Stats:
        gram_dd, sum_d = w_Dd.T @ w_Dd, w_Dd.sum(0)
        hq_Md = h_Md @ gram_dd
        selected_Md = w_Dd.index_select(0, target_M)
        ctx.save_for_backward(h_Md, w_Dd, target_M, hq_Md, sum_d, selected_Md)
        return torch.linalg.vecdot(selected_Md, h_Md), torch.linalg.vecdot(h_Md, hq_Md), h_Md @ sum_d

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        h_Md, w_Dd, target_M, hq_Md, sum_d, selected_Md = ctx.saved_tensors
        g_a, g_q, g_s = grads
        if torch.is_grad_enabled() or any(map(is_batched_gradient, grads)):
            return *_differentiable(h_Md, w_Dd, target_M, g_a, g_q, g_s), None
        d_h = d_w = None
        a_M1, q2_M1, s_M1 = g_a.unsqueeze(1), 2.0 * g_q.unsqueeze(1), g_s.unsqueeze(1)
        if ctx.needs_input_grad[0]:
            d_h = torch.addcmul(q2_M1 * hq_Md, a_M1, selected_Md).addcmul_(s_M1, sum_d)
        if ctx.needs_input_grad[1]:
            d_w = torch.addmm(g_s @ h_Md, w_Dd, h_Md.T @ (q2_M1 * h_Md))
            d_w.index_add_(0, target_M, a_M1 * h_Md)
        return d_h, d_w, None


def _differentiable(
    h_Md: Tensor, w_Dd: Tensor, target_M: Tensor, g_a: Tensor, g_q: Tensor, g_s: Tensor
) -> tuple[Tensor, Tensor]:
    """The same gradients from operations that can be differentiated and batched themselves."""
    a_M1, q2_M1, s_M1 = g_a.unsqueeze(1), 2.0 * g_q.unsqueeze(1), g_s.unsqueeze(1)
    d_h = a_M1 * w_Dd[target_M] + q2_M1 * (h_Md @ (w_Dd.T @ w_Dd)) + s_M1 * w_Dd.sum(0)
    one_hot_MD = torch.nn.functional.one_hot(target_M, len(w_Dd)).to(h_Md.dtype)
    d_w = w_Dd @ (h_Md.T @ (q2_M1 * h_Md)) + (s_M1 + a_M1 * one_hot_MD).mT @ h_Md
    return d_h, d_w


def _gram(h: Tensor, weight: Tensor, target: Tensor, ignore_index: int = -100) -> Stats:
    dtype = compute_dtype(h.dtype)
    known = target.masked_fill(target == ignore_index, 0)
    rows = h.to(dtype).reshape(-1, h.shape[-1])
    a, q, s = _Gram.apply(rows, weight.to(dtype), known.reshape(-1))
    return a.reshape(target.shape), q.reshape(target.shape), s.reshape(target.shape)


def _gram_refuses(h: Tensor, weight: Tensor, target: Tensor, ignore_index: int = -100) -> str | None:
    rows, features = target.numel(), h.shape[-1]
    if rows < features:
        return f"with {rows} rows of {features} features the logits are cheaper than the Gram matrix of the weights"
    return None


def _samples(dtype: torch.dtype, generator: Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    # more rows than features go through the Gram matrix, fewer through the logits
    for shape in ((4,), (2,), (2, 3), (0,)):
        h, w = (torch.randn(*s, 3, generator=generator, dtype=torch.float64).to(dtype) for s in (shape, (5,)))
        target = torch.randint(5, shape, generator=generator)
        yield (h.requires_grad_(), w.requires_grad_(), target), {}
        ignored = target.clone()
        ignored.view(-1)[::3] = -1
        yield (h, w, ignored), {"ignore_index": -1}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    h, w, y = torch.ones(3, 2), torch.ones(5, 2), torch.tensor([0, 4, 1])
    yield (torch.tensor(1.0), w, y), {}, ValueError, "h"
    yield (torch.ones(3, 4), w, y), {}, ValueError, "h"
    yield (h, torch.ones(2), y), {}, ValueError, "weight"
    yield (h, torch.ones(0, 2), y), {}, ValueError, "weight"
    yield (h, w.double(), y), {}, TypeError, "weight"
    yield (h, w, y[:2]), {}, ValueError, "target"
    yield (h, w, y + 1), {}, ValueError, "target"
    yield (h, w, y - 1), {}, ValueError, "target"
    for target in (y.float(), [0, 4, 1], None):
        yield (h, w, target), {}, TypeError, "target"


@method(
    site="losses",
    family="custom",
    paper="z-loss",
    source="statistics of a dense spherical layer: q = h^T W^T W h, s = h^T W^T 1 and their gradients",
    reference=_reference,
    kernels=(Kernel("gram", _gram, _gram_refuses),),
    samples=_samples,
    error_scale="tensor",
    bad_inputs=_bad_inputs,
)
def spherical_linear(h: Tensor, weight: Tensor, target: Tensor, ignore_index: int = -100) -> Stats:
    r"""Target logit, sum of squares and sum of the logits ``h @ weight.T``, for losses of the spherical family.

    With more rows than features the logits are never formed: :math:`q = h^\top Q h` and :math:`s = h^\top \bar w` with
    :math:`Q = W^\top W` and :math:`\bar w = W^\top 1`, at about :math:`4 D d^2` operations for forward and backward
    instead of :math:`6 M D d`. All gradients are exact, so any optimizer can train ``weight``.

    Args:
        h: rows ``(..., d)``, real floating point.
        weight: ``(D, d)``, same dtype.
        target: int64 class indices of the leading shape of ``h``, in ``[0, D)`` or equal to ``ignore_index``.
        ignore_index: marks rows that the loss leaves out; their ``a`` is the logit of class 0.

    Returns:
        ``a``, ``q`` and ``s``, each of the shape of ``target``, in float32 for 16-bit rows: squares of D logits do not
        fit into them.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match or an index is out of range.

    Example:
        >>> h, weight = torch.ones(2, 3), torch.eye(4, 3)
        >>> spherical_linear(h, weight, torch.tensor([0, 3]))
        (tensor([1., 0.]), tensor([3., 3.]), tensor([3., 3.]))

    Paper: de Brébisson, Vincent, The Z-loss, arXiv 1604.08859 (the spherical family).
    """
    check_float_tensor("h", h)
    check_float_tensor("weight", weight)
    if weight.ndim != 2 or not len(weight):
        raise ArgumentValueError(f"weight must have shape (D, d) with D at least 1, got {tuple(weight.shape)}")
    if h.ndim == 0 or h.shape[-1] != weight.shape[1]:
        raise ArgumentValueError(f"h must have shape (..., {weight.shape[1]}), got {tuple(h.shape)}")
    if weight.dtype != h.dtype:
        raise ArgumentTypeError(f"weight must have the dtype of h, {h.dtype}, got {weight.dtype}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise ArgumentTypeError(f"ignore_index must be an int, got {type(ignore_index).__name__}")
    check_classes("target", target, len(weight), ignore_index)
    if target.shape != h.shape[:-1]:
        raise ArgumentValueError(f"target must have shape {tuple(h.shape[:-1])}, got {tuple(target.shape)}")
    check_same_device(h=h, weight=weight, target=target)
    found: Stats = call(record_of(spherical_linear), h, weight, target, ignore_index)
    return found


class SphericalLinear(nn.Module):
    """Linear output layer for losses of the spherical family with an ordinary weight, for any optimizer.

    ``forward(h, target)`` returns what :func:`softgate.losses.z_loss_from_stats` and its relatives take; see
    :func:`spherical_linear`. Use it where the batch has more rows than features and W should be trained with momentum
    or Adam; :class:`softgate.losses.FactoredSphericalLinear` is for more classes than that allows.

    Args:
        in_features: width d of the rows.
        num_classes: number of classes D, at least 2.
        ignore_index: marks rows that the loss leaves out.
        device: of the weight.
        dtype: of the weight.

    Example:
        >>> head = SphericalLinear(8, 100)
        >>> target = torch.randint(100, (16,))
        >>> a, q, s = head(torch.randn(16, 8), target)
        >>> softgate.losses.z_loss_from_stats(a, q, s, 100).backward()
        >>> head.weight.grad.shape
        torch.Size([100, 8])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        ignore_index: int = -100,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_class_count("in_features", in_features, 1)
        check_class_count("num_classes", num_classes, 2)
        self.in_features, self.num_classes, self.ignore_index = in_features, num_classes, ignore_index
        self.weight = nn.Parameter(torch.empty(num_classes, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew, as ``torch.nn.Linear`` does."""
        bound = self.in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, h: Tensor, target: Tensor) -> Stats:
        """Target logit, sum of squares and sum of the logits of every row, see :func:`spherical_linear`."""
        return spherical_linear(h, self.weight.to(h.dtype), target, self.ignore_index)

    def logits(self, h: Tensor) -> Tensor:
        """All logits ``(..., num_classes)`` of rows ``(..., in_features)``."""
        return h @ self.weight.to(h.dtype).mT

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}, ignore_index={self.ignore_index}"
