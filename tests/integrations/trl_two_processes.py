"""Trains with TRL's loss and with ours on every process; run by ``accelerate launch``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from softgate.integrations.trl import SoftGateGRPOTrainer
from softgate.lab import tiny_grpo
from softgate.policy import GRPOLoss


def main(folder: Path) -> None:
    from trl import GRPOTrainer  # after ours, which makes an incomplete torchvision importable

    # dapo divides by the tokens of all processes: the normalisation that is easiest to get wrong
    theirs = tiny_grpo.train(GRPOTrainer, tiny_grpo.config(folder, loss_type="dapo", max_steps=3))
    objective = GRPOLoss(aggregation="token_mean_global")
    ours = tiny_grpo.train(SoftGateGRPOTrainer, tiny_grpo.config(folder, max_steps=3), policy_loss=objective)
    for expected, found in zip(theirs.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    print(f"processes {ours.accelerator.num_processes}, same weights", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
