"""Train a small classifier, choose what it may cost, and let every image run only the filters that it needs.

    python examples/dynamic_filters.py
    python examples/dynamic_filters.py --save 0.3 0.5 0.7 --epochs 12 --samples 6000

The task is synthetic: coloured squares, of which some are clear and some drown in noise. ``prune_dynamic`` takes any
convolutional network that ``torch.fx`` can trace, those of timm and torchvision among them.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from softgate.dynamic import DynamicTrainer, choose_r, estimate_flops, prune_dynamic


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=float, nargs="+", default=[0.3, 0.6], help="shares of the multiply-adds")
    parser.add_argument("--samples", type=int, default=2000, help="for training; a quarter of it for all else")
    parser.add_argument("--epochs", type=int, default=6, help="of the dynamic network")
    parser.add_argument("--steps", type=int, default=200, help="of the dense classifier")
    parser.add_argument("--width", type=int, default=32, help="of the first convolution")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def squares(count: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 12, 12) with one square; the class is its colour and the half it lies in."""
    y = torch.randint(6, (count,))
    x = (0.2 + 0.6 * torch.rand(count, 1, 1, 1)) * torch.randn(count, 3, 12, 12)
    rows, columns = torch.randint(9, (count,)), 6 * (y % 2) + torch.randint(3, (count,))
    for image, colour, row, column in zip(x, y // 2, rows, columns, strict=True):
        image[colour, row : row + 4, column : column + 4] += 1.0
    return x, y


def classifier(data: tuple[Tensor, Tensor], width: int, steps: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers.append(nn.MaxPool2d(2) if outputs < 4 * width else nn.AdaptiveMaxPool2d((1, 2)))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * width, 6))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(data[1]), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(data[0][rows]), data[1][rows]).backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    train, held, test = (squares(count) for count in (options.samples, options.samples // 4, options.samples // 4))
    with torch.enable_grad():
        net = classifier(train, options.width, options.steps)
    accuracy = float((net(test[0]).argmax(-1) == test[1]).float().mean())
    print(f"dense: accuracy {accuracy:.3f}")
    for target in options.save:
        r = choose_r(net, held, target)
        promised = estimate_flops(net, held, r).reduction
        model = prune_dynamic(net, r, test[0][:1])
        with torch.enable_grad():
            DynamicTrainer(model, epochs=options.epochs, batch_size=64, warm_up=60).fit(train)
        accuracy = float((model(test[0]).argmax(-1) == test[1]).float().mean())
        stats = model.dynamic_stats()
        model.tune(test[0][:4])
        seconds = []
        for image in test[0][:50].split(1):
            start = time.perf_counter()
            model.infer(image)
            seconds.append(time.perf_counter() - start)
        print(
            f"r {r:.3f}: promised to save {promised:.3f}, saves {stats.reduction:.3f}, accuracy {accuracy:.3f}, "
            f"{stats.dynamic_fraction:.2f} of the filters follow the image, {1e3 * min(seconds):.2f} ms an image"
        )


if __name__ == "__main__":
    main()
