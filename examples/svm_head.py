"""Train a small network with a support vector head and with softmax, and decide by scores and by calibrated chances.

    python examples/svm_head.py
    python examples/svm_head.py --steps 400 --data mnist

The default data are scikit-learn's 8 x 8 digits or, where it is absent, points around ten corners of a cube.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import MissingExtraError
from softgate.lab.data import bundled, mnist
from softgate.losses import SVMHead


def load(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Rows in [0, 1] and labels of ten classes."""
    if name == "mnist":
        images = mnist("train")
        return images.images.flatten(1).float() / 255.0, images.labels
    try:
        digits = bundled("digits")
        return digits.features.float() / 16.0, digits.labels
    except MissingExtraError:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(10, (1800,), generator=generator)
        corners = torch.randint(2, (10, 64), generator=generator).float()
        return corners[labels] + 0.6 * torch.randn(1800, 64, generator=generator), labels


def train(model: nn.Module, head: nn.Linear, rows: Tensor, labels: Tensor, steps: int) -> float:
    """Full softmax or margin training; the margin head brings its own loss and penalty."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = torch.randint(len(rows), (128,), generator=torch.Generator().manual_seed(step))
        scores = model(rows[batch])
        is_margin = isinstance(head, SVMHead)
        loss = head.loss(scores, labels[batch]) if is_margin else F.cross_entropy(scores, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def share(hits: Tensor) -> str:
    return f"{float(hits.double().mean()):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    rows, labels = load(options.data, options.seed)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(options.seed))
    fit, held, test = order[: len(rows) // 2], order[len(rows) // 2 : 3 * len(rows) // 4], order[3 * len(rows) // 4 :]
    heads: dict[str, nn.Linear] = {
        "softmax": nn.Linear(options.width, 10),
        "one-vs-rest": SVMHead(options.width, 10, C=1.0, reg="mean"),
        "Crammer-Singer": SVMHead(options.width, 10, C=1.0, reg="mean", multiclass="crammer_singer"),
    }
    for name, head in heads.items():
        torch.manual_seed(options.seed)
        body = nn.Sequential(nn.Linear(rows.shape[1], options.width), nn.ReLU())
        model = nn.Sequential(body, head)
        loss = train(model, head, rows[fit], labels[fit], options.steps)
        with torch.no_grad():
            scores, features = model(rows[test]), body(rows[test])
        print(f"{name}: loss {loss:.3f}, right by the largest score {share(scores.argmax(1) == labels[test])}", end="")
        if isinstance(head, SVMHead):
            signs = head.decide(scores, "sign_argmax")
            with torch.no_grad():
                head.calibrate(body(rows[held]), labels[held])
            surprise = F.nll_loss(head.predict_proba(features).log(), labels[test])
            print(f", by the sign of the scores {share(signs == labels[test])}, calibrated", end="")
        else:
            surprise = F.cross_entropy(scores, labels[test])
        print(f", {float(surprise):.3f} nats a row")


if __name__ == "__main__":
    main()
