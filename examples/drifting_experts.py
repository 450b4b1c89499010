"""Mix forecasters whose quality drifts, and find the equilibrium of a game by self-play.

    python examples/drifting_experts.py
    python examples/drifting_experts.py --rounds 20000 --experts 20 --period 500

Optimistic Hedge takes the last losses as a guess of the next ones: with losses that drift slowly it changes sides
sooner than Hedge, which is the same with a hint of zero.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from softgate.optim import OptimisticHedge, play_game


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--experts", type=int, default=6)
    parser.add_argument("--period", type=float, default=40.0, help="rounds until the experts' losses come round again")
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def drifting_losses(options: argparse.Namespace) -> Tensor:
    """Losses (rounds, experts) around 1/2: every expert is good in its turn."""
    generator = torch.Generator().manual_seed(options.seed)
    turns = torch.arange(options.rounds)[:, None] / options.period
    phases = torch.arange(options.experts) / options.experts
    noise = torch.randn(options.rounds, options.experts, generator=generator, dtype=torch.float64)
    return 0.5 + 0.5 * torch.cos(2.0 * math.pi * (turns + phases)).double() + options.noise * noise


def main() -> None:
    options = parse()
    losses = drifting_losses(options)
    best = float(losses.mean(0).min())
    for hint, name in (("zero", "Hedge"), ("last", "optimistic Hedge")):
        hedge = OptimisticHedge(options.experts, eta=1.0, hint=hint)
        total = 0.0
        for loss in losses:
            total += float(hedge.predict() @ loss)
            hedge.update(loss)
        print(f"{name}: mean loss {total / options.rounds:.4f}, best expert {best:.4f}")
    game = torch.tensor([[2.0, -1.0], [-1.0, 1.0]])
    for hint, name in (("zero", "Hedge"), ("last", "optimistic Hedge")):
        print(f"{name}: duality gap {float(play_game(game, 500, 0.5, hint)[-1]):.5f} after 500 rounds of a game")


if __name__ == "__main__":
    main()
