"""Train a classifier on labels some of which are wrong, under several members of the comp-sum family.

    python examples/noisy_labels.py
    python examples/noisy_labels.py --noise 0.4 --epochs 60 --tau 0 1 1.5 2

tau = 1 is cross-entropy; above it, samples that the model finds impossible count less. The data are the 8x8 digits of
scikit-learn; without it, Gaussian clouds.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from softgate.errors import MissingExtraError
from softgate.lab.tasks.noisy_labels import digits, gaussian_classes, with_label_noise
from softgate.losses import CompSumLoss, comp_sum_probabilities
from softgate.models import MLP


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, default=0.4, help="share of training labels that are drawn anew")
    parser.add_argument("--tau", type=float, nargs="+", default=[1.0, 1.7])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(inputs: Tensor, labels: Tensor, tau: float, options: argparse.Namespace) -> MLP:
    torch.manual_seed(options.seed)
    model = MLP((inputs.shape[1], options.width, int(labels.max()) + 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    loss = CompSumLoss(tau=tau)
    for _ in range(options.epochs):
        for rows in torch.randperm(len(labels)).split(options.batch):
            optimizer.zero_grad()
            loss(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    return model


def main() -> None:
    options = parse()
    try:
        clean = digits(options.seed)
    except MissingExtraError:
        clean = gaussian_classes(options.seed, classes=10, dim=16, rows=180, spread=1.0)
    inputs, labels = with_label_noise(clean, options.noise, options.seed).train
    wrong = float((labels != clean.train[1]).float().mean())
    print(f"{len(labels)} training labels, {wrong:.0%} of them wrong")
    for tau in options.tau:
        model = train(inputs, labels, tau, options)
        with torch.no_grad():
            logits = model(clean.test[0])
        hits = float((logits.argmax(1) == clean.test[1]).float().mean())
        line = f"tau {tau:g}: test accuracy {hits:.3f}"
        if tau < 2.0:  # from 2 on the model says nothing about probabilities
            line += f", mean confidence {float(comp_sum_probabilities(logits, tau).amax(1).mean()):.3f}"
        print(line)


if __name__ == "__main__":
    main()
