"""Leaving where a confidence exceeds a threshold: what learned gates are compared with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate._math.compress import compute_dtype
from softgate.dynamic.exit_costs import mean_cost
from softgate.dynamic.uncertainty import uncertainty_features
from softgate.errors import StateError, bad_value, check_choice

if TYPE_CHECKING:
    from softgate.dynamic.early_exit import ExitOutput

__all__ = ["ThresholdPolicy"]

CONFIDENCES = ("probability", "logit", "entropy", "patience")
#: Ratios between the samples of one exit and the next, beyond which nearly all leave at the first or the last one.
_STEEPEST = 1e3


class ThresholdPolicy:
    """Exits by thresholds on a confidence, chosen on validation data for a wanted cost.

    Exit l shall let out a share of the samples proportional to ``ratio ** l``; its threshold is the confidence that
    this many of the samples still in exceed. The ratio is found for a budget. ``"patience"`` instead leaves as soon as
    that many exits in a row agree.

    Args:
        confidence: ``"probability"``, the largest; ``"logit"``, the largest (what the authors' code does);
            ``"entropy"``, its negative; ``"patience"``, the number of exits in a row that agree.

    Attributes:
        thresholds: (L,) float64, after :meth:`fit`.
        ratio: of the shares; NaN for patience.

    Raises:
        ArgumentTypeError: ``confidence`` is no string.
        ArgumentValueError: an unknown confidence.

    Example:
        >>> from softgate.dynamic import EarlyExit
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> model = EarlyExit.from_sequential(net, cuts=[2], example=torch.zeros(1, 8)).eval()
        >>> output = model(torch.randn(100, 8))
        >>> policy = ThresholdPolicy().fit(output, budget=0.95)
        >>> policy.level(output).shape
        torch.Size([100])

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, the baselines.
    """

    def __init__(self, confidence: str = "probability") -> None:
        check_choice("confidence", confidence, CONFIDENCES)
        self.confidence = confidence
        self.thresholds: Tensor | None = None
        self.ratio = math.nan

    @torch.no_grad()
    def fit(
        self, val_outputs: ExitOutput, budget: float | None = None, *, ratio: float | None = None
    ) -> ThresholdPolicy:
        """Choose the thresholds.

        Args:
            val_outputs: all exits of validation samples; labels are not needed.
            budget: wanted mean relative cost, from that of the first exit to 1; the nearest one below is taken, or the
                least there is.
            ratio: of the shares of two exits in a row, in place of a budget; positive.

        Returns:
            This object.

        Raises:
            ArgumentTypeError: an argument has the wrong type.
            ArgumentValueError: not exactly one of ``budget`` and ``ratio``, out of range, or no samples.
        """
        if (budget is None) == (ratio is None):
            bad_value("budget", budget, "given if and only if ratio is not")
        scores, costs = self.scores(val_outputs), val_outputs.costs
        if scores.shape[1] == 0:
            bad_value("val_outputs", 0, "of at least one sample")
        if ratio is not None:
            if self.confidence == "patience":
                bad_value("ratio", ratio, "None for patience, which has no shares")
            self.ratio = check_number("ratio", ratio, low=0.0, low_open=True, high_open=True)
            self.thresholds = budgeted_thresholds(scores, self.ratio)
            return self
        wanted = check_number("budget", budget, low=float(costs[0]), high=1.0)
        if self.confidence == "patience":
            whole = [torch.full((len(scores),), float(k), dtype=torch.float64) for k in range(1, len(scores) + 2)]
            fitting = [t for t in whole if mean_cost(costs, leave_at(scores, t)) <= wanted]
            self.thresholds = fitting[-1] if fitting else whole[0]
        else:
            self.ratio = self._ratio_for(scores, costs, wanted)
            self.thresholds = budgeted_thresholds(scores, self.ratio)
        return self

    @staticmethod
    def _ratio_for(scores: Tensor, costs: Tensor, wanted: float) -> float:
        """Bisection on the logarithm of the ratio, with which the cost rises."""
        low, high = -math.log(_STEEPEST), math.log(_STEEPEST)
        for _ in range(40):
            middle = 0.5 * (low + high)
            cost = mean_cost(costs, leave_at(scores, budgeted_thresholds(scores, math.exp(middle))))
            low, high = (middle, high) if cost <= wanted else (low, middle)
        return math.exp(low)

    @torch.no_grad()
    def scores(self, outputs: ExitOutput) -> Tensor:
        """Confidence (L, N) of every learned exit, float64; larger is surer."""
        logits = outputs.logits[:-1].to(compute_dtype(outputs.logits.dtype))
        if self.confidence == "probability":
            return logits.softmax(-1).amax(-1).double()
        if self.confidence == "logit":
            return logits.amax(-1).double()
        if self.confidence == "entropy":
            return -uncertainty_features(logits, ("entropy",)).squeeze(-1).double()
        found = logits.argmax(-1)
        runs = [torch.ones_like(found[0])]
        for now, last in zip(found[1:], found[:-1], strict=True):
            runs.append(torch.where(now == last, runs[-1] + 1, 1))
        return torch.stack(runs).double()

    def level(self, outputs: ExitOutput) -> Tensor:
        """Where each sample of ``outputs`` leaves, (N,) int64.

        Raises:
            StateError: :meth:`fit` was not called.
        """
        if self.thresholds is None:
            raise StateError("call fit before level")
        return leave_at(self.scores(outputs), self.thresholds)


def leave_at(scores_LN: Tensor, thresholds_L: Tensor) -> Tensor:
    """The first exit whose threshold a sample reaches, L if none; NaN reaches none."""
    leaves = scores_LN >= thresholds_L.to(scores_LN).unsqueeze(-1)
    return (leaves.cumsum(0) == 0).sum(0)


def budgeted_thresholds(scores_LN: Tensor, ratio: float) -> Tensor:
    """Thresholds (L,) at which exit l lets out a share of all samples proportional to ``ratio ** l``."""
    exits, rows = scores_LN.shape[0] + 1, scores_LN.shape[1]
    powers = torch.arange(exits, dtype=torch.float64) * math.log(ratio)
    counts = (powers.softmax(0) * rows).floor().long()[:-1].tolist()
    still_in = torch.ones(rows, dtype=torch.bool, device=scores_LN.device)
    thresholds = []
    for score, count in zip(scores_LN, counts, strict=True):
        inside = score[still_in].sort(descending=True).values
        limit = float(inside[count - 1]) if 0 < count <= len(inside) else math.inf
        thresholds.append(limit)
        still_in = still_in & ~(score >= limit)
    return torch.tensor(thresholds, dtype=torch.float64)
