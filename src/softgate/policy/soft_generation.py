"""Decoding with soft thoughts: mixtures of embeddings until the end of thinking, ordinary tokens after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softgate.errors import bad_type, bad_value
from softgate.policy.mixed_steps import mixed_log_prob
from softgate.policy.soft_log_prob import Reduce
from softgate.policy.soft_tokens import NoiseName, SoftToken, sample_soft_token, sample_token, soft_embedding

__all__ = ["SoftRollout", "SoftSampling", "SoftThinkingGenerator"]


@dataclass(frozen=True)
class SoftSampling:
    """How steps are drawn, and so how they must be scored; use the same settings in training and evaluation.

    Attributes:
        k: candidates of a soft token.
        top_p: mass of the candidates that stay.
        min_p: smallest share of the largest probability that stays.
        temperature: divides the logits of all steps.
        noise: ``"gumbel"``, ``"gaussian"`` or ``"dirichlet"``.
        noise_scale: factor of the noise; 0 for deterministic soft thinking.
        tau: temperature of the Gumbel-softmax.
        answer_k: candidates of an ordinary token, None for the whole vocabulary.
        answer_top_p: mass of the candidates of an ordinary token.
    """

    k: int = 5
    top_p: float = 0.95
    min_p: float = 0.0
    temperature: float = 1.0
    noise: NoiseName = "gumbel"
    noise_scale: float = 1.0
    tau: float = 0.1
    answer_k: int | None = 5
    answer_top_p: float = 0.95

    def thought(self, logits: Tensor, generator: torch.Generator | None = None) -> SoftToken:
        """Draw a soft token from logits ``(..., V)``."""
        return sample_soft_token(
            logits, k=self.k, top_p=self.top_p, min_p=self.min_p, temperature=self.temperature, noise=self.noise,
            noise_scale=self.noise_scale, tau=self.tau, generator=generator,
        )  # fmt: skip

    def answer(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw an ordinary token from logits ``(..., V)``."""
        k = logits.shape[-1] if self.answer_k is None else self.answer_k
        return sample_token(logits, k=k, top_p=self.answer_top_p, temperature=self.temperature, generator=generator)

    def log_prob(
        self,
        hidden: Tensor,
        lm_head: Tensor | None,
        token: SoftToken,
        *,
        bias: Tensor | None = None,
        reduce: Reduce = "mean",
    ) -> Tensor:
        """:func:`softgate.policy.mixed_log_prob` of steps drawn with these settings."""
        return mixed_log_prob(
            hidden, lm_head, token, bias=bias, temperature=self.temperature, noise=self.noise,
            noise_scale=self.noise_scale, tau=self.tau, reduce=reduce,
        )  # fmt: skip


class SoftRollout(NamedTuple):
    """A batch of responses, padded on the right.

    Attributes:
        token: the steps, ``(B, T, K)``; padding holds the padding token.
        completion_mask: ``(B, T)`` bool, False at padding.
        action_mask: ``(B, T)`` bool, the steps that the policy chose: not padding, and not a forced end of thinking.
    """

    token: SoftToken
    completion_mask: Tensor
    action_mask: Tensor

    @property
    def ids(self) -> Tensor:
        """What each step counts as, ``(B, T)``: the strongest candidate, or the ordinary token."""
        return self.token.ids[..., 0]


