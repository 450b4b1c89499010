"""Softmax cross-entropy that keeps its loss and gradient where the ordinary one rounds both to zero."""

from __future__ import annotations

from torch import Tensor

from softgate._math.compress import compute_dtype, exclusive_log_softmax
from softgate.dispatch import call
from softgate.losses import _triton_rows
from softgate.losses._row_kernel import row_kernel, row_kernel_refuses
from softgate.losses._softmax_rows import SoftmaxRows
from softgate.losses._targets import (
    autocast_input,
    check_loss_arguments,
    class_axis,
    expected_cost,
    hide_ignored,
)
from softgate.registry import Kernel, method, record_of

__all__ = ["collapse_free_cross_entropy"]


def _reference(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``-log softmax(z)`` with the largest logit left out of the sum, see :func:`exclusive_log_softmax`."""
    axis = class_axis(input)
    wide = hide_ignored(input, target, ignore_index).to(compute_dtype(input.dtype))
    costs = -exclusive_log_softmax(wide, axis)
    return expected_cost(costs, target, weight, ignore_index, reduction, label_smoothing).to(input.dtype)


@method(
    site="losses",
    family="loss",
    paper="stablemax",
    source="remedy for Softmax Collapse (sec. 3, eq. 4) by exclusion instead of a new normaliser; softgate's addition",
    reference=_reference,
    kernels=(
        Kernel(
            "triton",
            _triton_rows.kernel(_triton_rows.SOFTMAX, _reference, lambda: ((1.0,), 0)),
            _triton_rows.refuses,
        ),
        Kernel("blocks", row_kernel(SoftmaxRows()), row_kernel_refuses),
    ),
    variants={"default": {}, "sum": {"reduction": "sum"}, "smoothing": {"label_smoothing": 0.1}},
    laws=("nonnegative", "shift_invariant"),
    output_range=(0.0, float("inf")),
    deviations=("not in the paper; equal to softmax cross-entropy in exact arithmetic",),
)
def collapse_free_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Softmax cross-entropy with full relative precision at any margin, a drop-in for ``F.cross_entropy``.

    .. math:: L = \mathrm{softplus}(\mathrm{LSE}_{j \ne y} z_j - z_y), \qquad
              \frac{\partial L}{\partial z_y} = -\sigma(\mathrm{LSE}_{j \ne y} z_j - z_y)

    ``F.cross_entropy`` in float32 returns a loss and gradient of exactly 0 once the target leads by 17 (float16: 7.6,
    bfloat16: 5.5), because the other exponentials vanish beside 1. Leaving the target out of the sum keeps both to
    rounding until the exponential itself underflows, at a margin near 88. It removes the collapse, not the growth of
    the logits that leads there: see :class:`softgate.optim.OrthoGrad` for that.

    Args:
        input: logits ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, real floating point.
        target: class indices ``()``, ``(N,)`` or ``(N, d1, ...)``, or class probabilities of the shape of ``input``.
        weight: weight of every class, ``(C,)``.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"`` (over the weights of the kept rows), ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``, in nats and in the dtype of ``input`` (16-bit types are
        computed in float32). A row with ``+inf`` or NaN, or of only ``-inf``, is NaN, as in ``F.cross_entropy``.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.

    Example:
        >>> collapse_free_cross_entropy(torch.tensor([30.0, 0.0]), torch.tensor(0))
        tensor(9.3576e-14)

    Source: the exclusive log-sum-exp form of softmax cross-entropy; collapse as in arXiv 2501.04697, sec. 3.
    """
    check_loss_arguments(input, target, weight, ignore_index, reduction, label_smoothing)
    record = record_of(collapse_free_cross_entropy)
    return call(record, autocast_input(input), target, weight, ignore_index, reduction, label_smoothing)
