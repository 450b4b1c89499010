"""Reinforcement on verified rewards with any objective, and a switch that spoils some of the recorded ratios."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from softgate.lab import seeds
from softgate.lab.policy_task.rollout import PolicyTask
from softgate.policy import group_advantages

__all__ = ["Objective", "RLConfig", "mismatch", "train_policy"]

#: ``(logp, old_logp, advantages, mask) -> loss``: (B, T), (B, T), (B,), (B, T) -> ().
Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class RLConfig:
    """How to reinforce.

    Attributes:
        rounds: rollouts.
        minibatches: updates per rollout.
        lr: of Adam.
        betas: of Adam.
        clip: largest norm of the gradient, None for no limit.
        mismatch: probability that the recorded log-probability of a token is spoiled, and the standard deviation of
            the normal number that is added to it.
        shuffle: mini-batches of ``"rows"`` at random, or of whole ``"groups"``, which then stand in contiguous rows, as
            listwise objectives need them.
    """

    rounds: int = 60
    minibatches: int = 4
    lr: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float | None = 1.0
    mismatch: tuple[float, float] = (0.0, 0.0)
    shuffle: Literal["rows", "groups"] = "rows"


def mismatch(logp: Tensor, probability: float, deviation: float, generator: torch.Generator) -> Tensor:
    """``logp`` with normal noise added to a share of its entries.

    It imitates what different expert routing, or different engines for inference and training, do to recorded
    log-probabilities.
    """
    hit = torch.rand(logp.shape, generator=generator) < probability
    noise = deviation * torch.randn(logp.shape, generator=generator)
    return torch.where(hit, logp + noise, logp)


def train_policy(
    policy: nn.Module,
    task: PolicyTask,
    objective: Objective,
    config: RLConfig,
    seed: int,
    *,
    log: Callable[[int, float], None] | None = None,
) -> dict[str, list[float]]:
    """Train ``policy`` in place.

    Args:
        policy: what :class:`PolicyTask` samples from.
        task: draws answers and rewards them.
        objective: the loss of a mini-batch; advantages are group z-scores of the rewards.
        config: how long and how fast.
        seed: of rollouts, order and mismatch; equal for two objectives, both see the same prompts.
        log: called with round and mean reward.

    Returns:
        ``reward`` (mean of each round's rollout), ``gradient_norm`` (mean over its updates, before clipping).
    """
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr, betas=config.betas)
    curves: dict[str, list[float]] = {"reward": [], "gradient_norm": []}
    for turn in range(config.rounds):
        generator = seeds.generator(seed, "round", turn)
        rollout = task.sample(policy, generator)
        advantages = group_advantages(rollout.rewards, rollout.group_id)
        recorded = mismatch(rollout.old_logp, *config.mismatch, seeds.generator(seed, "mismatch", turn))
        norms = []
        for rows in _minibatches(rollout.group_id, config, seeds.generator(seed, "order", turn)):
            part = rollout.select(rows)
            loss = objective(task.log_prob(policy, part), recorded[rows], advantages[rows], part.mask)
            optimizer.zero_grad()
            loss.backward()
            limit = float("inf") if config.clip is None else config.clip
            norms.append(float(nn.utils.clip_grad_norm_(policy.parameters(), limit)))
            optimizer.step()
        curves["reward"].append(rollout.rewards.mean().item())
        curves["gradient_norm"].append(sum(norms) / len(norms))
        if log is not None:
            log(turn + 1, curves["reward"][-1])
    return curves


def _minibatches(group_id: Tensor, config: RLConfig, generator: torch.Generator) -> tuple[Tensor, ...]:
    if config.shuffle == "rows":
        return torch.randperm(len(group_id), generator=generator).chunk(config.minibatches)
    labels, index = group_id.unique(return_inverse=True)
    place = torch.randperm(len(labels), generator=generator)[index]
    chunk = -(-len(labels) // config.minibatches)
    order = place.argsort(stable=True)
    return tuple(order[(place[order] // chunk) == number] for number in range(-(-len(labels) // chunk)))
