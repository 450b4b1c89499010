"""Well-known members of the comp-sum family under the names they are known by."""

from __future__ import annotations

from torch import Tensor

from softgate._checks import check_number
from softgate.losses.comp_sum import LARGEST_TAU, comp_sum_loss

__all__ = ["generalized_cross_entropy", "mae_loss", "sum_exponential_loss"]


def generalized_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    q: float = 0.7,
) -> Tensor:
    """Generalised cross-entropy ``(1 - p_y^q) / q``: :func:`softgate.losses.comp_sum_loss` with ``tau = 1 + q``.

    Args:
        input: logits ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices or class probabilities, as for ``F.cross_entropy``.
        weight: weight of every class, ``(C,)``.
        ignore_index: rows with this target contribute nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``.
        q: 0 is cross-entropy, 1 mean absolute error; 0.7 is the usual choice for noisy labels.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``; in [0, 1/q].

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed.

    Example:
        >>> generalized_cross_entropy(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([1]), q=1.0)
        tensor(0.8935)

    Paper: arXiv 2304.07288, sec. 2 (1 < tau < 2); the loss itself: Zhang and Sabuncu, arXiv 1805.07836, eq. 6.
    """
    tau = 1.0 + check_number("q", q, low=0.0, high=LARGEST_TAU - 1.0)
    return comp_sum_loss(input, target, weight, ignore_index, reduction, label_smoothing, tau=tau)


def mae_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean absolute error of the probabilities, ``1 - p_y``: :func:`softgate.losses.comp_sum_loss` with ``tau = 2``.

    It is half the L1 distance between softmax and the one-hot label. Robust to wrong labels, and hard to train with
    many classes: at the start ``p_y`` is about 1/C, and so is its gradient.

    Args:
        input: logits ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices or class probabilities, as for ``F.cross_entropy``.
        weight: weight of every class, ``(C,)``.
        ignore_index: rows with this target contribute nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``; in [0, 1].

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed.

    Example:
        >>> mae_loss(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))
        tensor(0.2130)

    Paper: arXiv 2304.07288, sec. 2 (tau = 2).
    """
    return comp_sum_loss(input, target, weight, ignore_index, reduction, label_smoothing, tau=2.0)


def sum_exponential_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    max_weight: float | None = None,
) -> Tensor:
    """Sum-exponential loss ``sum_{j != y} exp(z_j - z_y)``: :func:`softgate.losses.comp_sum_loss` with ``tau = 0``.

    Args:
        input: logits ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices or class probabilities, as for ``F.cross_entropy``.
        weight: weight of every class, ``(C,)``.
        ignore_index: rows with this target contribute nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1]``.
        max_weight: largest weight ``1 / p_y`` of a row's gradient, at least 1, see
            :func:`softgate.losses.comp_sum_loss`. Without it float32 overflows at a margin of -88.

    Returns:
        0-d tensor, or row losses with ``reduction="none"``; in [0, inf].

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed.

    Example:
        >>> sum_exponential_loss(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))
        tensor(0.2707)

    Paper: arXiv 2304.07288, sec. 2 (tau = 0).
    """
    options = {"tau": 0.0, "max_weight": max_weight}
    return comp_sum_loss(input, target, weight, ignore_index, reduction, label_smoothing, **options)  # type: ignore[arg-type]
