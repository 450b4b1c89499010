"""The Z-loss: a classification loss on standardised logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from softgate._checks import check_number
from softgate._math.compress import compute_dtype
from softgate.dispatch import call
from softgate.losses import _spherical, _triton_rows
from softgate.losses._hinge_kernel import kernel_rows
from softgate.losses._row_kernel import row_kernel_refuses
from softgate.losses._standard_score_rows import StandardScores
from softgate.losses._targets import (
    autocast_input,
    check_loss_arguments,
    class_axis,
    expected_cost,
    hide_ignored,
    reduce_rows,
    split_ignored,
)
from softgate.registry import Kernel, method, record_of

__all__ = ["ZLoss", "z_loss", "z_loss_from_stats"]


def _check_shape_of_loss(alpha: Any, b: Any, eps: Any) -> None:
    check_number("alpha", alpha, low=0.0, low_open=True, high_open=True)
    check_number("b", b, low_open=True, high_open=True)
    check_number("eps", eps, low=0.0, high_open=True)


def _softplus_cost(z: Tensor, alpha: float, b: float) -> Tensor:
    """``log(1 + exp(alpha (b - z))) / alpha`` without overflow and without a threshold.

    By the log-sigmoid, whose bits do not depend on where in the tensor an entry lies, as those of logaddexp do.
    """
    return -logsigmoid(alpha * (z - b)) / alpha


def standard_scores(logits: Tensor, axis: int, eps: float) -> Tensor:
    """``(o - mean) / (standard deviation + eps)`` along ``axis``; a row of equal logits gives zeros.

    The row is first moved to a maximum of 0 and divided by its range. Both cancel in the result and keep equal logits
    exactly equal, a large common offset out of the rounding, and squares from overflow or underflow.
    """
    below = logits - logits.detach().amax(axis, keepdim=True)
    size = -below.detach().amin(axis, keepdim=True)
    flat = size == 0.0
    size = torch.where(flat, 1.0, size)
    scaled = below / size
    centred = scaled - scaled.mean(axis, keepdim=True)
    variance = centred.square().mean(axis, keepdim=True)
    sigma = torch.where(flat, 1.0, variance).sqrt()
    return centred / (sigma + eps / size)


def _reference(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    alpha: float = 1.0,
    b: float = 0.0,
    eps: float = 1e-12,
) -> Tensor:
    axis = class_axis(input)
    wide = hide_ignored(input, target, ignore_index).to(compute_dtype(input.dtype))
    costs = _softplus_cost(standard_scores(wide, axis, eps), alpha, b)
    return expected_cost(costs, target, weight, ignore_index, reduction, label_smoothing).to(input.dtype)


def _target_scores(logits: Tensor, place: Tensor, eps: float) -> Tensor:
    return standard_scores(logits, 1, eps).gather(1, place).squeeze(1)


def _blocks(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    alpha: float = 1.0,
    b: float = 0.0,
    eps: float = 1e-12,
) -> Tensor:
    """The standard scores of the targets alone."""
    index, keep = split_ignored(target, ignore_index)
    everything = bool(keep.all())
    if not everything:
        # what stands in ignored rows reaches nothing; equal logits would need the general path
        axis = class_axis(input)
        numbers = torch.arange(input.shape[axis], dtype=input.dtype).reshape((-1,) + (1,) * (input.ndim - axis - 1))
        input = torch.where(keep.unsqueeze(axis), input, numbers)
    rows = _softplus_cost(kernel_rows(StandardScores, input, index, eps, _target_scores), alpha, b)
    row_weight = None if weight is None else weight.to(rows.dtype)[index]
    return reduce_rows(rows, None if everything else keep, row_weight, reduction).to(input.dtype)


def _refuses(kernel: Callable[..., str | None], input: Tensor, *args: Any, **kwargs: Any) -> str | None:
    if input.shape[class_axis(input)] <= 2:
        return "of two classes the scores are constants, and their gradients nothing but rounding"
    return kernel(input, *args, **kwargs)


def _numbers(alpha: float = 1.0, b: float = 0.0, eps: float = 1e-12) -> tuple[tuple[float, ...], int]:
    return (alpha, b, eps), 0


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, y = torch.ones(3, 4), torch.tensor([0, 3, 1])
    for name, values in (
        ("alpha", (0.0, -1.0, float("inf"), float("nan"), None)),
        ("b", (float("inf"), float("nan"), None)),
        ("eps", (-1e-3, float("nan"), None)),
    ):
        for value in values:
            yield (x, y), {name: value}, Exception, name


@method(
    site="losses",
    family="loss",
    paper="z-loss",
    source="the Z-loss: softplus(a (b - z)) / a of the standardised target logit",
    reference=_reference,
    kernels=(
        Kernel(
            "triton",
            _triton_rows.kernel(_triton_rows.STANDARD, _reference, _numbers),
            partial(_refuses, _triton_rows.refuses),
        ),
        Kernel("blocks", _blocks, partial(_refuses, row_kernel_refuses)),
    ),
    variants={
        "default": {},
        "sharp": {"alpha": 4.0, "b": 1.5},
        "smoothing": {"alpha": 0.1, "b": 28.0, "label_smoothing": 0.1},
    },
    laws=("nonnegative", "class_permutation_invariant"),
    output_range=(0.0, float("inf")),
    bad_inputs=_bad_inputs,
    deviations=(
        "a row of equal logits, whose deviation is 0, counts as z = 0 with deviation 1: loss and gradient stay finite, "
        "where the authors' code divides by 1e-12",
        "the default reduction is the mean, as in F.cross_entropy; the authors' code sums over the batch",
        "probabilities as the target and label smoothing, which the paper does not have, give the expected loss of a "
        "label drawn from that distribution",
    ),
)
def z_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    alpha: float = 1.0,
    b: float = 0.0,
    eps: float = 1e-12,
) -> Tensor:
    r"""Z-loss of dense logits: the target's standard score should be large, whatever the logits' offset and scale.

    .. math:: L = \frac{1}{\alpha} \log\bigl(1 + e^{\alpha (b - z)}\bigr), \qquad
              z = \frac{o_y - \mu}{\sigma}

    with the mean and the (population) standard deviation over all C logits of the row. Adding a constant to a row or
    multiplying it by a positive number changes nothing, so the loss only looks at the target's place among the others.
    z cannot exceed ``sqrt(C - 1)``: choose ``b`` below that. This is **not** the "z-loss" of mixture-of-experts
    routers, a penalty on ``logsumexp**2``.

    The loss depends on the logits only through their sum, their sum of squares and the target's logit, which
    :class:`softgate.losses.FactoredSphericalLinear` uses to train a head without ever forming the logits.

    Args:
        input: logits ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, real floating point.
        target: class indices ``()``, ``(N,)`` or ``(N, d1, ...)``, or class probabilities of the shape of ``input``,
            which give the expected loss.
        weight: weight of every class, ``(C,)``.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"`` (over the weights of the kept rows), ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``; mixes in the mean loss over all classes.
        alpha: sharpness, positive; the loss tends to the hinge ``max(0, b - z)`` as it grows.
        b: standard score that the target should reach.
        eps: added to the standard deviation, not negative.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``, not negative, in the dtype of ``input`` (16-bit types are
        computed in float32). A row of equal logits has z = 0; a row with NaN or an infinity is NaN.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.

    Example:
        >>> z_loss(torch.tensor([[3.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(0.2259)

    Paper: de Brébisson, Vincent, The Z-loss, arXiv 1604.08859.
    """
    check_loss_arguments(input, target, weight, ignore_index, reduction, label_smoothing)
    _check_shape_of_loss(alpha, b, eps)
    return call(
        record_of(z_loss),
        autocast_input(input),
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        alpha=alpha,
        b=b,
        eps=eps,
    )


class ZLoss(nn.Module):
    """Module form of :func:`z_loss`, with the arguments of ``torch.nn.CrossEntropyLoss``.

    Args:
        weight: weight of every class, ``(C,)``; kept as a buffer.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``.
        alpha: sharpness.
        b: standard score that the target should reach.
        eps: added to the standard deviation.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        alpha: float = 1.0,
        b: float = 0.0,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        _check_shape_of_loss(alpha, b, eps)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.alpha, self.b, self.eps = alpha, b, eps

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Loss of ``input`` (logits) and ``target``, see :func:`z_loss`."""
        return z_loss(
            input,
            target,
            self.weight,
            self.ignore_index,
            self.reduction,
            self.label_smoothing,
            alpha=self.alpha,
            b=self.b,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return (
            f"alpha={self.alpha}, b={self.b}, reduction={self.reduction!r}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}"
        )


def _stats_reference(
    a: Tensor,
    q: Tensor,
    s: Tensor,
    num_classes: int,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    alpha: float = 1.0,
    b: float = 0.0,
    eps: float = 1e-12,
) -> Tensor:
    wide = [x.to(compute_dtype(x.dtype)) for x in (a, q, s)]
    a, q, s = _spherical.hide_ignored_stats(wide, target, ignore_index)
    mean, square = s / num_classes, q / num_classes
    variance = square - mean.square()
    # below the rounding of the difference there is nothing but rounding: such a row counts as equal logits
    flat = variance <= 4.0 * torch.finfo(q.dtype).eps * square
    z = (a - mean) / (torch.where(flat, 1.0, variance).sqrt() + eps)
    rows = _softplus_cost(z, alpha, b)
    return _spherical.reduce_stats(rows, target, weight, ignore_index, reduction)


@method(
    site="losses",
    family="custom",
    paper="z-loss",
    source="the Z-loss of the target logit, the sum of squares and the sum of the logits",
    reference=_stats_reference,
    samples=_spherical.stats_samples,
    variants={"default": {}, "sharp": {"alpha": 4.0, "b": 1.5, "reduction": "none"}},
    output_range=(0.0, float("inf")),
    bad_inputs=_spherical.bad_stats,
)
def z_loss_from_stats(
    a: Tensor,
    q: Tensor,
    s: Tensor,
    num_classes: int,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    alpha: float = 1.0,
    b: float = 0.0,
    eps: float = 1e-12,
) -> Tensor:
    r"""Z-loss from what a spherical head returns: the target's logit, the sum of squares and the sum of all logits.

    With :math:`\mu = s / D`, :math:`\sigma^2 = q / D - \mu^2` and :math:`p` the sigmoid of :math:`\alpha (b - z)`, the
    gradients of a row are :math:`g_a = -p / \sigma`, :math:`g_q = p z / (2 D \sigma^2)` and
    :math:`g_s = (p / D)(1 / \sigma - z \mu / \sigma^2)`.

    Args:
        a: logit of the target of every row, any shape, real floating point.
        q: sum of the squares of all logits of the row, same shape and dtype.
        s: sum of all logits of the row, same shape and dtype.
        num_classes: number of logits D behind ``q`` and ``s``.
        target: class indices of the shape of ``a``; only needed for ``weight`` and to leave out ignored rows.
        weight: weight of every class, ``(D,)``.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"`` (over the weights of the kept rows; NaN if none is kept), ``"sum"`` or ``"none"``.
        alpha: sharpness, positive.
        b: standard score that the target should reach, below ``sqrt(D - 1)``.
        eps: added to the standard deviation, not negative.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``, not negative, float32 for 16-bit statistics, which cannot
        hold a variance. A row whose variance is lost in rounding counts as equal logits.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.

    Example:
        >>> o = torch.tensor([[3.0, 0.0, -1.0]])
        >>> z_loss_from_stats(o[:, 0], o.square().sum(1), o.sum(1), 3)
        tensor(0.2259)

    Paper: de Brébisson, Vincent, The Z-loss, arXiv 1604.08859.
    """
    _spherical.check_stats(a, q, s, num_classes, target, weight, ignore_index, reduction)
    _check_shape_of_loss(alpha, b, eps)
    options = {"alpha": alpha, "b": b, "eps": eps}
    return call(record_of(z_loss_from_stats), a, q, s, num_classes, target, weight, ignore_index, reduction, **options)
