"""Utilities turned into probabilities inside ``generate`` of transformers: a reconstruction."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from softgate.errors import MissingExtraError, bad_type
from softgate.integrations import torchvision_cpu
from softgate.losses.utility_fit import UtilityTransform

__all__ = ["utility_logits_processor"]


def utility_logits_processor(transform: UtilityTransform) -> Any:
    """A ``LogitsProcessor`` that lets a model of transformers sample from transformed utilities.

    Pass it as ``model.generate(..., do_sample=True, logits_processor=[utility_logits_processor(transform)])``. Greedy
    and beam search's order within a step stay as they are; with ``method="power"`` it equals ``temperature=1 / beta``.
    It acts on every step: the product over the steps is not the transformed probability of the whole sequence.

    Args:
        transform: fitted by :func:`softgate.losses.fit_utility_transform`, or made by hand.

    Returns:
        A ``transformers.LogitsProcessor``: (token ids (B, T), scores (B, V)) -> log-probabilities (B, V).

    Raises:
        MissingExtraError: transformers is not installed.
        ArgumentTypeError: ``transform`` is something else.

    Paper: idea of arXiv 2305.14859 (abstract); a reconstruction, not the paper's formula.
    """
    if not isinstance(transform, UtilityTransform):
        bad_type("transform", transform, "a softgate.losses.UtilityTransform")
    torchvision_cpu.repair()
    try:
        from transformers import LogitsProcessor
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", "a logits processor") from error

    class UtilityLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
        """Log-probabilities of the transformed scores."""

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return transform.log_probabilities(scores)

    return UtilityLogitsProcessor()
