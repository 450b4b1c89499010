"""Forecast a noisy signal as distributions over bins: a linear head and a Fourier head on the same small network.

    python examples/fourier_head.py
    python examples/fourier_head.py --bins 200 --frequencies 30 --steps 3000

The next value follows one of two branches, so that its distribution has two modes. Printed are the loss on unseen
values, in nats per value, and how jagged the predicted distributions are; then the forecast of one moment as a picture,
and its quantiles from the continuous density behind the bins.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from softgate.losses import FourierHead, pmf_smoothness

WINDOW = 8


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bins", type=int, default=64, help="bins of the predicted value")
    parser.add_argument("--frequencies", type=int, default=10, help="N of the Fourier head")
    parser.add_argument("--gamma", type=float, default=1e-6, help="weight of the head's regulariser")
    parser.add_argument("--rows", type=int, default=1500, help="training windows")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def signal(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows (rows, WINDOW) of a sine with noise, and the value after each: up or down by 0.3, with noise."""
    phase = 6.28 * torch.rand(rows, 1, generator=generator)
    clean = 0.5 * torch.sin(phase + 0.4 * torch.arange(WINDOW + 1))
    noise = 0.05 * torch.randn(rows, WINDOW + 1, generator=generator)
    branch = 0.3 * (2 * torch.randint(2, (rows,), generator=generator) - 1)
    values = clean + noise
    return values[:, :-1], (values[:, -1] + branch).clamp(-1, 1)


def train(head: nn.Module, windows: Tensor, bins: Tensor, options: argparse.Namespace) -> nn.Module:
    model = nn.Sequential(nn.Linear(WINDOW, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), head)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(options.steps):
        rows = torch.randint(len(windows), (128,))
        loss = cross_entropy(model(windows[rows]), bins[rows])
        if isinstance(head, FourierHead):
            loss = loss + head.regularization()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    options = parse()
    generator = torch.Generator().manual_seed(options.seed)
    data = {name: signal(rows, generator) for name, rows in (("train", options.rows), ("test", 1000))}
    target = {
        name: ((value + 1) * options.bins / 2).long().clamp(max=options.bins - 1) for name, (_, value) in data.items()
    }
    heads = {
        "linear": nn.Linear(32, options.bins),
        "fourier": FourierHead(32, options.bins, options.frequencies, gamma=options.gamma),
    }
    windows = data["test"][0]
    for name, head in heads.items():
        torch.manual_seed(options.seed)
        model = train(head, data["train"][0], target["train"], options)
        with torch.no_grad():
            logits = model(windows)
            pmf = logits.softmax(-1)
            loss = float(cross_entropy(logits, target["test"]))
            print(
                f"{name}: loss {loss:.3f} nats, smoothness {float(pmf_smoothness(pmf).mean()):.4f} (lower is smoother)"
            )
            heights = (8 * pmf[0] / pmf[0].max()).round().long()
            print("".join(" ▁▂▃▄▅▆▇█"[height] for height in heights))
            if isinstance(head, FourierHead):
                density = head.pdf(model[:-1](windows[:1]))
                quantiles = density.icdf(torch.tensor([[0.05], [0.5], [0.95]])).flatten().tolist()
                print("5, 50 and 95 %: " + ", ".join(f"{quantile:.2f}" for quantile in quantiles))


if __name__ == "__main__":
    main()
