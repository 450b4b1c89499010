"""Train a two-head attention layer on regression prompts and read out which algorithm it has become.

    python examples/in_context_regression.py
    python examples/in_context_regression.py --steps 6000 --attention stablemax

Several random starts are trained; the best is read. Two softmax heads of opposite sign are one step of gradient descent
on centred covariates. Any score normaliser can take softmax's place: does the same circuit appear?
"""

from __future__ import annotations

import argparse
import math

import torch

from softgate.diagnostics import icl
from softgate.normalizers import stablemax

NORMALISERS = {"softmax": "softmax", "stablemax": stablemax}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", choices=tuple(NORMALISERS), default="softmax")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--features", type=int, default=3)
    parser.add_argument("--points", type=int, default=20, help="labelled points in a prompt")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--starts", type=int, default=4, help="random starts, of which the best is shown")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(options: argparse.Namespace, prompts: icl.LinearRegressionPrompts, seed: int) -> icl.AttentionICL:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = icl.AttentionICL(options.features, options.heads, attention=NORMALISERS[options.attention])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 + 0.5 * math.cos(math.pi * s / options.steps))
    for _ in range(options.steps):
        tokens, target = prompts(128, generator)
        loss = (model(tokens) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def main() -> None:
    options = parse()
    prompts = icl.LinearRegressionPrompts(options.features, options.points, sigma2=0.1)
    tokens, target = prompts(10_000, torch.Generator().manual_seed(10**6 + options.seed))

    def error(predicted: torch.Tensor) -> float:
        return float((predicted - target[:, 0]).square().mean())

    models = [train(options, prompts, options.seed + s) for s in range(options.starts)]
    with torch.no_grad():
        losses = [error(model(tokens)[:, 0]) for model in models]
    best = losses.index(min(losses))
    print("loss of each start: " + ", ".join(f"{loss:.3f}" for loss in losses))
    print(icl.circuit_report(models[best]))
    eta = icl.optimal_multi_head(options.features, options.points, 0.1).eta
    print(f"layer {losses[best]:.3f}, debiased gradient descent {error(icl.predictors.debiased_gd(tokens, eta)):.3f}, "
          f"ridge {error(icl.predictors.ridge(tokens, 0.1 * options.features)):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
