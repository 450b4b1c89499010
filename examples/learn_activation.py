"""Put CRReLU into a vision transformer, train it on digits, and look at what its layers learned.

    python examples/learn_activation.py --epochs 15

Every feed-forward block gets an activation with a parameter eps of its own. The entropy of the activation's output, for
the inputs it really sees, is shown with the eps it learned and with none.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from softgate.activations import CRReLU, replace_activations
from softgate.diagnostics import activation_entropy
from softgate.models import ViT, ViTConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--width", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8.0 - 1.0
    labels = torch.tensor(data.target)

    model = ViT(ViTConfig(image_size=8, patch_size=2, embed_dim=options.width, depth=2))
    places = replace_activations(model, nn.GELU, CRReLU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)  # made after the activations, so that it knows their eps
    for epoch in range(options.epochs):
        for rows in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            right = (model(images[1000:]).argmax(1) == labels[1000:]).float().mean()
        print(f"epoch {epoch + 1}: accuracy {right:.3f}")

    for name in places:
        seen: list[torch.Tensor] = []
        module = model.get_submodule(name)
        hook = module.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        model(images[1000:])
        hook.remove()
        learned, plain = (activation_entropy(f, seen[0]).increasing for f in (module, torch.relu))
        print(f"{name}: eps {module.eps.item():+.4f}, entropy where it increases {learned:.4f}, of ReLU {plain:.4f}")


if __name__ == "__main__":
    main()
