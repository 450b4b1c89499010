"""Train a small Max-Former on handwritten digits, and see how often its neurons fire and what that would cost.

    python examples/spiking_images.py [--steps 40] [--mixers identity,dwc3,ssa] [--embeds orig,max,max]

The digits are scikit-learn's, 8 x 8 pixels. Spikes are 0 or 1, so a layer only adds weights where its input fires.
"""

from __future__ import annotations

import argparse
import math

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from softgate.diagnostics import energy_report, high_frequency_ratio
from softgate.models import MaxFormer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="training steps")
    parser.add_argument("--width", type=int, default=32, help="channels of the last stage")
    parser.add_argument("--mixers", default="identity,dwc3,ssa", help="of the three stages; try avg,avg,avg")
    parser.add_argument("--embeds", default="orig,max,max", help="of the three stages; try orig,orig,orig")
    options = parser.parse_args()
    torch.manual_seed(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 8.0 - 1.0
    labels = torch.tensor(load_digits().target)
    model = MaxFormer(
        dim=options.width, channels=1, depths=(1, 1, 1), mlp_ratio=2,
        embeds=tuple(options.embeds.split(",")), mixers=tuple(options.mixers.split(",")),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(options.steps):
        rows = torch.randint(1200, (64,))
        loss = cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, options.steps // 5) == 0:
            print(f"step {step}, loss {float(loss.detach()):.3f}")
    model.eval()
    with torch.no_grad():
        right = (model(images[1200:]).argmax(1) == labels[1200:]).float().mean()
        share = high_frequency_ratio(model.embeds[0](images[1200:1300].expand(4, -1, -1, -1, -1)))
    print(f"right {float(right):.3f}, power at high frequencies behind the first stage {float(share):.3f}")
    found = energy_report(model, images[1200:1300])
    for layer in found.layers[:6]:
        fires = "real numbers" if math.isnan(layer.firing_rate) else f"fires {100 * layer.firing_rate:.1f} %"
        print(f"{layer.name}: {fires}, {layer.operations:,.0f} of {layer.steps * layer.products:,.0f} operations")
    print(f"{1e6 * found.millijoules:.1f} nJ per digit")


if __name__ == "__main__":
    main()
