"""Train a MaxMin network on digits, and say which of its decisions no small change of an image can turn.

    python examples/certify_network.py --steps 1000

The bound on the network's Lipschitz constant comes with a certificate that can be checked without the solver.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from softgate.activations import MaxMin
from softgate.diagnostics import lipschitz_bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--layers", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    data = load_digits()
    images, labels = torch.tensor(data.data, dtype=torch.float32) / 16.0, torch.tensor(data.target)

    widths = [64, *[options.width] * (options.layers - 1)]
    hidden = [nn.Sequential(nn.Linear(a, b), MaxMin()) for a, b in pairwise(widths)]
    model = nn.Sequential(*hidden, nn.Linear(widths[-1], 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(options.steps):
        rows = torch.randint(1200, (50,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()

    found = lipschitz_bound(model)
    print(f"Lipschitz constant: at least {found.lower_bound:.3f}, at most {found.value:.3f}; ", end="")
    print(f"product of the layers' norms {found.product:.3f}; certificate holds: {found.verify()}")
    with torch.no_grad():
        logits = model(images[1200:]).double()
    first, second = logits.topk(2).values.unbind(1)
    right = logits.argmax(1) == labels[1200:]
    print(f"accuracy {right.double().mean():.3f}")
    for change in (0.01, 0.05, 0.1):
        shares = [
            float((right & ((first - second) > 2**0.5 * constant * change)).double().mean())
            for constant in (found.product, found.value)
        ]
        print(f"right and certain within {change}: {shares[1]:.3f}, by the product {shares[0]:.3f}")


if __name__ == "__main__":
    main()
