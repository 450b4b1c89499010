"""Softmax losses with a quadratic in place of the exponential: Taylor softmax and spherical softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate._math.compress import compute_dtype, exclusive_log_softmax
from softgate.dispatch import call
from softgate.losses import _spherical, _triton_rows
from softgate.losses._quadratic_rows import QuadraticRows, log_quadratic
from softgate.losses._row_kernel import row_kernel, row_kernel_refuses
from softgate.losses._targets import (
    autocast_input,
    check_loss_arguments,
    class_axis,
    expected_cost,
    hide_ignored,
)
from softgate.registry import Kernel, method, record_of

__all__ = [
    "spherical_softmax_loss",
    "spherical_softmax_loss_from_stats",
    "taylor_softmax_loss",
    "taylor_softmax_loss_from_stats",
]


def _dense(
    shift: float,
    floor: float,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """Cross-entropy of ``p_k`` proportional to ``(o_k + shift)^2 + floor``."""
    axis = class_axis(input)
    wide = hide_ignored(input, target, ignore_index).to(compute_dtype(input.dtype))
    costs = -exclusive_log_softmax(log_quadratic(wide, shift, floor), axis)
    return expected_cost(costs, target, weight, ignore_index, reduction, label_smoothing).to(input.dtype)


def _from_stats(
    of_target: Callable[[Tensor], Tensor],
    of_all: Callable[[Tensor, Tensor], Tensor],
    stats: tuple[Tensor, Tensor, Tensor],
    target: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """``-log(of_target(a) / of_all(q, s))``; rounding of the three statistics cannot make it negative."""
    wide = [x.to(compute_dtype(x.dtype)) for x in stats]
    a, q, s = _spherical.hide_ignored_stats(wide, target, ignore_index)
    rows = (of_all(q, s).log() - of_target(a).log()).clamp(min=0.0)
    return _spherical.reduce_stats(rows, target, weight, ignore_index, reduction)


def _taylor_reference(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    # 1 + o + o^2 / 2 is half of (o + 1)^2 + 1
    return _dense(1.0, 1.0, input, target, weight, ignore_index, reduction, label_smoothing)


_taylor_blocks = row_kernel(QuadraticRows(1.0, 1.0))


@method(
    site="losses",
    family="loss",
    paper="z-loss",
    source="order-2 Taylor softmax, a competitor of the Z-loss: -log((1 + o + o^2 / 2) / sum)",
    reference=_taylor_reference,
    kernels=(
        Kernel(
            "triton",
            _triton_rows.kernel(_triton_rows.QUADRATIC, _taylor_reference, lambda: ((1.0, 1.0), 0)),
            _triton_rows.refuses,
        ),
        Kernel("blocks", _taylor_blocks, row_kernel_refuses),
    ),
    variants={"default": {}, "smoothing": {"label_smoothing": 0.1}},
    laws=("nonnegative", "class_permutation_invariant"),
    output_range=(0.0, float("inf")),
)
def taylor_softmax_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy of the Taylor softmax, the exponential of softmax expanded to second order.

    .. math:: L = -\log \frac{1 + o_y + o_y^2 / 2}{\sum_k 1 + o_k + o_k^2 / 2}

    The quadratic is at least 1/2, with its minimum at a logit of -1: logits far below -1 are likely again.

    Args:
        input: logits ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, real floating point.
        target: class indices ``()``, ``(N,)`` or ``(N, d1, ...)``, or class probabilities of the shape of ``input``.
        weight: weight of every class, ``(C,)``.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"`` (over the weights of the kept rows), ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``, in nats and in the dtype of ``input`` (16-bit types are
        computed in float32). A row with NaN or an infinity is NaN.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.

    Example:
        >>> taylor_softmax_loss(torch.tensor([[3.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(0.1625)

    Paper: de Brébisson, Vincent, The Z-loss, arXiv 1604.08859; the loss itself is from arXiv 1511.05042.
    """
    check_loss_arguments(input, target, weight, ignore_index, reduction, label_smoothing)
    record = record_of(taylor_softmax_loss)
    return call(record, autocast_input(input), target, weight, ignore_index, reduction, label_smoothing)


