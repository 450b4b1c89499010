"""Comp-sum losses: one family from the sum-exponential loss over cross-entropy to mean absolute error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate._math.compress import compute_dtype, exclusive_log_softmax
from softgate.dispatch import call
from softgate.losses import _triton_rows
from softgate.losses._comp_sum_phi import phi
from softgate.losses._row_kernel import row_kernel, row_kernel_refuses
from softgate.losses._softmax_rows import SoftmaxRows
from softgate.losses._targets import (
    autocast_input,
    check_loss_arguments,
    class_axis,
    expected_cost,
    has_class_indices,
    hide_ignored,
    reduce_rows,
    split_ignored,
)
from softgate.registry import Kernel, method, record_of

__all__ = ["CompSumLoss", "comp_sum_loss"]

#: Beyond it ``(tau - 1) * log p`` overflows float32 even where p is 1 to rounding; such a loss is 0 or 1/(tau - 1).
LARGEST_TAU = 1e6


def check_tau(tau: Any, high: float = LARGEST_TAU, *, high_open: bool = False) -> float:
    """Return ``tau`` as a float if it names a member of the family."""
    return check_number("tau", tau, low=0.0, high=high, high_open=high_open)


def _reference(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    tau: float = 1.0,
    temperature: float = 1.0,
    max_weight: float | None = None,
) -> Tensor:
    """``Phi_tau(1 / p_y - 1)`` with ``p = softmax(z / temperature)``, taken from ``log p`` (:func:`phi`)."""
    axis = class_axis(input)
    wide = hide_ignored(input, target, ignore_index).to(compute_dtype(input.dtype))
    log_p = exclusive_log_softmax(wide / temperature, axis)
    if has_class_indices(target) and label_smoothing == 0.0:
        # phi of the targets only: one number a row instead of one a class
        index, keep = split_ignored(target, ignore_index)
        rows = phi(log_p.gather(axis, index.unsqueeze(axis)).squeeze(axis), tau, max_weight=max_weight)
        row_weight = None if weight is None else weight.to(rows.dtype)[index]
        return reduce_rows(rows, keep, row_weight, reduction).to(input.dtype)
    costs = phi(log_p, tau, max_weight=max_weight)
    return expected_cost(costs, target, weight, ignore_index, reduction, label_smoothing).to(input.dtype)


_row_losses = row_kernel(SoftmaxRows(), outer=lambda loss, **options: phi(-loss, **options))


def _blocks(input: Tensor, *args: Any, temperature: float = 1.0, **options: Any) -> Tensor:
    """The kernel of cross-entropy, and :func:`phi` of its row losses: one more number a row, the same passes."""
    wide = input if temperature == 1.0 else input.to(compute_dtype(input.dtype)) / temperature
    return _row_losses(wide, *args, **options).to(input.dtype)


def _numbers(
    tau: float = 1.0, temperature: float = 1.0, max_weight: float | None = None
) -> tuple[tuple[float, ...], int]:
    """What the Triton kernels take: the factor of the logits, ``tau - 1``, the largest weight; the side of 1."""
    cap = torch.finfo(torch.float32).max / 2 if max_weight is None else max_weight
    return (1.0 / temperature, tau - 1.0, cap), 0 if tau == 1.0 else 1 if tau > 1.0 else 2


@method(
    site="losses",
    family="loss",
    paper="comp-sum-losses",
    source="sec. 2: Phi_tau(sum_{j != y} exp(z_j - z_y)), Phi_tau(u) = ((1 + u)^(1 - tau) - 1) / (1 - tau)",
    reference=_reference,
    kernels=(
        Kernel("triton", _triton_rows.kernel(_triton_rows.SOFTMAX, _reference, _numbers), _triton_rows.refuses),
        Kernel("blocks", _blocks, row_kernel_refuses),
    ),
    variants={
        "default": {},
        "gce": {"tau": 1.5},
        "mae": {"tau": 2.0, "temperature": 2.0},
        "capped": {"tau": 0.5, "max_weight": 4.0},
    },
    laws=("nonnegative", "shift_invariant", "class_permutation_invariant"),
    output_range=(0.0, float("inf")),
)
def comp_sum_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    tau: float = 1.0,
    temperature: float = 1.0,
    max_weight: float | None = None,
) -> Tensor:
    r"""Comp-sum loss of order ``tau``, a drop-in for ``torch.nn.functional.cross_entropy``.

    .. math:: L_\tau = \Phi_\tau\Big(\sum_{j \ne y} e^{z_j - z_y}\Big) = \frac{p_y^{\tau - 1} - 1}{1 - \tau}, \qquad
              \frac{\partial L_\tau}{\partial z} = p_y^{\tau - 1} (p - e_y)

    ``tau=0`` is the sum-exponential loss, ``tau=1`` softmax cross-entropy, ``1 < tau < 2`` generalised cross-entropy
    with ``q = tau - 1``, ``tau=2`` mean absolute error ``1 - p_y``. The gradient is that of cross-entropy times
    ``p_y^(tau - 1)``: above 1 a sample that the model finds impossible (a wrong label, perhaps) hardly pulls, below 1
    it pulls with all its might. With ``tau != 1`` softmax of a trained model is not its estimate of the label
    distribution: read it with :func:`softgate.losses.comp_sum_probabilities`.

    Args:
        input: logits ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, real floating point.
        target: class indices ``()``, ``(N,)`` or ``(N, d1, ...)``, or class probabilities of the shape of ``input``;
            the loss is then the mean over the classes, with these probabilities, of the loss of each class.
        weight: weight of every class, ``(C,)``; it multiplies the loss.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"`` (over the weights of the kept rows), ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``; mixes the losses of all classes evenly into that of the target.
        tau: order of the family, in [0, 1e6].
        temperature: divides the logits, positive.
        max_weight: largest ``p_y^(tau - 1)``, at least 1; below the probability where it is reached the loss goes on
            linearly in ``-log p_y``. Only ``tau < 1`` has weights above 1.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``, in the dtype of ``input`` (16-bit types are computed in
        float32). In [0, 1/(tau - 1)] for ``tau > 1``. For ``tau < 1`` it overflows to ``+inf`` where ``p_y`` is too
        small for the dtype (and at a target logit of ``-inf``); the gradient stays finite. A row with ``+inf`` or NaN,
        or of only ``-inf``, is NaN, as in ``F.cross_entropy``.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.

    Example:
        >>> logits, label = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([1])
        >>> [round(float(comp_sum_loss(logits, label, tau=tau)), 4) for tau in (0.0, 1.0, 2.0)]
        [8.3891, 2.2395, 0.8935]

    Paper: Mao, Mohri and Zhong, Cross-Entropy Loss Functions: Theoretical Analysis and Applications, arXiv 2304.07288,
    sec. 2.
    """
    check_loss_arguments(input, target, weight, ignore_index, reduction, label_smoothing)
    options = {
        "tau": check_tau(tau),
        "temperature": check_number("temperature", temperature, low=0.0, low_open=True, high_open=True),
        "max_weight": None if max_weight is None else check_number("max_weight", max_weight, low=1.0, high_open=True),
    }
    record = record_of(comp_sum_loss)
    return call(record, autocast_input(input), target, weight, ignore_index, reduction, label_smoothing, **options)


class CompSumLoss(nn.Module):
    """Module form of :func:`comp_sum_loss`, with the arguments of ``torch.nn.CrossEntropyLoss``.

    Args:
        weight: weight of every class, ``(C,)``; kept as a buffer.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``.
        tau: order of the family.
        temperature: divides the logits.
        max_weight: largest weight of a row's gradient.

    Shapes: as :func:`comp_sum_loss`.

    Raises:
        ArgumentTypeError: at the first call, if an argument has the wrong type.
        ArgumentValueError: at the first call, if an argument is not allowed; ``tau`` at once.

    Paper: arXiv 2304.07288, sec. 2.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        tau: float = 1.0,
        temperature: float = 1.0,
        max_weight: float | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.tau = check_tau(tau)
        self.temperature = temperature
        self.max_weight = max_weight

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Loss of ``input`` (logits) and ``target``, see :func:`comp_sum_loss`."""
        return comp_sum_loss(
            input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing,
            tau=self.tau, temperature=self.temperature, max_weight=self.max_weight,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return (
            f"tau={self.tau}, temperature={self.temperature}, max_weight={self.max_weight}, "
            f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}"
        )
