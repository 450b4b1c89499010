"""Comp-sum losses of margins: a rival that is far enough behind costs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate._math.compress import compute_dtype
from softgate.dispatch import call
from softgate.errors import check_choice
from softgate.losses._comp_sum_phi import phi
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
from softgate.losses.comp_sum import check_tau
from softgate.registry import method, record_of

__all__ = ["CompSumMarginLoss", "comp_sum_margin_loss"]

Inner = Literal["hinge", "squared_hinge", "rho_margin"]
INNERS = ("hinge", "squared_hinge", "rho_margin")


def _price(lead: Tensor, inner: str, rho: float) -> Tensor:
    """What a rival costs that the class leads by ``lead``: ``1 - lead / rho``, at least 0; squared; or at most 1."""
    short = 1.0 - lead / rho
    if inner == "rho_margin":
        return short.clamp(0.0, 1.0)
    positive = short.clamp(min=0.0)
    return positive.square() if inner == "squared_hinge" else positive


def _no_rival(own: Tensor) -> Tensor:
    """The lead of a class over itself: endless, so that it costs nothing, but NaN stays NaN."""
    return torch.full_like(own, float("inf")).masked_fill(own.isnan(), float("nan"))


def _outer(prices: Tensor, axis: int, tau: float) -> Tensor:
    """``Phi_tau`` of their sum, which stands where ``1 / p - 1`` stands in the losses of softmax."""
    return phi(-prices.sum(axis).log1p(), tau)


def _costs(z: Tensor, axis: int, inner: str, rho: float, tau: float) -> Tensor:
    """Loss of every class as the target, from all pairs; the shape of ``z``."""
    last = z.movedim(axis, -1)
    itself = torch.eye(last.shape[-1], dtype=torch.bool, device=z.device)
    lead = torch.where(itself, _no_rival(last).unsqueeze(-1), last.unsqueeze(-1) - last.unsqueeze(-2))
    return _outer(_price(lead, inner, rho), -1, tau).movedim(-1, axis)


def _reference(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    inner: str = "hinge",
    tau: float = 1.0,
    rho: float = 1.0,
) -> Tensor:
    """``Phi_tau(sum_{j != y} price(z_y - z_j))``."""
    axis = class_axis(input)
    z = hide_ignored(input, target, ignore_index).to(compute_dtype(input.dtype))
    if not has_class_indices(target) or label_smoothing > 0.0:
        costs = _costs(z, axis, inner, rho, tau)
        return expected_cost(costs, target, weight, ignore_index, reduction, label_smoothing).to(input.dtype)
    index, keep = split_ignored(target, ignore_index)
    place = index.unsqueeze(axis)
    own = z.gather(axis, place)
    lead = (own - z).scatter(axis, place, _no_rival(own))
    rows = _outer(_price(lead, inner, rho), axis, tau)
    return reduce_rows(rows, keep, None if weight is None else weight.to(z.dtype)[index], reduction).to(input.dtype)


def _bad_inputs() -> Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, y = torch.ones(3, 4), torch.tensor([0, 3, 1])
    yield (x, y), {"inner": "exponential"}, ValueError, "inner"
    for value in (0.0, -1.0, float("inf"), float("nan")):
        yield (x, y), {"rho": value}, ValueError, "rho"
    for value in (-0.5, float("nan")):
        yield (x, y), {"tau": value}, ValueError, "tau"


@method(
    site="losses",
    family="loss",
    paper="comp-sum-losses",
    source="sec. 2: Phi_tau(sum_{j != y} Phi_2(z_y - z_j)), Phi_2 the hinge, its square or the rho-margin loss",
    reference=_reference,
    variants={
        "default": {},
        "squared": {"inner": "squared_hinge", "tau": 0.0},
        "rho_margin": {"inner": "rho_margin", "tau": 1.5, "rho": 2.0},
    },
    laws=("nonnegative", "shift_invariant", "class_permutation_invariant"),
    output_range=(0.0, float("inf")),
    bad_inputs=_bad_inputs,
)
def comp_sum_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    inner: Inner = "hinge",
    tau: float = 1.0,
    rho: float = 1.0,
) -> Tensor:
    r"""Comp-sum loss of order ``tau`` whose rivals are weighed by a margin loss instead of the exponential.

    .. math:: L = \Phi_\tau\Big(\sum_{j \ne y} \Phi_2(z_y - z_j)\Big), \qquad
              \Phi_\tau(u) = \frac{(1 + u)^{1 - \tau} - 1}{1 - \tau}, \quad \Phi_1(u) = \log(1 + u)

    with :math:`\Phi_2(u) = \max(0, 1 - u/\rho)`, its square, or :math:`\min(1, \max(0, 1 - u/\rho))`. A rival that
    the target leads by ``rho`` costs nothing and gets no gradient; under the rho-margin loss neither does one that
    leads the target, which makes it robust and hard to start with. ``tau=0`` with the hinge is the loss of Weston and
    Watkins (``torch.nn.MultiMarginLoss`` times the number of classes). :func:`softgate.losses.comp_sum_loss` is the
    member with the exponential; its value at ``temperature=rho`` is an upper bound of the rho-margin loss.

    Args:
        input: scores z ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, real floating point.
        target: class indices ``()``, ``(N,)`` or ``(N, d1, ...)``; or class probabilities of the shape of ``input``,
            for which all pairs of classes are compared in memory.
        weight: weight of every class, ``(C,)``; it multiplies the loss.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"`` (over the weights of the kept rows), ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``; mixes the losses of all classes evenly into that of the target.
        inner: ``"hinge"``, ``"squared_hinge"`` or ``"rho_margin"``.
        tau: order of the family, in [0, 1e6].
        rho: lead from which on a rival costs nothing, positive.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``, in the dtype of ``input`` (16-bit types are computed in
        float32), 0 or larger. A row where a difference of scores is NaN is NaN.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.

    Example:
        >>> scores, label = torch.tensor([[2.0, 1.5, 0.0]]), torch.tensor([0])
        >>> [round(comp_sum_margin_loss(scores, label, inner=i, tau=0.0).item(), 4) for i in ("hinge", "squared_hinge")]
        [0.5, 0.25]

    Paper: Mao, Mohri and Zhong, Cross-Entropy Loss Functions: Theoretical Analysis and Applications, arXiv 2304.07288,
    sec. 2.
    """
    check_loss_arguments(input, target, weight, ignore_index, reduction, label_smoothing)
    check_choice("inner", inner, INNERS)
    return call(
        record_of(comp_sum_margin_loss), autocast_input(input), target, weight, ignore_index, reduction,
        label_smoothing, inner=inner, tau=check_tau(tau),
        rho=check_number("rho", rho, low=0.0, low_open=True, high_open=True),
    )  # fmt: skip


class CompSumMarginLoss(nn.Module):
    """Module form of :func:`comp_sum_margin_loss`, with the arguments of ``torch.nn.CrossEntropyLoss``.

    Args:
        weight: weight of every class, ``(C,)``; kept as a buffer.
        ignore_index: rows with this target contribute neither loss nor gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``.
        inner: ``"hinge"``, ``"squared_hinge"`` or ``"rho_margin"``.
        tau: order of the family.
        rho: lead from which on a rival costs nothing.

    Shapes: as :func:`comp_sum_margin_loss`.

    Raises:
        ArgumentTypeError: at the first call, if an argument has the wrong type.
        ArgumentValueError: at the first call, if an argument is not allowed.

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
        inner: Inner = "hinge",
        tau: float = 1.0,
        rho: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index,
            "reduction": reduction,
            "label_smoothing": label_smoothing,
            "inner": inner,
            "tau": tau,
            "rho": rho,
        }

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Loss of scores ``input`` and ``target``, see :func:`comp_sum_margin_loss`."""
        return comp_sum_margin_loss(input, target, self.weight, **self.options)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
