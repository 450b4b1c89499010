"""Solve a matrix game by smoothing its maximum, and fit a regression on features, both with adaptive Newton steps.

    python examples/smooth_matrix_game.py
    python examples/smooth_matrix_game.py --strategies 200 --smoothing 0.003

The row player wants to minimise the largest payoff of the column player, ``max_j (Aᵀ p)_j`` over mixed strategies p.
With p = softmax(x) and the maximum replaced by ``μ log Σ exp(·/μ)`` this is a smooth function of x; small μ make it
accurate and hard for first-order methods. Halving μ from solution to solution keeps every problem easy.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from softgate.optim import GradNormSmooth, minimize_gns


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", type=int, default=12)
    parser.add_argument("--smoothing", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def smooth_largest(payoffs: Tensor, mu: float, x: Tensor) -> Tensor:
    """The column player's best reply to p = softmax(x), smoothed; a little pull to 0 makes x unique."""
    return mu * torch.logsumexp(payoffs.mT @ x.softmax(0) / mu, 0) + 1e-6 * x.square().sum()


def main() -> None:
    options = parse()
    generator = torch.Generator().manual_seed(options.seed)
    size = options.strategies
    payoffs = torch.randn(size, size, generator=generator, dtype=torch.float64)
    x, mu, steps = torch.zeros(size, dtype=torch.float64), 1.0, 0
    while True:
        found = minimize_gns(lambda x, mu=mu: smooth_largest(payoffs, mu, x), x, grad_tol=1e-6, max_iter=200)
        x, steps = found.x, steps + found.n_iter
        if mu <= options.smoothing:
            break
        mu = max(mu / 2.0, options.smoothing)
    p = x.softmax(0)
    replies = payoffs.mT @ p
    q = torch.softmax(replies / mu, 0)
    print(f"game: value between {float((payoffs @ q).min()):.4f} and {float(replies.max()):.4f} after {steps} steps")

    features = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    labels = (features @ torch.randn(5, 3, generator=generator, dtype=torch.float64)).argmax(1)
    head = torch.nn.Linear(5, 3, dtype=torch.float64)
    optimizer = GradNormSmooth(head.parameters(), "ggn")

    def closure() -> tuple[Tensor, Tensor]:
        logits = head(features)
        return torch.nn.functional.cross_entropy(logits, labels), logits

    losses = [float(optimizer.step(closure)) for _ in range(15)]
    print(f"regression: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")


if __name__ == "__main__":
    main()
