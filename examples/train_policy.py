"""Reinforce a tiny transformer on additions that can be verified, with several policy objectives.

    python examples/train_policy.py
    python examples/train_policy.py --digits 3 --base-steps 600 --rounds 120 --prompts 64 --objectives grpo gspo sapo

Some of the recorded log-probabilities are wrong, as with mixtures of experts or with different engines for sampling and
training. The objective is any function of log-probabilities: put in one of your own.
"""

from __future__ import annotations

import argparse
import copy

from softgate.lab import seeds
from softgate.lab.policy_task import ReversedAddition, RLConfig, pretrain, train_policy
from softgate.policy import CISPOLoss, GRPOLoss, GSPOLoss, SAPOLoss

# unchecked: a spoiled log-probability may be above 0, which the check takes for a mistake
OBJECTIVES = {
    "sapo": SAPOLoss(check=False),
    "grpo": GRPOLoss(check=False),
    "grpo_dual": GRPOLoss(dual_clip=3.0, check=False),
    "gspo": GSPOLoss(0.03, 0.04, check=False),
    "cispo": CISPOLoss(check=False),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=["grpo", "sapo"])
    parser.add_argument("--digits", type=int, default=1, help="of the numbers to add")
    parser.add_argument("--base-steps", type=int, default=60, help="most updates of the base policy")
    parser.add_argument("--rounds", type=int, default=10, help="rollouts")
    parser.add_argument("--prompts", type=int, default=16, help="per rollout, with 8 answers each")
    parser.add_argument("--mismatch", type=float, nargs=2, default=(0.1, 4.0), help="share and size of wrong ratios")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    task = ReversedAddition(options.digits, prompts=options.prompts)
    base, _ = pretrain(task, options.seed, max_steps=options.base_steps)
    print(f"base: accuracy {task.accuracy(base, seeds.generator(options.seed, 'test')):.3f}")
    share, size = options.mismatch
    config = RLConfig(rounds=options.rounds, minibatches=2, lr=options.lr, mismatch=(share, size))
    for name in options.objectives:
        policy = copy.deepcopy(base)
        curves = train_policy(policy, task, OBJECTIVES[name], config, options.seed)
        accuracy = task.accuracy(policy, seeds.generator(options.seed, "test"))
        first, last = curves["reward"][0], curves["reward"][-1]
        print(f"{name}: reward {first:.3f} -> {last:.3f}, accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
