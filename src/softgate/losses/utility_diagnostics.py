"""What maximum likelihood does to utilities, and how far a model's probabilities lag behind its order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["mle_utility_step", "ordinal_accuracy", "sampling_gap"]


def mle_utility_step(logits: Tensor, target: Tensor) -> Tensor:
    """Direction in which one step of maximum likelihood moves the utilities, ``1[y = y*] - softmax(f)``.

    It is the expectation of "raise y*, lower y'" over alternatives y' drawn from the model itself: a preference update.

    Args:
        logits: utilities (..., V).
        target: observed choices, class indices (...).

    Returns:
        Directions, same shape and dtype as ``logits``; each sums to 0.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: the shapes do not fit, or a target is out of range.

    Example:
        >>> mle_utility_step(torch.zeros(1, 2), torch.tensor([0]))
        tensor([[ 0.5000, -0.5000]])

    Paper: arXiv 2305.14859 (abstract: the dynamics of maximum likelihood iterate towards a utility); the identity is
    standard.
    """
    index = _checked(logits, target)
    wide = logits.to(compute_dtype(logits.dtype))
    step = -torch.softmax(wide, -1)
    return step.scatter_add(-1, index, torch.ones_like(wide[..., :1])).to(logits.dtype)


def ordinal_accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of pairs (right answer, other answer) that the utilities order rightly; ties count a half.

    Args:
        logits: utilities (..., V), V at least 2.
        target: right answers, class indices (...).

    Returns:
        0-d float64 tensor in [0, 1]; NaN without rows.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: the shapes do not fit, or a target is out of range.

    Example:
        >>> ordinal_accuracy(torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([0]))
        tensor(0.5000, dtype=torch.float64)

    Paper: a diagnostic of this project's reconstruction around arXiv 2305.14859.
    """
    index = _checked(logits, target)
    if logits.shape[-1] < 2:
        raise ArgumentValueError(f"logits must hold at least two classes, got shape {tuple(logits.shape)}")
    right = logits.gather(-1, index)
    wins = (right > logits).double() + 0.5 * (right == logits).double()
    # the right answer ties with itself
    return ((wins.sum(-1) - 0.5) / (logits.shape[-1] - 1)).mean()


def sampling_gap(logits: Tensor, target: Tensor) -> Tensor:
    """How much better the largest utility is than a sample from softmax: accuracy of argmax minus that of sampling.

    Args:
        logits: utilities (..., V).
        target: right answers, class indices (...).

    Returns:
        0-d float64 tensor in [-1, 1]; the expectation over samples, without drawing any.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: the shapes do not fit, or a target is out of range.

    Example:
        >>> sampling_gap(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        tensor(0.2689, dtype=torch.float64)

    Paper: a diagnostic of this project's reconstruction around arXiv 2305.14859.
    """
    index = _checked(logits, target)
    hit = (logits.argmax(-1, keepdim=True) == index).double()
    return (hit - torch.softmax(logits.double(), -1).gather(-1, index)).mean()


def _checked(logits: Any, target: Any) -> Tensor:
    check_float_tensor("logits", logits)
    if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype == torch.bool:
        raise ArgumentTypeError("target must be a tensor of class indices")
    if logits.ndim == 0 or target.shape != logits.shape[:-1]:
        raise ArgumentValueError(
            f"target must have the shape of logits without its last dimension, got {tuple(target.shape)} for "
            f"{tuple(logits.shape)}"
        )
    if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < logits.shape[-1]:
        raise ArgumentValueError(f"target must be in [0, {logits.shape[-1]})")
    return target.long().unsqueeze(-1)
