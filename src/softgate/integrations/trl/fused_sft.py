"""Supervised fine-tuning with any fused linear loss: the logits of a batch are never held."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer  # type: ignore[attr-defined]

from softgate.errors import ArgumentValueError, bad_type, bad_value
from softgate.integrations.trl.fused_log_probs import plain_head
from softgate.losses import fused_linear_loss

__all__ = ["FusedLossSFTTrainer"]

#: What the trainer and the model decide.
_OWN = ("bias", "ignore_index", "process_group", "reduction", "return_accuracy", "return_lse", "shift", "softcap")


class FusedLossSFTTrainer(SFTTrainer):
    """TRL's SFT trainer with a loss of :func:`softgate.losses.fused_linear_loss`.

    Everything else is the trainer's own: the division by the tokens of all processes and accumulation steps, packing,
    adapters (LoRA) outside the head, logging. The metric ``entropy`` is missing, as it would need all probabilities;
    ``mean_token_accuracy`` is there.

    Args:
        *args: of ``trl.SFTTrainer``.
        linear_loss: options of :func:`softgate.losses.fused_linear_loss`, such as ``{"loss": "comp_sum", "tau": 1.7}``,
            ``{"loss": "stablemax"}`` or ``{"z_penalty": 1e-4}``; None for cross-entropy. Losses are summed and divided
            by the number of tokens, also with ``class_weight``.
        **kwargs: of ``trl.SFTTrainer``.

    Raises:
        ArgumentTypeError: ``linear_loss`` is no mapping.
        ArgumentValueError: an option is not known or decided elsewhere, the head of the model is not one plain linear
            layer, or the trainer was given another loss (``loss_type``, ``compute_loss_func``, label smoothing).

    Paper: none of its own; comp-sum losses: arXiv 2304.07288, StableMax: 2501.04697.
    """

    def __init__(self, *args: Any, linear_loss: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        options = _checked({} if linear_loss is None else linear_loss)
        super().__init__(*args, **kwargs)
        settings: Any = self.args
        if self.compute_loss_func is not None or self.label_smoother is not None or settings.loss_type != "nll":
            raise ArgumentValueError(
                "loss_type must be 'nll', without compute_loss_func and label_smoothing_factor, beside linear_loss"
            )
        _answer_with_the_loss(self, options)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of the trainer, without the metric that needs all probabilities."""
        found = super().compute_loss(*args, **kwargs)
        model: Any = self.model
        self._metrics["train" if model.training else "eval"].pop("entropy", None)
        return found


def _checked(options: Any) -> dict[str, Any]:
    if not isinstance(options, Mapping):
        bad_type("linear_loss", options, "a mapping of options of fused_linear_loss, or None")
    known = sorted(set(fused_linear_loss.__kwdefaults__ or ()) - set(_OWN))
    for name in options:
        if name not in known:
            bad_value("linear_loss", name, "one of " + ", ".join(known))
    if options.get("loss") == "zloss":
        bad_value("linear_loss", "zloss", "a loss of logits that are computed: the Z-loss has no token accuracy")
    return dict(options)


def _answer_with_the_loss(trainer: Any, options: dict[str, Any]) -> None:
    """Let the model answer ``fused_lm_head=True`` with the sum of the losses where the trainer looks for log p."""
    from trl.trainer.utils import FusedCausalLMOutput

    model = trainer.accelerator.unwrap_model(trainer.model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, softcap = plain_head(trainer, model, "linear_loss cannot be used with")
    plain = model.forward

    @functools.wraps(plain)  # generate() checks its arguments against the signature
    def forward(*args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return plain(*args, **kwargs) if labels is None else plain(*args, labels=labels, **kwargs)
        shifted = kwargs.pop("shift_labels", None)
        kwargs.pop("num_items_in_batch", None)
        hidden = model.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        target, shift = (labels, 1) if shifted is None else (shifted, 0)
        total, accuracy = fused_linear_loss(
            *_in_one_dtype(hidden, head.weight), target.to(hidden.device), bias=head.bias, softcap=softcap,
            shift=shift, reduction="sum", return_accuracy=True, **options,
        )  # fmt: skip
        mask = target[:, shift:] != -100
        return FusedCausalLMOutput(
            log_probs=-total, entropy=torch.zeros_like(accuracy), is_top1=accuracy * mask.sum(), label_mask=mask
        )

    model.forward = forward


def _in_one_dtype(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(dtype), weight.to(dtype)
