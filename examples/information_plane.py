"""Follow what the layers of a small network say about its inputs and labels while it learns the digits.

    python examples/information_plane.py --epochs 60 --plot plane.svg

Two estimators look at the same layers. A statement that only one of them makes is one about the estimator.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from softgate.diagnostics import InformationPlane


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--plot", help="file for a picture of the plane")
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32) / 16.0
    labels = torch.tensor(digits.target)

    net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3), nn.Tanh(),
                        nn.Linear(3, 10))  # fmt: skip
    planes = {
        "adaptive bins": InformationPlane(net, inputs, labels, bins=10),
        "adaptive noise": InformationPlane(net, inputs, labels, estimator="akde", noise=0.01),
    }
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for epoch in range(options.epochs + 1):
        for plane in planes.values():
            plane.record(epoch)
        for rows in torch.randperm(1400).split(50):
            optimizer.zero_grad()
            F.cross_entropy(net(inputs[rows]), labels[rows]).backward()
            optimizer.step()

    for name, plane in planes.items():
        limit = torch.tensor(float(len(inputs))).log2()
        print(f"{name}: bits about the input (at most {limit:.2f}) and about the label, first -> last epoch")
        for layer, curve in plane.curve().items():
            note = "  at its limit, says nothing" if curve.saturated[-1] else ""
            print(f"  {layer:>6}: {curve.i_tx[0]:5.2f} -> {curve.i_tx[-1]:5.2f},"
                  f" {curve.i_ty[0]:.2f} -> {curve.i_ty[-1]:.2f}{note}")  # fmt: skip
    print("the last hidden layer under other settings:")
    for setting, found in planes["adaptive bins"].sensitivity()["5"].items():
        print(f"  {setting}: {found.i_tx:.2f} bits")
    if options.plot:
        planes["adaptive bins"].plot().figure.savefig(options.plot)


if __name__ == "__main__":
    main()
