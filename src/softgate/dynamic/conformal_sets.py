"""Sets of classes that hold the true one with a wanted probability, for samples that leave at different exits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from softgate._checks import check_number, check_sizes
from softgate._math.compress import compute_dtype
from softgate.dynamic.exit_losses import check_exit_logits
from softgate.errors import StateError, bad_type, bad_value

if TYPE_CHECKING:
    from softgate.dynamic.early_exit import ExitOutput

__all__ = ["ConformalExit"]


class ConformalExit:
    """Split conformal prediction, exit by exit: sets that contain the true class with probability ``1 - alpha``.

    The score of a sample is one minus the probability of its true class. A threshold for each exit is the quantile of
    the scores of the calibration samples that leave there or, where these are few, of all calibration samples at that
    exit.

    Args:
        few: an exit with at most so many samples of its own takes those of all.

    Attributes:
        thresholds: (L + 1,) float64, the largest score in a set, after :meth:`fit`.

    Raises:
        ArgumentTypeError: ``few`` is no int.
        ArgumentValueError: ``few`` is not positive.

    Example:
        >>> from softgate.dynamic import EarlyExit
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> model = EarlyExit.from_sequential(net, cuts=[2], example=torch.zeros(1, 8)).eval()
        >>> x = torch.randn(200, 8)
        >>> sets = ConformalExit().fit(model(x), net(x).argmax(-1), alpha=0.1)
        >>> sets.predict(*model.infer(x)).shape
        torch.Size([200, 3])

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, section on conformal
    prediction.
    """

    def __init__(self, few: int = 20) -> None:
        check_sizes(few=few)
        self.few = few
        self.alpha: float | None = None
        self.thresholds: Tensor | None = None

    @torch.no_grad()
    def fit(
        self, val_outputs: ExitOutput, target: Tensor, alpha: float = 0.05, level: Tensor | None = None
    ) -> ConformalExit:
        """Find the thresholds on calibration samples, which no part of the model may have seen.

        Args:
            val_outputs: all exits of the calibration samples.
            target: (N,) int64, their classes.
            alpha: how often a set may miss, in (0, 1).
            level: (N,) int64, where they leave; where their gates say, if None.

        Returns:
            This object.

        Raises:
            ArgumentTypeError: an argument has the wrong type.
            ArgumentValueError: ``alpha`` is out of range, there are no samples, or shapes do not fit.
        """
        check_exit_logits(val_outputs.logits, target)
        check_number("alpha", alpha, low=0.0, high=1.0, low_open=True, high_open=True)
        if len(target) == 0:
            bad_value("target", 0, "of at least one sample")
        exits = len(val_outputs.logits)
        left = (val_outputs.level if level is None else _checked(level, len(target))) % exits
        wide = val_outputs.logits.to(compute_dtype(val_outputs.logits.dtype)).softmax(-1).double()
        scores = 1.0 - wide.gather(-1, target.expand(exits, -1).unsqueeze(-1)).squeeze(-1)
        own = [scores[place][left == place] for place in range(exits)]
        used = [mine if len(mine) > self.few else every for mine, every in zip(own, scores, strict=True)]
        self.alpha = float(alpha)
        self.thresholds = torch.tensor([conformal_quantile(s.cpu().numpy(), alpha) for s in used], dtype=torch.float64)
        return self

    @torch.no_grad()
    def predict(self, logits: Tensor, level: Tensor) -> Tensor:
        """Sets of classes.

        Args:
            logits: (N, C), class logits of each sample at its exit, as of :meth:`softgate.dynamic.EarlyExit.infer`.
            level: (N,) int64, the exits.

        Returns:
            (N, C) bool, True for the classes in the set.

        Raises:
            ArgumentTypeError: ``level`` is no int64 tensor.
            ArgumentValueError: ``level`` does not fit.
            StateError: :meth:`fit` was not called.
        """
        if self.thresholds is None:
            raise StateError("call fit before predict")
        probability = logits.to(compute_dtype(logits.dtype)).softmax(-1).double()
        limit = self.thresholds.to(logits.device)[_checked(level, len(logits))]
        return probability >= (1.0 - limit).unsqueeze(-1)


def conformal_quantile(scores: Any, alpha: float) -> float:
    """The ``ceil((n + 1)(1 - alpha)) / n`` quantile of n scores, the higher of two; above 1 the largest score."""
    count = len(scores)
    share = min(1.0, math.ceil((count + 1) * (1.0 - alpha)) / count)
    return float(np.quantile(scores, share, method="higher"))


def _checked(level: Any, rows: int) -> Tensor:
    if not isinstance(level, Tensor) or level.dtype is not torch.int64:
        bad_type("level", level if not isinstance(level, Tensor) else level.dtype, "an int64 tensor")
    if level.shape != (rows,):
        bad_value("level", tuple(level.shape), f"of shape ({rows},)")
    return level
