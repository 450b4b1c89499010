"""What a task hands to the training loop: sampled answers with their log-probabilities and rewards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["PolicyTask", "Rollout"]


@dataclass(frozen=True)
class Rollout:
    """Answers to prompts, G rows per prompt.

    Attributes:
        actions: what :meth:`PolicyTask.log_prob` needs to score the answers again: a tensor with B rows, or a tuple,
            named tuple or dict of such tensors.
        old_logp: log-probabilities of the actions when they were sampled, ``(B, T)``.
        mask: bool ``(B, T)``.
        rewards: ``(B,)``.
        group_id: which prompt, ``(B,)``.
    """

    actions: Any
    old_logp: Tensor
    mask: Tensor
    rewards: Tensor
    group_id: Tensor

    def select(self, rows: Tensor) -> Rollout:
        """The rows of an index tensor."""
        return replace(
            self,
            actions=_map(self.actions, lambda t: t[rows]),
            old_logp=self.old_logp[rows],
            mask=self.mask[rows],
            rewards=self.rewards[rows],
            group_id=self.group_id[rows],
        )


class PolicyTask(Protocol):
    """A task that :func:`softgate.lab.policy_task.train_policy` can train on."""

    def sample(self, policy: nn.Module, generator: torch.Generator) -> Rollout:
        """Draw prompts and answers, without gradient."""
        ...

    def log_prob(self, policy: nn.Module, rollout: Rollout) -> Tensor:
        """Log-probabilities of the rollout's actions under ``policy``, ``(B, T)``, with gradient."""
        ...


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    items = [_map(item, change) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
