"""An output layer of any number of classes whose exact SGD step costs O(d^2) per row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type, check_choice
from softgate.losses._self_updating import SelfUpdating, check_finite, check_rows, full_precision
from softgate.losses._spherical import check_class_count, check_classes
from softgate.losses.factored import dense, step
from softgate.losses.factored.linear_algebra import condition_estimate, factor, refined_inverse
from softgate.losses.factored.step import Rows, Slopes, Weights

__all__ = ["FactoredSphericalLinear"]

#: Backward passes between two looks at the condition of U.
CHECK_EVERY = 100
INVERSES = ("woodbury", "solve")


class FactoredSphericalLinear(SelfUpdating):
    r"""Linear output layer for losses of the spherical family, trained by exact SGD in O(d^2) per row, whatever D.

    ``forward`` returns for every row the logit ``a`` of its target, the sum of squares ``q`` and the sum ``s`` of all D
    logits, none of which is formed; a loss such as :func:`softgate.losses.z_loss_from_stats` is computed from them. The
    backward pass returns the gradient by ``h`` and **applies the SGD step of this layer itself**: the weights are
    buffers in factored form, :math:`W = V U + 1 \omega^T`, and never had a gradient. It equals
    ``torch.optim.SGD(lr=lr, weight_decay=weight_decay)`` on a dense W, to rounding. Momentum and Adam on W are not
    possible at this cost: see :class:`softgate.losses.SphericalLinear` for those.

    Every backward pass is a step of its own, of the gradient of what was differentiated: with a loss that is a mean
    over rows, lr has the meaning it has with a mean loss elsewhere. To accumulate gradients, concatenate the
    micro-batches. In ``eval()`` mode, under ``torch.no_grad()`` and inside :meth:`no_update` nothing is changed. Tensor
    hooks on ``a``, ``q`` and ``s`` see the gradients before the step. There is no bias: append a constant to ``h``.

    The layer re-factors itself (``V = W``, ``U = I``; about d / (3 m) dense steps for batches of m) every
    ``refactor_every`` steps, when the condition number of U, looked at every 100 steps, exceeds ``cond_limit``, and
    together with one dense step when a batch would make U singular.

    Args:
        in_features: width d of the rows.
        num_classes: number of classes D, at least 2.
        lr: learning rate.
        weight_decay: L2 penalty as in ``torch.optim.SGD``.
        inverse: how the update divides by U. ``"woodbury"`` stores the inverse of U (refined every 100 steps) and
            solves a system of the size of the batch; ``"solve"`` factors U in every step and stores nothing.
        refactor_every: steps between two re-factorings; None leaves it to ``cond_limit``.
        cond_limit: condition number of U beyond which the layer re-factors.
        centre: keep the mean of W over the classes at zero. Only for losses that a common offset of the logits does not
            change, such as the Z-loss: ``s`` is then 0 and nothing cancels in the variance.
        max_grad_norm: scale the step down where the gradient of W has a larger Frobenius norm; None never does.
        ignore_index: rows with this target are left out of the step.
        device: of the weights.
        dtype: of the weights, float32 or float64.

    Raises:
        ArgumentTypeError: an argument has the wrong type, or the dtype cannot hold Q.
        ArgumentValueError: a number is out of range.

    Example:
        >>> head = FactoredSphericalLinear(8, 1000, lr=0.1)
        >>> h = torch.randn(4, 8, requires_grad=True)
        >>> a, q, s = head(h, torch.tensor([3, 999, 0, 3]))
        >>> loss = softgate.losses.z_loss_from_stats(a, q, s, 1000)
        >>> loss.backward()
        >>> h.grad.shape, head.steps
        (torch.Size([4, 8]), 1)

    Paper: de Brébisson, Vincent, The Z-loss, arXiv 1604.08859; the algorithm is from arXiv 1412.7091.
    """

    V: Tensor
    U: Tensor
    omega: Tensor
    Q: Tensor
    w_bar: Tensor
    U_inverse: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        lr: float,
        weight_decay: float = 0.0,
        inverse: str = "woodbury",
        refactor_every: int | None = 2000,
        cond_limit: float = 1e3,
        centre: bool = False,
        max_grad_norm: float | None = None,
        ignore_index: int = -100,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(lr, weight_decay)
        check_class_count("in_features", in_features, 1)
        check_class_count("num_classes", num_classes, 2)
        check_choice("inverse", inverse, INVERSES)
        if refactor_every is not None:
            check_class_count("refactor_every", refactor_every, 1)
        if not isinstance(centre, bool):
            bad_type("centre", centre, "a bool")
        if max_grad_norm is not None:
            check_number("max_grad_norm", max_grad_norm, low=0.0, low_open=True)
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            bad_type("ignore_index", ignore_index, "an int")
        self.in_features, self.num_classes, self.inverse = in_features, num_classes, inverse
        self.refactor_every, self.centre, self.max_grad_norm = refactor_every, centre, max_grad_norm
        self.cond_limit = check_number("cond_limit", cond_limit, low=1.0)
        self.ignore_index = ignore_index
        self.since_refactor = self.refactorings = self.dense_steps = 0
        _check_dtype(dtype)
        d = in_features
        sizes = {"V": (num_classes, d), "U": (d, d), "omega": (d,), "Q": (d, d), "w_bar": (d,), "U_inverse": (d, d)}
        for name, size in sizes.items():
            stored = name != "U_inverse" or inverse == "woodbury"
            self.register_buffer(name, torch.zeros(size, device=device, dtype=dtype) if stored else None)
        self.V.uniform_(-(d**-0.5), d**-0.5)
        self.U.fill_diagonal_(1.0)
        self.refactor()

    @property
    def weights(self) -> Weights:
        """The buffers, as the functions of :mod:`softgate.losses.factored.step` take them."""
        return Weights(self.V, self.U, self.omega, self.Q, self.w_bar, self.U_inverse)

    @property
    def weight(self) -> Tensor:
        """The dense weights ``W = V U + 1 omega^T``, ``(num_classes, in_features)``, newly computed."""
        return torch.addmm(self.omega, self.V, self.U)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Take over dense weights ``(num_classes, in_features)``, with ``centre`` less their mean over classes."""
        check_float_tensor("weight", weight)
        if weight.shape != self.V.shape:
            raise ArgumentValueError(f"weight must have shape {tuple(self.V.shape)}, got {tuple(weight.shape)}")
        check_finite("weight", weight)
        self.V.copy_(weight)
        self.U.zero_().fill_diagonal_(1.0)
        self.omega.zero_()
        self.refactor()

    def forward(self, h: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Statistics of the logits of every row; see the class for what their backward pass does.

        Args:
            h: hidden rows ``(..., in_features)``, finite, real floating point.
            target: int64 class indices ``(...)``, or ``(..., K)`` for K selected classes per row, in
                ``[0, num_classes)`` or equal to ``ignore_index``.

        Returns:
            ``a`` of the shape of ``target`` (where the target is ignored: the logit of class 0), ``q`` and ``s`` of the
            leading shape of ``h``, in the dtype of the weights. Give the loss ``target`` too if some are ignored.

        Raises:
            ArgumentTypeError: a tensor has the wrong dtype or layout.
            ArgumentValueError: a shape or an index is not allowed, or ``h`` is not finite.
            StateError: the weights belong to an optimizer or were changed from outside.
        """
        check_rows(h, target, self.in_features, self.num_classes, self.ignore_index, several=True)
        _check_dtype(self.V.dtype)
        self.check_state()
        lead = h.shape[:-1]
        rows_Md = h.to(self.V.dtype).reshape(-1, self.in_features)
        classes_MK = target.reshape(len(rows_Md), target.shape[-1] if target.ndim == h.ndim else 1)
        a_MK, q_M, s_M = _Step.apply(rows_Md, classes_MK, self.anchor(h), self)
        return a_MK.reshape(target.shape), q_M.reshape(lead), s_M.reshape(lead)

    @torch.no_grad()
    def logits(self, h: Tensor, classes: Tensor | None = None) -> Tensor:
        """Logits of rows ``(..., in_features)``: of all classes, or of those listed in ``classes`` ``(n,)``."""
        rows_Md = self._rows(h)
        if classes is not None:
            check_classes("classes", classes, self.num_classes, None)
            if classes.ndim != 1:
                raise ArgumentValueError(f"classes must have one dimension, got shape {tuple(classes.shape)}")
        v = self.V if classes is None else self.V.index_select(0, classes)
        found = torch.addmm((rows_Md @ self.omega).unsqueeze(1), rows_Md @ self.U.T, v.T)
        return found.reshape(*h.shape[:-1], len(v))

    @torch.no_grad()
    def topk(self, h: Tensor, k: int, chunk: int = 65536) -> tuple[Tensor, Tensor]:
        """Values and classes ``(..., k)`` of the k largest logits, in descending order.

        Args:
            h: rows ``(..., in_features)``.
            k: how many, at most ``num_classes``.
            chunk: classes whose logits are held at once.
        """
        rows_Md = self._rows(h)
        check_class_count("k", k, 1)
        if k > self.num_classes:
            raise ArgumentValueError(f"k must be at most num_classes={self.num_classes}, got {k}")
        check_class_count("chunk", chunk, 1)
        values, classes = dense.largest(self.weights, rows_Md, k, chunk)
        return values.reshape(*h.shape[:-1], k), classes.reshape(*h.shape[:-1], k)

    def _rows(self, h: Tensor) -> Tensor:
        check_float_tensor("h", h)
        if h.ndim == 0 or h.shape[-1] != self.in_features:
            raise ArgumentValueError(f"h must have shape (..., {self.in_features}), got {tuple(h.shape)}")
        return h.to(self.V.dtype).reshape(-1, self.in_features)

    @torch.no_grad()
    def refactor(self) -> None:
        """Make ``V = W``, ``U = I``, ``omega = 0``, compute ``Q`` and ``w_bar`` anew; the logits stay as they are."""
        dense.refactor(self.weights, self.centre)
        self._refactored()

    def _refactored(self) -> None:
        self.refactorings += 1
        self.since_refactor = 0
        self.changed()

    @torch.no_grad()
    def stats(self) -> dict[str, float]:
        """How far the factored form has drifted; a pass over all of W, as costly as re-factoring.

        Returns:
            ``cond_u`` (exact), ``q_drift`` and ``w_bar_drift`` (error relative to the norm of ``W^T W`` and, for
            ``w_bar``, to that of W times ``sqrt(D)``), ``steps``, ``since_refactor``, ``refactorings`` and
            ``dense_steps``.
        """
        q_dd, w_bar_d = dense.gram(self.weights)
        size = float(torch.linalg.matrix_norm(q_dd)) or 1.0
        scale = float(q_dd.trace() * self.num_classes) ** 0.5 or 1.0
        return {
            "cond_u": float(torch.linalg.cond(self.U.double())),
            "q_drift": float(torch.linalg.matrix_norm(self.Q - q_dd)) / size,
            "w_bar_drift": float(torch.linalg.vector_norm(self.w_bar - w_bar_d)) / scale,
            "steps": float(self.steps),
            "since_refactor": float(self.since_refactor),
            "refactorings": float(self.refactorings),
            "dense_steps": float(self.dense_steps),
        }

    def _update(self, w: Weights, rows: Rows, g: Slopes, gradient: step.Gradient) -> None:
        """Apply the SGD step of one backward pass; nothing is written unless all of it is finite."""
        if self.centre:
            _check_shift_invariant(g, self.num_classes)
        keep = 1.0 - self.lr * self.weight_decay
        if keep <= 0.0:
            raise StateError(f"lr * weight_decay must be below 1, got {self.lr} * {self.weight_decay}")
        # the decay scales all of W afterwards, so that the gradient has to be applied to so much less of it
        eta = self.lr / keep
        gram_Md = step.half_gram(rows, g, gradient.half_Md, self.num_classes)
        if self.max_grad_norm is not None:
            eta *= min(1.0, self.max_grad_norm / (step.weight_gradient_norm(rows, gram_Md) + 1e-6))
        overflows = step.has_overflowed(gradient, gram_Md)
        planned = None if overflows else step.plan(w, rows, g, gradient, gram_Md, eta, self.centre)
        if overflows or (planned is not None and not step.is_safe(rows, planned)):
            raise StateError("the step overflows; the head was not changed: use a smaller lr, or max_grad_norm")
        if planned is None:
            dense.dense_step(w, rows, g, eta, keep, self.centre)
            self.dense_steps += 1
            self._refactored()
        else:
            step.apply(w, rows, planned, keep)
            self.since_refactor += 1
        self.steps += 1
        self._maintain()
        self.changed()

    def _maintain(self) -> None:
        """Re-factor when it is time, or when U has become ill-conditioned."""
        if self.refactor_every is not None and self.since_refactor >= self.refactor_every:
            self.refactor()
        elif self.steps % CHECK_EVERY == 0 and self.since_refactor:
            inverse = self.U_inverse
            if inverse is not None:
                inverse.copy_(refined_inverse(self.U, inverse))
            else:
                factors = factor(self.U)
                inverse = factors.inverse() if factors is not None else None
            if inverse is None or not condition_estimate(self.U, inverse) <= self.cond_limit:
                self.refactor()

    def _counters(self) -> list[float]:
        counts = (self.steps, self.since_refactor, self.refactorings, self.dense_steps)
        return [self.lr, *(float(count) for count in counts)]

    def _set_counters(self, values: list[float]) -> None:
        self.lr = values[0]
        self.steps, self.since_refactor, self.refactorings, self.dense_steps = (int(value) for value in values[1:])

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, lr={self.lr}, "
            f"weight_decay={self.weight_decay}, inverse={self.inverse!r}, centre={self.centre}"
        )


class _Step(torch.autograd.Function):
    """Statistics of the logits; the backward pass returns the gradient by ``h`` and updates the layer."""

    @staticmethod
    def forward(
        ctx: Any, h_Md: Tensor, classes_MK: Tensor, anchor: Tensor | None, layer: FactoredSphericalLinear
    ) -> tuple[Tensor, Tensor, Tensor]:
        keep_MK = classes_MK != layer.ignore_index
        ctx.keep_MK = None if bool(keep_MK.all()) else keep_MK
        known_MK = classes_MK if ctx.keep_MK is None else classes_MK.masked_fill(~keep_MK, 0)
        with full_precision(h_Md):
            a_MK, q_M, s_M, rows = step.forward(layer.weights, h_Md, known_MK, layer.centre)
        ctx.save_for_backward(h_Md)
        ctx.rows, ctx.layer, ctx.changes, ctx.updates = rows, layer, layer.changes, anchor is not None
        return a_MK, q_M, s_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        layer: FactoredSphericalLinear = ctx.layer
        _ = ctx.saved_tensors  # raises if h was changed in place
        layer.check_backward(ctx.changes)
        layer.check_state()
        g = Slopes(*grads)
        if ctx.keep_MK is not None:
            counts_M = ctx.keep_MK.any(1)
            g = Slopes(g.a_MK.where(ctx.keep_MK, 0.0), g.q_M.where(counts_M, 0.0), g.s_M.where(counts_M, 0.0))
        for name, slope in zip("aqs", g, strict=True):
            check_finite(f"the gradient of {name}", slope)
        with full_precision(g.q_M):
            weights = layer.weights
            gradient = step.input_gradient(weights, ctx.rows, g, layer.centre)
            counted = g.q_M.numel() and (ctx.keep_MK is None or bool(ctx.keep_MK.any()))
            if ctx.updates and counted:
                layer._update(weights, ctx.rows, g, gradient)
        return gradient.h_Md, None, None, None


def _check_dtype(dtype: Any) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ArgumentTypeError(f"dtype must be torch.float32 or torch.float64 (Q needs the precision), got {dtype}")


def _check_shift_invariant(g: Slopes, classes: int) -> None:
    """A loss that an offset of the logits does not change has ``g_a + 2 g_q s + D g_s = 0``, and s is 0 here."""
    off_M = (g.a_MK.sum(1) + classes * g.s_M).abs()
    if bool((off_M > 1e-3 * g.a_MK.abs().sum(1)).any()):
        raise StateError(
            "centre=True needs a loss that a common offset of the logits does not change, such as the Z-loss; "
            "the head was not changed"
        )