def _taylor_stats_reference(
    a: Tensor,
    q: Tensor,
    s: Tensor,
    num_classes: int,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    return _from_stats(
        lambda o: 0.5 * ((o + 1.0).square() + 1.0),
        lambda squares, total: num_classes + total + 0.5 * squares,
        (a, q, s),
        target,
        weight,
        ignore_index,
        reduction,
    )


@method(
    site="losses",
    family="custom",
    paper="z-loss",
    source="order-2 Taylor softmax from the target logit, the sum of squares and the sum of the logits",
    reference=_taylor_stats_reference,
    samples=_spherical.stats_samples,
    variants={"default": {}, "none": {"reduction": "none"}},
    output_range=(0.0, float("inf")),
    bad_inputs=_spherical.bad_stats,
)
def taylor_softmax_loss_from_stats(
    a: Tensor,
    q: Tensor,
    s: Tensor,
    num_classes: int,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Taylor softmax loss from what a spherical head returns: ``-log((1 + a + a²/2) / (D + s + q/2))``.

    Args:
        a: logit of the target of every row, any shape, real floating point.
        q: sum of the squares of all logits of the row, same shape and dtype.
        s: sum of all logits of the row, same shape and dtype.
        num_classes: number of logits D behind ``q`` and ``s``.
        target: class indices of the shape of ``a``; only needed for ``weight`` and to leave out ignored rows.
        weight: weight of every class, ``(D,)``.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"`` (over the weights of the kept rows; NaN if none is kept), ``"sum"`` or ``"none"``.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``, in nats, float32 for 16-bit statistics.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.

    Example:
        >>> o = torch.tensor([[3.0, 0.0, -1.0]])
        >>> taylor_softmax_loss_from_stats(o[:, 0], o.square().sum(1), o.sum(1), 3)
        tensor(0.1625)

    Paper: de Brébisson, Vincent, The Z-loss, arXiv 1604.08859.
    """
    _spherical.check_stats(a, q, s, num_classes, target, weight, ignore_index, reduction)
    record = record_of(taylor_softmax_loss_from_stats)
    return call(record, a, q, s, num_classes, target, weight, ignore_index, reduction)


def _spherical_reference(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    eps: float = 0.1,
) -> Tensor:
    return _dense(0.0, eps, input, target, weight, ignore_index, reduction, label_smoothing)


def _spherical_blocks(*args: Any, eps: float = 0.1) -> Tensor:
    return row_kernel(QuadraticRows(0.0, eps))(*args)


def _check_eps(eps: Any) -> None:
    check_number("eps", eps, low=0.0, low_open=True, high_open=True)


def _bad_eps() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    for value in (0.0, -1.0, float("inf"), float("nan"), None):
        yield (torch.ones(3, 4), torch.tensor([0, 3, 1])), {"eps": value}, Exception, "eps"


@method(
    site="losses",
    family="loss",
    paper="z-loss",
    source="spherical softmax, a competitor of the Z-loss: -log((o^2 + eps) / sum)",
    reference=_spherical_reference,
    kernels=(
        Kernel(
            "triton",
            _triton_rows.kernel(_triton_rows.QUADRATIC, _spherical_reference, lambda eps=0.1: ((0.0, eps), 0)),
            _triton_rows.refuses,
        ),
        Kernel("blocks", _spherical_blocks, row_kernel_refuses),
    ),
    variants={"default": {}, "smoothing": {"eps": 1e-3, "label_smoothing": 0.1}},
    laws=("nonnegative", "class_permutation_invariant"),
    output_range=(0.0, float("inf")),
    bad_inputs=_bad_eps,
)
def spherical_softmax_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    eps: float = 0.1,
) -> Tensor:
    r"""Cross-entropy of the spherical softmax, the squares of the logits normalised to sum to one.

    .. math:: L = -\log \frac{o_y^2 + \epsilon}{\sum_k o_k^2 + \epsilon}

    The sign of a logit does not matter.

    Args:
        input: logits ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, real floating point.
        target: class indices ``()``, ``(N,)`` or ``(N, d1, ...)``, or class probabilities of the shape of ``input``.
        weight: weight of every class, ``(C,)``.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"`` (over the weights of the kept rows), ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``.
        eps: added to every square, positive; bounds the gradient by ``1 / sqrt(eps)``.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``, in nats and in the dtype of ``input`` (16-bit types are
        computed in float32). A row with NaN or an infinity is NaN.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.

    Example:
        >>> spherical_softmax_loss(torch.tensor([[3.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(0.1239)

    Paper: de Brébisson, Vincent, The Z-loss, arXiv 1604.08859; the loss itself is from arXiv 1511.05042.
    """
    check_loss_arguments(input, target, weight, ignore_index, reduction, label_smoothing)
    _check_eps(eps)
    record = record_of(spherical_softmax_loss)
    return call(record, autocast_input(input), target, weight, ignore_index, reduction, label_smoothing, eps=eps)


def _spherical_stats_reference(
    a: Tensor,
    q: Tensor,
    s: Tensor,
    num_classes: int,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    eps: float = 0.1,
) -> Tensor:
    return _from_stats(
        lambda o: o.square() + eps,
        # the sum does not enter; multiplied by 0 it keeps the gradient defined for every statistic
        lambda squares, total: squares + num_classes * eps + 0.0 * total,
        (a, q, s),
        target,
        weight,
        ignore_index,
        reduction,
    )


@method(
    site="losses",
    family="custom",
    paper="z-loss",
    source="spherical softmax from the target logit and the sum of squares of the logits",
    reference=_spherical_stats_reference,
    samples=_spherical.stats_samples,
    variants={"default": {}, "none": {"reduction": "none", "eps": 1e-3}},
    output_range=(0.0, float("inf")),
    bad_inputs=_spherical.bad_stats,
)
def spherical_softmax_loss_from_stats(
    a: Tensor,
    q: Tensor,
    s: Tensor,
    num_classes: int,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    eps: float = 0.1,
) -> Tensor:
    r"""Spherical softmax loss from what a spherical head returns: ``-log((a² + ε) / (q + D ε))``.

    Args:
        a: logit of the target of every row, any shape, real floating point.
        q: sum of the squares of all logits of the row, same shape and dtype.
        s: sum of all logits of the row, same shape and dtype; accepted so that all members of the family are called
            alike.
        num_classes: number of logits D behind ``q``.
        target: class indices of the shape of ``a``; only needed for ``weight`` and to leave out ignored rows.
        weight: weight of every class, ``(D,)``.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"`` (over the weights of the kept rows; NaN if none is kept), ``"sum"`` or ``"none"``.
        eps: added to every square, positive.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``, in nats, float32 for 16-bit statistics.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.

    Example:
        >>> o = torch.tensor([[3.0, 0.0, -1.0]])
        >>> spherical_softmax_loss_from_stats(o[:, 0], o.square().sum(1), o.sum(1), 3)
        tensor(0.1239)

    Paper: de Brébisson, Vincent, The Z-loss, arXiv 1604.08859.
    """
    _spherical.check_stats(a, q, s, num_classes, target, weight, ignore_index, reduction)
    _check_eps(eps)
    record = record_of(spherical_softmax_loss_from_stats)
    return call(record, a, q, s, num_classes, target, weight, ignore_index, reduction, eps=eps)
