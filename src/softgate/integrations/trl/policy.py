"""A GRPO trainer whose loss is any objective: softgate's, with statistics in the log, or a function of one's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer  # type: ignore[attr-defined]

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.integrations.trl.fused_log_probs import use_fused_log_probs
from softgate.integrations.trl.groups import GroupIntegrityMixin
from softgate.policy import PolicyLoss, PolicyStats, aggregate, kl_estimate, sapo_loss
from softgate.policy.aggregation import AGGREGATIONS

__all__ = ["PolicyBatch", "PolicyObjectiveMixin", "SoftGateGRPOTrainer"]

_FORWARD_KEYS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip
_LOGGED = ("gate_mean", "gate_min", "ratio_max", "zero_grad_fraction", "ess")


@dataclass(frozen=True)
class PolicyBatch:
    """What an objective gets to see of a mini-batch in a trainer.

    Attributes:
        logp: log-probabilities of the completion tokens under the policy, ``(B, T)``, with gradient.
        old_logp: under the policy that sampled them; equal to ``logp`` where the data are on policy.
        advantages: ``(B,)``, or ``(B, T)`` where TRL's corrections for the sampling engine apply.
        mask: ``(B, T)``, completion tokens that count.
        ref_logp: under the reference model, None without one.
        entropy: of the policy at every token, None if it is not computed.
        group_id: which prompt of this process, ``(B,)``, contiguous; None unless ``keep_groups`` is set.
        num_tokens: divisor of ``"token_mean_global"``.
        max_length: longest completion.
    """

    logp: Tensor
    old_logp: Tensor
    advantages: Tensor
    mask: Tensor
    ref_logp: Tensor | None
    entropy: Tensor | None
    group_id: Tensor | None
    num_tokens: Tensor
    max_length: int


class PolicyObjectiveMixin(GroupIntegrityMixin):
    """Replaces the loss of ``trl.GRPOTrainer``; mix in before it, or before a trainer that derives from it.

    The objective is called as ``policy_loss(logp, old_logp, advantages, mask, **options)`` and returns the loss of the
    mini-batch, or a pair with :class:`softgate.policy.PolicyStats`, whose figures are logged as ``softgate/...``. Of
    the options of :class:`softgate.policy.LossOptions` it receives those that it takes; for a function without
    ``ref_logp`` and ``beta`` the KL term is added here. A function that takes ``group_id`` is listwise and gets whole
    groups. Corrections of TRL that multiply a token's loss (for the sampling engine, by entropy, off-policy masks)
    are multiplied into the advantages, which is the same for every objective that is linear in their size.

    Subclasses may override :meth:`policy_objective` instead.
    """

    policy_loss: Callable[..., Any]
    aggregation: str | None
    fused_log_probs: bool = False

    def set_objective(
        self, policy_loss: Callable[..., Any], aggregation: str | None, keep_groups: bool, fused_log_probs: bool
    ) -> None:
        """Set the objective of a trainer whose own constructor has run.

        Args:
            policy_loss: the objective.
            aggregation: as in :func:`softgate.policy.aggregate`; None leaves it to the objective.
            keep_groups: keep the rows of a group together.
            fused_log_probs: compute log-probabilities with softgate's fused head.

        Raises:
            ArgumentTypeError: ``policy_loss`` is not callable, or takes no ``aggregation`` where one is given.
            ArgumentValueError: a setting of the trainer cannot be combined with this.
        """
        if not callable(policy_loss):
            raise ArgumentTypeError(f"policy_loss must be callable, got {type(policy_loss).__name__}")
        if aggregation is not None and aggregation not in AGGREGATIONS:
            raise ArgumentValueError(f"aggregation must be one of {AGGREGATIONS} or None, got {aggregation!r}")
        self.policy_loss, self.aggregation, self._takes = policy_loss, aggregation, _accepted(policy_loss)
        if aggregation is not None and "aggregation" not in self._takes:
            raise ArgumentTypeError(f"policy_loss takes no aggregation, got aggregation={aggregation!r}")
        self.keep_groups = keep_groups or "group_id" in self._takes
        if self.keep_groups:
            self.check_groups()
        self.fused_log_probs = fused_log_probs
        if fused_log_probs:
            use_fused_log_probs(self)

    _takes: frozenset[str] = frozenset()
    args: Any
    accelerator: Any
    _metrics: Any
    beta: float

    def policy_objective(self, batch: PolicyBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss of a mini-batch, before the division by the accumulation steps, and figures to log.

        Args:
            batch: the mini-batch.
        """
        takes = self._takes
        options = {"num_tokens": batch.num_tokens, "max_length": batch.max_length, "entropy": batch.entropy,
                   "group_id": batch.group_id, "return_stats": True}  # fmt: skip
        if self.aggregation is not None:
            options["aggregation"] = self.aggregation
        within = self.beta != 0.0 and {"ref_logp", "beta"} <= takes
        if within:
            options |= {"ref_logp": batch.ref_logp, "beta": self.beta, "correct_kl": self.args.use_bias_correction_kl}
        given = {name: value for name, value in options.items() if name in takes}
        found = self.policy_loss(batch.logp, batch.old_logp, batch.advantages, batch.mask, **given)
        loss, stats = found if isinstance(found, tuple) else (found, None)
        if self.beta != 0.0 and not within:
            loss = loss + self.beta * aggregate(self._kl(batch), batch.mask)
        figures = stats._asdict() if isinstance(stats, PolicyStats) else {}
        return loss, {f"softgate/{name}": float(figures[name]) for name in _LOGGED if name in figures}

    def _kl(self, batch: PolicyBatch) -> Tensor:
        """The KL estimate of every token, with the importance correction that the configuration asks for."""
        assert batch.ref_logp is not None
        estimate = kl_estimate(batch.logp, batch.ref_logp)
        if not self.args.use_bias_correction_kl:
            return estimate
        return estimate * (batch.logp - batch.old_logp.detach()).clamp(-20.0, 20.0).exp()

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        batch, aux_loss = self._policy_batch(model, inputs)
        loss, figures = self.policy_objective(batch)
        training = self.model.training  # type: ignore[attr-defined]
        steps = self.current_gradient_accumulation_steps if training else 1.0  # type: ignore[attr-defined]
        if self._how() != "token_mean_global":
            loss = loss / steps
        metrics = self._metrics["train" if training else "eval"]
        if aux_loss is not None:
            loss = loss + self.router_aux_loss_coef * aux_loss / steps  # type: ignore[attr-defined]
            metrics["aux_loss"].append(self.accelerator.gather_for_metrics(aux_loss).mean().item())
        for name, value in self._trl_figures(batch).items():
            metrics[name].append(self.accelerator.gather(value.detach()).nanmean().item())
        for name, figure in figures.items():
            metrics[name].append(figure)
        return loss

    def _how(self) -> str | None:
        """The aggregation that is used, as far as it is known."""
        if self.aggregation is not None:
            return self.aggregation
        if isinstance(self.policy_loss, functools.partial):
            return self.policy_loss.keywords.get("aggregation")
        return self.policy_loss.options.get("aggregation") if isinstance(self.policy_loss, PolicyLoss) else None

    def _policy_batch(self, model: Any, inputs: dict[str, Any]) -> tuple[PolicyBatch, Tensor | None]:
        """Log-probabilities of the mini-batch, with TRL's corrections, and the auxiliary loss of a router."""
        trainer: Any = self
        ids, completion = inputs["prompt_ids"], inputs["completion_ids"]
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        logp, entropy, aux_loss = trainer._get_per_token_logps_and_entropies(
            model,
            torch.cat([ids, completion], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            completion.size(1),
            compute_entropy=not self.fused_log_probs,
            compute_aux_loss=trainer.aux_loss_enabled,
            **{name: inputs.get(name) for name in _FORWARD_KEYS},
        )
        old = inputs.get("old_per_token_logps")
        old = logp.detach() if old is None else old
        advantages = self._corrected_advantages(inputs, logp, old, mask, entropy)
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if trainer.model.training:  # it spans the generation batch, and several windows of accumulation share that
            tokens = tokens * trainer.current_gradient_accumulation_steps / self.args.steps_per_generation
        batch = PolicyBatch(
            logp=logp,
            old_logp=old,
            advantages=advantages,
            mask=mask,
            ref_logp=inputs.get("ref_per_token_logps"),
            entropy=None if entropy is None else entropy.detach(),
            group_id=inputs.get("group_id"),
            num_tokens=tokens,
            max_length=trainer.max_completion_length,
        )
        return batch, aux_loss

    def _corrected_advantages(
        self, inputs: dict[str, Any], logp: Tensor, old: Tensor, mask: Tensor, entropy: Tensor | None
    ) -> Tensor:
        trainer: Any = self
        advantages: Tensor = inputs["advantages"]
        rows = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
        weights = []
        if trainer.off_policy_mask_threshold is not None:
            weights.append(
                trainer.get_off_policy_mask(
                    advantages=rows,
                    per_token_logps=logp,
                    sampling_per_token_logps=inputs.get("sampling_per_token_logps", old),
                    mask=mask,
                    off_policy_threshold=trainer.off_policy_mask_threshold,
                )
            )
        if trainer.top_entropy_quantile < 1.0:
            weights.append(trainer.get_high_entropy_mask(entropy, mask, 1 - trainer.top_entropy_quantile))
        if trainer.use_vllm and trainer.vllm_importance_sampling_correction:
            weights.append(inputs["importance_sampling_ratio"])
        for weight in weights:
            rows = rows * weight
        return rows if weights else advantages

    def _trl_figures(self, batch: PolicyBatch) -> dict[str, Tensor]:
        """``entropy`` and ``kl`` as TRL logs them, of this process."""
        figures = {}
        if batch.entropy is not None:
            figures["entropy"] = aggregate(batch.entropy, batch.mask, "token_mean")
        if batch.ref_logp is not None and self.beta != 0.0:
            figures["kl"] = aggregate(kl_estimate(batch.logp.detach(), batch.ref_logp), batch.mask, "token_mean")
        return figures


class SoftGateGRPOTrainer(PolicyObjectiveMixin, GRPOTrainer):
    """``trl.GRPOTrainer`` with another objective.

    The clips, temperatures and ``loss_type`` of ``GRPOConfig`` do not apply: the objective brings its own. ``beta``,
    ``num_iterations``, ``steps_per_generation``, ``scale_rewards`` and the rest keep their meaning.

    Args:
        *args: of ``trl.GRPOTrainer``.
        policy_loss: the objective, such as :class:`softgate.policy.SAPOLoss`, see :class:`PolicyObjectiveMixin`.
        aggregation: as in :func:`softgate.policy.aggregate`; None leaves it to the objective.
        keep_groups: keep the answers to a prompt in one mini-batch; implied by an objective that takes ``group_id``.
            The batch per device must then be a multiple of ``num_generations``.
        fused_log_probs: compute log-probabilities with :func:`softgate.losses.selective_log_softmax_fused`, in place
            of TRL's own chunks; there is then no entropy in the log.
        **kwargs: of ``trl.GRPOTrainer``.

    Raises:
        ArgumentTypeError: ``policy_loss`` is not callable, or takes no ``aggregation`` where one is given.
        ArgumentValueError: a setting of the configuration cannot be combined with this: ``use_liger_kernel``,
            ``importance_sampling_level``, an entropy bonus, or a batch that splits groups.

    Paper: SAPO, arXiv 2511.20347, for the default objective.
    """

    def __init__(
        self,
        *args: Any,
        policy_loss: Callable[..., Any] = sapo_loss,
        aggregation: str | None = None,
        keep_groups: bool = False,
        fused_log_probs: bool = False,
        **kwargs: Any,
    ) -> None:
        config = inspect.signature(GRPOTrainer.__init__).bind(self, *args, **kwargs).arguments.get("args")
        if config is not None:
            _refuse_settings(config)
        super().__init__(*args, **kwargs)
        self.set_objective(policy_loss, aggregation, keep_groups, fused_log_probs)


def _refuse_settings(config: Any) -> None:
    if config.use_liger_kernel:
        raise ArgumentValueError("use_liger_kernel must be False: Liger has its own loss and would bypass policy_loss")
    if config.importance_sampling_level != "token":
        raise ArgumentValueError(
            "importance_sampling_level must be 'token': the objective forms its own ratios (level='sequence'), got "
            f"{config.importance_sampling_level!r}"
        )
    if config.entropy_coef or config.use_adaptive_entropy:
        raise ArgumentValueError("entropy_coef must be 0: an entropy bonus is not part of policy_loss")


def _accepted(policy_loss: Callable[..., Any]) -> frozenset[str]:
    """Options that an objective takes by name."""
    function = policy_loss.forward if isinstance(policy_loss, PolicyLoss) else policy_loss
    known = {"aggregation", "num_tokens", "max_length", "ref_logp", "beta", "correct_kl", "entropy", "return_stats"}
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return frozenset(known | (set(parameters) & {"group_id"}))
    return frozenset((known | {"group_id"}) & set(parameters))
