"""The tabular twin: a table of logits in place of a network, a quarter of a second per run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softgate.lab import seeds
from softgate.lab.policy_task.rollout import Rollout

__all__ = ["TabularTask"]


class TabularTask:
    """Find a hidden word per prompt: reward 1 if at least ``needed`` of its positions are right.

    Args:
        seed: of the hidden words.
        prompts: number of prompts P.
        positions: length of a word T.
        symbols: size of the alphabet V.
        needed: positions that must be right.
        head_start: how much larger the logit of the right symbol is at the start.
        group: answers per prompt G in a rollout.
    """

    def __init__(
        self,
        seed: int,
        *,
        prompts: int = 16,
        positions: int = 8,
        symbols: int = 8,
        needed: int = 6,
        head_start: float = 1.6,
        group: int = 16,
    ) -> None:
        self.needed, self.head_start, self.group = needed, head_start, group
        self.words = torch.randint(symbols, (prompts, positions), generator=seeds.generator(seed, "words"))
        self.symbols = symbols

    def policy(self) -> nn.Module:
        """A fresh table of logits ``(P, T, V)`` as a module."""
        table = torch.zeros(*self.words.shape, self.symbols)
        return _Table(table.scatter(-1, self.words[..., None], self.head_start))

    def sample(self, policy: nn.Module, generator: torch.Generator) -> Rollout:
        """G answers to every prompt, drawn symbol by symbol."""
        prompt = torch.arange(len(self.words)).repeat_interleave(self.group)
        with torch.no_grad():
            logp = policy(prompt)
            flat = logp.exp().flatten(0, 1)
            answer = torch.multinomial(flat, 1, generator=generator).view(logp.shape[:2])
            old = logp.gather(-1, answer[..., None]).squeeze(-1)
        right = (answer == self.words[prompt]).sum(-1)
        rewards = (right >= self.needed).float()
        return Rollout((prompt, answer), old, torch.ones_like(answer, dtype=torch.bool), rewards, prompt)

    def log_prob(self, policy: nn.Module, rollout: Rollout) -> Tensor:
        """Log-probabilities of the symbols of each answer, ``(B, T)``."""
        prompt, answer = rollout.actions
        logp: Tensor = policy(prompt)
        return logp.gather(-1, answer[..., None]).squeeze(-1)


class _Table(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, prompt: Tensor) -> Tensor:
        return self.logits.log_softmax(-1)[prompt]
