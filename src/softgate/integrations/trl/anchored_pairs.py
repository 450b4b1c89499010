"""Anchored cross-entropy on TRL's DPO trainer: DPO with a target that may be soft, or any other loss of pairs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from trl.trainer.dpo_trainer import DPOTrainer

from softgate._checks import check_number
from softgate.errors import ArgumentTypeError, ArgumentValueError, check_choice
from softgate.policy import anchored_cross_entropy

__all__ = ["AnchoredDPOTrainer"]

_NOT_FOR_THE_MODEL = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")


class AnchoredDPOTrainer(DPOTrainer):
    """``trl.DPOTrainer`` whose loss is :func:`softgate.policy.anchored_cross_entropy` of both answers.

    The target is ``(1 - eps, eps)`` with the ``label_smoothing`` of the configuration, the anchor the trainer's
    reference model (a moving one with ``sync_ref_model=True``). With the defaults it is ``loss_type="sigmoid"``.

    Args:
        *args: of ``trl.DPOTrainer``.
        tau: temperature of the log-ratios; None for 1 / beta, the value of DPO.
        length_norm: ``"sum"`` over tokens, as in DPO, or ``"mean"``.
        pair_loss: another loss of ``(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)``, such as
            :func:`softgate.policy.robust_dpo_loss`; None for the anchored one.
        **kwargs: of ``trl.DPOTrainer``.

    Raises:
        ArgumentTypeError: ``pair_loss`` is not callable.
        ArgumentValueError: an option is not allowed, or the configuration asks for something that would bypass this
            loss: ``use_liger_kernel``, another ``loss_type``, ``f_divergence_type``, ``ld_alpha``, ``use_weighting``.

    Paper: ADPO, arXiv 2510.18913: DPO is the anchored loss of two candidates.
    """

    def __init__(
        self,
        *args: Any,
        tau: float | None = None,
        length_norm: str = "sum",
        pair_loss: Callable[..., Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        config = inspect.signature(DPOTrainer.__init__).bind(self, *args, **kwargs).arguments.get("args")
        if config is not None:
            _refuse_settings(config)
        check_choice("length_norm", length_norm, ("sum", "mean"))
        if pair_loss is not None and not callable(pair_loss):
            raise ArgumentTypeError(f"pair_loss must be callable or None, got {type(pair_loss).__name__}")
        super().__init__(*args, **kwargs)
        given = 1.0 / self.beta if tau is None else tau
        self.tau = check_number("tau", given, low=0.0, low_open=True, high_open=True)
        self.length_norm, self.pair_loss = length_norm, pair_loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        kept = inputs["completion_mask"][:, 1:]
        given = {name: value for name, value in inputs.items() if name not in _NOT_FOR_THE_MODEL}
        if self.aux_loss_enabled:
            given["output_router_logits"] = True
        outputs = model(**given, use_cache=False)
        token_logp = _selected_log_softmax(outputs.logits[:, :-1], inputs["input_ids"][:, 1:])
        logp = torch.where(kept != 0, token_logp, 0.0).sum(1)
        chosen, rejected = logp.chunk(2)
        ref_chosen, ref_rejected = self._reference_logps(inputs)
        if self.length_norm == "mean":
            lengths = kept.sum(1).clamp_min(1).chunk(2)
            chosen, ref_chosen = chosen / lengths[0], ref_chosen / lengths[0]
            rejected, ref_rejected = rejected / lengths[1], ref_rejected / lengths[1]
        loss = self._pair_loss(chosen, rejected, ref_chosen, ref_rejected)
        self._record(inputs, chosen.detach(), rejected.detach(), ref_chosen, ref_rejected)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        return (loss, outputs) if return_outputs else loss

    def _pair_loss(self, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
        if self.pair_loss is not None:
            return self.pair_loss(chosen, rejected, ref_chosen, ref_rejected)
        logp, anchor = torch.stack((chosen, rejected), -1), torch.stack((ref_chosen, ref_rejected), -1)
        eps = self.label_smoothing
        target = logp.new_tensor([1.0 - eps, eps]).expand_as(logp)
        return anchored_cross_entropy(logp, anchor, target, tau=self.tau)

    def _reference_logps(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Sums over the tokens of both answers under the reference: from the data, its model, or without adapters."""
        if self.precompute_ref_logps:
            return inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        chosen, rejected = self.compute_ref_log_probs(self.model if self.ref_model is None else self.ref_model, inputs)
        return chosen, rejected

    def _record(self, inputs: dict[str, Any], chosen: Tensor, rejected: Tensor, *reference: Tensor) -> None:
        """The figures of TRL's log that do not need another pass over the logits."""
        model: Any = self.model
        training = model.training
        metrics, gather = self._metrics["train" if training else "eval"], self.accelerator.gather
        rewards = (chosen - reference[0]) / self.tau, (rejected - reference[1]) / self.tau
        figures = {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/accuracies": (rewards[0] > rewards[1]).float(),
            "rewards/margins": rewards[0] - rewards[1],
            "logps/chosen": chosen,
            "logps/rejected": rejected,
        }
        for name, values in figures.items():
            metrics[name].append(gather(values).mean().item())
        if training:
            self._total_train_tokens += int(gather(inputs["attention_mask"].sum()).sum()) // self._tp_size
        metrics["num_tokens"] = [self._total_train_tokens]


def _selected_log_softmax(logits: Tensor, index: Tensor) -> Tensor:
    """Log-probability of every token in ``index``, in float32."""
    wide = logits.float()
    selected = wide.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return selected - wide.logsumexp(-1)


def _refuse_settings(config: Any) -> None:
    if config.use_liger_kernel:
        raise ArgumentValueError("use_liger_kernel must be False: Liger's kernels are not used with this loss")
    kinds = [config.loss_type] if isinstance(config.loss_type, str) else list(config.loss_type)
    refused = {
        "loss_type": kinds != ["sigmoid"],
        "f_divergence_type": str(getattr(config.f_divergence_type, "value", config.f_divergence_type)) != "reverse_kl",
        "ld_alpha": config.ld_alpha is not None,
        "use_weighting": config.use_weighting,
    }
    for name in (name for name, wrong in refused.items() if wrong):
        raise ArgumentValueError(
            f"{name} must be left at its default: the trainer has its own loss, got {getattr(config, name)!r}"
        )
