"""What the papers on policy objectives measure: rewards while training, accuracy at the end, agreement with TRL."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.policy_task import ReversedAddition, RLConfig, TabularTask, pretrain, train_policy
from softgate.lab.policy_task.loop import Objective
from softgate.policy import cispo_loss, grpo_loss, gspo_loss, reinforce_loss, sapo_loss

__all__ = ["measure_addition", "measure_tabular", "objective_of"]

_FUNCTIONS = {"reinforce": reinforce_loss, "grpo": grpo_loss, "gspo": gspo_loss, "cispo": cispo_loss, "sapo": sapo_loss}


def objective_of(settings: Mapping[str, Any]) -> Objective:
    """The objective that a configuration names: ``loss`` and the options of that function."""
    options = {name: value for name, value in settings.items() if name != "loss"}
    return partial(_FUNCTIONS[settings["loss"]], **options)


def measure_tabular(run: CellRun) -> dict[str, float | list[float]]:
    """Train the table of :class:`TabularTask` with every objective.

    The configuration holds ``objectives`` (name -> settings of :func:`objective_of`), ``mismatch`` and optionally
    ``rounds``.

    Returns:
        For every objective ``auc_NAME`` (mean reward over training) and ``reward_NAME`` over ``round``.
    """
    config = run.config
    rounds = config.get("rounds", 60)
    settings = RLConfig(
        rounds=rounds, minibatches=4, lr=0.05, betas=(0.9, 0.999), clip=None, mismatch=tuple(config["mismatch"])
    )
    figures: dict[str, float | list[float]] = {"round": [float(turn + 1) for turn in range(rounds)]}
    task = TabularTask(run.seed)
    for name, objective in config["objectives"].items():
        reward = train_policy(task.policy(), task, objective_of(objective), settings, run.seed)["reward"]
        figures |= {f"auc_{name}": sum(reward) / rounds, f"reward_{name}": reward}
    return figures


def measure_addition(run: CellRun) -> dict[str, float | list[float]]:
    """Pre-train one base policy for :class:`ReversedAddition`, then reinforce a copy of it with every objective.

    The configuration holds ``objectives`` (name -> settings of :func:`objective_of`), ``seed``, ``rounds``,
    ``minibatches``, ``lr``, ``mismatch`` and optionally ``digits``, ``prompts``, ``target`` and ``base_steps``.

    Returns:
        ``base_accuracy``, ``base_steps``, and for every objective ``accuracy_NAME`` (sampled, at the end) and
        ``reward_NAME`` over ``round``.
    """
    config = run.config
    seed = config["seed"]
    task = ReversedAddition(config.get("digits", 3), prompts=config.get("prompts", 64))
    base, curves = pretrain(
        task, seed, target=config.get("target", 0.15), max_steps=config.get("base_steps", 2000), run=run
    )
    rounds = config["rounds"]
    settings = RLConfig(
        rounds=rounds, minibatches=config["minibatches"], lr=config["lr"], mismatch=tuple(config["mismatch"])
    )
    figures: dict[str, float | list[float]] = {
        "base_accuracy": task.accuracy(base, seeds.generator(seed, "test")),
        "base_steps": float(curves["eval_step"][-1]),
        "round": [float(turn + 1) for turn in range(rounds)],
    }
    for number, (name, objective) in enumerate(config["objectives"].items()):
        policy = copy.deepcopy(base)

        def log(turn: int, reward: float, name: str = name, number: int = number) -> None:
            run.log(number * rounds + turn, rounds * len(config["objectives"]), reward=reward, objective=name)

        figures[f"reward_{name}"] = train_policy(policy, task, objective_of(objective), settings, seed, log=log)[
            "reward"
        ]
        figures[f"accuracy_{name}"] = task.accuracy(policy, seeds.generator(seed, "test"))
    return figures
