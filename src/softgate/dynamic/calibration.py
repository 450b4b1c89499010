"""Whether a confidence is a frequency."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_sizes
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentTypeError, bad_type, bad_value

__all__ = ["expected_calibration_error"]


def check_classified(logits: Any, target: Any) -> None:
    """Raise unless ``logits`` are (N, C) of at least one sample and ``target`` (N,) int64."""
    check_float_tensor("logits", logits)
    if logits.ndim != 2 or 0 in logits.shape:
        bad_value("logits", tuple(logits.shape), "of shape (N, C) with at least one sample and class")
    if not isinstance(target, Tensor):
        bad_type("target", target, "an int64 tensor")
    if target.dtype is not torch.int64:
        raise ArgumentTypeError(f"target must be an int64 tensor of class indices, got {target.dtype}")
    if target.shape != logits.shape[:1]:
        bad_value("target", tuple(target.shape), f"of shape ({len(logits)},)")


@torch.no_grad()
def expected_calibration_error(logits: Tensor, target: Tensor, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over bins that hold equally many samples.

    Args:
        logits: (N, C), class logits; the confidence is the largest probability.
        target: (N,) int64, the true classes.
        bins: how many; of fewer samples, one each.

    Returns:
        In [0, 1]: the sum over bins of their share of samples times ``|accuracy - mean confidence|``.

    Raises:
        ArgumentTypeError: a tensor or ``bins`` has the wrong type.
        ArgumentValueError: no samples, or shapes that do not fit.

    Example:
        >>> logits = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
        >>> round(expected_calibration_error(logits, torch.tensor([0, 1]), bins=1), 4)
        0.1

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, section on calibration.
    """
    check_classified(logits, target)
    check_sizes(bins=bins)
    confidence, found = logits.to(compute_dtype(logits.dtype)).double().softmax(-1).max(-1)
    order = confidence.argsort(stable=True)
    gap = ((found == target).double() - confidence)[order]
    return float(sum(part.sum().abs() for part in gap.tensor_split(min(bins, len(gap)))) / len(gap))