@dataclass
class SoftThinkingGenerator:
    """Generates responses of a transformers causal language model that thinks in soft tokens.

    A thought ends at the step whose strongest candidate is ``end_think_id`` (that step becomes the ordinary token), or
    by force after ``max_think`` soft tokens; ordinary tokens follow until ``eos_id``.

    Args:
        model: called with ``inputs_embeds``, ``attention_mask``, ``position_ids``, ``past_key_values``, ``use_cache``
            and ``logits_to_keep``; returns ``logits`` and ``past_key_values``; has ``get_input_embeddings()``.
        end_think_id: token that ends the thoughts.
        eos_id: token, or tokens, that end the response.
        pad_id: token that fills finished rows.
        max_think: largest number of soft tokens, at least 0.
        max_answer: largest number of ordinary tokens after the thoughts, at least 1.
        min_think: so many soft tokens are drawn whatever their strongest candidate is.
        sampling: how to draw.

    Raises:
        ArgumentTypeError: a number is no int.
        ArgumentValueError: a number is out of range.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
        >>> think = SoftThinkingGenerator(model, end_think_id=3, eos_id=2, pad_id=0, max_think=4, max_answer=6)
        >>> rollout = think.generate(torch.tensor([[5, 6, 7]]))
        >>> rollout.token.ids.shape[-1]
        5

    Paper: SofT-GRPO, arXiv 2511.06411.
    """

    model: nn.Module
    end_think_id: int
    eos_id: int | tuple[int, ...]
    pad_id: int
    max_think: int
    max_answer: int
    min_think: int = 0
    sampling: SoftSampling = field(default_factory=SoftSampling)

    def __post_init__(self) -> None:
        lowest = {"end_think_id": 0, "pad_id": 0, "max_think": 0, "max_answer": 1, "min_think": 0}
        for name, low in lowest.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                bad_type(name, value, "an int")
            if value < low:
                bad_value(name, value, f"at least {low}")
        if self.min_think > self.max_think:
            bad_value("min_think", self.min_think, f"at most max_think={self.max_think}")

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> SoftRollout:
        """Respond to prompts, in evaluation mode.

        Args:
            input_ids: ``(B, P)`` int64, padded on the left.
            attention_mask: ``(B, P)``, 0 at padding; None for none.
            generator: source of randomness.

        Returns:
            A :class:`SoftRollout` of at most ``max_think + 1 + max_answer`` steps.

        Raises:
            ArgumentValueError: ``input_ids`` is not (B, P) with P at least 1, or the mask has another shape.
        """
        if input_ids.ndim != 2 or input_ids.shape[1] == 0:
            bad_value("input_ids", tuple(input_ids.shape), "of shape (B, P) with P >= 1")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.dtype)
        if mask.shape != input_ids.shape:
            bad_value("attention_mask", tuple(mask.shape), f"of the shape of input_ids {tuple(input_ids.shape)}")
        training = self.model.training
        self.model.eval()  # no dropout; and with gradient checkpointing a model that trains keeps no cache
        try:
            return self._generate(input_ids, mask, generator)
        finally:
            self.model.train(training)

    def _generate(self, input_ids: Tensor, mask: Tensor, generator: torch.Generator | None) -> SoftRollout:
        embedding: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        logits, cache = self._forward(embedding(input_ids), mask, None)
        thinking = torch.ones_like(input_ids[:, 0], dtype=torch.bool)
        done = torch.zeros_like(thinking)
        left = torch.full_like(input_ids[:, 0], self.max_answer)
        steps, completion, action = [], [], []
        for step in range(self.max_think + 1 + self.max_answer):
            token, forced = self._draw(logits, thinking, done, step, generator)
            steps.append(token)
            completion.append(~done)
            action.append(~done & ~forced)
            left = left - (~thinking & ~done).to(left.dtype)
            done = done | (~thinking & self._ends(token.ids[:, 0])) | (left == 0)
            thinking = thinking & token.is_soft
            if bool(done.all()):
                break
            mask = torch.cat((mask, completion[-1][:, None].to(mask.dtype)), 1)
            logits, cache = self._forward(soft_embedding(token, embedding)[:, None], mask, cache)
        return SoftRollout(SoftToken.stack(steps), torch.stack(completion, 1), torch.stack(action, 1))

    def _draw(
        self, logits: Tensor, thinking: Tensor, done: Tensor, step: int, generator: torch.Generator | None
    ) -> tuple[SoftToken, Tensor]:
        """The next step of every row, and where it was forced."""
        soft = self.sampling.thought(logits, generator)
        answer = self.sampling.answer(logits, generator)
        forced = thinking & (step >= self.max_think)
        ended = thinking & (soft.ids[:, 0] == self.end_think_id) & (step >= self.min_think)
        ordinary = torch.where(thinking, self.end_think_id, answer).masked_fill(done, self.pad_id)
        discrete = SoftToken.discrete(ordinary, self.sampling.k, soft.g.dtype)
        return soft.where(thinking & ~ended & ~forced, discrete), forced

    def _ends(self, ids: Tensor) -> Tensor:
        ends = self.eos_id if isinstance(self.eos_id, tuple) else (self.eos_id,)
        return torch.isin(ids, torch.tensor(ends, device=ids.device))

    def _forward(self, embeds: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits ``(B, V)`` after the last of the new inputs, and the cache that holds them."""
        positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -embeds.shape[1] :]
        out = self.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        return out.logits[:, -1], out.past_key_values
