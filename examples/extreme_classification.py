"""Train a classifier of very many classes with the Z-loss: the step of the output layer does not grow with them.

    python examples/extreme_classification.py
    python examples/extreme_classification.py --classes 1000000 --features 256 --batch 200 --steps 2000

The rows to classify are noisy copies of one prototype per class, made on the fly, so no data is needed. The body of the
network has its own optimizer; the output layer takes its SGD step in the backward pass.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from softgate.losses import FactoredSphericalLinear, z_loss_from_stats


def draw(classes: int, width: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Targets, and for each a noisy prototype that is a fixed function of the class."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (rows,), generator=generator)
    frequencies = torch.arange(1, width + 1) * 0.6180339887
    prototypes = torch.sin(frequencies * (1.0 + target[:, None]))
    return prototypes + 0.1 * torch.randn(rows, width, generator=generator), target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=500)
    parser.add_argument("--features", type=int, default=32, help="width of the last hidden layer")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=10.0, help="of the output layer")
    options = parser.parse_args()
    torch.manual_seed(0)

    width = 16
    body = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, options.features))
    head = FactoredSphericalLinear(options.features, options.classes, lr=options.lr, centre=True)
    optimizer = torch.optim.Adam(body.parameters(), lr=3e-3)
    started = time.perf_counter()
    for step in range(options.steps):
        x, target = draw(options.classes, width, options.batch, step)
        a, q, s = head(body(x), target)
        loss = z_loss_from_stats(a, q, s, options.classes, alpha=0.5, b=5.0)
        optimizer.zero_grad()
        loss.backward()  # the output layer is updated here
        optimizer.step()
        if step % max(1, options.steps // 5) == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    per_step = (time.perf_counter() - started) / options.steps

    x, target = draw(options.classes, width, 1000, seed=10**9)
    with torch.no_grad():
        _, best = head.topk(body(x), 5)
    first = float((best[:, 0] == target).float().mean())
    among = float((best == target[:, None]).any(1).float().mean())
    print(f"{options.classes} classes, {1e3 * per_step:.1f} ms a step")
    print(f"right {first:.3f}, among the first five {among:.3f}")
    health = head.stats()
    print(
        f"condition of U {health['cond_u']:.2f}, drift of Q {health['q_drift']:.1e}, chance {1 / options.classes:.1e}"
    )


if __name__ == "__main__":
    main()
