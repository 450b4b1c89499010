"""Multiclass support vector loss of Crammer and Singer: the target against its strongest rival."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softgate._math.compress import compute_dtype
from softgate.dispatch import call
from softgate.losses._hinge_kernel import CrammerSingerRows, hinge_kernel_refuses
from softgate.losses._margin import (
    MarginLoss,
    check_head_weight,
    check_margin_options,
    hinge_of,
    objective,
    rows_of_indices,
)
from softgate.losses._targets import (
    autocast_input,
    check_loss_arguments,
    class_axis,
    expected_cost,
    has_class_indices,
)
from softgate.losses.svm import Hinge, Regularizer
from softgate.registry import Kernel, method, record_of

__all__ = ["CrammerSingerLoss", "crammer_singer_loss"]


def _lead_lost(f: Tensor, place: Tensor, margin: float, hinge: str, axis: int = 1) -> Tensor:
    """``hinge(margin + max_{k != y} f_k - f_y)``, y at ``place``; of tied rivals one is pushed; keeps ``axis``."""
    if f.shape[axis] == 1:
        return f.masked_fill(torch.ones_like(f, dtype=torch.bool), 0.0)
    rival = f.detach().scatter(axis, place, float("-inf")).argmax(axis, keepdim=True)
    return hinge_of(margin + (f.gather(axis, rival) - f.gather(axis, place)), hinge)


def _loss(
    by_kernel: bool,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    C: float = 1.0,
    margin: float = 1.0,
    hinge: str = "linear",
    head_weight: Tensor | None = None,
    reg: str | None = "sum_half",
) -> Tensor:
    """``C max(0, margin + max_{k != y} f_k - f_y)``, weighted and reduced, plus the penalty."""
    keep = row_weight = None
    if has_class_indices(target):
        rows, keep, row_weight = rows_of_indices(
            by_kernel, CrammerSingerRows, _lead_lost, input, target, weight, ignore_index, margin, hinge
        )
    else:
        f = input.to(compute_dtype(input.dtype))
        costs = hinge_of(margin + (_strongest_rivals(f, class_axis(f)) - f), hinge)
        rows = expected_cost(costs, target.detach(), weight, ignore_index, "none", 0.0)
    return objective(C * rows, keep, row_weight, reduction, head_weight, reg).to(input.dtype)


_reference = partial(_loss, False)


def _strongest_rivals(f: Tensor, axis: int) -> Tensor:
    """For every class the largest score of the others: the second largest for the best class, else the largest."""
    if f.shape[axis] == 1:
        return torch.full_like(f, float("-inf"))
    two = f.topk(2, axis)
    best, second = two.values.split(1, axis)
    is_best = torch.zeros_like(f, dtype=torch.bool).scatter(axis, two.indices.narrow(axis, 0, 1), True)
    return torch.where(is_best, second, best)


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    def scores(*shape: int) -> Tensor:
        return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    yield (scores(3, 4), torch.tensor([0, 3, 1])), {"head_weight": scores(4, 6), "C": 0.3}
    yield (scores(3, 4), torch.tensor([2, 2, 0])), {"head_weight": scores(4, 6), "reg": "mean", "margin": 0.5}


def _bad_inputs() -> Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, y = torch.ones(3, 4), torch.tensor([0, 3, 1])
    for value in (0.0, -1.0, float("inf"), float("nan")):
        yield (x, y), {"C": value}, ValueError, "C"
        yield (x, y), {"margin": value}, ValueError, "margin"
    yield (x, y), {"head_weight": torch.ones(4, 2), "reduction": "none"}, ValueError, "head_weight"
    yield (x, y), {"head_weight": [1.0]}, TypeError, "head_weight"


@method(
    site="losses",
    family="loss",
    paper="cnn-svm",
    source="Crammer and Singer 2001: max(0, 1 + max_{k != y} f_k - f_y), the multiclass sibling of the paper's loss",
    reference=_reference,
    kernels=(Kernel("blocks", partial(_loss, True), hinge_kernel_refuses),),
    variants={"default": {}, "squared": {"hinge": "squared", "C": 0.5}},
    laws=("nonnegative", "class_permutation_invariant"),
    output_range=(0.0, float("inf")),
    samples=_samples,
    bad_inputs=_bad_inputs,
    deviations=("the mean over no samples is 0, where F.cross_entropy gives NaN: only the penalty is left",),
)
def crammer_singer_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    C: float = 1.0,
    margin: float = 1.0,
    hinge: Hinge = "linear",
    head_weight: Tensor | None = None,
    reg: Regularizer | None = "sum_half",
) -> Tensor:
    r"""Hinge of the target's lead over its strongest rival, with the shapes of ``F.cross_entropy``.

    .. math:: L = \mathrm{reg}(W) + C \sum_n \max(0, m + \max_{k \ne y_n} f_{nk} - f_{n y_n})

    Unlike the one-vs-rest loss it does not change when one number is added to all scores of a row, and it pushes only
    two scores of a row at a time. ``torch.nn.MultiMarginLoss`` sums over all rivals instead (Weston and Watkins).

    Args:
        input: scores f ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, real floating point.
        target: class indices ``()``, ``(N,)`` or ``(N, d1, ...)``; or class probabilities of the shape of ``input``,
            for which the expected loss is taken. The target gets no gradient.
        weight: weight of every class, ``(C,)``.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"`` (over the weights of the kept rows; 0 if there are none), ``"sum"`` or ``"none"``.
        C: weight of the hinge loss against the penalty, positive.
        margin: m, positive.
        hinge: ``"linear"`` or ``"squared"``.
        head_weight: weights of the layer that made the scores, any shape; None adds no penalty.
        reg: penalty on ``head_weight``: ``"sum_half"``, ``"mean"`` or None.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``, in the dtype of ``input`` (16-bit types are computed in
        float32). NaN scores give NaN; a single class has no rival and costs 0.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.

    Example:
        >>> crammer_singer_loss(torch.tensor([[2.0, 1.5, 0.0]]), torch.tensor([0]))
        tensor(0.5000)

    Paper: Crammer and Singer, JMLR 2001; beside the one-vs-rest loss of arXiv 1712.03541.
    """
    check_loss_arguments(input, target, weight, ignore_index, reduction)
    check_margin_options(C, margin, hinge, reg)
    check_head_weight(head_weight, input, reduction)
    return call(
        record_of(crammer_singer_loss), autocast_input(input), target, weight, ignore_index, reduction,
        C=C, margin=margin, hinge=hinge, head_weight=head_weight, reg=reg,
    )  # fmt: skip


class CrammerSingerLoss(MarginLoss):
    """Module form of :func:`crammer_singer_loss`; ``forward(input, target, head_weight=None)``.

    Args:
        weight: weight of every class, ``(C,)``; kept as a buffer.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        C: weight of the hinge loss.
        margin: positive.
        hinge: ``"linear"`` or ``"squared"``.
        reg: penalty on the ``head_weight`` given to ``forward``.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        *,
        C: float = 1.0,
        margin: float = 1.0,
        hinge: Hinge = "linear",
        reg: Regularizer | None = "sum_half",
    ) -> None:
        options = {"C": C, "margin": margin, "hinge": hinge, "reg": reg}
        super().__init__(crammer_singer_loss, weight, ignore_index=ignore_index, reduction=reduction, **options)
