"""Addition with the least significant digit first: a prompt, an answer, and a reward that can be verified."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.policy_task.model import TinyLM, sample_tokens
from softgate.lab.policy_task.rollout import Rollout
from softgate.lab.train_config import TrainConfig
from softgate.lab.training import fit

__all__ = ["ReversedAddition", "pretrain"]

PLUS, EQUALS, END, VOCABULARY = 10, 11, 12, 14


class ReversedAddition:
    """``a0 a1 a2 + b0 b1 b2 =`` is answered by the digits of the sum and an end token; reward 1 iff all are right.

    Args:
        digits: of each number.
        prompts: prompts per rollout P.
        group: answers per prompt G.
    """

    def __init__(self, digits: int = 3, *, prompts: int = 64, group: int = 8) -> None:
        self.digits, self.prompts, self.group = digits, prompts, group
        self.answer_length = digits + 2

    def model(self, width: int = 64, layers: int = 2, heads: int = 4) -> TinyLM:
        """A fresh model of the right size."""
        return TinyLM(VOCABULARY, 2 * self.digits + 2 + self.answer_length, width, layers, heads)

    def problems(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Prompts ``(count, 2 digits + 2)`` and right answers ``(count, digits + 2)``."""
        a, b = torch.randint(10**self.digits, (2, count), generator=generator)
        middle, last = torch.full((count, 1), PLUS), torch.full((count, 1), EQUALS)
        prompt = torch.cat([_digits(a, self.digits), middle, _digits(b, self.digits), last], 1)
        answer = torch.cat([_digits(a + b, self.digits + 1), torch.full((count, 1), END)], 1)
        return prompt, answer

    def sample(self, policy: nn.Module, generator: torch.Generator) -> Rollout:
        """G answers to each of P new prompts."""
        prompt, answer = self.problems(self.prompts, generator)
        rows = torch.arange(self.prompts).repeat_interleave(self.group)
        return self.answers(policy, prompt[rows], answer[rows], rows, generator)

    def answers(
        self, policy: nn.Module, prompt: Tensor, answer: Tensor, group_id: Tensor, generator: torch.Generator
    ) -> Rollout:
        """One sampled answer to every row of ``prompt``."""
        assert isinstance(policy, TinyLM)
        given, old = sample_tokens(policy, prompt, self.answer_length, generator)
        ended = (given == END).cumsum(1)
        mask = ended - (given == END).long() == 0  # up to and with the first end token
        rewards = (given == answer).all(1).float()
        return Rollout((prompt, given), old, mask, rewards, group_id)

    def log_prob(self, policy: nn.Module, rollout: Rollout) -> Tensor:
        """Log-probabilities of the answer tokens, ``(B, digits + 2)``."""
        prompt, given = rollout.actions
        logits = policy(torch.cat([prompt, given[:, :-1]], 1))[:, prompt.shape[1] - 1 :]
        return logits.log_softmax(-1).gather(-1, given[..., None]).squeeze(-1)

    def accuracy(self, policy: nn.Module, generator: torch.Generator, count: int = 2000) -> float:
        """Share of right answers to new prompts, sampled at temperature 1."""
        prompt, answer = self.problems(count, generator)
        return self.answers(policy, prompt, answer, torch.arange(count), generator).rewards.mean().item()


def pretrain(
    task: ReversedAddition,
    seed: int,
    *,
    target: float = 0.15,
    max_steps: int = 2000,
    check_every: int = 20,
    width: int = 64,
    layers: int = 2,
    run: CellRun | None = None,
) -> tuple[TinyLM, Mapping[str, list[float]]]:
    """A base policy: cross-entropy on right answers, ended at the first check with a sampled accuracy above ``target``.

    Args:
        task: what to learn.
        seed: of weights and data.
        target: sampled accuracy at which training ends.
        max_steps: most updates of 128 problems.
        check_every: updates between checks.
        width: of the model.
        layers: of the model.
        run: the cell, for checkpoints and live figures.

    Returns:
        The model and its curves, as :func:`softgate.lab.training.fit` returns them.
    """
    torch.manual_seed(seeds.derive(seed, "model"))
    model = task.model(width, layers)

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        prompt, answer = batch
        logits = net(torch.cat([prompt, answer[:, :-1]], 1))[:, prompt.shape[1] - 1 :]
        return F.cross_entropy(logits.flatten(0, 1), answer.flatten())

    def look(net: nn.Module) -> dict[str, float]:
        return {"accuracy": task.accuracy(net, seeds.generator(seed, "check"), 1000)}

    curves = fit(
        model,
        loss,
        TrainConfig(steps=max_steps, lr=1e-3, schedule="constant", clip=None, eval_every=check_every),
        batches=lambda step: task.problems(128, seeds.generator(seed, "base", step)),
        run=run,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        evaluate=look,
        name="base",
        stop_when=lambda figures: figures["accuracy"] > target,
    )
    return model, curves


def _digits(numbers: Tensor, count: int) -> Tensor:
    return numbers[:, None] // 10 ** torch.arange(count) % 10
