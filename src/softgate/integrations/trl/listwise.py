"""ADPO on TRL's GRPO trainer: the answers to a prompt as one list, anchored to the policy that sampled them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.integrations.trl.policy import SoftGateGRPOTrainer
from softgate.policy import ADPOLoss

__all__ = ["ADPOTrainer", "ListwiseObjective"]


class ListwiseObjective:
    """:class:`softgate.policy.ADPOLoss` with the signature of a trainer's objective.

    The advantages that the trainer has made of the rewards (z-scores of the group, by default) are the scores; the
    anchor is the policy that sampled.

    Args:
        loss: the loss; with an adaptive temperature the entropy is divided by the logarithm of ``vocabulary``.
        vocabulary: number of tokens.

    Raises:
        ArgumentTypeError: ``loss`` is no ``ADPOLoss``.
        ArgumentValueError: its reduction is not ``"mean"``.

    Paper: ADPO, arXiv 2510.18913.
    """

    def __init__(self, loss: ADPOLoss, vocabulary: int) -> None:
        if not isinstance(loss, ADPOLoss):
            raise ArgumentTypeError(f"objective must be a softgate.policy.ADPOLoss, got {type(loss).__name__}")
        if loss.options["reduction"] != "mean":
            raise ArgumentValueError(f"objective must have reduction='mean', got {loss.options['reduction']!r}")
        self.loss, self.vocabulary = loss, vocabulary

    def __call__(
        self,
        logp: Tensor,
        old_logp: Tensor,
        advantages: Tensor,
        mask: Tensor,
        *,
        group_id: Tensor,
        entropy: Tensor | None = None,
    ) -> Tensor:
        """Loss of a mini-batch that holds whole groups.

        Args:
            logp: (B, T) log-probabilities under the policy.
            old_logp: (B, T) those under the policy that sampled.
            advantages: (B,).
            mask: (B, T) completion tokens that count.
            group_id: (B,) which prompt.
            entropy: (B, T) nats, for an adaptive temperature.

        Raises:
            StateError: a correction of the trainer has made the advantages differ from token to token.
        """
        if advantages.ndim == 2:
            if advantages.shape[1] != 1:
                raise StateError("a listwise loss has one score for an answer: switch off corrections by token")
            advantages = advantages[:, 0]
        share = (
            None if entropy is None or self.loss.options["adaptive"] is None else entropy / math.log(self.vocabulary)
        )
        return self.loss(logp.float(), old_logp.float(), advantages.float(), group_id, mask, share)


class ADPOTrainer(SoftGateGRPOTrainer):
    """``trl.GRPOTrainer`` with the listwise anchored loss in place of the clipped policy gradient.

    Whole groups stay together in every mini-batch, so the batch per device must be a multiple of ``num_generations``.
    ``epsilon``, ``loss_type`` and the rest of the clipping do not apply.

    Args:
        *args: of ``trl.GRPOTrainer``.
        objective: an :class:`softgate.policy.ADPOLoss`; by default one with the recipe's tau 0.8 and beta 0.5.
        **kwargs: of ``trl.GRPOTrainer``.

    Raises:
        ArgumentTypeError: ``objective`` is no ``ADPOLoss``.
        ArgumentValueError: a setting cannot be combined with this, such as a batch that splits groups.

    Paper: ADPO, arXiv 2510.18913, the recipe for language models.
    """

    def __init__(self, *args: Any, objective: ADPOLoss | None = None, **kwargs: Any) -> None:
        loss = ADPOLoss(tau=0.8, beta=0.5) if objective is None else objective
        listwise = ListwiseObjective(loss, vocabulary=2)
        super().__init__(*args, policy_loss=listwise, **kwargs)
        model: Any = self.model
        listwise.vocabulary = model.config.get_text_config().vocab_size
