"""SofT-GRPO in TRL: rollouts that think in soft tokens, and their log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from trl.models.utils import unwrap_model_for_generation

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.integrations.trl.policy import SoftGateGRPOTrainer
from softgate.policy import (
    SoftRollout,
    SoftSampling,
    SoftThinkingGenerator,
    SoftToken,
    rollout_log_prob,
    soft_grpo_loss,
)
from softgate.policy.soft_log_prob import Reduce

__all__ = ["SoftThinkingGRPOTrainer"]

#: Under these names the parts of the soft tokens travel with the rows that TRL shuffles and splits.
_KEYS = tuple(f"soft_{name}" for name in SoftToken._fields)
#: Settings of TRL under which other code than ours would generate or score.
_OFF = ("use_vllm", "use_transformers_continuous_batching")


class SoftThinkingGRPOTrainer(SoftGateGRPOTrainer):
    """``trl.GRPOTrainer`` for a model that thinks in soft tokens and answers in ordinary ones.

    Rewards see the strongest candidate of every thought as its token. Old and reference log-probabilities are
    recomputed by the trainer's own models, as in the authors' code. Of a response of ``max_completion_length`` tokens,
    ``max_think`` are thoughts, one ends them and the rest is the answer; a forced end of thinking gets no gradient.
    The entropy is not computed and not logged; ``softgate/thoughts`` is the mean number of soft tokens.

    Args:
        *args: of ``trl.GRPOTrainer``.
        end_think_id: token that ends the thoughts.
        max_think: largest number of thoughts.
        min_think: so many thoughts are had whatever their strongest candidate is.
        sampling: how steps are drawn; its temperature must be that of the configuration. Evaluate with the same.
        reduce: of the densities, as in :func:`softgate.policy.soft_token_log_prob`.
        policy_loss: the objective, as in :class:`SoftGateGRPOTrainer`.
        **kwargs: of :class:`SoftGateGRPOTrainer`.

    Raises:
        ArgumentTypeError: ``sampling`` is no :class:`softgate.policy.SoftSampling`.
        ArgumentValueError: a setting of the configuration cannot be combined with this: other engines for generation,
            another temperature, tools, images, padding to a multiple, an auxiliary loss, entropy quantiles.

    Paper: SofT-GRPO, arXiv 2511.06411.
    """

    def __init__(
        self,
        *args: Any,
        end_think_id: int,
        max_think: int,
        min_think: int = 0,
        sampling: SoftSampling | None = None,
        reduce: Reduce = "mean",
        policy_loss: Callable[..., Any] = soft_grpo_loss,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, policy_loss=policy_loss, **kwargs)
        if sampling is not None and not isinstance(sampling, SoftSampling):
            raise ArgumentTypeError(f"sampling must be a SoftSampling or None, got {type(sampling).__name__}")
        self.sampling = SoftSampling(temperature=self.temperature) if sampling is None else sampling
        self.reduce = reduce
        self._refuse_engines()
        longest: Any = self.max_completion_length
        if max_think >= longest - 1:
            raise ArgumentValueError(
                f"max_think must leave room for the end of thinking and an answer: at most "
                f"{longest - 2} with max_completion_length={longest}, "
                f"got {max_think}"
            )
        self.thinking = {
            "end_think_id": end_think_id,
            "eos_id": tuple(self.eos_token_ids),
            "pad_id": self._tokenizer.pad_token_id,
            "max_think": max_think,
            "max_answer": longest - max_think - 1,
            "min_think": min_think,
            "sampling": self.sampling,
        }
        model: Any = self.model
        SoftThinkingGenerator(model, **self.thinking)  # a wrong setting should show now
        self._rollout: SoftRollout | None = None
        self._token: SoftToken | None = None

    def _refuse_engines(self) -> None:
        wrong = [name for name in _OFF if getattr(self.args, name, False)]
        if wrong:
            raise ArgumentValueError(f"{wrong[0]} must be False: it knows no soft tokens")
        if self.sampling.temperature != self.temperature:
            raise ArgumentValueError(
                f"sampling must have the temperature of the configuration, {self.temperature}, got "
                f"{self.sampling.temperature}"
            )
        unknown = {
            "tools": bool(self.tools),
            "pad_to_multiple_of": self.pad_to_multiple_of is not None,
            "router_aux_loss_coef": self.aux_loss_enabled,
            "top_entropy_quantile": self.top_entropy_quantile < 1.0,
            "processing_class": self._is_vlm,
        }
        for name, given in unknown.items():
            if given:
                raise ArgumentValueError(f"{name} must keep its default: soft thinking does not support it")

    def _generate_single_turn(
        self, prompt_ids: Any, *_unused: Any, **_also_unused: Any
    ) -> tuple[list[list[int]], None]:
        """Responses to tokenised prompts, in TRL's form; the soft tokens stay here."""
        longest = max(len(ids) for ids in prompt_ids)
        device = self.accelerator.device
        pad = self._tokenizer.pad_token_id
        rows = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in prompt_ids], device=device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=device)
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
        ) as model:
            self._rollout = SoftThinkingGenerator(model, **self.thinking).generate(rows, mask)
        self._token = self._rollout.token
        ids, real = self._rollout.ids.tolist(), self._rollout.completion_mask.sum(-1).tolist()
        return [row[:length] for row, length in zip(ids, real, strict=True)], None

    def _generate(self, prompts: list[Any]) -> Any:
        """As TRL's, with the steps that the policy did not choose in the place of the tools' tokens."""
        prompt_ids, completion_ids, _, *rest = super()._generate(prompts)
        assert self._rollout is not None
        chosen = self._rollout.action_mask.int().tolist()
        own = [row[: len(ids)] for row, ids in zip(chosen, completion_ids, strict=True)]
        thoughts = self._rollout.token.is_soft.sum(-1).float()
        trained: Any = self.model
        mode = "train" if trained.training else "eval"
        self._metrics[mode]["softgate/thoughts"].append(self.accelerator.gather(thoughts).mean().item())
        return (prompt_ids, completion_ids, own, *rest)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        assert self._rollout is not None
        output.update(zip(_KEYS, self._rollout.token, strict=True))
        self._rollout = self._token = None
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._token = SoftToken(*(inputs[key] for key in _KEYS))
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._token = None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **_unused: Any,
    ) -> tuple[Tensor, None, None]:
        """Log-probabilities of the steps at hand; neither entropy nor auxiliary loss."""
        assert self._token is not None
        prompt = input_ids.shape[1] - logits_to_keep
        parts = []
        for rows in torch.arange(len(input_ids), device=input_ids.device).split(batch_size or len(input_ids)):
            ids, mask = input_ids[rows], attention_mask[rows]
            with self.accelerator.autocast():
                log_p = rollout_log_prob(
                    model, ids[:, :prompt], self._token.rows(rows), mask[:, prompt:], mask[:, :prompt],
                    sampling=self.sampling, reduce=self.reduce,
                )  # fmt: skip
            parts.append(log_p)
        return torch.cat(parts), None, None
