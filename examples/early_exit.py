"""Put exits into a classifier, train them for several prices of computation, and see what each costs and saves.

    python examples/early_exit.py
    python examples/early_exit.py --lams 0 0.1 0.3 1 --epochs 12 --samples 8000

The task is synthetic: points on rings, of which some are easy and some lie where rings meet. ``EarlyExit`` has class
methods that put exits into models of timm, torchvision and transformers in the same way.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from softgate.dynamic import ConformalExit, EarlyExit, JEITrainer, cache_features, expected_calibration_error


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lams", type=float, nargs="+", default=[0.0, 0.5, 3.0], help="prices of the whole network")
    parser.add_argument("--samples", type=int, default=3000, help="for training; as many for all else")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400, help="of the classifier without exits")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def rings(count: int) -> tuple[Tensor, Tensor]:
    """Points in eight dimensions; the class is the ring that their first two lie on."""
    x = torch.randn(count, 8)
    radius = x[:, :2].norm(dim=1) + 0.1 * torch.randn(count)
    return x, (2.0 * radius).long().clamp_max(4)


def classifier(data: tuple[Tensor, Tensor], steps: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(8, 64), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(64, 5))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(data[1]), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(data[0][rows]), data[1][rows]).backward()
        optimizer.step()
    return net.eval()


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    train, validation, calibration, test = (rings(options.samples) for _ in range(4))
    net = classifier(train, options.steps)
    accuracy = float((net(test[0]).argmax(-1) == test[1]).float().mean())
    print(f"without exits: accuracy {accuracy:.3f} at cost 1")
    for lam in options.lams:
        model = EarlyExit.from_sequential(net, cuts=[2, 4, 6], example=test[0][:1])
        # the backbone is frozen: it runs once over the data, then heads and gates train on its features
        cached = cache_features(model, train), cache_features(model, validation)
        JEITrainer(model, lam, swap_every=20, epochs=options.epochs, warmup_epochs=2).fit(*cached)
        with torch.no_grad():
            sets = ConformalExit().fit(model(calibration[0]), calibration[1], alpha=0.1)
        logits, level = model.infer(test[0])
        accuracy = float((logits.argmax(-1) == test[1]).float().mean())
        error = expected_calibration_error(logits, test[1])
        found = sets.predict(logits, level)
        covered = float(found.gather(1, test[1][:, None]).float().mean())
        size = float(found.sum(1).float().mean())
        shares = ", ".join(f"{share:.2f}" for share in (level.bincount(minlength=4) / len(level)).tolist())
        print(
            f"price {lam:g}: accuracy {accuracy:.3f} at cost {float(model.costs[level].mean()):.3f}, exits {shares}, "
            f"calibration error {error:.3f}, sets of {size:.2f} classes hold {covered:.3f}"
        )


if __name__ == "__main__":
    main()
