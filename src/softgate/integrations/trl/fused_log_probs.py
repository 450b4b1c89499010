"""Log-probabilities of a trainer's model from softgate's fused head: chunks of logits, compiled kernels on CPUs."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from softgate.errors import ArgumentValueError
from softgate.losses import selective_log_softmax_fused

__all__ = ["use_fused_log_probs"]

#: Factors on the logits that this path does not know.
_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def use_fused_log_probs(trainer: Any) -> None:
    """Let the model of a GRPO trainer answer ``fused_lm_head=True`` with softgate's kernel.

    Args:
        trainer: a ``trl.GRPOTrainer`` with a causal language model of transformers that has no adapters.

    Raises:
        ArgumentValueError: the model changes its logits in a way that is not known here, or the trainer needs the
            entropy.
    """
    from trl.trainer.utils import FusedCausalLMOutput

    model = trainer.accelerator.unwrap_model(trainer.model)
    head, softcap = plain_head(trainer, model, "fused_log_probs must be False for")
    if trainer.top_entropy_quantile < 1.0:
        raise ArgumentValueError("fused_log_probs must be False with top_entropy_quantile: it has no entropies")
    plain = model.forward

    @functools.wraps(plain)  # generate() checks its arguments against the signature
    def forward(*args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return plain(*args, **kwargs) if labels is None else plain(*args, labels=labels, **kwargs)
        hidden = model.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
        log_probs = selective_log_softmax_fused(
            hidden, head.weight, labels[:, 1:], bias=head.bias, temperature=trainer.temperature, softcap=softcap
        )
        return FusedCausalLMOutput(log_probs=log_probs)

    model.forward = forward


def plain_head(trainer: Any, model: Any, refusal: str) -> tuple[nn.Linear, float | None]:
    """The model's last layer and the bound of its logits, where nothing else is done to them.

    Args:
        trainer: a trainer of TRL.
        model: its causal language model of transformers.
        refusal: beginning of the message where something else is.

    Raises:
        ArgumentValueError: it is not so.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    scaled = [name for name in _SCALES if getattr(config, name, None) not in (None, 1.0)]
    if not isinstance(head, nn.Linear) or scaled or trainer.aux_loss_enabled:
        raise ArgumentValueError(f"{refusal} {type(model).__name__}: its head is not one plain linear layer")
    return head, getattr(config, "final_logit_softcapping", None)
