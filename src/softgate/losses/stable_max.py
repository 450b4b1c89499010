"""Cross-entropy on StableMax probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softgate._math.compress import compressed_scores, compute_dtype, exclusive_log_softmax
from softgate.dispatch import call
from softgate.losses import _triton_rows
from softgate.losses._row_kernel import row_kernel, row_kernel_refuses
from softgate.losses._targets import (
    autocast_input,
    check_loss_arguments,
    class_axis,
    expected_cost,
    hide_ignored,
)
from softgate.registry import Kernel, method, record_of

__all__ = ["StableMaxCrossEntropyLoss", "stablemax_cross_entropy"]


def _reference(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Eq. 8: cross-entropy of the compressed logits, ``-log softmax(g(z))``."""
    axis = class_axis(input)
    wide = hide_ignored(input, target, ignore_index).to(compute_dtype(input.dtype))
    costs = -exclusive_log_softmax(compressed_scores(wide, axis), axis)
    return expected_cost(costs, target, weight, ignore_index, reduction, label_smoothing).to(input.dtype)


class _StableMaxRows:
    """``loss = log1p(rest / s_y)`` in linear scale: one logarithm a row, ``s' = min(s, 1)^2``; pivot: ``s_y``."""

    @staticmethod
    def rest(x: Tensor, index: Tensor, scratch: tuple[Tensor, Tensor], pivot: Tensor, rest: Tensor) -> None:
        scores, below = scratch
        torch.clamp(x, min=0.0, out=scores)
        torch.clamp(x, max=0.0, out=below).sub_(1.0)
        torch.addcdiv(scores, below.new_ones(()), below, value=-1.0, out=scores)  # max(x, 0) + 1 / (1 - min(x, 0))
        torch.sum(scores.scatter_(1, index, 0.0), 1, keepdim=True, out=rest)

    @staticmethod
    def finish(x_target: Tensor, pivot: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        torch.add(x_target.clamp(min=0.0), (1.0 - x_target.clamp(max=0.0)).reciprocal_(), out=pivot)
        return (rest / pivot).log1p_(), rest + pivot

    @staticmethod
    def slopes(x: Tensor, out: Tensor, pivot: Tensor, scale: Tensor) -> None:
        torch.clamp(x, max=0.0, out=out).sub_(1.0).square_()
        torch.div(scale, out, out=out)

    @staticmethod
    def slope_at_target(x_target: Tensor, pivot: Tensor, rest: Tensor, total: Tensor, grad: Tensor) -> Tensor:
        return -grad / total * pivot.clamp(max=1.0).square_() * (rest / pivot)

    @staticmethod
    def rows(x: Tensor, index: Tensor) -> Tensor:
        return -exclusive_log_softmax(compressed_scores(x, 1), 1).gather(1, index.unsqueeze(1)).squeeze(1)


@method(
    site="losses",
    family="loss",
    paper="stablemax",
    source="sec. 4, eq. 8: L = -g(z_y) + logsumexp_j g(z_j), g(x) = sign(x) log(1 + |x|)",
    reference=_reference,
    kernels=(
        Kernel(
            "triton", _triton_rows.kernel(_triton_rows.STABLEMAX, _reference, lambda: ((), 0)), _triton_rows.refuses
        ),
        Kernel("blocks", row_kernel(_StableMaxRows()), row_kernel_refuses),
    ),
    variants={"default": {}, "sum": {"reduction": "sum"}, "smoothing": {"label_smoothing": 0.1}},
    laws=("nonnegative",),
    output_range=(0.0, float("inf")),
    deviations=(
        "returns the dtype of the logits and computes in it (float32 for 16-bit types); the authors' code computes in, "
        "and returns, float64",
    ),
)
def stablemax_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy of StableMax probabilities, a drop-in for ``torch.nn.functional.cross_entropy``.

    .. math:: L = -\log \frac{s(z_y)}{\sum_j s(z_j)}, \qquad
              \frac{\partial L}{\partial z_i} = \frac{p_i - [i = y]}{1 + |z_i|}

    Because s grows linearly, the gradient fades with the inverse of the margin and never rounds to zero, without
    float64. The logits are **not** shift invariant under this loss. Apply a temperature to the logits before.

    Args:
        input: logits ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, real floating point.
        target: class indices ``()``, ``(N,)`` or ``(N, d1, ...)``, or class probabilities of the shape of ``input``.
        weight: weight of every class, ``(C,)``.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"`` (over the weights of the kept rows), ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``, in nats and in the dtype of ``input``. A logit ``+inf`` has
        probability 1 (ties share), ``-inf`` probability 0; a row of only ``-inf`` or with NaN is NaN.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.

    Example:
        >>> stablemax_cross_entropy(torch.tensor([[3.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(0.3185)

    Source: Prieto et al., Grokking at the Edge of Numerical Stability, arXiv 2501.04697, sec. 4, eq. 8.
    """
    check_loss_arguments(input, target, weight, ignore_index, reduction, label_smoothing)
    record = record_of(stablemax_cross_entropy)
    return call(record, autocast_input(input), target, weight, ignore_index, reduction, label_smoothing)


class StableMaxCrossEntropyLoss(nn.Module):
    """Module form of :func:`stablemax_cross_entropy`, with the arguments of ``torch.nn.CrossEntropyLoss``.

    Args:
        weight: weight of every class, ``(C,)``; kept as a buffer.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Loss of ``input`` (logits) and ``target``, see :func:`stablemax_cross_entropy`."""
        return stablemax_cross_entropy(
            input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing
        )

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}"
