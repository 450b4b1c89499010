"""Running sums with soft or ordinary thoughts: a task that is easier with thoughts, and a reward that is verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.policy_task import RLConfig, Rollout, TinyLM, train_policy
from softgate.lab.train_config import TrainConfig
from softgate.lab.training import fit
from softgate.policy import SoftSampling, SoftToken, soft_embedding, soft_grpo_loss
from softgate.policy.soft_log_prob import Reduce

__all__ = ["RunningSums", "measure_running_sums"]

EQUALS, SEPARATOR, VOCABULARY = 10, 11, 12

#: ``ordinary`` tokens; ``soft`` ones scored by the density of their noise; ``label``: soft, but scored as if each were
#: the ordinary token that is its strongest candidate.
Thoughts = Literal["ordinary", "soft", "label"]


class RunningSums:
    """``d1 … dN =`` is followed by the sums of the first 2 … N-1 digits, a separator and the sum of all, modulo 10.

    The number of thoughts is fixed and the separator is forced, so only thoughts and answer are the policy's. The
    reward looks at the answer alone.

    Args:
        digits: of a prompt, N.
        thoughts: how the model thinks.
        reduce: of the densities, see :func:`softgate.policy.soft_token_log_prob`.
        sampling: how steps are drawn; ordinary ones from the whole vocabulary.
        prompts: prompts per rollout.
        group: answers per prompt.
    """

    def __init__(
        self,
        digits: int = 6,
        *,
        thoughts: Thoughts = "soft",
        reduce: Reduce = "mean",
        sampling: SoftSampling | None = None,
        prompts: int = 64,
        group: int = 8,
    ) -> None:
        self.digits, self.thoughts, self.reduce, self.prompts, self.group = digits, thoughts, reduce, prompts, group
        self.sampling = sampling or SoftSampling(answer_k=None, answer_top_p=1.0)
        self.number_of_thoughts = digits - 2

    def model(self, width: int = 64, layers: int = 2) -> TinyLM:
        """A fresh model of the right size."""
        return TinyLM(VOCABULARY, 2 * self.digits + 1, width, layers)

    def problems(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Prompts ``(count, N + 1)`` and right responses ``(count, N)``."""
        digits = torch.randint(10, (count, self.digits), generator=generator)
        sums = digits.cumsum(1)[:, 1:] % 10
        equals, separator = torch.full((count, 1), EQUALS), torch.full((count, 1), SEPARATOR)
        return torch.cat((digits, equals), 1), torch.cat((sums[:, :-1], separator, sums[:, -1:]), 1)

    def sample(self, policy: nn.Module, generator: torch.Generator) -> Rollout:
        """G responses to each of P new prompts."""
        prompt, right = self.problems(self.prompts, generator)
        rows = torch.arange(self.prompts).repeat_interleave(self.group)
        return self.responses(policy, prompt[rows], right[rows], rows, generator)

    def responses(
        self, policy: nn.Module, prompt: Tensor, right: Tensor, group_id: Tensor, generator: torch.Generator
    ) -> Rollout:
        """One response to every row of ``prompt``, and what the policy itself thinks of it."""
        token = self.respond(policy, prompt, generator)
        mask = (torch.arange(self.digits) != self.number_of_thoughts).expand(len(prompt), -1)
        rewards = (token.ids[:, -1, 0] == right[:, -1]).float()
        rollout = Rollout((prompt, token), torch.zeros(mask.shape), mask, rewards, group_id)
        with torch.no_grad():
            return replace(rollout, old_logp=self.log_prob(policy, rollout))

    @torch.no_grad()
    def respond(self, policy: nn.Module, prompt: Tensor, generator: torch.Generator) -> SoftToken:
        """The steps after each prompt, ``(B, N, K)``."""
        assert isinstance(policy, TinyLM)
        cache, vectors, steps = policy.new_cache(), policy.tokens(prompt), []
        for place in range(self.digits):
            steps.append(self._step(place, policy.decode(vectors, cache)[:, -1], generator))
            vectors = soft_embedding(steps[-1], policy.tokens)[:, None]
        return SoftToken.stack(steps)

    def _step(self, place: int, logits: Tensor, generator: torch.Generator) -> SoftToken:
        if place < self.number_of_thoughts and self.thoughts != "ordinary":
            return self.sampling.thought(logits, generator)
        ids = self.sampling.answer(logits, generator)
        if place == self.number_of_thoughts:
            ids = torch.full_like(ids, SEPARATOR)
        return SoftToken.discrete(ids, self.sampling.k)

    def log_prob(self, policy: nn.Module, rollout: Rollout) -> Tensor:
        """Log-probabilities of the steps, ``(B, N)``; the inputs are those of the rollout, without gradient."""
        assert isinstance(policy, TinyLM)
        prompt, token = rollout.actions
        inputs = torch.cat((policy.tokens(prompt), soft_embedding(token, policy.tokens)[:, :-1]), 1)
        logits = policy.decode(inputs)[:, -self.digits :]
        if self.thoughts == "label":
            token = token._replace(is_soft=torch.zeros_like(token.is_soft))
        return self.sampling.log_prob(logits, None, token, reduce=self.reduce)

    def pass_at(self, policy: nn.Module, generator: torch.Generator, problems: int, samples: int) -> list[float]:
        """Share of new problems with a right answer among the first 1, 2, … ``samples`` (pass@1 over all samples)."""
        prompt, right = self.problems(problems, generator)
        rows = torch.arange(problems).repeat_interleave(samples)
        rewards = self.responses(policy, prompt[rows], right[rows], rows, generator).rewards
        right_by = rewards.view(problems, samples).cummax(1).values
        return [float(rewards.mean()), *right_by.mean(0)[1:].tolist()]


