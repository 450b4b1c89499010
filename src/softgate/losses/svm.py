"""One-vs-rest support vector loss: the squared hinge of every class against the rest."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from softgate._math.compress import compute_dtype
from softgate.dispatch import call, transform_reason
from softgate.errors import ArgumentValueError, check_choice
from softgate.losses import _triton_rows
from softgate.losses._hinge_kernel import OneVsRestRows, hinge_kernel_refuses
from softgate.losses._margin import (
    MarginLoss,
    check_head_weight,
    check_margin_options,
    hinge_of,
    objective,
    penalty_of,
    rows_of_indices,
)
from softgate.losses._targets import (
    autocast_input,
    check_loss_arguments,
    class_axis,
    has_class_indices,
)
from softgate.registry import Kernel, method, record_of

__all__ = ["L2SVMLoss", "l2_svm_loss"]

Hinge = Literal["squared", "linear"]
Regularizer = Literal["sum_half", "mean"]


def _margins_kept(f: Tensor, place: Tensor, margin: float, hinge: str, axis: int = 1) -> Tensor:
    """``sum_k hinge(margin - y_k f_k)``, y_k = 1 for the class at ``place`` and -1 for all others; keeps ``axis``."""
    signed = f.scatter(axis, place, -f.gather(axis, place))
    return hinge_of(margin + signed, hinge).sum(axis, keepdim=True)


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
    hinge: str = "squared",
    over_classes: str = "sum",
    head_weight: Tensor | None = None,
    reg: str | None = "sum_half",
) -> Tensor:
    """``C sum_k max(0, margin - y_k f_k)^2``, weighted and reduced, plus the penalty."""
    axis = class_axis(input)
    keep = row_weight = None
    if has_class_indices(target):
        rows, keep, row_weight = rows_of_indices(
            by_kernel, OneVsRestRows, _margins_kept, input, target, weight, ignore_index, margin, hinge
        )
    else:
        rows = _expected_hinge(input.to(compute_dtype(input.dtype)), target, margin, hinge).sum(axis)
    scale = C if over_classes == "sum" else C / input.shape[axis]
    return objective(scale * rows, keep, row_weight, reduction, head_weight, reg).to(input.dtype)


_reference = partial(_loss, False)


def _triton(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    C: float = 1.0,
    margin: float = 1.0,
    hinge: str = "squared",
    over_classes: str = "sum",
    head_weight: Tensor | None = None,
    reg: str | None = "sum_half",
) -> Tensor:
    """Row losses, their reduction and its gradient in two launches; the penalty is left to torch."""
    plain = partial(
        _reference, target=target, weight=weight, ignore_index=ignore_index, reduction=reduction,
        C=C, margin=margin, hinge=hinge, over_classes=over_classes,
    )  # fmt: skip
    scale = C if over_classes == "sum" else C / input.shape[class_axis(input)]
    wide = input.dtype if head_weight is None else compute_dtype(input.dtype)
    loss = _triton_rows.run(
        _triton_rows.HINGE, lambda x: plain(x.to(wide)), input, target, weight, ignore_index,
        "mean or 0" if reduction == "mean" else reduction,
        numbers=(margin, scale), mode=int(hinge == "squared"), dtype=wide,
    )  # fmt: skip
    if head_weight is None:
        return loss
    return (loss + penalty_of(head_weight, reg).to(loss.dtype)).to(input.dtype)


def _expected_hinge(f: Tensor, target: Tensor, margin: float, hinge: str) -> Tensor:
    """Cost of every class whose label is +1 with probability t and else -1; a signed target -1 is t = 0."""
    t = target.detach().to(f.dtype).clamp(min=0.0)
    # Where a side has probability 0 the score is replaced by one that costs nothing: 0 * inf would be NaN.
    toward = hinge_of(margin - torch.where(t == 0.0, margin, f), hinge)
    away = hinge_of(margin + torch.where(t == 1.0, -margin, f), hinge)
    return t * toward + (1.0 - t) * away


def _check_labels(input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """Raise unless a floating-point target holds memberships in [0, 1] or signs, and no class weights come with it."""
    if has_class_indices(target):
        return
    if weight is not None:
        raise ArgumentValueError("weight needs a target of class indices, got one label for every class")
    if target.is_cpu and target.numel() and transform_reason(input, target) is None:
        share = (target >= 0.0) & (target <= 1.0)
        if bool(share.all()) or bool((target.abs() == 1.0).all()):
            return
        values = ", ".join(f"{value:g}" for value in target.flatten().unique()[:5].tolist())
        raise ArgumentValueError(f"target of one label for every class must hold numbers in [0, 1], or only -1 and 1, "
                                 f"got {values}")  # fmt: skip


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    def scores(*shape: int) -> Tensor:
        return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    labels = torch.tensor([0, 3, 1])
    yield (scores(3, 4), labels), {"head_weight": scores(4, 6), "C": 0.3}
    yield (scores(3, 4), labels), {"head_weight": scores(4, 6), "reg": "mean", "over_classes": "mean"}
    yield (scores(3, 4), (scores(3, 4) > 0).to(dtype)), {"reduction": "none"}
    yield (scores(3, 4), (scores(3, 4) > 0).to(dtype) * 2 - 1), {"margin": 0.5}
    yield (scores(6, 1), (scores(6, 1) > 0).to(dtype) * 2 - 1), {"reduction": "sum"}


def _bad_inputs() -> Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, y, multi = torch.ones(3, 4), torch.tensor([0, 3, 1]), torch.ones(3, 4)
    for value in (0.0, -1.0, float("inf"), float("nan")):
        yield (x, y), {"C": value}, ValueError, "C"
        yield (x, y), {"margin": value}, ValueError, "margin"
    for value in (-0.5, 2.0, float("nan")):
        yield (x, multi * value), {}, ValueError, "target"
    yield (x, torch.tensor([[1.0, -1.0, 0.5, 0.0]] * 3)), {}, ValueError, "target"
    yield (x, multi), {"weight": torch.ones(4)}, ValueError, "weight"
    yield (x, y), {"head_weight": torch.ones(4, 2), "reduction": "none"}, ValueError, "head_weight"
    yield (x, y), {"head_weight": torch.ones(4, 2).long()}, TypeError, "head_weight"


@method(
    site="losses",
    family="loss",
    paper="gru-svm",
    source="L = reg(W) + C sum_n sum_k max(0, 1 - y_nk f_nk)^2 (sums: GRU-SVM, arXiv 1709.03082; means: CNN-SVM)",
    reference=_reference,
    kernels=(
        Kernel("triton", _triton, _triton_rows.refuses),
        Kernel("blocks", partial(_loss, True), hinge_kernel_refuses),
    ),
    variants={"default": {}, "sum": {"reduction": "sum", "C": 0.5}, "linear": {"hinge": "linear", "margin": 0.5}},
    laws=("nonnegative", "class_permutation_invariant"),
    output_range=(0.0, float("inf")),
    samples=_samples,
    bad_inputs=_bad_inputs,
    deviations=(
        "the mean over no samples is 0, where F.cross_entropy gives NaN: only the penalty is left",
        "the authors' code divides by the number of classes too: over_classes='mean', reg='mean'",
    ),
)
def l2_svm_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    C: float = 1.0,
    margin: float = 1.0,
    hinge: Hinge = "squared",
    over_classes: Literal["sum", "mean"] = "sum",
    head_weight: Tensor | None = None,
    reg: Regularizer | None = "sum_half",
) -> Tensor:
    r"""One-vs-rest hinge loss of class scores, with the shapes of ``torch.nn.functional.cross_entropy``.

    .. math:: L = \mathrm{reg}(W) + C \sum_n \sum_k \max(0, m - y_{nk} f_{nk})^2, \qquad y_{nk} = \pm 1

    The sum over n is taken as ``reduction`` says. GRU-SVM's objective is ``reduction="sum"`` with
    ``reg="sum_half"``, that of ``sklearn.svm.LinearSVC`` without intercept too; CNN-SVM's is ``reduction="mean"``,
    ``over_classes="mean"``, ``reg="mean"``. Scores are no probabilities: predict with ``argmax`` over them. The loss
    and its first derivative are continuous; both vanish where every margin is kept.

    Args:
        input: scores f ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, real floating point.
        target: class indices ``()``, ``(N,)`` or ``(N, d1, ...)``; or one label for every class, of the shape and a
            floating-point dtype of ``input``: numbers in [0, 1] (several classes may be 1; between 0 and 1 the expected
            loss is taken), or -1 and 1. One score column with signed labels is the binary machine. The target gets no
            gradient.
        weight: weight of every class, ``(C,)``, for class indices only.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"`` (over the weights of the kept rows; 0 if there are none), ``"sum"`` or ``"none"``.
        C: weight of the hinge loss against the penalty, positive.
        margin: m, positive.
        hinge: ``"squared"`` (L2-SVM) or ``"linear"`` (L1-SVM, not differentiable at the margin).
        over_classes: ``"sum"`` or ``"mean"`` of the classes of a row.
        head_weight: weights W of the layer that made the scores (without its bias), any shape; None adds no penalty.
        reg: penalty on ``head_weight``: ``"sum_half"`` (half the sum of squares), ``"mean"`` (of squares) or None.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``, in the dtype of ``input`` (16-bit types are computed in
        float32). NaN scores give NaN.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a label is not allowed, or an option is not.

    Example:
        >>> l2_svm_loss(torch.tensor([[2.0, -0.5, 0.0]]), torch.tensor([0]))
        tensor(1.2500)

    Paper: arXiv 1712.03541 (CNN-SVM) and arXiv 1709.03082 (GRU-SVM), after Tang 2013.
    """
    check_loss_arguments(input, target, weight, ignore_index, reduction)
    check_margin_options(C, margin, hinge, reg)
    check_choice("over_classes", over_classes, ("sum", "mean"))
    check_head_weight(head_weight, input, reduction)
    _check_labels(input, target, weight)
    options = {"C": C, "margin": margin, "hinge": hinge, "over_classes": over_classes}
    return call(
        record_of(l2_svm_loss), autocast_input(input), target, weight, ignore_index, reduction,
        head_weight=head_weight, reg=reg, **options,
    )  # fmt: skip


class L2SVMLoss(MarginLoss):
    """Module form of :func:`l2_svm_loss`.

    ``forward(input, target, head_weight=None)``; :class:`SVMHead` owns its weights and adds the penalty by itself.

    Args:
        weight: weight of every class, ``(C,)``; kept as a buffer.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        C: weight of the hinge loss.
        margin: positive.
        hinge: ``"squared"`` or ``"linear"``.
        over_classes: ``"sum"`` or ``"mean"``.
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
        hinge: Hinge = "squared",
        over_classes: Literal["sum", "mean"] = "sum",
        reg: Regularizer | None = "sum_half",
    ) -> None:
        options = {"C": C, "margin": margin, "hinge": hinge, "over_classes": over_classes, "reg": reg}
        super().__init__(l2_svm_loss, weight, ignore_index=ignore_index, reduction=reduction, **options)
