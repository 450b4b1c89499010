"""Count a crowd with three scales merged pixel by pixel by gates, and with their plain average beside it.

    python examples/count_crowd.py
    python examples/count_crowd.py --steps 400 --images 384 --width 16
    python examples/count_crowd.py --folder my_photographs --crop 128

The images are synthetic; ``--folder`` takes photographs in ``images`` with points in ``points/NAME.json`` (lists of
pairs x, y). HMoDE is trained as the paper does, with all its losses. ``--merge`` compares other ways to merge.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from softgate.lab.crowd_counting import MERGES, make_counter
from softgate.lab.data import CrowdFolder, density_map, synthetic_crowd


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--merge", nargs="+", choices=MERGES, default=["average", "hmode"])
    parser.add_argument("--images", type=int, default=48, help="synthetic training images; half as many are tested")
    parser.add_argument("--folder", type=Path, help="photographs and points; the last third is tested")
    parser.add_argument("--crop", type=int, default=64, help="side of the pieces of photographs, a multiple of 16")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=8, help="channels of the encoder's first block")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def read(options: argparse.Namespace) -> tuple[Tensor, Tensor, int]:
    """Images, densities, and how many of them are for training."""
    if options.folder is None:
        crowd = synthetic_crowd(options.images * 3 // 2, seed=options.seed)
        return crowd.images, crowd.density, options.images
    folder, side = CrowdFolder(options.folder), options.crop
    images, densities = [], []
    for index in range(len(folder)):
        photograph, points = folder[index]
        density = density_map(points, (photograph.shape[1], photograph.shape[2])).float()[None]
        for top in range(0, photograph.shape[1] - side + 1, side):
            for left in range(0, photograph.shape[2] - side + 1, side):
                piece = (..., slice(top, top + side), slice(left, left + side))
                images.append(photograph[piece] / 255.0)
                densities.append(density[piece])
    return torch.stack(images), torch.stack(densities), len(images) * 2 // 3


def train(images: Tensor, density: Tensor, merge: str, options: argparse.Namespace) -> torch.nn.Module:
    torch.manual_seed(options.seed)
    config = {"merge": merge, "width": options.width, "head_width": 8, "density_scale": 10.0, "relative": 1.0}
    model = make_counter(config, images.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.steps)
    for _ in range(options.steps):
        rows = torch.randperm(len(images))[: options.batch]
        optimizer.zero_grad()
        model.loss(model(images[rows]), density[rows]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def main() -> None:
    options = parse()
    images, density, training = read(options)
    tests, truth = images[training:], density[training:].sum((1, 2, 3))
    print(f"{training} training and {len(tests)} test images, {float(truth.mean()):.1f} heads on average")
    for merge in options.merge:
        with torch.enable_grad():
            model = train(images[:training], density[:training], merge, options)
        output = model(tests)
        error = float((model.count(output) - truth).abs().mean())
        line = f"{merge}: off by {error:.2f} heads"
        if merge == "hmode":
            shares = ", ".join(f"{share:.2f}" for share in output.weights.mean((0, 2, 3)).tolist())
            line += f"; the second gate gives the pairs of scales {shares}"
        print(line)


if __name__ == "__main__":
    main()