def base_policy(task: RunningSums, run: CellRun, config: Mapping[str, Any]) -> TinyLM:
    """Cross-entropy on right thoughts and answers, ended at the first check above ``config["base_accuracy"]``.

    The accuracy rises from 0.2 to 0.8 within 20 updates, so the checks are close.
    """
    model = task.model(config.get("width", 64), config.get("layers", 2))
    ordinary = RunningSums(task.digits, thoughts="ordinary", sampling=task.sampling)

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        prompt, right = batch
        logits = net(torch.cat((prompt, right[:, :-1]), 1))[:, -task.digits :]
        target = torch.where(right == SEPARATOR, -100, right)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    fit(
        model,
        loss,
        TrainConfig(steps=config.get("base_steps", 2000), lr=1e-3, schedule="constant", clip=None, eval_every=5),
        batches=lambda step: task.problems(128, seeds.generator(run.seed, "base", step)),
        run=run,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        evaluate=lambda net: {"accuracy": ordinary.pass_at(net, seeds.generator(run.seed, "check"), 1000, 1)[0]},
        name="base",
        stop_when=lambda figures: figures["accuracy"] > config["base_accuracy"],
    )
    return model


def measure_running_sums(run: CellRun) -> Mapping[str, float | Sequence[float]]:
    """Pre-train a base policy, reinforce it, and count right answers before and after."""
    config = run.config
    task = RunningSums(config["digits"], thoughts=config["thoughts"], reduce=config.get("reduce", "mean"))
    torch.manual_seed(seeds.derive(run.seed, "model"))
    model = base_policy(task, run, config)
    tested, samples = config["problems"], config["samples"]
    before = task.pass_at(model, seeds.generator(run.seed, "test"), tested, samples)
    rounds = config["rounds"]
    curves = train_policy(
        model, task, soft_grpo_loss, RLConfig(rounds=rounds, minibatches=2, lr=config["lr"]), run.seed,
        log=lambda turn, reward: run.log(turn, rounds, reward=reward),
    )  # fmt: skip
    after = task.pass_at(model, seeds.generator(run.seed, "test"), tested, samples)
    reward = curves["reward"]
    return {
        "k": [float(count) for count in range(1, samples + 1)],
        "base_pass_curve": before,
        "pass_curve": after,
        "base_pass_1": before[0],
        "pass_1": after[0],
        "base_pass_k": before[-1],
        "pass_k": after[-1],
        "first_reward": sum(reward[:10]) / 10,
        "last_reward": sum(reward[-10:]) / 10,
        "round": [float(turn) for turn in range(1, rounds + 1)],
        "reward": reward,
        "gradient_norm": curves["gradient_norm"],
    }
