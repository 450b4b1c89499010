"""The objective of jointly learned exits and gates, phase by phase."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.dynamic.exit_losses import (
    OBJECTIVES,
    WEIGHTINGS,
    best_exit,
    check_exit_logits,
    exit_cross_entropies,
    exit_gate_loss,
    exit_inference_loss,
)
from softgate.errors import check_choice

if TYPE_CHECKING:
    from softgate.dynamic.early_exit import ExitOutput

__all__ = ["JEILoss"]

POS_WEIGHTS = ("none", "cumulative", "official")
PHASES = ("warmup", "inference", "gate")
_MOST, _LEAST_COUNT = 5.0, 0.1  # largest weight of a positive, and what stands for a count of 0


class JEILoss(nn.Module):
    r"""Accuracy plus ``lam`` times cost of a network with exits, for the classifiers or for the gates.

    The goal is :math:`\min \mathbb{E} \sum_l P_l (\mathrm{CE}_l + \lambda c_l)`. Classifiers lower it directly under
    fixed gates (phase ``"inference"``); each gate is told, by binary cross-entropy, whether the best exit of a sample
    has come (phase ``"gate"``). ``"warmup"`` trains the classifiers alone, the earlier ones with larger weights.

    Args:
        lam: price of the whole network in units of the loss, not negative; larger leaves earlier.
        weighting: of the classifiers' losses, see :func:`softgate.dynamic.exit_inference_loss`.
        pos_weight: weight of positive targets of a gate: ``"none"``, 1; ``"cumulative"``, negatives over positives;
            ``"official"``, as in the authors' code, which counts the samples whose best exit is exactly this one and
            so pushes all gates open. Both are at most 5 and change with :meth:`update_pos_weight`.
        objective: what the best exit is best in, see :func:`softgate.dynamic.best_exit`.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: ``lam`` is negative or not finite, or a choice is unknown.

    Example:
        >>> from softgate.dynamic import EarlyExit
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> model = EarlyExit.from_sequential(net, cuts=[2], example=torch.zeros(1, 8))
        >>> output, target = model(torch.randn(4, 8)), torch.tensor([0, 1, 2, 0])
        >>> loss = JEILoss(lam=0.7)
        >>> [loss(output, target, phase).ndim for phase in ("warmup", "inference", "gate")]
        [0, 0, 0]

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, the bi-level problem.
    """

    def __init__(
        self, lam: float, weighting: str = "probability", pos_weight: str = "none", objective: str = "ce"
    ) -> None:
        super().__init__()
        self.lam = check_number("lam", lam, low=0.0, high_open=True)
        check_choice("weighting", weighting, WEIGHTINGS)
        check_choice("pos_weight", pos_weight, POS_WEIGHTS)
        check_choice("objective", objective, OBJECTIVES)
        self.weighting, self.pos_weight, self.objective = weighting, pos_weight, objective
        self.positive: Tensor | None = None

    def forward(self, output: ExitOutput, target: Tensor, phase: str) -> Tensor:
        """Loss of one phase.

        Args:
            output: of :class:`softgate.dynamic.EarlyExit`.
            target: (N,) int64, the true classes.
            phase: ``"warmup"``, ``"inference"`` or ``"gate"``.

        Returns:
            0-d tensor.

        Raises:
            ArgumentValueError: an unknown phase, or a target that does not fit.
        """
        check_choice("phase", phase, PHASES)
        if phase == "warmup":
            return self._warmup(output, target)
        if phase == "inference":
            return exit_inference_loss(output.logits, target, output.P, self.weighting)
        best = best_exit(output.logits, target, output.costs, self.lam, self.objective)
        return exit_gate_loss(output.gate_logits, best, self.positive)

    def _warmup(self, output: ExitOutput, target: Tensor) -> Tensor:
        """``CE_final + sum of (L + 2 - l) CE_l``."""
        check_exit_logits(output.logits, target)
        ce_NE = exit_cross_entropies(output.logits, target)
        weight = torch.arange(ce_NE.shape[1], 0, -1, dtype=ce_NE.dtype, device=ce_NE.device)
        return (ce_NE @ weight).sum() / max(1, len(ce_NE))

    @torch.no_grad()
    def update_pos_weight(self, output: ExitOutput, target: Tensor) -> None:
        """Count, on validation data, how often each gate should open, and weigh positives with it from now on."""
        if self.pos_weight == "none":
            return
        best = best_exit(output.logits, target, output.costs, self.lam, self.objective)
        count = best.bincount(minlength=len(output.logits))[:-1].double()
        if self.pos_weight == "cumulative":
            count = count.cumsum(0)
        self.positive = ((len(best) - count) / count.clamp_min(_LEAST_COUNT)).clamp_max(_MOST)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return (
            f"lam={self.lam}, weighting={self.weighting!r}, pos_weight={self.pos_weight!r}, "
            f"objective={self.objective!r}"
        )
