"""Tune the dropout rates of a classifier while it trains, then deploy it as a plain network.

    python examples/tune_dropout.py --steps 2000

The validation rows must not be trained on: rates that are tuned on the training rows go to zero.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from softgate.optim import (
    HyperDropout,
    HyperParam,
    HyperSpace,
    SelfTuner,
    convert_best_response,
    hyper,
    materialize_responses,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--schedule", help="file for the rates, .csv or .json")
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    inputs, labels = torch.tensor(digits.data, dtype=torch.float32) / 16.0, torch.tensor(digits.target)
    order = torch.randperm(len(labels))
    train, valid, test = order[:500], order[500:1000], order[1000:]

    model = nn.Sequential(HyperDropout("input"), nn.Linear(64, 64), nn.ReLU(), HyperDropout("hidden"),
                          nn.Linear(64, 10))  # fmt: skip
    space = HyperSpace([HyperParam("input", 0.05, high=0.9), HyperParam("hidden", 0.05, high=0.9)])
    convert_best_response(model, n_hyper=len(space))

    def loss(net: nn.Module, rows: torch.Tensor, values: object = None) -> torch.Tensor:
        return F.cross_entropy(net(inputs[rows]), labels[rows])

    tuner = SelfTuner(
        model, space, loss, loss,
        opt=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        hyper_opt=torch.optim.Adam([space.raw], lr=0.01),
        warmup=50,
    )  # fmt: skip
    for step in range(options.steps):
        rows, checks = (part[torch.randint(len(part), (50,))] for part in (train, valid))
        figures = tuner.step(rows, checks)
        if (step + 1) % max(options.steps // 5, 1) == 0:
            rates = ", ".join(f"{name} {rate:.3f}" for name, rate in space.current().items())
            print(f"step {step + 1}: training loss {figures['train_loss']:.3f}, rates {rates}")
    if options.schedule:
        tuner.save_schedule(options.schedule)

    model.eval()
    with hyper(space.raw.detach()):
        before = model(inputs[test])
    print("plain layers:", materialize_responses(model, space.raw.detach()))
    after = model(inputs[test])
    print(f"accuracy {float((after.argmax(1) == labels[test]).float().mean()):.3f}, largest difference of the logits "
          f"{float((after - before).detach().abs().max()):.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
